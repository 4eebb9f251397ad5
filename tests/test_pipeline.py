"""``load``: which model, where, in what precision, and what it says if there is none."""

from __future__ import annotations

import shutil
import subprocess
import sys

import pytest
import torch
from conftest import POSTCARDS, seeded
from diffusers import (
    StableDiffusionImg2ImgPipeline,
    StableDiffusionPipeline,
)
from safetensors.torch import load_file, save_file

import sdlearn


@pytest.fixture(scope="module")
def folder(random_pipe, tmp_path_factory):
    path = tmp_path_factory.mktemp("folder")
    random_pipe.save_pretrained(path)
    return path


@pytest.fixture
def offline(monkeypatch, tmp_path):
    """No network and an empty cache."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.delenv("SDLEARN_MODEL", raising=False)
    monkeypatch.delenv("SDLEARN_DEVICE")


def same_weights(one, other):
    return all(
        torch.equal(a, b)
        for part in ("unet", "vae", "text_encoder")
        for a, b in zip(
            getattr(one, part).parameters(), getattr(other, part).parameters(), strict=True
        )
    )


def test_import_leaves_torch_alone():
    code = "import sys, sdlearn; sys.exit('torch' in sys.modules or 'diffusers' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_every_public_name_is_there():
    assert {*sdlearn.__all__} <= {*dir(sdlearn)}
    for name in sdlearn.__all__:
        assert getattr(sdlearn, name).__name__.removeprefix("sdlearn.") == name
    code = "import sdlearn; sdlearn.images.psnr, sdlearn.show.picture, sdlearn.training.__doc__"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
    with pytest.raises(AttributeError, match="sdlearn attribute laod"):
        sdlearn.laod  # noqa: B018


def test_postcards_is_an_ordinary_folder(postcards):
    plain = StableDiffusionPipeline.from_pretrained(POSTCARDS)
    assert type(postcards) is StableDiffusionPipeline
    assert same_weights(plain, postcards)
    assert type(plain.scheduler) is type(postcards.scheduler)
    assert not any(weight.requires_grad for weight in postcards.image_encoder.parameters())


def test_folder(folder, random_pipe, capfd):
    pipe = sdlearn.load(folder, device="cpu")
    out = capfd.readouterr().out
    assert out.count("\n") == 1
    assert str(folder) in out
    assert "on cpu in float32" in out
    assert 'load("sd15")' in out
    assert same_weights(pipe, random_pipe)
    for part in (pipe.unet, pipe.vae, pipe.text_encoder):
        assert not part.training
        assert not any(p.requires_grad for p in part.parameters())


def test_dtype(folder):
    pipe = sdlearn.load(folder, device="cpu", dtype=torch.bfloat16)
    assert {pipe.unet.dtype, pipe.vae.dtype, pipe.text_encoder.dtype} == {torch.bfloat16}
    trace = sdlearn.text_to_image(pipe, "a cat", num_inference_steps=2, generator=seeded())
    assert trace.latents.dtype == torch.bfloat16


def test_a_pipeline_is_returned_as_it_is(random_pipe, folder):
    assert sdlearn.load(random_pipe) is random_pipe
    fresh = StableDiffusionPipeline.from_pretrained(folder)
    assert sdlearn.load(fresh, dtype=torch.float64) is fresh
    assert fresh.unet.dtype == torch.float64
    with pytest.raises(TypeError, match="got StableDiffusionImg2ImgPipeline.*from_pipe"):
        sdlearn.load(StableDiffusionImg2ImgPipeline.from_pipe(random_pipe))
    with pytest.raises(TypeError, match="got int"):
        sdlearn.load(15)


def test_the_device_can_be_named_in_the_environment(folder, monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setenv("SDLEARN_DEVICE", "cpu")
    sdlearn.load(folder)
    assert "on cpu in float32" in capsys.readouterr().out
    for name in ("cuda:99", "gpu"):
        monkeypatch.setenv("SDLEARN_DEVICE", name)
        with pytest.raises(RuntimeError, match=f"no device '{name}' here .*use .cpu."):
            sdlearn.load(folder)


def test_a_folder_of_pickles_is_refused(folder, tmp_path):
    copied = shutil.copytree(folder, tmp_path / "pickled")
    weights = copied / "unet" / "diffusion_pytorch_model.safetensors"
    torch.save(load_file(weights), weights.with_suffix(".bin"))
    weights.unlink()
    with pytest.raises(RuntimeError, match=r"(?s)cannot load .*pickled.*\.safetensors files"):
        sdlearn.load(copied, device="cpu")


def test_environment_variable(folder, random_pipe, monkeypatch):
    monkeypatch.setenv("SDLEARN_MODEL", str(folder))
    assert same_weights(sdlearn.load(device="cpu"), random_pipe)
    monkeypatch.setenv("SDLEARN_MODEL", "nothing of the kind")
    with pytest.raises(ValueError, match=r"no model 'nothing of the kind'.*'postcards', 'sd15'"):
        sdlearn.load()


def test_without_a_gpu_the_default_is_postcards(offline, monkeypatch, capsys, postcards):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    assert same_weights(sdlearn.load(), postcards)
    assert "postcards on cpu in float32" in capsys.readouterr().out


def test_a_gpu_without_the_weights_falls_back_and_says_so(offline, monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(StableDiffusionPipeline, "to", lambda self, device: self)
    pipe = sdlearn.load()
    assert pipe.unet.dtype == torch.float16
    out = capsys.readouterr().out
    assert "postcards on cuda in float16" in out
    assert "cannot load 'sd15'" in out


def test_sd15_by_name_out_of_reach(offline):
    with pytest.raises(
        RuntimeError,
        match=r"cannot load 'sd15': it is not in the cache, .+ reached. To do: go online once",
    ):
        sdlearn.load("sd15", device="cpu")


@pytest.mark.parametrize(("dtype", "variant"), [(torch.float16, "fp16"), (torch.float32, None)])
@pytest.mark.parametrize("safe", [True, False])
def test_sd15_is_the_pinned_one(random_pipe, monkeypatch, dtype, variant, safe):
    asked = {}

    def from_pretrained(source, **options):
        asked.update(options, source=source)
        return random_pipe

    monkeypatch.setattr(StableDiffusionPipeline, "from_pretrained", from_pretrained)
    sdlearn.load("sd15", device="cpu", dtype=dtype, safety_checker=safe)
    assert asked["source"] == "stable-diffusion-v1-5/stable-diffusion-v1-5"
    assert asked["revision"] == "451f4fe16113bff5a5d2269ed5ad43b0592e9a14"
    assert asked["use_safetensors"] is True
    assert asked["torch_dtype"] == dtype
    assert asked.get("variant") == variant
    assert ("safety_checker" in asked) is not safe


def test_single_file(random_pipe, monkeypatch, tmp_path, offline):
    path = tmp_path / "model.safetensors"
    save_file({"x": torch.zeros(1)}, path)
    with pytest.raises(RuntimeError, match=r"(?s)cannot load .*model.safetensors.*go online once"):
        sdlearn.load(path, device="cpu")
    read = {}

    def from_single_file(source, **options):
        read.update(options, source=source)
        return random_pipe

    monkeypatch.setattr(StableDiffusionPipeline, "from_single_file", from_single_file)
    assert sdlearn.load(path, device="cpu") is random_pipe
    assert read == {"source": str(path), "torch_dtype": torch.float32}


def test_folder_that_holds_no_model(tmp_path):
    with pytest.raises(RuntimeError, match=r"(?s)cannot load .*model_index.json"):
        sdlearn.load(tmp_path, device="cpu")


def test_unsafe_pictures_are_blacked_out_as_in_the_pipeline(folder):
    """With a safety checker that refuses the second picture."""
    pipe = StableDiffusionPipeline.from_pretrained(folder)
    pipe.set_progress_bar_config(disable=True)

    def run_safety_checker(image, device, dtype):
        image[1] = 0
        return image, [False, True]

    pipe.run_safety_checker = run_safety_checker
    call = {"num_inference_steps": 1, "generator": seeded()}
    expected = pipe(["a cat", "a dog"], **call, output_type="pt").images
    call["generator"] = seeded()
    trace = sdlearn.text_to_image(pipe, ["a cat", "a dog"], **call)
    assert torch.equal(trace.pixels, expected)
    assert trace.pixels[1].max() == 0
    assert trace.pixels[0].max() > 0
