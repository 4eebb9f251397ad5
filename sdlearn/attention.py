"""Cross-attention: which part of the picture listens to which word.

Source: Rombach et al. (2022), section 3.3; Tang et al. (2022), "What the DAAM", for adding maps up.
The maps are computed beside the model's own attention, in hooks that only look, so the picture
stays the same bit for bit whatever kernel draws it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from diffusers import StableDiffusionPipeline
from torch import Tensor, nn

from sdlearn import checks
from sdlearn.text import tokenize


class AttentionMaps:
    """The maps of one batch of B pictures: text half only, mean over heads, summed over calls.

    Attributes:
        calls: how many times the U-Net ran; with PNDM and Heun more often than once a step.
    """

    def __init__(self, pipe: StableDiffusionPipeline, max_pixels: int, keep_calls: bool) -> None:
        self.calls = 0
        self._pipe, self._max_pixels, self._keep_calls = pipe, max_pixels, keep_calls
        self._sums: dict[str, Tensor] = {}  # layer -> (B, 77, h, w)
        self._kept: list[dict[str, Tensor]] = []  # the same for each call, if asked for
        self._keys: dict[str, Tensor] = {}  # layer -> (B*heads, 77, d), equal at every step
        self._encoded: list[tuple[Tensor, Tensor]] = []  # ids (B, 77), embeddings (B, 77, D)
        self._ids: Tensor | None = None  # (B, 77)
        self._text = torch.empty(0)  # (B, 77, D), what the maps are about
        self._shape = torch.Size()  # (B or 2B, 4, h, w), what the U-Net was given
        self._start = 0  # first row of the text half

    @property
    def layers(self) -> list[str]:
        """Names of the layers captured, in the order in which they ran."""
        return list(self._sums)

    def probabilities(self, layer: str, call: int | None = None) -> Tensor:
        """Return a layer's attention, (B, 77, h, w), which sums to 1 over the 77 tokens.

        Args:
            layer: a name from ``layers``.
            call: which call of the U-Net (``Step.i``), or the mean over all.

        Raises:
            ValueError: an unknown layer, or a call that was not kept.
        """
        if layer not in self._sums:
            raise ValueError(f"no layer {layer!r} was captured; choose of {self.layers}")
        if call is None:
            return self._sums[layer] / self.calls
        if not 0 <= call < len(self._kept):
            raise ValueError(
                f"call {call} was not kept: {len(self._kept)} of {self.calls} were; "
                "use capture_attention(pipe, keep_calls=True)"
            )
        return self._kept[call][layer]

    def heat_map(
        self,
        word: str,
        *,
        prompt: str | None = None,
        layer: str | None = None,
        call: int | None = None,
        index: int = 0,
    ) -> Tensor:
        """Return where the picture listened to a word, (H, W), from 0 at the least to 1.

        Args:
            word: a word of the prompt; the mean, where it has several tokens or places.
            prompt: only needed if the prompt was encoded before the capture began.
            layer: one layer, or the mean over all.
            call: one call of the U-Net, or the mean over all.
            index: which picture of the batch.

        Raises:
            ValueError: a word that is not in the prompt (lists the words), or nothing captured.
        """
        if not self._sums:
            raise ValueError(
                "0 maps were captured; draw inside the with block, with a U-Net that is not "
                "compiled and max_pixels above the size of its smallest layer"
            )
        positions = tokenize(self._pipe, prompt or self._prompt(index)).positions(word)
        height, width = (side * self._pipe.vae_scale_factor for side in self._shape[2:])
        total = torch.zeros(height, width)
        for name in self.layers if layer is None else [layer]:
            maps = self.probabilities(name, call)[index, positions]  # (tokens, h, w)
            one = maps.mean(0)[None, None].cpu()  # (1, 1, h, w)
            total += F.interpolate(one, (height, width), mode="bilinear")[0, 0]  # (H, W)
        low, high = total.aminmax()
        return (total - low) / (high - low).clamp(min=1e-12)

    def _prompt(self, index: int) -> str:
        """Return the prompt that was encoded during the capture, in lower case."""
        if self._ids is not None:
            text = self._pipe.tokenizer.decode(self._ids[index], skip_special_tokens=True)
            if torch.equal(tokenize(self._pipe, text).ids, self._ids[index].cpu()):
                return text
        raise ValueError('got prompt=None; name the prompt, as in heat_map("cat", prompt="a cat")')

    def _see_text(self, encoder: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        self._encoded.append((args[0] if args else kwargs["input_ids"], output[0]))

    def _see_unet(self, unet: nn.Module, args: Any, kwargs: Any) -> None:
        sample, embeds = args[0] if args else kwargs["sample"], kwargs["encoder_hidden_states"]
        if self.calls == 0:
            self._shape, self._start = sample.shape, self._find_text(sample, embeds)
            self._text = embeds[self._start :]
        if sample.shape != self._shape or not torch.equal(embeds[self._start :], self._text):
            raise ValueError(
                f"a capture holds one prompt at one size: it began with {tuple(self._shape)}, now "
                f"got {tuple(sample.shape)}; open a new `with capture_attention(pipe)` for each"
            )
        self.calls += 1
        self._kept += [{}] if self._keep_calls else []

    def _find_text(self, sample: Tensor, embeds: Tensor) -> int:
        """Return the first row of the text half: B under guidance, 0 without."""
        half = len(sample) // 2
        for ids, encoded in reversed(self._encoded):
            for start in (0, half):
                if torch.equal(embeds[start:], encoded.to(embeds)):
                    self._ids = ids
                    return start
        # Encoded earlier, so unknown; but under guidance the U-Net gets the same latents twice.
        return half if torch.equal(sample[:half], sample[-half:]) else 0

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
        maps = scores.mean(1, dtype=torch.float32).permute(0, 3, 1, 2)  # (B, 77, h, w)
        if name in self._sums:
            self._sums[name] += maps
        else:
            self._sums[name] = maps.clone()
        if self._keep_calls:
            self._kept[-1][name] = maps


@contextmanager
def capture_attention(
    pipe: StableDiffusionPipeline,
    *,
    layers: Iterable[str] | None = None,
    max_pixels: int = 1024,
    keep_calls: bool = False,
) -> Iterator[AttentionMaps]:
    """Record cross-attention while the block draws one picture, or one batch of them.

    Works around ``pipe(...)``, ``text_to_image`` and ``denoise`` alike. Every hook is removed at
    the end of the block, also after an error.

    Args:
        pipe: the pipeline; its U-Net must not be compiled.
        layers: beginnings of layer names, such as ["mid_block", "up_blocks.1"]; by default all.
        max_pixels: skip layers with more positions. With 1024, maps go up to 32 x 32 and take
            about 2 MB a picture however many the steps.
        keep_calls: keep the maps of each call of the U-Net too; memory then grows with the steps.

    Yields:
        The ``AttentionMaps``, which fill while the block runs.

    Raises:
        ValueError: no such layer.
    """
    checks.pipeline(pipe)
    modules = {name: m for name, m in pipe.unet.named_modules() if name.endswith("attn2")}
    wanted = tuple(modules if layers is None else layers)
    chosen = {name: m for name, m in modules.items() if name.startswith(wanted)}
    if not chosen:
        raise ValueError(f"no layer matches layers={layers!r}; choose of {[*modules]}")
    maps = AttentionMaps(pipe, max_pixels, keep_calls)
    handles = [
        pipe.text_encoder.register_forward_hook(maps._see_text, with_kwargs=True),
        pipe.unet.register_forward_pre_hook(maps._see_unet, with_kwargs=True),
    ]
    for name, module in chosen.items():
        hook = partial(maps._see_query, name, module)  # every processor asks to_q for its queries
        handles.append(module.to_q.register_forward_hook(hook))
    try:
        yield maps
    finally:
        for handle in handles:
            handle.remove()
