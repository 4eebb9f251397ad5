"""Five assignments for a class, each with numbers of a student's own, drawn from a name.

``python -m sdlearn.exercises assignment "Ada Lovelace"`` prints them, with ``--answers`` the
answers, too. A teacher who gives ``--secret WORD`` gets others than anybody can print without it.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from diffusers import DDIMScheduler

from sdlearn.schedulers import ddim_step

PROMPTS = (
    "an orange fox in the snow at night",
    "a red car left of a blue house in the city by day",
    "two green fish in the sea in the morning",
    "a yellow duck on the beach at sunset",
    "a pink pig in the desert by day",
    "a blue owl in the forest at night",
)
SURGERIES = (
    "exchange the first noun for another that postcards knows, at a step of your choice",
    "turn guidance off from a step of your choice on",
    "turn guidance on only from a step of your choice on",
    "begin with the mean of two seeds' starting noise, and again with its variance mended",
    "add fresh noise of a size of your choice once, in the middle",
)


@dataclass(frozen=True)
class Assignment:
    """One assignment: what to do, and what must come out."""

    title: str
    task: str
    answer: str


def assignments(student: str, secret: str = "") -> list[Assignment]:
    """Return a student's five assignments; the same for the same name, on every machine.

    Raises:
        ValueError: no name.
    """
    if not student.strip():
        raise ValueError('pass a name, such as "Ada Lovelace": the numbers are drawn from it')
    name = " ".join(student.lower().split())
    rng = random.Random(f"{secret}\0{name}")
    return [_jump(rng), _attention(rng), _guidance(rng), _step(rng), _loop(rng)]


def _numbers(rng: random.Random, count: int, digits: int = 1) -> list[float]:
    return [round(rng.uniform(-2, 2), digits) for _ in range(count)]


def _jump(rng: random.Random) -> Assignment:
    end, snr = rng.choice((0.008, 0.010, 0.012, 0.014, 0.016)), round(rng.uniform(0.2, 5), 2)
    a = DDIMScheduler(
        beta_start=0.00085, beta_end=end, beta_schedule="scaled_linear"
    ).alphas_cumprod
    t = int((a / (1 - a) <= snr).nonzero()[0])
    return Assignment(
        "The jump for a given SNR",
        f"A scaled linear schedule has beta_start 0.00085, beta_end {end} and 1,000 timesteps. "
        f"Which is the first timestep at which SNR is at most {snr}? With which two numbers are "
        "x_0 and the noise multiplied there? Show that their squares add up to 1.",
        f"t = {t}; {float(a[t].sqrt()):.3f} and {float((1 - a[t]).sqrt()):.3f}",
    )


def _attention(rng: random.Random) -> Assignment:
    q = [rng.randint(-2, 2) or 1 for _ in range(2)]
    keys = [[rng.randint(-2, 2) for _ in range(2)] for _ in range(3)]
    values = [[rng.randint(0, 4) for _ in range(2)] for _ in range(3)]
    query, key, value = (torch.tensor([each]).float() for each in ([q], keys, values))
    weights = (query[0] @ key[0].T / 2**0.5).softmax(-1)
    out = F.scaled_dot_product_attention(query, key, value)[0, 0]
    return Assignment(
        "Attention for three tokens, on paper",
        f"One place has the query {q}. Three tokens have the keys {keys} and the values {values}. "
        "Work out the three weights (two decimals) and what the place takes.",
        f"weights {[round(float(w), 2) for w in weights[0]]}, "
        f"takes {[round(float(o), 2) for o in out]}",
    )


def _guidance(rng: random.Random) -> Assignment:
    without, with_text, g = _numbers(rng, 3), _numbers(rng, 3), rng.choice((2, 3, 5, 7.5))
    right = [round(u + g * (c - u), 2) for u, c in zip(without, with_text)]
    swapped = [round(c + g * (u - c), 2) for u, c in zip(without, with_text)]
    return Assignment(
        "The order of guidance, and a failure explained",
        f"Without text a U-Net predicts {without}, with it {with_text}; the scale is {g}. Guide. "
        "Then exchange the two predictions, guide again, and say in three sentences what a picture "
        'drawn so would show, and why. To draw one, exchange the prompts: text_to_image(pipe, "", '
        "negative_prompt=...); a scale of 1 or less would turn guidance off.",
        f"{right}; exchanged {swapped}: c + g (u - c) is u + (1 - g)(c - u), the same "
        "direction with a negative scale, away from the prompt",
    )


def _step(rng: random.Random) -> Assignment:
    x, noise = _numbers(rng, 3), _numbers(rng, 3)
    a = round(rng.uniform(0.1, 0.6), 2)
    a_next = round(a + rng.uniform(0.1, 0.3), 2)
    out = ddim_step(torch.tensor(x), torch.tensor(noise), a, a_next)
    x_0 = [round((each - (1 - a) ** 0.5 * n) / a**0.5, 2) for each, n in zip(x, noise)]
    far = [float((torch.tensor(x) - torch.tensor(each)).norm()) for each in (out.tolist(), x_0)]
    return Assignment(
        "A step of DDIM",
        f"x_t is {x}, the predicted noise {noise}, ᾱ is {a} and at the next timestep {a_next}. "
        "Where does DDIM go? Give the predicted x_0 as well. Which of the two, as a vector, is "
        "nearer to x_t? Why does one expect that, and what becomes of the rest of the way?",
        f"{[round(float(each), 2) for each in out]}, x_0 = {x_0}; {far[0]:.2f} and {far[1]:.2f} "
        "from x_t. A step goes part of the way, since the guess of x_0 is a mean that later steps "
        "mend; expected, not a law",
    )


def _loop(rng: random.Random) -> Assignment:
    prompt, surgery, seed = rng.choice(PROMPTS), rng.choice(SURGERIES), rng.randrange(1000)
    return Assignment(
        "The whole loop, and one surgery",
        f'Write the loop by hand for "{prompt}", seed {seed}, ten steps of DDIM, guidance 2; show '
        f"that it equals text_to_image, bit for bit. Then one surgery: {surgery}. Talk about it.",
        "the figure of both; the rubric in lesson.md",
    )
