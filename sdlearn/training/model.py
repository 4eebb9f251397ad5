"""postcards as a pipeline: with random weights, before anything was learnt, and on disk."""

from __future__ import annotations

import shutil
from pathlib import Path

import torch
from diffusers import StableDiffusionPipeline
from transformers import CLIPTokenizer

from sdlearn.postcards.model import POSTCARDS
from sdlearn.training.clip import make_image_encoder, make_text_encoder
from sdlearn.training.unet import make_scheduler, make_unet
from sdlearn.training.vae import make_vae

MAX_SHARD = "15MB"


def new_pipeline() -> StableDiffusionPipeline:
    """Return postcards before it learnt anything: random weights, CLIP's own tokenizer.

    Weights are drawn by torch's global generator: ``torch.manual_seed`` first, to have them again.
    """
    pipe = StableDiffusionPipeline(
        vae=make_vae().eval(),
        text_encoder=make_text_encoder().eval(),
        image_encoder=make_image_encoder().eval(),
        tokenizer=CLIPTokenizer.from_pretrained(POSTCARDS / "tokenizer"),
        unet=make_unet().eval(),
        scheduler=make_scheduler(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    for part in (pipe.vae, pipe.text_encoder, pipe.image_encoder, pipe.unet):
        part.requires_grad_(False)
    return pipe


def pack(pipe: StableDiffusionPipeline, folder: str | Path) -> None:
    """Write a pipeline as a diffusers folder in half precision, in files under 16 MB."""
    for part in (pipe.vae, pipe.unet):
        part.register_to_config(_name_or_path="postcards")  # not the folder it was trained in
    pipe.to(torch.float16).save_pretrained(folder, max_shard_size=MAX_SHARD)
    # transformers writes tokenizer.json alone; it is made anew from CLIP's own two files.
    tokenizer = Path(folder) / "tokenizer"
    (tokenizer / "tokenizer.json").unlink(missing_ok=True)
    if tokenizer.resolve() != (POSTCARDS / "tokenizer").resolve():
        shutil.copytree(POSTCARDS / "tokenizer", tokenizer, dirs_exist_ok=True)
