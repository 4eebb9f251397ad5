"""Train the U-Net to predict noise in latents from text (Ho et al. 2020, Algorithm 1)."""

from __future__ import annotations

import random
from functools import partial
from pathlib import Path
from typing import Any, Unpack

import torch
import torch.nn.functional as F
from accelerate import Accelerator
from diffusers import DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from safetensors.torch import load_file, save_file
from torch.utils.data import DataLoader, Dataset, Subset
from transformers import CLIPTextModel, CLIPTokenizer

from sdlearn.training.checkpoint import replaced
from sdlearn.training.loop import Options, train
from sdlearn.training.pictures import Described

CAPTION_DROPOUT = 0.1  # Ho & Salimans 2022: the share of empty prompts that guidance needs.
# From here on noise hides what stands where, and only the prompt can tell: lesson "pairs".
FIRST_HIDDEN_TIMESTEP = 600
SNR_GAMMA = 5.0  # Hang et al. 2023, "min-SNR": easy timesteps do not drown the others.


def make_unet() -> UNet2DConditionModel:
    """Return an untrained U-Net: SD's block types at three resolutions, cross-attention at two."""
    return UNet2DConditionModel(
        sample_size=16,
        in_channels=4,
        out_channels=4,
        down_block_types=["CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"],
        up_block_types=["UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"],
        block_out_channels=[64, 128, 192],
        layers_per_block=1,
        cross_attention_dim=128,
        attention_head_dim=4,  # The number of heads: see diffusers issue 2011 for the name.
        norm_num_groups=32,
    )


class TextToNoise(torch.nn.Module):
    """Text encoder and U-Net as one: (noisy latents, timesteps, token ids) -> predicted noise.

    Both are trained. Stable Diffusion keeps CLIP's text encoder as it is, but that one had seen
    400 million captions before; ours has seen a few thousand.
    """

    def __init__(self, text_encoder: CLIPTextModel, unet: UNet2DConditionModel) -> None:
        super().__init__()
        self.text_encoder, self.unet = text_encoder, unet

    def forward(self, noisy: torch.Tensor, timesteps: torch.Tensor, ids: torch.Tensor) -> Any:
        """Predict the noise, (B, 4, h, w), for captions (B, 77)."""
        prompt_embeds = self.text_encoder(ids)[0]  # (B, 77, D)
        return self.unet(noisy, timesteps, prompt_embeds, return_dict=False)[0]


def make_scheduler() -> DDIMScheduler:
    """Return Stable Diffusion's noise schedule, sampled by DDIM."""
    return DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        num_train_timesteps=1000,
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
    )


class Latents(Dataset):
    """Pictures as latents, each with a caption drawn anew every time, or with none."""

    def __init__(self, latents: torch.Tensor, data: Described) -> None:
        self.latents, self.data = latents, data

    def __len__(self) -> int:
        return len(self.latents)

    def __getitem__(self, index: int) -> dict:
        rng = random.Random(int(torch.randint(2**31, ())))
        empty = rng.random() < CAPTION_DROPOUT
        caption = "" if empty else self.data.caption(index, rng)
        return {"latents": self.latents[index].float(), "caption": caption}


