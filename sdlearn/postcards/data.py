"""Pictures and captions, drawn when asked for: picture i is the same on every machine."""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageFilter
from torch.utils.data import Dataset

from sdlearn.postcards import words, world
from sdlearn.postcards.judge import target
from sdlearn.postcards.render import background, render


class Postcards(Dataset):
    """``length`` pictures, each with a caption and one that says something false.

    Args:
        length: how many; item i depends on i alone.
        first_seed: item i is drawn from the seed ``first_seed + i``.
        lesson: what the pictures show, see ``world.sample_training_scene``.
    """

    def __init__(self, length: int, *, first_seed: int = 0, lesson: str = "all") -> None:
        self.length, self.first_seed, self.lesson = length, first_seed, lesson

    def __len__(self) -> int:
        return self.length

    def scene(self, index: int) -> world.Scene:
        """Return the scene of item ``index``."""
        rng = random.Random(self.first_seed + index)
        return world.sample_training_scene(rng, self.lesson)

    def caption(self, index: int, rng: random.Random) -> str:
        """Return a caption of item ``index`` as ``rng`` words it."""
        return words.caption(self.scene(index), rng)

    def captions(self, index: int) -> tuple[str, str]:
        """Return the caption of item ``index``, and one that says something false of it."""
        rng = random.Random(f"caption {self.first_seed + index}")
        scene = self.scene(index)
        caption = words.caption(scene, rng)
        wrong, change = near_miss(scene, rng)
        return caption, words.caption(wrong, rng, keep=change)

    def __getitem__(self, index: int) -> dict:
        caption, wrong_caption = self.captions(index)
        return {
            "pixels": pixels_of(render(self.scene(index))),
            "caption": caption,
            "wrong_caption": wrong_caption,
        }


class MaskedPostcards(Postcards):
    """The same pictures without captions, each with a mask of what stands before the background."""

    def __getitem__(self, index: int) -> dict:
        scene = self.scene(index)
        pixels, behind = pixels_of(render(scene)), pixels_of(background(scene))
        # (1, 128, 128): 1 at sprites and their shadows, else 0
        subject = (pixels != behind).any(dim=0, keepdim=True).float()
        return {"pixels": pixels, "subject": subject}


def pixels_of(picture: Image.Image) -> torch.Tensor:
    """Return a picture as a tensor, (3, 128, 128) in [-1, 1]."""
    pixels = np.asarray(picture, dtype=np.float32) / 127.5 - 1
    return torch.from_numpy(pixels).permute(2, 0, 1).contiguous()


class JudgedPictures(Dataset):
    """Pictures for the judge, each with what it should say; held-out combinations included.

    Half of them are softened and, independently, a third made noisy, so that the judge can also
    read what the model draws.
    """

    def __init__(self, length: int, *, first_seed: int) -> None:
        self.length, self.first_seed = length, first_seed

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> dict:
        rng = random.Random(self.first_seed + index)
        scene = world.sample_scene(rng, (6, 2, 4, 1))
        picture = render(scene)
        if rng.random() < 0.5:
            picture = picture.filter(ImageFilter.GaussianBlur(rng.uniform(0.3, 1.8)))
        pixels = torch.from_numpy(np.asarray(picture, dtype=np.float32) / 127.5 - 1)
        generator = torch.Generator().manual_seed(rng.randrange(2**31))
        pixels = pixels + rng.choice((0, 0, 0.1)) * torch.randn(pixels.shape, generator=generator)
        return {"pixels": pixels.permute(2, 0, 1).contiguous(), **target(scene)}


def near_miss(scene: world.Scene, rng: random.Random) -> tuple[world.Scene, str]:
    """Change one thing about a scene: the hard negative of contrastive training.

    Two subjects swap colours or places; a single one becomes another, or changes its colour,
    number, place or time. Space has no time to change, and nothing but these two has a scene
    without a subject.

    Returns:
        The changed scene, and what was changed: "colour", "places", "subject", "count",
        "setting" or "time".
    """
    replace = dataclasses.replace
    if scene.second is not None:
        first, second = scene.first, scene.second
        if first.colour != second.colour and rng.random() < 0.5:
            swapped = replace(first, colour=second.colour), replace(second, colour=first.colour)
            return replace(scene, first=swapped[0], second=swapped[1]), "colour"
        return replace(scene, first=second, second=first), "places"

    def other(values: Iterable, *current: object) -> Any:
        return rng.choice([value for value in values if value not in current])

    changes = ["setting"]
    if scene.count > 0:
        changes += ["subject", "subject", "colour", "colour", "count"]
    if scene.setting != "space":
        changes.append("time")
    change = rng.choice(changes)
    if change == "subject":
        subject = scene.first.subject
        subject = other(world.SUBJECTS, subject, words.ALSO.get(subject))
        return replace(scene, first=replace(scene.first, subject=subject)), change
    if change == "colour":
        colour = other(world.COLOURS, scene.first.colour)
        return replace(scene, first=replace(scene.first, colour=colour)), change
    values = {"count": (1, 2, 3, 4), "setting": world.SETTINGS, "time": world.TIMES}[change]
    return replace(scene, **{change: other(values, getattr(scene, change))}), change
