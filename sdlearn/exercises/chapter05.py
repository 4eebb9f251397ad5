"""Exercises of chapter 05: forward noising."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from diffusers import DDPMScheduler
from torch import Generator, Tensor

from sdlearn.exercises.examination import Exercise, Mistake, per_picture


def _drawn(shape: Sequence[int], generator: Generator) -> Tensor:
    return torch.randn(tuple(shape), generator=generator)


def _schedule(first: float, last: float) -> DDPMScheduler:
    return DDPMScheduler(beta_start=first, beta_end=last, beta_schedule="scaled_linear")


# 05.1 ------------------------------------------------------------------------------------------


def jump(x_0: Tensor, noise: Tensor, alpha_bar: Tensor) -> Tensor:
    """Noise a batch in one jump: what diffusers' ``add_noise`` does."""
    scheduler = _schedule(0.001, 0.01)
    scheduler.alphas_cumprod = alpha_bar
    return scheduler.add_noise(x_0, noise, torch.arange(len(alpha_bar)))


def jump_cases(generator: Generator) -> list[tuple]:
    """Draw batches; one is as wide as it has pictures, so that a wrong broadcast is no error."""
    shapes = ((1, 4, 6, 6), (3, 4, 5, 3), (4, 2, 4, 4), (2, 3, 7))
    return [
        (
            _drawn(shape, generator),
            _drawn(shape, generator),
            torch.rand(shape[0], generator=generator) * 0.9 + 0.05,
        )
        for shape in shapes
    ]


def _swapped(x_0: Tensor, noise: Tensor, alpha_bar: Tensor) -> Tensor:
    return jump(noise, x_0, alpha_bar)


def _no_roots(x_0: Tensor, noise: Tensor, alpha_bar: Tensor) -> Tensor:
    a = per_picture(alpha_bar, x_0)
    return a * x_0 + (1 - a) * noise


def _root_inside(x_0: Tensor, noise: Tensor, alpha_bar: Tensor) -> Tensor:
    a = per_picture(alpha_bar, x_0)
    return a.sqrt() * x_0 + (1 - a.sqrt()) * noise


def _variance_as_deviation(x_0: Tensor, noise: Tensor, alpha_bar: Tensor) -> Tensor:
    a = per_picture(alpha_bar, x_0)
    return a.sqrt() * x_0 + (1 - a) * noise


def _first_for_all(x_0: Tensor, noise: Tensor, alpha_bar: Tensor) -> Tensor:
    return jump(x_0, noise, alpha_bar[:1].expand(len(alpha_bar)))


JUMP = Exercise(
    name="05.1",
    title="The jump",
    minutes=8,
    difficulty=1,
    reference=jump,
    cases=jump_cases,
    start="give alpha_bar the shape (B, 1, 1, 1), so that each picture has its own number",
    mistakes=(
        Mistake("signal and noise have changed places: √ᾱ belongs to x_0", _swapped),
        Mistake(
            "the roots are missing: ᾱ and 1 - ᾱ are variances, and what is multiplied with are "
            "their roots, the standard deviations. As it is, the variance of x_t falls below 1",
            _no_roots,
        ),
        Mistake(
            "the noise's factor is the root of (1 - ᾱ), not 1 minus the root of ᾱ: it is the "
            "squares of the two factors that add up to 1",
            _root_inside,
        ),
        Mistake(
            "the noise's factor lacks its root: √(1 - ᾱ), not 1 - ᾱ",
            _variance_as_deviation,
        ),
        Mistake(
            "all pictures get the noise of the first: alpha_bar holds one number for each",
            _first_for_all,
        ),
    ),
    out_of_reach=(
        "sdlearn.noise.add_noise",
        "diffusers.DDIMScheduler.add_noise",
        "diffusers.DDPMScheduler.add_noise",
    ),
)


# 05.2 ------------------------------------------------------------------------------------------


def timestep_of(alphas_cumprod: Tensor, snr: float) -> int:
    """Return the first timestep at which signal over noise is no more than ``snr``."""
    ratios = alphas_cumprod.double() / (1 - alphas_cumprod.double())
    return int((ratios <= snr).nonzero()[0])


def timestep_cases(generator: Generator) -> list[tuple]:
    """Draw schedules, each with a ratio that falls well between two of its timesteps."""
    cases = []
    for first, last in ((0.00085, 0.012), (0.0001, 0.02), (0.002, 0.03)):
        a = _schedule(first, last).alphas_cumprod
        at = int(torch.randint(150, 850, (), generator=generator))
        ratios = a.double() / (1 - a.double())
        cases.append((a, float((ratios[at] * ratios[at - 1]).sqrt())))
    return cases


