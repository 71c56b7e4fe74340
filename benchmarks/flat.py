"""``python -m benchmarks.flat``: memory after each of fifty tiny videos made in one process, which must stay flat."""

from __future__ import annotations

import argparse
import statistics
import sys

import psutil

import cygnet

TOLERANCE = 2 * 2**20
"""Bytes that the median of the last ten may lie above that of the ten after the first ten."""


def main() -> None:
    """Make the videos; fail if memory grows."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.flat", description=__doc__)
    parser.add_argument("--count", type=int, default=50)
    parser.add_argument("--resident", action="store_true", help="keep the networks between videos")
    options = parser.parse_args()
    wan = cygnet.load("tiny-t2v", device="cpu", offload=not options.resident)
    process, sizes = psutil.Process(), list[int]()
    for number in range(options.count):
        wan.generate("a red ball", size=(64, 64), num_frames=9, num_steps=2, seed=number)
        sizes.append(process.memory_info().rss)
        print(f"{number + 1}: {sizes[-1] / 2**20:.1f} MiB")
    early, late = statistics.median(sizes[10:20]), statistics.median(sizes[-10:])
    print(f"median of videos 11 to 20: {early / 2**20:.1f} MiB; of the last ten: {late / 2**20:.1f} MiB")
    if late - early > TOLERANCE:
        sys.exit(f"memory grew by {(late - early) / 2**20:.1f} MiB")


if __name__ == "__main__":
    main()
