r"""Consistency distillation: a LoRA with which the U-Net draws in one to four steps.

A denoiser says where to step next, and ten small steps lead from noise to a picture. A *consistency
function* f says from any point of such a path where the path ends. Two points on one path end in
the same picture, and that is the whole loss: what f says here must be what f says one step of the
teacher further on, and at the end of a path f must say where it stands.

Source: Song et al. (2023), "Consistency Models", arXiv 2303.01469, equation 5 and algorithm 2; Luo
et al. (2023), "Latent Consistency Models", arXiv 2310.04378, algorithm 1 (guidance in the teacher,
steps that skip timesteps); Luo et al. (2023), "LCM-LoRA", arXiv 2311.05556. The constants are those
of diffusers' ``LCMScheduler``, which draws with the result.
"""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Unpack

import torch
from diffusers import StableDiffusionPipeline, UNet2DConditionModel
from torch import Tensor, nn

from sdlearn.finetuning.fit import frozen
from sdlearn.noise import add_noise, alpha_bar, split_prediction
from sdlearn.schedulers import ddim_step
from sdlearn.text import encode_prompt
from sdlearn.training.loop import Examples, Options, train

ADAPTER = "few-steps"
# Every layer that sees the latents: one step has to do what ten did.
TARGETS = (
    "to_q", "to_k", "to_v", "to_out.0", "ff.net.0.proj", "ff.net.2", "proj_in", "proj_out",
    "conv1", "conv2", "conv_shortcut", "time_emb_proj", "conv", "conv_in", "conv_out",
)  # fmt: skip
SIGMA_DATA = 0.5
TIMESTEP_SCALING = 10.0
GRID = 20  # LCMScheduler knows every twentieth timestep: 19, 39, ..., 999.
JUMP = 100  # Timesteps that a step of the teacher covers: ten of them make a path.
HUBER = 0.001  # An error counts squared below this, as it is above.
FROM_NOISE = 0.25  # The share of points at which drawing begins: nothing but noise.


def boundary_scalings(timesteps: Tensor) -> tuple[Tensor, Tensor]:
    r"""Return c_skip and c_out at B timesteps, (B, 1, 1, 1) each: 1 and 0 at t = 0.

    From t = 20 on they are as good as 0 and 1.
    """
    scaled = timesteps.float()[:, None, None, None] * TIMESTEP_SCALING
    norm = scaled**2 + SIGMA_DATA**2
    return SIGMA_DATA**2 / norm, scaled / norm**0.5


def consistency(
    pipe: StableDiffusionPipeline, x: Tensor, timesteps: Tensor, noise_pred: Tensor
) -> Tensor:
    r"""Return where the paths through x, (B, 4, h, w), end, by the U-Net's prediction about x.

    $$f(x, t) = c_{skip}(t)\, x + c_{out}(t)\, \hat x_0(x, t)$$
    """
    kind = pipe.scheduler.config.prediction_type
    original, _ = split_prediction(x, noise_pred, alpha_bar(pipe, timesteps, x), kind)
    c_skip, c_out = boundary_scalings(timesteps)
    return c_skip.to(x) * x + c_out.to(x) * original


def teacher_step(
    pipe: StableDiffusionPipeline,
    teacher: UNet2DConditionModel,
    x: Tensor,
    timesteps: Tensor,
    later: Tensor,
    prompt_embeds: Tensor,
    guidance_scale: float,
) -> Tensor:
    """Take x, (B, 4, h, w), one guided step of DDIM on, from B timesteps to B less noisy ones.

    What the student copies is guided, so it needs no guidance of its own. ``prompt_embeds`` are
    (2B, 77, D), the unconditional half first.
    """
    twice = teacher(x.repeat(2, 1, 1, 1), timesteps.repeat(2), prompt_embeds, return_dict=False)[0]
    unconditional, text = twice.chunk(2)
    guided = unconditional + guidance_scale * (text - unconditional)
    a, a_next = (alpha_bar(pipe, t, x) for t in (timesteps, later))
    kind = pipe.scheduler.config.prediction_type
    return ddim_step(x, guided, a, a_next, prediction_type=kind)  # type: ignore[arg-type]


