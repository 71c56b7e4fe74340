"""``python -m benchmarks.plan``: plan requests, make each in a process of its own, and compare memory and time.

The models are the embedded ones and seeded ones of the published widths with few blocks, so that what is predicted
outweighs the interpreter. Processor time on one thread is compared by default, which other work on the machine disturbs
least; ``--wall --threads N`` compares the time by the clock, on a quiet machine.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from benchmarks.measure import environment

PICTURE = Path(__file__).parent.parent / "docs" / "assets" / "first-frame.png"
MEMORY_TOLERANCE, TIME_TOLERANCE = 0.10, 0.25


@dataclass(frozen=True, kw_only=True)
class Request:
    """One request; ``model`` is a name, or one of :data:`SEEDED`."""

    name: str
    model: str
    options: Mapping[str, Any] = field(default_factory=dict)
    dtype: str = "auto"
    offload: Any = True
    picture: bool = False


REQUESTS = (
    Request(name="tiny T2V, 17x128x128, 20 steps", model="tiny-t2v"),
    Request(name="tiny T2V, 49x192x192, 4 steps", model="tiny-t2v",
            options={"size": "192x192", "num_frames": 49, "num_steps": 4}),
    Request(name="tiny I2V, 17x128x128, 10 steps", model="tiny-i2v", options={"num_steps": 10}, picture=True),
    Request(name="1.3B width, 17x128x128, bf16", model="wide",
            options={"size": "128x128", "num_frames": 17, "num_steps": 4}, dtype="bfloat16"),
    Request(name="1.3B width, 17x128x128, fp32", model="wide",
            options={"size": "128x128", "num_frames": 17, "num_steps": 2}, dtype="float32"),
    Request(name="1.3B width, 9x256x192, bf16", model="wide",
            options={"size": "256x192", "num_frames": 9, "num_steps": 2}, dtype="bfloat16"),
    Request(name="1.3B width, 17x128x128, streamed", model="wide",
            options={"size": "128x128", "num_frames": 17, "num_steps": 2}, dtype="bfloat16", offload="stream"),
    Request(name="1.3B width, 5x256x192, resident", model="wide",
            options={"size": "256x192", "num_frames": 5, "num_steps": 2}, dtype="bfloat16", offload=None),
    # Large enough that "auto" compiles blocks, which plans name and do not count.
    Request(name="1.3B width, 9x256x256, compiled", model="wide",
            options={"size": "256x256", "num_frames": 9, "num_steps": 2}, dtype="bfloat16"),
)  # fmt: skip


def write_wide(folder: Path) -> dict[str, str]:
    """A model of T2V-1.3B's and UMT5-XXL's width with few blocks, and the whole Wan-VAE; a gigabyte and a half."""
    import torch

    from benchmarks.seeded import seeded
    from cygnet.checkpoints import read_component, save_official
    from cygnet.checkpoints.catalogue import resolve
    from cygnet.models.dit.config import T2V_1_3B
    from cygnet.models.dit.model import DiT
    from cygnet.models.umt5.config import TINY_UMT5, UMT5_XXL
    from cygnet.models.umt5.model import UMT5Encoder
    from cygnet.models.vae.config import WAN_VAE
    from cygnet.models.vae.model import WanVAE

    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = read_component(resolve("tiny-t2v")["text_encoder"], "text_encoder").tokenizer_bytes
    text = replace(UMT5_XXL, num_layers=2, vocab_size=TINY_UMT5.vocab_size)
    paths: dict[str, str] = {}
    for name, kind, config, dtype in (
        ("dit", DiT, replace(T2V_1_3B, num_layers=4), torch.bfloat16),
        ("text_encoder", UMT5Encoder, text, torch.bfloat16),
        ("vae", WanVAE, WAN_VAE, torch.float32),
    ):
        path = folder / f"{name}.safetensors"
        if not path.exists():
            state = seeded(kind, config, dtype).state_dict()
            save_official(path, state, config, tokenizer=tokenizer if name == "text_encoder" else None)
        paths[name] = str(path)
    return paths


def asked(request: Request) -> dict[str, Any]:
    """Arguments of :func:`cygnet.plan` and of :meth:`Wan.stream` beside the model."""
    picture = {"image": PICTURE} if request.picture else {}
    # The negative prompt of the published models is kept on disk once it was encoded, so that every run has its own.
    return {"prompt": "a red ball moves right on a black background", **picture, **request.options,
            "negative_prompt": "blurred and still"}  # fmt: skip


def source_of(request: Request, wide: Mapping[str, str]) -> Any:
    """What is loaded."""
    return dict(wide) if request.model == "wide" else request.model


def forget(paths: Mapping[str, str]) -> None:
    """Ask the system to forget the files, so that each run reads them from the disk."""
    for path in paths.values():
        with open(path, "rb") as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def make(number: int, wide: Mapping[str, str], out: Path, *, wall: bool) -> None:
    """Make one request as the command does, and print what it took."""
    if not wall:
        time.perf_counter = time.process_time  # in this process alone, so that phases are told in processor time
    import cygnet
    from cygnet.cli.making import write_stream
    from cygnet.cli.targets import Target

    request = REQUESTS[number]
    clock = time.perf_counter
    import cygnet.api  # all that a process loads before its first model

    started = clock()
    wan = cygnet.load(source_of(request, wide), device="cpu", dtype=request.dtype, offload=request.offload)
    loaded = clock()
    stream = wan.stream(seed=1, **asked(request))
    target = Target(folder=out, stem="made", suffix=".mp4", exact=False)
    write_stream(stream, target, inputs={}, overwrite=False)
    total = clock() - loaded
    seconds = {phase: round(value, 3) for phase, value in stream.seconds.items()}
    if request.offload is None:  # all networks were read at once, before the video
        seconds["load"] = seconds.get("load", 0) + round(loaded - started, 3)
    print(json.dumps({"peak": peak_of_this_process(), "seconds": seconds, "total": total, "notices": stream.notices}))


def peak_of_this_process() -> int:
    """Peak resident bytes; not from ``getrusage``, which begins with what the starting process had."""
    with open("/proc/self/status", encoding="ascii") as lines:
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))


def compare(number: int, wide: Mapping[str, str], rounds: int, *, wall: bool) -> dict[str, Any]:
    """Plan a request, make it a few times, and set the figures side by side."""
    import cygnet

    request = REQUESTS[number]
    plan = cygnet.plan(
        source_of(request, wide), device="cpu", dtype=request.dtype, offload=request.offload, **asked(request)
    )
    runs = []
    for _ in range(rounds):
        if request.model == "wide":
            forget(wide)
        with tempfile.TemporaryDirectory() as out:
            command = [sys.executable, "-m", "benchmarks.plan", "--make", str(number), json.dumps(dict(wide)), out]
            done = subprocess.run([*command, *(["--wall"] if wall else [])], check=True, capture_output=True, text=True)
        runs.append(json.loads(done.stdout.splitlines()[-1]))
    best = min(runs, key=lambda run: sum(run["seconds"].values()))  # disturbances only ever add
    predicted = {stage.phase: stage.seconds for stage in plan.stages}
    measured = dict(best["seconds"])
    row = {
        "request": request.name,
        "placement": plan.placement.describe(),
        "peak_predicted": plan.host_peak,
        "peak_measured": max(run["peak"] for run in runs),
        "seconds_predicted": predicted,
        "seconds_measured": measured,
        "total_predicted": plan.seconds,
        "total_measured": sum(measured.values()),
        "calibrated": plan.calibrated,
    }
    row["peak_error"] = row["peak_predicted"] / row["peak_measured"] - 1  # type: ignore[operator]
    row["time_error"] = row["total_predicted"] / row["total_measured"] - 1  # type: ignore[operator]
    return row


def table(rows: list[dict[str, Any]]) -> str:
    """The comparison as Markdown."""
    lines = ["| request | peak, planned | measured | off by | time, planned | measured | off by |",
             "|---|---|---|---|---|---|---|"]  # fmt: skip
    for row in rows:
        cells = [row["request"], *(f"{row[f'peak_{it}'] / 2**20:.0f} MiB" for it in ("predicted", "measured"))]
        cells += [f"{row['peak_error']:+.0%}", *(f"{row[f'total_{it}']:.1f} s" for it in ("predicted", "measured"))]
        cells.append(f"{row['time_error']:+.0%}")
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def plot(rows: list[dict[str, Any]], path: Path) -> None:
    """Measured against planned, with the bands that are aimed at."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    from matplotlib import ticker

    figure, axes = plt.subplots(1, 2, figsize=(9, 4.2))
    for ax, what, unit, scale, band in (
        (axes[0], "peak", "GiB", 2**30, MEMORY_TOLERANCE),
        (axes[1], "total", "s", 1, TIME_TOLERANCE),
    ):
        x = [row[f"{what}_predicted"] / scale for row in rows]
        y = [row[f"{what}_measured"] / scale for row in rows]
        ends = [0.8 * min(x + y), 1.25 * max(x + y)]
        ax.fill_between(ends, [v / (1 + band) for v in ends], [v / (1 - band) for v in ends], color="#dddddd")
        ax.plot(ends, ends, color="black", linewidth=0.8)
        ax.scatter(x, y, color="#3b6ea5", zorder=3)
        for number, place in enumerate(zip(x, y, strict=True), start=1):
            ax.annotate(str(number), place, xytext=(4, -9), textcoords="offset points", fontsize=8)
        ax.set(xscale="log", yscale="log", xlim=ends, ylim=ends, xlabel=f"planned, {unit}", ylabel=f"measured, {unit}")
        for axis in (ax.xaxis, ax.yaxis):
            axis.set_major_locator(ticker.LogLocator(subs=(1, 2, 5)))
            axis.set_major_formatter(ticker.FormatStrFormatter("%g"))
            axis.set_minor_formatter(ticker.NullFormatter())
        ax.set_title(f"{'peak memory' if what == 'peak' else 'time'}, band of {band:.0%}", fontsize=10)
        ax.spines[["top", "right"]].set_visible(False)
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    plt.close(figure)


