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

from sdlearn.sampling import Trace, text_to_image
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
WIDTH, HEIGHT = 11.0, 6.4  # Inches, and the units in which the figure is laid out.


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
    and the small pictures are the run's own. Without guidance there is one prompt, and one noise.

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
    figure = new_figure(WIDTH, HEIGHT)
    figure.set_layout_engine("none")
    axes = bare(figure.add_axes((0, 0, 1, 1)))
    axes.set(xlim=(0, WIDTH), ylim=(0, HEIGHT))
    draw_parts(axes, pipe)
    draw_run(axes, trace, seen)
    draw_arrows(axes, trace, seen)
    return figure


def draw_parts(axes: Axes, pipe: StableDiffusionPipeline) -> None:
    """Draw a box for each part."""
    vocabulary = f"{len(pipe.tokenizer):,} tokens"
    part_box(axes, 3.3, 5.7, GREY, "tokenizer", type(pipe.tokenizer).__name__, vocabulary)
    part_box(axes, 7.15, 5.7, BLUE, "text encoder", *class_and_size(pipe.text_encoder))
    part_box(axes, 3.3, 3.3, GREEN, "U-Net", *class_and_size(pipe.unet))
    part_box(axes, 7.15, 3.3, GREY, "guidance", "makes one answer", "of two")
    part_box(axes, 10.0, 3.3, ORANGE, "scheduler", type(pipe.scheduler).__name__, "no weights")
    part_box(axes, 7.15, 0.85, PINK, "VAE decoder", *class_and_size(pipe.vae.decoder))


def draw_run(axes: Axes, trace: Trace, seen: dict[str, list[Shape]]) -> None:
    """Draw the prompts, and what the parts made of them, as pictures."""
    step = trace.steps[0]
    start = f"starting noise\n{tuple(step.model_input.shape)}"
    label(axes, 1.0, 6.0, plain(f'"{trace.prompts[0]}"', 20, lines=3))
    small_picture(axes, 0.9, 3.3, latents_to_pil(step.model_input), start)
    small_picture(axes, 5.3, 2.75, latents_to_pil(step.noise_pred_text), "noise, told the prompt")
    if step.noise_pred_uncond is not None:
        label(axes, 1.0, 5.4, 'and "",\nthe empty prompt')
        small_picture(axes, 5.3, 4.05, latents_to_pil(step.noise_pred_uncond), 'noise, told ""')
    clean = f"clean latents {seen['clean'][0]}"
    small_picture(axes, 10.0, 0.85, latents_to_pil(trace.latents), clean)
    small_picture(axes, 4.3, 0.85, trace.image, f"the picture {seen['pixels'][0]}")


def draw_arrows(axes: Axes, trace: Trace, seen: dict[str, list[Shape]]) -> None:
    """Draw what passes from part to part, with its shape."""
    step, calls = trace.steps[0], len(seen["noise"])
    guided = step.noise_pred_uncond is not None
    arrow(axes, [(1.85, 5.7), (2.4, 5.7)])
    arrow(axes, [(4.2, 5.7), (6.25, 5.7)], f"ids: {len(seen['ids'])} times\n{seen['ids'][0]}")
    across = [(7.15, 5.2), (7.15, 4.8), (3.3, 4.8), (3.3, 3.8)]
    vectors, times = ("vectors of both prompts", "twice") if guided else ("vectors", "once")
    arrow(axes, across, f"{vectors} {seen['text'][0]}")
    arrow(axes, [(1.4, 3.3), (2.4, 3.3)], f"{times}\n{seen['noisy'][0]}")
    arrow(axes, [(4.2, 3.2), (4.8, 2.85)])
    arrow(axes, [(5.8, 2.85), (6.25, 3.2)])
    if guided:
        arrow(axes, [(4.2, 3.5), (4.8, 3.9)])
        arrow(axes, [(5.8, 3.9), (6.25, 3.5)])
    arrow(axes, [(8.05, 3.3), (9.1, 3.3)], f"{tuple(step.noise_pred.shape)}")
    again = f"less noisy latents {tuple(step.prev_sample.shape)}: round again, {calls} times in all"
    arrow(axes, [(9.6, 2.8), (9.6, 1.65), (0.9, 1.65), (0.9, 2.3)], again)
    arrow(axes, [(10.2, 2.8), (10.2, 1.4)])
    label(axes, 10.55, 2.2, "at last")
    arrow(axes, [(9.45, 0.85), (8.05, 0.85)])
    arrow(axes, [(6.25, 0.85), (4.85, 0.85)])


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
