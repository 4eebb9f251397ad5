"""The stage explorer: its recording is the trace, and the view shows what the recording says."""

import copy
import io
import json
import zlib

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import seeded
from diffusers import EulerDiscreteScheduler
from PIL import Image

import sdlearn
from sdlearn import show
from sdlearn.postcards import settings
from sdlearn.show.explore import TraceExplorer

PROMPT = "an orange fox in the snow at night"
WORDS = PROMPT.split()
FOX = WORDS.index("fox")
FEW = {"num_inference_steps": 4, "guidance_scale": 2.0}


class Unpacked:
    """A recording as the browser unpacks it, with the error that rounding may have left."""

    def __init__(self, widget: TraceExplorer) -> None:
        self.header, self.bytes = widget.header, zlib.decompress(widget.data)
        json.dumps(self.header)  # as it is sent

    def part(self, where) -> bytes:
        return self.bytes[where["at"] : where["at"] + where["bytes"]]

    def numbers(self, where) -> tuple[torch.Tensor, torch.Tensor]:
        kind = "<u2" if where["bits"] == 16 else "u1"
        changes = np.frombuffer(self.part(where), kind).reshape(where["shape"])
        levels = torch.tensor(np.cumsum(changes, axis=0, dtype=kind).astype(np.float64))
        low, high = (torch.tensor(where[name])[:, None, None] for name in ("low", "high"))
        level = (high - low) / (2 ** where["bits"] - 1)
        return low + levels * level, level * 0.51 + 1e-6

    def picture(self, where) -> Image.Image:
        return Image.open(io.BytesIO(self.part(where))).convert("RGB")

    def equal(self, name, expected) -> bool:
        values, error = self.numbers(self.header[name])
        expected = torch.stack(list(expected)).cpu()
        return bool(((values - expected).abs() <= error).all()) and values.shape == expected.shape


def draw(pipe, prompt=PROMPT, keep_calls=True, **options):
    with sdlearn.capture_attention(pipe, keep_calls=keep_calls) as maps:
        trace = sdlearn.text_to_image(pipe, prompt, generator=seeded(), **{**FEW, **options})
    return trace, maps


@pytest.fixture(scope="module")
def drawn(postcards):
    return draw(postcards)


def test_the_recording_is_the_trace(pipe):
    trace, maps = draw(pipe)
    widget = show.explore(pipe, trace, maps, seed=0, negative_prompt="fog")
    assert "the snow" in repr(widget) and "4 steps" in repr(widget) and len(repr(widget)) < 200
    got = Unpacked(widget)
    steps = trace.steps
    assert got.equal("latents", [*(s.model_input[0] for s in steps), trace.latents[0]])
    assert got.equal("noise_pred_uncond", [s.noise_pred_uncond[0] for s in steps])
    assert got.equal("noise_pred_text", [s.noise_pred_text[0] for s in steps])
    assert got.equal("noise_pred", [s.noise_pred[0] for s in steps])
    assert np.array_equal(got.picture(got.header["picture"]), trace.image)
    decoded = sdlearn.decode_latents(pipe, steps[1].pred_original_sample)
    expected = sdlearn.to_pil(pipe, decoded)[0]
    assert np.array_equal(got.picture(got.header["pictures"][1]), expected)
    assert [s["t"] for s in got.header["steps"]] == [int(s.t) for s in steps]
    assert [s["alpha_bar"] for s in got.header["steps"]] == [s.alpha_bar for s in steps]
    known = {name: got.header[name] for name in ("seed", "negative_prompt", "guidance_scale")}
    assert known == {"seed": 0, "negative_prompt": "fog", "guidance_scale": 2.0}
    assert got.header["done"] == len(got.header["pictures"]) == 4


