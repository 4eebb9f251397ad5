"""The VAE: pictures to latents, an eighth of the height and width, and back.

Source: Rombach et al. (2022), "High-Resolution Image Synthesis with Latent Diffusion Models",
section 3.1; diffusers' ``StableDiffusionImg2ImgPipeline.prepare_latents``.
"""

from __future__ import annotations

from pathlib import Path

import torch
from diffusers import StableDiffusionPipeline
from PIL import Image
from torch import Tensor

from sdlearn import checks
from sdlearn.images import to_tensor
from sdlearn.pipeline import execution_device


@torch.no_grad()
def encode_image(
    pipe: StableDiffusionPipeline,
    image: Image.Image | str | Path | Tensor,
    *,
    generator: torch.Generator | None = None,
    sample: bool = True,
) -> Tensor:
    """Encode a picture into scaled latents.

    Args:
        pipe: the pipeline.
        image: an RGB picture, its path, or pixels (B, 3, H, W) in [0, 1]; sides multiples of 8.
        generator: makes the draw repeatable.
        sample: draw from the posterior, as diffusers does, or take its mode.

    Returns:
        (B, 4, H/8, W/8), times ``scaling_factor``, which makes their standard
        deviation about 1.

    Raises:
        ValueError, TypeError: an image of a wrong mode or size, or an unreadable file.
    """
    return encode_tensor(pipe, to_tensor(pipe, image), generator=generator, sample=sample)


@torch.no_grad()
def encode_tensor(
    pipe: StableDiffusionPipeline,
    pixels: Tensor,
    *,
    generator: torch.Generator | None = None,
    sample: bool = True,
) -> Tensor:
    """Encode pixels as the VAE takes them, (B, 3, H, W) in [-1, 1]; else as ``encode_image``."""
    checks.generators(generator, len(pixels))
    pixels = pixels.to(execution_device(pipe), pipe.vae.dtype)
    posterior = pipe.vae.encode(pixels).latent_dist
    latents = posterior.sample(generator) if sample else posterior.mode()  # (B, 4, H/8, W/8)
    return latents * pipe.vae.config.scaling_factor


@torch.no_grad()
def decode_latents(pipe: StableDiffusionPipeline, latents: Tensor) -> Tensor:
    """Decode scaled latents, (B, 4, H/8, W/8), into pixels, (B, 3, H, W) in [0, 1].

    Raises:
        ValueError, TypeError: not a batch of latents.
    """
    checks.latents(pipe, latents)
    latents = latents.to(execution_device(pipe), pipe.vae.dtype)
    image = pipe.vae.decode(latents / pipe.vae.config.scaling_factor, return_dict=False)[0]
    return pipe.image_processor.postprocess(image, output_type="pt")  # (B, 3, H, W)
