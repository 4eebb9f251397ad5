"""Lay out the folder that Sphinx reads: the committed files, with what a page needs beside them.

Nothing is run and no committed file is touched. A chapter's copy differs from the chapter in what
a page cannot do as Jupyter does it: a widget, a quiz, a folded cell; and each figure has a number.
"""

from __future__ import annotations

import base64
import csv
import html
import io
import json
import os
import re
import shutil
import sys
import tomllib
import zipfile
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlencode

import nbformat

sys.path.insert(0, str(Path(__file__).parents[1]))

from api_pages import api_pages
from build import SOURCE
from mdit_py_plugins.anchors.index import slugify
from nbformat import NotebookNode, v4

ROOT = Path(__file__).parents[2]
PAGES = Path(__file__).parent / "pages"
CHAPTERS = sorted((ROOT / "chapters").glob("*.ipynb"))
EXERCISES = sorted((ROOT / "chapters" / "exercises").glob("*.ipynb"))
QUIZZES = ROOT / "sdlearn" / "exercises" / "quizzes"

ARXIV = re.compile(r"(?:arxiv\.org/abs/|arXiv )(\d{4}\.\d{4,5})")
HEADING = re.compile(r"^#{1,3} +(.+)$", re.M)
OF_CHAPTER = re.compile(r"\*Chapter (\d\d)\.\*$", re.M)
OF_SYMBOL = re.compile(r"\| (\d\d) \|$", re.M)
JUPYTER_ANCHOR = re.compile(r"\]\(#([^)]+)\)")
QUIZ = re.compile(r'^quiz\("(\d\d)"\)$')
# What an output says instead of a widget: the repr of an ipywidgets box, or of one of our own.
WIDGET = re.compile(r"^(?:VBox|HBox|MaskPainter|TraceExplorer)\b")
EXPLORER = re.compile(r"^TraceExplorer of (['\"])(.+)\1: (\d+) steps, (no )?heat maps")
SEED = re.compile(r"\bseed=(\d+)")

# Where the running model stands in a chapter: after the cell that holds these words, in the state
# that these parameters name. The words beside it say what to try.
LIVE = {
    "00": (
        'prompt_explorer(pipe, "a pink turtle',
        {"prompt": "a pink turtle in a meadow at night", "seed": 7},
        "The model runs here, in this page. Change a word of the prompt, or the seed, and draw.",
    ),
    "07": (
        "choices(show, blanked=list(sets)",
        {"prompt": "a blue fox in the snow at night", "seed": 22, "word": "fox"},
        "The same on the running model: point at a word to see where it is read, by layer and by "
        "step; blank or weight it; turn guidance.",
    ),
    "09": (
        'alt="One round: latents, two predictions',
        {"prompt": "an orange fox in the snow at night", "seed": 22, "step": 0},
        "The same loop, running: go through it step by step, and watch the latents, both answers "
        "and the predicted picture.",
    ),
}


class Figure(NamedTuple):
    """A picture of a chapter: its number, such as "7.3", its alt text and its bytes."""

    number: str
    alt: str
    png: bytes

    @property
    def file(self) -> str:
        """The name it has in the pack of figures, such as "07-03.png"."""
        chapter, _, of_chapter = self.number.partition(".")
        return f"{int(chapter):02d}-{int(of_chapter):02d}.png"


def number_of(path: Path) -> str:
    """Return "07" of a chapter's file, or of its exercises'."""
    return path.name[:2]


def title_of(path: Path) -> str:
    """Return the first heading of a notebook."""
    notebook = nbformat.read(path, as_version=4)
    return next(
        heading[1]
        for cell in notebook.cells
        if cell.cell_type == "markdown" and (heading := HEADING.search(cell.source))
    )


# A chapter's copy


def picture_of(cell: NotebookNode) -> dict[str, Any] | None:
    """Return the output of a cell that is a picture, if there is one."""
    outputs = cell.get("outputs", [])
    return next((each for each in outputs if "image/png" in each.get("data", {})), None)


