"""Exercises of chapter 16: prompt-to-prompt."""

from __future__ import annotations

from collections.abc import Callable
from difflib import SequenceMatcher
from typing import Any

import torch
import torch.nn.functional as F
from torch import Generator, Tensor

from sdlearn.exercises.examination import Exercise, Mistake

Three = tuple[Tensor, Tensor, Tensor]
Denoiser = Callable[[Tensor, int], Tensor]


def _attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return F.scaled_dot_product_attention(q[None], k[None], v[None])[0]


# 16.1 ------------------------------------------------------------------------------------------


def held(source: Three, target: Three) -> Tensor:
    """Read the target's values where the source reads its words: PyTorch's own attention."""
    return _attend(source[0], source[1], target[2])


def held_cases(generator: Generator) -> list[tuple]:
    """Draw queries, keys and values of two prompts; once as many places as words."""
    return [
        tuple(
            tuple(torch.randn(n, d, generator=generator) for n in (places, words, words))
            for _ in range(2)
        )
        for places, words, d in ((6, 4, 8), (5, 5, 4), (9, 7, 2))
    ]


def _nothing_held(source: Three, target: Three) -> Tensor:
    return _attend(*target)


def _all_of_the_source(source: Three, target: Three) -> Tensor:
    return _attend(*source)


def _keys_alone(source: Three, target: Three) -> Tensor:
    return _attend(target[0], source[1], target[2])


def _queries_alone(source: Three, target: Three) -> Tensor:
    return _attend(source[0], target[1], target[2])


def _values_held(source: Three, target: Three) -> Tensor:
    return _attend(target[0], target[1], source[2])


HELD = Exercise(
    name="16.1",
    title="Hold the weights, take the values",
    minutes=8,
    difficulty=1,
    reference=held,
    cases=held_cases,
    start="A is made of the source's queries and keys; whose values does it read?",
    mistakes=(
        Mistake(
            "that is the target's own attention: nothing is held, and the layout is free to move",
            _nothing_held,
        ),
        Mistake(
            "that is the source's output: its values say what is read, so you draw the source",
            _all_of_the_source,
        ),
        Mistake(
            "you hold the keys and not the queries. A is made of both: with the target's queries "
            "the places look elsewhere",
            _keys_alone,
        ),
        Mistake(
            "you hold the queries and not the keys; A is made of both, so another word would be "
            "read in other places",
            _queries_alone,
        ),
        Mistake(
            "you hold what is read and free where: it must be the other way round", _values_held
        ),
    ),
)


# 16.2 ------------------------------------------------------------------------------------------


def reweight(weights: Tensor, positions: list[int], factor: float) -> Tensor:
    """Multiply the columns of a word's tokens: a product with a diagonal matrix."""
    louder = torch.ones(weights.shape[-1])
    louder[positions] = factor
    return weights @ torch.diag(louder)


def reweight_cases(generator: Generator) -> list[tuple]:
    """Draw attention weights; once as many places as tokens, and factors above and below 1."""
    cases = []
    for heads, places, tokens, count in ((2, 12, 12, 1), (4, 16, 20, 2), (1, 9, 10, 3)):
        weights = torch.randn(heads, places, tokens, generator=generator).softmax(-1)
        first = int(torch.randint(1, tokens - count, (), generator=generator))
        sign = -1 if count == 2 else 1
        factor = sign * (1.5 + 2 * float(torch.rand((), generator=generator)))
        cases.append((weights, list(range(first, first + count)), factor))
    return cases


def _brought_to_one(weights: Tensor, positions: list[int], factor: float) -> Tensor:
    louder = reweight(weights, positions, factor)
    return louder / louder.sum(-1, keepdim=True)


def _places_louder(weights: Tensor, positions: list[int], factor: float) -> Tensor:
    louder = weights.clone()
    places = [p for p in positions if p < weights.shape[1]]
    louder[:, places] *= factor
    return louder


def _before_the_softmax(weights: Tensor, positions: list[int], factor: float) -> Tensor:
    scores = weights.log()
    scores[..., positions] *= factor
    return scores.softmax(-1)


