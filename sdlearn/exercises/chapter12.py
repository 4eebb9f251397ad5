"""Exercises of chapter 12: image to image."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import torch
from diffusers import (
    DDIMScheduler,
    EulerDiscreteScheduler,
    HeunDiscreteScheduler,
    StableDiffusionImg2ImgPipeline,
)
from torch import Generator, Tensor

from sdlearn.exercises.examination import Exercise, Mistake

Denoiser = Callable[[Tensor, Any], Tensor]


def toy_unet(x: Tensor, t: Any) -> Tensor:
    """Answer as a U-Net does that has been asked with one prompt."""
    return 0.8 * torch.tanh(x) + 0.2 * torch.sin(3 * x + float(t) / 300)


def _rest(scheduler: Any, count: int, strength: float) -> Tensor:
    """Return the timesteps that diffusers' image to image goes through."""
    pipe: Any = SimpleNamespace(scheduler=scheduler)
    return StableDiffusionImg2ImgPipeline.get_timesteps(pipe, count, strength, None)[0]


def _ddim(count: int, spacing: str = "leading") -> DDIMScheduler:
    scheduler = DDIMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear",
        timestep_spacing=spacing, steps_offset=1 if spacing == "leading" else 0,
    )  # fmt: skip
    scheduler.set_timesteps(count)
    return scheduler


# 12.1 ------------------------------------------------------------------------------------------


def walked(timesteps: list[int], strength: float) -> list[int]:
    """Return the timesteps that are left at a strength: diffusers' own choice."""
    scheduler = SimpleNamespace(timesteps=timesteps, order=1)
    return list(_rest(scheduler, len(timesteps), strength))