def number_figures(notebook: NotebookNode, chapter: str) -> list[Figure]:
    """Give each picture its number, and its alt text as alt text and as caption, in place."""
    figures: list[Figure] = []
    for cell in notebook.cells:
        if (output := picture_of(cell)) is None:
            continue
        alt = output["metadata"]["image/png"]["alt"]
        number = f"{int(chapter)}.{len(figures) + 1}"
        png = base64.b64decode(output["data"]["image/png"])
        figures.append(Figure(number, alt, png))
        cell.metadata["mystnb"] = {
            "image": {"alt": alt},
            "figure": {
                "caption": f"**Figure {number}** · {as_sentence(alt)}",
                "name": "figure-" + number.replace(".", "-"),
            },
        }
    return figures


def as_sentence(alt: str) -> str:
    """Return an alt text as a caption: with a full stop, and no sign that Markdown reads."""
    plain = re.sub(r"([\\`*_<>\[\]{}$])", r"\\\1", alt[:1].upper() + alt[1:])
    return plain if plain.endswith((".", "!", "?")) else plain + "."


def fold(cell: NotebookNode) -> None:
    """Fold what the notebook folds, and the first cell, which is the same in all."""
    tags = cell.metadata.setdefault("tags", [])
    hidden = cell.metadata.get("jupyter", {})
    if hidden.get("source_hidden"):
        tags.append("hide-input")
    if hidden.get("outputs_hidden"):
        tags.append("hide-output")
    if cell.source.startswith("import importlib.util"):
        tags.append("hide-input")
        cell.metadata["mystnb"] = {
            "code_prompt_show": "Show the cell with which every notebook begins",
            "code_prompt_hide": "Hide the cell with which every notebook begins",
        }


def without_widget(cell: NotebookNode) -> bool:
    """Take the words that stand for a widget out of a cell; say whether there were any."""
    kept = [
        output
        for output in cell.outputs
        if not WIDGET.match("".join(output.get("data", {}).get("text/plain", "")))
    ]
    found = len(kept) < len(cell.outputs)
    cell.outputs = kept
    return found


def explorer_box(cell: NotebookNode, live: bool) -> NotebookNode | None:
    """Return what stands for an explorer on a page, or None if the cell shows none.

    With the running model it leads to the same picture there; to be called before
    ``without_widget``, which takes the words away that say which picture it is.
    """
    said = ["".join(output.get("data", {}).get("text/plain", "")) for output in cell.outputs]
    found = next((match for text in said if (match := EXPLORER.match(text))), None)
    if found is None:
        return None
    words = "" if found[4] else ", and point at a word to see where it was read"
    box = f"In a running notebook an explorer stands here: go through the {found[3]} steps{words}."
    if live and (seed := SEED.search(cell.source)):
        state = urlencode({"prompt": found[2], "seed": seed[1], "steps": found[3]})
        url = html.escape(f"../live/index.html#{state}")
        box += f' <a href="{url}">Take the same picture apart in the page</a>.'
    else:
        box += " It needs a notebook: download the chapter with the button at the top of the page."
    return v4.new_markdown_cell(f":::{{note}}\n:class: widget\n{box}\n:::")


def embedded(url: str, text: str) -> str:
    """Return the running model as a part of a page, with a link to a page of its own."""
    url = html.escape(url)
    return (
        f'<section class="live" aria-label="The running model">\n<p>{html.escape(text)}</p>\n'
        f'<iframe src="{url}" loading="lazy" title="Stable Diffusion, running in this page">'
        f'</iframe>\n<p><a href="{url}">Open it on a page of its own</a></p>\n</section>'
    )


def live_cell(chapter: str) -> NotebookNode:
    """Return the running model for a chapter, in the state of which the chapter speaks."""
    _, state, text = LIVE[chapter]
    return v4.new_markdown_cell(embedded(f"../live/index.html#{urlencode(state)}", text))


