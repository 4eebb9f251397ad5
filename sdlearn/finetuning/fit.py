"""What textual inversion and DreamBooth share: examples, their loss, and a loop of so many steps.

Source: Ho et al. (2020), Algorithm 1. Only the parameters that are handed over learn; the rest of
the pipeline is used as it is.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from accelerate import Accelerator
from diffusers import StableDiffusionPipeline
from diffusers.optimization import get_scheduler
from torch import Tensor, nn

from sdlearn import checks
from sdlearn.editing.sdedit import Picture
from sdlearn.latents import encode_image
from sdlearn.noise import add_noise, alpha_bar
from sdlearn.pipeline import execution_device
from sdlearn.text import tokenize
from sdlearn.training.checkpoint import Progress, load_checkpoint, save_checkpoint

AfterStep = Callable[[int, float], None]
SAVE_EVERY = 50  # Steps between checkpoints.


@dataclass(frozen=True, eq=False)
class Examples:
    """Pictures as latents, (N, 4, h, w), and the token ids of their prompts, (N, 77)."""

    latents: Tensor
    ids: Tensor


def examples(
    pipe: StableDiffusionPipeline, images: Sequence[Picture], prompts: str | list[str]
) -> Examples:
    """Encode pictures and their prompts, one for all or one for each.

    Raises:
        ValueError, TypeError: no pictures, pictures of several sizes, or another number of prompts.
    """
    if isinstance(images, (str, Path)) or not isinstance(images, Sequence) or not images:
        raise ValueError(f"images must be a list of one picture or more, got {images!r}")
    texts = checks.prompts(prompts)
    texts = texts * len(images) if isinstance(prompts, str) else texts
    if len(texts) != len(images):
        raise ValueError(f"got {len(texts)} prompts for {len(images)} images; one for all, or each")
    latents = [encode_image(pipe, image, sample=False) for image in images]
    if len(sizes := {tuple(each.shape[1:]) for each in latents}) > 1:
        raise ValueError(f"the images have several sizes, as latents {sizes}; crop them to one")
    ids = torch.stack([tokenize(pipe, text).ids for text in texts])
    return Examples(torch.cat(latents), ids.to(execution_device(pipe)))


def check_run(
    steps: int, learning_rate: float, batch_size: int, generator: torch.Generator | None
) -> int:
    """Return the number of steps; refuse what ``fit`` cannot work with."""
    checks.real("learning_rate", learning_rate, 0, remedy="1e-3 is a start")
    checks.whole("batch_size", batch_size, 1, 4096, "4 is usual")
    checks.generators(generator, 1)
    return checks.whole("steps", steps, 1, 10**7, "200 is a start")


def noise_loss(
    pipe: StableDiffusionPipeline, data: Examples, batch_size: int, generator: torch.Generator
) -> Tensor:
    """Ask the U-Net for the noise in some of the examples; the mean squared error, a scalar.

    Examples, noise and timesteps are drawn on the CPU. The answer that is wanted is the noise, or
    the velocity, as the scheduler's ``prediction_type`` says.
    """
    which = torch.randint(len(data.latents), (batch_size,), generator=generator)
    latents, ids = data.latents[which], data.ids[which]
    count = pipe.scheduler.config.num_train_timesteps
    t = torch.randint(count, (batch_size,), generator=generator)
    noise = torch.randn(latents.shape, generator=generator).to(latents)
    noisy = add_noise(pipe, latents, noise, t)
    wanted = noise
    if pipe.scheduler.config.prediction_type == "v_prediction":
        a = alpha_bar(pipe, t, latents)
        wanted = a.sqrt() * noise - (1 - a).sqrt() * latents
    embeds = pipe.text_encoder(ids)[0]  # (B, 77, D)
    noise_pred = pipe.unet(noisy, t.to(noisy.device), embeds, return_dict=False)[0]
    return F.mse_loss(noise_pred.float(), wanted.float())


class Learner(nn.Module):
    """The parameters that learn, and nothing else: what is optimised, shared out and saved."""

    def __init__(self, learning: dict[str, nn.Parameter], loss: Callable[..., Tensor]) -> None:
        super().__init__()
        self.loss = loss
        for name, parameter in learning.items():
            self.register_parameter(name.replace(".", "_"), parameter)

    def forward(self, generator: torch.Generator) -> Tensor:
        """Return the loss of a batch that the generator draws, a scalar."""
        return self.loss(generator)


def fit(
    pipe: StableDiffusionPipeline,
    learning: dict[str, nn.Parameter],
    loss: Callable[[torch.Generator], Tensor],
    *,
    steps: int,
    learning_rate: float,
    folder: str | Path | None = None,
    generator: torch.Generator | None = None,
    after_step: AfterStep | None = None,
) -> list[float]:
    """Take so many steps of AdamW, the learning rate falling to 0 along a cosine.

    Args:
        pipe: for its progress bar, its device and its precision.
        learning: the parameters, float32, by name.
        loss: makes the loss of one batch, which it draws with the generator that it is given.
        steps: how many.
        learning_rate: the first and highest.
        folder: for a checkpoint every 50 steps and when interrupted; what is there is gone on from.
        generator: makes the run repeatable. Each step draws anew from it and its own number, so
            that a run which was interrupted draws the same as one that was not.
        after_step: called after each step with its number, from 1, and its loss.

    Returns:
        The loss of each step that was taken now.
    """
    steps = check_run(steps, learning_rate, 1, generator)
    seed = int(torch.randint(2**31, (), generator=generator))
    half = pipe.unet.dtype == torch.float16
    device = execution_device(pipe)
    accelerator = Accelerator(mixed_precision="fp16" if half else "no", cpu=device.type == "cpu")
    learner = Learner(learning, loss)
    optimizer = torch.optim.AdamW(learner.parameters(), lr=learning_rate, weight_decay=0.0)
    rate = get_scheduler("cosine", optimizer, num_warmup_steps=0, num_training_steps=steps)
    accelerator.register_for_checkpointing(rate)
    model, optimizer = accelerator.prepare(learner, optimizer)
    progress, losses = Progress(), list[float]()
    if folder is not None:
        progress = load_checkpoint(accelerator, Path(folder))
    saved = progress.step
    bar = pipe.progress_bar(range(progress.step, steps))
    try:
        for step in bar:
            ours = step * accelerator.num_processes + accelerator.process_index
            drawn = model(torch.Generator().manual_seed(seed + ours))
            accelerator.backward(drawn)
            optimizer.step()
            rate.step()
            optimizer.zero_grad()
            losses.append(float(drawn.detach()))
            progress.count(losses[-1])
            bar.set_postfix(loss=f"{losses[-1]:.3f}")
            if folder is not None and progress.step - saved >= SAVE_EVERY:
                save_checkpoint(accelerator, Path(folder), progress)
                saved = progress.step
            if after_step:
                after_step(progress.step, losses[-1])
    finally:  # also when interrupted: what was learnt so far is not lost
        if folder is not None and progress.step > saved:
            save_checkpoint(accelerator, Path(folder), progress)
    return losses
