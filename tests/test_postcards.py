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
from sdlearn.postcards import about_unknown_words, unknown_words, words, world
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
    captions = {words.caption(scene, random.Random(i)) for i in range(200)}
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


NOUNS = {noun: name for name in world.SUBJECTS for noun in (name, *words.SYNONYMS.get(name, []))}
NOUNS |= {words.PLURALS.get(noun, noun + "s"): name for noun, name in NOUNS.items()}
NUMBERS = {word: count for count, said in words.COUNT_WORDS.items() for word in said}
NUMBERS |= {"a": 1, "an": 1, "pair of": 2}  # "the" says no number
SIZES = "|".join(word for said in words.SIZE_WORDS.values() for word in said)
COLOURS = "|".join(world.COLOURS)
THING = re.compile(
    rf"(?:the )?(?:(?P<count>{'|'.join(NUMBERS)}) )?(?:(?:{'|'.join(words.FILLERS)}) )?"
    rf"(?:(?:{SIZES}) )?(?:(?P<colour>{COLOURS}) )?(?:(?:{SIZES}) )?(?P<noun>{'|'.join(NOUNS)})"
    rf"(?: (?:{'|'.join(words.VERBS)}))?"
)
# What stands nearer stands lower.
SIDES = {word: world.SIDES[name] for name, said in words.RELATION_WORDS.items() for word in said}
SIDES |= {"in front of": world.SIDES["below"], "behind": world.SIDES["above"]}
ANYWHERE = sorted({join.strip(" ") for join in words.JOINS + words.BESIDE}, key=len, reverse=True)


def read_phrase(table, caption):
    """Return which entry of a table a caption names, and the caption without it."""
    phrases = [(said, name) for name in table for said in table[name]]
    for said, name in sorted(phrases, reverse=True, key=lambda entry: len(entry[0])):
        if re.search(rf"\b{said}\b", caption):
            return name, re.sub(rf"\b{said}\b", "", caption).strip(" ,")
    return None, caption


def read_sides(caption):
    """Return where each thing stands (None: unsaid), and the words for it."""
    for here, there in world.SIDES.values():
        if said := re.fullmatch(f"{here} (.*), {there} (.*)", caption):
            return (here, there), said.groups()
    if said := re.fullmatch(f"(.*?) ({'|'.join(sorted(SIDES, reverse=True))}) (.*)", caption):
        return SIDES[said[2]], (said[1], said[3])
    if said := re.fullmatch(f"(.*?) ?({'|'.join(ANYWHERE)}) (.*)", caption):
        return (None, None), (said[1], said[3])
    return (None,), (caption,)


def contradicts(phrase, thing, count):
    """Return what is said of a thing that is not so."""
    said = THING.fullmatch(phrase)
    subject, number = NOUNS[said["noun"]], NUMBERS.get(said["count"], count)
    also = {"duck": "bird", "owl": "bird", "penguin": "bird"}.get(thing.subject)
    wrong = {"subject"} if subject not in (thing.subject, also) else set()
    wrong |= {"colour"} if said["colour"] not in (None, thing.colour) else set()
    return wrong | ({"count"} if number != count else set())


def contradictions(caption, scene):
    """Return what a caption says that is not so in the scene."""
    caption = re.sub(f"^({'|'.join(words.MEDIA)}) ", "", caption)
    time, rest = read_phrase(words.MOMENTS, caption)
    setting, rest = read_phrase(words.PLACES, rest)
    if scene.count == 0:
        views, skies = (
            {name: [words.bare(phrase) for phrase in said] for name, said in table.items()}
            for table in (words.VIEWS, words.SKIES)
        )
        setting, rest = (setting, rest) if setting else read_phrase(views, rest)
        time, rest = (time, rest) if time else read_phrase(skies, rest)
        assert set(rest.split()) <= {"a", "an", "the", *words.EMPTY}, (caption, rest)
    wrong = {"setting"} if setting not in (None, scene.setting) else set()
    wrong |= {"time"} if time not in (None, scene.time) else set()
    if scene.count == 0:
        return wrong
    sides, phrases = read_sides(rest)
    things = [scene.first] + ([scene.second] if scene.second else [])
    if None not in sides:
        stands = dict(zip(world.SIDES[scene.relation], things))
        things = [stands.get(side) for side in sides]
        if None in things:
            return wrong | {"places"}
    assert len(things) == len(phrases), caption
    read = [contradicts(phrase, thing, scene.count) for phrase, thing in zip(phrases, things)]
    if sides == (None, None):  # In either order: that in which the caption is truer.
        crossed = [contradicts(phrase, thing, 1) for phrase, thing in zip(phrases, things[::-1])]
        read = min(read, crossed, key=lambda found: len(set().union(*found)))
    return wrong.union(*read)


def test_a_caption_is_true_of_its_picture_and_that_of_a_near_miss_is_not():
    pictures = Postcards(4000)
    for i in range(4000):
        scene, (caption, wrong_caption) = pictures.scene(i), pictures.captions(i)
        assert not contradictions(caption, scene), (caption, scene)
        assert contradictions(wrong_caption, scene), (wrong_caption, scene)


def test_words_that_no_caption_has_are_named_with_the_nearest_known_one():
    assert unknown_words("A photo of a LION, and a kitty!") == {"lion": None, "kitty": "kitten"}
    assert unknown_words("red car, blue house; 3 apples at sunset") == {}
    assert unknown_words("") == {}
    pictures = Postcards(2000)
    for i in range(2000):
        assert unknown_words(pictures.captions(i)[0]) == {}


def test_wordings_kept_for_measuring_are_new_and_true():
    rng = random.Random(0)
    for _ in range(300):
        scene = replace(world.sample_scene(rng, (3, 1, 2, 1)), relation=None, size="medium")
        said = words.unseen_wording(scene)
        assert unknown_words(said) or " & " in said, said
        for new, old in (
            *((f" {word}", "") for word in words.UNSEEN_VERBS),
            *((f"{word} ", "") for word in words.UNSEEN_FILLERS),
            *((f"{word} ", "") for word in words.UNSEEN_MEDIA),
            *((f"{word} ", "empty ") for word in words.UNSEEN_EMPTY),
            *((word, " and ") for word in words.UNSEEN_JOINS),
        ):
            said = said.replace(new, old)
        assert unknown_words(said) == {}, said
        assert not contradictions(said, scene), said


def test_unknown_words_are_told_of_the_shipped_model_alone(postcards, random_pipe):
    assert about_unknown_words(postcards, "a cat") is None
    assert "not learnt: lion. It knows: cat, dog," in about_unknown_words(postcards, "a lion")
    assert about_unknown_words(random_pipe, "a lion") is None


@pytest.mark.parametrize("count", [0, 1])
def test_what_a_scene_leaves_open_its_seed_decides(count):
    open_scene = Scene(Thing("cat"), None, None, count, setting=None, time=None, seed=5)
    assert world.settled(open_scene) == world.settled(open_scene)
    seeds = [replace(open_scene, seed=seed) for seed in range(40)]
    assert {world.settled(scene).setting for scene in seeds} == set(world.SETTINGS)
    assert np.array_equal(render(open_scene), render(world.settled(open_scene)))
    assert len(boxes(open_scene)) == count


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
        embeds = sdlearn.encode_prompt(postcards, [words.sentence(scene) for scene in scenes])
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
