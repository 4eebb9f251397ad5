"""Tokens and embeddings are those the pipeline computes."""

from __future__ import annotations

import copy
import unicodedata

import pytest
import torch

import sdlearn
from sdlearn.text import find_word


def test_a_photo_of_a_cat(pipe):
    tokens = sdlearn.tokenize(pipe, "a photo of a cat")
    assert tokens.ids[:7].tolist() == [49406, 320, 1125, 539, 320, 2368, 49407]
    assert tokens.ids.shape == (77,)
    assert tokens.pieces[1:6] == ("a</w>", "photo</w>", "of</w>", "a</w>", "cat</w>")
    assert tokens.words == {"a": (1, 4), "photo": (2,), "of": (3,), "cat": (5,)}
    assert tokens.truncated == ()


def test_words_keep_the_prompts_spelling(random_pipe):
    tokens = sdlearn.tokenize(random_pipe, "Caffè GATTONE's 12, 😀")
    assert [*tokens.words] == ["Caffè", "GATTONE", "'s", "1", "2", ",", "😀"]
    assert len(tokens.words["GATTONE"]) > 1
    positions = [p for at in tokens.words.values() for p in at]
    assert positions == list(range(1, len(positions) + 1))


def test_truncation_names_exactly_the_words_cut_off(random_pipe):
    exact = " ".join(["cat"] * 75)
    assert sdlearn.tokenize(random_pipe, exact).truncated == ()
    assert sdlearn.tokenize(random_pipe, exact + " Red Dog").truncated == ("Red", "Dog")
    # A word of several tokens that stands across the edge keeps its first, and is not whole.
    across = sdlearn.tokenize(random_pipe, " ".join(["cat"] * 74) + " Gattone dog")
    assert across.truncated == ("Gattone", "dog")
    assert across.words["Gattone"] == (75,)


def test_encode_prompt_is_the_text_encoder_on_the_tokens(pipe):
    embeds = sdlearn.encode_prompt(pipe, ["a cat", "a dog"], ["", "rain"])
    for row, text in enumerate(["", "rain", "a cat", "a dog"]):
        ids = sdlearn.tokenize(pipe, text).ids[None]
        expected = pipe.text_encoder(ids).last_hidden_state[0]
        torch.testing.assert_close(embeds[row], expected)
    assert embeds.shape == (4, 77, pipe.unet.config.cross_attention_dim)


def test_a_word_learnt_by_textual_inversion(random_pipe):
    """One that stands for two vectors: the ids must be those the pipeline feeds."""
    pipe = copy.copy(random_pipe)
    pipe.tokenizer = copy.deepcopy(random_pipe.tokenizer)
    pipe.tokenizer.add_tokens(["<toy>", "<toy>_1"])
    tokens = sdlearn.tokenize(pipe, "a <toy> here, cat<toy>")
    assert tokens.ids[:6].tolist() == [49406, 320, 49408, 49409, 763, 267]
    assert tokens.words["<toy>"] == (2, 3, 7, 8)
    assert find_word(pipe, tokens.ids, "<toy>") == [2, 3, 7, 8]
    assert find_word(pipe, tokens.ids, "here") == [4]


@pytest.mark.parametrize(
    ("prompt", "word", "positions"),
    [
        ("at night in İstanbul", "İstanbul", [4, 5, 6]),
        ("a cafe\u0301", "caf\u00e9", [2]),
        ("a caf\u00e9", "cafe\u0301", [2]),
        ("cat<|endoftext|>dog", "dog", [3]),
        ("a Red cat, a red car", "RED", [2, 6]),
        ("a Red cat, a red car", "red car", [6, 7]),
        ("it's a cat...", "'s", [2]),
        ("it's a cat...", "...", [5]),
    ],
)
def test_words_are_found_as_clip_reads_them(random_pipe, prompt, word, positions):
    assert find_word(random_pipe, sdlearn.tokenize(random_pipe, prompt).ids, word) == positions


@pytest.mark.parametrize("word", ["dog", "", "stone", "ne"])
def test_a_word_that_is_not_there(random_pipe, word):
    ids = sdlearn.tokenize(random_pipe, "a gattone").ids  # cut into three tokens: gat, to, ne
    with pytest.raises(ValueError, match=rf"no word '{word}' in the prompt.*'gattone'"):
        find_word(random_pipe, ids, word)


@pytest.mark.parametrize("text", ["a caf\u00e9 noir", "빨간 고양이", "Ångström"])
def test_a_letter_and_its_accent_are_one_character(random_pipe, text):
    """As the tokenizer reads them, however they were typed: macOS types Korean in parts."""
    typed = unicodedata.normalize("NFD", text)
    tokens = sdlearn.tokenize(random_pipe, typed)
    assert [*tokens.words] == unicodedata.normalize("NFC", text).split()
    assert torch.equal(tokens.ids, sdlearn.tokenize(random_pipe, text).ids)
