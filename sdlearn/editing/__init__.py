"""What people do with a finished model: start from a picture, repaint a part, change a word."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
