"""What can be on a postcard, how a scene is drawn at random, and how it is put into words.

A scene is one subject (one to four of it), or two subjects in a relation, in a setting, at a
time of day. Some combinations are *held out*: the model never sees them in training, only their
parts, so that what it draws for them shows whether it combines.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

# Name -> the emoji whose picture in the Noto Color Emoji font becomes the sprite.
SUBJECTS = {
    "cat": "🐈", "dog": "🐕", "rabbit": "🐇", "elephant": "🐘", "horse": "🐎",
    "cow": "🐄", "pig": "🐖", "fox": "🦊", "bear": "🐻", "frog": "🐸",
    "bird": "🐦", "duck": "🦆", "owl": "🦉", "penguin": "🐧", "fish": "🐟",
    "whale": "🐋", "turtle": "🐢", "butterfly": "🦋", "dragon": "🐉", "unicorn": "🦄",
    "dinosaur": "🦕", "robot": "🤖", "ghost": "👻", "car": "🚗", "bus": "🚌",
    "train": "🚂", "boat": "⛵", "rocket": "🚀", "house": "🏠", "castle": "🏰",
    "tree": "🌳", "cactus": "🌵", "tulip": "🌷", "mushroom": "🍄", "apple": "🍎",
    "cake": "🍰",
}  # fmt: skip
# A quarter of them, of every sort: what training begins with.
FIRST_SUBJECTS = ("cat", "dog", "owl", "fish", "car", "boat", "house", "tree", "apple")
# Those that the model learnt last, of many small parts or much like another: shown more often.
HARD_SUBJECTS = ("train", "castle", "turtle", "whale", "butterfly", "duck")
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

SYNONYMS = {"cat": ["kitten"], "dog": ["puppy"], "rabbit": ["bunny"], "horse": ["pony"],
            "boat": ["sailboat"], "car": ["automobile"], "robot": ["android"],
            "tulip": ["flower"], "bird": ["songbird"], "train": ["locomotive"]}  # fmt: skip
# What a thing is besides: of a duck it is not false to say "a bird".
ALSO = {"duck": "bird", "owl": "bird", "penguin": "bird"}
PLURALS = {"fish": "fish", "butterfly": "butterflies", "bus": "buses", "pony": "ponies",
           "puppy": "puppies", "bunny": "bunnies", "fox": "foxes", "cactus": "cacti"}  # fmt: skip
PLACES = {
    "beach": ["on the beach", "on a beach", "at the beach"],
    "meadow": ["in a meadow", "in the meadow", "on the grass"],
    "desert": ["in the desert", "in a desert", "on a dune"],
    "snow": ["in the snow", "in the mountains", "in winter"],
    "sea": ["in the sea", "on the sea", "on the ocean"],
    "space": ["in space", "on the moon", "in outer space"],
    "city": ["in the city", "in a city", "in town"],
    "forest": ["in the forest", "in a forest", "in the woods"],
}
MOMENTS = {
    "morning": ["in the morning", "at sunrise", "at dawn"],
    "day": ["by day", "at noon", "on a sunny day"],
    "sunset": ["at sunset", "in the evening", "at dusk"],
    "night": ["at night", "by moonlight", "at midnight"],
}
SIZE_WORDS = {"small": ["small", "little", "tiny"], "large": ["large", "big", "huge"]}
COUNT_WORDS = {2: ["two", "a pair of"], 3: ["three"], 4: ["four"]}


@dataclass(frozen=True)
class Thing:
    """A subject in a colour; ``NATURAL`` keeps the sprite's own colours."""

    subject: str
    colour: str = NATURAL


@dataclass(frozen=True)
class Scene:
    """Everything that a postcard shows; ``seed`` moves the small things (places, clouds, sun).

    ``second`` stands in ``relation`` to ``first``: "first left of second". ``space`` has no
    time of day; its ``time`` is "night" and never in the caption.
    """

    first: Thing
    second: Thing | None = None
    relation: str | None = None
    count: int = 1
    size: str = "medium"
    setting: str = "beach"
    time: str = "day"
    seed: int = 0


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
    things = [scene.first] + ([scene.second] if scene.second else [])
    triple = (
        scene.second is not None
        and scene.relation is not None
        and is_held_out_triple(scene.first.subject, scene.relation, scene.second.subject)
    )
    return triple or any(is_held_out_pair(thing) for thing in things)


