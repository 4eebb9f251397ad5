"""The ways into the book: a wheel, ``sdlearn start``, and Colab."""

import contextlib
import json
import os
import re
import subprocess
import sys
import tempfile
import time
import tomllib
import venv
from pathlib import Path
from types import ModuleType, SimpleNamespace
from urllib.error import URLError
from urllib.request import urlopen

import anywidget._util
import jupyterlab.labapp
import nbformat
import pytest
from build import CHAPTERS, first_cell
from hatchling.build import build_sdist, build_wheel
from nbclient import NotebookClient
from packaging.requirements import Requirement
from PIL import Image
from twine.commands.check import check

from sdlearn import start
from sdlearn.__main__ import main
from sdlearn.show import mask_painter

ROOT = Path(__file__).parent.parent
SITE = Path(anywidget.__file__).parent.parent  # where the packages are that sdlearn needs


@pytest.fixture(scope="module")
def packages(tmp_path_factory):
    """A wheel and a source package of the repository, and the folder they are in."""
    folder = tmp_path_factory.mktemp("dist")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(ROOT)
        return folder / build_wheel(folder), folder / build_sdist(folder)


@pytest.fixture(scope="module")
def bare(tmp_path_factory):
    """The Python of an environment that has all packages, but not the repository's sdlearn."""
    folder = tmp_path_factory.mktemp("bare")
    venv.create(folder)
    (own,) = folder.glob("**/site-packages")
    (own / "outer.pth").write_text(f"{SITE}\n", encoding="utf-8")
    return next(path for path in folder.glob("*/python*") if path.stem == "python")


def test_twine_finds_nothing_wrong(packages):
    assert check([str(path) for path in packages], strict=True) is False  # no failure


def test_the_book_in_the_wheel_is_the_book_of_the_repository(packages, bare, tmp_path):
    wheel, _ = packages
    pip = [sys.executable, "-m", "pip", "--python", str(bare), "install", "--no-deps", "--no-index"]
    subprocess.run([*pip, str(wheel)], check=True, capture_output=True)
    command = [bare, "-m", "sdlearn", "start", "--no-lab"]
    done = subprocess.run(command, cwd=tmp_path, check=True, capture_output=True, text=True)
    assert done.stdout.startswith(f"the book is in {start.FOLDER!r}")
    assert found(tmp_path / start.FOLDER) == start.book()
    subprocess.run([*pip[:-3], "uninstall", "--yes", "sdlearn"], check=True, capture_output=True)


