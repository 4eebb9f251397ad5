"""Exercises of chapter 01: there and back again."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Generator, Tensor

from sdlearn.exercises.examination import Exercise, Mistake

# 01.1 ------------------------------------------------------------------------------------------

Shapes = list[tuple[int, ...]]


def shapes(count: int, height: int, width: int, length: int) -> Shapes:
    """Return the shape of what passes from part to part, from the tokens to the pixels."""
    return _shapes(count, height, width, length)


def _shapes(
    count: int, height: int, width: int, length: int, *, halves: int = 2, own: int = 1, f: int = 8
) -> Shapes:
    h, w = height // f, width // f
    return [
        (halves * count, 77),
        (halves * count, 77, length),
        (own * count, 4, h, w),
        (halves * count, 4, h, w),
        (own * count, 4, h, w),
        (count, 3, height, width),
    ]


def shapes_cases(generator: Generator) -> list[tuple]:
    """Draw batches of wide and tall pictures."""
    sides = torch.randint(8, 33, (3, 2), generator=generator) * 16
    sides[:, 0] += 8 * (sides[:, 0] == sides[:, 1])
    return [(count, *side, d) for count, side, d in zip((1, 3, 2), sides.tolist(), (128, 768, 64))]


def _no_empty_prompt(count: int, height: int, width: int, length: int) -> Shapes:
    return _shapes(count, height, width, length, halves=1)


def _all_twice(count: int, height: int, width: int, length: int) -> Shapes:
    return _shapes(count, height, width, length, own=2)


def _width_first(count: int, height: int, width: int, length: int) -> Shapes:
    return _shapes(count, width, height, length)


def _in_colours(count: int, height: int, width: int, length: int) -> Shapes:
    right = _shapes(count, height, width, length)
    return [(n, 3 if len(rest) == 2 else c, *rest) for n, c, *rest in right]


def _never_small(count: int, height: int, width: int, length: int) -> Shapes:
    return _shapes(count, height, width, length, f=1)


def _colours_last(count: int, height: int, width: int, length: int) -> Shapes:
    return [*_shapes(count, height, width, length)[:5], (count, height, width, 3)]


SHAPES = Exercise(
    name="01.1",
    title="What passes from part to part",
    minutes=8,
    difficulty=1,
    reference=shapes,
    cases=shapes_cases,
    start="three of the six come in twos, since there is an empty prompt beside each of yours",
    mistakes=(
        Mistake(
            "the empty prompt is missing: words, vectors and what the U-Net is given come in twos, "
            "or there would be nothing for guidance to compare with",
            _no_empty_prompt,
        ),
        Mistake(
            "the latents themselves are not doubled: there is one stack for each picture. They are "
            "laid side by side with themselves for the U-Net only, and guidance makes one of two",
            _all_twice,
        ),
        Mistake("PyTorch has the height first, then the width", _width_first),
        Mistake(
            "latents are not colours: they have four channels; only pixels have three",
            _in_colours,
        ),
        Mistake(
            "the U-Net never sees a picture in its full size: latents have an eighth of its height "
            "and of its width",
            _never_small,
        ),
        Mistake(
            "colours come before the places, (B, 3, H, W); a picture file has them last, tensors "
            "here do not",
            _colours_last,
        ),
    ),
)


# 01.2 ------------------------------------------------------------------------------------------


class Parts(NamedTuple):
    """The four parts, each as a function."""

    text_encoder: Callable[[list[str]], Tensor]
    unet: Callable[[Tensor, int, Tensor], Tensor]
    scheduler: Callable[[Tensor, int, Tensor], Tensor]
    vae: Callable[[Tensor], Tensor]


def toy_text_encoder(prompts: list[str]) -> Tensor:
    """Give each prompt 77 vectors, always the same ones for the same words."""
    seeds = [sum(ord(letter) * (i + 1) for i, letter in enumerate(p)) for p in prompts]
    drawn = [torch.randn(77, 4, generator=Generator().manual_seed(s)) for s in seeds]
    return torch.stack(drawn)


def toy_unet(x: Tensor, t: int, words: Tensor) -> Tensor:
    """Answer from the latents, the timestep, and the words of each row."""
    said = words.mean(dim=1)[:, :, None, None]
    return torch.tanh(x + 5 * said) * (0.5 + t / 1000)


def toy_scheduler(noise_pred: Tensor, t: int, x: Tensor) -> Tensor:
    """Take a part of the predicted noise away."""
    return (x - 0.4 * noise_pred) * (1 + t / 5000)


def toy_vae(x: Tensor) -> Tensor:
    """Make pixels of latents, eight times as high and wide."""
    return F.interpolate(x[:, :3] + x[:, 3:], scale_factor=8).sigmoid()


def draw(
    parts: Parts, prompt: str, noise: Tensor, timesteps: list[int], guidance_scale: float
) -> Tensor:
    """Draw a picture: words, then noise step by step, then pixels."""
    return _draw(parts, prompt, noise, timesteps, guidance_scale)


def _draw(
    parts: Parts,
    prompt: str,
    noise: Tensor,
    timesteps: list[int],
    guidance_scale: float,
    *,
    first: str = "",
    keep: bool = False,
    decoded: bool = True,
) -> Tensor:
    words = parts.text_encoder([first, prompt])
    x = noise
    for t in timesteps:
        asked = noise if keep else x
        empty, text = parts.unet(torch.cat([asked, asked]), t, words).chunk(2)
        x = parts.scheduler(empty + guidance_scale * (text - empty), t, x)
    return parts.vae(x) if decoded else x


def draw_cases(generator: Generator) -> list[tuple]:
    """Draw starting noise and timesteps, the noisiest first."""
    parts = Parts(toy_text_encoder, toy_unet, toy_scheduler, toy_vae)
    prompts = ("an orange fox", "a blue boat on the sea", "a cat and a dog")
    cases = []
    for prompt, count, side in zip(prompts, (3, 5, 4), (3, 2, 4)):
        drawn = torch.randperm(900, generator=generator)[:count] + 50
        scale = 1.5 + 2 * float(torch.rand((), generator=generator))
        timesteps = drawn.sort(descending=True).values.tolist()
        noise = torch.randn(1, 4, side, side + 1, generator=generator)
        cases.append((parts, prompt, noise, timesteps, scale))
    return cases


def _small_t_first(p: Parts, prompt: str, noise: Tensor, ts: list[int], g: float) -> Tensor:
    return _draw(p, prompt, noise, sorted(ts), g)


def _away_from_it(p: Parts, prompt: str, noise: Tensor, ts: list[int], g: float) -> Tensor:
    return _draw(p, "", noise, ts, g, first=prompt)


def _without_guidance(p: Parts, prompt: str, noise: Tensor, ts: list[int], g: float) -> Tensor:
    return _draw(p, prompt, noise, ts, 1.0)


def _always_the_noise(p: Parts, prompt: str, noise: Tensor, ts: list[int], g: float) -> Tensor:
    return _draw(p, prompt, noise, ts, g, keep=True)


def _first_step_only(p: Parts, prompt: str, noise: Tensor, ts: list[int], g: float) -> Tensor:
    return _draw(p, prompt, noise, ts[:1], g)


def _latents(p: Parts, prompt: str, noise: Tensor, ts: list[int], g: float) -> Tensor:
    return _draw(p, prompt, noise, ts, g, decoded=False)


DRAW = Exercise(
    name="01.2",
    title="Which line is wrong?",
    minutes=12,
    difficulty=2,
    reference=draw,
    cases=draw_cases,
    start="copy the code from the task, and say in a word what each of its lines is for",
    mistakes=(
        Mistake(
            "the fault is still there: the loop begins with hardly any noise and ends with nothing "
            "else. That is the way there; drawing is the way back, from large t to small",
            _small_t_first,
        ),
        Mistake(
            "now the empty prompt and yours are exchanged, so that guidance leads away from your "
            "words",
            _away_from_it,
        ),
        Mistake(
            "guidance_scale has no effect any more: the difference between both answers is what it "
            "must enlarge",
            _without_guidance,
        ),
        Mistake(
            "the U-Net is asked about the starting noise at every step; it must look again at what "
            "the scheduler made of it",
            _always_the_noise,
        ),
        Mistake(
            "your function believes the first answer and returns after one step; look where the "
            "`return` stands",
            _first_step_only,
        ),
        Mistake(
            "you return latents; the VAE, the last of the parts, makes pixels of them", _latents
        ),
    ),
)


# 01.3 ------------------------------------------------------------------------------------------


def share_of_blind(x_t: Tensor, noise: Tensor, noise_pred: Tensor, alpha_bar: Tensor) -> Tensor:
    """Return each picture's squared error, divided by that of the blind guess."""
    shares = [
        F.mse_loss(said, eps) / F.mse_loss((1 - a).sqrt() * x, eps)
        for x, eps, said, a in zip(x_t, noise, noise_pred, alpha_bar)
    ]
    return torch.stack(shares)


