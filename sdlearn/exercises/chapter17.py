"""Exercises of chapter 17: after Stable Diffusion 1.x."""

from __future__ import annotations

import torch
from diffusers import DDPMScheduler, LCMScheduler
from diffusers.schedulers.scheduling_ddim import rescale_zero_terminal_snr
from torch import Generator, Tensor

from sdlearn.exercises.examination import Exercise, Mistake, per_picture


def _pair(shape: tuple, generator: Generator) -> tuple[Tensor, Tensor]:
    one, other = torch.randn(2, *shape, generator=generator)
    return one, other


SHAPES = ((1, 4, 5, 3), (3, 2, 4, 3), (4, 4, 4, 4))

# 17.1 ------------------------------------------------------------------------------------------


def velocity(x_0: Tensor, noise: Tensor, alpha_bar: Tensor) -> Tensor:
    """Return v, the target of v-prediction, by diffusers."""
    scheduler = DDPMScheduler()
    scheduler.alphas_cumprod = alpha_bar
    return scheduler.get_velocity(x_0, noise, torch.arange(len(alpha_bar)))


def velocity_cases(generator: Generator) -> list[tuple]:
    """Draw pictures, noise and levels; at ᾱ = 0 v is minus the picture."""
    cases = []
    for shape in SHAPES:
        alpha_bar = torch.rand(shape[0], generator=generator)
        alpha_bar[0] = 0
        cases.append((*_pair(shape, generator), alpha_bar))
    return cases


def _v(x_0: Tensor, noise: Tensor, signal: Tensor, of_noise: Tensor) -> Tensor:
    return per_picture(signal, x_0) * noise - per_picture(of_noise, x_0) * x_0


def _v_negative(x_0: Tensor, noise: Tensor, alpha_bar: Tensor) -> Tensor:
    return -velocity(x_0, noise, alpha_bar)


def _v_plus(x_0: Tensor, noise: Tensor, alpha_bar: Tensor) -> Tensor:
    return velocity(-x_0, noise, alpha_bar)


def _v_exchanged(x_0: Tensor, noise: Tensor, alpha_bar: Tensor) -> Tensor:
    return velocity(x_0, noise, 1 - alpha_bar)


def _v_without_roots(x_0: Tensor, noise: Tensor, alpha_bar: Tensor) -> Tensor:
    return _v(x_0, noise, alpha_bar, 1 - alpha_bar)


def _v_is_noise(x_0: Tensor, noise: Tensor, alpha_bar: Tensor) -> Tensor:
    return noise.clone()


VELOCITY = Exercise(
    name="17.1",
    title="The target of v-prediction",
    minutes=8,
    difficulty=1,
    reference=velocity,
    cases=velocity_cases,
    start="write √ᾱ · noise first; what is taken away from it?",
    mistakes=(
        Mistake("the sign is turned round: v is √ᾱ ε - √(1 - ᾱ) x_0", _v_negative),
        Mistake(
            "you add the picture; that is near to x_t itself. v is the direction in which x_t "
            "turns, at a right angle to it: the picture is taken away",
            _v_plus,
        ),
        Mistake("the factors have changed places: √ᾱ belongs to the noise here", _v_exchanged),
        Mistake("the roots are missing: ᾱ is a share of the variance", _v_without_roots),
        Mistake(
            "that is the target of ε-prediction. At ᾱ = 0, where x_t is nothing but noise, it "
            "asks for what is given already, and nothing is learnt",
            _v_is_noise,
        ),
    ),
    out_of_reach=("diffusers.DDPMScheduler.get_velocity", "diffusers.DDIMScheduler.get_velocity"),
)


# 17.2 ------------------------------------------------------------------------------------------


