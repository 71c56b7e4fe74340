"""What a training run is taught: clips with captions, from a folder, a list, or tar shards.

A clip is a file and its caption. Nothing is decoded here; :mod:`cygnet.training.clips` does that.
"""

from __future__ import annotations

import hashlib
import json
import tarfile
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from cygnet.errors import RequestError
from cygnet.media.files import printable, shorten

VIDEO_SUFFIXES = frozenset({".mp4", ".mov", ".m4v", ".webm", ".mkv", ".gif"})
PICTURE_SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".webp"})
SUFFIXES = VIDEO_SUFFIXES | PICTURE_SUFFIXES
MAX_CAPTION_BYTES = 100_000
MAX_LIST_BYTES = 2**30
MAX_ITEMS = 10_000_000


@dataclass(frozen=True)
class Item:
    """One clip: what it is called in messages, where its bytes are, and its caption (None if it has none)."""

    name: str
    path: Path
    caption: str | None
    offset: int | None = None
    """Where it begins in the tar shard ``path``; None for a file of its own."""
    size: int = 0
    """Bytes inside the shard."""

    @property
    def suffix(self) -> str:
        """Of its file name, in lower case."""
        return PurePosixPath(self.name).suffix.lower()

    @contextmanager
    def file(self) -> Iterator[Path]:
        """Its content as a file of its own for the length of a ``with`` block."""
        if self.offset is None:
            yield self.path
            return
        with tempfile.TemporaryDirectory(prefix="cygnet-") as folder:
            place = Path(folder) / f"clip{self.suffix}"
            with open(self.path, "rb") as shard, open(place, "xb") as out:
                shard.seek(self.offset)
                left = self.size
                while left and (piece := shard.read(min(left, 2**20))):
                    out.write(piece)
                    left -= len(piece)
            yield place

    def stamp(self) -> list[int]:
        """What changes when the file does, cheaply: size and time of the file that holds it, and its place there."""
        status = self.path.stat()
        return [status.st_size, status.st_mtime_ns, self.offset or 0]

    def digest(self) -> str:
        """sha256 of its bytes."""
        state = hashlib.sha256()
        with open(self.path, "rb") as file:
            file.seek(self.offset or 0)
            left = self.size if self.offset is not None else self.path.stat().st_size
            while left and (piece := file.read(min(left, 2**20))):
                state.update(piece)
                left -= len(piece)
        return state.hexdigest()


def read_items(place: Path, field: str = "data.path") -> list[Item]:
    """All clips of a folder, a ``.jsonl`` list, or WebDataset shards, in a fixed order.

    Raises :class:`~cygnet.errors.RequestError`, naming ``field``, if ``place`` is none of them, or holds no clip.
    """
    check_place(place, field)
    try:
        items = _items(place)
    except OSError as error:
        reason = (error.strerror or "refused").lower()
        raise RequestError(f"{printable(place.name)!r} cannot be read: {reason}; check {field}", field=field) from error
    except RequestError as error:
        raise RequestError(str(error) if field == "data.path" else f"{field}: {error}", field=field) from error
    if not items:
        known = ", ".join(sorted(SUFFIXES))
        raise RequestError(
            f"{printable(place.name)!r} holds no videos or pictures ({known}); check {field}", field=field
        )
    return items


def check_place(place: Path, field: str) -> None:
    """Raise :class:`~cygnet.errors.RequestError`, naming ``field``, if there is nothing that can be a data set."""
    if not place.exists():
        raise RequestError(f"there is no {printable(place.name)!r}; check {field}", field=field)
    if not (place.is_dir() or (place.is_file() and place.suffix.lower() in (".jsonl", ".tar"))):
        raise RequestError(
            f"{printable(place.name)!r} is no data set; give a folder, a .jsonl list or a .tar shard as {field}",
            field=field,
        )


def _items(place: Path) -> list[Item]:
    if place.is_dir():
        shards = sorted(place.glob("*.tar"))
        return [item for shard in shards for item in _from_tar(shard)] if shards else _from_folder(place)
    return _from_list(place) if place.suffix.lower() == ".jsonl" else _from_tar(place)


