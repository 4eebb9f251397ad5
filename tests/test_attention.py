"""Attention maps against an eager softmax, computed by a processor that replaces the model's."""

from __future__ import annotations

import pytest
import torch
from conftest import seeded

import sdlearn

PROMPT = "a red cat, asleep"


class EagerProcessor:
    """Attention written out, which keeps what it computes: (batch, heads, h*w, tokens)."""

    def __init__(self, name, record):
        self.name, self.record = name, record

    def __call__(self, attn, hidden_states, encoder_hidden_states=None, **kwargs):
        context = hidden_states if encoder_hidden_states is None else encoder_hidden_states

        def heads(x):
            return x.view(len(x), x.shape[1], attn.heads, -1).transpose(1, 2)

        q, k, v = (
            heads(f(x))
            for f, x in ((attn.to_q, hidden_states), (attn.to_k, context), (attn.to_v, context))
        )
        weights = torch.exp(q @ k.transpose(2, 3) * q.shape[-1] ** -0.5)
        weights = weights / weights.sum(-1, keepdim=True)
        if "attn2" in self.name:
            self.record.setdefault(self.name.removesuffix(".processor"), []).append(weights)
        out = (weights @ v).transpose(1, 2).flatten(2)
        return attn.to_out[0](out)


def draw(pipe, **call):
    return sdlearn.text_to_image(
        pipe, PROMPT, **{"num_inference_steps": 3, "generator": seeded(), **call}
    )


@pytest.fixture
def eager(pipe):
    """The same pipeline with attention written out; the list it fills, by layer."""
    record = {}
    kept = dict(pipe.unet.attn_processors)
    pipe.unet.set_attn_processor({name: EagerProcessor(name, record) for name in kept})
    yield record
    pipe.unet.set_attn_processor(kept)


@pytest.mark.parametrize("guidance_scale", [7.5, 1.0])
def test_maps_equal_an_eager_softmax(pipe, sizes, eager, guidance_scale):
    """The text half of it, so the halves must be told apart; not square; every call by itself."""
    height, width = sizes
    with sdlearn.capture_attention(pipe, keep_calls=True) as maps:
        draw(pipe, height=height, width=width, guidance_scale=guidance_scale, negative_prompt="fog")
    assert set(maps.layers) == set(eager)
    assert maps.calls == 3
    for layer in maps.layers:
        rows = 2 if guidance_scale > 1 else 1
        assert all(len(weights) == rows for weights in eager[layer])
        means = [weights.mean(1) for weights in eager[layer]]  # (rows, h*w, 77) each call
        h, w = maps.probabilities(layer).shape[2:]
        assert h == 2 * w or (h, w) == (1, 1)
        expected = [m[-1].T.unflatten(1, (h, w)) for m in means]  # (77, h, w)
        for call in range(3):
            torch.testing.assert_close(maps.probabilities(layer, call)[0], expected[call])
        whole = maps.probabilities(layer)
        torch.testing.assert_close(whole[0], torch.stack(expected).mean(0))
        torch.testing.assert_close(whole.sum(1), torch.ones(1, h, w))
        if rows == 2:
            assert not torch.allclose(means[0][0], means[0][1])


def test_heat_map_is_the_mean_over_layers_and_tokens(pipe, sizes):
    with sdlearn.capture_attention(pipe) as maps:
        draw(pipe, height=sizes[0], width=sizes[1])
    for word, positions in [("cat", [3]), ("CAT", [3]), (",", [4])]:
        total = 0
        for layer in maps.layers:
            mine = maps.probabilities(layer)[:, positions].mean(1, keepdim=True)
            total = total + torch.nn.functional.interpolate(mine, sizes, mode="bilinear")[0, 0]
        expected = (total - total.min()) / (total.max() - total.min())
        heat = maps.heat_map(word)
        assert heat.shape == sizes
        torch.testing.assert_close(heat, expected, rtol=1e-4, atol=1e-4)
    assert maps.heat_map("red", layer=maps.layers[0]).shape == sizes


