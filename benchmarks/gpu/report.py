"""The GPU's figures as Markdown."""

from __future__ import annotations

from typing import Any


def checks_table(result: dict[str, Any]) -> str:
    """One row a check."""
    lines = ["| check | difference | at most | |", "|---|---|---|---|"]
    for check in result["checks"]:
        error = "–" if check["error"] is None else f"{check['error']:.1e}"
        tolerance = "–" if check["tolerance"] is None else f"{check['tolerance']:g}"
        verdict = "ok" if check["passed"] else "**failed**"
        lines.append(f"| {check['name']} | {error} | {tolerance} | {' '.join((verdict, check['note'])).strip()} |")
    return "\n".join(lines) + "\n"


def rows_table(result: dict[str, Any]) -> str:
    """One row a side; the ratio is the side's time over that of the first side of its case, which is ours."""
    lines = [
        "| case | side | seconds | times ours | peak memory | target: must, ambitious | difference |",
        "|---|---|---|---|---|---|---|",
    ]
    first: dict[str, float] = {}
    for row in result["rows"]:
        ours = first.setdefault(row["case"], row["median"])
        seconds = f"{row['median']:.3g}"
        if row["must"] is not None and row["median"] <= row["must"]:
            seconds = f"**{seconds}**"
        target = "–" if row["must"] is None else f"{row['must']:g}, {row['ambitious']:g}"
        error = "–" if row["error"] is None else f"{row['error']:.1e}"
        side = row["side"] + (" (not exact)" if row["lossy"] else "")
        ratio = f"{row['median'] / ours:.2f}"
        lines.append(
            f"| {row['title']} | {side} | {seconds} | {ratio} | {row['peak_gib']:.1f} GiB | {target} | {error} |"
        )
    lines += [f"\nLeft out: {it['case']}: {it['why']}" for it in result["left_out"]]
    return "\n".join(lines) + "\n"
