"""From a prompt to what the U-Net reads: tokens, then one vector a token.

Source: Radford et al. (2021), "Learning Transferable Visual Models From Natural Language
Supervision" (CLIP); diffusers' ``StableDiffusionPipeline.encode_prompt``.
"""

from __future__ import annotations

import unicodedata
from dataclasses import dataclass

import torch
from diffusers import StableDiffusionPipeline
from torch import Tensor

from sdlearn import checks
from sdlearn.pipeline import execution_device


@dataclass(frozen=True, eq=False)
class Tokens:
    """A prompt as CLIP's tokenizer cuts it.

    Attributes:
        ids: (77,) integers: start, the prompt, end, padding.
        pieces: the 77 entries of the vocabulary; ``</w>`` marks the end of a word.
        words: each word, in the prompt's spelling, and its positions among the 77. Punctuation
            and digits are words of their own. An accent and its letter are one character (NFC).
        truncated: the words that did not fit, wholly or in part, in order.
    """

    ids: Tensor
    pieces: tuple[str, ...]
    words: dict[str, tuple[int, ...]]
    truncated: tuple[str, ...]


def tokenize(pipe: StableDiffusionPipeline, prompt: str) -> Tokens:
    """Cut one prompt into the 77 tokens that the text encoder reads.

    Raises:
        TypeError, ValueError: not a string, or not valid Unicode.
    """
    if not isinstance(prompt, str):
        raise TypeError(f"tokenize takes one string, got {prompt!r}; call it once for each")
    checks.prompts(prompt)
    prompt = unicodedata.normalize("NFC", prompt)  # as the tokenizer does, which forgets places
    # A word learnt by textual inversion may stand for several tokens. Word by word, since a long
    # prompt at once would log a warning, and ``truncated`` says the same.
    text = " ".join(pipe.maybe_convert_prompt(prompt.split(" "), pipe.tokenizer))
    limit = pipe.tokenizer.model_max_length
    ids = pipe.tokenizer(text, padding="max_length", max_length=limit, truncation=True).input_ids
    whole = pipe.tokenizer(text, return_offsets_mapping=True, truncation=False, verbose=False)

    places: dict[int, list[int]] = {}  # number of the word in the text -> its positions
    for position, word_index in enumerate(whole.word_ids()):
        if word_index is not None:  # start and end belong to no word
            places.setdefault(word_index, []).append(position)
    words: dict[str, tuple[int, ...]] = {}
    truncated = []
    learnt = pipe.tokenizer.get_added_vocab()
    for positions in places.values():
        start, end = whole.offset_mapping[positions[0]][0], whole.offset_mapping[positions[-1]][1]
        word = text[start:end]
        first = first_of(word)
        further = {word, first} <= learnt.keys()
        word = first if further else word
        kept = [p for p in positions if p < limit - 1]  # the last place is the end token's
        if kept:
            words[word] = (*words.get(word, ()), *kept)
        if kept != positions and not further:
            truncated.append(word)
    pieces = tuple(pipe.tokenizer.convert_ids_to_tokens(ids))
    return Tokens(torch.tensor(ids), pieces, words, tuple(truncated))


def first_of(piece: str) -> str:
    """Return "<toy>" for "<toy>_1", the second vector of a learnt word; "" for any other piece."""
    first, _, number = piece.rpartition("_")
    return first if number.isdigit() else ""


def find_word(pipe: StableDiffusionPipeline, ids: Tensor, word: str) -> list[int]:
    """Return where a word, or several that follow each other, stand among 77 token ids.

    They are compared as tokens: however a prompt spells a word, this is what CLIP reads.

    Raises:
        ValueError: not among them; lists the words.
    """
    tokenizer = pipe.tokenizer
    checks.prompts(word, "word")
    text = pipe.maybe_convert_prompt(word, tokenizer)
    wanted = tokenizer(text, add_special_tokens=False, verbose=False).input_ids
    had, count = ids.tolist(), len(wanted)
    padding, stop, end = tokenizer.pad_token_id, tokenizer.eos_token_id, len(had)
    while padding != stop and had[end - 1] == padding:
        end -= 1  # SD 2.x pads with "!", which is no word of the prompt there
    ends = [piece.endswith("</w>") for piece in tokenizer.convert_ids_to_tokens(had)]
    complete = {*tokenizer.get_added_vocab().values()}  # learnt words, start, end: without a </w>
    starts = [
        i for i in range(1, end - count + 1)
        if count and had[i : i + count] == wanted and (ends[i - 1] or had[i - 1] in complete)
    ]  # fmt: skip
    if not starts:
        words = tokenizer.decode(had, skip_special_tokens=True).split()
        # Where the end token stands last, and no other before it, the prompt fills all places.
        full = had[-1] == stop != had[-2]
        cut = "; what does not fit into 77 tokens is cut off" if full else ""
        raise ValueError(f"no word {word!r} in the prompt; it reads: {words}{cut}")
    return sorted({p for start in starts for p in range(start, start + count)})


@torch.no_grad()
def encode_prompt(
    pipe: StableDiffusionPipeline,
    prompt: str | list[str],
    negative_prompt: str | list[str] = "",
) -> Tensor:
    """Encode prompts with the text encoder, through diffusers' own ``encode_prompt``.

    Args:
        pipe: the pipeline.
        prompt: one prompt, or a list of B.
        negative_prompt: what to steer away from; one for all, or a list of B.

    Returns:
        (2B, 77, D): the B negative prompts ("unconditional"), then the B prompts ("text").

    Raises:
        TypeError, ValueError: not strings, an empty list, or lists of different lengths.
    """
    prompts = checks.prompts(prompt)
    negatives = checks.negative_prompts(negative_prompt, len(prompts))
    text, unconditional = pipe.encode_prompt(  # (B, 77, D) each
        prompts,
        device=execution_device(pipe),
        num_images_per_prompt=1,
        do_classifier_free_guidance=True,
        negative_prompt=negatives,
    )
    return torch.cat([unconditional, text])
