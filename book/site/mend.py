"""Mend in the built pages what a screen reader trips over, and no setting of Sphinx changes.

Each entry says what is wrong with what docutils or the theme writes. What is mended once is not
found again, so that pages which Sphinx leaves as they are stay right.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

Mender = tuple[re.Pattern[str], str | Callable[[re.Match[str]], str]]

PARAMETERS = re.compile(r'<dl>\n(<dd><em class="sig-param">.*?)</dl>', re.S)


def plain_parameters(match: re.Match[str]) -> str:
    """Return a signature's lines as blocks: a list of definitions may hold no definition alone."""
    lines = match[1].replace("<dd>", '<span class="sig-line">').replace("</dd>", "</span>")
    return f'<span class="sig-lines">\n{lines}</span>'


# A heading of a table that is a formula; and a link that is one.
FORMULA = r'<span class="math notranslate nohighlight">\\\((.*?)\\\)</span>'
HEADING = re.compile(rf'<th class="head"><p>({FORMULA})</p></th>')
INSIDE = rf'(?:<span class="std std-ref">)?{FORMULA}(?:</span>)?'
LINK = re.compile(rf'<a (class="[^"]*" href="[^"#]*#([\w-]+)")>({INSIDE})</a>')


def named_heading(match: re.Match[str]) -> str:
    r"""Return a heading with a name in letters: "\hat\epsilon" is called "hat epsilon"."""
    name = " ".join(re.sub(r"[\\{}$]", " ", match[2]).split())
    heard = f'<span class="visually-hidden">{name}</span>'
    return f'<th class="head"><p aria-hidden="true">{match[1]}</p>{heard}</th>'


def named_link(match: re.Match[str]) -> str:
    """Return a link with the name of the place to which it leads."""
    return f'<a {match[1]} aria-label="{match[2].replace("-", " ")}">{match[3]}</a>'


MENDS: list[Mender] = [
    # The left sidebar's title and search button belong to no landmark.
    (
        re.compile(r'<div id="pst-primary-sidebar" class'),
        '<div id="pst-primary-sidebar" role="complementary" aria-label="The book" class',
    ),
    # The arrows in the list of pages have no name.
    (
        re.compile(r'<summary>(?=\s*<span class="toctree-toggle")'),
        '<summary aria-label="Pages of this part">',
    ),
    # A table whose first column needs no heading has an empty one.
    (re.compile(r'<th class="head">(?:<p></p>)?</th>'), '<td class="head"></td>'),
    # docutils' roles for a bibliography are deprecated, and no children of a list.
    (re.compile(r'(<div class="citation"[^>]*) role="doc-biblioentry"'), r'\1 role="listitem"'),
    (PARAMETERS, plain_parameters),
    # axe, and some screen readers, find no words in a formula.
    (HEADING, named_heading),
    (LINK, named_link),
]


def mended(page: str) -> str:
    """Return a page's HTML, mended."""
    for pattern, by in MENDS:
        page = pattern.sub(by, page)
    return page


def mend(site: Path) -> None:
    """Mend every page of a built site, in place."""
    for path in site.rglob("*.html"):
        page = path.read_text("utf-8")
        if (better := mended(page)) != page:
            path.write_text(better, "utf-8")
