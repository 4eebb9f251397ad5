"""Exercises of chapter 06: the U-Net and the noise that it predicts."""

from __future__ import annotations

from collections.abc import Callable

import torch
from diffusers import DDIMScheduler, UNet2DModel
from diffusers.models.embeddings import get_timestep_embedding
from torch import Generator, Tensor

from sdlearn.exercises.examination import Exercise, Mistake

Block = Callable[[Tensor], Tensor]

# 06.1 ------------------------------------------------------------------------------------------


def picture_of(x_t: Tensor, noise_pred: Tensor, alpha_bar: Tensor) -> Tensor:
    """Return the predicted picture, as diffusers' DDIM computes it on its way."""
    scheduler = DDIMScheduler(clip_sample=False)
    scheduler.set_timesteps(1000)
    scheduler.alphas_cumprod = alpha_bar
    rows = zip(noise_pred.split(1), x_t.split(1))
    return torch.cat(
        [scheduler.step(e, i, x).pred_original_sample for i, (e, x) in enumerate(rows)]
    )


def picture_cases(generator: Generator) -> list[tuple]:
    """Draw batches as high and wide as they have pictures: a wrong broadcast is no error."""
    cases = []
    for shape in ((1, 4, 1, 1), (3, 4, 3, 3), (4, 4, 4, 4)):
        x_t, noise_pred = torch.randn(2, *shape, generator=generator)
        cases.append((x_t, noise_pred, torch.rand(shape[0], generator=generator) * 0.9 + 0.05))
    return cases


def _level(alpha_bar: Tensor) -> Tensor:
    return alpha_bar[:, None, None, None]


def _put_in_again(x_t: Tensor, noise_pred: Tensor, alpha_bar: Tensor) -> Tensor:
    return picture_of(x_t, -noise_pred, alpha_bar)


def _noise_whole(x_t: Tensor, noise_pred: Tensor, alpha_bar: Tensor) -> Tensor:
    return x_t - noise_pred


def _left_small(x_t: Tensor, noise_pred: Tensor, alpha_bar: Tensor) -> Tensor:
    return x_t - (1 - _level(alpha_bar)) ** 0.5 * noise_pred


def _without_roots(x_t: Tensor, noise_pred: Tensor, alpha_bar: Tensor) -> Tensor:
    a = _level(alpha_bar)
    return (x_t - (1 - a) * noise_pred) / a


def _along_the_width(x_t: Tensor, noise_pred: Tensor, alpha_bar: Tensor) -> Tensor:
    return (x_t - (1 - alpha_bar) ** 0.5 * noise_pred) / alpha_bar**0.5


PICTURE = Exercise(
    name="06.1",
    title="From the noise to the picture",
    minutes=8,
    difficulty=1,
    reference=picture_of,
    cases=picture_cases,
    start="write down the jump, x_t = √ᾱ x_0 + √(1 - ᾱ) ε, and solve it for x_0",
    mistakes=(
        Mistake(
            "you put the noise in a second time: it is part of x_t and must be taken away",
            _put_in_again,
        ),
        Mistake(
            "you take away the noise as it was drawn; but x_t holds only √(1 - ᾱ) times as much "
            "of it, and the picture that is left is still shrunk by √ᾱ",
            _noise_whole,
        ),
        Mistake(
            "the noise is gone, but the picture is still shrunk by √ᾱ, as it is in x_t: divide "
            "by that",
            _left_small,
        ),
        Mistake(
            "the roots are missing: ᾱ and 1 - ᾱ are shares of the variance, and values go with "
            "their roots",
            _without_roots,
        ),
        Mistake(
            "alpha_bar meets the picture's last axis, so each column has a noise level of its "
            "own; PyTorch lines shapes up from the right. Each picture needs its own",
            _along_the_width,
        ),
    ),
    out_of_reach=(
        "sdlearn.noise.split_prediction",
        "sdlearn.noise.predict_original_sample",
        "diffusers.DDIMScheduler.step",
        "diffusers.DDPMScheduler.step",
    ),
)


# 06.2 ------------------------------------------------------------------------------------------


def waves(timesteps: Tensor, width: int) -> Tensor:
    """Embed timesteps with diffusers' function, with the flags of Stable Diffusion."""
    return get_timestep_embedding(timesteps, width, flip_sin_to_cos=True, downscale_freq_shift=0)


def waves_cases(generator: Generator) -> list[tuple]:
    """Draw batches of timesteps; one has as many as there are waves."""
    pairs = ((1, 8), (6, 12), (5, 32))
    return [(torch.randint(1, 1000, (n,), generator=generator), width) for n, width in pairs]


def _from_angles(angles: Tensor) -> Tensor:
    return torch.cat([angles.cos(), angles.sin()], dim=-1)


def _sines_first(timesteps: Tensor, width: int) -> Tensor:
    return get_timestep_embedding(timesteps, width, downscale_freq_shift=0)


def _to_the_slowest(timesteps: Tensor, width: int) -> Tensor:
    return get_timestep_embedding(timesteps, width, flip_sin_to_cos=True, downscale_freq_shift=1)


