"""Encoded latents and texts on disk: safetensors shards, found by what their values depend on, checked by digest.

A row's key is a hash of everything that decides its values, so a changed clip, caption, size or network is simply not
found and is encoded again. Every process that writes has its own index, ``index-<owner>.json``; all are read.
"""

from __future__ import annotations

import hashlib
import json
import os
import secrets
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save

from cygnet.checkpoints.saving import staged_file
from cygnet.errors import OutputError, WeightFileError

SHARD_BYTES = 256 * 2**20
VERSION = 1
Row = dict[str, torch.Tensor]


class Cache:
    """Rows of named tensors by key. ``say`` hears of shards that are damaged; their rows count as absent."""

    def __init__(self, folder: Path, *, owner: int = 0, say: Callable[[str], None] = lambda text: None) -> None:
        self.folder, self._owner, self._say = folder, owner, say
        self._where: dict[str, str] = {}
        self._open: dict[str, Any] = {}
        self._own: dict[str, Any] = {"version": VERSION, "shards": {}, "files": {}}
        self._files: dict[str, Any] = {}
        self._waiting: dict[str, Row] = {}
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            reason = (error.strerror or "refused").lower()
            raise OutputError(f"the cache folder {folder.name!r} cannot be made: {reason}") from error
        self.reload()

    def reload(self) -> None:
        """Read every process's index anew, and check the shards that were not known yet."""
        for path in sorted(self.folder.glob("index-*.json")):
            index = self._read_index(path)
            if index is None:
                continue
            if path == self._index_path:
                self._own = index
            self._files |= index["files"]
            for name, shard in list(index["shards"].items()):  # a damaged one is taken out of our own
                missing = [key for key in shard["keys"] if key not in self._where]
                if missing and self._is_whole(name, shard):
                    self._where |= dict.fromkeys(missing, name)

    def __contains__(self, key: str) -> bool:
        return key in self._where or key in self._waiting

    def row(self, key: str) -> Row:
        """The tensors that were put under ``key``; KeyError if there are none.

        Raises :class:`~cygnet.errors.WeightFileError` if the shard vanished while the run was using it.
        """
        if key in self._waiting:
            return self._waiting[key]
        name = self._where[key]
        try:
            if name not in self._open:
                self._open[name] = safe_open(self.folder / name, framework="pt")
            shard = self._open[name]
            return {entry.split("/", 1)[1]: shard.get_tensor(entry) for entry in self._entries(name, key)}
        except Exception as error:  # the reader raises a kind of its own for files
            raise WeightFileError(
                f"the cache's shard {name!r} cannot be read any more; run the same command again to encode it anew"
            ) from error

    def put(self, key: str, row: Row) -> None:
        """Keep a row; it is on disk after :meth:`flush`, which also comes by itself once there is enough."""
        self._waiting[key] = {name: value.detach().cpu().contiguous() for name, value in row.items()}
        if sum(value.nbytes for each in self._waiting.values() for value in each.values()) >= SHARD_BYTES:
            self.flush()

    def flush(self) -> None:
        """Write what waits as one shard, then the index: a shard that no index names is never read."""
        if self._waiting:
            tensors = {f"{key}/{name}": value for key, row in self._waiting.items() for name, value in row.items()}
            data = save(tensors, metadata={"keys": json.dumps(list(self._waiting))})
            name = f"shard-{self._owner:03d}-{secrets.token_hex(6)}.safetensors"
            with staged_file(self.folder / name, overwrite=False) as file:
                file.write(data)
            self._own["shards"][name] = {
                "sha256": hashlib.sha256(data).hexdigest(),
                "bytes": len(data),
                "keys": list(self._waiting),
            }
            self._where |= dict.fromkeys(self._waiting, name)
            self._waiting = {}
        with staged_file(self._index_path, overwrite=True) as file:
            file.write((json.dumps(self._own, indent=1) + "\n").encode())

    def file(self, name: str, stamp: list[int]) -> Mapping[str, Any] | None:
        """What was noted about a source file, if its stamp is still the same."""
        noted = self._files.get(name)
        return noted if isinstance(noted, dict) and noted.get("stamp") == stamp else None

    def note_file(self, name: str, stamp: list[int], facts: Mapping[str, Any]) -> None:
        """Note facts about a source file, for :meth:`file`."""
        self._own["files"][name] = self._files[name] = {**facts, "stamp": stamp}

    @property
    def _index_path(self) -> Path:
        return self.folder / f"index-{self._owner:03d}.json"

    def _read_index(self, path: Path) -> dict[str, Any] | None:
        try:
            index = json.loads(path.read_text(encoding="utf-8"))
            if index["version"] == VERSION and isinstance(index["shards"], dict) and isinstance(index["files"], dict):
                return index  # type: ignore[no-any-return]
            reason = "of another version"
        except (OSError, ValueError, KeyError, TypeError):
            reason = "damaged"
        self._say(f"the cache's {path.name} is {reason}; what it named is encoded again")
        return None

    def _is_whole(self, name: str, shard: Mapping[str, Any]) -> bool:
        path = self.folder / name
        try:
            if os.path.getsize(path) == shard["bytes"] and _sha256(path) == shard["sha256"]:
                return True
            problem = "damaged"
        except OSError:
            problem = "gone"
        self._say(f"the cache's shard {name} is {problem}; its {len(shard['keys'])} rows are encoded again")
        self._own["shards"].pop(name, None)
        return False

    def _entries(self, name: str, key: str) -> list[str]:
        names: dict[str, list[str]] = self._open.setdefault(f"names of {name}", {})
        if not names:
            for entry in self._open[name].keys():  # noqa: SIM118 (a reader of files, not a mapping)
                names.setdefault(entry.split("/", 1)[0], []).append(entry)
        return names[key]


def key_of(*parts: object) -> str:
    """A key that depends on every part and on their order."""
    return hashlib.sha256("\0".join(str(part) for part in (VERSION, *parts)).encode()).hexdigest()[:40]


def _sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
