"""Stable Diffusion's relatives, small GPUs, and pipelines that readers bring.

Each relative is a small folder of random weights in the layout of the published one.
"""

from __future__ import annotations

import copy
import json

import pytest
import sd15
import torch
from accelerate.hooks import CpuOffload
from conftest import POSTCARDS, random_pipeline, seeded, tiny_unet
from diffusers import (
    DDIMInverseScheduler,
    DDIMScheduler,
    EulerDiscreteScheduler,
    LatentConsistencyModelPipeline,
    LCMScheduler,
    StableDiffusionImg2ImgPipeline,
    StableDiffusionInpaintPipeline,
    StableDiffusionPipeline,
    UNet2DConditionModel,
)
from peft import LoraConfig
from peft.utils import get_peft_model_state_dict
from PIL import Image
from test_editing import diffusers_own, inpainted, some_mask, some_picture
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

import sdlearn
from sdlearn.editing.inpainting import word_mask
from sdlearn.text import find_word

SIZE = (32, 64)  # Not square, and small: 512 x 512 take a minute.
PROMPT, OTHER = "a red cat on the beach", "a red dog on the beach"
FEW = {"num_inference_steps": 2}


def sd14(folder):
    """SD 1.5's layout with a safety checker; copies of 2022 name a class that has gone since."""
    sd15.write(folder)
    index = folder / "model_index.json"
    parts = json.loads(index.read_text("utf-8"))
    parts["feature_extractor"] = ["transformers", "CLIPFeatureExtractor"]
    index.write_text(json.dumps(parts), "utf-8")


def sd21_parts():
    """SD 2.1: linear projections, heads of one width, wider text, "!" as padding."""
    base = random_pipeline(layers_per_block=1)
    torch.manual_seed(1)
    unet = UNet2DConditionModel.from_config(
        base.unet.config,
        sample_size=12,
        block_out_channels=(16, 32, 64, 64),
        attention_head_dim=(1, 2, 4, 4),  # heads, 16 wide everywhere
        cross_attention_dim=32,
        use_linear_projection=True,
        upcast_attention=True,
    )
    config = base.text_encoder.config.to_dict()
    wider = {"hidden_size": 32, "hidden_act": "gelu", "num_hidden_layers": 3}
    text = CLIPTextModel(CLIPTextConfig(**{**config, **wider}))
    tokenizer = CLIPTokenizer.from_pretrained(POSTCARDS / "tokenizer", pad_token="!")
    parts = {**base.components, "unet": unet, "text_encoder": text, "tokenizer": tokenizer}
    return {**parts, "requires_safety_checker": False}


def sd21(folder):
    pipe = StableDiffusionPipeline(**sd21_parts())
    config = pipe.scheduler.config
    pipe.scheduler = DDIMScheduler.from_config(config, prediction_type="v_prediction")
    pipe.save_pretrained(folder)


def turbo(folder):
    """SD-Turbo is SD 2.1's layout, drawn in one step to four, without guidance."""
    pipe = StableDiffusionPipeline(**sd21_parts())
    config = pipe.scheduler.config
    pipe.scheduler = EulerDiscreteScheduler.from_config(config, timestep_spacing="trailing")
    pipe.save_pretrained(folder)


def inpainting(folder):
    base = random_pipeline(layers_per_block=1)
    torch.manual_seed(1)
    unet = UNet2DConditionModel.from_config(base.unet.config, in_channels=9)
    parts = {**base.components, "unet": unet, "requires_safety_checker": False}
    StableDiffusionInpaintPipeline(**parts).save_pretrained(folder)


def lcm(folder):
    """A latent consistency model, whose U-Net reads the guidance scale."""
    base = random_pipeline(layers_per_block=1)
    torch.manual_seed(1)
    unet = UNet2DConditionModel.from_config(base.unet.config, time_cond_proj_dim=32)
    parts = {**base.components, "unet": unet, "requires_safety_checker": False}
    parts["scheduler"] = LCMScheduler.from_config(base.scheduler.config)
    LatentConsistencyModelPipeline(**parts).save_pretrained(folder)


