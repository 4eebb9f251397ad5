"""Exercises of chapter 11: train a latent diffusion model."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Generator, Tensor

from sdlearn.exercises.examination import Exercise, Mistake
from sdlearn.training.loop import learning_rate_at

# 11.1 ------------------------------------------------------------------------------------------


def rate_factor(share: float) -> float:
    """Return the factor on the learning rate: that of the book's own training loop."""
    return learning_rate_at(share)


def rate_cases(generator: Generator) -> list[tuple]:
    """Draw shares of a run: two while it warms up, two while it holds, three while it falls."""
    ends = ((0.0, 0.002), (0.01, 0.015), (0.05, 0.28), (0.1, 0.2), (0.4, 0.6), (0.8, 0.95))
    drawn = torch.rand(len(ends), generator=generator).tolist()
    return [(low + (high - low) * r,) for (low, high), r in zip(ends, drawn)] + [(1.0,)]


def _warm(share: float) -> float:
    return min(1.0, share / 0.02 + 0.02)


def _never_warm(share: float) -> float:
    return learning_rate_at(share) / _warm(share)


def _from_zero(share: float) -> float:
    return _never_warm(share) * min(1.0, share / 0.02)


def _larger_of_both(share: float) -> float:
    return _never_warm(share) * max(1.0, share / 0.02 + 0.02)


def _never_held(share: float) -> float:
    return _warm(share) * 0.5 * (1 + math.cos(math.pi * share))


def _not_stretched(share: float) -> float:
    return _warm(share) * 0.5 * (1 + math.cos(math.pi * max(0.0, share - 0.3)))


def _not_halved(share: float) -> float:
    return 2 * learning_rate_at(share)


def _straight_down(share: float) -> float:
    return _warm(share) * (1 - max(0.0, (share - 0.3) / 0.7))


RATE = Exercise(
    name="11.1",
    title="Warm up, hold, come to rest",
    minutes=8,
    difficulty=1,
    reference=rate_factor,
    cases=rate_cases,
    start="two factors: the first rises to 1 and stays there, the second falls from 1 to 0",
    mistakes=(
        Mistake(
            "the warm-up is missing: at the first steps the weights are random, AdamW knows "
            "nothing of its gradients yet, and full steps may throw them far off",
            _never_warm,
        ),
        Mistake(
            "the first step would have a rate of 0 and teach nothing: 0.02 is added", _from_zero
        ),
        Mistake(
            "max takes the larger of the two, so that the rate grows to 50 times the highest; min "
            "stops it at 1",
            _larger_of_both,
        ),
        Mistake(
            "the rate falls from the very first step: the cosine must see 0 until three tenths of "
            "the run have passed",
            _never_held,
        ),
        Mistake(
            "the rest of the run is not stretched to 0 to 1: divide share - 0.3 by 0.7, or the "
            "rate never comes down to 0",
            _not_stretched,
        ),
        Mistake("twice too large: 1 + cos goes from 2 to 0, half of it from 1 to 0", _not_halved),
        Mistake(
            "yours falls in a straight line; the cosine comes in gently and out gently",
            _straight_down,
        ),
    ),
    out_of_reach=("sdlearn.training.loop.learning_rate_at",),
)


# 11.2 ------------------------------------------------------------------------------------------


def weights(alpha_bar: Tensor, gamma: float) -> Tensor:
    """Weigh the error of each timestep, by its signal-to-noise ratio."""
    snr = alpha_bar / (1 - alpha_bar)
    return torch.where(snr < 1, snr.rsqrt(), snr.clamp(max=gamma) / snr)


def weights_cases(generator: Generator) -> list[tuple]:
    """Draw levels from nearly clean to nearly noise, some on each side of SNR 1 and of γ."""
    cases = []
    for count, gamma in ((4, 5.0), (6, 3.0), (9, 8.0)):
        snr = 10 ** (3 * torch.rand(count, generator=generator) - 1.5)
        snr[:4] = torch.tensor([0.05, 0.5, 0.4 * gamma, 4 * gamma]) * (0.9 + snr[:4].tanh() / 5)
        cases.append((snr / (1 + snr), gamma))
    return cases


