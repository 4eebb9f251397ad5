"""Edits are diffusers' own pipelines, bit for bit, and leave the pipeline as it was."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from conftest import random_pipeline, seeded
from diffusers import (
    StableDiffusionImg2ImgPipeline,
    StableDiffusionInpaintPipeline,
    UNet2DConditionModel,
)
from PIL import Image, ImageDraw
from test_exactness import PROMPT, SCHEDULERS, set_scheduler, state

import sdlearn
from sdlearn.editing.inpainting import word_mask
from sdlearn.postcards.render import SIZE, boxes, render, sprite
from sdlearn.postcards.world import Scene, Thing

CALLS = {
    "guided": {"strength": 0.5},
    "unguided": {"strength": 0.2, "guidance_scale": 1.0},
    "negative": {"strength": 0.8, "negative_prompt": "blurry", "eta": 0.5},
    "whole": {"strength": 1.0},
}


def diffusers_own(kind, pipe):
    """Return a pipeline of diffusers with the same parts, which shows no progress."""
    theirs = kind.from_pipe(pipe)
    theirs.set_progress_bar_config(disable=True)
    return theirs


def some_picture(sizes, count=1):
    """Pixels, (count, 3, H, W) in [0, 1]: smooth, so that the VAE has something to keep."""
    coarse = torch.rand(count, 3, 4, 4, generator=seeded(7))
    return torch.nn.functional.interpolate(coarse, sizes, mode="bilinear")


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
@pytest.mark.parametrize("name", SCHEDULERS)
def test_image_to_image_equals_diffusers(pipe, sizes, name, call):
    set_scheduler(pipe, name)
    picture = sdlearn.to_pil(pipe, some_picture(sizes))[0]
    call = {"num_inference_steps": 5, **call}
    theirs = diffusers_own(StableDiffusionImg2ImgPipeline, pipe)
    expected = theirs(PROMPT, picture, **call, generator=seeded(), output_type="pt").images
    before = state(pipe)
    trace = sdlearn.image_to_image(pipe, PROMPT, picture, **call, generator=seeded())
    assert state(pipe) == before
    assert torch.equal(trace.pixels, expected)


@pytest.mark.parametrize("each", [1, 2], ids=["one picture", "one each"])
@pytest.mark.parametrize("listed", [False, True], ids=["one generator", "a list"])
def test_a_batch_equals_diffusers(pipe, sizes, each, listed):
    pictures = some_picture(sizes, each)
    prompts = [PROMPT, "a blue house"]

    def draws():
        return [seeded(1), seeded(2)] if listed else seeded()

    theirs = diffusers_own(StableDiffusionImg2ImgPipeline, pipe)
    call = {"strength": 0.5, "num_inference_steps": 4}
    expected = theirs(prompts, pictures, **call, generator=draws(), output_type="pt").images
    trace = sdlearn.image_to_image(pipe, prompts, pictures, **call, generator=draws())
    assert torch.equal(trace.pixels, expected)
    assert len(trace.steps) == 2


@pytest.mark.parametrize(
    ("call", "message"),
    [
        ({"strength": 0.05}, r"leaves none of 10 steps; take 0.1 or more"),
        ({"strength": 0.02, "num_inference_steps": 49}, r"leaves none of 49 steps; take 0.021"),
        ({"strength": 1.2}, r"strength must be between 0 and 1, got 1.2"),
        ({"strength": 0.0}, r"strength=0 leaves none"),
        ({"image": torch.zeros(3, 3, 64, 64)}, r"got 3 pictures for 1 prompts"),
        ({"image": torch.zeros(1, 3, 60, 64)}, r"height must be divisible by 8, got 60"),
        ({"num_inference_steps": 0}, r"num_inference_steps must be between 1 and 1000, got 0"),
    ],
)
def test_bad_input_is_named_before_anything_is_drawn(random_pipe, call, message):
    generator, call = seeded(), {"image": torch.zeros(1, 3, 64, 64), **call}
    call = {"num_inference_steps": 10, **call}
    before = generator.get_state()
    with pytest.raises(ValueError, match=message):
        sdlearn.image_to_image(random_pipe, PROMPT, **call, generator=generator)
    assert torch.equal(generator.get_state(), before)


@pytest.mark.parametrize("steps", [1, 3, 10, 49, 50, 999])
def test_the_least_strength_that_an_error_names_is_enough(random_pipe, steps):
    with pytest.raises(ValueError, match="take ([0-9.]+) or more") as caught:
        sdlearn.editing.sdedit.steps_left_out(steps, 0.0)
    least = float(str(caught.value).split("take ")[1].split()[0])
    assert sdlearn.editing.sdedit.steps_left_out(steps, least) == steps - 1


def some_mask(sizes):
    """A disc that covers some places of the latents and not others, and edges between them."""
    height, width = sizes
    mask = Image.new("L", (width, height))
    ImageDraw.Draw(mask).ellipse((width // 4, height // 5, width - 9, height - 20), fill=255)
    return mask


@pytest.fixture(scope="session")
def painter_pipe():
    """SD 1.x's layout in small, with a U-Net for inpainting: nine channels."""
    pipe = random_pipeline()
    torch.manual_seed(1)
    unet = UNet2DConditionModel.from_config(pipe.unet.config, in_channels=9)
    pipe.unet = unet.eval().requires_grad_(False)
    assert pipe.unet.conv_in.in_channels == 9
    return pipe


