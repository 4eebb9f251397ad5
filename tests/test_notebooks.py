"""Every committed chapter is one that `make chapters` wrote, and a spoilt one is refused."""

import importlib.util
import re
from pathlib import Path
from unittest.mock import Mock

import nbformat
import pytest
from build import CHAPTERS, begin, clean, execute, first_cell, problems
from conftest import random_pipeline
from IPython.core.inputtransformer2 import TransformerManager
from nbclient.exceptions import CellExecutionError
from nbformat import v4

COMMITTED = sorted(CHAPTERS.glob("*.ipynb"))


@pytest.mark.parametrize("path", COMMITTED, ids=lambda path: path.stem)
def test_chapter_was_run_and_cleaned(path):
    assert problems(path) == []


@pytest.fixture(scope="session")
def another_model(tmp_path_factory):
    """A folder of another size: four resolutions, pictures of 64 × 64, random weights."""
    folder = tmp_path_factory.mktemp("another-model")
    random_pipeline(layers_per_block=1).save_pretrained(folder)
    return folder


@pytest.mark.parametrize("path", COMMITTED, ids=lambda path: path.stem)
def test_chapter_runs_on_another_model(path, another_model, monkeypatch):
    monkeypatch.setenv("SDLEARN_MODEL", str(another_model))
    execute(nbformat.read(path, 4))  # raises what a cell raises


@pytest.mark.parametrize("path", COMMITTED, ids=lambda path: path.stem)
def test_the_readme_says_how_long_a_chapter_takes_to_read(path):
    minutes = re.search(r"Reading: (\d+) minutes", path.read_text("utf-8"))[1]
    readme = (CHAPTERS.parent / "README.md").read_text("utf-8")
    (row,) = re.findall(rf"^\| .*{path.name}.*", readme, re.M)
    assert f"| {minutes} |" in row


def notebook():
    """A chapter with one cell of each kind, as `make chapters` leaves it."""
    return clean(
        v4.new_notebook(
            cells=[
                v4.new_markdown_cell("# One\n![a red cat](cat.png)"),
                v4.new_code_cell(first_cell(), execution_count=7),
                v4.new_code_cell(
                    "print(1)",
                    execution_count=8,
                    outputs=[v4.new_output("stream", name="stdout", text="1\n")],
                ),
            ]
        )
    )


def problems_of(nb, folder: Path) -> str:
    path = folder / "00-x.ipynb"
    nbformat.write(nb, path)
    return "; ".join(problems(path))


def test_a_clean_chapter_has_no_problems(tmp_path):
    assert problems_of(notebook(), tmp_path) == ""


def not_run(nb):
    nb.cells[2].execution_count = None


def run_in_another_order(nb):
    nb.cells[2].execution_count = 4


def widget_state(nb):
    nb.metadata.widgets = {"application/vnd.jupyter.widget-state+json": {}}


def widget_view(nb):
    view = {"application/vnd.jupyter.widget-view+json": {"model_id": "1"}, "text/plain": "slider"}
    nb.cells[2].outputs = [v4.new_output("display_data", data=view)]


def error(nb):
    nb.cells[2].outputs = [v4.new_output("error", ename="E", evalue="e", traceback=["E: e"])]


def printed_traceback(nb):
    nb.cells[2].outputs[0].text = "Traceback (most recent call last):\n"


def progress_bar(nb):
    nb.cells[2].outputs = [v4.new_output("stream", name="stderr", text=" 10%|#   | 1/10")]


def path_in_output(nb):
    nb.cells[2].outputs[0].text = "/".join(["saved to ", "home", "ada", "cat.png"])


def path_in_source(nb):
    nb.cells[2].source = "open('" + "\\".join(["C:", "Users", "Ada", "cat.png"]) + "')"


def another_first_cell(nb):
    nb.cells[1].source = first_cell("another")


def no_first_cell(nb):
    del nb.cells[1]


def too_big(nb):
    nb.cells[2].outputs[0].text = "1" * 2_000_001


def too_long(nb):
    nb.cells[2].source = "\n".join(["print(1)"] * 16)


def no_alt_text(nb):
    nb.cells[0].source = "![](cat.png)"


def picture_without_alt_text(nb):
    nb.cells[2].outputs = [v4.new_output("display_data", data={"image/png": "iVBORw0KGgo="})]


