"""The parts of a pipeline and what passes between them, read off a run as it happens."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from diffusers import StableDiffusionPipeline
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image
from torch import nn

from sdlearn.sampling import text_to_image
from sdlearn.show.figures import bare, latents_to_pil
from sdlearn.show.style import (
    BLUE,
    GREEN,
    GREY,
    INK,
    ORANGE,
    PINK,
    new_figure,
    plain,
    rounded_box,
)
from sdlearn.unet import parameters

Shape = tuple[int, ...]
WIDTH, HEIGHT = 9.6, 5.0  # Inches, and the units in which the figure is laid out.


@contextmanager
def watch_shapes(pipe: StableDiffusionPipeline) -> Iterator[dict[str, list[Shape]]]:
    """Note the shape of each tensor that goes into or comes out of a network.

    Yields:
        A dictionary that fills while the pipeline runs, with a shape for each call: "ids" goes
        into the text encoder; "noisy" and "text" go into the U-Net, "noise" comes out; "clean"
        goes into the VAE's decoder, "pixels" come out. The hooks only look, and are taken off at
        the end.
    """
    seen: dict[str, list[Shape]] = {}

    def note(**tensors: Any) -> None:
        for name, tensor in tensors.items():
            seen.setdefault(name, []).append(tuple(tensor.shape))

    def text(_: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        note(ids=args[0] if args else kwargs["input_ids"])

    def unet(_: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        note(noisy=args[0], text=kwargs["encoder_hidden_states"], noise=output[0])

    def decoder(_: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        note(clean=args[0], pixels=output)

    watched = {pipe.text_encoder: text, pipe.unet: unet, pipe.vae.decoder: decoder}
    hooks = [part.register_forward_hook(hook, with_kwargs=True) for part, hook in watched.items()]
    try:
        yield seen
    finally:
        for hook in hooks:
            hook.remove()


def parts_diagram(pipe: StableDiffusionPipeline, prompt: str, **settings: Any) -> Figure:
    """Draw a picture for a prompt, and draw the parts that did it and what passed between them.

    Every shape is one that a tensor of this run had, every count is of this pipeline's weights,
    and the three small pictures are the run's own.

    Args:
        pipe: the pipeline.
        prompt: one prompt.
        settings: for ``text_to_image``, such as ``generator`` and ``num_inference_steps``.

    Returns:
        A figure as wide as a page.

    Raises:
        ValueError, TypeError: what ``text_to_image`` refuses.
    """
    with watch_shapes(pipe) as seen:
        trace = text_to_image(pipe, prompt, **settings)
    step, calls = trace.steps[0], len(seen["noise"])
    figure = new_figure(WIDTH, HEIGHT)
    figure.set_layout_engine("none")
    axes = bare(figure.add_axes((0, 0, 1, 1)))
    axes.set(xlim=(0, WIDTH), ylim=(0, HEIGHT))

    label(axes, 0.95, 4.3, plain(f'"{prompt}"', 16, lines=7))
    vocabulary = f"{len(pipe.tokenizer):,} tokens"
    part_box(axes, 3.0, 4.3, GREY, "tokenizer", type(pipe.tokenizer).__name__, vocabulary)
    part_box(axes, 6.4, 4.3, BLUE, "text encoder", *class_and_size(pipe.text_encoder))
    part_box(axes, 3.0, 2.6, GREEN, "U-Net", *class_and_size(pipe.unet))
    part_box(axes, 6.4, 2.6, ORANGE, "scheduler", type(pipe.scheduler).__name__, "no weights")
    whole, decoder = class_and_size(pipe.vae), class_and_size(pipe.vae.decoder)[1]
    part_box(axes, 6.4, 0.75, PINK, "VAE decoder", whole[0], decoder)
    small_picture(axes, 0.7, 2.6, latents_to_pil(step.model_input), "starting noise")
    small_picture(axes, 8.55, 2.6, latents_to_pil(trace.latents), "clean latents")
    small_picture(axes, 3.0, 0.75, trace.image, "the picture")

    arrow(axes, [(1.7, 4.3), (2.1, 4.3)])
    arrow(axes, [(3.9, 4.3), (5.5, 4.3)], f"{len(seen['ids'])} × ids\n{seen['ids'][0]}")
    arrow(axes, [(6.4, 3.8), (6.4, 3.45), (3.0, 3.45), (3.0, 3.1)], f"vectors {seen['text'][0]}")
    arrow(axes, [(1.2, 2.6), (2.1, 2.6)], f"x\n{seen['noisy'][0]}")
    guided = f"noise {seen['noise'][0]}\nguided {tuple(step.noise_pred.shape)}"
    arrow(axes, [(3.9, 2.6), (5.5, 2.6)], guided)
    back = f"less noisy x {tuple(step.prev_sample.shape)}\n{calls} calls of the U-Net in all"
    arrow(axes, [(6.2, 2.1), (6.2, 1.7), (3.0, 1.7), (3.0, 2.1)], back)
    arrow(axes, [(7.3, 2.6), (8.05, 2.6)])
    arrow(axes, [(8.55, 1.85), (8.55, 0.75), (7.3, 0.75)], str(seen["clean"][0]))
    arrow(axes, [(5.5, 0.75), (3.5, 0.75)], f"pixels\n{seen['pixels'][0]}")
    return figure


def class_and_size(part: nn.Module) -> tuple[str, str]:
    """Return the name of a part's class, and how many parameters it has."""
    count = parameters(part)
    size = f"{count / 1e6:,.1f} million" if count >= 1e6 else f"{count:,}"
    return type(part).__name__, f"{size} parameters"


