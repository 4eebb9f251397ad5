"""The four readable samplers against diffusers', over a whole loop."""

from __future__ import annotations

import pytest
import torch
from conftest import SD15_SCHEDULE, seeded
from diffusers import (
    DDIMScheduler,
    DDPMScheduler,
    DPMSolverMultistepScheduler,
    EulerDiscreteScheduler,
)

from sdlearn.noise import split_prediction
from sdlearn.schedulers import ddim_step, ddpm_step, dpm_solver_step, euler_step

SCHEDULE = {k: v for k, v in SD15_SCHEDULE.items() if k.startswith("beta")}
STEPS = [7, 20]
KINDS = ["epsilon", "v_prediction"]


def fake_model(x, t):
    """Stand in for a U-Net: nonlinear in the latents, different at each timestep."""
    return torch.tanh(x * (1 + t / 1000)) + 0.1 * torch.cos(3 * x)


def start(scale=1.0):
    return torch.randn(2, 4, 6, 8, generator=seeded(), dtype=torch.float64) * scale


def theirs(scheduler, x, **kwargs):
    for t in scheduler.timesteps:
        prediction = fake_model(scheduler.scale_model_input(x, t), float(t))
        x = scheduler.step(prediction, t, x, **kwargs).prev_sample
    return x


def levels(scheduler, last):
    """Return the timesteps and alpha_bar at each, with ``last`` after the end."""
    timesteps = scheduler.timesteps.tolist()
    return timesteps, [*scheduler.alphas_cumprod.double()[timesteps].tolist(), last]


def assert_close(ours, expected):
    torch.testing.assert_close(ours, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("n", STEPS)
@pytest.mark.parametrize("kind", KINDS)
def test_ddpm(n, kind):
    scheduler = DDPMScheduler(**SCHEDULE, clip_sample=False, prediction_type=kind, steps_offset=1)
    scheduler.set_timesteps(n)
    expected = theirs(scheduler, start(), generator=seeded(1))
    timesteps, a = levels(scheduler, 1.0)
    x, generator = start(), seeded(1)
    for i, t in enumerate(timesteps):
        noise = torch.randn(x.shape, generator=generator, dtype=x.dtype)
        x = ddpm_step(x, fake_model(x, t), a[i], a[i + 1], noise, prediction_type=kind)
    assert_close(x, expected)


@pytest.mark.parametrize("eta", [0.0, 0.6])
@pytest.mark.parametrize("n", STEPS)
@pytest.mark.parametrize("kind", KINDS)
def test_ddim(n, kind, eta):
    scheduler = DDIMScheduler(**SD15_SCHEDULE, prediction_type=kind)
    scheduler.set_timesteps(n)
    expected = theirs(scheduler, start(), eta=eta, generator=seeded(1))
    timesteps, a = levels(scheduler, float(scheduler.final_alpha_cumprod))
    x, generator = start(), seeded(1)
    for i, t in enumerate(timesteps):
        noise = torch.randn(x.shape, generator=generator, dtype=x.dtype) if eta else None
        x = ddim_step(
            x, fake_model(x, t), a[i], a[i + 1], eta=eta, noise=noise, prediction_type=kind
        )
    assert_close(x, expected)


@pytest.mark.parametrize("n", STEPS)
@pytest.mark.parametrize("kind", KINDS)
def test_euler(n, kind):
    scheduler = EulerDiscreteScheduler(**SCHEDULE, prediction_type=kind)
    scheduler.set_timesteps(n)
    scale = float(scheduler.init_noise_sigma)
    expected = theirs(scheduler, start(scale))
    sigmas = scheduler.sigmas.double().tolist()
    x = start(scale)
    for i, t in enumerate(scheduler.timesteps.tolist()):
        prediction = fake_model(x / (sigmas[i] ** 2 + 1) ** 0.5, t)
        x = euler_step(x, prediction, sigmas[i], sigmas[i + 1], prediction_type=kind)
    assert_close(x, expected)


@pytest.mark.parametrize("n", STEPS)
@pytest.mark.parametrize("kind", KINDS)
def test_dpm_solver(n, kind):
    scheduler = DPMSolverMultistepScheduler(**SCHEDULE, prediction_type=kind)
    scheduler.set_timesteps(n)
    expected = theirs(scheduler, start())
    timesteps, a = levels(scheduler, 1.0)
    x, last = start(), None
    for i, t in enumerate(timesteps):
        original, _ = split_prediction(x, fake_model(x, t), a[i], kind)
        x = dpm_solver_step(x, original, a[i], a[i + 1], last=last)
        last = original, a[i]
    assert_close(x, expected)


def test_ddim_with_eta_needs_noise():
    with pytest.raises(ValueError, match=r"eta=0.5.*noise=torch.randn"):
        ddim_step(start(), start(), 0.5, 0.6, eta=0.5)
