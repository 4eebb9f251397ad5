"""Inpainting: paint anew what a mask covers, and keep the rest.

Source: diffusers' ``StableDiffusionInpaintPipeline``, with which the result is the same bit for
bit. For a U-Net that was not trained for it: after each step the rest is put back, with the noise
of that step, as in Lugmayr et al. (2022), "RePaint", section 4.1. One that was reads the mask and
the rest in five more channels: Rombach et al. (2022), section 4.5.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from diffusers import StableDiffusionPipeline
from diffusers.image_processor import VaeImageProcessor
from diffusers.utils.torch_utils import randn_tensor
from PIL import Image
from torch import Tensor

from sdlearn import checks
from sdlearn.attention import capture_attention
from sdlearn.editing.sdedit import Picture, drawn_latents, noised, pixels_for, steps_left_out
from sdlearn.images import open_image, to_tensor
from sdlearn.latents import encode_tensor
from sdlearn.noise import add_noise
from sdlearn.pipeline import execution_device
from sdlearn.sampling import AfterStep, Generators, Trace, denoise, develop, fresh_scheduler
from sdlearn.text import encode_prompt, find_word, tokenize
from sdlearn.unet import aside, assigned, predict_noise

Mask = Image.Image | Tensor | str | Path
FORMATS = (".png", ".jpg", ".jpeg", ".webp", ".bmp")
LOOK_AT = (500, 300)  # Timesteps: by then a thing has its place, and not yet its details.
LOOKS = 4  # Draws of noise, the mean of whose maps is taken.


@torch.no_grad()
def inpaint(
    pipe: StableDiffusionPipeline,
    prompt: str | list[str],
    image: Picture,
    mask: Mask,
    strength: float = 1.0,
    *,
    num_inference_steps: int = 50,
    guidance_scale: float = 7.5,
    negative_prompt: str | list[str] = "",
    mask_prompt: str | None = None,
    eta: float = 0.0,
    generator: Generators = None,
) -> Trace:
    """Paint what the prompt says where the mask is, into a picture.

    Args:
        pipe: the pipeline, its U-Net an ordinary one or one for inpainting.
        prompt: one prompt, or a list of B, for the whole picture as it shall be.
        image: a picture, its path, or pixels (1 or B, 3, H, W) in [0, 1]; sides multiples of 8.
        mask: what to paint anew: a picture of mode "L" (white), its path, a boolean tensor (H, W),
            or a word for the thing that stands there, see ``word_mask``. A place of the latents,
            8 × 8 pixels, is painted whole or not at all, as the pixel at its upper left says.
        strength: as in ``image_to_image``, where the mask is; 1 starts from noise alone.
        num_inference_steps: steps of the whole way.
        guidance_scale: see ``predict_noise``.
        negative_prompt: what to steer away from; one for all, or a list of B.
        mask_prompt: what the picture shows now; with a word as the mask, see ``word_mask``.
        eta: see ``denoise``.
        generator: one, or a list of B; draws the picture's latents, the noise, and the latents of
            what is kept.

    Returns:
        A ``Trace`` of the steps that were taken.

    Raises:
        ValueError, TypeError: an argument out of range or of the wrong type; a mask of another size
            than the picture, or one that covers nothing; a word that ``mask_prompt`` has not.
    """
    checks.pipeline(pipe)
    prompts = checks.prompts(prompt)
    negatives = checks.negative_prompts(negative_prompt, len(prompts))
    checks.guidance(guidance_scale, eta=eta)
    checks.generators(generator, count := len(prompts))
    scheduler = fresh_scheduler(pipe, num_inference_steps)
    left_out = steps_left_out(num_inference_steps, strength)
    pixels = pixels_for(pipe, image, count)  # (1 or B, 3, H, W) in [-1, 1]
    height, width = pixels.shape[2:]
    if isinstance(mask, Path) or (isinstance(mask, str) and mask.lower().endswith(FORMATS)):
        mask = open_image(mask)
    if isinstance(mask, str):
        mask = _where_read(pipe, pixels, mask, mask_prompt)
    elif mask_prompt is not None:
        raise ValueError(f"mask_prompt={mask_prompt!r} needs a word of it as the mask")
    covered = mask_tensor(pipe, mask, height, width)  # (1, 1, H, W), 1 where to paint
    covered = covered.to(pixels.device)

    joins = checks.further_channels(pipe) > 0
    if not joins or left_out:  # diffusers' order of draws
        clean = drawn_latents(pipe, pixels, generator)  # (1 or B, 4, h, w)
        clean = clean.repeat(count // len(clean), 1, 1, 1)
    factor = pipe.vae_scale_factor
    shape = (count, pipe.vae.config.latent_channels, height // factor, width // factor)
    like = {"device": execution_device(pipe), "dtype": pipe.unet.dtype}
    noise = randn_tensor(shape, generator, **like)
    start = noise * scheduler.init_noise_sigma
    if left_out:
        start = noised(pipe, clean, noise, num_inference_steps, left_out)
    kept = drawn_latents(pipe, pixels * (covered < 0.5), generator)  # grey under the mask
    kept = kept.repeat(count // len(kept), 1, 1, 1)
    cells = F.interpolate(covered, shape[2:]).to(**like).repeat(count, 1, 1, 1)  # (B, 1, h, w)

    embeds = encode_prompt(pipe, prompts, negatives)  # (2B, 77, D)
    steps = denoise(
        pipe,
        start,
        embeds,
        num_inference_steps=num_inference_steps,
        guidance_scale=guidance_scale,
        eta=eta,
        generator=generator,
        t_start=left_out,
        joined=torch.cat([cells, kept], dim=1) if joins else None,
        after_step=None if joins else _put_back(clean, noise, cells),
    )
    return develop(pipe, prompts, embeds, steps)


def _put_back(clean: Tensor, noise: Tensor, cells: Tensor) -> AfterStep:
    """Return what an ordinary U-Net needs after each step: outside the mask, the picture again."""

    def put_back(scheduler: Any, latents: Tensor, t: Tensor | None) -> Tensor:
        there = clean if t is None else scheduler.add_noise(clean, noise, torch.tensor([t]))
        return (1 - cells) * there + cells * latents

    return put_back


@torch.no_grad()
def word_mask(
    pipe: StableDiffusionPipeline, image: Picture, word: str, prompt: str | None = None
) -> Tensor:
    """Return where a picture shows what a word says, (H, W), as the U-Net reads it.

    The picture gets noise, of two timesteps and the same four draws each time; where the U-Net
    reads the word while it looks at that is thresholded and grown. It finds the likeliest place
    also for a thing that is not there.

    Args:
        pipe: the pipeline.
        image: one picture, its path, or pixels (1, 3, H, W) in [0, 1]; sides multiples of 8.
        word: what to look for.
        prompt: all that the picture shows, the word among it. By default the word alone, which is
            right for a picture of one thing; where there are several, it finds the others, too.

    Raises:
        ValueError, TypeError: more pictures than one, or a word that the prompt has not.
    """
    checks.pipeline(pipe)
    return _where_read(pipe, to_tensor(pipe, image), word, prompt)


def _where_read(
    pipe: StableDiffusionPipeline, pixels: Tensor, word: str, prompt: str | None
) -> Tensor:
    """Do what ``word_mask`` does, for pixels as the VAE takes them, (1, 3, H, W) in [-1, 1]."""
    if len(pixels) != 1:
        raise ValueError(
            f"got {len(pixels)} pictures; a word finds its thing in one, call for each"
        )
    prompt = word if prompt is None else prompt
    places = find_word(pipe, tokenize(pipe, prompt).ids, word)
    clean = encode_tensor(pipe, pixels, sample=False)
    clean = clean.repeat(LOOKS, 1, 1, 1)  # (LOOKS, 4, h, w)
    seeded = torch.Generator().manual_seed(0)  # of its own: the same mask every time
    noise = randn_tensor(clean.shape, seeded, device=clean.device, dtype=clean.dtype)
    joined = None
    if checks.further_channels(pipe):
        joined = torch.cat([torch.zeros_like(clean[:, :1]), clean], dim=1)  # nothing is masked
    embeds = encode_prompt(pipe, [prompt] * LOOKS)
    # A capture around the whole, of the picture that is drawn, is not to see this.
    with assigned(aside, object()), capture_attention(pipe) as maps:
        for t in LOOK_AT:
            x_t = add_noise(pipe, clean, noise, torch.tensor(t))
            predict_noise(pipe, x_t, t, embeds, 1.0, joined=joined)
    heat = torch.stack([maps.heat_map(places, index=i) for i in range(LOOKS)]).mean(0)  # (H, W)
    cells = cells_read(heat, clean.shape[2:])[0] > 0  # (h, w)
    factor = pipe.vae_scale_factor
    return cells.repeat_interleave(factor, 0).repeat_interleave(factor, 1)


def mask_tensor(
    pipe: StableDiffusionPipeline, mask: Image.Image | Tensor, height: int, width: int
) -> Tensor:
    """Return a mask as diffusers makes it, (1, 1, H, W), 1 where to paint and else 0.

    Raises:
        ValueError, TypeError: see ``inpaint``.
    """
    if isinstance(mask, Tensor):
        if mask.dtype != torch.bool or mask.ndim != 2:
            raise TypeError(
                f"a mask must be a boolean tensor (H, W), got {mask.dtype} {tuple(mask.shape)}; "
                "compare, as in heat_map > 0.5"
            )
        mask = Image.fromarray(mask.cpu().numpy())
    if not isinstance(mask, Image.Image):
        raise TypeError(f"a mask is a picture or a tensor, got {type(mask).__name__}")
    if mask.mode not in ("L", "1"):
        raise ValueError(f'the mask has mode {mask.mode!r}; use mask.convert("L")')
    if mask.size != (width, height):
        raise ValueError(f"the mask is {mask.size}, the picture {(width, height)}; resize the mask")
    processor = VaeImageProcessor(
        pipe.vae_scale_factor, do_normalize=False, do_binarize=True, do_convert_grayscale=True
    )
    covered = processor.preprocess(mask.convert("L"))
    if not covered[..., :: pipe.vae_scale_factor, :: pipe.vae_scale_factor].any():
        raise ValueError("the mask covers no place of the latents; make it white where to paint")
    return covered


def cells_read(heat_map: Tensor, size: Sequence[int], threshold: float = 0.3) -> Tensor:
    """Return at which places of the latents a word was read, (1, h, w), 1 there and else 0.

    Args:
        heat_map: (H, W) in [0, 1].
        size: h and w.
        threshold: how much counts as read. What is left grows by one place to each side.
    """
    small = F.interpolate(heat_map[None, None], size, mode="area")  # (1, 1, h, w)
    return F.max_pool2d((small > threshold).float(), 3, stride=1, padding=1)[0]
