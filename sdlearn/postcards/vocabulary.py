"""Which words postcards knows: all that its captions are made of."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable
from functools import cache

from diffusers import StableDiffusionPipeline

from sdlearn.postcards import words
from sdlearn.postcards.model import is_postcards
from sdlearn.postcards.world import COLOURS, SIDES, SUBJECTS

# English that no picture shows: not called unknown, though captions may lack it.
SMALL_WORDS = frozenset(
    """a an and are at be behind by for from has have he her his i in is it its just me my near of
    on one or our she show some that the their there they this to very we while which who with
    """.split()  # noqa: SIM905
)
CLOSE = 0.7  # difflib's ratio from which on a word counts as near to another


def split(text: str) -> list[str]:
    """Return the words of a text, in small letters, without punctuation."""
    return re.findall(r"[^\W_]+(?:['’-][^\W_]+)*", text.lower())


@cache
def known_words() -> frozenset[str]:
    """Return every word that a caption may contain."""
    nouns = [*SUBJECTS, *(noun for others in words.SYNONYMS.values() for noun in others)]
    tables: tuple[dict, ...] = (
        words.PLACES, words.MOMENTS, words.VIEWS, words.SKIES, words.SIZE_WORDS, words.COUNT_WORDS,
        words.RELATION_WORDS, SIDES,
    )  # fmt: skip
    lists: Iterable[Iterable[str]] = (
        nouns, map(words.plural, nouns), COLOURS,
        words.FILLERS, words.VERBS, words.MEDIA, words.EMPTY,
        words.JOINS, words.BESIDE, words.DEPTH,
        *(phrases for table in tables for phrases in table.values()),
    )  # fmt: skip
    return frozenset(word for phrases in lists for phrase in phrases for word in split(phrase))


def unknown_words(prompt: str) -> dict[str, str | None]:
    """Return the words of a prompt that postcards never learnt, each with the nearest it knows.

    To postcards they all mean the same, which is nothing. The nearest is None where no word is
    near (``difflib.get_close_matches``). Other models know other words.
    """
    known = known_words()
    candidates = sorted(known - SMALL_WORDS)
    return {
        word: next(iter(difflib.get_close_matches(word, candidates, 1, CLOSE)), None)
        for word in split(prompt)
        if word not in known | SMALL_WORDS
    }


def about_unknown_words(pipe: StableDiffusionPipeline, prompt: str) -> str | None:
    """Say in one line which words of a prompt postcards has not learnt.

    None if it knows them all, or if the pipeline is another model.
    """
    unknown = unknown_words(prompt)
    if not unknown or not is_postcards(pipe):
        return None
    named = [f"{word} (near: {near})" if near else word for word, near in unknown.items()]
    return f"postcards has not learnt: {', '.join(named)}. It knows: {', '.join(SUBJECTS)}."
