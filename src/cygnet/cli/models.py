"""``cygnet models``: which models have a name, and what of them is on this machine."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from cygnet.cli.options import Debug, Json, Places
from cygnet.cli.output import Voice, gigabytes, table

if TYPE_CHECKING:
    from cygnet.checkpoints.catalogue import Presence


def models(*, model_paths: Places = (), json: Json = False, debug: Debug = False) -> int:
    """List the models that have a name, their sizes and licences, and what of them is on this machine.

    Looks into the package, ComfyUI's model folders, those that extra_model_paths.yaml names, and the shared download
    cache. Nothing is opened or fetched.
    """
    from cygnet.checkpoints.catalogue import default_cache, look_for_all
    from cygnet.checkpoints.discovery import find_models, model_folders

    presences = look_for_all(places=model_paths)
    files = find_models(model_folders(model_paths))
    rows: list[tuple[str, ...]] = [("NAME", "HERE", "FETCH", "LICENCE", "WHAT")]
    rows += [(each.entry.name, _here(each), _size(each), each.entry.licence, each.entry.title) for each in presences]
    lines = table(rows)
    if files:
        lines += ["", *table([("KIND", "SIZE", "FILE"), *((f.kind, gigabytes(f.bytes), f.name) for f in files)])]
    value = {
        "models": [_to_json(each) for each in presences],
        "files": [{"kind": f.kind, "name": f.name, "path": str(f.path), "bytes": f.bytes} for f in files],
        "cache": str(default_cache()),
    }
    Voice(as_json=json).result(value, lines)
    return 0


def _here(presence: Presence) -> str:
    if presence.complete:
        return "yes"
    if presence.paths:
        return f"lacks {', '.join(presence.missing)}"
    return "no"


def _size(presence: Presence) -> str:
    if not presence.entry.sources:
        return "built in"
    sizes = sorted({source.bytes(dtype) for source in presence.entry.sources for dtype in source.choices})
    return f"{sizes[0] / 1e9:.0f}-{sizes[-1] / 1e9:.0f} GB"


def _to_json(presence: Presence) -> dict[str, Any]:
    model = presence.entry
    return {
        "name": model.name,
        "title": model.title,
        "serves": list(model.serves),
        "licence": model.licence,
        "parameters": model.parameters,
        "complete": presence.complete,
        "paths": {part: str(path) for part, path in presence.paths.items()},
        "missing": list(presence.missing),
        "sources": [
            {
                "source": source.name,
                "repo": source.repo,
                "bytes": {dtype: source.bytes(dtype) for dtype in source.choices},
            }
            for source in model.sources
        ],
    }
