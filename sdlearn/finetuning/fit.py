"""What textual inversion and DreamBooth share: examples, their loss, and a loop of so many steps.

Source: Ho et al. (2020), Algorithm 1. Only the parameters that are handed over learn; the rest of
the pipeline is used as it is.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
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
from sdlearn.training.checkpoint import Progress, load_checkpoint, replaced, save_checkpoint

AfterStep = Callable[[int, float], None]
SAVE_EVERY = 50  # Steps between checkpoints.


@dataclass(frozen=True, eq=False)
class Examples:
    """Pictures as latents, (N, 4, h, w), and what each of the N shows."""

    latents: Tensor
    prompts: list[str]

    def ids(self, pipe: StableDiffusionPipeline) -> Tensor:
        """Return the prompts' tokens, (N, 77)."""
        ids = torch.stack([tokenize(pipe, prompt).ids for prompt in self.prompts])
        return ids.to(self.latents.device)


def examples(
    pipe: StableDiffusionPipeline, images: Sequence[Picture], prompts: str | list[str]
) -> Examples:
    """Encode pictures, with their prompts, one for all or one for each.

    Raises:
        ValueError, TypeError: no pictures, pictures of several sizes, or another number of prompts.
    """
    if isinstance(images, (str, Path, Tensor)) or not isinstance(images, Sequence) or not images:
        raise ValueError(
            f"images must be a list of one picture or more, got {type(images).__name__}; "
            "of a tensor, pass pixels.split(1)"
        )
    texts = checks.prompts(prompts)
    texts = texts * len(images) if isinstance(prompts, str) else texts
    if len(texts) != len(images):
        raise ValueError(f"got {len(texts)} prompts for {len(images)} images; one for all, or each")
    latents = [encode_image(pipe, image, sample=False) for image in images]
    sizes = {tuple(each.shape) for each in latents}
    if len(sizes) > 1 or next(iter(sizes))[0] != 1:
        raise ValueError(
            f"each image must be one, and all of one size, got latents of {sorted(sizes)}; crop "
            "them, and split a batch of pixels"
        )
    return Examples(torch.cat(latents), texts)


def check_run(
    pipe: StableDiffusionPipeline,
    steps: int,
    learning_rate: float,
    batch_size: int,
    generator: torch.Generator | None,
) -> None:
    """Refuse what ``fit`` cannot work with, before anything is changed."""
    checks.pipeline(pipe)
    checks.latents_alone(pipe)
    if pipe.unet.config.time_cond_proj_dim is not None:
        raise ValueError(
            "this U-Net was distilled and reads the guidance scale (LCM); teach the model that it "
            "was made from"
        )
    checks.whole("steps", steps, 1, 10**7, "200 is a start")
    checks.whole("batch_size", batch_size, 1, 4096, "4 is usual")
    if checks.real("learning_rate", learning_rate, 0, remedy="1e-3 is a start") == 0:
        raise ValueError("learning_rate must be above 0, got 0; 1e-3 is a start")
    if isinstance(generator, list):
        raise TypeError("generator must be one torch.Generator, got a list")
    checks.generators(generator, 1)
    kind = pipe.scheduler.config.prediction_type
    if kind not in ("epsilon", "v_prediction"):
        raise ValueError(f'prediction_type must be "epsilon" or "v_prediction", got {kind!r}')


