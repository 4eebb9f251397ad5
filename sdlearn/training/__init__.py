"""How postcards was trained, the VAE, CLIP, then the U-Net; or a model on pictures of your own."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
