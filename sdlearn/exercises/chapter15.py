"""Exercises of chapter 15: DreamBooth and LoRA."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Generator, Tensor

from sdlearn.exercises.examination import Exercise, Mistake

# 15.1 ------------------------------------------------------------------------------------------


def lora_size(outputs: int, inputs: int, rank: int) -> int:
    """Return how many numbers a LoRA of a matrix has."""
    return rank * (outputs + inputs)


def size_cases(generator: Generator) -> list[tuple]:
    """Draw sizes of matrices, none of them square, and ranks."""
    drawn = torch.randint(3, 40, (4, 3), generator=generator).tolist()
    return [(8 * a, 8 * a + 5 * b, rank) for a, b, rank in drawn]


def _whole_matrix(outputs: int, inputs: int, rank: int) -> int:
    return outputs * inputs


def _multiplied(outputs: int, inputs: int, rank: int) -> int:
    return rank * outputs * inputs


def _one_side(outputs: int, inputs: int, rank: int) -> int:
    return rank * inputs


def _square_in_the_middle(outputs: int, inputs: int, rank: int) -> int:
    return rank * (outputs + inputs) + rank * rank


SIZE = Exercise(
    name="15.1",
    title="How many numbers?",
    minutes=5,
    difficulty=1,
    reference=lora_size,
    cases=size_cases,
    start="A takes the inputs down to r numbers, B takes those up to the outputs: two matrices",
    mistakes=(
        Mistake("that is the matrix W itself, which stays as it is", _whole_matrix),
        Mistake("A and B are two matrices beside each other; their sizes add up", _multiplied),
        Mistake("that is A alone; B has numbers, too", _one_side),
        Mistake(
            "there is no r × r matrix between A and B; it could be multiplied into one of them",
            _square_in_the_middle,
        ),
    ),
)

# 15.2 ------------------------------------------------------------------------------------------


def lora(x: Tensor, w: Tensor, a: Tensor, b: Tensor, alpha: float, scale: float) -> Tensor:
    """Return what a layer with a LoRA gives."""
    return F.linear(x, w + scale * alpha / len(a) * b @ a)


def lora_cases(generator: Generator) -> list[tuple]:
    """Draw inputs and weights; once all sides are equal, so that a wrong order is no error."""
    cases = []
    for places, inputs, outputs, rank in ((3, 6, 4, 2), (5, 4, 4, 4), (2, 3, 8, 3)):
        sizes = ((places, inputs), (outputs, inputs), (rank, inputs), (outputs, rank))
        drawn = [torch.randn(size, generator=generator) for size in sizes]
        alpha, scale = (1 + 7 * torch.rand(2, generator=generator)).tolist()
        cases.append((*drawn, alpha, scale / 6))
    return cases


def _not_divided_by_rank(
    x: Tensor, w: Tensor, a: Tensor, b: Tensor, alpha: float, scale: float
) -> Tensor:
    return lora(x, w, a, b, alpha * len(a), scale)


def _without_alpha(
    x: Tensor, w: Tensor, a: Tensor, b: Tensor, alpha: float, scale: float
) -> Tensor:
    return lora(x, w, a, b, len(a), scale)


def _scales_all(x: Tensor, w: Tensor, a: Tensor, b: Tensor, alpha: float, scale: float) -> Tensor:
    return scale * lora(x, w, a, b, alpha, 1.0)


def _replaces(x: Tensor, w: Tensor, a: Tensor, b: Tensor, alpha: float, scale: float) -> Tensor:
    return lora(x, 0 * w, a, b, alpha, scale)


def _always_whole(x: Tensor, w: Tensor, a: Tensor, b: Tensor, alpha: float, scale: float) -> Tensor:
    return lora(x, w, a, b, alpha, 1.0)


def _halves_mixed(x: Tensor, w: Tensor, a: Tensor, b: Tensor, alpha: float, scale: float) -> Tensor:
    return (1 - scale) * x @ w.T + lora(x, 0 * w, a, b, alpha, scale)


LORA = Exercise(
    name="15.2",
    title="A layer with a LoRA",
    minutes=15,
    difficulty=2,
    reference=lora,
    cases=lora_cases,
    start="x goes down by A (`x @ a.T`), then up by B; beside it goes through w as ever",
    mistakes=(
        Mistake(
            "α is not divided by the rank: then every rank would need another learning rate",
            _not_divided_by_rank,
        ),
        Mistake("alpha has no effect in yours; the change counts α / r times", _without_alpha),
        Mistake(
            "you scale the whole layer; scale is for the change alone, so that 0 gives the old "
            "model",
            _scales_all,
        ),
        Mistake("W is missing: the change is added to what the layer gives already", _replaces),
        Mistake("scale has no effect in yours", _always_whole),
        Mistake(
            "you blend: less of W, more of the change. W counts whole at every scale", _halves_mixed
        ),
    ),
)

# 15.3 ------------------------------------------------------------------------------------------


def with_prior(noise_pred: Tensor, noise: Tensor, prior_weight: float) -> Tensor:
    """Return DreamBooth's loss: the subject's half first, then the class's."""
    subject, practised = noise_pred.chunk(2)
    wanted = noise.chunk(2)
    return F.mse_loss(subject, wanted[0]) + prior_weight * F.mse_loss(practised, wanted[1])


