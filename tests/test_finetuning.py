"""A word or subject is learnt, nothing else moves, and diffusers alone draws the same from it."""

from __future__ import annotations

import copy
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from conftest import random_pipeline, seeded
from diffusers import DDPMScheduler, StableDiffusionPipeline
from PIL import Image
from test_exactness import state
from torch.optim.optimizer import register_optimizer_step_post_hook

import sdlearn
from sdlearn.finetuning import (
    dreambooth,
    finetune_subject,
    fit,
    learn_token,
    pictures_in,
    save_lora,
    save_token,
)
from sdlearn.finetuning.__main__ import main
from sdlearn.finetuning.fit import noise_loss
from sdlearn.training import checkpoint

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


def learning_state(pipe):
    """Return what a run must leave as it was, beside the weights that learn."""
    parts = (pipe.unet, pipe.text_encoder, pipe.vae)
    frozen = [(w.requires_grad, w.grad is None) for p in parts for w in p.parameters()]
    return set(frozen), torch.get_rng_state().tolist(), state(pipe)[0], state(pipe)[2:]


def same(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[k], other[k]) for k in one)


@pytest.mark.parametrize("vectors", [1, 3])
def test_a_word_is_learnt_and_nothing_else_moves(loaded, images, tmp_path, vectors):
    own_pipe, fresh = loaded(), loaded()
    before = own_pipe.text_encoder.get_input_embeddings().weight.clone()
    own_pipe.unet.requires_grad_(True)  # as diffusers leaves it, and the rest
    own_pipe.text_encoder.requires_grad_(False)
    unet, text, vae = map(weights, (own_pipe.unet, own_pipe.text_encoder, own_pipe.vae))
    unchanged = learning_state(own_pipe)
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
    assert learning_state(own_pipe) == unchanged
    assert same(weights(own_pipe.unet), unet)
    assert same(weights(own_pipe.vae), vae)
    (name,) = (name for name, value in text.items() if len(value) == len(before))
    after = weights(own_pipe.text_encoder)
    assert same({**after, name: before}, {**text, name: before})
    assert own_pipe.text_encoder.config.vocab_size == len(table)
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
    for part in (own_pipe.unet, own_pipe.vae, own_pipe.text_encoder):
        part.requires_grad_(False)
    unchanged = learning_state(own_pipe)
    unet, text = weights(own_pipe.unet), weights(own_pipe.text_encoder)
    finetune_subject(own_pipe, images, "a toy", method=method, rank=2, generator=seeded(), **RUN)
    assert same(weights(own_pipe.text_encoder), text)
    assert learning_state(own_pipe)[:2] == unchanged[:2]
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


def test_what_a_class_looks_like_is_learnt_along(images, monkeypatch):
    """Of each step's two losses one is of the subject, the other of drawn pictures of the class."""
    seen, own = [], dreambooth.noise_loss

    def watched(pipe, latents, ids, batch_size, generator):
        seen.append((len(latents), ids, own(pipe, latents, ids, batch_size, generator)))
        return seen[-1][-1]

    monkeypatch.setattr(dreambooth, "noise_loss", watched)
    pipe = random_pipeline(layers_per_block=1)
    losses = finetune_subject(
        pipe, images, PROMPT, class_prompt=["a cat", "a dog"], class_images=2, prior_weight=3.0,
        placeholder="<toy>", initializer="cat", rank=2, generator=seeded(), **RUN,
    )  # fmt: skip
    assert "<toy>" in pipe.tokenizer.get_added_vocab()
    assert [count for count, *_ in seen] == [3, 4] * RUN["steps"]  # pictures; of the class, drawn
    texts = [sdlearn.tokenize(pipe, text).ids for text in (PROMPT, "a cat", "a dog")]
    assert torch.equal(seen[0][1], torch.stack(texts[:1] * 3))
    assert torch.equal(seen[1][1], torch.stack(texts[1:] * 2))
    sums = [float(a[-1] + 3 * b[-1]) for a, b in zip(seen[::2], seen[1::2])]
    assert losses == pytest.approx(sums)


def test_the_velocity_is_asked_for_where_the_model_was_trained_so(images):
    pipe = random_pipeline(layers_per_block=1)
    latents = torch.cat([sdlearn.encode_image(pipe, image, sample=False) for image in images])
    ids = sdlearn.tokenize(pipe, "a toy").ids.expand(3, 77)
    pipe.scheduler = DDPMScheduler.from_config(
        pipe.scheduler.config, prediction_type="v_prediction"
    )
    loss = noise_loss(pipe, latents, ids, 2, seeded())
    generator = seeded()  # the same draws again
    which = torch.randint(3, (2,), generator=generator)
    t = torch.randint(1000, (2,), generator=generator)
    noise = torch.randn(2, *latents.shape[1:], generator=generator)
    noisy = pipe.scheduler.add_noise(latents[which], noise, t)
    wanted = pipe.scheduler.get_velocity(latents[which], noise, t)
    said = pipe.unet(noisy, t, pipe.text_encoder(ids[which])[0]).sample
    assert torch.equal(loss, (said - wanted).square().mean())


