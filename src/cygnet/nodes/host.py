"""What packs know as ``PromptServer.instance``: where they add web routes and speak to the page.

Routes are those of aiohttp, for which packs are written. They are served from the process that runs the packs' nodes,
on a socket file that the server alone knows and hands requests on to.
"""

from __future__ import annotations

import asyncio
import logging
import re
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from cygnet.graph.context import current
from cygnet.nodes.stand_ins.absent import absent

_log = logging.getLogger(__name__)
LARGEST_BODY = 2**30
"""Bytes; the server's own limit on uploads is what holds."""


class _Unserved:
    """Takes the decorators with which packs add routes where aiohttp is not installed, and says that."""

    def __getattr__(self, method: str) -> Callable[..., Callable[[Any], Any]]:
        def route(path: str, *arguments: Any, **options: Any) -> Callable[[Any], Any]:
            _log.warning("a pack adds the route %s %s; to have it served: pip install aiohttp", method.upper(), path)
            return lambda handler: handler

        return route


class Host:
    """One process's stand-in for the server that packs expect to run in.

    ``tell`` takes what packs send to the page: the message's name, its data as JSON values, and the id of the client
    that it is for, or None for all. ``address`` is where the server listens, None where there is none, and
    ``preview_method`` how it makes previews.
    """

    client_id: str | None = None
    last_node_id: str | None = None
    supports = ("custom_nodes_from_web",)
    """What packs ask before they copy their scripts into the page themselves."""

    def __init__(
        self,
        tell: Callable[[str, Any, str | None], None] = lambda event, data, client: None,
        *,
        address: tuple[str, int] | None = None,
        preview_method: str = "auto",
    ) -> None:
        self._tell = tell
        self.preview_method = preview_method
        self._address = address
        self.tasks_remaining = 0
        """How many jobs wait or run."""
        self.prompt_queue: Any = absent(
            "server.PromptServer.instance",
            "prompt_queue",
            "jobs are submitted and listed over HTTP (/prompt, /queue)",
            get_tasks_remaining=staticmethod(lambda: self.tasks_remaining),
        )["prompt_queue"]
        self.loop = asyncio.new_event_loop()
        """Runs in a thread of its own once :meth:`serve` is called."""
        self.routes: Any = _Unserved()
        self.app: Any = None
        try:
            from aiohttp import web
        except ImportError:
            return
        self.routes = web.RouteTableDef()
        self.app = web.Application(client_max_size=LARGEST_BODY)

    # What packs call

    @property
    def address(self) -> str:
        """The address that the server listens on."""
        return self._listening()[0]

    @property
    def port(self) -> int:
        """The port that the server listens on."""
        return self._listening()[1]

    def _listening(self) -> tuple[str, int]:
        if self._address is None:
            raise AttributeError("no server runs beside this command, so it has neither address nor port")
        return self._address

    def send_sync(self, event: object, data: object, sid: str | None = None) -> None:
        """Send a message to one client of the page, or to all; what is no JSON is not sent, which the log says."""
        if not isinstance(event, str):
            _log.warning("a pack sends a binary message of kind %s, which cygnet does not hand on", event)
            return
        try:
            self._tell(event, data, sid)
        except (TypeError, ValueError, RecursionError) as error:  # no reason for the node to fail
            _log.warning("a pack's message %s is not sent: %s", event, error)

    async def send(self, event: object, data: object, sid: str | None = None) -> None:
        """The same from a coroutine."""
        self.send_sync(event, data, sid)

    send_json = send

    def send_progress_text(self, text: str | bytes, node_id: str, sid: str | None = None) -> None:
        """A line of text on the running node."""
        current().say(text.decode(errors="replace") if isinstance(text, bytes) else text)

    def add_on_prompt_handler(self, handler: object) -> None:
        """Packs ask to rewrite submissions; that is not done here, and said."""
        _log.warning("a pack wants to change prompts as they are submitted, which cygnet does not let it")

    # What we call

    def close_table(self) -> None:
        """Take over the routes that were declared; one that clashes with another is left out, and said."""
        if self.app is None:
            return
        for route in self.routes:
            try:
                route.register(self.app.router)
            except (ValueError, RuntimeError) as error:
                _log.error("a pack's route is left out: %s", error)
        self.routes = type(self.routes)()  # what is declared later on is not served

    def patterns(self) -> list[tuple[str, str]]:
        """Method (``*`` for any) and regular expression of the path of every route."""
        found = []
        for resource in () if self.app is None else self.app.router.resources():
            info: Mapping[str, Any] = resource.get_info()
            if "path" in info:
                pattern = re.escape(info["path"])
            elif "pattern" in info:
                pattern = info["pattern"].pattern
            else:  # a folder of files, or an application within
                pattern = re.escape(info["prefix"]) + "/.*"
            methods = {"*"} if "app" in info else {route.method for route in resource}
            found += [(method, pattern) for method in sorted(methods)]
        return found

    def serve(self, path: Path) -> None:
        """Answer on a socket file, in a thread, as long as the process runs; nothing when there are no routes."""
        if not self.patterns():
            return
        path.unlink(missing_ok=True)  # an earlier process's
        threading.Thread(target=self._run, args=(path,), daemon=True, name="serves the routes of packs").start()

    def _run(self, path: Path) -> None:
        from aiohttp import web

        async def begin() -> None:
            runner = web.AppRunner(self.app, access_log=None)
            await runner.setup()
            await web.UnixSite(runner, str(path)).start()

        asyncio.set_event_loop(self.loop)
        try:
            self.loop.run_until_complete(begin())
        except Exception:  # a pack's start-up code may raise anything
            _log.exception("the routes of packs cannot be served")
            return
        self.loop.run_forever()
