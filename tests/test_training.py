"""Training code, on very small runs: that it learns, resumes, and that its formulas hold."""

import copy
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from accelerate import Accelerator
from conftest import POSTCARDS
from diffusers import AutoencoderKL
from PIL import Image
from torch.utils.data import DataLoader
from transformers import CLIPTokenizer

import sdlearn
from sdlearn.postcards.data import MaskedPostcards, Postcards
from sdlearn.postcards.evaluate import measure
from sdlearn.postcards.judge import NAMES, SHADES, Judge, load_judge
from sdlearn.postcards.render import boxes
from sdlearn.postcards.tasks import TASKS
from sdlearn.postcards.world import RELATIONS
from sdlearn.training import (
    Pictures,
    clip,
    decoder,
    new_pipeline,
    places,
    train_clip,
    train_unet,
    train_vae,
    unet,
    vae,
)  # fmt: skip
from sdlearn.training.__main__ import main
from sdlearn.training.loop import learning_rate_at, train


@pytest.fixture
def pixels():
    return torch.stack([Postcards(8)[i]["pixels"] for i in range(8)])


@torch.no_grad()
def test_normalising_latents_leaves_the_round_trip_as_it_was(pixels):
    torch.manual_seed(0)
    model = vae.make_vae().eval()
    posterior = model.encode(pixels).latent_dist
    before = model.decode(posterior.mean).sample
    scale = posterior.mean.std(dim=(0, 2, 3))
    vae.normalise_latents(model, pixels)
    after = model.encode(pixels).latent_dist
    torch.testing.assert_close(model.decode(after.mean).sample, before, atol=1e-3, rtol=1e-3)
    torch.testing.assert_close(after.mean.mean(dim=(0, 2, 3)), torch.zeros(4), atol=1e-3, rtol=0)
    torch.testing.assert_close(after.mean.std(dim=(0, 2, 3)), torch.ones(4), atol=1e-3, rtol=0)
    expected = posterior.std / scale[:, None, None]
    torch.testing.assert_close(after.std, expected, atol=1e-3, rtol=1e-3)


def test_the_loop_learns_and_goes_on_from_its_checkpoint(tmp_path):
    torch.manual_seed(0)
    data = [{"x": torch.randn(4)} for _ in range(64)]
    target = torch.nn.Linear(4, 1)

    def loss(model, batch):
        return (model(batch["x"]) - target(batch["x"]).detach()).square().mean()

    def run(model, steps):
        train(
            model, data, loss, batch_size=8, learning_rate=3e-2, steps=steps,
            folder=tmp_path / "checkpoint",
        )  # fmt: skip
        return mean_loss(model)

    @torch.no_grad()
    def mean_loss(model):
        return float(sum(loss(model, item) for item in data) / len(data))

    model = torch.nn.Linear(4, 1)
    untrained = mean_loss(model)
    trained = run(model, 300)
    assert trained < untrained / 2
    another = torch.nn.Linear(4, 1)
    assert run(another, 600) < trained / 2
    assert progress(tmp_path)["step"] == 600


def progress(folder):
    return json.loads((folder / "checkpoint" / "progress.json").read_text(encoding="utf-8"))


def squares(model, batch):
    return (model(batch["x"]) - 1).square().mean()


def test_too_few_examples_for_a_batch_are_an_error():
    data = [{"x": torch.randn(4)} for _ in range(3)]
    with pytest.raises(ValueError, match="3 examples do not fill a batch of 8"):
        train(torch.nn.Linear(4, 1), data, squares, batch_size=8, steps=2)
    with pytest.raises(ValueError, match="pass steps or minutes, got steps=None, minutes=None"):
        train(torch.nn.Linear(4, 1), data, squares, batch_size=2)


def test_a_run_killed_while_it_saves_goes_on_from_the_checkpoint_before(tmp_path):
    data = [{"x": torch.randn(4)} for _ in range(64)]

    def run(model, steps, accelerator=None):
        train(
            model, data, squares, batch_size=8, steps=steps, folder=tmp_path / "checkpoint",
            accelerator=accelerator,
        )  # fmt: skip

    class Killed(Accelerator):
        def save_state(self, folder):
            super().save_state(folder)
            for file in Path(folder).iterdir():
                file.write_bytes(b"half")
            raise KeyboardInterrupt

    first, again = torch.nn.Linear(4, 1), torch.nn.Linear(4, 1)
    run(first, 20)
    with pytest.raises(KeyboardInterrupt):
        run(torch.nn.Linear(4, 1), 40, Killed(device_placement=False))
    run(again, 20)
    assert torch.equal(again.weight, first.weight)
    run(torch.nn.Linear(4, 1), 40)
    assert progress(tmp_path)["step"] == 40


