"""All exercises, by name."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from importlib.resources import files
from typing import Any

from sdlearn.exercises.examination import Exercise
from sdlearn.exercises.notes import note_passed, seed_of


def exercise(name: str) -> Exercise:
    """Return the exercise of a name, such as "05.1".

    Raises:
        ValueError: there is none; the message lists those of the chapter.
    """
    chapter = str(name)[:2]
    try:
        module = import_module(f"sdlearn.exercises.chapter{chapter}")
    except ModuleNotFoundError:
        raise ValueError(f'no exercises for {name!r}; pass a name like "05.1"') from None
    for one in module.EXERCISES:
        if one.name == name:
            return one
    names = ", ".join(one.name for one in module.EXERCISES)
    raise ValueError(f"no exercise {name!r}; chapter {chapter} has {names}")


def chapters() -> dict[str, list[str]]:
    """Return the names of all exercises, by chapter."""
    modules = sorted(file.name for file in files("sdlearn.exercises").iterdir())
    numbers = [name[7:9] for name in modules if name.startswith("chapter")]
    found = {n: import_module(f"sdlearn.exercises.chapter{n}").EXERCISES for n in numbers}
    return {number: [one.name for one in those] for number, those in found.items()}


def check(name: str, answer: Callable[..., Any], student: str | None = None) -> None:
    """Examine an answer, and say that it is right; else what is wrong with it.

    Args:
        name: of the exercise, such as "05.1".
        answer: the function that was to be written.
        student: a name, from which the cases are drawn: so each has others.

    Raises:
        NotYet: it is wrong.
    """
    one = exercise(name)
    one.examine(answer, seed_of(student))
    note_passed(name)
    print(f"{name} passed: {one.title}")
