"""What is measured of postcards: kinds of scenes, and the rows of the table read off each.

The rows are those of GenEval (Ghosh et al. 2023, arXiv 2310.11513), in the world of postcards, and
two more for places and times. Then prompts as people write them, in words that no caption has,
which leave open where and when; and prompts that ask for no subject.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, replace

from sdlearn.postcards import words, world
from sdlearn.postcards.world import Scene, Thing


@dataclass(frozen=True)
class Task:
    """Scenes of one kind; each row names the attributes that must all be right.

    ``say`` puts them into words.
    """

    name: str
    make: Callable[[random.Random, Scene], Scene]
    rows: dict[str, tuple[str, ...]]
    say: Callable[[Scene], str] = words.sentence


def _coloured(rng: random.Random, thing: Thing) -> Thing:
    return replace(thing, colour=rng.choice(world.COLOURS))


def _single(rng: random.Random, scene: Scene) -> Scene:
    return replace(scene, first=Thing(scene.first.subject), second=None, relation=None, count=1)


def _colour(rng: random.Random, scene: Scene) -> Scene:
    return replace(_single(rng, scene), first=_coloured(rng, scene.first))


def _two(rng: random.Random, scene: Scene) -> Scene:
    first, second = rng.sample(list(world.SUBJECTS), 2)
    relation = rng.choice(world.RELATIONS)
    return replace(
        scene, first=Thing(first), second=Thing(second), relation=relation, count=1, size="medium"
    )


def _binding(rng: random.Random, scene: Scene) -> Scene:
    scene = _two(rng, scene)
    assert scene.second is not None
    one, other = rng.sample(world.COLOURS, 2)
    return replace(
        scene, first=replace(scene.first, colour=one), second=replace(scene.second, colour=other)
    )


def _counting(rng: random.Random, scene: Scene) -> Scene:
    return replace(_single(rng, scene), count=rng.choice((1, 2, 3, 4)), size="medium")


def _natural(rng: random.Random, scene: Scene) -> Scene:
    setting, time = rng.random() < 0.7, rng.random() < 0.6
    return replace(
        scene,
        relation=None,
        size="medium",
        setting=scene.setting if setting else None,
        time=scene.time if time and scene.setting != "space" else None,
    )


def _empty(rng: random.Random, scene: Scene) -> Scene:
    return replace(scene, second=None, relation=None, count=0, size="medium")


ALL = ("subjects", "count", "colours", "position", "setting", "time")
TASKS = (
    Task("single", _single, {"single subject": ("subjects",)}),
    Task(
        "colour",
        _colour,
        {"colour": ("subjects", "colours"), "setting": ("setting",), "time of day": ("time",)},
    ),
    Task("two", _two, {"two subjects": ("subjects",), "position": ("position",)}),
    Task("counting", _counting, {"counting": ("count",)}),
    Task("binding", _binding, {"attribute binding": ("subjects", "colours")}),
    Task("natural", _natural, {"natural prompts": ALL}, words.unseen_wording),
    Task("empty", _empty, {"no subject": ("subjects",)}, words.unseen_wording),
)


def scenes_for(task: Task, count: int, seed: int, *, easy: bool = False) -> list[Scene]:
    """Return ``count`` scenes for a task, the same for the same seed; held-out ones included.

    ``easy`` ones show nothing but the subjects that training begins with.
    """
    rng, scenes = random.Random(f"{task.name} {seed}"), list[Scene]()
    while len(scenes) < count:
        scene = task.make(rng, world.sample_scene(rng))
        shown = {thing.subject for thing in (scene.first, scene.second) if thing}
        if not easy or shown <= set(world.FIRST_SUBJECTS):
            scenes.append(scene)
    return scenes