def test_an_interrupted_run_leaves_its_checkpoint_and_the_average_so_far(tmp_path):
    data = [{"x": torch.randn(4)} for _ in range(64)]
    model, seen = torch.nn.Linear(4, 1), []

    def stop(step, loss):
        seen.append(step)
        if step == 7:
            raise KeyboardInterrupt

    how = {"batch_size": 8, "folder": tmp_path / "checkpoint", "steps": 20}
    with pytest.raises(KeyboardInterrupt):
        train(model, data, squares, after_step=stop, **how)
    assert progress(tmp_path)["step"] == 7
    assert not model.training and not model.weight.requires_grad
    train(
        torch.nn.Linear(4, 1), data, squares, after_step=lambda step, loss: seen.append(step), **how
    )
    assert seen == list(range(1, 21))


TWO_PROCESSES = """
import sys, time
from pathlib import Path
import torch
from accelerate import Accelerator
from torch.utils.data import DataLoader
from sdlearn.training.loop import train

folder, accelerator = Path(sys.argv[1]), Accelerator(cpu=True, device_placement=False)
torch.manual_seed(0)
data = [{"x": torch.randn(4)} for _ in range(64)]
model, seen = torch.nn.Linear(4, 1), []

def loss(model, batch):
    time.sleep(0.02 if accelerator.is_main_process else 0.001)
    seen.append(batch["x"])
    return (model(batch["x"]) - batch["x"].sum(dim=1, keepdim=True)).square().mean()

train(model, data, loss, batch_size=8, folder=folder / "checkpoint", minutes=0.03,
      learning_rate=1e-2, accelerator=accelerator)
result = {"weight": model.weight.detach(), "bias": model.bias.detach(), "seen": torch.stack(seen)}
torch.save(result, folder / f"{accelerator.process_index}.pt")
"""


@pytest.mark.skipif(
    sys.platform == "win32", reason="torch.distributed does not start there: PyTorch issue 139990"
)
def test_two_processes_stop_together_with_the_same_weights(tmp_path):
    script = tmp_path / "two.py"
    script.write_text(TWO_PROCESSES, encoding="utf-8")
    launch = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--local-addr=localhost",
        "--nproc-per-node=2",
    ]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    subprocess.run([*launch, str(script), str(tmp_path)], check=True, timeout=120, env=environment)
    one, other = (torch.load(tmp_path / f"{i}.pt") for i in (0, 1))
    assert one["seen"].shape == other["seen"].shape  # as many steps ...
    assert not torch.equal(one["seen"], other["seen"])  # ... on different pictures
    assert torch.equal(one["weight"], other["weight"])
    assert torch.equal(one["bias"], other["bias"])


def test_the_learning_rate_warms_up_and_ends_at_zero():
    assert learning_rate_at(0) < 0.05
    assert learning_rate_at(0.2) == 1
    assert learning_rate_at(1) == pytest.approx(0)


def test_every_loss_is_finite_and_reaches_every_weight():
    torch.manual_seed(0)
    tokenizer = CLIPTokenizer.from_pretrained(POSTCARDS / "tokenizer")
    batch = next(iter(DataLoader(Postcards(4), 4)))
    masked = next(iter(DataLoader(MaskedPostcards(4), 4)))
    assert torch.equal(masked["pixels"], batch["pixels"])
    encoder = vae.Autoencode(vae.make_vae())
    matcher = clip.Contrast(clip.make_text_encoder(), clip.make_image_encoder())
    predictor = unet.TextToNoise(clip.make_text_encoder().train(), unet.make_unet())
    reader = places.Reader(clip.make_text_encoder())
    described = places.Captions(Postcards(4))
    assert any(described[i]["subjects"].max() >= 0 for i in range(4))  # a pair among them
    captions = next(iter(DataLoader(described, 4)))
    ids = torch.randint(49_408, (4, 77))
    rivals = decoder.Rivals(vae.make_vae())
    losses = {
        rivals: decoder.decoder_loss(rivals, masked, Judge().requires_grad_(False)),
        reader: places.places_loss(reader, captions, tokenizer, clip.make_text_encoder()),
        encoder: vae.vae_loss(encoder, masked),
        matcher: clip.clip_loss(matcher, batch, tokenizer),
        predictor: unet.unet_loss(predictor, unet.make_scheduler(), torch.randn(4, 4, 16, 16), ids),
    }
    for model, loss in losses.items():
        assert torch.isfinite(loss)
        loss.backward()
        trained = {name: w.grad for name, w in model.named_parameters() if w.requires_grad}
        assert not [name for name, gradient in trained.items() if gradient is None]
        assert model is rivals or len(trained) == len(list(model.parameters()))


