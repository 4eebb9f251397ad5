"""A folder of pictures of one's own, and what they show."""

from __future__ import annotations

from pathlib import Path

from diffusers import StableDiffusionPipeline
from PIL import Image

from sdlearn.training.pictures import pictures_for


def pictures_in(
    pipe: StableDiffusionPipeline, folder: str | Path
) -> tuple[list[Image.Image], list[str | None]]:
    """Read all pictures of a folder, cut square and brought to the size that the model learnt on.

    What they show may stand beside them in ``metadata.jsonl``: see ``training.Pictures``.

    Returns:
        The pictures, in the order of their names, and for each what it shows, or None.

    Raises:
        ValueError: no folder, no picture in it, or a line of metadata that cannot be read.
    """
    data = pictures_for(pipe, folder)
    return [data.picture(i) for i in range(len(data))], data.texts
