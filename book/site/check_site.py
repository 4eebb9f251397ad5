"""Look at the built site as its readers do: follow every link, open every page in a browser.

python book/site/check_site.py                  everything, of build/site
python book/site/check_site.py --quick there    links, and one page of each kind, of another

Lists what is wrong: a link that leads nowhere, a request to another address, a message of the
console, what axe-core finds, a page wider than a phone. Without Chromium only links are checked.
"""

from __future__ import annotations

import argparse
import functools
import http.server
import shutil
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

# One page of each kind; a small site has not all of them.
KINDS = [
    "index.html",
    "chapters/00-start-here.html",
    "chapters/05-forward-noising.html",
    "chapters/exercises/00-start-here.html",
    "chapters/glossary.html",
    "api/index.html",
    "api/sampling.html",
    "search.html?q=guidance",
    "bibliography.html",
    "owes.html",
    "live-model.html",
]
CHROMIUM = ["--no-sandbox", "--disable-gpu", "--disable-background-networking"]
CHROMIUM += ["--disable-component-update", "--disable-sync"]
PHONE, DESK = {"width": 360, "height": 740}, {"width": 1280, "height": 900}


class Page(HTMLParser):
    """What a page offers to link to, and where it leads."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.anchors: set[str] = set()
        self.leads: list[str] = []  # Links a reader may follow.
        self.loads: list[str] = []  # What the browser fetches by itself.
        self.images_without_alt: list[str] = []
        text = path.read_text("utf-8")
        self.names_this_machine = str(Path(__file__).parents[2]) in text
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Note the attributes that matter here."""
        of = dict(attrs)
        self.anchors |= {of[name] or "" for name in ("id", "name") if name in of}
        if tag == "a" and of.get("href"):
            self.leads.append(of["href"] or "")
        if tag == "link" and of.get("rel") not in ("canonical", "license"):
            self.loads.append(of.get("href") or "")
        if tag in ("script", "img", "iframe", "source") and of.get("src"):
            self.loads.append(of["src"] or "")
        if tag == "img" and not of.get("alt"):
            self.images_without_alt.append(of.get("src") or "")


def broken_links(site: Path) -> list[str]:
    """Return what is wrong with links, and with what the pages load, without a browser."""
    pages = {path: Page(path) for path in site.rglob("*.html") if "_static" not in path.parts}
    found = []
    for path, page in pages.items():
        name = path.relative_to(site)
        found += [f"{name}: no alt text for {each}" for each in page.images_without_alt]
        if page.names_this_machine:
            found.append(f"{name} names a folder of this machine")
        for url in page.loads + page.leads:
            parts = urlsplit(url)
            if parts.scheme in ("http", "https", "mailto", "data"):
                if url in page.loads and parts.scheme != "data":
                    found.append(f"{name} loads {url}")
                continue
            target = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            target = target / "index.html" if target.is_dir() else target
            if not target.exists():
                found.append(f"{name}: {url} is not there")
            elif parts.fragment and target in pages:
                anchor = unquote(parts.fragment)
                if anchor not in pages[target].anchors and "live" not in target.parts:
                    found.append(f"{name}: {url} has no such place")
    return sorted(set(found))