def test_the_recording_has_each_words_maps(pipe):
    trace, maps = draw(pipe)
    got = Unpacked(show.explore(pipe, trace, maps))
    assert got.header["rows"] == ["start", *range(len(WORDS)), "rest"]
    assert [layer["name"] for layer in got.header["layers"]] == maps.layers
    total = torch.zeros(trace.pixels.shape[2:])
    for name, where in zip(maps.layers, got.header["maps"], strict=True):
        values, error = got.numbers(where)  # (4, rows, h, w)
        assert torch.allclose(values.sum(1), torch.ones(1, dtype=torch.double), atol=1e-3)
        for call in range(4):
            fox = maps.probabilities(name, call)[0, 1 + FOX]
            assert ((values[call, 1 + FOX] - fox).abs() <= error[1 + FOX]).all()
            start = maps.probabilities(name, call)[0, 0]
            assert ((values[call, 0] - start).abs() <= error[0]).all()
        fox = values[:, 1 + FOX].mean(0)[None, None].float()
        total += F.interpolate(fox, total.shape, mode="bilinear")[0, 0]
    heat = (total - total.min()) / (total.max() - total.min())
    assert torch.allclose(heat, maps.heat_map("fox"), atol=1e-3)


def test_a_large_model_is_packed_tighter(tiny):
    """Latents of 40 × 40 and maps of as many places: more than either may have."""
    with sdlearn.capture_attention(tiny, max_pixels=1600, keep_calls=True) as maps:
        trace = sdlearn.text_to_image(tiny, "a cat", height=320, width=320, **FEW)
    got = Unpacked(show.explore(tiny, trace, maps))
    assert got.header["noise_pred"]["bits"] == 8
    assert got.equal("noise_pred", [s.noise_pred[0] for s in trace.steps])
    assert got.picture(got.header["picture"]).size == (320, 320)
    assert got.picture(got.header["pictures"][0]).size == (256, 256)
    fine = got.header["layers"].index({"name": maps.layers[0], "height": 40, "width": 40})
    values, error = got.numbers(got.header["maps"][fine])
    assert values.shape == (4, 4, 14, 14)
    word = maps.probabilities(maps.layers[fine], 0)[0, 2]  # (40, 40)
    expected = F.interpolate(word[None, None], (14, 14), mode="area")[0, 0]
    assert ((values[0, 2] - expected).abs() <= error[2]).all()


def test_without_calls_there_is_the_mean_and_without_maps_none(postcards, drawn):
    trace, maps = drawn
    kept, once = show.explore(postcards, trace, maps), draw(postcards, keep_calls=False)[1]
    got = Unpacked(show.explore(postcards, trace, once))
    assert "maps" not in got.header
    for each, mean in zip(kept.header["maps"], got.header["mean_maps"], strict=True):
        every, error = Unpacked(kept).numbers(each)
        assert ((got.numbers(mean)[0][0] - every.mean(0)).abs() <= 2 * error).all()
    bare = show.explore(postcards, trace)
    assert bare.header["layers"] == [] and "maps" not in bare.header
    assert "no heat maps" in repr(bare)


def test_guidance_is_found_or_said_to_be_none(random_pipe):
    off = sdlearn.text_to_image(random_pipe, "a cat", num_inference_steps=1, guidance_scale=1)
    header = show.explore(random_pipe, off).header
    assert header["guidance_scale"] == 1 and header["noise_pred_uncond"] is None
    options = {"num_inference_steps": 1, "guidance_rescale": 0.7}
    rescaled = sdlearn.text_to_image(random_pipe, "a cat", **options)
    assert show.explore(random_pipe, rescaled).header["guidance_scale"] is None


def test_tokens_say_what_was_cut_off_and_what_was_never_learnt(postcards, random_pipe):
    prompt = "a lion, a fox " + "cat " * 74
    once = {"num_inference_steps": 1, "generator": seeded()}
    for pipe, known in ((postcards, False), (random_pipe, True)):
        trace = sdlearn.text_to_image(pipe, prompt, **once)
        tokens = show.explore(pipe, trace).header["tokens"]
        assert len(tokens["ids"]) == len(tokens["pieces"]) == 77
        by_text = {word["text"]: word for word in tokens["words"]}
        assert by_text["a"] == {"text": "a", "positions": [1, 4], "known": True}
        assert by_text["lion"]["known"] is known
        assert set(tokens["cut_off"]) == {"cat"} and len(tokens["cut_off"]) == 4


