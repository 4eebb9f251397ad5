"""From a prompt to what the U-Net reads: tokens, then one vector a token.

Source: Radford et al. (2021), "Learning Transferable Visual Models From Natural Language
Supervision" (CLIP); diffusers' ``StableDiffusionPipeline.encode_prompt``.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from diffusers import StableDiffusionPipeline
from torch import Tensor

from sdlearn import checks


@dataclass(frozen=True, eq=False)
class Tokens:
    """A prompt as CLIP's tokenizer cuts it.

    Attributes:
        ids: (77,) integers: start, the prompt, end, padding.
        pieces: the 77 entries of the vocabulary; ``</w>`` marks the end of a word.
        words: each word, in the prompt's spelling, and its positions among the 77. Punctuation
            and digits are words of their own.
        truncated: the words that did not fit, wholly or in part, in order.
    """

    ids: Tensor
    pieces: tuple[str, ...]
    words: dict[str, tuple[int, ...]]
    truncated: tuple[str, ...]

    def positions(self, word: str) -> list[int]:
        """Return where ``word`` stands among the 77 tokens; case does not matter.

        Raises:
            ValueError: not a word of the prompt, or cut off; lists the words.
        """
        found = [p for own, at in self.words.items() if own.lower() == word.lower() for p in at]
        if not found:
            cut = f"; cut off: {list(self.truncated)}" if self.truncated else ""
            raise ValueError(f"no word {word!r} in the prompt; choose of {list(self.words)}{cut}")
        return sorted(found)


def tokenize(pipe: StableDiffusionPipeline, prompt: str) -> Tokens:
    """Cut one prompt into the 77 tokens that the text encoder reads.

    Raises:
        TypeError, ValueError: not a string, or not valid Unicode.
    """
    if not isinstance(prompt, str):
        raise TypeError(f"tokenize takes one string, got {prompt!r}; call it once for each")
    checks.prompts(prompt)
    # A word learnt by textual inversion may stand for several tokens. Word by word, because a long
    # prompt as a whole would log a warning about its length, which is what we are here to tell.
    text = " ".join(pipe.maybe_convert_prompt(prompt.split(" "), pipe.tokenizer))
    limit = pipe.tokenizer.model_max_length
    ids = pipe.tokenizer(text, padding="max_length", max_length=limit, truncation=True).input_ids
    whole = pipe.tokenizer(text, return_offsets_mapping=True, truncation=False, verbose=False)

    places: dict[int, list[int]] = {}  # number of the word in the text -> its positions
    for position, number in enumerate(whole.word_ids()):
        if number is not None:  # start and end belong to no word
            places.setdefault(number, []).append(position)
    words: dict[str, tuple[int, ...]] = {}
    truncated = []
    for positions in places.values():
        start, end = whole.offset_mapping[positions[0]][0], whole.offset_mapping[positions[-1]][1]
        kept = [p for p in positions if p < limit - 1]  # the last place is the end token's
        if kept:
            words[text[start:end]] = (*words.get(text[start:end], ()), *kept)
        if kept != positions:
            truncated.append(text[start:end])
    pieces = tuple(pipe.tokenizer.convert_ids_to_tokens(ids))
    return Tokens(torch.tensor(ids), pieces, words, tuple(truncated))


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
    text, unconditional = pipe.encode_prompt(
        prompts, pipe.device, 1, do_classifier_free_guidance=True, negative_prompt=negatives
    )  # (B, 77, D) each
    return torch.cat([unconditional, text])