def test_decoder_and_critic_each_learn_from_their_own_side_of_the_game():
    rivals, pixels = decoder.Rivals(vae.make_vae()), torch.rand(2, 3, 32, 32) * 2 - 1
    out = rivals(pixels)
    assert torch.equal(out.fooled, out.of_decoded)
    assert out.of_true.shape == (2, 1, 4, 4)
    for said, learns in ((out.fooled, "autoencode"), (out.of_decoded + out.of_true, "critic")):
        rivals.zero_grad()
        said.sum().backward()
        moved = {name.split(".")[0] for name, w in rivals.named_parameters() if w.grad is not None}
        assert moved == {learns}


@torch.no_grad()
def test_the_perceptual_distance_grows_with_blur_and_is_none_between_equals():
    judge, pixels = load_judge(), Postcards(1)[0]["pixels"][None]
    soft = [F.avg_pool2d(pixels, width, 1, width // 2) for width in (1, 3, 7)]
    distances = [float(decoder.perceptual_distance(judge, other, pixels)) for other in soft]
    assert distances[0] == 0
    assert 0 < distances[1] < distances[2] < 4  # 4: opposite everywhere


def test_unused_words_share_one_vector():
    tokenizer = CLIPTokenizer.from_pretrained(POSTCARDS / "tokenizer")
    model = clip.make_text_encoder()
    used = clip.neutralise_unused_words(model, tokenizer, ["a red cat", "a dog"])
    assert used == 6  # start, a, red, cat, dog, end
    weight = model.get_input_embeddings().weight
    red, zebra, tractor = (tokenizer(w).input_ids[1] for w in ("red", "zebra", "tractor"))
    assert torch.equal(weight[zebra], weight[tractor])
    assert not torch.equal(weight[zebra], weight[red])


def test_telling_captions_from_near_misses_is_counted_right():
    class Knows(torch.nn.Module):
        def forward(self, pixels, ids):
            right = torch.eye(len(pixels))
            right[0] = 0  # the first picture fits its near miss better
            return torch.cat([right, torch.eye(len(pixels)) * 0.5], dim=1), None

    tokenizer = CLIPTokenizer.from_pretrained(POSTCARDS / "tokenizer")
    examples = [Postcards(4)[i] for i in range(4)]
    assert clip.tell_apart(Knows(), examples, tokenizer) == 0.75


def test_clip_is_held_near_the_states_it_had_before():
    torch.manual_seed(0)
    tokenizer = CLIPTokenizer.from_pretrained(POSTCARDS / "tokenizer")
    batch = next(iter(DataLoader(Postcards(4), 4)))
    model = clip.Contrast(clip.make_text_encoder(), clip.make_image_encoder()).eval()
    free = clip.clip_loss(model, batch, tokenizer)
    held = clip.clip_loss(model, batch, tokenizer, before=model.text_encoder)
    moved = clip.clip_loss(model, batch, tokenizer, before=clip.make_text_encoder().eval())
    assert torch.equal(held, free)
    assert moved > free + 1


def test_the_text_encoder_is_asked_what_the_picture_shows():
    pairs = [scene for i in range(60) if (scene := Postcards(60).scene(i)).second is not None]
    assert {scene.relation for scene in pairs} == set(RELATIONS)
    for scene in pairs:
        axis = 1 if scene.relation in ("left of", "right of") else 2  # x or y in a box
        drawn = [box[0] for box in sorted(boxes(scene), key=lambda box: box[axis])]
        expected = [None, None, *drawn] if axis == 2 else [*drawn, None, None]
        for thing, subject, colour in zip(expected, *places.what_stands_where(scene)):
            assert subject == (NAMES.index(thing.subject) if thing else places.NOTHING)
            assert colour == (SHADES.index(thing.colour) if thing else places.UNASKED)
    alone = next(scene for i in range(60) if (scene := Postcards(60).scene(i)).second is None)
    assert set(sum(places.what_stands_where(alone), [])) == {places.UNASKED}


def retrain(folder, *arguments, launch=("-m", "sdlearn.training")):
    command = [sys.executable, *launch, *arguments, "--folder", str(folder)]
    environment = {**os.environ, "ACCELERATE_USE_CPU": "true"}
    subprocess.run(command, check=True, timeout=600, env=environment)


def test_the_whole_chain_makes_a_model_that_loads(tmp_path):
    small = ("--steps", "2", "--pictures", "16", "--batch-size", "4")
    folder = tmp_path / "packed"
    retrain(tmp_path / "run", *small, "--out", str(folder))
    pipe = sdlearn.load(str(folder), device="cpu")
    assert {path.parent.name for path in folder.glob("*/config.json")} == {
        "image_encoder", "text_encoder", "unet", "vae",
    }  # fmt: skip
    assert max(path.stat().st_size for path in folder.rglob("*")) < 16 * 2**20
    assert str(tmp_path) not in "".join(
        path.read_text(encoding="utf-8") for path in folder.rglob("*.json")
    )
    assert (folder / "judge.safetensors").exists()
    assert sdlearn.tokenize(pipe, "a red cat").ids[:5].tolist() == [49406, 320, 736, 2368, 49407]
    assert pipe("a red cat", num_inference_steps=2, output_type="pt").images.isfinite().all()


def test_a_decoder_learns_on_and_leaves_the_latents_as_they_were(tmp_path):
    small = ("--steps", "2", "--pictures", "8", "--batch-size", "4")
    retrain(tmp_path, "decoder", *small)
    before, after = (
        AutoencoderKL.from_pretrained(f / "vae") for f in (POSTCARDS, tmp_path / "model")
    )
    changed = {name for name, weight in before.named_parameters()
               if not torch.equal(weight, after.get_parameter(name))}  # fmt: skip
    assert {name.split(".")[0] for name in changed} == {"decoder", "post_quant_conv"}


def test_two_minutes_of_training_lower_the_loss_and_raise_the_judges_score(tmp_path):
    # The U-Net begins with random weights, and learns places and times first.
    shutil.copytree(POSTCARDS / "text_encoder", tmp_path / "model" / "text_encoder")
    pipe, judge = sdlearn.load("postcards", device="cpu"), load_judge()
    settings = {"prompts": 32, "seeds": 1, "guidance": 2.0, "steps": 10, "easy": True}

    def score():
        rows = measure(pipe, judge, TASKS[1], **settings)
        return rows["setting"]["all"][0] + rows["time of day"]["all"][0]  # of 64

    torch.manual_seed(0)
    pipe.unet = unet.make_unet().eval()
    untrained = score()
    batches = ("--pictures", "256", "--batch-size", "8", "--steps", "299")
    retrain(tmp_path, "unet-easy", "--freeze-text", "--learning-rate", "1.5e-3", *batches)
    pipe.unet = type(pipe.unet).from_pretrained(tmp_path / "model" / "unet").eval()
    first, last = progress(tmp_path / "unet-easy")["losses"]  # of steps 1 to 100, and of 101 to 200
    assert last < 0.7 * first
    assert score() >= untrained + 6


def weights_of(pipe):
    parts = ("vae", "text_encoder", "image_encoder", "unet")
    return {part: copy.deepcopy(getattr(pipe, part).state_dict()) for part in parts}


def test_each_part_is_trained_in_place_and_no_other():
    torch.manual_seed(0)
    pipe, data = new_pipeline(), MaskedPostcards(4)
    pipe.set_progress_bar_config(disable=True)
    steps, described = [], Postcards(4)
    how = {"steps": 1, "batch_size": 4, "after_step": lambda *each: steps.append(each)}
    runs = {
        ("vae",): lambda: train_vae(pipe, data, **how),
        ("text_encoder", "image_encoder"): lambda: train_clip(pipe, described, **how),
        ("image_encoder",): lambda: train_clip(pipe, described, train_text=False, **how),
        ("text_encoder", "unet"): lambda: train_unet(pipe, described, **how),
        ("unet",): lambda: train_unet(pipe, described, train_text=False, **how),
    }
    for parts, run in runs.items():
        before = weights_of(pipe)
        run()
        for part, weights in before.items():
            module = getattr(pipe, part)
            same = all(torch.equal(weights[name], w) for name, w in module.state_dict().items())
            assert same != (part in parts)
            assert not module.training
            assert not any(w.requires_grad for w in module.parameters())
    assert [step for step, _ in steps] == [1] * len(runs)
    assert all(loss > 0 for _, loss in steps)


def test_pictures_are_encoded_once_in_their_order(tmp_path):
    pipe, data = sdlearn.load("postcards", device="cpu"), Postcards(3)
    pixels = torch.stack([data[i]["pixels"] for i in range(3)])
    expected = pipe.vae.encode(pixels).latent_dist.mean
    file = tmp_path / "latents.safetensors"
    latents = unet.encode_pictures(pipe, data, file=file)
    torch.testing.assert_close(latents.float(), expected, atol=2e-3, rtol=2e-3)
    assert torch.equal(unet.encode_pictures(None, data, file=file), latents)
    assert len(unet.encode_pictures(pipe, Postcards(2), file=file)) == 2


@pytest.fixture
def folder_of_pictures(tmp_path):
    """Four pictures of a class's own, one of them with transparency, and two bad files."""
    folder = tmp_path / "pictures"
    folder.mkdir()
    lines = []
    for i, colour in enumerate(("red", "blue", "green", (255, 255, 0, 128))):
        mode = "RGBA" if isinstance(colour, tuple) else "RGB"
        Image.new(mode, (200, 150 + 10 * i), colour).save(folder / f"{i}.png")
        lines.append(json.dumps({"file_name": f"{i}.png", "text": f"a wall, {i}"}))
    (folder / "broken.jpg").write_bytes((folder / "0.png").read_bytes()[:40])
    (folder / "notes.txt").write_text("no picture", encoding="utf-8")
    lines.append(json.dumps({"file_name": "gone.png", "text": "nothing"}))
    (folder / "metadata.jsonl").write_text("\n".join(lines), encoding="utf-8")
    return folder


def test_a_folder_of_pictures_is_a_data_set(folder_of_pictures, capsys):
    data = Pictures(folder_of_pictures, (128, 96))
    said = capsys.readouterr().out
    assert "left out" in said and "broken.jpg" in said and "gone.png" in said
    assert [file.name for file in data.files] == ["0.png", "1.png", "2.png", "3.png"]
    assert data[0]["pixels"].shape == (3, 128, 96)
    assert data[0]["caption"] == "a wall, 0"
    assert data[1]["pixels"].mean((1, 2)).tolist() == [-1, -1, 1]  # blue
    assert data[3]["pixels"].amin() > -0.01  # half yellow, on white


LAUNCH_TWO = ["-m", "accelerate.commands.launch", "--cpu", "--num_processes", "2"]


@pytest.mark.skipif(
    sys.platform == "win32", reason="torch.distributed does not start there: PyTorch issue 139990"
)
def test_two_processes_train_a_model_on_pictures_of_ones_own(folder_of_pictures, tmp_path):
    run = tmp_path / "run"
    small = ("--data", str(folder_of_pictures), "--steps", "2", "--batch-size", "1")
    retrain(run, *small, launch=(*LAUNCH_TWO, "-m", "sdlearn.training"))
    pipe = sdlearn.load(str(run / "packed"), device="cpu")
    assert progress(run / "unet-all")["step"] == 2
    assert pipe("a wall", num_inference_steps=2, output_type="pt").images.isfinite().all()


def test_lessons_of_postcards_are_refused_for_other_pictures(folder_of_pictures, capsys):
    assert main(["places", "--data", str(folder_of_pictures)]) == 2
    assert (
        "places needs postcards; from --data learn vae, clip, unet-all" in capsys.readouterr().err
    )
