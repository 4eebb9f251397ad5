"""Figures of the book: every one of them is drawn from what the pipeline computed."""

from sdlearn.show.environment import environment
from sdlearn.show.explorers import token_explorer
from sdlearn.show.figures import (
    heat_maps,
    latents_to_pil,
    map_overlay,
    pictures,
    tokens_strip,
)
from sdlearn.show.filmstrip import filmstrip
from sdlearn.show.style import new_axes, new_figure, picture

__all__ = [
    "environment",
    "filmstrip",
    "heat_maps",
    "latents_to_pil",
    "map_overlay",
    "new_axes",
    "new_figure",
    "picture",
    "pictures",
    "token_explorer",
    "tokens_strip",
]
