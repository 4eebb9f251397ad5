"""Exercises of chapter 02: the VAE's round trip."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution
from torch import Generator, Tensor
from torch.distributions import Normal, kl_divergence

from sdlearn.exercises.examination import Exercise, Mistake
from sdlearn.images import ssim

# 02.1 ------------------------------------------------------------------------------------------


def savings(height: int, width: int, f: int, channels: int, size: int) -> list[float]:
    """Return numbers of the latents, and how many times smaller they are: in numbers, in bytes."""
    pixels = torch.empty(3, height, width, dtype=torch.uint8)
    latents = torch.empty(channels, height // f, width // f)
    numbers = pixels.numel() / latents.numel()
    return [latents.numel(), numbers, pixels.nbytes / (size * latents.numel())]


def savings_cases(generator: Generator) -> list[tuple]:
    """Draw sizes; the sides differ."""
    cases = []
    for f, channels, size in ((8, 4, 2), (4, 16, 4), (16, 6, 2)):
        sides = 16 * torch.randint(4, 40, (2,), generator=generator)
        cases.append((int(sides[0]), int(sides[1]) + 16, f, channels, size))
    return cases


def _f_once(height: int, width: int, f: int, channels: int, size: int) -> list[float]:
    numbers = channels * height * width // f
    ratio = 3 * height * width / numbers
    return [numbers, ratio, ratio / size]


def _colours_forgotten(height: int, width: int, f: int, channels: int, size: int) -> list[float]:
    numbers, ratio, in_bytes = savings(height, width, f, channels, size)
    return [numbers, ratio / 3, in_bytes / 3]


def _three_channels(height: int, width: int, f: int, channels: int, size: int) -> list[float]:
    return savings(height, width, f, 3, size)


def _bytes_multiplied(height: int, width: int, f: int, channels: int, size: int) -> list[float]:
    numbers, ratio, _ = savings(height, width, f, channels, size)
    return [numbers, ratio, ratio * size]


def _a_byte_each(height: int, width: int, f: int, channels: int, size: int) -> list[float]:
    numbers, ratio, _ = savings(height, width, f, channels, size)
    return [numbers, ratio, ratio]


SAVINGS = Exercise(
    name="02.1",
    title="How much smaller?",
    minutes=6,
    difficulty=1,
    reference=savings,
    cases=savings_cases,
    start="count the numbers of the latents: channels times height times width, each side f times "
    "shorter",
    mistakes=(
        Mistake(
            "you divide by f once; height and width are both divided by it, so there are f · f "
            "times fewer places",
            _f_once,
        ),
        Mistake(
            "you count pixels, not their numbers: each pixel of the picture has three colours",
            _colours_forgotten,
        ),
        Mistake(
            "your latents have three channels; they are no colours, and their number is given",
            _three_channels,
        ),
        Mistake(
            "longer numbers make the latents larger, and so the saving smaller: divide by `size`",
            _bytes_multiplied,
        ),
        Mistake(
            "in bytes you count as in numbers; a colour takes one byte, a latent takes `size`",
            _a_byte_each,
        ),
    ),
)


# 02.2 ------------------------------------------------------------------------------------------


def draw(parameters: Tensor, noise: Tensor, scaling_factor: float) -> Tensor:
    """Draw latents from the posterior that diffusers makes of the encoder's output."""
    posterior = DiagonalGaussianDistribution(parameters)
    return (posterior.mean + posterior.std * noise) * scaling_factor


def draw_cases(generator: Generator) -> list[tuple]:
    """Draw what an encoder gives, with clouds wide enough to be seen."""
    cases = []
    for batch, channels, h, w in ((1, 4, 3, 5), (4, 4, 4, 4), (2, 6, 2, 3)):
        parameters = torch.randn(batch, 2 * channels, h, w, generator=generator)
        noise = torch.randn(batch, channels, h, w, generator=generator)
        cases.append((parameters, noise, float(torch.rand((), generator=generator) * 0.7 + 0.1)))
    return cases


def _variance_as_deviation(parameters: Tensor, noise: Tensor, scaling_factor: float) -> Tensor:
    mean, logvar = parameters.chunk(2, dim=1)
    return (mean + logvar.exp() * noise) * scaling_factor


def _log_as_deviation(parameters: Tensor, noise: Tensor, scaling_factor: float) -> Tensor:
    mean, logvar = parameters.chunk(2, dim=1)
    return (mean + logvar * noise) * scaling_factor


def _halves_exchanged(parameters: Tensor, noise: Tensor, scaling_factor: float) -> Tensor:
    return draw(torch.cat(parameters.chunk(2, dim=1)[::-1], dim=1), noise, scaling_factor)


def _divided(parameters: Tensor, noise: Tensor, scaling_factor: float) -> Tensor:
    return draw(parameters, noise, 1 / scaling_factor)


def _mean_alone_scaled(parameters: Tensor, noise: Tensor, scaling_factor: float) -> Tensor:
    mean, logvar = parameters.chunk(2, dim=1)
    return mean * scaling_factor + (logvar / 2).exp() * noise


