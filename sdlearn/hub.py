"""A model from the Hugging Face hub: downloaded, compared with its checksums, or words why not.

huggingface_hub downloads, resumes and locks; here its errors become sentences that say what to do.
"""

from __future__ import annotations

import errno
import hashlib
import os
import re
import socket
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from diffusers import StableDiffusionPipeline
from huggingface_hub import constants, try_to_load_from_cache
from huggingface_hub.errors import OfflineModeIsEnabled

from sdlearn.sources import Damaged, Refused, sha256, unreadable

DIGEST = re.compile(r"[0-9a-f]{40}([0-9a-f]{24})?").fullmatch


def load(repository: str, revision: str, options: dict[str, Any]) -> StableDiffusionPipeline:
    """Return a hub's model: from the cache alone if it is whole there, for a commit never changes.

    What is not there, or is damaged, is downloaded; no hub has to answer for what is.
    """
    for offline in (True, False):
        failed: Exception | None = None
        try:
            pipe = StableDiffusionPipeline.from_pretrained(
                repository, revision=revision, local_files_only=offline, **options
            )
        except Exception as error:
            failed = error
        wrong = _remove_damaged(repository, revision, again=failed is not None)
        if not wrong and not failed:
            return pipe
    if wrong:
        names = ", ".join(wrong)
        raise Damaged(f"{names} came with other bytes than were published; removed") from failed
    assert failed
    raise failed


def _remove_damaged(repository: str, revision: str, again: bool) -> list[str]:
    """Compare each file of a model in the cache with its checksum, once; remove those that differ.

    huggingface_hub compares sizes only. A file in its cache is named after what the hub says of it,
    its SHA-256, or git's SHA-1 if it is small. What has been compared is noted there, so that
    gigabytes are read once; where a cache cannot be written to, they are read each time.

    Args:
        repository: its name.
        revision: the commit.
        again: compare all of them, whether they have been or not: one cannot be read.

    Returns:
        The names of those that are removed.
    """
    found = try_to_load_from_cache(repository, "model_index.json", revision=revision)
    if not isinstance(found, str):
        return []
    snapshot = Path(found).parent
    note = snapshot.parent.parent / "checked-by-sdlearn"
    checked = set(note.read_text("utf-8").split()) if note.exists() and not again else set()
    # Where there are no links, as on Windows, or a mirror gives other names, its care must do.
    links = [path for path in snapshot.rglob("*") if path.is_symlink()]
    names = {path: Path(os.readlink(path)).name for path in links}
    new = {path: name for path, name in names.items() if DIGEST(name) and name not in checked}
    wrong = [path for path, name in new.items() if _digest(path, len(name)) != name]
    for path in wrong:
        path.resolve().unlink(missing_ok=True)
        path.unlink(missing_ok=True)
    with suppress(OSError), note.open("a", encoding="utf-8") as file:
        file.writelines(f"{name}\n" for path, name in new.items() if path not in wrong)
    return [path.relative_to(snapshot).as_posix() for path in wrong]


def _digest(path: Path, length: int) -> str:
    """Return a file's checksum, the one that has so many digits."""
    if length == 64:
        return sha256(path)
    content = path.read_bytes()
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


@contextmanager
def explained(name: str, remedy: str) -> Iterator[None]:
    """Turn the many errors of downloading and reading into one that says what to do."""
    try:
        with warnings.catch_warnings():
            # diffusers 0.39 knows only torch_dtype, 0.42 would rather be given dtype.
            warnings.filterwarnings("ignore", "`torch_dtype` is deprecated", FutureWarning)
            yield
    except Refused:
        raise
    except Exception as error:
        what = "its configuration" if Path(name).is_file() else "it"
        reason = str(error).strip().partition("\n")[0].rstrip(".")
        if wrong := unreadable(Path(name)):
            reason = f"{', '.join(wrong)} is not whole, or no .safetensors file at all"
            remedy = "get it anew"
        reason, remedy = _in_words(error, what) or (reason, remedy)
        raise RuntimeError(f"cannot load {name!r}: {reason}. To do: {remedy}") from error


ANSWERS = {
    401: (
        "the model hub refuses (401)",
        "log out with `hf auth logout` and unset HF_TOKEN: a token that has expired is refused "
        "even where none is needed; or log in with `hf auth login`",
    ),
    403: ("the model hub refuses (403)", "ask for access on the model's page, or use another"),
    404: (
        "the model hub no longer has it in this version (404)",
        "install a newer sdlearn, or load a folder or a .safetensors file of the model",
    ),
    429: (
        "too many have asked the model hub from this address (429)",
        "wait some minutes and call load again; who is logged in (`hf auth login`) may ask more",
    ),
}
MOVE = "set HF_HOME to a folder with room that can be written to, before Python starts"
AGAIN = "call load again: the files that are whole stay, the others are fetched"
# By name: huggingface_hub has used three libraries for HTTP.
LOST = {"ReadError", "ReadTimeout", "RemoteProtocolError", "ChunkedEncodingError"}


def _in_words(error: BaseException | None, what: str) -> tuple[str, str] | None:
    """Return what happened and what to do, of the outermost error that is known."""
    cache = constants.HF_HUB_CACHE
    while error is not None:
        status = getattr(getattr(error, "response", None), "status_code", 0)
        if status in ANSWERS:
            return ANSWERS[status]
        if status >= 500:
            return f"the model hub has a fault of its own ({status})", f"wait, then {AGAIN}"
        if isinstance(error, OfflineModeIsEnabled):
            reason = f"{what} is not in the cache, and with HF_HUB_OFFLINE no hub can be reached"
            return reason, "go online once, without HF_HUB_OFFLINE, or load('postcards')"
        if "meta tensor" in str(error):  # what diffusers has found no values for
            return "some of its weights are not there", "get it anew"
        if "ignore_mismatched_sizes" in str(error):  # an option of no use here
            return "its weights are of other shapes than its config.json says", "get it anew"
        if type(error).__name__ in LOST or "Consistency check failed" in str(error):
            return "the connection to the model hub was lost", AGAIN
        number = getattr(error, "errno", None)
        if number in (errno.ENOSPC, errno.EDQUOT):
            return f"no space left in {cache}", f"make room, and {AGAIN}; or {MOVE}"
        if number in (errno.EROFS, errno.EACCES, errno.EPERM):
            place = str(getattr(error, "filename", None) or cache)
            if not place.startswith(cache):
                return f"{place} cannot be read", "give yourself the right to read it"
            return f"{cache} cannot be written to", MOVE
        if isinstance(error, (ConnectionError, TimeoutError, socket.gaierror)):
            reason = f"{what} is not in the cache, and the model hub cannot be reached"
            return reason, "go online once, to fetch it into the cache, or load('postcards')"
        error = error.__cause__ or error.__context__
    return None
