"""What the page learns of nodes, models and the machine."""

from __future__ import annotations

import platform
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fastapi import APIRouter
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse

from cygnet.errors import RequestError
from cygnet.graph.contract import COMPATIBLE_VERSION
from cygnet.graph.folders import can_be_named, inside
from cygnet.server import packs
from cygnet.server.engine import Engine, Refused
from cygnet.server.settings import Settings

ALIASES = {"unet": "diffusion_models", "clip": "text_encoders"}
_WEIGHTS = (".safetensors", ".sft", ".pth", ".pt", ".bin", ".ckpt", ".gguf")


def nodes_router(engine: Engine, settings: Settings) -> APIRouter:
    """The routes, without their ``/api`` prefix."""
    router = APIRouter(tags=["nodes"])

    @router.get("/object_info")
    async def object_info() -> JSONResponse:
        return await _known(engine, None)

    @router.get("/object_info/{name}")
    async def object_info_of(name: str) -> JSONResponse:
        return await _known(engine, name)

    @router.get("/features")
    async def features() -> Mapping[str, Any]:
        return engine.sockets.features

    @router.get("/system_stats")
    async def system_stats() -> dict[str, Any]:
        return _system_stats(settings, engine.devices)

    @router.get("/models")
    async def model_kinds() -> list[str]:
        return sorted(settings.models)

    # Routes that look into folders are plain functions: they run in a thread, and a large or distant folder keeps
    # nobody else waiting.

    @router.get("/models/{kind}")
    def models(kind: str) -> list[str]:
        return [name for name, _, _ in _models(settings, kind)]

    @router.get("/experiment/models")
    async def model_folders() -> list[dict[str, Any]]:
        return [{"name": kind, "folders": [str(it) for it in roots]} for kind, roots in settings.models.items()]

    @router.get("/experiment/models/{kind}")
    def model_files(kind: str) -> list[dict[str, Any]]:
        rows = []
        for name, index, path in _models(settings, kind):
            stat = path.stat()
            times = {"modified": stat.st_mtime, "created": stat.st_ctime}
            rows.append({"name": name, "pathIndex": index, "size": stat.st_size, **times})
        return rows

    @router.get("/experiment/models/preview/{kind}/{index}/{file:path}")
    async def model_preview(kind: str, index: int, file: str) -> JSONResponse:
        raise HTTPException(404, "there is no picture of this model")

    @router.get("/view_metadata/{kind}")
    def metadata(kind: str, filename: str = "") -> JSONResponse:
        return JSONResponse(_metadata(settings, kind, filename))

    @router.get("/embeddings")
    def embeddings() -> list[str]:
        return [name.rpartition(".")[0] for name, _, _ in _models(settings, "embeddings", missing_is_empty=True)]

    @router.get("/node_replacements")
    async def nothing() -> dict[str, Any]:
        return {}

    @router.get("/i18n")
    async def translations() -> dict[str, Any]:
        return await run_in_threadpool(packs.words, await engine.know("packs"))

    @router.get("/global_subgraphs")
    async def subgraphs() -> dict[str, Any]:
        found = await run_in_threadpool(packs.subgraphs, await engine.know("packs"))
        return {key: it.json() for key, it in found.items()}

    @router.get("/global_subgraphs/{key}")
    async def subgraph(key: str) -> dict[str, Any]:
        found = await run_in_threadpool(packs.subgraphs, await engine.know("packs"))
        if key not in found:
            raise HTTPException(404, "there is no such subgraph")
        return {**found[key].json(), "data": found[key].text()}

    return router


async def _known(engine: Engine, name: str | None) -> JSONResponse:
    try:
        return JSONResponse(await engine.know("describe", name=name))
    except Refused as refused:
        return JSONResponse(refused.body, refused.http_status)


def _models(settings: Settings, kind: str, *, missing_is_empty: bool = False) -> list[tuple[str, int, Path]]:
    """Name relative to its folder, number of the folder, and path of every weight file of a kind."""
    kind = ALIASES.get(kind, kind)
    if kind not in settings.models:
        if missing_is_empty:
            return []
        raise HTTPException(404, f"there is no model folder {kind[:50]!r}")
    found: dict[str, tuple[str, int, Path]] = {}
    for index, root in enumerate(settings.models[kind]):
        for path in sorted(root.rglob("*")) if root.is_dir() else ():
            name = path.relative_to(root).as_posix()
            if path.suffix.lower() in _WEIGHTS and path.is_file() and can_be_named(name):
                found.setdefault(name, (name, index, path))
    return [found[name] for name in sorted(found)]


def _metadata(settings: Settings, kind: str, filename: str) -> Any:
    """``__metadata__`` of a safetensors file, read from its header alone."""
    from safetensors import SafetensorError, safe_open

    if not filename.endswith(".safetensors"):
        raise HTTPException(404, "only safetensors files have metadata")
    for root in settings.models.get(ALIASES.get(kind, kind), ()):
        try:
            path = inside(root, filename)
            if path.is_file():
                with safe_open(path, framework="numpy") as file:
                    found = file.metadata()
                if found:
                    return found
        except (RequestError, SafetensorError, OSError):
            continue
    raise HTTPException(404, "there is no such file, or it has no metadata")


def _system_stats(settings: Settings, devices: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    import psutil

    memory = psutil.virtual_memory()
    if not devices:  # as long as the worker has not said what it has
        size, free = memory.total, memory.available
        told = {"vram_total": size, "vram_free": free, "torch_vram_total": size, "torch_vram_free": free}
        devices = [{"name": "cpu", "type": "cpu", "index": None, **told}]
    versions = settings.versions
    page, templates = versions.get("comfyui-frontend-package", ""), versions.get("comfyui-workflow-templates", "")
    return {
        "system": {
            "os": sys.platform,
            "ram_total": memory.total,
            "ram_free": memory.available,
            "comfyui_version": COMPATIBLE_VERSION,
            "cygnet_version": versions.get("cygnet", ""),
            "required_frontend_version": page,
            "installed_templates_version": templates,
            "required_templates_version": templates,
            "python_version": platform.python_version(),
            "pytorch_version": versions.get("torch", ""),
            "embedded_python": False,
            "argv": ["cygnet", *settings.arguments],
        },
        "devices": list(devices),
    }
