"""Exercises of chapter 14: textual inversion."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Generator, Tensor, nn

from sdlearn.exercises.examination import Exercise, Mistake

Loss = Callable[[Tensor], Tensor]


def _rows(count: int, width: int, generator: Generator) -> Tensor:
    """Draw rows of different lengths."""
    lengths = 0.3 + 2 * torch.rand(count, 1, generator=generator)
    return F.normalize(torch.randn(count, width, generator=generator), dim=1) * lengths


# 14.1 ------------------------------------------------------------------------------------------


def mean_row(one: Tensor, other: Tensor) -> Tensor:
    """Return the mean of two rows, as long as the first."""
    return F.normalize(one + other, dim=0) * torch.linalg.vector_norm(one)


def mean_cases(generator: Generator) -> list[tuple]:
    """Draw pairs of rows of different lengths."""
    return [tuple(_rows(2, width, generator)) for width in (4, 16, 128)]


def _plain_mean(one: Tensor, other: Tensor) -> Tensor:
    return (one + other) / 2


def _of_length_one(one: Tensor, other: Tensor) -> Tensor:
    return F.normalize(one + other, dim=0)


def _as_long_as_the_other(one: Tensor, other: Tensor) -> Tensor:
    return F.normalize(one + other, dim=0) * other.norm()


def _of_two_directions(one: Tensor, other: Tensor) -> Tensor:
    return F.normalize(F.normalize(one, dim=0) + F.normalize(other, dim=0), dim=0) * one.norm()


def _divided_by_the_square(one: Tensor, other: Tensor) -> Tensor:
    total = one + other
    return total / (total * total).sum() * one.norm()


MEAN = Exercise(
    name="14.1",
    title="A word between two words",
    minutes=6,
    difficulty=1,
    reference=mean_row,
    cases=mean_cases,
    start="the direction of the mean is that of the sum; what is its length?",
    mistakes=(
        Mistake(
            "that is the mean itself, which is shorter than both rows where they point apart; a "
            "short row is heard less. Bring it to the length of the first",
            _plain_mean,
        ),
        Mistake(
            "your row has length 1, which no word has; multiply it by the length of the first row",
            _of_length_one,
        ),
        Mistake("your row is as long as the second one, not as the first", _as_long_as_the_other),
        Mistake(
            "you bring both rows to length 1 before you add them; then a long row counts no more "
            "than a short one, and the direction is another. Add first",
            _of_two_directions,
        ),
        Mistake(
            "you divide by the square of the length: the root is missing",
            _divided_by_the_square,
        ),
    ),
)


# 14.2 ------------------------------------------------------------------------------------------


def neighbours(table: Tensor, number: int, count: int) -> list[int]:
    """Return the nearest rows by PyTorch's cosine similarity, without the row itself."""
    near = F.cosine_similarity(table[number][None], table, dim=1)
    near[number] = -2
    return near.topk(count).indices.tolist()


def neighbours_cases(generator: Generator) -> list[tuple]:
    """Draw tables; a long row far off, a short one near by, one the opposite way."""
    cases = []
    for size, width, count in ((20, 20, 3), (50, 8, 5), (30, 16, 4)):
        table = _rows(size, width, generator)
        number = int(torch.randint(size - 4, (), generator=generator))
        row = F.normalize(table[number], dim=0)
        aside = _rows(3, width, generator)
        table[-1] = 4 * (row + 0.6 * F.normalize(aside[0], dim=0))
        table[-2] = 0.1 * (row + 0.3 * F.normalize(aside[1], dim=0))
        table[-3] = -row - 0.2 * F.normalize(aside[2], dim=0)
        cases.append((table, number, count))
    return cases


def _without(near: Tensor, number: int, count: int) -> list[int]:
    near = near.clone()
    near[number] = -float("inf")
    return near.topk(count).indices.tolist()


def _by_product(table: Tensor, number: int, count: int) -> list[int]:
    return _without(table @ table[number], number, count)


def _by_distance(table: Tensor, number: int, count: int) -> list[int]:
    return _without(-(table - table[number]).norm(dim=1), number, count)


def _with_itself(table: Tensor, number: int, count: int) -> list[int]:
    return F.cosine_similarity(table[number][None], table, dim=1).topk(count).indices.tolist()


