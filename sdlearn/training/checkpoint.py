"""Where a run stands, on disk: what is needed to go on from there."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path

from accelerate import Accelerator


@dataclass
class Progress:
    """How far a run has come: what ``progress.json`` says.

    Attributes:
        seconds: the time trained.
        step: how many steps.
        losses: the mean loss of every hundred of them.
        recent: the losses of the steps since.
    """

    seconds: float = 0.0
    step: int = 0
    losses: list[float] = field(default_factory=list)
    recent: list[float] = field(default_factory=list)

    def count(self, loss: float, seconds: float = 0.0) -> None:
        """Count one step, and the seconds that it took."""
        self.step += 1
        self.seconds += seconds
        self.recent.append(loss)
        if len(self.recent) == 100:
            self.losses.append(sum(self.recent) / 100)
            self.recent = []


@contextmanager
def replaced(file: Path) -> Iterator[Path]:
    """Hand over a file to write beside ``file``; written, it takes its place: whole, or not."""
    beside = file.with_name(f"{file.name}.new")
    yield beside
    os.replace(beside, file)


def load_checkpoint(accelerator: Accelerator, folder: Path) -> Progress:
    """Put all that ``accelerator`` has prepared where the run in ``folder`` stopped, if any."""
    file = folder / "progress.json"
    if not file.exists():
        return Progress()
    progress = Progress(**json.loads(file.read_text(encoding="utf-8")))
    accelerator.load_state(str(folder / f"step-{progress.step}"))
    return progress


def save_checkpoint(accelerator: Accelerator, folder: Path, progress: Progress) -> None:
    """Save a run; killed at any moment, it goes on from this checkpoint or the one before.

    Each has a folder of its own. Which one counts is said by ``progress.json``, which is replaced
    when all else is written. The one that counts is not written again.
    """
    state, file = folder / f"step-{progress.step}", folder / "progress.json"
    if file.exists() and json.loads(file.read_text(encoding="utf-8"))["step"] == progress.step:
        return
    accelerator.save_state(str(state))
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        with replaced(file) as beside:
            beside.write_text(json.dumps(asdict(progress)), encoding="utf-8")
        for other in set(folder.glob("step-*")) - {state}:
            shutil.rmtree(other)


def remove_checkpoint(folder: Path) -> None:
    """Remove a run's folder; killed meanwhile, it leaves nothing that counts."""
    (folder / "progress.json").unlink(missing_ok=True)
    shutil.rmtree(folder, ignore_errors=True)
