"""Exercises of chapter 13: inpainting."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from diffusers import DDIMScheduler
from torch import Generator, Tensor

from sdlearn.exercises.examination import Exercise, Mistake
from sdlearn.schedulers import ddim_step

Encoder = Callable[[Tensor], Tensor]
Denoiser = Callable[[Tensor, int], Tensor]


def _boxes(batch: int, height: int, width: int, generator: Generator) -> Tensor:
    """Draw a mask of a rectangle for each picture, (batch, 1, height, width), 1 inside."""
    masks = torch.zeros(batch, 1, height, width)
    for mask in masks:
        top = int(torch.randint(0, height // 2, (), generator=generator))
        left = int(torch.randint(0, width // 2, (), generator=generator))
        mask[:, top : top + height // 2 + 1, left : left + width // 2] = 1
    return masks


def _under_noise(clean: Tensor, noise: Tensor, a: float) -> Tensor:
    """Noise a picture to a level: diffusers' ``add_noise``."""
    scheduler = DDIMScheduler()
    scheduler.alphas_cumprod = torch.tensor([a])
    return scheduler.add_noise(clean, noise, torch.tensor([0]))


# 13.1 ------------------------------------------------------------------------------------------


def put_back(x: Tensor, clean: Tensor, noise: Tensor, m: Tensor, a_next: float) -> Tensor:
    """Put the picture under noise back outside the mask."""
    return torch.where(m > 0.5, x, _under_noise(clean, noise, a_next))


def put_back_cases(generator: Generator) -> list[tuple]:
    """Draw latents, pictures, noise and masks; the last is after the last step, without noise."""
    cases = []
    for shape, part in (((1, 4, 6, 6), 0.1), ((2, 4, 8, 6), 0.6), ((3, 4, 6, 8), None)):
        a = 1.0 if part is None else part + 0.2 * float(torch.rand((), generator=generator))
        x, clean, noise = torch.randn(3, *shape, generator=generator)
        cases.append((x, clean, noise, _boxes(shape[0], *shape[2:], generator), a))
    return cases


def _mask_upside_down(x: Tensor, clean: Tensor, noise: Tensor, m: Tensor, a: float) -> Tensor:
    return put_back(x, clean, noise, 1 - m, a)


def _clean_at_once(x: Tensor, clean: Tensor, noise: Tensor, m: Tensor, a: float) -> Tensor:
    return put_back(x, clean, noise, m, 1.0)


def _added(x: Tensor, clean: Tensor, noise: Tensor, m: Tensor, a: float) -> Tensor:
    return x + (1 - m) * _under_noise(clean, noise, a)


def _emptied(x: Tensor, clean: Tensor, noise: Tensor, m: Tensor, a: float) -> Tensor:
    return m * x


def _noise_alone(x: Tensor, clean: Tensor, noise: Tensor, m: Tensor, a: float) -> Tensor:
    return m * x + (1 - m) * (clean + (1 - a) ** 0.5 * noise)


def _back_without_roots(x: Tensor, clean: Tensor, noise: Tensor, m: Tensor, a: float) -> Tensor:
    return m * x + (1 - m) * (a * clean + (1 - a) * noise)


PUT_BACK = Exercise(
    name="13.1",
    title="Put the rest back",
    minutes=8,
    difficulty=1,
    reference=put_back,
    cases=put_back_cases,
    start="first the picture under noise, by chapter 05's jump; then choose by the mask",
    mistakes=(
        Mistake(
            "the mask is upside down: you keep what should be painted. It is 1 where to paint, so "
            "the old picture goes where 1 - m is 1",
            _mask_upside_down,
        ),
        Mistake(
            "you put the picture back without noise: then the two halves have different amounts of "
            "it, and the U-Net is told of one timestep only",
            _clean_at_once,
        ),
        Mistake(
            "outside the mask you add the picture to what the loop has there; it must replace it, "
            "so that part needs m * x",
            _added,
        ),
        Mistake(
            "outside the mask nothing is left: m * x cuts the new part out, and the old one must "
            "be put beside it",
            _emptied,
        ),
        Mistake(
            "the noise is laid on a picture that is not shrunk: its factor √ᾱ is missing, and the "
            "variance is too large",
            _noise_alone,
        ),
        Mistake("the roots are missing: ᾱ is a share of the variance", _back_without_roots),
    ),
    out_of_reach=("sdlearn.noise.add_noise", "diffusers.DDIMScheduler.add_noise"),
)