def _farthest(table: Tensor, number: int, count: int) -> list[int]:
    return _without(-F.cosine_similarity(table[number][None], table, dim=1), number, count)


def _columns_normalised(table: Tensor, number: int, count: int) -> list[int]:
    unit = table / table.norm(dim=0, keepdim=True)
    return _without(unit @ unit[number], number, count)


def _by_size(table: Tensor, number: int, count: int) -> list[int]:
    return _without(F.cosine_similarity(table[number][None], table, dim=1).abs(), number, count)


NEIGHBOURS = Exercise(
    name="14.2",
    title="The neighbours of a word",
    minutes=10,
    difficulty=2,
    reference=neighbours,
    cases=neighbours_cases,
    start="bring all rows to length 1 first; then one product gives all cosines",
    mistakes=(
        Mistake(
            "you compare products of rows that are not of length 1: a long row is near to "
            "everything then. The cosine leaves both lengths out",
            _by_product,
        ),
        Mistake(
            "you look for the least distance, in which length counts: a learnt row, three times as "
            "long as a word, is then far from all of them, whatever it means",
            _by_distance,
        ),
        Mistake("the first of yours is the word itself, whose cosine is 1; leave it out",
                _with_itself),
        Mistake(
            "those are the farthest: 1 is the same direction, -1 the opposite one", _farthest
        ),
        Mistake(
            "you brought the columns to length 1; a word is a row, so the length is a sum over the "
            "last axis",
            _columns_normalised,
        ),
        Mistake(
            "you drop the cosine's sign: a row that points the opposite way is no neighbour",
            _by_size,
        ),
    ),
    out_of_reach=("torch.nn.functional.cosine_similarity",),
)  # fmt: skip


# 14.3 ------------------------------------------------------------------------------------------


def look_up(ids: Tensor, output: Tensor, own: list[int], rows: Tensor) -> Tensor:
    """Put rows where their numbers stand: PyTorch's own embedding, with a longer table."""
    place = torch.arange(ids.numel()).reshape(ids.shape)
    for i, number in enumerate(own):
        place = torch.where(ids == number, ids.numel() + i, place)
    return F.embedding(place, torch.cat([output.flatten(0, 1), rows]))


def look_up_cases(generator: Generator) -> list[tuple]:
    """Draw prompts in numbers, with the new ones in several places, or in none."""
    cases = []
    for batch, length, width, vectors in ((2, 7, 5, 1), (3, 9, 4, 2), (4, 8, 8, 3)):
        ids = torch.randint(20, (batch, length), generator=generator)
        own = [20 + i for i in range(vectors)]
        first = int(torch.randint(1, 3, (), generator=generator))
        ids[0, first : first + vectors] = torch.tensor(own)
        ids[0, first + vectors] = own[-1]  # the word comes twice in a prompt
        ids[1, -vectors:] = torch.tensor(own)
        output = torch.randn(batch, length, width, generator=generator)
        cases.append((ids, output, own, _rows(vectors, width, generator)))
    return cases


def _added_on_top(ids: Tensor, output: Tensor, own: list[int], rows: Tensor) -> Tensor:
    there = torch.isin(ids, torch.tensor(own))[..., None]
    return look_up(ids, output, own, rows) + there * output


def _at_the_first_prompts_places(
    ids: Tensor, output: Tensor, own: list[int], rows: Tensor
) -> Tensor:
    return look_up(ids[:1].expand_as(ids), output, own, rows)


def _once_a_prompt(ids: Tensor, output: Tensor, own: list[int], rows: Tensor) -> Tensor:
    result = output.clone()
    for number, row in zip(own, rows):
        for one, numbers in zip(result, ids):
            if (numbers == number).any():
                one[int((numbers == number).nonzero()[0])] = row
    return result


def _first_row_for_all(ids: Tensor, output: Tensor, own: list[int], rows: Tensor) -> Tensor:
    return look_up(ids, output, own, rows[:1].expand_as(rows))


def _others_emptied(ids: Tensor, output: Tensor, own: list[int], rows: Tensor) -> Tensor:
    return look_up(ids, torch.zeros_like(output), own, rows)