def lcm_lora(folder):
    """A LoRA of LCM's kind, on attention and convolutions, beside the model that it goes on."""
    base = random_pipeline(layers_per_block=1)
    base.save_pretrained(folder)
    targets = ["to_q", "to_k", "to_v", "to_out.0", "proj_in", "conv1", "time_emb_proj", "conv_in"]
    torch.manual_seed(1)
    base.unet.add_adapter(LoraConfig(r=2, target_modules=targets, init_lora_weights=False))
    layers = get_peft_model_state_dict(base.unet)
    StableDiffusionPipeline.save_lora_weights(folder / "lora", unet_lora_layers=layers)


RELATIVES = {each.__name__: each for each in (sd14, sd21, turbo, inpainting, lcm, lcm_lora)}
CALLS = {  # what each is drawn with
    "sd14": {"num_inference_steps": 2},
    "sd21": {"num_inference_steps": 3, "guidance_rescale": 0.7, "negative_prompt": "blurry"},
    "turbo": {"num_inference_steps": 1, "guidance_scale": 0.0},
    "lcm": {"num_inference_steps": 4, "guidance_scale": 8.5},
    "lcm_lora": {"num_inference_steps": 4, "guidance_scale": 1.0},
}


@pytest.fixture(scope="module")
def relatives(tmp_path_factory):
    """Write each folder once; load it once."""
    loaded = {}

    def relative(name):
        if name not in loaded:
            folder = tmp_path_factory.mktemp(name)
            RELATIVES[name](folder)
            pipe = sdlearn.load(folder, device="cpu")
            if name == "lcm_lora":
                pipe.load_lora_weights(folder / "lora")
                pipe.scheduler = LCMScheduler.from_config(pipe.scheduler.config)
            pipe.set_progress_bar_config(disable=True)
            loaded[name] = pipe
        return loaded[name]

    return relative


@pytest.fixture(params=CALLS)
def relative(request, relatives):
    return relatives(request.param), CALLS[request.param]


def check_maps(maps, calls, layers):
    assert maps.calls == calls
    assert len(maps.layers) == layers
    for layer in maps.layers:
        whole = maps.probabilities(layer)
        torch.testing.assert_close(whole.sum(1), torch.ones_like(whole[:, 0]))
    assert not torch.equal(maps.heat_map("cat"), maps.heat_map("beach"))


def test_text_to_image_equals_diffusers(relative):
    pipe, call = relative
    call = {**call, "height": SIZE[0], "width": SIZE[1]}
    expected = pipe(PROMPT, **call, generator=seeded(), output_type="pt").images
    latents = pipe(PROMPT, **call, generator=seeded(), output_type="latent").images
    with sdlearn.capture_attention(pipe) as maps:
        trace = sdlearn.text_to_image(pipe, PROMPT, **call, generator=seeded())
    assert torch.equal(trace.pixels, expected)
    assert torch.equal(trace.latents, latents)
    layers = sum(name.endswith("attn2.processor") for name in pipe.unet.attn_processors)
    check_maps(maps, len(trace.steps), layers)
    blocks = sdlearn.trace_blocks(pipe)
    assert sum(block.parameters for block in blocks) == pipe.unet.num_parameters()


def test_image_to_image_equals_diffusers(relative):
    pipe, call = relative
    # Of one step, all of it. Rescaling is for drawings from noise alone.
    call = {"strength": 1.0 if call["num_inference_steps"] == 1 else 0.75, **call}
    call.pop("guidance_rescale", None)
    picture = some_picture(SIZE)
    theirs = diffusers_own(StableDiffusionImg2ImgPipeline, pipe)
    expected = theirs(PROMPT, picture, **call, generator=seeded(), output_type="pt").images
    trace = sdlearn.image_to_image(pipe, PROMPT, picture, **call, generator=seeded())
    assert torch.equal(trace.pixels, expected)


def test_inpaint_equals_diffusers(relative):
    pipe, call = relative
    call = {**call}
    call.pop("guidance_rescale", None)
    expected, ours = inpainted(pipe, SIZE, PROMPT, some_picture(SIZE), seeded, **call)
    assert torch.equal(ours, expected)
    assert word_mask(pipe, some_picture(SIZE), "cat", PROMPT).any()


