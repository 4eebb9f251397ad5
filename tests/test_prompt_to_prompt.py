"""Held attention is the source's and nobody else's, and at its ends the edit is plain drawing."""

from __future__ import annotations

import pytest
import torch
from conftest import random_pipeline, seeded
from diffusers import DDIMInverseScheduler, DDIMScheduler, PNDMScheduler
from diffusers.models.attention_processor import Attention, AttnProcessor
from test_exactness import SCHEDULERS, set_scheduler, state

import sdlearn
from sdlearn.editing import prompt_to_prompt
from sdlearn.editing.held_attention import Edit, align, attention_edited
from sdlearn.finetuning.textual_inversion import added_token
from sdlearn.postcards.render import render
from sdlearn.postcards.world import Scene, Thing

SOURCE, TARGET = "a red cat in the snow", "a blue dog in the snow"
CALL = {"num_inference_steps": 5, "guidance_scale": 3.0}


def drawn(pipe, prompts, **call):
    """Draw prompts in one batch, each from the same noise."""
    generators = [seeded(3) for _ in prompts]
    return sdlearn.text_to_image(pipe, prompts, generator=generators, **{**CALL, **call})


def test_an_unchanged_prompt_takes_each_token_from_itself(random_pipe):
    for prompt in ("", SOURCE, "a " * 90):
        taken, own = align(random_pipe, prompt, prompt)
        assert torch.equal(taken, torch.eye(77))
        assert not own.any()


@pytest.mark.parametrize(
    ("source", "target", "expected", "alone"),
    [
        # Target position -> the source's that it takes from; alone: those that keep their own.
        ("a red cat", "a blue cat", {1: [1], 2: [2], 3: [3], 4: [4]}, []),
        ("a cat", "a fluffy red cat", {1: [1], 4: [2], 5: [3], 6: [6]}, [2, 3]),
        ("a fluffy red cat", "a cat", {1: [1], 2: [4], 3: [5], 6: [6]}, [4, 5]),
        # "stegosaurus" is three tokens, "archaeopteryx" five: one word in place of another.
        ("a cat sat", "a stegosaurus sat", {1: [1], 2: [2], 3: [2], 4: [2], 5: [3]}, []),
        ("a stegosaurus sat", "a cat sat", {1: [1], 2: [2, 3, 4], 3: [5]}, [5, 6]),
        ("a red cat", "a dog", {1: [1], 2: [2, 3], 3: [4], 5: [5]}, [4]),
        ("an owl", "a purple owl", {1: [1], 3: [2], 4: [3]}, [2]),
        ("", "cat", {2: [1], 3: [3]}, [1]),
    ],
)
def test_alignment(random_pipe, source, target, expected, alone):
    taken, own = align(random_pipe, source, target)
    for position, sources in expected.items():
        assert taken[:, position].nonzero().flatten().tolist() == sources, position
    assert own.nonzero().flatten().tolist() == alone
    # What a word had goes whole to those in its place.
    kept = {p for sources in expected.values() for p in sources}
    torch.testing.assert_close(taken.sum(1)[[*kept]], torch.ones(len(kept)))


@pytest.mark.parametrize("name", SCHEDULERS)
def test_without_held_steps_both_are_plain_drawings(pipe, name):
    set_scheduler(pipe, name)
    before, plain = state(pipe), drawn(pipe, [SOURCE, TARGET])
    source, target = sdlearn.edit_prompt(
        pipe, SOURCE, TARGET, cross_steps=0, self_steps=0, generator=seeded(3), **CALL
    )
    assert state(pipe) == before
    assert torch.equal(torch.cat([source.pixels, target.pixels]), plain.pixels)
    assert torch.equal(target.prompt_embeds[1], plain.prompt_embeds[3])
    assert len(target.steps) == len(plain.steps)
    assert torch.equal(target.steps[-1].prev_sample, plain.steps[-1].prev_sample[1:])


