"""A word or subject is learnt, nothing else moves, and diffusers alone draws the same from it."""

from __future__ import annotations

import copy
import os
import subprocess
import sys

import pytest
import torch
from conftest import random_pipeline, seeded
from diffusers import StableDiffusionPipeline
from PIL import Image
from test_exactness import state

import sdlearn
from sdlearn.finetuning import finetune_subject, learn_token, pictures_in, save_lora, save_token
from sdlearn.finetuning.__main__ import main

PROMPT = "a <toy> in the snow"
RUN = {"steps": 3, "batch_size": 2, "learning_rate": 1e-2}
DRAW = {"num_inference_steps": 2, "output_type": "pt"}


@pytest.fixture(scope="session")
def folder(tmp_path_factory):
    """A saved model: weights from a file are laid out in memory otherwise than those just made."""
    folder = tmp_path_factory.mktemp("model")
    random_pipeline(layers_per_block=1).save_pretrained(folder)
    return folder


@pytest.fixture
def loaded(folder):
    """Return what loads the model as diffusers does, as often as it is called."""

    def load():
        pipe = StableDiffusionPipeline.from_pretrained(folder, safety_checker=None)
        pipe.set_progress_bar_config(disable=True)
        return pipe

    return load


@pytest.fixture
def images():
    return list(torch.rand(3, 3, 64, 64, generator=seeded(1)).split(1))


def weights(part):
    return {name: value.clone() for name, value in part.state_dict().items()}


def same(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[k], other[k]) for k in one)


@pytest.mark.parametrize("vectors", [1, 3])
def test_a_word_is_learnt_and_nothing_else_moves(loaded, images, tmp_path, vectors):
    own_pipe, fresh = loaded(), loaded()
    before = own_pipe.text_encoder.get_input_embeddings().weight.clone()
    unet, vae = weights(own_pipe.unet), weights(own_pipe.vae)
    losses = learn_token(
        own_pipe, images, "<toy>", "cat", prompts=PROMPT, vectors=vectors, generator=seeded(), **RUN
    )
    assert len(losses) == 3
    table = own_pipe.text_encoder.get_input_embeddings().weight
    assert len(table) == len(before) + vectors
    assert torch.equal(table[: len(before)], before)
    assert not table.requires_grad
    cat = before[sdlearn.tokenize(own_pipe, "cat").ids[1]]
    assert ((table[len(before) :] - cat).abs().amax(1) > 1e-3).all()  # each row has moved
    assert same(weights(own_pipe.unet), unet)
    assert same(weights(own_pipe.vae), vae)
    assert len(sdlearn.tokenize(own_pipe, PROMPT).words["<toy>"]) == vectors

    save_token(own_pipe, "<toy>", tmp_path / "toy.safetensors")
    fresh.load_textual_inversion(tmp_path / "toy.safetensors")
    theirs = fresh(PROMPT, generator=seeded(), **DRAW).images
    assert torch.equal(own_pipe(PROMPT, generator=seeded(), **DRAW).images, theirs)


def test_a_word_lowers_the_loss_of_its_pictures(postcards):
    """On the real model: from one colour to another, which the word did not mean before."""
    pipe = copy.deepcopy(postcards)
    picture = sdlearn.text_to_image(
        pipe, "a red car in the city by day", num_inference_steps=6, guidance_scale=2,
        generator=seeded(3),
    ).pixels  # fmt: skip
    losses = learn_token(
        pipe, [picture], "<paint>", "blue", prompts="a <paint> car in the city by day",
        steps=24, batch_size=8, learning_rate=5e-2, generator=seeded(),
    )  # fmt: skip
    assert sum(losses[16:]) < 0.9 * sum(losses[:8])
    ratio = []
    for word in ("blue", "<paint>"):
        drawn = sdlearn.text_to_image(
            pipe, f"a {word} car in the city by day", num_inference_steps=6, guidance_scale=2,
            generator=seeded(3),
        ).pixels  # fmt: skip
        ratio.append(float((drawn - picture).square().mean()))
    assert ratio[1] < ratio[0] / 2


