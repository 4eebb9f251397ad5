"""``text_to_image`` is diffusers' own pipeline, bit for bit, and leaves it as it was."""

from __future__ import annotations

import contextlib
import copy

import diffusers
import numpy as np
import pytest
import torch
from accelerate import cpu_offload
from conftest import random_pipeline, seeded

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


ASKED = [
    *SCHEDULERS[:-1],
    "HeunDiscreteScheduler",
    "KDPM2DiscreteScheduler",
    "KDPM2AncestralDiscreteScheduler",
    "DPMSolverSinglestepScheduler",
    "UniPCMultistepScheduler",
    "DEISMultistepScheduler",
]


@pytest.mark.parametrize("late", [0, 3], ids=["from the start", "late"])
@pytest.mark.parametrize("name", [*ASKED, "PNDM with Runge-Kutta"])
def test_alpha_bar_is_that_of_the_timestep_the_unet_is_asked_about(random_pipe, name, late):
    """Second order schedulers ask between two of their levels: the training schedule knows there.

    Left out: DPMSolverSDE and LMS, which need packages that nothing else here needs.
    """
    scheduler, kept = getattr(diffusers, name, diffusers.PNDMScheduler), random_pipe.scheduler
    a = kept.alphas_cumprod.double().numpy()
    log_sigmas = np.log((1 - a) / a) / 2
    asked = []
    hook = random_pipe.unet.register_forward_pre_hook(lambda _, args: asked.append(float(args[1])))
    try:
        random_pipe.scheduler = scheduler.from_config(kept.config, lower_order_final=True)
        latents = sdlearn.initial_latents(random_pipe, 8, generator=seeded())
        embeds = sdlearn.encode_prompt(random_pipe, PROMPT)
        steps = sdlearn.denoise(random_pipe, latents, embeds, num_inference_steps=8, t_start=late)
        found = [step.alpha_bar for step in steps]
    finally:
        hook.remove()
        random_pipe.scheduler = kept
    sigmas = np.exp(np.interp(asked, np.arange(1000), log_sigmas))
    np.testing.assert_allclose(found, 1 / (sigmas**2 + 1), rtol=2e-3)


def test_unets_that_say_their_sizes_in_lists(random_pipe):
    """A side for each direction, a width for each block: diffusers draws, and so do we."""
    config = {**random_pipe.unet.config, "sample_size": [8, 16], "cross_attention_dim": (24,) * 4}
    pipe = diffusers.StableDiffusionPipeline(
        **{**random_pipe.components, "unet": diffusers.UNet2DConditionModel(**config).eval()},
        requires_safety_checker=False,
    )
    pipe.set_progress_bar_config(disable=True)
    call = {"num_inference_steps": 2}
    expected = pipe(PROMPT, **call, generator=seeded(), output_type="pt").images
    trace = sdlearn.text_to_image(pipe, PROMPT, **call, generator=seeded())
    assert torch.equal(trace.pixels, expected)
    assert trace.image.size == (128, 64)
    assert sdlearn.trace_blocks(pipe)[-1].output == (1, 4, 8, 16)


def test_weights_that_lie_elsewhere_until_they_are_needed():
    """accelerate's offload; here they are fetched from memory, on a GPU they come from the CPU."""
    pipe = random_pipeline(layers_per_block=1)
    call = {"num_inference_steps": 2}
    expected = pipe(PROMPT, **call, generator=seeded(), output_type="pt").images
    for part in (pipe.unet, pipe.vae, pipe.text_encoder):
        cpu_offload(part, execution_device=torch.device("cpu"))
    assert pipe.device.type == "meta"  # where nothing can be computed
    with sdlearn.capture_attention(pipe) as maps:
        trace = sdlearn.text_to_image(pipe, PROMPT, **call, generator=seeded())
    assert torch.equal(trace.pixels, expected)
    assert maps.heat_map("cat").isfinite().all()
    assert torch.equal(sdlearn.decode_latents(pipe, trace.latents), expected)
    assert sdlearn.encode_image(pipe, expected).device.type == "cpu"
    assert len(sdlearn.trace_blocks(pipe)) > 20


def test_numbers_of_numpy_are_numbers(random_pipe):
    plain = {"num_inference_steps": 2, "guidance_scale": 3.0, "height": 64, "eta": 0.5}
    numpy = {
        "num_inference_steps": np.int64(2), "guidance_scale": np.float32(3),
        "height": np.int32(64), "eta": np.float64(0.5),
    }  # fmt: skip
    expected, found = (
        sdlearn.text_to_image(random_pipe, PROMPT, **call, generator=seeded())
        for call in (plain, numpy)
    )
    assert torch.equal(found.pixels, expected.pixels)


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
