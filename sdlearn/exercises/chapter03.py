"""Exercises of chapter 03: CLIP's tokens."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence

import torch
from tokenizers.models import BPE
from torch import Generator

from sdlearn.exercises.examination import Exercise, Mistake

Pair = tuple[str, str]
END = "</w>"

# 03.1 ------------------------------------------------------------------------------------------


def fit(ids: list[int], start: int, end: int, length: int) -> list[int]:
    """Return start, as many ids as fit, end, and more ends as padding."""
    kept = [start, *ids[: length - 2], end]
    return kept + [end] * (length - len(kept))


def fit_cases(generator: Generator) -> list[tuple]:
    """Draw prompts that are short, that just fit, that are one too long, and far too long."""
    cases = []
    for count, length in ((5, 77), (10, 12), (8, 9), (90, 77), (0, 9)):
        ids = torch.randint(1, 49_000, (count,), generator=generator).tolist()
        cases.append((ids, 49_406, 49_407, length))
    return cases


def _end_cut_off(ids: list[int], start: int, end: int, length: int) -> list[int]:
    return [start, *ids, *[end] * length][:length]


def _padded_with_zero(ids: list[int], start: int, end: int, length: int) -> list[int]:
    kept = [start, *ids[: length - 2], end]
    return kept + [0] * (length - len(kept))


def _keeps_the_last(ids: list[int], start: int, end: int, length: int) -> list[int]:
    return fit(ids[-(length - 2) :], start, end, length)


def _not_padded(ids: list[int], start: int, end: int, length: int) -> list[int]:
    return [start, *ids[: length - 2], end]


def _padded_in_front(ids: list[int], start: int, end: int, length: int) -> list[int]:
    kept = [start, *ids[: length - 2], end]
    return [end] * (length - len(kept)) + kept


def _two_longer(ids: list[int], start: int, end: int, length: int) -> list[int]:
    return fit(ids, start, end, length + 2)


FIT = Exercise(
    name="03.1",
    title="Always 77",
    minutes=6,
    difficulty=1,
    reference=fit,
    cases=fit_cases,
    start="how many of the ids fit, if start and end each take a place?",
    mistakes=(
        Mistake(
            "a long prompt loses its end token in yours; CLIP reads the sentence at that token, so "
            "cut the ids first and put the end behind them",
            _end_cut_off,
        ),
        Mistake(
            "you pad with 0, as CLIP's own code does; Stable Diffusion 1.x pads with more ends, "
            "and its U-Net, which reads the padding, was trained on those",
            _padded_with_zero,
        ),
        Mistake(
            "you keep the end of a long prompt; its beginning is kept, and what comes later is cut",
            _keeps_the_last,
        ),
        Mistake(
            "a short prompt stays short in yours; the text encoder has a vector for each of the "
            "positions, and the U-Net reads them all",
            _not_padded,
        ),
        Mistake(
            "the padding stands in front; start must be first, for the position is added to each "
            "token's vector, and a word read elsewhere is another vector",
            _padded_in_front,
        ),
        Mistake(
            "your list is two too long: start and end are among the places, not beside them",
            _two_longer,
        ),
    ),
)


# 03.2 ------------------------------------------------------------------------------------------


def cut(word: str, ranks: dict[Pair, int]) -> list[str]:
    """Cut a word into pieces, by the library that CLIP's tokenizer is made of."""
    merges = sorted(ranks, key=lambda pair: ranks[pair])
    letters = {letter for pair in ranks for piece in pair for letter in piece.removesuffix(END)}
    letters |= {*word}
    pieces = [*sorted(letters), *(letter + END for letter in sorted(letters))]
    pieces += dict.fromkeys("".join(pair) for pair in merges)
    vocabulary = {piece: number for number, piece in enumerate(pieces)}
    model = BPE(vocab=vocabulary, merges=merges, end_of_word_suffix=END)
    return [token.value for token in model.tokenize(word)]


