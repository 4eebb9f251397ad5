"""Exercises of chapter 04: what CLIP's vectors mean."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Generator, Tensor

from sdlearn.exercises.examination import Exercise, Mistake


def _vectors(generator: Generator, *shape: int) -> Tensor:
    """Draw vectors of very different lengths."""
    lengths = 0.3 + 3 * torch.rand(*shape[:-1], 1, generator=generator)
    return torch.randn(*shape, generator=generator) * lengths


# 04.1 ------------------------------------------------------------------------------------------


def cosines(text: Tensor, image: Tensor) -> Tensor:
    """Return each caption's cosine with each picture, by PyTorch."""
    return F.cosine_similarity(text[:, None], image[None], dim=-1)


def cosines_cases(generator: Generator) -> list[tuple]:
    """Draw vectors; in two cases there are as many captions as pictures, or as numbers in each."""
    sizes = ((3, 3, 5), (4, 2, 4), (4, 4, 4), (1, 5, 8))
    return [(_vectors(generator, n, d), _vectors(generator, m, d)) for n, m, d in sizes]


def _not_normalised(text: Tensor, image: Tensor) -> Tensor:
    return text @ image.T


def _one_side(text: Tensor, image: Tensor) -> Tensor:
    return F.normalize(text, dim=-1) @ image.T


def _down_the_batch(text: Tensor, image: Tensor) -> Tensor:
    return F.normalize(text, dim=0) @ F.normalize(image, dim=0).T


def _turned(text: Tensor, image: Tensor) -> Tensor:
    return cosines(text, image).T


def _squared_lengths(text: Tensor, image: Tensor) -> Tensor:
    squares = text.square().sum(1)[:, None] * image.square().sum(1)
    return text @ image.T / squares


COSINES = Exercise(
    name="04.1",
    title="All cosines at once",
    minutes=8,
    difficulty=1,
    reference=cosines,
    cases=cosines_cases,
    start="bring each vector to length 1: divide it by text.norm(dim=1, keepdim=True)",
    mistakes=(
        Mistake(
            "those are products of vectors as long as they came; a long vector would be like "
            "everything. The cosine knows the direction only: bring both to length 1 first",
            _not_normalised,
        ),
        Mistake("only the captions have length 1 in yours; the pictures need it, too", _one_side),
        Mistake(
            "you take the length down the batch, so that a caption's vector depends on the other "
            "captions; take it along each vector, dim=1",
            _down_the_batch,
        ),
        Mistake(
            "rows and columns are exchanged: a row for each caption, a column for each picture",
            _turned,
        ),
        Mistake(
            "you divide by the squares of the lengths; the length is the root of the sum of "
            "squares",
            _squared_lengths,
        ),
    ),
    out_of_reach=("torch.nn.functional.cosine_similarity", "torch.cosine_similarity"),
)


# 04.2 ------------------------------------------------------------------------------------------


