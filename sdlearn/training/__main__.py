"""Train postcards: ``python -m sdlearn.training``, or one part: ``... vae --minutes 60``.

The parts in order: ``vae``, ``clip``, the U-Net's lessons ``unet-easy`` (one thing, of a few
subjects) and ``unet-single`` (one thing), ``places`` (the text encoder learns what stands where,
from captions alone), ``unet-pairs`` (two things, at timesteps at which noise hides which is where),
``unet-all`` (everything), ``clip-again`` (both encoders, since the text encoder has changed),
``judge`` (which measures the result), ``decoder`` (sharper pictures), ``pack`` (write the diffusers
folder). What is trained lies in ``--folder``/model, each part under its name in the pipeline. Each
goes on from its last checkpoint under ``--folder`` when there is one; a part whose minutes are
spent is done. ``accelerate launch -m sdlearn.training`` uses several GPUs or machines; ``torchrun
--nproc-per-node 2 -m sdlearn.training``, with ``ACCELERATE_USE_CPU=true`` set, several CPU cores,
better than one process with as many threads.
"""

from __future__ import annotations

import argparse
import copy
import os
import random
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.utils import parse_flag_from_env, set_seed
from diffusers import AutoencoderKL, StableDiffusionPipeline, UNet2DConditionModel
from safetensors.torch import load_file, save_file
from torch.utils.data import DataLoader, Dataset, Subset
from transformers import CLIPTextModel, CLIPTokenizer, CLIPVisionModelWithProjection

import sdlearn
from sdlearn.images import psnr, ssim
from sdlearn.postcards import judge, words
from sdlearn.postcards.data import JudgedPictures, MaskedPostcards, Postcards
from sdlearn.training import clip, decoder, places, unet, vae
from sdlearn.training.loop import train

PACKAGE = Path(sdlearn.__file__).parent
POSTCARDS = PACKAGE / "models" / "postcards"
MAX_SHARD = "15MB"
MINUTES = {  # On two CPU cores.
    "vae": 60, "clip": 20, "unet-easy": 60, "unet-single": 60, "places": 5, "unet-pairs": 30,
    "unet-all": 180, "clip-again": 15, "judge": 15, "decoder": 120,
}  # fmt: skip


def main() -> None:
    """Read the command line and train."""
    parser = argparse.ArgumentParser(prog="python -m sdlearn.training", description=__doc__)
    parser.add_argument("part", nargs="?", default="all", choices=("all", *PARTS, "pack"))
    parser.add_argument("--folder", type=Path, default=Path("runs/postcards"))
    parser.add_argument("--package", type=Path, default=PACKAGE, help="where pack writes")
    parser.add_argument("--minutes", type=float, help=f"for each part (default: {MINUTES})")
    parser.add_argument("--batch-size", type=int)
    parser.add_argument("--learning-rate", type=float)
    parser.add_argument("--pictures", type=int, default=40_000)
    parser.add_argument("--workers", type=int, default=0, help="processes that draw pictures")
    parser.add_argument("--further", action="store_true", help="start from the shipped weights")
    parser.add_argument(
        "--freeze-text", action="store_true", help="leave the text encoder as it is"
    )
    parser.add_argument("--compile", action="store_true", help="U-Net: faster, needs g++")
    parser.add_argument("--max-steps", type=int)
    args = parser.parse_args()
    for part in PARTS if args.part == "all" else [args.part]:
        if part in PARTS:
            # CPUs without bfloat16 instructions imitate them, at half the speed of float32.
            on_gpu = torch.cuda.is_available() and not parse_flag_from_env("ACCELERATE_USE_CPU")
            accelerator = Accelerator(mixed_precision="bf16" if on_gpu else "no")
            if args.pictures < accelerator.num_processes:
                parser.error(f"--pictures {args.pictures}: give each process at least one")
            set_seed(0, device_specific=True)
            PARTS[part](accelerator, args)
            accelerator.wait_for_everyone()  # The next part reads what the first process writes.
    if args.part in ("all", "pack") and Accelerator().is_main_process:
        pack(args.folder, args.package)


def options(args: argparse.Namespace, part: str, learning_rate: float) -> dict:
    """Return the arguments of ``train`` that every part takes from the command line."""
    return {
        "folder": args.folder / part / "checkpoint",
        "minutes": args.minutes or MINUTES[part],
        "learning_rate": args.learning_rate or learning_rate,
        "max_steps": args.max_steps,
    }


