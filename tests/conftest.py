"""The two models every test of the core runs on: the shipped one, and SD 1.x's layout in small."""

from __future__ import annotations

import copy
import os
import shutil
from pathlib import Path

import pytest
import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    StableDiffusionPipeline,
    UNet2DConditionModel,
)
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

import sdlearn

# A GPU must not change what is compared; subprocesses and chapters are told so, too.
os.environ["SDLEARN_DEVICE"] = "cpu"
os.environ.setdefault("SDLEARN_MODEL", "postcards")

POSTCARDS = Path(sdlearn.__file__).parent / "models" / "postcards"
SD15_SCHEDULE = {
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "clip_sample": False,
    "set_alpha_to_one": False,
    "steps_offset": 1,
}


def random_pipeline(layers_per_block: int = 2) -> StableDiffusionPipeline:
    """Return SD 1.x's block layout (16 transformers) at reduced width, with random weights."""
    torch.manual_seed(0)
    unet = UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(16, 16, 32, 32),
        norm_num_groups=8,
        cross_attention_dim=24,
        attention_head_dim=8,  # diffusers' name for the number of heads in SD 1.x
        layers_per_block=layers_per_block,
    )
    vae = AutoencoderKL(
        block_out_channels=(8, 8, 8, 8),
        norm_num_groups=4,
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        layers_per_block=1,
        latent_channels=4,
    )
    text = CLIPTextConfig(
        vocab_size=49_408,
        hidden_size=24,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        bos_token_id=49_406,
        eos_token_id=49_407,
    )
    pipe = StableDiffusionPipeline(
        vae=vae,
        text_encoder=CLIPTextModel(text),
        tokenizer=CLIPTokenizer.from_pretrained(POSTCARDS / "tokenizer"),
        unet=unet,
        scheduler=DDIMScheduler(**SD15_SCHEDULE),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    for part in (unet, vae, pipe.text_encoder):
        part.eval().requires_grad_(False)
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture(scope="session")
def random_pipe() -> StableDiffusionPipeline:
    return random_pipeline()


@pytest.fixture(scope="session")
def postcards() -> StableDiffusionPipeline:
    return sdlearn.load("postcards", device="cpu", dtype=torch.float32)


@pytest.fixture(params=["random_pipe", "postcards"])
def pipe(request: pytest.FixtureRequest) -> StableDiffusionPipeline:
    """Each model in turn. Tests may set the scheduler: it is put back."""
    pipe = request.getfixturevalue(request.param)
    scheduler = copy.deepcopy(pipe.scheduler)
    yield pipe
    pipe.scheduler = scheduler


@pytest.fixture
def sizes(pipe: StableDiffusionPipeline) -> tuple[int, int]:
    """The side a model was trained on, and half of it: together a non-square picture."""
    side = pipe.unet.config.sample_size * pipe.vae_scale_factor
    return side, side // 2


def seeded(seed: int = 0) -> torch.Generator:
    """Return a CPU generator."""
    return torch.Generator().manual_seed(seed)


def tiny_unet() -> UNet2DConditionModel:
    """Return a random U-Net of two blocks each way: what takes its time for each, is quick."""
    torch.manual_seed(0)
    return UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(16, 16),
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        layers_per_block=1,
        norm_num_groups=8,
        cross_attention_dim=24,
        attention_head_dim=4,
    ).eval()


@pytest.fixture
def tiny(random_pipe):
    """A random model with a tiny U-Net: what is trained here, is trained in a second."""
    pipe = copy.copy(random_pipe)
    pipe.unet = tiny_unet().requires_grad_(False)
    return pipe


NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")
CHROMIUM = next(filter(None, map(shutil.which, NAMES)), None)
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking"]
FLAGS += ["--disable-component-update", "--disable-sync"]


@pytest.fixture(scope="module")  # two of Playwright's at once do not get on
def browser():
    """The Chromium that is installed."""
    sync_api = pytest.importorskip("playwright.sync_api")
    if CHROMIUM is None:
        pytest.skip("needs Chromium, and found none")
    with sync_api.sync_playwright() as play:
        started = play.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield started
        started.close()
