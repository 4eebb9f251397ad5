"""Run every chapter from its first cell to its last, clean it, and write it back.

python book/build.py             all chapters, in order
python book/build.py 00 09       only these
python book/build.py --check     run nothing, list what is wrong with the files
"""

from __future__ import annotations

import argparse
import copy
import os
import re
import sys
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError, CellTimeoutError
from nbformat import NotebookNode

# What pip installs where a chapter is opened without the repository, as on Colab: "git+https://...",
# or "sdlearn" once that name on the package index is this project's. None: nothing yet.
SOURCE: str | None = None

CHAPTERS = Path(__file__).parents[1] / "chapters"
CELL_TIMEOUT = 300  # Seconds.
MAX_BYTES = 2_000_000
MAX_LINES = 15
METADATA = {
    "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
    "language_info": {"name": "python", "pygments_lexer": "ipython3"},
}
WIDGET = "application/vnd.jupyter.widget-view+json"
# A home, temporary or work folder at the start of a path; "example.org/home/" is not one.
ABSOLUTE_PATH = re.compile(r"(?<![\w.])/(?:home|root|Users|work|tmp)/\w|\b[A-Z]:\\Users\\")
PROGRESS_BAR = re.compile(r"\d%\|")
IMAGE_WITHOUT_ALT = re.compile(r"!\[\s*\]\(|<img(?![^>]*\balt=['\"][^'\"])[^>]*>")

IF_MISSING = 'import importlib.util\n\nif importlib.util.find_spec("sdlearn") is None:\n'
STOP = """    raise ModuleNotFoundError(
        "sdlearn is not installed. Get the whole repository of this book, and in its folder "
        "run `pip install -e .`. For Colab, run `pip wheel --no-deps -w dist .` there, "
        "upload the file that is then in `dist`, and `%pip install` it."
    )"""


def first_cell(source: str | None = SOURCE) -> str:
    """Return the code every chapter begins with: without sdlearn it stops, or installs it."""
    return IF_MISSING + (STOP if source is None else f"    %pip install --quiet {source}")


def begin(notebook: NotebookNode) -> None:
    """Make ``first_cell`` the first code cell of a notebook, in place of an older one."""
    cells = notebook.cells
    at = next((i for i, cell in enumerate(cells) if cell.cell_type == "code"), len(cells))
    if at == len(cells) or not cells[at].source.startswith(IF_MISSING):
        cells.insert(at, nbformat.v4.new_code_cell())
    cells[at].source = first_cell()


def execute(notebook: NotebookNode) -> NotebookNode:
    """Run a notebook in the chapters' folder; a cell that fails raises CellExecutionError."""
    client = NotebookClient(
        notebook,
        timeout=CELL_TIMEOUT,
        kernel_name="python3",
        resources={"metadata": {"path": str(CHAPTERS)}},
        record_timing=False,
        coalesce_streams=True,
    )
    return client.execute()


def clean(notebook: NotebookNode) -> NotebookNode:
    """Return a copy without anything that differs from machine to machine or run to run.

    What a cell prints is left alone: the tests compare it.
    """
    notebook = copy.deepcopy(notebook)
    notebook.metadata = nbformat.from_dict(METADATA)
    notebook.nbformat, notebook.nbformat_minor = 4, 5
    count = 0
    for number, cell in enumerate(notebook.cells):
        cell.id = f"cell-{number:02d}"
        kept = {key: cell.metadata[key] for key in ("tags", "jupyter") if key in cell.metadata}
        cell.metadata = nbformat.from_dict(kept)
        if cell.cell_type != "code":
            continue
        if cell.execution_count is not None:
            count += 1
            cell.execution_count = count
        for output in cell.outputs:
            if output.output_type == "execute_result":
                output.execution_count = cell.execution_count
            # Without its state, which is large and never the same, a view shows only an error.
            # The text beside it stays, for GitHub and for print.
            output.get("data", {}).pop(WIDGET, None)
    return notebook