def inpainted(pipe, sizes, prompts, pictures, draws, **call):
    """Return diffusers' pixels and ours."""
    theirs = diffusers_own(StableDiffusionInpaintPipeline, pipe)
    mask, size = some_mask(sizes), dict(zip(("height", "width"), sizes))
    expected = theirs(
        prompts, pictures, mask, **size, **call, generator=draws(), output_type="pt"
    ).images
    before = state(pipe)
    trace = sdlearn.inpaint(pipe, prompts, pictures, mask, **call, generator=draws())
    assert state(pipe) == before
    return expected, trace.pixels


@pytest.mark.parametrize("strength", [1.0, 0.5])
@pytest.mark.parametrize("name", SCHEDULERS)
def test_inpaint_equals_diffusers(pipe, sizes, name, strength):
    set_scheduler(pipe, name)
    picture = sdlearn.to_pil(pipe, some_picture(sizes))[0]
    call = {"strength": strength, "num_inference_steps": 5, "eta": 0.5}
    expected, ours = inpainted(pipe, sizes, PROMPT, picture, seeded, **call)
    assert torch.equal(ours, expected)


@pytest.mark.parametrize("call", [{}, {"guidance_scale": 1.0, "strength": 0.6}])
@pytest.mark.parametrize("name", ["DDIMScheduler", "EulerAncestralDiscreteScheduler"])
def test_inpaint_with_nine_channels_equals_diffusers(painter_pipe, name, call):
    set_scheduler(painter_pipe, name)
    picture = sdlearn.to_pil(painter_pipe, some_picture((64, 32)))[0]
    call = {"num_inference_steps": 4, **call}
    expected, ours = inpainted(painter_pipe, (64, 32), PROMPT, picture, seeded, **call)
    assert torch.equal(ours, expected)


@pytest.mark.parametrize("each", [1, 2], ids=["one picture", "one each"])
@pytest.mark.parametrize("listed", [False, True], ids=["one generator", "a list"])
def test_an_inpainted_batch_equals_diffusers(pipe, sizes, each, listed):
    def draws():
        return [seeded(1), seeded(2)] if listed else seeded()

    call = {"negative_prompt": ["blurry"] * 2, "num_inference_steps": 3}
    prompts = [PROMPT, "a blue house"]
    expected, ours = inpainted(pipe, sizes, prompts, some_picture(sizes, each), draws, **call)
    assert torch.equal(ours, expected)


def test_a_unet_for_inpainting_draws_nothing_from_a_prompt_alone(painter_pipe):
    generator = seeded()
    before, picture = generator.get_state(), some_picture((64, 64))
    for draw in (
        lambda: sdlearn.text_to_image(painter_pipe, PROMPT, generator=generator),
        lambda: sdlearn.image_to_image(painter_pipe, PROMPT, picture, generator=generator),
        lambda: sdlearn.edit_prompt(painter_pipe, PROMPT, PROMPT, generator=generator),
        lambda: sdlearn.invert(painter_pipe, picture, PROMPT),
    ):
        with pytest.raises(ValueError, match=r"reads 5 channels beside the latents.*use inpaint"):
            draw()
    assert torch.equal(generator.get_state(), before)
    assert sdlearn.load(painter_pipe) is painter_pipe


def test_a_mask_is_a_picture_a_file_or_a_tensor(random_pipe, tmp_path):
    picture, mask = some_picture((64, 32)), some_mask((64, 32))
    as_tensor = torch.tensor(list(mask.getdata())).view(64, 32) > 127
    call, file = {"num_inference_steps": 2}, tmp_path / "mask.png"
    mask.save(file)
    one, *others = (
        sdlearn.inpaint(random_pipe, PROMPT, picture, m, **call, generator=seeded()).pixels
        for m in (mask, as_tensor, file, str(file))
    )
    assert all(torch.equal(one, other) for other in others)