def _first_token_alone(weights: Tensor, positions: list[int], factor: float) -> Tensor:
    return reweight(weights, positions[:1], factor)


def _one_to_the_left(weights: Tensor, positions: list[int], factor: float) -> Tensor:
    return reweight(weights, [p - 1 for p in positions], factor)


def _the_others(weights: Tensor, positions: list[int], factor: float) -> Tensor:
    others = [p for p in range(weights.shape[-1]) if p not in positions]
    return reweight(weights, others, factor)


REWEIGHT = Exercise(
    name="16.2",
    title="A word louder or softer",
    minutes=8,
    difficulty=2,
    reference=reweight,
    cases=reweight_cases,
    start="a word's weights are columns: weights[..., positions]; copy before you write into them",
    mistakes=(
        Mistake(
            "you bring the rows back to a sum of 1, and so make all other words softer. The paper "
            "leaves the sum: the word comes on top of what the others bring",
            _brought_to_one,
        ),
        Mistake(
            "you multiply rows, which are places of the picture; a word is a column, on the last "
            "axis",
            _places_louder,
        ),
        Mistake(
            "you multiply the scores before the softmax. There a factor is a power of the weight, "
            "and the other words lose what this one wins",
            _before_the_softmax,
        ),
        Mistake("a word may have several tokens; you take its first only", _first_token_alone),
        Mistake(
            "you look one token to the left: positions count the start token already",
            _one_to_the_left,
        ),
        Mistake("you multiply all words but the one that was meant", _the_others),
    ),
)  # fmt: skip


# 16.3 ------------------------------------------------------------------------------------------


def takes(source: list[str], target: list[str]) -> list[int]:
    """Say whose weights each word of the target takes, by Python's ``difflib``."""
    return _takes(source, target)


def _takes(
    source: list[str], target: list[str], *, swapped: bool = True, added: int | None = None
) -> list[int]:
    result = [-1] * len(target)
    matcher = SequenceMatcher(None, source, target, autojunk=False)
    for change, i, _, j, j_end in matcher.get_opcodes():
        for k in range(j, j_end):
            if change == "insert" and added is not None:
                result[k] = i + added
            elif change == "equal" or (change == "replace" and swapped):
                result[k] = i + k - j
    return result


SUBJECTS = ("fox", "cat", "house", "boat", "bear", "tree")
COLOURS = ("red", "blue", "pink", "green", "black")


def takes_cases(generator: Generator) -> list[tuple]:
    """Draw prompts of one edit each: a word for a word, two for two, one added, one left out."""
    one, other, *_ = (SUBJECTS[i] for i in torch.randperm(len(SUBJECTS), generator=generator))
    first, second, *_ = (COLOURS[i] for i in torch.randperm(len(COLOURS), generator=generator))
    pairs = (
        (f"a {first} {one} in the snow", f"a {second} {one} in the snow"),
        (f"a {first} {one} in space", f"a {second} {other} in space"),
        (f"a {one} and a {other}", f"a {one} and a {first} {other}"),
        (f"a {one} in the snow at night", f"a {second} {one} in the snow at night"),
        (f"a {first} {one} and a {other} by day", f"a {one} and a {other} by day"),
    )
    return [(before.split(), after.split()) for before, after in pairs]


def _place_by_place(source: list[str], target: list[str]) -> list[int]:
    return [i if i < len(source) else -1 for i in range(len(target))]


def _first_of_its_name(source: list[str], target: list[str]) -> list[int]:
    return [source.index(word) if word in source else -1 for word in target]


def _swapped_keep_their_own(source: list[str], target: list[str]) -> list[int]:
    return _takes(source, target, swapped=False)


def _added_take_the_one_before(source: list[str], target: list[str]) -> list[int]:
    return _takes(source, target, added=-1)


def _added_take_the_one_after(source: list[str], target: list[str]) -> list[int]:
    return _takes(source, target, added=0)


