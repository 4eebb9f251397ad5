"""``text_to_image`` is diffusers' own pipeline, bit for bit, and leaves it as it was."""

from __future__ import annotations

import contextlib
import copy

import diffusers
import numpy as np
import pytest
import torch
from conftest import seeded

import sdlearn

PROMPT = "a red cat on the beach"
SCHEDULERS = [
    "DDIMScheduler",
    "PNDMScheduler",
    "EulerDiscreteScheduler",
    "EulerAncestralDiscreteScheduler",
    "DPMSolverMultistepScheduler",
    "HeunDiscreteScheduler",
]
CALLS = [
    {},
    {"guidance_scale": 1.0},
    {"negative_prompt": "blurry", "guidance_rescale": 0.7, "eta": 0.5},
]


def set_scheduler(pipe, name):
    kind = getattr(diffusers, name)
    extra = {"skip_prk_steps": True} if name == "PNDMScheduler" else {}
    pipe.scheduler = kind.from_config(pipe.scheduler.config, **extra)


def state(pipe):
    """Return all that a call could leave changed behind it."""
    parts = (pipe.unet, pipe.vae, pipe.text_encoder)
    hooks = [(len(m._forward_hooks), len(m._forward_pre_hooks)) for p in parts for m in p.modules()]
    scheduler = {
        k: v.tolist() if hasattr(v, "tolist") else repr(v) for k, v in vars(pipe.scheduler).items()
    }
    return (
        hooks,
        dict(pipe.unet.attn_processors),
        copy.deepcopy(scheduler),
        id(pipe.scheduler),
        [p.training for p in parts],
        torch.is_grad_enabled(),
    )


@pytest.mark.parametrize("capture", [False, True], ids=["plain", "captured"])
@pytest.mark.parametrize("call", CALLS, ids=["guided", "unguided", "negative-rescaled"])
@pytest.mark.parametrize("name", SCHEDULERS)
def test_equals_pipeline(pipe, sizes, name, call, capture):
    set_scheduler(pipe, name)
    call = {"num_inference_steps": 4, "height": sizes[0], "width": sizes[capture], **call}
    expected = pipe(PROMPT, **call, generator=seeded(), output_type="pt").images
    pipe.scheduler.set_timesteps(7)  # a state that the call would not leave by itself
    before = state(pipe)
    with sdlearn.capture_attention(pipe) if capture else contextlib.nullcontext():
        trace = sdlearn.text_to_image(pipe, PROMPT, **call, generator=seeded())
    assert state(pipe) == before
    assert torch.equal(trace.pixels, expected)
    [image] = pipe.image_processor.numpy_to_pil(pipe.image_processor.pt_to_numpy(expected))
    assert np.array_equal(np.asarray(trace.image), np.asarray(image))
    latents = pipe(PROMPT, **call, generator=seeded(), output_type="latent").images
    assert torch.equal(trace.latents, latents)


def test_defaults_and_square_equal_the_pipeline(pipe):
    expected = pipe(PROMPT, num_inference_steps=3, generator=seeded()).images[0]
    image = sdlearn.text_to_image(pipe, PROMPT, num_inference_steps=3, generator=seeded()).image
    assert np.array_equal(np.asarray(image), np.asarray(expected))


def test_batch_equals_pipeline(pipe):
    prompts, negatives = ["a cat", "a dog"], ["rain", ""]
    call = {"num_inference_steps": 2, "negative_prompt": negatives}
    expected = pipe(prompts, **call, generator=[seeded(1), seeded(2)], output_type="pt").images
    trace = sdlearn.text_to_image(pipe, prompts, **call, generator=[seeded(1), seeded(2)])
    assert torch.equal(trace.pixels, expected)
    assert len(trace.images) == 2


@pytest.mark.parametrize("name", ["DDIMScheduler", "EulerAncestralDiscreteScheduler"])
def test_original_sample_is_the_schedulers(pipe, name):
    """DDIM and Euler say what picture they predict; ours must be theirs, in either's own scale."""
    set_scheduler(pipe, name)
    trace = sdlearn.text_to_image(pipe, PROMPT, num_inference_steps=4, generator=seeded())
    scheduler = copy.deepcopy(pipe.scheduler)
    scheduler.set_timesteps(4)
    for step in trace.steps:
        scheduler.scale_model_input(step.latents, step.t)
        theirs = scheduler.step(step.noise_pred, step.t, step.latents, generator=seeded())
        torch.testing.assert_close(
            step.pred_original_sample, theirs.pred_original_sample, rtol=1e-4, atol=1e-4
        )


@pytest.mark.parametrize("name", SCHEDULERS)
def test_starting_late_continues_the_same_loop(pipe, name):
    """The steps of a first order scheduler do not depend on those left out."""
    set_scheduler(pipe, name)
    embeds = sdlearn.encode_prompt(pipe, PROMPT)
    latents = sdlearn.initial_latents(pipe, 4, generator=seeded())
    late = list(sdlearn.denoise(pipe, latents, embeds, num_inference_steps=4, t_start=2))
    whole = list(sdlearn.denoise(pipe, latents, embeds, num_inference_steps=4))
    first = 2 * pipe.scheduler.order
    assert [s.i for s in late] == [s.i for s in whole[first:]]
    assert [float(s.t) for s in late] == [float(s.t) for s in whole[first:]]
    assert [s.alpha_bar for s in late] == [s.alpha_bar for s in whole[first:]]
    if name in ("DDIMScheduler", "EulerDiscreteScheduler"):
        again = list(
            sdlearn.denoise(pipe, whole[first].latents, embeds, num_inference_steps=4, t_start=2)
        )
        assert torch.equal(again[-1].prev_sample, whole[-1].prev_sample)


def test_starting_late_among_equal_timesteps(random_pipe, monkeypatch):
    """Karras' sigmas, rounded to timesteps, repeat some: the index must be told, not looked up."""
    scheduler = diffusers.DPMSolverMultistepScheduler.from_config(
        random_pipe.scheduler.config, use_karras_sigmas=True, solver_order=1
    )
    scheduler.set_timesteps(60)
    repeats = (scheduler.timesteps.diff() == 0).nonzero().flatten().tolist()
    first = repeats[-1]
    monkeypatch.setattr(random_pipe, "scheduler", scheduler)
    embeds = sdlearn.encode_prompt(random_pipe, PROMPT)
    latents = sdlearn.initial_latents(random_pipe, 60, generator=seeded())
    whole = list(sdlearn.denoise(random_pipe, latents, embeds, num_inference_steps=60))
    late = sdlearn.denoise(
        random_pipe, whole[first].latents, embeds, num_inference_steps=60, t_start=first
    )
    assert torch.equal(next(late).prev_sample, whole[first].prev_sample)


def test_denoise_keeps_the_callers_grad_mode(random_pipe):
    embeds = sdlearn.encode_prompt(random_pipe, PROMPT).requires_grad_()
    latents = sdlearn.initial_latents(random_pipe, 2)
    for step in sdlearn.denoise(random_pipe, latents, embeds, num_inference_steps=2):
        assert torch.is_grad_enabled()
        assert not step.prev_sample.requires_grad
    assert sdlearn.predict_noise(random_pipe, latents, 500, embeds).guided.requires_grad