def problems(path: str | Path) -> list[str]:
    """Return what a reader, GitHub or the tests would stumble over in a committed notebook."""
    path = Path(path)
    notebook = nbformat.read(path, as_version=4)
    found = []
    if path.stat().st_size > MAX_BYTES:
        found.append(f"is {path.stat().st_size / 1e6:.1f} MB, over {MAX_BYTES / 1e6} MB")
    if "widgets" in notebook.metadata:
        found.append("holds widget state, which GitHub refuses to show")
    code = [cell.source for cell in notebook.cells if cell.cell_type == "code"]
    if code[:1] != [first_cell()]:
        found.append("has another first code cell than `make chapters` writes")
    for number, cell in enumerate(notebook.cells):
        found += [f"cell {number} {problem}" for problem in _cell_problems(cell)]
    if not found and clean(notebook) != notebook:
        found.append("is not as `make chapters` leaves it: run it again")
    return found


def _cell_problems(cell: NotebookNode) -> list[str]:
    found = []
    texts = [cell.source]
    if cell.cell_type == "markdown" and IMAGE_WITHOUT_ALT.search(cell.source):
        found.append("has an image without alt text")
    if cell.cell_type == "code":
        lines = [line for line in cell.source.splitlines() if line.strip()]
        if len(lines) > MAX_LINES:
            found.append(f"has {len(lines)} lines of code, over {MAX_LINES}")
        if lines and cell.execution_count is None:
            found.append("was not run")
        for output in cell.outputs:
            found += _output_problems(output)
            texts.append(_text(output))
    for text in texts:
        if match := ABSOLUTE_PATH.search(text):
            found.append(f"names an absolute path: {text[match.start() : match.start() + 40]!r}")
    return found


def _output_problems(output: NotebookNode) -> list[str]:
    found = []
    text = _text(output)
    data = output.get("data", {})
    alt = output.get("metadata", {}).get("image/png", {}).get("alt")
    if ("image/png" in data and not alt) or IMAGE_WITHOUT_ALT.search(text):
        found.append("shows a picture without alt text: show it with sdlearn.show.picture")
    if "data:image" in data.get("text/html", ""):
        found.append("shows a picture as HTML, out of which GitHub and others take it")
    if output.output_type == "error" or "Traceback (most recent call last)" in text:
        found.append("shows a traceback")
    if PROGRESS_BAR.search(text):
        found.append("shows a progress bar")
    elif output.get("name") == "stderr":
        found.append(f"prints to stderr: {text[:60]!r}")
    if WIDGET in data:
        found.append("holds a widget view, which shows only an error without its state")
    return found


def _text(output: NotebookNode) -> str:
    """All the text of an output; never its pictures."""
    parts = [output.get("text", ""), *output.get("traceback", [])]
    parts += [value for kind, value in output.get("data", {}).items() if kind.startswith("text/")]
    return "\n".join(parts)


def _named(names: list[str]) -> list[Path]:
    chapters = sorted(CHAPTERS.glob("*.ipynb"))
    for name in names:
        if not any(chapter.stem.startswith(Path(name).stem) for chapter in chapters):
            sys.exit(f"No chapter is called {name!r}.")
    stems = tuple(Path(name).stem for name in names) or ("",)
    return [chapter for chapter in chapters if chapter.stem.startswith(stems)]


def main(arguments: list[str] | None = None) -> int:
    """Build or check the chapters named on the command line; return the exit status."""
    parser = argparse.ArgumentParser(description="Run, clean and check the chapters.")
    parser.add_argument("chapters", nargs="*", help="the first letters of file names, such as 09")
    parser.add_argument("--check", action="store_true", help="run nothing, only list problems")
    options = parser.parse_args(arguments)
    # A GPU or a cached Stable Diffusion must not change what the chapters print.
    os.environ |= {"SDLEARN_MODEL": "postcards", "SDLEARN_DEVICE": "cpu"}
    failed = False
    for path in _named(options.chapters):
        if not options.check:
            print(f"running {path.name}", flush=True)
            notebook = nbformat.read(path, as_version=4)
            begin(notebook)
            try:
                notebook = execute(notebook)
            except (CellExecutionError, CellTimeoutError) as error:
                print(f"{path.name} was not written:\n{error}")
                failed = True
                continue
            nbformat.write(clean(notebook), path)
        for problem in problems(path):
            print(f"{path.name}: {problem}")
            failed = True
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
