"""``python -m benchmarks.train_plan``: plan trainings of the embedded model, run each, and compare the peak memory.

Each training takes a few steps in a process of its own, by the code of ``cygnet train``, on the processor. Clips and
captions are encoded once before that, so that the peak is the training's. Steps are timed in processor time on one
thread, which other work on the machine disturbs least.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from datetime import UTC, datetime
from itertools import pairwise
from pathlib import Path
from typing import Any

from benchmarks.measure import environment
from benchmarks.plan import peak_of_this_process

CLIPS, STEPS = 4, 4
METHODS, KEEPS = ("lora", "full"), ("none", "products", "attention", "full")


def write_clips(folder: Path) -> None:
    """Noise that moves, 17 frames of 128x128, with captions."""
    import numpy as np

    from cygnet.media.video import open_writer

    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    for number in range(CLIPS):
        still = np.kron(rng.integers(0, 255, (16, 16, 3), dtype=np.uint8), np.ones((8, 8, 1), np.uint8))
        path = folder / f"{number}.mp4"
        with open_writer(path, width=128, height=128, fps=16, num_frames=17) as writer:
            writer.write(np.stack([np.roll(still, 4 * step, axis=1) for step in range(17)]))
        path.with_suffix(".txt").write_text("a red ball moves right on a black background\n")


def settings(method: str, keeps: str, batch: int, folder: Path, steps: int = STEPS) -> Any:
    """A training of the embedded model."""
    from cygnet.training.config_file import config_from

    fields: dict[str, Any] = {
        "method": method, "model": "tiny-t2v", "output": f"{method}-{keeps}-{batch}", "steps": steps, "batch": batch,
        "device": "cpu", "threads": 1,
        "data": {"path": "clips", "sizes": ["128x128"], "frames": [17], "cache": "cache"},
        "memory": {"checkpointing": keeps},
    }  # fmt: skip
    return config_from(fields, folder)


def run(method: str, keeps: str, batch: int, folder: Path, steps: int) -> None:
    """Train, and print what it took: the peak, and the processor time of a step."""
    from cygnet.training.loop import StepReport
    from cygnet.training.start import train

    times: list[float] = []

    def note(_: StepReport) -> None:
        times.append(time.process_time())

    train(settings(method, keeps, batch, folder, steps), say=lambda text: None, on_step=note)
    seconds = statistics.median(later - earlier for earlier, later in pairwise(times)) if steps > 1 else None
    print(json.dumps({"peak": peak_of_this_process(), "seconds": seconds}))


def run_alone(method: str, keeps: str, batch: int, folder: Path, steps: int = STEPS) -> dict[str, Any]:
    """The same in a process of its own; what it printed."""
    place = json.dumps([method, keeps, batch, str(folder), steps])
    command = [sys.executable, "-m", "benchmarks.train_plan", "--run", place]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def compare(method: str, keeps: str, batch: int, folder: Path) -> dict[str, Any]:
    """A training planned and made."""
    from cygnet.training.plan import plan_for

    plan = plan_for(settings(method, keeps, batch, folder))
    made = run_alone(method, keeps, batch, folder)
    assert plan.step_seconds is not None
    return {
        "method": method,
        "checkpointing": keeps,
        "batch": batch,
        "memory": plan.memory,
        "peak_predicted": plan.total,
        "peak_measured": made["peak"],
        "peak_error": plan.total / made["peak"] - 1,
        "seconds_predicted": plan.step_seconds,
        "seconds_measured": made["seconds"],
        "time_error": plan.step_seconds / made["seconds"] - 1,
    }


def table(rows: list[dict[str, Any]]) -> str:
    """The comparison as Markdown."""
    lines = [
        "| method | checkpointing | clips | peak, planned | measured | off by | step, planned | measured | off by |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        cells = [f"`{row['method']}`", f"`{row['checkpointing']}`", str(row["batch"])]
        cells += [f"{row[f'peak_{it}'] / 2**20:.0f} MiB" for it in ("predicted", "measured")]
        cells.append(f"{row['peak_error']:+.0%}")
        cells += [f"{row[f'seconds_{it}']:.2f} s" for it in ("predicted", "measured")]
        cells.append(f"{row['time_error']:+.0%}")
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Parse arguments, calibrate, plan, train, write."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.train_plan", description=__doc__)
    parser.add_argument("--batch", type=int, nargs="+", default=[12], help="clips per step")
    parser.add_argument("--json", type=Path, help="write the figures here")
    parser.add_argument("--run", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.run:
        method, keeps, batch, place, steps = json.loads(options.run)
        run(method, keeps, batch, Path(place), steps)
        return
    os.environ["OMP_NUM_THREADS"] = "1"
    with tempfile.TemporaryDirectory() as own:
        os.environ["XDG_CACHE_HOME"] = own  # a calibration of its own
        import torch

        from cygnet.planning import calibrate_machine

        torch.set_num_threads(1)
        calibrate_machine("cpu", clock=time.process_time)
        folder = Path(own) / "runs"
        write_clips(folder / "clips")
        run_alone("lora", "full", 1, folder, steps=1)  # encodes the clips
        rows: list[dict[str, Any]] = []
        for batch in options.batch:
            for method in METHODS:
                for keeps in KEEPS:
                    rows.append(compare(method, keeps, batch, folder))
                    print(table(rows[-1:]).splitlines()[-1], file=sys.stderr, flush=True)
        result = {"date": datetime.now(UTC).isoformat(timespec="seconds"), "environment": environment(), "rows": rows}
        if options.json:
            options.json.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print(table(rows), end="")


if __name__ == "__main__":
    main()
