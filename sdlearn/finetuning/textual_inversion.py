"""Textual inversion: a new word, learnt as one row of the text encoder's first table.

Source: Gal et al. (2022), "An Image is Worth One Word: Personalizing Text-to-Image Generation using
Textual Inversion", section 4. A word of several vectors has several tokens, which are named as
diffusers names them (``load_textual_inversion``).
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
from sdlearn.finetuning.fit import (
    AfterStep,
    check_run,
    examples,
    fit,
    frozen,
    noise_loss,
    pictures_as_numbers,
    random_state_kept,
    seed_from,
)
from sdlearn.text import tokenize


def learn_token(
    pipe: StableDiffusionPipeline,
    images: Sequence[Picture],
    placeholder: str,
    initializer: str,
    *,
    prompts: str | list[str] | None = None,
    vectors: int | None = None,
    steps: int = 500,
    batch_size: int = 4,
    learning_rate: float = 5e-3,
    folder: str | Path | None = None,
    generator: torch.Generator | None = None,
    after_step: AfterStep | None = None,
) -> list[float]:
    """Teach the pipeline a new word for what some pictures show. Nothing else in it changes.

    Interrupted, it leaves the word as far as it was learnt. Called again with the same word, it
    learns on from there, or from the checkpoint in ``folder``.

    Args:
        pipe: the pipeline.
        images: pictures, their paths, or pixels (1, 3, H, W), all of one size.
        placeholder: the new word, in angle brackets: "<teal>".
        initializer: the word of one token whose vector it begins with.
        prompts: what the pictures show, with the placeholder in it; one for all, or one for each.
            By default "a photo of" it.
        vectors: how many rows the word gets, 1 by default; in a prompt it takes as many tokens.
        steps: see ``fit``.
        batch_size: examples a step.
        learning_rate: see ``fit``.
        folder: see ``fit``.
        generator: makes the run repeatable.
        after_step: see ``fit``.

    Returns:
        The loss of each step.

    Raises:
        ValueError, TypeError: an argument out of range or of the wrong type; a placeholder without
            brackets, or that a prompt lacks; an initializer of several tokens; another run's
            folder.
    """
    check_run(pipe, steps, learning_rate, batch_size, generator)
    prompts = f"a photo of {placeholder}" if prompts is None else prompts
    check_word(pipe, placeholder, initializer, prompts, vectors)
    data = examples(pipe, images, prompts)
    seed = seed_from(generator)
    with frozen(pipe), added_token(pipe, placeholder, initializer, vectors) as row:
        return fit(
            pipe,
            {"row": row},
            partial(noise_loss, pipe, data.latents, data.ids(pipe), batch_size),
            steps=steps,
            learning_rate=learning_rate,
            about={
                "word": placeholder,
                "prompts": data.prompts,
                "pictures": pictures_as_numbers(data),
            },
            folder=folder,
            seed=seed,
            after_step=after_step,
        )


def check_word(
    pipe: StableDiffusionPipeline,
    placeholder: str,
    initializer: str,
    prompts: str | list[str],
    vectors: int | None = None,
) -> None:
    """Refuse a word that cannot be added, or that a prompt lacks, before anything is changed.

    Raises:
        ValueError, TypeError: see ``learn_token``.
    """
    checks.prompts(placeholder, "placeholder")
    bracketed = placeholder.startswith("<") and placeholder.endswith(">")
    special = placeholder in pipe.tokenizer.all_special_tokens
    if not bracketed or special or placeholder.split() != [placeholder] or len(placeholder) < 3:
        raise ValueError(
            f"placeholder must be one new word in angle brackets, such as '<toy>', got "
            f"{placeholder!r}; without them it would be found inside other words"
        )
    for text in checks.prompts(prompts):
        if placeholder not in text:
            raise ValueError(f"the prompt {text!r} lacks the word {placeholder!r}")
    if vectors is not None:
        checks.whole("vectors", vectors, 1, 70, "1 is usual")
    learnt = len(_token_ids(pipe, placeholder))
    if learnt and vectors not in (None, learnt):
        raise ValueError(f"{placeholder!r} has {learnt} vectors, got vectors={vectors}")
    _row_of(pipe, initializer)


@contextmanager
def added_token(
    pipe: StableDiffusionPipeline, placeholder: str, initializer: str, vectors: int | None = None
) -> Iterator[nn.Parameter]:
    """Give the pipeline a word that can learn, (vectors, D), while the block runs.

    It is kept apart from the table, so that no other row can move. At the end it is written there,
    also after an error, unless that came before anything was learnt: then the word goes again.
    """
    ids = _token_ids(pipe, placeholder)
    is_new = not ids
    if is_new:
        first = _row_of(pipe, initializer)
        names = _names(placeholder)[: vectors or 1]
        pipe.tokenizer.add_tokens(names)
        with random_state_kept():  # new rows are random until they are set
            pipe.text_encoder.resize_token_embeddings(len(pipe.tokenizer), mean_resizing=False)
        ids = _token_ids(pipe, placeholder)
        with torch.no_grad():
            pipe.text_encoder.get_input_embeddings().weight[ids] = first
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
        if is_new and torch.equal(row.detach(), begin):
            pipe.unload_textual_inversion(names)
            # It leaves the old size in the configuration, and a saved model would not load.
            pipe.text_encoder.resize_token_embeddings(len(pipe.tokenizer), mean_resizing=False)
            pipe.text_encoder.get_input_embeddings().requires_grad_(False)
        else:
            with torch.no_grad():
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
    if placeholder not in learnt or placeholder in pipe.tokenizer.all_special_tokens:
        return []
    return [learnt[name] for name in _names(placeholder) if name in learnt]


def _names(placeholder: str) -> list[str]:
    """Return what the tokens of a word of several vectors are called."""
    return [placeholder, *(f"{placeholder}_{i}" for i in range(1, 70))]


def _row_of(pipe: StableDiffusionPipeline, word: str) -> Tensor:
    """Return the vector of a word of one token, (1, D)."""
    tokens = tokenize(pipe, word)
    places = [place for at in tokens.words.values() for place in at]
    if len(places) != 1:
        raise ValueError(f"initializer {word!r} is {len(places)} tokens; take a word of one")
    table = pipe.text_encoder.get_input_embeddings().weight
    return table[tokens.ids[places]].detach().clone()
