"""Exercises of chapter 00: start here."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from diffusers.utils.torch_utils import randn_tensor
from PIL import Image
from torch import Generator, Tensor

from sdlearn.exercises.examination import Exercise, Mistake
from sdlearn.sampling import Step, Trace

# 00.1 ------------------------------------------------------------------------------------------


class Run(NamedTuple):
    """What somebody typed to draw a picture, and the name of the file that it went into."""

    model: str
    prompt: str
    seed: int
    steps: int
    guidance: float
    side: int
    file: str


def same_picture(one: Run, other: Run) -> bool:
    """Say whether two runs draw the same picture: all but the file's name must be equal."""
    return one[:-1] == other[:-1]


def same_picture_cases(generator: Generator) -> list[tuple]:
    """Draw a run, and beside it others in which one thing differs, or nothing but the file."""
    seed, steps = (int(n) for n in torch.randint(5, 40, (2,), generator=generator))
    run = Run("postcards", "a fox in the snow", seed, steps, 2.0, 128, "a.png")
    others = (
        run._replace(file="b.png"),
        run._replace(seed=seed + 1, file="b.png"),
        run._replace(prompt="a fox in a meadow", file="b.png"),
        run._replace(steps=steps + 5),
        run._replace(guidance=3.0),
        run._replace(side=192),
        run._replace(model="sd15"),
        run,
    )
    return [(run, other) for other in others]


def _seed_alone(one: Run, other: Run) -> bool:
    return one.seed == other.seed


def _seed_and_prompt(one: Run, other: Run) -> bool:
    return (one.seed, one.prompt) == (other.seed, other.prompt)


def _any_seed(one: Run, other: Run) -> bool:
    return same_picture(one, other._replace(seed=one.seed))


def _any_size(one: Run, other: Run) -> bool:
    return same_picture(one, other._replace(side=one.side))


def _any_model(one: Run, other: Run) -> bool:
    return same_picture(one, other._replace(model=one.model))


def _file_as_well(one: Run, other: Run) -> bool:
    return one == other


def _never(one: Run, other: Run) -> bool:
    return False


SAME = Exercise(
    name="00.1",
    title="The same picture again?",
    minutes=5,
    difficulty=1,
    reference=same_picture,
    cases=same_picture_cases,
    start="which of the seven things does the picture depend on?",
    mistakes=(
        Mistake(
            "the seed decides the starting noise, and no more: other words or other settings make "
            "another picture of the same noise",
            _seed_alone,
        ),
        Mistake(
            "noise and words are not all: model, size, steps and guidance change the picture, too",
            _seed_and_prompt,
        ),
        Mistake(
            "the seed is missing: other starting noise leads to another picture of the same words",
            _any_seed,
        ),
        Mistake(
            "the size is missing: a larger picture has more latents, so it starts from other noise",
            _any_size,
        ),
        Mistake(
            "the model is missing: the same seed gives each model the same kind of noise, and each "
            "makes something else of it",
            _any_model,
        ),
        Mistake(
            "the name of the file is not looked at when a picture is drawn; leave it out",
            _file_as_well,
        ),
        Mistake(
            "'you never get the same picture twice' is not true: with all that matters equal, on "
            "one computer, it is the same to the last bit",
            _never,
        ),
    ),
)


# 00.2 ------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class NotedTrace(Trace):
    """A trace of made-up numbers, which nobody needs to copy."""

    def __deepcopy__(self, memo: Any) -> NotedTrace:
        """Return the same one."""
        return self


