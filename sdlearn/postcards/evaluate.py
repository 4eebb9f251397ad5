"""Measure how well postcards does what its prompt says.

``python -m sdlearn.postcards.evaluate`` draws pictures for prompts that name everything in them,
lets the judge read the pictures, and prints how often each attribute is as asked, with 95 % Wilson
intervals (Wilson 1927). ``--control`` breaks the link between prompt and picture in a known way.
"""

from __future__ import annotations

import argparse
import random
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch
from diffusers import StableDiffusionPipeline

from sdlearn import load
from sdlearn.postcards import world
from sdlearn.postcards.judge import Judge, agrees, load_judge
from sdlearn.postcards.render import render
from sdlearn.postcards.world import Scene, Thing

BATCH = 16
CONTROLS = ("none", "shuffled prompts", "empty prompt", "guidance off", "true renders")


@dataclass(frozen=True)
class Task:
    """A row of the table: what scenes it draws, and which attributes must all be right."""

    name: str
    make: Callable[[random.Random, Scene], Scene]
    attributes: tuple[str, ...]


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


TASKS = (
    Task("single subject", _single, ("subjects",)),
    Task("colour", _colour, ("subjects", "colours")),
    Task("setting", _colour, ("setting",)),
    Task("time of day", _colour, ("time",)),
    Task("two subjects", _two, ("subjects",)),
    Task("counting", _counting, ("count",)),
    Task("position", _two, ("position",)),
    Task("attribute binding", _binding, ("subjects", "colours")),
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


def wilson(right: int, count: int) -> tuple[float, float]:
    """Return the 95 % Wilson score interval of the share ``right / count``."""
    z = 1.959964
    share, spread = right / count, z * z / count
    middle = (share + spread / 2) / (1 + spread)
    half = z / (1 + spread) * (share * (1 - share) / count + spread / 4 / count) ** 0.5
    return max(middle - half, 0.0), min(middle + half, 1.0)


@torch.no_grad()
def draw(
    pipe: StableDiffusionPipeline | None,
    scenes: list[Scene],
    control: str,
    seed: int,
    guidance: float,
) -> torch.Tensor:
    """Draw a picture for each scene, (B, 3, 128, 128) in [-1, 1]."""
    if pipe is None:
        pictures = np.stack([np.asarray(render(scene), dtype=np.float32) for scene in scenes])
        return torch.from_numpy(pictures / 127.5 - 1).permute(0, 3, 1, 2)
    prompts = [world.sentence(scene) for scene in scenes]
    if control == "shuffled prompts":
        prompts = prompts[1:] + prompts[:1]
    if control == "empty prompt":
        prompts = [""] * len(prompts)
    generators = [torch.Generator().manual_seed(seed + i) for i in range(len(prompts))]
    scale = 1.0 if control == "guidance off" else guidance
    settings = {"num_inference_steps": 20, "guidance_scale": scale, "output_type": "pt"}
    return pipe(prompts, generator=generators, **settings).images * 2 - 1


def measure(
    pipe: StableDiffusionPipeline | None,
    judge: Judge,
    task: Task,
    *,
    prompts: int,
    seeds: int,
    control: str = "none",
    guidance: float = 5.0,
    easy: bool = False,
) -> dict[str, tuple[int, int]]:
    """Return (right, drawn) for all scenes of a task, and for the seen and held-out ones apart.

    Without a pipeline the pictures are true renders.
    """
    scenes = scenes_for(task, prompts, 0, easy=easy)
    totals = {"all": [0, 0], "seen": [0, 0], "held out": [0, 0]}
    for seed in range(seeds):
        for start in range(0, len(scenes), BATCH):
            batch = scenes[start : start + BATCH]
            pictures = draw(pipe, batch, control, 10_000 * seed + start, guidance)
            for scene, reading in zip(batch, judge.read(pictures)):
                found = agrees(reading, scene)
                right = all(found[attribute] for attribute in task.attributes)
                for kind in ("all", "held out" if world.is_held_out(scene) else "seen"):
                    totals[kind][0] += right
                    totals[kind][1] += 1
    return {kind: (right, drawn) for kind, (right, drawn) in totals.items()}


def cell(right: int, drawn: int) -> str:
    """Return a share with its interval, as in ".95 (.93 to .97)"."""
    if drawn == 0:
        return "-"
    low, high = wilson(right, drawn)
    return f"{right / drawn:.2f} ({low:.2f} to {high:.2f})"


def main() -> None:
    """Read the command line, measure, print a Markdown table."""
    parser = argparse.ArgumentParser(prog="python -m sdlearn.postcards.evaluate")
    parser.add_argument("--prompts", type=int, default=64, help="for each row")
    parser.add_argument("--seeds", type=int, default=4, help="pictures for each prompt")
    parser.add_argument("--guidance", type=float, default=5.0)
    parser.add_argument(
        "--easy",
        action="store_true",
        help="only one thing, of the subjects that training begins with",
    )
    parser.add_argument("--control", choices=CONTROLS, default="none")
    args = parser.parse_args()
    pipe = None if args.control == "true renders" else load("postcards")
    print(f"{args.prompts} prompts x {args.seeds} seeds a row, control: {args.control}\n")
    print("| | all | seen | held out |\n|---|---|---|---|")
    judge, options = load_judge(), vars(args)
    for task in TASKS[:4] if args.easy else TASKS:
        shares = measure(pipe, judge, task, **options)
        cells = " | ".join(cell(*shares[kind]) for kind in ("all", "seen", "held out"))
        print(f"| {task.name} | {cells} |", flush=True)


if __name__ == "__main__":
    main()
