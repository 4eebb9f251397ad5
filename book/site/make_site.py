"""Build the book as a site, from the committed notebooks with their outputs.

python book/site/make_site.py                 write build/site/
python book/site/make_site.py --out there     write it elsewhere
python book/site/make_site.py --only 00 07    these chapters alone, to look at a change

What ``python book/live/build.py build/live`` made becomes a part of it, if it is there; MathJax
comes from the npm packages, which are installed into build/npm if they are not there.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import sys
import zipfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from mend import mend
from node_packages import node_modules
from site_source import (
    CHAPTERS,
    EXERCISES,
    ROOT,
    Figure,
    lay_out,
    number_of,
    pack_figures,
    wheel_name,
)

HERE = Path(__file__).parent
BUILD = ROOT / "build"
# Of MathJax's 70 MB the formulas of this book need these.
MATHJAX = ["mathjax/tex-svg.js", "mathjax/a11y/assistive-mml.js", "mathjax/LICENSE"]


def run_sphinx(source: Path, out: Path, small: bool) -> int:
    """Read the sources and write the pages; return 0 where there was nothing to warn of."""
    from sphinx.cmd.build import build_main

    # -E: what an earlier build remembers does not notice every change of ours.
    arguments = ["-b", "html", "-q", "-E", "-W", "--keep-going", "-c", str(HERE)]
    arguments += ["-d", str(source.with_name(source.name + "-read"))]
    if small:
        # Chapters that are left out are linked to all the same.
        arguments += [
            "-D",
            "suppress_warnings=myst.xref_missing,toc.not_readable,toc.empty_glob,ref.doc",
        ]
    return build_main([*arguments, str(source), str(out)])


def copy_mathjax(out: Path) -> None:
    """Copy what the pages need of MathJax to where they look for it."""
    modules = node_modules()
    for name in MATHJAX:
        target = out / "_static" / name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(modules / name, target)
    fonts = modules / "@mathjax" / "mathjax-newcm-font" / "svg"
    target = out / "_static" / "mathjax" / "mathjax-newcm-font" / "svg"
    shutil.copytree(fonts, target, dirs_exist_ok=True)


def offer_originals(out: Path) -> None:
    """Let the download buttons give the notebooks as they were committed."""
    for path in [*CHAPTERS, *EXERCISES]:
        target = out / "_sources" / path.relative_to(ROOT)
        if target.exists():
            shutil.copy2(path, target)


def build_library(folder: Path) -> None:
    """Build the wheel that pip installs, with the chapters and the weights, into a folder."""
    from hatchling.build import build_wheel

    folder.mkdir(parents=True, exist_ok=True)
    here = Path.cwd()
    os.chdir(ROOT)  # hatchling builds what it stands in.
    try:
        build_wheel(str(folder))
    finally:
        os.chdir(here)


OFFERED = re.compile(
    r'(<a [^>]*href="(?:\.\./)*downloads/([^"/]+)"[^>]*>(?:(?!</a>).)*</a>)(?! \()', re.S
)


def say_sizes(out: Path) -> None:
    """Write beside each link to a file in downloads/ how large it is; once, if called again."""

    def with_size(match: re.Match[str]) -> str:
        file = out / "downloads" / match[2]
        return f"{match[1]} ({file.stat().st_size / 1e6:.0f} MB)" if file.exists() else match[1]

    for path in PAGES_WITH_OFFERS:
        page = (out / path).read_text("utf-8")
        (out / path).write_text(OFFERED.sub(with_size, page), "utf-8")


PAGES_WITH_OFFERS = ["install.html", "licence.html", "book/teaching.html"]
# In the zip: nothing offers the zip itself.
ITSELF = re.compile(r'<a [^>]*href="(?:\.\./)*downloads/sdlearn-book\.zip"[^>]*>(.*?)</a>', re.S)
OFFER = re.compile(r'<section id="the-book-in-one-file">.*?</section>', re.S)


def pack_site(out: Path, path: Path) -> None:
    """Write the whole site and the notebooks as one zip, to be opened from a folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as pack:
        for file in sorted(out.rglob("*")):
            if file.is_file() and file != path and file.name != ".buildinfo":
                small = file.suffix in {".png", ".jpg", ".zip", ".gz", ".webp", ".whl"}
                kind = zipfile.ZIP_STORED if small else zipfile.ZIP_DEFLATED
                name = Path("sdlearn-book") / file.relative_to(out)
                if file.relative_to(out).as_posix() in PAGES_WITH_OFFERS:
                    page = OFFER.sub("", file.read_text("utf-8"))
                    pack.writestr(str(name), ITSELF.sub(r"\1 (you have it before you)", page))
                else:
                    pack.write(file, name, kind)
        pack.writestr("sdlearn-book/READ-ME.txt", READ_ME.replace("WHEEL", wheel_name()))


READ_ME = """\
Open index.html. Everything but the running model works from the folder, without the net.

The running model needs a server, and any will do. With Python:

    python -m http.server 8000

in this folder, then open http://localhost:8000 in a browser.

To run the notebooks, install the library from this folder, in an environment of its own:

    python -m venv sd
    sd\\Scripts\\activate            (Linux, macOS: source sd/bin/activate)
    pip install downloads/WHEEL jupyterlab jupyterquiz
    sdlearn start my-book

The last line copies chapters and exercises into the folder my-book and opens them. pip fetches
PyTorch and JupyterLab from the net. install.html says more. The notebooks with their outputs, to
be read, are in _sources/chapters.
"""


def clear(out: Path) -> None:
    """Delete an earlier site, so that no page stays which the book no longer has."""
    if out.exists() and any(out.iterdir()):
        if not (out / "objects.inv").exists():
            sys.exit(f"{out} holds something else than a site: name another folder")
        shutil.rmtree(out)


def make(out: Path, live: Path, only: list[str] | None = None, api: bool = True) -> int:
    """Build the site; return what Sphinx returned. Arguments as on the command line."""
    has_live = (live / "index.html").exists()
    source = out.with_name(out.name + "-source")
    clear(out)
    figures: list[Figure] = lay_out(source, has_live, only, api)
    status = run_sphinx(source, out, small=only is not None or not api)
    mend(out)
    copy_mathjax(out)
    offer_originals(out)
    if has_live:
        shutil.copytree(live, out / "live", dirs_exist_ok=True)
    pack_figures(figures, out / "downloads" / "figures.zip")
    if only is None:
        build_library(out / "downloads")
    say_sizes(out)
    pack_site(out, out / "downloads" / "sdlearn-book.zip")
    say_sizes(out)  # The zip's own.
    return status


def main(arguments: list[str] | None = None) -> int:
    """Build what the command line says; return the exit status."""
    parser = argparse.ArgumentParser(description="Build the book as a site.")
    parser.add_argument("--out", type=Path, default=BUILD / "site")
    parser.add_argument("--live", type=Path, default=BUILD / "live", help="the built live page")
    parser.add_argument("--only", nargs="+", help="numbers of chapters, for a small site")
    parser.add_argument("--no-api", action="store_true", help="leave out the library's pages")
    parser.add_argument("--source", help="a trial of SOURCE in book/build.py")
    options = parser.parse_args(arguments)
    if options.source:
        os.environ["SDLEARN_SITE_SOURCE"] = options.source
    for number in options.only or []:
        if number not in map(number_of, CHAPTERS):
            sys.exit(f"There is no chapter {number}.")
    status = make(options.out.resolve(), options.live, options.only, not options.no_api)
    print(f"{options.out}: {'written' if status == 0 else 'Sphinx had something to say'}")
    return status


if __name__ == "__main__":
    sys.exit(main())
