"""The live page, around a stand-in for the model: what the reader asks for is what is drawn."""

from __future__ import annotations

import http.server
import json
import re
import threading
from pathlib import Path

import pytest
from conftest import CHROMIUM
from PIL import Image

from sdlearn.postcards import vocabulary, world
from sdlearn.postcards.model import GUIDANCE, STEPS

sync_api = pytest.importorskip(
    "playwright.sync_api", reason="needs playwright: pip install -e .[test]"
)
axe = pytest.importorskip(
    "axe_playwright_python.sync_playwright", reason="needs axe-playwright-python"
)
expect = sync_api.expect

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium, and found none")

ROOT = Path(__file__).parents[1]
LIVE = ROOT / "book" / "live"
# What the page sends to its Worker; and a dice that always throws the same.
WATCH = """
window.sent = [];
const post = Worker.prototype.postMessage;
Worker.prototype.postMessage = function (message) { sent.push(message); post.call(this, message); };
Math.random = () => 0.5;
"""

DRAWN = "sent.findLast(({ type }) => type === 'draw').request"


class Handler(http.server.SimpleHTTPRequestHandler):
    """The page as it will be served, with the stand-in in the Worker's place."""

    elsewhere = {
        "worker.js": ROOT / "tests" / "fake_worker.js",
        "explorer.js": ROOT / "sdlearn" / "show" / "explorer.js",
        "explorer.css": ROOT / "sdlearn" / "show" / "explorer.css",
    }

    def translate_path(self, path):
        name = path.partition("?")[0].lstrip("/")
        return str(self.elsewhere.get(name, LIVE / name))

    def do_GET(self):
        if self.path != "/files.json":
            return super().do_GET()
        self.send_response(200)
        self.end_headers()
        files = [{"name": "unet.onnx", "size": 8_000_000, "hash": "0"}]
        self.wfile.write(json.dumps({"files": files}).encode())

    def log_message(self, *_):
        pass


@pytest.fixture(scope="module")
def site():
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.fixture
def visit(site, browser):
    """Return a function that opens the page; at the end nothing may have gone wrong in any."""
    wrong, contexts = [], []

    def open_page(link="", start=True, **options):
        context = browser.new_context(service_workers="block", **options)
        contexts.append(context)
        context.set_default_timeout(5000)
        page = context.new_page()
        page.add_init_script(WATCH)
        page.on("console", lambda said: said.type == "error" and wrong.append(said.text))
        page.on("pageerror", lambda error: wrong.append(str(error)))
        page.on(
            "request",
            lambda asked: asked.url.startswith((site, "blob:", "data:")) or wrong.append(asked.url),
        )
        page.goto(f"{site}/index.html{link}")
        if start:
            page.get_by_role("button", name="Start", exact=True).click()
            drawn(page)
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert not wrong


def drawn(page):
    """Wait for a picture."""
    expect(page.locator("#status")).to_contain_text("Drawn in")
    expect(page.locator("#stop")).to_be_disabled()


def requests(page):
    """What the Worker was asked to draw, without pixels."""
    return page.evaluate(
        "sent.filter(({ type }) => type === 'draw').map(({ request }) => "
        "({ ...request, image: request.image && request.image.data.length }))"
    )


def last(page, count):
    """Wait until so many drawings were asked for; return the latest."""
    for _ in range(100):
        if len(asked := requests(page)) >= count:
            break
        page.wait_for_timeout(30)
    drawn(page)
    asked = requests(page)
    assert len(asked) == count
    return asked[-1]


def slide(page, name, value):
    page.locator(f"#{name}").fill(str(value))


def test_first_visit_asks_before_it_fetches(visit):
    page = visit(start=False)
    expect(page.locator("#start-text")).to_contain_text("8 MB")
    assert page.evaluate("sent") == []
    page.get_by_role("button", name="Start", exact=True).click()
    drawn(page)
    [request] = requests(page)
    assert (request["steps"], request["guidance_scale"]) == (STEPS, GUIDANCE)
    assert request["mix"] is None and request["weights"] == {} and request["image"] is None
    assert page.locator("#start").is_hidden()
    assert page.locator("#compare").is_hidden()  # There is nothing to compare with.
    # The next time the files are in the cache, as engine/files.js leaves them.
    page.evaluate("caches.open('any').then((cache) => cache.put('unet.onnx?0', new Response('')))")
    page.reload()
    drawn(page)