@pytest.mark.parametrize("method", ["lora", "full"])
def test_a_subject_is_learnt(loaded, images, tmp_path, method):
    own_pipe, fresh = loaded(), loaded()
    unet, text = weights(own_pipe.unet), weights(own_pipe.text_encoder)
    finetune_subject(own_pipe, images, "a toy", method=method, rank=2, generator=seeded(), **RUN)
    assert same(weights(own_pipe.text_encoder), text)
    assert not any(weight.requires_grad for weight in own_pipe.unet.parameters())
    drawn = own_pipe("a toy", generator=seeded(), **DRAW).images
    assert not torch.equal(fresh("a toy", generator=seeded(), **DRAW).images, drawn)
    if method == "lora":
        save_lora(own_pipe, tmp_path)
        fresh.load_lora_weights(tmp_path)
        assert torch.equal(fresh("a toy", generator=seeded(), **DRAW).images, drawn)
        own_pipe.unload_lora_weights()
        assert same(weights(own_pipe.unet), unet)
    else:
        with pytest.raises(ValueError, match="has learnt no LoRA"):
            save_lora(own_pipe, tmp_path)


def test_what_a_class_looks_like_is_learnt_along(images):

    def run(**more):
        pipe = random_pipeline(layers_per_block=1)
        losses = finetune_subject(
            pipe, images, PROMPT, placeholder="<toy>", initializer="cat", rank=2,
            generator=seeded(), **more, **RUN,
        )  # fmt: skip
        assert "<toy>" in pipe.tokenizer.get_added_vocab()
        return losses

    alone, both = run(), run(class_prompt=["a cat", "a dog"], class_images=1, prior_weight=100.0)
    assert all(20 * one < two for one, two in zip(alone, both))


@pytest.mark.parametrize("learn", [learn_token, finetune_subject])
def test_an_interrupted_run_goes_on_as_if_it_had_not_been(images, tmp_path, learn):
    def run(stop_at=None, folder=None, pipe=None):
        pipe = pipe or random_pipeline(layers_per_block=1)

        def stop(step, loss):
            if step == stop_at:
                raise KeyboardInterrupt

        names = {"prompts": PROMPT} if learn is learn_token else {"rank": 2}
        args = ("<toy>", "cat") if learn is learn_token else ("a toy",)
        call = {**RUN, "steps": 6, **names, "folder": folder, "generator": seeded()}
        learn(pipe, images, *args, after_step=stop, **call)
        return pipe

    pipe = random_pipeline(layers_per_block=1)
    with pytest.raises(KeyboardInterrupt):
        run(stop_at=4, folder=tmp_path, pipe=pipe)
    halfway = pipe(PROMPT, generator=seeded(), **DRAW).images  # it still draws
    whole, again = run(), run(folder=tmp_path)  # the second goes on from the checkpoint
    expected = whole(PROMPT, generator=seeded(), **DRAW).images
    assert torch.equal(again(PROMPT, generator=seeded(), **DRAW).images, expected)
    assert not torch.equal(halfway, expected)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        ({"images": []}, "images must be a list of one picture or more"),
        ({"images": "cat.png"}, "images must be a list"),
        ({"images": [torch.rand(1, 3, 64, 64), torch.rand(1, 3, 64, 32)]}, "several sizes"),
        ({"placeholder": "cat"}, "'cat' is a token already"),
        ({"placeholder": "my toy"}, "one word without spaces"),
        ({"initializer": "stegosaurus"}, "'stegosaurus' is 3 tokens"),
        ({"prompts": "a cat"}, "the prompt 'a cat' lacks the word '<toy>'"),
        ({"prompts": ["a <toy>"] * 2}, "got 2 prompts for 3 images"),
        ({"steps": 0}, "steps must be between 1"),
        ({"learning_rate": -1}, "learning_rate must be between 0"),
        ({"vectors": 0}, "vectors must be between 1"),
    ],
)
def test_bad_input_is_named_and_leaves_the_pipeline_as_it_was(random_pipe, images, call, message):
    before, table = state(random_pipe), len(random_pipe.tokenizer)
    call = {"images": images, "placeholder": "<toy>", "initializer": "cat", **RUN, **call}
    with pytest.raises(ValueError, match=message):
        learn_token(random_pipe, **call)
    assert state(random_pipe) == before
    assert len(random_pipe.tokenizer) == table
    assert len(random_pipe.text_encoder.get_input_embeddings().weight) == 49_408


