"""The U-Net: which part of these latents is noise, given this text?

Source: Ho and Salimans (2022), "Classifier-Free Diffusion Guidance", equation 6; the body of the
loop in diffusers' ``StableDiffusionPipeline.__call__``. The blocks: Rombach et al. (2022),
"High-Resolution Image Synthesis with Latent Diffusion Models", sections 3.2 and 3.3.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import partial
from typing import Any, NamedTuple

import torch
from diffusers import StableDiffusionPipeline, UNet2DConditionModel
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from sdlearn import checks
from sdlearn.pipeline import execution_device

# For capture_attention, whose hooks cannot see it: the first row of the text half, and the loop
# that draws. None while another's loop runs, such as that of pipe(...).
text_start: ContextVar[int | None] = ContextVar("text_start", default=None)
current_loop: ContextVar[object] = ContextVar("current_loop", default=None)
# A capture sees only calls made with the value that it was opened with: see editing.word_mask.
aside: ContextVar[object] = ContextVar("aside", default=None)


@contextmanager
def assigned(variable: ContextVar, value: object) -> Iterator[None]:
    """Give a context variable a value while the block runs."""
    token = variable.set(value)
    try:
        yield
    finally:
        variable.reset(token)


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
    joined: Tensor | None = None,
) -> NoisePrediction:
    r"""Predict the noise in ``latents``, with classifier-free guidance.

    $$\epsilon = \epsilon_\emptyset + g\,(\epsilon_{text} - \epsilon_\emptyset)$$

    Both halves go through the U-Net as one batch: two smaller passes would differ in the last
    bits. Gradients are recorded if the caller has them on.

    Args:
        pipe: the pipeline.
        latents: x_t, (B, 4, h, w): what the scheduler's ``scale_model_input`` returns.
        t: the timestep, 0 to 999, one for all.
        prompt_embeds: (2B, 77, D) from ``encode_prompt``; the text half will do without guidance.
        guidance_scale: g. As in diffusers, guidance is off unless g > 1. A U-Net that reads g
            itself (LCM's, with ``time_cond_proj_dim``) is asked once, about the text.
        guidance_rescale: how far to pull the guided prediction's standard deviation back to that of
            the text one, 0 to 1 (Lin et al. 2023, "Common Diffusion Noise Schedules", section 3.4).
        joined: what a U-Net for inpainting reads beside the latents, (B, 5, h, w): the mask and the
            latents of what is to be kept. See ``editing.inpaint``.

    Returns:
        ``NoisePrediction(unconditional, text, guided)``; ``guided`` is for the scheduler.

    Raises:
        ValueError, TypeError: shapes that do not match, or guidance that is not finite.
    """
    guidance_scale, guidance_rescale, _ = checks.guidance(guidance_scale, guidance_rescale)
    t, count = checks.timestep(pipe, t), len(latents)
    checks.latents(pipe, latents)
    guided = checks.guided(pipe, guidance_scale)
    checks.embeds(pipe, prompt_embeds, count, guided=guided)
    checks.joined(pipe, latents, joined)
    if joined is not None:
        latents = torch.cat([latents, joined], dim=1)  # (B, 9, h, w)
    if guided:
        latents = torch.cat([latents] * 2)  # (2B, 4 or 9, h, w)
    embeds = prompt_embeds[-len(latents) :]  # without guidance, the text half
    scale = _scale_read(pipe, guidance_scale, latents)
    with assigned(text_start, len(latents) - count):
        predicted = pipe.unet(
            latents, t, encoder_hidden_states=embeds, timestep_cond=scale, return_dict=False
        )[0]
    if not guided:
        return NoisePrediction(None, predicted, predicted)

    unconditional, text = predicted.chunk(2)  # (B, 4, h, w) each
    noise = unconditional + guidance_scale * (text - unconditional)
    if guidance_rescale > 0:
        ratio = text.std((1, 2, 3), keepdim=True) / noise.std((1, 2, 3), keepdim=True)
        noise = guidance_rescale * (noise * ratio) + (1 - guidance_rescale) * noise
    return NoisePrediction(unconditional, text, noise)


def _scale_read(pipe: StableDiffusionPipeline, scale: float, latents: Tensor) -> Tensor | None:
    """Return the guidance scale as waves, (B, D), for a U-Net that reads it; None for others.

    Source: Meng et al. (2022), "On Distillation of Guided Diffusion Models", section 3.
    """
    width = pipe.unet.config.time_cond_proj_dim
    if width is None:
        return None
    scales = torch.tensor(scale - 1).repeat(len(latents))
    return pipe.get_guidance_scale_embedding(scales, embedding_dim=width).to(latents)


class Block(NamedTuple):
    """One block of a U-Net, and what one forward pass sent through it.

    ``name`` is its path in the U-Net, ``kind`` its class. ``skip`` names the block whose output
    is joined on to the channels that arrive here (and counts in ``input``), or is None.
    """

    name: str
    kind: str
    input: tuple[int, ...]
    output: tuple[int, ...]
    parameters: int
    skip: str | None


@torch.no_grad()
def trace_blocks(
    pipe: StableDiffusionPipeline | UNet2DConditionModel, latents: Tensor | None = None
) -> list[Block]:
    """Send latents through the U-Net once, with an empty text, and note every block on the way.

    The hooks only look, and are taken off at the end, after an error too.

    Args:
        pipe: the pipeline, or its U-Net alone; on the meta device it needs no weights.
        latents: (B, 4, h, w); by default zeros of the size that the U-Net was trained on.

    Returns:
        All blocks that have parameters, in the order in which they ran. Their parameters add up
        to the U-Net's.

    Raises:
        TypeError, ValueError: no U-Net of Stable Diffusion's kind, or no latents for it.
    """
    unet = getattr(pipe, "unet", pipe)
    unet = getattr(unet, "_orig_mod", unet)  # what torch.compile was given
    if not isinstance(unet, UNet2DConditionModel):
        raise TypeError(f"expected a pipeline or its U-Net, got {type(unet).__name__}")
    where = execution_device(pipe) if hasattr(pipe, "unet") else unet.device
    channels = unet.config.in_channels
    if latents is None:
        latents = torch.zeros(1, channels, *latent_size(unet), device=where, dtype=unet.dtype)
    if latents.ndim != 4 or latents.shape[1] != channels:
        raise ValueError(f"latents must be (B, {channels}, h, w), got {tuple(latents.shape)}")
    text = latents.new_zeros(len(latents), 77, checks.text_width(unet))
    blocks: list[Block] = []
    handles = _note_blocks(unet, blocks)
    try:
        unet(latents, 0, encoder_hidden_states=text)
    finally:
        for handle in handles:
            handle.remove()
    return blocks


def _note_blocks(unet: UNet2DConditionModel, blocks: list[Block]) -> list[RemovableHandle]:
    """Hang hooks on a U-Net that add every block to the list as it runs."""
    made: dict[int, tuple[str, Tensor]] = {}  # the tensors are kept, so that no id is used twice
    skips: dict[str, str] = {}

    def see_block(name: str, block: nn.Module, args: Any, output: Any) -> None:
        result = output if isinstance(output, Tensor) else output[0]
        made[id(result)] = name, result
        seen = Block(
            name=name,
            kind=type(block).__name__,
            input=tuple(args[0].shape),
            output=tuple(result.shape),
            parameters=parameters(block),
            skip=skips.get(name),
        )
        blocks.append(seen)

    def see_skips(name: str, _: nn.Module, args: Any, kwargs: Any) -> None:
        for i, skip in enumerate(reversed(kwargs["res_hidden_states_tuple"])):
            skips[f"{name}.resnets.{i}"] = made[id(skip)][0]

    depth = {"down_blocks": 4, "mid_block": 3, "up_blocks": 4}  # words in its name: 1 elsewhere
    handles = []
    for name, part in unet.named_modules():
        parts = name.split(".")
        if name and len(parts) == depth.get(parts[0], 1) and parameters(part):
            handles.append(part.register_forward_hook(partial(see_block, name)))
        elif parts[0] == "up_blocks" and len(parts) == 2:
            hook = partial(see_skips, name)
            handles.append(part.register_forward_pre_hook(hook, with_kwargs=True))
    return handles


def latent_size(unet: UNet2DConditionModel) -> tuple[int, int]:
    """Return height and width of the latents that a U-Net was trained on."""
    size = unet.config.sample_size
    return (size, size) if isinstance(size, int) else tuple(size)


def parameters(part: nn.Module) -> int:
    """Return how many parameters a part has."""
    return sum(weight.numel() for weight in part.parameters())
