"""The whole journey from a prompt to its picture, as one figure."""

from __future__ import annotations

import torch
from diffusers import StableDiffusionPipeline
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image

from sdlearn.attention import AttentionMaps
from sdlearn.images import to_pil
from sdlearn.latents import decode_latents
from sdlearn.sampling import Step, Trace
from sdlearn.show.figures import bare, latents_to_pil, map_overlay, tokens_strip
from sdlearn.show.style import INK, new_figure, plain
from sdlearn.text import tokenize

STEPS_SHOWN = 6
WORDS_SHOWN = 8


def evenly(steps: tuple[Step, ...], count: int) -> list[Step]:
    """Return ``count`` of the steps, the first and the last among them."""
    if len(steps) <= count:
        return list(steps)
    places = torch.linspace(0, len(steps) - 1, count).round().int().tolist()
    return [steps[place] for place in places]


def filmstrip(pipe: StableDiffusionPipeline, trace: Trace, maps: AttentionMaps) -> Figure:
    """Draw a trace: tokens, starting noise, six steps, a map a word, the picture.

    Args:
        pipe: the pipeline that made the trace; its VAE decodes the predicted pictures.
        trace: from ``text_to_image``.
        maps: from the ``capture_attention`` around that call.
    """
    tokens = tokenize(pipe, trace.prompts[0])
    steps = evenly(trace.steps, STEPS_SHOWN)
    figure = new_figure(13, 12.4)
    top, middle, bottom = figure.subfigures(3, 1, height_ratios=(1.35, 5.2, 4.2))
    heading(top, f"1  The prompt becomes {len(tokens.ids)} tokens")
    tokens_strip(top.subplots(), tokens)

    heading(middle, "2  Step by step, the U-Net finds the noise and the scheduler takes it away")
    predicted = torch.cat([step.pred_original_sample[:1] for step in steps])
    decoded = to_pil(pipe, decode_latents(pipe, predicted))
    grid = middle.subplots(3, len(steps), squeeze=False)
    labels = ("latents", "predicted noise", "predicted picture")
    for column, (step, image) in enumerate(zip(steps, decoded)):
        noise = latents_to_pil(step.noise_pred)
        name = "starting noise" if column == 0 else f"step {step.i + 1}"
        for row, shown in enumerate((latents_to_pil(step.model_input), noise, image)):
            show(grid[row, column], shown, f"{name}, t = {int(step.t)}" if row == 0 else "")
            if column == 0:
                side_label(grid[row, column], labels[row])

    heading(bottom, "3  Where the picture listened to each word, over all steps, and the picture")
    words = [word for word in tokens.words if word[0].isalnum()][:WORDS_SHOWN]
    left, right = bottom.subfigures(1, 2, width_ratios=(4, 2))
    for i, word in enumerate(words):
        overlay = map_overlay(trace.image, maps.heat_map(tokens.words[word]))
        show(left.add_subplot(2, 4, i + 1), overlay, plain(f'"{word}"', 20))
    show(right.subplots(), trace.image, plain(f'"{trace.prompts[0]}"', 48))
    return figure


def heading(figure: Figure, text: str) -> None:
    """Write a row's heading at its left."""
    figure.suptitle(text, x=0.008, ha="left", size=13, weight="bold", color=INK)


def show(axes: Axes, image: Image.Image, title: str) -> None:
    """Put one picture into the strip, its pixels as pixels."""
    bare(axes, title).imshow(image, interpolation="nearest")


def side_label(axes: Axes, text: str) -> None:
    """Write a row's name at the left of its first picture."""
    axes.text(
        -0.06, 0.5, text, transform=axes.transAxes, rotation=90, ha="right", va="center", color=INK
    )