LOOK_UP = Exercise(
    name="14.3",
    title="A row from outside the table",
    minutes=12,
    difficulty=2,
    reference=look_up,
    cases=look_up_cases,
    start="ids == number says where the new word stands, (B, L); [..., None] adds an axis for D",
    mistakes=(
        Mistake(
            "you add the row to what the table gave; there that is a row that nobody learnt. It "
            "must be replaced",
            _added_on_top,
        ),
        Mistake(
            "you take the places of the first prompt for all of them; each prompt has the word "
            "somewhere else, or not at all",
            _at_the_first_prompts_places,
        ),
        Mistake("the word may come twice in a prompt; you replace the first only", _once_a_prompt),
        Mistake(
            "a word of several vectors has a number and a row for each; yours gets the first row "
            "in all of its places",
            _first_row_for_all,
        ),
        Mistake(
            "the other words are gone: where the number is not ours, the table's row must stay",
            _others_emptied,
        ),
    ),
)


# 14.4 ------------------------------------------------------------------------------------------


def gain(before: Tensor, after: Tensor) -> tuple[float, float]:
    """Return the mean by which losses fell, and its standard error, of pairs."""
    error, mean = torch.std_mean(before - after)
    return float(mean), float(error) / len(before) ** 0.5


def gain_cases(generator: Generator) -> list[tuple]:
    """Draw losses that jump with the timestep, and with another row fall a little."""
    cases = []
    for count in (8, 20, 40):
        before = 0.5 * 10 ** (-2 * torch.rand(count, generator=generator))
        fallen = 0.4 + 0.3 * torch.rand(count, generator=generator)
        cases.append((10 * before, 10 * before * fallen))
    return cases


def _not_in_pairs(before: Tensor, after: Tensor) -> tuple[float, float]:
    error = ((before.var() + after.var()) / len(before)) ** 0.5
    return float((before - after).mean()), float(error)


def _deviation(before: Tensor, after: Tensor) -> tuple[float, float]:
    return gain(before, after)[0], float((before - after).std())


def _divided_by_n(before: Tensor, after: Tensor) -> tuple[float, float]:
    return gain(before, after)[0], float((before - after).std()) / len(before)


def _rise(before: Tensor, after: Tensor) -> tuple[float, float]:
    return gain(after, before)


def _of_the_whole(before: Tensor, after: Tensor) -> tuple[float, float]:
    error = (before - after).std(correction=0) / len(before) ** 0.5
    return float((before - after).mean()), float(error)


GAIN = Exercise(
    name="14.4",
    title="Did it learn?",
    minutes=10,
    difficulty=2,
    reference=gain,
    cases=gain_cases,
    start="the two losses of an example belong together: one number for each example first",
    mistakes=(
        Mistake(
            "you take the two lists as if they had nothing to do with each other. Both have the "
            "same noise and timesteps, which make most of the spread; the differences lack it",
            _not_in_pairs,
        ),
        Mistake(
            "that is the deviation of single examples; their mean is known better, by √n",
            _deviation,
        ),
        Mistake("you divide by n; the error of a mean falls with √n only", _divided_by_n),
        Mistake("the sign is turned: a loss that falls is a gain above 0", _rise),
        Mistake(
            "you divide the squares by n; the mean was taken from the same numbers, so divide them "
            "by n - 1, as .std() does unless told otherwise",
            _of_the_whole,
        ),
    ),
)  # fmt: skip


# 14.5 ------------------------------------------------------------------------------------------


def loss_of_a_sentence(table: Tensor) -> Tensor:
    """Return a loss in which all rows are read, as in a prompt, the last one twice."""
    read = torch.cat([table, table[-1:]])
    wanted = torch.linspace(-1, 1, read.shape[1])
    return (torch.tanh(read.cumsum(0)) - wanted).square().mean()


def loss_of_lengths(table: Tensor) -> Tensor:
    """Return a loss that pulls the rows' squares apart, and each towards its neighbour."""
    return (table.square().sum(1) - torch.arange(len(table))).square().mean() + (
        table[1:] - table[:-1]
    ).square().mean()


def learn(
    table: Tensor, number: int, begin: int, loss: Loss, steps: int, learning_rate: float
) -> Tensor:
    """Train one row with PyTorch's Adam; the others stay."""
    return _learn(table, number, begin, loss, steps, learning_rate)


