"""A folder of pictures of one's own, and what they show."""

from __future__ import annotations

import json
from pathlib import Path

from diffusers import StableDiffusionPipeline
from PIL import Image, ImageOps

from sdlearn import checks
from sdlearn.images import open_image
from sdlearn.unet import latent_size

FORMATS = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff")
CAPTIONS = "metadata.jsonl"


def pictures_in(
    pipe: StableDiffusionPipeline, folder: str | Path
) -> tuple[list[Image.Image], list[str | None]]:
    """Read all pictures of a folder, cut square and brought to the size that the model learnt on.

    What they show may stand beside them in ``metadata.jsonl``, a line for each picture, as in
    Hugging Face's "imagefolder": {"file_name": "cat.png", "text": "a cat"}. A file that is no whole
    picture is named and left out.

    Returns:
        The pictures, in the order of their names, and for each what it shows, or None.

    Raises:
        ValueError: no folder, no picture in it, or a line of metadata that cannot be read.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise ValueError(f"no folder {str(folder)!r}; check the path")
    captions = _captions(folder / CAPTIONS)
    height, width = (side * pipe.vae_scale_factor for side in latent_size(pipe.unet))
    found, texts = [], list[str | None]()
    for path in sorted(folder.iterdir()):
        if path.suffix.lower() not in FORMATS:
            continue
        try:
            image = ImageOps.exif_transpose(open_image(path)).convert("RGBA")
        except ValueError as error:
            print(f"sdlearn: left out: {error}")
            continue
        white = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(white, image).convert("RGB")
        found.append(ImageOps.fit(image, (width, height), Image.Resampling.LANCZOS))
        texts.append(captions.pop(path.name, None))
    for name in captions:
        print(f"sdlearn: {CAPTIONS} names {name!r}, of which there is no picture")
    if not found:
        raise ValueError(f"no picture in {str(folder)!r}; it takes {', '.join(FORMATS)}")
    return found, texts


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
