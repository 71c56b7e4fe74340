"""Events survive the way to another process."""

from __future__ import annotations

import json

import pytest

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
    from_json,
    to_json,
)

PLACE = Place(node="1:2", display="1", real="1", parent="1", class_type="Show")
EVENTS: list[Event] = [
    JobStarted(),
    NodesCached(("1", "2")),
    NodeStarted(PLACE),
    NodeProgressed(PLACE, 3, 20),
    NodePreviewed(PLACE, bytes(range(256)), "image/png"),
    NodeSpoke(PLACE, "héllo"),
    NodeFinished(PLACE, {"images": [{"filename": "a.png"}], "animated": [True]}),
    NodeFinished(PLACE, None, cached=True),
    NodeFailed(PLACE, "no", "ValueError", ("line",), {"x": ["1"]}, ("3",), blocked=True),
    JobEnded("error", PLACE, ("3",)),
    JobEnded("success"),
]


@pytest.mark.parametrize("event", EVENTS, ids=lambda it: type(it).__name__)
def test_an_event_comes_back_equal(event: Event) -> None:
    assert from_json(json.loads(json.dumps(to_json(event)))) == event


@pytest.mark.parametrize("fields", [{}, {"event": "Nope"}, {"event": "NodeStarted"}, {"event": "JobStarted", "x": 1}])
def test_anything_else_is_refused(fields: dict[str, object]) -> None:
    with pytest.raises((KeyError, TypeError, ValueError)):
        from_json(fields)
