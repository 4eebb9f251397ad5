"""Any prompt, any picture: the answer is diffusers' own, or an error in plain words."""

from __future__ import annotations

import unicodedata

import numpy as np
import torch
from diffusers import StableDiffusionImg2ImgPipeline
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from PIL import Image

import sdlearn
from sdlearn.editing.held_attention import align
from sdlearn.editing.sdedit import steps_left_out
from sdlearn.text import find_word

quick = settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=60)
# Prompts of whole words, long enough to be cut.
prompts = texts | st.lists(
    texts | st.sampled_from(["cat", "Dog's", "e\u0301", "12"]), max_size=120
).map(" ".join)


@quick
@example("<|endoftext|> a <|startoftext|>")
@example("İ \x1c ﬁ \u200b 👩‍👩‍👧")
@example("a " * 74 + "Gattone")
@given(prompt=prompts)
def test_tokens(random_pipe, prompt):
    tokens = sdlearn.tokenize(random_pipe, prompt)
    tokenizer = random_pipe.tokenizer
    padded = tokenizer([prompt], padding="max_length", truncation=True, return_tensors="pt")
    assert torch.equal(tokens.ids, padded.input_ids[0])
    whole = tokenizer(prompt, truncation=False, verbose=False).input_ids
    # Every position between start and end belongs to exactly one word.
    positions = sorted(p for at in tokens.words.values() for p in at)
    assert positions == list(range(1, min(len(whole), 77) - 1))
    spelt = unicodedata.normalize("NFC", prompt)
    # A word is spelt as the prompt spells it, and words are cut if and only if tokens are.
    assert all(word in spelt for word in (*tokens.words, *tokens.truncated))
    assert bool(tokens.truncated) == (len(whole) > 77)
    for word in {*tokens.words} - {*tokens.truncated}:
        assert set(tokens.words[word]) <= set(find_word(random_pipe, tokens.ids, word))


@quick
@given(
    mode=st.sampled_from(["1", "L", "P", "RGB", "RGBA", "CMYK", "YCbCr", "I", "F", "LA"]),
    width=st.integers(0, 40),
    height=st.integers(0, 40),
)
@example("RGB", 24, 32)
@example("RGB", 8, 16)
def test_images(random_pipe, mode, width, height):
    image = Image.new(mode, (width, height))
    if mode == "RGB" and min(width, height) > 0 and width % 8 == height % 8 == 0:
        latents = sdlearn.encode_image(random_pipe, image)
        assert latents.shape == (1, 4, height // 8, width // 8)
        pixels = sdlearn.decode_latents(random_pipe, latents)
        assert pixels.shape == (1, 3, height, width)
        assert np.isfinite(pixels.numpy()).all()
        return
    wrong = [repr(mode)] if mode != "RGB" else [str(width), str(height)]
    try:
        sdlearn.encode_image(random_pipe, image)
    except ValueError as error:
        assert any(value in str(error) for value in wrong)
    else:
        raise AssertionError("accepted")


@quick
@given(steps=st.integers(1, 40), strength=st.floats(0, 1))
def test_strengths(random_pipe, steps, strength):
    """As many steps are walked as diffusers walks; where it would walk none, an error says so."""
    theirs = StableDiffusionImg2ImgPipeline.from_pipe(random_pipe)
    theirs.scheduler.set_timesteps(steps)
    walked = theirs.get_timesteps(steps, strength, "cpu")[1]
    try:
        assert steps_left_out(steps, strength) == steps - walked
    except ValueError as error:
        assert walked == 0
        assert "leaves none" in str(error)


@settings(quick, max_examples=15)
@given(data=st.data(), height=st.sampled_from([16, 24, 32]), width=st.sampled_from([16, 40]))
def test_masks(random_pipe, data, height, width):
    """Whatever the mask and the size: outside of it the latents end as they were."""
    places = height * width // 64
    cells = data.draw(st.lists(st.booleans(), min_size=places, max_size=places).filter(any))
    cells = torch.tensor(cells).view(height // 8, width // 8)
    mask = cells.repeat_interleave(8, 0).repeat_interleave(8, 1)
    picture = torch.rand(1, 3, height, width, generator=torch.Generator().manual_seed(0))
    strength = data.draw(st.sampled_from([1.0, 0.5]))
    call = {"num_inference_steps": 2, "generator": torch.Generator().manual_seed(1)}
    trace = sdlearn.inpaint(random_pipe, "a cat", picture, mask, strength, **call)
    generator = torch.Generator().manual_seed(1)
    clean = sdlearn.encode_image(random_pipe, picture, generator=generator)
    same = (trace.latents == clean).all(1)[0]
    assert torch.equal(same, ~cells)


@quick
@given(source=prompts, target=prompts)
def test_alignments(random_pipe, source, target):
    """A target token takes from the source or keeps its own; no attention is taken twice."""
    taken, own = align(random_pipe, source, target)
    assert set(own.tolist()) <= {0.0, 1.0}
    assert not taken[:, own > 0].any()
    assert (taken.sum(0)[own == 0] > 0).all()
    assert (taken.sum(1) < 1 + 1e-5).all()
    if source == target:
        assert torch.equal(taken, torch.eye(77))
