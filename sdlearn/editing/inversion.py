"""DDIM inversion: the noise from which a picture would be drawn.

Source: Song et al. (2021), "Denoising Diffusion Implicit Models", section 4.3; diffusers'
``DDIMInverseScheduler``. DDIM's step is solved for the noisier side. The noise there is not known
yet, so the U-Net is asked about the cleaner latents: right only as steps become small.
"""

from __future__ import annotations

import copy

import torch
from diffusers import DDIMInverseScheduler, DDIMScheduler, StableDiffusionPipeline
from torch import Tensor

from sdlearn import checks
from sdlearn.editing.sdedit import Picture, pixels_for
from sdlearn.latents import encode_tensor
from sdlearn.sampling import denoise
from sdlearn.text import encode_prompt


@torch.no_grad()
def invert(
    pipe: StableDiffusionPipeline,
    image: Picture,
    prompt: str | list[str],
    num_inference_steps: int = 50,
    *,
    guidance_scale: float = 1.0,
    negative_prompt: str | list[str] = "",
) -> Tensor:
    """Return the latents from which DDIM, in as many steps, draws a picture again, nearly.

    Args:
        pipe: the pipeline; its scheduler is DDIM.
        image: a picture, its path, or pixels (1 or B, 3, H, W) in [0, 1]; sides multiples of 8.
        prompt: one prompt, or a list of B, that says what the picture shows.
        num_inference_steps: steps; take the same number to draw.
        guidance_scale: see ``predict_noise``. Above 1 the way back is another one: errors grow.
        negative_prompt: what to steer away from; one for all, or a list of B.

    Returns:
        (B, 4, H/8, W/8), for ``denoise`` and ``edit_prompt`` with DDIM. They come near to noise of
        standard deviation 1, but are not free of the picture.

    Raises:
        ValueError, TypeError: an argument out of range or of the wrong type, or a scheduler other
            than DDIM.
    """
    checks.pipeline(pipe)
    checks.latents_alone(pipe)
    prompts = checks.prompts(prompt)
    negatives = checks.negative_prompts(negative_prompt, len(prompts))
    checks.guidance(guidance_scale)
    config = pipe.scheduler.config
    if not isinstance(pipe.scheduler, DDIMScheduler) or config.timestep_spacing == "linspace":
        raise ValueError(
            f"invert walks DDIM's steps backwards, got {type(pipe.scheduler).__name__} with "
            f'timestep_spacing="{config.timestep_spacing}"; set pipe.scheduler = '
            'DDIMScheduler.from_config(pipe.scheduler.config, timestep_spacing="leading")'
        )
    backwards = copy.copy(pipe)  # shares all its parts but the scheduler
    backwards.scheduler = DDIMInverseScheduler.from_config(config)
    pixels = pixels_for(pipe, image, len(prompts))  # (1 or B, 3, H, W)
    clean = encode_tensor(pipe, pixels, sample=False)  # the posterior's mean
    latents = clean.repeat(len(prompts) // len(clean), 1, 1, 1)  # (B, 4, H/8, W/8)
    for step in denoise(
        backwards,
        latents,
        encode_prompt(pipe, prompts, negatives),  # (2B, 77, D)
        num_inference_steps=num_inference_steps,
        guidance_scale=guidance_scale,
    ):
        latents = step.prev_sample
    return latents
