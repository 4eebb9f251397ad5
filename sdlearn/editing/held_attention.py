"""What prompt-to-prompt does to attention: which token takes whose map, and how it is put in place.

Source: Hertz et al. (2022), "Prompt-to-Prompt Image Editing with Cross Attention Control", section
3.2 and its code's ``seq_aligner``; diffusers' ``AttnProcessor``.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from difflib import SequenceMatcher
from typing import Any

import torch
from diffusers import StableDiffusionPipeline
from torch import Tensor

from sdlearn.text import first_of, tokenize


def align(pipe: StableDiffusionPipeline, source: str, target: str) -> tuple[Tensor, Tensor]:
    """Say which of the source's tokens each of the target's tokens takes its attention from.

    Words that stand in both prompts keep theirs. A word in place of another gets that one's, token
    for token, or spread evenly over its tokens if it has more or fewer. A word that was added has
    none to take and keeps its own; what belonged to a word that was left out goes to nobody.
    Paddings keep their places.

    Returns:
        ``taken`` (77, 77), the share of a source token's attention (row) that a target token
        (column) gets; ``own`` (77,), 1 where a target token keeps its own, else 0.
    """
    ids = [tokenize(pipe, prompt).ids.tolist() for prompt in (source, target)]
    before, after = (_words(pipe, each) for each in ids)
    length = len(ids[0])
    taken, own = torch.zeros(length, length), torch.zeros(length)
    matcher = SequenceMatcher(None, [w for w, _ in before], [w for w, _ in after], autojunk=False)
    for change, i1, i2, j1, j2 in matcher.get_opcodes():
        old = [positions for _, positions in before[i1:i2]]
        new = [positions for _, positions in after[j1:j2]]
        if change == "insert":
            own[sum(new, [])] = 1
        elif change == "equal":
            taken[sum(old, []), sum(new, [])] = 1
        elif change == "replace":
            if len(old) != len(new):  # no pairs of words: all of them together
                old, new = [sum(old, [])], [sum(new, [])]
            for out, come in zip(old, new):
                if len(out) == len(come):
                    taken[out, come] = 1
                else:
                    taken[torch.tensor(out)[:, None], torch.tensor(come)] = 1 / len(come)
    first = 1 + max(positions[-1] for _, positions in before)  # the source's padding
    start = 1 + max(positions[-1] for _, positions in after)
    for position in range(start, length):
        taken[position, position] = float(position >= first)
        own[position] = float(position < first)
    return taken, own


def _words(pipe: StableDiffusionPipeline, ids: list[int]) -> list[tuple[str, list[int]]]:
    """Return the words among 77 token ids, with the positions of each; also start and end.

    "an" counts as "a", so that it does not matter which word comes after it.
    """
    learnt = {*pipe.tokenizer.get_added_vocab().values()}  # also start and end: without a </w>
    pieces = pipe.tokenizer.convert_ids_to_tokens(ids)
    words, word = [], list[int]()
    for position, piece in enumerate(pieces):
        word.append(position)
        if position + 1 < len(pieces) and first_of(pieces[position + 1]) == pieces[word[0]]:
            continue
        if piece.endswith("</w>") or ids[position] in learnt or position == len(ids) - 1:
            whole = "".join(pieces[p] for p in word)
            words.append(("a</w>" if whole == "an</w>" else whole, word))
            word = []
            if position and ids[position] == pipe.tokenizer.eos_token_id:
                break  # the rest is padding
    return words


@dataclass(eq=False)
class Edit:
    """What is done to the attention of B pairs; the last 2B rows of a batch are theirs.

    Attributes:
        taken: (B, 77, 77), see ``align``.
        own: (B, 77), see ``align``.
        weight: (B, 77), a factor for each of the target's tokens.
        cross_calls: for how many calls of the U-Net the cross-attention is edited.
        self_calls: likewise for the self-attention.
        max_pixels: layers with more positions keep their own self-attention.
        calls: how many calls there have been.
    """

    taken: Tensor
    own: Tensor
    weight: Tensor
    cross_calls: int = 0
    self_calls: int = 0
    max_pixels: int = 1024
    calls: int = field(default=0, init=False)

    def cross(self, probabilities: Tensor) -> Tensor:
        """Edit maps (rows, heads, h*w, 77): the target's from the source's."""
        source, target = self._pair(probabilities)
        taken, own, weight = (each.to(target) for each in (self.taken, self.own, self.weight))
        edited = source @ taken[:, None] + target * own[:, None, None]
        return self._with_target(probabilities, edited * weight[:, None, None])

    def self_(self, probabilities: Tensor) -> Tensor:
        """Edit maps (rows, heads, h*w, h*w): the target's are the source's."""
        return self._with_target(probabilities, self._pair(probabilities)[0])

    def _pair(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        count = len(self.taken)
        return rows[-2 * count : -count], rows[-count:]

    def _with_target(self, rows: Tensor, target: Tensor) -> Tensor:
        return torch.cat([rows[: -len(self.taken)], target])


class EditedAttention:
    """An attention processor of diffusers' kind: the usual one, except where there is an edit."""

    def __init__(self, usual: Any, edit: Edit, is_cross: bool) -> None:
        self.usual, self.edit, self.is_cross = usual, edit, is_cross

    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        **more: Any,
    ) -> Tensor:
        """Return what the layer says about ``hidden_states``, (rows, h*w, D), in that shape."""
        edit = self.edit
        last = edit.cross_calls if self.is_cross else edit.self_calls
        fits = self.is_cross or hidden_states.shape[1] <= edit.max_pixels
        if edit.calls >= last or not fits:
            return self.usual(attn, hidden_states, encoder_hidden_states, attention_mask, **more)
        read = hidden_states if encoder_hidden_states is None else encoder_hidden_states
        query = attn.head_to_batch_dim(attn.to_q(hidden_states))  # (rows*heads, h*w, d)
        key = attn.head_to_batch_dim(attn.to_k(read))  # (rows*heads, 77 or h*w, d)
        value = attn.head_to_batch_dim(attn.to_v(read))
        probabilities = attn.get_attention_scores(query, key, attention_mask)
        maps = probabilities.unflatten(0, (len(hidden_states), attn.heads))
        maps = edit.cross(maps) if self.is_cross else edit.self_(maps)
        mixed = attn.batch_to_head_dim(maps.flatten(0, 1) @ value)  # (rows, h*w, D)
        return attn.to_out[1](attn.to_out[0](mixed))


@contextmanager
def attention_edited(pipe: StableDiffusionPipeline, edit: Edit) -> Iterator[None]:
    """Edit the attention of what is drawn in the block; the processors are put back afterwards."""
    usual = pipe.unet.attn_processors

    def count(*_: Any) -> None:
        edit.calls += 1

    handle = pipe.unet.register_forward_hook(count)
    try:
        pipe.unet.set_attn_processor(
            {
                name: EditedAttention(processor, edit, name.endswith("attn2.processor"))
                for name, processor in usual.items()
            }
        )
        yield
    finally:
        handle.remove()
        pipe.unet.set_attn_processor(dict(usual))  # it empties the dictionary that it is given
