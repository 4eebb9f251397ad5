"""Exercises of chapter 08: the scheduler loop."""

from __future__ import annotations

from collections.abc import Callable

import torch
from diffusers import DDIMScheduler, EulerDiscreteScheduler
from torch import Generator, Tensor

from sdlearn.exercises.examination import Exercise, Mistake
from sdlearn.schedulers import ddim_step, dpm_solver_step

Slope = Callable[[Tensor, float], Tensor]


def _levels(generator: Generator, count: int = 2) -> list[float]:
    """Draw values of ᾱ, the smallest first: the noisiest first."""
    drawn = 0.02 + 0.9 * torch.rand(count, generator=generator)
    return sorted(float(a) + 0.02 * i for i, a in enumerate(drawn))


# 08.1 ------------------------------------------------------------------------------------------


def ddim(x_t: Tensor, noise_pred: Tensor, a: float, a_next: float) -> Tensor:
    """Take one step of DDIM without fresh noise."""
    return ddim_step(x_t, noise_pred, a, a_next)


def ddim_cases(generator: Generator) -> list[tuple]:
    """Draw latents and levels; the last step goes to ᾱ = 1."""
    cases = []
    for shape in ((1, 4, 5, 5), (3, 4, 2, 6), (2, 4, 4, 4)):
        a, a_next = _levels(generator)
        x_t, noise_pred = torch.randn(2, *shape, generator=generator)
        cases.append((x_t, noise_pred, a, 1.0 if shape[0] == 2 else a_next))
    return cases


def _stays_at_the_picture(x_t: Tensor, noise_pred: Tensor, a: float, a_next: float) -> Tensor:
    return (x_t - (1 - a) ** 0.5 * noise_pred) / a**0.5


def _subtracts_the_noise(x_t: Tensor, noise_pred: Tensor, a: float, a_next: float) -> Tensor:
    return x_t - ((1 - a) ** 0.5 - (1 - a_next) ** 0.5) * noise_pred


def _levels_exchanged(x_t: Tensor, noise_pred: Tensor, a: float, a_next: float) -> Tensor:
    x_0 = (x_t - (1 - a_next) ** 0.5 * noise_pred) / a_next**0.5
    return a**0.5 * x_0 + (1 - a) ** 0.5 * noise_pred


def _roots_forgotten(x_t: Tensor, noise_pred: Tensor, a: float, a_next: float) -> Tensor:
    x_0 = (x_t - (1 - a) * noise_pred) / a
    return a_next * x_0 + (1 - a_next) * noise_pred


def _not_divided(x_t: Tensor, noise_pred: Tensor, a: float, a_next: float) -> Tensor:
    x_0 = x_t - (1 - a) ** 0.5 * noise_pred
    return a_next**0.5 * x_0 + (1 - a_next) ** 0.5 * noise_pred


def _as_much_noise(x_t: Tensor, noise_pred: Tensor, a: float, a_next: float) -> Tensor:
    x_0 = _stays_at_the_picture(x_t, noise_pred, a, a_next)
    return a_next**0.5 * x_0 + (1 - a) ** 0.5 * noise_pred


def _no_brackets(x_t: Tensor, noise_pred: Tensor, a: float, a_next: float) -> Tensor:
    x_0 = x_t - (1 - a) ** 0.5 * noise_pred / a**0.5
    return a_next**0.5 * x_0 + (1 - a_next) ** 0.5 * noise_pred


DDIM = Exercise(
    name="08.1",
    title="A step of DDIM",
    minutes=10,
    difficulty=1,
    reference=ddim,
    cases=ddim_cases,
    start="solve the jump for x_0: what picture do x_t and the predicted noise speak of?",
    mistakes=(
        Mistake(
            "you go to the predicted picture and stay there; the step ends part of the way back, "
            "at the noise level of t'",
            _stays_at_the_picture,
        ),
        Mistake(
            "you take away some noise and leave the rest as it is; but the picture in x_t is "
            "shrunk by √ᾱ, and at t' it must be shrunk less",
            _subtracts_the_noise,
        ),
        Mistake(
            "ᾱ and ᾱ' are exchanged: the picture is read at the level where x_t is, and noised to "
            "the next one",
            _levels_exchanged,
        ),
        Mistake("the roots are missing: ᾱ is a share of the variance", _roots_forgotten),
        Mistake(
            "the predicted picture is not divided by √ᾱ, by which it is shrunk in x_t",
            _not_divided,
        ),
        Mistake("brackets: √ᾱ divides x_t, too", _no_brackets),
        Mistake("you put back as much noise as there is at t; at t' there is less", _as_much_noise),
    ),
    out_of_reach=("sdlearn.schedulers.ddim_step", "diffusers.DDIMScheduler.step"),
)


