"""Stable Diffusion taken apart: the small library that the book's chapters share.

Every function takes an ordinary diffusers ``StableDiffusionPipeline`` first::

    import sdlearn

    pipe = sdlearn.load("postcards")
    trace = sdlearn.text_to_image(pipe, "a red cat on the beach at sunset")
    trace.image.save("cat.png")
"""

from __future__ import annotations

import logging
from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sdlearn.attention import AttentionMaps, capture_attention
    from sdlearn.images import image_grid, to_pil
    from sdlearn.latents import decode_latents, encode_image
    from sdlearn.noise import add_noise, predict_original_sample, signal_to_noise
    from sdlearn.pipeline import load
    from sdlearn.sampling import Step, Trace, denoise, initial_latents, text_to_image
    from sdlearn.schedulers import ddim_step, ddpm_step, dpm_solver_step, euler_step
    from sdlearn.text import Tokens, encode_prompt, tokenize
    from sdlearn.unet import Block, NoisePrediction, predict_noise, trace_blocks

__version__ = "0.1.0"

# transformers would rather have torchvision for a part that Stable Diffusion 1.x only carries along
# (its image preprocessor), and would open every notebook with two warnings about it.
logging.getLogger("transformers.utils.import_utils").addFilter(
    lambda record: "torchvision" not in record.getMessage()
)

# Importing torch and diffusers takes seconds, so a module is imported when one of its names is
# first used (PEP 562).
_MODULES = {
    "attention": ["AttentionMaps", "capture_attention"],
    "images": ["image_grid", "to_pil"],
    "latents": ["decode_latents", "encode_image"],
    "noise": ["add_noise", "predict_original_sample", "signal_to_noise"],
    "pipeline": ["load"],
    "sampling": ["Step", "Trace", "denoise", "initial_latents", "text_to_image"],
    "schedulers": ["ddim_step", "ddpm_step", "dpm_solver_step", "euler_step"],
    "text": ["Tokens", "encode_prompt", "tokenize"],
    "unet": ["Block", "NoisePrediction", "predict_noise", "trace_blocks"],
}
_HOME = {name: module for module, names in _MODULES.items() for name in names}

__all__ = [
    "AttentionMaps",
    "Block",
    "NoisePrediction",
    "Step",
    "Tokens",
    "Trace",
    "add_noise",
    "capture_attention",
    "ddim_step",
    "ddpm_step",
    "decode_latents",
    "denoise",
    "dpm_solver_step",
    "encode_image",
    "encode_prompt",
    "euler_step",
    "image_grid",
    "initial_latents",
    "load",
    "predict_noise",
    "predict_original_sample",
    "signal_to_noise",
    "text_to_image",
    "to_pil",
    "tokenize",
    "trace_blocks",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'sdlearn' has no attribute {name!r}")
    value = getattr(import_module(f"sdlearn.{_HOME[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
