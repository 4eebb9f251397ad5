"""What this computer has, in plain words: the first cell of the book and of every bug report."""

from __future__ import annotations

import platform
from importlib.metadata import version

PACKAGES = ("sdlearn", "torch", "diffusers", "transformers")
GIB = 2**30


def environment() -> str:
    """Return device, memory and versions, and what will run well here, one fact a line."""
    import psutil
    import torch

    memory = psutil.virtual_memory().total / GIB
    cores = psutil.cpu_count(logical=False) or psutil.cpu_count()
    system = f"{platform.system()} on {platform.machine()}"
    lines = [
        f"system    {system}, Python {platform.python_version()}",
        f"memory    {memory:.0f} GB, {cores} cores",
    ]
    if torch.cuda.is_available():
        gpu = torch.cuda.get_device_properties(0)
        room = gpu.total_memory / GIB
        lines.append(f"GPU       {gpu.name}, {room:.0f} GB")
        fits = "both models run well" if room >= 4 else "postcards runs well; SD 1.5 needs 4 GB"
    elif torch.backends.mps.is_available():
        lines.append("GPU       Apple (MPS)")
        fits = "postcards runs well; SD 1.5 runs slowly"
    else:
        lines.append("GPU       none, and none is needed")
        fits = "postcards runs well; SD 1.5 would take minutes a picture"
    lines += [f"{name:<13}{version(name)}" for name in PACKAGES]
    return "\n".join([*lines, f"So: {fits}."])