def made_up(guesses: list[Tensor], end: Tensor, generator: Generator) -> NotedTrace:
    """Return a trace that ends with latents, and whose steps take theirs for these guesses."""
    count = len(guesses)
    levels = [0.02 + 0.7 * i / count for i in range(count - 2)] + [0.9, 0.98]
    noises = torch.randn(count, *end.shape, generator=generator)
    noisy = [a**0.5 * x + (1 - a) ** 0.5 * e for a, x, e in zip(levels, guesses, noises)]
    steps = [
        Step(
            i=i,
            t=torch.tensor(901 - 1000 // (count + 1) * i),
            latents=noisy[i],
            model_input=noisy[i],
            noise_pred_uncond=noises[i],
            noise_pred_text=noises[i],
            noise_pred=noises[i],
            prev_sample=noisy[i + 1] if i + 1 < count else end,
            alpha_bar=levels[i],
            prediction_type="epsilon",
        )
        for i in range(count)
    ]
    pictures, _, h, w = end.shape
    return NotedTrace(
        prompts=["a fox", "a blue boat", "a cat"][:pictures],
        prompt_embeds=torch.randn(2 * pictures, 77, 8, generator=generator),
        steps=tuple(steps),
        latents=end,
        pixels=torch.rand(pictures, 3, 8 * h, 8 * w, generator=generator),
        images=[Image.new("RGB", (8 * w, 8 * h)) for _ in range(pictures)],
    )


def in_numbers(trace: Trace) -> list[int]:
    """Count pictures and steps; give the first and last t, and how many numbers a picture has."""
    pictures = len(trace.prompts)
    return [
        pictures,
        len(trace.steps),
        int(trace.steps[0].t),
        int(trace.steps[-1].t),
        trace.latents.numel() // pictures,
        trace.pixels.numel() // pictures,
    ]


def in_numbers_cases(generator: Generator) -> list[tuple]:
    """Draw traces of several pictures."""
    cases = []
    for pictures, count, h, w in ((2, 5, 2, 3), (1, 8, 4, 2), (3, 10, 2, 2)):
        drawn = torch.randn(count + 1, pictures, 4, h, w, generator=generator)
        cases.append((made_up(list(drawn[:-1]), drawn[-1], generator),))
    return cases


def _one_more_each(trace: Trace) -> list[int]:
    right, count = in_numbers(trace), len(trace.prompt_embeds)
    return [count, *right[1:4], trace.latents.numel() // count, trace.pixels.numel() // count]


def _rows_for_pictures(trace: Trace) -> list[int]:
    return [len(trace.prompt_embeds), *in_numbers(trace)[1:]]


def _of_all_pictures(trace: Trace) -> list[int]:
    return [*in_numbers(trace)[:4], trace.latents.numel(), trace.pixels.numel()]


def _from_small_t(trace: Trace) -> list[int]:
    pictures, count, first, last, *numbers = in_numbers(trace)
    return [pictures, count, last, first, *numbers]


def _i_for_t(trace: Trace) -> list[int]:
    pictures, count, _, _, *numbers = in_numbers(trace)
    return [pictures, count, 0, count - 1, *numbers]


def _last_index(trace: Trace) -> list[int]:
    pictures, count, *rest = in_numbers(trace)
    return [pictures, count - 1, *rest]


IN_NUMBERS = Exercise(
    name="00.2",
    title="Read a trace",
    minutes=8,
    difficulty=1,
    reference=in_numbers,
    cases=in_numbers_cases,
    start="trace.prompts is a list with one prompt for each picture; trace.steps has the steps",
    mistakes=(
        Mistake(
            "twice as many pictures as there are: trace.prompt_embeds has a row for the empty "
            "prompt beside each of yours",
            _rows_for_pictures,
        ),
        Mistake(
            "you divide by the rows of trace.prompt_embeds: there each picture has two, one for "
            "the empty prompt, one for yours",
            _one_more_each,
        ),
        Mistake(
            "the last two numbers are those of all pictures together; the first axis is the batch. "
            "Divide by the number of pictures",
            _of_all_pictures,
        ),
        Mistake(
            "the first step is the noisiest: t counts noise, and drawing starts at a large t",
            _from_small_t,
        ),
        Mistake(
            "that is i, the number of the step; t, the timestep, says how noisy it is there",
            _i_for_t,
        ),
        Mistake(
            "one step too few: they are numbered from 0, so the last number is one less than their "
            "count",
            _last_index,
        ),
    ),
)


# 00.3 ------------------------------------------------------------------------------------------

Shape = tuple[int, int, int]


def starting_noise(seeds: list[int], shape: Shape) -> Tensor:
    """Draw noise for each picture from a seed of its own: diffusers' own function."""
    return randn_tensor((len(seeds), *shape), [Generator().manual_seed(s) for s in seeds])


def noise_cases(generator: Generator) -> list[tuple]:
    """Draw seeds that are no neighbours."""
    cases = []
    for count, shape in ((1, (4, 3, 5)), (3, (4, 4, 2)), (4, (4, 2, 6))):
        drawn = torch.randperm(50, generator=generator)[:count] * 3 + 1
        cases.append((drawn.tolist(), shape))
    return cases


def _one_generator(seeds: list[int], shape: Shape) -> Tensor:
    return torch.randn(len(seeds), *shape, generator=Generator().manual_seed(seeds[0]))


def _counted_on(seeds: list[int], shape: Shape) -> Tensor:
    return starting_noise([seeds[0] + i for i in range(len(seeds))], shape)


def _one_for_all(seeds: list[int], shape: Shape) -> Tensor:
    return starting_noise(seeds[:1] * len(seeds), shape)


def _from_0_to_1(seeds: list[int], shape: Shape) -> Tensor:
    return torch.stack([torch.rand(shape, generator=Generator().manual_seed(s)) for s in seeds])


def _side_by_side(seeds: list[int], shape: Shape) -> Tensor:
    return torch.cat(list(starting_noise(seeds, shape)))


def _moved_on(seeds: list[int], shape: Shape) -> Tensor:
    generators = [Generator().manual_seed(s) for s in seeds]
    return [randn_tensor((len(seeds), *shape), generators) for _ in range(2)][1]


NOISE = Exercise(
    name="00.3",
    title="A seed for each picture",
    minutes=10,
    difficulty=2,
    reference=starting_noise,
    cases=noise_cases,
    start="make a torch.Generator() for each seed, and let it draw with torch.randn",
    mistakes=(
        Mistake(
            "one generator draws for all: only the first picture is that of its seed. The others "
            "depend on what was drawn before them, and could not be drawn again alone",
            _one_generator,
        ),
        Mistake(
            "you count on from the first seed; each picture has been given its own", _counted_on
        ),
        Mistake("all pictures start from the noise of the first seed", _one_for_all),
        Mistake(
            "rand draws evenly from 0 to 1, so all of it is positive; the model was trained on "
            "noise around 0, which randn draws",
            _from_0_to_1,
        ),
        Mistake(
            "the pictures' channels are joined one after another; a batch needs an axis of its "
            "own, the first: torch.stack",
            _side_by_side,
        ),
        Mistake(
            "you use what each generator draws the second time: it has moved on. Make a new one "
            "with the same seed for the same noise",
            _moved_on,
        ),
    ),
    out_of_reach=("diffusers.utils.torch_utils.randn_tensor",),
)


# 00.4 ------------------------------------------------------------------------------------------


def settled(trace: Trace, limit: float) -> int:
    """Return the number of the first step from which on all guesses are near the end."""
    far = [i for i, each in enumerate(_distances(trace)) if each > limit]
    return far[-1] + 1 if far else 0


def _distances(trace: Trace) -> list[float]:
    return [_apart(step.pred_original_sample, trace.latents) for step in trace.steps]


def _apart(one: Tensor, other: Tensor) -> float:
    return float((one - other).square().mean().sqrt())


def settled_cases(generator: Generator) -> list[tuple]:
    """Draw traces whose guess comes near the end, leaves it once more, and comes back."""
    cases = []
    for count, near, at, limit in ((9, 1, 4, 0.4), (10, 3, 6, 0.45), (12, 2, 7, 0.5)):
        drawn = torch.rand(count, generator=generator)
        sizes = [2.5 + float(r) if i < near else 0.6 + 0.3 * float(r) for i, r in enumerate(drawn)]
        sizes[near - 1], sizes[at - 1] = 1.2, 1.2 + 0.1 * float(drawn[at - 1])
        end, *off = torch.randn(count + 1, 1, 4, 4, 3, generator=generator)
        guesses = [end + limit * s * d / d.square().mean().sqrt() for s, d in zip(sizes, off)]
        cases.append((made_up(guesses, end, generator), limit))
    return cases


def _after_the_last(distances: list[float], limit: float) -> int:
    return max((i + 1 for i, each in enumerate(distances) if each > limit), default=0)


def _first_time(trace: Trace, limit: float) -> int:
    return [each <= limit for each in _distances(trace)].index(True)


def _of_noisy_latents(trace: Trace, limit: float) -> int:
    noisy = [_apart(step.model_input, trace.latents) for step in trace.steps]
    return _after_the_last(noisy, limit)


def _without_root(trace: Trace, limit: float) -> int:
    return _after_the_last([each**2 for each in _distances(trace)], limit)


def _as_a_sum(trace: Trace, limit: float) -> int:
    numbers = trace.latents.numel()
    return _after_the_last([each * numbers**0.5 for each in _distances(trace)], limit)


def _last_far_one(trace: Trace, limit: float) -> int:
    return settled(trace, limit) - 1


def _its_t(trace: Trace, limit: float) -> int:
    return int(trace.steps[settled(trace, limit)].t)


SETTLED = Exercise(
    name="00.4",
    title="When was the picture settled?",
    minutes=15,
    difficulty=3,
    reference=settled,
    cases=settled_cases,
    start="work out one distance for each step, of step.pred_original_sample from trace.latents",
    mistakes=(
        Mistake(
            "that is the first time that a guess comes near. It goes away once more after that: "
            "look for the last step that is too far, and take the one behind it",
            _first_time,
        ),
        Mistake(
            "you measure the noisy latents, which are near the end only at the end; the question "
            "is what the U-Net takes them for, step.pred_original_sample",
            _of_noisy_latents,
        ),
        Mistake(
            "the root is missing: your distances are squares, and squares of small "
            "numbers are smaller still",
            _without_root,
        ),
        Mistake(
            "you add the squares up, so the distance grows with the size of the picture; take "
            "their mean, then the root",
            _as_a_sum,
        ),
        Mistake("one step too early: at yours the guess is still too far", _last_far_one),
        Mistake("you return t, the timestep; the number of the step, i, is wanted", _its_t),
    ),
)

EXERCISES = (SAME, IN_NUMBERS, NOISE, SETTLED)
