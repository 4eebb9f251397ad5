"""Teach the text encoder what stands where, from captions alone.

Contrastive training leaves text encoders with little sense of word order (Yuksekgonul et al. 2022,
arXiv 2210.01936: they behave "like bags-of-words"), and predicting noise did not teach it either:
after 100,000 pictures, half of them pairs, "a cat left of a dog" and "a dog left of a cat" gave the
U-Net the same loss. Asked outright, the text encoder learns it in some 600 batches.
"""

from __future__ import annotations

import copy
import random
from functools import partial
from typing import Unpack

import torch
import torch.nn.functional as F
from diffusers import StableDiffusionPipeline
from torch.utils.data import Dataset
from transformers import CLIPTextModel, CLIPTokenizer

from sdlearn.postcards import words
from sdlearn.postcards.data import Postcards
from sdlearn.postcards.judge import NAMES, SHADES
from sdlearn.postcards.world import SIDES, Scene
from sdlearn.training.clip import moved
from sdlearn.training.loop import Options, train

PLACES = ("on the left", "on the right", "at the top", "at the bottom")
NOTHING = len(NAMES)  # stands at two of the four places
ANSWERS = (len(NAMES) + 1, len(SHADES))  # to each question: which subject, which colour
UNASKED = -100  # the target that PyTorch's cross-entropy leaves out


def what_stands_where(scene: Scene) -> tuple[list[int], list[int]]:
    """Return for each of the ``PLACES`` the number of the subject there, and of its colour.

    Both are numbered as the judge does. ``UNASKED`` for all places unless two things stand in a
    relation, and for the colour of ``NOTHING``.
    """
    colours = [UNASKED] * len(PLACES)
    if scene.second is None or scene.relation is None:
        return [UNASKED] * len(PLACES), colours
    subjects = [NOTHING] * len(PLACES)
    for thing, side in zip((scene.first, scene.second), SIDES[scene.relation]):
        subjects[PLACES.index(side)] = NAMES.index(thing.subject)
        colours[PLACES.index(side)] = SHADES.index(thing.colour)
    return subjects, colours


class Captions(Dataset):
    """The captions of training pictures, each with what stands where."""

    def __init__(self, pictures: Postcards) -> None:
        self.pictures = pictures

    def __len__(self) -> int:
        return len(self.pictures)

    def __getitem__(self, index: int) -> dict:
        scene = self.pictures.scene(index)
        subjects, colours = what_stands_where(scene)
        return {
            "caption": words.caption(scene, random.Random(index), keep="places"),
            "subjects": torch.tensor(subjects),
            "colours": torch.tensor(colours),
        }


class Reader(torch.nn.Module):
    """A text encoder, and four questions to its states: what stands at each of the ``PLACES``?

    Only the text encoder is kept. The questions attend to its states as the U-Net's cells do,
    but each knows its place from the start.
    """

    def __init__(self, text_encoder: CLIPTextModel) -> None:
        super().__init__()
        width = text_encoder.config.hidden_size
        self.text_encoder = text_encoder
        self.questions = torch.nn.Parameter(torch.randn(len(PLACES), width) / 2)
        self.attention = torch.nn.MultiheadAttention(width, 4, batch_first=True)
        self.answer = torch.nn.Sequential(
            torch.nn.LayerNorm(width),
            torch.nn.Linear(width, 2 * width),
            torch.nn.GELU(),
            torch.nn.Linear(2 * width, sum(ANSWERS)),
        )

    def forward(self, ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Read captions (B, L); return logits of subjects and colours, (B, 4, ·), and states."""
        states = self.text_encoder(ids)[0]  # (B, L, D)
        questions = self.questions.expand(len(ids), -1, -1)
        found, _ = self.attention(questions, states, states, need_weights=False)
        subjects, colours = self.answer(questions + found).split(ANSWERS, dim=-1)
        return subjects, colours, states


def places_loss(
    model: torch.nn.Module, batch: dict, tokenizer: CLIPTokenizer, before: CLIPTextModel
) -> torch.Tensor:
    """Cross-entropy of subjects and colours at their places, a scalar.

    ``before``, the text encoder as it was, keeps the new states near the old ones (mean squared
    distance), so that a U-Net which has learnt to read those can go on.
    """
    device = batch["subjects"].device
    ids = tokenizer(batch["caption"], padding=True, return_tensors="pt").input_ids.to(device)
    subjects, colours, states = model(ids)
    return (
        _cross_entropy(subjects, batch["subjects"])
        + _cross_entropy(colours, batch["colours"])
        + moved(states, ids, before)
    )


def _cross_entropy(logits: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    total = F.cross_entropy(
        logits.float().flatten(0, 1), target.flatten(), ignore_index=UNASKED, reduction="sum"
    )
    return total / (target != UNASKED).sum().clamp(min=1)


@torch.no_grad()
def right_places(model: Reader, examples: list[dict], tokenizer: CLIPTokenizer) -> float:
    """Return the share (0 to 1) of things whose subject is named at its place."""
    ids = tokenizer([e["caption"] for e in examples], padding=True, return_tensors="pt").input_ids
    subjects = torch.stack([e["subjects"] for e in examples])
    asked = (subjects != UNASKED) & (subjects != NOTHING)
    return (model(ids)[0].argmax(dim=-1) == subjects)[asked].float().mean().item()


def train_places(
    pipe: StableDiffusionPipeline,
    data: Postcards,
    *,
    batch_size: int = 64,
    learning_rate: float = 5e-4,
    **options: Unpack[Options],
) -> Reader:
    """Teach a pipeline's text encoder, in place, what stands where in the data's captions.

    Args:
        pipe: the pipeline, in float32.
        data: its captions are read, its pictures are not drawn.
        batch_size: how many a step sees.
        learning_rate: the highest.
        options: ``steps`` or ``minutes``, and more: see ``train``.

    Returns:
        The text encoder with the questions that were put to it, to be measured.
    """
    before = copy.deepcopy(pipe.text_encoder)
    pipe.text_encoder.requires_grad_(True)
    model = Reader(pipe.text_encoder).to(pipe.text_encoder.device)
    train(
        model, Captions(data), partial(places_loss, tokenizer=pipe.tokenizer, before=before),
        batch_size=batch_size, learning_rate=learning_rate, progress_bar=pipe.progress_bar,
        **options,
    )  # fmt: skip
    return model