def test_one_picture_of_a_batch(postcards):
    postcards = copy.copy(postcards)
    # Euler keeps latents up to 14 times larger than what the U-Net is given.
    postcards.scheduler = EulerDiscreteScheduler.from_config(postcards.scheduler.config)
    trace, maps = draw(postcards, ["a red cat", PROMPT])
    got = Unpacked(show.explore(postcards, trace, maps, index=1))
    assert got.header["prompt"] == PROMPT
    before = [s.model_input[1] for s in trace.steps]
    assert got.equal("latents", [*before, trace.latents[1]])
    assert got.equal("noise_pred", [s.noise_pred[1] for s in trace.steps])
    assert got.header["sampler"] == "EulerDiscrete"
    assert np.array_equal(got.picture(got.header["picture"]), trace.images[1])
    fox = maps.probabilities(maps.layers[0], 2)[1, 1 + FOX]
    values, error = got.numbers(got.header["maps"][0])
    assert ((values[2, 1 + FOX] - fox).abs() <= error[1 + FOX]).all()


def test_the_same_prompt_twice_in_a_batch(random_pipe):
    trace, maps = draw(random_pipe, ["a cat"] * 2, num_inference_steps=1)
    got = Unpacked(show.explore(random_pipe, trace, maps, index=1))
    values, error = got.numbers(got.header["maps"][0])
    cat = maps.probabilities(maps.layers[0], 0)[1, 2]
    assert ((values[0, 2] - cat).abs() <= error[2]).all()


def test_edits_are_traces_too(postcards):
    image = Image.new("RGB", (128, 128), "navy")
    mask = Image.new("L", (128, 128), 255)
    for edit in (
        lambda: sdlearn.image_to_image(postcards, PROMPT, image, 0.5, **FEW),
        lambda: sdlearn.inpaint(postcards, PROMPT, image, mask, **FEW),
    ):
        with sdlearn.capture_attention(postcards, keep_calls=True) as maps:
            trace = edit()
        got = Unpacked(show.explore(postcards, trace, maps))
        assert got.equal("latents", [*(s.model_input[0] for s in trace.steps), trace.latents[0]])
        assert len(got.header["maps"]) == 7


def test_either_of_the_two_that_edit_prompt_returns(postcards):
    target = PROMPT.replace("fox", "cat")
    with sdlearn.capture_attention(postcards, keep_calls=True) as maps:
        both = sdlearn.edit_prompt(postcards, PROMPT, target, **FEW)
    for row, trace in enumerate(both):
        got = Unpacked(show.explore(postcards, trace, maps))
        values, error = got.numbers(got.header["maps"][0])
        word = maps.probabilities(maps.layers[0], 1)[row, 1 + FOX]
        assert ((values[1, 1 + FOX] - word).abs() <= error[1 + FOX]).all()
    with pytest.raises(TypeError, match=r"got 2 traces; pass one of them"):
        show.explore(postcards, both, maps)
    with sdlearn.capture_attention(postcards, keep_calls=True) as maps:  # only words are reweighted
        both = sdlearn.edit_prompt(postcards, PROMPT, PROMPT, reweight={"snow": 2}, **FEW)
    with pytest.raises(ValueError, match=r"pictures \[0, 1\] of the maps had this prompt"):
        show.explore(postcards, both[1], maps)
    show.explore(postcards, both[1], maps, maps_index=1)