TAKES = Exercise(
    name="16.3",
    title="Which word takes whose weights?",
    minutes=20,
    difficulty=3,
    reference=takes,
    cases=takes_cases,
    start="difflib.SequenceMatcher(None, source, target).get_opcodes() lists what was changed",
    mistakes=(
        Mistake(
            "you go place by place. After a word that was added, or left out, everything moves by "
            "one, and each word would take its neighbour's weights",
            _place_by_place,
        ),
        Mistake(
            'you look for the same word from the front: the second "a" gets the first one\'s '
            "weights, and a word that was swapped gets none. Align the prompts as wholes",
            _first_of_its_name,
        ),
        Mistake(
            "a word in place of another keeps its own weights in yours; taking the old word's is "
            "the whole edit, since these say where the thing stands",
            _swapped_keep_their_own,
        ),
        Mistake(
            "an added word takes the weights of the word before it; it has nobody to take from, "
            "and must be free to find its place: -1",
            _added_take_the_one_before,
        ),
        Mistake(
            "an added word takes the weights of the word after it, which needs them itself: -1, "
            "its own",
            _added_take_the_one_after,
        ),
    ),
    out_of_reach=("sdlearn.editing.held_attention.align",),
)  # fmt: skip


# 16.4 ------------------------------------------------------------------------------------------


def edited(source: Tensor, target: Tensor, taken: list[int]) -> Tensor:
    """Return the edited weights: A T + A' diag(o), as matrices."""
    table, own = _table(taken)
    return source @ table + target @ torch.diag(own)


def _table(taken: list[int]) -> tuple[Tensor, Tensor]:
    size = len(taken)
    table, own = torch.zeros(size, size), torch.zeros(size)
    for j, i in enumerate(taken):
        if i < 0:
            own[j] = 1
        else:
            table[i, j] = 1
    return table, own


def edited_cases(generator: Generator) -> list[tuple]:
    """Draw weights of two prompts, and what a target with one or two added words takes."""
    cases = []
    for heads, places, tokens, added in ((2, 6, 8, 1), (1, 9, 9, 2), (4, 4, 10, 1)):
        source, target = torch.randn(2, heads, places, tokens, generator=generator).softmax(-1)
        first = int(torch.randint(1, tokens - added - 2, (), generator=generator))
        taken = [*range(first), *[-1] * added, *range(first, tokens - added)]
        cases.append((source, target, taken))
    return cases


def _transposed(source: Tensor, target: Tensor, taken: list[int]) -> Tensor:
    table, own = _table(taken)
    return source @ table.T + target * own


def _last_token_taken(source: Tensor, target: Tensor, taken: list[int]) -> Tensor:
    return source[..., taken]


def _own_left_out(source: Tensor, target: Tensor, taken: list[int]) -> Tensor:
    return source @ _table(taken)[0]


def _own_of_all(source: Tensor, target: Tensor, taken: list[int]) -> Tensor:
    return source @ _table(taken)[0] + target


def _sum_of_one(source: Tensor, target: Tensor, taken: list[int]) -> Tensor:
    result = edited(source, target, taken)
    return result / result.sum(-1, keepdim=True)


def _from_the_target(source: Tensor, target: Tensor, taken: list[int]) -> Tensor:
    return edited(target, source, taken)


EDITED = Exercise(
    name="16.4",
    title="The edited weights",
    minutes=15,
    difficulty=2,
    reference=edited,
    cases=edited_cases,
    start="column j of the result is column taken[j] of the source, or column j of the target",
    mistakes=(
        Mistake(
            "the table is turned: it moves the target's words to the source's places. taken[j] is "
            "a column of the source, j one of the result",
            _transposed,
        ),
        Mistake(
            "Python takes -1 for the last column, so an added word takes the weights of the last "
            "token. It must keep its own, from the target",
            _last_token_taken,
        ),
        Mistake(
            "an added word gets no weights at all in yours, and is not heard; it keeps its own",
            _own_left_out,
        ),
        Mistake(
            "every word brings its own weights on top of the taken ones; only those with -1 do",
            _own_of_all,
        ),
        Mistake(
            "you bring the rows back to a sum of 1. In the paper's code and in the chapter the old "
            "words keep their shares, and an added one comes on top",
            _sum_of_one,
        ),
        Mistake(
            "source and target are exchanged: what is held comes from the source", _from_the_target
        ),
    ),
)  # fmt: skip


