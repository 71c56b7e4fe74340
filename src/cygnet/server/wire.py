"""Events of a running job as ComfyUI's socket messages, and as the history entry that is read afterwards."""

from __future__ import annotations

import json
import struct
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from cygnet.graph.events import (
    Event,
    JobEnded,
    JobStarted,
    NodeFailed,
    NodeFinished,
    NodePreviewed,
    NodeProgressed,
    NodesCached,
    NodeSpoke,
    NodeStarted,
    Place,
)
from cygnet.server.store import Ending, JobState
from cygnet.types import Estimate, time_left

_PREVIEW, _TEXT, _PREVIEW_WITH_METADATA = 1, 3, 4
_SECONDS_BETWEEN_LINES = 1.0
_IMAGE_FORMATS = {"image/jpeg": 1, "image/png": 2}


@dataclass(frozen=True)
class Message:
    """A text message: to the job's client, or to all sockets."""

    type: str
    data: Mapping[str, Any]
    to_all: bool = False

    def text(self) -> str:
        """As it is sent."""
        return json.dumps({"type": self.type, "data": self.data}, separators=(",", ":"), allow_nan=False)


@dataclass(frozen=True)
class Preview:
    """A picture on a running node; sent in the form that the client understands."""

    job: str
    place: Place
    image: bytes
    media_type: str

    def frame(self, *, metadata: bool) -> bytes:
        """A binary frame: with the node's names, or for old clients the picture alone. Integers are big-endian."""
        if not metadata:
            return struct.pack(">II", _PREVIEW, _IMAGE_FORMATS[self.media_type]) + self.image
        head = json.dumps({**_names(self.job, self.place), "image_type": self.media_type}).encode()
        return struct.pack(">II", _PREVIEW_WITH_METADATA, len(head)) + head + self.image


@dataclass(frozen=True)
class Line:
    """A line of text on a running node."""

    job: str
    place: Place
    text: str

    def frame(self, *, metadata: bool) -> bytes:
        """A binary frame; the job's id comes first where both sides have said that they know it."""
        parts = [self.job.encode()] if metadata else []
        parts.append(self.place.node.encode())
        head = b"".join(struct.pack(">I", len(part)) + part for part in parts)
        return struct.pack(">I", _TEXT) + head + self.text.encode()


Outgoing = Message | Preview | Line


def _names(job: str, place: Place) -> dict[str, Any]:
    return {
        "node_id": place.node,
        "prompt_id": job,
        "display_node_id": place.display,
        "parent_node_id": place.parent,
        "real_node_id": place.real,
    }


