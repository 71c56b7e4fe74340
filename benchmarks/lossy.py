"""``python -m benchmarks.lossy``: what each lossy way of saving time costs, on the embedded model.

Every way makes the same videos as the exact run, from the same prompts and seeds, and is compared with it. Time is the
processor's, of the denoising alone: unlike the clock's it does not count what else runs on the machine. Each video is
timed right after one made exactly.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

import cygnet
from benchmarks.measure import environment
from cygnet.api import Video, Wan
from cygnet.media.quality import motion, psnr, ssim
from cygnet.types import Progress

PROMPTS = (
    "a red ball moves right on a black background",
    "a yellow star spins on a navy background",
    "an orange square shrinks on a dark green background",
    "a white star bounces on a brown background",
)
CALIBRATED_ON = "a blue triangle moves left on a grey background"
"""The tables of ``mag`` and ``tea`` come from a video that is not among those compared."""


@dataclass(frozen=True)
class Way:
    """One row: options of ``generate`` and of ``Execution``, and the name of the kind for the plot."""

    kind: str
    options: Mapping[str, Any] = field(default_factory=dict)
    execution: Mapping[str, Any] = field(default_factory=dict)

    @property
    def title(self) -> str:
        """The options as the command spells them, without their tables."""
        told = {name: value for name, value in {**self.options, **self.execution}.items() if name != "cache_table"}
        return " ".join(f"--{name.replace('_', '-').removeprefix('num-')} {value}" for name, value in told.items())


def ways(tables: Mapping[str, list[float]]) -> list[Way]:
    """All rows, given the measured tables."""
    rows = [Way("EasyCache", {"cache": f"easy:{x:g}"}) for x in (0.02, 0.05, 0.1, 0.2)]
    rows += [
        Way("MagCache", {"cache": text, "cache_table": tables["mag"]})
        for text in ("mag:0.06", "mag:0.12", "mag:0.24:6")
    ]
    rows += [Way("TeaCache", {"cache": f"tea:{x:g}", "cache_table": tables["tea"]}) for x in (0.03, 0.06, 0.1, 0.2)]
    for until in (0.75, 0.5, 0.25):
        rows.append(Way("guidance, then the prompt alone", {"guidance_until": until}))
        rows.append(Way("guidance, then reused", {"guidance_until": until, "guidance_rest": "reuse"}))
    rows.append(Way("cache and guidance", {"cache": "easy:0.05", "guidance_until": 0.5}))
    rows += [Way("fewer steps", {"num_steps": steps}) for steps in (15, 10, 8)]
    rows += [Way("weights in 8 bits", execution={"weight_dtype": name}) for name in ("fp8", "int8")]
    rows += [Way("recipe, without distilled weights", {"recipe": name}) for name in ("lightx2v", "self-forcing")]
    return rows


def load(execution: Mapping[str, Any]) -> Wan:
    """The embedded model in float32."""
    return cygnet.load("tiny-t2v", device="cpu", dtype="float32", execution=cygnet.Execution(**execution))


@dataclass
class Made:
    """A video and what its denoising took of the processor."""

    video: Video
    seconds: float


def make(wan: Wan, prompt: str, seed: int, options: Mapping[str, Any]) -> Made:
    """One video."""
    marks: list[float] = []

    def look(progress: Progress) -> None:
        if progress.phase == "denoise" and progress.step in (0, progress.total):
            marks.append(time.process_time())

    video = wan.generate(prompt, seed=seed, on_progress=look, **options)
    return Made(video, marks[-1] - marks[0])


def compare(wan: Wan, way: Way, exact: Mapping[str, Video]) -> dict[str, Any]:
    """One row: medians of likeness and time over the prompts, and the worst likeness."""
    likeness, structure, moved, ratios, computed = [], [], [], [], []
    lossy = load(way.execution) if way.execution else wan
    for number, prompt in enumerate(PROMPTS):
        plain = make(wan, prompt, number, {})
        assert (plain.video.frames == exact[prompt].frames).all(), "the exact run gave another video"
        made = make(lossy, prompt, number, way.options)
        a, b = exact[prompt].frames, made.video.frames
        likeness.append(psnr(a, b))
        structure.append(ssim(a, b))
        moved.append(motion(b) / motion(a))
        ratios.append(plain.seconds / made.seconds)
        receipt = made.video.receipt
        steps = len(receipt["sigmas"]) - 1
        computed.append(steps - receipt.get("cached", {}).get("skipped", 0))
    return {
        "kind": way.kind,
        "options": way.title,
        "computed": statistics.mean(computed),
        "psnr": statistics.median(likeness),
        "psnr_least": min(likeness),
        "ssim": statistics.median(structure),
        "motion": statistics.median(moved),
        "speed": statistics.median(ratios),
    }


def table(result: Mapping[str, Any]) -> str:
    """The rows as Markdown."""
    lines = [
        "| options | steps computed | times as fast | PSNR, dB (least) | SSIM | motion |",
        "|---|---|---|---|---|---|",
    ]
    for row in result["rows"]:
        lines.append(
            f"| `{row['options']}` | {row['computed']:.4g} | {row['speed']:.2f} | {row['psnr']:.1f} "
            f"({row['psnr_least']:.1f}) | {row['ssim']:.3f} | {row['motion']:.2f} |"
        )
    return "\n".join(lines) + "\n"


def plot(result: Mapping[str, Any], path: Path) -> None:
    """Likeness against speed, a line for each kind."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(8, 4.5))
    for kind in dict.fromkeys(row["kind"] for row in result["rows"]):
        rows = sorted((row for row in result["rows"] if row["kind"] == kind), key=lambda row: row["speed"])
        axes.plot([row["speed"] for row in rows], [row["psnr"] for row in rows], marker="o", linewidth=1, label=kind)
    axes.set_xlabel("times as fast as the exact denoising")
    axes.set_ylabel("PSNR to the exact video, dB")
    axes.legend(frameon=False, fontsize=8)
    axes.spines[["top", "right"]].set_visible(False)
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    plt.close(figure)


def main() -> None:
    """Parse arguments, run, write."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.lossy", description=__doc__)
    parser.add_argument(
        "--threads", type=int, default=1, help="of torch; 1 by default, which busy machines disturb least"
    )
    parser.add_argument(
        "--only", default="", help="make only the rows whose options hold this text, such as weight-dtype"
    )
    parser.add_argument("--json", type=Path, help="write the figures here")
    parser.add_argument("--table", type=Path, help="write them as a Markdown table here")
    parser.add_argument("--plot", type=Path, help="draw them here (needs matplotlib)")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    unknown: Mapping[str, list[float]] = {"mag": [], "tea": []}
    chosen = [number for number, way in enumerate(ways(unknown)) if options.only in way.title]
    if not chosen:
        parser.error(f"no row holds {options.only!r}; there are: {', '.join(way.title for way in ways(unknown))}")
    wan = load({})
    tables = wan.generate(CALIBRATED_ON, seed=99, cache="calibrate").receipt["cached"]["tables"]
    exact = {prompt: wan.generate(prompt, seed=number) for number, prompt in enumerate(PROMPTS)}
    result: dict[str, Any] = {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "environment": environment(),
        "prompts": list(PROMPTS),
        "tables": tables,
        "rows": [],
    }
    for way in [ways(tables)[number] for number in chosen]:
        row = compare(wan, way, exact)
        result["rows"].append(row)
        print(f"{row['options']}: {row['speed']:.2f} times as fast, {row['psnr']:.1f} dB", file=sys.stderr, flush=True)
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