# 08.2 ------------------------------------------------------------------------------------------


def spaced(count: int, spacing: str) -> list[int]:
    """Return the timesteps that diffusers' DDIM goes through, of 1,000."""
    scheduler = DDIMScheduler(timestep_spacing=spacing)
    scheduler.set_timesteps(count)
    return scheduler.timesteps.tolist()


def spaced_cases(generator: Generator) -> list[tuple]:
    """Draw numbers of steps that divide 1,000, for both spacings."""
    counts = torch.tensor([5, 8, 10, 20, 25, 40, 50])[torch.randperm(7, generator=generator)]
    return [(int(n), spacing) for n in counts[:3] for spacing in ("leading", "trailing")]


def _always_leading(count: int, spacing: str) -> list[int]:
    return spaced(count, "leading")


def _always_trailing(count: int, spacing: str) -> list[int]:
    return spaced(count, "trailing")


def _upwards(count: int, spacing: str) -> list[int]:
    return spaced(count, spacing)[::-1]


def _trailing_from_a_thousand(count: int, spacing: str) -> list[int]:
    return [t + (spacing == "trailing") for t in spaced(count, spacing)]


def _with_both_ends(count: int, spacing: str) -> list[int]:
    return torch.linspace(999, 0, count).round().int().tolist()


def _leading_upwards(count: int, spacing: str) -> list[int]:
    return spaced(count, spacing)[:: -1 if spacing == "leading" else 1]


def _exchanged(count: int, spacing: str) -> list[int]:
    return spaced(count, "trailing" if spacing == "leading" else "leading")


def _trailing_with_both_ends(count: int, spacing: str) -> list[int]:
    return spaced(count, spacing) if spacing == "leading" else _with_both_ends(count, spacing)


SPACED = Exercise(
    name="08.2",
    title="Which timesteps?",
    minutes=12,
    difficulty=2,
    reference=spaced,
    cases=spaced_cases,
    start="the gap between two timesteps is 1000 // count; write both lists for count = 5 on paper",
    mistakes=(
        Mistake('you return the leading ones for "trailing", too', _always_leading),
        Mistake('you return the trailing ones for "leading", too', _always_trailing),
        Mistake("your leading list runs upwards; turn it round", _leading_upwards),
        Mistake(
            "leading and trailing are exchanged: trailing has 999 in it, leading has 0", _exchanged
        ),
        Mistake(
            "your trailing list has both ends in it; it ends one gap above 0, less 1",
            _trailing_with_both_ends,
        ),
        Mistake("your list runs upwards; the loop goes from much noise to little", _upwards),
        Mistake(
            "your trailing list begins at 1000, but the last of the thousand timesteps is 999",
            _trailing_from_a_thousand,
        ),
        Mistake(
            'that is "linspace", which has both ends in it; leading leaves out the noisy end, '
            "trailing the clean one",
            _with_both_ends,
        ),
    ),
    out_of_reach=("diffusers.DDIMScheduler.set_timesteps",),
)


# 08.3 ------------------------------------------------------------------------------------------


def euler(x: Tensor, unet: Slope, sigma: float, sigma_next: float) -> Tensor:
    """Take one step of Euler's method, by diffusers."""
    scheduler = EulerDiscreteScheduler()
    scheduler.set_timesteps(1)
    scheduler.sigmas = torch.tensor([sigma, sigma_next], dtype=torch.float64)
    t = scheduler.timesteps[0]
    noise_pred = unet(scheduler.scale_model_input(x, t), sigma)
    return scheduler.step(noise_pred, t, x).prev_sample


def a_small_unet(x_t: Tensor, sigma: float) -> Tensor:
    """Return the likeliest noise in x_t if pictures are a bell curve of deviation a half."""
    a = 1 / (1 + sigma**2)
    return (1 - a) ** 0.5 * x_t / (0.25 * a + 1 - a)


