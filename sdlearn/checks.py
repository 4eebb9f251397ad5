"""Checks made before any work starts; each error names what it got and what to do instead."""

from __future__ import annotations

import math
from numbers import Integral, Real
from typing import Any

import torch
from diffusers import StableDiffusionPipeline, UNet2DConditionModel
from torch import Tensor


def pipeline(pipe: Any) -> None:
    """Refuse all but a text-to-image pipeline of SD 1.x's and 2.x's family."""
    if not isinstance(pipe, StableDiffusionPipeline):
        raise TypeError(
            f"expected a StableDiffusionPipeline, got {type(pipe).__name__}; make one with "
            "sdlearn.load(), or StableDiffusionPipeline.from_pipe(...) if it shares SD 1.x's parts"
        )
    config, channels = pipe.unet.config, pipe.vae.config.latent_channels
    # SDXL's takes sizes and a second text, an IP-Adapter's a picture.
    more = ("addition_embed_type", "encoder_hid_dim_type", "class_embed_type")
    other = {name: config[name] for name in more if config.get(name) is not None}
    if config.in_channels not in (channels, 2 * channels + 1):  # the second is for inpainting
        other["in_channels"] = config.in_channels
    if other:
        raise ValueError(
            f"this U-Net is of another family than Stable Diffusion 1.x and 2.x, got {other}; use "
            f'one that takes {channels} channels, timestep and text alone, such as load("sd15")'
        )
    if pipe._execution_device.type == "meta":  # offloaded weights may lie there, but not compute
        raise ValueError(
            "this pipeline is on the device meta, which keeps the shapes of weights and not their "
            'numbers; load the model again, as in load("sd15", device="cpu")'
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
            f"got {len(negatives)} negative prompts for {batch_size} prompts; pass one for all"
        )
    return negatives


def whole(name: str, value: Any, low: int, high: int, remedy: str) -> int:
    """Return a whole number in ``low`` ... ``high`` as an int; NumPy's and torch's are taken."""
    value = value.item() if getattr(value, "ndim", None) == 0 else value
    if not isinstance(value, Integral) or isinstance(value, bool):
        raise TypeError(f"{name} must be a whole number, got {value!r}; {remedy}")
    number = int(value)
    if not low <= number <= high:
        raise ValueError(f"{name} must be between {low} and {high}, got {number}; {remedy}")
    return number


def real(
    name: str, value: Any, low: float = -math.inf, high: float = math.inf, remedy: str = ""
) -> float:
    """Return a finite number in ``low`` ... ``high`` as a float; NumPy's and torch's are taken."""
    value = value.item() if getattr(value, "ndim", None) == 0 else value
    if not isinstance(value, Real) or isinstance(value, bool):
        raise TypeError(f"{name} must be a number, got {value!r}; {remedy}")
    number = float(value)
    if not math.isfinite(number):
        raise ValueError(f"{name} must be finite, got {number}; {remedy}")
    if not low <= number <= high:
        raise ValueError(f"{name} must be between {low:g} and {high:g}, got {number:g}; {remedy}")
    return number


def guidance(scale: Any, rescale: Any = 0.0, eta: Any = 0.0) -> tuple[float, float, float]:
    """Return guidance_scale, guidance_rescale and eta as floats."""
    return (
        real("guidance_scale", scale, remedy="7.5 is usual"),
        real("guidance_rescale", rescale, remedy="0.0 leaves it out"),
        real("eta", eta, 0, 1, "0 adds no noise, 1 is DDPM"),  # above 1, a root of less than 0
    )


def guided(pipe: StableDiffusionPipeline, scale: float) -> bool:
    """Whether the U-Net is asked twice, without the prompt and with it.

    One that was distilled with guidance inside (LCM) reads the scale itself, and is asked once.
    """
    return scale > 1 and pipe.unet.config.time_cond_proj_dim is None


def uncompiled(pipe: StableDiffusionPipeline) -> None:
    """Refuse a U-Net that is compiled, whole or in part, where hooks are to look into it."""
    parts = pipe.unet.modules()
    if hasattr(pipe.unet, "_orig_mod") or any(part._compiled_call_impl for part in parts):
        raise ValueError(
            f"this {type(pipe.unet).__name__} is compiled, and hooks see nothing of what it "
            "computes; load the model again, or put back the U-Net that was given to torch.compile"
        )


