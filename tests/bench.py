"""Print how fast and how large sdlearn is here: ``make bench``. Nothing else should be running.

``SDLEARN_MODEL`` names another model than postcards.

Every time is the median of five runs after a warm-up; the compared calls take turns, so that a
machine that speeds up or slows down does so for all of them.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch

import sdlearn

PROMPT = "a red cat on the beach at sunset"
RUNS = 5
SETTINGS = {"num_inference_steps": 20, "guidance_scale": 7.5}
ONE_PICTURE = """
import torch, sdlearn
pipe = sdlearn.load()
sdlearn.text_to_image(pipe, "a red cat", num_inference_steps=20, generator=torch.Generator())
import resource, sys
unit = 1 if sys.platform == "darwin" else 1024
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit)
"""


def median_times(calls: dict[str, Callable[[], object]]) -> dict[str, float]:
    """Return the median seconds of each call, the calls taking turns."""
    times: dict[str, list[float]] = {name: [] for name in calls}
    for run in range(RUNS + 1):
        for name, call in calls.items():
            start = time.perf_counter()
            call()
            if run:
                times[name].append(time.perf_counter() - start)
    return {name: statistics.median(values) for name, values in times.items()}


def median_of_process(code: str) -> tuple[float, str]:
    """Return the median seconds of ``python -c code`` and what it printed last."""
    times, printed = [], ""
    for _ in range(RUNS):
        start = time.perf_counter()
        printed = subprocess.run(
            [sys.executable, "-c", code], check=True, capture_output=True, text=True
        ).stdout
        times.append(time.perf_counter() - start)
    return statistics.median(times), printed


def main() -> None:
    """Measure and print."""
    pipe = sdlearn.load()
    pipe.set_progress_bar_config(disable=True)

    def seed() -> torch.Generator:
        return torch.Generator().manual_seed(0)

    def captured() -> None:
        with sdlearn.capture_attention(pipe):
            sdlearn.text_to_image(pipe, PROMPT, generator=seed(), **SETTINGS)

    times = median_times(
        {
            "pipe()": lambda: pipe(PROMPT, generator=seed(), **SETTINGS),
            "text_to_image()": lambda: sdlearn.text_to_image(
                pipe, PROMPT, generator=seed(), **SETTINGS
            ),
            "with capture_attention": captured,
        }
    )
    print(f"{torch.get_num_threads()} threads, 20 steps, guidance 7.5, median of {RUNS}")
    for name, seconds in times.items():
        print(f"{name:<26}{seconds:7.3f} s   {seconds / times['pipe()']:.3f} of pipe()")
    seconds, _ = median_of_process("import sdlearn")
    empty, _ = median_of_process("pass")
    print(f"{'import sdlearn':<26}{seconds - empty:7.3f} s   beyond Python's own {empty:.3f} s")
    seconds, printed = median_of_process(ONE_PICTURE)
    peak = int(printed.split()[-1]) / 1e6  # resource is Unix only: on Windows this line is left out
    print(f"{'process to first picture':<26}{seconds:7.3f} s   peak memory {peak:.0f} MB")
    folder = Path(sdlearn.__file__).parent / "models" / "postcards"
    size = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
    print(f"{'model on disk':<26}{size / 1e6:7.1f} MB")


if __name__ == "__main__":
    main()