def test_what_cannot_be_explored_is_said(postcards, random_pipe, tiny, drawn):
    trace, maps = drawn
    with pytest.raises(TypeError, match="expected a Trace, got Image; text_to_image returns one"):
        show.explore(postcards, trace.image)
    with pytest.raises(ValueError, match="index must be between 0 and 0, got 1; it counts the pic"):
        show.explore(postcards, trace, index=1)
    with pytest.raises(TypeError, match="expected the maps of a capture, got _GeneratorContextMan"):
        show.explore(postcards, trace, sdlearn.capture_attention(postcards))
    with pytest.raises(ValueError, match="of 4 calls of the U-Net, the trace of 2; pass those of"):
        show.explore(postcards, draw(postcards, num_inference_steps=2)[0], maps)
    with pytest.raises(ValueError, match="the maps are of another prompt than 'a red cat'"):
        show.explore(postcards, draw(postcards, "a red cat")[0], maps)
    with sdlearn.capture_attention(postcards) as empty:
        pass
    with pytest.raises(ValueError, match="the maps are empty; draw inside the with block"):
        show.explore(postcards, trace, empty)


# ------------------------------------------------------------------- the view, in a browser

PAGE = """<!doctype html><html lang="en"><meta charset="utf-8"><title>Explorer</title>
<meta name="viewport" content="width=device-width"><link rel="stylesheet" href="explorer.css">
<style>html { background: Canvas; color-scheme: light dark; color: CanvasText }</style>
<main><h1>Explorer</h1><div id="view"></div></main>
<script type="module">
  import { mount, unpack } from "./explorer.js";
  const [header, data] = await Promise.all(["header", "data"].map((name) => fetch(name)));
  window.recording = await unpack(await header.json(), await data.arrayBuffer());
  window.open = (options = {}) => (window.view = mount(document.querySelector("#view"), options));
  window.ready = true;
</script>"""
PIXELS = """(canvas) => {
  const { data } = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height);
  return [canvas.height, canvas.width, Array.from(data)];
}"""


@pytest.fixture
def page(browser, postcards, drawn, request):
    """A page with the explorer's files and the fox's recording; the caller opens the view."""
    widget = show.explore(postcards, *drawn, seed=0)
    files = {
        "": ("text/html", PAGE),
        "explorer.js": ("text/javascript", widget._esm),
        "explorer.css": ("text/css", widget._css),
        "header": ("application/json", json.dumps(widget.header)),
        "data": ("application/octet-stream", widget.data),
    }

    def answer(route) -> None:
        kind, body = files.get(route.request.url.removeprefix("http://book/"), (None, None))
        if kind is None:
            route.fulfill(status=404)
        else:
            route.fulfill(content_type=kind, body=body if kind.endswith("stream") else str(body))

    page = browser.new_page(viewport={"width": 1280, "height": 900})
    errors: list[object] = []
    page.on("pageerror", lambda error: errors.append(error))
    page.route("**/*", answer)
    page.goto("http://book/")
    page.wait_for_function("window.ready")
    yield page
    page.close()
    assert errors == []


def pixels(page, selector) -> np.ndarray:
    height, width, values = page.locator(selector).evaluate(PIXELS)
    return np.array(values, dtype=int).reshape(height, width, 4)[..., :3]


def focused(page) -> str:
    return page.evaluate("document.activeElement.className")


def shown(page) -> None:
    """Open the view and wait until its pictures are decoded."""
    page.evaluate("open().show(recording)")
    page.wait_for_selector(".sdx-stage canvas:not(.sdx-waiting)")
    page.wait_for_function("!document.querySelector('.sdx-waiting')")