@pytest.mark.parametrize("guidance_scale", [7.5, 1.0])
def test_prompt_encoded_before_the_capture(random_pipe, guidance_scale):
    """The words are then unknown, the halves are not."""
    pipe = random_pipe
    embeds = sdlearn.encode_prompt(pipe, PROMPT)
    latents = sdlearn.initial_latents(pipe, 3, generator=seeded())
    with sdlearn.capture_attention(pipe) as maps:
        list(
            sdlearn.denoise(
                pipe,
                latents,
                embeds,
                num_inference_steps=3,
                guidance_scale=guidance_scale,
            )
        )
    with sdlearn.capture_attention(pipe) as known:
        draw(pipe, guidance_scale=guidance_scale)
    for layer in maps.layers:
        assert torch.equal(maps.probabilities(layer), known.probabilities(layer))
    assert torch.equal(maps.heat_map("cat", prompt=PROMPT), known.heat_map("cat"))
    with pytest.raises(ValueError, match="prompt=None; name the prompt"):
        maps.heat_map("cat")


def test_batch_without_guidance_from_the_same_noise(random_pipe):
    """Two prompts are no two halves, though the U-Net sees the same latents twice."""
    twice = {"guidance_scale": 1.0, "num_inference_steps": 2}
    with sdlearn.capture_attention(random_pipe) as maps:
        sdlearn.text_to_image(random_pipe, ["a cat", "a dog"], **twice, generator=[seeded()] * 2)
    assert maps.probabilities(maps.layers[0]).shape[0] == 2
    assert maps.heat_map("dog", index=1).max() == 1
    with pytest.raises(ValueError, match=r"no word 'cat'.*'dog'"):
        maps.heat_map("cat", index=1)


def test_works_around_the_pipeline_itself(random_pipe):
    with sdlearn.capture_attention(random_pipe) as theirs:
        random_pipe(PROMPT, num_inference_steps=3, generator=seeded())
    with sdlearn.capture_attention(random_pipe) as ours:
        draw(random_pipe)
    assert torch.equal(theirs.heat_map("cat"), ours.heat_map("cat"))


def test_restored_after_an_exception(pipe):
    before = draw(pipe).pixels
    processors = dict(pipe.unet.attn_processors)
    with pytest.raises(KeyError), sdlearn.capture_attention(pipe):
        draw(pipe, num_inference_steps=1)
        raise KeyError
    assert pipe.unet.attn_processors == processors
    modules = [*pipe.unet.modules(), *pipe.text_encoder.modules()]
    assert not any(m._forward_pre_hooks or m._forward_hooks for m in modules)
    assert torch.equal(draw(pipe).pixels, before)


def test_memory_does_not_grow_with_steps(random_pipe):
    sizes = []
    for steps in (2, 6):
        with sdlearn.capture_attention(random_pipe, max_pixels=16) as maps:
            draw(random_pipe, num_inference_steps=steps)
        assert maps.calls == steps
        assert all(m.shape[2] * m.shape[3] <= 16 for m in maps._sums.values())
        sizes.append(sum(m.numel() for m in maps._sums.values()) + len(maps._kept))
    assert sizes[0] == sizes[1]


def test_layers_are_chosen_by_the_beginning_of_their_name(random_pipe):
    with sdlearn.capture_attention(random_pipe, layers=["mid_block"]) as maps:
        draw(random_pipe)
    assert maps.layers == ["mid_block.attentions.0.transformer_blocks.0.attn2"]
    with sdlearn.capture_attention(random_pipe, max_pixels=4096) as maps:
        draw(random_pipe)
    assert len(maps.layers) == 16


def test_misuse_is_explained(random_pipe):
    pipe = random_pipe
    with (
        pytest.raises(ValueError, match=r"no layer matches layers=\['middle'\].*mid_block"),
        sdlearn.capture_attention(pipe, layers=["middle"]),
    ):
        pass
    with sdlearn.capture_attention(pipe) as maps:
        pass
    with pytest.raises(ValueError, match="0 maps were captured"):
        maps.heat_map("cat")
    with sdlearn.capture_attention(pipe) as maps:
        draw(pipe)
        with pytest.raises(ValueError, match="one prompt at one size"):
            draw(pipe, height=32)
        with pytest.raises(ValueError, match="one prompt at one size"):
            sdlearn.text_to_image(pipe, "another", num_inference_steps=1)
    with pytest.raises(ValueError, match=r"no word 'dog'.*\['a', 'red', 'cat', ',', 'asleep'\]"):
        maps.heat_map("dog")
    with pytest.raises(ValueError, match="call 0 was not kept: 0 of 3"):
        maps.heat_map("cat", call=0)
    with pytest.raises(ValueError, match=r"no layer 'x'.*mid_block"):
        maps.heat_map("cat", layer="x")
