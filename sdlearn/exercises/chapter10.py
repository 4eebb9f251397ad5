"""Exercises of chapter 10: train a denoiser from nothing."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Generator, Tensor

from sdlearn.exercises.examination import Exercise, Mistake, per_picture

# 10.1 ------------------------------------------------------------------------------------------


def follow(averaged: Tensor, weight: Tensor, decay: float) -> Tensor:
    """Take one step of an exponential moving average: PyTorch's lerp."""
    return averaged.lerp(weight, 1 - decay)


def follow_cases(generator: Generator) -> list[tuple]:
    """Draw weights and decays."""
    decays = 0.6 + 0.39 * torch.rand(3, generator=generator)
    return [
        (*torch.randn(2, *shape, generator=generator), float(decay))
        for shape, decay in zip(((3, 4), (5,), (2, 3, 2)), decays)
    ]


def _too_fast(averaged: Tensor, weight: Tensor, decay: float) -> Tensor:
    return averaged.lerp(weight, decay)


def _halves(averaged: Tensor, weight: Tensor, decay: float) -> Tensor:
    return (averaged + weight) / 2


def _grows(averaged: Tensor, weight: Tensor, decay: float) -> Tensor:
    return decay * averaged + weight


def _away_from(averaged: Tensor, weight: Tensor, decay: float) -> Tensor:
    return averaged + (1 - decay) * (averaged - weight)


FOLLOW = Exercise(
    name="10.1",
    title="A step of the moving average",
    minutes=6,
    difficulty=1,
    reference=follow,
    cases=follow_cases,
    start="decay is the share of the old average that is kept",
    mistakes=(
        Mistake(
            "the two shares are exchanged: with a decay of 0.999 yours forgets nearly all at every "
            "step",
            _too_fast,
        ),
        Mistake("decay has no effect: yours keeps one half whatever it is", _halves),
        Mistake("the two shares do not add up to 1, so the average grows without end", _grows),
        Mistake("you walk away from the new weight; the average follows it", _away_from),
    ),
    out_of_reach=("torch.lerp", "torch.Tensor.lerp"),
)


# 10.2 ------------------------------------------------------------------------------------------


def drop(labels: Tensor, drawn: Tensor, share: float, none: int) -> Tensor:
    """Replace all labels of the examples whose number drawn lies below a share."""
    return labels.masked_fill((drawn < share)[:, None], none)


def drop_cases(generator: Generator) -> list[tuple]:
    """Draw labels, as many of an example as there are examples once, and numbers from 0 to 1."""
    cases = []
    for count, kinds in ((12, 2), (9, 9), (20, 3)):
        labels = torch.randint(9, (count, kinds), generator=generator)
        drawn = torch.rand(count, generator=generator)
        drawn[:2] = torch.tensor([0.02, 0.97])
        cases.append((labels, drawn, 0.3, 9))
    return cases


def _keeps_those(labels: Tensor, drawn: Tensor, share: float, none: int) -> Tensor:
    return labels.masked_fill((drawn >= share)[:, None], none)


def _share_from_above(labels: Tensor, drawn: Tensor, share: float, none: int) -> Tensor:
    return labels.masked_fill((drawn > 1 - share)[:, None], none)


def _first_label_alone(labels: Tensor, drawn: Tensor, share: float, none: int) -> Tensor:
    dropped = labels.clone()
    dropped[:, 0] = labels[:, 0].masked_fill(drawn < share, none)
    return dropped


def _to_label_zero(labels: Tensor, drawn: Tensor, share: float, none: int) -> Tensor:
    return drop(labels, drawn, share, 0)


def _left_out(labels: Tensor, drawn: Tensor, share: float, none: int) -> Tensor:
    return labels[drawn >= share]


DROP = Exercise(
    name="10.2",
    title="One in ten goes without labels",
    minutes=10,
    difficulty=2,
    reference=drop,
    cases=drop_cases,
    start="drawn < share says which examples; give it a second axis, so that it meets all labels",
    mistakes=(
        Mistake("you drop those that should be kept: nine in ten would go without", _keeps_those),
        Mistake(
            "you drop from the upper end, 1 - share; as often, but the task says below share",
            _share_from_above,
        ),
        Mistake(
            "only the first label of an example is dropped: the network would never see an example "
            "without any, which guidance asks it about",
            _first_label_alone,
        ),
        Mistake(
            "you put label 0 in their place, which is a subject of its own; `none` is the label "
            "that stands for nothing",
            _to_label_zero,
        ),
        Mistake(
            "you leave those examples out; they stay, without labels, since the network must learn "
            "to answer for them",
            _left_out,
        ),
    ),
)


# 10.3 ------------------------------------------------------------------------------------------


def energy_distance(x: Tensor, y: Tensor) -> Tensor:
    """Return the energy distance of two crowds, by its definition, pair by pair."""
    across = [(a - b).norm() for a in x for b in y]
    within = [
        torch.stack([(a - b).norm() for i, a in enumerate(z) for j, b in enumerate(z) if i != j])
        for z in (x, y)
    ]
    return 2 * torch.stack(across).mean() - within[0].mean() - within[1].mean()


def energy_cases(generator: Generator) -> list[tuple]:
    """Draw crowds of different sizes, some of them shifted."""
    return [
        (torch.randn(n, d, generator=generator), torch.randn(m, d, generator=generator) + shift)
        for n, m, d, shift in ((5, 7, 3, 1.0), (4, 4, 2, 0.0), (8, 3, 5, 0.5))
    ]


