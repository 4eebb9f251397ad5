"""Write the live page, whole, into a folder that any plain web server can serve.

python book/live/build.py build/site/live

The page, the view, the engine, the model's parts as ONNX, and the runtime that computes them; and
``files.json``, the list of them all. The page asks no other server for anything.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import shutil
import sys
from pathlib import Path

LIVE = Path(__file__).resolve().parent
BOOK = LIVE.parent
sys.path.insert(0, str(BOOK))

from node_packages import node_modules  # noqa: E402

from live.export import PARTS, exported  # noqa: E402
from sdlearn.postcards.model import POSTCARDS  # noqa: E402
from sdlearn.postcards.vocabulary import SMALL_WORDS, known_words  # noqa: E402

ROOT = BOOK.parent
BUILD = ROOT / "build"
MAX_BYTES = 45_000_000
PAGE = ("index.html", "worker.js", "offline.js")  # without one of them it is no page
# What engine/schedulers.js and engine/pipeline.js take for granted.
SCHEDULER = {
    "beta_schedule": "scaled_linear",
    "timestep_spacing": "leading",
    "prediction_type": "epsilon",
    "set_alpha_to_one": False,
    "clip_sample": False,
    "thresholding": False,
    "rescale_betas_zero_snr": False,
    "trained_betas": None,
}


def config() -> dict:
    """Return what the engine must know of the model: sizes, layers, the schedule, the words."""

    def read(part: str, name: str) -> dict:
        return json.loads((POSTCARDS / part / name).read_text(encoding="utf-8"))

    scheduler, unet = read("scheduler", "scheduler_config.json"), read("unet", "config.json")
    other = {key: scheduler[key] for key, value in SCHEDULER.items() if scheduler[key] != value}
    if other:
        raise ValueError(f"engine/schedulers.js was not written for {other}; write it there first")
    vae, side = read("vae", "config.json"), unet["sample_size"]
    factor = 2 ** (len(vae["block_out_channels"]) - 1)
    return {
        "width": side * factor,
        "height": side * factor,
        "latent_shape": [vae["latent_channels"], side, side],
        "scaling_factor": vae["scaling_factor"],
        "text_width": unet["cross_attention_dim"],
        "scheduler": scheduler,
        "words": {"known": sorted(known_words()), "small": sorted(SMALL_WORDS)},
    }


def merges() -> str:
    """Return the tokenizer's merges, from which engine/tokens.js derives the vocabulary.

    Raises:
        ValueError: if the shipped vocabulary is not what follows from them.
    """
    text = (POSTCARDS / "tokenizer" / "merges.txt").read_text(encoding="utf-8")
    vocabulary = json.loads((POSTCARDS / "tokenizer" / "vocab.json").read_text(encoding="utf-8"))
    joined = [line.replace(" ", "") for line in text.split("\n")[1:] if line]
    pieces = sorted(vocabulary, key=vocabulary.__getitem__)
    bytes_alone, ends = pieces[:256], pieces[256:512]
    if (
        pieces[512:] != [*joined, "<|startoftext|>", "<|endoftext|>"]
        or ends != [f"{piece}</w>" for piece in bytes_alone]
        or {*map(len, bytes_alone)} != {1}
    ):
        raise ValueError("vocab.json does not follow from merges.txt; engine/tokens.js needs both")
    return text


def licences() -> str:
    """Return whose work is in the folder, and under which terms."""
    ours = (ROOT / "LICENSE").read_text(encoding="utf-8")
    clip = (POSTCARDS / "tokenizer" / "LICENSE").read_text(encoding="utf-8")
    terms = ours[ours.index("Permission is hereby") :]
    runtime = f"MIT License\n\nCopyright (c) Microsoft Corporation\n\n{terms}"
    named = {
        "This page and the model postcards": ours,
        "merges.txt, from CLIP": clip,
        "onnxruntime.js and onnxruntime.wasm, from onnxruntime-web": runtime,
    }
    return "\n\n".join(f"{name}\n{'=' * len(name)}\n\n{text}" for name, text in named.items())


def contents() -> dict[str, bytes]:
    """Return every file of the page: its name, with / between folders, and what is in it."""
    files = {
        path.relative_to(LIVE).as_posix(): path.read_bytes()
        for path in LIVE.rglob("*")
        if path.is_file() and path.suffix not in (".py", ".pyc") and path.name[0] != "."
    }
    if missing := [name for name in PAGE if name not in files]:
        raise FileNotFoundError(f"{LIVE} lacks {missing}")
    for name in ("explorer.js", "explorer.css"):
        files[name] = (ROOT / "sdlearn" / "show" / name).read_bytes()
    parts = exported(BUILD / "onnx")
    for part in PARTS:
        files[f"{part}.onnx"] = (parts / f"{part}.onnx").read_bytes()
    layers = json.loads((parts / "layers.json").read_text(encoding="utf-8"))
    files["postcards.json"] = json.dumps(config() | {"layers": layers}).encode()
    files["merges.txt"] = merges().encode()
    files["licences.txt"] = licences().encode()
    runtime = node_modules() / "onnxruntime-web" / "dist"
    script = (runtime / "ort.wasm.bundle.min.mjs").read_text(encoding="utf-8")
    files["onnxruntime.js"] = script.partition("\n//# sourceMappingURL=")[0].encode()
    files["onnxruntime.wasm"] = (runtime / "ort-wasm-simd-threaded.wasm").read_bytes()
    return files


def build(folder: Path) -> int:
    """Write the page into a folder, in place of an older one.

    Returns:
        How many bytes all its files have together.

    Raises:
        ValueError: the folder holds something else, or the page has become too heavy.
        FileNotFoundError: a file that belongs to the page.
    """
    listed = folder / "files.json"
    if folder.exists() and any(folder.iterdir()) and not listed.is_file():
        raise ValueError(f"{folder} holds something else than the live page; name a new folder")
    files = contents()
    names = sorted(files)
    hashes = {name: hashlib.sha256(files[name]).hexdigest()[:16] for name in names}
    entries = [{"name": name, "size": len(files[name]), "hash": hashes[name]} for name in names]
    page = json.dumps({"model": "postcards", "files": entries}, indent=1) + "\n"
    total = sum(map(len, files.values())) + len(page)
    if total > MAX_BYTES:
        raise ValueError(f"the page has {total:,} bytes, and may have {MAX_BYTES:,}")
    shutil.rmtree(folder, ignore_errors=True)
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(files[name])
    listed.write_text(page, encoding="utf-8")
    return total


def main() -> None:
    """Read the command line, build, say how much it is."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("folder", type=Path)
    folder = parser.parse_args().folder
    print(f"{folder}: {build(folder) / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