def test_without_webassembly_it_says_so(site, browser):
    page = browser.new_page()
    page.add_init_script("delete window.WebAssembly")
    page.goto(f"{site}/index.html")
    expect(page.locator("#problem")).to_contain_text("no WebAssembly")
    page.close()


def test_links_hold_every_state(visit):
    page = visit(start=False)
    odd = {
        "prompt": "a fox & “a cat” #1: 50 % +", "negative_prompt": "at night", "seed": 4294967295,
        "steps": 7, "guidance_scale": 4.5, "sampler": "DPM-Solver++ 2M", "second": "a boat, red",
        "share": 0.35, "weights": {"fox": 0, "cat": 2.5}, "drawing": "n1000r24", "strength": 0.45,
        "upload": None,
    }  # fmt: skip
    back, place, broken = page.evaluate(
        """async (state) => {
          const { toLink, fromLink } = await import("./page/state.js");
          const { state: again, place } = fromLink(toLink(state, { step: 3, word: 0 }));
          const broken = "#seed=x&steps=99&weights=fox:9&picture=<b>&sampler=no";
          return [again, place, fromLink(broken).state];
        }""",
        odd,
    )
    assert back == odd
    assert (place["step"], place["word"], place["layer"]) == ("3", "0", None)
    assert (broken["seed"], broken["steps"], broken["weights"]) == (22, 50, {})
    assert (broken["drawing"], broken["sampler"]) == ("", "DDIM")


def test_a_copied_link_draws_the_same(visit):
    page = visit(permissions=["clipboard-read", "clipboard-write"])
    page.locator("#prompt").fill("a cat and a dog")
    page.locator("#prompt").press("Enter")
    last(page, 2)
    slide(page, "guidance_scale", 6)
    wanted = last(page, 3)
    page.get_by_role("slider", name="Step", exact=True).press("Home")
    page.get_by_role("button", name=re.compile("^dog")).first.click()
    expect(page).to_have_url(re.compile("step=0&word=dog"))
    page.get_by_role("button", name="Copy link").click()
    expect(page.locator("#status")).to_have_text("Link copied.")
    link = page.evaluate("navigator.clipboard.readText()")
    other = visit(link[link.index("#") :])
    assert requests(other) == [wanted]
    expect(other.locator("#prompt")).to_have_value("a cat and a dog")
    expect(other.get_by_role("slider", name="Step", exact=True)).to_have_attribute(
        "aria-valuenow", "1"
    )
    pressed = other.locator(".sdx-tokens [aria-pressed=true]")
    expect(pressed).to_contain_text("dog")


def test_back_and_forward(visit):
    page = visit()
    page.locator("#prompt").fill("a cat")
    page.get_by_role("button", name="Draw", exact=True).click()
    last(page, 2)
    for value in (3, 4, 5):  # one control, moved: one entry
        slide(page, "steps", value)
        last(page, value)
    page.go_back()
    assert last(page, 6)["steps"] == STEPS
    page.go_back()
    assert last(page, 7)["prompt"].startswith("an orange fox")
    expect(page.locator("#prompt")).to_have_value(re.compile("an orange fox"))
    page.go_forward()
    page.go_forward()
    assert last(page, 9)["steps"] == 5


def test_stop_and_a_prompt_that_changes(visit):
    page = visit()
    prompt, status = page.locator("#prompt"), page.locator("#status")
    prompt.fill("a slow cat")
    prompt.press("Enter")
    page.get_by_role("button", name="Stop").click()
    expect(status).to_contain_text("Stopped after step")
    prompt.press("Enter")
    expect(status).to_have_text("Drawing …")
    prompt.press_sequentially("s")
    expect(status).to_contain_text("Stopped after step")
    assert page.evaluate("sent.filter(({ type }) => type === 'stop').length") == 2


