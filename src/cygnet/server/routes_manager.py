"""The routes with which the page's Manager dialog installs, updates and removes packs, and restarts the server.

They are there only when the server was started with --enable-manager, which it accepts on loopback alone: what is
installed runs as the user. Packs come from the registry; git addresses and paths are the command's.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from fastapi import APIRouter, Depends
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from cygnet.errors import CygnetError
from cygnet.server.body import names, read_json
from cygnet.server.engine import Engine
from cygnet.server.installer import Installed, Installer
from cygnet.server.wire import Message

_KEPT = 500
_MOST_WAITING = 200
_FORMS = ("application/x-www-form-urlencoded", "multipart/form-data", "text/plain")
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Task:
    """One thing that the dialog asks for."""

    ui_id: str
    client_id: str
    kind: str
    params: Mapping[str, Any]

    def json(self) -> dict[str, Any]:
        """As the dialog wrote it."""
        return {"ui_id": self.ui_id, "client_id": self.client_id, "kind": self.kind, "params": dict(self.params)}


@dataclass(eq=False)
class TaskQueue:
    """Tasks run one after another, in a thread, since they wait for the network and for pip."""

    installer: Installer
    tell: Callable[[Message, str], None]
    """Sends a message to a client."""
    pending: deque[Task] = field(default_factory=deque)
    running: Task | None = None
    history: dict[str, dict[str, Any]] = field(default_factory=dict)
    total: int = 0
    done: int = 0
    _runner: asyncio.Task[None] | None = None

    def add(self, task: Task) -> None:
        """Put a task into the queue; it waits for :meth:`start`."""
        if len(self.pending) >= _MOST_WAITING:
            raise HTTPException(429, f"{_MOST_WAITING} tasks are waiting; start them first")
        self.pending.append(task)
        self.total += 1

    def start(self) -> bool:
        """Begin to work; whether that was news."""
        if self._runner is not None and not self._runner.done():
            return False
        self._runner = asyncio.get_running_loop().create_task(self._run())
        return True

    def reset(self) -> None:
        """Forget what waits."""
        self.pending.clear()
        self.total = self.done = 0

    def status(self) -> dict[str, Any]:
        """Counts, as the dialog shows them."""
        busy = self.running is not None
        return {
            "total_count": self.total,
            "done_count": self.done,
            "in_progress_count": int(busy),
            "pending_count": len(self.pending),
            "is_processing": busy or bool(self.pending and self._runner is not None and not self._runner.done()),
        }

    def state(self) -> dict[str, Any]:
        """Everything that the dialog keeps."""
        return {
            "history": self.history,
            "running_queue": [] if self.running is None else [self.running.json()],
            "pending_queue": [it.json() for it in self.pending],
            "installed_packs": installed_packs(self.installer),
        }

    async def _run(self) -> None:
        while self.pending:
            task = self.running = self.pending.popleft()
            begun = {"ui_id": task.ui_id, "kind": task.kind, "timestamp": _now(), "state": self.state()}
            self.tell(Message("cm-task-started", begun), task.client_id)
            verdict, words = await self._do(task)
            self.running = None
            self.done += 1
            ended = {
                **task.json(),
                "result": words,
                "status": {"status_str": verdict, "completed": verdict == "success", "messages": [words]},
                "timestamp": _now(),
            }
            self.history[task.ui_id] = ended
            while len(self.history) > _KEPT:
                del self.history[next(iter(self.history))]
            news = {key: ended[key] for key in ("ui_id", "result", "kind", "status", "timestamp")}
            self.tell(Message("cm-task-completed", {**news, "state": self.state()}), task.client_id)

    async def _do(self, task: Task) -> tuple[str, str]:
        try:
            return await asyncio.to_thread(perform, self.installer, task.kind, task.params)
        except CygnetError as error:
            _log.error("%s: %s", task.kind, error)
            return "error", f"{pack_of(task.params) or task.kind}: {error}"  # a notice shows it away from the pack
        except Exception as error:  # the dialog waits for an end
            _log.exception("%s failed", task.kind)
            return "error", f"{type(error).__name__}: {error}"


def perform(installer: Installer, kind: str, params: Mapping[str, Any]) -> tuple[str, str]:
    """Do one task; how it went and in words. Raises what the installer raises."""
    name = pack_of(params)
    version = params.get("selected_version") or params.get("version") or params.get("node_ver")
    chosen = None if version in (None, "latest", "") else str(version)
    there = next((it for it in installer.installed() if name in (it.name, it.address)), None)
    match kind:
        case "install" if chosen == "nightly":
            return "error", "a nightly version is a git address; install it with: cygnet nodes install ADDRESS"
        case "install" if "/" in name or ":" in name:
            return "error", "only packs of the registry are installed here; use: cygnet nodes install ADDRESS"
        case "install" if there is None:
            return "success", f"installed {installer.install(name, chosen, registry_only=True).name}"
        case "install" | "update" | "fix":
            it = installer.update(name, chosen)
            return "success", f"{it.name} is now {it.version or 'updated'}"
        case "uninstall":
            return "success", f"removed {installer.remove(name).name}"
        case "enable" | "disable":
            return "success", f"{kind}d {installer.switch(name, on=kind == 'enable').name}"
        case "update-comfyui":
            return "skip", "cygnet is updated with pip, while the studio is stopped: pip install --upgrade cygnet"
        case "install-model":
            return "skip", "models are fetched with: cygnet pull"
    return "error", f"there is no task {kind[:50]!r}"


def pack_of(params: Mapping[str, Any]) -> str:
    """The pack that a task is about, or nothing."""
    return str(params.get("id") or params.get("node_name") or params.get("cnr_id") or "")[:100]


def installed_packs(installer: Installer) -> dict[str, Any]:
    """Packs as the dialog lists them."""

    def row(it: Installed) -> dict[str, Any]:
        return {
            "ver": it.version or "unknown",
            "cnr_id": it.address if it.origin == "registry" else None,
            "aux_id": it.address if it.origin == "git" else None,
            "enabled": it.enabled,
        }

    return {it.name: row(it) for it in installer.installed()}


def _now() -> str:
    return datetime.now(UTC).isoformat()


async def no_form(request: Request) -> None:
    """A form of another site cannot send JSON or nothing; what a form can send is refused."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if request.method != "GET" and kind in _FORMS:
        raise HTTPException(400, "send JSON, or no body")


