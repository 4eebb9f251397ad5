"""The diagram of the parts: its shapes are those of the run, and nothing is left on the parts."""

import pytest
from conftest import seeded
from torch import nn

from sdlearn.show.diagram import class_and_size, parts_diagram, watch_shapes


def written(figure) -> str:
    return "\n".join(text.get_text() for text in figure.axes[0].texts)


@pytest.mark.parametrize("guidance, rows", [(5.0, 2), (1.0, 1)])
def test_the_shapes_are_those_of_the_run_not_of_the_configuration(pipe, sizes, guidance, rows):
    tall, wide = sizes
    figure = parts_diagram(
        pipe, "a red cat", height=tall, width=wide, num_inference_steps=3,
        guidance_scale=guidance, generator=seeded(),
    )  # fmt: skip
    h, w = tall // pipe.vae_scale_factor, wide // pipe.vae_scale_factor
    text = written(figure)
    depth = pipe.text_encoder.config.hidden_size
    for passed in (
        f"vectors{' of both prompts' if rows == 2 else ''} ({rows}, 77, {depth})",
        f"{'twice' if rows == 2 else 'once'}\n({rows}, 4, {h}, {w})",
        f"starting noise\n(1, 4, {h}, {w})",
        f"less noisy latents (1, 4, {h}, {w}): round again, 3 times in all",
        f"clean latents (1, 4, {h}, {w})",
        f"the picture (1, 3, {tall}, {wide})",
    ):
        assert passed in text, passed


def test_the_counts_are_those_of_the_weights():
    assert class_and_size(nn.Linear(3, 4)) == ("Linear", "16 parameters")
    assert class_and_size(nn.Linear(1200, 1000)) == ("Linear", "1.2 million parameters")


def test_no_hook_stays_even_after_an_exception(random_pipe):
    parts = (random_pipe.text_encoder, random_pipe.unet, random_pipe.vae.decoder)
    with pytest.raises(ValueError), watch_shapes(random_pipe):
        assert all(part._forward_hooks for part in parts)
        raise ValueError
    assert not any(part._forward_hooks for part in parts)