def _snr(alpha_bar: Tensor) -> Tensor:
    return alpha_bar / (1 - alpha_bar)


def _min_snr_alone(alpha_bar: Tensor, gamma: float) -> Tensor:
    return _snr(alpha_bar).clamp(max=gamma) / _snr(alpha_bar)


def _not_divided(alpha_bar: Tensor, gamma: float) -> Tensor:
    snr = _snr(alpha_bar)
    return torch.where(snr < 1, snr.rsqrt(), snr.clamp(max=gamma))


def _no_root(alpha_bar: Tensor, gamma: float) -> Tensor:
    snr = _snr(alpha_bar)
    return torch.where(snr < 1, 1 / snr, snr.clamp(max=gamma) / snr)


def _root_alone(alpha_bar: Tensor, gamma: float) -> Tensor:
    snr = _snr(alpha_bar)
    return torch.where(snr < 1, snr.sqrt(), snr.clamp(max=gamma) / snr)


def _of_alpha_bar(alpha_bar: Tensor, gamma: float) -> Tensor:
    a = alpha_bar
    return torch.where(a < 1, a.rsqrt(), a.clamp(max=gamma) / a)


def _sides_exchanged(alpha_bar: Tensor, gamma: float) -> Tensor:
    return weights(1 - alpha_bar, gamma)


def _larger(alpha_bar: Tensor, gamma: float) -> Tensor:
    snr = _snr(alpha_bar)
    return torch.where(snr < 1, snr.rsqrt(), snr.clamp(min=gamma) / snr)


WEIGHTS = Exercise(
    name="11.2",
    title="Which errors count?",
    minutes=10,
    difficulty=2,
    reference=weights,
    cases=weights_cases,
    start="snr = alpha_bar / (1 - alpha_bar); torch.where chooses between the two lines",
    mistakes=(
        Mistake(
            "that is min-SNR alone. Below an SNR of 1 it weighs all timesteps alike, and this "
            "book's loss weighs them more: there only the prompt can say what the picture is",
            _min_snr_alone,
        ),
        Mistake(
            "min(SNR, γ) is the weight for a network that predicts the picture; for one that "
            "predicts the noise it is divided by SNR",
            _not_divided,
        ),
        Mistake(
            "below 1 the root is missing: 1 / SNR would let the last timesteps, with an SNR of "
            "0.005, drown all the others",
            _no_root,
        ),
        Mistake(
            "below 1 it is 1 over the root: your weight becomes smaller as the noise grows",
            _root_alone,
        ),
        Mistake("you take ᾱ for the SNR; it is ᾱ / (1 - ᾱ)", _of_alpha_bar),
        Mistake("SNR is upside down: signal, ᾱ, over noise, 1 - ᾱ", _sides_exchanged),
        Mistake(
            "you take the larger of SNR and γ: nearly clean latents keep their full weight, and "
            "those are what min-SNR holds down",
            _larger,
        ),
    ),
)


# 11.3 ------------------------------------------------------------------------------------------

Batches = list[tuple[Tensor, Tensor]]


def train(w: Tensor, batches: Batches, lr: float, decay: float) -> Tensor:
    """Train one layer by gradient descent; return the moving average of its weights."""
    return _train(w, batches, lr, decay)[1]


def _slope(w: Tensor, x: Tensor, y: Tensor) -> Tensor:
    return 2 * (x @ w - y) @ x / len(x)