@pytest.mark.parametrize(
    ("call", "message"),
    [
        ({"method": "dora"}, 'method must be "lora" or "full", got \'dora\''),
        ({"placeholder": "<toy>"}, "belong together"),
        ({"rank": 0}, "rank must be between 1"),
        ({"class_prompt": []}, "class_prompt is an empty list"),
        ({"steps": 0}, "steps must be between 1"),
    ],
)
def test_bad_input_of_a_subject_is_named(random_pipe, images, call, message):
    before = state(random_pipe)
    with pytest.raises(ValueError, match=message):
        finetune_subject(random_pipe, images, PROMPT, **{**RUN, **call})
    assert state(random_pipe) == before
    assert not getattr(random_pipe.unet, "peft_config", {})


@pytest.fixture
def picture_folder(tmp_path):
    folder = tmp_path / "pictures"
    folder.mkdir()
    for name, size in (("a.png", (70, 90)), ("b.jpg", (200, 64))):
        Image.new("RGB", size, "teal").save(folder / name)
    (folder / "c.png").write_bytes(b"no picture")
    (folder / "notes.txt").write_text("not a picture either", encoding="utf-8")
    return folder


def test_a_folder_of_pictures(random_pipe, picture_folder, capsys):
    line = '{"file_name": "b.jpg", "text": "a <toy> at night"}'
    (picture_folder / "metadata.jsonl").write_text(line + "\n", encoding="utf-8")
    images, texts = pictures_in(random_pipe, picture_folder)
    assert [image.size for image in images] == [(64, 64)] * 2
    assert texts == [None, "a <toy> at night"]
    assert "left out: " in (said := capsys.readouterr().out)
    assert "c.png" in said
    (picture_folder / "metadata.jsonl").write_text(line + "\nno json", encoding="utf-8")
    with pytest.raises(ValueError, match="line 2 of"):
        pictures_in(random_pipe, picture_folder)
    with pytest.raises(ValueError, match="no picture in"):
        pictures_in(random_pipe, picture_folder.parent)


def test_the_command_teaches_a_word_and_a_subject(picture_folder, folder, loaded, tmp_path, capsys):
    run = ["--model", str(folder), "--out", str(tmp_path / "out"), "--steps", "2"]
    pictures = str(picture_folder)
    assert main(["word", pictures, "<toy>", "cat", *run, "--vectors", "2"]) == 0
    assert main(["subject", pictures, *run]) == 2
    assert 'Pass --prompt "a photo of sks dog"' in capsys.readouterr().err
    more = ["--prompt", "a photo of sks dog", "--rank", "2", "--class-prompt", "a dog"]
    assert main(["subject", pictures, *run, *more, "--class-images", "1"]) == 0
    written = ["pytorch_lora_weights.safetensors", "toy.safetensors"]
    assert sorted(file.name for file in (tmp_path / "out").iterdir()) == written
    pipe = loaded()
    plain = pipe(PROMPT, generator=seeded(), **DRAW).images
    pipe.load_lora_weights(tmp_path / "out")
    pipe.load_textual_inversion(tmp_path / "out" / "toy.safetensors")
    assert not torch.equal(pipe(PROMPT, generator=seeded(), **DRAW).images, plain)


def test_two_processes_learn_one_word(picture_folder, folder, tmp_path):
    """Each has other batches, and both end with the same word."""
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2"]
    command += ["-m", "sdlearn.finetuning", "word", str(picture_folder), "<toy>", "cat"]
    command += ["--model", str(folder), "--out", str(tmp_path / "out"), "--steps", "2"]
    more = {"ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=os.environ | more, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("learnt: ") == 1
    assert [file.name for file in (tmp_path / "out").iterdir()] == ["toy.safetensors"]
