"""VAE, forward process and guidance against diffusers' own."""

from __future__ import annotations

import pytest
import torch
from conftest import seeded
from diffusers import DDPMScheduler, EulerDiscreteScheduler
from PIL import Image

import sdlearn
from sdlearn.noise import split_prediction


@pytest.fixture
def picture(sizes):
    height, width = sizes
    values = torch.randint(0, 256, (height, width, 3), generator=seeded(), dtype=torch.uint8)
    return Image.fromarray(values.numpy())


def test_encode_image_is_diffusers_own(pipe, picture):
    pixels = pipe.image_processor.preprocess(picture)
    posterior = pipe.vae.encode(pixels).latent_dist
    factor = pipe.vae.config.scaling_factor
    drawn = sdlearn.encode_image(pipe, picture, generator=seeded(3))
    assert torch.equal(drawn, factor * posterior.sample(seeded(3)))
    assert torch.equal(sdlearn.encode_image(pipe, picture, sample=False), factor * posterior.mode())
    assert drawn.shape == (1, 4, picture.height // 8, picture.width // 8)


def test_pictures_paths_and_pixels_are_one(random_pipe, picture, tmp_path):
    picture.save(tmp_path / "picture.png")
    pixels = random_pipe.image_processor.preprocess(picture) / 2 + 0.5
    expected = sdlearn.encode_image(random_pipe, picture, sample=False)
    for same in (tmp_path / "picture.png", str(tmp_path / "picture.png"), pixels):
        torch.testing.assert_close(
            sdlearn.encode_image(random_pipe, same, sample=False), expected, rtol=1e-4, atol=1e-5
        )


def test_decode_latents_is_diffusers_own(pipe, sizes):
    trace = sdlearn.text_to_image(pipe, "a cat", num_inference_steps=1, generator=seeded())
    assert torch.equal(sdlearn.decode_latents(pipe, trace.latents), trace.pixels)
    assert 0 <= trace.pixels.min() <= trace.pixels.max() <= 1


@pytest.mark.parametrize("timesteps", [0, 500, 999, torch.tensor([3, 870])])
def test_add_noise_is_ddpms(pipe, timesteps):
    theirs = DDPMScheduler.from_config(pipe.scheduler.config)
    x, noise = torch.randn(2, 2, 4, 8, 6, generator=seeded())
    steps = torch.as_tensor(timesteps).expand(2)
    expected = theirs.add_noise(x, noise, steps)
    noisy = sdlearn.add_noise(pipe, x, noise, timesteps)
    assert torch.equal(noisy, expected)
    velocity = theirs.get_velocity(x, noise, steps)
    a = theirs.alphas_cumprod[steps][:, None, None, None]
    for prediction, kind in ((noise, "epsilon"), (velocity, "v_prediction")):
        for ours, true in zip(
            split_prediction(noisy, prediction, a, kind), (x, noise), strict=True
        ):
            torch.testing.assert_close(ours, true, rtol=1e-3, atol=1e-4)
    back = sdlearn.predict_original_sample(pipe, noisy, timesteps, noise)
    torch.testing.assert_close(back, x, rtol=1e-3, atol=1e-4)


def test_predict_original_sample_follows_the_prediction_type(random_pipe):
    pipe, kept = random_pipe, random_pipe.scheduler
    theirs = DDPMScheduler.from_config(kept.config, prediction_type="v_prediction")
    x, noise = torch.randn(2, 1, 4, 8, 6, generator=seeded())
    t = torch.tensor([700])
    noisy, velocity = theirs.add_noise(x, noise, t), theirs.get_velocity(x, noise, t)
    try:
        pipe.scheduler = theirs
        back = sdlearn.predict_original_sample(pipe, noisy, 700, velocity)
    finally:
        pipe.scheduler = kept
    torch.testing.assert_close(back, x, rtol=1e-4, atol=1e-5)


def test_signal_to_noise_is_eulers_sigma(pipe):
    sigmas = EulerDiscreteScheduler.from_config(pipe.scheduler.config).sigmas
    ratio = sdlearn.signal_to_noise(pipe)
    assert ratio.shape == (1000,)
    assert (ratio.diff() < 0).all()
    torch.testing.assert_close(ratio.flip(0), sigmas[:-1] ** -2, rtol=1e-4, atol=1e-6)


def test_predict_noise_halves(pipe):
    """Unconditional and text are the halves of encode_prompt, in that order."""
    latents = sdlearn.initial_latents(pipe, 2, batch_size=2, generator=seeded())
    embeds = sdlearn.encode_prompt(pipe, ["a cat", "a dog"], "rain")
    guided = sdlearn.predict_noise(pipe, latents, 500, embeds, 3.0)
    text = sdlearn.predict_noise(pipe, latents, 500, embeds, 1.0)
    none = sdlearn.predict_noise(pipe, latents, 500, embeds[:2], 0.0)
    close = {"rtol": 1e-4, "atol": 1e-4}
    torch.testing.assert_close(guided.text, text.text, **close)
    torch.testing.assert_close(guided.unconditional, none.text, **close)
    assert text.unconditional is None
    assert text.guided is text.text
    assert not torch.allclose(text.text, none.text, **close)
    expected = guided.unconditional + 3 * (guided.text - guided.unconditional)
    assert torch.equal(guided.guided, expected)