def loader(args: argparse.Namespace, data: Dataset, batch_size: int) -> DataLoader:
    """Return shuffled batches of the data."""
    size = args.batch_size or batch_size
    return DataLoader(data, size, shuffle=True, num_workers=args.workers, drop_last=True)


def newest(run: Path, part: str, *, shipped: bool = True) -> Path | None:
    """Return the folder of a part of the model: this run's, or else the shipped one, or None."""
    if (run / "model" / part).exists():
        return run / "model" / part
    return POSTCARDS / part if shipped and (POSTCARDS / part).exists() else None


def load_text_encoder(args: argparse.Namespace) -> CLIPTextModel:
    """Return the text encoder to go on from, or an untrained one."""
    folder = newest(args.folder, "text_encoder", shipped=args.further)
    # transformers keeps the half precision of the file; diffusers loads float32.
    return CLIPTextModel.from_pretrained(folder).float() if folder else clip.make_text_encoder()


def train_vae(accelerator: Accelerator, args: argparse.Namespace) -> None:
    """Train the VAE; then scale its latents to unit variance."""
    folder = newest(args.folder, "vae", shipped=args.further)
    model = AutoencoderKL.from_pretrained(folder) if folder else vae.make_vae()
    batches = loader(args, MaskedPostcards(args.pictures), 4)
    train(accelerator, vae.Autoencode(model), batches, vae.vae_loss, **options(args, "vae", 1.5e-3))
    if not accelerator.is_main_process:
        return
    model = model.to("cpu")
    unseen = Postcards(64, first_seed=10**9)
    vae.normalise_latents(model, torch.stack([unseen[i]["pixels"] for i in range(64)]))
    save_vae(model, args)


def train_decoder(accelerator: Accelerator, args: argparse.Namespace) -> None:
    """Make the decoder sharper; latents stay as they are, so that the U-Net can go on."""
    model = AutoencoderKL.from_pretrained(newest(args.folder, "vae"))
    seer = load_judge(args).requires_grad_(False).to(accelerator.device)
    loss = partial(decoder.decoder_loss, judge=seer)
    batches = loader(args, MaskedPostcards(args.pictures), 4)
    train(accelerator, decoder.Rivals(model), batches, loss, **options(args, "decoder", 4e-4))
    if accelerator.is_main_process:
        save_vae(model.to("cpu"), args)


def load_judge(args: argparse.Namespace) -> judge.Judge:
    """Return this run's judge, or else the shipped one."""
    trained = args.folder / judge.WEIGHTS.name
    return judge.load_judge(trained if trained.exists() else judge.WEIGHTS)


@torch.no_grad()
def save_vae(model: AutoencoderKL, args: argparse.Namespace) -> None:
    """Say how near round-trips of unseen pictures come to them; save the VAE."""
    data = MaskedPostcards(64, first_seed=10**9)
    unseen = [data[i] for i in range(64)]
    pixels, subject = (torch.stack([e[key] for e in unseen]) for key in ("pixels", "subject"))
    decoded = model.decode(model.encode(pixels).latent_dist.mean).sample
    before, after = pixels / 2 + 0.5, (decoded / 2 + 0.5).clamp(0, 1)
    within = -10 * ((before - after).square() * subject).sum().div(3 * subject.sum()).log10()
    print(
        f"VAE round-trip of unseen pictures: {psnr(before, after):.1f} dB, SSIM "
        f"{ssim(before, after):.3f}; {within:.1f} dB where subjects stand; perceptual distance "
        f"{decoder.perceptual_distance(load_judge(args), decoded, pixels):.3f}"
    )
    model.save_pretrained(args.folder / "model" / "vae")


def train_places(accelerator: Accelerator, args: argparse.Namespace) -> None:
    """Teach the text encoder what stands where, without its other states changing much."""
    tokenizer = CLIPTokenizer.from_pretrained(POSTCARDS / "tokenizer")
    text_encoder = load_text_encoder(args)
    before = copy.deepcopy(text_encoder).to(accelerator.device)
    model = places.Reader(text_encoder)
    data = places.Captions(Postcards(args.pictures))
    loss = partial(places.places_loss, tokenizer=tokenizer, before=before)
    train(accelerator, model, loader(args, data, 64), loss, **options(args, "places", 5e-4))
    if not accelerator.is_main_process:
        return
    unseen = places.Captions(Postcards(256, first_seed=10**9))
    share = places.right_places(model.to("cpu"), [unseen[i] for i in range(256)], tokenizer)
    print(f"text encoder: {share:.2f} of unseen captions' subjects read at their places")
    text_encoder.save_pretrained(args.folder / "model" / "text_encoder")