def test_a_lora_is_the_same_whatever_was_drawn_before(images):
    made = []
    for seed in (1, 2):
        pipe = random_pipeline(layers_per_block=1)
        torch.manual_seed(seed)
        before = torch.get_rng_state()
        finetune_subject(pipe, images, "a toy", rank=2, generator=seeded(), **RUN)
        assert torch.equal(torch.get_rng_state(), before)
        made.append(weights(pipe.unet))
    assert same(*made)


def test_a_second_lora_leaves_the_first_one_on(loaded, images, tmp_path):
    pipe = loaded()
    finetune_subject(pipe, images, "a toy", rank=2, generator=seeded(), **RUN)
    save_lora(pipe, tmp_path)
    pipe = loaded()
    pipe.load_lora_weights(tmp_path, adapter_name="first")
    finetune_subject(pipe, images, "a toy", rank=2, generator=seeded(), **RUN)
    assert pipe.get_active_adapters() == ["first", "subject"]
    with pytest.raises(ValueError, match="has a LoRA of rank 2, got rank=4"):
        finetune_subject(pipe, images, "a toy", rank=4, **RUN)


@pytest.mark.parametrize("learn", [learn_token, finetune_subject])
def test_an_interrupted_run_goes_on_as_if_it_had_not_been(images, tmp_path, learn):
    taken = []

    def run(stop_at=None, folder=None, pipe=None):
        pipe = pipe or random_pipeline(layers_per_block=1)

        def stop(step, loss):
            if step == stop_at:
                raise KeyboardInterrupt

        names = {"prompts": PROMPT} if learn is learn_token else {"rank": 2}
        args = ("<toy>", "cat") if learn is learn_token else ("a toy",)
        call = {**RUN, "steps": 6, **names, "folder": folder, "generator": seeded()}
        taken.append(len(learn(pipe, images, *args, after_step=stop, **call)))
        return pipe

    pipe = random_pipeline(layers_per_block=1)
    with pytest.raises(KeyboardInterrupt):
        run(stop_at=4, folder=tmp_path, pipe=pipe)
    halfway = pipe(PROMPT, generator=seeded(), **DRAW).images  # it still draws
    whole, again = run(), run(folder=tmp_path)  # the second goes on from the checkpoint
    expected = whole(PROMPT, generator=seeded(), **DRAW).images
    assert torch.equal(again(PROMPT, generator=seeded(), **DRAW).images, expected)
    assert not torch.equal(halfway, expected)
    assert taken == [6, 2]
    with pytest.raises(ValueError, match="checkpoint of a run with other .*prompts"):
        learn_token(
            random_pipeline(layers_per_block=1), images, "<b>", "dog", folder=tmp_path, **RUN
        )


@pytest.mark.parametrize("moment", ["after a step", "in a step", "in a removal"])
def test_an_interrupt_leaves_no_half_step_and_no_half_checkpoint(
    random_pipe, tmp_path, monkeypatch, moment
):
    """In half precision, whose loss is scaled: by half as much after each gradient too large."""
    pipe, saved, save_state = copy.copy(random_pipe), [], Accelerator.save_state
    pipe.unet = copy.deepcopy(random_pipe.unet).half()
    monkeypatch.setattr(
        Accelerator, "save_state", lambda self, to: [saved.append(to), save_state(self, to)]
    )

    def run(after_step=None):
        weight = torch.nn.Parameter(torch.ones(3))

        def loss(generator):  # too large for the first scale, and the next four
            return (30 * weight.half() * torch.rand(3, generator=generator)).float().sum()

        call = {"steps": 12, "learning_rate": 0.1, "about": {}, "after_step": after_step}
        fit.fit(pipe, {"weight": weight}, loss, folder=folder, **call)
        return weight

    def interrupt(*args, **_):
        if moment != "after a step" or args[0] == 8:
            raise KeyboardInterrupt

    folder = tmp_path / "whole"
    whole = run()
    folder = tmp_path / "interrupted"
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        if moment == "in a step":
            hook = register_optimizer_step_post_hook(interrupt)
        if moment == "in a removal":
            patch.setattr(fit, "SAVE_EVERY", 1)
            patch.setattr(checkpoint.shutil, "rmtree", interrupt)
        run(interrupt if moment == "after a step" else None)
    if moment == "in a step":
        hook.remove()
    assert torch.equal(run(), whole)
    assert not torch.equal(whole, torch.ones(3))
    assert len(saved) == len(set(saved)), "a checkpoint that counts was written again"