# 16.5 ------------------------------------------------------------------------------------------


def toy_unet(x: Tensor, i: int) -> Tensor:
    """Answer as a U-Net does that is told the number of a level."""
    return 0.6 * torch.tanh(x) + 0.3 * torch.sin(x + i)


def _step(x: Tensor, noise_pred: Tensor, a: float, a_next: float) -> Tensor:
    """Take a step of DDIM, up or down; sdlearn's and diffusers' walk down only."""
    x_0 = (x - (1 - a) ** 0.5 * noise_pred) / a**0.5
    return a_next**0.5 * x_0 + (1 - a_next) ** 0.5 * noise_pred


def invert(clean: Tensor, unet: Denoiser, alphas: list[float], again: int) -> Tensor:
    """Walk DDIM's steps backwards, each level asked about 1 + again times."""
    return _invert(clean, unet, alphas, again)


def _invert(
    clean: Tensor, unet: Denoiser, alphas: list[float], again: int, *,
    from_the_guess: bool = False, told: int = 0, exchanged: bool = False, more: int = 1,
) -> Tensor:  # fmt: skip
    x = clean
    for i, (a_cleaner, a) in enumerate(zip(alphas, alphas[1:]), 1):
        levels = (a, a_cleaner) if exchanged else (a_cleaner, a)
        guess = x
        for _ in range(again + more):
            noise_pred = unet(guess, i + told)
            guess = _step(guess if from_the_guess else x, noise_pred, *levels)
        x = guess
    return x


def invert_cases(generator: Generator) -> list[tuple]:
    """Draw pictures and levels, the cleanest first; asked once, twice and three times."""
    cases: list[tuple] = []
    for shape, count, again in (((1, 4, 4, 4), 4, 0), ((2, 4, 3, 5), 6, 1), ((1, 4, 5, 2), 5, 2)):
        levels = torch.linspace(0.98, 0.1 + 0.1 * again, count).tolist()
        cases.append((torch.randn(shape, generator=generator), toy_unet, levels, again))
    return cases


def _as_planted(*case: Any) -> Tensor:
    return _invert(*case, from_the_guess=True)


def _asked_once(*case: Any) -> Tensor:
    clean, unet, alphas, _ = case
    return invert(clean, unet, alphas, 0)


def _asked_once_too_few(*case: Any) -> Tensor:
    return _invert(*case, more=0)


def _told_the_cleaner(*case: Any) -> Tensor:
    return _invert(*case, told=-1)


def _towards_clean(*case: Any) -> Tensor:
    return _invert(*case, exchanged=True)


INVERT = Exercise(
    name="16.5",
    title="A walk back with one fault",
    minutes=20,
    difficulty=3,
    reference=invert,
    cases=invert_cases,
    start="copy the walk from the task; with again = 1, where does the second round begin?",
    mistakes=(
        Mistake(
            "the fault is still there: each question moves the latents on by another step, so with "
            "again = 1 they go twice as far. Every round starts from x; only the question changes",
            _as_planted,
        ),
        Mistake(
            "`again` has no effect: the second question must be about the guess, not about x once "
            "more",
            _asked_once,
        ),
        Mistake(
            "one question is missing at each level: again = 0 still asks once", _asked_once_too_few
        ),
        Mistake(
            "the U-Net is told the cleaner level; the prediction that is needed is the one for "
            "the noisier side, where the step ends",
            _told_the_cleaner,
        ),
        Mistake(
            "the two levels are exchanged: you read x as if it were at the noisier one",
            _towards_clean,
        ),
    ),
    out_of_reach=("sdlearn.schedulers.ddim_step", "diffusers.DDIMInverseScheduler.step"),
)

EXERCISES = (HELD, REWEIGHT, TAKES, EDITED, INVERT)
