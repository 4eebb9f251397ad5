"""A reader of postcards: which subjects, in which colours, where, in what setting, at what time.

It measures whether a picture shows what its prompt says. It shares nothing with the model that it
judges: other classes, other training pictures, no text. A small convolutional network finds the
centres of subjects on a grid, as CenterNet does (Zhou et al. 2019, "Objects as Points").
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor, nn

from sdlearn.postcards.render import SIZE, boxes
from sdlearn.postcards.world import COLOURS, NATURAL, SETTINGS, SUBJECTS, TIMES, Scene, settled

WEIGHTS = Path(__file__).parent / "judge.safetensors"
CELL = 8  # Pixels: width and height of a cell of the grid.
GRID = SIZE // CELL
NAMES = tuple(SUBJECTS)
SHADES = (NATURAL, *COLOURS)
# What each cell says: is a centre here, which subject, which colour.
PARTS = (1, len(NAMES), len(SHADES))


@dataclass(frozen=True)
class Found:
    """One subject in a picture; x and y are its centre, in pixels."""

    subject: str
    colour: str
    x: float
    y: float


@dataclass(frozen=True)
class Reading:
    """All that the judge reads in a picture."""

    things: tuple[Found, ...]
    setting: str
    time: str


def block(inputs: int, outputs: int, *, stride: int = 1, dilation: int = 1) -> nn.Sequential:
    """Return convolution, normalisation, activation."""
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, 3, stride, padding=dilation, dilation=dilation),
        nn.GroupNorm(8, outputs),
        nn.SiLU(),
    )


class Judge(nn.Module):
    """Pixels, (B, 3, 128, 128) in [-1, 1] -> what each of 16 × 16 cells says, setting, time."""

    def __init__(self) -> None:
        super().__init__()
        self.down = nn.Sequential(
            block(3, 24, stride=2), block(24, 48, stride=2), block(48, 96), block(96, 96, stride=2)
        )
        self.look_around = nn.ModuleList(block(96, 96, dilation=d) for d in (1, 2, 4, 2, 1))
        self.cells = nn.Conv2d(96, sum(PARTS), 1)
        self.whole = nn.Linear(96, len(SETTINGS) + len(TIMES))

    def forward(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """Return (B, 46, 16, 16) for the cells and (B, 12) for the whole picture, as logits."""
        x = self.down(pixels)  # (B, 96, 16, 16)
        for layer in self.look_around:
            x = x + layer(x)
        return self.cells(x), self.whole(x.mean(dim=(2, 3)))

    @torch.no_grad()
    def read(self, pixels: Tensor) -> list[Reading]:
        """Read pictures, (B, 3, 128, 128) in [-1, 1], of any device and precision."""
        cells, whole = self(pixels.to(self.cells.weight))
        centre, subject, colour = cells.split(PARTS, dim=1)
        heat = centre.sigmoid()
        # Two subjects stand at least five cells apart, so a peak is the strongest of its 3 × 3.
        peaks = (heat > 0.5) & (heat == F.max_pool2d(heat, 3, 1, padding=1))
        setting, time = whole.split((len(SETTINGS), len(TIMES)), dim=1)
        subject, colour = subject.argmax(1), colour.argmax(1)  # (B, 16, 16)
        readings = []
        for i in range(len(pixels)):
            things = [
                Found(
                    NAMES[int(subject[i, y, x])],
                    SHADES[int(colour[i, y, x])],
                    (x + 0.5) * CELL,
                    (y + 0.5) * CELL,
                )
                for y, x in peaks[i, 0].nonzero().tolist()
            ]
            places = SETTINGS[int(setting[i].argmax())], TIMES[int(time[i].argmax())]
            readings.append(Reading(tuple(things), *places))
        return readings


def load_judge(weights: Path = WEIGHTS) -> Judge:
    """Return the trained judge."""
    judge = Judge()
    judge.load_state_dict({k: v.float() for k, v in load_file(weights).items()})
    return judge.eval()


def target(scene: Scene) -> dict[str, Tensor]:
    """Return what the judge should say about a scene.

    Returns:
        ``heat`` (16, 16), 1 at a centre and falling off around it; ``subject`` and ``colour``
        (16, 16), -1 where it does not matter; ``setting`` and ``time``, scalars.
    """
    axis = (torch.arange(GRID) + 0.5) * CELL
    heat = torch.zeros(GRID, GRID)
    subject = torch.full((GRID, GRID), -1)
    colour = torch.full((GRID, GRID), -1)
    for thing, x, y, _ in boxes(scene):
        distance = ((axis - x) ** 2 + (axis[:, None] - y) ** 2).sqrt()
        near = torch.exp(-((distance / CELL) ** 2))
        heat = heat.maximum(near / near.max())
        subject[distance < 1.5 * CELL] = NAMES.index(thing.subject)
        colour[distance < 1.5 * CELL] = SHADES.index(thing.colour)
    scene = settled(scene)
    setting, time = SETTINGS.index(scene.setting), TIMES.index(scene.time)
    whole = {"setting": torch.tensor(setting), "time": torch.tensor(time)}
    return {"heat": heat, "subject": subject, "colour": colour, **whole}


def judge_loss(judge: nn.Module, batch: dict) -> Tensor:
    """Cross-entropy of all that the judge says, a scalar."""
    cells, whole = judge(batch["pixels"])
    centre, subject, colour = cells.float().split(PARTS, dim=1)
    setting, time = whole.float().split((len(SETTINGS), len(TIMES)), dim=1)
    # Centres are few: what matters most is where the heat is, or is claimed.
    heat = batch["heat"][:, None]
    weight = 0.1 + heat + centre.detach().sigmoid()
    found = F.binary_cross_entropy_with_logits(centre, heat, weight)
    return (
        3 * found
        + F.cross_entropy(subject, batch["subject"], ignore_index=-1)
        + F.cross_entropy(colour, batch["colour"], ignore_index=-1)
        + F.cross_entropy(setting, batch["setting"])
        + F.cross_entropy(time, batch["time"])
    )


def agrees(reading: Reading, scene: Scene) -> dict[str, bool]:
    """Say, attribute by attribute, whether a picture shows the scene.

    Returns:
        ``subjects`` (each at least once, nothing else), ``count`` (as many as asked), ``colours``
        (on the right subjects), ``position``, ``setting``, ``time``. What the scene leaves open is
        always right.
    """
    wanted = [scene.first] * scene.count + ([scene.second] if scene.second else [])
    names = {thing.subject for thing in wanted}
    found = {thing.subject for thing in reading.things}
    colours = {(thing.subject, thing.colour) for thing in wanted}
    return {
        "subjects": found == names,
        "count": found == names and len(reading.things) == len(wanted),
        "colours": {(thing.subject, thing.colour) for thing in reading.things} == colours,
        "position": scene.relation is None or _stands(reading, scene),
        "setting": scene.setting in (None, reading.setting),
        "time": scene.setting == "space" or scene.time in (None, reading.time),
    }


def _stands(reading: Reading, scene: Scene) -> bool:
    assert scene.second is not None
    one = [thing for thing in reading.things if thing.subject == scene.first.subject]
    other = [thing for thing in reading.things if thing.subject == scene.second.subject]
    if len(one) != 1 or len(other) != 1:
        return False
    dx, dy = one[0].x - other[0].x, one[0].y - other[0].y
    return {
        "left of": dx < 0 and abs(dx) > abs(dy),
        "right of": dx > 0 and abs(dx) > abs(dy),
        "above": dy < 0 and abs(dy) > abs(dx),
        "below": dy > 0 and abs(dy) > abs(dx),
    }[scene.relation or ""]
