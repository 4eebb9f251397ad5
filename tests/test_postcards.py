"""The world of postcards: what is drawn, and that the words say what is drawn."""

import colorsys
import random

import numpy as np
import pytest

from sdlearn.postcards import world
from sdlearn.postcards.render import RAMPS, render, sprite
from sdlearn.postcards.world import Scene, Thing
from sdlearn.training.data import Postcards, near_miss


def test_a_scene_always_gives_the_same_pixels():
    scene = Scene(Thing("cat", "red"), setting="beach", time="sunset", seed=3)
    assert np.array_equal(np.asarray(render(scene)), np.asarray(render(scene)))
    moved = Scene(Thing("cat", "red"), setting="beach", time="sunset", seed=4)
    assert not np.array_equal(np.asarray(render(scene)), np.asarray(render(moved)))


@pytest.mark.parametrize("colour", world.COLOURS)
def test_recoloured_sprites_have_the_hue_of_their_colour(colour):
    def hue(rgb):
        return colorsys.rgb_to_hsv(*np.divide(rgb, 255))[0]

    hues = {name: hue(ramp[1]) for name, ramp in RAMPS.items() if name != "black"}
    for subject in world.SUBJECTS:
        pixels = np.asarray(sprite(Thing(subject, colour), 64), dtype=float)
        median = np.median(pixels[pixels[..., 3] > 200][:, :3], axis=0)
        if colour == "black":
            assert median.max() < 110, subject
            continue
        # Hue is an angle: 0 and 1 are the same red.
        away = {name: abs((hue(median) - own + 0.5) % 1 - 0.5) for name, own in hues.items()}
        assert min(away, key=away.get) == colour, subject


def test_training_never_shows_what_is_held_out_but_shows_every_part_of_it():
    rng = random.Random(0)
    scenes = [world.sample_training_scene(rng) for _ in range(8000)]
    assert not any(world.is_held_out(scene) for scene in scenes)
    pairs = {(scene.first.subject, scene.first.colour) for scene in scenes}
    held_out = [
        Thing(subject, colour)
        for subject in world.SUBJECTS
        for colour in world.COLOURS
        if world.is_held_out_pair(Thing(subject, colour))
    ]
    assert len(held_out) == len(world.SUBJECTS) * len(world.COLOURS) / 9
    for thing in held_out:
        assert any(subject == thing.subject for subject, _ in pairs)
        assert any(colour == thing.colour for _, colour in pairs)


@pytest.mark.parametrize(
    ("scene", "said"),
    [
        (Scene(Thing("fox", "orange")), "an orange fox"),
        (Scene(Thing("unicorn")), "a unicorn"),
        (Scene(Thing("elephant")), "an elephant"),
        (Scene(Thing("butterfly", "red"), count=3), "three red butterflies"),
        (Scene(Thing("fish", "blue"), count=4), "four blue fish"),
        (Scene(Thing("owl"), Thing("bear"), relation="above"), "an owl above a bear"),
    ],
)
def test_captions_are_english(scene, said):
    captions = {world.caption(scene, random.Random(i)) for i in range(200)}
    assert any(said in caption for caption in captions)
    assert len(captions) > 20  # natural variety


def test_a_near_miss_is_never_described_by_the_same_words():
    for i in range(300):
        scene = Postcards(1, first_seed=i).scene(0)
        wrong = near_miss(scene, random.Random(i))
        kept = (scene.first, scene.second, scene.relation, scene.count, scene.setting, scene.time)
        assert kept != (
            wrong.first, wrong.second, wrong.relation, wrong.count, wrong.setting, wrong.time
        )  # fmt: skip


def test_training_data_depends_on_the_index_alone():
    first, again = Postcards(8)[5], Postcards(9)[5]
    assert first["caption"] == again["caption"]
    assert first["pixels"].equal(again["pixels"])
    assert first["pixels"].shape == (3, 128, 128)
    assert first["pixels"].abs().max() <= 1