def share_cases(generator: Generator) -> list[tuple]:
    """Draw batches, one as wide as it has pictures, and answers that are nearly right."""
    cases = []
    for shape in ((2, 4, 5, 3), (3, 4, 3, 3), (4, 4, 2, 4)):
        x_0, noise, off = torch.randn(3, *shape, generator=generator)
        a = 0.1 + 0.8 * torch.rand(shape[0], generator=generator)
        wide = a[:, None, None, None]
        x_t = wide.sqrt() * x_0 + (1 - wide).sqrt() * noise
        cases.append((x_t, noise, noise + 0.3 * off, a))
    return cases


def _per_picture(one: Tensor, other: Tensor) -> Tensor:
    return (one - other).square().mean(dim=(1, 2, 3))


def _blind(x_t: Tensor, alpha_bar: Tensor) -> Tensor:
    return (1 - alpha_bar)[:, None, None, None].sqrt() * x_t


def _whole_batch(x_t: Tensor, noise: Tensor, noise_pred: Tensor, alpha_bar: Tensor) -> Tensor:
    return F.mse_loss(noise_pred, noise) / F.mse_loss(_blind(x_t, alpha_bar), noise)


def _inverse(x_t: Tensor, noise: Tensor, noise_pred: Tensor, alpha_bar: Tensor) -> Tensor:
    return 1 / share_of_blind(x_t, noise, noise_pred, alpha_bar)


