"""Train postcards: ``python -m sdlearn.training``, or one part: ``... vae --minutes 60``.

The parts in order: ``vae``, ``clip``, the U-Net's lessons ``unet-easy`` (one thing, of a few
subjects) and ``unet-single`` (one thing), ``places`` (the text encoder learns what stands where,
from captions alone), ``unet-pairs`` (two things, at timesteps at which noise hides which is where),
``unet-all`` (everything), ``clip-again`` (both encoders, since the text encoder has changed),
``judge`` (which measures the result), ``decoder`` (sharper pictures), ``pack`` (write the diffusers
folder). Beside them, for a finished model: ``few-steps`` (a LoRA that draws in one to four steps)
and ``edges`` (a ControlNet). What is trained lies in ``--folder``/model, each part under its name
in the pipeline. Each goes on from its last checkpoint under ``--folder`` when there is one; a part
whose minutes or steps are spent is done.

With ``--data pictures/``, a folder of pictures whose captions stand in its ``metadata.jsonl``, the
parts are ``vae``, ``clip``, ``unet-all`` and ``pack``.

``accelerate launch -m sdlearn.training`` uses several GPUs or machines; ``accelerate launch --cpu
--num_processes 2 -m sdlearn.training`` several CPU cores, better than one process with as many
threads.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from accelerate import Accelerator, PartialState
from accelerate.utils import parse_flag_from_env, set_seed
from diffusers import StableDiffusionPipeline
from safetensors.torch import save_file

from sdlearn.__main__ import exit_status
from sdlearn.images import psnr, ssim
from sdlearn.postcards import judge
from sdlearn.postcards.data import JudgedPictures, MaskedPostcards, Postcards
from sdlearn.postcards.model import POSTCARDS
from sdlearn.sources import record_shipped
from sdlearn.training import clip, control, decoder, distillation, places, unet, vae
from sdlearn.training.loop import Options, train
from sdlearn.training.model import new_pipeline, pack
from sdlearn.training.pictures import pictures_for

UNSEEN = 10**9  # The first seed of pictures that no training shows.


def train_vae(pipe: StableDiffusionPipeline, args: argparse.Namespace, how: Any) -> None:
    """Train the VAE."""
    vae.train_vae(pipe, data_of(pipe, args, MaskedPostcards), **how)
    report_round_trip(pipe, args)


def train_decoder(pipe: StableDiffusionPipeline, args: argparse.Namespace, how: Any) -> None:
    """Train the VAE's decoder alone."""
    decoder.train_decoder(pipe, data_of(pipe, args, MaskedPostcards), load_judge(args), **how)
    report_round_trip(pipe, args)


def train_clip(
    pipe: StableDiffusionPipeline, args: argparse.Namespace, how: Any, *, held: bool
) -> None:
    """Train both encoders, from nothing or once more."""
    text = not args.freeze_text
    clip.train_clip(pipe, data_of(pipe, args), held=held, train_text=text, **how)
    if not args.data and PartialState().is_main_process:
        unseen = Postcards(256, first_seed=UNSEEN)
        model = clip.Contrast(pipe.text_encoder, pipe.image_encoder).cpu()
        share = clip.tell_apart(model, [unseen[i] for i in range(256)], pipe.tokenizer)
        print(f"CLIP: prefers a caption to its near miss {share:.2f} of the time")


def train_places(pipe: StableDiffusionPipeline, args: argparse.Namespace, how: Any) -> None:
    """Train the text encoder on captions alone."""
    reader = places.train_places(pipe, Postcards(args.pictures), **how).cpu()
    unseen = places.Captions(Postcards(256, first_seed=UNSEEN))
    share = places.right_places(reader, [unseen[i] for i in range(256)], pipe.tokenizer)
    print(f"text encoder: {share:.2f} of unseen captions' subjects read at their places")


def train_unet(
    pipe: StableDiffusionPipeline, args: argparse.Namespace, how: Any, *, lesson: str
) -> None:
    """Train the U-Net, and the text encoder with it."""
    first = unet.FIRST_HIDDEN_TIMESTEP if lesson == "pairs" else 0
    data = data_of(pipe, args, lesson=lesson)
    unet.train_unet(pipe, data, first_timestep=first, train_text=not args.freeze_text, **how)