def timestep(pipe: StableDiffusionPipeline, t: Any) -> float | Tensor:
    """Return one timestep; refuse several, and a number out of range (tensors are trusted)."""
    if not isinstance(t, Tensor):
        last = pipe.scheduler.config.num_train_timesteps - 1
        return real("t", t, 0, last, "see scheduler.timesteps")
    if t.numel() != 1:
        raise ValueError(f"t must be one timestep for all latents, got {t.numel()}; call once each")
    return t.reshape(())


def generators(value: Any, batch: int) -> None:
    """Refuse all but None, one generator, or a list of one for each of ``batch`` pictures."""
    for one in value if isinstance(value, list) else [value]:
        if not isinstance(one, torch.Generator) and value is not None:
            remedy = "for a seed pass torch.Generator().manual_seed(0)"
            raise TypeError(f"generator must be a torch.Generator, got {one!r}; {remedy}")
    if isinstance(value, list) and len(value) != batch:
        raise ValueError(f"got {len(value)} generators for {batch} images; pass one each")


def size(pipe: StableDiffusionPipeline, height: Any, width: Any) -> tuple[int, int]:
    """Return a size in pixels; refuse one of which the VAE cannot make whole latents."""
    factor = pipe.vae_scale_factor
    remedy = f"use a multiple of {factor}, such as 64"
    height = whole("height", height, factor, 8192, remedy)
    width = whole("width", width, factor, 8192, remedy)
    for name, value in (("height", height), ("width", width)):
        if value % factor:
            raise ValueError(f"{name} must be divisible by {factor}, got {value}; {remedy}")
    return height, width


def latents(pipe: StableDiffusionPipeline, value: Any, name: str = "latents") -> None:
    """Refuse all but a batch of latents, (B, 4, h, w)."""
    if not isinstance(value, Tensor):
        raise TypeError(f"{name} must be a tensor, got {type(value).__name__}; see encode_image")
    channels = pipe.vae.config.latent_channels
    if value.ndim != 4 or value.shape[1] != channels or 0 in value.shape:
        raise ValueError(
            f"{name} must have the shape (B, {channels}, H/8, W/8), got {tuple(value.shape)}; "
            f"add a missing batch dimension with {name}[None]"
        )
    if not value.is_floating_point():
        raise TypeError(f"{name} must be floats, got {value.dtype}; use .float()")


def joined(pipe: StableDiffusionPipeline, latents: Tensor, value: Tensor | None) -> None:
    """Refuse all but what this U-Net reads beside latents: most read nothing else."""
    more = further_channels(pipe)
    wanted = (len(latents), more, *latents.shape[2:]) if more else None
    got = None if value is None else tuple(value.shape)
    if got != wanted:
        raise ValueError(
            f"this U-Net reads {'nothing' if wanted is None else wanted} beside the latents, got "
            f"{got}; " + ("use inpaint(...), which makes it" if more else "leave joined out")
        )


def further_channels(pipe: StableDiffusionPipeline) -> int:
    """Return how many channels the U-Net reads beside the latents: 5 if it is for inpainting."""
    return pipe.unet.config.in_channels - pipe.vae.config.latent_channels


def latents_alone(pipe: StableDiffusionPipeline) -> None:
    """Refuse a U-Net that reads more than latents, where there is nothing else to give it."""
    more = further_channels(pipe)
    if more:
        raise ValueError(
            f"this U-Net reads {more} channels beside the latents, as one for inpainting does; "
            "use inpaint(...), or load a model for text to image"
        )


def embeds(pipe: StableDiffusionPipeline, value: Any, batch: int, guided: bool) -> None:
    """Refuse embeddings that do not belong to ``batch`` latents, or to this U-Net."""
    width = text_width(pipe.unet)
    rows = {2 * batch} if guided else {batch, 2 * batch}
    fits = isinstance(value, Tensor) and value.ndim == 3
    if not fits or value.shape[0] not in rows or value.shape[2] != width:
        got = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
        raise ValueError(
            f"prompt_embeds must have the shape ({2 * batch}, 77, {width}) for {batch} latents, "
            f"got {got}; make them with encode_prompt(pipe, prompt)"
        )


def text_width(unet: UNet2DConditionModel) -> int:
    """Return the width D of the text that a U-Net reads; it may be said once for each block."""
    width = unet.config.cross_attention_dim
    return width if isinstance(width, int) else width[0]
