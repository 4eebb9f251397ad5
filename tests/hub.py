"""A model hub on this machine: what huggingface_hub asks for, answered from a folder.

``with Hub(folder, repository, revision) as hub:`` serves it at ``hub.endpoint``, for HF_ENDPOINT.
As on the real one, small files are answered by the hub itself, and large ones by a redirect to
another host, which knows ranges. ``hub.asked`` lists what was asked for. Faults are set from
outside, at any time: ``hub.status``, ``hub.cut``, ``hub.flip``, ``hub.short``.
"""

from __future__ import annotations

import hashlib
import json
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

SMALL = 20_000  # bytes; above it, a file lies on the other host


class Hub:
    """The folder and its faults."""

    def __init__(self, folder: Path, repository: str, revision: str):
        self.files = {
            path.relative_to(folder).as_posix(): path
            for path in sorted(folder.rglob("*"))
            if path.is_file()
        }
        self.hashes = {name: _hash(path) for name, path in self.files.items()}
        self.repository, self.revision = repository, revision
        self.server = ThreadingHTTPServer(
            ("127.0.0.1", 0), type("Bound", (_Answer,), {"hub": self})
        )
        port = self.server.server_port
        self.endpoint, self.other_host = f"http://127.0.0.1:{port}", f"http://localhost:{port}"
        self.heal()

    def heal(self) -> None:
        """Forget what was asked for, and all faults."""
        self.asked: list[tuple[str, str, str]] = []  # (method, what, range)
        self.status: tuple[int, dict[str, str]] | None = None  # to every question
        self.cut: dict[
            str, list[int]
        ] = {}  # file -> after how many bytes the line breaks, each time
        self.flip: set[str] = set()  # of the right size, with one wrong bit
        self.short: set[str] = set()  # less than it says
        self.pace = 0.0  # seconds before each file's bytes

    def fetched(self) -> list[str]:
        """Return the files whose bytes were asked for, in order, as often as they were."""
        return [what for method, what, _ in self.asked if method == "GET" and what in self.files]

    def __enter__(self) -> Hub:
        threading.Thread(target=self.server.serve_forever, args=(0.05,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.server.shutdown()
        self.server.server_close()


def _hash(path: Path) -> str:
    """Return a file's name in the hub's books: git's for a small one, SHA-256 for a large one."""
    content = path.read_bytes()
    if len(content) > SMALL:
        return hashlib.sha256(content).hexdigest()
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


class _Answer(BaseHTTPRequestHandler):
    """One connection."""

    hub: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: object) -> None:
        pass

    def do_HEAD(self) -> None:  # noqa: N802
        self.do_GET()

    def do_GET(self) -> None:  # noqa: N802
        hub, path = self.hub, unquote(urlsplit(self.path).path)
        resolve = f"/{hub.repository}/resolve/{hub.revision}/"
        name = path.removeprefix(resolve).removeprefix("/stored/")
        hub.asked.append((self.command, name, self.headers.get("Range", "")))
        if hub.status:
            status, headers = hub.status
            self._say(status, {"error": "as told"}, headers)
        elif path == f"/api/models/{hub.repository}/revision/{hub.revision}":
            siblings = [{"rfilename": each} for each in hub.files]
            about = {"id": hub.repository, "sha": hub.revision, "siblings": siblings}
            self._say(200, {**about, "private": False, "gated": False, "tags": []})
        elif path == f"/api/models/{hub.repository}/tree/{hub.revision}":
            self._say(200, [*self._tree()])
        elif path == "/stored/" + name and name in hub.files:
            self._file(name)
        elif path == resolve + name and name in hub.files:
            if hub.files[name].stat().st_size <= SMALL:
                self._file(name)
            else:
                self._elsewhere(name)
        else:
            known = path.startswith(f"/{hub.repository}/resolve/")
            self._say(404, {"error": "no"}, {"X-Error-Code": "EntryNotFound"} if known else {})

    def _tree(self) -> Iterator[dict[str, Any]]:
        for name, path in self.hub.files.items():
            size, oid = path.stat().st_size, self.hub.hashes[name]
            entry = {"type": "file", "path": name, "size": size, "oid": oid[:40]}
            yield (
                {**entry, "lfs": {"oid": oid, "size": size, "pointerSize": 134}}
                if len(oid) == 64
                else entry
            )

    def _elsewhere(self, name: str) -> None:
        """Tell of a large file where it lies, and all about it."""
        self._say(
            302,
            {},
            {
                "Location": f"{self.hub.other_host}/stored/{name}",
                "X-Repo-Commit": self.hub.revision,
                "X-Linked-Size": str(self.hub.files[name].stat().st_size),
                "X-Linked-ETag": f'"{self.hub.hashes[name]}"',
            },
        )

    def _file(self, name: str) -> None:
        """Send a file's bytes from where they are wanted, or as many of them as the fault lets."""
        hub, content = self.hub, self.hub.files[name].read_bytes()
        if name in hub.flip:
            content = content[:-1] + bytes([content[-1] ^ 1])
        size = len(content)
        start = int(self.headers.get("Range", "bytes=0-").removeprefix("bytes=").split("-")[0])
        self.send_response(206 if start else 200)
        if start:
            self.send_header("Content-Range", f"bytes {start}-{size - 1}/{size}")
        if name in hub.short:
            content = content[: size // 2]
        self.send_header("Content-Length", str(len(content) - start))
        self.send_header("ETag", f'"{hub.hashes[name]}"')
        self.send_header("X-Repo-Commit", hub.revision)
        self.send_header("Accept-Ranges", "bytes")
        self.end_headers()
        if self.command == "HEAD":
            return
        time.sleep(hub.pace)
        if hub.cut.get(name):
            self.wfile.write(content[start : start + hub.cut[name].pop(0)])
            self.wfile.flush()
            self.close_connection = True  # in the middle: the client still waits for the rest
            return
        self.wfile.write(content[start:])

    def _say(self, status: int, answer: Any, headers: dict[str, str] | None = None) -> None:
        body = json.dumps(answer).encode()
        self.send_response(status)
        for key, value in (headers or {}).items():
            self.send_header(key, value)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)
