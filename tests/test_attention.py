"""Attention maps against an eager softmax, computed by a processor that replaces the model's."""

from __future__ import annotations

import math
import threading

import diffusers
import pytest
import torch
from conftest import seeded

import sdlearn
from sdlearn.postcards.judge import load_judge

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


def drawn_from(pipe, latents, embeds, **call):
    """Capture a loop whose prompt was encoded before."""
    with sdlearn.capture_attention(pipe) as maps:
        list(sdlearn.denoise(pipe, latents, embeds, num_inference_steps=3, **call))
    return maps


@pytest.mark.parametrize("guidance_scale", [7.5, 1.0])
def test_prompt_encoded_before_the_capture(random_pipe, guidance_scale):
    """The words are then unknown, the halves are not."""
    pipe = random_pipe
    embeds = sdlearn.encode_prompt(pipe, PROMPT)
    latents = sdlearn.initial_latents(pipe, 3, generator=seeded())
    maps = drawn_from(pipe, latents, embeds, guidance_scale=guidance_scale)
    with sdlearn.capture_attention(pipe) as known:
        draw(pipe, guidance_scale=guidance_scale)
    for layer in maps.layers:
        assert torch.equal(maps.probabilities(layer), known.probabilities(layer))
    assert torch.equal(maps.heat_map("cat", prompt=PROMPT), known.heat_map("cat"))
    with pytest.raises(ValueError, match="prompt=None; name it"):
        maps.heat_map("cat")
    with pytest.raises(ValueError, match="picture 0 had another prompt than 'a dog'"):
        known.heat_map("dog", prompt="a dog")


@pytest.mark.parametrize("guidance_scale", [7.5, 1.0])
def test_two_prompts_from_the_same_noise_encoded_before_the_capture(random_pipe, guidance_scale):
    """Equal latents in both halves of the batch say nothing: the loop says what the halves are."""
    pipe, prompts = random_pipe, ["a cat", "the dog"]
    latents = sdlearn.initial_latents(pipe, 3, generator=seeded()).expand(2, -1, -1, -1)
    embeds = sdlearn.encode_prompt(pipe, prompts)
    maps = drawn_from(pipe, latents, embeds, guidance_scale=guidance_scale)
    assert maps.probabilities(maps.layers[0]).shape[0] == 2
    for index, (prompt, word) in enumerate(zip(prompts, ["cat", "dog"])):
        alone = sdlearn.encode_prompt(pipe, prompt)
        one = drawn_from(pipe, latents[:1], alone, guidance_scale=guidance_scale)
        expected = one.heat_map(word, prompt=prompt)
        torch.testing.assert_close(
            maps.heat_map(word, prompt=prompt, index=index), expected, rtol=1e-3, atol=1e-3
        )


def test_batch_without_guidance_from_the_same_noise(random_pipe):
    """Two prompts are no two halves, though the U-Net sees the same latents twice."""
    twice = {"guidance_scale": 1.0, "num_inference_steps": 2}
    for draw_both in (random_pipe, lambda *a, **k: sdlearn.text_to_image(random_pipe, *a, **k)):
        with sdlearn.capture_attention(random_pipe) as maps:
            draw_both(["a cat", "a dog"], **{**twice, "generator": [seeded(), seeded()]})
        assert maps.probabilities(maps.layers[0]).shape[0] == 2
        assert maps.heat_map("dog", index=1).max() == 1
        with pytest.raises(ValueError, match=r"no word 'cat'.*'dog'"):
            maps.heat_map("cat", index=1)
        for index in (2, -1):
            with pytest.raises(ValueError, match=f"index must be between 0 and 1, got {index}"):
                maps.heat_map("cat", index=index)


@pytest.mark.parametrize(
    "call",
    [
        {"prompt": PROMPT},
        {"prompt": PROMPT, "guidance_scale": 1.0},
        {"prompt": [PROMPT, "a dog"], "negative_prompt": ["a dog", PROMPT]},
        {"prompt": PROMPT, "num_images_per_prompt": 2},
        {"prompt": PROMPT, "num_images_per_prompt": 2, "guidance_scale": 1.0},
    ],
    ids=["guided", "unguided", "two prompts", "two pictures", "two pictures, unguided"],
)
def test_works_around_the_pipeline_itself(random_pipe, call):
    with sdlearn.capture_attention(random_pipe) as theirs:
        random_pipe(**call, num_inference_steps=3, generator=seeded())
    number = call.pop("num_images_per_prompt", 1)
    prompts = [call.pop("prompt")] * number if number > 1 else call.pop("prompt")
    with sdlearn.capture_attention(random_pipe) as ours:
        sdlearn.text_to_image(
            random_pipe, prompts, **call, num_inference_steps=3, generator=seeded()
        )
    assert theirs.probabilities(theirs.layers[0]).shape == ours.probabilities(ours.layers[0]).shape
    torch.testing.assert_close(theirs.heat_map("cat"), ours.heat_map("cat"), rtol=1e-3, atol=1e-3)


