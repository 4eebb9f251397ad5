"""The stage explorer in a notebook: one drawing, taken apart in the browser.

``explorer.js`` shows a *recording*: plain numbers, pictures and words. Here one is made from a
``Trace`` and packed small; the live page makes its own and shows it in the same view.
"""

from __future__ import annotations

import io
import math
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import anywidget
import numpy as np
import torch
import torch.nn.functional as F
import traitlets
from diffusers import StableDiffusionPipeline
from PIL import Image
from torch import Tensor

from sdlearn import checks
from sdlearn.attention import AttentionMaps
from sdlearn.images import to_pil
from sdlearn.latents import decode_latents
from sdlearn.postcards import unknown_words
from sdlearn.postcards.model import is_postcards
from sdlearn.sampling import Step, Trace
from sdlearn.text import Tokens, tokenize

LARGE = 32 * 32  # Places of the latents: a recording of more is packed tighter.
MAP_SIDE = 16  # Places of a heat map's longer side; finer ones are averaged down.
PICTURE_SIDE = 256  # Pixels of a large model's predicted pictures.
CURVE_POINTS = 50


class TraceExplorer(anywidget.AnyWidget):
    """One drawing with everything in it; it needs a running notebook.

    Attributes:
        header: the recording as JSON, with places in ``data`` where numbers and pictures stand.
        data: those, compressed. See ``Pack``.
    """

    _esm = Path(__file__).with_name("explorer.js")
    _css = Path(__file__).with_name("explorer.css")
    header = traitlets.Dict().tag(sync=True)
    data = traitlets.Bytes().tag(sync=True)

    def __repr__(self) -> str:
        steps, layers = len(self.header["steps"]), len(self.header["layers"])
        maps = f"heat maps of {layers} layers" if layers else "no heat maps"
        return f"TraceExplorer of {self.header['prompt']!r}: {steps} steps, {maps}"


def explore(
    pipe: StableDiffusionPipeline,
    trace: Trace,
    maps: AttentionMaps | None = None,
    *,
    index: int = 0,
    maps_index: int | None = None,
    negative_prompt: str | None = None,
    seed: int | None = None,
) -> TraceExplorer:
    """Take a drawing apart: tokens, latents, noise, predicted pictures and heat maps, step by step.

    It works for every model, and for every ``Trace``: of ``text_to_image``, ``image_to_image``,
    ``inpaint``, and either of the two of ``edit_prompt``. Each step's predicted picture is decoded
    here, which takes the VAE as long again as one picture does, for each step.

    What the browser is sent stays small. Latents, noise and maps are rounded to whole levels
    between the least and the greatest value of each channel or word: 65,536 levels, and pictures
    without loss, for a model with latents of up to 32 × 32. Larger ones get 256 levels, predicted
    pictures of 256 pixels, and WebP with loss. Maps of more than 16 × 16 are averaged down.
    All that is compressed: 0.4 MB for postcards' 10 steps, 2 to 3 MB for Stable Diffusion 1.5's
    50 steps at 512 × 512, the more the longer the prompt.

    Args:
        pipe: the pipeline that made the trace; its VAE decodes the predicted pictures.
        trace: the drawing.
        maps: from a ``capture_attention(pipe, keep_calls=True)`` around the call that made the
            trace. Without ``keep_calls`` there is only the mean over the steps; without maps,
            there are no heat maps, and the explorer says so.
        index: which picture of the trace.
        maps_index: which picture of the maps; found by its prompt if left out. Needed where
            several pictures had the same prompt and the maps are of more pictures than the trace.
        negative_prompt: shown if given, as is the seed; a trace keeps neither.
        seed: likewise.

    Raises:
        TypeError, ValueError: no trace or one of another pipeline, an index that it has not, or
            maps of another drawing.
    """
    checks.pipeline(pipe)
    index = _checked(pipe, trace, index)
    row = None if maps is None else _maps_row(trace, maps, index, maps_index)
    large = math.prod(trace.latents.shape[2:]) > LARGE
    pack = Pack(bits=8 if large else 16)
    tokens = tokenize(pipe, trace.prompts[index])
    header = _facts(pipe, trace, index) | {
        "negative_prompt": negative_prompt or "",
        "seed": seed,
        "tokens": _tokens(pipe, tokens),
        "picture": pack.picture(trace.images[index], lossless=not large),
        "pictures": [
            pack.picture(_smaller(image) if large else image, lossless=not large)
            for image in _predicted(pipe, trace.steps, index)
        ],
    }
    header |= _numbers(trace.steps, index, pack)
    if maps is not None and row is not None:
        header |= _maps(maps, row, tokens, pack)
    return TraceExplorer(header=header, data=pack.compressed())