@pytest.mark.parametrize(
    ("mask", "message"),
    [
        (Image.new("L", (32, 64)), "covers no place"),
        (Image.new("L", (64, 32), 255), r"the mask is \(64, 32\), the picture \(32, 64\)"),
        (Image.new("RGB", (32, 64)), "mode 'RGB'"),
        (torch.ones(64, 32), "boolean tensor"),
        (torch.ones(1, 64, 32, dtype=torch.bool), "boolean tensor"),
        (None, "a picture or a tensor, got NoneType"),
    ],
)
def test_a_mask_that_will_not_do_is_refused(random_pipe, mask, message):
    generator = seeded()
    before = generator.get_state()
    with pytest.raises((ValueError, TypeError), match=message):
        sdlearn.inpaint(random_pipe, PROMPT, some_picture((64, 32)), mask, generator=generator)
    assert torch.equal(generator.get_state(), before)


def sprite_masks(scene):
    """Where the things of a scene are, (H, W) each, as they were rendered."""
    for thing, x, y, size in boxes(scene):
        mask = Image.new("L", (SIZE, SIZE))
        mask.paste(sprite(thing, size).getchannel("A"), (x - size // 2, y - size // 2))
        yield torch.tensor(np.asarray(mask)) > 127


def test_a_word_finds_its_thing(postcards):
    scene = Scene(Thing("cat"), Thing("house"), "left of", setting="meadow", seed=1)
    image, prompt = render(scene), "a cat left of a house in a meadow by day"
    cat, house = sprite_masks(scene)
    with_prompt = word_mask(postcards, image, "cat", prompt)
    alone = word_mask(postcards, image, "cat")
    shares = [
        float(mask[thing].float().mean()) for mask in (with_prompt, alone) for thing in (cat, house)
    ]
    assert shares[0] > 0.95
    assert shares[1] < 0.2
    assert shares[2] > 0.8
    assert shares[3] > 0.5  # as its docstring warns
    assert word_mask(postcards, image, "house", prompt)[house].float().mean() > 0.95


@pytest.mark.parametrize("which", ["random_pipe", "painter_pipe"])
def test_a_mask_by_word_is_drawn_from_no_ones_generator(which, request):
    pipe = request.getfixturevalue(which)
    picture, call = some_picture((64, 32)), {"num_inference_steps": 2}
    before, global_state = state(pipe), torch.get_rng_state()
    mask = word_mask(pipe, picture, "cat", PROMPT + " cat")
    assert state(pipe) == before
    assert torch.equal(torch.get_rng_state(), global_state)
    assert mask.shape == (64, 32)
    assert mask.any()
    more = {"mask_prompt": PROMPT + " cat", **call}
    by_word = sdlearn.inpaint(pipe, PROMPT, picture, "cat", **more, generator=seeded())
    by_mask = sdlearn.inpaint(pipe, PROMPT, picture, mask, **call, generator=seeded())
    assert torch.equal(by_word.pixels, by_mask.pixels)
    with sdlearn.capture_attention(pipe) as maps:  # sees what is drawn, not how the mask was found
        sdlearn.inpaint(pipe, PROMPT, picture, "cat", **more, generator=seeded())
    assert maps.calls == 2


@pytest.mark.parametrize(
    ("call", "message"),
    [
        ({"mask": "cat", "mask_prompt": "a dog"}, "no word 'cat' in the prompt; it reads: .*'dog'"),
        ({"mask": ""}, "no word ''"),
        ({"mask": Image.new("L", (32, 64), 255), "mask_prompt": "a dog"}, "needs a word of it"),
        ({"mask": "cat", "prompt": ["a", "b"], "image": torch.zeros(2, 3, 64, 32)}, "got 2 pict"),
    ],
)
def test_a_word_that_will_not_do_is_refused(random_pipe, call, message):
    generator = seeded()
    before = generator.get_state()
    call = {"prompt": PROMPT, "image": some_picture((64, 32)), **call}
    if isinstance(call["prompt"], list):
        generator = [generator, seeded(1)]
    with pytest.raises(ValueError, match=message):
        sdlearn.inpaint(random_pipe, **call, generator=generator)
    first = generator[0] if isinstance(generator, list) else generator
    assert torch.equal(first.get_state(), before)
