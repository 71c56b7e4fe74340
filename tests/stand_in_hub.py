"""A stand-in for the Hugging Face hub on the loopback interface: one listing route, one file route, faults on request.

Routes: ``GET /api/models/<repo>/revision/<revision>`` (files with sizes and digests) and ``GET|HEAD
/<repo>/resolve/<revision>/<path>`` with ``Range``. Everything it was asked is in ``requests``.
"""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit

COMMIT = "c" * 40
LARGE = 1_000
"""Files of this many bytes or more are listed with their SHA-256, as files in large file storage are."""


@dataclass
class StandInHub:
    """What the server gives, and what it was asked. ``cut_after[path]`` bytes it hangs up, once per entry."""

    repos: dict[str, dict[str, bytes]]
    endpoint: str = ""
    commit: str = COMMIT
    status: int = 200
    cut_after: dict[str, list[int]] = field(default_factory=dict)
    damaged: dict[str, bytes] = field(default_factory=dict)
    requests: list[tuple[str, str, str]] = field(default_factory=list)
    """Method, path and Range header."""

    def downloads(self, path: str) -> list[str]:
        """Range headers of the GET requests for a file."""
        return [given for method, asked, given in self.requests if method == "GET" and asked.endswith(f"/{path}")]


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def git_blob(data: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


def listing(hub: StandInHub, files: Mapping[str, bytes]) -> bytes:
    siblings = []
    for name, data in files.items():
        row: dict[str, object] = {"rfilename": name, "size": len(data), "blobId": git_blob(data)}
        if len(data) >= LARGE:
            row["lfs"] = {"sha256": sha256(data), "size": len(data), "pointerSize": 130}
        siblings.append(row)
    return json.dumps({"id": "x", "sha": hub.commit, "siblings": siblings}).encode()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: StandInHub

    def log_message(self, *_: object) -> None:
        pass

    def do_HEAD(self) -> None:
        self.answer(body=False)

    def do_GET(self) -> None:
        self.answer(body=True)

    def answer(self, *, body: bool) -> None:
        path = unquote(urlsplit(self.path).path)
        self.hub.requests.append((self.command, path, self.headers.get("Range", "")))
        if self.hub.status != 200:
            self.give(self.hub.status, b"{}", {}, body=body)
            return
        for repo, files in self.hub.repos.items():
            if path in {f"/api/models/{repo}/revision/{known}" for known in ("main", self.hub.commit)} | {
                f"/api/models/{repo}"
            }:
                self.give(200, listing(self.hub, files), {"Content-Type": "application/json"}, body=body)
                return
            if path.startswith(f"/api/models/{repo}/revision/"):
                self.give(404, b"{}", {"X-Error-Code": "RevisionNotFound"}, body=body)
                return
            name = path.removeprefix(f"/{repo}/resolve/").partition("/")[2]
            if path.startswith(f"/{repo}/resolve/") and name in files:
                self.give_file(name, files[name], body=body)
                return
        self.give(404, b"{}", {"X-Error-Code": "RepoNotFound"}, body=body)

    def give_file(self, name: str, data: bytes, *, body: bool) -> None:
        headers = {
            "X-Repo-Commit": self.hub.commit,
            "ETag": f'"{git_blob(data)}"',
            "Accept-Ranges": "bytes",
        }
        if len(data) >= LARGE:
            headers |= {"X-Linked-Etag": f'"{sha256(data)}"', "X-Linked-Size": str(len(data))}
        sent = self.hub.damaged.get(name, data)
        wanted = self.headers.get("Range", "")
        if wanted:
            start = int(wanted.removeprefix("bytes=").partition("-")[0])
            headers["Content-Range"] = f"bytes {start}-{len(sent) - 1}/{len(sent)}"
            self.give(206, sent[start:], headers, body=body, cut=self.next_cut(name, body))
        else:
            self.give(200, sent, headers, body=body, cut=self.next_cut(name, body))

    def next_cut(self, name: str, body: bool) -> int | None:
        cuts = self.hub.cut_after.get(name, [])
        return cuts.pop(0) if body and cuts else None

    def give(self, status: int, data: bytes, headers: Mapping[str, str], *, body: bool, cut: int | None = None) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(data)))
        for key, value in headers.items():
            self.send_header(key, value)
        self.end_headers()
        if not body:
            return
        self.wfile.write(data if cut is None else data[:cut])
        if cut is not None:
            self.wfile.flush()
            self.close_connection = True


@contextmanager
def stand_in_hub(repos: Mapping[str, Mapping[str, bytes]]) -> Iterator[StandInHub]:
    """Serve ``repos`` (repository → path → content) on a free port of 127.0.0.1 until the block ends."""
    hub = StandInHub({repo: dict(files) for repo, files in repos.items()})
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": hub}))
    server.daemon_threads = True
    hub.endpoint = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        thread.join(timeout=10)
        server.server_close()


def official_files(*, clip: bool = False, shards: int = 1) -> dict[str, bytes]:
    """The file names of an official repository with small contents that are no weights."""
    files = {
        "config.json": b"{}",
        "models_t5_umt5-xxl-enc-bf16.pth": b"t5" * 30_000,
        "google/umt5-xxl/spiece.model": b"pieces" * 700,
        "google/umt5-xxl/tokenizer.json": b'{"model": 1}',
        "Wan2.1_VAE.pth": b"vae" * 20_000,
        "README.md": b"not wanted",
        "assets/logo.png": b"not wanted either",
    }
    if shards == 1:
        files["diffusion_pytorch_model.safetensors"] = b"dit" * 100_000
    else:
        names = [f"diffusion_pytorch_model-{n:05d}-of-{shards:05d}.safetensors" for n in range(1, shards + 1)]
        files |= {name: name.encode() * 1_000 for name in names}
        files["diffusion_pytorch_model.safetensors.index.json"] = json.dumps(
            {"weight_map": {f"w{n}": name for n, name in enumerate(names)}}
        ).encode()
    if clip:
        files["models_clip_open-clip-xlm-roberta-large-vit-huge-14.pth"] = b"clip" * 9_000
    return files
