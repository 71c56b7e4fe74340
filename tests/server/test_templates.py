"""The index of the template browser."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from cygnet.graph.contract import describe_all
from cygnet.graph.convert import to_prompt
from cygnet.graph.folders import Folders
from cygnet.graph.validate import validate
from cygnet.nodes.catalogue import embedded_files, node_classes
from cygnet.nodes.workshop import Workshop
from cygnet.server.templates import STARTERS, index


def write(root: Path, entries: list[dict[str, Any]], **workflows: list[str]) -> Path:
    root.mkdir()
    (root / "index.json").write_text(json.dumps([{"title": "T", "templates": entries}]))
    for name, kinds in workflows.items():
        (root / f"{name}.json").write_text(json.dumps({"nodes": [{"type": kind} for kind in kinds]}))
    return root


def names(found: list[dict[str, Any]]) -> list[str]:
    return [it["name"] for category in found for it in category["templates"]]


def test_only_what_runs_here_is_listed(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    wan = {"models": ["Wan2.1"], "io": {"inputs": [{"sourceRevision": "x"}]}}
    entries = [{"name": name, **wan} for name in ("runs", "unknown", "absent", "damaged", "inner")]
    root = write(
        tmp_path / "a",
        [*entries, {"name": "runs", "models": ["Flux"]}, {"name": "runs"}],
        runs=["A", "Note"],
        unknown=["A", "Z"],
    )
    (root / "damaged.json").write_text("{")
    inner = {"nodes": [{"type": "u-1"}], "definitions": {"subgraphs": [{"id": "u-1", "nodes": [{"type": "A"}]}]}}
    (root / "inner.json").write_text(json.dumps(inner))
    found = index([root, tmp_path / "none"], {"A"})
    assert names(found) == ["runs", "inner"]
    assert "io" not in found[0]["templates"][0], "with it the page asks a public host"
    assert "damaged.json" in caplog.text
    assert index([root], ()) == []


@pytest.mark.parametrize("name", ["tiny_text_to_video", "tiny_image_to_video"])
def test_the_starters_can_be_run_as_they_are(tmp_path: Path, name: str) -> None:
    from cygnet.checkpoints.catalogue import EMBEDDED

    shop = Workshop(Folders.below(tmp_path), embedded=embedded_files(EMBEDDED))
    shop.folders.input.mkdir(parents=True)
    for picture in STARTERS.glob("*.png"):
        (shop.folders.input / picture.name).write_bytes(picture.read_bytes())
    classes = node_classes(shop)
    assert name in names(index([STARTERS], classes))
    assert (STARTERS / f"{name}-1.webp").stat().st_size < 50_000, "the browser shows it by this picture"
    workflow = json.loads((STARTERS / f"{name}.json").read_text(encoding="utf-8"))
    prompt = to_prompt(workflow, describe_all(classes, lambda name, error: None))
    verdict = validate(prompt, classes)
    assert verdict.error is None, verdict
    assert not verdict.nodes, verdict.nodes