# 13.2 ------------------------------------------------------------------------------------------


def to_places(mask: Tensor, factor: int, grow: int) -> Tensor:
    """Return a mask in latents: PyTorch's nearest neighbour, as diffusers has it, then grown."""
    small = F.interpolate(mask[None, None].float(), scale_factor=1 / factor, mode="nearest")
    return F.max_pool2d(small, 2 * grow + 1, stride=1, padding=grow)


def places_cases(generator: Generator) -> list[tuple]:
    """Draw masks that cut through the places, with specks; of different factors and growth."""
    cases = []
    for height, width, factor, grow in ((64, 96, 8, 1), (48, 48, 8, 0), (40, 60, 4, 2)):
        mask = torch.rand(height, width, generator=generator) > 0.995
        top, left = (int(torch.randint(5, 12, (), generator=generator)) for _ in range(2))
        mask[top : top + 2 * factor + 3, left : left + factor + 2] = True
        mask[-factor, -factor + 1] = True  # in a place's first row, but not at its corner
        mask[-1, -1] = True  # at a place's lower right
        cases.append((mask, factor, grow))
    return cases


def _any_pixel(mask: Tensor, factor: int, grow: int) -> Tensor:
    small = F.max_pool2d(mask[None, None].float(), factor)
    return F.max_pool2d(small, 2 * grow + 1, stride=1, padding=grow)


def _most_pixels(mask: Tensor, factor: int, grow: int) -> Tensor:
    small = (F.avg_pool2d(mask[None, None].float(), factor) >= 0.5).float()
    return F.max_pool2d(small, 2 * grow + 1, stride=1, padding=grow)


def _mean(mask: Tensor, factor: int, grow: int) -> Tensor:
    small = F.avg_pool2d(mask[None, None].float(), factor)
    return F.max_pool2d(small, 2 * grow + 1, stride=1, padding=grow)


def _lower_right(mask: Tensor, factor: int, grow: int) -> Tensor:
    return to_places(mask.flip(0, 1), factor, grow).flip(2, 3)


def _grown_in_pixels(mask: Tensor, factor: int, grow: int) -> Tensor:
    large = F.max_pool2d(mask[None, None].float(), 2 * grow + 1, stride=1, padding=grow)
    return to_places(large[0, 0], factor, 0)


def _window_as_growth(mask: Tensor, factor: int, grow: int) -> Tensor:
    small = to_places(mask, factor, 0)
    for _ in range(grow):
        small = F.max_pool2d(F.pad(small, (0, 1, 0, 1)), 2, stride=1)
    return small


TO_PLACES = Exercise(
    name="13.2",
    title="A mask for latents",
    minutes=12,
    difficulty=2,
    reference=to_places,
    cases=places_cases,
    start="mask[::factor, ::factor] takes every 8th pixel of every 8th row, from the first one on",
    mistakes=(
        Mistake(
            "you paint a place if any of its pixels is masked. That is a sensible rule, but "
            "diffusers asks only the pixel at the upper left",
            _any_pixel,
        ),
        Mistake(
            "you let the pixels of a place vote; diffusers asks only the one at the upper left",
            _most_pixels,
        ),
        Mistake(
            "your mask has shares between 0 and 1; a place of the latents is painted whole or not "
            "at all, as one pixel says",
            _mean,
        ),
        Mistake(
            "you ask the pixel at the lower right of each place; it is the one at the upper left",
            _lower_right,
        ),
        Mistake(
            "you grow the mask by pixels, before it is made small; `grow` counts places of the "
            "latents, so make it small first",
            _grown_in_pixels,
        ),
        Mistake(
            "your mask grows towards one corner only; to grow by n to each side, the window must "
            "be 2 n + 1 wide, with its middle on the place",
            _window_as_growth,
        ),
    ),
)