class Pack:
    """Numbers and pictures one after the other in bytes; each call says where they went.

    Numbers are stacks of frames, (N, C, h, w). Each channel's are rounded to whole levels between
    its least and its greatest value, and of each frame the difference from the one before is
    kept, modulo the number of levels: one step is much like the next, and so they compress well.
    """

    def __init__(self, bits: int) -> None:
        self.bits = bits
        self._parts: list[bytes] = []

    def numbers(self, stack: Tensor) -> dict[str, Any]:
        """Add a stack, (N, C, h, w)."""
        stack = stack.detach().float().cpu()
        if not stack.isfinite().all():
            raise ValueError("the trace holds numbers that are not finite; draw in float32")
        low, high = stack.amin((0, 2, 3)), stack.amax((0, 2, 3))  # (C,) each
        top = 2**self.bits - 1
        scale = top / (high - low).clamp(min=1e-12)
        levels = ((stack - low[:, None, None]) * scale[:, None, None]).round().numpy()
        levels = levels.astype("<u2" if self.bits == 16 else "u1")
        change = np.diff(levels, axis=0, prepend=np.zeros_like(levels[:1]))
        where = self._add(change.tobytes())
        return where | {
            "shape": list(stack.shape),
            "bits": self.bits,
            "low": low.tolist(),
            "high": high.tolist(),
        }

    def picture(self, image: Image.Image, lossless: bool) -> dict[str, Any]:
        """Add a picture as WebP."""
        buffer = io.BytesIO()
        image.save(buffer, format="webp", lossless=lossless, quality=80)
        return self._add(buffer.getvalue())

    def compressed(self) -> bytes:
        """Return all of it, compressed."""
        return zlib.compress(b"".join(self._parts))

    def _add(self, part: bytes) -> dict[str, Any]:
        where = {"at": sum(map(len, self._parts)), "bytes": len(part)}
        self._parts.append(part)
        return where


def _checked(pipe: StableDiffusionPipeline, trace: Trace, index: int) -> int:
    """Return the index, if the trace is one, was drawn by such a pipeline, and has it."""
    if isinstance(trace, tuple):
        raise TypeError(f"got {len(trace)} traces; pass one of them, as in explore(pipe, trace[1])")
    if not isinstance(trace, Trace):
        raise TypeError(
            f"expected a Trace, got {type(trace).__name__}; text_to_image returns one, "
            "and so do image_to_image, inpaint and edit_prompt"
        )
    checks.latents(pipe, trace.latents)
    height, width = (side * pipe.vae_scale_factor for side in trace.latents.shape[2:])
    if trace.pixels.shape[2:] != (height, width):
        raise ValueError(
            f"this pipeline decodes such latents to {height} x {width}, but the trace's picture is "
            f"{tuple(trace.pixels.shape[2:])}; pass the pipeline that drew it"
        )
    return checks.whole(
        "index", index, 0, len(trace.images) - 1, "it counts the pictures of the trace"
    )


def _maps_row(trace: Trace, maps: AttentionMaps, index: int, wanted: int | None) -> int:
    """Return which picture of the maps is the trace's: the one that was drawn with its prompt."""
    if not isinstance(maps, AttentionMaps):
        raise TypeError(
            f"expected the maps of a capture, got {type(maps).__name__}; "
            "with capture_attention(pipe, keep_calls=True) as maps: ..."
        )
    if not maps.layers:
        raise ValueError("the maps are empty; draw inside the with block, or leave the maps out")
    if maps.calls != len(trace.steps):
        raise ValueError(
            f"the maps are of {maps.calls} calls of the U-Net, the trace of {len(trace.steps)}; "
            "pass those of the capture around the call that drew it"
        )
    text = trace.prompt_embeds[len(trace.prompts) + index]  # (77, D)
    rows = [i for i, seen in enumerate(maps._text) if torch.equal(seen.to(text), text)]
    if not rows:
        raise ValueError(f"the maps are of another prompt than {trace.prompts[index]!r}")
    if wanted is not None:
        return checks.whole("maps_index", wanted, 0, len(maps._text) - 1, "one of the maps'")
    if len(maps._text) == len(trace.prompts) and index in rows:
        return index
    if len(rows) > 1:
        raise ValueError(f"pictures {rows} of the maps had this prompt; choose one by maps_index")
    return rows[0]


def _facts(pipe: StableDiffusionPipeline, trace: Trace, index: int) -> dict[str, Any]:
    """Return what the recording says in words and single numbers."""
    table = pipe.scheduler.alphas_cumprod  # (1000,)
    shown = torch.linspace(0, len(table) - 1, CURVE_POINTS).round().long()
    height, width = trace.pixels.shape[2:]
    return {
        "format": 1,
        "model": Path(pipe.name_or_path or "a model without a name").name,
        "prompt": trace.prompts[index],
        "guidance_scale": _guidance_scale(trace.steps, index),
        "sampler": type(pipe.scheduler).__name__.removesuffix("Scheduler"),
        "width": width,
        "height": height,
        "noise_curve": [[t, float(table[t])] for t in shown.tolist()],
        "steps": [{"t": float(step.t), "alpha_bar": step.alpha_bar} for step in trace.steps],
        "layers": [],
        "rows": [],
        "done": len(trace.steps),
    }


