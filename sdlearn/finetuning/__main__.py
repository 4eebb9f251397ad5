"""Teach a model a word or a subject, from a folder of pictures.

``python -m sdlearn.finetuning word pictures/ "<teal>" blue`` writes a word (textual inversion),
``python -m sdlearn.finetuning subject pictures/ --prompt "a photo of sks dog"`` a LoRA. Captions
may stand in the folder's ``metadata.jsonl``. Stopped and called again, it goes on from its
checkpoint. On several GPUs: ``accelerate launch -m sdlearn.finetuning …``.
"""

from __future__ import annotations

import argparse
import re
import sys
from functools import partial
from pathlib import Path

from sdlearn.__main__ import exit_status


def parser() -> argparse.ArgumentParser:
    """Return the command's arguments."""
    command = argparse.ArgumentParser(prog="python -m sdlearn.finetuning", description=__doc__)
    kinds = command.add_subparsers(dest="kind", required=True)
    word = kinds.add_parser("word", help="textual inversion")
    word.add_argument("pictures", type=Path, help="a folder")
    word.add_argument("placeholder", help='the new word, such as "<teal>"')
    word.add_argument("initializer", help="a word of one token that it begins with")
    word.add_argument("--vectors", type=int, default=1)
    subject = kinds.add_parser("subject", help="DreamBooth, as a LoRA")
    subject.add_argument("pictures", type=Path, help="a folder")
    subject.add_argument("--class-prompt", help="what shall stay as it is, such as 'a dog'")
    subject.add_argument("--class-images", type=int, default=16)
    subject.add_argument("--rank", type=int, default=8)
    for kind, rate in ((word, 5e-3), (subject, 1e-3)):
        kind.add_argument("--prompt", help="what the pictures show, where metadata.jsonl is silent")
        kind.add_argument("--model", help='"postcards", "sd15", a folder or a .safetensors file')
        kind.add_argument("--out", type=Path, default=Path("learnt"), help="a folder (learnt)")
        kind.add_argument("--steps", type=int, default=500)
        kind.add_argument("--batch-size", type=int, default=4)
        kind.add_argument("--learning-rate", type=float, default=rate)
        kind.add_argument("--seed", type=int, default=0)
    return command


def learn(args: argparse.Namespace) -> None:
    """Learn what is asked for, and write it."""
    import torch
    from accelerate import Accelerator

    from sdlearn import finetune_subject, learn_token, load
    from sdlearn.finetuning import save_lora, save_token
    from sdlearn.finetuning.pictures import pictures_in
    from sdlearn.training.checkpoint import remove_checkpoint

    state = Accelerator()
    pipe = load(args.model, device=state.device if state.num_processes > 1 else None)
    images, texts = pictures_in(pipe, args.pictures)
    usual = args.prompt or (f"a photo of {args.placeholder}" if args.kind == "word" else None)
    if None in texts and usual is None:
        raise ValueError('what do the pictures show? Pass --prompt "a photo of sks dog"')
    prompts = [text or usual or "" for text in texts]
    name = "pytorch_lora_weights"  # as diffusers names it
    if args.kind == "word":
        name = re.sub(r"\W+", "-", args.placeholder).strip("-")
    checkpoint = args.out / f"{name}-checkpoint"
    args.out.mkdir(parents=True, exist_ok=True)
    call = {
        "steps": args.steps,
        "batch_size": args.batch_size,
        "learning_rate": args.learning_rate,
        "folder": checkpoint,
        "generator": torch.Generator().manual_seed(args.seed),
    }
    written = args.out / f"{name}.safetensors"
    if args.kind == "word":
        call |= {"prompts": prompts, "vectors": args.vectors}
        learn_token(pipe, images, args.placeholder, args.initializer, **call)
        save = partial(save_token, pipe, args.placeholder, written)
    else:
        call |= {"class_images": args.class_images, "rank": args.rank}
        finetune_subject(pipe, images, prompts, args.class_prompt, **call)
        save = partial(save_lora, pipe, args.out)
    state.wait_for_everyone()
    if state.is_main_process:
        save()
        remove_checkpoint(checkpoint)  # It is done; another run begins anew.
        print(f"learnt: {written}")


def main(arguments: list[str] | None = None) -> int:
    """Run the command; return its exit status."""
    args = parser().parse_args(arguments)
    return exit_status(lambda: learn(args), "stopped; the same command goes on from here")


if __name__ == "__main__":
    sys.exit(main())
