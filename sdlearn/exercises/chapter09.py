"""Exercises of chapter 09: the whole pipeline by hand."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from diffusers import DDIMScheduler, EulerDiscreteScheduler, HeunDiscreteScheduler
from diffusers.image_processor import VaeImageProcessor
from torch import Generator, Tensor

from sdlearn.exercises.examination import Exercise, Mistake
from sdlearn.schedulers import ddim_step

Denoiser = Callable[[Tensor, Any], Tensor]


def toy_unet(twice: Tensor, t: Any) -> Tensor:
    """Answer as a U-Net does, for a batch of two halves: without text, then with it."""
    unconditional, text = twice.chunk(2)
    level = float(t) / 1000
    return torch.cat([0.8 * torch.tanh(unconditional) + 0.2 * level, torch.sin(text) - level / 3])


# 09.1 ------------------------------------------------------------------------------------------


def to_bytes(decoded: Tensor) -> Tensor:
    """Turn what the VAE decodes into whole numbers, as diffusers' image processor does."""
    pixels = VaeImageProcessor.denormalize(decoded)
    return torch.from_numpy((VaeImageProcessor.pt_to_numpy(pixels) * 255).round()).byte()


def bytes_cases(generator: Generator) -> list[tuple]:
    """Draw what a decoder gives: mostly within -1 to 1, some of it beyond."""
    shapes = ((1, 3, 4, 6), (2, 3, 5, 5), (3, 3, 3, 3))
    return [(0.7 * torch.randn(shape, generator=generator),) for shape in shapes]


def _scaled(decoded: Tensor) -> Tensor:
    return (decoded / 2 + 0.5).permute(0, 2, 3, 1)


def _not_clamped(decoded: Tensor) -> Tensor:
    return (_scaled(decoded) * 255).round().int().remainder(256).byte()


def _cut_off(decoded: Tensor) -> Tensor:
    return (_scaled(decoded).clamp(0, 1) * 255).byte()


def _as_if_from_0_to_1(decoded: Tensor) -> Tensor:
    return (decoded.clamp(0, 1) * 255).round().permute(0, 2, 3, 1).byte()


def _reshaped(decoded: Tensor) -> Tensor:
    b, c, h, w = decoded.shape
    return ((decoded / 2 + 0.5).clamp(0, 1) * 255).round().reshape(b, h, w, c).byte()


def _channels_first(decoded: Tensor) -> Tensor:
    return to_bytes(decoded).permute(0, 3, 1, 2)


TO_BYTES = Exercise(
    name="09.1",
    title="From the decoder to a file",
    minutes=8,
    difficulty=1,
    reference=to_bytes,
    cases=bytes_cases,
    start="bring -1 to 1 to 0 to 1 first: half of it, and a half more",
    mistakes=(
        Mistake(
            "values beyond 0 to 255 wrap around: black specks in white. Clamp to 0 to 1 first",
            _not_clamped,
        ),
        Mistake(
            "you cut digits off; rounding is right. Cutting makes every picture a little darker",
            _cut_off,
        ),
        Mistake(
            "you read the values as 0 to 1; the decoder's go from -1 to 1, so all that is darker "
            "than grey becomes black",
            _as_if_from_0_to_1,
        ),
        Mistake(
            "reshape leaves the numbers in their order and only draws other lines between them, "
            "so colours are scattered; permute moves the axis",
            _reshaped,
        ),
        Mistake("colours belong last, (B, H, W, 3): move the axis", _channels_first),
    ),
    out_of_reach=(
        "diffusers.image_processor.VaeImageProcessor.denormalize",
        "diffusers.image_processor.VaeImageProcessor.pt_to_numpy",
    ),
)


# 09.2 ------------------------------------------------------------------------------------------


def draw(latents: Tensor, unet: Denoiser, alphas: list[float], guidance_scale: float) -> Tensor:
    """Walk down by DDIM, guided; the levels end with 1."""
    for i, (a, a_next) in enumerate(zip(alphas, alphas[1:])):
        unconditional, text = unet(torch.cat([latents, latents]), i).chunk(2)
        noise_pred = unconditional + guidance_scale * (text - unconditional)
        latents = ddim_step(latents, noise_pred, a, a_next)
    return latents


def draw_cases(generator: Generator) -> list[tuple]:
    """Draw starting noise and levels of noise, the noisiest first."""
    cases = []
    for shape, count in (((1, 4, 3, 3), 3), ((2, 4, 4, 2), 5), ((3, 2, 2, 2), 8)):
        levels = torch.linspace(0.05, 0.95, count).tolist()
        scale = 1.5 + 3 * float(torch.rand((), generator=generator))
        cases.append((torch.randn(shape, generator=generator), toy_unet, [*levels, 1.0], scale))
    return cases


def _walk(
    case: tuple, guided: Callable[[Tensor, Tensor], Tensor], *, shift: int = 0, keep: bool = False
) -> Tensor:
    """Walk as ``draw`` does, with a fault."""
    latents, unet, alphas, _ = case
    x = latents
    for i, (a, a_next) in enumerate(zip(alphas, alphas[1:])):
        halves = unet(torch.cat([latents if keep else x] * 2), i + shift).chunk(2)
        x = ddim_step(x, guided(*halves), a, a_next)
    return x


