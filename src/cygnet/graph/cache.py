"""Results that need not be computed again.

A node's key is a digest of its class, its constants, its fingerprint and the keys of what feeds it, so it does not
depend on node ids: equal work is done once. A node whose fingerprint is NaN or cannot be had has no key, nor has
anything behind it.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections import OrderedDict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Kept:
    """What a node gave: per output a list of values, and what it showed."""

    values: Sequence[Sequence[Any]]
    ui: Mapping[str, Sequence[Any]] | None


class Cache:
    """Keeps the results of the last job's graph, and of ``extra`` further nodes, most recently used first."""

    def __init__(self, extra: int = 0, *, enabled: bool = True) -> None:
        self.extra = extra
        self.enabled = enabled
        self._kept: OrderedDict[str, Kept] = OrderedDict()

    def __len__(self) -> int:
        return len(self._kept)

    def get(self, key: str | None) -> Kept | None:
        """The result under ``key``, if it is still there."""
        if key is None or key not in self._kept:
            return None
        self._kept.move_to_end(key)
        return self._kept[key]

    def put(self, key: str | None, kept: Kept) -> None:
        """Remember a result."""
        if key is not None and self.enabled:
            self._kept[key] = kept
            self._kept.move_to_end(key)

    def trim(self, used: Iterable[str | None]) -> None:
        """After a job: forget what its graph does not hold, but for ``extra`` others."""
        used = set(used)
        others = [key for key in self._kept if key not in used]
        for key in others[: max(0, len(others) - self.extra)]:
            del self._kept[key]

    def clear(self) -> None:
        """Forget everything."""
        self._kept.clear()


def key_of(
    class_type: str,
    inputs: Mapping[str, Any],
    sources: Mapping[str, tuple[str | None, int]],
    fingerprint: Any,
    own: str,
) -> str | None:
    """The key of a node; None when it must run every time.

    ``inputs`` are its constants; ``sources`` give, for each linked input, the key of the node behind it and the slot;
    ``own`` is the node's id where results of equal nodes may differ, else "".
    """
    if any(key is None for key, _ in sources.values()):
        return None
    if isinstance(fingerprint, float) and math.isnan(fingerprint):
        return None
    try:
        text = json.dumps([class_type, own, inputs, sources, fingerprint], sort_keys=True, allow_nan=True)
    except (TypeError, ValueError):
        return None  # an object that has no text, as in expanded graphs
    return hashlib.sha256(text.encode()).hexdigest()
