"""What a node may return, brought to one form.

Allowed: a tuple with a value per output; ``None`` for no outputs; a mapping with ``result`` and, optionally, ``ui``
(what clients show: names to lists) and ``expand`` (a small prompt to run in its place, whose nodes ``result`` may
link to; other keys are not looked at); an :class:`ExecutionBlocker`, or one in place of a value.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any


class ExecutionBlocker:
    """In place of a value: whatever needs it does not run. With a message, that is reported as an error."""

    def __init__(self, message: str | None = None) -> None:
        self.message = message


@dataclass(frozen=True)
class Result:
    """One call's result."""

    values: tuple[Any, ...]
    ui: Mapping[str, Sequence[Any]] = field(default_factory=dict)
    expand: Mapping[str, Mapping[str, Any]] | None = None
    """None: no expansion, and no value is a link. An empty one may still have links to nodes that are there."""


def parse_result(returned: Any, outputs: int, name: str, *, more: bool = False) -> Result:
    """Bring a return value of node type ``name`` with so many ``outputs`` to one form; raises TypeError in words.

    With ``more`` it may have further ones behind.
    """
    ui: Any = {}
    expand: Any = None
    if isinstance(returned, Mapping):
        if returned and outputs and not returned.keys() & {"ui", "result", "expand"}:
            raise TypeError(
                f"{name} returned a mapping with {sorted(map(str, returned))}; its {outputs} outputs must be in result"
            )
        ui, expand = returned.get("ui") or {}, returned.get("expand")
        returned = returned.get("result")
    if isinstance(returned, ExecutionBlocker):
        return Result((returned,) * outputs, ui, expand)
    if returned is None:
        returned = (None,) * outputs
    if not isinstance(returned, (tuple, list)):
        raise TypeError(f"{name} returned {type(returned).__name__}; it must return a tuple of {outputs} values")
    if len(returned) < outputs:
        raise TypeError(f"{name} returned {len(returned)} values; it declares {outputs} outputs")
    if not isinstance(ui, Mapping) or not isinstance(expand, Mapping | None):
        raise TypeError(f"{name} returned a ui or an expand that is no mapping")
    return Result(tuple(returned if more else returned[:outputs]), ui, expand)


def slices(values: Mapping[str, Sequence[Any]]) -> list[dict[str, Any]]:
    """The arguments of each call: as many as the longest list has members; shorter ones repeat their last."""
    if not values:
        return [{}]
    longest = max(len(column) for column in values.values())
    if min(len(column) for column in values.values()) == 0:
        return []
    return [{name: column[min(i, len(column) - 1)] for name, column in values.items()} for i in range(longest)]