def euler_cases(generator: Generator) -> list[tuple]:
    """Draw noisy latents and levels; the last case ends at 0."""
    cases: list[tuple] = []
    for shape in ((1, 4, 5, 5), (3, 4, 2, 6), (2, 4, 4, 4)):
        drawn, part = torch.rand(2, generator=generator).tolist()
        sigma = 0.5 + 4 * drawn
        x = (0.25 + sigma**2) ** 0.5 * torch.randn(*shape, generator=generator)
        sigma_next = 0.0 if shape[0] == 2 else sigma * (0.2 + 0.6 * part)
        cases.append((x, a_small_unet, sigma, sigma_next))
    return cases


def _one_slope(x: Tensor, slope: Slope, sigma: float, sigma_next: float) -> Tensor:
    return x + (sigma_next - sigma) * slope(x, sigma)


def _scaled_for_good(x: Tensor, unet: Slope, sigma: float, sigma_next: float) -> Tensor:
    return _one_slope(x / (sigma**2 + 1) ** 0.5, unet, sigma, sigma_next)


def _divided_by_the_square(x: Tensor, unet: Slope, sigma: float, sigma_next: float) -> Tensor:
    return x + (sigma_next - sigma) * unet(x / (sigma**2 + 1), sigma)


def _divided_by_sigma(x: Tensor, unet: Slope, sigma: float, sigma_next: float) -> Tensor:
    return x + (sigma_next - sigma) * unet(x / sigma, sigma)


def _up_the_path(x: Tensor, unet: Slope, sigma: float, sigma_next: float) -> Tensor:
    return 2 * x - euler(x, unet, sigma, sigma_next)


def _all_the_way(x: Tensor, unet: Slope, sigma: float, sigma_next: float) -> Tensor:
    return euler(x, unet, sigma, 0.0)


def _slope_divided_again(x: Tensor, unet: Slope, sigma: float, sigma_next: float) -> Tensor:
    return x + (euler(x, unet, sigma, sigma_next) - x) / sigma


def _asked_about_the_next(x: Tensor, unet: Slope, sigma: float, sigma_next: float) -> Tensor:
    return x + (sigma_next - sigma) * unet(x / (sigma**2 + 1) ** 0.5, sigma_next)


EULER = Exercise(
    name="08.3",
    title="A step of Euler, around the U-Net",
    minutes=12,
    difficulty=2,
    reference=euler,
    cases=euler_cases,
    start="first make of x what the U-Net was trained on, x_t = √ᾱ x, with ᾱ = 1 / (1 + σ²)",
    mistakes=(
        Mistake(
            "the U-Net is asked about x itself; it was trained on x_t, whose variance stays about "
            "1. diffusers calls what is missing `scale_model_input`",
            _one_slope,
        ),
        Mistake(
            "the shrunken x is for the U-Net's eyes only; the step starts from the x that you "
            "were given",
            _scaled_for_good,
        ),
        Mistake(
            "you divide by σ² + 1, which is a variance; latents are divided by its root",
            _divided_by_the_square,
        ),
        Mistake(
            "you divide by σ; x is picture and noise, and their variances add: 1 + σ²",
            _divided_by_sigma,
        ),
        Mistake(
            "you walk back to more noise: σ falls, so the stride σ' - σ is below 0", _up_the_path
        ),
        Mistake(
            "you take all of the noise out at once, whatever sigma_next is; the step ends at "
            "sigma_next",
            _all_the_way,
        ),
        Mistake(
            "you divide the predicted noise by σ; in these coordinates it is the slope already: "
            "x = x_0 + σ ε falls by ε for each unit of σ",
            _slope_divided_again,
        ),
        Mistake(
            "the U-Net is told the level at which the step ends; tell it the one at which x is",
            _asked_about_the_next,
        ),
    ),
    out_of_reach=("diffusers.EulerDiscreteScheduler.step",),
)


# 08.4 ------------------------------------------------------------------------------------------


def slope_to_drops(x: Tensor, sigma: float) -> Tensor:
    """Return the slope of the probability flow of two drops, at -1 and 1."""
    return (x - torch.tanh(x / sigma**2)) / sigma


def slope_to_a_curve(x: Tensor, sigma: float) -> Tensor:
    """Return the slope of a bell curve of deviation a half."""
    return x * sigma / (0.25 + sigma**2)


def heun(x: Tensor, slope: Slope, sigma: float, sigma_next: float) -> Tensor:
    """Take one step of Heun's method (Karras et al. 2022, algorithm 1)."""
    first = slope(x, sigma)
    tried = x + (sigma_next - sigma) * first
    if sigma_next == 0:
        return tried
    return x + (sigma_next - sigma) * (first + slope(tried, sigma_next)) / 2


