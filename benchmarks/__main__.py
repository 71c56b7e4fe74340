"""``python -m benchmarks [CASE ...]``: time cygnet against Diffusers and transformers on this machine.

Needs the extra ``oracle``. Before anything is timed, both sides must give the same values.
"""

from __future__ import annotations

import argparse
import gc
import json
import math
import resource
import subprocess
import sys
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from benchmarks.cases import CASES, Case
from benchmarks.floor import floor_of
from benchmarks.measure import environment, in_turn, relative_error
from benchmarks.report import plot, table


def compare(case: Case, rounds: int | None, budget: float, *, floor: bool = False) -> dict[str, Any]:
    """Prove that the sides agree, then time them, within about ``budget`` seconds or in one round.

    With ``floor`` also what our heavy operators would take alone, which is beside the budget.
    """
    start = time.monotonic()
    sides = case.build()
    error = relative_error(sides.ours(), sides.peer())
    if not error <= sides.tolerance:
        raise SystemExit(f"{case.name}: the sides differ by {error:.2g}, more than {sides.tolerance:g}; not timed")
    works = {"ours": sides.ours, "peer": sides.peer}
    if sides.tuned is not None:
        works["tuned"] = sides.tuned
    timings = in_turn(works, rounds or case.rounds, budget - (time.monotonic() - start))
    ours = timings["ours"].median
    least = floor_of(sides.ours) if floor else None
    return {
        "case": case.name,
        "title": case.title,
        "target": case.target,
        "error": error,
        "rounds": len(timings["ours"].seconds),
        "seconds": {name: {"median": it.median, "quartiles": it.quartiles} for name, it in timings.items()},
        "ratio": timings["peer"].median / ours,
        "floor": least,
        "ratio_possible": timings["peer"].median / least if least else None,
        "ratio_tuned": timings["tuned"].median / ours if "tuned" in timings else None,
    }


def peak_of(case: str, side: str) -> int:
    """Peak resident bytes of a process of its own in which one side runs once."""
    command = [sys.executable, "-m", "benchmarks", "--peak", case, side]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return int(done.stdout.split()[-1])


def main() -> None:
    """Parse arguments, run, write."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    names = [case.name for case in CASES]
    parser.add_argument("cases", nargs="*", metavar="CASE", help=f"some of: {', '.join(names)}; all by default")
    parser.add_argument("--rounds", type=int, help="counted runs of each side")
    parser.add_argument("--budget", type=float, default=math.inf, metavar="SECONDS", help="fewer runs, to end by then")
    parser.add_argument("--floor", action="store_true", help="also how fast this machine could do it at most")
    parser.add_argument("--memory", action="store_true", help="peak memory of each side too, in processes of their own")
    parser.add_argument("--json", type=Path, help="write the figures here")
    parser.add_argument("--table", type=Path, help="write them as a Markdown table here")
    parser.add_argument("--plot", type=Path, help="draw them here (needs matplotlib)")
    parser.add_argument("--peak", nargs=2, metavar=("CASE", "SIDE"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_grad_enabled(False)
    chosen = {case.name: case for case in CASES}
    if options.peak:
        sides = chosen[options.peak[0]].build()
        getattr(sides, options.peak[1])()
        print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)
        return
    unknown = [name for name in options.cases if name not in chosen]
    if unknown:
        parser.error(f"there is no case {unknown[0]!r}; there are: {', '.join(names)}")
    result: dict[str, Any] = {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "environment": environment(),
        "cases": [],
    }
    end = time.monotonic() + options.budget
    wanted = options.cases or names
    for number, name in enumerate(wanted):
        share = (end - time.monotonic()) / (len(wanted) - number)
        row = compare(chosen[name], options.rounds, share, floor=options.floor)
        gc.collect()
        if options.memory:
            row["peak_bytes"] = {side: peak_of(name, side) for side in ("ours", "peer")}
        result["cases"].append(row)
        told = f"{row['ratio']:.2f} times as fast (target {row['target']:g}), {row['rounds']} rounds"
        if row["floor"]:
            told += f"; at most {row['ratio_possible']:.2f} times here"
        print(f"{row['title']}: {told}", file=sys.stderr)
        if options.json:
            options.json.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    text = table(result)
    print(text)
    if options.table:
        options.table.write_text(text, encoding="utf-8")
    if options.plot:
        plot(result, options.plot)


if __name__ == "__main__":
    main()
