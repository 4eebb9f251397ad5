"""Stable Diffusion 1.5 through every door: a hub on this machine, a folder, one file.

The model is the published one at reduced width, written by sd15.py; the hub is played by hub.py.
Each reader has a Python of their own, which is told what to load and answers with what load said.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import sd15
import torch
from conftest import seeded
from diffusers import PNDMScheduler
from hub import Hub
from safetensors.torch import save_file

import sdlearn
from sdlearn import sources
from sdlearn.pipeline import MODELS

UNET = "unet/diffusion_pytorch_model.safetensors"
VAE = "vae/diffusion_pytorch_model.safetensors"
WEIGHTS = {UNET, VAE, "text_encoder/model.safetensors", "safety_checker/model.safetensors"}
LAST_TEXT = "cond_stage_model.transformer.text_model.final_layer_norm.weight"
HALF = {name.replace(".safetensors", ".fp16.safetensors") for name in WEIGHTS}
READER = """
import json, sys
from huggingface_hub import constants
import sdlearn, torch
from test_doors import digest
constants.DOWNLOAD_CHUNK_SIZE = 10_000  # what is lost with a line: 10 MB, larger than these files
for line in sys.stdin:
    order = json.loads(line)
    constants.HF_HUB_CACHE, constants.HF_HUB_OFFLINE = order["cache"], order["offline"]
    try:
        pipe = sdlearn.load("sd15", device="cpu", dtype=getattr(torch, order["dtype"]))
        answer = digest(pipe)
    except Exception as error:
        answer = type(error).__name__ + ": " + str(error)
    print("answer " + json.dumps(answer), flush=True)