def _train(
    w: Tensor,
    batches: Batches,
    lr: float,
    decay: float,
    *,
    kept: float = 0,
    late: bool = False,
    stay: bool = False,
) -> tuple[Tensor, Tensor]:
    """Return the weights and their average; of older gradients the share ``kept`` is left."""
    averaged, first, slope = w, w, torch.zeros_like(w)
    for x, y in batches:
        slope = kept * slope + _slope(first if stay else w, x, y)
        before, w = w, w - lr * slope
        averaged = averaged.lerp(before if late else w, 1 - decay)
    return w, averaged


def train_cases(generator: Generator) -> list[tuple]:
    """Draw weights and a few batches each."""
    cases = []
    for count, steps, d in ((6, 3, 2), (4, 5, 4), (8, 4, 3)):
        x, w = (
            torch.randn(steps, count, d, generator=generator),
            torch.randn(d, generator=generator),
        )
        batches = list(zip(x, torch.randn(steps, count, generator=generator)))
        decay = 0.5 + 0.3 * float(torch.rand((), generator=generator))
        cases.append((w, batches, 0.1, decay))
    return cases


def _gradients_pile_up(w: Tensor, batches: Batches, lr: float, decay: float) -> Tensor:
    return _train(w, batches, lr, decay, kept=1)[1]


def _forgotten_too_early(w: Tensor, batches: Batches, lr: float, decay: float) -> Tensor:
    return _train(w, batches, 0.0, decay)[1]


def _weights_themselves(w: Tensor, batches: Batches, lr: float, decay: float) -> Tensor:
    return _train(w, batches, lr, decay)[0]


def _average_first(w: Tensor, batches: Batches, lr: float, decay: float) -> Tensor:
    return _train(w, batches, lr, decay, late=True)[1]


def _shares_exchanged(w: Tensor, batches: Batches, lr: float, decay: float) -> Tensor:
    return train(w, batches, lr, 1 - decay)


def _all_from_the_first(w: Tensor, batches: Batches, lr: float, decay: float) -> Tensor:
    return _train(w, batches, lr, decay, stay=True)[1]


TRAIN = Exercise(
    name="11.3",
    title="A training loop with one fault",
    minutes=12,
    difficulty=2,
    reference=train,
    cases=train_cases,
    start="copy the loop, and print w.grad after each `backward` beside the gradient of that batch "
    "alone",
    mistakes=(
        Mistake(
            "the fault is still there: `backward` adds to the gradients that it finds, so that "
            "each step walks on along all the older ones. What must happen before the next batch?",
            _gradients_pile_up,
        ),
        Mistake(
            "nothing is learnt: the gradients are forgotten before they are used. First the step, "
            "then `w.grad = None`",
            _forgotten_too_early,
        ),
        Mistake(
            "you return the weights of the last step; what stays in the model is their average",
            _weights_themselves,
        ),
        Mistake(
            "the average takes the weights in before the step, and so is always one step behind",
            _average_first,
        ),
        Mistake(
            "the shares of the average are exchanged: with a decay of 0.999 it would keep next to "
            "nothing of the past",
            _shares_exchanged,
        ),
        Mistake(
            "all gradients are taken at the first weights; each step must ask the network as it is "
            "by then",
            _all_from_the_first,
        ),
    ),
)


# 11.4 ------------------------------------------------------------------------------------------


def worth(told_true: Tensor, told_false: Tensor, noise: Tensor, alpha_bar: float) -> Tensor:
    """Return for each picture by how much a false caption raises the error of the guess."""
    errors = [
        torch.stack([F.mse_loss(*each) for each in zip(told, noise)])
        for told in (told_true, told_false)
    ]
    return (errors[1] - errors[0]) * (1 - alpha_bar) / alpha_bar


def worth_cases(generator: Generator) -> list[tuple]:
    """Draw answers that are nearly right; the false ones a little less so, but not for all."""
    cases = []
    for batch, a in ((3, 0.1), (4, 0.25), (5, 0.02)):
        noise, off, other = torch.randn(3, batch, 4, 4, 3, generator=generator)
        more = 0.1 + 0.4 * torch.rand(batch, 1, 1, 1, generator=generator)
        more[0] = 0.0
        told_true = noise + 0.4 * off
        cases.append((told_true, noise + 0.35 * off + more * other, noise, a))
    return cases