def flow(x_0: Tensor, noise: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
    """Return the point of the straight path at t, and the velocity along it."""
    t = per_picture(t, x_0)
    return (1 - t) * x_0 + t * noise, noise - x_0


def flow_cases(generator: Generator) -> list[tuple]:
    """Draw pictures, noise and times."""
    return [(*_pair(s, generator), torch.rand(s[0], generator=generator)) for s in SHAPES]


def _flow_backwards(x_0: Tensor, noise: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
    x_t, v = flow(x_0, noise, t)
    return x_t, -v


def _time_turned(x_0: Tensor, noise: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
    return flow(x_0, noise, 1 - t)


def _curved(x_0: Tensor, noise: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
    t = per_picture(t, x_0)
    return (1 - t).sqrt() * x_0 + t.sqrt() * noise, noise - x_0


def _target_noise(x_0: Tensor, noise: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
    return flow(x_0, noise, t)[0], noise.clone()


def _from_the_point(x_0: Tensor, noise: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
    x_t = flow(x_0, noise, t)[0]
    return x_t, noise - x_t


FLOW = Exercise(
    name="17.2",
    title="A straight path",
    minutes=10,
    difficulty=2,
    reference=flow,
    cases=flow_cases,
    start="at t = 0 the path is at the picture, at t = 1 at the noise, and between them it is even",
    mistakes=(
        Mistake(
            "the velocity points towards the picture; it is the change of x_t with t, and t grows "
            "towards the noise",
            _flow_backwards,
        ),
        Mistake("t runs the other way here: the picture is at t = 0", _time_turned),
        Mistake(
            "with roots the path is a curve, that of diffusion. This one is straight: the shares "
            "themselves add up to 1",
            _curved,
        ),
        Mistake("the target is the velocity, noise minus picture, not the noise", _target_noise),
        Mistake(
            "the velocity is the same at every point of a straight path: noise - x_0, not what is "
            "left of the way",
            _from_the_point,
        ),
    ),
)


# 17.3 ------------------------------------------------------------------------------------------


def boundary(x: Tensor, original: Tensor, t: int) -> Tensor:
    """Return the consistency function with LCMScheduler's scalings."""
    scheduler = LCMScheduler()
    c_skip, c_out = scheduler.get_scalings_for_boundary_condition_discrete(torch.tensor(float(t)))
    return c_skip * x + c_out * original


def boundary_cases(generator: Generator) -> list[tuple]:
    """Draw timesteps, 0 and a few near it among them, since there the scalings matter."""
    timesteps = (0, 1, 999, int(torch.randint(2, 5, (), generator=generator)))
    return [(*_pair(shape, generator), t) for shape, t in zip((*SHAPES, (2, 3)), timesteps)]


def _boundary(x: Tensor, original: Tensor, scaled: float, root: bool = True) -> Tensor:
    norm = scaled**2 + 0.25
    return 0.25 / norm * x + scaled / (norm**0.5 if root else norm) * original


def _no_skip(x: Tensor, original: Tensor, t: int) -> Tensor:
    return original.clone()


def _not_times_ten(x: Tensor, original: Tensor, t: int) -> Tensor:
    return _boundary(x, original, t)


def _no_root(x: Tensor, original: Tensor, t: int) -> Tensor:
    return _boundary(x, original, 10.0 * t, root=False)


def _rest_to_one(x: Tensor, original: Tensor, t: int) -> Tensor:
    c_skip = 0.25 / (100.0 * t * t + 0.25)
    return c_skip * x + (1 - c_skip) * original


def _roles_exchanged(x: Tensor, original: Tensor, t: int) -> Tensor:
    return boundary(original, x, t)


BOUNDARY = Exercise(
    name="17.3",
    title="The boundary of a consistency model",
    minutes=15,
    difficulty=2,
    reference=boundary,
    cases=boundary_cases,
    start="s = 10 t; then c_skip and c_out by the two formulas, with σ_data² = 0.25",
    mistakes=(
        Mistake(
            "without c_skip nothing makes f(x, 0) be x: a network that says the same everywhere "
            "would have a loss of 0",
            _no_skip,
        ),
        Mistake("t is not multiplied by 10 (diffusers' timestep_scaling)", _not_times_ten),
        Mistake("c_out has a root below the line, c_skip has none", _no_root),
        Mistake("c_out is not 1 - c_skip: see its own formula", _rest_to_one),
        Mistake("c_skip belongs to x, which it lets pass; c_out to the prediction",
                _roles_exchanged),
    ),
    out_of_reach=("diffusers.LCMScheduler.get_scalings_for_boundary_condition_discrete",),
    tolerance=1e-5,
)  # fmt: skip


# 17.4 ------------------------------------------------------------------------------------------


def zero_terminal(alphas_cumprod: Tensor) -> Tensor:
    """Return ᾱ of a schedule that ends in pure noise, by diffusers."""
    before = torch.cat([torch.ones(1), alphas_cumprod[:-1]])
    betas = rescale_zero_terminal_snr(1 - alphas_cumprod / before)
    return (1 - betas).cumprod(dim=0)


def zero_cases(generator: Generator) -> list[tuple]:
    """Draw schedules of diffusers."""
    cases = []
    for count in (10, 100, 1000):
        last = 0.012 * 1000 / count * (0.8 + 0.2 * float(torch.rand((), generator=generator)))
        scheduler = DDPMScheduler(count, 0.00085, min(last, 0.4), "scaled_linear")
        cases.append((scheduler.alphas_cumprod,))
    return cases


def _last_set(alphas_cumprod: Tensor) -> Tensor:
    a = alphas_cumprod.clone()
    a[-1] = 0
    return a


def _shifted(alphas_cumprod: Tensor) -> Tensor:
    return (alphas_cumprod.sqrt() - alphas_cumprod[-1].sqrt()) ** 2


def _of_the_squares(alphas_cumprod: Tensor) -> Tensor:
    first, last = alphas_cumprod[0], alphas_cumprod[-1]
    return (alphas_cumprod - last) * first / (first - last)


def _roots_returned(alphas_cumprod: Tensor) -> Tensor:
    return zero_terminal(alphas_cumprod).sqrt()


def _first_becomes_one(alphas_cumprod: Tensor) -> Tensor:
    roots = alphas_cumprod.sqrt()
    return ((roots - roots[-1]) / (roots[0] - roots[-1])) ** 2


ZERO = Exercise(
    name="17.4",
    title="A schedule that ends in nothing but noise",
    minutes=20,
    difficulty=3,
    reference=zero_terminal,
    cases=zero_cases,
    start="take the roots, subtract the last of them from all, then stretch what is left",
    mistakes=(
        Mistake(
            "only the last value is 0: the step to it becomes a leap. Move all of them", _last_set
        ),
        Mistake(
            "shifted, but not stretched: the first timestep must keep the ᾱ that it had", _shifted
        ),
        Mistake(
            "you shift ᾱ; Lin et al. shift its root, the factor of the picture", _of_the_squares
        ),
        Mistake("you return the roots; square them at the end", _roots_returned),
        Mistake("your first value becomes 1; it must stay what it was", _first_becomes_one),
    ),
    out_of_reach=("diffusers.schedulers.scheduling_ddim.rescale_zero_terminal_snr",
                  "diffusers.schedulers.scheduling_ddpm.rescale_zero_terminal_snr"),
    tolerance=1e-5,
)  # fmt: skip

EXERCISES = (VELOCITY, FLOW, BOUNDARY, ZERO)
