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
    gpu, verdict = "none, and none is needed", "SD 1.5 would take minutes a picture"
    if torch.cuda.is_available():
        properties = torch.cuda.get_device_properties(0)
        room = properties.total_memory / GIB
        gpu = f"{properties.name}, {room:.0f} GB"
        verdict = "so does SD 1.5" if room > 3.5 else "SD 1.5 needs a GPU with 4 GB"
    elif torch.backends.mps.is_available():
        gpu, verdict = "Apple (MPS)", "SD 1.5 runs slowly"
    facts = {
        "system": f"{platform.system()} on {platform.machine()}",
        "Python": platform.python_version(),
        "memory": f"{memory:.0f} GB, {cores} cores",
        "GPU": gpu,
        **{name: version(name) for name in PACKAGES},
    }
    lines = [f"{name:<13}{fact}" for name, fact in facts.items()]
    return "\n".join([*lines, f"So: postcards runs well here; {verdict}."])
