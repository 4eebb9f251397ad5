"""Damage and malice: told, or refused, before a picture is drawn, in words that say what to do."""

from __future__ import annotations

import json
import shutil
import struct
from pathlib import Path

import pytest
import sd15
import torch
from conftest import POSTCARDS
from safetensors.torch import load_file, save_file

import sdlearn
from sdlearn import sources

UNET = "unet/diffusion_pytorch_model.safetensors"
TEXT = "text_encoder/model.safetensors"
CHECKER = "safety_checker/model.safetensors"


def flip(path: Path, at: int) -> None:
    content = bytearray(path.read_bytes())
    content[at] ^= 1
    path.write_bytes(content)


@pytest.fixture
def package(tmp_path, monkeypatch):
    """The package's weights, where they may be damaged."""
    listed = sources.SHIPPED.read_text("utf-8").splitlines()
    for name in (line.split("  ")[1] for line in listed):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(sources.PACKAGE / name, tmp_path / name)
    monkeypatch.setattr(sources, "PACKAGE", tmp_path)
    sources._changed.cache_clear()
    yield tmp_path
    sources._changed.cache_clear()


def test_every_weight_of_the_package_is_listed():
    shipped = {*sources.PACKAGE.rglob("*.safetensors")}
    listed = [line.split("  ") for line in sources.SHIPPED.read_text("utf-8").splitlines()]
    assert {sources.PACKAGE / name for _, name in listed} == shipped
    # After a training: python -c "from sdlearn import sources; sources.record_shipped()"
    assert [name for sums, name in listed if sources.sha256(sources.PACKAGE / name) != sums] == []


def test_one_wrong_bit_in_any_weight_is_told(package):
    files = sorted(package.rglob("*.safetensors"))
    assert len(files) > 7
    for number, path in enumerate(files):
        sources._changed.cache_clear()
        sources.check_shipped()
        at = (0, -1, path.stat().st_size // 2)[number % 3]
        flip(path, at)
        sources._changed.cache_clear()
        with pytest.raises(sources.Damaged, match=path.name):
            sources.check_shipped()
        flip(path, at)


def test_load_tells_it_and_looks_once(package, monkeypatch):
    looked = []
    measure = sources.sha256
    monkeypatch.setattr(sources, "sha256", lambda path: looked.append(path) or measure(path))
    for _ in range(2):
        sdlearn.load("postcards")
    assert sorted(looked) == sorted(package.rglob("*.safetensors"))
    sources._changed.cache_clear()
    flip(package / "models/postcards/vae/diffusion_pytorch_model.safetensors", -1)
    (package / "models/edges/diffusion_pytorch_model.safetensors").unlink()
    words = r"models/edges/.*, models/postcards/vae/.* not as it was shipped\. To do: install sdl"
    with pytest.raises(RuntimeError, match=words):
        sdlearn.load("postcards")


def test_weights_that_a_reader_changes_are_the_readers(package, tmp_path, monkeypatch):
    folder = shutil.copytree(POSTCARDS, tmp_path / "mine")
    flip(folder / "vae/diffusion_pytorch_model.safetensors", -1)
    sdlearn.load(folder)
    # In the package itself they are listed anew, as training does.
    monkeypatch.setattr(sources, "SHIPPED", tmp_path / "weights.sha256")
    flip(package / "models/postcards/vae/diffusion_pytorch_model.safetensors", -1)
    shutil.rmtree(folder)
    sources.record_shipped()
    sources.check_shipped()


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    path = tmp_path_factory.mktemp("whole") / "sd15"
    sd15.write(path)
    return path


@pytest.fixture
def folder(whole, tmp_path):
    return shutil.copytree(whole, tmp_path / "sd15")


HEADERS = {
    "half": lambda b: b[: len(b) // 2],
    "empty": lambda b: b"",
    "a header of an exabyte": lambda b: struct.pack("<Q", 1 << 60) + b[8:],
    "a header longer than the file": lambda b: struct.pack("<Q", 99_000_000) + b[8:],
    "a header that is no JSON": lambda b: b[:8] + b"{" * 8 + b[16:],
    "a pickle by another name": lambda b: b"\x80\x02}q\x00." * 9,
}


@pytest.mark.parametrize("name", [UNET, TEXT])
@pytest.mark.parametrize("damage", HEADERS)
def test_headers(folder, name, damage):
    (folder / name).write_bytes(HEADERS[damage]((folder / name).read_bytes()))
    with pytest.raises(RuntimeError, match=rf"{name} is not whole, .*\. To do: get it anew"):
        sdlearn.load(folder)


@pytest.mark.parametrize("name", [UNET, TEXT, CHECKER])
def test_a_header_that_leaves_tensors_out(folder, name):
    """transformers would fill them with random numbers, and say so where nobody looks."""
    state = load_file(folder / name)
    state.pop(next(name for name in state if name.endswith("weight")))
    save_file(state, folder / name)
    with pytest.raises(RuntimeError, match=rf"{name.split('/')[0]} has [\d,]+ weights, .* hold"):
        sdlearn.load(folder)


@pytest.mark.parametrize("name", [UNET, TEXT])
def test_a_header_of_other_shapes(folder, name):
    state = load_file(folder / name)
    state[next(name for name in state if name.endswith("weight"))] = torch.zeros(3, 3)
    save_file(state, folder / name)
    with pytest.raises(RuntimeError, match=r"weights are of other shapes than its config\.json"):
        sdlearn.load(folder)


def change(path: Path, **entries) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text("utf-8")), **entries}), "utf-8")