def _away(*case: Any) -> Tensor:
    return _walk(case, lambda u, t: t + case[3] * (u - t))


def _as_planted(*case: Any) -> Tensor:
    return _walk(case, lambda u, t: t + case[3] * (t - u))


def _unguided(*case: Any) -> Tensor:
    return _walk(case, lambda u, t: t)


def _first_question(*case: Any) -> Tensor:
    return _walk(case, lambda u, t: u + case[3] * (t - u), keep=True)


def _one_late(*case: Any) -> Tensor:
    return _walk(case, lambda u, t: u + case[3] * (t - u), shift=1)


def _stops_early(*case: Any) -> Tensor:
    latents, unet, alphas, guidance_scale = case
    return draw(latents, unet, alphas[:-1], guidance_scale)


DRAW = Exercise(
    name="09.2",
    title="A loop with one fault",
    minutes=15,
    difficulty=2,
    reference=draw,
    cases=draw_cases,
    start="copy the loop from the task, and say in a word what each line does before you run it",
    mistakes=(
        Mistake(
            "the fault is still there: with guidance 1 the result must be the prediction with "
            "text, and yours goes beyond it. Where must the formula start?",
            _as_planted,
        ),
        Mistake(
            "now you guide away from the prompt: the direction is text minus unconditional", _away
        ),
        Mistake("guidance_scale has no effect any more", _unguided),
        Mistake(
            "the U-Net is asked about the starting noise at every step; ask it about the latents "
            "as they are now",
            _first_question,
        ),
        Mistake("the U-Net is told the number of the step that comes next", _one_late),
        Mistake("the last step, to ᾱ = 1, is missing: noise is left in the result", _stops_early),
    ),
    out_of_reach=("diffusers.DDIMScheduler.step",),
)  # fmt: skip


# 09.3 ------------------------------------------------------------------------------------------


def sample(
    kind: type, unet: Denoiser, noise: Tensor, num_inference_steps: int, guidance_scale: float
) -> Tensor:
    """Draw with any scheduler of diffusers, as its own pipeline does."""
    return _sample(kind, unet, noise, num_inference_steps, guidance_scale)


def _sample(
    kind: type,
    unet: Denoiser,
    noise: Tensor,
    count: int,
    guidance_scale: float,
    *,
    scale_start: bool = True,
    scale_input: bool = True,
    steps_of_the_list: bool = False,
) -> Tensor:
    scheduler = kind()
    scheduler.set_timesteps(count)
    x = noise * scheduler.init_noise_sigma if scale_start else noise
    timesteps = scheduler.timesteps[:count] if steps_of_the_list else scheduler.timesteps
    for t in timesteps:
        twice = torch.cat([x, x])
        twice = scheduler.scale_model_input(twice, t) if scale_input else twice
        unconditional, text = unet(twice, t).chunk(2)
        noise_pred = unconditional + guidance_scale * (text - unconditional)
        x = scheduler.step(noise_pred, t, x).prev_sample
    return x


def sample_cases(generator: Generator) -> list[tuple]:
    """Draw starting noise for three schedulers: without a scale, with one, and of two stages."""
    kinds = (DDIMScheduler, EulerDiscreteScheduler, HeunDiscreteScheduler)
    shapes = ((1, 4, 3, 3), (2, 4, 4, 2), (1, 4, 2, 5))
    return [
        (kind, toy_unet, torch.randn(shape, generator=generator), count, 3.0)
        for kind, shape, count in zip(kinds, shapes, (4, 6, 5))
    ]


def _start_not_scaled(*case: Any) -> Tensor:
    return _sample(*case, scale_start=False)


def _input_not_scaled(*case: Any) -> Tensor:
    return _sample(*case, scale_input=False)


def _neither(*case: Any) -> Tensor:
    return _sample(*case, scale_start=False, scale_input=False)


def _as_many_as_asked(*case: Any) -> Tensor:
    return _sample(*case, steps_of_the_list=True)


def _never_guided(*case: Any) -> Tensor:
    kind, unet, noise, count, _ = case
    return _sample(kind, unet, noise, count, 1.0)


SAMPLE = Exercise(
    name="09.3",
    title="The whole loop from memory",
    minutes=30,
    difficulty=3,
    reference=sample,
    cases=sample_cases,
    start="scheduler = kind(), then scheduler.set_timesteps(...): the loop runs over .timesteps",
    mistakes=(
        Mistake(
            "right for DDIM only: other schedulers start from wider noise. Multiply the starting "
            "noise by scheduler.init_noise_sigma",
            _start_not_scaled,
        ),
        Mistake(
            "right for DDIM only: before the U-Net sees them, latents go through "
            "scheduler.scale_model_input(latents, t)",
            _input_not_scaled,
        ),
        Mistake(
            "right for DDIM only: both scales are missing, init_noise_sigma at the start and "
            "scale_model_input before each question",
            _neither,
        ),
        Mistake(
            "right but for Heun: it visits nearly every level twice, so the loop must run over "
            "all of scheduler.timesteps, not over as many as were asked for",
            _as_many_as_asked,
        ),
        Mistake("guidance_scale has no effect in yours", _never_guided),
    ),
    out_of_reach=("sdlearn.sampling.denoise",),
)

EXERCISES = (TO_BYTES, DRAW, SAMPLE)
