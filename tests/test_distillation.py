"""Few steps by consistency distillation: its formulas, what it leaves alone, what it ships."""

import copy

import pytest
import torch
from conftest import POSTCARDS, seeded
from diffusers import (
    DDIMScheduler,
    LCMScheduler,
    StableDiffusionPipeline,
)
from torch.utils.data import default_collate

import sdlearn
from sdlearn import encode_prompt, predict_noise
from sdlearn.postcards.evaluate import judged
from sdlearn.postcards.judge import load_judge
from sdlearn.postcards.model import FEW_STEPS
from sdlearn.postcards.tasks import TASKS, scenes_for
from sdlearn.training import distillation as few

PROMPTS = ["an orange fox in the snow at night", "two green cars in the city by day"]


def lcm(pipe, steps=4):
    scheduler = LCMScheduler.from_config(pipe.scheduler.config)
    scheduler.set_timesteps(steps)
    return scheduler


def noisy(pipe, seed=0):
    side = pipe.unet.config.sample_size
    return torch.randn(2, 4, side, side, generator=seeded(seed))


def test_boundary_scalings_are_those_of_lcm_scheduler(postcards):
    timesteps = torch.tensor([0, 1, 19, 259, 999])
    c_skip, c_out = few.boundary_scalings(timesteps)
    for i, t in enumerate(timesteps):
        theirs = lcm(postcards).get_scalings_for_boundary_condition_discrete(t)
        torch.testing.assert_close(c_skip[i].squeeze(), torch.as_tensor(theirs[0]).float())
        torch.testing.assert_close(c_out[i].squeeze(), torch.as_tensor(theirs[1]).float())
    assert (float(c_skip[0]), float(c_out[0])) == (1, 0)


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction"])
@pytest.mark.parametrize("index", [0, 3])
def test_consistency_is_what_lcm_scheduler_calls_denoised(pipe, kind, index):
    pipe.scheduler = DDIMScheduler.from_config(pipe.scheduler.config, prediction_type=kind)
    scheduler, x, said = lcm(pipe), noisy(pipe), noisy(pipe, 1)
    t = scheduler.timesteps[index]
    theirs = scheduler.step(said, t, x, generator=seeded()).denoised
    ours = few.consistency(pipe, x, t.repeat(2), said)
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


def test_at_the_end_of_its_path_a_point_stays_where_it_is(pipe):
    x = noisy(pipe)
    end = torch.zeros(2, dtype=torch.long)
    assert torch.equal(few.consistency(pipe, x, end, 100 * noisy(pipe, 1)), x)


def test_the_teachers_step_is_a_guided_step_of_ddim(pipe):
    trailing = DDIMScheduler.from_config(pipe.scheduler.config, timestep_spacing="trailing")
    trailing.set_timesteps(1000 // few.JUMP)
    embeds, x = encode_prompt(pipe, PROMPTS), noisy(pipe)
    for t, following in zip(trailing.timesteps[:-1:4], trailing.timesteps[1::4]):
        guided = predict_noise(pipe, x, t, embeds, 3.0).guided
        theirs = trailing.step(guided, t, x).prev_sample
        ours = few.teacher_step(pipe, pipe.unet, x, t.repeat(2), following.repeat(2), embeds, 3.0)
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


def test_points_are_those_that_lcm_scheduler_starts_from(postcards):
    torch.manual_seed(0)
    latents = torch.full((512, 4, 16, 16), 5.0)
    x, t = few.draw_points(postcards, latents)
    everywhere = lcm(postcards, 50).timesteps
    assert {*t.tolist()} <= {*everywhere.tolist()}
    assert len({*t.tolist()}) > 45
    at_the_end = t == 999
    assert 0.2 < at_the_end.float().mean() < 0.35
    assert x[at_the_end].mean().abs() < 0.02  # noise alone: a trace of the 5 would be 0.34
    left = postcards.scheduler.alphas_cumprod[t].sqrt()[~at_the_end]
    torch.testing.assert_close(x.mean((1, 2, 3))[~at_the_end], 5 * left, atol=0.2, rtol=0)


def test_the_loss_compares_neighbours_on_a_path(postcards):
    """One example, worked out with diffusers' schedulers alone."""
    pipe, batch = postcards, {"latents": noisy(postcards)[:1], "caption": PROMPTS[:1]}
    torch.manual_seed(4)
    x, t = few.draw_points(pipe, batch["latents"])
    assert 100 < t < 999
    torch.manual_seed(4)
    ours = few.distillation_loss(pipe.unet, pipe.unet, pipe, batch, 2.0)

    embeds = encode_prompt(pipe, PROMPTS[:1])
    trailing = DDIMScheduler.from_config(pipe.scheduler.config, timestep_spacing="trailing")
    trailing.set_timesteps(10)
    later = trailing.step(predict_noise(pipe, x, t, embeds, 2.0).guided, int(t), x).prev_sample
    ends = []
    for point, at in ((x, int(t)), (later, int(t) - 100)):
        scheduler = lcm(pipe, 50)
        said = predict_noise(pipe, point, at, embeds, 1.0).guided
        ends.append(scheduler.step(said, at, point, generator=seeded()).denoised)
    error = ends[0] - ends[1]
    sigma = (1 / scheduler.alphas_cumprod[t] - 1).sqrt()  # of the noise beside a whole picture
    theirs = ((error**2 + 1e-6).sqrt() - 1e-3).mean() / sigma.squeeze() ** 0.5
    torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-5)


