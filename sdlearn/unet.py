"""The U-Net: which part of these latents is noise, given this text?

Source: Ho and Salimans (2022), "Classifier-Free Diffusion Guidance", equation 6; the body of the
loop in diffusers' ``StableDiffusionPipeline.__call__``.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from diffusers import StableDiffusionPipeline
from torch import Tensor

from sdlearn import checks


class NoisePrediction(NamedTuple):
    """Predictions, (B, 4, h, w) each; ``unconditional`` is None if guidance is off."""

    unconditional: Tensor | None
    text: Tensor
    guided: Tensor


def predict_noise(
    pipe: StableDiffusionPipeline,
    latents: Tensor,
    t: float | Tensor,
    prompt_embeds: Tensor,
    guidance_scale: float = 7.5,
    *,
    guidance_rescale: float = 0.0,
) -> NoisePrediction:
    r"""Predict the noise in ``latents``, with classifier-free guidance.

    $$\epsilon = \epsilon_\emptyset + g\,(\epsilon_{text} - \epsilon_\emptyset)$$

    Both halves go through the U-Net as one batch: two smaller passes would differ in the last
    bits. Gradients are recorded if the caller has them on.

    Args:
        pipe: the pipeline.
        latents: x_t, (B, 4, h, w): what the scheduler's ``scale_model_input`` returns.
        t: the timestep, 0 to 999.
        prompt_embeds: (2B, 77, D) from ``encode_prompt``; the text half will do without guidance.
        guidance_scale: g. As in diffusers, guidance is off unless g > 1.
        guidance_rescale: how far to pull the guided prediction's spread back to that of the text
            one, 0 to 1 (Lin et al. 2023, "Common Diffusion Noise Schedules", section 3.4).

    Returns:
        ``NoisePrediction(unconditional, text, guided)``; ``guided`` is for the scheduler.

    Raises:
        ValueError, TypeError: shapes that do not match, or guidance that is not finite.
    """
    checks.guidance(guidance_scale, guidance_rescale)
    checks.latents(pipe, latents)
    checks.embeds(pipe, prompt_embeds, len(latents), guided=guidance_scale > 1)
    if not guidance_scale > 1:
        embeds = prompt_embeds[-len(latents) :]  # (B, 77, D)
        text = pipe.unet(latents, t, encoder_hidden_states=embeds, return_dict=False)[0]
        return NoisePrediction(None, text, text)

    twice = torch.cat([latents] * 2)  # (2B, 4, h, w)
    both = pipe.unet(twice, t, encoder_hidden_states=prompt_embeds, return_dict=False)[0]
    unconditional, text = both.chunk(2)  # (B, 4, h, w) each
    guided = unconditional + guidance_scale * (text - unconditional)
    if guidance_rescale > 0:
        spread = text.std((1, 2, 3), keepdim=True) / guided.std((1, 2, 3), keepdim=True)
        guided = guidance_rescale * (guided * spread) + (1 - guidance_rescale) * guided
    return NoisePrediction(unconditional, text, guided)
