"""Seconds and peak memory of work on a GPU, the sides in turn."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

import torch

DEVICE = "cuda"
GIB = 2**30
Work = Callable[[], object]


@dataclass(frozen=True, kw_only=True)
class Row:
    """One side of one case."""

    case: str
    side: str
    seconds: tuple[float, ...]
    """Counted runs; scaled to the whole where the case says so."""
    peak_gib: float
    """Most memory that torch held during the counted runs, weights included."""
    first_seconds: float
    """The first run, with compiling and plan-making."""
    must: float | None = None
    ambitious: float | None = None
    """Targets, in seconds."""
    lossy: bool = False
    error: float | None = None
    """Relative L2 distance from the exact side's answer."""

    @property
    def median(self) -> float:
        """The middle of the counted runs."""
        return statistics.median(self.seconds)

    def as_json(self) -> dict[str, Any]:
        """All fields and the median."""
        return {**asdict(self), "median": self.median}


def timed(work: Work) -> float:
    """Seconds of one run, all work on the device included."""
    torch.cuda.synchronize()
    start = time.perf_counter()
    work()
    torch.cuda.synchronize()
    return time.perf_counter() - start


@contextmanager
def peak_memory() -> Iterator[list[float]]:
    """A list that holds, after the block, the most GiB that torch held in it."""
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    found: list[float] = []
    yield found
    torch.cuda.synchronize()
    found.append(torch.cuda.max_memory_allocated() / GIB)


def compare(
    case: str,
    sides: Mapping[str, Work],
    *,
    rounds: int,
    warm: int = 1,
    scale: float = 1.0,
    targets: Mapping[str, tuple[float, float]] | None = None,
    lossy: tuple[str, ...] = (),
    errors: Mapping[str, float] | None = None,
) -> list[Row]:
    """Warm every side, then run them in turn, every other round backwards (A B B A)."""
    firsts = {}
    for name, work in sides.items():
        firsts[name] = timed(work)
        for _ in range(warm - 1):
            work()
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    peaks = dict.fromkeys(sides, 0.0)
    for number in range(rounds):
        for name in list(sides) if number % 2 == 0 else list(reversed(sides)):
            with peak_memory() as peak:
                seconds[name].append(scale * timed(sides[name]))
            peaks[name] = max(peaks[name], peak[0])
    return [
        Row(
            case=case,
            side=name,
            seconds=tuple(seconds[name]),
            peak_gib=peaks[name],
            first_seconds=firsts[name],
            must=(targets or {}).get(name, (None, None))[0],
            ambitious=(targets or {}).get(name, (None, None))[1],
            lossy=name in lossy,
            error=(errors or {}).get(name),
        )
        for name in sides
    ]
