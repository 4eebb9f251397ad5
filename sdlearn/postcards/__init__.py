"""The world that postcards, the shipped model, was trained on: scenes, captions, pictures."""

from sdlearn.postcards.vocabulary import about_unknown_words, unknown_words

__all__ = ["about_unknown_words", "unknown_words"]
