"""Figures and the command line: what they write, and what they refuse."""

import os
import subprocess
import sys
import warnings

import numpy as np
import pytest
import torch
from matplotlib.text import Text
from PIL import Image

import sdlearn
from sdlearn import show
from sdlearn.__main__ import main
from sdlearn.postcards import GUIDANCE, STEPS


def texts(figure) -> list[str]:
    """Return all that is written in a figure, as a reader sees it."""
    figure.draw_without_rendering()
    found = [text.get_text() for text in figure.findobj(Text) if text.get_visible()]
    return [text.replace(r"\$", "$") for text in found if text]


def panels(figure) -> list[np.ndarray]:
    """Return the pictures in a figure, in order."""
    return [image.get_array() for axes in figure.axes for image in axes.images]


SETTINGS = {"num_inference_steps": 7, "guidance_scale": 3.0}


@pytest.fixture(scope="module")
def drawn(random_pipe):
    with sdlearn.capture_attention(random_pipe) as maps:
        generator = torch.Generator().manual_seed(5)
        trace = sdlearn.text_to_image(
            random_pipe, "a red cat, 2 dogs", generator=generator, **SETTINGS
        )
    return random_pipe, trace, maps


def test_the_filmstrip_shows_the_run(drawn):
    pipe, trace, maps = drawn
    figure = show.filmstrip(pipe, trace, maps)
    written = texts(figure)
    shown = [0, 1, 2, 4, 5, 6]  # six of the seven steps
    titles = [t for t in written if ", t = " in t]
    times = [int(trace.steps[i].t) for i in shown]
    assert titles == [
        f"starting noise, t = {times[0]}",
        *(f"step {i + 1}, t = {t}" for i, t in zip(shown[1:], times[1:])),
    ]
    words = ["a", "red", "cat", "2", "dogs"]
    quoted = [f'"{text}"' for text in (*words, trace.prompts[0])]
    assert [text for text in written if text[0] == '"'] == quoted
    assert written.count("pad") == 77 - 8
    pictures = panels(figure)
    assert len(pictures) == 3 * 6 + 5 + 1
    assert np.array_equal(pictures[0], np.asarray(show.latents_to_pil(trace.steps[0].latents)))
    overlay = show.map_overlay(trace.image, maps.heat_map("cat"))
    assert np.array_equal(pictures[20], np.asarray(overlay))
    assert np.array_equal(pictures[23], np.asarray(trace.image))


def test_a_filmstrip_of_one_step(random_pipe):
    with sdlearn.capture_attention(random_pipe) as maps:
        trace = sdlearn.text_to_image(random_pipe, "a cat", num_inference_steps=1)
    assert len(panels(show.filmstrip(random_pipe, trace, maps))) == 3 + 2 + 1


# What would be a formula, a picture, and a letter that the font lacks.
ODD = "$5 or $10 of $\\frac$ caf\u00e9 \N{SLICE OF PIZZA} \u732b"


def test_a_prompt_is_shown_as_it_is_whatever_is_in_it(random_pipe, tmp_path):
    """With every warning an error: matplotlib warns of letters that its font lacks."""
    prompt = f"cat {ODD}"
    with sdlearn.capture_attention(random_pipe) as maps:
        trace = sdlearn.text_to_image(random_pipe, prompt, num_inference_steps=2)
    figures = [
        show.filmstrip(random_pipe, trace, maps),
        show.parts_diagram(random_pipe, prompt, num_inference_steps=1),
        show.pictures({prompt: trace.image}),
        show.heat_maps(trace.image, maps, ["cat", "\N{SLICE OF PIZZA}"]),
    ]
    with warnings.catch_warnings(action="error"):
        for figure in figures:
            figure.savefig(tmp_path / "figure.png")
    for figure in figures[:3]:
        written = " ".join(" ".join(texts(figure)).split())
        assert "cat $5 or $10 of $\\frac$ caf\u00e9 [slice of pizza] \N{WHITE SQUARE}" in written


def test_a_measured_number_is_printed_and_guarded(random_pipe, postcards, capsys):
    show.measured("share", torch.tensor(0.5), 0.4, 0.6)
    assert capsys.readouterr().out == "share ≈ 0.50\n"
    with pytest.raises(AssertionError, match=r"share: 0.7 is not within 0.4 to 0.6"):
        show.measured("share", 0.7, 0.4, 0.6)
    with pytest.raises(AssertionError, match="nan"):
        show.measured("share", float("nan"), 0.4, 0.6)
    with pytest.raises(AssertionError):
        show.measured("share", 0.7, 0.4, 0.6, pipe=postcards)
    show.measured("share", 0.7, 0.4, 0.6, pipe=random_pipe)  # The text speaks of postcards alone.


