"""How a scene is put into words: captions in the many ways in which people type prompts.

``caption`` draws one of them at random, ``sentence`` is the plainest, ``unseen_wording`` uses words
that training never shows.
"""

from __future__ import annotations

import random
import re

from sdlearn.postcards.world import NATURAL, SIDES, Scene, Thing

SYNONYMS = {"cat": ["kitten"], "dog": ["puppy"], "rabbit": ["bunny"], "horse": ["pony"],
            "boat": ["sailboat"], "car": ["automobile"], "robot": ["android"],
            "tulip": ["flower"], "bird": ["songbird"], "train": ["locomotive"]}  # fmt: skip
# What a thing is besides: of a duck it is not false to say "a bird".
ALSO = {"duck": "bird", "owl": "bird", "penguin": "bird"}
PLURALS = {"fish": "fish", "butterfly": "butterflies", "bus": "buses", "pony": "ponies",
           "puppy": "puppies", "bunny": "bunnies", "fox": "foxes", "cactus": "cacti"}  # fmt: skip
SIZE_WORDS = {"small": ["small", "tiny", "mini"], "large": ["large", "big", "huge"]}
COUNT_WORDS = {2: ["two", "2", "a pair of"], 3: ["three", "3"], 4: ["four", "4"]}
# Where something stands; the plainest words come first.
PLACES: dict[str | None, list[str]] = {
    "beach": ["on the beach", "on a beach", "at the beach", "on the sand"],
    "meadow": ["in a meadow", "in the meadow", "on the grass", "in a green field"],
    "desert": ["in the desert", "in a desert", "on a dune"],
    "snow": ["in the snow", "in the mountains", "in winter", "in the snowy mountains"],
    "sea": ["in the sea", "on the sea", "on the ocean", "in the water"],
    "space": ["in space", "on the moon", "in outer space"],
    "city": ["in the city", "in a city", "in town", "on the street"],
    "forest": ["in the forest", "in a forest", "in the woods"],
}
MOMENTS: dict[str | None, list[str]] = {
    "morning": ["in the morning", "at sunrise", "at dawn"],
    "day": ["by day", "at noon", "on a sunny day"],
    "sunset": ["at sunset", "in the evening", "at dusk"],
    "night": ["at night", "by moonlight", "at midnight"],
}
# A setting or a time as all that a picture shows.
VIEWS: dict[str | None, list[str]] = {
    "beach": ["beach", "the beach", "a sandy beach"],
    "meadow": ["meadow", "a meadow", "green hills"],
    "desert": ["desert", "the desert", "dunes"],
    "snow": ["snowy mountains", "mountains", "a snowy landscape", "snow"],
    "sea": ["sea", "the sea", "the ocean", "waves"],
    "space": ["space", "outer space", "the moon"],
    "city": ["city", "a city", "a street", "the city skyline"],
    "forest": ["forest", "a forest", "the woods"],
}
SKIES: dict[str | None, list[str]] = {
    "morning": ["sunrise", "dawn", "a morning"],
    "day": ["a sunny day", "noon", "a bright day"],
    "sunset": ["sunset", "a sunset", "dusk", "an evening"],
    "night": ["night", "a night", "midnight", "moonlight"],
}
# How one of two things stands to the other; "X, Y" says no more than "X and Y".
RELATION_WORDS: dict[str | None, list[str]] = {
    "left of": ["left of", "to the left of", "to the left of"],
    "right of": ["right of", "to the right of", "to the right of"],
    "above": ["above", "above", "over"],
    "below": ["below", "below", "under"],
}
JOINS = [" and ", " and ", ", ", " with "]
BESIDE = [" next to ", " beside ", " near "]  # for what stands left or right
DEPTH = [" in front of ", " behind "]  # for what stands below, and above: what is nearer is lower
# Words that say nothing which a postcard could show.
FILLERS = [
    "cute", "little", "lovely", "happy", "beautiful", "old", "young", "funny", "nice", "pretty",
    "sweet", "shiny", "real", "cool", "lonely",
]  # fmt: skip
VERBS = [
    "sitting", "playing", "flying", "standing", "sleeping", "running", "walking", "resting",
    "waiting", "going", "smiling", "moving", "that is standing", "looking at you",
]  # fmt: skip
MEDIA = [
    "a postcard of", "a picture of", "a photo of", "photo of", "a drawing of", "drawing of",
    "a painting of", "an image of", "picture of", "a close-up of",
]  # fmt: skip
EMPTY = ["empty", "quiet", "calm", "peaceful"]
# Kept for measuring: no caption has these.
UNSEEN_FILLERS = ["adorable", "fluffy", "friendly", "gorgeous", "sleepy", "curious"]
UNSEEN_VERBS = ["dancing", "jumping", "hiding", "relaxing", "wandering", "having fun"]
UNSEEN_MEDIA = ["an illustration of", "a sketch of", "a photograph of", "a cartoon of"]
UNSEEN_JOINS = [" together with ", " alongside ", " plus ", " & "]
UNSEEN_EMPTY = ["deserted", "serene", "breathtaking"]
UNSEEN = [*UNSEEN_FILLERS, *UNSEEN_VERBS, *UNSEEN_MEDIA, *UNSEEN_JOINS, *UNSEEN_EMPTY]


