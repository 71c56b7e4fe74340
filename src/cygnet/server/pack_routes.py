"""Requests for routes that packs added, handed on to the process in which the packs run."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator
from pathlib import Path
from typing import TYPE_CHECKING

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse

from cygnet.server.engine import Engine
from cygnet.server.guard import without_token

if TYPE_CHECKING:
    import aiohttp

_OF_THE_CONNECTION = frozenset(
    ("connection", "keep-alive", "proxy-authenticate", "proxy-authorization", "te", "trailers", "transfer-encoding",
     "upgrade", "content-length", "host", "server", "date")
)  # fmt: skip


class PackRoutes:
    """The way to the packs' routes; ``socket`` is the file on which they are answered.

    ``token`` is what opens the server; packs are not told it.
    """

    def __init__(self, engine: Engine, socket: Path | None, largest_body: int, token: str | None = None) -> None:
        self._engine = engine
        self._socket = socket
        self._largest_body = largest_body
        self._token = token
        self._session: aiohttp.ClientSession | None = None

    async def close(self) -> None:
        """End every request that is under way."""
        if self._session is not None:
            await self._session.close()

    async def answer(self, request: Request) -> Response | None:
        """What the pack answers; None when no pack has this route."""
        path = None if self._socket is None else await self._path(request)
        if path is None:
            return None
        announced = request.headers.get("content-length", "0")
        if announced.isdigit() and int(announced) > self._largest_body:
            raise HTTPException(413, f"the body has {announced} bytes; at most {self._largest_body} are taken")
        import aiohttp
        from yarl import URL

        address = URL.build(scheme="http", host="packs", path=path, query_string=request.url.query, encoded=True)
        if self._session is None:
            self._session = aiohttp.ClientSession(
                connector=aiohttp.UnixConnector(str(self._socket), force_close=True),  # the process may be another soon
                cookie_jar=aiohttp.DummyCookieJar(),
                auto_decompress=False,
                timeout=aiohttp.ClientTimeout(total=None),
            )
        try:
            theirs = await self._session.request(
                request.method,
                address,
                headers=without_token(
                    ((k, v) for k, v in request.headers.items() if k not in _OF_THE_CONNECTION), self._token
                ),
                skip_auto_headers=("user-agent", "accept", "accept-encoding", "content-type"),
                data=self._body(request) if "content-length" in request.headers or _is_chunked(request) else None,
                allow_redirects=False,
            )
        except aiohttp.ClientError:
            return JSONResponse({"error": "the process that runs the packs is not ready; try again"}, 503)

        async def parts() -> AsyncIterator[bytes]:
            try:
                async for part in theirs.content.iter_any():
                    yield part
            finally:
                theirs.close()

        answer = StreamingResponse(parts(), theirs.status)
        answer.raw_headers = [
            (name.lower(), value)
            for name, value in theirs.raw_headers
            if name.decode("latin-1").lower() not in _OF_THE_CONNECTION
        ]
        return answer

    async def _path(self, request: Request) -> str | None:
        """The path under which a pack has this route; a prefix ``/api`` is ours."""
        given: str = request.scope.get("raw_path", b"").partition(b"?")[0].decode("ascii", "replace")
        routes: list[tuple[str, str]] = await self._engine.know("routes")
        for method, pattern in routes:
            for path in (given, given.removeprefix("/api")):
                if method in ("*", request.method) and re.fullmatch(pattern, path):
                    return path
        return None

    async def _body(self, request: Request) -> AsyncIterator[bytes]:
        total = 0
        async for part in request.stream():
            total += len(part)
            if total > self._largest_body:
                raise HTTPException(413, f"the body is longer than {self._largest_body} bytes")
            yield part


def _is_chunked(request: Request) -> bool:
    return "chunked" in request.headers.get("transfer-encoding", "")
