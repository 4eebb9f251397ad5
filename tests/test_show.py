"""Figures and the command line: what they write, and what they refuse."""

import numpy as np
import pytest
import torch
from IPython.display import HTML
from PIL import Image

import sdlearn
from sdlearn import show
from sdlearn.__main__ import main


def test_the_command_writes_the_picture_and_its_filmstrip(tmp_path, capsys):
    out = tmp_path / "cat.png"
    options = ["--model", "postcards", "--steps", "2", "--guidance", "3", "--seed", "5"]
    assert main(["a red cat, 2 dogs", *options, "--out", str(out)]) == 0
    expected = sdlearn.text_to_image(
        sdlearn.load("postcards"),
        "a red cat, 2 dogs",
        num_inference_steps=2,
        guidance_scale=3,
        generator=torch.Generator().manual_seed(5),
    ).image
    assert np.array_equal(np.asarray(Image.open(out)), np.asarray(expected))
    strip = Image.open(tmp_path / "cat-filmstrip.png")
    assert strip.width > 1000
    assert str(out) in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["--out", "no-such-folder/cat.png"], "no-such-folder"),
        (["--model", "no-such-model"], "no-such-model"),
        (["--model", "sd15"], "go online"),
        (["--model", "postcards", "--steps", "0"], "0"),
        (["--model", "postcards", "--guidance", "nan"], "nan"),
    ],
)
def test_the_command_says_what_was_wrong_and_writes_nothing(
    arguments, named, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert main(arguments) == 2
    assert named in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_every_picture_has_alternative_text():
    image = Image.new("RGB", (4, 4))
    assert 'alt="4 &lt; 5 &amp; &quot;six&quot;"' in show.picture(image, '4 < 5 & "six"').data
    with pytest.raises(ValueError, match="alt"):
        show.picture(image, " ")


def test_latents_show_their_first_three_channels():
    latents = torch.zeros(1, 4, 2, 3)
    latents[0, 0], latents[0, 1], latents[0, 2] = 9, -9, 0
    assert np.asarray(show.latents_to_pil(latents)).tolist() == [[[255, 0, 128]] * 3] * 2


def test_an_overlay_is_brightest_where_the_map_is():
    heat_map = torch.zeros(4, 6)
    heat_map[1, 2] = 1
    overlay = np.asarray(show.map_overlay(Image.new("RGB", (6, 4), "grey"), heat_map)).sum(axis=2)
    assert overlay.shape == (4, 6)
    assert np.unravel_index(overlay.argmax(), overlay.shape) == (1, 2)


def test_choices_redraw_for_the_values_chosen():
    def draw(steps, sampler):
        return HTML(f"{sampler} {steps}")

    box = show.choices(draw, steps=[10, 1, 5], sampler=["Euler", "DDIM"])
    slider, menu, shown = box.children
    assert shown.value == "Euler 10"
    assert list(slider.options) == [1, 5, 10]
    slider.value, menu.value = 5, "DDIM"
    assert shown.value == "DDIM 5"