# 13.3 ------------------------------------------------------------------------------------------


def back_up(x: Tensor, fresh: Tensor, a: float, a_next: float) -> Tensor:
    """Go from t' back up to t by the forward process: diffusers' jump, between two levels."""
    return _under_noise(x, fresh, a / a_next)


def back_up_cases(generator: Generator) -> list[tuple]:
    """Draw latents, noise and two levels, the noisier first."""
    cases = []
    for shape in ((1, 4, 5, 5), (2, 4, 3, 6), (3, 2, 4, 4)):
        low, more = torch.rand(2, generator=generator).tolist()
        a = 0.1 + 0.3 * low
        x, fresh = torch.randn(2, *shape, generator=generator)
        cases.append((x, fresh, a, a + 0.1 + 0.4 * more))
    return cases


def _jump_to_t(x: Tensor, fresh: Tensor, a: float, a_next: float) -> Tensor:
    return _under_noise(x, fresh, a)


def _noise_of_t(x: Tensor, fresh: Tensor, a: float, a_next: float) -> Tensor:
    return (a / a_next) ** 0.5 * x + (1 - a) ** 0.5 * fresh


def _difference_of_amplitudes(x: Tensor, fresh: Tensor, a: float, a_next: float) -> Tensor:
    return (a / a_next) ** 0.5 * x + ((1 - a) ** 0.5 - (1 - a_next) ** 0.5) * fresh


def _not_shrunk(x: Tensor, fresh: Tensor, a: float, a_next: float) -> Tensor:
    return x + (1 - a / a_next) ** 0.5 * fresh


def _up_without_roots(x: Tensor, fresh: Tensor, a: float, a_next: float) -> Tensor:
    return a / a_next * x + (1 - a / a_next) * fresh


BACK_UP = Exercise(
    name="13.3",
    title="One step back up",
    minutes=12,
    difficulty=2,
    reference=back_up,
    cases=back_up_cases,
    start="which factor turns a share ᾱ' of the variance into ᾱ? Its root multiplies x",
    mistakes=(
        Mistake(
            "you jump as if x were clean; but it is at t' already, and has some noise. Only what "
            "is missing between t' and t is added",
            _jump_to_t,
        ),
        Mistake(
            "you add all the noise of t, on top of that of t'; the two factors' squares must add "
            "up to 1",
            _noise_of_t,
        ),
        Mistake(
            "you subtract the amplitudes of two noises. Independent noises add up by their "
            "variances: the amplitude is the root of a difference, not a difference of roots",
            _difference_of_amplitudes,
        ),
        Mistake(
            "x keeps its size, and the variance grows with each time you go back: shrink it by "
            "√(ᾱ / ᾱ')",
            _not_shrunk,
        ),
        Mistake("the roots are missing: ᾱ / ᾱ' is a share of the variance", _up_without_roots),
    ),
    out_of_reach=("sdlearn.noise.add_noise", "diffusers.DDIMScheduler.add_noise"),
)


# 13.4 ------------------------------------------------------------------------------------------


def toy_encode(pixels: Tensor) -> Tensor:
    """Make four channels, an eighth as high and wide, as a VAE does; also of black and grey."""
    small = F.avg_pool2d(pixels, 8)
    return torch.cat([small + 0.3, small.mean(1, keepdim=True) ** 2], dim=1)


def nine(x_t: Tensor, pixels: Tensor, mask: Tensor, encode: Encoder) -> Tensor:
    """Return what the U-Net for inpainting reads, in diffusers' order."""
    kept = encode(pixels * (mask < 0.5))
    read = torch.cat([x_t, F.interpolate(mask, x_t.shape[2:]), kept], dim=1)
    return torch.cat([read, read])