def live_page(text: str, live: bool) -> str:
    """Return the page about the running model with the model in it, if it was built."""
    words = "It wants a computer or a newer phone, and fetches its parts, 40 MB, once."
    missing = "*It was not built into this copy of the site.*"
    return text.replace("LIVE", embedded("live/index.html", words) if live else missing)


NO_WIDGET = """:::{note}
:class: widget
The controls of this cell move in Jupyter: download this chapter with the button at the top of the
page, or try the model LIVE.
:::"""


def site_edition(path: Path, live: bool) -> tuple[NotebookNode, list[Figure]]:
    """Return a chapter as the site shows it, and its figures. live: the running model is there."""
    notebook = nbformat.read(path, as_version=4)
    chapter = number_of(path)
    figures = number_figures(notebook, chapter)
    cells = []
    for cell in notebook.cells:
        cells.append(cell)
        if cell.cell_type == "markdown":
            cell.source = JUPYTER_ANCHOR.sub(lambda m: f"](#{m[1].lower()})", cell.source)
        else:
            fold(cell)
            box = explorer_box(cell, live)
            if without_widget(cell) and box is None and not (live and chapter in LIVE):
                where = "[in the page](../live-model.md)" if live else "there"
                cells.append(v4.new_markdown_cell(NO_WIDGET.replace("LIVE", where)))
            if box is not None:
                cells.append(box)
        if live and chapter in LIVE and LIVE[chapter][0] in cell.source:
            cells.append(live_cell(chapter))
    notebook.cells = cells
    return notebook, figures


# Exercises


def quiz_cell(chapter: str) -> NotebookNode:
    """Return a quiz as HTML; static/site.js makes its answers answer."""
    questions = json.loads((QUIZZES / f"{chapter}.json").read_text("utf-8"))
    parts = [f'<div class="quiz" id="quiz-{chapter}">']
    for number, question in enumerate(questions, 1):
        name = f"quiz-{chapter}-{number}"
        parts.append(f'<div role="group" aria-labelledby="{name}" class="quiz-question">')
        parts.append(f'<p id="{name}"><b>{number}.</b> {html.escape(question["question"])}</p>')
        parts.append("<ul>")
        for answer in question["answers"]:
            right = "right" if answer["correct"] else "wrong"
            parts.append(
                f'<li><button type="button" data-answer="{right}" aria-expanded="false">'
                f"{html.escape(answer['answer'])}</button>"
                f'<p class="quiz-{right}" hidden><b>{right.capitalize()}.</b> '
                f"{html.escape(answer['feedback'])}</p></li>"
            )
        parts += ["</ul>", '<p class="quiz-said" role="status"></p>', "</div>"]
    parts += [f'<p class="quiz-score" role="status" data-of="{len(questions)}"></p>', "</div>"]
    return v4.new_markdown_cell("\n".join(parts))


def exercises_edition(path: Path) -> NotebookNode:
    """Return a chapter's exercises as the site shows them, the quiz to be answered in the page."""
    notebook = nbformat.read(path, as_version=4)
    for index, cell in enumerate(notebook.cells):
        if cell.cell_type != "code":
            continue
        fold(cell)
        if asked := QUIZ.match(cell.source.strip()):
            notebook.cells[index] = quiz_cell(asked[1])
    return notebook


def exercises_index() -> str:
    """Return the page that lists the exercises of all chapters."""
    lines = [f"{title_of(path)} <{path.stem}>" for path in CHAPTERS]
    return "\n".join(
        [
            "# Exercises",
            "",
            "Each chapter ends with exercises and a quiz. Here you can read them, open the hints",
            "and the solutions one at a time, and take the quiz. To have `check` say what is wrong",
            "with your answer, open them in Jupyter: the button at the top downloads a notebook,",
            "and it runs wherever [sdlearn is installed](../../install.md).",
            "",
            "```{toctree}",
            ":maxdepth: 1",
            "",
            *lines,
            "```",
        ]
    )


# Glossary, and who cites what