def _of_roots(x_t: Tensor, noise: Tensor, noise_pred: Tensor, alpha_bar: Tensor) -> Tensor:
    return share_of_blind(x_t, noise, noise_pred, alpha_bar).sqrt()


def _no_root(x_t: Tensor, noise: Tensor, noise_pred: Tensor, alpha_bar: Tensor) -> Tensor:
    blind = (1 - alpha_bar)[:, None, None, None] * x_t
    return _per_picture(noise_pred, noise) / _per_picture(blind, noise)


def _guess_of_nothing(x_t: Tensor, noise: Tensor, noise_pred: Tensor, alpha_bar: Tensor) -> Tensor:
    return _per_picture(noise_pred, noise) / noise.square().mean(dim=(1, 2, 3))


def _by_the_formula(x_t: Tensor, noise: Tensor, noise_pred: Tensor, alpha_bar: Tensor) -> Tensor:
    return _per_picture(noise_pred, noise) / alpha_bar


SHARE = Exercise(
    name="01.3",
    title="Is the answer better than a blind one?",
    minutes=12,
    difficulty=2,
    reference=share_of_blind,
    cases=share_cases,
    start="the blind guess is √(1 - ᾱ) x_t; work out its squared error for each picture",
    mistakes=(
        Mistake(
            "one number for the whole batch: pictures with little noise would hide those "
            "with much. Take the mean over a picture's own numbers, axes 1, 2 and 3",
            _whole_batch,
        ),
        Mistake("upside down: what is smaller than 1 must be better than the guess", _inverse),
        Mistake(
            "you divide the roots of the errors; the loss is the squared error itself", _of_roots
        ),
        Mistake(
            "the guess lacks its root: the noise comes into x_t with √(1 - ᾱ), and the best share "
            "of x_t has the same factor",
            _no_root,
        ),
        Mistake(
            "you compare with 'none of it is noise'. That costs about 1 at every t, so that at a "
            "large t nearly everything would look clever beside it",
            _guess_of_nothing,
        ),
        Mistake(
            "ᾱ is the guess's error in the mean over many pictures; of these pictures measure it",
            _by_the_formula,
        ),
    ),
)


