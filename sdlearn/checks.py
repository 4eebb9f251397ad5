"""Checks made before any work starts; each error names what it got and what to do instead."""

from __future__ import annotations

import math
from typing import Any

from diffusers import StableDiffusionPipeline
from torch import Tensor


def pipeline(pipe: Any) -> None:
    """Refuse all but a text-to-image pipeline of SD 1.x's kind."""
    if not isinstance(pipe, StableDiffusionPipeline):
        raise TypeError(
            f"expected a StableDiffusionPipeline, got {type(pipe).__name__}; make one with "
            "sdlearn.load(), or StableDiffusionPipeline.from_pipe(...) if it shares SD 1.x's parts"
        )


def prompts(prompt: Any, name: str = "prompt") -> list[str]:
    """Return a prompt, or a list of them, as a list."""
    texts = [prompt] if isinstance(prompt, str) else prompt
    if not isinstance(texts, (list, tuple)) or not all(isinstance(text, str) for text in texts):
        raise TypeError(f"{name} must be a string or a list of strings, got {prompt!r}")
    if not texts:
        raise ValueError(f'{name} is an empty list, []; pass at least one string ("" is allowed)')
    for text in texts:
        if any("\ud800" <= letter <= "\udfff" for letter in text):
            raise ValueError(f"{name} {text!r} holds half a character (a surrogate); remove it")
    return list(texts)


def negative_prompts(negative_prompt: Any, batch_size: int) -> list[str]:
    """Return one negative prompt for each of ``batch_size`` prompts."""
    negatives = prompts(negative_prompt, "negative_prompt")
    negatives = negatives * batch_size if isinstance(negative_prompt, str) else negatives
    if len(negatives) != batch_size:
        raise ValueError(
            f"got {len(negatives)} negative prompts for {batch_size} prompts; pass one string"
        )
    return negatives


def whole(name: str, value: Any, low: int, high: int, remedy: str) -> None:
    """Refuse all but a whole number in ``low`` ... ``high``."""
    if not isinstance(value, int) or isinstance(value, bool):
        raise TypeError(f"{name} must be a whole number, got {value!r}; {remedy}")
    if not low <= value <= high:
        raise ValueError(f"{name} must be between {low} and {high}, got {value}; {remedy}")


def size(pipe: StableDiffusionPipeline, height: Any, width: Any) -> None:
    """Refuse a size in pixels of which the VAE cannot make whole latents."""
    factor = pipe.vae_scale_factor
    for name, value in (("height", height), ("width", width)):
        remedy = f"use a multiple of {factor}, such as 64"
        whole(name, value, factor, 8192, remedy)
        if value % factor:
            raise ValueError(f"{name} must be divisible by {factor}, got {value}; {remedy}")


def latents(pipe: StableDiffusionPipeline, value: Any) -> None:
    """Refuse all but a batch of latents, (B, 4, h, w)."""
    if not isinstance(value, Tensor):
        raise TypeError(f"latents must be a tensor, got {type(value).__name__}; see encode_image")
    channels = pipe.vae.config.latent_channels
    if value.ndim != 4 or value.shape[1] != channels or 0 in value.shape:
        raise ValueError(
            f"latents must have the shape (B, {channels}, H/8, W/8), got {tuple(value.shape)}; "
            "add a missing batch dimension with latents[None]"
        )


def guidance(guidance_scale: Any, guidance_rescale: Any = 0.0, eta: Any = 0.0) -> None:
    """Refuse what is not a finite number."""
    named = {"guidance_scale": guidance_scale, "guidance_rescale": guidance_rescale, "eta": eta}
    for name, value in named.items():
        remedy = "7.5 is the usual guidance_scale, 0.0 the usual guidance_rescale and eta"
        if not isinstance(value, (int, float)) or isinstance(value, bool):
            raise TypeError(f"{name} must be a number, got {value!r}; {remedy}")
        if not math.isfinite(value):
            raise ValueError(f"{name} must be finite, got {value}; {remedy}")


def embeds(pipe: StableDiffusionPipeline, value: Any, batch: int, guided: bool) -> None:
    """Refuse embeddings that do not belong to ``batch`` latents, or to this U-Net."""
    width = pipe.unet.config.cross_attention_dim
    rows = {2 * batch} if guided else {batch, 2 * batch}
    shape = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
    if (
        not isinstance(value, Tensor)
        or len(shape) != 3
        or not (shape[0] in rows and shape[2] == width)
    ):
        raise ValueError(
            f"prompt_embeds must have the shape ({2 * batch}, 77, {width}) for {batch} latents, "
            f"got {shape}; make them with encode_prompt(pipe, prompt)"
        )
