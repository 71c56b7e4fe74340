"""What happens while a job runs, as values: the executor hands them to a sink, and the server alone sends them."""

from __future__ import annotations

import base64
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, get_args


@dataclass(frozen=True, kw_only=True)
class Place:
    """A node as clients know it. Nodes made by another node's expansion are shown at the place of their maker."""

    node: str
    display: str
    real: str
    """The node of the submitted prompt that it stems from."""
    parent: str | None = None
    class_type: str = ""
    real_type: str = ""
    """The type of ``real``; empty: it is the node itself."""

    @property
    def marked(self) -> tuple[str, str]:
        """Id and type of the node at which clients mark a failure: they know only those of the prompt."""
        return self.real, self.real_type or self.class_type


@dataclass(frozen=True)
class JobStarted:
    """The job's first event."""


@dataclass(frozen=True)
class NodesCached:
    """Nodes whose results are known already and will not run; sent once, also when there are none."""

    nodes: tuple[str, ...]


@dataclass(frozen=True)
class NodeStarted:
    """A node begins to run."""

    place: Place


@dataclass(frozen=True)
class NodeProgressed:
    """``value`` of ``total`` units of a running node are done."""

    place: Place
    value: float
    total: float


@dataclass(frozen=True)
class NodePreviewed:
    """A picture of what a running node is making: a whole JPEG or PNG file."""

    place: Place
    image: bytes
    media_type: Literal["image/jpeg", "image/png"]


@dataclass(frozen=True)
class NodeSpoke:
    """A line of text to show on a running node."""

    place: Place
    text: str


@dataclass(frozen=True)
class NodeFinished:
    """A node is done; ``ui`` is what it shows, if anything, and ``cached`` says that it was done before."""

    place: Place
    ui: Mapping[str, Sequence[Any]] | None
    cached: bool = False


@dataclass(frozen=True)
class NodeFailed:
    """A node raised, or was told to fail; the job ends unless ``blocked``."""

    place: Place
    message: str
    exception_type: str
    traceback: tuple[str, ...] = ()
    inputs: Mapping[str, Sequence[str]] = field(default_factory=dict)
    """What it was given, shortened to text; no prompt secrets are among node inputs."""
    executed: tuple[str, ...] = ()
    blocked: bool = False
    """Another node withheld a value on purpose: this output is missing and the others go on."""


@dataclass(frozen=True)
class JobEnded:
    """The job's last event."""

    state: Literal["success", "error", "interrupted"]
    at: Place | None = None
    """Where it was when it ended early."""
    executed: tuple[str, ...] = ()


Event = (
    JobStarted
    | NodesCached
    | NodeStarted
    | NodeProgressed
    | NodePreviewed
    | NodeSpoke
    | NodeFinished
    | NodeFailed
    | JobEnded
)
Sink = Callable[[Event], None]

_BY_NAME: dict[str, type[Any]] = {it.__name__: it for it in get_args(Event)}
_PLACES = ("place", "at")


def to_json(event: Event) -> dict[str, Any]:
    """An event for another process: plain JSON values, pictures in base64."""
    fields = asdict(event)
    if isinstance(event, NodePreviewed):
        fields["image"] = base64.b64encode(event.image).decode()
    return {"event": type(event).__name__, **fields}


def from_json(fields: Mapping[str, Any]) -> Event:
    """Undo :func:`to_json`. Raises KeyError, TypeError or ValueError for anything else."""
    values = dict(fields)
    kind = _BY_NAME[values.pop("event")]
    for name in _PLACES:
        if values.get(name) is not None:
            values[name] = Place(**values[name])
    if kind is NodePreviewed:
        values["image"] = base64.b64decode(values["image"], validate=True)
    for name, value in values.items():
        if isinstance(value, list):
            values[name] = tuple(value)
    event: Event = kind(**values)
    return event
