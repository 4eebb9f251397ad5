"""The glossary has each term and each symbol once, and every link to it leads somewhere."""

import re
from collections import Counter
from functools import cache

import nbformat
import pytest
from build import CHAPTERS

GLOSSARY = (CHAPTERS / "glossary.md").read_text("utf-8")
LINK = re.compile(r"\(glossary\.md#([^)]*)\)")


def anchor(heading: str) -> str:
    """Return what GitHub and JupyterLab make of a heading: see github.com/Flet/github-slugger."""
    return re.sub(r"[^\w\- ]", "", heading.strip().lower()).replace(" ", "-")


def entries() -> dict[str, str]:
    """Return the terms by their anchors, with what is said about each."""
    parts = re.split(r"^### (.*)$", GLOSSARY, flags=re.MULTILINE)[1:]
    return dict(zip(map(anchor, parts[::2]), parts[1::2]))


@cache
def linked(stem: str) -> list[str]:
    """Return the anchors to which a chapter links, in order."""
    (path,) = CHAPTERS.glob(f"{stem}*.ipynb")
    cells = nbformat.read(path, 4).cells
    texts = [cell.source for cell in cells if cell.cell_type == "markdown"]
    return LINK.findall("\n".join(texts))


@pytest.mark.parametrize("path", sorted(CHAPTERS.glob("*.ipynb")), ids=lambda path: path.stem)
def test_what_a_chapter_links_to_is_there(path):
    assert set(linked(path.stem)) <= set(entries())


@pytest.mark.parametrize("term", entries())
def test_a_term_is_linked_where_it_is_introduced(term):
    chapter = re.search(r"Chapter (\d\d)", entries()[term])
    assert chapter, f"{term}: no chapter is named"
    assert term in linked(chapter[1])


def test_every_term_and_every_symbol_has_one_meaning():
    headings = re.findall(r"^### (.*)$", GLOSSARY, flags=re.MULTILINE)
    rows = re.findall(r"^\| (.*?) \|", GLOSSARY, flags=re.MULTILINE)
    symbols = [symbol for row in rows for symbol in re.findall(r"\$(.*?)\$", row)]
    assert symbols
    for what in (headings, symbols):
        assert [one for one, times in Counter(what).items() if times > 1] == []
    assert headings == sorted(headings, key=str.lower)