def test_edit_prompt(relative):
    """With nothing held it is diffusers' batch of two; held, the target is another one."""
    pipe, call = relative
    call = {**call, "height": SIZE[0], "width": SIZE[1]}
    call.pop("guidance_rescale", None)
    negative = call.pop("negative_prompt", "")
    twice = {"negative_prompt": [negative] * 2, "generator": [seeded(), seeded()]}
    expected = pipe([PROMPT, OTHER], **call, **twice, output_type="latent").images
    call["negative_prompt"] = negative
    free, held = (
        sdlearn.edit_prompt(
            pipe, PROMPT, OTHER, **call, cross_steps=share, self_steps=share, generator=seeded()
        )
        for share in (0.0, 1.0)
    )
    for ours, theirs in zip(free, expected, strict=True):
        assert torch.equal(ours.latents[0], theirs)
    assert not torch.allclose(held[1].latents, free[1].latents)
    assert held[1].pixels.isfinite().all()
    _, same = sdlearn.edit_prompt(pipe, PROMPT, PROMPT, **call, generator=seeded())
    torch.testing.assert_close(same.latents, free[0].latents, rtol=1e-3, atol=1e-3)


def test_the_inpainting_model(relatives):
    pipe = relatives("inpainting")
    assert type(pipe) is StableDiffusionPipeline
    expected, ours = inpainted(pipe, SIZE, PROMPT, some_picture(SIZE), seeded, **FEW)
    assert torch.equal(ours, expected)
    with sdlearn.capture_attention(pipe) as maps:
        sdlearn.inpaint(pipe, PROMPT, some_picture(SIZE), some_mask(SIZE), **FEW)
    check_maps(maps, 2, 10)


@pytest.mark.parametrize("steps", [1, 2, 4])
@pytest.mark.parametrize("scale", [0.0, 1.0, 8.5])
@pytest.mark.parametrize("name", ["turbo", "lcm", "lcm_lora"])
def test_few_steps(relatives, name, scale, steps):
    """Guided or not; LCM's own U-Net takes every scale as an input."""
    pipe = relatives(name)
    call = {"num_inference_steps": steps, "guidance_scale": scale}
    expected = pipe(PROMPT, **call, generator=seeded(), output_type="latent").images
    trace = sdlearn.text_to_image(pipe, PROMPT, **call, generator=seeded())
    assert torch.equal(trace.latents, expected)
    guided = scale > 1 and name != "lcm"
    assert (trace.steps[0].noise_pred_uncond is not None) == guided


def test_lcm_listens_to_the_scale(relatives):
    pipe = relatives("lcm")
    one, other = (
        sdlearn.text_to_image(pipe, PROMPT, **FEW, guidance_scale=g, generator=seeded()).latents
        for g in (2.0, 8.0)
    )
    assert not torch.allclose(one, other)
    theirs = diffusers_own(LatentConsistencyModelPipeline, pipe)
    call = {**FEW, "guidance_scale": 8.0, "generator": seeded(), "output_type": "latent"}
    assert torch.equal(theirs(PROMPT, **call).images, other)


def test_lcm_is_not_taught(relatives):
    pipe, card = relatives("lcm"), Image.new("RGB", (64, 64))
    with pytest.raises(ValueError, match="teach the model that it was made from"):
        sdlearn.learn_token(pipe, [card], "<teal>", "blue", steps=1)


def test_a_lora_changes_the_picture_and_goes_again(relatives):
    pipe = relatives("lcm_lora")
    call = {**FEW, "guidance_scale": 1.0}

    def drawn():
        return sdlearn.text_to_image(pipe, PROMPT, **call, generator=seeded()).latents

    with_lora = drawn()
    pipe.disable_lora()
    try:
        assert not torch.allclose(drawn(), with_lora)
    finally:
        pipe.enable_lora()
    assert torch.equal(drawn(), with_lora)


def test_velocity(relatives):
    """What picture a step predicts is the scheduler's; the way back is its inverse's."""
    pipe = relatives("sd21")
    for step in sdlearn.text_to_image(pipe, PROMPT, **FEW, generator=seeded()).steps:
        assert step.prediction_type == "v_prediction"
        scheduler = copy.deepcopy(pipe.scheduler)
        scheduler.set_timesteps(2)
        theirs = scheduler.step(step.noise_pred, step.t, step.latents).pred_original_sample
        torch.testing.assert_close(step.pred_original_sample, theirs, rtol=1e-4, atol=1e-4)
    picture = some_picture(SIZE)
    x, embeds = sdlearn.encode_image(pipe, picture, sample=False), sdlearn.encode_prompt(pipe, "")
    inverse = DDIMInverseScheduler.from_config(pipe.scheduler.config)
    inverse.set_timesteps(2)
    with torch.no_grad():
        for t in inverse.timesteps:
            x = inverse.step(pipe.unet(x, t, embeds[1:]).sample, t, x).prev_sample
    assert torch.equal(sdlearn.invert(pipe, picture, "", 2), x)


