"""Draw a picture and its filmstrip: ``python -m sdlearn "an orange fox in the snow at night"``.

``sdlearn start`` copies the book into a folder and opens it (see ``sdlearn start --help``).
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

PROMPT = "an orange fox in the snow at night"
FORMATS = (".png", ".jpg", ".jpeg", ".webp")
UPGRADE = "try: pip install --upgrade sdlearn diffusers transformers peft"


def main(arguments: list[str] | None = None) -> int:
    """Run the command; return its exit status."""
    arguments = sys.argv[1:] if arguments is None else arguments
    if arguments[:1] == ["start"]:
        from sdlearn.start import main as start

        return exit_status(lambda: start(arguments[1:]))
    parser = argparse.ArgumentParser(prog="python -m sdlearn", description=__doc__)
    parser.add_argument("prompt", nargs="?", default=PROMPT, help=f'default: "{PROMPT}"')
    parser.add_argument("--model", help='"postcards", "sd15", a folder or a .safetensors file')
    parser.add_argument("--negative-prompt", default="", help="what to steer away from")
    parser.add_argument(
        "--steps", type=int, help="denoising steps (default: 10 for postcards, else 50)"
    )
    parser.add_argument(
        "--guidance", type=float, help="guidance scale (default: 2 for postcards, else 7.5)"
    )
    parser.add_argument("--seed", type=int, default=0, help="seed of the noise (default 0)")
    parser.add_argument("--out", type=Path, default=Path("postcard.png"), help="the picture's file")
    parser.add_argument(
        "--environment",
        action="store_true",
        help="only say what this computer has (for bug reports)",
    )
    args = parser.parse_args(arguments)
    return exit_status(lambda: say_environment() if args.environment else draw_to_files(args))


def exit_status(command: Callable[[], None], stopped: str = "stopped") -> int:
    """Run a command; return its exit status, and say in one line why it is not 0."""
    try:
        command()
    except KeyboardInterrupt:
        print(f"sdlearn: {stopped}", file=sys.stderr)
        return 130
    except Exception as error:
        print(f"sdlearn: {reason(error)}", file=sys.stderr)
        return 2
    return 0


def say_environment() -> None:
    """Print what this computer has."""
    from sdlearn.show import environment

    print(environment())


def draw_to_files(args: argparse.Namespace) -> None:
    """Draw into a folder beside the targets; move the files there when both are whole."""
    picture, folder = args.out, args.out.parent
    if not folder.is_dir():
        raise ValueError(f"no folder {str(folder)!r} to write {picture.name!r} to")
    if picture.suffix.lower() not in FORMATS:
        raise ValueError(f"cannot write to {str(picture)!r}; its name must end in {FORMATS}")
    strip = picture.with_name(f"{picture.stem}-filmstrip.png")
    for file in (picture, strip):
        if file.is_dir() or (file.exists() and not os.access(file, os.W_OK)):
            raise ValueError(f"cannot write to {str(file)!r}; move it away, or name another file")
    if not 0 <= args.seed < 2**64:
        raise ValueError(f"--seed must be from 0 to 2**64 - 1, got {args.seed}")
    # Made before drawing, it shows that the folder can be written to.
    with tempfile.TemporaryDirectory(dir=folder, prefix=".sdlearn-") as work:
        written = [Path(work) / file.name for file in (picture, strip)]
        for file in written:
            file.touch()
        draw(args, *written)
        for file, target in zip(written, (picture, strip)):
            os.replace(file, os.path.realpath(target))  # a link stays a link
    print(f"picture:   {picture}\nfilmstrip: {strip}")


def draw(args: argparse.Namespace, picture: Path, strip: Path) -> None:
    """Draw, and save the picture and the filmstrip."""
    import torch
    from diffusers.utils import logging as diffusers_logging
    from transformers.utils import logging as transformers_logging

    from sdlearn import capture_attention, load, text_to_image, tokenize
    from sdlearn.postcards import about_unknown_words, is_postcards, settings
    from sdlearn.show import filmstrip

    for log in (diffusers_logging, transformers_logging):
        log.set_verbosity_error()
    pipe = load(args.model)
    for text in (args.prompt, args.negative_prompt):
        if cut := tokenize(pipe, text).truncated:
            words = f"{' '.join(cut[:5])}{' …' if len(cut) > 5 else ''} ({len(cut)} words)"
            print(f"sdlearn: too long for 77 tokens, cut off: {words}", file=sys.stderr)
    if unknown := about_unknown_words(pipe, f"{args.prompt} {args.negative_prompt}"):
        print(f"sdlearn: {unknown}", file=sys.stderr)
    asked: dict[str, Any] = {"num_inference_steps": args.steps, "guidance_scale": args.guidance}
    asked = {name: value for name, value in asked.items() if value is not None}
    if is_postcards(pipe):  # Any other model is drawn with diffusers' own settings.
        asked = settings(pipe) | asked
    with capture_attention(pipe) as maps:
        trace = text_to_image(
            pipe,
            args.prompt,
            negative_prompt=args.negative_prompt,
            **asked,
            generator=torch.Generator().manual_seed(args.seed),
        )
    trace.image.save(picture)
    filmstrip(pipe, trace, maps).savefig(strip, dpi=110)


def reason(error: BaseException) -> str:
    """Say in one line what went wrong."""
    root = error
    while below := root.__cause__ or root.__context__:
        root = below
    if isinstance(root, ImportError):
        return f"the installed packages do not fit together ({root}); {UPGRADE}"
    return " ".join(str(error).split())


if __name__ == "__main__":
    sys.exit(main())