def test_the_book_is_all_that_the_repository_has_of_it():
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard", "."]
    try:
        listed = subprocess.run(command, cwd=CHAPTERS, check=True, capture_output=True, text=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("not a git checkout")
    tracked = {name for name in listed.stdout.split("\0") if (CHAPTERS / name).is_file()}
    assert {name for name in start.book() if not name.startswith("models/")} == tracked


def test_links_in_the_copied_book_lead_somewhere(tmp_path):
    start.copy_book(tmp_path, start.book(), "1")
    broken = []
    for path in [*tmp_path.glob("**/*.ipynb"), *tmp_path.glob("**/*.md")]:
        text = path.read_text("utf-8")
        if path.suffix == ".ipynb":
            cells = nbformat.reads(text, 4).cells
            text = "\n".join(cell.source for cell in cells if cell.cell_type == "markdown")
        text = re.sub(r"\$[^$\n]+\$|`[^`\n]+`|```.*?```", "", text, flags=re.S)
        links = re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", text)
        links = [link for link in links if not link.startswith("http")]
        broken += [(path.name, link) for link in links if not (path.parent / link).is_file()]
    assert broken == []


def found(folder):
    """All files of a folder but the record: name → content."""
    files = [path for path in folder.glob("**/*") if path.is_file() and path.name != start.RECORD]
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


ONE = {"00-a.ipynb": b"one", "exercises/00-a.ipynb": b"exercise", "glossary.md": b"words"}
TWO = {**ONE, "00-a.ipynb": b"two", "01-b.ipynb": b"new"}
BESIDE = "00-a.new-2.ipynb"


def test_an_untouched_folder_becomes_the_new_edition(tmp_path):
    folder = tmp_path / "made" / "too"
    assert start.copy_book(folder, ONE, "1").new == [*ONE]
    assert start.copy_book(folder, ONE, "1") == start.Done()
    assert start.copy_book(folder, TWO, "2") == start.Done(["01-b.ipynb"], ["00-a.ipynb"])
    assert found(folder) == TWO
    assert start.copy_book(folder, ONE, "1").updated == ["00-a.ipynb"]  # back again


def test_what_the_reader_changed_stays_and_the_new_edition_goes_beside_it_once(tmp_path):
    start.copy_book(tmp_path, ONE, "1")
    (tmp_path / "00-a.ipynb").write_bytes(b"mine")
    (tmp_path / "notes.txt").write_bytes(b"mine, too")
    assert start.copy_book(tmp_path, ONE, "1") == start.Done()
    assert start.copy_book(tmp_path, TWO, "2").beside == [BESIDE]
    mine = {**TWO, "00-a.ipynb": b"mine", BESIDE: b"two", "notes.txt": b"mine, too"}
    assert found(tmp_path) == mine
    assert start.copy_book(tmp_path, TWO, "2") == start.Done()
    (tmp_path / BESIDE).unlink()  # the reader does not want it
    assert start.copy_book(tmp_path, TWO, "2") == start.Done()
    (tmp_path / "00-a.ipynb").unlink()  # the reader wants it whole
    assert start.copy_book(tmp_path, TWO, "2").new == ["00-a.ipynb"]


def test_a_new_edition_never_overwrites_one_that_lies_beside(tmp_path):
    start.copy_book(tmp_path, ONE, "1")
    for name, content in {"00-a.ipynb": b"mine", BESIDE: b"written into"}.items():
        (tmp_path / name).write_bytes(content)
    assert start.copy_book(tmp_path, TWO, "2").beside == ["00-a.new-2-2.ipynb"]
    assert (tmp_path / BESIDE).read_bytes() == b"written into"


@pytest.mark.parametrize("record", ["", "{", "[]", '{"files": {"00-a.ipynb": 3}}', '{"files": []}'])
def test_without_a_record_every_file_is_the_readers(record, tmp_path):
    start.copy_book(tmp_path, ONE, "1")
    (tmp_path / start.RECORD).write_text(record, "utf-8")
    assert start.copy_book(tmp_path, TWO, "2").beside == [BESIDE]
    assert (tmp_path / "00-a.ipynb").read_bytes() == b"one"


@pytest.mark.parametrize("moves", range(4))
def test_stopped_between_two_files_it_goes_on_where_it_was(moves, tmp_path, monkeypatch):
    start.copy_book(tmp_path, {**ONE, "02-c.ipynb": b"one"}, "1")
    (tmp_path / "02-c.ipynb").write_bytes(b"mine")
    two = {**TWO, "02-c.ipynb": b"two"}
    replace, left = os.replace, iter([True] * moves)

    def stopping(source, target):
        if not next(left, False):
            raise KeyboardInterrupt
        replace(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(start.os, "replace", stopping)
        with pytest.raises(KeyboardInterrupt):
            start.copy_book(tmp_path, two, "2")
    assert all(content in (b"one", b"two", b"mine", b"new", b"exercise", b"words")
               for content in found(tmp_path).values())  # fmt: skip
    start.copy_book(tmp_path, two, "2")
    whole = {**two, "02-c.ipynb": b"mine", "02-c.new-2.ipynb": b"two"}
    assert found(tmp_path) == whole
    three = {**two, "00-a.ipynb": b"three"}  # and what it wrote is still known to be its own
    assert start.copy_book(tmp_path, three, "3") == start.Done([], ["00-a.ipynb"])


def test_a_full_disk_leaves_nothing_and_says_what_is_needed(tmp_path, monkeypatch, capsys):
    def full(path, content):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    assert main(["start", "--no-lab", str(tmp_path / "book")]) == 2
    assert re.search(r"No space left on device \(the book takes \d\d MB\)", capsys.readouterr().err)
    assert [*tmp_path.iterdir()] == []


def read_only(folder, monkeypatch):
    def refused(*_, **__):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(tempfile, "TemporaryDirectory", refused)


def a_file(folder, _):
    folder.write_text("x")


def other_files(folder, _):
    folder.mkdir()
    (folder / "thesis.tex").write_text("x")


def a_folder_of_that_name(folder, _):
    start.copy_book(folder, {}, "1")
    (folder / "00-start-here.ipynb").mkdir()


def a_file_for_a_folder(folder, _):
    start.copy_book(folder, {}, "1")
    (folder / "figures").write_text("x")


def a_file_above(folder, _):
    folder.parent.write_text("x")


@pytest.mark.parametrize(
    ("case", "words"),
    [
        (read_only, "cannot write to .*: Permission denied .*another place: sdlearn start FOLDER"),
        (a_file, "is a file; name a folder"),
        (other_files, r"other files in it; .*: sdlearn start '.*sdlearn-book'"),
        (a_folder_of_that_name, "00-start-here.ipynb' is in the way"),
        (a_file_for_a_folder, "figures' is in the way"),
        (a_file_above, "cannot write to .*: (Not a directory|File exists|.*path)"),
    ],
)
def test_a_folder_that_does_not_do_is_named(case, words, tmp_path, monkeypatch, capsys):
    folder = tmp_path / "above" / "book"
    if case is not a_file_above:
        folder.parent.mkdir()
    case(folder, monkeypatch)
    before = sorted(tmp_path.glob("**/*"))
    assert main(["start", "--no-lab", str(folder)]) == 2
    said = capsys.readouterr().err
    assert re.search(words, said) and said.count("\n") == 1
    assert sorted(tmp_path.glob("**/*")) == before


def test_options_go_to_jupyterlab_and_a_second_folder_nowhere(tmp_path, monkeypatch, capsys):
    called = []
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(jupyterlab.labapp, "main", called.append)
    assert main(["start", "--no-browser", "--port=9999"]) == 0
    assert called[0][1:] == ["--no-browser", "--port=9999"]
    assert Path.cwd() == (tmp_path / start.FOLDER).resolve()
    with pytest.raises(SystemExit):
        main(["start", "one", "two"])
    assert "one folder at most" in capsys.readouterr().err


def test_without_jupyterlab_the_book_is_there_and_the_remedy_is_said(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(start, "find_spec", lambda name: None)
    assert main(["start", str(tmp_path / "book")]) == 2
    assert "pip install jupyterlab" in capsys.readouterr().err
    assert (tmp_path / "book" / start.FIRST).is_file()


def test_jupyterlab_opens_at_the_first_chapter(tmp_path):
    command = [sys.executable, "-m", "sdlearn", "start", "--no-browser", "--allow-root"]
    command += ["--ip=127.0.0.1", "--ServerApp.port=0", "book"]
    places = ("HOME", "JUPYTER_CONFIG_DIR", "JUPYTER_DATA_DIR", "JUPYTER_RUNTIME_DIR")
    environment = {**os.environ, **{name: str(tmp_path / name) for name in places}}
    told = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE, "text": True}
    lab = subprocess.Popen(command, cwd=tmp_path, env=environment, **told)
    try:
        pattern = r"http://127\S+/lab/tree/(\S+)\?token=(\w+)"
        link = next(filter(None, (re.search(pattern, line) for line in lab.stderr)))
        assert link[1] == start.FIRST
        page = f"{link[0].split('/lab/')[0]}/api/contents/{link[1]}?content=0&token={link[2]}"
        for _ in range(100):  # It names its address a moment before it listens there.
            with contextlib.suppress(URLError), urlopen(page) as answer:
                size = json.load(answer)["size"]
                break
            time.sleep(0.1)
        assert size == len(start.book()[start.FIRST])
    finally:
        lab.terminate()
        lab.communicate(timeout=30)


# What Colab had of the packages that sdlearn needs, with Python 3.12, in June 2026:
# pip-freeze.gpu.txt of github.com/googlecolab/backend-info.
COLAB = {
    "torch": "2.11.0+cu128", "transformers": "5.9.0", "diffusers": "0.37.1",
    "safetensors": "0.7.0", "accelerate": "1.13.0", "numpy": "2.0.2", "pillow": "11.3.0",
    "matplotlib": "3.10.0", "lazy_loader": "0.5", "tqdm": "4.67.3", "ipywidgets": "7.7.1",
    "psutil": "5.9.5", "anywidget": "0.9.21",
}  # fmt: skip


def test_of_colabs_packages_only_those_are_replaced_that_no_kernel_has_imported():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    needed = [Requirement(text) for text in project["dependencies"]]
    assert {one.name for one in needed} == set(COLAB)
    replaced = {one.name for one in needed if not one.specifier.contains(COLAB[one.name])}
    assert replaced == {"diffusers", "safetensors"}


# Colab's kernel has imported the module whose part this stands for.
STANDIN = """
from types import SimpleNamespace

called = []
_widgets = SimpleNamespace(_installed_url=None)


def enable_custom_widget_manager():
    called.append(True)
    _widgets._installed_url = "https://example.org/manager.js"
"""
VERSIONS = """
import google.colab.output
from importlib.metadata import distributions

versions = {each.name: each.version for each in distributions() if each.name != "sdlearn"}
"""
AFTERWARDS = """
after = {each.name: each.version for each in distributions() if each.name != "sdlearn"}
assert after == versions, "pip has replaced something"
assert sdlearn.__file__.startswith(__import__("sys").prefix)
sdlearn.show.mask_painter(trace.image)
assert google.colab.output.called == [True]
print("all well")
"""


def test_a_chapter_runs_on_colab_from_the_cell_that_installs_to_its_end(
    packages, bare, tmp_path, monkeypatch
):
    """Nothing but sdlearn is installed: with --no-index pip could not get anything else."""
    colab = tmp_path / "google" / "colab"
    colab.mkdir(parents=True)
    (colab / "output.py").write_text(STANDIN, "utf-8")
    kernel = {"argv": [str(bare), "-m", "ipykernel_launcher", "-f", "{connection_file}"]}
    kernel |= {"display_name": "Colab", "language": "python", "env": {"PYTHONPATH": str(tmp_path)}}
    (tmp_path / "kernels" / "colab").mkdir(parents=True)
    (tmp_path / "kernels" / "colab" / "kernel.json").write_text(json.dumps(kernel), "utf-8")
    monkeypatch.setenv("JUPYTER_PATH", str(tmp_path))
    chapter = nbformat.read(CHAPTERS / start.FIRST, as_version=4)
    code = [cell for cell in chapter.cells if cell.cell_type == "code"]
    code[0].source = VERSIONS + first_cell(f"--no-index --no-warn-conflicts {packages[0]}")
    code[-1].source += AFTERWARDS
    client = NotebookClient(
        chapter, timeout=300, kernel_name="colab", resources={"metadata": {"path": str(tmp_path)}}
    )
    client.execute()  # raises what a cell raises
    assert code[-1].outputs[-1].text.endswith("all well\n")


def test_the_painter_asks_colab_for_the_manager_that_shows_it(monkeypatch):
    """A widget of our own needs no line for it in a chapter: anywidget asks, once."""
    colab = SimpleNamespace(_installed_url=None)
    output = ModuleType("google.colab.output")
    output._widgets = colab
    output.enable_custom_widget_manager = lambda: setattr(colab, "_installed_url", "manager.js")
    monkeypatch.setitem(sys.modules, "google.colab.output", output)
    anywidget._util.enable_custom_widget_manager_once.cache_clear()
    _, metadata = mask_painter(Image.new("RGB", (16, 16)))._repr_mimebundle_()
    (view,) = metadata.values()
    assert view == {"colab": {"custom_widget_manager": {"url": "manager.js"}}}


def test_the_page_for_teachers_names_sections_and_exercises_that_exist():
    page = ROOT / "book" / "teaching.md"
    text = page.read_text("utf-8")
    headings = {"chapters": {}, "exercises": {}}
    for path in [*CHAPTERS.glob("[0-9]*.ipynb"), *CHAPTERS.glob("exercises/[0-9]*.ipynb")]:
        source = "\n".join(cell.source for cell in nbformat.read(path, 4).cells)
        headings[path.parent.name][path.name[:2]] = re.findall(r"^##+ (.+)", source, re.M)
    cited = re.findall(r"\b(\d\d), \*([^*]+)\*", text)
    assert len(cited) > 20
    assert [each for each in cited if each[1] not in headings["chapters"][each[0]]] == []
    exercises = [line.split()[0] for lines in headings["exercises"].values() for line in lines]
    assert [name for name in re.findall(r"\b\d\d\.\d\b", text) if name not in exercises] == []
    links = re.findall(r"\]\((\.\.[^)]+)\)", text)
    assert links and all((page.parent / link.partition("#")[0]).is_file() for link in links)