@pytest.mark.parametrize(
    ("call", "message"),
    [
        ({"images": []}, "images must be a list of one picture or more"),
        ({"images": "cat.png"}, "images must be a list"),
        ({"images": torch.rand(3, 3, 64, 64)}, "got Tensor; of a tensor, pass pixels.split"),
        ({"images": [torch.rand(2, 3, 64, 64)]}, "each image must be one"),
        ({"images": [torch.rand(1, 3, 64, 64), torch.rand(1, 3, 64, 32)]}, "all of one size"),
        ({"placeholder": "cat"}, "one new word in angle brackets, .* got 'cat'"),
        ({"placeholder": "<my toy>"}, "one new word in angle brackets"),
        ({"placeholder": "<|endoftext|>"}, "one new word in angle brackets"),
        ({"initializer": "stegosaurus"}, "'stegosaurus' is 3 tokens"),
        ({"prompts": "a cat"}, "the prompt 'a cat' lacks the word '<toy>'"),
        ({"prompts": ["a <toy>"] * 2}, "got 2 prompts for 3 images"),
        ({"prompts": []}, "prompt is an empty list"),
        ({"steps": 0}, "steps must be between 1"),
        ({"learning_rate": 0}, "learning_rate must be above 0"),
        ({"learning_rate": -1}, "learning_rate must be between 0"),
        ({"vectors": 0}, "vectors must be between 1"),
    ],
)
def test_bad_input_is_named_and_leaves_the_pipeline_as_it_was(random_pipe, images, call, message):
    before, table = learning_state(random_pipe), len(random_pipe.tokenizer)
    call = {"images": images, "placeholder": "<toy>", "initializer": "cat", **RUN, **call}
    with pytest.raises(ValueError, match=message):
        learn_token(random_pipe, **call)
    assert learning_state(random_pipe) == before
    assert len(random_pipe.tokenizer) == table
    assert len(random_pipe.text_encoder.get_input_embeddings().weight) == 49_408


def test_a_word_of_which_nothing_was_learnt_goes_again(loaded, images, tmp_path):
    def stop(generator):
        raise KeyboardInterrupt

    pipe = loaded()
    before = len(pipe.tokenizer)
    handle = pipe.unet.register_forward_pre_hook(lambda *_: stop(None))
    with pytest.raises(KeyboardInterrupt):
        learn_token(pipe, images, "<toy>", "cat", vectors=3, **RUN)
    handle.remove()
    assert len(pipe.tokenizer) == before
    pipe.save_pretrained(tmp_path)
    sdlearn.load(tmp_path)
    learn_token(pipe, images, "<toy>", "cat", vectors=2, **RUN)  # and may come again
    assert len(pipe.tokenizer) == before + 2


@pytest.mark.parametrize(
    ("call", "message"),
    [
        ({"method": "dora"}, 'method must be "lora" or "full", got \'dora\''),
        ({"placeholder": "<toy>"}, "belong together"),
        ({"placeholder": "<toy>", "initializer": "cat"}, "lacks the word '<toy>'"),
        ({"rank": 0}, "rank must be between 1"),
        ({"class_prompt": "a cat", "class_images": 0}, "class_images must be between 1"),
        ({"class_prompt": []}, "class_prompt is an empty list"),
        ({"steps": 0}, "steps must be between 1"),
    ],
)
def test_bad_input_of_a_subject_is_named(random_pipe, images, call, message):
    before = state(random_pipe)
    with pytest.raises(ValueError, match=message):
        finetune_subject(random_pipe, images, "a toy", **{**RUN, **call})
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
    gone = '{"file_name": "d.png", "text": "a <toy>"}'
    (picture_folder / "metadata.jsonl").write_text(f"{line}\n\n{gone}\n", encoding="utf-8")
    images, texts = pictures_in(random_pipe, picture_folder)
    assert [image.size for image in images] == [(64, 64)] * 2
    assert texts == [None, "a <toy> at night"]
    assert "left out: " in (said := capsys.readouterr().out)
    assert "c.png" in said
    assert "'d.png', of which there is no picture" in said
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


@pytest.mark.skipif(
    sys.platform != "linux", reason="forks a process that has imported PyTorch, which is safe there"
)
@pytest.mark.parametrize(("kind", "kills"), [("word", 20), ("subject", 8)])
def test_a_run_killed_again_and_again_ends_as_if_it_had_not_been(tmp_path, kind, kills):
    """At random points of it, half of them in the middle of a write."""
    command = [sys.executable, Path(__file__).with_name("killed.py"), kind, str(kills), tmp_path]
    more = {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=os.environ | more, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_a_finished_run_that_is_killed_while_it_tidies_up_counts_no_more(
    picture_folder, folder, tmp_path, monkeypatch
):
    run = ["word", str(picture_folder), "<toy>", "cat", "--model", str(folder), "--steps", "1"]
    run += ["--out", str(tmp_path / "out"), "--prompt"]

    def killed(folder, **_):
        (folder / "step-1" / "model.safetensors").unlink()
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(shutil, "rmtree", killed)
        assert main([*run, "a <toy>"]) == 130
    assert main([*run, "another <toy>"]) == 0


@pytest.mark.skipif(
    sys.platform == "win32", reason="torch.distributed does not start there: PyTorch issue 139990"
)
def test_two_processes_learn_one_word(picture_folder, folder, tmp_path):
    """They learn it together, and one of them writes it."""
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2"]
    command += ["-m", "sdlearn.finetuning", "word", str(picture_folder), "<toy>", "cat"]
    command += ["--model", str(folder), "--out", str(tmp_path / "out"), "--steps", "2"]
    more = {"ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=os.environ | more, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("learnt: ") == 1
    assert [file.name for file in (tmp_path / "out").iterdir()] == ["toy.safetensors"]
