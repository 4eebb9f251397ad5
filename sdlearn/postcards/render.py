"""Draw a scene as a picture: sprites, recoloured by luminance, over a painted background.

The sprites are emoji of the Noto Color Emoji font (SIL Open Font License 1.1, see
``SPRITES-LICENSE.txt``), kept in one sheet so that drawing needs no font.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from sdlearn.postcards.world import NATURAL, SUBJECTS, Scene, Thing, settled

SIZE = 128  # Pixels: width and height of a postcard.
SCALE = 2  # Backgrounds are drawn twice as large, then reduced, for smooth edges.
SPRITE = 96  # Pixels: width and height of a cell in the sheet.
COLUMNS = 9
SPRITE_SIZES = {"small": 56, "medium": 72, "large": 96}  # Pixels, whole cells of 8 each.
SHEET = Path(__file__).parent / "sprites.png"
Colour = tuple[int, int, int]
Draw = ImageDraw.ImageDraw
Paint = Callable[[Colour, list[tuple[float, float]]], None]  # fills a polygon, in the time's light

# Colour name -> its shade, for a sprite's dark, middle and light pixels.
RAMPS: dict[str, tuple[Colour, Colour, Colour]] = {
    "red": ((90, 0, 8), (225, 30, 36), (255, 190, 180)),
    "orange": ((120, 45, 0), (255, 135, 10), (255, 225, 175)),
    "yellow": ((125, 95, 0), (255, 218, 30), (255, 250, 200)),
    "green": ((0, 60, 15), (45, 170, 55), (200, 245, 190)),
    "blue": ((5, 20, 95), (40, 95, 230), (190, 215, 255)),
    "purple": ((45, 5, 85), (135, 50, 190), (225, 195, 250)),
    "pink": ((130, 20, 75), (255, 115, 180), (255, 220, 238)),
    "black": ((5, 5, 8), (42, 42, 48), (130, 130, 138)),
}
# Time of day -> sky at the top, sky at the horizon, light that falls on the ground (0 to 1).
SKIES: dict[str, tuple[Colour, Colour, tuple[float, float, float]]] = {
    "morning": ((238, 160, 190), (255, 236, 196), (1.0, 0.93, 0.9)),
    "day": ((70, 155, 238), (196, 230, 250), (1.0, 1.0, 1.0)),
    "sunset": ((92, 52, 132), (255, 146, 62), (0.95, 0.7, 0.58)),
    "night": ((10, 14, 48), (44, 56, 118), (0.36, 0.41, 0.66)),
}
# Where a hill can begin. Few and coarse: what is random costs the model most.
PHASES = (0, 1.5, 3, 4.5)
SPACE_SKY: tuple[Colour, Colour] = ((8, 5, 26), (52, 22, 84))


@cache
def _sheet() -> Image.Image:
    return Image.open(SHEET).convert("RGBA")


@cache
def sprite(thing: Thing, size: int) -> Image.Image:
    """Return the thing as an RGBA picture of ``size`` × ``size`` pixels."""
    index = list(SUBJECTS).index(thing.subject)
    x, y = index % COLUMNS * SPRITE, index // COLUMNS * SPRITE
    cell = _sheet().crop((x, y, x + SPRITE, y + SPRITE))
    if thing.colour != NATURAL:
        cell = recolour(cell, thing.colour)
    return cell.resize((size, size), Image.Resampling.LANCZOS)


def recolour(picture: Image.Image, colour: str) -> Image.Image:
    """Keep a sprite's light and shade; replace its hue. Its median takes the middle shade."""
    pixels = np.asarray(picture, dtype=np.float32)
    luminance = pixels[..., :3] @ np.array([0.299, 0.587, 0.114], dtype=np.float32)
    low, middle, high = np.percentile(luminance[pixels[..., 3] > 128], (3, 50, 97))
    width = max(float(high - low), 1.0)
    middle = np.clip((middle - low) / width, 0.05, 0.95)
    shade = np.clip((luminance - low) / width, 0, 1)
    channels = [np.interp(shade, (0, middle, 1), values) for values in zip(*RAMPS[colour])]
    return Image.fromarray(np.dstack([*channels, pixels[..., 3]]).astype(np.uint8), "RGBA")