def part_box(axes: Axes, x: float, y: float, colour: str, *lines: str) -> None:
    """Draw a part as a box about (x, y): its name, and smaller below it what is known of it."""
    rounded_box(axes, x, y, 1.8, 1.0, facecolor=colour + "22", edgecolor=colour, linewidth=1.8)
    axes.text(x, y + 0.22, lines[0], size=11, weight="bold", ha="center", va="center", color=INK)
    axes.text(x, y - 0.16, "\n".join(lines[1:]), size=8.5, ha="center", va="center", color=INK)


def label(axes: Axes, x: float, y: float, text: str, vertical: str = "center") -> None:
    """Write what passes."""
    axes.text(x, y, text, size=9, ha="center", va=vertical, color=INK, linespacing=1.5)


def arrow(axes: Axes, points: Sequence[tuple[float, float]], text: str = "") -> None:
    """Draw an arrow through the points, and on its middle piece what passes along it.

    A text of two lines stands half above and half below a level piece, and beside an upright one.
    """
    *_, before, last = points
    axes.plot(*zip(*points[:-1]), color=INK, linewidth=1.2, solid_joinstyle="miter")
    axes.annotate("", last, before, arrowprops={"arrowstyle": "-|>", "color": INK, "shrinkA": 0})
    (x0, y0), (x1, y1) = points[len(points) // 2 - 1 :][:2]
    x, y, two = (x0 + x1) / 2, (y0 + y1) / 2, "\n" in text
    if x0 == x1:
        axes.text(x + 0.08, y, text, size=9, va="center", color=INK)
    else:
        label(axes, x, y if two else y + 0.06, text, "center" if two else "bottom")


def small_picture(axes: Axes, x: float, y: float, image: Image.Image, text: str) -> None:
    """Show a picture about (x, y), its pixels as pixels, and its name below it."""
    height = image.height / image.width
    extent = (x - 0.5, x + 0.5, y - 0.5 * height, y + 0.5 * height)
    axes.imshow(image, extent=extent, interpolation="nearest", aspect="auto")
    label(axes, x, y - 0.5 * height - 0.04, text, "top")