def _word(generator: Generator, letters: str, length: int) -> str:
    drawn = torch.randint(len(letters), (length,), generator=generator)
    return "".join(letters[i] for i in drawn)


def cut_cases(generator: Generator) -> list[tuple]:
    """Learn joins from made-up words, and draw longer words of the same letters."""
    cases = []
    for letters, joins in (("abc", 12), ("abcd", 16), ("abc", 20)):
        text = {_word(generator, letters, 5): 1 + i for i in range(20)}
        ranks = {pair: rank for rank, pair in enumerate(learn(text, joins))}
        cases += [(_word(generator, letters, length), ranks) for length in (9, 12, 15, 18, 21)]
    return cases


def _joined(pieces: Sequence[str], pair: Pair) -> list[str]:
    joined = [pieces[0]]
    for piece in pieces[1:]:
        if (joined[-1], piece) == pair:
            joined[-1] += piece
        else:
            joined.append(piece)
    return joined


def _cut_by(
    pieces: list[str], ranks: dict[Pair, int], choose: Callable[[list[Pair]], Pair], most: int = 999
) -> list[str]:
    """Cut with another rule for which pair comes next."""
    for _ in range(most):
        found = [pair for pair in zip(pieces, pieces[1:]) if pair in ranks]
        if not found:
            break
        pieces = _joined(pieces, choose(found))
    return pieces


def _marked(word: str) -> list[str]:
    return [*word[:-1], word[-1] + END]


def _from_the_left(word: str, ranks: dict[Pair, int]) -> list[str]:
    return _cut_by(_marked(word), ranks, lambda found: found[0])


def _latest_first(word: str, ranks: dict[Pair, int]) -> list[str]:
    return _cut_by(_marked(word), ranks, lambda found: max(found, key=ranks.__getitem__))


def _longest_piece(word: str, ranks: dict[Pair, int]) -> list[str]:
    known, left, pieces = {"".join(pair) for pair in ranks}, word + END, list[str]()
    while left:
        whole = [n for n in range(len(left), 1, -1) if left[:n] in known]
        n = whole[0] if whole else len(left) if left[1:] == END else 1
        pieces.append(left[:n])
        left = left[n:]
    return pieces


def _end_unmarked(word: str, ranks: dict[Pair, int]) -> list[str]:
    return _cut_by([*word], ranks, lambda found: min(found, key=ranks.__getitem__))


def _end_apart(word: str, ranks: dict[Pair, int]) -> list[str]:
    return _cut_by([*word, END], ranks, lambda found: min(found, key=ranks.__getitem__))


def _one_join(word: str, ranks: dict[Pair, int]) -> list[str]:
    return _cut_by(_marked(word), ranks, lambda found: min(found, key=ranks.__getitem__), most=1)


CUT = Exercise(
    name="03.2",
    title="Cut a word by hand",
    minutes=15,
    difficulty=2,
    reference=cut,
    cases=cut_cases,
    start='the letters, the last of them with "</w>"; then join, as long as a pair has a rank',
    mistakes=(
        Mistake(
            "you join the first pair from the left that has a rank; the one with the lowest rank "
            "comes first, wherever it stands: joins are made in the order in which they were "
            "learnt",
            _from_the_left,
        ),
        Mistake(
            "you begin with the highest rank, the join learnt last; the lowest was the most "
            "frequent, and later joins need the pieces that it makes",
            _latest_first,
        ),
        Mistake(
            "you take the longest piece that fits, from left to right; that is another algorithm. "
            "Byte-pair encoding joins upwards from the letters, and may never reach that piece",
            _longest_piece,
        ),
        Mistake(
            'the last letter lacks its "</w>"; without it, joins for the end of a word never fit, '
            "and those for its inside do where they should not",
            _end_unmarked,
        ),
        Mistake(
            '"</w>" is a piece of its own in yours; CLIP glues it to the last letter from the '
            "beginning, and its joins know no other",
            _end_apart,
        ),
        Mistake("you stop after the first join; go on until no pair has a rank", _one_join),
    ),
    out_of_reach=("tokenizers.models.BPE.tokenize", "tokenizers.models.BPE.__init__"),
)


