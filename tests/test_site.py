"""The book as a site: what is laid out for Sphinx, and a small site as a reader's browser sees it.

The whole site is looked at by `make book-check`.
"""

import json
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import nbformat
import pytest

ROOT = Path(__file__).parents[1]
SITE = ROOT / "book" / "site"
sys.path.insert(0, str(SITE))

pytest.importorskip("sphinx", reason='the site needs: pip install -e ".[site]"')

import api_pages  # noqa: E402
import check_site  # noqa: E402
import site_source  # noqa: E402
from docstrings import with_math  # noqa: E402
from mend import mended  # noqa: E402
from repository import address, theme_options  # noqa: E402

BIB = (SITE / "references.bib").read_text("utf-8")
KEYS = re.findall(r"^@\w+\{([^,]+),$", BIB, re.M)
OWES = (SITE / "pages" / "owes.md").read_text("utf-8")


# The bibliography


def test_each_arxiv_number_in_a_chapter_stands_in_the_bibliography_and_the_reverse():
    listed = re.findall(r"^  eprint = \{(.+)\},$", BIB, re.M)
    assert len(listed) == len(set(listed))
    by_key = dict(re.findall(r"^@\w+\{([^,]+),\n(?:(?!^\}).*\n)*?  eprint = \{(.+)\},$", BIB, re.M))
    cited_elsewhere = {by_key[key] for key in cited_keys() if key in by_key}
    in_chapters = set(site_source.cited())
    assert in_chapters - set(listed) == set()
    assert set(listed) - in_chapters - cited_elsewhere == set()


def cited_keys():
    found = set()
    for page in (SITE / "pages").glob("*.md"):
        for keys in re.findall(r"\{cite:\w\}`([^`]+)`", page.read_text("utf-8")):
            found.update(keys.split(","))
    return found


def test_keys_resolve_and_no_entry_is_idle():
    assert len(KEYS) == len(set(KEYS))
    assert cited_keys() <= set(KEYS)
    for entry in re.findall(r"^@.*?^\}$", BIB, re.M | re.S):
        key = re.match(r"@\w+\{([^,]+)", entry)[1]
        named = "eprint" in entry or "chapters" in entry or key in cited_keys()
        assert named, f"nothing names {key}"


def test_the_page_on_what_a_model_owes_is_short_and_has_its_sources():
    words = re.sub(r"\{cite:\w\}`[^`]+`|\]\([^)]*\)", "", OWES).split()
    assert 600 <= len(words) <= 920
    assert {"carlini2023", "somepalli2023", "bianchi2023", "luccioni2024"} <= cited_keys()


# The one setting


def test_without_an_address_there_are_only_buttons_to_download():
    for source in (None, "sdlearn"):
        assert address(source) is None
        options = theme_options(source)
        assert options["use_download_button"]
        assert "launch_buttons" not in options and "repository_url" not in options


def test_an_address_gives_colab_and_binder():
    source = "git+https://github.com/someone/sdlearn.git@v1"
    assert address(source) == ("https://github.com/someone/sdlearn", "v1")
    assert address("git+https://github.com/someone/sdlearn")[1] == "main"
    options = theme_options(source)
    assert options["repository_url"] == "https://github.com/someone/sdlearn"
    assert options["launch_buttons"]["colab_url"] and options["launch_buttons"]["binderhub_url"]


# A chapter's copy


@pytest.fixture(scope="module")
def editions():
    return {
        site_source.number_of(path): site_source.site_edition(path, live=True)
        for path in site_source.CHAPTERS
    }


def test_every_figure_has_its_number_and_keeps_its_alt_text(editions):
    for number, (notebook, figures) in editions.items():
        shown = [cell for cell in notebook.cells if site_source.picture_of(cell)]
        assert [f.number for f in figures] == [f"{int(number)}.{k + 1}" for k in range(len(shown))]
        for cell, figure in zip(shown, figures):
            assert cell.metadata["mystnb"]["image"]["alt"] == figure.alt != ""
            assert figure.png.startswith(b"\x89PNG")
    files = [figure.file for _, figures in editions.values() for figure in figures]
    assert len(set(files)) == len(files) > 100


def test_only_words_for_widgets_are_left_out_of_a_chapter(editions):
    for path in site_source.CHAPTERS:
        kept = editions[site_source.number_of(path)][0].cells
        before = nbformat.read(path, as_version=4).cells
        code = [cell for cell in before if cell.cell_type == "code"]
        shown = [cell for cell in kept if cell.cell_type == "code"]
        assert [cell.source for cell in shown] == [cell.source for cell in code]
        for old, new in zip(code, shown):
            gone = [output for output in old.outputs if output not in new.outputs]
            assert all(list(output["data"]) == ["text/plain"] for output in gone)
            assert all(len(output["data"]["text/plain"]) > 30 for output in gone)


