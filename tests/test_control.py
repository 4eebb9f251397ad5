"""ControlNet on edges: what it begins as, what it leaves alone, and that shapes follow."""

import pytest
import torch
from conftest import seeded
from diffusers import ControlNetModel, StableDiffusionControlNetPipeline
from torch.utils.data import default_collate

from sdlearn.postcards.evaluate import true_renders
from sdlearn.postcards.judge import load_judge
from sdlearn.postcards.model import EDGES
from sdlearn.postcards.render import boxes
from sdlearn.postcards.world import SUBJECTS, Scene, Thing
from sdlearn.training import control

PROMPT = "an orange fox in the snow at night"


def test_an_edge_is_where_sobels_slope_is_steep():
    flat = torch.full((1, 3, 8, 8), 0.3)
    assert control.edges(flat).sum() == 0
    step = flat.clone()
    step[:, 2, :, 4:] += 0.2  # blue only; 4 * 0.2 = 0.8 > 0.5
    lines = control.edges(step)
    assert lines.shape == (1, 3, 8, 8)
    expected = torch.zeros(8, 8)
    expected[:, 3:5] = 1  # the two columns beside the step
    assert torch.equal(lines[0], expected.expand(3, 8, 8))
    assert torch.equal(control.edges(step.mT), lines.mT)
    step[:, 2, :, 4:] -= 0.1  # 4 * 0.1 = 0.4 < 0.5
    assert control.edges(step).sum() == 0


def test_every_other_time_edges_are_those_of_the_thing_alone(postcards):
    data = control.EdgePostcards(postcards, 2, first_seed=3)
    whole = control.edges(data.pictures[1]["pixels"][None] / 2 + 0.5)[0]
    torch.manual_seed(0)
    drawn = [data[1]["edges"] for _ in range(12)]
    counts = {int(lines.sum()) for lines in drawn}
    assert len(counts) == 2 and max(counts) == int(whole.sum())
    assert all((lines <= whole).all() for lines in drawn)


def test_a_new_controlnet_is_the_unets_way_down(pipe):
    unet = pipe.unet
    own, theirs = control.make_controlnet(unet).state_dict(), unet.state_dict()
    ways_down = {
        name for name in theirs
        if name.startswith(("conv_in", "time_embedding", "down_blocks", "mid_block.resnets.0"))
        and "attentions" not in name
    }  # fmt: skip
    assert ways_down <= own.keys()
    assert all(torch.equal(own[name], theirs[name]) for name in ways_down)


def steer(pipe, net):
    both = StableDiffusionControlNetPipeline(
        **pipe.components, controlnet=net, requires_safety_checker=False
    )
    both.set_progress_bar_config(disable=True)
    return both


def drawn(pipe, net, lines, **options):
    return steer(pipe, net)(
        PROMPT, lines, num_inference_steps=3, guidance_scale=2.0, generator=seeded(),
        output_type="pt", **options,
    ).images  # fmt: skip


def plain(pipe):
    options = {"num_inference_steps": 3, "guidance_scale": 2.0, "output_type": "pt"}
    return pipe(PROMPT, generator=seeded(), **options).images


def test_untrained_it_changes_nothing(pipe):
    side = pipe.unet.config.sample_size * pipe.vae_scale_factor
    lines = (torch.rand(1, 3, side, side, generator=seeded()) > 0.9).float()
    net = control.make_controlnet(pipe.unet)
    assert torch.equal(drawn(pipe, net, lines), plain(pipe))


@pytest.fixture(scope="module")
def shipped():
    return ControlNetModel.from_pretrained(EDGES)


def test_what_ships_at_scale_0_changes_nothing_and_at_1_does(postcards, shipped):
    lines = control.edges(true_renders([Scene(Thing("fox"))]) / 2 + 0.5)
    off = drawn(postcards, shipped, lines, controlnet_conditioning_scale=0.0)
    assert torch.equal(off, plain(postcards))
    assert not torch.allclose(drawn(postcards, shipped, lines), off, atol=0.1)


def test_what_ships_is_small():
    assert sum(file.stat().st_size for file in EDGES.iterdir()) < 5e6


def test_training_moves_the_controlnet_and_nothing_else(tiny, tmp_path):
    before = {name: w.clone() for name, w in tiny.unet.state_dict().items()}
    lines = torch.rand(8, 3, 64, 64, generator=seeded()).round()
    latents = torch.randn(8, 4, 8, 8, generator=seeded(1))
    data = [{"latents": x, "edges": e, "caption": PROMPT} for x, e in zip(latents, lines)]
    net = control.make_controlnet(tiny.unet)

    @torch.no_grad()
    def loss():
        torch.manual_seed(2)
        model, batch = control.Controlled(net, tiny), default_collate(data)
        return float(sum(control.control_loss(model, tiny, batch) for _ in range(4)))

    untrained = loss()
    control.train_control(
        tiny, data, net, batch_size=8, folder=tmp_path / "checkpoint", steps=40,
        learning_rate=3e-2,
    )  # fmt: skip
    assert loss() < 0.95 * untrained
    assert all(torch.equal(w, before[name]) for name, w in tiny.unet.state_dict().items())
    assert not any(w.requires_grad for w in tiny.unet.parameters())

    control.save_edges(net, tmp_path / "net")
    again = ControlNetModel.from_pretrained(tmp_path / "net").state_dict()
    half = {name: w.half().float() for name, w in net.state_dict().items()}
    assert all(torch.equal(w, half[name]) for name, w in again.items())


@torch.no_grad()
def test_things_stand_where_the_lines_of_what_ships_say(postcards, shipped):
    """Another colour and place than the lines are from. The prompt does not say where."""
    sizes = ("small", "large") * 5
    scenes = [
        Scene(Thing(subject), setting="snow", size=size, seed=i)
        for i, (subject, size) in enumerate(zip(SUBJECTS, sizes))
    ]
    lines = control.edges(true_renders(scenes) / 2 + 0.5)
    asked = [f"a blue {scene.first.subject} in the desert at sunset" for scene in scenes]
    options = {"num_inference_steps": 5, "guidance_scale": 2.0, "output_type": "pt"}

    def right(draw, *given):
        pictures = draw(asked, *given, generator=[seeded(i) for i in range(10)], **options).images
        count = 0
        for reading, scene in zip(load_judge().read(pictures * 2 - 1), scenes):
            _, x, y, _ = boxes(scene)[0]
            there = [
                (thing.subject, thing.colour, abs(thing.x - x) <= 8 and abs(thing.y - y) <= 8)
                for thing in reading.things
            ]
            count += there == [(scene.first.subject, "blue", True)]
        return count

    assert right(steer(postcards, shipped), lines) >= 8
    assert right(postcards) <= 5