def heun_cases(generator: Generator) -> list[tuple]:
    """Draw points and levels; the last case ends at 0."""
    cases: list[tuple] = []
    for slope, size in ((slope_to_drops, 6), (slope_to_a_curve, 3), (slope_to_a_curve, 5)):
        sigma, part = (0.5 + torch.rand(2, generator=generator)).tolist()
        x = sigma * torch.randn(size, generator=generator)
        cases.append((x, slope, sigma, 0.0 if size == 5 else sigma * part / 2))
    return cases


def _second_slope_alone(x: Tensor, slope: Slope, sigma: float, sigma_next: float) -> Tensor:
    tried = _one_slope(x, slope, sigma, sigma_next)
    return tried if sigma_next == 0 else x + (sigma_next - sigma) * slope(tried, sigma_next)


def _second_from_the_tried(x: Tensor, slope: Slope, sigma: float, sigma_next: float) -> Tensor:
    tried = _one_slope(x, slope, sigma, sigma_next)
    if sigma_next == 0:
        return tried
    return tried + (sigma_next - sigma) * (slope(x, sigma) + slope(tried, sigma_next)) / 2


def _asked_at_the_old_level(x: Tensor, slope: Slope, sigma: float, sigma_next: float) -> Tensor:
    tried = _one_slope(x, slope, sigma, sigma_next)
    if sigma_next == 0:
        return tried
    return x + (sigma_next - sigma) * (slope(x, sigma) + slope(tried, sigma)) / 2


def _not_halved(x: Tensor, slope: Slope, sigma: float, sigma_next: float) -> Tensor:
    tried = _one_slope(x, slope, sigma, sigma_next)
    if sigma_next == 0:
        return tried
    return x + (sigma_next - sigma) * (slope(x, sigma) + slope(tried, sigma_next))


def _corrects_at_zero(x: Tensor, slope: Slope, sigma: float, sigma_next: float) -> Tensor:
    tried = _one_slope(x, slope, sigma, sigma_next)
    return x + (sigma_next - sigma) * (slope(x, sigma) + slope(tried, sigma_next)) / 2


def _asked_where_it_stood(x: Tensor, slope: Slope, sigma: float, sigma_next: float) -> Tensor:
    if sigma_next == 0:
        return _one_slope(x, slope, sigma, sigma_next)
    return x + (sigma_next - sigma) * (slope(x, sigma) + slope(x, sigma_next)) / 2


def _half_of_the_second(x: Tensor, slope: Slope, sigma: float, sigma_next: float) -> Tensor:
    tried = _one_slope(x, slope, sigma, sigma_next)
    if sigma_next == 0:
        return tried
    return x + (sigma_next - sigma) * (slope(x, sigma) + slope(tried, sigma_next) / 2)


def _midpoint(x: Tensor, slope: Slope, sigma: float, sigma_next: float) -> Tensor:
    middle = (sigma + sigma_next) / 2
    if sigma_next == 0:
        return _one_slope(x, slope, sigma, sigma_next)
    return x + (sigma_next - sigma) * slope(_one_slope(x, slope, sigma, middle), middle)


HEUN = Exercise(
    name="08.4",
    title="A step of Heun",
    minutes=20,
    difficulty=3,
    reference=heun,
    cases=heun_cases,
    start="take Euler's step first, and ask for the slope where it ends",
    mistakes=(
        Mistake(
            "that is Euler's step; Heun looks at the slope where it ends and goes by the mean of "
            "both",
            _one_slope,
        ),
        Mistake("you go by the second slope alone; take the mean of both", _second_slope_alone),
        Mistake(
            "you go on from the tried point; the corrected step starts again from x",
            _second_from_the_tried,
        ),
        Mistake(
            "the second slope is asked for at the old sigma; the tried point is at sigma_next",
            _asked_at_the_old_level,
        ),
        Mistake("the two slopes are added; their mean is wanted", _not_halved),
        Mistake("at sigma_next = 0 keep Euler's step", _corrects_at_zero),
        Mistake(
            "the second slope is asked for where you stood; ask where Euler's step ends",
            _asked_where_it_stood,
        ),
        Mistake("brackets: the half is of the sum of both slopes", _half_of_the_second),
        Mistake(
            "that is the midpoint method: as good, but its slope is another one's. Heun asks at "
            "both ends",
            _midpoint,
        ),
    ),
)


