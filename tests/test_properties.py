"""Any prompt, any picture: the answer is diffusers' own, or an error in plain words."""

from __future__ import annotations

import unicodedata

import numpy as np
import torch
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from PIL import Image

import sdlearn
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