def html_picture_without_alt_text(nb):
    html = '<img width="9" src="data:image/png;base64,iVBORw0KGgo=">'
    nb.cells[2].outputs = [v4.new_output("display_data", data={"text/html": html})]


def html_picture(nb):
    html = '<img alt="a cat" src="data:image/png;base64,iVBORw0KGgo=">'
    nb.cells[2].outputs = [v4.new_output("display_data", data={"text/html": html})]


def timestamps(nb):
    nb.cells[2].metadata.execution = {"iopub.execute_input": "2026-01-01T00:00:00Z"}


@pytest.mark.parametrize(
    ("spoil", "word"),
    [
        (not_run, "not run"),
        (run_in_another_order, "make chapters"),
        (widget_state, "widget state"),
        (widget_view, "widget view"),
        (error, "traceback"),
        (printed_traceback, "traceback"),
        (progress_bar, "progress bar"),
        (path_in_output, "absolute path"),
        (path_in_source, "absolute path"),
        (another_first_cell, "first code cell"),
        (no_first_cell, "first code cell"),
        (too_big, "over 2.0 MB"),
        (too_long, "16 lines"),
        (no_alt_text, "alt text"),
        (picture_without_alt_text, "alt text"),
        (html_picture_without_alt_text, "alt text"),
        (html_picture, "HTML"),
        (timestamps, "make chapters"),
    ],
)
def test_a_spoilt_chapter_is_refused(spoil, word, tmp_path):
    nb = notebook()
    spoil(nb)
    assert word in problems_of(nb, tmp_path)


def test_cleaning_keeps_what_is_printed_and_drops_what_differs():
    nb = notebook()
    widget_state(nb)
    widget_view(nb)
    nb.cells[2].outputs.append(v4.new_output("stream", name="stdout", text="1\n"))
    cleaned = clean(nb)
    assert "widgets" not in cleaned.metadata
    assert cleaned.cells[2].outputs[0].data == {"text/plain": "slider"}
    assert cleaned.cells[2].outputs[1].text == "1\n"
    assert clean(cleaned) == cleaned


@pytest.mark.parametrize("spoil", [another_first_cell, no_first_cell])
def test_a_chapter_is_given_its_first_cell(spoil):
    nb = notebook()
    spoil(nb)
    begin(nb)
    assert [cell.source for cell in nb.cells[1:]] == [first_cell(), "print(1)"]


def test_first_cell_stops_or_installs_only_where_sdlearn_is_missing(monkeypatch):
    def magics(source: str | None) -> list[str]:
        shell = Mock()
        code = TransformerManager().transform_cell(first_cell(source))
        exec(code, {"get_ipython": lambda: shell})
        return [" ".join(call.args) for call in shell.run_line_magic.call_args_list]

    assert magics(None) == magics("git+https://example.org/sdlearn") == []
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ModuleNotFoundError, match=r"pip install -e \."):
        magics(None)
    assert magics("sdlearn") == ["pip install --quiet sdlearn"]


LOAD = "pipe = sdlearn.load()"
HALVE = "\nfor weight in pipe.{}.parameters():\n    weight.data.mul_(0.5)"
WRONG = [  # chapter, what stands there, and what is wrong in its place: a formula, or the model
    ("01", LOAD, LOAD + HALVE.format("unet")),
    ("02", LOAD, LOAD + HALVE.format("vae")),
    ("04", LOAD, LOAD + HALVE.format("text_encoder")),
    ("04", "scores = Q @ K.T / Q.shape[1] ** 0.5", "scores = Q @ K.T / Q.shape[1]"),
    ("05", "x = (1 - beta) ** 0.5 * x + beta**0.5 * kick", "x = (1 - beta) * x + beta**0.5 * kick"),
]


@pytest.mark.parametrize(("chapter", "right", "wrong"), WRONG)
def test_a_chapter_fails_where_its_text_would_no_longer_be_true(chapter, right, wrong):
    """The ranges of ``measured`` and the asserts of the chapters can be left."""
    (path,) = CHAPTERS.glob(f"{chapter}*.ipynb")
    nb = nbformat.read(path, 4)
    (cell,) = [cell for cell in nb.cells if cell.cell_type == "code" and right in cell.source]
    cell.source = cell.source.replace(right, wrong)
    with pytest.raises(CellExecutionError, match="AssertionError"):
        execute(nb)