# 01.4 ------------------------------------------------------------------------------------------


def nearest(drawn: Tensor, training: Tensor) -> tuple[Tensor, Tensor]:
    """Return the distance of each picture from its nearest training picture, and which that is."""
    small, seen = (F.avg_pool2d(each, 4).flatten(1) for each in (drawn, training))
    found = (torch.cdist(small, seen) / small.shape[1] ** 0.5).min(dim=1)
    return found.values, found.indices


def nearest_cases(generator: Generator) -> list[tuple]:
    """Draw pictures, one of them nearly a copy; once as many as there are to compare with."""
    cases = []
    for count, known, height, width in ((3, 7, 8, 12), (5, 5, 16, 8), (2, 4, 8, 8)):
        coarse = torch.rand(count + known, 3, height // 4, width // 4, generator=generator) - 0.5
        grain = torch.randn(count + known, 3, height, width, generator=generator)
        drawn, training = (F.interpolate(coarse, scale_factor=4) + 0.4 * grain).split(
            (count, known)
        )
        drawn[0] = training[-2] + 0.1 * torch.randn(drawn[0].shape, generator=generator)
        cases.append((drawn, training))
    return cases


Found = tuple[Tensor, Tensor]


def _found(distances: Tensor, axis: int = 1) -> Found:
    best = distances.min(dim=axis)
    return best.values, best.indices


def _differences(drawn: Tensor, training: Tensor) -> Tensor:
    small, seen = F.avg_pool2d(drawn, 4), F.avg_pool2d(training, 4)
    return (small[:, None] - seen[None]).flatten(2)  # (N, M, numbers)


def _in_full_size(drawn: Tensor, training: Tensor) -> Found:
    return _found((drawn[:, None] - training[None]).flatten(2).square().mean(dim=2).sqrt())


def _every_fourth(drawn: Tensor, training: Tensor) -> Found:
    return _in_full_size(drawn[..., ::4, ::4], training[..., ::4, ::4])


def _not_a_mean(drawn: Tensor, training: Tensor) -> Found:
    return _found(_differences(drawn, training).square().sum(dim=2).sqrt())


def _root_forgotten(drawn: Tensor, training: Tensor) -> Found:
    return _found(_differences(drawn, training).square().mean(dim=2))


def _of_each_training_picture(drawn: Tensor, training: Tensor) -> Found:
    return _found(_differences(drawn, training).square().mean(dim=2).sqrt(), axis=0)


def _of_mean_colours(drawn: Tensor, training: Tensor) -> Found:
    return _found(_differences(drawn, training).mean(dim=2).abs())


NEAREST = Exercise(
    name="01.4",
    title="Has it copied?",
    minutes=15,
    difficulty=2,
    reference=nearest,
    cases=nearest_cases,
    start="torch.nn.functional.avg_pool2d(pictures, 4) makes a mean of each 4 × 4 pixels",
    mistakes=(
        Mistake(
            "you compare in full size, where sharpness and grain count: a copy that is a little "
            "softer would look new. Reduce the pictures first",
            _in_full_size,
        ),
        Mistake(
            "you keep every fourth pixel and throw the others away, so that grain stays in. A "
            "reduced picture is made of means over 4 × 4 pixels",
            _every_fourth,
        ),
        Mistake(
            "you add the squares up, so that the distance grows with the size of the picture; take "
            "their mean, and then the root",
            _not_a_mean,
        ),
        Mistake(
            "the root is missing: that is a mean squared difference. Which one is nearest stays "
            "right, how far it is does not",
            _root_forgotten,
        ),
        Mistake(
            "you look for the nearest drawn picture of each training picture. The question goes "
            "the other way: the minimum runs over the training pictures",
            _of_each_training_picture,
        ),
        Mistake(
            "differences with a sign cancel: two pictures of the same mean colour would be copies "
            "of each other. Square first, then take the mean",
            _of_mean_colours,
        ),
    ),
    out_of_reach=("sdlearn.postcards.evaluate.nearest",),
)


# 01.5 ------------------------------------------------------------------------------------------

Weights = tuple[Tensor, Tensor]


def descend(points: Tensor, y: Tensor, w: Tensor, b: Tensor, lr: float) -> Weights:
    """Take one step of gradient descent: PyTorch's gradients and its SGD."""
    with torch.enable_grad():
        weights = [each.clone().requires_grad_() for each in (w, b)]
        F.mse_loss(points @ weights[0] + weights[1], y).backward()
    torch.optim.SGD(weights, lr=lr).step()
    return weights[0].detach(), weights[1].detach()


def descend_cases(generator: Generator) -> list[tuple]:
    """Draw points and what should be answered; once as many points as numbers in one."""
    cases = []
    for count, d in ((6, 2), (4, 4), (9, 3)):
        points = torch.randn(count, d, generator=generator) + 0.5
        y, w = (torch.randn(n, generator=generator) for n in (count, d))
        b, lr = torch.randn((), generator=generator), 0.05 + torch.rand((), generator=generator) / 5
        cases.append((points, y, w, b, float(lr)))
    return cases


def _step(w: Tensor, b: Tensor, new: Weights, times: float) -> Weights:
    return w + times * (new[0] - w), b + times * (new[1] - b)


def _uphill(points: Tensor, y: Tensor, w: Tensor, b: Tensor, lr: float) -> Weights:
    return _step(w, b, descend(points, y, w, b, lr), -1)


def _of_the_sum(points: Tensor, y: Tensor, w: Tensor, b: Tensor, lr: float) -> Weights:
    return _step(w, b, descend(points, y, w, b, lr), len(points))


def _two_forgotten(points: Tensor, y: Tensor, w: Tensor, b: Tensor, lr: float) -> Weights:
    return _step(w, b, descend(points, y, w, b, lr), 0.5)


def _b_stays(points: Tensor, y: Tensor, w: Tensor, b: Tensor, lr: float) -> Weights:
    return descend(points, y, w, b, lr)[0], b


def _one_after_the_other(points: Tensor, y: Tensor, w: Tensor, b: Tensor, lr: float) -> Weights:
    new = descend(points, y, w, b, lr)[0]
    return new, descend(points, y, new, b, lr)[1]


def _signs_alone(points: Tensor, y: Tensor, w: Tensor, b: Tensor, lr: float) -> Weights:
    off = (points @ w + b - y).sign()
    return w - lr * (off @ points) / len(y), b - lr * off.mean()


DESCEND = Exercise(
    name="01.5",
    title="One step downhill, by hand",
    minutes=20,
    difficulty=3,
    reference=descend,
    cases=descend_cases,
    start="errors = points @ w + b - y are N numbers; how does the mean of their squares grow if "
    "one number of w grows?",
    mistakes=(
        Mistake("you go uphill: the gradient says where the loss grows, so subtract it", _uphill),
        Mistake(
            "you add up over the points; the loss is a mean, so its gradient is a mean, too. "
            "Otherwise the same lr would be too large as soon as there are more points",
            _of_the_sum,
        ),
        Mistake(
            "half as far as it should be: the derivative of a square is twice what was squared",
            _two_forgotten,
        ),
        Mistake("b is a weight like the others, and must learn as well", _b_stays),
        Mistake(
            "you change w first and then measure the errors again for b. One step uses one "
            "gradient: both from the same old weights",
            _one_after_the_other,
        ),
        Mistake(
            "you use only the sign of each error, which is the gradient of |error|. With squares a "
            "larger error pulls harder",
            _signs_alone,
        ),
    ),
    out_of_reach=(
        "torch.autograd.grad",
        "torch.autograd.backward",
        "torch.Tensor.backward",
        "torch.optim.SGD.step",
    ),
)

EXERCISES = (SHAPES, DRAW, SHARE, NEAREST, DESCEND)