def test_text_in_figures_is_wrapped_and_cut():
    assert show.plain("one two three", 7) == "one two\nthree"
    assert show.plain("word " * 99, 10, lines=2) == "word word\nword …"
    assert show.plain("e\u0301 \U0001f44d\U0001f3fd") == "\u00e9 [thumbs up sign]"


def test_the_command_writes_the_picture_and_its_filmstrip(tmp_path, capsys):
    out = tmp_path / "cat.png"
    options = ["--model", "postcards", "--steps", "1", "--guidance", "3", "--seed", "5"]
    assert main(["a red cat, 2 dogs", *options, "--out", str(out)]) == 0
    expected = sdlearn.text_to_image(
        sdlearn.load("postcards"),
        "a red cat, 2 dogs",
        num_inference_steps=1,
        guidance_scale=3,
        generator=torch.Generator().manual_seed(5),
    ).image
    assert np.array_equal(np.asarray(Image.open(out)), np.asarray(expected))
    files = {path.name for path in tmp_path.iterdir()}
    assert files == {"cat.png", "cat-filmstrip.png"}
    printed = capsys.readouterr()
    assert str(out) in printed.out
    assert printed.err == ""


def test_the_command_draws_with_the_settings_that_suit_postcards(tmp_path):
    assert main(["an owl", "--model", "postcards", "--out", str(tmp_path / "owl.png")]) == 0
    expected = sdlearn.text_to_image(
        sdlearn.load("postcards"),
        "an owl",
        num_inference_steps=STEPS,
        guidance_scale=GUIDANCE,
        generator=torch.Generator().manual_seed(0),
    ).image
    assert np.array_equal(np.asarray(Image.open(tmp_path / "owl.png")), np.asarray(expected))


def test_the_command_says_which_words_were_cut_off(tmp_path, capfd):
    prompt = "cat " * 74 + "one two three four red blue green"
    assert main([prompt, "--steps", "1", "--out", str(tmp_path / "cat.png")]) == 0
    said = capfd.readouterr().err
    assert said == (
        "sdlearn: too long for 77 tokens, cut off: two three four red blue … (6 words)\n"
    )


def test_the_command_says_which_words_postcards_has_not_learnt(tmp_path, capfd):
    options = ["--steps", "1", "--out", str(tmp_path / "cat.png")]
    assert main(["a lion", "--negative-prompt", "kitty", *options]) == 0
    said = capfd.readouterr().err
    assert said.startswith("sdlearn: postcards has not learnt: lion, kitty (near: kitten). It ")
    assert said.count("\n") == 1


@pytest.fixture
def no_model(monkeypatch):
    """Whoever loads a model has begun too early."""
    monkeypatch.setattr("sdlearn.load", lambda *_: pytest.fail("loaded before the check"))


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["--out", "no-such-folder/cat.png"], "no folder 'no-such-folder' to write 'cat.png' to"),
        (
            ["--out", "cat.txt"],
            "cannot write to 'cat.txt'; its name must end in ('.png',",
        ),
        (["--out", "."], "cannot write to '.'; its name must end in"),
        (["--out", "d.png"], "cannot write to 'd-filmstrip.png'; move it away"),
        (["--out", "taken.png"], "cannot write to 'taken.png'"),
        (["--seed", str(2**70)], "--seed must be from 0 to 2**64 - 1, got 11805"),
        (["--seed", "-1"], "--seed must be from 0 to 2**64 - 1, got -1"),
    ],
)
def test_the_command_checks_before_it_draws(
    arguments, named, tmp_path, monkeypatch, capsys, no_model
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "taken.png").mkdir()
    (tmp_path / "d-filmstrip.png").mkdir()
    assert main(arguments) == 2
    said = capsys.readouterr().err
    assert said.startswith(f"sdlearn: {named}")
    assert said.count("\n") == 1
    assert {path.name for path in tmp_path.iterdir()} == {"taken.png", "d-filmstrip.png"}


def test_a_folder_that_cannot_be_written_to(tmp_path, monkeypatch, capsys, no_model):
    """Root may write anywhere, so the answer is played here."""

    def mkdir(path, *_):
        raise PermissionError(13, "Permission denied", path)

    monkeypatch.setattr("os.mkdir", mkdir)
    assert main(["--out", str(tmp_path / "cat.png")]) == 2
    assert "Permission denied" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["--model", "no-such-model"], "no model 'no-such-model'"),
        (["--model", "sd15"], "with HF_HUB_OFFLINE no hub can be reached. To do"),
        (["--model", "postcards", "--steps", "0"], "between 1 and 1000, got 0"),
        (["--model", "postcards", "--guidance", "nan"], "finite, got nan"),
    ],
)
def test_the_command_says_what_was_wrong_and_writes_nothing(
    arguments, named, tmp_path, monkeypatch, capfd
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    assert main(arguments) == 2
    said = capfd.readouterr().err
    assert named in said
    assert said.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("error", "status", "said"),
    [
        (KeyboardInterrupt(), 130, "sdlearn: stopped"),
        (OSError(28, "No space left on device"), 2, "sdlearn: [Errno 28] No space left on device"),
    ],
    ids=["Ctrl-C", "full disk"],
)
def test_half_a_result_is_not_left(error, status, said, tmp_path, monkeypatch, capsys):
    """The picture is on the disk when the filmstrip fails; an older one stays."""
    (tmp_path / "cat.png").write_bytes(b"older")
    monkeypatch.setattr("matplotlib.figure.Figure.savefig", lambda *_, **__: raise_(error))
    assert main(["a cat", "--steps", "1", "--out", str(tmp_path / "cat.png")]) == status
    assert capsys.readouterr().err.strip() == said
    assert [path.name for path in tmp_path.iterdir()] == ["cat.png"]
    assert (tmp_path / "cat.png").read_bytes() == b"older"


