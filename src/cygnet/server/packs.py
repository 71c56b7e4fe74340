"""What packs bring besides nodes: translations for the page, and subgraphs for its node library."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

OWN_WORDS: Mapping[str, Any] = {
    "en": {
        "rightSidePanel": {
            "missingNodePacks": {
                "ossManagerDisabledHint": "To install packs from here, stop cygnet and start it with {flag} as well. "
                "Or name the pack: cygnet nodes install PACK."
            }
        }
    }
}
"""In place of the page's own where those would mislead: it tells to install a Manager that is of no use here."""
_PARTS = ("nodeDefs", "commands", "settings")
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Subgraph:
    """A file of a pack's folder ``subgraphs``."""

    pack: str
    path: Path

    def json(self) -> dict[str, Any]:
        """As the page lists it."""
        return {"source": "custom_node", "name": self.path.stem, "info": {"node_pack": f"custom_nodes.{self.pack}"}}

    def text(self) -> str:
        """Its JSON."""
        return self.path.read_text(encoding="utf-8")


def subgraphs(packs: Sequence[Mapping[str, Any]]) -> dict[str, Subgraph]:
    """By an id that stays the same as long as pack and file have the same names."""
    found = {}
    for name, folder in _folders(packs, "subgraphs"):
        for path in sorted(folder.glob("*.json")):
            key = hashlib.sha256(f"{name}/{path.name}".encode()).hexdigest()[:32]
            found[key] = Subgraph(name, path)
    return found


def translations(packs: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Locale to the page's messages: those of ``main.json``, and the other files' under their own names."""
    found: dict[str, Any] = {}
    for name, folder in _folders(packs, "locales"):
        for locale in sorted(it for it in folder.iterdir() if it.is_dir()):
            said = _object(name, locale / "main.json")
            said |= {part: it for part in _PARTS if (it := _object(name, locale / f"{part}.json"))}
            if said:
                found[locale.name] = _merged(found.get(locale.name, {}), said)
    return found


def words(packs: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Ours, and the translations of packs."""
    return _merged(OWN_WORDS, translations(packs))


def _folders(packs: Sequence[Mapping[str, Any]], kind: str) -> Iterator[tuple[str, Path]]:
    for pack in packs:
        if pack["path"] is not None and (folder := Path(pack["path"]) / kind).is_dir():
            yield pack["name"], folder


def _object(pack: str, path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        _log.warning("pack %s: %s/%s cannot be read: %s", pack, path.parent.name, path.name, error)
        return {}
    return value if isinstance(value, dict) else {}


def _merged(first: Mapping[str, Any], second: Mapping[str, Any]) -> dict[str, Any]:
    """Both, and where both have an object the two merged; elsewhere the second wins."""
    out = dict(first)
    for key, value in second.items():
        both = isinstance(value, Mapping) and isinstance(out.get(key), Mapping)
        out[key] = _merged(out[key], value) if both else value
    return out
