"""The index of the template browser: our starter workflows, and those published ones that run here."""

from __future__ import annotations

import json
import logging
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from cygnet.graph.convert import VIRTUAL

STARTERS = Path(__file__).parent.parent / "starters"
"""Workflows for the embedded models, their pictures, and the index that names them."""
NO_PICTURE = "no_picture.webp"
"""Shown for a template whose picture is not installed."""
SERVED = frozenset({"Wan2.1", "cygnet tiny"})
"""What an entry's ``models`` must name one of; other families share node types with ours but not networks."""
_log = logging.getLogger(__name__)


def index(roots: Sequence[Path], known: Collection[str]) -> list[dict[str, Any]]:
    """The merged index of several template folders; ``known`` are the node types of this server.

    An entry is kept when its workflow is there and has known node types alone. Its ``io`` is left out: with it the page
    would fetch sample pictures from a public host.
    """
    found = []
    for root in roots:
        for category in _json(root / "index.json") or []:
            entries = [
                {key: value for key, value in entry.items() if key != "io"}
                for entry in category.get("templates", ())
                if SERVED & set(entry.get("models", ())) and _runs(_json(root / f"{entry.get('name')}.json"), known)
            ]
            if entries:
                found.append({**category, "templates": entries})
    return found


def _runs(workflow: Any, known: Collection[str]) -> bool:
    if not isinstance(workflow, Mapping):
        return False
    subgraphs = workflow.get("definitions", {}).get("subgraphs", [])
    own = {it["id"] for it in subgraphs}
    return all(
        kind in known or kind in own or kind in VIRTUAL for graph in (workflow, *subgraphs) for kind in _types(graph)
    )


def _types(graph: Mapping[str, Any]) -> Iterable[str]:
    return (node["type"] for node in graph.get("nodes", ()))


def _json(path: Path) -> Any:
    """A file's content; None where it is absent or damaged, which is logged."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        _log.warning("template file %s is left out: %s", path.name, error)
        return None
