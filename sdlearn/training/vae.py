"""Train the VAE: pictures to latents and back.

Source: Kingma and Welling (2013); Rombach et al. (2022), section 3.1; SSIM as a loss: Zhao et al.
(2017), "Loss Functions for Image Restoration With Neural Networks".
"""

from __future__ import annotations

from typing import Unpack

import torch
from diffusers import AutoencoderKL, StableDiffusionPipeline

from sdlearn.images import ssim_map
from sdlearn.training.loop import Examples, Options, train

SUBJECT_WEIGHT = 4.0  # Backgrounds are large and smooth, subjects small and what one looks at.
LATENT_NOISE = 0.1  # Standard deviation: the U-Net's latents are never exact, so be tolerant.
KL_WEIGHT = 1e-6  # A mean: barely a pull to N(0, 1). Rombach et al.'s 1e-6 weighs sums.


def make_vae() -> AutoencoderKL:
    """Return an untrained f = 8, 4-channel VAE with the layout of Stable Diffusion's, narrower."""
    return AutoencoderKL(
        down_block_types=["DownEncoderBlock2D"] * 4,
        up_block_types=["UpDecoderBlock2D"] * 4,
        block_out_channels=[16, 32, 64, 128],
        layers_per_block=1,
        norm_num_groups=8,
        latent_channels=4,
        sample_size=128,
        scaling_factor=1.0,
    )


def gradients(pixels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the differences between neighbours across and down; of an error, they show blur."""
    return pixels[..., :, 1:] - pixels[..., :, :-1], pixels[..., 1:, :] - pixels[..., :-1, :]


def reconstruction_loss(
    decoded: torch.Tensor, pixels: torch.Tensor, subject: torch.Tensor | None = None
) -> torch.Tensor:
    """L1 + L2 + image gradients, more where a subject stands, + 1 - SSIM; a scalar.

    Args:
        decoded: pictures, (B, 3, H, W) in [-1, 1].
        pixels: what they should be.
        subject: (B, 1, H, W), 1 where a subject stands, else 0; None where that is not known.
    """
    weight = 1 + SUBJECT_WEIGHT * (torch.zeros_like(pixels[:, :1]) if subject is None else subject)
    weight = weight / weight.mean()
    error = decoded - pixels
    across, down = gradients(error)
    loss = (weight * (error.abs() + error.square())).mean()
    loss = loss + (weight[..., 1:] * across.abs()).mean() + (weight[..., 1:, :] * down.abs()).mean()
    return loss + 1 - ssim_map(decoded / 2 + 0.5, pixels / 2 + 0.5).mean()


def vae_loss(vae: torch.nn.Module, batch: dict) -> torch.Tensor:
    """The error of the decoded pictures, + a small KL; a scalar."""
    decoded, mean, logvar = (part.float() for part in vae(batch["pixels"]))
    kl = 0.5 * (mean.square() + logvar.exp() - 1 - logvar).mean()
    return reconstruction_loss(decoded, batch["pixels"], batch.get("subject")) + KL_WEIGHT * kl


class Autoencode(torch.nn.Module):
    """The VAE as one call, pixels -> (decoded, mean, logvar): it wraps and compiles whole."""

    def __init__(self, vae: AutoencoderKL) -> None:
        super().__init__()
        self.vae = vae

    def forward(self, pixels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Encode, draw from the posterior, add a little noise more, decode."""
        posterior = self.vae.encode(pixels).latent_dist
        spread = posterior.mean.detach().std(dim=(0, 2, 3), keepdim=True)  # (1, 4, 1, 1)
        noise = (posterior.std + LATENT_NOISE * spread) * torch.randn_like(posterior.std)
        latents = posterior.mean + noise
        return self.vae.decode(latents).sample, posterior.mean, posterior.logvar


@torch.no_grad()
def normalise_latents(vae: AutoencoderKL, pixels: torch.Tensor) -> None:
    """Give each latent channel mean 0 and variance 1 by folding both into the quant convolutions.

    Stable Diffusion's single ``scaling_factor`` (0.18215) gives its latents unit variance over
    all channels together; here each channel has it, and ``scaling_factor`` stays 1.
    """
    mean = vae.encode(pixels).latent_dist.mean  # (B, 4, h, w)
    shift, scale = mean.mean(dim=(0, 2, 3)), mean.std(dim=(0, 2, 3))  # (4,)
    quant, post = vae.quant_conv, vae.post_quant_conv
    # The decoder must see what it saw: post(z * scale + shift) for the new z.
    post.bias += (post.weight[:, :, 0, 0] * shift).sum(dim=1)
    post.weight *= scale[None, :, None, None]
    # quant's first four channels are the mean, its last four the log-variance.
    quant.weight[:4] /= scale[:, None, None, None]
    quant.bias[:4] = (quant.bias[:4] - shift) / scale
    quant.bias[4:] -= 2 * scale.log()


def train_vae(
    pipe: StableDiffusionPipeline,
    data: Examples,
    *,
    batch_size: int = 4,
    learning_rate: float = 1.5e-3,
    **options: Unpack[Options],
) -> None:
    """Train a pipeline's VAE in place; then scale its latents to unit variance.

    Args:
        pipe: the pipeline, in float32.
        data: examples with ``pixels`` (3, H, W) in [-1, 1], and, if known, ``subject`` (1, H, W).
        batch_size: how many a step sees.
        learning_rate: the highest.
        options: ``steps`` or ``minutes``, and more: see ``train``.
    """
    pipe.vae.requires_grad_(True)
    train(
        Autoencode(pipe.vae), data, vae_loss, batch_size=batch_size, learning_rate=learning_rate,
        progress_bar=pipe.progress_bar, **options,
    )  # fmt: skip
    some = [data[i]["pixels"] for i in range(min(64, len(data)))]
    normalise_latents(pipe.vae, torch.stack(some).to(pipe.vae.device))