def train_judge(pipe: StableDiffusionPipeline, args: argparse.Namespace, how: Any) -> None:
    """Train the judge on pictures of its own."""
    model = load_judge(args) if args.further else judge.Judge()
    model.to(pipe.device).requires_grad_(True)
    data = JudgedPictures(args.pictures, first_seed=2 * UNSEEN)
    how = {"batch_size": 32, "learning_rate": 2e-3, **how}
    train(model, data, judge.judge_loss, progress_bar=pipe.progress_bar, **how)
    weights = {name: w.half().cpu().contiguous() for name, w in model.state_dict().items()}
    save_file(weights, args.folder / judge.WEIGHTS.name)


def train_few_steps(pipe: StableDiffusionPipeline, args: argparse.Namespace, how: Any) -> None:
    """Distil the model into a LoRA, and write it."""
    data = Postcards(args.pictures)
    distillation.distil(pipe, unet.Latents(unet.encode_pictures(pipe, data), data), **how)
    distillation.save_few_steps(pipe, args.folder / "few-steps")


def train_edges(pipe: StableDiffusionPipeline, args: argparse.Namespace, how: Any) -> None:
    """Train a ControlNet for the model, and write it."""
    net = control.train_control(pipe, control.EdgePostcards(pipe, args.pictures), **how)
    control.save_edges(net, args.folder / "edges")


class Part(NamedTuple):
    """One part of the training.

    Attributes:
        run: trains; takes a pipeline, the command's arguments, and those of ``train``.
        minutes: how long, on two CPU cores.
        trains: what of the pipeline it changes.
        anew: whether that begins with random weights, unless this run has trained it. What else
            the part needs is taken as it was shipped.
    """

    run: Callable[[StableDiffusionPipeline, argparse.Namespace, Any], None]
    minutes: float
    trains: tuple[str, ...]
    anew: bool = True


ENCODERS, DENOISER = ("text_encoder", "image_encoder"), ("unet", "text_encoder")
PARTS = {
    "vae": Part(train_vae, 60, ("vae",)),
    "clip": Part(partial(train_clip, held=False), 20, ENCODERS),
    "unet-easy": Part(partial(train_unet, lesson="easy"), 60, DENOISER),
    "unet-single": Part(partial(train_unet, lesson="single"), 60, DENOISER),
    "places": Part(train_places, 5, ("text_encoder",)),
    "unet-pairs": Part(partial(train_unet, lesson="pairs"), 30, DENOISER),
    "unet-all": Part(partial(train_unet, lesson="all"), 180, DENOISER),
    "clip-again": Part(partial(train_clip, held=True), 15, ENCODERS),
    "judge": Part(train_judge, 15, ()),
    "decoder": Part(train_decoder, 120, ("vae",), anew=False),
}
BESIDE = {
    "few-steps": Part(train_few_steps, 60, ()),
    "edges": Part(train_edges, 15, ()),
}
OF_ONES_OWN = ("vae", "clip", "unet-all")  # What any pictures with captions can teach.


def data_of(
    pipe: StableDiffusionPipeline, args: argparse.Namespace, kind: Any = Postcards, **how: Any
) -> Any:
    """Return the pictures to learn from: a folder's, or postcards."""
    if args.data:
        return pictures_for(pipe, args.data)
    return kind(args.pictures, **how)


def load_judge(args: argparse.Namespace) -> judge.Judge:
    """Return this run's judge, or else the shipped one."""
    trained = args.folder / judge.WEIGHTS.name
    return judge.load_judge(trained if trained.exists() else judge.WEIGHTS)


@torch.no_grad()
def report_round_trip(pipe: StableDiffusionPipeline, args: argparse.Namespace) -> None:
    """Print how near round-trips of unseen pictures come to them."""
    if args.data or not PartialState().is_main_process:
        return
    data = MaskedPostcards(64, first_seed=UNSEEN)
    unseen = [data[i] for i in range(64)]
    pixels, subject = (torch.stack([e[key] for e in unseen]) for key in ("pixels", "subject"))
    model = pipe.vae.cpu()
    decoded = model.decode(model.encode(pixels).latent_dist.mean).sample
    before, after = pixels / 2 + 0.5, (decoded / 2 + 0.5).clamp(0, 1)
    within = -10 * ((before - after).square() * subject).sum().div(3 * subject.sum()).log10()
    print(
        f"VAE round-trip of unseen pictures: {psnr(before, after):.1f} dB, SSIM "
        f"{ssim(before, after):.3f}; {within:.1f} dB where subjects stand; perceptual distance "
        f"{decoder.perceptual_distance(load_judge(args), decoded, pixels):.3f}"
    )


