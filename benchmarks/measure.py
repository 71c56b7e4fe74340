"""How things are timed: in turn, in one process, medians with quartiles."""

from __future__ import annotations

import math
import os
import platform
import shlex
import statistics
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import PurePath
from typing import Any

import torch

Work = Callable[[], torch.Tensor]


@dataclass(frozen=True)
class Timing:
    """Seconds of every counted run of one side."""

    seconds: tuple[float, ...]

    @property
    def median(self) -> float:
        """The middle of the runs."""
        return statistics.median(self.seconds)

    @property
    def quartiles(self) -> tuple[float, float]:
        """The first and third quartile; of fewer than three runs the least and the most."""
        if len(self.seconds) < 3:
            return min(self.seconds), max(self.seconds)
        low, _, high = statistics.quantiles(self.seconds, n=4, method="inclusive")
        return low, high


def in_turn(
    sides: Mapping[str, Work], rounds: int, budget: float = math.inf, clock: Callable[[], float] | None = None
) -> dict[str, Timing]:
    """Time all sides after one run of each that does not count; every other round goes backwards (A B B A).

    As many rounds are made as fit into ``budget`` seconds, judged by the run that does not count; at least one.
    ``clock`` is the wall's where none is given.
    """
    clock = clock or time.perf_counter
    start = clock()
    for work in sides.values():
        work()
    first = clock() - start
    fitting = rounds if first * (1 + rounds) <= budget else max(1, int(budget / first) - 1)
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for number in range(min(rounds, fitting)):
        order = list(sides) if number % 2 == 0 else list(reversed(sides))
        for name in order:
            start = clock()
            sides[name]()
            seconds[name].append(clock() - start)
    return {name: Timing(tuple(runs)) for name, runs in seconds.items()}


def relative_error(value: torch.Tensor, reference: torch.Tensor) -> float:
    """Relative L2 distance, in float64."""
    a, b = value.double(), reference.double()
    return float((a - b).norm() / b.norm())


def packages(*names: str) -> dict[str, str | None]:
    """The versions of installed packages; None for one that is not."""
    found: dict[str, str | None] = {}
    for name in names:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = None
    return found


def heading(module: str) -> dict[str, Any]:
    """What begins a file of results: when, by which command of ``python -m module``, and what figures depend on."""
    # Where the files of whoever measured lie is nobody's business.
    told = [PurePath(word).name if PurePath(word).is_absolute() else word for word in sys.argv[1:]]
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": shlex.join(["python", "-m", module, *told]),
        "environment": environment(),
    }


def environment() -> dict[str, Any]:
    """What the figures depend on."""
    found: dict[str, Any] = {"python": platform.python_version(), "threads": torch.get_num_threads()}
    found.update(packages("cygnet", "torch", "diffusers", "transformers"))
    found["processor"] = _processor()
    found["instructions"] = torch.backends.cpu.get_cpu_capability()
    found["amx"] = bool(torch.cpu._is_amx_tile_supported())
    found["load_before"] = round(os.getloadavg()[0], 2)
    return found


def _processor() -> str:
    try:
        with open("/proc/cpuinfo", encoding="ascii", errors="replace") as lines:
            return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or "unknown"