def raise_(error):
    raise error


def test_packages_that_do_not_fit_together(tmp_path):
    """An old peft asks transformers for what it no longer has."""
    (tmp_path / "peft").mkdir()
    (tmp_path / "peft" / "__init__.py").write_text("from transformers import HybridCache")
    command = [sys.executable, "-m", "sdlearn", "--out", str(tmp_path / "cat.png")]
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 2
    assert "packages do not fit together (cannot import name 'HybridCache'" in done.stderr
    assert "try: pip install --upgrade" in done.stderr
    assert "Traceback" not in done.stderr


def test_every_picture_has_alternative_text(monkeypatch):
    """In each of the forms that notebooks are read in; HTML where JupyterLab shows them."""
    image = Image.new("RGB", (4, 4))
    alt = '4 < 5 & "six"'
    monkeypatch.delenv("JPY_SESSION_NAME", raising=False)
    data, metadata = show.picture(image, alt)._repr_mimebundle_()
    assert set(data) == {"image/png", "text/plain"}
    assert data["text/plain"] == metadata["image/png"]["alt"] == alt
    monkeypatch.setenv("JPY_SESSION_NAME", "00-start-here.ipynb")
    data, _ = show.picture(image, alt)._repr_mimebundle_()
    assert 'alt="4 &lt; 5 &amp; &quot;six&quot;"' in data["text/html"]
    with pytest.raises(ValueError, match="alt"):
        show.picture(image, " ")


def test_latents_show_their_first_three_channels():
    latents = torch.zeros(1, 4, 2, 3)
    latents[0, 0], latents[0, 1], latents[0, 2] = 9, -9, 0
    assert np.asarray(show.latents_to_pil(latents)).tolist() == [[[255, 0, 128]] * 3] * 2


def test_an_overlay_leaves_the_picture_where_the_map_is():
    heat_map = torch.zeros(4, 6)
    heat_map[1, 2] = 1
    overlay = np.asarray(show.map_overlay(Image.new("RGB", (6, 4), "grey"), heat_map))
    assert overlay.shape == (4, 6, 3)
    assert (overlay[1, 2] == 128).all() and overlay.sum() == 3 * (128 + 23 * 255)


def test_a_prompt_is_drawn_when_it_changes_and_unknown_words_are_named(postcards):
    box = show.prompt_explorer(postcards, "a red cat", seed=3)
    text, number, said, shown = box.children
    states = []
    said.observe(lambda change: states.append(change["new"]), names="value")
    before = shown.value
    assert "a red cat" in before
    text.value = "a lion"
    assert shown.value != before
    assert states[0] == "drawing …" and "lion" in states[-1]
    before = shown.value
    number.value = 4
    assert shown.value != before


def test_choices_redraw_for_the_values_chosen():
    def draw(steps, sampler):
        return show.picture(Image.new("RGB", (4, 4)), f"{sampler} {steps}")

    box = show.choices(draw, steps=[10, 1, 5], sampler=["Euler", "DDIM"])
    slider, menu, shown = box.children
    assert 'alt="Euler 10"' in shown.value
    assert list(slider.options) == [1, 5, 10]
    slider.value, menu.value = 5, "DDIM"
    assert 'alt="DDIM 5"' in shown.value


def test_what_is_painted_becomes_a_mask():
    painter = show.mask_painter(Image.new("RGB", (32, 16)))
    assert (painter.rows, painter.columns) == (2, 4)
    painter.painted = [1, 6]
    expected = np.zeros((16, 32))
    expected[:8, 8:16] = expected[8:, 16:24] = 255
    assert np.array_equal(painter.mask, expected)
    assert "2 painted" in repr(painter)  # and not the picture's bytes, which a chapter would keep
    with pytest.raises(ValueError, match=r"the picture is \(30, 16\).* multiples of 8"):
        show.mask_painter(Image.new("RGB", (30, 16)))