def noise_loss(
    pipe: StableDiffusionPipeline,
    latents: Tensor,
    ids: Tensor,
    batch_size: int,
    generator: torch.Generator,
) -> Tensor:
    """Ask the U-Net for the noise in some of the examples; the mean squared error, a scalar.

    Examples, noise and timesteps are drawn on the CPU. The answer that is wanted is the noise, or
    the velocity, as the scheduler's ``prediction_type`` says.

    Args:
        pipe: the pipeline.
        latents: of all examples, (N, 4, h, w).
        ids: their tokens, (N, 77).
        batch_size: how many are drawn, with repetition.
        generator: draws them.
    """
    which = torch.randint(len(latents), (batch_size,), generator=generator)
    latents, ids = latents[which], ids[which]
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
    about: dict[str, Any],
    folder: str | Path | None = None,
    seed: int = 0,
    after_step: AfterStep | None = None,
) -> list[float]:
    """Take so many steps of AdamW, the learning rate falling to 0 along a cosine.

    Args:
        pipe: for its progress bar, its device and its precision.
        learning: the parameters, float32, by name.
        loss: makes the loss of one batch, which it draws with the generator that it is given.
        steps: how many.
        learning_rate: the first and highest.
        about: what else tells this run from others, for the checkpoint.
        folder: for a checkpoint every 50 steps and when interrupted; what is there is gone on from,
            and from a finished run no step is left.
        seed: each step draws with this and its own number, so that a run which was interrupted
            draws the same as one that was not.
        after_step: called after each step with its number, from 1, and its loss.

    Returns:
        The loss of each step that was taken now.

    Raises:
        ValueError: the folder holds the checkpoint of another run.
    """
    accelerator = Accelerator(device_placement=False)  # Things lie where the pipeline's parts lie.
    learner = Learner(learning, loss).requires_grad_(True)
    optimizer = torch.optim.AdamW(learner.parameters(), lr=learning_rate, weight_decay=0.0)
    rate = get_scheduler("cosine", optimizer, num_warmup_steps=0, num_training_steps=steps)
    # Half precision loses small gradients on their way through the frozen parts.
    half = pipe.unet.dtype == torch.float16
    scaler = torch.amp.GradScaler(execution_device(pipe).type, enabled=half)
    accelerator.register_for_checkpointing(optimizer, rate, scaler)
    model = accelerator.prepare(learner)
    progress, losses = Progress(), list[float]()
    if folder is not None:
        folder = Path(folder)
        shapes = {name: list(weight.shape) for name, weight in learning.items()}
        seed = _same_run(accelerator, folder, {**about, "steps": steps, "learning": shapes}, seed)
        with random_state_kept():
            progress = load_checkpoint(accelerator, folder)
    saved, whole = progress.step, True

    bar = pipe.progress_bar(range(progress.step, steps))
    try:
        for step in bar:
            ours = step * accelerator.num_processes + accelerator.process_index
            drawn = model(torch.Generator().manual_seed(seed + ours))
            accelerator.backward(scaler.scale(drawn))
            losses.append(float(drawn.detach()))
            whole = False  # interrupted from here on, it has taken half a step
            scaler.step(optimizer)
            scaler.update()
            rate.step()
            progress.count(losses[-1])
            whole = True
            optimizer.zero_grad()
            bar.set_postfix(loss=f"{losses[-1]:.3f}")
            if folder is not None and progress.step - saved >= SAVE_EVERY:
                save_checkpoint(accelerator, folder, progress)
                saved = progress.step
            if after_step:
                after_step(progress.step, losses[-1])
    finally:  # also when interrupted: what was learnt so far is not lost
        learner.zero_grad()
        if folder is not None and whole and progress.step > saved:
            save_checkpoint(accelerator, folder, progress)
    return losses


def _same_run(accelerator: Accelerator, folder: Path, about: dict[str, Any], seed: int) -> int:
    """Return the seed of the run in a folder, or note this one there; refuse another run's.

    Before its first checkpoint a run has left nothing to go on from, and another may begin.
    """
    file = folder / "run.json"
    if (folder / "progress.json").exists():
        there = json.loads(file.read_text(encoding="utf-8"))
        other = [name for name, value in about.items() if not _alike(there.get(name), value)]
        if other:
            raise ValueError(
                f"{str(folder)!r} holds the checkpoint of a run with other {', '.join(other)}; "
                "delete it, or name another folder"
            )
        return there["seed"]
    if accelerator.is_main_process:
        folder.mkdir(parents=True, exist_ok=True)
        with replaced(file) as beside:
            beside.write_text(json.dumps({**about, "seed": seed}), encoding="utf-8")
    accelerator.wait_for_everyone()
    return json.loads(file.read_text(encoding="utf-8"))["seed"]


def _alike(one: Any, other: Any) -> bool:
    """Whether two values are equal, numbers but for their last digits: machines differ in those."""
    if isinstance(one, list) and isinstance(other, list) and len(one) == len(other):
        return all(map(_alike, one, other))
    if isinstance(one, float) and isinstance(other, float):
        return abs(one - other) < 1e-3
    return one == other


@contextmanager
def frozen(pipe: StableDiffusionPipeline) -> Iterator[None]:
    """Let no weight learn but those that are thawed in the block; then all is as it was."""
    parts = (pipe.unet, pipe.text_encoder, pipe.vae)
    before = {weight: weight.requires_grad for part in parts for weight in part.parameters()}
    for weight in before:
        weight.requires_grad_(False)
    try:
        yield
    finally:
        for weight in (weight for part in parts for weight in part.parameters()):
            weight.requires_grad_(before.get(weight, False))


@contextmanager
def random_state_kept(seed: int | None = None) -> Iterator[None]:
    """Put the global random generators back after the block; inside, torch's begins with a seed."""
    before = random.getstate(), np.random.get_state()
    with torch.random.fork_rng():
        if seed is not None:
            torch.manual_seed(seed)
        try:
            yield
        finally:
            random.setstate(before[0])
            np.random.set_state(before[1])


def seed_from(generator: torch.Generator | None) -> int:
    """Draw a seed, from the global generator if there is no other."""
    return int(torch.randint(2**31, (), generator=generator))


def pictures_as_numbers(data: Examples) -> list[float]:
    """Return the mean of each picture's latents: enough to tell one set of pictures from others."""
    return data.latents.float().mean((1, 2, 3)).tolist()
