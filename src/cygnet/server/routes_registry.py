"""What the page's Manager shows of packs, passed on from the registry that the server installs from.

The page's own requests to the registry come here, see :mod:`cygnet.server.page_script`. Only reading passes, on the
paths that the dialog uses, and no text of a client is used as an address.
"""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Sequence
from typing import Any
from urllib.parse import quote, urlencode

from fastapi import APIRouter
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from cygnet.server.body import parse_json, read_json
from cygnet.server.fetch import FetchError, fetch
from cygnet.server.page_script import ROUTE

_MOST = 8 * 2**20
_SECONDS = 20.0
_AT_ONCE = 4  # each holds a thread
_MOST_PARAMETERS = 300
_LONGEST = 200
_PARAMETERS = frozenset(
    ("node_id", "limit", "page", "search", "comfy_node_search", "repository_url_search", "statuses", "sort")
) | {"include_status_reason", "include_banned", "supported_os", "supported_accelerator", "timestamp", "latest"}
_PICTURES = frozenset(("icon", "banner_url", "logo", "author_image"))
_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]{0,99}")


def registry_router(address: str) -> APIRouter:
    """The routes, without their ``/api`` prefix; ``address`` is the registry's."""
    router = APIRouter(tags=["manager"], prefix=ROUTE)
    passing = asyncio.Semaphore(_AT_ONCE)

    async def passed_on(*path: str, query: Sequence[tuple[str, str]] = (), body: Any = None) -> Response:
        where = "/".join((address.rstrip("/"), *(quote(it, safe="") for it in path)))
        where += f"?{urlencode(query)}" if query else ""
        data = None if body is None else json.dumps(body).encode()
        try:
            async with passing:
                found = await asyncio.to_thread(fetch, where, most=_MOST, body=data, seconds=_SECONDS)
        except FetchError as error:
            raise HTTPException(404 if error.status == 404 else 502, str(error)) from error
        try:
            return JSONResponse(_without_pictures(parse_json(found)))
        except ValueError as error:
            raise HTTPException(502, "the registry's answer cannot be read") from error

    @router.get("/nodes")
    async def packs(request: Request) -> Response:
        return await passed_on("nodes", query=_query(request))

    @router.get("/nodes/search")
    async def search(request: Request) -> Response:
        return await passed_on("nodes", "search", query=_query(request))

    @router.get("/nodes/{pack}")
    async def pack_of(pack: str) -> Response:
        return await passed_on("nodes", _id(pack))

    @router.get("/nodes/{pack}/versions")
    async def versions(pack: str, request: Request) -> Response:
        return await passed_on("nodes", _id(pack), "versions", query=_query(request))

    @router.get("/nodes/{pack}/versions/{version}")
    async def version_of(pack: str, version: str) -> Response:
        return await passed_on("nodes", _id(pack), "versions", _id(version))

    @router.get("/nodes/{pack}/versions/{version}/comfy-nodes")
    async def nodes_of(pack: str, version: str, request: Request) -> Response:
        return await passed_on("nodes", _id(pack), "versions", _id(version), "comfy-nodes", query=_query(request))

    @router.get("/comfy-nodes/{kind:path}/node")
    async def pack_with(kind: str) -> Response:
        if len(kind) > _LONGEST or {".", ".."} & set(kind.split("/")):
            raise HTTPException(400, "this is no node type")
        return await passed_on("comfy-nodes", kind, "node")

    @router.post("/bulk/nodes/versions")
    async def bulk(request: Request) -> Response:
        order = await read_json(request, limit=2**17)
        rows = order.get("node_versions") if isinstance(order, dict) else None
        if not isinstance(rows, list) or not all(isinstance(it, dict) for it in rows):
            raise HTTPException(400, "the body needs node_versions, a list of objects")
        asked = [{"node_id": _id(it.get("node_id")), "version": _id(it.get("version"))} for it in rows]
        return await passed_on("bulk", "nodes", "versions", body={"node_versions": asked})

    @router.post("/search")
    async def search_service() -> Response:
        raise HTTPException(404, "the search service is not asked; the page searches the registry")

    return router


def _without_pictures(found: Any) -> Any:
    """An answer without the addresses of pictures, which the browser would fetch from other sites."""
    if isinstance(found, dict):
        return {key: _without_pictures(value) for key, value in found.items() if key not in _PICTURES}
    return [_without_pictures(it) for it in found] if isinstance(found, list) else found


def _id(text: object) -> str:
    """A pack's id or version, which has plain letters only."""
    if not isinstance(text, str) or not _ID.fullmatch(text):
        raise HTTPException(400, f"{str(text)[:50]!r} is no id or version of a pack")
    return text


def _query(request: Request) -> list[tuple[str, str]]:
    """The parameters that the registry knows; others and long ones are refused, not left out."""
    given = request.query_params.multi_items()
    odd = [name for name, value in given if name not in _PARAMETERS or len(value) > _LONGEST]
    if odd or len(given) > _MOST_PARAMETERS:
        raise HTTPException(400, f"the parameter {odd[0][:50]!r} is not passed on" if odd else "too many parameters")
    return given
