"""The tour of the U-Net's blocks: what is noted is what ran, and nothing stays behind."""

from collections import Counter

import pytest
import torch
from matplotlib.patches import FancyBboxPatch

import sdlearn
from sdlearn.show import unet_tour
from sdlearn.show.unet_tour import sd15_unet


def hooks(unet):
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in unet.modules())


@pytest.fixture(scope="module")
def sd15_blocks():
    with torch.device("meta"):
        return sdlearn.trace_blocks(sd15_unet())


def test_every_parameter_is_in_one_block(pipe):
    blocks = sdlearn.trace_blocks(pipe)
    names = [block.name for block in blocks]
    modules = dict(pipe.unet.named_modules())
    assert len({*names}) == len(names) and names[-1] == "conv_out"
    assert [block.kind for block in blocks] == [type(modules[name]).__name__ for name in names]
    assert sum(block.parameters for block in blocks) == pipe.unet.num_parameters()


def test_a_skip_is_joined_on_to_the_channels_that_arrive(pipe):
    blocks = [b for b in sdlearn.trace_blocks(pipe) if len(b.input) == 4]
    before = {after.name: block.output for block, after in zip(blocks, blocks[1:])}
    by_name = {block.name: block for block in blocks}
    joined = [block for block in blocks if block.skip]
    for block in joined:
        arrives, skip = before[block.name], by_name[block.skip].output
        assert block.input == (arrives[0], arrives[1] + skip[1], *arrives[2:])
        assert skip[2:] == arrives[2:]
    sources = [block.skip for block in joined]
    order = [block.name for block in blocks]
    assert sources == sorted({*sources}, key=order.index, reverse=True)  # last in, first out
    assert sources[-1] == "conv_in"


def test_shapes_are_those_of_the_latents_given(pipe):
    blocks = sdlearn.trace_blocks(pipe, torch.zeros(2, 4, 8, 16))
    assert blocks[-1].output == (2, 4, 8, 16)
    assert min(block.output[2:] for block in blocks if len(block.output) == 4)[1] <= 4


def test_no_hook_stays_after_a_trace_or_an_error(pipe):
    before = hooks(pipe.unet)
    sdlearn.trace_blocks(pipe)
    assert hooks(pipe.unet) == before
    with pytest.raises(RuntimeError):
        sdlearn.trace_blocks(pipe, torch.zeros(1, 4, 8, 8, dtype=torch.long))
    assert hooks(pipe.unet) == before


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda pipe: sdlearn.trace_blocks("postcards"), TypeError, "U-Net, got str"),
        (lambda pipe: sdlearn.trace_blocks(pipe.vae), TypeError, "got AutoencoderKL"),
        (lambda pipe: sdlearn.trace_blocks(pipe, torch.zeros(4, 8, 8)), ValueError, r"\(4, 8, 8\)"),
    ],
)
def test_bad_input(random_pipe, call, error, message):
    with pytest.raises(error, match=message):
        call(random_pipe)


def test_the_blocks_of_stable_diffusion_15(sd15_blocks):
    kinds = Counter(block.kind for block in sd15_blocks)
    assert kinds["ResnetBlock2D"] == 22 and kinds["Transformer2DModel"] == 16
    assert kinds["Downsample2D"] == kinds["Upsample2D"] == 3
    assert sum(block.parameters for block in sd15_blocks) == 859_520_964
    assert sum(block.skip is not None for block in sd15_blocks) == 12
    smallest = min(block.output[2:] for block in sd15_blocks if len(block.output) == 4)
    assert smallest == (8, 8)


def test_the_tour_draws_a_box_a_block_and_a_line_a_skip(random_pipe, sd15_blocks):
    for blocks in (sdlearn.trace_blocks(random_pipe), sd15_blocks):
        axes = unet_tour(blocks).axes[0]
        drawn = [block for block in blocks if block.kind not in ("TimestepEmbedding", "GroupNorm")]
        assert sum(isinstance(patch, FancyBboxPatch) for patch in axes.patches) == len(drawn)
        assert sum(line.get_label() == "skip" for line in axes.lines) == 12
