"""Draw a picture and its filmstrip: ``python -m sdlearn "a red cat on the beach at sunset"``."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

PROMPT = "a red cat on the beach at sunset"


def main(arguments: list[str] | None = None) -> int:
    """Run the command; return its exit status."""
    parser = argparse.ArgumentParser(prog="python -m sdlearn", description=__doc__)
    parser.add_argument("prompt", nargs="?", default=PROMPT, help=f'default: "{PROMPT}"')
    parser.add_argument("--model", help='"postcards", "sd15", a folder or a .safetensors file')
    parser.add_argument("--negative-prompt", default="", help="what to steer away from")
    parser.add_argument("--steps", type=int, default=20, help="denoising steps (default 20)")
    parser.add_argument("--guidance", type=float, default=5.0, help="guidance scale (default 5)")
    parser.add_argument("--seed", type=int, default=0, help="of the starting noise (default 0)")
    parser.add_argument(
        "--out", type=Path, default=Path("postcard.png"), help="the picture's file (.png)"
    )
    parser.add_argument(
        "--environment",
        action="store_true",
        help="only say what this computer has (for bug reports)",
    )
    args = parser.parse_args(arguments)
    if args.environment:
        from sdlearn.show import environment

        print(environment())
        return 0
    try:
        draw(args)
    except (OSError, RuntimeError, TypeError, ValueError) as error:
        print(f"sdlearn: {error}", file=sys.stderr)
        return 2
    return 0


def draw(args: argparse.Namespace) -> None:
    """Draw the picture and the filmstrip and write both."""
    if not args.out.parent.is_dir():
        raise ValueError(f"no folder {str(args.out.parent)!r} to write {args.out.name!r} to")

    import torch

    from sdlearn import capture_attention, load, text_to_image
    from sdlearn.show import filmstrip

    pipe = load(args.model)
    with capture_attention(pipe) as maps:
        trace = text_to_image(
            pipe,
            args.prompt,
            negative_prompt=args.negative_prompt,
            num_inference_steps=args.steps,
            guidance_scale=args.guidance,
            generator=torch.Generator().manual_seed(args.seed),
        )
    strip = args.out.with_name(f"{args.out.stem}-filmstrip.png")
    trace.image.save(args.out)
    filmstrip(pipe, trace, maps).savefig(strip, dpi=110)
    print(f"picture:   {args.out}\nfilmstrip: {strip}")


if __name__ == "__main__":
    sys.exit(main())
