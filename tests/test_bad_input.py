"""Bad input: an error that names what was received and what to do, before any work."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionPipeline, UNet2DConditionModel
from PIL import ExifTags, Image

import sdlearn

nan, inf = float("nan"), float("inf")

CALLS = [
    ({"prompt": []}, ValueError, r"prompt is an empty list, \[\]; pass at least one"),
    ({"prompt": 3}, TypeError, r"prompt must be a string.*got 3"),
    ({"prompt": ["a", None]}, TypeError, r"got \['a', None\]"),
    ({"prompt": "\ud800"}, ValueError, r"half a character"),
    ({"negative_prompt": None}, TypeError, r"negative_prompt must be a string.*got None"),
    ({"negative_prompt": ["a", "b"]}, ValueError, r"got 2 negative prompts for 1 prompts"),
    ({"num_inference_steps": 0}, ValueError, r"between 1 and 1000, got 0; 20 is usual"),
    ({"num_inference_steps": 1001}, ValueError, r"between 1 and 1000, got 1001"),
    ({"num_inference_steps": 1000}, ValueError, r"=1000 .*never trained; use 999 or fewer"),
    ({"num_inference_steps": 2.0}, TypeError, r"whole number, got 2.0"),
    ({"num_inference_steps": True}, TypeError, r"whole number, got True"),
    ({"guidance_scale": nan}, ValueError, r"guidance_scale must be finite, got nan; 7.5"),
    ({"guidance_scale": inf}, ValueError, r"guidance_scale must be finite, got inf"),
    ({"guidance_scale": "7"}, TypeError, r"guidance_scale must be a number, got '7'"),
    ({"guidance_rescale": nan}, ValueError, r"guidance_rescale must be finite, got nan"),
    ({"eta": inf}, ValueError, r"eta must be finite, got inf"),
    ({"eta": 2.0}, ValueError, r"eta must be between 0 and 1, got 2; 0 adds no noise"),
    ({"eta": -0.1}, ValueError, r"eta must be between 0 and 1, got -0.1"),
    ({"guidance_scale": True}, TypeError, r"guidance_scale must be a number, got True"),
    ({"num_inference_steps": np.float64(2)}, TypeError, r"whole number, got 2.0"),
    ({"generator": 0}, TypeError, r"torch.Generator, got 0; for a seed pass .*manual_seed\(0\)"),
    ({"generator": [None]}, TypeError, r"torch.Generator, got None"),
    ({"height": 60}, ValueError, r"height must be divisible by 8, got 60; use a multiple of 8"),
    ({"width": 0}, ValueError, r"width must be between 8 and 8192, got 0"),
    ({"width": 64.0}, TypeError, r"width must be a whole number, got 64.0"),
    ({"generator": [torch.Generator()] * 2}, ValueError, r"got 2 generators for 1 images"),
]


@pytest.fixture
def idle(random_pipe):
    """The pipeline, whose parts must not be asked for anything."""

    def refuse(*_):
        raise AssertionError("work was done before the input was checked")

    parts = (random_pipe.unet, random_pipe.vae.encoder, random_pipe.vae.decoder)
    handles = [p.register_forward_pre_hook(refuse) for p in (*parts, random_pipe.text_encoder)]
    yield random_pipe
    for handle in handles:
        handle.remove()


@pytest.mark.parametrize(("call", "error", "message"), CALLS)
def test_text_to_image(idle, call, error, message):
    with pytest.raises(error, match=message):
        sdlearn.text_to_image(idle, **{"prompt": "a cat", **call})


def test_what_is_no_pipeline():
    for call in (
        lambda: sdlearn.text_to_image("postcards", "a cat"),
        lambda: sdlearn.denoise("postcards", None, None),
        lambda: sdlearn.capture_attention("postcards").__enter__(),
    ):
        with pytest.raises(TypeError, match="expected a StableDiffusionPipeline, got str.*load"):
            call()


LOOPS = [
    ({"latents": torch.zeros(4, 8, 8)}, ValueError, r"\(B, 4, .*got \(4, 8, 8\).*latents\[None\]"),
    ({"latents": torch.zeros(1, 3, 8, 8)}, ValueError, r"got \(1, 3, 8, 8\)"),
    ({"latents": torch.zeros(0, 4, 8, 8)}, ValueError, r"got \(0, 4, 8, 8\)"),
    ({"latents": [1.0]}, TypeError, r"latents must be a tensor, got list"),
    ({"latents": torch.zeros(1, 4, 8, 8).long()}, TypeError, r"must be floats, got torch.int64"),
    ({"generator": 7}, TypeError, r"torch.Generator, got 7"),
    ({"generator": [torch.Generator()] * 2}, ValueError, r"got 2 generators for 1 images"),
    ({"eta": 1.01}, ValueError, r"eta must be between 0 and 1, got 1.01"),
    ({"latents": torch.zeros(2, 4, 8, 8)}, ValueError, r"\(4, 77, 24\) for 2 latents, got \(2, "),
    ({"prompt_embeds": "a cat"}, ValueError, r"got str; make them with encode_prompt"),
    ({"prompt_embeds": torch.zeros(2, 77, 9)}, ValueError, r"got \(2, 77, 9\)"),
    ({"prompt_embeds": torch.zeros(1, 77, 24)}, ValueError, r"got \(1, 77, 24\)"),
    ({"t_start": -1}, ValueError, r"t_start must be between 0 and 3, got -1"),
    ({"t_start": 4}, ValueError, r"t_start must be between 0 and 3, got 4"),
    ({"guidance_scale": nan}, ValueError, r"must be finite, got nan"),
    ({"num_inference_steps": 0}, ValueError, r"got 0"),
]


@pytest.mark.parametrize(("call", "error", "message"), LOOPS)
def test_denoise_checks_at_once(idle, call, error, message):
    good = {
        "latents": torch.zeros(1, 4, 8, 8),
        "prompt_embeds": torch.zeros(2, 77, 24),
        "num_inference_steps": 4,
    }
    with pytest.raises(error, match=message):
        sdlearn.denoise(idle, **{**good, **call})  # not iterated


@pytest.mark.parametrize(
    ("timesteps", "message"),
    [
        (-1, r"0 to 999, got \[-1\]"),
        (1000, r"got \[1000\]"),
        (1.5, r"must be whole.*got \[1.5\]"),
        (torch.tensor([1, 2, 3]), r"got 3 timesteps for a batch of 2; pass 1 or B"),
    ],
)
def test_timesteps(idle, timesteps, message):
    x = torch.zeros(2, 4, 8, 8)
    with pytest.raises(ValueError, match=message):
        sdlearn.add_noise(idle, x, x, timesteps)
    with pytest.raises(ValueError, match=message):
        sdlearn.predict_original_sample(idle, x, timesteps, x)


def test_whole_numbers_are_no_latents(idle):
    x = torch.ones(1, 4, 8, 8)
    for latents, noise in ((x.long(), x), (x, x.long())):
        with pytest.raises(TypeError, match=r"must be floats, got torch.int64"):
            sdlearn.add_noise(idle, latents, noise, 3)


@pytest.mark.parametrize(
    ("t", "error", "message"),
    [
        (torch.tensor([3, 870]), ValueError, r"one timestep for all latents, got 2"),
        (1000, ValueError, r"t must be between 0 and 999, got 1000"),
        (nan, ValueError, r"t must be finite, got nan"),
        ("3", TypeError, r"t must be a number, got '3'"),
    ],
)
def test_one_timestep_for_all(idle, t, error, message):
    with pytest.raises(error, match=message):
        sdlearn.predict_noise(idle, torch.zeros(2, 4, 8, 8), t, torch.zeros(4, 77, 24))


@pytest.mark.parametrize("eta", [1.2, -1, nan])
def test_more_noise_than_there_is(eta):
    x = torch.ones(1, 4, 8, 8)
    with pytest.raises(ValueError, match="eta must be"):
        sdlearn.ddim_step(x, x, 0.5, 0.6, eta=eta, noise=x)


OTHERS = [
    {
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": 8,
        "projection_class_embeddings_input_dim": 64,
    },
    {"in_channels": 8},
    {"class_embed_type": "timestep"},
]


@pytest.mark.parametrize("other", OTHERS, ids=["SDXL", "InstructPix2Pix", "classes"])
def test_unets_of_another_family(random_pipe, other, tmp_path):
    """Said when the pipeline is first seen, whether it is given or loaded."""
    unet = UNet2DConditionModel(**{**random_pipe.unet.config, **other})
    pipe = StableDiffusionPipeline(
        **{**random_pipe.components, "unet": unet}, requires_safety_checker=False
    )
    latents, embeds = torch.zeros(1, 4, 8, 8), torch.zeros(2, 77, 24)
    pipe.save_pretrained(tmp_path)
    for call in (
        lambda: sdlearn.text_to_image(pipe, "a cat"),
        lambda: sdlearn.denoise(pipe, latents, embeds),
        lambda: sdlearn.capture_attention(pipe).__enter__(),
        lambda: sdlearn.load(pipe),
        lambda: sdlearn.load(tmp_path, device="cpu"),
    ):
        with pytest.raises(ValueError, match=rf"another family .*{[*other][0]}.*load\(.sd15.\)"):
            call()


def test_noise_of_another_shape(idle):
    with pytest.raises(ValueError, match=r"\(1, 4, 8, 8\), the latents \(2, 4, 8, 8\).*randn"):
        sdlearn.add_noise(idle, torch.zeros(2, 4, 8, 8), torch.zeros(1, 4, 8, 8), 3)


IMAGES = [
    (Image.new("L", (64, 64)), ValueError, r"""mode 'L'; use image.convert\("RGB"\)"""),
    (Image.new("RGBA", (64, 64)), ValueError, r"mode 'RGBA'"),
    (Image.new("RGB", (60, 64)), ValueError, r"width must be divisible by 8, got 60"),
    (Image.new("RGB", (64, 0)), ValueError, r"height must be between 8 and 8192, got 0"),
    (torch.zeros(3, 64, 64), ValueError, r"\(B, 3, H, W\), got \(3, 64, 64\)"),
    (torch.full((1, 3, 64, 64), -0.5), ValueError, r"floats in \[0, 1\]"),
    (torch.full((1, 3, 64, 64), nan), ValueError, r"floats in \[0, 1\]"),
    (torch.zeros(1, 3, 64, 64, dtype=torch.uint8), ValueError, r"got torch.uint8"),
    (b"png", TypeError, r"a picture, path or tensor, got bytes"),
    ("nowhere.png", ValueError, r"'nowhere.png' is not a file"),
]


@pytest.mark.parametrize(("image", "error", "message"), IMAGES)
def test_images(idle, image, error, message):
    with pytest.raises(error, match=message):
        sdlearn.encode_image(idle, image)


def test_a_phone_says_which_side_is_up(random_pipe, tmp_path):
    wide = Image.effect_noise((64, 32), 50).convert("RGB")
    exif = wide.getexif()
    exif[ExifTags.Base.Orientation] = 6  # turn it clockwise
    wide.save(tmp_path / "phone.png", exif=exif)
    upright = wide.transpose(Image.Transpose.ROTATE_270)
    expected = sdlearn.encode_image(random_pipe, upright, sample=False)
    for given in (tmp_path / "phone.png", Image.open(tmp_path / "phone.png")):
        assert torch.equal(sdlearn.encode_image(random_pipe, given, sample=False), expected)


def test_files(idle, tmp_path):
    path = tmp_path / "picture.png"
    path.touch()
    with pytest.raises(ValueError, match="picture.png' is an empty file"):
        sdlearn.encode_image(idle, path)
    path.write_bytes(b"not a picture")
    with pytest.raises(ValueError, match="picture.png' holds no whole picture"):
        sdlearn.encode_image(idle, path)
    Image.effect_noise((64, 64), 50).save(path)
    path.write_bytes(path.read_bytes()[:400])
    with pytest.raises(ValueError, match="picture.png' holds no whole picture"):
        sdlearn.encode_image(idle, path)


def test_the_rest(idle):
    with pytest.raises(TypeError, match=r"one string, got \['a'\]"):
        sdlearn.tokenize(idle, ["a"])
    with pytest.raises(ValueError, match=r"got \(1, 4, 8\)"):
        sdlearn.decode_latents(idle, torch.zeros(1, 4, 8))