def test_a_words_spotlight_is_its_heat_map(page, postcards, drawn):
    trace, maps = drawn
    shown(page)
    assert np.abs(pixels(page, ".sdx-stage canvas") - np.asarray(trace.image)).max() <= 1
    page.hover(".sdx-chip:has-text('fox')")
    for over, call in (("step", 3), ("mean", None)):
        page.evaluate(f"view.go({{ over: '{over}' }})")
        expected = show.map_overlay(trace.image, maps.heat_map("fox", call=call))
        assert np.abs(pixels(page, ".sdx-stage canvas") - np.asarray(expected)).max() <= 2
    layer = maps.layers[2]
    page.click(f".sdx-layer[title='{layer}']")
    page.hover(".sdx-thumb:has-text('snow')")
    expected = show.map_overlay(trace.image, maps.heat_map("snow", layer=layer))
    assert np.abs(pixels(page, ".sdx-stage canvas") - np.asarray(expected)).max() <= 2
    assert page.locator(".sdx-lit").count() == 2  # the chip and the thumb
    page.hover("h1")
    assert np.abs(pixels(page, ".sdx-stage canvas") - np.asarray(trace.image)).max() <= 1
    page.click("text=The heat map in numbers")
    snow = maps.probabilities(layer)[0, 1 + WORDS.index("snow")]  # (8, 8)
    share = 100 * float(snow[:2, -2:].mean())
    first = page.locator(".sdx-numbers tbody tr:first-child td:last-child").inner_text()
    assert float(first.removesuffix(" %")) == pytest.approx(share, abs=0.5 if share > 10 else 0.06)


def test_the_keyboard_reaches_everything(page, drawn):
    trace, _ = drawn
    shown(page)
    page.evaluate("moved = []; view.addEventListener('change', (e) => moved.push(e.detail))")
    page.keyboard.press("Tab")
    for _ in range(1 + FOX):
        page.keyboard.press("ArrowRight")
    assert "fox" in page.locator(".sdx-chip.sdx-lit").inner_text()
    page.keyboard.press("Enter")
    assert page.evaluate("view.state.word") == FOX
    page.keyboard.press("Tab")
    assert focused(page) == "sdx-play"
    page.keyboard.press("Tab")
    assert focused(page) == "sdx-slider"
    page.keyboard.press("Home")
    page.keyboard.press("ArrowRight")
    slider = page.get_by_role("slider", name="Step")
    share = round(100 * trace.steps[1].alpha_bar)
    said = f"Step 2 of 4, t = {int(trace.steps[1].t)}; of what the U-Net is given, {share} %"
    assert slider.get_attribute("aria-valuetext").startswith(said)
    page.wait_for_function("document.querySelector('.sdx-live').textContent.includes('“fox”')")
    assert "predicted picture, step 2" in page.locator(".sdx-live").inner_text().lower()
    page.keyboard.press("Escape")
    assert page.evaluate("view.state.word") is None
    page.keyboard.press("Tab")
    assert "sdx-panel" in focused(page)
    for _ in range(2):
        page.keyboard.press("ArrowRight")  # from the predicted picture, around to the latents
    expected = show.latents_to_pil(trace.steps[1].model_input).resize((128, 128), 0)
    assert np.abs(pixels(page, ".sdx-stage canvas") - np.asarray(expected)).max() <= 1
    stops = []
    for _ in range(5):
        page.keyboard.press("Tab")
        stops.append(page.evaluate("document.activeElement.closest('[class]').classList[0]"))
    assert stops == ["sdx-over", "sdx-thumb", "sdx-layer", "sdx-words", "sdx-keys"]
    last = page.evaluate("moved.at(-1)")
    assert last == {"step": 1, "word": None, "layer": "mean", "over": "step", "panel": "latents"}