# 03.3 ------------------------------------------------------------------------------------------


def positions(pieces: list[str], word: str) -> list[int]:
    """Return where the tokens of a word stand: put the pieces together again, and compare."""
    found, begun = list[int](), 1
    for place, piece in enumerate(pieces):
        if piece.endswith(END):
            if "".join(pieces[begun : place + 1]) == word + END:
                found += range(begun, place + 1)
            begun = place + 1
    return found


CUTS = {  # as CLIP cuts them
    "photorealistic": "photo realistic", "realistic": "realistic", "sunsetting": "sun setting",
    "setting": "setting", "snickersnack": "sn ick er snack", "snack": "snack",
    "jabberwock": "jab ber wo ck", "wock": "wo ck", "outgrabe": "out gra be", "grabe": "gra be",
    "borogoves": "boro go ves", "goves": "go ves", "zorblax": "zor bla x",
    "caravaggio": "carav aggio", "tulgey": "tul gey",
}  # fmt: skip
SHORT = (("realistic", "photorealistic"), ("setting", "sunsetting"), ("snack", "snickersnack"))
LONG = (("wock", "jabberwock"), ("grabe", "outgrabe"), ("goves", "borogoves"))


def _pieces(words: list[str]) -> list[str]:
    pieces = ["<|startoftext|>"]
    for word in words:
        pieces += (CUTS.get(word, word) + END).split()
    return pieces + ["<|endoftext|>"] * (77 - len(pieces))


def positions_cases(generator: Generator) -> list[tuple]:
    """Draw prompts that hold a word twice, and once as the end of another word."""
    cases = []
    for pairs in (SHORT, LONG, LONG):
        word, other = pairs[int(torch.randint(3, (), generator=generator))]
        around = ["zorblax", "caravaggio", "a", "red", "cat", "tulgey"]
        a, b, c, d, e, f = (around[i] for i in torch.randperm(6, generator=generator))
        cases.append((_pieces(["the", a, b, c, word, d, other, e, word, f]), word))
    return cases


def _counts_words(pieces: list[str], word: str) -> list[int]:
    text = "".join(pieces[1 : pieces.index("<|endoftext|>")]).split(END)
    return [number for number, each in enumerate(text, 1) if each == word]