def _counted_by_width(timesteps: Tensor, width: int) -> Tensor:
    k = torch.arange(width // 2)
    return _from_angles(timesteps[:, None] * 10_000 ** (-k / width))


def _in_turn(timesteps: Tensor, width: int) -> Tensor:
    return waves(timesteps, width).unflatten(1, (2, -1)).transpose(1, 2).flatten(1)


def _slowest_first(timesteps: Tensor, width: int) -> Tensor:
    return waves(timesteps, width).unflatten(1, (2, -1)).flip(2).flatten(1)


WAVES = Exercise(
    name="06.2",
    title="A timestep becomes waves",
    minutes=15,
    difficulty=2,
    reference=waves,
    cases=waves_cases,
    start="the frequencies: k = torch.arange(m) for m = width // 2, then 10_000 ** (-k / m)",
    mistakes=(
        Mistake(
            "the sines come first in yours, as in the paper on transformers; Stable Diffusion puts "
            "the cosines first, and its weights count on that order",
            _sines_first,
        ),
        Mistake(
            "your slowest wave turns 10,000 times more slowly than the first, since you divide k "
            "by m - 1; here k is divided by m, and that end is just not reached",
            _to_the_slowest,
        ),
        Mistake(
            "you divide k by the whole width; there are only m = width / 2 frequencies, each used "
            "for a cosine and a sine, so that yours stop half-way, at 100",
            _counted_by_width,
        ),
        Mistake(
            "cosine and sine take turns in yours; here all cosines come first, then all sines: "
            "join them, do not weave them",
            _in_turn,
        ),
        Mistake(
            "your frequencies rise: k = 0 is the fastest wave, ω = 1, and the minus in the "
            "exponent makes the later ones slower",
            _slowest_first,
        ),
    ),
    out_of_reach=("diffusers.models.embeddings.get_timestep_embedding",),
    tolerance=2e-3,
)


# 06.3 ------------------------------------------------------------------------------------------


def u_net(x: Tensor, down: list[Block], middle: Block, up: list[Block]) -> Tensor:
    """Go down, through the middle, and up; the last skip made is the first one used."""
    skips = []
    for block in down:
        x = block(x)
        skips.append(x)
    x = middle(x)
    for block in up:
        x = block(torch.cat([x, skips.pop()], dim=1))
    return x


def _mixing(channels: int, generator: Generator) -> Block:
    """Draw a block that mixes the channels of each place, up to twice as many as it gives out."""
    weights = torch.randn(channels, 2 * channels, generator=generator) / channels**0.5

    def block(x: Tensor) -> Tensor:
        return torch.einsum("oc,bchw->bohw", weights[:, : x.shape[1]], x).tanh()

    return block


def u_net_cases(generator: Generator) -> list[tuple]:
    """Draw blocks; channels and sides are equal, so that a wrong order or axis is no error."""
    cases = []
    for batch, channels, depth in ((1, 4, 2), (2, 4, 3), (4, 6, 4)):
        blocks = [_mixing(channels, generator) for _ in range(2 * depth + 1)]
        x = torch.randn(batch, channels, 5, 3, generator=generator)
        cases.append((x, blocks[:depth], blocks[depth], blocks[depth + 1 :]))
    return cases


def _way(
    x: Tensor, down: list[Block], middle: Block, up: list[Block]
) -> tuple[Tensor, list[Tensor]]:
    """Return what leaves the middle, and all that was there before it, the input too."""
    seen = [x]
    for block in down:
        seen.append(block(seen[-1]))
    return middle(seen[-1]), seen


def _first_in_first_out(x: Tensor, down: list[Block], middle: Block, up: list[Block]) -> Tensor:
    h, (_, *skips) = _way(x, down, middle, up)
    for block, skip in zip(up, skips):
        h = block(torch.cat([h, skip], dim=1))
    return h


def _skip_in_front(x: Tensor, down: list[Block], middle: Block, up: list[Block]) -> Tensor:
    h, (_, *skips) = _way(x, down, middle, up)
    for block, skip in zip(up, skips[::-1]):
        h = block(torch.cat([skip, h], dim=1))
    return h


def _added(x: Tensor, down: list[Block], middle: Block, up: list[Block]) -> Tensor:
    h, (_, *skips) = _way(x, down, middle, up)
    for block, skip in zip(up, skips[::-1]):
        h = block(h + skip)
    return h


def _noted_before(x: Tensor, down: list[Block], middle: Block, up: list[Block]) -> Tensor:
    h, (*skips, _) = _way(x, down, middle, up)
    for block, skip in zip(up, skips[::-1]):
        h = block(torch.cat([h, skip], dim=1))
    return h


def _no_skips(x: Tensor, down: list[Block], middle: Block, up: list[Block]) -> Tensor:
    h, _ = _way(x, down, middle, up)
    for block in up:
        h = block(h)
    return h


def _no_middle(x: Tensor, down: list[Block], middle: Block, up: list[Block]) -> Tensor:
    return u_net(x, down, lambda h: h, up)


U_NET = Exercise(
    name="06.3",
    title="The shape of a U",
    minutes=15,
    difficulty=2,
    reference=u_net,
    cases=u_net_cases,
    start="an empty list for the skips; each block on the way down leaves its output there",
    mistakes=(
        Mistake(
            "the first skip made is the first one used in yours; the way up mirrors the way down, "
            "so the last one made comes first: a stack, not a queue",
            _first_in_first_out,
        ),
        Mistake(
            "the skip stands before what comes up; both are there, but the block's weights expect "
            "first the channels that arrive, then those of the skip",
            _skip_in_front,
        ),
        Mistake(
            "you add the skip; a sum cannot be taken apart again. Join the channels, so that the "
            "block can choose from both",
            _added,
        ),
        Mistake(
            "you keep what goes into a block on the way down; a skip is what comes out of it",
            _noted_before,
        ),
        Mistake("no skip reaches the way up in yours: all that is sharp is lost below", _no_skips),
        Mistake("the middle is left out, where the U-Net sees the whole picture", _no_middle),
    ),
)


# 06.4 ------------------------------------------------------------------------------------------


def incoming(widths: list[int], layers: int) -> list[int]:
    """Build the U-Net with diffusers, without weights, and read off what its blocks take in."""
    kinds = len(widths)
    with torch.device("meta"):
        unet = UNet2DModel(
            block_out_channels=tuple(widths),
            layers_per_block=layers,
            down_block_types=("DownBlock2D",) * kinds,
            up_block_types=("UpBlock2D",) * kinds,
            norm_num_groups=1,
            attention_head_dim=1,
        )
    return [resnet.in_channels for block in unet.up_blocks for resnet in block.resnets]


def incoming_cases(generator: Generator) -> list[tuple]:
    """Draw widths, all different, for two to four rows."""
    cases = []
    for rows, layers in ((2, 1), (3, 1), (4, 2)):
        widths = (2 + torch.randperm(12, generator=generator)[:rows].sort().values) * 4
        cases.append((widths.tolist(), layers))
    return cases


def _stack(widths: list[int], layers: int) -> list[int]:
    skips = [widths[0]]
    for row, width in enumerate(widths):
        skips += [width] * (layers + (row < len(widths) - 1))
    return skips


def _arriving(widths: list[int], layers: int) -> list[int]:
    below = [*widths[1:], widths[-1]]
    return [
        width if block else lower
        for width, lower in zip(widths[::-1], below[::-1])
        for block in range(layers + 1)
    ]


def _nothing_joined(widths: list[int], layers: int) -> list[int]:
    return _arriving(widths, layers)


def _as_a_queue(widths: list[int], layers: int) -> list[int]:
    return [a + s for a, s in zip(_arriving(widths, layers), _stack(widths, layers))]


def _twice_its_own(widths: list[int], layers: int) -> list[int]:
    return [2 * width for width in widths[::-1] for _ in range(layers + 1)]


def _own_width_arrives(widths: list[int], layers: int) -> list[int]:
    own = [width for width in widths[::-1] for _ in range(layers + 1)]
    return [a + s for a, s in zip(own, _stack(widths, layers)[::-1])]


def _halving_forgotten(widths: list[int], layers: int) -> list[int]:
    skips = [width for width in widths for _ in range(layers)]
    own = [width if block else lower
           for width, lower in zip(widths[::-1], [*widths[1:], widths[-1]][::-1])
           for block in range(layers)]  # fmt: skip
    return [a + s for a, s in zip(own, skips[::-1])]


INCOMING = Exercise(
    name="06.4",
    title="How wide is the way up?",
    minutes=25,
    difficulty=3,
    reference=incoming,
    cases=incoming_cases,
    start="write the list of the skips' widths first, in the order in which the way down makes "
    "them; it begins with widths[0], from the first convolution",
    mistakes=(
        Mistake(
            "that is what arrives from below; each block also takes in the channels of its skip",
            _nothing_joined,
        ),
        Mistake(
            "the skips are used in the order in which they were made; the way up takes the last "
            "one first, from the end of the list",
            _as_a_queue,
        ),
        Mistake(
            "you count each row's own width twice. That is true only inside a row: what arrives "
            "at a row's first block has the width of the row below, and its last skip may come "
            "from the row above",
            _twice_its_own,
        ),
        Mistake(
            "the skips are right, but what arrives at the first block of a row comes from the row "
            "below, and still has that one's width: doubling the size keeps the channels",
            _own_width_arrives,
        ),
        Mistake(
            "a row has one block more on the way up than on the way down: the first convolution "
            "and the blocks that halve leave a skip, too",
            _halving_forgotten,
        ),
    ),
    out_of_reach=(
        "diffusers.UNet2DModel.__init__",
        "diffusers.UNet2DConditionModel.__init__",
        "sdlearn.unet.trace_blocks",
    ),
)

EXERCISES = (PICTURE, WAVES, U_NET, INCOMING)