def _guidance_scale(steps: Sequence[Step], index: int) -> float | None:
    """Return the g of guided = without + g (with - without), which a trace does not keep.

    1 without guidance; None if the prompt changed nothing, or if the guided prediction was
    rescaled, as no one g gives it then.
    """
    without = steps[0].noise_pred_uncond
    if without is None:
        return 1.0
    difference = (steps[0].noise_pred_text - without)[index].double()
    moved = (steps[0].noise_pred - without)[index].double()
    if not (length := difference.square().sum()):
        return None
    scale = float((difference * moved).sum() / length)
    exact = (moved - scale * difference).square().mean() < 1e-4 * moved.square().mean()
    return round(scale, 2) if exact else None


def _tokens(pipe: StableDiffusionPipeline, tokens: Tokens) -> dict[str, Any]:
    learnt = pipe.tokenizer.get_added_vocab()  # by textual inversion

    def known(word: str) -> bool:
        return not is_postcards(pipe) or word in learnt or not unknown_words(word)

    return {
        "ids": tokens.ids.tolist(),
        "pieces": list(tokens.pieces),
        "words": [
            {"text": word, "positions": list(positions), "known": known(word)}
            for word, positions in tokens.words.items()
        ],
        "cut_off": list(tokens.truncated),
    }


def _predicted(
    pipe: StableDiffusionPipeline, steps: Sequence[Step], index: int
) -> list[Image.Image]:
    """Decode each step's predicted picture, one at a time, as memory may be short."""
    decoded = []
    for step in steps:
        latents = step.pred_original_sample[index : index + 1]
        decoded += to_pil(pipe, decode_latents(pipe, latents))
    return decoded


def _smaller(image: Image.Image) -> Image.Image:
    """Return a picture as it is, or of ``PICTURE_SIDE`` pixels on the longer side."""
    share = PICTURE_SIDE / max(image.size)
    if share >= 1:
        return image
    width, height = (round(side * share) for side in image.size)
    return image.resize((width, height), Image.Resampling.LANCZOS)


def _numbers(steps: Sequence[Step], index: int, pack: Pack) -> dict[str, Any]:
    """Add latents and noise; x_t as the U-Net saw it, since Euler's own may be 14 times larger."""
    before = [step.model_input[index] for step in steps]
    without = [step.noise_pred_uncond for step in steps]
    return {
        "latents": pack.numbers(torch.stack([*before, steps[-1].prev_sample[index]])),
        "noise_pred_uncond": None
        if without[0] is None
        else pack.numbers(torch.stack([noise[index] for noise in without if noise is not None])),
        "noise_pred_text": pack.numbers(torch.stack([s.noise_pred_text[index] for s in steps])),
        "noise_pred": pack.numbers(torch.stack([s.noise_pred[index] for s in steps])),
    }


def _maps(maps: AttentionMaps, row: int, tokens: Tokens, pack: Pack) -> dict[str, Any]:
    """Add each layer's maps: of all steps if they were kept, else of their mean."""
    words = list(tokens.words.values())
    kept = len(maps._kept) == maps.calls
    layers, stacks = [], []
    for name in maps.layers:
        calls = range(maps.calls) if kept else (None,)
        each = [maps.probabilities(name, call)[row].cpu() for call in calls]  # (77, h, w) each
        height, width = each[0].shape[1:]
        layers.append({"name": name, "height": height, "width": width})
        stacks.append(pack.numbers(torch.stack([by_word(one, words) for one in each])))
    return {
        "layers": layers,
        "rows": ["start", *range(len(words)), "rest"],
        "maps" if kept else "mean_maps": stacks,
    }


def by_word(probabilities: Tensor, words: Sequence[Sequence[int]]) -> Tensor:
    """Return a layer's attention by words, (2 + words, h, w), which still sums to 1.

    First the start token, then each word's tokens together, then the end token and the padding.

    Args:
        probabilities: (77, h, w).
        words: the positions of each word among the 77.
    """
    height, width = probabilities.shape[1:]
    by = math.ceil(max(height, width) / MAP_SIDE)
    size = (math.ceil(height / by), math.ceil(width / by))
    small = F.interpolate(probabilities.float()[None], size, mode="area")[0]  # (77, h, w)
    named = torch.stack([small[0], *(small[list(at)].sum(0) for at in words)])
    rest = 1 - named.sum(0, keepdim=True)
    return torch.cat([named, rest])