def draw_points(pipe: StableDiffusionPipeline, latents: Tensor) -> tuple[Tensor, Tensor]:
    """Draw where to look at paths: x, (B, 4, h, w), and its timesteps, (B,).

    At the last timestep a trace of the picture is left, but drawing starts from noise alone, and so
    does every fourth x here.
    """
    count, last = len(latents), pipe.scheduler.config.num_train_timesteps - 1
    t = GRID * torch.randint(1, (last + 1) // GRID + 1, (count,)) - 1
    t = torch.where(torch.rand(count) < FROM_NOISE, last, t).to(latents.device)
    noise = torch.randn_like(latents)
    at_the_start = (t == last)[:, None, None, None]
    return torch.where(at_the_start, noise, add_noise(pipe, latents, noise, t)), t


def distillation_loss(
    student: nn.Module,
    teacher: UNet2DConditionModel,
    pipe: StableDiffusionPipeline,
    batch: dict,
    guidance_scale: float,
) -> Tensor:
    """How much f changes along one step of the teacher: mean pseudo-Huber norm, a scalar.

    A small error of the predicted noise is a large one of the picture where little of it is left:
    15 times as large at t = 999, a seventh at t = 19. The root of that is taken out again, or else
    the noisiest timesteps would spoil the others.

    Args:
        student: the U-Net with its LoRA, or what wraps it.
        teacher: the U-Net without.
        pipe: for its noise schedule and its text encoder.
        batch: ``latents`` (B, 4, h, w), and B of ``caption``.
        guidance_scale: the teacher's.
    """
    embeds = encode_prompt(pipe, list(batch["caption"]))  # (2B, 77, D)
    text = embeds.chunk(2)[1]
    x, t = draw_points(pipe, batch["latents"].to(embeds))
    later = (t - JUMP).clamp(min=0)
    with torch.no_grad():  # else the loss would also pull what is said later to what is said now
        x_later = teacher_step(pipe, teacher, x, t, later, embeds, guidance_scale)
        noise_pred = student(x_later, later, text, return_dict=False)[0]
        target = consistency(pipe, x_later, later, noise_pred)
    noise_pred = student(x, t, text, return_dict=False)[0]
    error = (consistency(pipe, x, t, noise_pred) - target).float()
    a = alpha_bar(pipe, t, error)
    weight = (a / (1 - a)) ** 0.25  # (B, 1, 1, 1)
    return (((error**2 + HUBER**2).sqrt() - HUBER) * weight).mean()


def distil(
    pipe: StableDiffusionPipeline,
    data: Examples,
    *,
    guidance_scale: float = 3.0,
    rank: int = 12,
    batch_size: int = 16,
    learning_rate: float = 2e-3,
    **options: Unpack[Options],
) -> None:
    """Teach a LoRA on the U-Net to draw in few steps; the U-Net's own weights stay as they are.

    Draw with ``LCMScheduler.from_config(pipe.scheduler.config)`` and guidance 1.

    Args:
        pipe: the pipeline; afterwards it has the LoRA, as ``pipe.load_lora_weights`` leaves it.
        data: examples with ``latents`` (4, h, w) and a ``caption``, as ``Latents`` has.
        guidance_scale: of the teacher; the student draws as if guided by it.
        rank: of the LoRA.
        batch_size: examples a step.
        learning_rate: the highest.
        options: ``steps`` or ``minutes``, and more: see ``train``.
    """
    from peft import LoraConfig  # The models that ship are drawn with without it.

    teacher = copy.deepcopy(pipe.unet).requires_grad_(False)
    with frozen(pipe):
        config = LoraConfig(r=rank, lora_alpha=rank, target_modules=list(TARGETS))
        pipe.unet.add_adapter(config, ADAPTER)

        def loss(student: torch.nn.Module, batch: dict) -> Tensor:
            return distillation_loss(student, teacher, pipe, batch, guidance_scale)

        train(
            pipe.unet, data, loss, batch_size=batch_size, learning_rate=learning_rate,
            progress_bar=pipe.progress_bar, **options,
        )  # fmt: skip


def save_few_steps(pipe: StableDiffusionPipeline, folder: str | Path) -> None:
    """Write the LoRA, in half precision, as ``pipe.load_lora_weights(folder)`` reads it."""
    from peft import get_peft_model_state_dict

    layers = get_peft_model_state_dict(pipe.unet, adapter_name=ADAPTER)
    layers = {name: weight.half().contiguous() for name, weight in layers.items()}
    pipe.save_lora_weights(folder, unet_lora_layers=layers)
