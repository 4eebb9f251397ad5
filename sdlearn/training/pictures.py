"""A folder of pictures of one's own, and what they show, as a data set."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any, Protocol

from diffusers import StableDiffusionPipeline
from PIL import Image, ImageOps
from torch.utils.data import Dataset
from tqdm.auto import tqdm

from sdlearn import checks
from sdlearn.images import open_image
from sdlearn.postcards.data import pixels_of
from sdlearn.training.loop import Examples
from sdlearn.unet import latent_size

FORMATS = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff")
CAPTIONS = "metadata.jsonl"


class Described(Examples, Protocol):
    """What CLIP and the U-Net learn from: examples with ``pixels`` and ``caption``.

    ``Postcards`` is one, too. Pixels are (3, H, W) in [-1, 1].
    """

    def caption(self, index: int, rng: random.Random) -> str:
        """Return a caption of item ``index``; if it has several, as ``rng`` picks."""


class Pictures(Dataset):
    """All pictures of a folder, cut square and brought to one size.

    What they show may stand beside them in ``metadata.jsonl``, a line for each picture, as in
    Hugging Face's "imagefolder": {"file_name": "cat.png", "text": "a cat"}. A file that is no whole
    picture is named and left out.

    Args:
        folder: the folder; its own pictures, not those of folders in it.
        size: (height, width) in pixels.

    Attributes:
        files: the pictures' paths, in the order of their names.
        texts: for each what it shows, or None.

    Raises:
        ValueError: no folder, no picture in it, or a line of metadata that cannot be read.
    """

    def __init__(self, folder: str | Path, size: tuple[int, int]) -> None:
        folder, self.size = Path(folder), size
        if not folder.is_dir():
            raise ValueError(f"no folder {str(folder)!r}; check the path")
        captions = _captions(folder / CAPTIONS)
        self.files, self.texts = list[Path](), list[str | None]()
        named = sorted(path for path in folder.iterdir() if path.suffix.lower() in FORMATS)
        for path in tqdm(named, desc="pictures", disable=len(named) < 1000):
            try:
                open_image(path)
            except ValueError as error:
                print(f"sdlearn: left out: {error}")
                continue
            self.files.append(path)
            self.texts.append(captions.pop(path.name, None))
        for name in captions:
            print(f"sdlearn: {CAPTIONS} names {name!r}, of which there is no picture")
        if not self.files:
            raise ValueError(f"no picture in {str(folder)!r}; it takes {', '.join(FORMATS)}")

    def __len__(self) -> int:
        return len(self.files)

    def picture(self, index: int) -> Image.Image:
        """Return a picture, RGB, on white where it is transparent."""
        image = ImageOps.exif_transpose(open_image(self.files[index])).convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(white, image).convert("RGB")
        return ImageOps.fit(image, self.size[::-1], Image.Resampling.LANCZOS)

    def caption(self, index: int, rng: random.Random) -> str:
        """Return what a picture shows, or no words; there is nothing to pick."""
        return self.texts[index] or ""

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {"pixels": pixels_of(self.picture(index)), "caption": self.texts[index] or ""}


def pictures_for(pipe: StableDiffusionPipeline, folder: str | Path) -> Pictures:
    """Return a folder's pictures in the size that a pipeline learnt on; see ``Pictures``."""
    height, width = (side * pipe.vae_scale_factor for side in latent_size(pipe.unet))
    return Pictures(folder, (height, width))


def _captions(file: Path) -> dict[str, str]:
    """Return what ``metadata.jsonl`` says of each picture; nothing, if there is none."""
    lines = file.read_text(encoding="utf-8").splitlines() if file.exists() else []
    captions = {}
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            entry = json.loads(line)
            captions[entry["file_name"]] = checks.prompts([entry["text"]], "text")[0]
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(
                f"line {number} of {str(file)!r} is not like "
                f'{{"file_name": "cat.png", "text": "a cat"}}: {line[:80]!r}'
            ) from error
    return captions
