"""What the page keeps for its user: settings, saved workflows, other small files.

The page sends a whole relative path as one percent-encoded segment (``workflows%2Fa.json``), so paths are taken from
the undecoded address.
"""

from __future__ import annotations

import asyncio
import json
import os
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from fastapi import APIRouter
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from cygnet.errors import RequestError
from cygnet.graph.folders import can_be_named, inside
from cygnet.media.files import PART_SUFFIX
from cygnet.server.body import read_bytes, read_json
from cygnet.server.documented import OBJECT, documented
from cygnet.server.settings import Settings
from cygnet.server.whole import write_whole

_LARGEST_FILE = 64 * 2**20
_SETTINGS = "comfy.settings.json"


def user_router(settings: Settings) -> APIRouter:
    """The routes, without their ``/api`` prefix."""
    router = APIRouter(tags=["user"])
    root = settings.user / "default"
    lock = asyncio.Lock()

    @router.get("/users")
    async def users() -> dict[str, Any]:
        return {"storage": "server", "migrated": True}

    @router.get("/settings")
    def all_settings() -> JSONResponse:
        return JSONResponse(_settings(root))

    @router.get("/settings/{name}")
    def setting(name: str) -> JSONResponse:
        return JSONResponse(_settings(root).get(name))

    @router.post("/settings", openapi_extra=documented(body=OBJECT))
    async def change_settings(request: Request) -> Response:
        changes = await read_json(request)
        if not isinstance(changes, dict):
            raise HTTPException(400, "settings must be a JSON object")
        return await change(changes)

    @router.post("/settings/{name}", openapi_extra=documented(body={}))
    async def change_setting(name: str, request: Request) -> Response:
        return await change({name: await read_json(request)})

    async def change(changes: dict[str, Any]) -> Response:
        if any(name.startswith("__") for name in changes):
            raise HTTPException(403, "names that begin with __ belong to the server")
        async with lock:  # the page posts many at once
            write_whole(root / _SETTINGS, json.dumps({**_settings(root), **changes}, indent=1).encode())
        return Response()

    @router.get("/userdata", openapi_extra=documented(query=("dir", "recurse", "split", "full_info")))
    def listing(request: Request) -> JSONResponse:
        query = request.query_params
        if not query.get("dir"):
            raise HTTPException(400, "dir is missing")
        folder = _inside(root, query["dir"])
        if not folder.is_dir():
            raise HTTPException(404, "there is no such folder")
        wanted = {name: query.get(name, "").lower() == "true" for name in ("recurse", "split", "full_info")}
        return JSONResponse(_listing(folder, **wanted))

    @router.get("/v2/userdata")
    def entries(path: str = "") -> JSONResponse:
        folder = _inside(root, path or ".")
        if not folder.is_dir():
            raise HTTPException(404, "there is no such folder")
        return JSONResponse([_entry(it, root) for it in sorted(folder.iterdir()) if _shown(it)])

    @router.get("/userdata/{rest:path}", openapi_extra=documented(path=("rest",)))
    def read(request: Request) -> Response:
        (file,) = _segments(request, 1)
        path = _inside(root, file)
        if not path.is_file():
            if file == "user.css":  # the page asks for it as a style sheet, and says so when what comes is none
                return Response(status_code=404, media_type="text/css")
            raise HTTPException(404, "there is no such file")
        shown = "application/json" if path.suffix == ".json" else "application/octet-stream"
        shown = "text/css" if file == "user.css" else shown
        return Response(path.read_bytes(), media_type=shown)

    @router.post("/userdata/{rest:path}", openapi_extra=documented(path=("rest",), query=("overwrite", "full_info")))
    async def write(request: Request) -> JSONResponse:
        segments = _segments(request, 1, 3)
        overwrite = request.query_params.get("overwrite", "true").lower() != "false"
        target = _inside(root, segments[-1])
        _refuse_the_servers(root, *segments)
        if len(segments) == 3:
            source = _inside(root, segments[0])
            if segments[1] != "move" or not source.is_file():
                raise HTTPException(404, "there is no such file")
            _refuse_existing(target, overwrite)
            target.parent.mkdir(parents=True, exist_ok=True)
            os.replace(source, target)
        else:
            data = await read_bytes(request, _LARGEST_FILE)
            _refuse_existing(target, overwrite)
            write_whole(target, data)
        full = request.query_params.get("full_info", "").lower() == "true"
        return JSONResponse(_info(target, root) if full else _relative(target, root))

    @router.delete("/userdata/{rest:path}", openapi_extra=documented(path=("rest",)))
    async def remove(request: Request) -> Response:
        (file,) = _segments(request, 1)
        path = _inside(root, file)
        _refuse_the_servers(root, file)
        if not path.is_file():
            raise HTTPException(404, "there is no such file")
        path.unlink()
        return Response(status_code=204)

    return router


