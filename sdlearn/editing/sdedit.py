"""Image to image: begin with a picture under noise, in place of noise alone.

Source: Meng et al. (2022), "SDEdit: Guided Image Synthesis and Editing with Stochastic Differential
Equations", section 3; diffusers' ``StableDiffusionImg2ImgPipeline``, with which the result is the
same bit for bit.
"""

from __future__ import annotations

import math
from pathlib import Path

import torch
from diffusers import StableDiffusionPipeline
from diffusers.utils.torch_utils import randn_tensor
from PIL import Image
from torch import Tensor

from sdlearn import checks
from sdlearn.images import to_tensor
from sdlearn.latents import encode_tensor
from sdlearn.sampling import Generators, Trace, denoise, develop, fresh_scheduler
from sdlearn.text import encode_prompt

Picture = Image.Image | str | Path | Tensor


@torch.no_grad()
def image_to_image(
    pipe: StableDiffusionPipeline,
    prompt: str | list[str],
    image: Picture,
    strength: float = 0.8,
    *,
    num_inference_steps: int = 50,
    guidance_scale: float = 7.5,
    negative_prompt: str | list[str] = "",
    eta: float = 0.0,
    generator: Generators = None,
) -> Trace:
    """Draw what the prompt says over a picture, so far away from it as ``strength`` says.

    Args:
        pipe: the pipeline.
        prompt: one prompt, or a list of B.
        image: a picture, its path, or pixels (1 or B, 3, H, W) in [0, 1]; sides multiples of 8.
        strength: the share of the way, over 0 to 1, that is walked: how much noise the picture
            gets, and how many of the steps are left to take it out. At 1 the noise is that of the
            first step, which leaves a trace of the picture.
        num_inference_steps: steps of the whole way.
        guidance_scale: see ``predict_noise``.
        negative_prompt: what to steer away from; one for all, or a list of B.
        eta: see ``denoise``.
        generator: draws the latents from the VAE's posterior, then the noise; one, or a list of B.

    Returns:
        A ``Trace`` of the steps that were taken.

    Raises:
        ValueError, TypeError: an argument out of range or of the wrong type, or a strength so small
            that no step is left.
    """
    checks.pipeline(pipe)
    checks.latents_alone(pipe)
    prompts = checks.prompts(prompt)
    negatives = checks.negative_prompts(negative_prompt, len(prompts))
    checks.guidance(guidance_scale, eta=eta)
    checks.generators(generator, len(prompts))
    fresh_scheduler(pipe, num_inference_steps)  # checks the number of steps
    left_out = steps_left_out(num_inference_steps, strength)
    pixels = pixels_for(pipe, image, len(prompts))  # (1 or B, 3, H, W)
    if isinstance(generator, list):
        pixels = torch.cat([pixels] * (len(prompts) // len(pixels)))  # each draws for its own
    clean = drawn_latents(pipe, pixels, generator)
    # (B, 4, H/8, W/8). repeat would change the strides, and with them the last bits.
    clean = torch.cat([clean] * (len(prompts) // len(clean)))
    # Under autocast the VAE gives latents of a smaller type than the U-Net starts from.
    noise = randn_tensor(clean.shape, generator, device=clean.device, dtype=pipe.unet.dtype)
    embeds = encode_prompt(pipe, prompts, negatives)  # (2B, 77, D)
    steps = denoise(
        pipe,
        noised(pipe, clean, noise, num_inference_steps, left_out),
        embeds,
        num_inference_steps=num_inference_steps,
        guidance_scale=guidance_scale,
        eta=eta,
        generator=generator,
        t_start=left_out,
    )
    return develop(pipe, prompts, embeds, steps)


def steps_left_out(num_inference_steps: int, strength: float) -> int:
    """Return how many of the steps a strength leaves out, those at the noisy end.

    Args:
        num_inference_steps: steps of the whole way.
        strength: the share of it that is walked, over 0 to 1.

    Raises:
        ValueError, TypeError: out of range, or so small that no step is left.
    """
    strength = checks.real("strength", strength, 0, 1, "1 walks the whole way")
    walked = int(num_inference_steps * strength)
    if walked < 1:
        least = math.ceil(1000 / num_inference_steps) / 1000
        raise ValueError(
            f"strength={strength:g} leaves none of {num_inference_steps} steps; "
            f"take {least:g} or more, or more steps"
        )
    return num_inference_steps - walked


def pixels_for(pipe: StableDiffusionPipeline, image: Picture, count: int) -> Tensor:
    """Return a picture as the VAE takes it, (1 or count, 3, H, W) in [-1, 1].

    Raises:
        ValueError, TypeError: as ``encode_image``; or neither 1 nor ``count`` pictures.
    """
    pixels = to_tensor(pipe, image)
    if len(pixels) not in (1, count):
        raise ValueError(
            f"got {len(pixels)} pictures for {count} prompts; pass one, or one for each"
        )
    return pixels


def drawn_latents(pipe: StableDiffusionPipeline, pixels: Tensor, generator: Generators) -> Tensor:
    """Return latents from the posterior of each picture; of a list of generators each draws one."""
    if isinstance(generator, list):
        each = zip(pixels.split(1), generator)
        return torch.cat([encode_tensor(pipe, one, generator=g) for one, g in each])
    return encode_tensor(pipe, pixels, generator=generator)


def noised(
    pipe: StableDiffusionPipeline, latents: Tensor, noise: Tensor, steps: int, left_out: int
) -> Tensor:
    """Return latents with the noise of the step at which the loop will begin.

    By the scheduler's own ``add_noise``: what it keeps may be scaled (Euler's sigmas).
    """
    scheduler = fresh_scheduler(pipe, steps, left_out)
    first = left_out * scheduler.order
    t = scheduler.timesteps[first : first + 1].repeat(len(latents))
    return scheduler.add_noise(latents, noise, t)