def causal(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Attend to oneself and what came before, by PyTorch."""
    return F.scaled_dot_product_attention(q[None], k[None], v[None], is_causal=True)[0]


def causal_cases(generator: Generator) -> list[tuple]:
    """Draw queries, keys and values; in one case there are as many tokens as numbers in each."""
    sizes = ((3, 2), (4, 4), (7, 5))
    return [tuple(torch.randn(3, n, d, generator=generator)) for n, d in sizes]


def _scores(q: Tensor, k: Tensor) -> Tensor:
    return q @ k.T / q.shape[1] ** 0.5


def _before(q: Tensor) -> Tensor:
    return torch.ones(len(q), len(q)).tril().bool()


def _no_mask(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return _scores(q, k).softmax(1) @ v


def _looks_ahead(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return _scores(q, k).masked_fill(~_before(q).T, float("-inf")).softmax(1) @ v


def _masked_afterwards(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return (_scores(q, k).softmax(1) * _before(q)) @ v


def _zero_scores(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return (_scores(q, k) * _before(q)).softmax(1) @ v


def _not_itself(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    earlier = _before(q).tril(-1)
    return _scores(q, k).masked_fill(~earlier, float("-inf")).softmax(1) @ v


def _root_forgotten(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return (q @ k.T).masked_fill(~_before(q), float("-inf")).softmax(1) @ v


CAUSAL = Exercise(
    name="04.2",
    title="Never look ahead",
    minutes=12,
    difficulty=2,
    reference=causal,
    cases=causal_cases,
    start="write attention without a mask first; then hide what lies above the diagonal of the "
    "scores, before the softmax",
    mistakes=(
        Mistake("each token still sees all others: the mask is missing", _no_mask),
        Mistake(
            "your tokens see only what comes after them; row i may look at the columns up to i, "
            "the lower triangle",
            _looks_ahead,
        ),
        Mistake(
            "you take away weights after the softmax, and the rest of a row adds up to less than "
            "1; mask the scores, so that softmax shares out the whole among what may be seen",
            _masked_afterwards,
        ),
        Mistake(
            "you set the hidden scores to 0, but e to the power of 0 is 1: they are still seen. "
            "They must be -∞",
            _zero_scores,
        ),
        Mistake(
            "a token cannot see itself in yours, so that the first one sees nothing at all; the "
            "diagonal belongs to what may be seen",
            _not_itself,
        ),
        Mistake("the division by √d is missing", _root_forgotten),
    ),
    out_of_reach=("torch.nn.functional.scaled_dot_product_attention",),
)


# 04.3 ------------------------------------------------------------------------------------------


def contrast(text: Tensor, image: Tensor, temperature: float) -> Tensor:
    """CLIP's loss, with PyTorch's cross-entropy on both sides."""
    scores = F.normalize(text, dim=-1) @ F.normalize(image, dim=-1).T / temperature
    answers = torch.arange(len(scores))
    return (F.cross_entropy(scores, answers) + F.cross_entropy(scores.T, answers)) / 2


def contrast_cases(generator: Generator) -> list[tuple]:
    """Draw batches in which pairs agree a little."""
    cases = []
    for n, d, temperature in ((2, 4, 1.0), (4, 4, 0.5), (6, 8, 0.1)):
        text = _vectors(generator, n, d)
        image = 0.5 * text + _vectors(generator, n, d)
        cases.append((text, image, temperature))
    return cases


def _table(text: Tensor, image: Tensor, temperature: float) -> Tensor:
    return cosines(text, image) / temperature


def _rows_alone(text: Tensor, image: Tensor, temperature: float) -> Tensor:
    return -_table(text, image, temperature).log_softmax(1).diagonal().mean()


def _columns_alone(text: Tensor, image: Tensor, temperature: float) -> Tensor:
    return -_table(text, image, temperature).log_softmax(0).diagonal().mean()


def _not_halved(text: Tensor, image: Tensor, temperature: float) -> Tensor:
    return 2 * contrast(text, image, temperature)


def _summed(text: Tensor, image: Tensor, temperature: float) -> Tensor:
    return len(text) * contrast(text, image, temperature)


def _times_temperature(text: Tensor, image: Tensor, temperature: float) -> Tensor:
    return contrast(text, image, 1 / temperature)


def _any_length(text: Tensor, image: Tensor, temperature: float) -> Tensor:
    scores = text @ image.T / temperature
    rows, columns = (scores.log_softmax(dim).diagonal().mean() for dim in (1, 0))
    return -(rows + columns) / 2


def _cosines_alone(text: Tensor, image: Tensor, temperature: float) -> Tensor:
    return 1 - cosines(text, image).diagonal().mean()


CONTRAST = Exercise(
    name="04.3",
    title="CLIP's loss",
    minutes=15,
    difficulty=2,
    reference=contrast,
    cases=contrast_cases,
    start="the N × N scores: cosines, divided by the temperature; then scores.log_softmax(dim=1), "
    "whose diagonal belongs to the true pairs",
    mistakes=(
        Mistake(
            "you have the rows alone: each caption must find its picture, and each picture its "
            "caption, too",
            _rows_alone,
        ),
        Mistake(
            "you have the columns alone: each picture must find its caption, and each caption its "
            "picture, too",
            _columns_alone,
        ),
        Mistake("you add rows and columns up; half of each counts", _not_halved),
        Mistake("you add up the pairs; take their mean, so that N does not matter", _summed),
        Mistake(
            "you multiply by the temperature; cosines lie so near each other that they must be "
            "spread, and dividing by a small number does that",
            _times_temperature,
        ),
        Mistake(
            "your vectors have any length, and longer ones win; bring all to length 1, so that "
            "only directions are compared",
            _any_length,
        ),
        Mistake(
            "you ask only that true pairs agree. The same vector for everything would be perfect "
            "then: it is the others in the batch that teach",
            _cosines_alone,
        ),
    ),
    out_of_reach=("torch.nn.functional.cross_entropy", "torch.nn.CrossEntropyLoss.__init__"),
)


# 04.4 ------------------------------------------------------------------------------------------


def sort_pictures(pictures: Tensor, phrases: Tensor) -> list[int]:
    """Return for each picture the class whose mean phrase fits it best."""
    classes = F.normalize(phrases, dim=-1).mean(dim=1)
    return F.cosine_similarity(pictures[:, None], classes[None], dim=-1).argmax(1).tolist()


def sort_cases(generator: Generator) -> list[tuple]:
    """Draw many pictures, and classes described by phrases of very different lengths."""
    cases = []
    for count, classes, each, d in ((40, 3, 3, 6), (50, 5, 2, 8), (60, 4, 4, 4)):
        pictures = _vectors(generator, count, d)
        cases.append((pictures, _vectors(generator, classes, each, d)))
    return cases


def _first_phrase(pictures: Tensor, phrases: Tensor) -> list[int]:
    return sort_pictures(pictures, phrases[:, :1])


def _best_phrase(pictures: Tensor, phrases: Tensor) -> list[int]:
    each = F.cosine_similarity(pictures[:, None, None], phrases[None], dim=-1)
    return each.amax(dim=2).argmax(dim=1).tolist()


def _number_of_the_phrase(pictures: Tensor, phrases: Tensor) -> list[int]:
    return sort_pictures(pictures, phrases.flatten(0, 1)[:, None])


def _pictures_for_classes(pictures: Tensor, phrases: Tensor) -> list[int]:
    classes = F.normalize(phrases, dim=-1).mean(dim=1)
    return F.cosine_similarity(pictures[:, None], classes[None], dim=-1).argmax(0).tolist()


def _long_phrases_win(pictures: Tensor, phrases: Tensor) -> list[int]:
    return F.cosine_similarity(pictures[:, None], phrases.mean(1)[None], dim=-1).argmax(1).tolist()


def _long_classes_win(pictures: Tensor, phrases: Tensor) -> list[int]:
    return (pictures @ F.normalize(phrases, dim=-1).mean(1).T).argmax(1).tolist()


SORT = Exercise(
    name="04.4",
    title="Sorting without examples",
    minutes=15,
    difficulty=2,
    reference=sort_pictures,
    cases=sort_cases,
    start="bring every phrase to length 1, take the mean of each class's phrases, and bring that "
    "to length 1 again",
    mistakes=(
        Mistake(
            "you use the first phrase of each class only; average over all of them", _first_phrase
        ),
        Mistake(
            "you let each class's best phrase decide; one odd phrase that fits by chance then "
            "wins. Average the vectors first, then compare",
            _best_phrase,
        ),
        Mistake(
            "you return the number of the best phrase; which class does it belong to?",
            _number_of_the_phrase,
        ),
        Mistake(
            "you look for the best picture of each class; for each picture the best class is "
            "wanted: the other axis",
            _pictures_for_classes,
        ),
        Mistake(
            "you average phrases of any length, so that in a class the longest vector counts most; "
            "bring each to length 1 before the mean",
            _long_phrases_win,
        ),
        Mistake(
            "the mean of vectors of length 1 is shorter than 1, the more so the less they agree; "
            "bring it to length 1 again, or classes whose phrases agree win too often",
            _long_classes_win,
        ),
    ),
    out_of_reach=("torch.nn.functional.cosine_similarity", "torch.cosine_similarity"),
)


# 04.5 ------------------------------------------------------------------------------------------


def near_misses(image: Tensor, text: Tensor, wrong: Tensor, temperature: float) -> Tensor:
    """CLIP's loss with near misses: pictures must turn them down; they look for no picture."""
    pictures = F.normalize(image, dim=-1)
    scores = pictures @ F.normalize(torch.cat([text, wrong]), dim=-1).T / temperature
    answers = torch.arange(len(image))
    columns = scores[:, : len(image)].T
    return (F.cross_entropy(scores, answers) + F.cross_entropy(columns, answers)) / 2


def near_misses_cases(generator: Generator) -> list[tuple]:
    """Draw pictures, captions that fit them somewhat, and near misses of those."""
    cases = []
    for n, d, temperature in ((2, 4, 1.0), (4, 4, 0.5), (5, 8, 0.2)):
        text = _vectors(generator, n, d)
        wrong = text + 0.7 * _vectors(generator, n, d)
        cases.append((0.5 * text + _vectors(generator, n, d), text, wrong, temperature))
    return cases


def _side(scores: Tensor, answers: Tensor) -> Tensor:
    return F.cross_entropy(scores, answers)


def _without_them(image: Tensor, text: Tensor, wrong: Tensor, temperature: float) -> Tensor:
    return contrast(text, image, temperature)


def _they_search_too(image: Tensor, text: Tensor, wrong: Tensor, temperature: float) -> Tensor:
    scores = cosines(image, torch.cat([text, wrong])) / temperature
    answers = torch.arange(len(image))
    return (_side(scores, answers) + _side(scores.T, answers.repeat(2))) / 2


def _only_its_own(image: Tensor, text: Tensor, wrong: Tensor, temperature: float) -> Tensor:
    true = cosines(image, text) / temperature
    own = F.cosine_similarity(image, wrong, dim=-1)[:, None] / temperature
    answers = torch.arange(len(image))
    return (_side(torch.cat([true, own], dim=1), answers) + _side(true.T, answers)) / 2


def _instead_of_captions(image: Tensor, text: Tensor, wrong: Tensor, temperature: float) -> Tensor:
    own = F.cosine_similarity(image, text, dim=-1)
    others = cosines(image, wrong)
    scores = torch.cat([own[:, None], others], dim=1) / temperature
    rows = _side(scores, torch.zeros(len(image), dtype=torch.long))
    return (rows + _side((cosines(text, image) / temperature), torch.arange(len(image)))) / 2


def _pictures_alone(image: Tensor, text: Tensor, wrong: Tensor, temperature: float) -> Tensor:
    scores = cosines(image, torch.cat([text, wrong])) / temperature
    return _side(scores, torch.arange(len(image)))


NEAR_MISSES = Exercise(
    name="04.5",
    title="Near misses",
    minutes=25,
    difficulty=3,
    reference=near_misses,
    cases=near_misses_cases,
    start="the pictures' scores are N × 2N: torch.cat([text, wrong]) are the captions; the answer "
    "of row i is still i",
    mistakes=(
        Mistake(
            "the near misses have no effect; each picture must find its caption among all the "
            "captions and all the near misses",
            _without_them,
        ),
        Mistake(
            "the near misses look for their picture, too, and are taught to find it: but they fit "
            "none. Only the N true captions choose among the pictures",
            _they_search_too,
        ),
        Mistake(
            "each picture turns down its own near miss only; those of the others are false of it, "
            "too, and cost nothing more to compute",
            _only_its_own,
        ),
        Mistake(
            "a picture is compared with near misses instead of the other captions; it needs both",
            _instead_of_captions,
        ),
        Mistake(
            "you have the pictures' side alone; each true caption must also find its picture among "
            "the N",
            _pictures_alone,
        ),
    ),
    out_of_reach=("sdlearn.training.clip.clip_loss",),
)

EXERCISES = (COSINES, CAUSAL, CONTRAST, SORT, NEAR_MISSES)
