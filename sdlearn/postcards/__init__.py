"""The world that postcards, the shipped model, was trained on: scenes, captions, pictures.

``__init__.pyi`` lists the public names; scenes and captions need neither torch nor diffusers.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
