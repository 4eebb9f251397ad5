"""Textual inversion: a new word, learnt as one row of the text encoder's first table.

Source: Gal et al. (2022), "An Image is Worth One Word: Personalizing Text-to-Image Generation using
Textual Inversion", section 4. The word is added and kept in diffusers' own way
(``load_textual_inversion``).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
from diffusers import StableDiffusionPipeline
from safetensors.torch import save_file
from torch import Tensor, nn

from sdlearn import checks
from sdlearn.editing.sdedit import Picture
from sdlearn.finetuning.fit import AfterStep, check_run, examples, fit, noise_loss
from sdlearn.text import tokenize


def learn_token(
    pipe: StableDiffusionPipeline,
    images: Sequence[Picture],
    placeholder: str,
    initializer: str,
    *,
    prompts: str | list[str] | None = None,
    vectors: int = 1,
    steps: int = 500,
    batch_size: int = 4,
    learning_rate: float = 5e-3,
    folder: str | Path | None = None,
    generator: torch.Generator | None = None,
    after_step: AfterStep | None = None,
) -> list[float]:
    """Teach the pipeline a new word for what some pictures show. Nothing else in it changes.

    Interrupted, it leaves the word as far as it was learnt. Called again with the same word, it
    goes on from there, or from the checkpoint in ``folder``.

    Args:
        pipe: the pipeline.
        images: pictures, their paths, or pixels, all of one size.
        placeholder: the new word, such as "<teal>".
        initializer: the word of one token whose vector it begins with.
        prompts: what the pictures show, with the placeholder in it; one for all, or one for each.
            By default "a photo of" it.
        vectors: how many rows the word gets; in a prompt it takes as many tokens.
        steps: see ``fit``.
        batch_size: examples a step.
        learning_rate: see ``fit``.
        folder: see ``fit``.
        generator: see ``fit``.
        after_step: see ``fit``.

    Returns:
        The loss of each step.

    Raises:
        ValueError, TypeError: an argument out of range or of the wrong type; a placeholder that is
            a word already, or that a prompt lacks; an initializer of several tokens.
    """
    checks.pipeline(pipe)
    check_run(steps, learning_rate, batch_size, generator)
    if placeholder.split() != [placeholder]:
        raise ValueError(f"placeholder must be one word without spaces, got {placeholder!r}")
    vectors = checks.whole("vectors", vectors, 1, 70, "1 is usual")
    for text in checks.prompts(prompts or f"a photo of {placeholder}"):
        if placeholder not in text.split():
            raise ValueError(f"the prompt {text!r} lacks the word {placeholder!r}")
    with added_token(pipe, placeholder, initializer, vectors) as row:
        data = examples(pipe, images, prompts or f"a photo of {placeholder}")
        return fit(
            pipe,
            {"row": row},
            partial(noise_loss, pipe, data, batch_size),
            steps=steps,
            learning_rate=learning_rate,
            folder=folder,
            generator=generator,
            after_step=after_step,
        )


@contextmanager
def added_token(
    pipe: StableDiffusionPipeline, placeholder: str, initializer: str, vectors: int = 1
) -> Iterator[nn.Parameter]:
    """Give the pipeline a word that can learn, (vectors, D), while the block runs.

    It is kept apart from the table, so that no other row can move. At the end it is written there,
    also after an error, unless that came before anything was learnt: then the word goes again.
    """
    ids, is_new = _token_ids(pipe, placeholder), False
    if not ids:
        first = _initial(pipe, placeholder, initializer)
        pipe.tokenizer.add_tokens(_names(placeholder)[:vectors])
        pipe.text_encoder.resize_token_embeddings(len(pipe.tokenizer), mean_resizing=False)
        ids, is_new = _token_ids(pipe, placeholder), True
        pipe.text_encoder.get_input_embeddings().weight.requires_grad_(False)[ids] = first
    elif len(ids) != vectors:
        raise ValueError(f"{placeholder!r} has {len(ids)} vectors, got vectors={vectors}")
    table = pipe.text_encoder.get_input_embeddings()
    begin = table.weight[ids].detach().float()
    row = nn.Parameter(begin.clone())

    def look_up(_: nn.Module, args: Any, output: Tensor) -> Tensor:
        for number, vector in zip(ids, row):
            output = torch.where((args[0] == number)[..., None], vector.to(output), output)
        return output

    handle = table.register_forward_hook(look_up)
    try:
        yield row
    finally:
        handle.remove()
        table.weight.requires_grad_(False)
        if is_new and torch.equal(row.detach(), begin):
            pipe.unload_textual_inversion(placeholder)
        else:
            table.weight[ids] = row.detach().to(table.weight)


def save_token(pipe: StableDiffusionPipeline, placeholder: str, path: str | Path) -> None:
    """Write a learnt word to a safetensors file; ``pipe.load_textual_inversion(path)`` reads it.

    Raises:
        ValueError: not a learnt word.
    """
    ids = _token_ids(pipe, placeholder)
    if not ids:
        raise ValueError(f"{placeholder!r} is no learnt word; learn_token teaches one")
    rows = pipe.text_encoder.get_input_embeddings().weight[ids].detach()
    save_file({placeholder: rows.contiguous().cpu()}, path)


def _token_ids(pipe: StableDiffusionPipeline, placeholder: str) -> list[int]:
    """Return the numbers of a learnt word's tokens, or none."""
    learnt = pipe.tokenizer.get_added_vocab()
    return [learnt[name] for name in _names(placeholder) if name in learnt]


def _names(placeholder: str) -> list[str]:
    """Return what the tokens of a word of several vectors are called, as diffusers calls them."""
    return [placeholder, *(f"{placeholder}_{i}" for i in range(1, 76))]


def _initial(pipe: StableDiffusionPipeline, placeholder: str, initializer: str) -> Tensor:
    """Return the vector to begin with, (1, D); refuse a name or a beginning that will not do."""
    if placeholder.split() != [placeholder]:
        raise ValueError(f"placeholder must be one word without spaces, got {placeholder!r}")
    if (
        placeholder in pipe.tokenizer.get_vocab()
        or f"{placeholder}</w>" in pipe.tokenizer.get_vocab()
    ):
        raise ValueError(f"{placeholder!r} is a token already; take a new word: '<{placeholder}>'")
    places = tokenize(pipe, initializer).words
    ids = [int(tokenize(pipe, initializer).ids[p]) for at in places.values() for p in at]
    if len(ids) != 1:
        raise ValueError(f"initializer {initializer!r} is {len(ids)} tokens; take a word of one")
    return pipe.text_encoder.get_input_embeddings().weight[ids].detach().clone()
