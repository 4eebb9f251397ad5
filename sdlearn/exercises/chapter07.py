"""Exercises of chapter 07: cross-attention and guidance."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import rescale_noise_cfg
from torch import Generator, Tensor

from sdlearn.exercises.examination import Exercise, Mistake

# 07.1 ------------------------------------------------------------------------------------------


def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Scaled dot-product attention: PyTorch's own."""
    return F.scaled_dot_product_attention(q[None], k[None], v[None])[0]


def attend_cases(generator: Generator) -> list[tuple]:
    """Draw queries, keys and values; once as many queries as keys, so that a mistake shows."""
    sizes = ((3, 3, 4), (5, 3, 8), (4, 4, 4), (1, 6, 2))
    return [
        tuple(torch.randn(n, d, generator=generator) for n in (places, words, words))
        for places, words, d in sizes
    ]


def _unscaled(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return (q @ k.T).softmax(-1) @ v


def _scaled_by_d(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return (q @ k.T / q.shape[1]).softmax(-1) @ v


def _over_places(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return (q @ k.T / q.shape[1] ** 0.5).softmax(0) @ v


def _without_softmax(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return (q @ k.T / q.shape[1] ** 0.5) @ v


def _keys_as_values(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return attend(q, k, k)


def _scaled_by_words(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return (q @ k.T / k.shape[0] ** 0.5).softmax(-1) @ v


ATTEND = Exercise(
    name="07.1",
    title="Attention for a few tokens",
    minutes=10,
    difficulty=1,
    reference=attend,
    cases=attend_cases,
    start="the scores are q @ k.T, a row for each place and a column for each word",
    mistakes=(
        Mistake("the scores are not divided by √d, so that the largest one takes all", _unscaled),
        Mistake(
            "you divide by the root of the number of words; d is the length of a query",
            _scaled_by_words,
        ),
        Mistake("you divide by d; it is the root of d, the deviation of a sum of d", _scaled_by_d),
        Mistake(
            "your softmax runs over the places: each word is shared out among the places. It must "
            "run over the words, the last axis: each place shares out its attention",
            _over_places,
        ),
        Mistake(
            "the softmax is missing: the weights of a place must be above 0 and add up to 1",
            _without_softmax,
        ),
        Mistake("you average the keys; keys are what is looked for, values what is taken",
                _keys_as_values),
    ),
    out_of_reach=("torch.nn.functional.scaled_dot_product_attention",),
)  # fmt: skip


# 07.2 ------------------------------------------------------------------------------------------


def guide(noise_pred: Tensor, guidance_scale: float) -> Tensor:
    """Guide away from the unconditional half, which comes first."""
    unconditional, text = noise_pred.chunk(2)
    return unconditional + guidance_scale * (text - unconditional)


def guide_cases(generator: Generator) -> list[tuple]:
    """Draw both halves of batches; channels are even in number, so that a wrong cut is no error."""
    shapes = ((2, 4, 3, 3), (4, 4, 6, 2), (6, 2, 5, 5))
    scales = 1 + 9 * torch.rand(len(shapes), generator=generator)
    scales[-1] = 0.5  # Between the two predictions: nothing switches at 1.
    return [(torch.randn(s, generator=generator), float(g)) for s, g in zip(shapes, scales)]


def _wrong_order(noise_pred: Tensor, guidance_scale: float) -> Tensor:
    return guide(torch.cat(noise_pred.chunk(2)[::-1]), guidance_scale)


def _from_the_text(noise_pred: Tensor, guidance_scale: float) -> Tensor:
    return guide(noise_pred, guidance_scale + 1)


def _difference_alone(noise_pred: Tensor, guidance_scale: float) -> Tensor:
    unconditional, text = noise_pred.chunk(2)
    return guidance_scale * (text - unconditional)


def _interleaved(noise_pred: Tensor, guidance_scale: float) -> Tensor:
    return guide(torch.cat([noise_pred[::2], noise_pred[1::2]]), guidance_scale)


def _cut_channels(noise_pred: Tensor, guidance_scale: float) -> Tensor:
    unconditional, text = noise_pred.chunk(2, dim=1)
    return unconditional + guidance_scale * (text - unconditional)


def _not_guided(noise_pred: Tensor, guidance_scale: float) -> Tensor:
    return guide(noise_pred, 1.0)


def _no_brackets(noise_pred: Tensor, guidance_scale: float) -> Tensor:
    return guidance_scale * noise_pred.chunk(2)[1]


def _arrow_reversed(noise_pred: Tensor, guidance_scale: float) -> Tensor:
    return guide(noise_pred, -guidance_scale)


GUIDE = Exercise(
    name="07.2",
    title="Classifier-free guidance",
    minutes=8,
    difficulty=2,
    reference=guide,
    cases=guide_cases,
    start="noise_pred.chunk(2) gives the two halves, the unconditional one first",
    mistakes=(
        Mistake(
            "the two halves are in the wrong order: you guide away from the prompt", _wrong_order
        ),
        Mistake(
            "you start from the prediction with text, and so go one step too far: a scale of 1 "
            "must give that prediction itself",
            _from_the_text,
        ),
        Mistake(
            "that is the direction alone; it starts from the unconditional prediction",
            _difference_alone,
        ),
        Mistake(
            "you take every second row: the batch holds first all unconditional predictions, then "
            "all with text",
            _interleaved,
        ),
        Mistake("you cut the channels in two; the halves lie along the batch", _cut_channels),
        Mistake("guidance_scale has no effect in yours", _not_guided),
        Mistake("brackets: the scale multiplies the whole difference", _no_brackets),
        Mistake(
            "your arrow points away from the prompt: it leads from the unconditional prediction to "
            "the one with text",
            _arrow_reversed,
        ),
    ),
)  # fmt: skip


# 07.3 ------------------------------------------------------------------------------------------


def heat_map(weights: Tensor, positions: list[int], height: int, width: int) -> Tensor:
    """Where a word is listened to: mean over heads and its tokens, as a picture."""
    mean = weights.mean(dim=0)[:, positions].mean(dim=1)
    return mean.reshape(height, width)


def heat_map_cases(generator: Generator) -> list[tuple]:
    """Draw attention weights (heads, places, 77), for words of one to three tokens."""
    cases = []
    for heads, height, width, count in ((2, 4, 6, 1), (8, 8, 8, 2), (4, 6, 3, 3)):
        weights = torch.randn(heads, height * width, 77, generator=generator).softmax(-1)
        first = int(torch.randint(1, 60, (), generator=generator))
        cases.append((weights, list(range(first, first + count)), height, width))
    return cases


def _one_head(weights: Tensor, positions: list[int], height: int, width: int) -> Tensor:
    return weights[0][:, positions].mean(1).reshape(height, width)


def _first_token(weights: Tensor, positions: list[int], height: int, width: int) -> Tensor:
    return heat_map(weights, positions[:1], height, width)


def _transposed(weights: Tensor, positions: list[int], height: int, width: int) -> Tensor:
    return heat_map(weights, positions, width, height).T


def _shifted(weights: Tensor, positions: list[int], height: int, width: int) -> Tensor:
    return heat_map(weights, [p - 1 for p in positions], height, width)


def _summed(weights: Tensor, positions: list[int], height: int, width: int) -> Tensor:
    return heat_map(weights, positions, height, width) * len(positions)


def _heads_added(weights: Tensor, positions: list[int], height: int, width: int) -> Tensor:
    return heat_map(weights, positions, height, width) * len(weights)


def _stretched(weights: Tensor, positions: list[int], height: int, width: int) -> Tensor:
    mean = heat_map(weights, positions, height, width)
    return mean / mean.max()


HEAT_MAP = Exercise(
    name="07.3",
    title="The heat map of a word",
    minutes=12,
    difficulty=2,
    reference=heat_map,
    cases=heat_map_cases,
    start="weights[:, :, positions] are the columns of the word's tokens",
    mistakes=(
        Mistake("you take one head only; average over all of them", _one_head),
        Mistake("you take the word's first token only; it may have several", _first_token),
        Mistake(
            "rows and columns are exchanged: the places run line by line, so the last axis of the "
            "picture is its width",
            _transposed,
        ),
        Mistake(
            "you look one token to the left: positions count the start token already", _shifted
        ),
        Mistake("you add up the word's tokens; take their mean", _summed),
        Mistake("you add up the heads; take their mean", _heads_added),
        Mistake(
            "you stretch the map until its largest value is 1; keep the shares, so that maps of "
            "different words can be compared",
            _stretched,
        ),
    ),
    tolerance=1e-6,
)


# 07.4 ------------------------------------------------------------------------------------------


def rescale(guided: Tensor, text: Tensor, guidance_rescale: float) -> Tensor:
    """Rescaled guidance: diffusers' own (Lin et al. 2023, section 3.4)."""
    return rescale_noise_cfg(guided, text, guidance_rescale)


def rescale_cases(generator: Generator) -> list[tuple]:
    """Draw predictions; guided ones spread more widely, each picture's in its own measure."""
    cases = []
    for batch in (1, 3, 2):
        text = torch.randn(batch, 4, 6, 6, generator=generator)
        wider = 1 + 3 * torch.rand(batch, 1, 1, 1, generator=generator)
        guided = text * wider + 0.3 * torch.randn(text.shape, generator=generator)
        cases.append((guided, text, float(torch.rand((), generator=generator) * 0.8 + 0.1)))
    return cases


def _over_the_batch(guided: Tensor, text: Tensor, guidance_rescale: float) -> Tensor:
    scaled = guided * (text.std() / guided.std())
    return guidance_rescale * scaled + (1 - guidance_rescale) * guided


def _per_channel(guided: Tensor, text: Tensor, guidance_rescale: float) -> Tensor:
    ratio = text.std((2, 3), keepdim=True) / guided.std((2, 3), keepdim=True)
    return guidance_rescale * guided * ratio + (1 - guidance_rescale) * guided


def _inverted(guided: Tensor, text: Tensor, guidance_rescale: float) -> Tensor:
    ratio = guided.std((1, 2, 3), keepdim=True) / text.std((1, 2, 3), keepdim=True)
    return guidance_rescale * guided * ratio + (1 - guidance_rescale) * guided


def _shares_exchanged(guided: Tensor, text: Tensor, guidance_rescale: float) -> Tensor:
    return rescale(guided, text, 1 - guidance_rescale)


def _wholly(guided: Tensor, text: Tensor, guidance_rescale: float) -> Tensor:
    return rescale(guided, text, 1.0)


def _mixed_with_text(guided: Tensor, text: Tensor, guidance_rescale: float) -> Tensor:
    return guidance_rescale * rescale(guided, text, 1.0) + (1 - guidance_rescale) * text


def _variances(guided: Tensor, text: Tensor, guidance_rescale: float) -> Tensor:
    ratio = text.var((1, 2, 3), keepdim=True) / guided.var((1, 2, 3), keepdim=True)
    return guidance_rescale * guided * ratio + (1 - guidance_rescale) * guided


RESCALE = Exercise(
    name="07.4",
    title="Guidance that does not burn",
    minutes=20,
    difficulty=3,
    reference=rescale,
    cases=rescale_cases,
    start="one deviation for each picture: .std(dim=(1, 2, 3), keepdim=True), of both predictions",
    mistakes=(
        Mistake("one deviation for the whole batch: each picture needs its own", _over_the_batch),
        Mistake("one deviation for each channel: take one for each picture", _per_channel),
        Mistake("the ratio is upside down: the guided prediction must become narrower", _inverted),
        Mistake(
            "the two shares are exchanged: 0 leaves the guided prediction as it is",
            _shares_exchanged,
        ),
        Mistake("guidance_rescale has no effect in yours: it is always rescaled whole", _wholly),
        Mistake("you mix with the prediction with text; mix with the guided one", _mixed_with_text),
        Mistake("that is a ratio of variances; take that of deviations", _variances),
    ),
    out_of_reach=(
        "diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion.rescale_noise_cfg",
    ),
)

EXERCISES = (ATTEND, GUIDE, HEAT_MAP, RESCALE)
