"""How the bibliography is set: as usual, and after each work the chapters that name it, linked."""

from __future__ import annotations

from functools import cache
from typing import Any

from pybtex.plugin import register_plugin
from pybtex.style.formatting.plain import Style as PlainStyle
from pybtex.style.template import href, join, words
from site_source import CHAPTERS, cited, number_of

PAGES = {number_of(path): f"chapters/{path.stem}.html" for path in CHAPTERS}


@cache
def of_work() -> dict[str, list[str]]:
    """Return the chapters of each arXiv number; read once."""
    return cited()


def chapters_of(fields: Any) -> list[str]:
    """Return the chapters that name a work: by its arXiv number, or as its entry says."""
    return fields.get("chapters", "").split() or of_work().get(fields.get("eprint"), [])


class Style(PlainStyle):
    """The plain style, with chapters."""

    def format_web_refs(self, e: Any) -> Any:
        """Return the links at the end of an entry: to the work, then to the chapters."""
        links = [href[PAGES[number], number] for number in chapters_of(e.fields)]
        usual = super().format_web_refs(e)
        if not links:
            return usual
        name = "Chapters " if len(links) > 1 else "Chapter "
        return words[usual, join["(", name, join(sep=", ")[links], ")"]]


register_plugin("pybtex.style.formatting", "chapters", Style)