@pytest.mark.parametrize("name", SCHEDULERS)
def test_the_same_prompt_gives_the_same_picture(pipe, name):
    set_scheduler(pipe, name)
    before, plain = state(pipe), drawn(pipe, [SOURCE, SOURCE])
    source, target = sdlearn.edit_prompt(pipe, SOURCE, SOURCE, generator=seeded(3), **CALL)
    assert state(pipe) == before
    assert torch.equal(source.latents, target.latents)
    # Another attention kernel than the pipeline's own: rounding, some 1e-5 of values near 1.
    torch.testing.assert_close(source.latents, plain.latents[:1], atol=1e-3, rtol=1e-3)


def test_held_maps_are_copied_as_in_diffusers_own_attention(pipe, monkeypatch):
    """The oracle: diffusers' eager processor, in which the target's rows are overwritten."""
    usual, calls = pipe.unet.attn_processors, []
    scores = Attention.get_attention_scores

    def copied(attn, query, key, attention_mask=None):
        maps = scores(attn, query, key, attention_mask)
        held = 4 if key.shape[1] == 77 else 2  # calls: .8 and .4 of five
        if len(calls) < held:
            rows = maps.unflatten(0, (4, attn.heads))
            maps = torch.cat([rows[:3], rows[2:3]]).flatten(0, 1)
        return maps

    handle = pipe.unet.register_forward_hook(lambda *_: calls.append(1))
    monkeypatch.setattr(Attention, "get_attention_scores", copied)
    pipe.unet.set_attn_processor(AttnProcessor())
    try:
        expected = drawn(pipe, [SOURCE, TARGET])
    finally:
        handle.remove()
        monkeypatch.undo()
        pipe.unet.set_attn_processor(dict(usual))
    _, target = sdlearn.edit_prompt(pipe, SOURCE, TARGET, generator=seeded(3), **CALL)
    torch.testing.assert_close(target.latents, expected.latents[1:], atol=1e-3, rtol=1e-3)
    plain = drawn(pipe, [SOURCE, TARGET])
    assert (plain.latents[1:] - target.latents).abs().max() > 0.01


def test_a_weight_is_its_words_own(random_pipe, monkeypatch):
    """What is multiplied is the column of the word's token, and no other."""
    seen, own = [], Edit.cross

    def watched(edit, probabilities):
        edited = own(edit, probabilities)
        seen.append(edited[-1] / probabilities[-1])
        return edited

    monkeypatch.setattr(Edit, "cross", watched)
    sdlearn.edit_prompt(
        random_pipe, SOURCE, SOURCE, reweight={"snow": 3, "cat": 0.5}, generator=seeded(), **CALL
    )
    factors = torch.ones(77)
    words = sdlearn.tokenize(random_pipe, SOURCE).words
    factors[[*words["snow"]]], factors[[*words["cat"]]] = 3, 0.5
    torch.testing.assert_close(seen[0], factors.expand_as(seen[0]), atol=1e-4, rtol=1e-4)


def test_large_layers_keep_their_own_self_attention(random_pipe):
    """96 x 96 pixels: 144 places in the first layers, which here are too many."""
    edits = []

    def target(limit):
        edit = Edit(torch.eye(77)[None], torch.zeros(1, 77), torch.ones(1, 77), 9, 9, limit)
        prompts, call = [SOURCE, TARGET], {**CALL, "num_inference_steps": 2}
        noise = sdlearn.initial_latents(random_pipe, 2, height=96, width=96, generator=seeded())
        embeds = sdlearn.encode_prompt(random_pipe, prompts)
        with attention_edited(random_pipe, edit):
            steps = sdlearn.denoise(random_pipe, torch.cat([noise] * 2), embeds, **call)
            edits.append([step.prev_sample for step in steps][-1][1])
        return edits[-1]

    assert torch.equal(target(144), target(1024))
    assert not torch.equal(target(100), target(144))


