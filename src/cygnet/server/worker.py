"""What runs inside the child processes: one that runs jobs and owns the models, one that knows and judges.

The command gives each its node classes. The *catalogue* answers while the *worker* is busy, and neither shares a
process with the server, so that a node's import or crash cannot stop it.
"""

from __future__ import annotations

import functools
import json
import logging
import queue
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from cygnet.graph.cache import Cache
from cygnet.graph.contract import NodeClass, describe_all
from cygnet.graph.convert import to_prompt
from cygnet.graph.events import Event, to_json
from cygnet.graph.execute import Executor, Job
from cygnet.graph.schema import NodeType
from cygnet.graph.validate import Verdict, validate
from cygnet.server.child import Channel, encoded
from cygnet.types import CancelToken

_log = logging.getLogger(__name__)


def serve_jobs(
    channel: Channel,
    classes: Mapping[str, NodeClass],
    *,
    cache: Cache | None = None,
    preview_method: str = "auto",
    free: Callable[[], None] = lambda: None,
    devices: Callable[[], Sequence[Mapping[str, Any]]] = list,
    remaining: Callable[[int], None] = lambda count: None,
) -> None:
    """Run jobs one after another until the server stops; ``free`` unloads models, when asked or when memory ran out.
    ``preview_method`` holds where a submission names none.

    ``devices`` says what this process computes on and how much memory is free there, as ``system_stats`` shows it; the
    server is told after each order. ``remaining`` hears how many jobs wait or run.

    Jobs run in the calling thread, which owns the device; another thread listens, so that a stop is heard at once.
    """
    executor = Executor(classes, cache, preview_method=preview_method, relieve=free)
    orders: queue.SimpleQueue[dict[str, Any] | None] = queue.SimpleQueue()
    tokens: dict[tuple[str, int], CancelToken] = {}
    """By job and attempt: a job may be asked for again while its earlier run is still being ended here."""

    def listen() -> None:
        while (message := channel.receive()) is not None:
            if message["what"] == "cancel":
                token = tokens.get((message["job"], message["fence"]))
                if token is not None:
                    token.cancel()
            elif message["what"] == "queue":
                remaining(message["remaining"])
            else:
                if message["what"] == "run":
                    tokens[message["job"], message["fence"]] = CancelToken()
                orders.put(message)
        for token in [*tokens.values()]:
            token.cancel()
        orders.put(None)

    threading.Thread(target=listen, daemon=True, name="listens to the server").start()
    channel.send({"ready": True, "devices": devices()})
    while (order := orders.get()) is not None:
        if order["what"] == "free":
            if order.get("results"):
                executor.cache.clear()
            free()
        elif order["what"] == "run":
            attempt = order["job"], order["fence"]
            _run(channel, executor, order, tokens[attempt])
            del tokens[attempt]
        channel.send({"devices": devices()})


def _run(channel: Channel, executor: Executor, order: Mapping[str, Any], cancel: CancelToken) -> None:
    def tell(event: Event) -> None:
        channel.send({"job": order["job"], "fence": order["fence"], **to_json(event)})

    job = Job(prompt=order["prompt"], outputs=tuple(order["outputs"]), extra=order["extra"], id=order["job"])
    executor.run(job, tell, cancel)


def serve_catalogue(
    channel: Channel,
    classes: Mapping[str, NodeClass],
    packs: Sequence[Mapping[str, Any]] = (),
    routes: Sequence[tuple[str, str]] = (),
) -> None:
    """Describe node types, judge prompts, convert workflows and tell of packs until the server stops.

    ``routes`` are the methods and path patterns of the web routes that packs added.
    """
    channel.send({"ready": True})
    failed = sum(bool(it.get("error")) for it in packs)
    channel.send({"left_out": {"packs": failed}})

    def described(found: Mapping[str, Any]) -> None:
        channel.send({"left_out": {"packs": failed, "node_types": len(classes) - len(found)}})

    while (message := channel.receive()) is not None:
        channel.answer(message, functools.partial(_answer, message, classes, packs, routes, described))


def _answer(
    order: Mapping[str, Any],
    classes: Mapping[str, NodeClass],
    packs: Sequence[Mapping[str, Any]],
    routes: Sequence[tuple[str, str]],
    described: Callable[[Mapping[str, Any]], None],
) -> Any:
    match order["what"]:
        case "packs":
            return list(packs)
        case "routes":
            return list(routes)
        case "describe":
            wanted = order.get("name")
            chosen = classes if wanted is None else {wanted: classes[wanted]} if wanted in classes else {}
            found = _entries(describe_all(chosen, _report))
            if wanted is None:  # not at the start: a declaration may end this process, and should when it is asked for
                described(found)
            return found
        case "validate":
            return verdict_json(validate(order["prompt"], classes, order.get("targets")))
        case "convert":
            return to_prompt(order["workflow"], describe_all(classes, _report))
        case other:
            raise ValueError(f"the catalogue does not know {other!r}")


def _entries(described: Mapping[str, NodeType]) -> dict[str, Any]:
    """What clients are told of each type; one that cannot be told, such as a default that is no JSON, is left out."""
    found = {}
    for name, it in described.items():
        try:
            entry = it.info()
            encoded(entry)
        except Exception as error:  # a foreign class may declare anything, and must not hide the others
            _report(name, error)
        else:
            found[name] = entry
    return found


def _report(name: str, error: BaseException) -> None:
    _log.error("node type %s cannot be described and is left out: %r", name, error)


def verdict_json(it: Verdict) -> dict[str, Any]:
    """A verdict for the server."""
    return {
        "prompt": it.prompt,
        "outputs": list(it.outputs),
        "error": None if it.error is None else it.error.json(),
        # They quote what a class declares, which may be no JSON.
        "node_errors": json.loads(json.dumps({key: node.json() for key, node in it.nodes.items()}, default=repr)),
    }