def test_padding_is_no_word(relatives):
    """SD 2.x fills up with "!": of the prompt are only those before the end."""
    pipe = relatives("sd21")
    tokens = sdlearn.tokenize(pipe, "a cat!")
    assert tokens.ids[:6].tolist() == [49406, 320, 2368, 0, 49407, 0]
    assert tokens.words == {"a": (1,), "cat": (2,), "!": (3,)}
    assert find_word(pipe, tokens.ids, "!") == [3]
    assert tokens.truncated == ()
    for count, said in ((74, "'cat']$"), (75, "cut off$")):
        full = sdlearn.tokenize(pipe, " ".join(["cat"] * count)).ids
        with pytest.raises(ValueError, match=said):
            find_word(pipe, full, "!")


# Small GPUs


@pytest.fixture
def gpu(monkeypatch):
    """A computer with a GPU, which is its CPU: only diffusers' hooks are told so."""
    own = StableDiffusionPipeline.enable_model_cpu_offload
    asked = []

    def enable(pipe, gpu_id=None, device="cuda"):
        asked.append(torch.device(device).type)
        own(pipe, device="cpu")

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.delenv("SDLEARN_DEVICE")
    monkeypatch.setattr(StableDiffusionPipeline, "enable_model_cpu_offload", enable)
    return asked


@pytest.fixture
def away(monkeypatch):
    """Weights that are elsewhere, as they are between calls, hold no numbers: NaN.

    On a real GPU they would be on the wrong device. The first table of the text encoder, which is
    read and written where it lies, is left alone.
    """
    kept = {}

    def leave(_, module):
        for name, weight in module.named_parameters():
            if weight not in kept and not name.endswith("token_embedding.weight"):
                kept[weight] = weight.data
                weight.data = torch.full_like(weight.data, torch.nan)
        return module

    def come(hook, module, *args, **kwargs):
        if hook.prev_module_hook is not None:
            hook.prev_module_hook.offload()
        for weight in module.parameters():
            weight.data = kept.pop(weight, weight.data)
        return args, kwargs

    monkeypatch.setattr(CpuOffload, "init_hook", leave)
    monkeypatch.setattr(CpuOffload, "pre_forward", come)


def is_away(part):
    return any(weight.isnan().any() for weight in part.parameters())


def test_low_memory(gpu, away, tmp_path, capsys):
    random_pipeline(layers_per_block=1).save_pretrained(tmp_path)
    plain = sdlearn.load(tmp_path, device="cpu", dtype=torch.float16)
    pipe = sdlearn.load(tmp_path, low_memory=True)
    assert "on cuda in float16 with low memory (" in capsys.readouterr().out
    assert gpu == ["cuda"]
    assert pipe.vae.use_slicing
    assert pipe.vae.use_tiling
    assert all(is_away(part) for part in (pipe.unet, pipe.vae, pipe.text_encoder))
    for each in (plain, pipe):
        each.set_progress_bar_config(disable=True)
        each.vae.enable_tiling()  # this VAE was trained, so it says, on 32 x 32 pixels
    expected = plain(PROMPT, **FEW, generator=seeded(), output_type="pt").images
    trace = sdlearn.text_to_image(pipe, PROMPT, **FEW, generator=seeded())
    assert trace.latents.dtype == torch.float16
    assert torch.equal(trace.pixels, expected)
    assert all(is_away(part) for part in (pipe.unet, pipe.vae, pipe.text_encoder))
    theirs = pipe(PROMPT, **FEW, generator=seeded(), output_type="pt").images
    assert torch.equal(theirs, expected)


@pytest.fixture
def pair(gpu, away, tmp_path):
    """The same model, all in place and with low memory."""
    random_pipeline(layers_per_block=1).save_pretrained(tmp_path)
    plain = sdlearn.load(tmp_path, device="cpu")
    pipe = sdlearn.load(tmp_path, low_memory=True, dtype=torch.float32)
    for each in (plain, pipe):
        each.set_progress_bar_config(disable=True)
        each.vae.enable_slicing()
        each.vae.enable_tiling()
    return plain, pipe