def test_a_weight_of_one_changes_nothing_and_a_larger_one_does(pipe):
    def edited(**more):
        return sdlearn.edit_prompt(pipe, SOURCE, SOURCE, generator=seeded(3), **more, **CALL)

    source, target = edited()
    _, same = edited(reweight={"snow": 1})
    assert torch.equal(target.pixels, same.pixels)
    left, more = edited(reweight={"snow": 3, "cat": 0.5})
    assert torch.equal(left.pixels, source.pixels)
    assert not torch.equal(more.pixels, source.pixels)


def test_pairs_in_a_batch_are_edited_each_by_its_own(pipe):
    pairs = [(SOURCE, TARGET), ("a house", "a small green house")]
    sources, targets = map(list, zip(*pairs))
    together = sdlearn.edit_prompt(
        pipe, sources, targets, generator=[seeded(3), seeded(4)], reweight={"dog": 2}, **CALL
    )
    for i, (pair, weight) in enumerate(zip(pairs, ({"dog": 2}, None))):
        call = {**CALL, "reweight": weight, "generator": seeded(3 + i)}
        for both, alone in zip(together, sdlearn.edit_prompt(pipe, *pair, **call)):
            assert both.prompts[i] == alone.prompts[0]
            torch.testing.assert_close(both.latents[i], alone.latents[0], atol=1e-3, rtol=1e-3)


def test_blending_leaves_the_rest_to_the_source(postcards):
    pair = "an orange fox in the snow at night", "an orange cat in the snow at night"
    call = {**CALL, "num_inference_steps": 10, "blend": ["fox", "cat"]}
    source, target = sdlearn.edit_prompt(postcards, *pair, generator=seeded(3), **call)
    changed = (source.latents - target.latents).abs().amax(1)[0] > 0  # (16, 16)
    assert 0.1 < changed.float().mean() < 0.6
    with sdlearn.capture_attention(postcards) as maps:
        sdlearn.edit_prompt(postcards, *pair, generator=seeded(3), **{**call, "blend": None})
    where = maps.heat_map("fox", index=0).view(16, 8, 16, 8).mean((1, 3))
    assert where[changed].mean() > 3 * where[~changed].mean()


def test_blending_waits_for_maps_that_say_something(postcards, monkeypatch):
    called = []
    monkeypatch.setattr(
        prompt_to_prompt, "cells_read", lambda heat, size: called.append(1) or torch.zeros(1, *size)
    )
    pair = ["a fox in the snow", "a house"], ["a cat in the snow", "a castle"]
    call = {**CALL, "num_inference_steps": 10, "generator": [seeded(1), seeded(2)]}
    source, target = sdlearn.edit_prompt(postcards, *pair, blend=["fox", "cat"], **call)
    assert len(called) == 2 * 8  # two words, from the third of ten steps on
    assert torch.equal(source.latents[0], target.latents[0])  # nowhere may it differ
    assert not torch.equal(source.latents[1], target.latents[1])  # none of the words is in it


def test_given_latents_are_scaled_as_diffusers_scales_them(pipe):
    set_scheduler(pipe, "EulerDiscreteScheduler")
    noise = torch.randn(1, 4, 8, 8, generator=seeded())
    source, _ = sdlearn.edit_prompt(pipe, SOURCE, TARGET, latents=noise, **CALL)
    plain = pipe(SOURCE, latents=noise, output_type="pt", **CALL).images
    torch.testing.assert_close(source.pixels, plain, atol=2e-3, rtol=0)


def test_an_interrupted_edit_leaves_the_pipeline_as_it_was(pipe):
    def stop(*_):
        raise KeyboardInterrupt

    before = state(pipe)
    handle = pipe.vae.decoder.register_forward_pre_hook(stop)
    with pytest.raises(KeyboardInterrupt):
        sdlearn.edit_prompt(pipe, SOURCE, TARGET, blend="cat", generator=seeded(), **CALL)
    handle.remove()
    assert state(pipe) == before


