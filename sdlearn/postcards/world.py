"""What can be on a postcard, and how a scene is drawn at random.

A scene is one subject (one to four of it), two subjects in a relation, or nothing at all, in a
setting, at a time of day. Some combinations are *held out*: the model never sees them in training,
only their parts, so that what it draws for them shows whether it combines.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, replace

# Name -> the emoji whose picture in the Noto Color Emoji font becomes the sprite. A head where
# there is one: the eyes of whole cats and dogs have two pixels, which the VAE loses.
SUBJECTS = {
    "cat": "🐱", "dog": "🐶", "rabbit": "🐰", "elephant": "🐘", "horse": "🐴",
    "cow": "🐮", "pig": "🐷", "fox": "🦊", "bear": "🐻", "frog": "🐸",
    "bird": "🐦", "duck": "🦆", "owl": "🦉", "penguin": "🐧", "fish": "🐟",
    "whale": "🐋", "turtle": "🐢", "butterfly": "🦋", "dragon": "🐲", "unicorn": "🦄",
    "dinosaur": "🦕", "robot": "🤖", "ghost": "👻", "car": "🚗", "bus": "🚌",
    "train": "🚂", "boat": "⛵", "rocket": "🚀", "house": "🏠", "castle": "🏰",
    "tree": "🌳", "cactus": "🌵", "tulip": "🌷", "mushroom": "🍄", "apple": "🍎",
    "cake": "🍰",
}  # fmt: skip
# A quarter of them, of every sort: what training begins with.
FIRST_SUBJECTS = ("cat", "dog", "owl", "fish", "car", "boat", "house", "tree", "apple")
# Those that the model learnt last, or that have many small parts: shown more often.
HARD_SUBJECTS = (
    "train", "castle", "turtle", "whale", "butterfly", "duck",
    "cat", "dog", "rabbit", "horse", "cow", "pig", "dragon",
)  # fmt: skip
COLOURS = ("red", "orange", "yellow", "green", "blue", "purple", "pink", "black")
NATURAL = "natural"
SETTINGS = ("beach", "meadow", "desert", "snow", "sea", "space", "city", "forest")
TIMES = ("morning", "day", "sunset", "night")
SIZES = ("small", "medium", "large")
RELATIONS = ("left of", "right of", "above", "below")

# "first left of second" -> where the first stands, and where the second does.
SIDES = {
    "left of": ("on the left", "on the right"),
    "right of": ("on the right", "on the left"),
    "above": ("at the top", "at the bottom"),
    "below": ("at the bottom", "at the top"),
}


@dataclass(frozen=True)
class Thing:
    """A subject in a colour; ``NATURAL`` keeps the sprite's own colours."""

    subject: str
    colour: str = NATURAL


@dataclass(frozen=True)
class Scene:
    """Everything that a postcard shows; ``seed`` moves the small things (places, clouds, sun).

    ``second`` stands in ``relation`` to ``first``: "first left of second". With ``count`` 0 there
    is no subject. ``space`` has no time of day; its ``time`` is "night" and never in the caption.

    What a prompt leaves open is None: a relation, a setting, a time. See ``settled``.
    """

    first: Thing
    second: Thing | None = None
    relation: str | None = None
    count: int = 1
    size: str = "medium"
    setting: str | None = "beach"
    time: str | None = "day"
    seed: int = 0


def settled(scene: Scene) -> Scene:
    """Return the scene with all that it leaves open chosen by its seed."""
    rng = random.Random(f"open {scene.seed}")
    relation = scene.relation or (rng.choice(RELATIONS) if scene.second else None)
    setting = scene.setting or rng.choice(SETTINGS)
    return replace(scene, relation=relation, setting=setting, time=scene.time or rng.choice(TIMES))


def is_held_out_pair(thing: Thing) -> bool:
    """Whether training never shows this subject in this colour (one pair in nine)."""
    if thing.colour == NATURAL:
        return False
    return (list(SUBJECTS).index(thing.subject) * 2 + COLOURS.index(thing.colour)) % 9 == 4


def is_held_out_triple(first: str, relation: str, second: str) -> bool:
    """Whether training never shows these two subjects in this relation (one triple in nine)."""
    names = list(SUBJECTS)
    return (names.index(first) + 2 * names.index(second) + RELATIONS.index(relation)) % 9 == 7


def is_held_out(scene: Scene) -> bool:
    """Whether any part of the scene is a combination that training never shows."""
    things = [scene.first] * min(scene.count, 1) + ([scene.second] if scene.second else [])
    triple = (
        scene.second is not None
        and scene.relation is not None
        and is_held_out_triple(scene.first.subject, scene.relation, scene.second.subject)
    )
    return triple or any(is_held_out_pair(thing) for thing in things)


def sample_scene(
    rng: random.Random, weights: tuple[int, int, int, int] = (3, 1, 2, 0), natural: int = 2
) -> Scene:
    """Draw a scene: a single subject, several of one, two in a relation, or none, so often each.

    The natural colour of a thing is ``natural`` times as frequent as any of the eight others.
    """
    kind = rng.choices(("single", "several", "two", "none"), weights)[0]
    first, second = rng.sample(list(SUBJECTS), 2)
    setting = rng.choice(SETTINGS)

    def thing(subject: str) -> Thing:
        return Thing(subject, rng.choice((NATURAL,) * natural + COLOURS))

    return Scene(
        first=thing(first),
        second=thing(second) if kind == "two" else None,
        relation=rng.choice(RELATIONS) if kind == "two" else None,
        count=rng.choice((2, 3, 4)) if kind == "several" else int(kind != "none"),
        size=rng.choice(SIZES) if kind == "single" else "medium",
        setting=setting,
        time="night" if setting == "space" else rng.choice(TIMES),
        seed=rng.randrange(2**31),
    )


def sample_training_scene(rng: random.Random, lesson: str = "all") -> Scene:
    """Draw a scene none of whose combinations is held out.

    Lesson "easy" shows one thing, one of the ``FIRST_SUBJECTS`` and not small: shapes first.
    "single" shows one thing, whatever it is; "pairs" two things in a relation; "all" everything.
    What is hardest to draw comes most often: natural colours, several on one thing, and the
    ``HARD_SUBJECTS``: only two in five of all scenes without one of them are kept.
    """
    while True:
        scene = sample_scene(rng, (12, 2, 6, 1), natural=4)
        single = scene.second is None and scene.count == 1
        easy = single and scene.size != "small" and scene.first.subject in FIRST_SUBJECTS
        fits = {"easy": easy, "single": single, "pairs": scene.second is not None, "all": True}
        shown = {thing.subject for thing in (scene.first, scene.second) if thing}
        kept = not shown.isdisjoint(HARD_SUBJECTS) or rng.random() < 0.4
        if not is_held_out(scene) and fits[lesson] and kept:
            return scene