def _not_scaled(parameters: Tensor, noise: Tensor, scaling_factor: float) -> Tensor:
    return draw(parameters, noise, 1.0)


DRAW = Exercise(
    name="02.2",
    title="From the encoder to x_0",
    minutes=12,
    difficulty=2,
    reference=draw,
    cases=draw_cases,
    start="mean, logvar = parameters.chunk(2, dim=1); what is σ, if logvar is ln σ²?",
    mistakes=(
        Mistake(
            "e to the power of the log-variance is σ², the variance; the noise is stretched by σ, "
            "its root: halve the logarithm first",
            _variance_as_deviation,
        ),
        Mistake(
            "you stretch the noise by the logarithm itself, which may be negative; σ comes back "
            "from ln σ² by way of e to a power",
            _log_as_deviation,
        ),
        Mistake(
            "the two halves are exchanged: the encoder's first channels are the means",
            _halves_exchanged,
        ),
        Mistake(
            "you divide by scaling_factor; that is the way back, before decoding. Latents as they "
            "come from the encoder are too wide, so on this way they are multiplied",
            _divided,
        ),
        Mistake(
            "only the mean is scaled; the draw z = μ + σ ε comes first, and then all of z is "
            "scaled",
            _mean_alone_scaled,
        ),
        Mistake(
            "scaling_factor is not used: without it the noise schedule meets latents several times "
            "wider than it counts on",
            _not_scaled,
        ),
    ),
    out_of_reach=("diffusers.models.autoencoders.vae.DiagonalGaussianDistribution.sample",),
)


# 02.3 ------------------------------------------------------------------------------------------


def kl(mean: Tensor, logvar: Tensor) -> Tensor:
    """Return each picture's KL divergence from N(0, 1), in nats, by PyTorch."""
    prior = Normal(torch.zeros_like(mean), torch.ones_like(mean))
    return kl_divergence(Normal(mean, (logvar / 2).exp()), prior).flatten(1).sum(dim=1)


def kl_cases(generator: Generator) -> list[tuple]:
    """Draw means and log-variances."""
    shapes = ((1, 4, 2, 2), (3, 4, 3, 3), (4, 2, 4, 1))
    drawn = [torch.randn(2, *shape, generator=generator) for shape in shapes]
    return [(mean, 2 * logvar - 1) for mean, logvar in drawn]


def _terms(mean: Tensor, logvar: Tensor) -> Tensor:
    return mean**2 + logvar.exp() - 1 - logvar


def _not_halved(mean: Tensor, logvar: Tensor) -> Tensor:
    return _terms(mean, logvar).flatten(1).sum(dim=1)


def _averaged(mean: Tensor, logvar: Tensor) -> Tensor:
    return 0.5 * _terms(mean, logvar).flatten(1).mean(dim=1)


def _over_the_batch(mean: Tensor, logvar: Tensor) -> Tensor:
    return 0.5 * _terms(mean, logvar).sum()


def _deviation_for_variance(mean: Tensor, logvar: Tensor) -> Tensor:
    return 0.5 * (mean**2 + (logvar / 2).exp() - 1 - logvar / 2).flatten(1).sum(dim=1)


def _log_twice(mean: Tensor, logvar: Tensor) -> Tensor:
    return 0.5 * (mean**2 + logvar.abs() - 1 - logvar.abs().log()).flatten(1).sum(dim=1)


def _one_forgotten(mean: Tensor, logvar: Tensor) -> Tensor:
    return 0.5 * (_terms(mean, logvar) + 1).flatten(1).sum(dim=1)


KL = Exercise(
    name="02.3",
    title="How unlike the prior?",
    minutes=12,
    difficulty=2,
    reference=kl,
    cases=kl_cases,
    start="logvar is ln σ² already: write μ² + σ² - 1 - ln σ² for each latent, then add up",
    mistakes=(
        Mistake("the half before the sum is missing", _not_halved),
        Mistake(
            "you take the mean over a picture's latents; the formula has their sum, since what "
            "independent latents say about the picture adds up",
            _averaged,
        ),
        Mistake(
            "you add up the whole batch; each picture has a posterior of its own, and so a number "
            "of its own",
            _over_the_batch,
        ),
        Mistake(
            "you use σ and ln σ where the formula has σ² and ln σ²: logvar is the logarithm of the "
            "variance, as its name says",
            _deviation_for_variance,
        ),
        Mistake(
            "you take logvar for the variance, and its logarithm once more; it is ln σ² already, "
            "and σ² is e to its power",
            _log_twice,
        ),
        Mistake(
            "the -1 is missing, so that a posterior equal to the prior would not cost 0: try "
            "mean 0 and logvar 0",
            _one_forgotten,
        ),
    ),
    out_of_reach=(
        "torch.distributions.kl_divergence",
        "torch.distributions.kl.kl_divergence",
        "diffusers.models.autoencoders.vae.DiagonalGaussianDistribution.kl",
    ),
)


# 02.4 ------------------------------------------------------------------------------------------