def test_an_error_is_told_and_the_next_drawing_works(visit):
    page = visit()
    page.locator("#prompt").fill("broken")
    page.locator("#prompt").press("Enter")
    expect(page.locator("#problem")).to_have_text("The fake is broken.")
    page.locator("#prompt").fill("a cat")
    page.locator("#prompt").press("Enter")
    drawn(page)
    expect(page.locator("#problem")).to_be_hidden()
    page.locator("#group-picture").click()
    page.get_by_role("button", name="Draw one").click()
    slide(page, "strength", 0.1)
    slide(page, "steps", 5)
    expect(page.locator("#problem")).to_contain_text("leaves none of 5 steps")


def test_unknown_words_are_named(visit):
    page = visit()
    page.locator("#prompt").fill("an astronaut in the snow")
    named = page.locator("#unknown-prompt")
    expect(named).to_contain_text("postcards never learnt astronaut")
    expect(named).to_contain_text("It knows 36 things")
    named.locator("summary").click()
    named.get_by_role("button", name="cat", exact=True).click()
    assert last(page, 2)["prompt"] == "a cat in the snow"
    expect(named).to_be_hidden()


def test_words_negative_prompt_and_mix_are_sent(visit):
    page = visit("#prompt=a+cat+at+night")
    for group in ("words", "negative", "mix"):
        page.locator(f"#group-{group} summary").first.click()
    page.get_by_role("button", name="Blank night").click()
    assert last(page, 2)["weights"] == {"night": 0}
    page.get_by_role("slider", name="cat").fill("2.5")
    assert last(page, 3)["weights"] == {"night": 0, "cat": 2.5}
    expect(page).to_have_url(re.compile("weights=cat%3A2.5%2Cnight%3A0"))
    page.locator("#negative_prompt").fill("in the city")
    page.locator("#second").fill("a dog")
    page.locator("#second").press("Enter")
    request = last(page, 4)
    assert request["negative_prompt"] == "in the city"
    assert request["mix"] == {"prompt": "a dog", "share": 0.5}
    page.locator("#prompt").fill("a boat")  # A weight needs its word.
    page.locator("#prompt").press("Enter")
    assert last(page, 5)["weights"] == {}


def test_drawing_a_scribble_by_keyboard(visit):
    page = visit()
    page.locator("#group-picture summary").click()
    page.get_by_role("button", name="Draw one").press("Enter")
    last(page, 2)
    canvas = page.locator("#easel-canvas")
    expect(canvas).to_be_focused()
    page.get_by_role("radio", name="night").check()
    canvas.press("ArrowUp")
    canvas.press("Space")
    last(page, 3)
    middle = 4 * (66 * 128 - 64)  # of its four numbers, in row 65 of 128
    pixel = page.evaluate(f"[...{DRAWN}.image.data.slice({middle}, {middle + 4})]")
    assert pixel == [60, 60, 140, 255]
    link = page.url[page.url.index("#") :]
    assert "n4" in link
    assert requests(visit(link))[0]["image"] == 128 * 128 * 4
    page.get_by_role("button", name="None").click()
    assert last(page, 4)["image"] is None


def test_a_picture_of_ones_own_stays_here(visit, tmp_path):
    Image.new("RGB", (300, 200), (255, 0, 0)).save(tmp_path / "red.png")
    page = visit()
    page.locator("#easel-file").set_input_files(tmp_path / "red.png")
    last(page, 2)
    assert page.evaluate(f"[...{DRAWN}.image.data.slice(0, 4)]") == [255, 0, 0, 255]
    assert "picture=upload" in page.url
    (tmp_path / "no.png").write_text("no picture")
    page.locator("#easel-file").set_input_files(tmp_path / "no.png")
    expect(page.locator("#easel")).to_contain_text("no.png is no picture")
    other = visit(page.url[page.url.index("#") :])
    expect(other.locator("#problem")).to_contain_text("stayed on its own computer")