def noun_phrase(
    thing: Thing,
    rng: random.Random | None,
    *,
    count: int = 1,
    size: str = "medium",
    fillers: list[str] = FILLERS,
    verbs: list[str] = VERBS,
    filled: float = 0.2,
) -> str:
    """Name a thing: "an orange fox", "3 big red cats"; without ``rng`` in the plainest way.

    So often as ``filled`` (0 to 1) says there is a filler, and so often a verb.
    """

    def choose(options: list[str]) -> str:
        return rng.choice(options) if rng else options[0]

    def at_times(share: float) -> bool:
        return rng is not None and rng.random() < share

    noun = choose([thing.subject] * 3 + SYNONYMS.get(thing.subject, []))
    words = [noun if count == 1 else plural(noun)]
    if thing.colour != NATURAL:
        words.insert(0, thing.colour)
    if size in SIZE_WORDS:
        words.insert(int(len(words) == 2 and at_times(0.2)), choose(SIZE_WORDS[size]))
    if at_times(filled):
        words.insert(0, choose(fillers))
    if at_times(filled):
        words.append(choose(verbs))
    if count > 1:
        return " ".join([choose(COUNT_WORDS[count]), *words])
    return " ".join([article(words[0]), *words])


def plural(noun: str) -> str:
    """Return the name of several: "foxes"."""
    return PLURALS.get(noun, noun + "s")


def article(word: str) -> str:
    """Return "a" or "an", whichever the word takes."""
    return "an" if word[0] in "aeiou" and word != "unicorn" else "a"


def bare(phrase: str) -> str:
    """Leave out the article: "red car"."""
    return re.sub("^(a|an|the) ", "", phrase)


def _loosely(phrase: str, rng: random.Random, without: float) -> str:
    """Say "the" at times instead of the article, or, so often as ``without`` says, neither."""
    if rng.random() < without:
        return bare(phrase)
    return f"the {bare(phrase)}" if rng.random() < 0.1 else phrase


def caption(scene: Scene, rng: random.Random, *, keep: str | None = None) -> str:
    """Put a scene into words; setting, time, size and relation are each left out at times.

    A colour is named unless it is the natural one, so that a prompt without a colour means the
    natural colour. One caption in twenty is the subject alone: it may leave out the colour, too.

    Args:
        scene: what the words describe.
        rng: chooses among them.
        keep: what must be said: "subject", "colour", "count", "places", "setting" or "time"
            (which space does not have).
    """
    if scene.count == 0:
        return _view(scene, rng, keep)
    size = scene.size if rng.random() < 0.7 else "medium"
    if scene.second is not None:
        subject = _pair(scene, rng, keep)
    else:
        subject = noun_phrase(scene.first, rng, count=scene.count, size=size)
        if keep != "count":
            subject = _loosely(subject, rng, 0.1)
    if rng.random() < 0.05 and keep is None:  # One-word prompts work too.
        return scene.first.subject if scene.second is None and scene.count == 1 else subject
    parts = []
    if rng.random() < 0.75 or keep == "setting":
        parts.append(rng.choice(PLACES[scene.setting]))
    if (rng.random() < 0.65 or keep == "time") and scene.setting != "space":
        parts.append(rng.choice(MOMENTS[scene.time]))
    if len(parts) == 2 and rng.random() < 0.15:
        parts.reverse()
    if parts and rng.random() < 0.15:
        return f"{' '.join(parts)}, {subject}"
    if rng.random() < 0.15 and not subject.startswith(("on the", "at the")):
        subject = f"{rng.choice(MEDIA)} {subject}"
    comma = ", " if rng.random() < 0.1 else " "
    return comma.join([subject, *parts])


