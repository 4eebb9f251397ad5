"""Small figures that several chapters share."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import matplotlib as mpl
import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image
from torch import Tensor

from sdlearn.attention import AttentionMaps
from sdlearn.show.style import (
    BLUE,
    GREY,
    INK,
    PAPER,
    STYLE,
    new_figure,
    plain,
    rounded_box,
)
from sdlearn.text import Tokens


def latents_to_pil(latents: Tensor, *, spread: float = 3.0) -> Image.Image:
    """Show latents as a picture: channels 0, 1, 2 as red, green, blue.

    It is a false-colour view of three of the four channels, not a decoding.

    Args:
        latents: (4, h, w) or (1, 4, h, w).
        spread: values from ``-spread`` to ``spread`` become 0 to 255.

    Returns:
        An RGB picture of w × h pixels; enlarge it without smoothing.
    """
    if latents.ndim == 4:
        latents = latents[0]
    values = latents[:3].detach().float().cpu().permute(1, 2, 0)  # (h, w, 3)
    scaled = ((values / spread + 1) / 2).clamp(0, 1)
    return Image.fromarray((scaled * 255).round().to(torch.uint8).numpy())


def bare(axes: Axes, title: str = "") -> Axes:
    """Take the frame and the ticks off; a picture needs none."""
    axes.set_axis_off()
    if title:
        axes.set_title(title, color=INK)
    return axes


def pictures(images: Mapping[str, Image.Image], columns: int = 5, inches: float = 1.7) -> Figure:
    """Return pictures in rows, each with its title above it, ``inches`` wide."""
    columns = min(columns, len(images))
    rows = -(-len(images) // columns)
    figure = new_figure(columns * inches, rows * (inches + 0.28))
    for i, (title, image) in enumerate(images.items()):
        wrapped = plain(title, int(inches * 12))
        axes = bare(figure.add_subplot(rows, columns, i + 1), wrapped)
        axes.imshow(image, interpolation="nearest")
    return figure


def map_overlay(image: Image.Image, heat_map: Tensor) -> Image.Image:
    """Fade a picture to white where its heat map, (H, W) in [0, 1], is low."""
    heat = np.asarray(heat_map.detach().float().cpu())[..., None]
    base = np.asarray(image.convert("RGB").resize(heat.shape[1::-1]))
    return Image.fromarray((255 - (255 - base) * heat).round().astype(np.uint8))


def heat_maps(image: Image.Image, maps: AttentionMaps, words: Sequence[str]) -> Figure:
    """Return one overlay a word: where the U-Net looked while it read that word."""
    overlays = {word: map_overlay(image, maps.heat_map(word)) for word in words}
    return pictures({"the picture": image, **overlays}, columns=len(words) + 1)


def end_of(tokens: Tokens) -> int:
    """Return the position of the end token: it follows the last word, or the start."""
    return 1 + max((p for at in tokens.words.values() for p in at), default=0)


def tokens_strip(axes: Axes, tokens: Tokens, per_row: int = 26) -> None:
    """Draw the 77 tokens as boxes, in reading order; padding is grey."""
    end = end_of(tokens)
    rows = -(-len(tokens.pieces) // per_row)
    for i, piece in enumerate(tokens.pieces):
        x, y = i % per_row, rows - 1 - i // per_row
        word = 0 < i < end
        colour = BLUE if word else (GREY if i in (0, end) else "#E4E4E4")
        rounded_box(axes, x + 0.5, y + 0.5, 0.88, 0.76, facecolor=colour, edgecolor="none")
        name = {0: "start", end: "end"}.get(i, piece.replace("</w>", "") if word else "pad")
        size = min(8.0, 46 / max(len(name), 5))
        ink = "#9A9A9A" if i > end else PAPER
        axes.text(x + 0.5, y + 0.5, plain(name), size=size, ha="center", va="center", color=ink)
    with mpl.rc_context(STYLE):
        axes.set(xlim=(0, per_row), ylim=(0, rows))
    bare(axes)
