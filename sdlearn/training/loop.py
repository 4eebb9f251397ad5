"""One training loop for every part: time-boxed, resumable, on accelerate.

The learning rate follows the clock, not a step count: it warms up, holds, then falls to zero as
the minutes run out, so that a run of any length ends well.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import islice
from pathlib import Path

import torch
from accelerate import Accelerator
from diffusers.training_utils import EMAModel
from torch.utils.data import DataLoader

from sdlearn.training.checkpoint import Progress, load_checkpoint, save_checkpoint

EMA_DECAY = 0.999  # Of the average of the weights: the closer to 1, the longer it remembers.
SAVE_SECONDS = 240  # Between checkpoints.
LONGEST_STEP = 10.0  # Seconds; what a step takes beyond that is a pause, such as a laptop asleep.


def learning_rate_at(progress: float) -> float:
    """Return the factor (0 to 1) on the learning rate when ``progress`` (0 to 1) has passed."""
    warmup = min(1.0, progress / 0.02 + 0.02)
    return warmup * 0.5 * (1 + math.cos(math.pi * max(0.0, (progress - 0.3) / 0.7)))


def endless(loader: DataLoader) -> Iterator[dict]:
    """Yield batches for ever, epoch after epoch.

    Raises:
        ValueError: the loader has none, since ``drop_last`` leaves out a batch that is not full.
    """
    if len(loader) == 0:
        count, size = len(loader.dataset), loader.batch_sampler.batch_size  # type: ignore[arg-type, union-attr]
        raise ValueError(
            f"{count} examples do not fill a batch of {size} in every process; "
            "take more of them (--pictures), or smaller batches (--batch-size)"
        )
    while True:
        yield from loader


def until_time_is_up(
    accelerator: Accelerator, loader: DataLoader, progress: Progress, seconds: float
) -> Iterator[dict]:
    """Yield batches until the run has taken ``seconds`` in all; keep the time in ``progress``."""
    now = time.monotonic()
    for batch in endless(loader):
        if progress.seconds >= seconds:
            return
        yield batch
        now, before = time.monotonic(), now
        step = min(now - before, LONGEST_STEP)
        total = torch.tensor(progress.seconds + step, device=accelerator.device)
        # Several processes go by one clock, so that they save and stop at the same step.
        progress.seconds = float(accelerator.reduce(total, "mean"))


def report(accelerator: Accelerator, progress: Progress) -> None:
    """Print a line every hundred steps."""
    if progress.losses and not progress.recent:
        minutes, loss = progress.seconds / 60, progress.losses[-1]
        accelerator.print(f"{minutes:6.1f} min  step {progress.step:6d}  loss {loss:.4f}")


def train(
    accelerator: Accelerator,
    model: torch.nn.Module,
    loader: DataLoader,
    loss_function: Callable[[torch.nn.Module, dict], torch.Tensor],
    *,
    folder: Path,
    minutes: float,
    learning_rate: float = 1e-3,
    max_steps: int | None = None,
) -> None:
    """Train until ``minutes`` have passed in all; leave the averaged weights in ``model``.

    Args:
        accelerator: from accelerate: device, precision, several processes.
        model: trained in place.
        loader: the batches; gone through again and again.
        loss_function: takes the (possibly wrapped) model and a batch; returns a scalar.
        folder: the checkpoint; a run that finds one there goes on from it.
        minutes: training time, that of earlier runs with the same folder included.
        learning_rate: the highest, before the schedule's factor.
        max_steps: stop after so many steps of this call.

    Raises:
        ValueError: no batch in the loader, or fewer than there are processes.
    """
    parameters = [weight for weight in model.parameters() if weight.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=learning_rate, betas=(0.9, 0.99), fused=True)
    ema = EMAModel(parameters, decay=EMA_DECAY, use_ema_warmup=True, power=0.75)
    trained, optimizer, loader = accelerator.prepare(model, optimizer, loader)
    ema.to(accelerator.device)
    accelerator.register_for_checkpointing(ema)
    progress = load_checkpoint(accelerator, folder)
    saved, seconds = replace(progress), 60 * minutes

    model.train()
    for batch in islice(until_time_is_up(accelerator, loader, progress, seconds), max_steps):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate * learning_rate_at(progress.seconds / seconds)
        loss = loss_function(trained, batch)
        accelerator.backward(loss)
        accelerator.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        ema.step(parameters)
        progress.count(float(loss.detach()))
        report(accelerator, progress)
        if progress.seconds - saved.seconds > SAVE_SECONDS:
            save_checkpoint(accelerator, folder, progress)
            saved = replace(progress)
    if progress.step > saved.step:  # Else it would write over the checkpoint that counts.
        save_checkpoint(accelerator, folder, progress)
    ema.copy_to(parameters)
    model.eval()
