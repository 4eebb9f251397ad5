"""Stable Diffusion taken apart: the small library that the book's chapters share.

Every function takes an ordinary diffusers ``StableDiffusionPipeline`` first::

    import sdlearn

    pipe = sdlearn.load("postcards")
    trace = sdlearn.text_to_image(pipe, "a red cat on the beach at sunset")
    trace.image.save("cat.png")

``__init__.pyi`` lists the public names. Importing torch and diffusers takes seconds, so a module
is imported when one of its names is first used (SPEC 1).
"""

import logging

import lazy_loader

__version__ = "0.1.0"
__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)

# transformers would rather have torchvision for a part that Stable Diffusion 1.x only carries along
# (its image preprocessor), and would open every notebook with two warnings about it.
logging.getLogger("transformers.utils.import_utils").addFilter(
    lambda record: "torchvision" not in record.getMessage()
)
