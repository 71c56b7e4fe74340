"""Stands for the vendor's registry of packs."""

from __future__ import annotations

import io
import json
import threading
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import ClassVar
from urllib.parse import parse_qs, unquote

INIT = "NODE_CLASS_MAPPINGS = {}\n"


def zipped(**files: str) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        for name, text in files.items():
            archive.writestr(name, text)
    return out.getvalue()


class Registry(BaseHTTPRequestHandler):
    """Stands for the vendor's registry: pack ids to the version and archive that are newest."""

    packs: ClassVar[dict[str, tuple[str, bytes]]] = {}
    node_types: ClassVar[dict[str, str]] = {}
    """Which pack has a node type."""
    asked: ClassVar[list[str]] = []
    leads: ClassVar[dict[str, str]] = {}
    """Paths that are redirected, and where to."""

    def do_GET(self) -> None:
        self.asked.append(self.path)
        if (elsewhere := self.leads.get(self.path)) is not None:
            self.send_response(302)
            self.send_header("Location", elsewhere)
            self.end_headers()
            return
        path, _, query = self.path.partition("?")
        match [unquote(it) for it in path.split("/")[1:]]:
            case ["zip", pack] if pack in self.packs:
                self.answer(self.packs[pack][1])
            case ["nodes", pack, "install"] if pack in self.packs:
                where = f"http://127.0.0.1:{self.server.server_port}/zip/{pack}"  # type: ignore[attr-defined]
                self.answer({"version": self.packs[pack][0], "downloadUrl": where})
            case ["nodes"]:
                self.answer(_page([it for it in parse_qs(query).get("node_id", self.packs) if it in self.packs]))
            case ["nodes", "search"]:
                self.answer(_page(list(self.packs)))
            case ["nodes", pack] if pack in self.packs:
                self.answer(_card(pack))
            case ["nodes", pack, "versions"] if pack in self.packs:
                self.answer([_version(pack)])
            case ["comfy-nodes", kind, "node"] if kind in self.node_types:
                self.answer(_card(self.node_types[kind]))
            case _:
                self.send_error(404)

    def do_POST(self) -> None:
        self.asked.append(self.path)
        order = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if self.path != "/bulk/nodes/versions":
            self.send_error(404)
            return
        rows = [
            {"identifier": it, "status": "success", "node_version": _version(it["node_id"])}
            for it in order["node_versions"]
            if it["node_id"] in self.packs
        ]
        self.answer({"node_versions": rows})

    def answer(self, content: object) -> None:
        self.send_response(200)
        self.end_headers()
        self.wfile.write(content if isinstance(content, bytes) else json.dumps(content).encode())

    def log_message(self, *arguments: object) -> None:
        pass


def _version(pack: str) -> dict[str, object]:
    version = Registry.packs[pack][0]
    return {"id": f"{pack}-{version}", "node_id": pack, "version": version, "status": "NodeVersionStatusActive"}


def _card(pack: str) -> dict[str, object]:
    return {
        "id": pack,
        "name": pack,
        "description": "Says things loudly",
        "icon": "https://pictures.invalid/icon.png",
        "repository": f"https://code.invalid/{pack}",
        "status": "NodeStatusActive",
        "author": "A. Tester",
        "publisher": {"id": "tester", "name": "A. Tester"},
        "downloads": 3,
        "latest_version": _version(pack),
    }


def _page(packs: list[str]) -> dict[str, object]:
    return {"nodes": [_card(it) for it in packs], "total": len(packs), "page": 1, "limit": 64, "totalPages": 1}


@contextmanager
def stand_in_registry() -> Iterator[str]:
    """Its address; fill :attr:`Registry.packs`."""
    server = HTTPServer(("127.0.0.1", 0), Registry)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    Registry.packs.clear()
    Registry.node_types.clear()
    Registry.asked.clear()
    Registry.leads.clear()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