def nine_cases(generator: Generator) -> list[tuple]:
    """Draw latents, pictures and masks of a rectangle."""
    cases = []
    for batch, height, width in ((1, 32, 32), (2, 32, 48), (3, 48, 32)):
        x_t = torch.randn(batch, 4, height // 8, width // 8, generator=generator)
        pixels = 2 * torch.rand(batch, 3, height, width, generator=generator) - 1
        cells = _boxes(batch, height // 8, width // 8, generator)
        mask = cells.repeat_interleave(8, 2).repeat_interleave(8, 3)
        cases.append((x_t, pixels, mask, toy_encode))
    return cases


def _joined(x_t: Tensor, mask: Tensor, kept: Tensor) -> Tensor:
    read = torch.cat([x_t, F.interpolate(mask, x_t.shape[2:]), kept], dim=1)
    return torch.cat([read, read])


def _mask_last(x_t: Tensor, pixels: Tensor, mask: Tensor, encode: Encoder) -> Tensor:
    return nine(x_t, pixels, mask, encode)[:, [0, 1, 2, 3, 5, 6, 7, 8, 4]]


def _picture_first(x_t: Tensor, pixels: Tensor, mask: Tensor, encode: Encoder) -> Tensor:
    return nine(x_t, pixels, mask, encode)[:, [5, 6, 7, 8, 4, 0, 1, 2, 3]]


def _black_under_the_mask(x_t: Tensor, pixels: Tensor, mask: Tensor, encode: Encoder) -> Tensor:
    return _joined(x_t, mask, encode(torch.where(mask > 0.5, -torch.ones(()), pixels)))


def _cut_in_latents(x_t: Tensor, pixels: Tensor, mask: Tensor, encode: Encoder) -> Tensor:
    cells = F.interpolate(mask, x_t.shape[2:])
    return _joined(x_t, mask, encode(pixels) * (1 - cells))


def _not_cut(x_t: Tensor, pixels: Tensor, mask: Tensor, encode: Encoder) -> Tensor:
    return _joined(x_t, mask, encode(pixels))


def _kept_what_is_painted(x_t: Tensor, pixels: Tensor, mask: Tensor, encode: Encoder) -> Tensor:
    return _joined(x_t, mask, encode(pixels * mask))


def _one_half(x_t: Tensor, pixels: Tensor, mask: Tensor, encode: Encoder) -> Tensor:
    return nine(x_t, pixels, mask, encode)[: len(x_t)]


def _side_by_side(x_t: Tensor, pixels: Tensor, mask: Tensor, encode: Encoder) -> Tensor:
    return _one_half(x_t, pixels, mask, encode).repeat_interleave(2, 0)


NINE = Exercise(
    name="13.4",
    title="Nine channels",
    minutes=15,
    difficulty=2,
    reference=nine,
    cases=nine_cases,
    start="make the masked picture first, in pixels: what is to be painted becomes 0, grey",
    mistakes=(
        Mistake(
            "the mask comes last in yours; the network was trained with it in channel 4, between "
            "x_t and the picture, and reads each channel with weights of its own",
            _mask_last,
        ),
        Mistake(
            "the picture comes first in yours. The first four channels are x_t, as before the "
            "network was widened: its old weights wait for it there",
            _picture_first,
        ),
        Mistake(
            "black lies under your mask; pixels go from -1 to 1, so grey, the middle, is 0",
            _black_under_the_mask,
        ),
        Mistake(
            "you encode the whole picture and cut in the latents: the encoder looks at neighbours, "
            "and zeros in latents are not the latents of grey. Cut in pixels, then encode",
            _cut_in_latents,
        ),
        Mistake(
            "you show the network what lies under the mask; it was trained to paint without it, "
            "and would copy it",
            _not_cut,
        ),
        Mistake(
            "you keep what should be painted: multiply the pixels by 1 - mask",
            _kept_what_is_painted,
        ),
        Mistake(
            "guidance needs two halves: all of the batch for the empty prompt, and again with text",
            _one_half,
        ),
        Mistake(
            "you put the two copies of each picture side by side; the batch has first all rows for "
            "the empty prompt, then all with text",
            _side_by_side,
        ),
    ),
)


# 13.5 ------------------------------------------------------------------------------------------


def toy_unet(x: Tensor, i: int) -> Tensor:
    """Answer as a U-Net does; each place looks at its neighbours."""
    around = F.avg_pool2d(x, 3, stride=1, padding=1)
    return 0.7 * torch.tanh(x) + 0.3 * torch.sin(2 * around + i)


def paint(clean: Tensor, noise: Tensor, m: Tensor, unet: Denoiser, alphas: list[float]) -> Tensor:
    """Inpaint by DDIM without guidance; the levels end with 1."""
    return _paint(clean, noise, m, unet, alphas)


def _paint(
    clean: Tensor,
    noise: Tensor,
    m: Tensor,
    unet: Denoiser,
    alphas: list[float],
    *,
    late: bool = False,
    before: bool = False,
    last_too: bool = True,
    last_only: bool = False,
    in_prediction: bool = False,
) -> Tensor:
    x = noise
    for i, (a, a_next) in enumerate(zip(alphas, alphas[1:])):
        if before:
            x = put_back(x, clean, noise, m, a)
        noise_pred = unet(x, i)
        if in_prediction:
            noise_pred = m * noise_pred + (1 - m) * noise
        x = ddim_step(x, noise_pred, a, a_next)
        last = i == len(alphas) - 2
        if (last_too if last else not last_only) and not (before or in_prediction):
            x = put_back(x, clean, noise, m, a if late else a_next)
    return x


def paint_cases(generator: Generator) -> list[tuple]:
    """Draw pictures, noise, masks and levels of noise, the noisiest first."""
    cases: list[tuple] = []
    for shape, count in (((1, 4, 6, 6), 3), ((2, 4, 6, 8), 5), ((2, 2, 8, 6), 7)):
        clean, noise = torch.randn(2, *shape, generator=generator)
        m = _boxes(shape[0], *shape[2:], generator)
        cases.append((clean, noise, m, toy_unet, [*torch.linspace(0.05, 0.9, count).tolist(), 1.0]))
    return cases


def _as_planted(*case: Any) -> Tensor:
    return _paint(*case, late=True)


def _before_the_step(*case: Any) -> Tensor:
    return _paint(*case, before=True)


def _not_after_the_last(*case: Any) -> Tensor:
    return _paint(*case, last_too=False)


def _at_the_end_alone(*case: Any) -> Tensor:
    return _paint(*case, last_only=True)


def _in_the_prediction(*case: Any) -> Tensor:
    return _paint(*case, in_prediction=True)


def _paints_the_rest(*case: Any) -> Tensor:
    clean, noise, m, *more = case
    return _paint(clean, noise, 1 - m, *more)


PAINT = Exercise(
    name="13.5",
    title="A loop with one fault",
    minutes=20,
    difficulty=3,
    reference=paint,
    cases=paint_cases,
    start="copy the loop from the task; which level of noise has x after the step?",
    mistakes=(
        Mistake(
            "the fault is still there: the kept part is one step noisier than the painted one, and "
            "after the last step it has noise left. After a step x is at a_next",
            _as_planted,
        ),
        Mistake(
            "you put the picture back before the step, and nothing puts it back after the last "
            "one: outside the mask the result is the network's, not the picture",
            _before_the_step,
        ),
        Mistake(
            "after the last step nothing is put back: the kept part is what one step of the "
            "network made of it, not the picture itself",
            _not_after_the_last,
        ),
        Mistake(
            "you put the picture back at the end only: the loop never saw it, so what is painted "
            "does not fit. That is pasting, not inpainting",
            _at_the_end_alone,
        ),
        Mistake(
            "you mix into the predicted noise. Then the latents outside begin as noise alone and "
            "come to nothing in particular, since the picture itself never enters",
            _in_the_prediction,
        ),
        Mistake("the mask is upside down: it is 1 where to paint", _paints_the_rest),
    ),
    out_of_reach=("sdlearn.schedulers.ddim_step", "sdlearn.noise.add_noise",
                  "diffusers.DDIMScheduler.step", "diffusers.DDIMScheduler.add_noise"),
)  # fmt: skip

EXERCISES = (PUT_BACK, TO_PLACES, BACK_UP, NINE, PAINT)
