"""Settings of Sphinx for the book's site; ``make_site.py`` calls it."""

from __future__ import annotations

import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

import bibliography  # noqa: F401  # It makes its style known.
from docstrings import rewrite
from repository import theme_options
from sphinx.application import Sphinx

project = "sdlearn"
author = "The sdlearn authors"
copyright = "the sdlearn authors; text and figures CC BY 4.0, code MIT"  # noqa: A001
html_title = "Stable Diffusion, taken apart"
language = "en"

extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx.ext.mathjax",
    "sphinx_design",
    "sphinx_copybutton",
    "sphinxcontrib.bibtex",
]

# The notebooks are shown as they were committed.
nb_execution_mode = "off"
nb_code_prompt_show = "Show the {type}"
nb_code_prompt_hide = "Hide the {type}"
myst_enable_extensions = ["colon_fence", "dollarmath"]
myst_heading_anchors = 3

autodoc_typehints = "signature"
# As written: a value could name a folder of the machine on which the site was built.
autodoc_preserve_defaults = True
autodoc_typehints_format = "short"
python_use_unqualified_type_names = True
python_maximum_signature_line_length = 80
napoleon_numpy_docstring = False
napoleon_use_rtype = False

bibtex_bibfiles = [str(Path(__file__).parent / "references.bib")]
bibtex_reference_style = "author_year"
bibtex_default_style = "chapters"

# Formulas are drawn by MathJax, which the site serves itself. SVG needs no font files, so that a
# page opened from a folder looks the same.
mathjax_path = "mathjax/tex-svg.js"
mathjax_config_path = "mathjax.js"
myst_update_mathjax = False

html_theme = "sphinx_book_theme"
html_theme_options = theme_options(os.environ.get("SDLEARN_SITE_SOURCE"))
templates_path = ["templates"]
html_static_path = ["static"]
html_css_files = ["site.css"]
html_js_files = ["site.js"]
html_copy_source = True
html_show_sourcelink = False
html_use_index = True
html_domain_indices = False
copybutton_exclude = ".linenos, .gp, .go"
pygments_style = "a11y-high-contrast-light"
html_favicon = "static/favicon.svg"
html_context = {"default_mode": "auto"}
napoleon_use_ivar = True
toc_object_entries_show_parents = "hide"


def setup(app: Sphinx) -> None:
    """Add what no extension does. Before napoleon (500), which would read a formula's lines."""
    app.connect("autodoc-process-docstring", rewrite, priority=400)
