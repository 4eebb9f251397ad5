"""One look for all figures, and one way to put them into a notebook: with alternative text."""

from __future__ import annotations

import base64
import html
import io
import os
import textwrap
import unicodedata
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties, findfont, get_font
from matplotlib.patches import FancyBboxPatch
from PIL import Image

# Okabe and Ito's colours, which remain distinct under the common colour blindnesses.
BLUE, ORANGE, GREEN, PINK, GREY = "#0072B2", "#E69F00", "#009E73", "#CC79A7", "#6B6B6B"
RED, SKY, YELLOW = "#D55E00", "#56B4E9", "#F0E442"
INK, PAPER = "#222222", "#FFFFFF"
PIXELS_PER_POINT = 2  # Screens of today show figures at twice the old resolution.
MOST_BYTES = 250_000  # Of a figure with all of its colours.
HEAT = "inferno"  # Perceptually even, and readable in grey.

STYLE: dict[str, Any] = {
    "figure.facecolor": PAPER,  # A background of its own: legible in light and dark themes.
    "figure.dpi": 110,
    "savefig.dpi": 110,
    "font.size": 10,
    "axes.titlesize": 9,
    "axes.edgecolor": INK,
    "axes.labelcolor": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#DDDDDD",
    "image.interpolation": "nearest",
    "image.cmap": HEAT,
    "axes.prop_cycle": mpl.cycler(color=[BLUE, ORANGE, GREEN, RED, PINK, SKY, GREY]),
}


def plain(text: str, width: int = 1000, lines: int = 4) -> str:
    """Return a text, such as a prompt, as a figure can show it: as it is, never as a formula.

    Letters that the font lacks are named if they are emoji, and else become boxes.

    Args:
        text: any text.
        width: letters a line.
        lines: at most so many; what is left over becomes " …".
    """
    has = get_font(findfont(FontProperties())).get_char_index
    shown = unicodedata.normalize("NFC", " ".join(text.split()))
    shown = "".join(c if has(ord(c)) else _instead(c) for c in shown)
    filled = textwrap.fill(shown, width, max_lines=lines, placeholder=" …")
    return filled.replace("$", r"\$")


def _instead(letter: str) -> str:
    kind = unicodedata.category(letter)
    if kind == "So":  # emoji and other pictures
        return f"[{unicodedata.name(letter).lower()}]"
    # What only changes its neighbour, such as a skin tone, goes; a letter leaves a box.
    return "" if kind in ("Mn", "Me", "Cf", "Cc", "Sk") else "\N{WHITE SQUARE}"


def new_figure(width: float = 8.0, height: float = 3.0) -> Figure:
    """Return an empty figure of ``width`` × ``height`` inches in the book's style.

    It belongs to no window and no global state: nothing is shown until ``picture`` is called.
    """
    with mpl.rc_context(STYLE):
        return Figure(figsize=(width, height), layout="constrained")


def new_axes(width: float = 8.0, height: float = 3.0) -> tuple[Figure, Axes]:
    """Return a figure in the book's style and the one pair of axes in it, for a chart."""
    figure = new_figure(width, height)
    with mpl.rc_context(STYLE):
        return figure, figure.subplots()


def rounded_box(axes: Axes, x: float, y: float, width: float, height: float, **look: Any) -> None:
    """Draw a box with round corners about (x, y), in the units of the axes."""
    corner = (x - width / 2, y - height / 2)
    shape = "round,pad=0,rounding_size=0.1"
    axes.add_patch(FancyBboxPatch(corner, width, height, boxstyle=shape, **look))


def to_image(figure: Figure) -> Image.Image:
    """Return a figure as an RGB picture, with two pixels to each of the page."""
    buffer = io.BytesIO()
    with mpl.rc_context(STYLE):
        figure.savefig(buffer, format="png", dpi=PIXELS_PER_POINT * figure.dpi)
    return Image.open(buffer).convert("RGB")


def to_png(image: Image.Image, *, optimize: bool = True) -> bytes:
    """Return a picture as a PNG file; not optimized it is 5 % larger, and written much faster."""
    buffer = io.BytesIO()
    image.save(buffer, format="png", optimize=optimize)
    return buffer.getvalue()


class Picture:
    """A PNG with its alternative text, in the forms in which notebooks are read.

    nbconvert and MyST read the text in the PNG's metadata, VS Code the plain text, JupyterLab
    neither: to it goes HTML, too, which other viewers take the pictures out of.

    Attributes:
        png: the file.
        alt: what the picture shows, in words.
        width: how wide it is shown, in pixels of the page.
    """

    def __init__(self, png: bytes, alt: str, width: int) -> None:
        self.png, self.alt, self.width = png, alt, width

    @property
    def html(self) -> str:
        """The picture as an HTML element."""
        source = f"data:image/png;base64,{base64.b64encode(self.png).decode()}"
        style = "max-width: 100%"
        alt = html.escape(self.alt)
        return f'<img alt="{alt}" width="{self.width}" style="{style}" src="{source}">'

    def _repr_mimebundle_(self, include: Any = None, exclude: Any = None) -> tuple[dict, dict]:
        data = {"image/png": base64.b64encode(self.png).decode(), "text/plain": self.alt}
        if "JPY_SESSION_NAME" in os.environ:  # set by the server of JupyterLab and Notebook
            data["text/html"] = self.html
        return data, {"image/png": {"alt": self.alt, "width": self.width}}


def picture(source: Figure | Image.Image, alt: str, *, scale: int | None = None) -> Picture:
    """Return a figure or a PIL image for display at the end of a cell.

    Args:
        source: what to show.
        alt: what it shows, in words: read aloud by screen readers, and shown where the picture
            is not.
        scale: enlarge a picture so many times without smoothing, so that pixels stay pixels; if
            not given, a small picture grows to about 384 pixels and a figure stays as it is.

    Raises:
        ValueError: no alternative text, or a scale below 1.
    """
    if not alt.strip():
        raise ValueError(f"alt must say what the picture shows, got {alt!r}")
    image = to_image(source) if isinstance(source, Figure) else source.convert("RGB")
    if scale is None:
        scale = 1 if isinstance(source, Figure) else max(1, 384 // image.width)
    if scale < 1:
        raise ValueError(f"scale must be 1 or more, got {scale}")
    image = image.resize((image.width * scale, image.height * scale), Image.Resampling.NEAREST)
    width = image.width // PIXELS_PER_POINT if isinstance(source, Figure) else image.width
    # Noise does not compress. In it no bands show, and nobody looks for single pixels.
    if len(to_png(image, optimize=False)) > MOST_BYTES:
        full, image = image, image.quantize(256)
        if len(to_png(image, optimize=False)) > MOST_BYTES:
            image = full.reduce(2).quantize(256)
    return Picture(to_png(image), alt, width)
