"""Stable Diffusion 1.5's own shapes, built from its published configuration, weights random."""

import gc

import diffusers
import pytest
import torch
from conftest import POSTCARDS, SD15_SCHEDULE, seeded
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

import sdlearn
from sdlearn.show.unet_tour import sd15_unet


def sd15_parts():
    """Return U-Net, VAE and text encoder as their config.json files describe them."""
    vae = diffusers.AutoencoderKL(
        sample_size=512,
        block_out_channels=(128, 256, 512, 512),
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        layers_per_block=2,
        latent_channels=4,
    )
    text = CLIPTextConfig(
        vocab_size=49_408,
        hidden_size=768,
        intermediate_size=3072,
        num_hidden_layers=12,
        num_attention_heads=12,
        bos_token_id=49_406,
        eos_token_id=49_407,
    )
    return sd15_unet(), vae, CLIPTextModel(text)


def test_sizes_are_those_of_stable_diffusion_15():
    with torch.device("meta"):
        parts = sd15_parts()
    sizes = [sum(weight.numel() for weight in part.parameters()) for part in parts]
    assert sizes == [859_520_964, 83_653_863, 123_060_480]
    names = [name for name, _ in parts[0].named_modules()]
    assert sum(name.endswith("attn2") for name in names) == 16


@pytest.fixture(scope="module")
def sd15():
    torch.manual_seed(0)
    with torch.device("cuda"):
        unet, vae, text_encoder = sd15_parts()
    pipe = diffusers.StableDiffusionPipeline(
        vae=vae,
        text_encoder=text_encoder,
        tokenizer=CLIPTokenizer.from_pretrained(POSTCARDS / "tokenizer"),
        unet=unet,
        scheduler=diffusers.DDIMScheduler(**SD15_SCHEDULE),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    ).to("cuda", torch.float16)
    pipe.set_progress_bar_config(disable=True)
    yield pipe
    del pipe
    gc.collect()
    torch.cuda.empty_cache()


@pytest.mark.gpu
@pytest.mark.parametrize("name", ["DDIMScheduler", "EulerDiscreteScheduler", "PNDMScheduler"])
def test_equals_pipeline_in_half_precision(sd15, name):
    sd15.scheduler = getattr(diffusers, name).from_config(sd15.scheduler.config)
    call = {"num_inference_steps": 4, "height": 512, "width": 384}
    expected = sd15("a red cat", **call, generator=seeded(), output_type="latent").images
    trace = sdlearn.text_to_image(sd15, "a red cat", **call, generator=seeded())
    assert torch.equal(trace.latents, expected)
    with sdlearn.capture_attention(sd15) as maps:
        captured = sdlearn.text_to_image(sd15, "a red cat", **call, generator=seeded())
    assert torch.equal(captured.latents, expected)
    assert maps.heat_map("cat").shape == (512, 384)


@pytest.mark.gpu
def test_a_capture_needs_little_memory(sd15):
    call = {"num_inference_steps": 10, "generator": seeded()}
    torch.cuda.reset_peak_memory_stats()
    sdlearn.text_to_image(sd15, "a red cat", **call)
    plain = torch.cuda.max_memory_allocated()
    with sdlearn.capture_attention(sd15):
        sdlearn.text_to_image(sd15, "a red cat", **call)
    assert torch.cuda.max_memory_allocated() < plain + 200e6