def _rise(told_true: Tensor, told_false: Tensor, noise: Tensor) -> Tensor:
    return worth(told_true, told_false, noise, 0.5)


def _of_the_noise(true: Tensor, false: Tensor, noise: Tensor, a: float) -> Tensor:
    return _rise(true, false, noise)


def _factor_with_root(true: Tensor, false: Tensor, noise: Tensor, a: float) -> Tensor:
    return _rise(true, false, noise) * ((1 - a) / a) ** 0.5


def _factor_inverted(true: Tensor, false: Tensor, noise: Tensor, a: float) -> Tensor:
    return _rise(true, false, noise) * a / (1 - a)


def _sign_exchanged(true: Tensor, false: Tensor, noise: Tensor, a: float) -> Tensor:
    return -worth(true, false, noise, a)


def _how_far_apart(true: Tensor, false: Tensor, noise: Tensor, a: float) -> Tensor:
    return (true - false).square().mean(dim=(1, 2, 3)) * (1 - a) / a


def _of_roots(true: Tensor, false: Tensor, noise: Tensor, a: float) -> Tensor:
    roots = [(told - noise).square().mean(dim=(1, 2, 3)).sqrt() for told in (true, false)]
    return (roots[1] - roots[0]) * (1 - a) / a


def _in_the_mean(true: Tensor, false: Tensor, noise: Tensor, a: float) -> Tensor:
    return worth(true, false, noise, a).mean()


WORTH = Exercise(
    name="11.4",
    title="What is a word worth?",
    minutes=12,
    difficulty=2,
    reference=worth,
    cases=worth_cases,
    start="two squared errors for each picture: of the answer with the true caption, and of that "
    "with the false one",
    mistakes=(
        Mistake(
            "that is the rise in the noise's error; the picture's is (1 - ᾱ) / ᾱ times as large, "
            "and under heavy noise this is what makes it visible",
            _of_the_noise,
        ),
        Mistake(
            "the factor has no root here: it multiplies squared errors. The root belongs to the "
            "errors themselves",
            _factor_with_root,
        ),
        Mistake(
            "the factor is upside down: the less of the picture is left in x_t, the more an error "
            "about the noise means",
            _factor_inverted,
        ),
        Mistake(
            "the sign is exchanged: a caption that is false and hurts must give a number above 0",
            _sign_exchanged,
        ),
        Mistake(
            "you measure how far the two answers are apart. That is never below 0: an answer may "
            "move and become no worse, and such a word is worth nothing",
            _how_far_apart,
        ),
        Mistake("you subtract roots of errors; the loss, and its rise, are squared", _of_roots),
        Mistake("one number for each picture is wanted, not their mean", _in_the_mean),
    ),
)


# 11.5 ------------------------------------------------------------------------------------------

Layers = tuple[Tensor, Tensor, Tensor, Tensor]


def fold(
    quant: Tensor, quant_bias: Tensor, post: Tensor, post_bias: Tensor, shift: Tensor, scale: Tensor
) -> Layers:
    """Let the encoder give (z - shift) / scale, and the decoder see what it saw."""
    rows = torch.cat([1 / scale, torch.ones_like(scale)])
    moved = torch.cat([-shift / scale, -2 * scale.log()])
    return (
        rows.diag() @ quant,
        rows * quant_bias + moved,
        post @ scale.diag(),
        post_bias + post @ shift,
    )


def fold_cases(generator: Generator) -> list[tuple]:
    """Draw the two layers of 1 × 1 convolutions as matrices; the second is square."""
    cases = []
    for channels in (4, 4, 3):
        quant = torch.randn(2 * channels, 2 * channels, generator=generator)
        post = torch.randn(channels, channels, generator=generator)
        biases = torch.randn(3 * channels, generator=generator).split(2 * channels)
        shift = torch.randn(channels, generator=generator)
        scale = 0.4 + 2 * torch.rand(channels, generator=generator)
        cases.append((quant, biases[0], post, biases[1], shift, scale))
    return cases


