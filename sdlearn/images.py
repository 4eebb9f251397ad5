"""Pictures in, pictures out. Pixels are tensors (B, 3, H, W) in [0, 1], diffusers' "pt"."""

from __future__ import annotations

from pathlib import Path

import torch
import torch.nn.functional as F
from diffusers import StableDiffusionPipeline
from PIL import Image, ImageOps
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
        image = ImageOps.exif_transpose(image)  # phones say which side is up instead of turning it
        if image.mode != "RGB":
            raise ValueError(f'the image has mode {image.mode!r}; use image.convert("RGB")')
        checks.size(pipe, image.height, image.width)
    return pipe.image_processor.preprocess(image)


def to_pil(pipe: StableDiffusionPipeline, pixels: Tensor) -> list[Image.Image]:
    """Return pixels, (B, 3, H, W) in [0, 1], as B pictures, rounded as diffusers rounds."""
    return pipe.image_processor.numpy_to_pil(pipe.image_processor.pt_to_numpy(pixels))


def psnr(a: Tensor, b: Tensor) -> float:
    """Return the peak signal-to-noise ratio of two pictures in decibels; equal ones have infinity.

    Args:
        a: pixels, (B, 3, H, W) in [0, 1]; the error is averaged over all of them.
        b: pixels of the same shape.

    Raises:
        ValueError: other shapes.
    """
    a, b = _pair(a, b)
    return float(-10 * (a - b).square().mean().log10())


def ssim(a: Tensor, b: Tensor, window: int = 11, sigma: float = 1.5) -> float:
    """Return the structural similarity of two pictures, 1 where they are equal.

    Brightness, contrast and pattern are compared in a small window, at every place where it fits
    and in every colour, and the results are averaged.

    Args:
        a: pixels, (B, 3, H, W) in [0, 1].
        b: pixels of the same shape.
        window: side of the window, an odd number.
        sigma: standard deviation, in pixels, of the Gaussian that weights the pixels of the window.

    Raises:
        ValueError: other shapes, or a picture smaller than the window.

    Source: Wang, Bovik, Sheikh, Simoncelli (2004), "Image Quality Assessment: From Error Visibility
    to Structural Similarity", section III.B.
    """
    a, b = _pair(a, b)
    if min(a.shape[-2:]) < window:
        raise ValueError(f"pictures of {tuple(a.shape[-2:])} pixels are smaller than {window}")
    return float(ssim_map(a, b, window, sigma).mean())


def ssim_map(a: Tensor, b: Tensor, window: int = 11, sigma: float = 1.5) -> Tensor:
    """Return the structural similarity at every place, (B, 3, H - 10, W - 10): see ``ssim``."""
    places = torch.arange(window, dtype=a.dtype, device=a.device) - window // 2
    line = torch.exp(-places.square() / (2 * sigma**2))
    weights = torch.outer(line, line)[None, None] / line.sum() ** 2  # (1, 1, 11, 11), sum 1

    def average(x: Tensor) -> Tensor:
        return F.conv2d(x.flatten(0, 1)[:, None], weights).unflatten(0, x.shape[:2])

    mean_a, mean_b = average(a), average(b)
    var_a, var_b = average(a * a) - mean_a**2, average(b * b) - mean_b**2
    covariance = average(a * b) - mean_a * mean_b
    c1, c2 = 0.01**2, 0.03**2  # They keep the quotients steady where the pictures are flat or dark.
    brightness = (2 * mean_a * mean_b + c1) / (mean_a**2 + mean_b**2 + c1)
    return brightness * (2 * covariance + c2) / (var_a + var_b + c2)


def _pair(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """Return two pictures of one shape in double precision: small differences are to count."""
    if a.ndim != 4 or a.shape != b.shape:
        raise ValueError(f"need two (B, 3, H, W) alike, got {tuple(a.shape)} and {tuple(b.shape)}")
    return a.detach().cpu().double(), b.detach().cpu().double()