def main() -> None:
    """Parse arguments, calibrate, plan, make, write."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.plan", description=__doc__)
    parser.add_argument(
        "numbers", nargs="*", type=int, metavar="N", help="some of the requests, from 0; all by default"
    )
    parser.add_argument("--folder", type=Path, help="keep the seeded weights here, 1.5 GB; else in a temporary folder")
    parser.add_argument("--rounds", type=int, default=1, help="runs of each request; the fastest counts")
    parser.add_argument("--wall", action="store_true", help="time by the clock, for a quiet machine")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--table", type=Path)
    parser.add_argument("--plot", type=Path, help="draw it here (needs matplotlib)")
    parser.add_argument("--make", nargs=3, metavar=("N", "WIDE", "OUT"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.make:
        number, wide, out = options.make
        make(int(number), json.loads(wide), Path(out), wall=options.wall)
        return
    if options.plot:
        import matplotlib  # noqa: F401 (better missed now than after the runs)
    os.environ["OMP_NUM_THREADS"] = str(options.threads)
    with tempfile.TemporaryDirectory() as own:
        os.environ["XDG_CACHE_HOME"] = own  # a calibration of its own, and no kept features of prompts
        import torch

        from cygnet.planning import calibrate_machine

        torch.set_num_threads(options.threads)
        wide = write_wide(options.folder or Path(own) / "wide")
        rates, _ = calibrate_machine("cpu", clock=time.perf_counter if options.wall else time.process_time)
        result: dict[str, Any] = {
            "date": datetime.now(UTC).isoformat(timespec="seconds"),
            "clock": "wall" if options.wall else "processor time",
            "environment": environment(),
            "calibration": {**rates.__dict__},
            "rows": [],
        }
        for number in options.numbers or range(len(REQUESTS)):
            row = compare(number, wide, options.rounds, wall=options.wall)
            result["rows"].append(row)
            print(table([row]).splitlines()[-1], file=sys.stderr, flush=True)
            if options.json:
                options.json.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print(table(result["rows"]), end="")
    if options.table:
        options.table.write_text(table(result["rows"]), encoding="utf-8")
    if options.plot:
        plot(result["rows"], options.plot)


if __name__ == "__main__":
    main()
