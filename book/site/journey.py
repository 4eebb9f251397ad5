"""Draw the filmstrip's journey as a moving picture: noise becomes a fox, step by step.

python book/site/journey.py                      write build/journey.webp
python book/site/journey.py build/journey.png    as an animated PNG, larger

Each frame shows one step: the noisy latents, the noise that the U-Net predicts in them, and the
picture that would remain without it; below, how much of the way is walked.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import torch
from PIL import Image, ImageDraw, ImageFont

import sdlearn
from sdlearn.postcards import settings
from sdlearn.show.style import BLUE, GREY, INK

PROMPT, SEED = "an orange fox in the snow at night", 22
SIDE, GAP, MARGIN = 256, 16, 20  # Pixels.
TOP, BOTTOM = 64, 34
FRAME_MS, FIRST_MS, LAST_MS = 550, 1100, 3500
MAX_BYTES = 1_000_000


def false_colours(latents: torch.Tensor) -> Image.Image:
    """Return (1, 4, h, w) as a picture of squares: the first three channels as red, green, blue."""
    shown = (latents[0, :3] / 6 + 0.5).clamp(0, 1).mul(255).byte().permute(1, 2, 0)
    return Image.fromarray(shown.numpy()).resize((SIDE, SIDE), Image.Resampling.NEAREST)


def journey(prompt: str = PROMPT, seed: int = SEED) -> list[Image.Image]:
    """Return a frame for each step, and one for the finished picture."""
    pipe = sdlearn.load("postcards", device="cpu")
    generator = torch.Generator().manual_seed(seed)
    trace = sdlearn.text_to_image(pipe, prompt, generator=generator, **settings(pipe))
    frames = []
    for step in trace.steps:
        guess = sdlearn.to_pil(pipe, sdlearn.decode_latents(pipe, step.pred_original_sample))[0]
        pictures = (false_colours(step.latents), false_colours(step.noise_pred), guess)
        words = f"step {step.i + 1} of {len(trace.steps)}, t = {int(step.t)}"
        frames.append(frame(prompt, pictures, words, step.i / len(trace.steps)))
    end = (false_colours(trace.latents), None, trace.image)  # No noise is left to predict.
    return [*frames, frame(prompt, end, "the finished picture", 1)]


def frame(
    prompt: str, pictures: Sequence[Image.Image | None], words: str, share: float
) -> Image.Image:
    """Lay out one frame. share: of the way that is walked, 0 to 1."""
    width = 2 * MARGIN + 3 * SIDE + 2 * GAP
    sheet = Image.new("RGB", (width, TOP + SIDE + BOTTOM), "white")
    draw = ImageDraw.Draw(sheet)
    large, small = ImageFont.load_default(18), ImageFont.load_default(15)
    draw.text((MARGIN, 10), f"“{prompt}”", INK, large)
    draw.text((width - MARGIN, 12), words, GREY, small, anchor="ra")
    names = ("latents", "predicted noise", "predicted picture")
    for column, (picture, name) in enumerate(zip(pictures, names)):
        left = MARGIN + column * (SIDE + GAP)
        draw.text((left, TOP - 22), name, INK, small)
        if picture is None:
            draw.rectangle((left, TOP, left + SIDE - 1, TOP + SIDE - 1), outline=GREY)
        else:
            sheet.paste(picture.resize((SIDE, SIDE), Image.Resampling.BICUBIC), (left, TOP))
    bar = TOP + SIDE + BOTTOM // 2
    draw.line((MARGIN, bar, width - MARGIN, bar), GREY, 1)
    if share:
        draw.line((MARGIN, bar, MARGIN + share * (width - 2 * MARGIN), bar), BLUE, 5)
    return sheet


def save(frames: list[Image.Image], path: Path) -> int:
    """Write the frames as one moving picture, and return its size in bytes."""
    times = [FIRST_MS, *[FRAME_MS] * (len(frames) - 2), LAST_MS]
    options = {"quality": 90, "method": 6} if path.suffix == ".webp" else {"optimize": True}
    path.parent.mkdir(parents=True, exist_ok=True)
    frames[0].save(path, save_all=True, append_images=frames[1:], duration=times, loop=0, **options)
    return path.stat().st_size


def main(arguments: list[str] | None = None) -> None:
    """Write the moving picture that the command line names."""
    parser = argparse.ArgumentParser(description="Draw the journey as a moving picture.")
    built = Path(__file__).parents[2] / "build" / "journey.webp"
    parser.add_argument("path", nargs="?", type=Path, default=built)
    options = parser.parse_args(arguments)
    size = save(journey(), options.path)
    print(f"{options.path}: {size / 1e6:.2f} MB")
    if size > MAX_BYTES:
        raise SystemExit(f"over {MAX_BYTES / 1e6} MB")


if __name__ == "__main__":
    main()