def linked_glossary(text: str) -> str:
    """Make each "Chapter 05." of the glossary a link."""
    files = {number_of(path): path.name for path in CHAPTERS}
    text = OF_CHAPTER.sub(lambda m: f"*[Chapter {m[1]}]({files[m[1]]}).*", text)
    return OF_SYMBOL.sub(lambda m: f"| [{m[1]}]({files[m[1]]}) |", text)


def cited(paths: list[Path] = CHAPTERS) -> dict[str, list[str]]:
    """Return for each arXiv id the numbers of the chapters that name it."""
    found: dict[str, list[str]] = {}
    for path in paths:
        cells = nbformat.read(path, as_version=4).cells
        text = "\n".join(cell.source for cell in cells if cell.cell_type == "markdown")
        for each in sorted(set(ARXIV.findall(text))):
            found.setdefault(each, []).append(number_of(path))
    return found


# All together


def write(path: Path, text: str) -> None:
    """Write a file, and the folders it is in."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, "utf-8")


def copy(source: Path, target: Path) -> None:
    """Copy a file, and make the folders it is in."""
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copy2(source, target)


def wheel_name() -> str:
    """Return the file name of the wheel that is built from this repository."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    return f"sdlearn-{project['version']}-py3-none-any.whl"


def install_page(text: str) -> str:
    """Return the page on installing with what pip installs: SOURCE, or the wheel beside it."""
    source = os.environ.get("SDLEARN_SITE_SOURCE") or SOURCE
    if source:
        text = text.replace("GET", "In a terminal:").replace(" WHY", "")
    text = text.replace("GET", GET).replace("WHY", WHY)
    return text.replace("WHAT", source or wheel_name()).replace("WHEEL", wheel_name())


GET = """Get <a href="downloads/WHEEL">the library with all chapters and the model</a>. In a \
terminal, in the folder where that file lies:"""
WHY = """You need the file because the book has no public address yet. Once it has one (`SOURCE` \
in the repository's `book/build.py`), the third line names it, and there is nothing to get first."""


def table_of_chapters() -> str:
    """Return README.md's table of chapters, with the minutes that each takes."""
    readme = (ROOT / "README.md").read_text("utf-8")
    table = re.search(r"^\| \| chapter \| minutes \|.*?(?=\n\n)", readme, re.M | re.S)
    assert table, "README.md has no table of chapters"
    return table[0]


# Where a page names a chapter, perhaps with its section; and an exercise. Not what is a link.
NAMED_SECTION = re.compile(r"(?<!\[)\bchapter (\d\d)(?:, \*([^*]+)\*)?")
NAMED_EXERCISE = re.compile(r"(?<![\d.\[])(0\d|1[0-7])\.(\d)(?![\d.]?\d)")


def headings_of(path: Path) -> list[str]:
    """Return all headings of a notebook."""
    cells = nbformat.read(path, as_version=4).cells
    found = [HEADING.findall(cell.source) for cell in cells if cell.cell_type == "markdown"]
    return [each.strip() for headings in found for each in headings]


LIVE_LINK = re.compile(r"\[([^\]]+)\]\((live/index\.html[^)]*)\)")


def linked_teaching(text: str, live: bool = True) -> str:
    """Make each "chapter 05, *A drop of ink*" and "05.1" of the page for teachers a link."""
    chapters = {number_of(path): path for path in CHAPTERS}
    exercises = {number_of(path): path for path in EXERCISES}
    sections = {number: headings_of(path) for number, path in chapters.items()}
    tasks = {number: headings_of(path) for number, path in exercises.items()}

    def to_section(match: re.Match[str]) -> str:
        place = f"#{slugify(match[2])}" if match[2] in sections[match[1]] else ""
        return f"[{match[0]}](../chapters/{chapters[match[1]].name}{place})"

    def to_exercise(match: re.Match[str]) -> str:
        heading = next((each for each in tasks[match[1]] if each.startswith(match[0])), None)
        place = f"#{slugify(heading)}" if heading else ""
        return f"[{match[0]}](../chapters/exercises/{exercises[match[1]].name}{place})"

    parts = text.split("```")  # Every second one is code.
    parts[::2] = [
        NAMED_EXERCISE.sub(to_exercise, NAMED_SECTION.sub(to_section, part)) for part in parts[::2]
    ]
    text = "```".join(parts)
    to_live = r'<a href="../\2">\1</a>' if live else r"[\1](../live-model.md)"
    text = LIVE_LINK.sub(to_live, text)
    text = text.replace("../README.md#chapters", "../index.md#chapters")
    text = text.replace("../README.md#other-ways-to-install", "../install.md")
    return text.replace("\n## How much memory", FOR_A_CLASS + "\n## How much memory")


