"""The web page's own files, workflow templates, node help and the log panel."""

from __future__ import annotations

import mimetypes
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import quote

from fastapi import APIRouter
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import FileResponse, HTMLResponse, JSONResponse, PlainTextResponse, Response

from cygnet.errors import RequestError
from cygnet.graph.folders import inside
from cygnet.server import templates
from cygnet.server.body import read_json
from cygnet.server.engine import Engine
from cygnet.server.guard import FRAMES
from cygnet.server.logs import LogLines
from cygnet.server.metrics import CONTENT_TYPE, Metrics
from cygnet.server.pack_routes import PackRoutes
from cygnet.server.page_script import with_script
from cygnet.server.settings import Settings

_DAY, _HOUR = "public, max-age=86400", "public, max-age=3600"
_INDEX = re.compile(r"index(\.[A-Za-z]{2,3}(-[A-Za-z]{2,4})?)?\.json")
"""The browser's index in any language; ours is English."""
_PICTURE = re.compile(r"[A-Za-z0-9._-]+-[12]\.webp")
"""Of a template; most are in packages that are not installed."""
_TYPES = {
    ".js": "application/javascript",
    ".mjs": "application/javascript",
    ".css": "text/css",
    ".json": "application/json",
    ".html": "text/html; charset=utf-8",
    ".wasm": "application/wasm",
    ".woff2": "font/woff2",
    ".svg": "image/svg+xml",
    ".webp": "image/webp",
    ".md": "text/markdown; charset=utf-8",
}
POLICY = f"{FRAMES}; object-src 'none'; base-uri 'self'"
"""The page loads no plugins besides."""


def is_page(path: str) -> bool:
    """Whether a path is a document or a static file, which other sites may lead to, and not data."""
    return path in ("/", "/index.html", "/favicon.ico", "/login") or path.startswith(
        ("/assets/", "/fonts/", "/scripts/", "/extensions/", "/materialdesignicons", "/cursor/", "/icons/")
    )


def shared_router(engine: Engine, settings: Settings) -> APIRouter:
    """Routes that have an ``/api`` prefix."""
    router = APIRouter(tags=["page"])

    @router.get("/extensions")
    async def extensions() -> list[str]:
        if settings.page is None:
            return []
        return await run_in_threadpool(_scripts, settings.page, await _web_folders(engine))

    @router.get("/workflow_templates")
    async def packs_with_templates() -> dict[str, list[str]]:
        found = await _example_folders(engine)
        return await run_in_threadpool(
            lambda: {name: sorted(it.stem for it in folder.glob("*.json")) for name, folder in found.items()}
        )

    @router.get("/workflow_templates/{pack}/{name:path}")
    async def pack_template(pack: str, name: str) -> Response:
        folder = (await _example_folders(engine)).get(pack)
        found = None if folder is None else _static(folder, name)
        if found is None:
            raise HTTPException(404, "there is no such template")
        return found

    return router


def _scripts(page: Path, packs: Mapping[str, Path]) -> list[str]:
    """Addresses of the page's own extensions, then of those of packs."""
    own = sorted(f"/{it.relative_to(page).as_posix()}" for it in (page / "extensions").rglob("*.js"))
    for name, folder in packs.items():
        scripts = sorted(it.relative_to(folder).as_posix() for it in folder.rglob("*.js"))
        own += [f"/extensions/{quote(name)}/{quote(it)}" for it in scripts]
    return own


async def _packs(engine: Engine) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = await engine.know("packs")
    return found


async def _web_folders(engine: Engine) -> dict[str, Path]:
    """Name under ``/extensions`` and folder of each pack's scripts."""
    return {it["web"][0]: Path(it["web"][1]) for it in await _packs(engine) if it["web"] is not None}


async def _example_folders(engine: Engine) -> dict[str, Path]:
    return {it["name"]: Path(it["examples"]) for it in await _packs(engine) if it["examples"] is not None}