def ssim_cases(generator: Generator) -> list[tuple]:
    """Draw smooth pictures and spoilt ones: lighter, flatter, noisy."""
    cases = []
    for batch, sides, window, sigma in ((1, (14, 9), 5, 1.0), (2, (12, 16), 7, 1.5),
                                        (2, (17, 13), 11, 1.5)):  # fmt: skip
        coarse = torch.rand(batch, 3, 4, 4, generator=generator)
        a = F.interpolate(coarse, sides, mode="bilinear") * 0.8
        grain = torch.randn(a.shape, generator=generator)
        b = (0.15 + 0.7 * a + 0.08 * grain).clamp(0, 1)
        cases.append((a, b, window, sigma))
    return cases


def _by_hand(a: Tensor, b: Tensor, weights: Tensor, parts: str = "both", c: float = 1.0,
             padding: int = 0) -> float:  # fmt: skip
    def average(x: Tensor) -> Tensor:
        return F.conv2d(x.flatten(0, 1)[:, None], weights[None, None], padding=padding)

    a, b = a.double(), b.double()
    m_a, m_b = average(a), average(b)
    var_a, var_b = average(a * a) - m_a**2, average(b * b) - m_b**2
    cov = average(a * b) - m_a * m_b
    c_1, c_2 = c * 0.01**2, c * 0.03**2
    brightness = (2 * m_a * m_b + c_1) / (m_a**2 + m_b**2 + c_1)
    pattern = (2 * cov + c_2) / (var_a + var_b + c_2)
    which = {"both": brightness * pattern, "brightness": brightness, "pattern": pattern}
    return float(which[parts].mean())


def _window(window: int, sigma: float, two: float = 2.0) -> Tensor:
    places = torch.arange(window, dtype=torch.float64) - window // 2
    line = torch.exp(-(places**2) / (two * sigma**2))
    return torch.outer(line, line) / line.sum() ** 2


def _one_window(a: Tensor, b: Tensor, window: int, sigma: float) -> float:
    a, b = a.double().flatten(2), b.double().flatten(2)
    m_a, m_b = a.mean(2), b.mean(2)
    cov = (a * b).mean(2) - m_a * m_b
    var_a, var_b = (a * a).mean(2) - m_a**2, (b * b).mean(2) - m_b**2
    first = (2 * m_a * m_b + 0.01**2) / (m_a**2 + m_b**2 + 0.01**2)
    return float((first * (2 * cov + 0.03**2) / (var_a + var_b + 0.03**2)).mean())


def _flat_window(a: Tensor, b: Tensor, window: int, sigma: float) -> float:
    return _by_hand(a, b, torch.full((window, window), 1 / window**2, dtype=torch.float64))


def _padded(a: Tensor, b: Tensor, window: int, sigma: float) -> float:
    return _by_hand(a, b, _window(window, sigma), padding=window // 2)


def _no_constants(a: Tensor, b: Tensor, window: int, sigma: float) -> float:
    return _by_hand(a, b, _window(window, sigma), c=0)


def _brightness_alone(a: Tensor, b: Tensor, window: int, sigma: float) -> float:
    return _by_hand(a, b, _window(window, sigma), parts="brightness")


def _pattern_alone(a: Tensor, b: Tensor, window: int, sigma: float) -> float:
    return _by_hand(a, b, _window(window, sigma), parts="pattern")


def _two_forgotten(a: Tensor, b: Tensor, window: int, sigma: float) -> float:
    return _by_hand(a, b, _window(window, sigma, two=1.0))


SSIM = Exercise(
    name="02.4",
    title="SSIM, written out",
    minutes=30,
    difficulty=3,
    reference=ssim,
    cases=ssim_cases,
    start="write a function that averages each window with the Gaussian weights: "
    "torch.nn.functional.conv2d of (B · 3, 1, H, W), with a kernel (1, 1, window, window) that "
    "adds up to 1",
    mistakes=(
        Mistake(
            "you take one window, the whole picture; SSIM looks at a small one around each pixel, "
            "so that a fault in one corner is compared with that corner",
            _one_window,
        ),
        Mistake(
            "all pixels of your window count alike; they are weighted by a Gaussian, so that the "
            "middle counts most and no edge of a window shows",
            _flat_window,
        ),
        Mistake(
            "you pad with zeros: black that neither picture has is compared at the rim. Take only "
            "windows that fit into the picture",
            _padded,
        ),
        Mistake(
            "c₁ and c₂ are missing; where a window is flat or dark you divide one tiny number by "
            "another",
            _no_constants,
        ),
        Mistake(
            "you compare the brightness alone; the second factor is missing", _brightness_alone
        ),
        Mistake("you compare the pattern alone; the first factor is missing", _pattern_alone),
        Mistake(
            "your Gaussian is too narrow: the exponent is -d² / (2 σ²), with the 2",
            _two_forgotten,
        ),
    ),
    out_of_reach=("sdlearn.images.ssim", "sdlearn.images.ssim_map"),
)

EXERCISES = (SAVINGS, DRAW, KL, SSIM)
