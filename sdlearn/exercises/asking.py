"""Five questions about a chapter, each wrong answer explained."""

from __future__ import annotations

import json
from importlib.resources import files
from typing import Any


def questions(chapter: str) -> list[dict[str, Any]]:
    """Return a chapter's questions, in the format of jupyterquiz.

    Raises:
        ValueError: there are none.
    """
    file = files("sdlearn.exercises") / "quizzes" / f"{chapter}.json"
    if not file.is_file():
        raise ValueError(f'no quiz for {chapter!r}; pass a chapter like "05"')
    return json.loads(file.read_text(encoding="utf-8"))


def quiz(chapter: str) -> None:
    """Show a chapter's questions in a notebook.

    Raises:
        ModuleNotFoundError: jupyterquiz is missing.
        ValueError: no such chapter.
    """
    asked = questions(chapter)
    try:
        from jupyterquiz import display_quiz
    except ModuleNotFoundError:
        remedy = "%pip install jupyterquiz"
        raise ModuleNotFoundError(
            f"jupyterquiz, which shows quizzes, is missing: {remedy}"
        ) from None
    display_quiz(asked)
