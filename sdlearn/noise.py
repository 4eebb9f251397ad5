r"""The forward process, which adds noise, and its formula read backwards.

Source: Ho et al. (2020), "Denoising Diffusion Probabilistic Models", equations 4 and 15; for the
velocity v, Salimans and Ho (2022), "Progressive Distillation", appendix D.

``alpha_bar`` ($\bar\alpha_t$, diffusers' ``scheduler.alphas_cumprod[t]``) is the share of the
variance at step t that is still picture: near 1 at t = 0, near 0 at t = 999.
"""

from __future__ import annotations

import torch
from diffusers import StableDiffusionPipeline
from torch import Tensor

from sdlearn import checks


def alpha_bar(pipe: StableDiffusionPipeline, timesteps: int | Tensor, like: Tensor) -> Tensor:
    """Return alpha_bar at 1 or B timesteps, ready to multiply ``like``, (B, C, h, w).

    Raises:
        ValueError: a timestep that is not whole or was not trained, or another number of them.
    """
    table = pipe.scheduler.alphas_cumprod.cpu()  # (1000,)
    steps = torch.as_tensor(timesteps).reshape(-1).cpu()  # (1,) or (B,)
    index = steps.long()
    if len(index) not in (1, len(like)):
        raise ValueError(f"got {len(index)} timesteps for a batch of {len(like)}; pass 1 or B")
    if not torch.equal(index, steps) or index.min() < 0 or index.max() >= len(table):
        raise ValueError(f"timesteps must be whole, 0 to {len(table) - 1}, got {steps.tolist()}")
    return table[index].to(like.device, like.dtype)[:, None, None, None]  # (1 or B, 1, 1, 1)


def add_noise(
    pipe: StableDiffusionPipeline, latents: Tensor, noise: Tensor, timesteps: int | Tensor
) -> Tensor:
    r"""Jump from clean latents to step t of the forward process at once.

    $$x_t = \sqrt{\bar\alpha_t}\, x_0 + \sqrt{1 - \bar\alpha_t}\, \epsilon$$

    The same as ``DDPMScheduler.add_noise``, bit for bit. Schedulers that count in sigmas (Euler)
    keep x_t divided by the root of alpha_bar; their ``scale_model_input`` turns it into this x_t.

    Args:
        pipe: the pipeline, for its noise schedule.
        latents: x_0, (B, 4, h, w).
        noise: epsilon, (B, 4, h, w), drawn from N(0, 1).
        timesteps: one whole number in 0 ... 999, or B of them.

    Raises:
        ValueError, TypeError: shapes that do not match, or timesteps out of range.
    """
    checks.latents(pipe, latents)
    if noise.shape != latents.shape:
        raise ValueError(
            f"noise has shape {tuple(noise.shape)}, the latents {tuple(latents.shape)}; "
            "draw it with torch.randn(latents.shape, generator=...)"
        )
    checks.latents(pipe, noise, "noise")
    a = alpha_bar(pipe, timesteps, latents)
    return a**0.5 * latents + (1 - a) ** 0.5 * noise


def signal_to_noise(pipe: StableDiffusionPipeline) -> Tensor:
    r"""Return $\bar\alpha_t / (1 - \bar\alpha_t)$ at every training step, (1000,), falling."""
    a = pipe.scheduler.alphas_cumprod  # (1000,)
    return a / (1 - a)


def split_prediction(
    sample: Tensor, noise_pred: Tensor, a: Tensor | float, prediction_type: str = "epsilon"
) -> tuple[Tensor, Tensor]:
    r"""Split x_t into the picture x_0 and the noise epsilon that the model sees in it.

    Both follow from the formula of ``add_noise``; a model may also predict the velocity
    $v = \sqrt{\bar\alpha}\, \epsilon - \sqrt{1-\bar\alpha}\, x_0$.

    Args:
        sample: x_t, (B, C, h, w).
        noise_pred: the prediction of the U-Net, epsilon or v.
        a: alpha_bar at t.
        prediction_type: "epsilon" (SD 1.x) or "v_prediction".

    Raises:
        ValueError: another prediction type.
    """
    if prediction_type == "epsilon":
        return (sample - (1 - a) ** 0.5 * noise_pred) / a**0.5, noise_pred
    if prediction_type == "v_prediction":
        original = a**0.5 * sample - (1 - a) ** 0.5 * noise_pred
        return original, a**0.5 * noise_pred + (1 - a) ** 0.5 * sample
    raise ValueError(f"got prediction_type {prediction_type!r}; use epsilon or v_prediction")


def predict_original_sample(
    pipe: StableDiffusionPipeline, latents: Tensor, t: int | Tensor, noise_pred: Tensor
) -> Tensor:
    """Return the clean latents, (B, 4, h, w), that a prediction about x_t implies.

    Args:
        pipe: the pipeline, for its noise schedule and what its U-Net predicts.
        latents: x_t, (B, 4, h, w), as the U-Net sees them.
        t: one whole number in 0 ... 999, or B of them.
        noise_pred: the U-Net's prediction, (B, 4, h, w).

    Raises:
        ValueError, TypeError: not latents, or timesteps out of range.
    """
    checks.latents(pipe, latents)
    a = alpha_bar(pipe, t, latents)
    return split_prediction(latents, noise_pred, a, pipe.scheduler.config.prediction_type)[0]
