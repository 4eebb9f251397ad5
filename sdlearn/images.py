"""Pictures in, pictures out. Pixels are tensors (B, 3, H, W) in [0, 1], diffusers' "pt"."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

from diffusers import StableDiffusionPipeline
from PIL import Image
from torch import Tensor

from sdlearn import checks


def open_image(path: str | Path) -> Image.Image:
    """Read a picture from a file, or raise a ValueError that says what is wrong with the file."""
    path = Path(path)
    if not path.is_file() or path.stat().st_size == 0:
        state = "an empty file" if path.is_file() else "not a file"
        raise ValueError(f"{str(path)!r} is {state}; check the path, or fetch the picture again")
    try:
        image = Image.open(path)
        image.load()
    except (OSError, SyntaxError) as error:
        raise ValueError(f"{str(path)!r} holds no whole picture ({error}); save it anew") from error
    return image


def to_tensor(pipe: StableDiffusionPipeline, image: Image.Image | str | Path | Tensor) -> Tensor:
    """Return a picture as the VAE takes it, by ``pipe.image_processor``.

    Equal values with other strides would give results that differ in the last bit.

    Args:
        pipe: the pipeline.
        image: an RGB picture, its path, or pixels; H and W multiples of 8. Nothing is converted
            or resized unasked.

    Returns:
        (B, 3, H, W) in [-1, 1].

    Raises:
        ValueError, TypeError: a wrong mode, shape, size or range; the message names the remedy.
    """
    if isinstance(image, Tensor):
        if image.ndim != 4 or image.shape[1] != 3 or 0 in image.shape:
            raise ValueError(f"pixels must be (B, 3, H, W), got {tuple(image.shape)}; add [None]")
        if not image.is_floating_point() or not (image.min() >= 0 and image.max() <= 1):
            raise ValueError(f"pixels must be floats in [0, 1], got {image.dtype}; rescale, clamp")
        checks.size(pipe, *image.shape[-2:])
    else:
        image = open_image(image) if isinstance(image, (str, Path)) else image
        if not isinstance(image, Image.Image):
            raise TypeError(f"expected a picture, path or tensor, got {type(image).__name__}")
        if image.mode != "RGB":
            raise ValueError(f'the image has mode {image.mode!r}; use image.convert("RGB")')
        checks.size(pipe, image.height, image.width)
    return pipe.image_processor.preprocess(image)


def to_pil(pipe: StableDiffusionPipeline, pixels: Tensor) -> list[Image.Image]:
    """Return pixels, (B, 3, H, W) in [0, 1], as B pictures, rounded as diffusers rounds."""
    return pipe.image_processor.numpy_to_pil(pipe.image_processor.pt_to_numpy(pixels))


def image_grid(images: Sequence[Image.Image], columns: int | None = None) -> Image.Image:
    """Lay pictures out in rows of ``columns``, in one row by default.

    Raises:
        ValueError: no pictures, or fewer than one column.
    """
    columns = len(images) if columns is None else min(columns, len(images))
    if columns < 1:
        raise ValueError(f"got {len(images)} images in {columns} columns; pass at least one each")
    width, height = (max(image.size[axis] for image in images) for axis in (0, 1))
    grid = Image.new("RGB", (columns * width, math.ceil(len(images) / columns) * height), "white")
    for i, image in enumerate(images):
        grid.paste(image, (i % columns * width, i // columns * height))
    return grid
