"""``python -m benchmarks.gpu``: prove cygnet right on this GPU, then time it beside Diffusers and transformers.

Needs a CUDA device and the extra ``oracle``. Cases that would not end within ``--budget`` seconds are left out, and
the report says so.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Iterable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from benchmarks.gpu.cases import CASES, Case, Left, Missing, release
from benchmarks.gpu.parity import all_checks
from benchmarks.gpu.report import checks_table, rows_table
from benchmarks.measure import packages


def environment() -> dict[str, Any]:
    """What the figures depend on."""
    properties = torch.cuda.get_device_properties(0)
    return {
        "device": properties.name,
        "memory_gib": round(properties.total_memory / 2**30, 1),
        "capability": list(torch.cuda.get_device_capability()),
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version(),
        **packages("torch", "diffusers", "transformers", "triton"),
    }


def main(arguments: Iterable[str] | None = None) -> int:
    """Run what fits into the time; write JSON and a table; 1 if a check failed or a case broke."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description=__doc__)
    names = [case.name for case in CASES]
    parser.add_argument("cases", nargs="*", metavar="CASE", help=f"some of: {', '.join(names)}; all by default")
    parser.add_argument("--no-checks", action="store_true", help="time only")
    parser.add_argument("--checks-only", action="store_true", help="prove only")
    parser.add_argument("--budget", type=float, default=520, help="seconds in all (520)")
    parser.add_argument("--json", type=Path, help="write everything here, after each case anew")
    parser.add_argument("--table", type=Path, help="write it as Markdown here")
    options = parser.parse_args(None if arguments is None else list(arguments))
    if unknown := [name for name in options.cases if name not in names]:
        parser.error(f"there is no case {unknown[0]!r}; there are: {', '.join(names)}")
    if not torch.cuda.is_available():
        print("there is no CUDA device here; run this on a machine with one", file=sys.stderr)
        return 2
    torch.set_grad_enabled(False)
    start = time.monotonic()
    result: dict[str, Any] = {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "environment": environment(),
        "checks": [],
        "rows": [],
        "left_out": [],
    }

    def save() -> None:
        result["seconds"] = round(time.monotonic() - start, 1)
        if options.json:
            options.json.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
        if options.table:
            options.table.write_text(checks_table(result) + "\n" + rows_table(result), encoding="utf-8")

    sound = True
    if not options.no_checks:
        for check in all_checks():
            sound &= check.passed
            result["checks"].append(check.as_json())
            print(f"{'ok ' if check.passed else 'BAD'} {check.name}: {check.error} {check.note}", flush=True)
        print(f"checks took {time.monotonic() - start:.0f} s", flush=True)
        save()
    chosen = [] if options.checks_only else [case for case in CASES if not options.cases or case.name in options.cases]
    for case in chosen:
        left = options.budget - (time.monotonic() - start)
        if left < case.seconds:
            result["left_out"].append(
                {"case": case.name, "why": f"{left:.0f} s were left, it takes {case.seconds:.0f}"}
            )
            continue
        sound &= _timed_case(case, result, lambda: options.budget - (time.monotonic() - start))
        save()
    save()
    print(checks_table(result))
    print(rows_table(result))
    return 0 if sound else 1


def _timed_case(case: Case, result: dict[str, Any], left: Left) -> bool:
    began = time.monotonic()
    try:
        for row in case.run(left):
            if isinstance(row, Missing):
                result["left_out"].append({"case": f"{case.name}, {row.side}", "why": row.why})
                continue
            result["rows"].append({"title": case.title, **row.as_json()})
            print(f"{row.case} {row.side}: {row.median:.3f} s, {row.peak_gib:.2f} GiB, error {row.error}", flush=True)
    except Exception as problem:  # the other cases can still be timed
        result["left_out"].append({"case": case.name, "why": f"{type(problem).__name__}: {problem}"[:500]})
        print(f"{case.name} failed: {problem}", file=sys.stderr, flush=True)
        release()
        return False
    print(f"{case.name} took {time.monotonic() - began:.0f} s", flush=True)
    release()
    return True


if __name__ == "__main__":
    sys.exit(main())
