"""Let Sphinx read the formulas in sdlearn's docstrings, which stand between dollars as in LaTeX."""

from __future__ import annotations

import re
from typing import Any

DISPLAY = re.compile(r"^( *)\$\$(.+?)\$\$[ ]*$", re.M | re.S)
INLINE = re.compile(r"(?<![\w`$])\$([^$\n]+)\$(?![\w$])")


def with_math(text: str) -> str:
    """Return a docstring with its formulas as reStructuredText has them."""

    def block(match: re.Match[str]) -> str:
        indent, formula = match[1], " ".join(match[2].split())
        return f"{indent}.. math:: {formula}\n"

    return INLINE.sub(r":math:`\1`", DISPLAY.sub(block, text))


def rewrite(_app: Any, _what: str, _name: str, _of: Any, _options: Any, lines: list[str]) -> None:
    """Change a docstring's lines in place, as autodoc asks."""
    lines[:] = with_math("\n".join(lines)).split("\n")