def train_clip(accelerator: Accelerator, args: argparse.Namespace, part: str) -> None:
    """Train CLIP from nothing ("clip"), or both encoders once more ("clip-again").

    The U-Net and ``places`` have changed the text encoder since, and rely on what it says now: it
    stays close to that. From nothing, all words it never saw get one neutral vector.
    """
    tokenizer = CLIPTokenizer.from_pretrained(POSTCARDS / "tokenizer")
    folder = newest(args.folder, "image_encoder", shipped=args.further)
    image_encoder = (
        CLIPVisionModelWithProjection.from_pretrained(folder).float()
        if folder
        else clip.make_image_encoder()
    )
    text_encoder = load_text_encoder(args).requires_grad_(not args.freeze_text)
    held = part == "clip-again" and not args.freeze_text
    before = copy.deepcopy(text_encoder).to(accelerator.device) if held else None
    model = clip.Contrast(text_encoder, image_encoder)
    data = Postcards(args.pictures)
    loss = partial(clip.clip_loss, tokenizer=tokenizer, before=before)
    train(accelerator, model, loader(args, data, 128), loss, **options(args, part, 8e-4))
    if not accelerator.is_main_process:
        return
    model = model.to("cpu")
    if part == "clip":
        captions = [data.captions(i)[0] for i in range(min(len(data), 20_000))]
        used = clip.neutralise_unused_words(text_encoder, tokenizer, captions)
        print(f"CLIP: {used} tokens trained")
    unseen = Postcards(256, first_seed=10**9)
    share = clip.tell_apart(model, [unseen[i] for i in range(256)], tokenizer)
    print(f"CLIP: prefers a caption to its near miss {share:.2f} of the time")
    text_encoder.save_pretrained(args.folder / "model" / "text_encoder")
    image_encoder.save_pretrained(args.folder / "model" / "image_encoder")


@torch.no_grad()
def cached_latents(accelerator: Accelerator, args: argparse.Namespace, lesson: str) -> torch.Tensor:
    """Return the latents of a lesson's pictures, (N, 4, 16, 16); encode them the first time."""
    file = args.folder / f"latents-{lesson}-{args.pictures}.safetensors"
    if not file.exists():
        model = AutoencoderKL.from_pretrained(newest(args.folder, "vae")).to(accelerator.device)
        data = Postcards(args.pictures, lesson=lesson)
        count = accelerator.num_processes
        share = range(accelerator.process_index, len(data) - len(data) % count, count)
        batches = DataLoader(Subset(data, share), 64, num_workers=args.workers)
        with accelerator.autocast():
            parts = [
                model.encode(batch["pixels"].to(accelerator.device)).latent_dist.mean.half()
                for batch in batches
            ]
        latents = accelerator.gather(torch.cat(parts)).cpu()
        if accelerator.is_main_process:
            latents = latents.unflatten(0, (count, -1)).transpose(0, 1)  # back into order
            file.parent.mkdir(parents=True, exist_ok=True)
            beside = file.with_suffix(".new")
            save_file({"latents": latents.flatten(0, 1).contiguous()}, beside)
            os.replace(beside, file)  # Killed before, the next run encodes them again.
    accelerator.wait_for_everyone()
    return load_file(file)["latents"]


class Latents(Dataset):
    """Cached latents, each with a caption drawn anew every time."""

    def __init__(self, latents: torch.Tensor, pictures: Postcards) -> None:
        self.latents = latents
        self.scenes = [pictures.scene(i) for i in range(len(latents))]

    def __len__(self) -> int:
        return len(self.latents)

    def __getitem__(self, index: int) -> dict:
        rng = random.Random(int(torch.randint(2**31, ())))
        empty = rng.random() < unet.CAPTION_DROPOUT
        text = "" if empty else words.caption(self.scenes[index], rng)
        return {"latents": self.latents[index].float(), "caption": text}


