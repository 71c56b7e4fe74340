"""The folders that nodes and clients read from and write to, and the one way from a client's text to a path.

A client names a file as ``name``, ``sub/name`` or ``sub/name [output]``. Whatever it writes, the path that comes out
lies, with all links followed, in the folder that it is meant to lie in, or there is an error.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

from cygnet.errors import RequestError

FolderKind = Literal["input", "output", "temp"]
FOLDER_KINDS: tuple[FolderKind, ...] = get_args(FolderKind)

_ANNOTATION = re.compile(r"^(?P<name>.*) \[(?P<kind>input|output|temp)\]$", re.DOTALL)
_LONGEST_NAME = 200  # bytes; file systems allow 255, and a counter and a suffix are added
_LONGEST_PART, _LONGEST_PATH = 255, 2000  # bytes that a file system takes; of the second, the root needs a share


@dataclass(frozen=True)
class Saved:
    """A file's place as the protocol writes it."""

    filename: str
    subfolder: str
    type: FolderKind

    def json(self) -> dict[str, str]:
        """As clients read it."""
        return {"filename": self.filename, "subfolder": self.subfolder, "type": self.type}


@dataclass(frozen=True, kw_only=True)
class Folders:
    """Where files of each kind lie. The folders need not exist yet."""

    input: Path
    output: Path
    temp: Path

    @classmethod
    def below(cls, base: Path) -> Folders:
        """The usual names in a base directory."""
        return cls(input=base / "input", output=base / "output", temp=base / "temp")

    def root(self, kind: FolderKind) -> Path:
        """The folder of that kind."""
        return {"input": self.input, "output": self.output, "temp": self.temp}[kind]

    def locate(self, name: str, kind: FolderKind = "input") -> Path:
        """The existing file that ``name`` means, whose annotation overrides ``kind``.

        Raises :class:`~cygnet.errors.RequestError` for one that is not there, is no plain file, or lies elsewhere.
        """
        name, kind = annotated(name, kind)
        path = inside(self.root(kind), name)
        if not path.is_file():
            raise RequestError(f"there is no file {name!r} in the {kind} folder; upload it first, or choose another")
        return path

    def next_file(self, prefix: str, suffix: str, kind: FolderKind = "output", **values: object) -> tuple[Path, Saved]:
        """Where to write the next file of a prefix: ``<prefix>_<counter>_<suffix>`` with the first free counter.

        ``prefix`` may hold subfolders, which are made, and ``%name%`` for the given values and for the time (year,
        month, day, hour, minute, second). ``suffix`` begins with a dot.
        """
        text = expand_tokens(prefix, values)
        folder = inside(self.root(kind), os.path.dirname(text) or ".")
        base = _safe_name(os.path.basename(text) or "cygnet")
        folder.mkdir(parents=True, exist_ok=True)
        used = re.compile(re.escape(base) + r"_(\d+)_?(\.|$)", re.IGNORECASE)
        counters = [int(found[1]) for it in os.listdir(folder) if (found := used.match(it))]
        filename = f"{base}_{max(counters, default=0) + 1:05d}_{suffix}"
        subfolder = os.path.relpath(folder, os.path.realpath(self.root(kind)))
        return folder / filename, Saved(filename, "" if subfolder == "." else subfolder.replace(os.sep, "/"), kind)


def annotated(name: str, kind: FolderKind) -> tuple[str, FolderKind]:
    """A name without its annotation, and the kind that it names."""
    found = _ANNOTATION.match(name)
    if found is None:
        return name, kind
    return found["name"], next(it for it in FOLDER_KINDS if it == found["kind"])


def relative_name(given: str) -> str:
    """A client's text as a path below some folder, with ``/`` between its parts; raises RequestError for any other."""
    text = given.replace("\\", "/")
    if not can_be_named(text):
        raise RequestError(f"the name {given[:100]!r} holds control characters; rename the file")
    if len(text.encode()) > _LONGEST_PATH or any(len(part.encode()) > _LONGEST_PART for part in text.split("/")):
        raise RequestError(f"the name {given[:100]!r}... is longer than file systems take; shorten it")
    if text.startswith(("/", "~")) or re.match(r"^[A-Za-z]:", text) or ".." in text.split("/"):
        raise RequestError(f"{given[:100]!r} leads out of its folder; give a name inside it")
    return text


def inside(root: Path, relative: str) -> Path:
    """``root / relative`` with all links followed; raises RequestError if that is not inside ``root``."""
    real_root = os.path.realpath(root)
    path = os.path.realpath(os.path.join(real_root, relative_name(relative)))
    if path != real_root and not path.startswith(real_root.rstrip(os.sep) + os.sep):
        raise RequestError(f"{relative[:100]!r} leads out of its folder; give a name inside it")
    return Path(path)


def can_be_named(name: str) -> bool:
    """Whether a client can name this file; one whose name is no text (bytes that are no UTF-8) is left out of lists."""
    return not any(ord(letter) < 32 or 0xD800 <= ord(letter) < 0xE000 for letter in name)


def expand_tokens(prefix: str, values: Mapping[str, object] | None = None) -> str:
    """Replace ``%width%``-like tokens; those without a value stay as they are."""
    now = time.localtime()
    moments = {
        "year": f"{now.tm_year:04d}",
        "month": f"{now.tm_mon:02d}",
        "day": f"{now.tm_mday:02d}",
        "hour": f"{now.tm_hour:02d}",
        "minute": f"{now.tm_min:02d}",
        "second": f"{now.tm_sec:02d}",
    }
    for name, value in {**moments, **(values or {})}.items():
        prefix = prefix.replace(f"%{name}%", str(value))
    return prefix


def _safe_name(name: str) -> str:
    """A label as a file name that every system can hold; the label itself is kept in the file's receipt."""
    name = re.sub(r'[<>:"|?*\x00-\x1f]', "_", name).strip(". ")
    while len(name.encode()) > _LONGEST_NAME:
        name = name[:-1]
    reserved = re.fullmatch(r"(?i)(con|prn|aux|nul|com\d|lpt\d)(\..*)?", name) is not None
    return f"_{name}" if not name or reserved or name.startswith("-") else name