@torch.no_grad()
def encode_pictures(
    pipe: StableDiffusionPipeline,
    data: Described,
    *,
    file: Path | None = None,
    workers: int = 0,
    accelerator: Accelerator | None = None,
) -> torch.Tensor:
    """Return the latents of all pictures, the means that the VAE gives, (N, 4, h, w) in float16.

    Args:
        pipe: the pipeline; its VAE encodes.
        data: the pictures.
        file: where they are kept; if it holds as many, they are read from it.
        workers: processes that make examples.
        accelerator: shares the work among its processes.
    """
    if file and file.exists() and len(latents := load_file(file)["latents"]) == len(data):
        return latents
    accelerator = accelerator or Accelerator(device_placement=False)
    count = accelerator.num_processes
    # Padded, so that each process has as many; the pictures that come twice are cut off.
    order = [i % len(data) for i in range(-(-len(data) // count) * count)]
    share: Subset = Subset(data, order[accelerator.process_index :: count])  # type: ignore[arg-type]
    with accelerator.autocast():
        parts = [
            pipe.vae.encode(batch["pixels"].to(pipe.vae.device)).latent_dist.mean.half()
            for batch in DataLoader(share, 64, num_workers=workers)
        ]
    latents = accelerator.gather(torch.cat(parts)).cpu()
    latents = latents.unflatten(0, (count, -1)).transpose(0, 1).flatten(0, 1)[: len(data)]
    if file and accelerator.is_main_process:
        file.parent.mkdir(parents=True, exist_ok=True)
        with replaced(file) as beside:  # Killed before, the next run encodes them again.
            save_file({"latents": latents.contiguous()}, beside)
    accelerator.wait_for_everyone()
    return latents


def unet_loss(
    model: torch.nn.Module,
    scheduler: DDIMScheduler,
    latents: torch.Tensor,
    ids: torch.Tensor,
    first_timestep: int = 0,
) -> torch.Tensor:
    """Mean squared error of the predicted noise, weighted by signal-to-noise ratio; a scalar.

    Above γ the weight is γ / SNR, as in Hang et al. Below 1 it is 1 / √SNR: there the prompt
    decides the picture, and an error of the noise means one 1 / SNR times as large of the picture.

    Args:
        model: a ``TextToNoise``, or what wraps it.
        scheduler: holds the noise schedule.
        latents: (B, 4, h, w), unit variance.
        ids: the captions' tokens, (B, 77).
        first_timestep: the least noisy timestep that is trained.
    """
    noise = torch.randn_like(latents)
    count = scheduler.config.num_train_timesteps
    timesteps = torch.randint(first_timestep, count, (len(latents),), device=latents.device)
    noisy = scheduler.add_noise(latents, noise, timesteps)
    noise_pred = model(noisy, timesteps, ids).float()
    alphas = scheduler.alphas_cumprod.to(latents.device)[timesteps]
    snr = alphas / (1 - alphas)
    weight = torch.where(snr < 1, snr.rsqrt(), snr.clamp(max=SNR_GAMMA) / snr)  # (B,)
    return (F.mse_loss(noise_pred, noise, reduction="none").mean(dim=(1, 2, 3)) * weight).mean()


def train_unet(
    pipe: StableDiffusionPipeline,
    data: Described,
    *,
    first_timestep: int = 0,
    train_text: bool = True,
    batch_size: int = 32,
    learning_rate: float = 6e-4,
    **options: Unpack[Options],
) -> None:
    """Train a pipeline's U-Net in place, on latents of its VAE, and the text encoder with it.

    Args:
        pipe: the pipeline, in float32.
        data: pictures with captions; the pictures are encoded first, once.
        first_timestep: the least noisy timestep that is trained.
        train_text: False leaves the text encoder as it is.
        batch_size: how many a step sees.
        learning_rate: the highest.
        options: ``steps`` or ``minutes``, and more: see ``train``.
    """
    folder = options.get("folder")
    latents = encode_pictures(
        pipe,
        data,
        file=folder and folder / "latents.safetensors",
        workers=options.get("workers", 0),
        accelerator=options.get("accelerator"),
    )
    model = TextToNoise(pipe.text_encoder, pipe.unet).requires_grad_(True)
    model.text_encoder.requires_grad_(train_text)
    model.unet.to(memory_format=torch.channels_last)  # A tenth faster on a CPU.
    loss = partial(_loss_of_batch, pipe.scheduler, pipe.tokenizer, first_timestep)
    try:
        train(
            model, Latents(latents, data), loss, batch_size=batch_size,
            learning_rate=learning_rate, progress_bar=pipe.progress_bar, **options,
        )  # fmt: skip
    finally:
        model.unet.to(memory_format=torch.contiguous_format)


def _loss_of_batch(
    scheduler: DDIMScheduler,
    tokenizer: CLIPTokenizer,
    first_timestep: int,
    model: torch.nn.Module,
    batch: dict,
) -> torch.Tensor:
    padded = {"padding": "max_length", "truncation": True, "return_tensors": "pt"}
    ids = tokenizer(batch["caption"], **padded).input_ids.to(batch["latents"].device)
    return unet_loss(model, scheduler, batch["latents"], ids, first_timestep)