def test_the_running_model_stands_once_in_three_chapters(editions):
    for number, (notebook, _) in editions.items():
        frames = [cell for cell in notebook.cells if "<iframe" in cell.source]
        assert len(frames) == (number in site_source.LIVE), number
        for cell in frames:
            assert 'loading="lazy"' in cell.source and "title=" in cell.source
            assert 'href="../live/index.html#prompt=' in cell.source
    without, _ = site_source.site_edition(site_source.CHAPTERS[0], live=False)
    assert not any("<iframe" in cell.source for cell in without.cells)


def test_an_explorer_leads_to_its_picture_in_the_page(editions):
    for number, (notebook, _) in editions.items():
        boxes = [cell.source for cell in notebook.cells if "an explorer stands here" in cell.source]
        assert len(boxes) == (number in ("00", "07", "09")), number
        for box in boxes:
            assert "../live/index.html#prompt=an+orange+fox+in+the+snow+at+night&amp;seed=22" in box
        assert "TraceExplorer of" not in nbformat.writes(notebook)
    without, _ = site_source.site_edition(site_source.CHAPTERS[0], live=False)
    assert any("It needs a notebook" in cell.source for cell in without.cells)


def test_captions_keep_every_sign_of_the_alt_text():
    assert site_source.as_sentence("true teal, <teal> and *x*") == r"True teal, \<teal\> and \*x\*."


def test_the_page_for_teachers_leads_to_chapters_sections_and_exercises():
    link = site_source.linked_teaching
    ink = "[chapter 05, *A drop of ink*](../chapters/05-forward-noising.ipynb#a-drop-of-ink)"
    assert link("chapter 05, *A drop of ink*") == ink
    jump = "[05.1](../chapters/exercises/05-forward-noising.ipynb#051-the-jump)"
    assert link("exercise 05.1, 22.04, 0.1.0\n```\n05.1\n```") == (
        f"exercise {jump}, 22.04, 0.1.0\n```\n05.1\n```"
    )
    assert link("[page](live/index.html)", live=False) == "[page](../live-model.md)"
    text = link((ROOT / "book" / "teaching.md").read_text("utf-8"))
    assert "README.md#" not in text and "](live/" not in text


def test_the_page_on_installing_names_what_pip_installs(monkeypatch):
    page = (SITE / "pages" / "install.md").read_text("utf-8")
    monkeypatch.setattr(site_source, "SOURCE", None)
    monkeypatch.delenv("SDLEARN_SITE_SOURCE", raising=False)
    wheel = site_source.wheel_name()
    text = site_source.install_page(page)
    assert f"pip install {wheel} jupyterlab" in text and f'href="downloads/{wheel}"' in text
    monkeypatch.setenv("SDLEARN_SITE_SOURCE", "sdlearn")
    text = site_source.install_page(page)
    assert "pip install sdlearn jupyterlab" in text and ".whl" not in text


def test_the_landing_page_has_the_minutes_of_every_chapter():
    table = site_source.table_of_chapters().splitlines()
    assert len(table) == 2 + len(site_source.CHAPTERS)


def test_quizzes_say_all_that_their_files_say():
    for path in sorted(site_source.QUIZZES.glob("*.json")):
        text = site_source.quiz_cell(path.stem).source
        answers = [
            a for question in json.loads(path.read_text("utf-8")) for a in question["answers"]
        ]
        assert text.count("<button") == len(answers)
        assert text.count('data-answer="right"') == sum(a["correct"] for a in answers)
    for path in site_source.EXERCISES:
        cells = site_source.exercises_edition(path).cells
        assert not any(cell.source.strip().startswith("quiz(") for cell in cells)


def test_the_glossary_leads_to_its_chapters():
    text = (ROOT / "chapters" / "glossary.md").read_text("utf-8")
    linked = site_source.linked_glossary(text)
    assert not site_source.OF_CHAPTER.search(linked) and not site_source.OF_SYMBOL.search(linked)
    terms, symbols = site_source.OF_CHAPTER.findall(text), site_source.OF_SYMBOL.findall(text)
    assert linked.count(".ipynb") == len(terms) + len(symbols)
    assert len(terms) == text.count("\n### ") and len(symbols) > 50


def test_each_public_module_has_a_page():
    pages = api_pages.api_pages({f"{n:02d}": "x" for n in range(18)})
    for name in ("text", "sampling", "editing.inpainting", "training.unet", "show.filmstrip"):
        assert f"automodule:: sdlearn.{name}" in pages[name]
        assert f":doc:`{name}`" in pages["index"]


# What is put right


def test_formulas_of_docstrings_become_sphinx_s():
    text = "Go on.\n\n    $$x = y\n      - z$$\n\nWith $y$, for 5$ or `a$b`."
    assert ".. math:: x = y - z" in with_math(text)
    assert "With :math:`y`, for 5$ or `a$b`." in with_math(text)