def train_unet(accelerator: Accelerator, args: argparse.Namespace, lesson: str) -> None:
    """Train the U-Net on cached latents, and CLIP's text encoder with it.

    Each lesson goes on from what the one before it left under ``--folder``.
    """
    tokenizer = CLIPTokenizer.from_pretrained(POSTCARDS / "tokenizer")
    scheduler = unet.make_scheduler()
    first_timestep = unet.FIRST_HIDDEN_TIMESTEP if lesson == "pairs" else 0
    latents = cached_latents(accelerator, args, lesson)
    data = Latents(latents, Postcards(len(latents), lesson=lesson))

    def loss(model: torch.nn.Module, batch: dict) -> torch.Tensor:
        padded = {"padding": "max_length", "truncation": True, "return_tensors": "pt"}
        ids = tokenizer(batch["caption"], **padded).input_ids.to(accelerator.device)
        return unet.unet_loss(model, scheduler, batch["latents"], ids, first_timestep)

    folder = newest(args.folder, "unet", shipped=args.further)
    denoiser = UNet2DConditionModel.from_pretrained(folder) if folder else unet.make_unet()
    text_encoder = load_text_encoder(args).requires_grad_(not args.freeze_text)
    model = unet.TextToNoise(text_encoder, denoiser)
    model.unet.to(memory_format=torch.channels_last)  # A tenth faster on a CPU.
    if args.compile:
        model.unet.compile()
    train(accelerator, model, loader(args, data, 32), loss, **options(args, f"unet-{lesson}", 6e-4))
    if accelerator.is_main_process:
        model.unet.to(memory_format=torch.contiguous_format)
        model.unet.save_pretrained(args.folder / "model" / "unet")
        model.text_encoder.save_pretrained(args.folder / "model" / "text_encoder")


def train_judge(accelerator: Accelerator, args: argparse.Namespace) -> None:
    """Train the judge on pictures of its own."""
    model = load_judge(args).train() if args.further else judge.Judge()
    batches = loader(args, JudgedPictures(args.pictures, first_seed=2 * 10**9), 32)
    train(accelerator, model, batches, judge.judge_loss, **options(args, "judge", 2e-3))
    if accelerator.is_main_process:
        weights = {name: weight.half().contiguous() for name, weight in model.state_dict().items()}
        save_file(weights, args.folder / judge.WEIGHTS.name)


def pack(run: Path, package: Path) -> None:
    """Write the trained parts into the package: a diffusers folder in fp16, and the judge.

    No file is over 16 MB.
    """
    folder = package / POSTCARDS.relative_to(PACKAGE)
    eye = newest(run, "image_encoder")
    pipe = StableDiffusionPipeline(
        vae=AutoencoderKL.from_pretrained(newest(run, "vae")),
        text_encoder=CLIPTextModel.from_pretrained(newest(run, "text_encoder")),
        image_encoder=eye and CLIPVisionModelWithProjection.from_pretrained(eye),
        tokenizer=CLIPTokenizer.from_pretrained(POSTCARDS / "tokenizer"),
        unet=UNet2DConditionModel.from_pretrained(newest(run, "unet")),
        scheduler=unet.make_scheduler(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    for part in (pipe.vae, pipe.unet):
        part.register_to_config(_name_or_path="postcards")  # not the folder it was trained in
    pipe.to(torch.float16).save_pretrained(folder, max_shard_size=MAX_SHARD)
    # transformers writes tokenizer.json alone; it is made anew from CLIP's own two files.
    (folder / "tokenizer" / "tokenizer.json").unlink(missing_ok=True)
    if folder.resolve() != POSTCARDS.resolve():
        shutil.copytree(POSTCARDS / "tokenizer", folder / "tokenizer", dirs_exist_ok=True)
    trained_judge = run / judge.WEIGHTS.name
    if trained_judge.exists():
        target = package / judge.WEIGHTS.relative_to(PACKAGE)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(trained_judge, target)


PARTS: dict[str, Callable[[Accelerator, argparse.Namespace], None]] = {
    "vae": train_vae,
    "clip": partial(train_clip, part="clip"),
    "unet-easy": partial(train_unet, lesson="easy"),
    "unet-single": partial(train_unet, lesson="single"),
    "places": train_places,
    "unet-pairs": partial(train_unet, lesson="pairs"),
    "unet-all": partial(train_unet, lesson="all"),
    "clip-again": partial(train_clip, part="clip-again"),
    "judge": train_judge,
    "decoder": train_decoder,
}

if __name__ == "__main__":
    main()
