"""Measure how well postcards does what its prompt says.

``python -m sdlearn.postcards.evaluate`` draws pictures for prompts that name everything in them,
lets the judge read the pictures, and prints how often each attribute is as asked, with 95 % Wilson
intervals (Wilson 1927). ``--control`` breaks the link between prompt and picture in a known way.
``--grid`` compares guidance scales and numbers of steps, ``--memory`` the pictures with those it
was trained on; ``--sheet`` shows them, unselected.

The model draws on any device and in any precision. From then on pictures are float32 on the CPU.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterable
from pathlib import Path

import matplotlib as mpl
import torch
import torch.nn.functional as F
from diffusers import StableDiffusionPipeline
from matplotlib.figure import Figure

from sdlearn import decode_latents, encode_image, load, to_pil
from sdlearn.postcards import words, world
from sdlearn.postcards.data import Postcards, pixels_of
from sdlearn.postcards.judge import Judge, agrees, load_judge
from sdlearn.postcards.model import GUIDANCE, STEPS
from sdlearn.postcards.render import render
from sdlearn.postcards.tasks import TASKS, Task, scenes_for
from sdlearn.postcards.world import Scene
from sdlearn.show import pictures

BATCH = 16
GRID = (1.0, 1.5, 2.0, 3.0, 5.0), (4, 8, 10, 20)
CONTROLS = ("none", "shuffled prompts", "empty prompt", "guidance off", "true renders")


def wilson(right: int, count: int) -> tuple[float, float]:
    """Return the 95 % Wilson score interval of the share ``right / count``."""
    z = 1.959964
    share, spread = right / count, z * z / count
    middle = (share + spread / 2) / (1 + spread)
    half = z / (1 + spread) * (share * (1 - share) / count + spread / 4 / count) ** 0.5
    return max(middle - half, 0.0), min(middle + half, 1.0)


def true_renders(scenes: list[Scene]) -> torch.Tensor:
    """Return the scenes as drawn by code, (B, 3, 128, 128) in [-1, 1]."""
    return torch.stack([pixels_of(render(scene)) for scene in scenes])


@torch.no_grad()
def draw(
    pipe: StableDiffusionPipeline | None,
    scenes: list[Scene],
    control: str,
    seed: int,
    guidance: float = GUIDANCE,
    steps: int = STEPS,
    say: Callable[[Scene], str] = words.sentence,
) -> torch.Tensor:
    """Draw a picture for each scene, (B, 3, 128, 128) in [-1, 1], float32 on the CPU.

    Without a pipeline they are true renders.
    """
    if pipe is None:
        return true_renders(scenes)
    prompts = [say(scene) for scene in scenes]
    if control == "shuffled prompts":
        prompts = prompts[1:] + prompts[:1]
    if control == "empty prompt":
        prompts = [""] * len(prompts)
    generators = [torch.Generator().manual_seed(seed + i) for i in range(len(prompts))]
    scale = 1.0 if control == "guidance off" else guidance
    settings = {"num_inference_steps": steps, "guidance_scale": scale, "output_type": "pt"}
    return pipe(prompts, generator=generators, **settings).images.float().cpu() * 2 - 1


def judged(
    pipe: StableDiffusionPipeline | None,
    judge: Judge,
    task: Task,
    scenes: list[Scene],
    control: str,
    seed: int,
    guidance: float,
    steps: int,
) -> list[dict[str, bool]]:
    """Draw the scenes of a task; return for each which attributes the judge finds as asked."""
    found = []
    for start in range(0, len(scenes), BATCH):
        batch = scenes[start : start + BATCH]
        pictures = draw(pipe, batch, control, seed + start, guidance, steps, task.say)
        found += [agrees(read, scene) for read, scene in zip(judge.read(pictures), batch)]
    return found


def measure(
    pipe: StableDiffusionPipeline | None,
    judge: Judge,
    task: Task,
    *,
    prompts: int,
    seeds: int,
    control: str = "none",
    guidance: float = GUIDANCE,
    steps: int = STEPS,
    easy: bool = False,
) -> dict[str, dict[str, tuple[int, int]]]:
    """Return (right, drawn) for each row of a task: all scenes, and seen and held-out ones apart.

    Without a pipeline the pictures are true renders.
    """
    scenes = scenes_for(task, prompts, 0, easy=easy)
    answers: list[tuple[Scene, dict[str, bool]]] = []
    for seed in range(seeds):
        found = judged(pipe, judge, task, scenes, control, 10_000 * seed, guidance, steps)
        answers += zip(scenes, found)

    def count(attributes: tuple[str, ...], kinds: tuple[bool, ...]) -> tuple[int, int]:
        chosen = [found for scene, found in answers if world.is_held_out(scene) in kinds]
        return sum(all(found[name] for name in attributes) for found in chosen), len(chosen)

    return {
        row: {
            "all": count(attributes, (False, True)),
            "seen": count(attributes, (False,)),
            "held out": count(attributes, (True,)),
        }
        for row, attributes in task.rows.items()
    }


@torch.no_grad()
def nearest(pictures: torch.Tensor, others: Iterable[torch.Tensor]) -> torch.Tensor:
    """Return each picture's distance to the nearest of many others, (B,).

    The distance is the root mean square difference of pictures reduced to 32 × 32 pixels: a
    copy that is a little sharper or softer stays a copy.

    Args:
        pictures: (B, 3, 128, 128) in [-1, 1], float32 on the CPU.
        others: batches of the same kind.
    """

    def small(batch: torch.Tensor) -> torch.Tensor:
        return F.avg_pool2d(batch, 4).flatten(1)  # (B, 3 * 32 * 32)

    reduced = small(pictures)
    best = torch.full((len(pictures),), torch.inf)
    for batch in others:
        best = best.minimum(torch.cdist(reduced, small(batch)).amin(dim=1))
    return best / reduced.shape[1] ** 0.5


def grid(pipe: StableDiffusionPipeline, judge: Judge, prompts: int) -> Iterable[str]:
    """Yield a Markdown table of how often all is as asked: a line for each guidance scale."""
    scales, counts = GRID
    yield "| | " + " | ".join(f"{steps} steps" for steps in counts) + " |"
    yield "|---" * (len(counts) + 1) + "|"
    for guidance in scales:
        shares = []
        for steps in counts:
            right = 0
            for task in TASKS:
                scenes = scenes_for(task, prompts, 1)
                found = judged(pipe, judge, task, scenes, "none", 0, guidance, steps)
                right += sum(all(attributes.values()) for attributes in found)
            shares.append(f"{right / prompts / len(TASKS):.2f}")
        yield f"| guidance {guidance} | " + " | ".join(shares) + " |"


def memory(pipe: StableDiffusionPipeline, prompts: int, training: int, guidance: float) -> str:
    """Say whether drawn pictures are nearer to training pictures than new true renders are.

    The renders show the same scenes and go through the VAE, so that they are as soft as what the
    model draws. A model that has memorised its training pictures would be nearer every time.
    """
    scenes = scenes_for(TASKS[1], prompts, 0)
    batches = [scenes[i : i + BATCH] for i in range(0, prompts, BATCH)]
    drawn = torch.cat([draw(pipe, batch, "none", 10_000, guidance) for batch in batches])
    latents = torch.cat([encode_image(pipe, render(s), sample=False) for s in scenes])
    renders = decode_latents(pipe, latents).float().cpu() * 2 - 1

    trained_on = Postcards(training)
    scenes = [trained_on.scene(i) for i in range(training)]
    seen = (true_renders(scenes[i : i + 256]) for i in range(0, training, 256))
    distances = nearest(torch.cat([drawn, renders]), seen)
    to_drawn, to_renders = distances.split(prompts)
    nearer = int((to_drawn < to_renders).sum())
    return (
        f"nearer to one of {training} training pictures than a new true render of the same scene: "
        f"{cell(nearer, prompts)}\n"
        f"median distance: drawn {to_drawn.median():.3f}, new renders {to_renders.median():.3f}"
    )


def sheet(
    pipe: StableDiffusionPipeline, guidance: float, columns: int = 10, each: int = 20
) -> Figure:
    """Draw the first prompts of every kind of scene, one picture each: none is left out."""
    shown = {}
    for task in TASKS:
        scenes = scenes_for(task, each, 0)
        for scene, pixels in zip(scenes, draw(pipe, scenes, "none", 0, guidance, say=task.say)):
            shown[task.say(scene)] = to_pil(pipe, pixels[None] / 2 + 0.5)[0]
    with mpl.rc_context({"axes.titlesize": 6.5}):
        return pictures(shown, columns=columns, inches=1.6)


def cell(right: int, drawn: int) -> str:
    """Return a share with its interval, as in ".95 (.93 to .97)"."""
    if drawn == 0:
        return "-"
    low, high = wilson(right, drawn)
    return f"{right / drawn:.2f} ({low:.2f} to {high:.2f})"


def main() -> None:
    """Read the command line, measure, print a Markdown table."""
    parser = argparse.ArgumentParser(prog="python -m sdlearn.postcards.evaluate")
    parser.add_argument("--prompts", type=int, default=100, help="for each kind of scene")
    parser.add_argument("--seeds", type=int, default=4, help="pictures for each prompt")
    parser.add_argument("--guidance", type=float, default=GUIDANCE)
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--device", help="default: $SDLEARN_DEVICE, else the GPU if there is one")
    parser.add_argument(
        "--easy",
        action="store_true",
        help="only one thing, of the subjects that training begins with",
    )
    parser.add_argument("--control", choices=CONTROLS, default="none")
    parser.add_argument("--grid", action="store_true", help="guidance scales and numbers of steps")
    parser.add_argument("--memory", type=int, metavar="PICTURES", help="... of the training set")
    parser.add_argument("--sheet", type=Path, metavar="FILE.jpg")
    args = parser.parse_args()
    pipe = None if args.control == "true renders" else load("postcards", device=args.device)
    if pipe is not None and args.sheet:
        return sheet(pipe, args.guidance).savefig(args.sheet, dpi=100)
    if pipe is not None and args.memory:
        return print(memory(pipe, args.prompts, args.memory, args.guidance))
    if pipe is not None and args.grid:
        for line in grid(pipe, load_judge(), args.prompts):
            print(line, flush=True)
        return None
    print(f"{args.prompts} prompts of each kind x {args.seeds} seeds, control: {args.control}\n")
    print("| | all | seen | held out |\n|---|---|---|---|")
    judge = load_judge()
    for task in TASKS[:2] if args.easy else TASKS:
        rows = measure(
            pipe, judge, task, prompts=args.prompts, seeds=args.seeds, control=args.control,
            guidance=args.guidance, steps=args.steps, easy=args.easy,
        )  # fmt: skip
        for row, shares in rows.items():
            cells = " | ".join(cell(*shares[kind]) for kind in ("all", "seen", "held out"))
            print(f"| {row} | {cells} |", flush=True)


if __name__ == "__main__":
    main()