def _energy(x: Tensor, y: Tensor, *, factor: float = 2, power: int = 1, own: int = 1) -> Tensor:
    within = [(torch.cdist(z, z) ** power).sum() / (len(z) * (len(z) - own)) for z in (x, y)]
    return factor * (torch.cdist(x, y) ** power).mean() - sum(within)


def _with_itself(x: Tensor, y: Tensor) -> Tensor:
    return _energy(x, y, own=0)


def _no_factor(x: Tensor, y: Tensor) -> Tensor:
    return _energy(x, y, factor=1)


def _squared(x: Tensor, y: Tensor) -> Tensor:
    return _energy(x, y, power=2)


def _of_means(x: Tensor, y: Tensor) -> Tensor:
    return (x.mean(0) - y.mean(0)).norm()


ENERGY = Exercise(
    name="10.3",
    title="How far apart are two crowds?",
    minutes=15,
    difficulty=2,
    reference=energy_distance,
    cases=energy_cases,
    start="torch.cdist(x, y) holds the distance of every x from every y",
    mistakes=(
        Mistake(
            "within a crowd you count the distance of each one from itself, which is 0: so the "
            "mean is too small. There are n (n - 1) pairs of different ones",
            _with_itself,
        ),
        Mistake("the distance across counts twice: two crowds of one kind must give 0", _no_factor),
        Mistake(
            "you average squared distances: what remains of that is only the distance of the two "
            "means, and a crowd that is too narrow would pass",
            _squared,
        ),
        Mistake(
            "that compares the means alone: a crowd in which all are alike could have the right "
            "one",
            _of_means,
        ),
    ),
    tolerance=1e-3,
)


# 10.4 ------------------------------------------------------------------------------------------

Model = Callable[[Tensor, Tensor], Tensor]


def toy_model(x_t: Tensor, t: Tensor) -> Tensor:
    """Answer as a denoiser does, from the noisy pictures and their timesteps."""
    return 0.7 * torch.tanh(x_t) * per_picture(1 + t.float() / 1000, x_t)


def training_loss(
    model: Model, x_0: Tensor, noise: Tensor, t: Tensor, alphas_cumprod: Tensor
) -> Tensor:
    """Return the loss of one batch (Ho et al. 2020, algorithm 1)."""
    a = per_picture(alphas_cumprod[t], x_0)
    return F.mse_loss(model(a.sqrt() * x_0 + (1 - a).sqrt() * noise, t), noise)


def loss_cases(generator: Generator) -> list[tuple]:
    """Draw batches, with a schedule of a thousand timesteps."""
    betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2
    alphas_cumprod = (1 - betas).cumprod(0)
    cases = []
    for shape in ((2, 3, 4, 4), (3, 3, 3, 3), (5, 1, 4, 2)):
        x_0, noise = torch.randn(2, *shape, generator=generator)
        t = torch.randint(50, 950, (shape[0],), generator=generator)
        cases.append((toy_model, x_0, noise, t, alphas_cumprod))
    return cases


def _of_the_picture(
    model: Model, x_0: Tensor, noise: Tensor, t: Tensor, alphas_cumprod: Tensor
) -> Tensor:
    a = per_picture(alphas_cumprod[t], x_0)
    return F.mse_loss(model(a.sqrt() * x_0 + (1 - a).sqrt() * noise, t), x_0)


def _of_the_noisy(
    model: Model, x_0: Tensor, noise: Tensor, t: Tensor, alphas_cumprod: Tensor
) -> Tensor:
    a = per_picture(alphas_cumprod[t], x_0)
    x_t = a.sqrt() * x_0 + (1 - a).sqrt() * noise
    return F.mse_loss(model(x_t, t), x_t)


def _asked_about_the_picture(
    model: Model, x_0: Tensor, noise: Tensor, t: Tensor, alphas_cumprod: Tensor
) -> Tensor:
    return F.mse_loss(model(x_0, t), noise)


def _one_t_for_all(
    model: Model, x_0: Tensor, noise: Tensor, t: Tensor, alphas_cumprod: Tensor
) -> Tensor:
    return training_loss(model, x_0, noise, t[:1].expand(len(t)), alphas_cumprod)


def _summed(model: Model, x_0: Tensor, noise: Tensor, t: Tensor, alphas_cumprod: Tensor) -> Tensor:
    return training_loss(model, x_0, noise, t, alphas_cumprod) * x_0[0].numel()


LOSS = Exercise(
    name="10.4",
    title="The loss of a training step",
    minutes=15,
    difficulty=3,
    reference=training_loss,
    cases=loss_cases,
    start="alphas_cumprod[t] is a level for each picture; the jump comes next, as in 05.1",
    mistakes=(
        Mistake(
            "your network is asked for the picture; this one is trained to predict the noise",
            _of_the_picture,
        ),
        Mistake(
            "you compare with x_t, which the network is given: it could simply hand it back",
            _of_the_noisy,
        ),
        Mistake(
            "the network is shown the clean picture; noise that is not in its input it can only "
            "guess",
            _asked_about_the_picture,
        ),
        Mistake("all pictures are taken to the first one's timestep", _one_t_for_all),
        Mistake(
            "you add up over each picture's numbers; take the mean over all of them, so that the "
            "loss does not grow with the picture",
            _summed,
        ),
    ),
)

EXERCISES = (FOLLOW, DROP, ENERGY, LOSS)
