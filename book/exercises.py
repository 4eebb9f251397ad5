"""Make the exercises that readers and classes get, from their sources in book/exercises/.

python book/exercises.py                             write chapters/exercises/, for readers
python book/exercises.py --check                     write nothing, list what differs
python book/exercises.py --class course --secret pi  write a course for nbgrader into course/source/

A source is a notebook with its solutions between nbgrader's two marks. Tags say what a cell is:
``exercise:05.1`` the task, ``answer`` the solution, ``check``, ``hint``; ``predict:05.4``,
``prediction``, ``explain:05.4``, ``solution``.
"""

from __future__ import annotations

import argparse
import hashlib
import re
import sys
from pathlib import Path
from typing import Any

import nbformat
from build import METADATA, begin
from nbformat import NotebookNode, v4

from sdlearn.exercises import exercise

SOURCES = Path(__file__).parent / "exercises"
READERS = Path(__file__).parents[1] / "chapters" / "exercises"
SOLUTION = re.compile(r"^( *)### BEGIN SOLUTION\n(.*?)\n *### END SOLUTION", re.M | re.S)
EMPTY = r"\1# YOUR CODE HERE\n\1raise NotImplementedError"


def tag(cell: NotebookNode) -> tuple[str, str]:
    """Return what a source's cell is, and of which exercise; ("", "") for any other cell."""
    kind, _, name = next(iter(cell.metadata.get("tags", [])), "").partition(":")
    return kind, name


def folded(summary: str, text: str) -> str:
    """Return text that a reader opens with a click."""
    return f"<details><summary>{summary}</summary>\n\n{text}\n\n</details>"


def heading(name: str) -> str:
    """Return an exercise's title, minutes and difficulty."""
    one = exercise(name)
    dots = "●" * one.difficulty + "○" * (3 - one.difficulty)
    return f"## {one.name} {one.title}\n\n*{one.minutes} minutes · {dots}*\n\n"


def solution_of(source: str) -> str:
    """Return the code of an answer without the two marks."""
    return SOLUTION.sub(r"\2", source)


def readers_edition(source: NotebookNode) -> NotebookNode:
    """Return a notebook with empty answers; hints and solutions are folded below each check."""
    cells, below, hints = [], list[str](), 0

    def close() -> None:
        """Put the hints and the solution of the exercise that ends here."""
        nonlocal below, hints
        if below:
            cells.append(v4.new_markdown_cell("\n\n".join(below)))
        below, hints = [], 0

    answer = ""
    for cell in source.cells:
        kind, name = tag(cell)
        if kind == "hint":
            hints += 1
            below.append(folded(f"Hint {hints}", cell.source))
            continue
        if kind == "solution":
            below.append(folded("An explanation", cell.source))
            continue
        if answer and kind != "check":
            below.append(folded("Solution", f"```python\n{answer}\n```"))
            answer = ""
        close()
        if cell.cell_type == "markdown":
            title = heading(name) if kind == "exercise" else f"## {name}\n\n" * (kind == "predict")
            cells.append(v4.new_markdown_cell(title + cell.source))
            if kind == "explain":
                cells.append(v4.new_markdown_cell("*Your explanation:*"))
            continue
        text = cell.source
        if kind == "answer":
            answer, text = solution_of(text), SOLUTION.sub(EMPTY, text)
        elif kind == "prediction":
            text = re.sub(r'(predict\("[\d.]+", ).*', r'\1..., because="...")', solution_of(text))
        cells.append(v4.new_code_cell(text))
    close()
    notebook = v4.new_notebook(cells=cells, metadata=METADATA)
    begin(notebook)
    for number, cell in enumerate(notebook.cells):
        cell.id = f"cell-{number:02d}"
    return notebook


def class_edition(source: NotebookNode, secret: str) -> NotebookNode:
    """Return nbgrader's source: its metadata, points, and hidden tests with cases of their own."""
    notebook = nbformat.from_dict(source)
    notebook.cells = [cell for cell in notebook.cells if tag(cell)[0] != "solution"]
    current = ""
    hints = 0
    for number, cell in enumerate(notebook.cells):
        kind, name = tag(cell)
        current = name or current
        hints = hints + 1 if kind == "hint" else 0
        about: dict[str, Any] = {"grade": False, "solution": False, "locked": True, "task": False}
        if kind in ("answer", "prediction"):
            about |= {"solution": True, "locked": False}
        elif kind == "explain":
            about |= {"solution": True, "locked": False, "grade": True, "points": 2}
            cell.source += "\n\n### BEGIN SOLUTION\n(read by the teacher)\n### END SOLUTION"
        elif kind == "check":
            about |= {"grade": True, "points": exercise(current).points}
            # Feedback shows hidden tests: one word must not give away the others, nor the secret.
            word = hashlib.sha256(f"{secret} {current}".encode()).hexdigest()[:16]
            again = cell.source.replace(")", f", student={word!r})")
            cell.source += f"\n### BEGIN HIDDEN TESTS\n{again}\n### END HIDDEN TESTS"
        elif kind == "hint":
            cell.source = folded(f"Hint {hints}", cell.source)
        if kind == "exercise":
            cell.source = heading(name) + cell.source
        elif kind == "prediction":
            call = f'predict("{current}", ..., because="a sentence")'
            cell.source = f"# {call}, with what you expect\n{cell.source}"
        place = f"{current or 'head'}-{kind or 'text'}-{number}"
        about |= {"schema_version": 3, "grade_id": place.replace(".", "-")}
        cell.metadata = nbformat.from_dict({"nbgrader": about})
    begin(notebook)
    return notebook


def main(arguments: list[str] | None = None) -> int:
    """Write the exercises, or say which are not as they would be written."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--check", action="store_true", help="write nothing")
    parser.add_argument("--class", dest="course", type=Path, help="nbgrader's folder")
    parser.add_argument("--secret", help="a word that the hidden tests are drawn from")
    options = parser.parse_args(arguments)
    if options.course and not options.secret:
        parser.error("--class needs a --secret; keep it, and tell nobody")
    status = 0
    for path in sorted(SOURCES.glob("*.ipynb")):
        source = nbformat.read(path, as_version=4)
        if options.course:
            target = options.course / "source" / path.stem / path.name
            notebook = class_edition(source, options.secret)
        else:
            target, notebook = READERS / path.name, readers_edition(source)
        text = nbformat.writes(notebook) + "\n"
        if options.check:
            if not target.exists() or target.read_text(encoding="utf-8") != text:
                print(f"{target.name} is not what book/exercises.py writes: run it")
                status = 1
            continue
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(text, encoding="utf-8")
    return status


if __name__ == "__main__":
    sys.exit(main())
