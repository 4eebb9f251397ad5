"""Which model, where, and in what precision."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
from diffusers import StableDiffusionPipeline
from diffusers.utils import logging as diffusers_logging
from transformers.utils import logging as transformers_logging

from sdlearn import checks, hub, sources

# Name -> a folder and None, or a repository on the Hugging Face hub and a commit there.
MODELS: dict[str, tuple[str, str | None]] = {
    "postcards": (str(Path(__file__).parent / "models" / "postcards"), None),
    "sd15": (
        "stable-diffusion-v1-5/stable-diffusion-v1-5",
        "451f4fe16113bff5a5d2269ed5ad43b0592e9a14",
    ),
}


def load(
    model: str | os.PathLike[str] | StableDiffusionPipeline | None = None,
    *,
    device: str | torch.device | None = None,
    dtype: torch.dtype | None = None,
    safety_checker: bool = True,
    low_memory: bool = False,
) -> StableDiffusionPipeline:
    """Return an ordinary diffusers pipeline, and print which one, where, and how to get another.

    Args:
        model: "postcards", "sd15", a folder in diffusers' layout, a ``.safetensors`` checkpoint,
            or a pipeline, which is only checked, and moved if asked. By default the environment
            variable ``SDLEARN_MODEL``; else sd15 if the device is CUDA and its weights can be had;
            else postcards.
        device: by default the environment variable ``SDLEARN_DEVICE``; else the GPU if there is
            one.
        dtype: by default float16 on CUDA, float32 elsewhere; a given pipeline keeps its own.
        safety_checker: False leaves out the part of sd15 that blacks out unsafe pictures.
        low_memory: for small GPUs, such as those of 4 GB. The weights lie in the computer's memory
            and come to the GPU when they are called: of sd15 in float16, 0.2 GB of text encoder,
            1.7 GB of U-Net, and for decoding 0.2 GB of VAE in place of the U-Net; the safety
            checker's 0.6 GB stay there. After each picture they leave again, so each takes longer
            by the time of moving them. The VAE decodes the pictures of a batch one by one, and
            what is larger than it was trained on (512 x 512 pixels) in tiles: such a picture
            differs a little. It needs a GPU, and a model to load.

    Returns:
        The pipeline. A loaded one is in evaluation mode, its weights frozen (fine-tuning thaws what
        it needs); a given one keeps its state.

    Raises:
        ValueError: no model of that name, or one that is not built as Stable Diffusion 1.x is; or
            ``low_memory`` where there is nothing to save.
        RuntimeError: the model or the device cannot be had; says why and what to do.
        TypeError: not a pipeline.
    """
    if dtype is not None and not isinstance(dtype, torch.dtype):
        raise TypeError(f"dtype must be a torch.dtype, got {dtype!r}; use torch.float16")
    if model is not None and not isinstance(model, (str, os.PathLike)):
        checks.pipeline(model)
        if low_memory:
            raise ValueError(
                "low_memory=True is for a model that is loaded, got a pipeline; load it anew, or "
                "call its own enable_model_cpu_offload() and vae.enable_slicing()"
            )
        return model.to(device=None if device is None else _device(device), dtype=dtype)
    named = (os.environ.get("SDLEARN_DEVICE") or None) if device is None else device
    where = torch.device(_best_device()) if named is None else _device(named)
    if low_memory and where.type in ("cpu", "mps", "meta"):
        raise ValueError(
            f"low_memory=True keeps weights in the computer's memory until a GPU needs them, got "
            f"the device {str(where)!r}, which has no memory of its own; leave it out, or pass "
            'device="cuda" if there is one'
        )
    dtype = dtype or (torch.float16 if where.type == "cuda" else torch.float32)
    asked = model or os.environ.get("SDLEARN_MODEL")
    name = str(asked or ("sd15" if where.type == "cuda" else "postcards"))
    other = "postcards" if name == "sd15" else "sd15"
    note = f'load("{other}") gives the other model'
    try:
        pipe = _read(name, dtype, safety_checker)
    except RuntimeError as error:
        if asked or name == "postcards":
            raise
        name, note = "postcards", str(error)
        pipe = _read(name, dtype, safety_checker)
    checks.pipeline(pipe)
    if (count := len(pipe.tokenizer)) < pipe.text_encoder.config.vocab_size:
        raise ValueError(f"{name!r} has a tokenizer of {count} tokens; look for its missing files")
    for part in pipe.components.values():
        if isinstance(part, torch.nn.Module):
            part.requires_grad_(False)
    if low_memory:
        _save_memory(pipe, where)
    else:
        pipe.to(where)
    how = str(dtype).removeprefix("torch.") + (" with low memory" if low_memory else "")
    print(f"sdlearn: {name} on {where} in {how} ({note})")
    return pipe


def _save_memory(pipe: StableDiffusionPipeline, where: torch.device) -> None:
    """Let the weights come to a device when they are called, and the VAE work in small pieces."""
    # diffusers' default sends the text encoder away, too, when the U-Net is called. But where a
    # word is learnt, the gradient goes back through it afterwards.
    pipe.model_cpu_offload_seq = "unet->vae"
    pipe.enable_model_cpu_offload(device=where)
    pipe.vae.enable_slicing()
    pipe.vae.enable_tiling()


def execution_device(pipe: StableDiffusionPipeline) -> torch.device:
    """Return where a pipeline computes; with its weights offloaded, ``pipe.device`` is elsewhere.

    diffusers' own name for it, in all its pipelines, is the private one.
    """
    return pipe._execution_device


def _device(name: str | torch.device) -> torch.device:
    """Return the device of that name, or say that it is not here."""
    try:
        torch.empty(0, device=name)
    except (RuntimeError, AssertionError) as error:  # an AssertionError from a torch without CUDA
        reason = str(error).partition("\n")[0].rstrip(".")
        raise RuntimeError(f'no device {str(name)!r} here ({reason}); use "cpu"') from error
    return torch.device(name)


def _best_device() -> str:
    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"


def _read(name: str, dtype: torch.dtype, safety_checker: bool) -> StableDiffusionPipeline:
    known, path = MODELS.get(name), Path(name)
    if not known and path.is_file() and path.suffix in sources.PICKLES:
        raise ValueError(
            f"{name!r} is a pickle, which can run any code when it is opened, so sdlearn opens "
            "none; get the model's .safetensors file: most are published as both"
        )
    if not known and path.is_file() and path.suffix == ".safetensors":
        with hub.explained(name, "go online once, to fetch its layout, or load a folder"):
            layout = sources.check_checkpoint(path)
            pipe = StableDiffusionPipeline.from_single_file(name, torch_dtype=dtype, **layout)
            sources.check_complete(pipe, path)
            return pipe
    if not known and not path.is_dir():
        raise ValueError(
            f"no model {name!r}; pass one of {[*MODELS]}, a folder in diffusers' layout, "
            "a .safetensors file or a pipeline"
        )
    source, revision = known or (name, None)
    options: dict[str, Any] = {"torch_dtype": dtype, "use_safetensors": True}
    if not safety_checker:
        options |= {"safety_checker": None, "requires_safety_checker": False}
    if revision:
        variant = {"variant": "fp16"} if dtype == torch.float16 else {}
        with hub.explained(name, hub.AGAIN):
            return hub.load(source, revision, {**options, **variant})
    if known:
        remedy = "install sdlearn again, its files are not whole"
    else:
        remedy = "point to a folder with a model_index.json and .safetensors files"
    quiet = name == "postcards"  # a progress bar is of no use for what takes a second
    with hub.explained(name, remedy), _no_bars() if quiet else nullcontext():
        sources.check_shipped() if known else sources.check_folder(path)
        pipe = StableDiffusionPipeline.from_pretrained(source, **options)
        sources.check_complete(pipe, Path(source))
    if quiet:
        pipe.set_progress_bar_config(disable=True)
    return pipe


@contextmanager
def _no_bars() -> Iterator[None]:
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
