"""One training loop for every part: time-boxed, resumable, on accelerate.

The learning rate follows the clock, not a step count: it warms up, holds, then falls to zero as
the minutes run out, so that a run of any length ends well.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from accelerate import Accelerator
from diffusers.training_utils import EMAModel
from torch.utils.data import DataLoader


def learning_rate_at(progress: float) -> float:
    """Return the factor (0 to 1) on the learning rate when ``progress`` (0 to 1) has passed."""
    warmup = min(1.0, progress / 0.02 + 0.02)
    return warmup * 0.5 * (1 + math.cos(math.pi * max(0.0, (progress - 0.3) / 0.7)))


def endless(loader: DataLoader) -> Iterator[dict]:
    """Yield batches for ever, epoch after epoch."""
    while True:
        yield from loader


def train(
    accelerator: Accelerator,
    model: torch.nn.Module,
    loader: DataLoader,
    loss_function: Callable[[torch.nn.Module, dict], torch.Tensor],
    *,
    folder: Path,
    minutes: float,
    learning_rate: float = 1e-3,
    ema_decay: float = 0.999,
    max_steps: int | None = None,
    save_seconds: float = 240,
) -> list[float]:
    """Train until ``minutes`` have passed in all; leave the averaged weights in ``model``.

    Args:
        accelerator: from accelerate: device, precision, several processes.
        model: trained in place.
        loader: the batches; gone through again and again.
        loss_function: takes the (possibly wrapped) model and a batch; returns a scalar.
        folder: the checkpoint; a run that finds one there goes on from it.
        minutes: wall-clock time, that of earlier runs with the same folder included.
        learning_rate: the highest, before the schedule's factor.
        ema_decay: of the average of the weights; the closer to 1, the longer it remembers.
        max_steps: stop after so many steps of this call (for tests).
        save_seconds: time between checkpoints.

    Returns:
        The mean loss of every hundred steps.
    """
    parameters = [weight for weight in model.parameters() if weight.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=learning_rate, betas=(0.9, 0.99), fused=True)
    ema = EMAModel(parameters, decay=ema_decay, use_ema_warmup=True, power=0.75)
    trained, optimizer, loader = accelerator.prepare(model, optimizer, loader)
    ema.to(accelerator.device)
    accelerator.register_for_checkpointing(ema)
    progress_file = folder / "progress.json"
    spent, step, losses = 0.0, 0, []
    if progress_file.exists():
        saved = json.loads(progress_file.read_text())
        spent, step, losses = saved["seconds"], saved["step"], saved["losses"]
        accelerator.load_state(str(folder))

    def save() -> None:
        accelerator.save_state(str(folder))
        if accelerator.is_main_process:
            saved = {"seconds": spent, "step": step, "losses": losses}
            progress_file.write_text(json.dumps(saved))

    model.train()
    now = last_save = time.monotonic()
    recent, first_step = [], step
    for batch in endless(loader):
        if spent >= minutes * 60 or (max_steps is not None and step - first_step >= max_steps):
            break
        for group in optimizer.param_groups:
            group["lr"] = learning_rate * learning_rate_at(spent / (minutes * 60))
        loss = loss_function(trained, batch)
        accelerator.backward(loss)
        accelerator.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        ema.step(parameters)
        recent.append(float(loss.detach()))
        step += 1
        now, before = time.monotonic(), now
        spent += min(now - before, 10.0)  # A pause of the whole process is no training time.
        # Several processes go by one clock, so that they stop at the same step.
        spent = float(accelerator.reduce(torch.tensor(spent, device=accelerator.device), "mean"))
        if len(recent) == 100:
            losses.append(sum(recent) / len(recent))
            recent = []
            accelerator.print(f"{spent / 60:6.1f} min  step {step:6d}  loss {losses[-1]:.4f}")
        if now - last_save > save_seconds:
            save()
            last_save = now
    save()
    ema.copy_to(parameters)
    model.eval()
    return losses