def _log_variance_as_deviation(*case: Tensor) -> Layers:
    quant, bias, post, post_bias = fold(*case)
    n = len(case[4])
    return quant, torch.cat([bias[:n], bias[n:] + case[5].log()]), post, post_bias


def _log_variance_stays(*case: Tensor) -> Layers:
    quant, bias, post, post_bias = fold(*case)
    n = len(case[4])
    return quant, torch.cat([bias[:n], case[1][n:]]), post, post_bias


def _log_variance_divided(*case: Tensor) -> Layers:
    _, _, post, post_bias = fold(*case)
    shift, scale = case[4:]
    both, moved = torch.cat([scale, scale]), torch.cat([shift, torch.zeros_like(shift)])
    return case[0] / both[:, None], (case[1] - moved) / both, post, post_bias


def _shift_not_scaled(*case: Tensor) -> Layers:
    quant, bias, post, post_bias = fold(*case)
    shift, scale = case[4:]
    n = len(shift)
    return quant, torch.cat([case[1][:n] / scale - shift, bias[n:]]), post, post_bias


def _decoder_stays(*case: Tensor) -> Layers:
    quant, bias, _, _ = fold(*case)
    return quant, bias, case[2], case[3]


def _decoder_divides(*case: Tensor) -> Layers:
    quant, bias, _, post_bias = fold(*case)
    return quant, bias, case[2] / case[5], post_bias


def _along_the_outputs(*case: Tensor) -> Layers:
    quant, bias, _, post_bias = fold(*case)
    return quant, bias, case[2] * case[5][:, None], post_bias


def _shift_through_the_new(*case: Tensor) -> Layers:
    quant, bias, post, _ = fold(*case)
    return quant, bias, post, case[3] + post @ case[4]


FOLD = Exercise(
    name="11.5",
    title="Other latents, the same pictures",
    minutes=30,
    difficulty=3,
    reference=fold,
    cases=fold_cases,
    start="write the first layer's means as z = quant[:n] @ h + quant_bias[:n], and put that into "
    "(z - shift) / scale",
    mistakes=(
        Mistake(
            "the logarithm of a *variance*: where deviations are divided by scale, variances are "
            "divided by its square, so subtract 2 log scale",
            _log_variance_as_deviation,
        ),
        Mistake(
            "the second half of the first layer stays as it was: latents that are drawn would be "
            "spread as widely as before, around means that have moved closer or apart",
            _log_variance_stays,
        ),
        Mistake(
            "you divide the log-variances as you divide the means. They are logarithms: to divide "
            "a variance is to subtract from its logarithm",
            _log_variance_divided,
        ),
        Mistake(
            "shift is subtracted after the division, so it is taken off in the wrong unit: first "
            "the shift, then divide all of it, (bias - shift) / scale",
            _shift_not_scaled,
        ),
        Mistake(
            "the decoder's layer is as it was: it would meet latents in a language that it never "
            "learnt. It must undo what the encoder's layer does now",
            _decoder_stays,
        ),
        Mistake(
            "the decoder has to undo a division: multiply its weights by scale", _decoder_divides
        ),
        Mistake(
            "scale belongs to the latents' channels, which are the *inputs* of the second layer, "
            "its columns; you scale its outputs",
            _along_the_outputs,
        ),
        Mistake(
            "the shift goes through the decoder's old weights: post @ (scale · z + shift), and "
            "scale is not for the shift",
            _shift_through_the_new,
        ),
    ),
    out_of_reach=("sdlearn.training.vae.normalise_latents",),
)

EXERCISES = (RATE, WEIGHTS, TRAIN, WORTH, FOLD)
