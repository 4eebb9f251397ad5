"""What is installed, what is imported, and what is in the repository."""

import re
import subprocess
import sys
import tomllib
import zipfile
from email import message_from_bytes
from pathlib import Path

import pytest
import yaml
from build import ABSOLUTE_PATH
from hatchling.build import build_wheel
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
CONDA_NAMES = {"torch": "pytorch", "matplotlib": "matplotlib-base"}


def requirements(without: tuple[str, ...] = ()) -> list[Requirement]:
    """All that the library and its extras ask for, without references to the extras."""
    every = PROJECT["optional-dependencies"].items()
    extras = [texts for name, texts in every if name not in without]
    texts = PROJECT["dependencies"] + [text for extra in extras for text in extra]
    return [r for r in map(Requirement, texts) if r.name != PROJECT["name"]]


def tracked_files() -> list[Path]:
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    try:
        listed = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("not a git checkout")
    return [ROOT / name for name in listed.stdout.split("\0") if (ROOT / name).is_file()]


def test_conda_environment_is_in_step_with_pyproject():
    environment = yaml.safe_load((ROOT / "environment.yml").read_text(encoding="utf-8"))
    listed = [Requirement(line) for line in environment["dependencies"] if isinstance(line, str)]
    conda = {r.name: r.specifier for r in listed if r.name not in ("python", "pip")}
    asked = requirements(without=("site",))  # conda-forge has not all that the site is built with
    assert conda == {CONDA_NAMES.get(r.name, r.name): r.specifier for r in asked}


@pytest.mark.parametrize("python", ["3.11", "3.12", "3.13", "3.14"])
def test_constraints_pin_all_requirements_within_their_ranges(python):
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pins = [Requirement(line) for line in lines if not line.startswith("#")]
    where = {"python_version": python, "python_full_version": f"{python}.1"}
    pinned = {r.name: str(r.specifier) for r in pins if not r.marker or r.marker.evaluate(where)}
    # A local version such as 2.13.0+cpu is found on one index only.
    assert [text for text in pinned.values() if not re.fullmatch(r"==[\d.]+", text)] == []
    for r in requirements():
        assert r.specifier.contains(pinned[canonicalize_name(r.name)][2:]), r


def test_wheel_holds_the_whole_package_and_every_licence(tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    wheel = zipfile.ZipFile(tmp_path / build_wheel(tmp_path))
    names = {*wheel.namelist()}
    ours = {path.relative_to(ROOT).as_posix() for path in tracked_files()}
    assert {name for name in ours if name.startswith("sdlearn/")} <= names  # with all weights
    assert {"sdlearn/py.typed", "sdlearn/__init__.pyi", "sdlearn/postcards/sprites.png"} <= names
    metadata = message_from_bytes(wheel.read(f"sdlearn-{PROJECT['version']}.dist-info/METADATA"))
    assert metadata["License-Expression"] == "MIT AND OFL-1.1 AND CC-BY-4.0"
    assert {*metadata.get_all("License-File")} == {name for name in ours if "LICENSE" in name}


def test_importing_sdlearn_imports_nothing_heavy():
    heavy = "{'torch', 'diffusers', 'transformers', 'matplotlib', 'numpy', 'PIL'}"
    code = f"import sys, sdlearn; print(sorted({heavy} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert done.stdout.strip() == "[]"


def test_no_file_is_large_or_a_pickle():
    files = tracked_files()
    assert [path for path in files if path.stat().st_size > 16e6] == []
    pickles = {".pkl", ".pickle", ".pt", ".pth", ".ckpt", ".bin"}
    assert [path for path in files if path.suffix in pickles] == []


def test_no_file_names_an_absolute_path():
    # Of the notebooks' text test_notebooks.py has the care; a tokenizer's vocabulary has any word.
    kinds = {".py", ".md", ".toml", ".txt", ".yml", ".json", ".cfg", ".cff"}
    texts = [p for p in tracked_files() if p.suffix in kinds and "tokenizer" not in p.parts]
    named = [p for p in texts if ABSOLUTE_PATH.search(p.read_text(encoding="utf-8"))]
    assert named == []