def _learn(
    table: Tensor,
    number: int,
    begin: int,
    loss: Loss,
    steps: int,
    learning_rate: float,
    *,
    decay: float = 0.0,
    all_rows: bool = False,
    cleared: bool = True,
) -> Tensor:
    table = table.clone()
    table[number] = table[begin]
    kept = torch.arange(len(table))[:, None] != number
    free = nn.Parameter(table.clone())
    optimizer = torch.optim.AdamW([free], lr=learning_rate, weight_decay=decay)
    for _ in range(steps):
        if cleared:
            optimizer.zero_grad()
        loss(free if all_rows else torch.where(kept, table, free)).backward()
        optimizer.step()
    return free.detach() if all_rows else torch.where(kept, table, free.detach())


def learn_cases(generator: Generator) -> list[tuple]:
    """Draw tables whose row of the new word holds rubbish, for two losses."""
    cases: list[tuple] = []
    losses = (loss_of_a_sentence, loss_of_lengths, loss_of_a_sentence)
    for loss, (size, width), steps in zip(losses, ((5, 6), (4, 4), (6, 3)), (4, 6, 8)):
        begin = int(torch.randint(size - 1, (), generator=generator))
        given = size - 1, begin, loss, steps, 0.05
        cases.append((_rows(size, width, generator), *given))
    return cases


def _whole_table(*case: Any) -> Tensor:
    return _learn(*case, all_rows=True)


def _decayed(*case: Any) -> Tensor:
    return _learn(*case, decay=0.01)


def _decayed_table(
    table: Tensor, number: int, begin: int, loss: Loss, steps: int, learning_rate: float
) -> Tensor:
    free = nn.Parameter(table.clone())
    free.data[number] = table[begin]
    optimizer = torch.optim.AdamW([free], lr=learning_rate)
    for _ in range(steps):
        optimizer.zero_grad()
        loss(free).backward()
        assert free.grad is not None
        free.grad[torch.arange(len(table)) != number] = 0
        optimizer.step()
    return free.detach()


def _not_cleared(*case: Any) -> Tensor:
    return _learn(*case, cleared=False)


def _begun_with_rubbish(
    table: Tensor, number: int, begin: int, loss: Loss, steps: int, learning_rate: float
) -> Tensor:
    return _learn(table, number, number, loss, steps, learning_rate)


def _never_moved(
    table: Tensor, number: int, begin: int, loss: Loss, steps: int, learning_rate: float
) -> Tensor:
    return _learn(table, number, begin, loss, 0, learning_rate)


def _slope_alone(
    table: Tensor, number: int, begin: int, loss: Loss, steps: int, learning_rate: float
) -> Tensor:
    free = table.clone()
    free[number] = table[begin]
    for _ in range(steps):
        free.requires_grad_(True)
        (slope,) = torch.autograd.grad(loss(free), free)
        free = free.detach().clone()
        free[number] -= learning_rate * slope[number]
    return free


LEARN = Exercise(
    name="14.5",
    title="Only one row may move",
    minutes=25,
    difficulty=3,
    reference=learn,
    cases=learn_cases,
    start="make the row a parameter of its own, a copy of table[begin]; only this goes to Adam",
    mistakes=(
        Mistake(
            "the whole table has learnt: give the optimizer the one row, not the table",
            _whole_table,
        ),
        Mistake(
            "the row shrinks a little at each step: weight decay, 0.01 in AdamW unless told "
            "otherwise, pulls it to length 0. Set it to 0, or take Adam",
            _decayed,
        ),
        Mistake(
            "you set the other rows' slope to 0, and they move all the same: AdamW's weight decay "
            "needs no slope. So a mask on the slope is not enough; keep the row outside the table",
            _decayed_table,
        ),
        Mistake(
            "the slopes add up from step to step: clear them, optimizer.zero_grad()", _not_cleared
        ),
        Mistake(
            "you begin with what stands in the table's new row by chance; begin with a copy of the "
            "initializer's, table[begin]",
            _begun_with_rubbish,
        ),
        Mistake(
            "the row has not moved. Does the loss see your parameter? A copy of its numbers, as "
            "with .detach() or .data, cuts the way back",
            _never_moved,
        ),
        Mistake(
            "you go down the slope itself; Adam divides it by the size it has had, number by "
            "number, so its steps are another length",
            _slope_alone,
        ),
    ),
    tolerance=1e-5,
)  # fmt: skip

EXERCISES = (MEAN, NEIGHBOURS, LOOK_UP, GAIN, LEARN)
