"""The application: every route behind the guard, the socket, and the engine's life."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
from collections.abc import AsyncIterator, Callable

from fastapi import FastAPI, WebSocket, WebSocketDisconnect
from starlette.middleware.cors import CORSMiddleware
from starlette.middleware.gzip import GZipMiddleware

from cygnet.server.body import parse_json
from cygnet.server.engine import Engine
from cygnet.server.failures import add_failures
from cygnet.server.guard import Guard, WrongTokens
from cygnet.server.installer import REGISTRY, Installer
from cygnet.server.login import login_router
from cygnet.server.logs import LogLines
from cygnet.server.pack_routes import PackRoutes
from cygnet.server.page_script import SCRIPT, page_script
from cygnet.server.patience import Patience
from cygnet.server.routes_files import files_router, internal_files_router
from cygnet.server.routes_jobs import jobs_router
from cygnet.server.routes_manager import manager_router
from cygnet.server.routes_nodes import nodes_router
from cygnet.server.routes_page import is_page, page_router, shared_router
from cygnet.server.routes_registry import registry_router
from cygnet.server.routes_user import user_router
from cygnet.server.settings import Settings
from cygnet.server.sockets import Socket

LARGEST_MESSAGE = 2**20
MOST_HELD = 256 * 2**20
"""Bytes of bodies that are held at once, besides two uploads."""


def features(settings: Settings) -> dict[str, object]:
    """What the server says it can do, over HTTP and on the socket."""
    manager = {"extension": {"manager": {"supports_v4": True, "supports_csrf_post": True}}}
    return {
        **(manager if settings.packs is not None else {}),
        "supports_preview_metadata": True,
        "supports_progress_text_metadata": True,
        "max_upload_size": settings.largest_upload,
    }


def create_app(engine: Engine, settings: Settings, restart: Callable[[], None] = lambda: None) -> Guard:
    """The ASGI application. The engine starts and stops with it; ``restart`` is what the Manager's restart does."""
    logs = LogLines()
    packs = PackRoutes(engine, settings.pack_socket, settings.largest_upload, settings.access.token)

    @contextlib.asynccontextmanager
    async def life(app: FastAPI) -> AsyncIterator[None]:
        kept = [settings.user / "default" / name for name in ("workflows", "subgraphs")]
        for folder in (settings.folders.input, settings.folders.output, settings.folders.temp, *kept):
            folder.mkdir(parents=True, exist_ok=True)
        loop = asyncio.get_running_loop()
        logs.tell = lambda message: loop.call_soon_threadsafe(engine.sockets.send_log, message)  # from any thread
        logging.getLogger("cygnet").addHandler(logs)
        await engine.start()
        try:
            yield
        finally:
            logging.getLogger("cygnet").removeHandler(logs)
            await packs.close()
            await engine.stop()

    app = FastAPI(title="cygnet studio", lifespan=life, docs_url=None, redoc_url=None, openapi_url="/api/openapi.json")
    add_failures(app)
    app.add_middleware(GZipMiddleware, minimum_size=1000)
    if settings.access.origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=sorted(settings.access.origins),
            allow_credentials=True,
            allow_methods=["*"],
            allow_headers=["*"],
        )
    wrong = WrongTokens()
    app.include_router(login_router(settings.access, wrong), include_in_schema=False)
    routers = [
        jobs_router(engine),
        files_router(settings),
        user_router(settings),
        nodes_router(engine, settings),
        shared_router(engine, settings),
    ]
    if settings.packs is not None:
        registry = os.environ.get("CYGNET_REGISTRY", REGISTRY)
        routers.append(manager_router(engine, Installer(settings.packs, registry=registry), restart))
        routers.append(registry_router(registry))
    for router in routers:
        app.include_router(router, prefix="/api")
        app.include_router(router, include_in_schema=False)
    app.add_api_route(SCRIPT, page_script, include_in_schema=False)
    app.include_router(internal_files_router(settings), include_in_schema=False)
    _add_socket(app, engine)
    app.include_router(page_router(engine, settings, logs, packs), include_in_schema=False)
    return Guard(Patience(app, MOST_HELD + 2 * settings.largest_upload), settings.access, is_page, wrong)


def _add_socket(app: FastAPI, engine: Engine) -> None:
    @app.websocket("/ws")
    async def socket(connection: WebSocket) -> None:
        await connection.accept()
        client_id = connection.query_params.get("clientId")
        joined = engine.sockets.join(client_id[:200] if client_id else None, connection, engine.store.remaining())
        engine.catch_up(joined)
        pump = asyncio.create_task(joined.pump())
        here = asyncio.current_task()

        def let_go(ended: asyncio.Task[None]) -> None:
            if here is not None and not ended.cancelled() and ended.exception() is not None:
                here.cancel()  # a client that reads nothing says nothing either

        pump.add_done_callback(let_go)
        try:
            await _listen(connection, engine, joined)
        except asyncio.CancelledError:
            if not pump.done():
                raise
        finally:
            engine.sockets.leave(joined)
            pump.cancel()
            with contextlib.suppress(asyncio.CancelledError, Exception):
                await pump


async def _listen(connection: WebSocket, engine: Engine, joined: Socket) -> None:
    """Hear what a client says until it has gone; what is no JSON text is ignored."""
    with contextlib.suppress(WebSocketDisconnect, RuntimeError):
        while True:
            message = await connection.receive()
            if message["type"] == "websocket.disconnect":
                return
            text = message.get("text")
            if text is not None and len(text) <= LARGEST_MESSAGE:
                with contextlib.suppress(ValueError):
                    engine.sockets.hear(joined, parse_json(text))
