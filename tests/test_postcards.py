"""The world of postcards: what is drawn, and that the words say what is drawn."""

import colorsys
import random
import re
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import seeded

import sdlearn
from sdlearn.postcards import world
from sdlearn.postcards.data import Postcards
from sdlearn.postcards.evaluate import true_renders
from sdlearn.postcards.render import RAMPS, SIZE, boxes, render, sprite
from sdlearn.postcards.world import Scene, Thing
from sdlearn.training import clip


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
        (
            Scene(Thing("owl"), Thing("bear"), relation="below"),
            "at the bottom an owl, at the top a bear",
        ),
    ],
)
def test_captions_are_english(scene, said):
    captions = {world.caption(scene, random.Random(i)) for i in range(200)}
    assert any(said in caption for caption in captions)
    assert len(captions) > 20  # natural variety


def test_measuring_does_not_import_training():
    code = (
        "import sys, sdlearn.postcards.data, sdlearn.postcards.evaluate, sdlearn.postcards.judge\n"
        "assert not [name for name in sys.modules if name.startswith('sdlearn.training')]"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_sprites_cover_whole_latent_cells_inside_the_picture_and_apart():
    rng = random.Random(0)
    for scene in (world.sample_scene(rng) for _ in range(2000)):
        centres = []
        for _, x, y, size in boxes(scene):
            corner = x - size // 2, y - size // 2
            assert all(side % 8 == 0 for side in (*corner, size))
            assert min(corner) >= 0
            assert max(corner) + size <= SIZE
            assert all(abs(x - u) >= size or abs(y - v) >= size for u, v in centres)
            centres.append((x, y))


@pytest.mark.parametrize("relation", world.RELATIONS)
def test_two_subjects_stand_as_the_caption_says(relation):
    for seed in range(50):
        scene = Scene(Thing("owl"), Thing("bear"), relation=relation, seed=seed)
        (_, x, y, _), (_, u, v, _) = boxes(scene)
        ahead = {"left of": u - x, "right of": x - u, "above": v - y, "below": y - v}[relation]
        aside = abs(y - v) if relation.endswith("of") else abs(x - u)
        assert ahead > aside


def test_easy_pictures_show_one_of_the_first_subjects_and_not_small():
    for i in range(100):
        scene = Postcards(1, first_seed=i, lesson="easy").scene(0)
        assert (scene.second, scene.count) == (None, 1)
        assert scene.size != "small"
        assert scene.first.subject in world.FIRST_SUBJECTS


NOUNS = {noun: name for name in world.SUBJECTS for noun in (name, *world.SYNONYMS.get(name, []))}
NOUNS |= {world.PLURALS.get(noun, noun + "s"): name for noun, name in NOUNS.items()}
NUMBERS = {word: count for count, words in world.COUNT_WORDS.items() for word in words}
NUMBERS |= {"a": 1, "an": 1}
SIZES = [word for words in world.SIZE_WORDS.values() for word in words]
THING = re.compile(
    rf"(?:(?P<count>{'|'.join(NUMBERS)}) )?(?:(?:{'|'.join(SIZES)}) )?"
    rf"(?:(?P<colour>{'|'.join(world.COLOURS)}) )?(?P<noun>{'|'.join(NOUNS)})"
)


def read_phrase(table, caption):
    """Return which entry of PLACES or MOMENTS a caption names, and the caption without it."""
    for meaning, phrases in table.items():
        for phrase in phrases:
            if re.search(rf"\b{phrase}\b", caption):
                return meaning, caption.replace(phrase, "").strip(" ,")
    return None, caption


def read_sides(caption):
    """Return where each thing stands, None if it is the only one, and the words for it."""
    for here, there in world.SIDES.values():
        if said := re.fullmatch(f"{here} (.*), {there} (.*)", caption):
            return (here, there), said.groups()
    if said := re.fullmatch("(.*?) (?:to the )?(left of|right of|above|below) (.*)", caption):
        return world.SIDES[said[2]], (said[1], said[3])
    return (None,), (caption,)


def contradictions(caption, scene):
    """Return what a caption says that is not so in the scene."""
    setting, words = read_phrase(world.PLACES, caption)
    time, words = read_phrase(world.MOMENTS, words)
    sides, phrases = read_sides(re.sub("^a (postcard|picture|photo) of ", "", words))
    wrong = {"setting"} if setting not in (None, scene.setting) else set()
    wrong |= {"time"} if time not in (None, scene.time) else set()
    shown = {None: scene.first}
    if scene.second:
        shown = dict(zip(world.SIDES[scene.relation], (scene.first, scene.second)))
    for side, phrase in zip(sides, phrases):
        said, thing = THING.fullmatch(phrase), shown[side]
        subject, also = NOUNS[said["noun"]], {"duck": "bird", "owl": "bird", "penguin": "bird"}
        wrong |= {"subject"} if subject not in (thing.subject, also.get(thing.subject)) else set()
        wrong |= {"colour"} if said["colour"] not in (None, thing.colour) else set()
        wrong |= {"count"} if said["count"] and NUMBERS[said["count"]] != scene.count else set()
    return wrong


def test_a_caption_is_true_of_its_picture_and_that_of_a_near_miss_is_not():
    pictures = Postcards(4000)
    for i in range(4000):
        scene, (caption, wrong_caption) = pictures.scene(i), pictures.captions(i)
        assert not contradictions(caption, scene), (caption, scene)
        assert contradictions(wrong_caption, scene), (wrong_caption, scene)


def test_training_data_depends_on_the_index_alone():
    first, again = Postcards(8)[5], Postcards(9)[5]
    assert first["caption"] == again["caption"]
    assert first["pixels"].equal(again["pixels"])
    assert first["pixels"].shape == (3, 128, 128)
    assert first["pixels"].abs().max() <= 1


@torch.no_grad()
def test_the_prompt_decides_which_of_two_things_stands_where(postcards):
    # At t = 900 noise hides the picture, so that only the words can tell.
    unseen = Postcards(200, first_seed=10**9)
    pairs = [scene for i in range(200) if (scene := unseen.scene(i)).second is not None][:32]
    swapped = [replace(scene, first=scene.second, second=scene.first) for scene in pairs]
    pixels = true_renders(pairs) / 2 + 0.5
    latents = sdlearn.encode_image(postcards, pixels, sample=False)
    noise = torch.randn(latents.shape, generator=seeded())
    noisy = sdlearn.add_noise(postcards, latents, noise, 900)

    def errors(scenes):
        embeds = sdlearn.encode_prompt(postcards, [world.sentence(scene) for scene in scenes])
        predicted = sdlearn.predict_noise(postcards, noisy, 900, embeds, guidance_scale=1).text
        return (predicted - noise).square().mean(dim=(1, 2, 3))

    assert (errors(pairs) < errors(swapped)).sum() >= 26  # By chance: one time in 3,700.


@torch.no_grad()
def test_the_image_encoder_knows_which_caption_belongs_to_a_picture(postcards):
    unseen = Postcards(128, first_seed=10**9)
    examples = [unseen[i] for i in range(128)]
    model = clip.Contrast(postcards.text_encoder, postcards.image_encoder)
    pixels = torch.stack([example["pixels"] for example in examples])
    ids = postcards.tokenizer([e["caption"] for e in examples], padding=True, return_tensors="pt")
    best = model(pixels, ids.input_ids)[0].argmax(dim=1)
    assert (best == torch.arange(128)).float().mean() > 0.5  # By chance: 0.01.
    assert clip.tell_apart(model, examples, postcards.tokenizer) > 0.7  # By chance: 0.5.
