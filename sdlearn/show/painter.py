"""A small canvas on which a mask is painted over a picture, by mouse, finger or keyboard."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import anywidget
import torch
import traitlets
from PIL import Image

from sdlearn.show.style import to_png


class MaskPainter(anywidget.AnyWidget):
    """A picture whose places can be painted; it needs a running notebook.

    The brush paints places of ``factor`` × ``factor`` pixels, since inpainting takes each place of
    the latents whole or not at all. Keys: arrows move the brush, space paints, backspace rubs out,
    + and - change its width.

    Attributes:
        png: the picture.
        rows: places from top to bottom.
        columns: places from left to right.
        painted: the places painted so far, ``row * columns + column`` each, in order.
    """

    _esm = Path(__file__).with_name("painter.js")
    png = traitlets.Bytes().tag(sync=True)
    rows = traitlets.Int().tag(sync=True)
    columns = traitlets.Int().tag(sync=True)
    painted = traitlets.List(traitlets.Int()).tag(sync=True)

    def __init__(self, image: Image.Image, factor: int) -> None:
        width, height = image.size
        rows, columns = height // factor, width // factor
        super().__init__(png=to_png(image.convert("RGB")), rows=rows, columns=columns)
        self._factor = factor

    @property
    def mask(self) -> Image.Image:
        """What is painted, a picture of mode "L": white there, black elsewhere."""
        places = torch.zeros(self.rows * self.columns, dtype=torch.bool)
        places[self.painted] = True
        grid = Image.fromarray(places.view(self.rows, self.columns).numpy()).convert("L")
        size = (self.columns * self._factor, self.rows * self._factor)
        return grid.resize(size, Image.Resampling.NEAREST)

    @traitlets.validate("painted")
    def _within(self, proposal: Any) -> list[int]:
        count = self.rows * self.columns
        outside = [place for place in proposal["value"] if not 0 <= place < count]
        if outside:
            raise traitlets.TraitError(f"places are 0 to {count - 1}, got {outside}")
        return sorted(set(proposal["value"]))

    def __repr__(self) -> str:
        return f"MaskPainter of {self.rows} × {self.columns} places, {len(self.painted)} painted"


def mask_painter(image: Image.Image, factor: int = 8) -> MaskPainter:
    """Return a canvas with a picture, and in its ``mask`` what is painted there.

    Args:
        image: the picture; its sides are multiples of ``factor``.
        factor: pixels to a place of the latents, ``pipe.vae_scale_factor``.

    Raises:
        ValueError, TypeError: no picture, or a size of which no whole places can be made.
    """
    if not isinstance(image, Image.Image):
        raise TypeError(f"expected a picture, got {type(image).__name__}; sdlearn.to_pil makes one")
    if image.width % factor or image.height % factor:
        raise ValueError(f"the picture is {image.size}; its sides must be multiples of {factor}")
    return MaskPainter(image, factor)