def assemble(run: Path, untrained: tuple[str, ...] = ()) -> StableDiffusionPipeline:
    """Return a pipeline of the newest parts: what this run has trained, or else what is shipped.

    What is in ``untrained`` and not trained by this run has random weights.
    """
    pipe = new_pipeline()
    for name in ("vae", "text_encoder", "image_encoder", "unet"):
        folder = next((f / name for f in (run / "model", POSTCARDS) if (f / name).exists()), None)
        if folder and not (folder.parent == POSTCARDS and name in untrained):
            # The files hold half precision, which training cannot use.
            part = type(getattr(pipe, name)).from_pretrained(folder).float()
            pipe.register_modules(**{name: part.requires_grad_(False)})
    return pipe


def run_part(name: str, args: argparse.Namespace) -> None:
    """Train one part, and save what it changed."""
    # CPUs without bfloat16 instructions imitate them, at half the speed of float32.
    on_gpu = torch.cuda.is_available() and not parse_flag_from_env("ACCELERATE_USE_CPU")
    accelerator = Accelerator(mixed_precision="bf16" if on_gpu else "no", device_placement=False)
    set_seed(0, device_specific=True)
    part = {**PARTS, **BESIDE}[name]
    untrained = part.trains if part.anew and not args.further else ()
    pipe = assemble(args.folder, untrained).to(accelerator.device)
    # One bar, and in a file a line a minute.
    slow = 0.1 if sys.stderr.isatty() else 60
    pipe.set_progress_bar_config(
        desc=name, mininterval=slow, disable=not accelerator.is_main_process
    )
    how: Options = {
        "steps": args.steps,
        "minutes": None if args.steps is not None else args.minutes or part.minutes,
        "folder": args.folder / name / "checkpoint",
        "workers": args.workers,
        "accelerator": accelerator,
    }
    given = {"batch_size": args.batch_size, "learning_rate": args.learning_rate}
    part.run(pipe, args, {**how, **{key: value for key, value in given.items() if value}})
    if accelerator.is_main_process:
        for changed in part.trains:
            getattr(pipe, changed).cpu().save_pretrained(args.folder / "model" / changed)
    accelerator.wait_for_everyone()  # The next part reads what the first process writes.


def parser() -> argparse.ArgumentParser:
    """Return the command's arguments."""
    command = argparse.ArgumentParser(
        prog="python -m sdlearn.training",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    minutes = ", ".join(f"{name} {part.minutes}" for name, part in PARTS.items())
    command.add_argument("part", nargs="?", default="all", choices=("all", *PARTS, *BESIDE, "pack"))
    command.add_argument("--folder", type=Path, default=Path("runs/postcards"))
    command.add_argument("--data", type=Path, help="a folder of pictures with metadata.jsonl")
    command.add_argument("--out", type=Path, help="where pack writes (the shipped model's folder)")
    command.add_argument("--minutes", type=float, help=f"for each part ({minutes})")
    command.add_argument("--steps", type=int, help="for each part, instead of minutes")
    command.add_argument("--batch-size", type=int)
    command.add_argument("--learning-rate", type=float)
    command.add_argument("--pictures", type=int, default=40_000, help="of postcards (40,000)")
    command.add_argument("--workers", type=int, default=0, help="processes that make pictures")
    command.add_argument("--further", action="store_true", help="start from the shipped weights")
    command.add_argument(
        "--freeze-text", action="store_true", help="leave the text encoder as it is"
    )
    return command


def learn(args: argparse.Namespace) -> None:
    """Train what is asked for."""
    possible = OF_ONES_OWN if args.data else tuple(PARTS)
    if args.data and args.part not in ("all", "pack", *possible):
        raise ValueError(f"{args.part} needs postcards; from --data learn {', '.join(possible)}")
    for part in possible if args.part == "all" else (args.part,):
        if part != "pack":
            run_part(part, args)
    if args.part in ("all", "pack") and Accelerator().is_main_process:
        folder = args.out or (args.folder / "packed" if args.data else POSTCARDS)
        pack(assemble(args.folder), folder)
        if folder.resolve() == POSTCARDS.resolve():
            record_shipped()
        if (trained := args.folder / judge.WEIGHTS.name).exists():
            shipped = folder.resolve() == POSTCARDS.resolve()
            target = judge.WEIGHTS if shipped else folder / judge.WEIGHTS.name
            target.write_bytes(trained.read_bytes())
        print(f"written: {folder}")


def main(arguments: list[str] | None = None) -> int:
    """Run the command; return its exit status."""
    args = parser().parse_args(arguments)
    return exit_status(lambda: learn(args), "stopped; the same command goes on from here")


if __name__ == "__main__":
    sys.exit(main())
