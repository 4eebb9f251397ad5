"""Draw the README's picture: each of the things that postcards knows, once, none left out.

python book/cover.py chapters/figures/cover.jpg
"""

from __future__ import annotations

import sys

import torch
from diffusers.utils import make_image_grid
from PIL import ImageOps

import sdlearn
from sdlearn.postcards import settings
from sdlearn.postcards.words import sentence
from sdlearn.postcards.world import COLOURS, NATURAL, SETTINGS, SUBJECTS, TIMES, Scene, Thing

COLUMNS = 12
GAP = 3  # Pixels of white around each picture.


def scene(i: int, subject: str) -> Scene:
    """Return the i-th scene: every second thing has its own colours, the rest goes round."""
    colour = COLOURS[i // 2 % len(COLOURS)] if i % 2 else NATURAL
    setting = SETTINGS[(i + i // 8) % len(SETTINGS)]
    time = "night" if setting == "space" else TIMES[i % len(TIMES)]
    return Scene(Thing(subject, colour), setting=setting, time=time)


def main(path: str) -> None:
    """Draw and save the picture."""
    pipe = sdlearn.load("postcards", device="cpu")
    images = []
    for i, subject in enumerate(SUBJECTS):
        prompt, generator = sentence(scene(i, subject)), torch.Generator().manual_seed(i)
        trace = sdlearn.text_to_image(pipe, prompt, **settings(pipe), generator=generator)
        images.append(ImageOps.expand(trace.image, GAP, "white"))
    grid = make_image_grid(images, len(images) // COLUMNS, COLUMNS)
    grid.save(path, quality=90, subsampling=0)


if __name__ == "__main__":
    main(*sys.argv[1:])