def everything(pipe):
    """Yield what each function that computes gives."""
    picture, call = some_picture((64, 32)), {**FEW, "height": 64, "width": 32}
    with sdlearn.capture_attention(pipe) as maps:
        trace = sdlearn.text_to_image(pipe, PROMPT, **call, generator=seeded())
    yield trace.pixels
    yield maps.heat_map("cat")
    yield sdlearn.text_to_image(pipe, [PROMPT, OTHER], **call, generator=seeded()).pixels
    yield sdlearn.text_to_image(pipe, PROMPT, height=96, width=64, **FEW, generator=seeded()).pixels
    yield sdlearn.image_to_image(pipe, PROMPT, picture, **FEW, generator=seeded()).pixels
    yield sdlearn.inpaint(
        pipe, PROMPT, picture, "cat", mask_prompt=PROMPT, **FEW, generator=seeded()
    ).pixels
    for each in sdlearn.edit_prompt(pipe, PROMPT, OTHER, blend="cat", **call, generator=seeded()):
        yield each.pixels
    yield sdlearn.invert(pipe, picture, PROMPT, 2)
    latents = sdlearn.encode_image(pipe, picture, generator=seeded())
    yield latents
    yield sdlearn.decode_latents(pipe, latents)
    embeds = sdlearn.encode_prompt(pipe, PROMPT)
    yield embeds
    yield sdlearn.predict_noise(pipe, latents, 500, embeds).guided.detach()
    yield torch.tensor([block.parameters for block in sdlearn.trace_blocks(pipe)])
    train = {"steps": 2, "batch_size": 1, "generator": seeded()}
    yield torch.tensor(sdlearn.learn_token(pipe, [picture], "<toy>", "cat", **train))
    yield torch.tensor(
        sdlearn.finetune_subject(pipe, [picture], PROMPT, OTHER, class_images=1, **train)
    )
    yield sdlearn.text_to_image(pipe, "a <toy>", **call, generator=seeded()).pixels


def test_every_function_works_with_low_memory(pair):
    for number, (expected, found) in enumerate(zip(*map(everything, pair), strict=True)):
        assert expected.isfinite().all(), number
        assert torch.equal(found, expected), number


def test_weights_that_are_away_would_be_noticed(pair):
    """Otherwise the tests above would show nothing."""
    _, pipe = pair
    assert pipe.unet.conv_in(torch.zeros(1, 4, 8, 8)).isnan().all()


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_low_memory_without_a_gpu_is_refused(device):
    with pytest.raises(ValueError, match=f"got the device '{device}', .* leave it out"):
        sdlearn.load("postcards", device=device, low_memory=True)


def test_low_memory_is_for_a_model_that_is_loaded(random_pipe, gpu):
    with pytest.raises(ValueError, match="got a pipeline; load it anew"):
        sdlearn.load(random_pipe, low_memory=True)
    assert gpu == []


# Pipelines that readers bring


def wrapped(pipe):
    pipe.unet = torch.compile(pipe.unet, backend="eager")


def compiled_in_place(pipe):
    pipe.unet.compile(backend="eager")


def compiled_blocks(pipe):
    pipe.unet.compile_repeated_blocks(backend="eager")


@pytest.fixture(scope="module")
def small():
    """Two blocks each way: dynamo takes its time for each."""
    pipe = random_pipeline()
    pipe.unet = tiny_unet()
    return pipe


def brought(small):
    """Return a copy with a U-Net and a tokenizer of its own."""
    pipe = copy.copy(small)
    pipe.unet, pipe.tokenizer = copy.deepcopy(small.unet), copy.deepcopy(small.tokenizer)
    pipe.text_encoder = copy.deepcopy(small.text_encoder)
    return pipe


def check_brought(pipe, prompt=PROMPT):
    """Compare ours with diffusers' under the same condition."""
    call, picture = {**FEW, "generator": None}, some_picture((64, 64))
    for theirs, ours, more in (
        (pipe, sdlearn.text_to_image, ()),
        (diffusers_own(StableDiffusionImg2ImgPipeline, pipe), sdlearn.image_to_image, (picture,)),
    ):
        call["generator"] = seeded()
        expected = theirs(prompt, *more, **call, output_type="pt").images
        call["generator"] = seeded()
        assert torch.equal(ours(pipe, prompt, *more, **call).pixels, expected)