"""


def digest(pipe) -> str:
    """Return one number for all weights of a pipeline."""
    every = hashlib.sha256()
    for part in sd15.WEIGHTS:
        for name, value in sorted(getattr(pipe, part).state_dict().items()):
            every.update(name.encode() + value.numpy().tobytes())
    return every.hexdigest()


class Reader:
    """A Python of its own that loads sd15 when told to."""

    def __init__(self, endpoint: str, home: Path):
        env = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
        env |= {"HF_ENDPOINT": endpoint, "HF_HOME": str(home), "OMP_NUM_THREADS": "1"}
        env |= {"PYTHONPATH": str(Path(__file__).parent), "HF_HUB_ETAG_TIMEOUT": "9"}
        self.said = home / "stderr.txt"
        home.mkdir()
        with self.said.open("w") as stderr:
            self.process = subprocess.Popen(
                [sys.executable, "-c", READER],
                env=env,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=stderr,
                text=True,
            )

    def tell(self, cache: Path, *, offline: bool = False, dtype: str = "float32") -> None:
        order = {"cache": str(cache), "offline": offline, "dtype": dtype}
        self.process.stdin.write(json.dumps(order) + "\n")
        self.process.stdin.flush()

    def answer(self) -> str:
        for line in self.process.stdout:
            if line.startswith("answer "):
                return json.loads(line.removeprefix("answer "))
        raise AssertionError(self.said.read_text()[-2000:])

    def load(self, cache: Path, **how) -> str:
        """Return the digest of what was loaded, or the error."""
        self.tell(cache, **how)
        return self.answer()

    def __enter__(self) -> Reader:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.wait()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("hub") / "sd15"
    sd15.write(path)
    return path


@pytest.fixture(scope="module")
def whole(folder):
    return digest(sdlearn.load(folder, device="cpu"))


@pytest.fixture(scope="module")
def served(folder, tmp_path_factory):
    path = shutil.copytree(folder, tmp_path_factory.mktemp("served") / "sd15")
    for name in sd15.LEFT_ALONE:
        (path / name).write_bytes(b"not to be fetched" * 2000)
    with Hub(path, *MODELS["sd15"]) as hub:
        yield hub


@pytest.fixture
def hub(served):
    served.heal()
    return served


@pytest.fixture(scope="module")
def readers(served, tmp_path_factory):
    homes = [tmp_path_factory.mktemp("reader") / "home" for _ in range(2)]
    with Reader(served.endpoint, homes[0]) as first, Reader(served.endpoint, homes[1]) as second:
        yield first, second


@pytest.fixture
def reader(readers):
    return readers[0]


@pytest.fixture
def full(reader, hub, tmp_path):
    """A cache that holds the whole model."""
    assert "Error" not in reader.load(tmp_path / "full")
    hub.heal()
    return tmp_path / "full"


def leftovers(cache: Path) -> list[Path]:
    return [path for path in cache.rglob("*") if "incomplete" in path.name]


def test_downloads_once_and_says_how_far_it_is(reader, hub, tmp_path, whole):
    before = len(reader.said.read_text())
    assert reader.load(tmp_path) == whole
    fetched = hub.fetched()
    assert {name for name in fetched if name.endswith(".safetensors")} == WEIGHTS
    assert sorted({*fetched}) == sorted(fetched)  # each of them once
    assert not {*fetched} & {*sd15.LEFT_ALONE}
    bar = reader.said.read_text()[before:]
    assert "Fetching" in bar
    assert "100%" in bar
    hub.heal()
    before = len(reader.said.read_text())
    assert reader.load(tmp_path) == whole
    assert hub.asked == []
    assert "Fetching" not in reader.said.read_text()[before:]
    assert "Error" not in reader.load(tmp_path, dtype="float16")  # another file of each part
    assert {name for name in hub.fetched() if name.endswith(".safetensors")} == HALF


def test_offline(reader, hub, full, tmp_path, whole):
    said = reader.load(tmp_path / "empty", offline=True)
    assert "it is not in the cache, and with HF_HUB_OFFLINE no hub can be reached" in said
    assert reader.load(full, offline=True) == whole
    assert hub.asked == []


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        ((401, {}), r"refuses \(401\)\. To do: log out .* unset HF_TOKEN"),
        (
            (404, {"X-Error-Code": "RevisionNotFound"}),
            r"this version \(404\)\. To do: install a new",
        ),
        (
            (429, {}),
            r"too many have asked .*\(429\)\. To do: wait some minutes and call load again",
        ),
        ((500, {}), r"a fault of its own \(500\)\. To do: wait, then call load again"),
        ((503, {}), r"a fault of its own \(503\)"),
    ],
)
def test_what_the_hub_answers(reader, hub, full, tmp_path, whole, answer, words):
    hub.status = answer
    assert re.search(f"^RuntimeError: cannot load 'sd15': .*{words}", reader.load(tmp_path / "new"))
    assert reader.load(full) == whole  # which needs no hub
    hub.heal()
    assert reader.load(tmp_path / "new") == whole


def test_no_network(tmp_path):
    """Once from the start: there, nothing has been connected."""
    with Reader("http://127.0.0.1:9", tmp_path / "home") as reader:  # where nobody answers
        said = reader.load(tmp_path / "cache")
    assert "it is not in the cache, and the model hub cannot be reached. To do: go online" in said


def test_a_broken_line_is_taken_up_where_it_broke(reader, hub, tmp_path, whole):
    hub.cut = {UNET: [50_000]}
    assert reader.load(tmp_path) == whole
    ranges = [wanted for method, what, wanted in hub.asked if (method, what) == ("GET", UNET)]
    assert ranges == ["", "bytes=50000-"]


def test_a_line_that_stays_broken(reader, hub, tmp_path, whole):
    hub.cut = {UNET: [50_000] + [0] * 9}
    said = reader.load(tmp_path)
    assert "the connection to the model hub was lost. To do: call load again" in said
    assert leftovers(tmp_path) == []
    hub.heal()
    assert reader.load(tmp_path) == whole
    assert hub.fetched() == [UNET]  # what had come is kept


@pytest.mark.parametrize("name", [UNET, "vae/config.json"])
def test_wrong_bytes(reader, hub, tmp_path, whole, name):
    hub.flip = {name}
    said = reader.load(tmp_path)
    assert f"{name} came with other bytes than were published; removed. To do: call load" in said
    hub.heal()
    assert reader.load(tmp_path) == whole
    assert hub.fetched() == [name]


def test_a_mirror_that_names_files_otherwise(reader, hub, tmp_path, whole, monkeypatch):
    monkeypatch.setitem(hub.hashes, UNET, "d41d8cd98f00b204e9800998ecf8427e-2")  # as storage does
    assert reader.load(tmp_path) == whole


def test_fewer_bytes(reader, hub, tmp_path, whole):
    hub.short = {UNET}
    assert "the connection to the model hub was lost" in reader.load(tmp_path)
    assert not [*tmp_path.glob(f"*/snapshots/*/{UNET}")]
    hub.heal()
    assert reader.load(tmp_path) == whole
    assert UNET in hub.fetched()


def test_a_cache_that_is_damaged_is_mended(reader, hub, full, whole):
    """A file that another program fetched wrongly, and one that the disk has lost half of."""
    for name, damage in ((UNET, lambda b: b[:-1] + b"?"), (VAE, lambda b: b[:1000])):
        (note,) = full.glob("*/checked-by-sdlearn")
        if name == UNET:
            note.unlink()
        (blob,) = (path.resolve() for path in full.glob(f"*/snapshots/*/{name}"))
        blob.write_bytes(damage(blob.read_bytes()))
        hub.heal()
        assert reader.load(full) == whole
        assert hub.fetched() == [name]


@contextlib.contextmanager
def mounted(path: Path, *commands: list[str]) -> Iterator[None]:
    """Mount something at a path; skip where that is not allowed."""
    path.mkdir()
    try:
        for command in commands:
            if (
                shutil.which("mount") is None
                or subprocess.run(
                    ["mount", *command, str(path)], stderr=subprocess.DEVNULL
                ).returncode
            ):
                pytest.skip("mounting a small or a read-only disk needs root, and Linux")
        yield
    finally:
        subprocess.run(["umount", "--lazy", str(path)], stderr=subprocess.DEVNULL)


@pytest.mark.skipif(sys.platform != "linux", reason="mount is another command elsewhere")
def test_full_disk(reader, hub, tmp_path, whole):
    disk = tmp_path / "disk"
    with mounted(disk, ["-t", "tmpfs", "-o", "size=3m", "tmpfs"]):
        said = reader.load(disk)
        assert f"no space left in {disk}. To do: make room, and call load again" in said
        assert "set HF_HOME" in said
        assert leftovers(disk) == []
        subprocess.run(["mount", "-o", "remount,size=99m", str(disk)], check=True)
        kept = len([*disk.glob("*/snapshots/*/*/*.safetensors")])
        hub.heal()
        assert reader.load(disk) == whole
        assert len([name for name in hub.fetched() if name in WEIGHTS]) == 4 - kept


@pytest.mark.skipif(sys.platform != "linux", reason="mount is another command elsewhere")
def test_read_only_cache(reader, hub, full, tmp_path, whole):
    disk = tmp_path / "disk"
    commands = ["--bind", str(full)], ["-o", "remount,ro,bind"]
    with mounted(disk, *commands):
        assert reader.load(disk) == whole
        assert hub.asked == []
        said = reader.load(disk, dtype="float16")  # whose files are not there
    assert f"{disk} cannot be written to. To do: set HF_HOME" in said


def test_two_at_once_and_one_that_is_killed(readers, served, hub, tmp_path, whole):
    hub.pace = 0.2
    for reader in readers:
        reader.tell(tmp_path / "both")
    assert [reader.answer() for reader in readers] == [whole, whole]
    assert sorted(hub.fetched()) == sorted({*hub.fetched()})  # each file once, for both
    hub.heal()
    hub.pace = 1.0
    first, second = readers
    second.tell(tmp_path / "killed")
    deadline = time.monotonic() + 60
    while not leftovers(tmp_path / "killed") and time.monotonic() < deadline:
        time.sleep(0.01)
    second.process.kill()
    second.process.wait()
    assert leftovers(tmp_path / "killed")  # the half that is left, which nobody takes for whole
    hub.heal()
    assert first.load(tmp_path / "killed") == whole


def same(one, other) -> bool:
    """Whether U-Net, VAE and text encoder are equal to the last bit."""
    parts = [(getattr(one, part), getattr(other, part)) for part in sd15.SIZES]
    states = [(a.state_dict(), b.state_dict()) for a, b in parts]
    return all(
        a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a) for a, b in states
    )


def test_the_folder_holds_what_was_built(folder, whole):
    pipe = sdlearn.load(folder)
    for part in sd15.WEIGHTS:
        built = sd15.build(part, sd15.configs(full=False)[f"{part}/config.json"]).state_dict()
        read = getattr(pipe, part).state_dict()
        assert read.keys() == built.keys()
        assert all(torch.equal(read[name], built[name]) for name in built)
    assert type(pipe.scheduler) is PNDMScheduler
    assert pipe.scheduler.config.skip_prk_steps
    assert pipe.tokenizer("a photo of a cat").input_ids == [49406, 320, 1125, 539, 320, 2368, 49407]
    trace = sdlearn.text_to_image(
        pipe, "a cat", num_inference_steps=2, height=64, width=64, generator=seeded()
    )
    plain = {"num_inference_steps": 2, "height": 64, "width": 64, "output_type": "latent"}
    assert torch.equal(trace.latents, pipe("a cat", **plain, generator=seeded()).images)


def test_sharded_as_well(folder, whole, tmp_path):
    sd15.write(tmp_path, shards=3)
    assert len([*tmp_path.glob("unet/*-of-*.safetensors")]) > 4
    assert digest(sdlearn.load(tmp_path)) == whole


def test_sizes_are_the_published_ones():
    """Of what is written at full size, and of what a checkpoint in one file is read with."""
    layout = {
        path.relative_to(sources.SD15_LAYOUT).as_posix(): json.loads(path.read_text("utf-8"))
        for path in sources.SD15_LAYOUT.rglob("*.json")
    }
    index = layout.pop("model_index.json")
    assert all(sd15.CONFIGS[name] == config for name, config in layout.items())
    assert {name for name, part in index.items() if part != [None, None]} >= {*sd15.SIZES}
    with torch.device("meta"):
        for part, size in sd15.SIZES.items():
            model = sd15.build(part, layout[f"{part}/config.json"])
            assert sum(weight.numel() for weight in model.parameters()) == size


def test_checkpoint(folder, tmp_path, monkeypatch):
    """Offline, and with what the package carries, but for the widths."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr(sources, "SD15_LAYOUT", folder)
    path = tmp_path / "model.safetensors"
    state = sd15.compvis(folder)
    save_file(state, path)
    pipe = sdlearn.load(path)
    assert same(pipe, sdlearn.load(folder))
    assert type(pipe.scheduler) is PNDMScheduler
    assert pipe.safety_checker is None
    for name in ("model.diffusion_model.out.0.weight", LAST_TEXT):
        save_file({other: value for other, value in state.items() if other != name}, path)
        with pytest.raises(RuntimeError, match=r"some of its weights|text_encoder has 1,197,432"):
            sdlearn.load(path)
    save_file({**state, "conditioner.embedders.0.x": torch.zeros(1)}, path)
    with pytest.raises(ValueError, match=r"another family .* chapter 17 .* Use load\(.sd15.\)"):
        sdlearn.load(path)


@pytest.mark.parametrize("suffix", [".ckpt", ".bin", ".pt"])
def test_a_pickle_is_refused(tmp_path, suffix):
    path = tmp_path / f"model{suffix}"
    torch.save({}, path)
    with pytest.raises(ValueError, match=r"is a pickle, which can run any code.*\.safetensors"):
        sdlearn.load(path)


FAMILIES = {
    "StableDiffusionXLPipeline": ["unet", "vae", "text_encoder", "text_encoder_2"],
    "StableDiffusion3Pipeline": ["transformer", "vae", "text_encoder", "text_encoder_2"],
    "FluxPipeline": ["transformer", "vae", "text_encoder", "text_encoder_2"],
}


@pytest.mark.parametrize("kind", FAMILIES)
def test_later_families(tmp_path, kind):
    index = {"_class_name": kind, **{part: ["diffusers", "Any"] for part in FAMILIES[kind]}}
    (tmp_path / "model_index.json").write_text(json.dumps(index))
    with pytest.raises(ValueError, match=rf"holds a {kind} of another family .* chapter 17"):
        sdlearn.load(tmp_path)