def test_say_what_you_expect(visit):
    page = visit()
    page.get_by_role("checkbox", name="Say what you expect first").check()
    slide(page, "guidance_scale", 9)
    page.wait_for_timeout(400)
    assert len(requests(page)) == 1  # Nothing is drawn before it is asked for.
    page.get_by_role("button", name="Draw", exact=True).click()
    question = page.get_by_role("region", name="What do you expect?")
    expect(question).to_contain_text("guidance 2 → guidance 9")
    draw = question.get_by_role("button", name="Draw and compare")
    draw.click()
    assert len(requests(page)) == 1  # Nothing was said yet.
    question.get_by_label("It stays the same thing").check()
    question.get_by_label("Or in your own words").fill("brighter")
    draw.click()
    assert last(page, 2)["guidance_scale"] == 9
    compared = page.get_by_role("region", name="Before and now")
    expect(compared).to_contain_text("It stays the same thing; brighter")
    expect(compared.get_by_role("link", name="Chapter 07")).to_have_count(1)
    expect(question).to_be_hidden()


def test_lessons_draw_both_pictures(visit):
    page = visit("#prompt=a+cat")
    page.get_by_role("link", name="Guidance 2 and 15").click()
    assert last(page, 3)["guidance_scale"] == 15
    assert [request["guidance_scale"] for request in requests(page)] == [2, 2, 15]
    expect(page.locator("#changes")).to_have_text("guidance 2 → guidance 15")
    page.get_by_role("link", name="Next: Away from sunset").click()
    assert last(page, 5)["negative_prompt"] == "at sunset"
    linked = visit(page.url[page.url.index("#") :])
    assert [request["negative_prompt"] for request in requests(linked)] == ["", "at sunset"]
    expect(linked.locator("#lesson")).to_contain_text("no sun sets")
    linked.locator("#prompt").fill("a cat")  # Its text is not about this one.
    linked.locator("#prompt").press("Enter")
    last(linked, 3)
    expect(linked.locator("#lesson")).to_be_hidden()
    assert "lesson" not in linked.url


def test_the_view_keeps_its_looks_and_its_place(visit):
    page = visit()
    thumb = page.locator(".sdx-thumb").first
    thumb.click()
    assert thumb.evaluate("(one) => getComputedStyle(one).backgroundColor") == "rgba(0, 0, 0, 0)"
    page.evaluate("document.querySelector('.sdx-words').scrollIntoView()")
    bottom = page.locator(".sdx-stage").evaluate("(one) => one.getBoundingClientRect().bottom")
    assert bottom <= page.locator(".sdx-words").bounding_box()["y"]


def test_every_lesson_can_be_drawn(visit):
    page = visit(start=False)
    lessons = page.evaluate(
        """async () => {
          const { LESSONS, QUESTIONS } = await import("./page/lessons.js");
          const { differences, fromLink, stepsWalked, toLink } = await import("./page/state.js");
          return LESSONS.map(({ state, from }) => ({
            state,
            linked: fromLink(toLink(state)).state,
            steps: stepsWalked(state),
            asked: from ? differences(from, state).map(({ key }) => key in QUESTIONS) : [true],
          }));
        }"""
    )
    assert 6 <= len(lessons) <= 10
    for lesson in lessons:
        assert lesson["linked"] == lesson["state"]
        assert lesson["steps"] >= 1 and lesson["asked"] == [True]
    unknown = [vocabulary.unknown_words(lesson["state"]["prompt"]) for lesson in lessons]
    assert [*filter(None, unknown)] == [{"lion": None}]


def test_saved_under_a_name_that_says_how(visit, tmp_path):
    page = visit("#prompt=a+cat&seed=5&sampler=Euler")
    with page.expect_download() as download:
        page.get_by_role("button", name="Save picture").click()
    assert download.value.suggested_filename == "a-cat_seed-5_steps-10_guidance-2_Euler.png"
    download.value.save_as(tmp_path / "a.png")
    assert Image.open(tmp_path / "a.png").size == (128, 128)


def test_projector_and_dark(visit):
    page = visit("#prompt=a+cat&seed=5", start=False)
    root = page.locator("html")
    page.get_by_role("button", name="Projector").click()
    expect(root).to_have_attribute("data-projector", "")
    assert page.url.endswith("#prompt=a+cat&seed=5&projector=1")
    assert page.evaluate("getComputedStyle(document.documentElement).fontSize") == "22px"
    page.get_by_role("button", name="Dark").click()
    assert (
        page.evaluate("getComputedStyle(document.body.parentElement).backgroundColor")
        == "rgb(0, 0, 0)"
    )
    page.reload()
    expect(root).to_have_attribute("data-theme", "dark")
    expect(root).to_have_attribute("data-projector", "")
    expect(page.locator("#prompt")).to_have_value("a cat")