@pytest.mark.parametrize(
    ("call", "message"),
    [
        ({"cross_steps": 1.2}, "cross_steps must be between 0 and 1, got 1.2"),
        ({"self_steps": -1}, "self_steps must be between 0 and 1, got -1"),
        ({"target": [TARGET, TARGET]}, "got 1 sources and 2 targets"),
        ({"blend": "horse"}, "no word 'horse' in the prompt"),
        ({"reweight": {"red": 2}}, "no word 'red' in the prompt; it reads: .*'blue'"),
        ({"reweight": {"blue": float("nan")}}, r"reweight\['blue'\] must be finite"),
        ({"latents": torch.zeros(2, 4, 8, 8)}, "got 2 latents for 1 pairs"),
        ({"latents": torch.zeros(1, 4, 8, 8), "height": 64}, "and height=64, width=None"),
        ({"source": [SOURCE] * 2, "target": [TARGET] * 2}, "got 1 generators for 2"),
    ],
)
def test_bad_input_is_named_before_anything_is_drawn(random_pipe, call, message):
    generator = seeded()
    before = generator.get_state()
    call = {"source": SOURCE, "target": TARGET, **call}
    with pytest.raises(ValueError, match=message):
        sdlearn.edit_prompt(random_pipe, **call, generator=generator, **CALL)
    assert torch.equal(generator.get_state(), before)


@pytest.mark.parametrize("spacing", ["leading", "trailing"])
def test_inversion_is_diffusers_inverse_scheduler(pipe, spacing):
    pipe.scheduler = DDIMScheduler.from_config(pipe.scheduler.config, timestep_spacing=spacing)
    side = pipe.unet.config.sample_size * pipe.vae_scale_factor
    picture = torch.rand(1, 3, side, side, generator=seeded())
    inverse = DDIMInverseScheduler.from_config(pipe.scheduler.config)
    inverse.set_timesteps(4)
    latents = sdlearn.encode_image(pipe, picture, sample=False)
    embeds = sdlearn.encode_prompt(pipe, SOURCE)[1:]
    for t in inverse.timesteps:
        with torch.no_grad():
            noise_pred = pipe.unet(latents, t, encoder_hidden_states=embeds).sample
        latents = inverse.step(noise_pred, t, latents).prev_sample
    before = state(pipe)
    assert torch.equal(sdlearn.invert(pipe, picture, SOURCE, 4), latents)
    assert state(pipe) == before


def test_more_steps_bring_a_picture_back_more_nearly(postcards):
    scene = Scene(Thing("fox"), setting="snow", time="night", seed=1)
    picture, prompt = render(scene), "a fox in the snow at night"
    clean = sdlearn.encode_image(postcards, picture, sample=False)
    away = []
    for steps in (5, 40):
        latents = sdlearn.invert(postcards, picture, prompt, steps)
        embeds = sdlearn.encode_prompt(postcards, prompt)
        call = {"num_inference_steps": steps, "guidance_scale": 1}
        *_, last = sdlearn.denoise(postcards, latents, embeds, **call)
        away.append(float((last.prev_sample - clean).square().mean().sqrt()))
    assert away[1] < 0.1
    assert away[1] < away[0] / 2


def test_inversion_asks_for_ddim(pipe):
    config = pipe.scheduler.config
    linspace = DDIMScheduler.from_config(config, timestep_spacing="linspace")
    for scheduler in (PNDMScheduler.from_config(config), linspace):
        pipe.scheduler = scheduler
        name = type(scheduler).__name__
        with pytest.raises(ValueError, match=rf"got {name} .*DDIMScheduler.from_config"):
            sdlearn.invert(pipe, torch.zeros(1, 3, 64, 64), SOURCE, 4)


def test_a_learnt_word_of_several_vectors_is_one_word():
    pipe = random_pipeline(layers_per_block=1)
    with added_token(pipe, "<toy>", "cat", 3) as row:
        row.data += 1
    taken, own = align(pipe, "a red cat sat", "a blue <toy> sat")
    assert taken[2].nonzero().flatten().tolist() == [2]
    assert taken[3, 3:6].tolist() == pytest.approx([1 / 3] * 3)
    assert taken[4].nonzero().flatten().tolist() == [6]
    assert own.nonzero().flatten().tolist() == []
