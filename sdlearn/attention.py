"""Cross-attention: which part of the picture listens to which word.

Source: Rombach et al. (2022), section 3.3; Tang et al. (2022), "What the DAAM", for adding maps up.
The maps are computed beside the model's own attention, in hooks that only look, so the picture
stays the same bit for bit whatever kernel draws it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from threading import get_ident
from typing import Any

import torch
import torch.nn.functional as F
from diffusers import StableDiffusionPipeline
from torch import Tensor, nn

from sdlearn import checks
from sdlearn.text import find_word, tokenize
from sdlearn.unet import aside, current_loop, text_start


class AttentionMaps:
    """The maps of one batch of B pictures: text half only, mean over heads and calls.

    Attributes:
        calls: how many times the U-Net ran; with PNDM and Heun more often than once a step.
    """

    def __init__(self, pipe: StableDiffusionPipeline, max_pixels: int, keep_calls: bool) -> None:
        self.calls = 0
        self._pipe, self._max_pixels, self._keep_calls = pipe, max_pixels, keep_calls
        self._sums: dict[str, Tensor] = {}  # layer -> (B, 77, h, w)
        self._kept: list[dict[str, Tensor]] = []  # the same for each call, if asked for
        self._this_call: dict[str, Tensor] = {}  # the same for the call under way
        self._keys: dict[str, Tensor] = {}  # layer -> (B*heads, 77, d), equal at every step
        self._encoded: list[tuple[Tensor, Tensor]] = []  # ids (N, 77), embeddings (N, 77, D)
        self._text = torch.empty(0)  # (B, 77, D), what the maps are about
        self._shape = torch.Size()  # (B or 2B, 4, h, w), what the U-Net was given
        self._start = 0  # first row of the text half
        self._first = self._last = 0.0  # the timesteps of the first call and of the latest
        self._loop: object = None  # the ``denoise`` that draws, or None
        self._encoded_at_start = 0

    @property
    def layers(self) -> list[str]:
        """Names of the layers captured, in the order in which they ran."""
        return list(self._sums)

    def probabilities(self, layer: str, call: int | None = None) -> Tensor:
        """Return a layer's attention, (B, 77, h, w), which sums to 1 over the 77 tokens.

        Args:
            layer: a name from ``layers``.
            call: which call of the U-Net, counted from 0; by default the mean over all.

        Raises:
            ValueError: an unknown layer, or a call that was not kept.
        """
        if layer not in self._sums:
            raise ValueError(f"no layer {layer!r} was captured; choose of {self.layers}")
        if call is None:
            return self._sums[layer] / self.calls
        if not 0 <= call < len(self._kept):
            raise ValueError(
                f"call {call} was not kept: {len(self._kept)} of {self.calls} were; count from 0, "
                "and keep them with capture_attention(pipe, keep_calls=True)"
            )
        return self._kept[call][layer]

    def heat_map(
        self,
        word: str | Sequence[int],
        *,
        prompt: str | None = None,
        layer: str | None = None,
        call: int | None = None,
        index: int = 0,
    ) -> Tensor:
        """Return where the picture listened to a word, (H, W), from 0 at the least to 1.

        Args:
            word: a word of the prompt, or positions among its tokens; the mean over all of them.
            prompt: only needed if the prompt was encoded before the capture began.
            layer: one layer; by default the mean over all.
            call: see ``probabilities``.
            index: which picture of the batch.

        Raises:
            ValueError: a word that is not in the prompt (lists the words), or nothing captured.
        """
        if not self._sums:
            raise ValueError(
                "0 maps were captured; draw inside the with block and in its thread, with a U-Net "
                "that is not compiled and max_pixels not under the positions of its smallest layer"
            )
        index = checks.whole("index", index, 0, len(self._text) - 1, "it counts the pictures")
        if isinstance(word, str):
            word = find_word(self._pipe, self._ids(index, prompt), word)
        height, width = (side * self._pipe.vae_scale_factor for side in self._shape[2:])
        total = torch.zeros(height, width)
        for name in self.layers if layer is None else [layer]:
            maps = self.probabilities(name, call)[index, list(word)]  # (tokens, h, w)
            one = maps.mean(0)[None, None].cpu()  # (1, 1, h, w)
            total += F.interpolate(one, (height, width), mode="bilinear")[0, 0]  # (H, W)
        low, high = total.aminmax()
        return (total - low) / (high - low).clamp(min=1e-12)

    def _ids(self, index: int, prompt: str | None) -> Tensor:
        """Return the token ids, (77,), of a picture's prompt: as encoded, or else as named."""
        rows = [pair for ids, embeds in self._encoded for pair in zip(ids.cpu(), embeds)]
        text = self._text[index]
        found = next((ids for ids, embeds in rows if torch.equal(embeds.to(text), text)), None)
        named = found if prompt is None else tokenize(self._pipe, prompt).ids
        if named is None:
            raise ValueError('got prompt=None; name it, as in heat_map("cat", prompt="a cat")')
        if found is not None and not torch.equal(named, found):
            raise ValueError(f"picture {index} had another prompt than {prompt!r}; leave it out")
        return named

    def _see_text(self, encoder: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        self._encoded.append((args[0] if args else kwargs["input_ids"], output[0]))

    def _before_unet(self, unet: nn.Module, args: Any, kwargs: Any) -> None:
        given = dict(zip(("sample", "timestep", "encoder_hidden_states"), args)) | kwargs
        sample, embeds = given["sample"], given["encoder_hidden_states"]
        t, loop = float(torch.as_tensor(given["timestep"]).max()), current_loop.get()
        if self.calls == 0:
            self._shape, self._start = sample.shape, self._find_text(sample, embeds)
            self._text, self._keys = embeds[self._start :], {}
            self._first, self._loop, self._encoded_at_start = t, loop, len(self._encoded)
        same = sample.shape == self._shape and torch.equal(embeds[self._start :], self._text)
        again = loop is not self._loop
        if text_start.get() is None and self.calls > 0:
            # pipe(...) does not say when it begins. It began anew if t fell and is back at the
            # first one, or did not fall although a prompt was encoded since.
            encoded = len(self._encoded) > self._encoded_at_start
            again = self._last < self._first <= t or (encoded and t >= self._last)
        if again or not same:
            raise ValueError(
                "a capture holds one prompt at one size, drawn once: it began with "
                f"{tuple(self._shape)} at t = {self._first:.0f}, now got {tuple(sample.shape)} "
                f"at t = {t:.0f}; open a new `with capture_attention(pipe)` for each"
            )
        self._this_call, self._last = {}, t

    def _find_text(self, sample: Tensor, embeds: Tensor) -> int:
        """Return the first row of the text half: B under guidance, 0 without."""
        start, count, half = text_start.get(), len(sample), len(sample) // 2
        if start is not None or count == 1:
            return start or 0

        def holds(row: int, encoded: Tensor) -> bool:  # several times with num_images_per_prompt
            rows = encoded.to(embeds).repeat_interleave((count - row) // len(encoded), 0)
            return torch.equal(embeds[row:], rows)

        starts = {row for row in (0, half) for _, encoded in self._encoded if holds(row, encoded)}
        if not torch.equal(sample[:half], sample[half:]):
            starts -= {half}  # Under guidance the U-Net gets the same latents twice.
        # If both halves hold the same text, it does not matter which of them is the prompt's.
        if len(starts) == 1 or (starts and torch.equal(embeds[:half], embeds[half:])):
            return max(starts)
        raise ValueError(
            f"cannot tell which of the {count} rows are the prompt's and which the negative "
            "prompt's; draw with text_to_image or denoise, or let pipe(...) encode both prompts"
        )

    @torch.no_grad()
    def _see_query(self, name: str, attn: Any, _: nn.Module, args: Any, output: Tensor) -> None:
        hidden = output[self._start :]  # (B, h*w, heads*d)
        h, w = self._shape[2:]
        while h * w > hidden.shape[1]:
            h, w = (h + 1) // 2, (w + 1) // 2  # as the U-Net halves them
        if h * w > self._max_pixels:
            return
        query = attn.head_to_batch_dim(hidden)  # (B*heads, h*w, d)
        if name not in self._keys:
            self._keys[name] = attn.head_to_batch_dim(attn.to_k(self._text))
        scores = attn.get_attention_scores(query, self._keys[name])  # (B*heads, h*w, 77)
        scores = scores.view(len(hidden), attn.heads, h, w, -1)
        maps = scores.mean(1, dtype=torch.float32)  # (B, h, w, 77)
        self._this_call[name] = maps.permute(0, 3, 1, 2)

    def _after_unet(self, unet: nn.Module, args: Any, output: Any) -> None:
        """Add the maps up, not earlier: a call that was interrupted has only some of its layers."""
        self.calls += 1
        for name, maps in self._this_call.items():
            self._sums[name] = self._sums[name] + maps if name in self._sums else maps
        if self._keep_calls:
            self._kept.append(self._this_call)


@contextmanager
def capture_attention(
    pipe: StableDiffusionPipeline,
    *,
    layers: str | Iterable[str] | None = None,
    max_pixels: int = 1024,
    keep_calls: bool = False,
) -> Iterator[AttentionMaps]:
    """Record cross-attention while the block draws one picture, or one batch of them.

    Works around ``pipe(...)``, ``text_to_image`` and ``denoise`` alike, in the thread that opened
    the block. Every hook is removed at the end of the block, also after an error.

    Args:
        pipe: the pipeline; its U-Net must not be compiled, and adapters (LoRA) be loaded before.
        layers: beginnings of layer names, such as ["mid_block", "up_blocks.1"]; by default all.
        max_pixels: skip layers with more positions. With 1024, maps go up to 32 x 32 and take
            about 2 MB a picture however many the steps.
        keep_calls: keep the maps of each call of the U-Net too; memory then grows with the steps.

    Yields:
        The ``AttentionMaps``, which fill while the block runs.

    Raises:
        ValueError: no such layer, or a compiled U-Net; inside the block, a second picture, or a
            batch in which the prompt's rows cannot be told from the negative prompt's. Only a loop
            written by hand around ``predict_noise`` is not recognised when it starts again.
    """
    checks.pipeline(pipe)
    checks.uncompiled(pipe)
    modules = {name: m for name, m in pipe.unet.named_modules() if name.endswith("attn2")}
    wanted = (layers,) if isinstance(layers, str) else tuple(modules if layers is None else layers)
    chosen = {name: m for name, m in modules.items() if name.startswith(wanted)}
    if not chosen:
        raise ValueError(f"no layer matches layers={layers!r}; choose of {[*modules]}")
    maps = AttentionMaps(pipe, max_pixels, keep_calls)
    here = get_ident(), aside.get()

    def in_this_thread(hook: Callable[..., None]) -> Callable[..., None]:
        return lambda *seen: hook(*seen) if (get_ident(), aside.get()) == here else None

    handles = [
        pipe.text_encoder.register_forward_hook(in_this_thread(maps._see_text), with_kwargs=True),
        pipe.unet.register_forward_pre_hook(in_this_thread(maps._before_unet), with_kwargs=True),
        pipe.unet.register_forward_hook(in_this_thread(maps._after_unet)),
    ]
    for name, module in chosen.items():
        hook = in_this_thread(partial(maps._see_query, name, module))
        handles.append(module.to_q.register_forward_hook(hook))  # every processor asks to_q
    try:
        yield maps
    finally:
        for handle in handles:
            handle.remove()
