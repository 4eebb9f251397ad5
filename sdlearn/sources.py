"""Weights in the package, a folder or a file: are they whole, and fit to be read?"""

from __future__ import annotations

import functools
import hashlib
import math
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from diffusers import StableDiffusionPipeline
from safetensors import SafetensorError, safe_open
from transformers import CLIPTokenizer

PACKAGE = Path(__file__).parent
SHIPPED = PACKAGE / "weights.sha256"  # of every weight in the package; ``sha256sum -c`` reads it
SD15_LAYOUT = PACKAGE / "models" / "sd15"  # the configuration of a checkpoint in one file
PICKLES = {".ckpt", ".pt", ".pth", ".bin", ".pkl"}
# The files that are read where a folder holds variants, too.
WEIGHTS = re.compile(r"(diffusion_pytorch_)?model(-\d+-of-\d+)?\.safetensors").fullmatch
# What tells a checkpoint in the original layout of SD 1.x, and of what came after.
TO_K = "model.diffusion_model.input_blocks.1.1.transformer_blocks.0.attn2.to_k.weight"
CLIP = "cond_stage_model.transformer.text_model.embeddings.position_embedding.weight"
LATER = ("conditioner.", "joint_blocks.", "double_blocks.")  # SDXL, SD 3, FLUX


class Damaged(OSError):
    """A file has other bytes than it was published with."""


class Refused(ValueError):
    """A model that sdlearn does not read, however whole it is."""


def check_shipped() -> None:
    """Compare the package's weights with the checksums beside them, once in a process.

    It takes some hundredths of a second, where loading them takes some tenths.
    """
    if changed := _changed():
        raise Damaged(f"{', '.join(changed)} is not as it was shipped")


@functools.cache
def _changed() -> list[str]:
    listed = [line.split("  ") for line in SHIPPED.read_text("utf-8").splitlines()]
    return [name for digest, name in listed if sha256(PACKAGE / name) != digest]


def record_shipped() -> None:
    """Write the checksums anew: for who trains the package's own weights further."""
    names = sorted(path.relative_to(PACKAGE).as_posix() for path in PACKAGE.rglob("*.safetensors"))
    lines = [f"{sha256(PACKAGE / name)}  {name}\n" for name in names]
    SHIPPED.write_text("".join(lines), "utf-8", newline="\n")
    _changed.cache_clear()


def sha256(path: Path) -> str:
    """Return a file's SHA-256 in hexadecimal digits, or "missing"."""
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except FileNotFoundError:
        return "missing"


def check_folder(folder: Path) -> None:
    """Refuse a folder of another family, one with code of its own, and one with links out of it.

    Raises:
        Refused: says which.
    """
    if not (folder / "model_index.json").is_file():
        return  # diffusers says so
    # A folder in the hub's cache is made of links to the files beside it.
    home = folder.parent.parent if folder.parent.name == "snapshots" else folder
    for path in folder.rglob("*"):
        if path.is_symlink():
            target = Path(os.path.abspath(path.parent / os.readlink(path)))
            if not target.is_relative_to(home.absolute()):
                raise Refused(f"{str(path)!r} is a link out of its folder; put the file there")
    index = StableDiffusionPipeline.load_config(folder)
    parts = {name: part for name, part in index.items() if isinstance(part, list) and part[0]}
    parts.pop("_ignore_files", None)
    for name, (library, class_name, *_) in parts.items():
        own = library not in ("diffusers", "transformers", "stable_diffusion")
        if own or class_name.startswith("AutoModel"):  # which may name code, too
            raise Refused(
                f"in {str(folder)!r}, {name} is {library}.{class_name}, code that comes with it, "
                "which sdlearn does not run; use a folder of diffusers' and transformers' classes"
            )
    if not {"unet", "vae", "text_encoder"} <= {*parts} or "text_encoder_2" in parts:
        raise _later(f"{str(folder)!r} holds a {index['_class_name']}")


def check_checkpoint(path: Path) -> dict[str, Any]:
    """Refuse a file of another family; return what diffusers needs to read it without the hub.

    That is SD 1.5's configuration, for a file of its layout. For others, such as SD 2.x and those
    for inpainting, diffusers fetches their configuration from the hub, once.

    Raises:
        Refused: it is of a later family.
    """
    with safe_open(path, "pt") as file:
        names = {*file.keys()}
        if any(later in name for name in names for later in LATER):
            raise _later(f"{str(path)!r} holds a model")
        if TO_K not in names or CLIP not in names:
            return {}
        channels = file.get_slice("model.diffusion_model.input_blocks.0.0.weight").get_shape()[1]
    if channels != 4:
        return {}
    tokenizer = CLIPTokenizer.from_pretrained(PACKAGE / "models" / "postcards" / "tokenizer")
    return {"config": str(SD15_LAYOUT), "tokenizer": tokenizer}


def _later(what: str) -> Refused:
    return Refused(
        f"{what} of another family than Stable Diffusion 1.x and 2.x, which are what this book and "
        'sdlearn cover; chapter 17 says what SDXL, SD 3 and FLUX changed. Use load("sd15")'
    )


def check_complete(pipe: StableDiffusionPipeline, path: Path) -> None:
    """Refuse a model whose files hold fewer weights than its parts have.

    diffusers leaves the others without values, and transformers fills them with random numbers.

    Raises:
        Damaged: says which.
    """
    for name, part in pipe.components.items():
        files = [each for each in (path / name).glob("*.safetensors") if WEIGHTS(each.name)]
        if isinstance(part, torch.nn.Module):
            wanted = sum(weight.numel() for weight in part.parameters())
            there = sum(weight.numel() for weight in part.parameters() if not weight.is_meta)
            if files:
                there = sum(sum(_sizes(each)) for each in files)
            if there < wanted:
                raise Damaged(f"{name} has {wanted:,} weights, and its files hold {there:,}")


def _sizes(path: Path) -> Iterator[int]:
    """Yield how many numbers each tensor of a file has, but for the buffers of old files."""
    with safe_open(path, "pt") as file:
        for name in sorted(file.keys()):
            if not name.endswith("position_ids"):
                yield math.prod(file.get_slice(name).get_shape())


def unreadable(path: Path) -> list[str]:
    """Return which .safetensors files, in a folder or the one, say other than what they hold."""
    wrong = []
    for each in sorted(path.glob("*/*.safetensors")) if path.is_dir() else [path]:
        try:
            if each.is_file():
                next(_sizes(each))
        except (OSError, SafetensorError, StopIteration):
            wrong.append(str(each.relative_to(path)) if each != path else each.name)
    return wrong