@pytest.fixture
def data():
    latents = torch.randn(8, 4, 8, 8, generator=seeded(2))
    return [{"latents": each, "caption": PROMPTS[i % 2]} for i, each in enumerate(latents)]


def distil(pipe, data, folder, steps):
    torch.manual_seed(0)
    few.distil(
        pipe, data, rank=4, batch_size=8, folder=folder, steps=steps, learning_rate=3e-2,
    )  # fmt: skip


def mean_loss(pipe, teacher, data):
    torch.manual_seed(1)
    with torch.no_grad():
        batch = default_collate(data * 4)
        return float(few.distillation_loss(pipe.unet, teacher, pipe, batch, 3.0))


def test_a_student_learns_and_the_models_own_weights_stay(tiny, data, tmp_path):
    teacher = copy.deepcopy(tiny.unet)
    before = mean_loss(tiny, teacher, data)
    distil(tiny, data, tmp_path / "checkpoint", 30)
    assert mean_loss(tiny, teacher, data) < 0.85 * before
    assert not any(weight.requires_grad for weight in tiny.unet.parameters())
    tiny.unload_lora_weights()
    theirs = teacher.state_dict()
    assert tiny.unet.state_dict().keys() == theirs.keys()
    assert all(torch.equal(weight, theirs[name]) for name, weight in tiny.unet.state_dict().items())


def test_what_is_saved_draws_what_was_learnt(tiny, data, tmp_path):
    distil(tiny, data, tmp_path / "checkpoint", 3)
    for name, weight in tiny.unet.named_parameters():
        if "lora" in name:
            weight.data = weight.half().float()  # as in the file
    few.save_few_steps(tiny, tmp_path)
    x, embeds = noisy(tiny), encode_prompt(tiny, PROMPTS)

    def said():
        return predict_noise(tiny, x, 999, embeds, 1.0).text

    learnt = said()
    tiny.unload_lora_weights()
    plain = said()
    tiny.load_lora_weights(tmp_path)
    torch.testing.assert_close(said(), learnt)
    assert not torch.allclose(plain, learnt, atol=1e-3)


@pytest.fixture(scope="module")
def bare():
    """What ships, loaded by nothing but diffusers."""
    pipe = StableDiffusionPipeline.from_pretrained(POSTCARDS, torch_dtype=torch.float32)
    pipe.load_lora_weights(FEW_STEPS)
    pipe.scheduler = LCMScheduler.from_config(pipe.scheduler.config)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def right(pipe, steps):
    """How many of 20 pictures show all that is asked."""
    judge, scenes = load_judge(), [(task, scenes_for(task, 4, 7)) for task in TASKS[:5]]
    found = [
        each
        for task, asked in scenes
        for each in judged(pipe, judge, task, asked, "none", 0, 1.0, steps)
    ]
    assert len(found) == 20
    return sum(all(each.values()) for each in found)


def test_what_ships_draws_in_one_step_and_in_two_what_is_asked(bare, postcards):
    assert right(bare, 1) >= 11
    assert right(bare, 2) >= 15
    plain = copy.copy(postcards)
    plain.scheduler = DDIMScheduler.from_config(
        postcards.scheduler.config, timestep_spacing="trailing"
    )
    assert right(plain, 1) <= 6


def test_bare_diffusers_and_load_draw_the_same_picture(bare):
    pipe = sdlearn.load("postcards", device="cpu", dtype=torch.float32)
    pipe.load_lora_weights(FEW_STEPS)
    pipe.scheduler = LCMScheduler.from_config(pipe.scheduler.config)
    call = {"num_inference_steps": 2, "guidance_scale": 1.0, "output_type": "pt"}
    one, other = (each(PROMPTS, generator=seeded(), **call).images for each in (bare, pipe))
    assert torch.equal(one, other)


def test_what_ships_is_small():
    assert (FEW_STEPS / "pytorch_lora_weights.safetensors").stat().st_size < 2e6