@contextmanager
def served(site: Path) -> Iterator[str]:
    """Serve a folder as any plain server does, and give its address."""

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_: Any) -> None:
            """Say nothing."""

    class Server(http.server.ThreadingHTTPServer):
        def handle_error(self, *_: Any) -> None:
            """A browser that leaves a page before it has all of it is no error."""

    handler = functools.partial(Quiet, directory=str(site))
    with Server(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/"
        server.shutdown()


@contextmanager
def browser() -> Iterator[Any]:
    """Start the Chromium that is installed."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        started = playwright.chromium.launch(
            executable_path=shutil.which("chromium"), args=CHROMIUM
        )
        yield started
        started.close()


@contextmanager
def opened(started: Any, size: dict[str, int], scheme: str, base: str) -> Iterator[tuple[Any, Any]]:
    """Give a browser's tab, and the list into which it says what goes wrong."""
    context = started.new_context(viewport=size, color_scheme=scheme, reduced_motion="reduce")
    tab = context.new_page()
    said: list[str] = []

    def note(words: str) -> None:
        said.append(f"{tab.url.removeprefix(base)} ({scheme}, {size['width']} px) {words}")

    def console(message: Any) -> None:
        if message.type == "error":
            note(f"says: {message.text}")

    def response(answer: Any) -> None:
        if answer.status >= 400:
            note(f"lacks {answer.url}")

    def request(asked: Any) -> None:
        if not asked.url.startswith((base, "data:", "blob:")):
            note(f"asks for {asked.url}")

    tab.on("console", console)
    tab.on("pageerror", lambda error: note(f"fails: {error}"))
    tab.on("response", response)
    tab.on("request", request)
    tab.said = note
    yield tab, said
    context.close()


def look_at(tab: Any, url: str) -> None:
    """Open a page, and wait until its formulas are drawn."""
    tab.goto(url, wait_until="load")
    tab.wait_for_function("!window.MathJax?.startup?.promise || document.readyState == 'complete'")
    tab.evaluate("window.MathJax?.startup?.promise")
    # Half-way through a change of colour the contrast is not what a reader sees.
    tab.add_style_tag(content="* { transition: none !important; animation: none !important }")


def violations(tab: Any) -> list[str]:
    """Return what axe-core finds on the page that is open."""
    from axe_playwright_python.sync_playwright import Axe

    options = {"resultTypes": ["violations"], "iframes": False, "preload": False}
    results = Axe().run(tab, options=options)
    return [
        f"axe: {each['id']} ({len(each['nodes'])}), as in {each['nodes'][0]['html'][:140]}"
        for each in results.response["violations"]
    ]


WIDER = """() => [...document.querySelectorAll("article *")]
  .filter((each) => each.getBoundingClientRect().right > innerWidth + 1
    && !each.closest("pre, .math, mjx-container, .pst-scrollable-table-container"))
  .slice(0, 3).map((each) => each.outerHTML.slice(0, 90))"""


def note_width(tab: Any) -> None:
    """Note it where the page that is open is wider than the window."""
    if tab.evaluate("document.documentElement.scrollWidth > innerWidth"):
        tab.said(f"is too wide: {tab.evaluate(WIDER)}")


def problems_in_browser(site: Path, kinds: list[str], others: list[str]) -> list[str]:
    """Open pages as a server gives them; return what is wrong.

    kinds: pages to be seen light, dark and on a phone. others: light, then narrow.
    """
    found: list[str] = []
    with served(site) as base, browser() as started:
        for size, scheme in ((DESK, "light"), (DESK, "dark"), (PHONE, "light")):
            with opened(started, size, scheme, base) as (tab, said):
                for page in kinds:
                    look_at(tab, base + page)
                    for each in violations(tab):
                        tab.said(each)
                    note_width(tab)
                found += said
        with opened(started, DESK, "light", base) as (tab, said):
            for page in others:
                tab.set_viewport_size(DESK)
                look_at(tab, base + page)
                for each in violations(tab):
                    tab.said(each)
                tab.set_viewport_size(PHONE)
                note_width(tab)
            found += said
    return found


def problems_from_folder(site: Path, pages: list[str]) -> list[str]:
    """Open pages without a server, and search."""
    base = site.resolve().as_uri() + "/"
    with browser() as started, opened(started, DESK, "light", base) as (tab, said):
        for page in pages:
            look_at(tab, base + page)
        tab.goto(base + "search.html?q=guidance")
        tab.wait_for_selector("#search-results li", timeout=10_000)
    return said


def pages_of(site: Path) -> tuple[list[str], list[str]]:
    """Return one page of each kind that is there, and all others."""
    kinds = [page for page in KINDS if (site / page.partition("?")[0]).exists()]
    every = [path.relative_to(site).as_posix() for path in sorted(site.rglob("*.html"))]
    every = [page for page in every if not page.startswith(("_static", "live/"))]
    return kinds, [page for page in every if page not in (*kinds, "search.html")]


def problems(site: Path, quick: bool = False) -> list[str]:
    """Return everything that is wrong with a built site. quick: one page of each kind."""
    site = site.resolve()
    found = broken_links(site)
    if shutil.which("chromium") is None:
        print("No Chromium here: looked at links only.")
        return found
    kinds, others = pages_of(site)
    found += problems_in_browser(site, kinds, [] if quick else others)
    found += problems_from_folder(site, [page for page in kinds if "?" not in page])
    return found


def main(arguments: list[str] | None = None) -> int:
    """Check what the command line says; return 0 where nothing is wrong."""
    parser = argparse.ArgumentParser(description="Check the built site.")
    built = Path(__file__).parents[2] / "build" / "site"
    parser.add_argument("site", nargs="?", type=Path, default=built)
    parser.add_argument("--quick", action="store_true", help="one page of each kind")
    options = parser.parse_args(arguments)
    found = problems(options.site, options.quick)
    print("\n".join(found) or f"{options.site}: nothing is wrong")
    return int(bool(found))


if __name__ == "__main__":
    sys.exit(main())