@pytest.mark.parametrize("how", [wrapped, compiled_in_place, compiled_blocks])
def test_compiled(small, how):
    pipe = brought(small)
    plain = sdlearn.edit_prompt(pipe, PROMPT, OTHER, **FEW, generator=seeded())[1].pixels
    blocks = sdlearn.trace_blocks(pipe)
    how(pipe)
    check_brought(pipe)
    edited = sdlearn.edit_prompt(pipe, PROMPT, OTHER, **FEW, generator=seeded())[1].pixels
    torch.testing.assert_close(edited, plain)
    assert sdlearn.trace_blocks(pipe) == blocks
    for look in (
        lambda: sdlearn.capture_attention(pipe).__enter__(),
        lambda: sdlearn.inpaint(pipe, PROMPT, some_picture((64, 64)), "cat", mask_prompt=PROMPT),
        lambda: sdlearn.edit_prompt(pipe, PROMPT, OTHER, blend="cat", **FEW),
    ):
        with pytest.raises(ValueError, match="is compiled, and hooks see nothing.*load the model"):
            look()


def test_sliced(small):
    pipe = brought(small)
    pipe.enable_attention_slicing(1)
    usual = dict(pipe.unet.attn_processors)
    check_brought(pipe)
    with sdlearn.capture_attention(pipe) as maps:
        sdlearn.text_to_image(pipe, PROMPT, **FEW)
    check_maps(maps, 2, 4)
    sdlearn.edit_prompt(pipe, PROMPT, OTHER, **FEW)
    assert pipe.unet.attn_processors == usual


def test_autocast(small):
    pipe = brought(small)
    with torch.autocast("cpu", torch.bfloat16):
        check_brought(pipe)
        with sdlearn.capture_attention(pipe) as maps:
            trace = sdlearn.text_to_image(pipe, PROMPT, **FEW)
        assert trace.steps[0].noise_pred.dtype == torch.bfloat16
        sdlearn.edit_prompt(pipe, PROMPT, OTHER, **FEW, blend="cat")
        sdlearn.invert(pipe, some_picture((64, 64)), PROMPT, 2)
        sdlearn.inpaint(pipe, PROMPT, some_picture((64, 64)), "cat", mask_prompt=PROMPT, **FEW)
    for layer in maps.layers:
        sums = maps.probabilities(layer).sum(1)
        torch.testing.assert_close(sums, torch.ones_like(sums), rtol=0.02, atol=0.02)


def test_with_a_learnt_word_and_a_lora(small, tmp_path):
    pipe, picture = brought(small), some_picture((64, 64))
    train = {"steps": 2, "batch_size": 1, "generator": seeded()}
    sdlearn.learn_token(pipe, [picture], "<toy>", "cat", vectors=2, **train)
    sdlearn.finetune_subject(pipe, [picture], "a <toy>", rank=2, **train)
    check_brought(pipe, "a <toy> here")
    with sdlearn.capture_attention(pipe) as maps:
        sdlearn.text_to_image(pipe, "a <toy> here", **FEW)
    assert torch.equal(maps.heat_map("<toy>"), maps.heat_map([2, 3]))


def test_on_meta_nothing_is_drawn(small):
    pipe = brought(small)
    blocks = sdlearn.trace_blocks(pipe)
    pipe.vae = copy.deepcopy(small.vae)
    pipe.to("meta")
    generator, picture = seeded(), some_picture((64, 64))
    before = generator.get_state()
    for draw in (
        lambda: sdlearn.text_to_image(pipe, PROMPT, generator=generator),
        lambda: sdlearn.image_to_image(pipe, PROMPT, picture, generator=generator),
        lambda: sdlearn.inpaint(pipe, PROMPT, picture, "cat", generator=generator),
        lambda: sdlearn.edit_prompt(pipe, PROMPT, OTHER, generator=generator),
        lambda: sdlearn.invert(pipe, picture, PROMPT),
        lambda: sdlearn.learn_token(pipe, [picture], "<toy>", "cat", generator=generator),
        lambda: sdlearn.capture_attention(pipe).__enter__(),
        lambda: sdlearn.load(pipe),
    ):
        with pytest.raises(ValueError, match="on the device meta, .* load the model again"):
            draw()
    assert torch.equal(generator.get_state(), before)
    assert sdlearn.trace_blocks(pipe) == blocks
