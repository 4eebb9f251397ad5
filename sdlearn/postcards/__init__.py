"""The world that postcards, the shipped model, was trained on: scenes, captions, pictures."""

from sdlearn.postcards.model import GUIDANCE, STEPS, is_postcards
from sdlearn.postcards.vocabulary import about_unknown_words, unknown_words

__all__ = ["GUIDANCE", "STEPS", "about_unknown_words", "is_postcards", "unknown_words"]
