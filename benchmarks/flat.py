"""``python -m benchmarks.flat``: memory after each of fifty tiny videos made in one process, which must stay flat."""

from __future__ import annotations

import argparse
import statistics
import sys
from collections.abc import Iterator
from typing import Any

import psutil

import cygnet
from benchmarks.measure import heading
from benchmarks.report import output, write_json
from cygnet.api import Wan

TOLERANCE = 2 * 2**20
"""Bytes that the median of the last ten may lie above that of the ten after the first ten."""


LEAST = 30
"""Videos: fewer would compare some with themselves."""


def sizes(wan: Wan, count: int) -> Iterator[int]:
    """Resident bytes after each of the videos."""
    process = psutil.Process()
    for number in range(count):
        wan.generate("a red ball", size=(64, 64), num_frames=9, num_steps=2, seed=number)
        yield process.memory_info().rss


def judged(found: list[int]) -> dict[str, Any]:
    """Whether the sizes are flat."""
    early, late = statistics.median(found[10:20]), statistics.median(found[-10:])
    return {"early_bytes": early, "late_bytes": late, "tolerance_bytes": TOLERANCE, "flat": late - early <= TOLERANCE}


def main() -> None:
    """Make the videos; fail if memory grows."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.flat", description=__doc__)
    parser.add_argument("--count", type=int, default=50)
    parser.add_argument("--resident", action="store_true", help="keep the networks between videos")
    parser.add_argument("--json", type=output, help="write the figures here")
    options = parser.parse_args()
    if options.count < LEAST:
        parser.error(f"--count is {options.count}; make at least {LEAST}, to compare early ones with late ones")
    result: dict[str, Any] = {**heading("benchmarks.flat"), "resident": options.resident}
    found: list[int] = []
    for number, size in enumerate(
        sizes(cygnet.load("tiny-t2v", device="cpu", offload=not options.resident), options.count)
    ):
        found.append(size)
        print(f"{number + 1}: {size / 2**20:.1f} MiB")
    verdict = judged(found)
    early, late = verdict["early_bytes"], verdict["late_bytes"]
    if options.json:
        write_json(options.json, {**result, **verdict, "bytes": found})
    print(f"median of videos 11 to 20: {early / 2**20:.1f} MiB; of the last ten: {late / 2**20:.1f} MiB")
    if not verdict["flat"]:
        sys.exit(f"memory grew by {(late - early) / 2**20:.1f} MiB")


if __name__ == "__main__":
    main()
