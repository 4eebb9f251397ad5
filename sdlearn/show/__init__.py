"""Figures of the book: every one of them is drawn from what the pipeline computed."""

from sdlearn.show.diagram import parts_diagram
from sdlearn.show.environment import environment
from sdlearn.show.explore import explore
from sdlearn.show.explorers import choices, prompt_explorer, token_explorer
from sdlearn.show.figures import (
    heat_maps,
    latents_to_pil,
    map_overlay,
    pictures,
    tokens_strip,
)
from sdlearn.show.filmstrip import filmstrip
from sdlearn.show.numbers import measured
from sdlearn.show.painter import mask_painter
from sdlearn.show.style import new_axes, new_figure, picture, plain
from sdlearn.show.unet_tour import unet_tour

__all__ = [
    "choices",
    "environment",
    "explore",
    "filmstrip",
    "heat_maps",
    "latents_to_pil",
    "map_overlay",
    "mask_painter",
    "measured",
    "new_axes",
    "new_figure",
    "parts_diagram",
    "picture",
    "pictures",
    "plain",
    "prompt_explorer",
    "token_explorer",
    "tokens_strip",
    "unet_tour",
]
