"""Grade a folder of handed-in notebooks, each in a process of its own.

A process may use so much time and memory and, on Linux, no network; elsewhere Python's own sockets
are shut. It does not see the grader's environment, and hears the secret when the notebook has run.
That keeps out the careless. Who wants to can read files, or give himself all points: grade in a
container without your home folder, and read what has full points.
"""

from __future__ import annotations

import csv
import html
import io
import json
import os
import re
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from sdlearn.exercises.catalogue import chapters, exercise
from sdlearn.exercises.examination import Exercise, NotYet
from sdlearn.exercises.notes import seed_of

SECONDS = 300
GIGABYTES = 8
CHECK = re.compile(r'^check\("([\d.]+)", (\w+)', re.M)


def notebooks_in(source: Path) -> Iterator[tuple[str, bytes]]:
    """Yield the name and the bytes of each notebook in a zip file or a folder.

    Raises:
        ValueError: there is none.
    """
    found = 0
    if source.is_dir():
        for path in sorted(source.rglob("*.ipynb")):
            found += 1
            yield str(path.relative_to(source).with_suffix("")), path.read_bytes()
    elif zipfile.is_zipfile(source):
        with zipfile.ZipFile(source) as archive:
            for name in sorted(archive.namelist()):
                if name.endswith(".ipynb") and "__MACOSX" not in name:
                    found += 1
                    yield name.removesuffix(".ipynb"), archive.read(name)
    else:
        raise ValueError(f"{str(source)!r} is neither a folder nor a zip file of notebooks")
    if not found:
        raise ValueError(f"no notebook (.ipynb) in {str(source)!r}")


def grade(source: Path, out: Path, secret: str = "", seconds: float = SECONDS) -> None:
    """Write ``grades.csv`` and a page of feedback for each notebook into a folder.

    Args:
        source: a zip file, as Moodle and Canvas give it, or a folder.
        out: the folder to write.
        secret: a word from which further cases are drawn, others than the class has seen.
        seconds: for each notebook.
    """
    out.mkdir(parents=True, exist_ok=True)
    rows = []
    for name, content in notebooks_in(source):
        said = _in_a_process(content, secret, seconds)
        page = re.sub(r"[^\w.-]+", "-", name)
        (out / f"{page}.html").write_text(feedback(name, said), encoding="utf-8")
        points = {key: exercise(key).points * (words == "passed") for key, words in said.items()
                  if key != "notebook"}  # fmt: skip
        total = sum(points.values())
        every = [each for chapter in {key[:2] for key in points} for each in chapters()[chapter]]
        possible = sum(exercise(each).points for each in every)
        rows.append({"notebook": name, **points, "points": total, "of": possible})
        print(f"{name}: {total} of {possible} points")
    columns = sorted({key for row in rows for key in row} - {"notebook", "points", "of"})
    with (out / "grades.csv").open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, ["notebook", *columns, "points", "of"], restval=0)
        writer.writeheader()
        writer.writerows(rows)


def feedback(name: str, said: dict[str, str]) -> str:
    """Return a page that says of each exercise what was right, or what is not yet."""
    lines = [f"<h1>{html.escape(name)}</h1>"]
    for key, words in said.items():
        title = key if key == "notebook" else f"{key} {exercise(key).title}"
        mark = "✓" if words == "passed" else "✗"
        lines.append(f"<h2>{mark} {html.escape(title)}</h2><p>{html.escape(words)}</p>")
    head = '<!doctype html><html lang="en"><meta charset="utf-8"><title>Feedback</title>'
    return head + "\n".join(lines) + "</html>\n"


def _in_a_process(content: bytes, secret: str, seconds: float) -> dict[str, str]:
    """Return what is said of each exercise of a notebook: "passed", or what is wrong."""
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "handed-in.ipynb").write_bytes(content)
        command = [sys.executable, "-m", "sdlearn.exercises.grading", "handed-in.ipynb"]
        seen = ("PATH", "PYTHONPATH", "SYSTEMROOT", "OMP_NUM_THREADS", "SDLEARN_MODEL")
        environment = {name: os.environ[name] for name in seen if name in os.environ}
        environment |= {"HOME": folder, "HF_HUB_OFFLINE": "1"}
        try:
            subprocess.run(
                command,
                cwd=folder,
                env=environment,
                timeout=seconds,
                capture_output=True,
                input=secret.encode(),
            )
        except subprocess.TimeoutExpired:
            return {"notebook": f"stopped after {seconds:.0f} seconds"}
        try:
            return json.loads((Path(folder) / "said.json").read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {"notebook": "ended without a result: out of memory, or not a notebook"}


def run_and_examine(notebook: dict[str, Any]) -> dict[str, str]:
    """Run a notebook's code cell by cell, a failing cell left behind; examine its answers."""
    examine = Exercise.examine
    code = ["".join(cell["source"]) for cell in notebook["cells"] if cell["cell_type"] == "code"]
    space: dict[str, Any] = {"__name__": "__main__"}
    heard, sys.stdin = sys.stdin, io.StringIO()  # What the notebook can read is nothing.
    for text in code:
        lines = [line for line in text.splitlines() if not line.lstrip().startswith(("%", "!"))]
        try:
            exec(compile("\n".join(lines), "<notebook>", "exec"), space)
        except (Exception, SystemExit):
            continue  # An empty answer raises, and the next cell may be right.
    said, secret = {}, heard.read()
    for name, function in CHECK.findall("\n".join(code)):
        try:
            for seed in {seed_of(None), seed_of(secret + name)}:
                examine(exercise(name), space.get(function), seed)  # type: ignore[arg-type]
            said[name] = "passed"
        except (NotYet, ValueError) as error:
            said[name] = str(error)
    return said or {"notebook": "no exercise in it"}


def _shut_in() -> None:
    """Limit this process's memory, and take its network away."""
    try:
        import ctypes
        import resource

        limit = GIGABYTES * 2**30
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
        user, net = 0x10000000, 0x40000000  # CLONE_NEWUSER, CLONE_NEWNET
        ctypes.CDLL(None).unshare(user | net)
    except (ImportError, AttributeError, OSError, ValueError):
        pass  # Not on this system.
    import socket

    def refuse(*args: object, **kwargs: object) -> None:
        raise OSError("no network while a notebook is graded")

    socket.socket.connect = refuse  # type: ignore[method-assign]


if __name__ == "__main__":
    _shut_in()
    handed_in = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    here = Path("said.json").resolve()  # A cell may change the folder.
    here.write_text(json.dumps(run_and_examine(handed_in)), encoding="utf-8")