def _pair(scene: Scene, rng: random.Random, keep: str | None) -> str:
    """Name two things; three captions in five, and where it must be kept, say which is where."""
    assert scene.second is not None
    relation = scene.relation or ""
    one, other = (
        _loosely(noun_phrase(thing, rng), rng, 0) for thing in (scene.first, scene.second)
    )
    if rng.random() < 0.6 or keep == "places":
        if rng.random() < 0.4:
            here, there = SIDES[relation]
            return f"{here} {one}, {there} {other}"
        return f"{one} {rng.choice(RELATION_WORDS[relation])} {other}"
    if relation in ("above", "below") and rng.random() < 0.25:
        near, far = (one, other) if relation == "below" else (other, one)
        in_front, behind = DEPTH
        return rng.choice((near + in_front + far, far + behind + near))
    if rng.random() < 0.5:
        one, other = other, one
    if rng.random() < 0.35:
        one, other = bare(one), bare(other)
    return one + rng.choice(JOINS + BESIDE * relation.endswith("of")) + other


def _view(scene: Scene, rng: random.Random, keep: str | None) -> str:
    """Name a setting, a time, or both, of a scene without a subject."""
    moment = rng.choice(MOMENTS[scene.time])
    if keep != "setting" and scene.setting != "space" and rng.random() < 0.3:
        sky = rng.choice(SKIES[scene.time])
        return sky if rng.random() < 0.5 else f"{sky} {rng.choice(PLACES[scene.setting])}"
    view = rng.choice(VIEWS[scene.setting])
    if rng.random() < 0.4:
        view = _described(view, rng.choice(EMPTY))
    if rng.random() < 0.15:
        view = f"{rng.choice(MEDIA)} {view}"
    said = scene.setting != "space" and (keep == "time" or rng.random() < 0.6)
    return f"{view} {moment}" if said else view


def _described(view: str, adjective: str) -> str:
    """Put an adjective before a view, after its article if it has one."""
    if view == bare(view):
        return f"{adjective} {view}"
    return f"{article(adjective)} {adjective} {bare(view)}"


def sentence(scene: Scene) -> str:
    """Put everything in a scene into the plainest words: the prompt of a measurement."""
    words = [noun_phrase(scene.first, None, count=scene.count)] if scene.count else []
    if scene.second is not None:
        words += [RELATION_WORDS[scene.relation][0], noun_phrase(scene.second, None)]
    words.append(PLACES[scene.setting][0])
    if scene.setting != "space":
        words.append(MOMENTS[scene.time][0])
    return " ".join(words)


def unseen_wording(scene: Scene) -> str:
    """Put a scene into words that training never shows; what it leaves open is left unsaid.

    The same scene always gets the same words.
    """
    rng = random.Random(f"unseen {scene.seed}")
    if scene.count == 0:
        words = [_described(VIEWS[scene.setting][0], rng.choice(UNSEEN_EMPTY))]
    else:
        subject = _unseen_name(scene.first, rng, scene.count)
        if scene.second is not None:
            subject += rng.choice(UNSEEN_JOINS) + _unseen_name(scene.second, rng)
        words = [subject] + ([PLACES[scene.setting][0]] if scene.setting else [])
    if scene.time is not None and scene.setting != "space":
        words.append(MOMENTS[scene.time][0])
    said = " ".join(words)
    if rng.random() < 0.3 or not any(words in said for words in UNSEEN):
        said = f"{rng.choice(UNSEEN_MEDIA)} {said}"
    return said


def _unseen_name(thing: Thing, rng: random.Random, count: int = 1) -> str:
    return noun_phrase(
        thing, rng, count=count, fillers=UNSEEN_FILLERS, verbs=UNSEEN_VERBS, filled=0.5
    )