def _segments(request: Request, *counts: int) -> list[str]:
    """The decoded segments behind ``/userdata/``."""
    raw = request.scope.get("raw_path", b"").decode("latin-1").partition("?")[0]
    parts = [unquote(it) for it in raw.partition("/userdata/")[2].split("/")]
    if len(parts) not in counts:
        # A client that does not encode its slashes means one path, unless it moves.
        at = parts.index("move") if "move" in parts and 3 in counts else len(parts)
        parts = ["/".join(parts[:at]), *(["move", "/".join(parts[at + 1 :])] if at < len(parts) else [])]
    if not all(parts):
        raise HTTPException(400, "the file name is missing")
    return parts


def _inside(root: Path, relative: str) -> Path:
    root.mkdir(parents=True, exist_ok=True)
    try:
        return inside(root, relative)
    except RequestError as error:
        raise HTTPException(403, str(error)) from error


def _settings(root: Path) -> dict[str, Any]:
    path = root / _SETTINGS
    if not path.exists():
        return {}
    try:
        found = json.loads(path.read_bytes())
    except ValueError as error:
        text = f"{path.name} is damaged; it was left as it is: mend it, or move it away to start with default settings"
        raise HTTPException(500, text) from error
    return found if isinstance(found, dict) else {}


def _refuse_the_servers(root: Path, *names: str) -> None:
    """What the settings hold is judged by their own route; bytes that are none would keep the page from starting."""
    if any(_inside(root, name) == _inside(root, _SETTINGS) for name in names):
        raise HTTPException(403, f"{_SETTINGS} belongs to the server; change settings by /settings")


def _refuse_existing(target: Path, overwrite: bool) -> None:
    if target.is_dir():
        raise HTTPException(409, "there is a folder of that name")
    if target.exists() and not overwrite:
        raise HTTPException(409, "there is a file of that name already")
    if any(it.is_file() for it in target.parents):
        raise HTTPException(409, "a folder of that path is a file already")


def _listing(folder: Path, *, recurse: bool, split: bool, full_info: bool) -> list[Any]:
    found = sorted(it for it in (folder.rglob("*") if recurse else folder.glob("*")) if it.is_file())
    shown = [it for it in found if _shown(it)]
    if full_info:
        return [_info(it, folder) for it in shown]
    names = [_relative(it, folder) for it in shown]
    return [[it, *it.split("/")] for it in names] if split else names


def _shown(path: Path) -> bool:
    return can_be_named(str(path)) and not path.is_symlink() and not path.name.endswith(PART_SUFFIX)


def _relative(path: Path, root: Path) -> str:
    return os.path.relpath(path, os.path.realpath(root)).replace(os.sep, "/")


def _info(path: Path, root: Path) -> dict[str, Any]:
    stat = path.stat()
    return {
        "path": _relative(path, root),
        "size": stat.st_size,
        "modified": int(stat.st_mtime * 1000),
        "created": int(stat.st_ctime * 1000),
    }


def _entry(path: Path, root: Path) -> dict[str, Any]:
    kind = {"name": path.name, "path": _relative(path, root), "type": "directory" if path.is_dir() else "file"}
    if path.is_dir():
        return kind
    return {**kind, "size": path.stat().st_size, "modified": int(path.stat().st_mtime * 1000)}