@dataclass
class JobMessages:
    """Turns one job's events into messages and, at the end, into its history entry."""

    job: str
    nodes: dict[str, dict[str, Any]] = field(default_factory=dict)
    """State of every node that was begun."""
    outputs: dict[str, Any] = field(default_factory=dict)
    meta: dict[str, Any] = field(default_factory=dict)
    history: list[list[Any]] = field(default_factory=list)
    error: dict[str, Any] | None = None
    state: JobState = "failed"
    at: Place | None = None
    """The node that was begun last, as long as it is not done."""
    clock: Callable[[], float] = time.monotonic
    _estimate: Estimate = field(default_factory=Estimate)
    _told_at: float = float("-inf")
    """When the time left was last told."""
    _told: set[str] = field(default_factory=set)
    """Nodes on which a line says how far they are: it stays there until the job is over, unless another comes."""

    def of(self, event: Event) -> Sequence[Outgoing]:
        """What to send for ``event``, in order."""
        match event:
            case JobStarted():
                return [self._remember("execution_start", {})]
            case NodesCached(nodes):
                return [self._remember("execution_cached", {"nodes": list(nodes)})]
            case NodeStarted(place):
                self.at = place
                data = {"node": place.node, "display_node": place.display, "prompt_id": self.job}
                return [self._progress(place, "running", 0, 1), Message("executing", data)]
            case NodeProgressed(place, value, total):
                moved: dict[str, Any] = {"value": value, "max": total, "prompt_id": self.job, "node": place.node}
                state = self._progress(place, "running", value, total)
                return [state, Message("progress", moved), *self._time_left(place, value, total)]
            case NodePreviewed(place, image, media_type):
                return [Preview(self.job, place, image, media_type)]
            case NodeSpoke(place, text):
                return [Line(self.job, place, text)]
            case NodeFinished(place, ui, cached):
                return self._finished(place, ui, cached)
            case NodeFailed() as failed:
                return self._failed(failed)
            case JobEnded() as ended:
                return self._ended(ended)

    def now(self) -> Sequence[Outgoing]:
        """For a client that comes back: the node that was begun last and is not done."""
        begun = [it for it in self.nodes.values() if it["state"] == "running"]
        if not begun:
            return []
        data = {"node": begun[-1]["node_id"], "display_node": begun[-1]["display_node_id"], "prompt_id": self.job}
        state = Message("progress_state", {"prompt_id": self.job, "nodes": dict(self.nodes)})
        return [state, Message("executing", data)]

    def where(self) -> str:
        """The node that was begun last and is not done, in words."""
        begun = [it["real_node_id"] for it in self.nodes.values() if it["state"] == "running"]
        return f"node {begun[-1]}" if begun else "no node"

    def ending(self) -> Ending:
        """What to store once :class:`JobEnded` has passed."""
        return Ending(state=self.state, outputs=self.outputs, meta=self.meta, messages=self.history, error=self.error)

    def _remember(self, kind: str, data: Mapping[str, Any], *, to_all: bool = False) -> Message:
        full = {**data, "prompt_id": self.job, "timestamp": time.time_ns() // 1_000_000}
        self.history.append([kind, full])
        return Message(kind, full, to_all)

    def _progress(self, place: Place, state: str, value: float, total: float) -> Message:
        self.nodes[place.node] = {"value": value, "max": total, "state": state, **_names(self.job, place)}
        return Message("progress_state", {"prompt_id": self.job, "nodes": dict(self.nodes)})

    def _time_left(self, place: Place, value: float, total: float) -> Sequence[Line]:
        """A line on the node, now and then, with the time that it still needs."""
        now = self.clock()
        left = self._estimate.update(place.node, value, total, now)
        if left is None or value >= total or now - self._told_at < _SECONDS_BETWEEN_LINES:
            return []
        self._told_at = now
        self._told.add(place.node)
        return [Line(self.job, place, f"{value:g} of {total:g}{time_left(left)}")]

    def _finished(self, place: Place, ui: Mapping[str, Any] | None, cached: bool) -> Sequence[Outgoing]:
        sent: list[Outgoing] = []
        if self.at == place:
            self.at = None
        if ui is not None:
            self.outputs[place.node] = ui
            self.meta[place.node] = {
                "node_id": place.node,
                "display_node": place.display,
                "parent_node": place.parent,
                "real_node_id": place.real,
            }
            data = {"node": place.node, "display_node": place.display, "output": ui, "prompt_id": self.job}
            sent.append(Message("executed", data))
        if not cached:
            total = self.nodes.get(place.node, {}).get("max", 1)
            sent.append(self._progress(place, "finished", total, total))
            if place.node in self._told:
                sent.append(Line(self.job, place, f"{total:g} of {total:g}"))
        return sent

    def _failed(self, it: NodeFailed) -> Sequence[Outgoing]:
        node, kind = it.place.marked
        data = {
            "node_id": node,
            "node_type": kind,
            "executed": list(it.executed),
            "exception_message": it.message,
            "exception_type": it.exception_type,
            "traceback": list(it.traceback),
            "current_inputs": {name: list(values) for name, values in it.inputs.items()},
            "current_outputs": list(it.executed),
        }
        if not it.blocked:
            self.error = data
        shown = self.nodes.get(it.place.node, {})
        state = self._progress(it.place, "error", shown.get("value", 0), shown.get("max", 1))
        return [state, self._remember("execution_error", data)]

    def _ended(self, it: JobEnded) -> Sequence[Outgoing]:
        match it.state:
            case "success":
                self.state = "completed"
                return [self._remember("execution_success", {})]
            case "interrupted":
                self.state = "cancelled"
                at = it.at or Place(node="", display="", real="")
                node, kind = at.marked
                data = {"node_id": node, "node_type": kind, "executed": list(it.executed)}
                return [self._remember("execution_interrupted", data, to_all=True)]
            case "error":
                self.state = "failed"
                return []  # the failure itself was the message


def status(remaining: int, sid: str | None = None) -> Message:
    """How many jobs are waiting or running; the first message to a socket also names it."""
    data: dict[str, Any] = {"status": {"exec_info": {"queue_remaining": remaining}}}
    return Message("status", data if sid is None else {**data, "sid": sid}, to_all=True)


def over(job: str) -> Message:
    """Ends every run, whatever its end was: many clients wait for it."""
    return Message("executing", {"node": None, "prompt_id": job})