def test_what_cannot_be_known_is_an_error(random_pipe):
    text, other = sdlearn.encode_prompt(random_pipe, "a cat").chunk(2)[::-1]
    encoded = {"prompt_embeds": text, "negative_prompt_embeds": other}
    with (
        pytest.raises(ValueError, match="cannot tell which of the 2 rows.*or denoise"),
        sdlearn.capture_attention(random_pipe),
    ):
        random_pipe(**encoded, num_inference_steps=1)


def test_where_both_halves_are_the_same_either_will_do(random_pipe):
    with sdlearn.capture_attention(random_pipe) as maps:
        random_pipe("a cat", negative_prompt="a cat", num_inference_steps=1)
    assert maps.probabilities(maps.layers[0]).shape[0] == 1
    assert maps.heat_map("cat").max() == 1


def test_a_retry_after_a_failed_pass_asks_with_its_own_prompt(random_pipe):
    with sdlearn.capture_attention(random_pipe) as maps:
        stop = random_pipe.unet.up_blocks[0].register_forward_pre_hook(lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            sdlearn.text_to_image(random_pipe, ["a cat", "two"], num_inference_steps=1)
        stop.remove()
        draw(random_pipe)
    with sdlearn.capture_attention(random_pipe) as alone:
        draw(random_pipe)
    assert maps.calls == 3
    assert torch.equal(maps.heat_map("cat"), alone.heat_map("cat"))


def loop_of(pipe, seed, **call):
    latents = sdlearn.initial_latents(pipe, 3, generator=seeded(seed))
    return sdlearn.denoise(pipe, latents, sdlearn.encode_prompt(pipe, PROMPT), **call)


SECONDS = {
    "in turn": lambda pipe: [*zip(loop_of(pipe, 0), loop_of(pipe, 1))],
    "one abandoned": lambda pipe: (next(loop_of(pipe, 0)), next(loop_of(pipe, 1))),
    "one step each": lambda pipe: [[*loop_of(pipe, i, num_inference_steps=1)] for i in (0, 1)],
    "pipe, one step each": lambda pipe: [pipe(PROMPT, num_inference_steps=1) for _ in range(2)],
    "pipe, fewer steps": lambda pipe: [pipe(PROMPT, num_inference_steps=n) for n in (4, 2)],
    "pipe, no guidance": lambda pipe: [
        pipe(prompt_embeds=sdlearn.encode_prompt(pipe, PROMPT)[1:], **unguided) for _ in range(2)
    ],
}
unguided = {"guidance_scale": 1.0, "num_inference_steps": 2}


@pytest.mark.parametrize("draw_two", SECONDS.values(), ids=SECONDS)
def test_a_second_picture_is_refused(random_pipe, draw_two):
    with (
        pytest.raises(ValueError, match="one prompt at one size, drawn once"),
        sdlearn.capture_attention(random_pipe),
    ):
        draw_two(random_pipe)


def test_an_inverse_scheduler_draws_one_picture(random_pipe, monkeypatch):
    """Its timesteps rise."""
    scheduler = diffusers.DDIMInverseScheduler.from_config(random_pipe.scheduler.config)
    monkeypatch.setattr(random_pipe, "scheduler", scheduler)
    with sdlearn.capture_attention(random_pipe) as maps:
        random_pipe(PROMPT, num_inference_steps=4)
    assert maps.calls == 4
    with sdlearn.capture_attention(random_pipe) as maps:
        draw(random_pipe, num_inference_steps=4)
    assert maps.calls == 4


def test_a_call_of_the_unet_by_position(random_pipe):
    x = torch.randn(1, 4, 8, 8, generator=seeded())
    embeds = sdlearn.encode_prompt(random_pipe, PROMPT)[1:]
    with sdlearn.capture_attention(random_pipe) as maps:
        random_pipe.unet(x, 500, embeds)
    with sdlearn.capture_attention(random_pipe) as named:
        random_pipe.unet(sample=x, timestep=500, encoder_hidden_states=embeds)
    assert maps.calls == named.calls == 1
    assert torch.equal(maps.heat_map("cat", prompt=PROMPT), named.heat_map("cat", prompt=PROMPT))


def test_a_pass_that_was_interrupted_does_not_count(random_pipe):
    with sdlearn.capture_attention(random_pipe) as maps:
        steps = sdlearn.denoise(
            random_pipe,
            sdlearn.initial_latents(random_pipe, 3),
            sdlearn.encode_prompt(random_pipe, PROMPT),
            num_inference_steps=3,
        )
        next(steps)
        stop = random_pipe.unet.mid_block.register_forward_pre_hook(lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            next(steps)
        stop.remove()
    assert maps.calls == 1
    for layer in maps.layers:
        sums = maps.probabilities(layer).sum(1)
        torch.testing.assert_close(sums, torch.ones_like(sums))


def test_each_thread_has_a_capture_of_its_own(random_pipe):
    """Both run at once, step by step in turn."""
    turns, seen = threading.Barrier(2), {}
    one_at_a_time = threading.Lock()  # a tokenizer keeps its padding in itself, between two calls

    def run(prompt, word):
        with sdlearn.capture_attention(random_pipe) as maps:
            with one_at_a_time:
                embeds = sdlearn.encode_prompt(random_pipe, prompt)
            latents = sdlearn.initial_latents(random_pipe, 3, generator=seeded())
            for _ in sdlearn.denoise(random_pipe, latents, embeds, num_inference_steps=3):
                turns.wait(20)
        seen[prompt] = maps.calls, maps.heat_map(word)

    threads = [
        threading.Thread(target=run, args=args) for args in [("a cat", "cat"), (PROMPT, ",")]
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [calls for calls, _ in seen.values()] == [3, 3]
    with sdlearn.capture_attention(random_pipe) as alone:
        draw(random_pipe)
    assert torch.equal(seen[PROMPT][1], alone.heat_map(","))
    with sdlearn.capture_attention(random_pipe) as elsewhere:
        thread = threading.Thread(target=draw, args=(random_pipe,))
        thread.start()
        thread.join()
    with pytest.raises(ValueError, match="0 maps were captured; draw inside .* in its thread"):
        elsewhere.heat_map("cat")


@pytest.mark.parametrize(
    "kind", ["Heun", "KDPM2", "KDPM2Ancestral", "EulerAncestral", "DPMSolverSinglestep", "PNDM"]
)
def test_schedulers_that_go_back_a_little_draw_one_picture(random_pipe, kind, monkeypatch):
    name = next(n for n in (f"{kind}DiscreteScheduler", f"{kind}Scheduler") if n in dir(diffusers))
    scheduler = getattr(diffusers, name).from_config(random_pipe.scheduler.config)
    monkeypatch.setattr(random_pipe, "scheduler", scheduler)
    with sdlearn.capture_attention(random_pipe) as maps:
        trace = draw(random_pipe, num_inference_steps=8)
    assert maps.calls == len(trace.steps)


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
    for layers in (["mid_block"], "mid_block"):
        with sdlearn.capture_attention(random_pipe, layers=layers) as maps:
            draw(random_pipe)
        assert maps.layers == ["mid_block.attentions.0.transformer_blocks.0.attn2"]
    with sdlearn.capture_attention(random_pipe, max_pixels=4096) as maps:
        draw(random_pipe)
    assert len(maps.layers) == 16


@pytest.mark.parametrize("relation", ["left of", "right of", "above", "below"])
def test_a_map_lies_where_its_word_is_drawn(postcards, relation):
    """The hottest tenth of a word's map is centred where the judge finds the thing: 12 pixels."""
    prompt = f"a red boat {relation} a blue tree in the meadow by day"
    with sdlearn.capture_attention(postcards) as maps:
        call = {"num_inference_steps": 12, "guidance_scale": 3.0, "generator": seeded()}
        trace = sdlearn.text_to_image(postcards, prompt, **call)
    [reading] = load_judge().read(trace.pixels * 2 - 1)
    assert {thing.subject for thing in reading.things} == {"boat", "tree"}
    for thing in reading.things:
        heat = maps.heat_map(thing.subject)
        y, x = (heat > heat.quantile(0.9)).nonzero().float().mean(0)
        assert math.dist((x, y), (thing.x, thing.y)) < 12


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
        with pytest.raises(ValueError, match=r"drawn once: it began .* at t = 667, .*at t = 667"):
            draw(pipe, generator=seeded(1))
    with pytest.raises(ValueError, match=r"no word 'dog'.*\['a', 'red', 'cat', ',', 'asleep'\]"):
        maps.heat_map("dog")
    with pytest.raises(ValueError, match="call 0 was not kept: 0 of 3"):
        maps.heat_map("cat", call=0)
    with pytest.raises(ValueError, match=r"no layer 'x'.*mid_block"):
        maps.heat_map("cat", layer="x")