def page_router(engine: Engine, settings: Settings, logs: LogLines, packs: PackRoutes) -> APIRouter:
    """Routes that have no prefix; the last of them takes every other path."""
    router = APIRouter(tags=["page"])

    @router.get("/user.css")
    async def user_css() -> Response:
        path = settings.user / "default" / "user.css"
        return Response(path.read_bytes() if path.is_file() else b"", media_type="text/css")

    @router.get("/internal/logs")
    async def log_text() -> str:
        return logs.text()

    @router.get("/internal/logs/raw")
    async def log_entries() -> dict[str, Any]:
        return {"entries": logs.entries(), "size": {"cols": 120, "rows": 50}}

    @router.patch("/internal/logs/subscribe")
    async def subscribe(request: Request) -> Response:
        order = await read_json(request)
        if not isinstance(order, dict) or not isinstance(order.get("clientId"), str):
            raise HTTPException(400, "clientId is missing")
        engine.sockets.subscribe(order["clientId"], bool(order.get("enabled")))
        return Response()

    @router.get("/internal/folder_paths")
    async def folder_paths() -> dict[str, list[str]]:
        return {kind: [str(it) for it in roots] for kind, roots in settings.models.items()}

    index: list[dict[str, Any]] = []

    @router.api_route("/templates/{name:path}", methods=["GET", "HEAD"])
    async def template(name: str) -> Response:
        if _INDEX.fullmatch(name):
            if not index:  # what is installed does not change while the server runs
                known = set(await engine.know("describe", name=None))
                index[:] = await run_in_threadpool(templates.index, settings.templates, known)
            return JSONResponse(index, headers={"Cache-Control": "no-cache"})
        for root in settings.templates:
            if (found := _static(root, name)) is not None:
                return found
        if (found := _static(templates.STARTERS, templates.NO_PICTURE)) is not None and _PICTURE.fullmatch(name):
            found.headers["Cache-Control"] = "no-cache"  # the packages with the pictures may come
            return found
        raise HTTPException(404, "there is no such template")

    @router.get("/docs/{name:path}")
    async def node_help(name: str) -> Response:
        found = _static(settings.docs, name) if settings.docs else None
        if found is None:
            raise HTTPException(404, "there is no help for this node")
        return found

    @router.api_route("/extensions/{pack}/{name:path}", methods=["GET", "HEAD"])
    async def script(pack: str, name: str) -> Response:
        core = None if settings.page is None else _static(settings.page / "extensions", f"{pack}/{name}")
        folder = None if core is not None else (await _web_folders(engine)).get(pack)
        found = core if folder is None else _static(folder, name)
        if found is None:
            raise HTTPException(404, "there is no such script")
        return found

    @router.get("/health")
    async def health() -> JSONResponse:
        problems = engine.problems()
        status = "draining" if engine.draining else "degraded" if problems else "ok"
        told = {"status": status, "queue": engine.store.remaining(), "problems": problems}
        if engine.left_out:  # which keeps no job from being done
            told["left_out"] = {**engine.left_out, "see": "the studio's log, and cygnet nodes list"}
        return JSONResponse(told)

    numbers = Metrics(engine)

    @router.get("/metrics")
    async def metrics() -> Response:
        return Response(numbers.text(), media_type=CONTENT_TYPE)

    @router.api_route("/{name:path}", methods=["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"])
    async def page(name: str, request: Request) -> Response:
        reads = request.method in ("GET", "HEAD")
        if reads and not name and settings.page is None:
            return PlainTextResponse("This server has no web page; install it with: pip install 'cygnet[studio]'\n")
        found = _static(settings.page, name or "index.html") if reads and settings.page is not None else None
        if found is None:
            # A page's paths may be visited from other sites, so that no program answers there.
            answer = None if is_page(request.url.path) else await packs.answer(request)
            if answer is not None:
                return answer
            raise HTTPException(404 if reads else 405, "not found" if reads else "no route takes this method")
        if not name or name == "index.html":
            if settings.page is not None:
                document = (settings.page / "index.html").read_text(encoding="utf-8")
                found = HTMLResponse(with_script(document), headers={"Cache-Control": "no-cache"})
            found.headers["Content-Security-Policy"] = POLICY
        return found

    return router


def _static(root: Path, name: str) -> Response | None:
    """A file of a folder that we installed, or None."""
    try:
        path = inside(root, name)
    except RequestError:
        return None
    if not path.is_file():
        return None
    suffix = path.suffix.lower()
    media_type = _TYPES.get(suffix) or mimetypes.guess_type(path.name)[0] or "application/octet-stream"
    if suffix in (".html", ".js", ".mjs", ".css") or path.name.startswith("index"):
        cache = "no-cache"
    else:
        cache = _DAY if media_type.startswith("image/") else _HOUR
    headers = {"Cache-Control": cache, "X-Content-Type-Options": "nosniff"}
    return FileResponse(path, media_type=media_type, headers=headers)