FOR_A_CLASS = """
**To hand out.** <a href="../downloads/sdlearn-book.zip">The whole site, with the live page, the \
notebooks and the library, in one file</a>; <a href="../downloads/figures.zip">all figures as \
PNG</a>; and [how to install](../install.md).
"""


def write_pages(folder: Path, live: bool) -> None:
    """Write the pages that belong to the site alone, and the one for teachers."""
    teaching = ROOT / "book" / "teaching.md"
    for path in PAGES.glob("*.md"):
        text = path.read_text("utf-8")
        if path.stem == "live-model":
            text = live_page(text, live)
        if path.stem == "install":
            text = install_page(text)
        if path.stem == "index":
            text = text.replace("TABLE", table_of_chapters())
        write(folder / path.name, text)
    write(folder / "book" / "teaching.md", linked_teaching(teaching.read_text("utf-8"), live))


def lay_out(
    folder: Path, live: bool = False, only: list[str] | None = None, api: bool = True
) -> list[Figure]:
    """Write what Sphinx reads into a folder, and return the figures of all chapters in it.

    Args:
        folder: An earlier layout in it is deleted.
        live: The site has the running model in ``live/``.
        only: Numbers of chapters, such as ["00", "07"], for a small site; None for the book.
        api: With the library's pages, for which PyTorch has to be imported.
    """
    shutil.rmtree(folder, ignore_errors=True)
    figures = []
    for path in CHAPTERS:
        if only is None or number_of(path) in only:
            notebook, found = site_edition(path, live)
            figures += found
            write(folder / "chapters" / path.name, nbformat.writes(notebook))
    for path in EXERCISES:
        if only is None or number_of(path) in only:
            text = nbformat.writes(exercises_edition(path))
            write(folder / "chapters" / "exercises" / path.name, text)
    write(folder / "chapters" / "exercises" / "index.md", exercises_index())
    glossary = (ROOT / "chapters" / "glossary.md").read_text("utf-8")
    write(folder / "chapters" / "glossary.md", linked_glossary(glossary))
    files = {number_of(path): path.stem for path in CHAPTERS}
    for name, text in api_pages(files).items() if api else ():
        write(folder / "api" / f"{name}.rst", text)
    write_pages(folder, live)
    copy(ROOT / "chapters" / "exercises" / "lesson.md", folder / "chapters/exercises/lesson.md")
    for path in ROOT.glob("sdlearn/models/*/*"):
        if path.name == "README.md" or path.suffix == ".jpg":
            copy(path, folder / path.relative_to(ROOT))
    for path in ROOT.glob("chapters/figures/*"):
        copy(path, folder / path.relative_to(ROOT))
    return figures


def pack_figures(figures: list[Figure], path: Path) -> None:
    """Write all figures, their alt texts and how to name their source, as one zip file."""
    table = io.StringIO()
    rows = csv.writer(table, lineterminator="\n")
    rows.writerow(["file", "figure", "shows"])
    rows.writerows([each.file, each.number, each.alt] for each in figures)
    path.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path, "w") as pack:
        pack.writestr("figures.csv", table.getvalue())
        pack.writestr("LICENCE.txt", ATTRIBUTION + "\n")
        for each in figures:
            pack.writestr(each.file, each.png)


ATTRIBUTION = (
    "Figure from “sdlearn: a textbook you run on Stable Diffusion”, by the sdlearn authors, "
    "CC BY 4.0 (https://creativecommons.org/licenses/by/4.0/)."
)