def _from_folder(folder: Path) -> list[Item]:
    # A link to nothing is a clip that cannot be read, and said as such; to leave it out would be silent.
    paths = sorted(
        path
        for path in folder.rglob("*")
        if path.suffix.lower() in SUFFIXES and (path.is_file() or (path.is_symlink() and not path.exists()))
    )
    visible = [path for path in paths if not any(part.startswith(".") for part in path.relative_to(folder).parts)]
    return [Item(path.relative_to(folder).as_posix(), path, _caption_beside(path)) for path in visible]


def _caption_beside(path: Path) -> str | None:
    beside = path.with_suffix(".txt")
    try:
        if beside.stat().st_size > MAX_CAPTION_BYTES:
            return None
        return _cleaned(beside.read_bytes())
    except OSError:
        return None


def _cleaned(data: bytes) -> str | None:
    try:
        text = data.decode("utf-8-sig").strip()
    except UnicodeDecodeError:
        return None
    return None if "\0" in text else text


def _from_list(path: Path) -> list[Item]:
    if path.stat().st_size > MAX_LIST_BYTES:
        raise RequestError(f"{printable(path.name)!r} is larger than 1 GiB; split it")
    items = []
    with path.open(encoding="utf-8-sig", errors="strict") as lines:
        try:
            for number, line in enumerate(lines, start=1):
                if line.strip():
                    items.append(_listed(line, number, path))
        except UnicodeDecodeError:
            raise RequestError(f"{printable(path.name)!r} is no UTF-8 text; save it as such") from None
    return items


def _listed(line: str, number: int, path: Path) -> Item:
    where = f"line {number} of {printable(path.name)!r}"
    try:
        row: Any = json.loads(line)
    except (ValueError, RecursionError):
        raise RequestError(f"{where} is no JSON; each line is one object") from None
    if not isinstance(row, dict) or not isinstance(row.get("path"), str) or not row["path"]:
        raise RequestError(f'{where} has no "path"; write {{"path": "a.mp4", "caption": "..."}}')
    if "\0" in row["path"]:
        raise RequestError(f"{where} has a path with a NUL character; correct it")
    caption = row.get("caption")
    for name, text in (("path", row["path"]), ("caption", caption)):
        if isinstance(text, str) and not _is_text(text):
            raise RequestError(f"{where} has a {name} with half a character (a lone surrogate); correct it")
    target = path.parent / row["path"]
    name = shorten(row["path"])
    return Item(name, target, caption.strip() if isinstance(caption, str) else _caption_beside(target))


def _from_tar(path: Path) -> list[Item]:
    """The samples of a shard: files of one stem are one sample, as WebDataset has it."""
    found: dict[str, dict[str, tarfile.TarInfo]] = {}
    captions: dict[str, str | None] = {}
    try:
        with tarfile.open(path, "r:") as shard:
            for member in shard:
                if not member.isreg() or PurePosixPath(member.name).name.startswith("."):
                    continue
                stem, _, ending = member.name.rpartition(".")
                ending = f".{ending.lower()}"
                if ending in SUFFIXES:
                    found.setdefault(stem, {})[ending] = member
                elif ending in (".txt", ".json") and member.size <= MAX_CAPTION_BYTES:
                    opened = shard.extractfile(member)
                    data = b"" if opened is None else opened.read()
                    captions.setdefault(stem, _cleaned(data) if ending == ".txt" else _caption_in(data))
    except (tarfile.TarError, OSError, EOFError) as error:
        raise RequestError(
            f"shard {printable(path.name)!r} is damaged or compressed ({printable(str(error))}); give plain .tar files",
        ) from error
    return [
        Item(f"{path.stem}/{member.name}", path, captions.get(stem), member.offset_data, member.size)
        for stem, members in found.items()
        for member in members.values()
    ]


def _caption_in(data: bytes) -> str | None:
    try:
        row = json.loads(data)
    except (ValueError, RecursionError):
        return None
    value = row.get("caption") if isinstance(row, dict) else None
    return value.strip() if isinstance(value, str) and _is_text(value) else None


def _is_text(value: str) -> bool:
    """Whether it can be written as UTF-8; JSON's escapes can spell halves of characters, which cannot."""
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True