def prior_cases(generator: Generator) -> list[tuple]:
    """Draw predictions; the two halves are off by different amounts."""
    cases = []
    for shape in ((2, 4, 3, 3), (6, 2, 4, 4), (4, 4, 2, 5)):
        noise = torch.randn(shape, generator=generator)
        off = torch.randn(shape, generator=generator)
        off[: shape[0] // 2] *= 2
        weight = float(0.2 + 0.5 * torch.rand((), generator=generator))
        cases.append((noise + off, noise, weight))
    return cases


def _all_alike(noise_pred: Tensor, noise: Tensor, prior_weight: float) -> Tensor:
    return F.mse_loss(noise_pred, noise)


def _subject_alone(noise_pred: Tensor, noise: Tensor, prior_weight: float) -> Tensor:
    return with_prior(noise_pred, noise, 0.0)


def _weight_on_the_subject(noise_pred: Tensor, noise: Tensor, prior_weight: float) -> Tensor:
    flipped = [torch.cat(each.chunk(2)[::-1]) for each in (noise_pred, noise)]
    return with_prior(flipped[0], flipped[1], prior_weight)


def _weight_forgotten(noise_pred: Tensor, noise: Tensor, prior_weight: float) -> Tensor:
    return with_prior(noise_pred, noise, 1.0)


def _blended(noise_pred: Tensor, noise: Tensor, prior_weight: float) -> Tensor:
    subject = with_prior(noise_pred, noise, 0.0)
    both = with_prior(noise_pred, noise, 1.0)
    return (1 - prior_weight) * subject + prior_weight * (both - subject)


PRIOR = Exercise(
    name="15.3",
    title="Practise what shall not be forgotten",
    minutes=12,
    difficulty=2,
    reference=with_prior,
    cases=prior_cases,
    start="cut both tensors in two along the batch: .chunk(2); then two mean squared errors",
    mistakes=(
        Mistake("one mean over everything: the weight has no effect", _all_alike),
        Mistake("the class's half is not in it, so that it is forgotten", _subject_alone),
        Mistake(
            "the weight is on the subject; it belongs to the second half, the class",
            _weight_on_the_subject,
        ),
        Mistake("both halves count alike: prior_weight has no effect", _weight_forgotten),
        Mistake(
            "you blend the two with weights that add up to 1; the subject counts whole", _blended
        ),
    ),
)

# 15.4 ------------------------------------------------------------------------------------------


def merge(w: Tensor, loras: list, scales: list) -> Tensor:
    """Return the matrix with several LoRAs, (alpha, A, B) each, merged into it."""
    merged = w.clone()
    for (alpha, a, b), scale in zip(loras, scales):
        merged = merged + scale * alpha / a.shape[0] * (b @ a)
    return merged


def merge_cases(generator: Generator) -> list[tuple]:
    """Draw matrices with two or three LoRAs of different ranks."""
    cases = []
    for outputs, inputs, ranks in ((4, 6, (2, 3)), (5, 5, (5, 1, 2)), (3, 4, (2, 2))):
        loras = [
            (
                float(1 + 3 * torch.rand((), generator=generator)),
                torch.randn(rank, inputs, generator=generator),
                torch.randn(outputs, rank, generator=generator),
            )
            for rank in ranks
        ]
        scales = torch.rand(len(ranks), generator=generator).tolist()
        cases.append((torch.randn(outputs, inputs, generator=generator), loras, scales))
    return cases


def _products_of_sums(w: Tensor, loras: list, scales: list) -> Tensor:
    """Merge by stacking: with each scale taken twice, once in A and once in B."""
    return merge(w, loras, [scale * scale for scale in scales])


def _first_only(w: Tensor, loras: list, scales: list) -> Tensor:
    return merge(w, loras[:1], scales)


def _mean(w: Tensor, loras: list, scales: list) -> Tensor:
    return merge(w, loras, [scale / len(scales) for scale in scales])


def _scales_left_out(w: Tensor, loras: list, scales: list) -> Tensor:
    return merge(w, loras, [1.0] * len(scales))


def _rank_left_out(w: Tensor, loras: list, scales: list) -> Tensor:
    return merge(w, [(alpha * len(a), a, b) for alpha, a, b in loras], scales)


MERGE = Exercise(
    name="15.4",
    title="Two LoRAs in one matrix",
    minutes=20,
    difficulty=3,
    reference=merge,
    cases=merge_cases,
    start="each LoRA's change is a matrix of W's shape, (α / r) B A; changes are added",
    mistakes=(
        Mistake(
            "each scale counts twice; if you scale A and B both, take the root of it",
            _products_of_sums,
        ),
        Mistake("only the first LoRA is in it", _first_only),
        Mistake(
            "you average the changes; merged LoRAs are added up, each with its own scale", _mean
        ),
        Mistake("the scales have no effect", _scales_left_out),
        Mistake("α is not divided by the rank, which differs from one LoRA to the next",
                _rank_left_out),
    ),
)  # fmt: skip

EXERCISES = (SIZE, LORA, PRIOR, MERGE)