def test_a_recording_may_still_be_growing(page, drawn):
    trace, _ = drawn
    page.evaluate(
        """() => {
          const cut = (name, count) => recording[name].slice(0, count);
          window.grow = (done) => Object.assign(window.growing, {
            done, latents: cut("latents", done + 1), noise_pred: cut("noise_pred", done),
            noise_pred_uncond: cut("noise_pred_uncond", done), maps: cut("maps", done),
            noise_pred_text: cut("noise_pred_text", done),
          });
          window.growing = { ...recording, pictures: [null, null, null, null], picture: null };
          window.asked = [];
          const needPicture = async (step) => asked.push(step) && recording.pictures[step];
          open({ needPicture }).show(grow(0));
        }"""
    )
    first = show.latents_to_pil(trace.steps[0].model_input).resize((128, 128), 0)
    assert np.abs(pixels(page, ".sdx-stage canvas") - np.asarray(first)).max() <= 1
    page.evaluate("view.show(grow(2))")
    page.evaluate("view.go({ step: 2, word: 'rest' })")  # as a link may ask, too early
    assert "Step 2 of 4" in page.locator(".sdx-readout").inner_text()
    assert page.locator(".sdx-ticks .sdx-done").count() == 2
    page.focus(".sdx-slider")
    page.keyboard.press("Home")  # now the reader has chosen a step, and stays there
    page.evaluate("view.show(grow(4))")
    assert page.evaluate("[view.state.step, asked[0]]") == [0, 0]
    page.evaluate("growing = { ...growing }; view.show(grow(1)); view.go({ step: 2 })")
    page.evaluate("view.show(grow(2)); asked = []")
    assert page.evaluate("[view.state.step, view.state.word]") == [1, "rest"]  # the same prompt
    page.evaluate("view.show(grow(3)); view.show(grow(4))")
    assert page.evaluate("[view.state.step, asked[0]]") == [2, 2]  # as the link had asked
    page.evaluate(
        "growing.picture = recording.picture; view.show(growing); view.go({ step: 3, word: null })"
    )
    page.wait_for_function("asked.length === 2 && !document.querySelector('.sdx-waiting')")
    page.click(".sdx-panel:has-text('Finished')")
    assert np.abs(pixels(page, ".sdx-stage canvas") - np.asarray(trace.image)).max() <= 1
    page.evaluate("view.destroy()")
    assert page.locator("#view").inner_html() == ""


def test_it_plays_from_noise_to_picture(page):
    page.clock.install()
    page.emulate_media(reduced_motion="reduce")
    shown(page)
    page.click(".sdx-play")
    seen = []
    for _ in range(4):
        seen.append(page.evaluate("view.state.step"))
        page.clock.run_for(1500)
    assert seen == [0, 1, 2, 3]
    assert page.get_by_role("button", name="Play the steps").count() == 1


def test_what_was_not_recorded_is_said(page):
    page.evaluate("open().show({ ...recording, layers: [], rows: [], maps: [] })")
    assert page.get_by_text("No heat maps were recorded").is_visible()
    assert not page.locator(".sdx-thumbs").is_visible()
    page.evaluate("open().show({ ...recording, maps: [], mean_maps: recording.maps[0] })")
    assert page.locator(".sdx-over").inner_text() == "mean over steps"
    lion = {"text": "lion", "positions": [1], "known": False}
    odd = {"cut_off": ["two", "three"], "words": [lion]}
    without = "layers: [], rows: [], maps: [], tokens: { ...recording.tokens, ...odd }"
    page.evaluate(f"(odd) => open().show({{ ...recording, {without} }})", odd)
    assert "“lion”: postcards never learnt this word" in page.locator(".sdx-notes").inner_text()
    assert page.locator(".sdx-notes s").inner_text() == "two three"


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [360, 1280])
def test_axe_finds_nothing_wrong(page, scheme, width):
    axe = pytest.importorskip("axe_playwright_python.sync_playwright").Axe()
    page.set_viewport_size({"width": width, "height": 800})
    page.emulate_media(color_scheme=scheme)
    shown(page)
    page.evaluate("view.go({ word: 2, step: 1, panel: 'noise' })")
    page.click("text=The heat map in numbers")
    page.click("summary:has-text('Keys')")
    found = axe.run(page).response["violations"]
    assert [(one["id"], [node["html"] for node in one["nodes"]]) for one in found] == []
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")


def test_settings_give_what_the_docstring_says(postcards):
    trace, maps = draw(postcards, **settings(postcards))
    assert len(show.explore(postcards, trace, maps).data) < 0.5e6
