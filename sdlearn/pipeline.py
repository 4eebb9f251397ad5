"""Which model, where, and in what precision."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import StableDiffusionPipeline
from diffusers.utils import logging as diffusers_logging
from transformers.utils import logging as transformers_logging

from sdlearn import checks


@dataclass(frozen=True)
class Model:
    """A model that ``load`` knows by name.

    Attributes:
        source: a folder, or a repository on the Hugging Face hub.
        revision: the commit there; None for a folder.
        licence: of the weights.
        memory: what it needs.
        fallback: the model to use where this one cannot be had.
    """

    source: str
    revision: str | None
    licence: str
    memory: str
    fallback: str | None


MODELS = {
    "postcards": Model(
        source=str(Path(__file__).parent / "models" / "postcards"),
        revision=None,
        licence="MIT",
        memory="under 1 GB, no GPU",
        fallback=None,
    ),
    "sd15": Model(
        source="stable-diffusion-v1-5/stable-diffusion-v1-5",
        revision="451f4fe16113bff5a5d2269ed5ad43b0592e9a14",
        licence="CreativeML Open RAIL-M",
        memory="4 GB of GPU memory in float16, 8 GB of memory in float32",
        fallback="postcards",
    ),
}


def load(
    model: str | os.PathLike[str] | StableDiffusionPipeline | None = None,
    *,
    device: str | torch.device | None = None,
    dtype: torch.dtype | None = None,
    safety_checker: bool = True,
) -> StableDiffusionPipeline:
    """Return an ordinary diffusers pipeline, and print which one, where, and how to get another.

    Args:
        model: "postcards", "sd15", a folder in diffusers' layout, a ``.safetensors`` checkpoint,
            or a pipeline, which is only checked, and moved if asked. By default the environment
            variable ``SDLEARN_MODEL``; else sd15 where there is a CUDA GPU and its weights can be
            had; else postcards.
        device: the GPU if there is one.
        dtype: float16 on CUDA, float32 elsewhere.
        safety_checker: False leaves out the part of sd15 that blacks out unsafe pictures.

    Returns:
        The pipeline, in evaluation mode, with frozen weights (fine-tuning thaws what it needs).

    Raises:
        ValueError: no model of that name.
        RuntimeError: the model cannot be had; says why and what to do.
        TypeError: not a pipeline of Stable Diffusion's kind.
    """
    if model is not None and not isinstance(model, (str, os.PathLike)):
        checks.pipeline(model)
        return model.to(*(wish for wish in (device, dtype) if wish is not None))
    where = torch.device(device or _best_device())
    dtype = dtype or (torch.float16 if where.type == "cuda" else torch.float32)
    asked = model or os.environ.get("SDLEARN_MODEL")
    name = str(asked or ("sd15" if where.type == "cuda" else "postcards"))
    other = "postcards" if name == "sd15" else "sd15"
    note = f'load("{other}") gives the other model'
    try:
        pipe = _read(name, dtype, safety_checker)
    except RuntimeError as error:
        fallback = MODELS[name].fallback if name in MODELS else None
        if asked or fallback is None:
            raise
        name, note = fallback, str(error)
        pipe = _read(name, dtype, safety_checker)
    for part in pipe.components.values():
        if isinstance(part, torch.nn.Module):
            part.requires_grad_(False)
    pipe.to(where)
    print(f"sdlearn: {name} on {where} in {str(dtype).removeprefix('torch.')} ({note})")
    return pipe


def _best_device() -> str:
    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"


def _read(name: str, dtype: torch.dtype, safety_checker: bool) -> StableDiffusionPipeline:
    options: dict[str, Any] = {"torch_dtype": dtype}
    if not safety_checker:
        options |= {"safety_checker": None, "requires_safety_checker": False}
    known, path = MODELS.get(name), Path(name)
    if known and known.revision:
        options |= {"use_safetensors": True, "revision": known.revision}
        options |= {"variant": "fp16"} if dtype == torch.float16 else {}
        remedy = f"go online once, to fetch it into the cache, or load({known.fallback!r})"
        with _explained(name, remedy):
            return StableDiffusionPipeline.from_pretrained(known.source, **options)
    if known:
        with _explained(name, "install sdlearn again, its files are not whole"), _quiet():
            pipe = StableDiffusionPipeline.from_pretrained(known.source, **options)
        pipe.set_progress_bar_config(disable=True)  # a picture takes about a second
        return pipe
    if path.is_dir():
        with _explained(name, "point to a folder that holds a model_index.json"):
            return StableDiffusionPipeline.from_pretrained(name, **options)
    if path.is_file() and path.suffix == ".safetensors":
        with _explained(name, "go online once, to fetch its layout, or load a folder"):
            return StableDiffusionPipeline.from_single_file(name, torch_dtype=dtype)
    raise ValueError(
        f"no model {name!r}; pass one of {[*MODELS]}, a folder in diffusers' layout, "
        "a .safetensors file or a pipeline"
    )


@contextmanager
def _explained(name: str, remedy: str) -> Iterator[None]:
    """Turn the many errors of downloading and reading into one that says what to do."""
    try:
        with warnings.catch_warnings():
            # diffusers 0.39 knows only torch_dtype, 0.42 would rather be given dtype.
            warnings.filterwarnings("ignore", "`torch_dtype` is deprecated", FutureWarning)
            yield
    except Exception as error:
        reason = str(error).strip().partition("\n")[0]
        raise RuntimeError(f"cannot load {name!r}: {reason} To do: {remedy}") from error


@contextmanager
def _quiet() -> Iterator[None]:
    """Hide the loading bars of both libraries."""
    shown = [
        log for log in (diffusers_logging, transformers_logging) if log.is_progress_bar_enabled()
    ]
    for log in shown:
        log.disable_progress_bar()
    try:
        yield
    finally:
        for log in shown:
            log.enable_progress_bar()