def _of_alpha_bar(alphas_cumprod: Tensor, snr: float) -> int:
    return int((alphas_cumprod <= snr).nonzero()[0])


def _of_the_roots(alphas_cumprod: Tensor, snr: float) -> int:
    ratios = (alphas_cumprod.double() / (1 - alphas_cumprod.double())).sqrt()
    return int((ratios <= snr).nonzero()[0])


def _last_above(alphas_cumprod: Tensor, snr: float) -> int:
    return timestep_of(alphas_cumprod, snr) - 1


def _counted_from_one(alphas_cumprod: Tensor, snr: float) -> int:
    return timestep_of(alphas_cumprod, snr) + 1


def _from_the_end(alphas_cumprod: Tensor, snr: float) -> int:
    return len(alphas_cumprod) - timestep_of(alphas_cumprod, snr)


TIMESTEP = Exercise(
    name="05.2",
    title="Where is the noise as strong as that?",
    minutes=10,
    difficulty=2,
    reference=timestep_of,
    cases=timestep_cases,
    start="compute the ratio ᾱ / (1 - ᾱ) for all timesteps at once, and look where it falls below",
    mistakes=(
        Mistake("you compare ᾱ itself; the ratio of signal to noise is ᾱ / (1 - ᾱ)", _of_alpha_bar),
        Mistake(
            "you compare √ᾱ / √(1 - ᾱ), a ratio of deviations; SNR is a ratio of variances, "
            "without roots",
            _of_the_roots,
        ),
        Mistake("one timestep too early: at yours the ratio is still above", _last_above),
        Mistake(
            "one timestep too late: timesteps count from 0, as a tensor's places do",
            _counted_from_one,
        ),
        Mistake(
            "you count from the noisy end; timestep 0 is the one with the least noise",
            _from_the_end,
        ),
    ),
)


# 05.3 ------------------------------------------------------------------------------------------


def log_snr_schedule(first: float, last: float, count: int) -> Tensor:
    """Return ᾱ for ``count`` timesteps whose log SNR falls evenly from ``first`` to ``last``."""
    steps = torch.arange(count, dtype=torch.float64) / (count - 1)
    snr = first * (last / first) ** steps
    return snr / (1 + snr)


def schedule_cases(generator: Generator) -> list[tuple]:
    """Draw ends and lengths."""
    ends = torch.rand(3, 2, generator=generator)
    return [
        (float(10 ** (1 + 2 * a)), float(10 ** (-1 - 2 * b)), count)
        for (a, b), count in zip(ends, (5, 20, 1000))
    ]


def _snr_evenly(first: float, last: float, count: int) -> Tensor:
    snr = torch.linspace(first, last, count, dtype=torch.float64)
    return snr / (1 + snr)


def _end_left_out(first: float, last: float, count: int) -> Tensor:
    return log_snr_schedule(first, last, count + 1)[:count]


def _backwards(first: float, last: float, count: int) -> Tensor:
    return log_snr_schedule(first, last, count).flip(0)


def _noise_instead(first: float, last: float, count: int) -> Tensor:
    return 1 - log_snr_schedule(first, last, count)


def _snr_itself(first: float, last: float, count: int) -> Tensor:
    a = log_snr_schedule(first, last, count)
    return a / (1 - a)


SCHEDULE = Exercise(
    name="05.3",
    title="A schedule of your own",
    minutes=20,
    difficulty=3,
    reference=log_snr_schedule,
    cases=schedule_cases,
    start="solve SNR = ᾱ / (1 - ᾱ) for ᾱ on paper; then let the logarithm of SNR fall evenly",
    mistakes=(
        Mistake(
            "SNR itself falls evenly in yours, so that nearly all timesteps are nearly clean; let "
            "its logarithm fall evenly",
            _snr_evenly,
        ),
        Mistake(
            "the last timestep does not reach the SNR that was asked for: count timesteps have "
            "count - 1 gaps between them",
            _end_left_out,
        ),
        Mistake("your schedule runs backwards: timestep 0 has the least noise", _backwards),
        Mistake("you return the noise's share, 1 - ᾱ", _noise_instead),
        Mistake("you return SNR; solve SNR = ᾱ / (1 - ᾱ) for ᾱ", _snr_itself),
    ),
)

EXERCISES = (JUMP, TIMESTEP, SCHEDULE)
