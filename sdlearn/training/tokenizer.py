"""Write CLIP's tokenizer as a folder, from CLIP's own list of merges.

Source: Radford et al. (2021), "Learning Transferable Visual Models From Natural Language
Supervision". The list, ``bpe_simple_vocab_16e6.txt.gz`` (MIT licence), ships in the wheel of
open-clip-torch; that one file is all that is taken from it.
"""

from __future__ import annotations

import gzip
import json
from pathlib import Path

VOCABULARY_SIZE = 49_408
START, END = "<|startoftext|>", "<|endoftext|>"


def byte_characters() -> list[str]:
    """Return the 256 printable characters that stand for the 256 bytes, in CLIP's order.

    Bytes that print well stand for themselves; the others are shifted past 255.
    Source: ``bytes_to_unicode`` of OpenAI's GPT-2 encoder.
    """
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1)]
    printable += range(ord("®"), ord("ÿ") + 1)
    others = [byte for byte in range(256) if byte not in printable]
    return [chr(byte) for byte in printable] + [chr(256 + i) for i in range(len(others))]


def write_tokenizer(merges_gz: Path, folder: Path) -> None:
    """Write ``vocab.json``, ``merges.txt`` and their settings to ``folder``.

    Args:
        merges_gz: CLIP's ``bpe_simple_vocab_16e6.txt.gz``.
        folder: created if missing; afterwards ``CLIPTokenizer.from_pretrained(folder)`` works.
    """
    lines = gzip.decompress(merges_gz.read_bytes()).decode("utf-8").split("\n")
    merges = lines[1 : VOCABULARY_SIZE - 512 - 2 + 1]
    letters = byte_characters()
    entries = [*letters, *(letter + "</w>" for letter in letters)]
    entries += ["".join(merge.split()) for merge in merges] + [START, END]

    folder.mkdir(parents=True, exist_ok=True)
    vocabulary = json.dumps({entry: i for i, entry in enumerate(entries)}, ensure_ascii=False)
    (folder / "vocab.json").write_text(vocabulary + "\n", encoding="utf-8")
    (folder / "merges.txt").write_text("#version: 0.2\n" + "\n".join(merges) + "\n", "utf-8")
    special = {"bos_token": START, "eos_token": END, "unk_token": END, "pad_token": END}
    settings = {"tokenizer_class": "CLIPTokenizer", "model_max_length": 77, **special}
    for name, content in (("tokenizer_config", settings), ("special_tokens_map", special)):
        (folder / f"{name}.json").write_text(json.dumps(content, indent=2) + "\n", "utf-8")
