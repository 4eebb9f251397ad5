"""Copy the book into a folder of the reader's, and open it there: ``sdlearn start``.

The folder keeps a record, ``.sdlearn-book.json``: for each file the hashes of all editions of it
that were written there. A file with one of these hashes is as it was written, and a new edition
takes its place. Any other is the reader's: it stays, and a new edition goes beside it.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import os
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path

FIRST = "00-start-here.ipynb"
FOLDER = "sdlearn-book"
RECORD = ".sdlearn-book.json"
PARTS = (
    *("LICENSE", "*.md", "[0-9]*.ipynb", "figures/*.*"),
    *("exercises/*.md", "exercises/[0-9]*.ipynb"),
)
CARDS = ("*/README.md", "*/samples.jpg")  # The chapters link to what the models' cards say.
WITHOUT_LAB = "JupyterLab is not installed: pip install jupyterlab jupyterquiz"


@dataclass
class Done:
    """What became of the files of a book, their names relative to the folder."""

    new: list[str] = field(default_factory=list)
    updated: list[str] = field(default_factory=list)
    beside: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        told = [f"{len(self.new)} new"] if self.new else []
        told += [f"{len(self.updated)} brought up to date"] if self.updated else []
        lines = [f"files: {', '.join(told) or 'all up to date'}"]
        if self.beside:
            lines.append("you have changed these, so their new edition lies beside yours:")
        return "\n  ".join([*lines, *self.beside])


def main(arguments: list[str]) -> None:
    """Run ``sdlearn start``.

    Raises:
        ValueError: the folder cannot be used, or JupyterLab is missing (the book is then there).
    """
    parser = argparse.ArgumentParser(
        prog="sdlearn start",
        description="Copy the book into a folder and open it in JupyterLab. Run again, it brings "
        "the folder up to date, and never touches a file that you have changed.",
        epilog="Other options go to JupyterLab, such as --no-browser or --port=9999.",
        allow_abbrev=False,
    )
    parser.add_argument("folder", nargs="?", type=Path, default=Path(FOLDER))
    parser.add_argument("--no-lab", action="store_true", help="only copy")
    args, options = parser.parse_known_args(arguments)
    if stray := [text for text in options if not text.startswith("-")]:
        parser.error(f"one folder at most, got also {stray}; write options as --name=value")
    from sdlearn import __version__

    done = copy_book(args.folder, book(), __version__)
    print(f"the book is in {str(args.folder)!r}\n{done}", flush=True)
    if not args.no_lab:
        open_lab(args.folder, options)


def open_lab(folder: Path, options: list[str]) -> None:
    """Run JupyterLab in a folder, at the first chapter, until it is stopped."""
    if find_spec("jupyterlab") is None:
        raise ValueError(WITHOUT_LAB)
    from jupyterlab.labapp import main as lab

    os.chdir(folder)
    # Not as a file to open: without a browser the link that is printed would not lead to it.
    lab([f"--LabApp.default_url=/lab/tree/{FIRST}", *options])


def book() -> dict[str, bytes]:
    """Return the files of this release's book: relative name (with ``/``) → content."""
    package = Path(__file__).parent
    # The wheel has the chapters inside the package, the repository beside it.
    chapters = next(p for p in (package / "chapters", package.parent / "chapters") if p.is_dir())
    files = {file.relative_to(chapters): file for part in PARTS for file in chapters.glob(part)}
    models = package / "models"
    files |= {file.relative_to(package): file for part in CARDS for file in models.glob(part)}
    return {name.as_posix(): _linked(file) for name, file in sorted(files.items())}


def _linked(file: Path) -> bytes:
    """Read a file; links to the models' cards lead to the copies of them."""
    content = file.read_bytes()
    if file.suffix in (".ipynb", ".md"):
        content = content.replace(b"](../sdlearn/models/", b"](models/")
    return content