def test_pages_are_mended_once():
    page = '<th class="head"><p></p></th><div class="citation" id="id1" role="doc-biblioentry">'
    assert mended(page) == '<td class="head"></td><div class="citation" id="id1" role="listitem">'
    assert mended(mended(page)) == mended(page)


def test_a_link_that_leads_nowhere_is_found(tmp_path):
    (tmp_path / "a.html").write_text('<p id="here"><a href="#here">a</a><a href="b.html">b</a>')
    (tmp_path / "c.html").write_text('<a href="a.html#gone">c</a><script src="https://x.org/x.js">')
    assert check_site.broken_links(tmp_path) == [
        "a.html: b.html is not there",
        "c.html loads https://x.org/x.js",
        "c.html: a.html#gone has no such place",
    ]


# A small site


@pytest.fixture(scope="module")
def small_site(tmp_path_factory):
    out = tmp_path_factory.mktemp("small") / "site"
    command = [sys.executable, str(SITE / "make_site.py"), "--out", str(out), "--only", "00"]
    command += ["--live", str(out / "none"), "--no-api"]
    command += ["--source", "git+https://github.com/someone/sdlearn"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return out


def test_a_chapter_s_page_offers_the_original_and_colab(small_site):
    page = (small_site / "chapters" / "00-start-here.html").read_text("utf-8")
    assert "https://colab.research.google.com/github/someone/sdlearn/blob/main/chapters/00" in page
    assert "https://mybinder.org/v2/gh/someone/sdlearn/main" in page
    original = (ROOT / "chapters" / "00-start-here.ipynb").read_bytes()
    offered = small_site / "_sources" / "chapters" / "00-start-here.ipynb"
    assert offered.read_bytes() == original
    assert "Figure 0.1" in page and "VBox(" not in page


def test_the_packs_hold_what_they_promise(small_site):
    with zipfile.ZipFile(small_site / "downloads" / "figures.zip") as pack:
        table = pack.read("figures.csv").decode()
        assert "00-01.png,0.1," in table and "CC BY 4.0" in pack.read("LICENCE.txt").decode()
    with zipfile.ZipFile(small_site / "downloads" / "sdlearn-book.zip") as pack:
        names = set(pack.namelist())
        assert {"sdlearn-book/index.html", "sdlearn-book/READ-ME.txt"} <= names
        assert "sdlearn-book/_sources/chapters/00-start-here.ipynb" in names
        for page in ("licence", "install", "book/teaching"):
            assert "sdlearn-book.zip" not in pack.read(f"sdlearn-book/{page}.html").decode()
        assert "pip install downloads/sdlearn-" in pack.read("sdlearn-book/READ-ME.txt").decode()
    size = (small_site / "downloads" / "sdlearn-book.zip").stat().st_size / 1e6
    assert f"</a> ({size:.0f} MB)" in (small_site / "licence.html").read_text("utf-8")


@pytest.mark.skipif(shutil.which("chromium") is None, reason="no Chromium here")
def test_a_browser_finds_nothing_wrong(small_site):
    pages = ["index.html", "chapters/00-start-here.html", "chapters/exercises/00-start-here.html"]
    pages += ["bibliography.html", "search.html?q=noise"]
    with check_site.served(small_site) as base, check_site.browser() as started:
        for scheme in ("light", "dark"):
            with check_site.opened(started, check_site.DESK, scheme, base) as (tab, said):
                for page in pages:
                    check_site.look_at(tab, base + page)
                    for each in check_site.violations(tab):
                        tab.said(each)
                    tab.set_viewport_size(check_site.PHONE)
                    check_site.note_width(tab)
                    tab.set_viewport_size(check_site.DESK)
            assert said == []


@pytest.mark.skipif(shutil.which("chromium") is None, reason="no Chromium here")
def test_a_quiz_is_answered_by_keyboard_from_a_folder(small_site):
    base = small_site.as_uri() + "/"
    with check_site.browser() as started:
        with check_site.opened(started, check_site.DESK, "light", base) as (tab, said):
            tab.goto(base + "chapters/exercises/00-start-here.html")
            for question in tab.query_selector_all(".quiz-question"):
                wrong = question.query_selector("[data-answer=wrong]")
                wrong.press("Enter")
                assert question.query_selector(".quiz-said").text_content().startswith("Wrong.")
                question.query_selector("[data-answer=right]").press("Space")
                assert question.query_selector(".quiz-right").is_visible()
            score = tab.query_selector(".quiz-score").text_content()
            assert score == "0 of 5 right at the first try."
            tab.goto(base + "search.html?q=noise")
            tab.wait_for_selector("#search-results li", timeout=10_000)
        assert said == []