def test_a_link_opens_on_the_projector_and_goes_on_saying_so(visit):
    page = visit("#prompt=a+cat&projector=1", viewport={"width": 1280, "height": 800})
    expect(page.get_by_role("button", name="Projector")).to_have_attribute("aria-pressed", "true")
    expect(page.locator(".settings details[open]")).to_have_count(0)
    stage, plot = (page.locator(name).bounding_box() for name in (".sdx-stage", ".sdx-plot"))
    assert stage["y"] < 600 and plot["y"] < 800
    page.locator("#prompt").fill("a dog")
    page.locator("#prompt").press("Enter")
    last(page, 2)
    expect(page).to_have_url(re.compile("prompt=a[+]dog.*&projector=1$"))
    page.go_back()
    last(page, 3)
    page.get_by_role("button", name="Projector").click()
    expect(page).not_to_have_url(re.compile("projector"))


def test_in_a_frame_the_view_comes_first_and_the_links_part_is_in_sight(visit, site):
    outer = visit(start=False, reduced_motion="reduce")
    expect(outer.locator("#start")).to_be_visible()  # Its own scripts are through.
    outer.set_content(
        '<p style="height: 500px"></p>'
        f'<iframe src="{site}/index.html#prompt=a+cat&word=cat" width="730" height="734"></iframe>'
    )
    page = outer.frame_locator("iframe")
    page.get_by_role("button", name="Start", exact=True).click()
    scrolled = outer.evaluate("scrollY")
    expect(page.locator("#status")).to_contain_text("Drawn in")
    expect(page.locator(".sdx-words")).to_be_in_viewport()
    top = page.locator(".sdx-words").evaluate("(one) => one.getBoundingClientRect().top")
    assert 0 <= top < 20
    expect(page.locator(".sdx-words .sdx-lit")).to_contain_text("cat")
    assert outer.evaluate("scrollY") == scrolled
    order = page.locator("#bench > *").evaluate_all("all => all.map((one) => one.className)")
    assert order.index("view") < order.index("settings")


LOOKS = {
    "light": {"color_scheme": "light"},
    "dark": {"color_scheme": "dark"},
    "narrow": {"viewport": {"width": 360, "height": 780}},
}


@pytest.mark.parametrize("look", LOOKS)
def test_accessible(visit, look):
    page = visit("#prompt=a+cat+and+an+astronaut&second=a+dog&picture=n1024", **LOOKS[look])
    page.evaluate("document.querySelectorAll('details').forEach((one) => (one.open = true))")
    page.get_by_role("checkbox", name="Say what you expect first").check()
    page.locator("#seed").fill("3")
    page.locator("#seed").press("Enter")
    expect(page.locator("#expect")).to_be_visible()
    found = axe.Axe().run(page).response["violations"]
    assert [(one["id"], [node["html"] for node in one["nodes"]]) for one in found] == []
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")


def test_what_the_page_says_of_the_book_is_so(visit):
    page = visit(start=False)
    known = page.evaluate("import('./page/words.js').then(({ KNOWN }) => KNOWN)")
    assert known == {
        "things": [*world.SUBJECTS],
        "colours": [*world.COLOURS],
        "places": [*world.SETTINGS],
        "times": [*world.TIMES],
    }
    links = page.eval_on_selector_all(
        "[data-chapter]", "all => all.map((one) => one.getAttribute('href'))"
    )
    table = page.evaluate(
        "import('./page/lessons.js').then(({ LESSONS, QUESTIONS, chapterLink }) => "
        "[...LESSONS, ...Object.values(QUESTIONS)].map(({ chapter }) => "
        "chapterLink(chapter).getAttribute('href')))"
    )
    names = {path.stem for path in (ROOT / "chapters").glob("*.ipynb")}
    assert {Path(link).stem for link in links + table} <= names
    assert len(links) > 8