def _once(pieces: list[str], word: str) -> list[int]:
    found = positions(pieces, word)
    return found[: len(found) // 2]


def _first_tokens(pieces: list[str], word: str) -> list[int]:
    found = positions(pieces, word)
    return found[:: len(found) // 2]


def _start_forgotten(pieces: list[str], word: str) -> list[int]:
    return [place - 1 for place in positions(pieces, word)]


def _ends_of_others(pieces: list[str], word: str) -> list[int]:
    wanted = (CUTS[word] + END).split()
    n = len(wanted)
    starts = [i for i in range(len(pieces)) if pieces[i : i + n] == wanted]
    return [place for i in starts for place in range(i, i + n)]


POSITIONS = Exercise(
    name="03.3",
    title="Where does the word stand?",
    minutes=15,
    difficulty=2,
    reference=positions,
    cases=positions_cases,
    start="the pieces up to one that ends with </w> make a word: put them together, and compare",
    mistakes=(
        Mistake(
            "you count words; positions count tokens, and a word before yours may have several",
            _counts_words,
        ),
        Mistake("the word stands there twice; return the places of both", _once),
        Mistake(
            "you return where the word begins; it may have several tokens, and all of them are "
            "its own",
            _first_tokens,
        ),
        Mistake("you are one to the left: the start token has position 0", _start_forgotten),
        Mistake(
            "you find the word's pieces in the end of another word, too; a word begins only where "
            "the one before it has ended, with </w>",
            _ends_of_others,
        ),
    ),
    out_of_reach=("sdlearn.text.tokenize", "sdlearn.text.find_word"),
)


# 03.4 ------------------------------------------------------------------------------------------


def learn(counts: dict[str, int], joins: int) -> list[Pair]:
    """Learn joins (Sennrich et al. 2016, algorithm 1), with the end glued to the last letter."""
    return _learnt(counts, joins)


def _learnt(
    counts: dict[str, int], joins: int, marked: bool = True, weighted: bool = True,
    once: bool = False,
) -> list[Pair]:  # fmt: skip
    words = {word: _marked(word) if marked else [*word] for word in counts}
    merges: list[Pair] = []
    for _ in range(joins):
        pairs: Counter[Pair] = Counter()
        for word, pieces in words.items():
            found = list(zip(pieces, pieces[1:]))
            for pair in dict.fromkeys(found) if once else found:
                pairs[pair] += counts[word] if weighted else 1
        if not pairs:
            break
        merges.append(max(pairs, key=pairs.__getitem__))  # the first of equals
        words = {word: _joined(pieces, merges[-1]) for word, pieces in words.items()}
    return merges


def learn_cases(generator: Generator) -> list[tuple]:
    """Draw words of few letters, so that pairs repeat in them, and how often each occurs."""
    cases = []
    for letters, joins in (("abc", 4), ("abcd", 7), ("ab", 6)):
        words = [_word(generator, letters, length) for length in (3, 4, 5, 6, 7, 8, 9, 10)]
        often = torch.randint(1, 60, (len(words),), generator=generator)
        cases.append(({word: int(n) for word, n in zip(words, often)}, joins))
    return cases


def _each_word_once(counts: dict[str, int], joins: int) -> list[Pair]:
    return _learnt(counts, joins, weighted=False)


def _no_ends(counts: dict[str, int], joins: int) -> list[Pair]:
    return _learnt(counts, joins, marked=False)


def _once_a_word(counts: dict[str, int], joins: int) -> list[Pair]:
    return _learnt(counts, joins, once=True)


def _counted_only_once(counts: dict[str, int], joins: int) -> list[Pair]:
    pairs: Counter[Pair] = Counter()
    for word, n in counts.items():
        for pair in zip(_marked(word), _marked(word)[1:]):
            pairs[pair] += n
    return [pair for pair, _ in pairs.most_common(joins)]


def _new_pieces(counts: dict[str, int], joins: int) -> list[str]:
    return ["".join(pair) for pair in learn(counts, joins)]


LEARN = Exercise(
    name="03.4",
    title="Learn the joins",
    minutes=30,
    difficulty=3,
    reference=learn,
    cases=learn_cases,
    start="keep each word as a list of pieces; count neighbours over all words, each as often as "
    "its word occurs",
    mistakes=(
        Mistake(
            "each word counts once in yours; a pair counts as often as its words occur in the "
            "text, or rare words would decide as much as frequent ones",
            _each_word_once,
        ),
        Mistake(
            'the end of a word is not marked; begin with "</w>" glued to each last letter, so that '
            "what ends a word is another piece than what begins one",
            _no_ends,
        ),
        Mistake(
            "a pair that stands twice in a word counts twice for each time that the word occurs",
            _once_a_word,
        ),
        Mistake(
            "you count once, at the start; each join makes new neighbours, so count again after "
            "each of them: later joins are mostly of pieces that did not exist before",
            _counted_only_once,
        ),
        Mistake(
            "you return the pieces that the joins make; return the pairs, since whoever cuts a "
            "word must know what is to be joined to what",
            _new_pieces,
        ),
    ),
    out_of_reach=("tokenizers.trainers.BpeTrainer.__init__",),
)

EXERCISES = (FIT, CUT, POSITIONS, LEARN)
