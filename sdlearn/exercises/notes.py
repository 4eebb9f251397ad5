"""What a reader has solved and predicted, in a small file beside the exercises, sent nowhere."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any

from sdlearn.exercises.examination import NotYet

FILE = Path("progress.json")  # In the folder of the notebook, where its kernel runs.


def seed_of(student: str | None) -> int:
    """Return the seed that a name stands for: the same on every machine; 0 without a name."""
    if not student:
        return 0
    return int.from_bytes(hashlib.sha256(student.strip().lower().encode()).digest()[:4], "big")


def _read() -> dict[str, Any]:
    try:
        notes = json.loads(FILE.read_text(encoding="utf-8"))
        return notes if {"passed", "predicted"} <= notes.keys() else {"passed": [], "predicted": {}}
    except (OSError, ValueError, AttributeError):
        return {"passed": [], "predicted": {}}


def _write(notes: dict[str, Any]) -> None:
    beside = FILE.with_suffix(".new")
    try:
        beside.write_text(json.dumps(notes, indent=1), encoding="utf-8")
        os.replace(beside, FILE)
    except OSError as error:  # A folder that cannot be written to must not fail an answer.
        print(f"sdlearn: progress was not noted ({error})")


def note_passed(name: str) -> None:
    """Note that an exercise was solved."""
    notes = _read()
    if name not in notes["passed"]:
        notes["passed"] = sorted([*notes["passed"], name])
        _write(notes)


def predict(name: str, expected: Any, because: str) -> None:
    """Note what you expect, and why, before you run it; what was noted first stays.

    Args:
        name: of the question, such as "05.4".
        expected: a number, or one of the words that the question offers.
        because: a sentence.

    Raises:
        NotYet: no expectation, or no reason given.
    """
    if expected is ...:
        raise NotYet("put what you expect in the place of the three dots")
    if not isinstance(because, str) or len(because.split()) < 3:
        raise NotYet("because must be a sentence: what makes you expect it?")
    notes = _read()
    first = notes["predicted"].setdefault(name, {"expected": expected, "because": because})
    _write(notes)
    same = first["expected"] == expected
    print(f"noted: {first['expected']}" + ("" if same else ", which you said first"))


def compare(name: str, outcome: Any) -> None:
    """Show what happened beside what was predicted.

    Raises:
        NotYet: nothing was predicted yet.
    """
    said = _read()["predicted"].get(name)
    if said is None:
        raise NotYet(f"predict({name!r}, ...) first: what do you expect, and why?")
    print(f"you expected: {said['expected']}, because {said['because']}")
    print(f"it is:        {outcome}")


def progress() -> None:
    """Print which exercises are solved, chapter by chapter."""
    from sdlearn.exercises.catalogue import chapters

    passed = set(_read()["passed"])
    for chapter, names in chapters().items():
        marks = "".join("●" if name in passed else "○" for name in names)
        print(f"chapter {chapter}  {marks}  {len(passed & set(names))} of {len(names)}")
