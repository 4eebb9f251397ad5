"""Make the VAE's decoder sharper, as Stable Diffusion's was made: features and a critic.

The error of single pixels is least where the decoder paints the mean of all it thinks possible, and
that is a blur. A perceptual distance compares what a trained network sees in both pictures; a
critic, trained along, learns to tell decoded pictures from true ones, patch by patch.

Source: Rombach et al. (2022), section 3.1; Esser et al. (2021), "Taming Transformers", section 3.1;
Zhang et al. (2018), "The Unreasonable Effectiveness of Deep Features as a Perceptual Metric";
hinge loss: Lim and Ye (2017), "Geometric GAN".
"""

from __future__ import annotations

from functools import partial
from typing import NamedTuple, Unpack

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL, StableDiffusionPipeline
from torch import Tensor, nn

from sdlearn.postcards.judge import Judge
from sdlearn.training.loop import Examples, Options, train
from sdlearn.training.vae import Autoencode, reconstruction_loss

PERCEPTUAL_WEIGHT = 0.5
CRITIC_WEIGHT = 0.05


def make_critic() -> nn.Sequential:
    """Return an untrained critic: (B, 3, H, W) -> (B, 1, H/8, W/8), high for true pictures.

    Each number judges a patch of 38 × 38 pixels (Isola et al. 2017, "PatchGAN").
    """
    layers: list[nn.Module] = [nn.Conv2d(3, 24, 4, 2, 1), nn.LeakyReLU(0.2)]
    for inputs, outputs in ((24, 48), (48, 96)):
        layers += [nn.Conv2d(inputs, outputs, 4, 2, 1), nn.GroupNorm(8, outputs)]
        layers.append(nn.LeakyReLU(0.2))
    return nn.Sequential(*layers, nn.Conv2d(96, 1, 3, 1, 1))


class Round(NamedTuple):
    """What one round-trip gives: pictures, (B, 3, H, W), and what the critic says of patches."""

    decoded: Tensor
    fooled: Tensor  # of the decoded, where the decoder alone learns
    of_decoded: Tensor  # of the decoded, where the critic alone learns
    of_true: Tensor


class Rivals(nn.Module):
    """A VAE whose decoder learns, its encoder as it is, and the critic of what it decodes."""

    def __init__(self, vae: AutoencoderKL) -> None:
        super().__init__()
        vae.requires_grad_(True)
        vae.encoder.requires_grad_(False)
        vae.quant_conv.requires_grad_(False)
        self.autoencode, self.critic = Autoencode(vae), make_critic()

    def forward(self, pixels: Tensor) -> Round:
        """Encode, decode, and ask the critic."""
        decoded = self.autoencode(pixels)[0]
        fixed = {name: weight.detach() for name, weight in self.critic.named_parameters()}
        fooled = torch.func.functional_call(self.critic, fixed, decoded)
        return Round(decoded, fooled, self.critic(decoded.detach()), self.critic(pixels))


def perceptual_distance(judge: Judge, one: Tensor, other: Tensor) -> Tensor:
    """Return how differently the judge's first layers see two batches of pictures, a scalar.

    At each of its four depths: the squared distance of the features of a place, each scaled to
    length 1; the mean over all places and depths (Zhang et al. 2018, without their weights).
    """
    total = one.new_zeros(())
    for block in judge.down:
        one, other = block(one), block(other)
        total = total + (F.normalize(one) - F.normalize(other)).square().sum(dim=1).mean()
    return total / len(judge.down)


def decoder_loss(model: nn.Module, batch: dict, judge: Judge) -> Tensor:
    """The VAE's loss of pixels, the perceptual distance, and both sides of the game; a scalar.

    Args:
        model: ``Rivals``, or what wraps it.
        batch: ``pixels`` (B, 3, H, W) in [-1, 1], ``subject`` (B, 1, H, W).
        judge: compares; it does not learn.
    """
    out = Round(*(part.float() for part in model(batch["pixels"])))
    # The decoder wants to be taken for true, the critic to be right by a margin of 1.
    critic = F.relu(1 - out.of_true).mean() + F.relu(1 + out.of_decoded).mean()
    return (
        reconstruction_loss(out.decoded, batch["pixels"], batch.get("subject"))
        + PERCEPTUAL_WEIGHT * perceptual_distance(judge, out.decoded, batch["pixels"])
        - CRITIC_WEIGHT * out.fooled.mean()
        + critic
    )


def train_decoder(
    pipe: StableDiffusionPipeline,
    data: Examples,
    judge: Judge,
    *,
    batch_size: int = 4,
    learning_rate: float = 4e-4,
    **options: Unpack[Options],
) -> None:
    """Make the decoder of a pipeline's VAE sharper, in place; latents stay as they are.

    Args:
        pipe: the pipeline, in float32.
        data: examples with ``pixels`` (3, H, W) in [-1, 1], and, if known, ``subject`` (1, H, W).
        judge: what sees, for the perceptual distance.
        batch_size: how many a step sees.
        learning_rate: the highest.
        options: ``steps`` or ``minutes``, and more: see ``train``.
    """
    model = Rivals(pipe.vae).to(pipe.vae.device)
    seer = judge.requires_grad_(False).to(pipe.vae.device)
    train(
        model, data, partial(decoder_loss, judge=seer), batch_size=batch_size,
        learning_rate=learning_rate, progress_bar=pipe.progress_bar, **options,
    )  # fmt: skip
