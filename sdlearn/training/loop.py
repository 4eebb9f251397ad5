"""One training loop for every part: so many steps or minutes, resumable, on accelerate.

The learning rate follows the share of the run that has passed: it warms up, holds, then falls to
zero at the end, so that a run of any length ends well.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol, TypedDict

import torch
from accelerate import Accelerator
from accelerate.utils import send_to_device
from diffusers.training_utils import EMAModel
from torch.utils.data import DataLoader
from tqdm.auto import tqdm

from sdlearn.training.checkpoint import Progress, load_checkpoint, save_checkpoint

EMA_DECAY = 0.999  # Of the average of the weights: the closer to 1, the longer it remembers.
SAVE_SECONDS = 240  # Between checkpoints.
LONGEST_STEP = 10.0  # Seconds; what a step takes beyond that is a pause, such as a laptop asleep.


class Examples(Protocol):
    """What is learnt from: a torch data set, or a list."""

    def __len__(self) -> int:
        """Return how many."""

    def __getitem__(self, index: int) -> dict[str, Any]:
        """Return one, tensors and texts by name."""


class Options(TypedDict, total=False):
    """What the training of every part takes beside its own arguments: see ``train``."""

    steps: int | None
    minutes: float | None
    folder: Path | None
    workers: int
    after_step: Callable[[int, float], None] | None
    accelerator: Accelerator | None


def learning_rate_at(share: float) -> float:
    """Return the factor (0 to 1) on the learning rate when ``share`` (0 to 1) has passed."""
    warmup = min(1.0, share / 0.02 + 0.02)
    return warmup * 0.5 * (1 + math.cos(math.pi * max(0.0, (share - 0.3) / 0.7)))


def endless(loader: DataLoader) -> Iterator[dict]:
    """Yield batches for ever, epoch after epoch.

    Raises:
        ValueError: the loader has none, since ``drop_last`` leaves out a batch that is not full.
    """
    if len(loader) == 0:
        count, size = len(loader.dataset), loader.batch_sampler.batch_size  # type: ignore[arg-type, union-attr]
        raise ValueError(
            f"{count} examples do not fill a batch of {size} in every process; "
            "take more of them, or smaller batches"
        )
    while True:
        yield from loader


def train(
    model: torch.nn.Module,
    data: Examples,
    loss_function: Callable[[torch.nn.Module, dict], torch.Tensor],
    *,
    batch_size: int,
    learning_rate: float = 1e-3,
    steps: int | None = None,
    minutes: float | None = None,
    folder: Path | None = None,
    workers: int = 0,
    after_step: Callable[[int, float], None] | None = None,
    accelerator: Accelerator | None = None,
    progress_bar: Callable[..., Any] = tqdm,
) -> None:
    """Train until so many steps or minutes are over; leave the averaged weights in ``model``.

    Examples are shuffled, and noise is drawn, by torch's global generator: ``torch.manual_seed``.
    An interrupted run leaves the average so far, and its checkpoint. After it no weight of
    ``model`` learns, as in a model that was loaded.

    Args:
        model: trained in place, where it lies: what of its weights requires a gradient.
        data: the examples; gone through again and again.
        loss_function: takes the (possibly wrapped) model and a batch; returns a scalar.
        batch_size: how many examples a step sees, in each process.
        learning_rate: the highest, before the schedule's factor.
        steps: how many in all, those of earlier runs with the same folder included; or else
        minutes: training time in all.
        folder: for a checkpoint every four minutes and at the end; what is there is gone on from.
        workers: processes that make examples; 0 makes them here.
        after_step: called after each step with its number, from 1, and its loss.
        accelerator: from accelerate, for half precision or several processes.
        progress_bar: called with ``total``; a pipeline's ``progress_bar`` can be turned off.

    Raises:
        ValueError: neither steps nor minutes, or both; no batch in the data, or fewer than there
            are processes.
    """
    if (steps is None) == (minutes is None):
        raise ValueError(f"pass steps or minutes, got steps={steps}, minutes={minutes}")
    accelerator = accelerator or Accelerator(device_placement=False)
    parameters = [weight for weight in model.parameters() if weight.requires_grad]
    device = parameters[0].device
    optimizer = torch.optim.AdamW(parameters, lr=learning_rate, betas=(0.9, 0.99), fused=True)
    ema = EMAModel(parameters, decay=EMA_DECAY, use_ema_warmup=True, power=0.75)
    batches: Any = DataLoader(
        data,  # type: ignore[arg-type]
        batch_size,
        shuffle=True,
        num_workers=workers,
        drop_last=True,
    )
    trained, optimizer, batches = accelerator.prepare(model, optimizer, batches)
    ema.to(device)
    accelerator.register_for_checkpointing(ema)
    progress = load_checkpoint(accelerator, folder) if folder else Progress()
    saved = replace(progress)
    total = steps if steps is not None else 60 * (minutes or 0)

    model.train()
    bar = progress_bar(total=round(total))
    try:
        now = time.monotonic()
        for batch in endless(batches):
            done = progress.step if steps is not None else progress.seconds
            bar.update(round(done) - bar.n)
            if done >= total:
                break
            for group in optimizer.param_groups:
                group["lr"] = learning_rate * learning_rate_at(done / total)
            loss = loss_function(trained, send_to_device(batch, device))
            accelerator.backward(loss)
            accelerator.clip_grad_norm_(parameters, 1.0)
            optimizer.step()
            optimizer.zero_grad()
            ema.step(parameters)
            now, before = time.monotonic(), now
            # Several processes go by one clock, so that they save and stop at the same step.
            seconds = torch.tensor(min(now - before, LONGEST_STEP), device=accelerator.device)
            value = float(loss.detach())
            progress.count(value, float(accelerator.reduce(seconds, "mean")))
            bar.set_postfix(loss=f"{value:.3f}", refresh=False)
            if folder and progress.seconds - saved.seconds > SAVE_SECONDS:
                save_checkpoint(accelerator, folder, progress)
                saved = replace(progress)
            if after_step:
                after_step(progress.step, value)
    finally:  # also when interrupted: what was learnt so far is not lost
        bar.close()
        optimizer.zero_grad()
        if folder and progress.step > saved.step:  # Else it would replace the one that counts.
            save_checkpoint(accelerator, folder, progress)
        ema.copy_to(parameters)
        model.eval().requires_grad_(False)