# 08.5 ------------------------------------------------------------------------------------------


def dpm(x_t: Tensor, original: Tensor, before: Tensor, alphas: tuple) -> Tensor:
    """Take a step of DPM-Solver++(2M)."""
    a_before, a, a_next = alphas
    return dpm_solver_step(x_t, original, a, a_next, last=(before, a_before))


def dpm_cases(generator: Generator) -> list[tuple]:
    """Draw latents, two predicted pictures and three levels."""
    return [
        (*torch.randn(3, *shape, generator=generator), tuple(_levels(generator, 3)))
        for shape in ((1, 4, 3, 3), (2, 4, 5, 2), (1, 4, 6, 6))
    ]


def _first_order(x_t: Tensor, original: Tensor, before: Tensor, alphas: tuple) -> Tensor:
    return dpm_solver_step(x_t, original, alphas[1], alphas[2])


def _leans_back(x_t: Tensor, original: Tensor, before: Tensor, alphas: tuple) -> Tensor:
    return dpm(x_t, original, 2 * original - before, alphas)


def _ratio_inverted(x_t: Tensor, original: Tensor, before: Tensor, alphas: tuple) -> Tensor:
    return dpm(x_t, original, original - (original - before) * _ratio(alphas) ** 2, alphas)


def _not_by_half(x_t: Tensor, original: Tensor, before: Tensor, alphas: tuple) -> Tensor:
    return dpm(x_t, original, original - 2 * (original - before), alphas)


def _even_steps(x_t: Tensor, original: Tensor, before: Tensor, alphas: tuple) -> Tensor:
    return dpm(x_t, original, original - (original - before) * _ratio(alphas), alphas)


def _noise_of_the_old_guess(x_t: Tensor, original: Tensor, before: Tensor, alphas: tuple) -> Tensor:
    _, a, a_next = alphas
    r = _ratio(alphas)
    lean = original + (original - before) / (2 * r)
    noise_pred = (x_t - a**0.5 * original) / (1 - a) ** 0.5
    return a_next**0.5 * lean + (1 - a_next) ** 0.5 * noise_pred


def _ratio(alphas: tuple) -> float:
    a_before, a, a_next = (torch.tensor(each, dtype=torch.float64).logit() for each in alphas)
    return float((a - a_before) / (a_next - a))


def _measured_in_alpha(x_t: Tensor, original: Tensor, before: Tensor, alphas: tuple) -> Tensor:
    a_before, a, a_next = alphas
    wrong = (a - a_before) / (a_next - a)
    return dpm(x_t, original, original - (original - before) * _ratio(alphas) / wrong, alphas)


def _from_the_guess_before(x_t: Tensor, original: Tensor, before: Tensor, alphas: tuple) -> Tensor:
    lean = before + (original - before) / (2 * _ratio(alphas))
    return dpm_solver_step(x_t, lean, alphas[1], alphas[2])


DPM = Exercise(
    name="08.5",
    title="A step of DPM-Solver++",
    minutes=25,
    difficulty=3,
    reference=dpm,
    cases=dpm_cases,
    start="compute λ = ½ log(ᾱ / (1 - ᾱ)) for the three levels, and r from them",
    mistakes=(
        Mistake("that is DDIM's step: the picture predicted before has no effect", _first_order),
        Mistake(
            "you lean back towards the earlier picture; the guess is carried on in the direction "
            "in which it moved",
            _leans_back,
        ),
        Mistake(
            "r is upside down: the last stretch of λ over the coming one", _ratio_inverted
        ),
        Mistake("the half in 1 / (2 r) is missing: half-way along the coming step", _not_by_half),
        Mistake("you take r as 1; the stretches of λ differ in length", _even_steps),
        Mistake(
            "your noise belongs to the picture before it was leaned: work it out from x_t and the "
            "leaned one",
            _noise_of_the_old_guess,
        ),
        Mistake("you measure the stretches in ᾱ; measure them in λ", _measured_in_alpha),
        Mistake("lean from the picture predicted now, not from the one before",
                _from_the_guess_before),
    ),
    out_of_reach=("sdlearn.schedulers.dpm_solver_step",
                  "diffusers.DPMSolverMultistepScheduler.step"),
)  # fmt: skip

EXERCISES = (DDIM, SPACED, EULER, HEUN, DPM)
