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

INIT = "NODE_CLASS_MAPPINGS = {}\n"


def zipped(**files: str) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        for name, text in files.items():
            archive.writestr(name, text)
    return out.getvalue()


class Registry(BaseHTTPRequestHandler):
    """Stands for the vendor's registry: pack ids to archives."""

    packs: ClassVar[dict[str, tuple[str, bytes]]] = {}
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
        parts = self.path.partition("?")[0].split("/")
        found = self.packs.get(parts[2])
        if found is None:
            self.send_error(404)
            return
        version, data = found
        if parts[1] == "nodes":
            where = f"http://127.0.0.1:{self.server.server_port}/zip/{parts[2]}"  # type: ignore[attr-defined]
            data = json.dumps({"version": version, "downloadUrl": where}).encode()
        self.send_response(200)
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *arguments: object) -> None:
        pass


@contextmanager
def stand_in_registry() -> Iterator[str]:
    """Its address; fill :attr:`Registry.packs`."""
    server = HTTPServer(("127.0.0.1", 0), Registry)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    Registry.packs.clear()
    Registry.asked.clear()
    Registry.leads.clear()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
