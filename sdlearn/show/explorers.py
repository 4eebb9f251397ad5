"""Explorers: small widgets that answer as you type or drag. They need a running notebook."""

from __future__ import annotations

import html
from collections.abc import Callable, Sequence

import ipywidgets as widgets
import torch
from diffusers import StableDiffusionPipeline

from sdlearn.postcards import about_unknown_words, settings
from sdlearn.sampling import text_to_image
from sdlearn.show.figures import end_of
from sdlearn.show.style import BLUE, GREY, PAPER, Picture, picture
from sdlearn.text import tokenize


def token_boxes(pipe: StableDiffusionPipeline, prompt: str) -> str:
    """Return a prompt's tokens as HTML: a box each, its number below; padding is counted only."""
    tokens = tokenize(pipe, prompt)
    end = end_of(tokens)
    boxes = []
    for i in range(end + 1):
        name = {0: "start", end: "end"}.get(i, tokens.pieces[i].replace("</w>", "·"))
        colour = GREY if i in (0, end) else BLUE
        boxes.append(
            f'<span style="display: inline-block; margin: 2px; padding: 2px 6px; color: {PAPER}; '
            f'border-radius: 5px; text-align: center; background: {colour}">{html.escape(name)}'
            f"<br><small>{int(tokens.ids[i])}</small></span>"
        )
    padding = len(tokens.ids) - end - 1
    cut = f"; cut off: {html.escape(', '.join(tokens.truncated))}" if tokens.truncated else ""
    return f"<p>{''.join(boxes)}</p><p>{end - 1} of 75 used, {padding} of padding{cut}</p>"


def token_explorer(pipe: StableDiffusionPipeline, prompt: str) -> widgets.VBox:
    """Return a text field with the tokens of what is typed into it."""
    field = widgets.Text(value=prompt, description="prompt", layout={"width": "95%"})
    boxes = widgets.HTML(token_boxes(pipe, prompt))

    def update(change: dict) -> None:
        boxes.value = token_boxes(pipe, change["new"])

    field.observe(update, names="value")
    return widgets.VBox([field, boxes])


def prompt_explorer(pipe: StableDiffusionPipeline, prompt: str, seed: int = 0) -> widgets.VBox:
    """Return a field for a prompt and one for a seed, and the picture that they give.

    It draws when Enter is pressed or a field is left, says so while it works, and names words
    that postcards has not learnt.
    """
    wide = {"width": "95%"}
    text = widgets.Text(prompt, description="prompt", continuous_update=False, layout=wide)
    number = widgets.BoundedIntText(seed, 0, 2**31 - 1, description="seed")
    said, shown = widgets.Label(), widgets.HTML()

    def update(_: object = None) -> None:
        said.value = "drawing …"
        generator = torch.Generator().manual_seed(number.value)
        trace = text_to_image(pipe, text.value, **settings(pipe), generator=generator)
        alt = f'Drawn for "{text.value}", seed {number.value}'
        shown.value = picture(trace.image, alt).html
        said.value = about_unknown_words(pipe, text.value) or "Change either, and press Enter."

    for field in (text, number):
        field.observe(update, names="value")
    update()
    return widgets.VBox([text, number, said, shown])


def choices(draw: Callable[..., Picture], **options: Sequence) -> widgets.VBox:
    """Return a control for each option, and below them what ``draw`` makes of the values chosen.

    Numbers become a slider, names a menu; both answer to the arrow keys. The first value of each
    is shown first.

    Args:
        draw: takes the options by name and returns a ``picture``.
        options: the values to choose from.
    """
    controls = {}
    for name, values in options.items():
        number = isinstance(values[0], (int, float))
        kind = widgets.SelectionSlider if number else widgets.Dropdown
        ordered = sorted(values) if number else values
        controls[name] = kind(options=ordered, value=values[0], description=name)
    shown = widgets.HTML()

    def update(_: object = None) -> None:
        shown.value = draw(**{name: control.value for name, control in controls.items()}).html

    for control in controls.values():
        control.observe(update, names="value")
    update()
    return widgets.VBox([*controls.values(), shown])