def boxes(scene: Scene) -> list[tuple[Thing, int, int, int]]:
    """Return (thing, centre x, centre y, size), in pixels, for every sprite of the scene.

    Every sprite covers whole cells of 8 × 8 pixels. One latent stands for one cell, so a sprite
    that moves by a cell keeps its latents, and the U-Net has one pattern to learn, not 64.
    """
    scene, rng = settled(scene), random.Random(scene.seed)
    small, medium, large = (SPRITE_SIZES[size] for size in ("small", "medium", "large"))
    near, far = (0, 8), (64, 72)
    if scene.second is not None:
        if scene.relation in ("left of", "right of"):
            corners = [(rng.choice(x), rng.choice((48, 56, 64))) for x in (near, far)]
        else:
            corners = [(rng.choice((24, 32, 40, 48)), rng.choice(y)) for y in (near, far)]
        if scene.relation in ("right of", "below"):
            corners.reverse()
        things = [(scene.first, small), (scene.second, small)]
    elif scene.count > 1:
        middle = (32, 40)
        places = {
            2: [(near, (48, 56)), (far, (48, 56))],
            3: [(middle, near), (near, far), (far, far)],
            4: [(near, near), (far, near), (near, far), (far, far)],
        }[scene.count]
        corners = [(rng.choice(x), rng.choice(y)) for x, y in places]
        things = [(scene.first, small)] * scene.count
    elif scene.count == 0:
        corners, things = [], []
    else:
        across, down = {
            small: ((16, 24, 32, 40, 48, 56), (56, 64)),
            medium: ((8, 16, 24, 32, 40, 48), (40, 48)),
            large: ((8, 16, 24), (16, 24)),
        }[SPRITE_SIZES[scene.size]]
        corners = [(rng.choice(across), rng.choice(down))]
        things = [(scene.first, SPRITE_SIZES[scene.size])]
    return [
        (thing, x + size // 2, y + size // 2, size)
        for (thing, size), (x, y) in zip(things, corners)
    ]


def render(scene: Scene) -> Image.Image:
    """Draw a scene, (128, 128) RGB; the same scene always gives the same pixels."""
    picture = background(scene)
    for thing, x, y, size in boxes(scene):
        image = sprite(thing, size)
        corner = (x - size // 2, y - size // 2)
        shadow = image.getchannel("A").filter(ImageFilter.GaussianBlur(3))
        picture.paste((0, 0, 0), (corner[0], corner[1] + 2), shadow.point(lambda a: a * 0.45))
        picture.paste(image, corner, image)
    return picture


def background(scene: Scene) -> Image.Image:
    """Paint sky, light and ground, (128, 128) RGB."""
    rng = random.Random(f"background {scene.seed}")
    scene = settled(scene)
    setting, time = scene.setting or "", scene.time or ""
    top, bottom, light = SKIES[time]
    if setting == "space":
        (top, bottom), light = SPACE_SKY, (1.0, 1.0, 1.0)
    side, horizon = SIZE * SCALE, rng.choice((56, 64)) * SCALE
    fade = np.clip(np.arange(side) / horizon, 0, 1)[:, None, None]
    sky = np.asarray(top) * (1 - fade) + np.asarray(bottom) * fade
    picture = Image.fromarray(np.broadcast_to(sky, (side, side, 3)).astype(np.uint8), "RGB")
    draw = ImageDraw.Draw(picture)
    if setting != "space":
        _sun(draw, time, rng.choice((44, 128, 212)), horizon)

    def ground(colour: Colour, shape: list[tuple[float, float]]) -> None:
        lit = tuple(int(channel * part) for channel, part in zip(colour, light))
        draw.polygon(shape, fill=lit)

    GROUNDS[setting](ground, draw, horizon, rng, time == "night")
    return picture.resize((SIZE, SIZE), Image.Resampling.BOX)


def _sun(draw: ImageDraw.ImageDraw, time: str, x: int, horizon: int) -> None:
    colour, y, radius = {
        "morning": ((255, 250, 225), horizon - 34, 22),
        "day": ((255, 240, 130), 38, 20),
        "sunset": ((255, 215, 110), horizon - 4, 36),
        "night": ((235, 238, 250), 38, 17),
    }[time]
    draw.ellipse((x - radius, y - radius, x + radius, y + radius), fill=colour)


def wave(y: float, height: float, length: float, phase: float) -> list[tuple[float, float]]:
    """Return the outline of a ground whose top edge is a sine: ``height``, ``length`` pixels."""
    side = SIZE * SCALE
    edge = [(x, y + height * math.sin(x / length + phase)) for x in range(0, side + 8, 8)]
    return [*edge, (side, side), (0, side)]


def _beach(ground: Paint, draw: Draw, horizon: int, rng: random.Random, night: bool) -> None:
    ground((38, 140, 196), wave(horizon, 0, 1, 0))
    ground((236, 246, 250), wave(horizon + 34, 4, 30, rng.choice(PHASES)))
    ground((240, 214, 158), wave(horizon + 40, 4, 30, rng.choice(PHASES)))


def _meadow(ground: Paint, draw: Draw, horizon: int, rng: random.Random, night: bool) -> None:
    ground((126, 196, 92), wave(horizon + 2, 14, 40, rng.choice(PHASES)))
    ground((84, 168, 70), wave(horizon + 42, 10, 52, rng.choice(PHASES)))


def _desert(ground: Paint, draw: Draw, horizon: int, rng: random.Random, night: bool) -> None:
    x = rng.choice((30, 110, 180))
    y = horizon - 40
    ground((186, 104, 70), [(x, horizon), (x + 8, y), (x + 50, y), (x + 60, horizon)])
    ground((232, 172, 98), wave(horizon, 8, 60, rng.choice(PHASES)))
    ground((214, 146, 74), wave(horizon + 44, 12, 44, rng.choice(PHASES)))


def _snow(ground: Paint, draw: Draw, horizon: int, rng: random.Random, night: bool) -> None:
    shift = rng.choice((-40, 0, 40))
    for x, height in ((50 + shift, 66), (150 + shift, 84), (240 + shift, 60)):
        top = horizon - height
        ground((130, 150, 180), [(x - 70, horizon + 8), (x, top), (x + 70, horizon + 8)])
        ground((246, 250, 255), [(x - 21, top + 24), (x, top), (x + 21, top + 24)])
    ground((238, 244, 252), wave(horizon + 4, 6, 50, rng.choice(PHASES)))
    ground((216, 228, 244), wave(horizon + 48, 9, 46, rng.choice(PHASES)))


def _sea(ground: Paint, draw: Draw, horizon: int, rng: random.Random, night: bool) -> None:
    shades = [(70, 160, 210), (44, 130, 194), (28, 102, 172), (18, 76, 146)]
    for i, shade in enumerate(shades):
        ground(shade, wave(horizon + 30 * i, 5 if i else 0, 11 + 3 * i, rng.choice(PHASES)))


def _space(ground: Paint, draw: Draw, horizon: int, rng: random.Random, night: bool) -> None:
    x = rng.choice((52, 200))
    draw.ellipse((x - 26, 22, x + 26, 74), fill=(226, 150, 92))
    draw.ellipse((x - 44, 43, x + 44, 53), outline=(246, 214, 160), width=4)
    for star in ((128, 24), (96, 84), (236, 96), (16, 100), (160, 70)):
        draw.ellipse((star[0] - 3, star[1] - 3, star[0] + 3, star[1] + 3), fill=(250, 250, 220))
    ground((150, 150, 164), wave(horizon + 40, 8, 60, rng.choice(PHASES)))
    shift = rng.choice((0, 60))
    for x, y, r in ((50 + shift, 226, 18), (150 + shift, 206, 13)):
        draw.ellipse((x - r, y - r // 2, x + r, y + r // 2), fill=(116, 116, 132))


def _city(ground: Paint, draw: Draw, horizon: int, rng: random.Random, night: bool) -> None:
    shift = rng.choice((0, 1, 2))
    window = (255, 226, 120) if night else (190, 214, 230)
    for i in range(6):
        x, height = i * 44 - 4, (70, 104, 58, 92, 78, 112)[(i + shift) % 6]
        colour = ((112, 120, 146), (142, 130, 142))[i % 2]
        top = horizon + 30 - height
        ground(colour, [(x, top), (x + 40, top), (x + 40, horizon + 40), (x, horizon + 40)])
        for wx in (x + 8, x + 24):
            for wy in range(top + 10, horizon + 16, 22):
                draw.rectangle((wx, wy, wx + 8, wy + 10), fill=window)
    ground((98, 100, 108), wave(horizon + 34, 0, 1, 0))
    for x in range(10, 256, 64):
        ground((230, 230, 220), [(x, 218), (x + 34, 218), (x + 34, 226), (x, 226)])


def _forest(ground: Paint, draw: Draw, horizon: int, rng: random.Random, night: bool) -> None:
    ground((30, 84, 52), wave(horizon - 16, 0, 1, 0))
    for row, colour in enumerate(((36, 104, 60), (24, 78, 46))):
        shift = rng.choice((0, 16, 32))
        for x in range(-20 + shift, 280, 48):
            top, foot = horizon - 74 + 34 * row, horizon + 30 + 10 * row
            ground(colour, [(x - 26, foot), (x, top), (x + 26, foot)])
    ground((92, 92, 52), wave(horizon + 34, 5, 48, rng.choice(PHASES)))


GROUNDS = {
    "beach": _beach,
    "meadow": _meadow,
    "desert": _desert,
    "snow": _snow,
    "sea": _sea,
    "space": _space,
    "city": _city,
    "forest": _forest,
}