def sample_scene(
    rng: random.Random, weights: tuple[int, int, int] = (3, 1, 2), natural: int = 2
) -> Scene:
    """Draw a scene: a single subject, several of one, or two in a relation, so often each.

    The natural colour of a thing is ``natural`` times as frequent as any of the eight others.
    """
    kind = rng.choices(("single", "several", "two"), weights)[0]
    first, second = rng.sample(list(SUBJECTS), 2)
    setting = rng.choice(SETTINGS)

    def thing(subject: str) -> Thing:
        return Thing(subject, rng.choice((NATURAL,) * natural + COLOURS))

    return Scene(
        first=thing(first),
        second=thing(second) if kind == "two" else None,
        relation=rng.choice(RELATIONS) if kind == "two" else None,
        count=rng.choice((2, 3, 4)) if kind == "several" else 1,
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
        scene = sample_scene(rng, (6, 1, 3), natural=4)
        single = scene.second is None and scene.count == 1
        easy = single and scene.size != "small" and scene.first.subject in FIRST_SUBJECTS
        fits = {"easy": easy, "single": single, "pairs": scene.second is not None, "all": True}
        shown = {thing.subject for thing in (scene.first, scene.second) if thing}
        kept = not shown.isdisjoint(HARD_SUBJECTS) or rng.random() < 0.4
        if not is_held_out(scene) and fits[lesson] and kept:
            return scene


def noun_phrase(
    thing: Thing, rng: random.Random | None, *, count: int = 1, size: str = "medium"
) -> str:
    """Name a thing: "an orange fox", "three big red cats"; without ``rng`` in the plainest way."""

    def choose(options: list[str]) -> str:
        return rng.choice(options) if rng else options[0]

    noun = choose([thing.subject] * 3 + SYNONYMS.get(thing.subject, []))
    words = [noun if count == 1 else PLURALS.get(noun, noun + "s")]
    if thing.colour != NATURAL:
        words.insert(0, thing.colour)
    if size in SIZE_WORDS:
        words.insert(0, choose(SIZE_WORDS[size]))
    if count > 1:
        return " ".join([choose(COUNT_WORDS[count]), *words])
    article = "an" if words[0][0] in "aeiou" and words[0] != "unicorn" else "a"
    return " ".join([article, *words])


def caption(scene: Scene, rng: random.Random, *, keep: str | None = None) -> str:
    """Put a scene into words; setting, time and size are each left out at times.

    A colour is named unless it is the natural one, so that a prompt without a colour means the
    natural colour. One caption in twenty is the subject alone: it may leave out the colour, too.

    Args:
        scene: what the words describe.
        rng: chooses among them.
        keep: what must be said: "subject", "colour", "count", "places", "setting" or "time"
            (which space does not have).
    """
    size = scene.size if rng.random() < 0.7 else "medium"
    subject = noun_phrase(scene.first, rng, count=scene.count, size=size)
    prefixes = ["a postcard of ", "a picture of ", "a photo of "]
    if scene.second is not None:
        other = noun_phrase(scene.second, rng)
        relation = scene.relation or "left of"
        if rng.random() < 0.4:
            here, there = SIDES[relation]
            subject, prefixes = f"{here} {subject}, {there} {other}", [""]
        else:
            side = f"to the {relation}" if relation.endswith(" of") else relation
            subject += f" {rng.choice([relation, side, side])} {other}"
    if rng.random() < 0.05 and keep is None:  # One-word prompts work too.
        return scene.first.subject if scene.second is None and scene.count == 1 else subject
    parts = []
    if rng.random() < 0.8 or keep == "setting":
        parts.append(rng.choice(PLACES[scene.setting]))
    if (rng.random() < 0.7 or keep == "time") and scene.setting != "space":
        parts.append(rng.choice(MOMENTS[scene.time]))
    if parts and rng.random() < 0.15:
        return f"{' '.join(parts)}, {subject}"
    prefix = rng.choice(prefixes)
    return (prefix if rng.random() < 0.15 else "") + " ".join([subject, *parts])


def sentence(scene: Scene) -> str:
    """Put everything in a scene into the plainest words: the prompt of a measurement."""
    words = [noun_phrase(scene.first, None, count=scene.count)]
    if scene.second is not None:
        words += [scene.relation or "left of", noun_phrase(scene.second, None)]
    words.append(PLACES[scene.setting][0])
    if scene.setting != "space":
        words.append(MOMENTS[scene.time][0])
    return " ".join(words)