def manager_router(engine: Engine, installer: Installer, restart: Callable[[], None]) -> APIRouter:
    """The routes, without their ``/api`` prefix; ``restart`` replaces the server's process once jobs are safe."""
    router = APIRouter(tags=["manager"], prefix="/v2", dependencies=[Depends(no_form)])
    queue = TaskQueue(installer, lambda message, client: engine.sockets.send(message, client or None))

    def say(line: str) -> None:
        _log.info("%s", line)

    installer.say = say

    @router.get("/customnode/installed")
    async def installed() -> dict[str, Any]:
        return await asyncio.to_thread(installed_packs, installer)

    @router.post("/customnode/import_fail_info_bulk")
    async def failures(request: Request) -> dict[str, Any]:
        order = await read_json(request)
        if not isinstance(order, dict):
            raise HTTPException(400, "the body must be a JSON object")
        wanted = [it for key in ("cnr_ids", "urls") for it in names(order, key) or ()]
        failed = {it["name"]: it for it in await engine.know("packs") if it["error"]}
        folders = {it.address: it.name for it in installer.installed()}
        found = {it: failed.get(folders.get(it, it)) for it in wanted}
        return {
            it: None if one is None else {"error": one["error"], "traceback": one["traceback"]}
            for it, one in found.items()
        }

    @router.post("/manager/queue/task")
    async def task(request: Request) -> Response:
        order = await read_json(request)
        if not isinstance(order, dict) or not isinstance(order.get("params"), dict):
            raise HTTPException(400, "the body needs kind, params, ui_id and client_id")
        queue.add(
            Task(str(order.get("ui_id", "")), str(order.get("client_id", "")), str(order.get("kind")), order["params"])
        )
        return Response()

    @router.post("/manager/queue/start")
    async def start() -> Response:
        return Response(status_code=200 if queue.start() else 201)

    @router.post("/manager/queue/reset")
    async def reset() -> Response:
        queue.reset()
        return Response()

    @router.post("/manager/queue/update_all")
    async def update_all(client_id: str = "", ui_id: str = "") -> Response:
        for it in await asyncio.to_thread(installer.installed):
            if it.origin != "unknown":
                queue.add(Task(f"{ui_id}_{it.name}", client_id, "update", {"node_name": it.name}))
        return Response()

    @router.post("/manager/queue/update_comfyui")
    async def update_comfyui(client_id: str = "", ui_id: str = "") -> Response:
        queue.add(Task(ui_id, client_id, "update-comfyui", {}))
        return Response()

    @router.get("/manager/queue/status")
    async def status() -> dict[str, Any]:
        return queue.status()

    @router.get("/manager/queue/history")
    async def history(ui_id: str | None = None, client_id: str | None = None, max_items: int = _KEPT) -> JSONResponse:
        if ui_id is not None:
            return JSONResponse({"history": queue.history.get(ui_id, {})})
        rows = [(k, it) for k, it in queue.history.items() if client_id in (None, it["client_id"])]
        return JSONResponse({"history": dict(rows[-max_items:] if max_items > 0 else [])})

    @router.get("/manager/is_legacy_manager_ui")
    async def legacy() -> dict[str, bool]:
        return {"is_legacy_manager_ui": False}

    @router.get("/manager/version")
    async def version() -> Response:
        return Response("4.3-cygnet", media_type="text/plain")

    @router.get("/customnode/getmappings")
    async def mappings() -> dict[str, Any]:
        return {it["name"]: [it["nodes"], {"title_aux": it["name"]}] for it in await engine.know("packs")}

    @router.post("/manager/reboot")
    async def reboot() -> Response:
        _log.info("restarting, as the page asks")
        asyncio.get_running_loop().call_later(0.2, restart)  # after this answer has left
        return Response()

    return router
