"""Where the book's repository lies, read from the one setting of it: SOURCE in book/build.py."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from build import SOURCE

# What pip installs from: "git+https://host/owner/name", perhaps with ".git" and "@branch".
ADDRESS = re.compile(r"git\+(https://[^/]+/[^/]+/[^/@]+?)(?:\.git)?(?:@([^@#]+))?(?:#.*)?$")


def address(source: str | None = SOURCE) -> tuple[str, str] | None:
    """Return the repository's address and branch, or None where the setting names none."""
    found = ADDRESS.match(source or "")
    return (found[1], found[2] or "main") if found else None


def theme_options(source: str | None = None) -> dict[str, Any]:
    """Return the options of the theme. source: in place of SOURCE, for a trial.

    Without an address there are buttons to download a page and to print it; with one, those that
    open a chapter on Colab and on Binder, and the repository's own.
    """
    options: dict[str, Any] = {
        "home_page_in_toc": False,
        "show_navbar_depth": 1,
        "show_toc_level": 2,
        "use_download_button": True,
        "use_fullscreen_button": False,
        # One search button is enough: the one above the list of chapters.
        "navbar_persistent": [],
        "pygments_light_style": "a11y-high-contrast-light",
        "pygments_dark_style": "a11y-high-contrast-dark",
    }
    if where := address(source or SOURCE):
        options |= {
            "repository_url": where[0],
            "repository_branch": where[1],
            "use_repository_button": True,
            "launch_buttons": {
                "colab_url": "https://colab.research.google.com",
                "binderhub_url": "https://mybinder.org",
                "notebook_interface": "jupyterlab",
            },
        }
    return options
