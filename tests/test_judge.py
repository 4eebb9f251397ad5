"""The judge reads true renders right, and the measure built on it can fail."""

import random
from functools import partial

import numpy as np
import pytest
import torch

import sdlearn
from sdlearn.postcards import evaluate, tasks, words, world
from sdlearn.postcards.judge import Found, Reading, agrees, load_judge
from sdlearn.postcards.world import Scene, Thing


def test_the_judge_reads_true_renders():
    rng = random.Random("unseen by the judge")
    scenes = [world.sample_scene(rng) for _ in range(400)]
    readings = load_judge().read(evaluate.true_renders(scenes))
    right = [agrees(reading, scene) for reading, scene in zip(readings, scenes)]
    for attribute in right[0]:
        assert np.mean([found[attribute] for found in right]) >= 0.995, attribute


CAT, DOG = Thing("cat", "red"), Thing("dog", "blue")
SCENE = Scene(CAT, DOG, "left of", setting="snow", time="night")
RED_CAT, BLUE_DOG = Found("cat", "red", 30, 60), Found("dog", "blue", 90, 64)


@pytest.mark.parametrize(
    ("things", "wrong"),
    [
        ((RED_CAT, BLUE_DOG), set()),
        ((RED_CAT,), {"subjects", "count", "colours", "position"}),
        ((RED_CAT, BLUE_DOG, RED_CAT), {"count", "position"}),
        ((Found("cat", "blue", 30, 60), Found("dog", "red", 90, 60)), {"colours"}),
        ((Found("cat", "red", 90, 60), Found("dog", "blue", 30, 60)), {"position"}),
        ((Found("cat", "red", 60, 20), Found("dog", "blue", 64, 90)), {"position"}),
    ],
)
def test_each_mistake_is_told(things, wrong):
    found = agrees(Reading(things, "snow", "night"), SCENE)
    assert {name for name, right in found.items() if not right} == wrong


def test_setting_and_time_are_compared():
    found = agrees(Reading((RED_CAT, BLUE_DOG), "sea", "day"), SCENE)
    assert not found["setting"]
    assert not found["time"]


def test_wilson_interval():
    # Brown, Cai and DasGupta (2001): 10 of 20 gives 0.299 to 0.701.
    assert evaluate.wilson(10, 20) == pytest.approx((0.2993, 0.7007), abs=1e-4)
    assert evaluate.wilson(0, 10)[0] == pytest.approx(0, abs=1e-9)


@pytest.mark.parametrize("task", tasks.TASKS, ids=lambda task: task.name)
def test_every_row_of_the_table_is_right_for_true_renders(task):
    rows = evaluate.measure(None, load_judge(), task, prompts=32, seeds=1)
    assert rows.keys() == task.rows.keys()
    right, drawn = min(shares["all"] for shares in rows.values())
    assert drawn == 32
    assert right >= 31


def test_the_judge_takes_pictures_to_its_own_precision():
    pictures, judge = evaluate.true_renders(tasks.scenes_for(tasks.TASKS[4], 8, 0)), load_judge()
    readings = judge.read(pictures)
    assert judge.read(pictures.half()) == readings
    assert judge.double().read(pictures) == readings


def test_a_model_in_another_precision_is_measured_by_a_judge_in_single(monkeypatch):
    # Double: in half precision a picture takes half a minute on a CPU.
    pipe = sdlearn.load("postcards", device="cpu", dtype=torch.float64)
    rows = evaluate.measure(pipe, load_judge(), tasks.TASKS[1], prompts=2, seeds=1, steps=10)
    assert rows["colour"]["all"] == (2, 2)
    monkeypatch.setattr(evaluate, "draw", partial(evaluate.draw, steps=1))
    assert "nearer to one of 4 training pictures" in evaluate.memory(pipe, 1, 4, 5.0)
    assert len(evaluate.sheet(pipe, 5.0, each=1).axes) >= len(tasks.TASKS)


def test_prompts_name_everything():
    scene = Scene(Thing("fox", "orange"), Thing("owl"), "above", setting="sea", time="sunset")
    assert words.sentence(scene) == "an orange fox above an owl in the sea at sunset"
    assert words.sentence(Scene(Thing("cat"), count=2, setting="space")) == "two cats in space"


def test_easy_scenes_show_only_the_subjects_that_training_begins_with():
    for task in tasks.TASKS:
        scenes = tasks.scenes_for(task, 20, 0, easy=True)
        shown = {thing.subject for s in scenes for thing in (s.first, s.second) if thing}
        assert shown <= set(world.FIRST_SUBJECTS)
        assert len(shown) > 4


def test_a_copy_is_nearest_to_what_it_was_copied_from():
    rng = random.Random(0)
    pictures = evaluate.true_renders([world.sample_scene(rng) for _ in range(6)])
    copies = (pictures[:3] + 0.05 * torch.randn(3, 3, 128, 128)).clamp(-1, 1)
    distances = evaluate.nearest(copies, pictures.split(2))
    assert distances.max() < 0.02
    others = evaluate.nearest(copies, pictures[3:].split(2))
    rms = (pictures[:3, None] - pictures[3:]).square().mean(dim=(2, 3, 4)).sqrt().amin(dim=1)
    assert (others > 0.1).all()
    assert (others < rms + 0.05).all()  # reducing a picture takes details off, and noise