def copy_book(folder: Path, files: dict[str, bytes], edition: str) -> Done:
    """Bring a folder up to date with a book, and leave alone what the reader has changed.

    All files are first written to a hidden folder and then moved, so that none is ever half there.
    Stopped at any point, it can be run again.

    Args:
        folder: made where it is missing; else empty, or one that was made by this function.
        files: what ``book`` returns.
        edition: the release, for the names of files that go beside a reader's.

    Raises:
        ValueError: the folder, or something in it, is in the way or cannot be written.
    """
    given = _record_of(folder)
    try:
        with _made(folder), tempfile.TemporaryDirectory(dir=folder, prefix=".sdlearn-") as staging:
            return _bring_up_to_date(folder, Path(staging), files, given, edition)
    except OSError as error:
        size = sum(map(len, files.values())) / 1e6
        raise ValueError(
            f"cannot write to {str(folder)!r}: {error.strerror or error} (the book takes "
            f"{size:.0f} MB); for another place: sdlearn start FOLDER"
        ) from None


def _record_of(folder: Path) -> dict[str, list[str]]:
    """Return which editions a folder has been given; refuse one that is not a book's."""
    if not folder.exists():
        return {}
    if not folder.is_dir():
        raise ValueError(f"{str(folder)!r} is a file; name a folder: sdlearn start FOLDER")
    if (folder / RECORD).is_file():
        # Spoilt: then every file that is not this edition's is taken for the reader's.
        with contextlib.suppress(ValueError, TypeError, KeyError, AttributeError):
            record = json.loads((folder / RECORD).read_text("utf-8"))
            return {name: list(hashes) for name, hashes in record["files"].items()}
    elif any(not path.name.startswith(".") for path in folder.iterdir()):
        raise ValueError(
            f"{str(folder)!r} has other files in it; for a folder of its own: "
            f"sdlearn start {str(folder / FOLDER)!r}"
        )
    return {}


@contextlib.contextmanager
def _made(folder: Path) -> Iterator[None]:
    """Make a folder; take it away again if nothing came of it."""
    new = not folder.exists()
    folder.mkdir(parents=True, exist_ok=True)
    try:
        yield
    except BaseException:
        if new:
            with contextlib.suppress(OSError):
                folder.rmdir()
        raise


def _bring_up_to_date(
    folder: Path, staging: Path, files: dict[str, bytes], given: dict[str, list[str]], edition: str
) -> Done:
    done, moves, aside = Done(), {}, {}
    for name, content in files.items():
        target, sha, known = folder / name, _hash(content), given.setdefault(name, [])
        _nothing_in_the_way(folder, target)
        had = _hash(target.read_bytes()) if target.exists() else None
        if had is None or (had in known and had != sha and not target.is_symlink()):
            moves[target] = content
            (done.new if had is None else done.updated).append(name)
        elif had != sha and sha not in known:
            beside = _free_name(target, edition, sha)
            aside[beside] = content
            done.beside.append(beside.relative_to(folder).as_posix())
        if sha not in known:
            known.append(sha)
    record = json.dumps({"edition": edition, "files": given}, indent=1).encode()
    # In this order a stop between two moves leaves nothing behind that the next run misreads: what
    # lies beside is found there, and what is in the record may be overwritten.
    _write_whole(staging, {**aside, folder / RECORD: record, **moves})
    return done


def _write_whole(staging: Path, contents: dict[Path, bytes]) -> None:
    """Write all files into the staging folder; then move each to its place, in order."""
    for number, content in enumerate(contents.values()):
        (staging / str(number)).write_bytes(content)
    for number, target in enumerate(contents):
        target.parent.mkdir(parents=True, exist_ok=True)
        os.replace(staging / str(number), target)


def _nothing_in_the_way(folder: Path, target: Path) -> None:
    above = [path for path in target.parents if folder in path.parents]
    for path, fits in [(target, Path.is_file), *((path, Path.is_dir) for path in above)]:
        if path.exists() and not fits(path):
            raise ValueError(f"{str(path)!r} is in the way: move it, or name another folder")


def _free_name(target: Path, edition: str, sha: str) -> Path:
    """Return a name beside a file that is free, or holds the very content that shall go there."""
    for number in ("", *(f"-{n}" for n in range(2, 1000))):
        beside = target.with_name(f"{target.stem}.new-{edition}{number}{target.suffix}")
        if not beside.exists() or (beside.is_file() and _hash(beside.read_bytes()) == sha):
            return beside
    raise ValueError(f"too many editions beside {str(target)!r}: move some away")


def _hash(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
