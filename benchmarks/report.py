"""Figures as JSON, as a Markdown table and as a plot."""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from PIL import Image

from cygnet.media.files import discard, new_part, publish


def output(text: str) -> Path:
    """An option's file that can be written, for argparse: better refused now than after minutes of work."""
    path = Path(text)
    if path.is_dir():
        raise argparse.ArgumentTypeError(f"{text!r} is a folder; give a file in it")
    if not path.absolute().parent.is_dir():
        raise argparse.ArgumentTypeError(f"{text!r} is in no folder that is there; make it first")
    return path


def write_text(path: Path, text: str) -> None:
    """Make ``path`` hold ``text``, whole or not at all, in place of what it held."""
    part = new_part(path.parent)
    try:
        part.write_text(text, encoding="utf-8")
        publish(part, path, overwrite=True)
    finally:
        discard(part)


def write_picture(path: Path, picture: Image.Image) -> None:
    """The same for a picture, in the format that the name ends in."""
    part = new_part(path.parent)
    try:
        picture.save(part, format=path.suffix.removeprefix(".").upper(), quality=90)
        publish(part, path, overwrite=True)
    finally:
        discard(part)


def write_json(path: Path, result: Mapping[str, Any]) -> None:
    """The same for figures; for long runs after each of them anew."""
    write_text(path, json.dumps(result, indent=1) + "\n")


def table(result: dict[str, Any]) -> str:
    """One row a case: medians with quartiles in seconds, and how many times faster we are."""
    floors = any(row.get("floor") for row in result["cases"])
    heads = ["case", "cygnet", "peer, default", "peer, tuned", "times as fast", *["at most here"] * floors]
    heads += ["target", "difference"]
    lines = [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    for row in result["cases"]:
        seconds = row["seconds"]
        ratio = f"**{row['ratio']:.2f}**" if row["ratio"] >= row["target"] else f"{row['ratio']:.2f}"
        if row["ratio_tuned"] is not None:
            ratio += f" (tuned {row['ratio_tuned']:.2f})"
        cells = [row["title"], _spread(seconds["ours"]), _spread(seconds["peer"])]
        cells += [_spread(seconds["tuned"]) if "tuned" in seconds else "–", ratio]
        if floors:
            cells.append(f"{row['ratio_possible']:.2f} ({row['floor']:.3g} s)" if row.get("floor") else "–")
        cells.append(f"{row['target']:g}")
        cells.append(f"{row['error']:.1e}")
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _spread(side: dict[str, Any]) -> str:
    low, high = side["quartiles"]
    return f"{side['median']:.3g} s ({low:.3g}–{high:.3g})"


def plot(result: dict[str, Any], path: Path) -> None:
    """Bars of the ratios beside their targets."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    rows = list(reversed(result["cases"]))
    figure, axes = plt.subplots(figsize=(8, 0.5 * len(rows) + 1.2))
    places = range(len(rows))
    axes.barh(places, [row["ratio"] for row in rows], height=0.6, color="#3b6ea5", label="measured")
    axes.scatter([row["target"] for row in rows], places, marker="|", s=220, color="#c0392b", label="target", zorder=3)
    axes.axvline(1, color="black", linewidth=0.8)
    axes.set_yticks(places, [row["title"] for row in rows])
    axes.set_xlabel("times as fast as the peer's default")
    axes.legend(loc="lower right", frameon=False)
    axes.spines[["top", "right"]].set_visible(False)
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    plt.close(figure)
