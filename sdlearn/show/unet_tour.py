"""The blocks of a U-Net in the shape that gave it its name, drawn from one pass through it."""

from __future__ import annotations

from collections.abc import Sequence

from diffusers import UNet2DConditionModel
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from sdlearn.show.figures import bare
from sdlearn.show.style import (
    BLUE,
    GREEN,
    GREY,
    INK,
    ORANGE,
    PAPER,
    PINK,
    RED,
    new_figure,
    rounded_box,
)
from sdlearn.unet import Block

# Class -> its colour and its name in the legend. Other kinds stand beside the U and are left out.
KINDS = {
    "ResnetBlock2D": (BLUE, "residual block"),
    "Transformer2DModel": (ORANGE, "transformer"),
    "Downsample2D": (GREEN, "half the size"),
    "Upsample2D": (PINK, "twice the size"),
    "Conv2d": (GREY, "first and last convolution"),
}
WIDE, HIGH, ROW = 0.74, 0.8, 2.1  # A box, and the distance of two rows, in box widths.


def unet_tour(blocks: Sequence[Block]) -> Figure:
    """Draw blocks from left to right in the order in which they ran, each row a size of image.

    The number in a box is the channels that leave it; a line above is a skip connection, from
    the block that made the channels to the one that they are joined on to.

    Args:
        blocks: from ``trace_blocks``.
    """
    blocks = [block for block in blocks if block.kind in KINDS]
    sizes = sorted({block.output[2:] for block in blocks}, reverse=True)  # the largest on top
    figure = new_figure(9.6, 0.9 + 1.0 * len(sizes))
    axes = bare(figure.subplots())
    axes.set(xlim=(-4, len(blocks)), ylim=(-ROW * len(sizes) + 0.5, 1.4))
    places: dict[str, tuple[float, float]] = {}
    for x, block in enumerate(blocks):
        y = -ROW * sizes.index(block.output[2:])
        places[block.name] = x, y
        colour = KINDS[block.kind][0]
        rounded_box(axes, x, y, WIDE, HIGH, facecolor=colour, edgecolor="none")
        size = 8 if len(blocks) < 32 else 6.5
        ink = PAPER if colour in (BLUE, GREY) else INK
        channels = str(block.output[1])
        axes.text(x, y, channels, rotation=90, size=size, ha="center", va="center", color=ink)
    axes.plot(*zip(*places.values()), color="#CCCCCC", linewidth=2, zorder=0)
    for row, (height, width) in enumerate(sizes):
        name = f"{height} × {width}"
        axes.text(-0.8, -ROW * row, name, size=9, ha="right", va="center", color=INK)
    for part, title in (("down", "down"), ("mid", "middle"), ("up", "up")):
        columns = [x for name, (x, _) in places.items() if name.startswith(part)]
        middle = sum(columns) / len(columns)
        axes.text(middle, -ROW * len(sizes) + 1.2, title, ha="center", weight="bold", color=INK)
    draw_skips(axes, [(places[block.skip], places[block.name]) for block in blocks if block.skip])
    for colour, name in KINDS.values():
        axes.plot([], [], "s", color=colour, label=name)
    axes.plot([], [], color=RED, label="skip connection")
    handles, names = axes.get_legend_handles_labels()
    kept = [i for i, name in enumerate(names) if name != "skip"]
    figure.legend(
        [handles[i] for i in kept], [names[i] for i in kept],
        loc="outside lower center", ncols=6, fontsize=8, frameon=False, columnspacing=1.2,
    )  # fmt: skip
    return figure


def draw_skips(axes: Axes, skips: Sequence[tuple[tuple[float, float], ...]]) -> None:
    """Draw lines over each row from block to block, one above the other: the innermost lowest."""
    lines: dict[float, int] = {}  # row -> lines drawn over it
    for (start, y), (end, _) in sorted(skips, key=lambda skip: skip[1][0] - skip[0][0]):
        lines[y] = lines.get(y, 0) + 1
        bottom, top = y + HIGH / 2, y + HIGH / 2 + 0.22 * lines[y]
        points = [(start, bottom), (start, top), (end, top), (end, bottom)]
        axes.plot(*zip(*points), color=RED, linewidth=1, label="skip")


def sd15_unet() -> UNet2DConditionModel:
    """Return Stable Diffusion 1.5's U-Net as its ``unet/config.json`` says, weights at random.

    Built within ``torch.device("meta")`` it takes neither time nor memory, and can be counted.
    """
    return UNet2DConditionModel(
        sample_size=64,
        block_out_channels=(320, 640, 1280, 1280),
        cross_attention_dim=768,
        attention_head_dim=8,  # diffusers' name for the number of heads in SD 1.x
    )
