"""Prompt-to-prompt: another word, and the rest of the picture where it was.

Source: Hertz et al. (2022), "Prompt-to-Prompt Image Editing with Cross Attention Control", sections
3.1 and 3.2. Both pictures are drawn in one batch from the same noise. While they are drawn, what
the first one's attention layers say where to look goes into the second one's.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace
from typing import Any

import torch
from diffusers import StableDiffusionPipeline
from torch import Tensor

from sdlearn import checks
from sdlearn.attention import AttentionMaps, capture_attention
from sdlearn.editing.held_attention import Edit, align, attention_edited
from sdlearn.editing.inpainting import cells_read
from sdlearn.pipeline import execution_device
from sdlearn.sampling import (
    AfterStep,
    Generators,
    Step,
    Trace,
    denoise,
    develop,
    fresh_scheduler,
    initial_latents,
)
from sdlearn.text import encode_prompt, find_word, tokenize

Words = str | Sequence[str]
BLEND_FROM = 0.2  # Share of the steps after which a word's map says something.


@torch.no_grad()
def edit_prompt(
    pipe: StableDiffusionPipeline,
    source: str | list[str],
    target: str | list[str],
    *,
    cross_steps: float = 0.8,
    self_steps: float = 0.4,
    blend: Words | None = None,
    reweight: Mapping[str, float] | None = None,
    latents: Tensor | None = None,
    height: int | None = None,
    width: int | None = None,
    num_inference_steps: int = 50,
    guidance_scale: float = 7.5,
    negative_prompt: str | list[str] = "",
    generator: Generators = None,
) -> tuple[Trace, Trace]:
    """Draw a prompt, and beside it another one with the first one's layout.

    Args:
        pipe: the pipeline.
        source: one prompt, or a list of B.
        target: the prompt as it shall be, or a list of B.
        cross_steps: in which share of the steps, from the first one on, the target's
            cross-attention is the source's, word by word (see ``align``). 0 holds nothing. (In
            the paper's code ``cross_replace_steps``.)
        self_steps: likewise for self-attention, in layers of up to 32 x 32 places.
        blend: a word or several, of either prompt. Only where they are read may the target differ;
            from a fifth of the steps on. A pair that has none of them is not held so.
        reweight: a factor for words of the target, by which their attention is multiplied while
            ``cross_steps`` last: more than 1 for more of it.
        latents: what to start from, (B, 4, h, w) of standard deviation 1, as ``pipe(...)`` takes
            them and ``invert`` returns them; drawn by default.
        height: see ``initial_latents``.
        width: likewise.
        num_inference_steps: see ``denoise``.
        guidance_scale: see ``predict_noise``.
        negative_prompt: for both; one for all, or a list of B.
        generator: draws the latents, and where the scheduler draws noise at each step, the same
            noise for both. One, or for several pairs a list of B.

    Returns:
        The source's ``Trace`` and the target's. In a ``capture_attention`` around the call the
        target's maps are those that it would have had.

    Raises:
        ValueError, TypeError: an argument out of range or of the wrong type, or a word of ``blend``
            or ``reweight`` that no prompt has.
    """
    checks.pipeline(pipe)
    checks.latents_alone(pipe)
    sources, targets = checks.prompts(source, "source"), checks.prompts(target, "target")
    count = len(sources)
    if len(targets) != count:
        raise ValueError(f"got {count} sources and {len(targets)} targets; pass one for each")
    negatives = checks.negative_prompts(negative_prompt, count)
    checks.guidance(guidance_scale)
    each = _one_each(generator, count)
    scheduler = fresh_scheduler(pipe, num_inference_steps)
    total = len(scheduler.timesteps)
    shares = {"cross_steps": cross_steps, "self_steps": self_steps}
    held = (
        round(checks.real(name, share, 0, 1, "0 holds nothing, 1 to the end") * total)
        for name, share in shares.items()
    )
    edit = Edit(*_aligned(pipe, sources, targets), _weights(pipe, targets, reweight or {}), *held)
    areas = _blend_areas(pipe, sources, targets, blend)
    if latents is None:
        start = initial_latents(
            pipe,
            num_inference_steps,
            height=height,
            width=width,
            batch_size=count,
            generator=each,
        )  # (B, 4, h, w)
    else:
        checks.latents(pipe, latents)
        if len(latents) != count or height is not None or width is not None:
            size = f"height={height}, width={width}"
            raise ValueError(
                f"got {len(latents)} latents for {count} pairs of prompts, and {size}; "
                "pass latents for each pair, which have their size, or none"
            )
        start = latents.to(execution_device(pipe), pipe.unet.dtype) * scheduler.init_noise_sigma

    embeds = encode_prompt(pipe, sources + targets, negatives * 2)  # (4B, 77, D)
    with attention_edited(pipe, edit), _captured(pipe, areas) as maps:
        steps = denoise(
            pipe,
            torch.cat([start] * 2),  # (2B, 4, h, w): the sources, then the targets
            embeds,
            num_inference_steps=num_inference_steps,
            guidance_scale=guidance_scale,
            generator=each + [_twin(one) for one in each],
            after_step=_blended(maps, areas, total) if areas else None,
        )
        both = develop(pipe, sources + targets, embeds, steps)
    return _rows(both, slice(count)), _rows(both, slice(count, 2 * count))


def _aligned(
    pipe: StableDiffusionPipeline, sources: list[str], targets: list[str]
) -> tuple[Tensor, Tensor]:
    """Return ``align`` of each pair of prompts: (B, 77, 77) and (B, 77)."""
    taken, own = zip(*(align(pipe, *pair) for pair in zip(sources, targets)))
    return torch.stack(taken), torch.stack(own)


def _weights(
    pipe: StableDiffusionPipeline, targets: list[str], reweight: Mapping[str, float]
) -> Tensor:
    """Return a factor for each token of each target, (B, 77)."""
    if not isinstance(reweight, Mapping):
        raise TypeError(f'reweight must be like {{"snow": 2.0}}, got {reweight!r}')
    weights = torch.ones(len(targets), pipe.tokenizer.model_max_length)
    for word, factor in reweight.items():
        factor = checks.real(f"reweight[{word!r}]", factor, remedy="1 leaves a word as it is")
        for row, places in zip(weights, _places(pipe, targets, word)):
            row[places] *= factor
    return weights


def _places(pipe: StableDiffusionPipeline, prompts: list[str], word: str) -> list[list[int]]:
    """Return where a word stands in each prompt; one that none of them has is an error."""
    places, errors = [], []
    for prompt in prompts:
        try:
            places.append(find_word(pipe, tokenize(pipe, prompt).ids, word))
        except ValueError as error:
            places.append([])
            errors.append(error)
    if len(errors) == len(prompts):
        raise errors[-1]
    return places


def _blend_areas(
    pipe: StableDiffusionPipeline, sources: list[str], targets: list[str], blend: Words | None
) -> list[list[tuple[int, list[int]]]]:
    """Return for each pair in which rows of the batch, and where there, the words of it stand."""
    words = [blend] if isinstance(blend, str) else list(blend or ())
    found = [_places(pipe, sources + targets, word) for word in words]  # (words, 2B) lists
    areas = []
    for first in range(len(sources)):
        rows = (first, first + len(sources))
        areas.append([(row, each[row]) for each in found for row in rows if each[row]])
    return areas if words else []


def _captured(pipe: StableDiffusionPipeline, areas: list) -> Any:
    return capture_attention(pipe) if areas else nullcontext()


def _blended(
    maps: AttentionMaps, areas: list[list[tuple[int, list[int]]]], total: int
) -> AfterStep:
    """Return what keeps the source wherever none of the words is read."""

    def blended(scheduler: Any, latents: Tensor, t: Tensor | None) -> Tensor:
        if maps.calls <= BLEND_FROM * total:
            return latents
        source, target = latents.chunk(2)  # (B, 4, h, w) each
        size = latents.shape[2:]
        may_differ = torch.ones_like(source[:, :1])  # (B, 1, h, w)
        for one, area in zip(may_differ, areas):
            heats = [maps.heat_map(places, index=row) for row, places in area]
            if heats:
                one[:] = torch.stack([cells_read(heat, size) for heat in heats]).amax(0)
        return torch.cat([source, source + may_differ * (target - source)])

    return blended


def _one_each(generator: Generators, count: int) -> list[torch.Generator]:
    """Return a generator for each pair, so that both of a pair can draw the same."""
    if generator is None:
        seeds = torch.randint(2**62, (count,)).tolist()
        return [torch.Generator().manual_seed(seed) for seed in seeds]
    listed = generator if isinstance(generator, list) else [generator]
    checks.generators(listed, count)
    return listed


def _twin(generator: torch.Generator) -> torch.Generator:
    """Return a generator that draws the same from here on."""
    twin = torch.Generator(device=generator.device)
    return twin.set_state(generator.get_state())


def _rows(trace: Trace, rows: slice) -> Trace:
    """Return the trace of some pictures of a batch."""

    def cut(step: Step) -> Step:
        unconditional = step.noise_pred_uncond
        return replace(
            step,
            latents=step.latents[rows],
            model_input=step.model_input[rows],
            noise_pred_uncond=None if unconditional is None else unconditional[rows],
            noise_pred_text=step.noise_pred_text[rows],
            noise_pred=step.noise_pred[rows],
            prev_sample=step.prev_sample[rows],
        )

    unconditional, text = trace.prompt_embeds.chunk(2)  # (2B, 77, D) each
    return Trace(
        prompts=trace.prompts[rows],
        prompt_embeds=torch.cat([unconditional[rows], text[rows]]),
        steps=tuple(map(cut, trace.steps)),
        latents=trace.latents[rows],
        pixels=trace.pixels[rows],
        images=trace.images[rows],
    )