CODE = [
    ({"unet": ["my_unet", "Net"]}, "unet/my_unet.py", "unet is my_unet.Net"),
    ({"_class_name": ["my_pipe", "Pipe"]}, "my_pipe.py", "_class_name is my_pipe.Pipe"),
    ({"vae": ["os", "system"]}, "os.py", "vae is os.system"),
    ({"text_encoder": ["transformers", "AutoModel"]}, "text_encoder/net.py", "AutoModel, code"),
]


@pytest.mark.parametrize(("entries", "file", "words"), CODE)
def test_code_in_a_folder_is_not_run(folder, tmp_path, entries, file, words):
    ran = tmp_path / "ran"
    (folder / file).write_text(f"open({str(ran)!r}, 'w'); Net = Pipe = object")
    change(folder / "model_index.json", **entries)
    auto = {"AutoModel": "net.Net", "AutoConfig": "net.Net"}
    change(folder / "text_encoder/config.json", auto_map=auto, model_type="own")
    with pytest.raises(ValueError, match=rf"{words}.* which sdlearn does not run; use a folder"):
        sdlearn.load(folder)
    assert not ran.exists()


def test_code_beside_a_tokenizer_is_not_run(folder, tmp_path):
    ran = tmp_path / "ran"
    (folder / "tokenizer/net.py").write_text(f"open({str(ran)!r}, 'w'); Net = object")
    auto = {"AutoTokenizer": ["net.Net", None]}
    change(folder / "tokenizer/tokenizer_config.json", auto_map=auto, tokenizer_class="Net")
    assert type(sdlearn.load(folder).tokenizer).__name__ == "CLIPTokenizer"
    assert not ran.exists()


def test_links(folder, whole):
    """Within a folder they are taken, and in the hub's cache; out of it they are refused."""
    (folder / UNET).rename(folder / "elsewhere.safetensors")
    (folder / UNET).symlink_to("../elsewhere.safetensors")
    sdlearn.load(folder)
    cache = folder.parent / "models--a--b"
    snapshot = cache / "snapshots" / "0"
    snapshot.parent.mkdir(parents=True)
    (folder / "elsewhere.safetensors").rename(cache / "blob")
    folder.rename(snapshot)
    (snapshot / UNET).unlink()
    (snapshot / UNET).symlink_to("../../../blob")
    sdlearn.load(snapshot)
    shutil.rmtree(snapshot / "vae")
    for target in (whole / "vae", "../../../../../vae"):
        (snapshot / "vae").symlink_to(target)
        with pytest.raises(ValueError, match=r"vae' is a link out of its folder; put the file th"):
            sdlearn.load(snapshot)
        (snapshot / "vae").unlink()


def test_a_list_of_files_does_not_lead_out(whole, tmp_path):
    sd15.write(tmp_path / "sd15", shards=3, parts=("unet",))
    for part in ("vae", "text_encoder", "safety_checker"):
        shutil.copytree(whole / part, tmp_path / "sd15" / part, dirs_exist_ok=True)
    index = tmp_path / "sd15/unet/diffusion_pytorch_model.safetensors.index.json"
    names = json.loads(index.read_text("utf-8"))["weight_map"]
    shutil.copyfile(whole / UNET, tmp_path / "outside.safetensors")
    change(index, weight_map={**names, next(iter(names)): "../../outside.safetensors"})
    with pytest.raises(RuntimeError, match=r"cannot load .*'\.\./\.\./outside.* not allowed"):
        sdlearn.load(tmp_path / "sd15")
