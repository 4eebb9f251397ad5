"""Kill a fine-tune again and again, in one folder: ``python tests/killed.py word 20 folder``.

A run is a fork of this process, so that PyTorch is imported once. The first half of the ways to die
leaves half a file, for the system ends a process in the middle of a write that makes a file larger
than its limit.
"""

from __future__ import annotations

import multiprocessing
import random
import resource
import signal
import sys
import time
from functools import partial
from pathlib import Path

import torch
from conftest import random_pipeline
from PIL import Image

import sdlearn
from sdlearn.finetuning import fit
from sdlearn.finetuning.__main__ import main

COMMANDS = {
    "word": ["<toy>", "cat", "--vectors", "2"],
    "subject": ["--prompt", "a photo of sks dog", "--rank", "2"],
}
FILES = {"word": "toy.safetensors", "subject": "pytorch_lora_weights.safetensors"}
WAYS = {  # to die: at a file opened to be written or one of these, up to which of them
    "small file": (set(), 3),
    "file": ({"os.mkdir"}, 8),
    "change": ({"os.mkdir", "os.rename", "os.remove", "os.rmdir"}, 24),
    "time": (set(), 1),
}
DIED = (-signal.SIGKILL, -signal.SIGXFSZ)


def at_change(number, kinds, do):
    """Arrange that something is done at one of the changes that this process will make to files."""

    def count(event, args):
        nonlocal number
        if event in kinds or (event == "open" and "w" in (args[1] or "")):
            number -= 1
            if number == 0:
                do()

    sys.addaudithook(count)


def start(command, *moment):
    """Fork a process that fine-tunes."""

    def child():
        signal.signal(signal.SIGXFSZ, signal.SIG_DFL)  # of too large a file; Python ignores it
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        if moment:
            at_change(*moment)
        sys.exit(main(command))

    process = multiprocessing.get_context("fork").Process(target=child)
    process.start()
    return process


def start_and_kill(command, way, draw, longest):
    """Let a run die in some way, or end before."""
    kinds, most = WAYS[way]
    size = 10 ** draw.randint(1, 4 if way == "file" else 1)
    number = draw.randint(1, most)
    if way == "time":
        process = start(command)
        process.join(draw.uniform(0, longest))
        process.kill()
    elif way == "change":
        process = start(command, number, kinds, partial(signal.raise_signal, signal.SIGKILL))
    else:
        limit = partial(resource.setrlimit, resource.RLIMIT_FSIZE, (size, size))
        process = start(command, number, kinds, limit)
    return process


def kill_often(kind, kills, folder):
    """Kill so many runs: what is written is whole or not there, and the next one goes on from it.

    Raises:
        AssertionError: it is not so.
    """
    torch.set_num_threads(1)
    pipe = random_pipeline(layers_per_block=1)
    sdlearn.load = lambda *_, **__: pipe
    fit.SAVE_EVERY = 1
    for i in range(2):
        Image.effect_noise((64, 64), 50).save(folder / f"{i}.png")
    command = [kind, str(folder), *COMMANDS[kind], "--steps", "2", "--batch-size", "1", "--out"]
    begin = time.monotonic()
    process = start([*command, str(folder / "whole")])
    process.join()
    assert process.exitcode == 0
    longest = time.monotonic() - begin
    whole = (folder / "whole" / FILES[kind]).read_bytes()

    out, draw, died = folder / "out", random.Random(0), 0
    command, written = [*command, str(out)], out / FILES[kind]
    while died <= kills:
        way = list(WAYS)[died % 4] if died < kills else "none"
        process = start_and_kill(command, way, draw, longest) if died < kills else start(command)
        process.join()
        said = f"after {died} kills, {way}: exit status {process.exitcode}"
        assert process.exitcode in (0, *DIED), said
        there = written.read_bytes() if written.exists() else None
        assert there in (None, whole), said
        assert process.exitcode or there, said
        died += process.exitcode != 0 or died == kills
    assert [file.name for file in out.iterdir() if file.name[:4] != ".tmp"] == [written.name]


if __name__ == "__main__":
    kill_often(sys.argv[1], int(sys.argv[2]), Path(sys.argv[3]))
