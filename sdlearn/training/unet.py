"""Train the U-Net to predict noise in latents from text (Ho et al. 2020, Algorithm 1)."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from diffusers import DDIMScheduler, UNet2DConditionModel
from transformers import CLIPTextModel

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