def walked_cases(generator: Generator) -> list[tuple]:
    """Draw numbers of steps, and strengths that do not come out even; the last walks all."""
    cases = []
    for count, part in ((10, 0.25), (20, 0.75), (8, 0.4), (25, 0.9)):
        whole = int(torch.randint(count // 2 + 1, count - 1, (), generator=generator))
        cases.append((_ddim(count).timesteps.tolist(), (whole + part) / count))
    return [*cases, (_ddim(5).timesteps.tolist(), 1.0)]


def _the_noisy_end(timesteps: list[int], strength: float) -> list[int]:
    return timesteps[: int(len(timesteps) * strength)]


def _leaves_out_the_strength(timesteps: list[int], strength: float) -> list[int]:
    return timesteps[int(len(timesteps) * strength) :]


def _rounded(timesteps: list[int], strength: float) -> list[int]:
    return timesteps[len(timesteps) - round(len(timesteps) * strength) :]


def _left_out_rounded_down(timesteps: list[int], strength: float) -> list[int]:
    return timesteps[int(len(timesteps) * (1 - strength) + 1e-9) :]


def _one_short(timesteps: list[int], strength: float) -> list[int]:
    return walked(timesteps, strength)[1:]


WALKED = Exercise(
    name="12.1",
    title="Which steps are walked?",
    minutes=6,
    difficulty=1,
    reference=walked,
    cases=walked_cases,
    start="int(n * strength) steps are walked, with n = len(timesteps); the rest is left out",
    mistakes=(
        Mistake(
            "you walk the noisy steps and stop half-way, with noise left in the picture; the ones "
            "to leave out are the first, the walk ends at the clean end",
            _the_noisy_end,
        ),
        Mistake(
            "you leave out as many steps as you should walk: in yours a high strength changes "
            "little. Strength is the share that is walked",
            _leaves_out_the_strength,
        ),
        Mistake(
            "you round to the nearest number of steps; diffusers rounds down: 1.8 steps are one",
            _rounded,
        ),
        Mistake(
            "you round the steps left out down, and so those walked up: int() belongs around "
            "n * strength",
            _left_out_rounded_down,
        ),
        Mistake(
            "one step is missing: the latents get the noise of the first timestep that is walked, "
            "so the U-Net must be asked about that one, too",
            _one_short,
        ),
    ),
    out_of_reach=("diffusers.StableDiffusionImg2ImgPipeline.get_timesteps",),
)  # fmt: skip


# 12.2 ------------------------------------------------------------------------------------------


def start(clean: Tensor, noise: Tensor, timesteps: list[int], alphas_cumprod: Tensor,
          strength: float) -> Tensor:  # fmt: skip
    """Return where the loop begins: diffusers' ``add_noise`` at the first timestep walked."""
    scheduler = _ddim(len(timesteps))
    scheduler.alphas_cumprod = alphas_cumprod
    return scheduler.add_noise(clean, noise, torch.tensor(walked(timesteps, strength)[:1]))


def start_cases(generator: Generator) -> list[tuple]:
    """Draw latents, noise and strengths; the schedules have different numbers of steps."""
    cases = []
    for shape, count in (((1, 4, 4, 6), 10), ((2, 4, 5, 5), 20), ((3, 2, 3, 3), 8)):
        scheduler = _ddim(count)
        clean, noise = torch.randn(2, *shape, generator=generator)
        whole = int(torch.randint(2, count - 2, (), generator=generator))
        given = scheduler.timesteps.tolist(), scheduler.alphas_cumprod, (whole + 0.3) / count
        cases.append((clean, noise, *given))
    return cases


def _mixed(clean: Tensor, noise: Tensor, a: float) -> Tensor:
    return a**0.5 * clean + (1 - a) ** 0.5 * noise


def _left_out(timesteps: list[int], strength: float) -> int:
    return len(timesteps) - len(walked(timesteps, strength))


def _by_strength(clean: Tensor, noise: Tensor, *more: Any) -> Tensor:
    return (1 - more[2]) * clean + more[2] * noise


def _variance_by_strength(clean: Tensor, noise: Tensor, *more: Any) -> Tensor:
    return _mixed(clean, noise, 1 - more[2])


def _step_as_timestep(clean: Tensor, noise: Tensor, *more: Any) -> Tensor:
    timesteps, alphas_cumprod, strength = more
    return _mixed(clean, noise, float(alphas_cumprod[_left_out(timesteps, strength)]))


def _last_left_out(clean: Tensor, noise: Tensor, *more: Any) -> Tensor:
    timesteps, alphas_cumprod, strength = more
    return _mixed(
        clean, noise, float(alphas_cumprod[timesteps[_left_out(timesteps, strength) - 1]])
    )


def _share_of_a_thousand(clean: Tensor, noise: Tensor, *more: Any) -> Tensor:
    return _mixed(clean, noise, float(more[1][int(1000 * more[2])]))


def _start_without_roots(clean: Tensor, noise: Tensor, *more: Any) -> Tensor:
    timesteps, alphas_cumprod, strength = more
    a = float(alphas_cumprod[walked(timesteps, strength)[0]])
    return a * clean + (1 - a) * noise


START = Exercise(
    name="12.2",
    title="Where the loop begins",
    minutes=12,
    difficulty=2,
    reference=start,
    cases=start_cases,
    start="12.1 gives the first timestep that is walked; ᾱ of that one is all you need",
    mistakes=(
        Mistake(
            "you blend picture and noise by the strength itself. The strength counts steps; how "
            "much noise that is, only ᾱ of the timestep says",
            _by_strength,
        ),
        Mistake(
            "you take the strength for the noise's share of the variance. The U-Net is told a "
            "timestep, and the noise must be that timestep's: 1 - ᾱ",
            _variance_by_strength,
        ),
        Mistake(
            "you look up ᾱ by the number of the step; alphas_cumprod has a thousand entries, one "
            "for each timestep, so look it up by the timestep",
            _step_as_timestep,
        ),
        Mistake(
            "that is the noise of the last step left out: more than the first question to the "
            "U-Net will speak of",
            _last_left_out,
        ),
        Mistake(
            "you take the timestep at that share of a thousand; the loop can only begin at one of "
            "the timesteps in its list",
            _share_of_a_thousand,
        ),
        Mistake("the roots are missing: ᾱ is a share of the variance", _start_without_roots),
    ),
    out_of_reach=("diffusers.DDIMScheduler.add_noise", "sdlearn.noise.add_noise"),
)


# 12.3 ------------------------------------------------------------------------------------------


def strength_for(timesteps: list[int], alphas_cumprod: Tensor, share: float) -> float:
    """Return the least strength that leaves the picture at most a share of the variance."""
    count = len(timesteps)
    fits = [n for n in range(1, count + 1) if alphas_cumprod[timesteps[count - n]] <= share]
    return min(fits) / count


def strength_cases(generator: Generator) -> list[tuple]:
    """Draw schedules, and shares that lie between those of two neighbouring timesteps."""
    cases = []
    for count, spacing, part in ((10, "leading", 0.2), (50, "trailing", 0.8), (20, "leading", 0.7)):
        scheduler = _ddim(count, spacing)
        timesteps, a = scheduler.timesteps.tolist(), scheduler.alphas_cumprod
        at = int(torch.randint(count // 3, 2 * count // 3, (), generator=generator))
        low, high = float(a[timesteps[at]]), float(a[timesteps[at + 1]])
        cases.append((timesteps, a, low + part * (high - low)))
    return cases


def _nearest(timesteps: list[int], alphas_cumprod: Tensor, share: float) -> float:
    at = int((alphas_cumprod[timesteps] - share).abs().argmin())
    return 1 - at / len(timesteps)


def _one_step_less(timesteps: list[int], alphas_cumprod: Tensor, share: float) -> float:
    return strength_for(timesteps, alphas_cumprod, share) - 1 / len(timesteps)


def _share_left_out(timesteps: list[int], alphas_cumprod: Tensor, share: float) -> float:
    return 1 - strength_for(timesteps, alphas_cumprod, share)


def _small_enough_counted(timesteps: list[int], alphas_cumprod: Tensor, share: float) -> float:
    return int((alphas_cumprod[timesteps] <= share).sum()) / len(timesteps)


def _by_amplitude(timesteps: list[int], alphas_cumprod: Tensor, share: float) -> float:
    return strength_for(timesteps, alphas_cumprod, max(share**2, float(alphas_cumprod.min())))


def _as_timestep(timesteps: list[int], alphas_cumprod: Tensor, share: float) -> float:
    first = round(len(timesteps) * (1 - strength_for(timesteps, alphas_cumprod, share)))
    return timesteps[first] / 1000


STRENGTH = Exercise(
    name="12.3",
    title="The strength for a given amount of noise",
    minutes=15,
    difficulty=2,
    reference=strength_for,
    cases=strength_cases,
    start="alphas_cumprod[timesteps] has one ᾱ for each step; find the last that is small enough",
    mistakes=(
        Mistake(
            "you take the step whose ᾱ is nearest; sometimes more of the picture is left there "
            "than was allowed",
            _nearest,
        ),
        Mistake(
            "one step too few: at yours ᾱ is still above the share that was asked for",
            _one_step_less,
        ),
        Mistake(
            "that is the share of the steps that is left out; strength is the share that is walked",
            _share_left_out,
        ),
        Mistake(
            "you count the steps at which the noise is strong enough. Those come before the walk "
            "begins, all but the last; count the ones from there to the end",
            _small_enough_counted,
        ),
        Mistake(
            "you compare √ᾱ, the picture's amplitude; the share of the variance is ᾱ itself",
            _by_amplitude,
        ),
        Mistake(
            "you divide the timestep by a thousand; strength counts steps: so many walked, of all "
            "in the list",
            _as_timestep,
        ),
    ),
)


# 12.4 ------------------------------------------------------------------------------------------


def image_to_image(kind: type, unet: Denoiser, clean: Tensor, noise: Tensor, count: int,
                   strength: float) -> Tensor:  # fmt: skip
    """Walk on from a noised picture, as diffusers' pipeline does."""
    scheduler = kind()
    scheduler.set_timesteps(count)
    timesteps = _rest(scheduler, count, strength)  # sets the begin index, too
    return _walk(scheduler, unet, scheduler.add_noise(clean, noise, timesteps[:1]), timesteps)


def _walk(scheduler: Any, unet: Denoiser, x: Tensor, timesteps: Tensor) -> Tensor:
    for t in timesteps:
        x = scheduler.step(unet(scheduler.scale_model_input(x, t), t), t, x).prev_sample
    return x


def image_cases(generator: Generator) -> list[tuple]:
    """Draw pictures and noise for three schedulers: plain, with sigmas, and of two stages."""
    kinds = (DDIMScheduler, EulerDiscreteScheduler, HeunDiscreteScheduler)
    shapes = ((2, 4, 3, 3), (1, 4, 4, 2), (1, 4, 2, 5))
    cases = []
    for kind, shape, count in zip(kinds, shapes, (10, 8, 9)):
        clean, noise = torch.randn(2, *shape, generator=generator)
        left_out = 2 * int(torch.randint(1, 3, (), generator=generator))  # odd: NaN from Heun
        cases.append((kind, toy_unet, clean, noise, count, (count - left_out + 0.7) / count))
    return cases


def _begun(case: tuple) -> tuple[Any, int]:
    """Return a scheduler, and how many of its steps are left out."""
    kind, _, _, _, count, strength = case
    scheduler = kind()
    scheduler.set_timesteps(count)
    return scheduler, count - int(count * strength)


def _begin_at(scheduler: Any, place: int) -> None:
    if hasattr(scheduler, "set_begin_index"):
        scheduler.set_begin_index(place)


def _order_forgotten(*case: Any) -> Tensor:
    scheduler, left_out = _begun(case)
    _begin_at(scheduler, left_out)
    rest = scheduler.timesteps[left_out:]
    return _walk(scheduler, case[1], scheduler.add_noise(case[2], case[3], rest[:1]), rest)


def _order_in_the_list_alone(*case: Any) -> Tensor:
    scheduler, left_out = _begun(case)
    _begin_at(scheduler, left_out)
    rest = scheduler.timesteps[left_out * scheduler.order :]
    return _walk(scheduler, case[1], scheduler.add_noise(case[2], case[3], rest[:1]), rest)


def _counted_in_calls(*case: Any) -> Tensor:
    scheduler, _ = _begun(case)
    calls = len(scheduler.timesteps)
    left_out = calls - int(calls * case[5])
    _begin_at(scheduler, left_out)
    rest = scheduler.timesteps[left_out:]
    return _walk(scheduler, case[1], scheduler.add_noise(case[2], case[3], rest[:1]), rest)


def _no_picture(*case: Any) -> Tensor:
    scheduler, left_out = _begun(case)
    _begin_at(scheduler, left_out * scheduler.order)
    x = case[3] * scheduler.init_noise_sigma
    return _walk(scheduler, case[1], x, scheduler.timesteps[left_out * scheduler.order :])


def _from_the_first(*case: Any) -> Tensor:
    scheduler, _ = _begun(case)
    _begin_at(scheduler, 0)
    x = scheduler.add_noise(case[2], case[3], scheduler.timesteps[:1])
    return _walk(scheduler, case[1], x, scheduler.timesteps)


def _input_not_scaled(*case: Any) -> Tensor:
    scheduler, left_out = _begun(case)
    first = left_out * scheduler.order
    _begin_at(scheduler, first)
    rest = scheduler.timesteps[first:]
    x = scheduler.add_noise(case[2], case[3], rest[:1])
    for t in rest:
        scheduler.scale_model_input(x, t)
        x = scheduler.step(case[1](x, t), t, x).prev_sample
    return x


IMAGE_TO_IMAGE = Exercise(
    name="12.4",
    title="Image to image with any scheduler",
    minutes=25,
    difficulty=3,
    reference=image_to_image,
    cases=image_cases,
    start="copy the loop from the task; print scheduler.timesteps and scheduler.order for Heun",
    mistakes=(
        Mistake(
            "the fault is still there: right for DDIM and Euler, wrong for Heun, which has two "
            "entries a step in its list. One step left out is scheduler.order entries left out",
            _order_forgotten,
        ),
        Mistake(
            "half repaired: the list begins at the right place now, but the scheduler is told to "
            "begin at another. set_begin_index counts entries of the list, too",
            _order_in_the_list_alone,
        ),
        Mistake(
            "you take the strength's share of the calls; it is a share of the steps, and Heun's "
            "steps have two calls each: so you may begin in the middle of a step",
            _counted_in_calls,
        ),
        Mistake(
            "the picture is gone: the loop begins with noise alone, in place of the picture under "
            "noise, scheduler.add_noise(clean, noise, ...)",
            _no_picture,
        ),
        Mistake(
            "the strength has no effect: you walk all of the steps", _from_the_first
        ),
        Mistake(
            "right for DDIM only: what scale_model_input returns must go into the U-Net; it does "
            "not change x itself",
            _input_not_scaled,
        ),
    ),
    out_of_reach=("diffusers.StableDiffusionImg2ImgPipeline.get_timesteps",
                  "sdlearn.sampling.denoise"),
)  # fmt: skip

EXERCISES = (WALKED, START, STRENGTH, IMAGE_TO_IMAGE)
