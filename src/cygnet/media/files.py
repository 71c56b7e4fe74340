"""Files read with care and written whole: regular files only on the way in, all or nothing on the way out."""

from __future__ import annotations

import contextlib
import errno
import os
import re
import secrets
import shutil
import stat
import time
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from cygnet.errors import DiskFullError, MediaError, OutputError, RequestError

PART_PREFIX = ".cygnet-"
PART_SUFFIX = ".part"
_FULL = {errno.ENOSPC, errno.EDQUOT}


def output_error(error: BaseException, path: Path) -> OutputError:
    """Explain why writing ``path`` failed; ``error`` is an OSError or anything else with an ``errno``."""
    name = shorten(path.name)
    number = getattr(error, "errno", None)
    if number in _FULL:
        return DiskFullError(f"the disk is full: {name!r} was not written; free some space or choose another folder")
    if number == errno.EFBIG:
        return DiskFullError(f"{name!r} was not written: it is larger than the file-size limit of this account or disk")
    if number in {errno.EACCES, errno.EPERM}:
        return OutputError(f"no permission to write {name!r} there; choose another folder or change its permissions")
    if number == errno.EROFS:
        return OutputError(f"{name!r} was not written: the disk is mounted read-only; choose another folder")
    if number in {errno.ENOENT, errno.ENOTDIR}:
        return OutputError(f"the folder for {name!r} does not exist; create it first or choose another one")
    if number == errno.ENAMETOOLONG:
        return OutputError(f"the name {name!r} is too long for this disk; choose a shorter one")
    if number in {errno.EEXIST, errno.ENOTEMPTY}:
        return OutputError(f"{name!r} appeared while it was being made; nothing was overwritten: choose another name")
    reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return OutputError(f"{name!r} was not written: {reason}")


def shorten(name: str, limit: int = 80) -> str:
    """At most ``limit`` characters of ``name``; messages show it with ``!r``, which escapes control characters."""
    return name if len(name) <= limit else name[: limit - 1] + "…"


def printable(text: str) -> str:
    """Text from a library or a file with control characters escaped and shortened, fit for a message."""
    return shorten(repr(text)[1:-1], 200)


# --- reading ---------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def open_regular(path: str | os.PathLike[str], *, max_bytes: int) -> Iterator[BinaryIO]:
    """Open an existing regular file of 1 to ``max_bytes`` bytes for reading; links to one are followed.

    Anything else (folder, FIFO, socket, device, missing, empty, too large) raises MediaError. Never blocks: what the
    path leads to is looked at before it is opened, and again on the open handle.
    """
    given = os.fspath(path)
    name = shorten(os.path.basename(given) or given)
    if re.match(r"[A-Za-z][A-Za-z0-9+.-]+:/", given):  # a Path has one slash left of two
        raise MediaError(f"{shorten(given)!r} is an address; download it first and give the file")
    try:
        if not stat.S_ISREG(os.stat(given).st_mode):
            raise MediaError(f"{name!r} is not a regular file; give the path of a picture or video file")
        handle = os.open(given, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    except FileNotFoundError:
        raise MediaError(f"there is no file {name!r}; check the path") from None
    except (OSError, ValueError) as error:  # ValueError: a NUL in the path
        raise MediaError(f"{name!r} cannot be opened: {getattr(error, 'strerror', None) or error}") from error
    with os.fdopen(handle, "rb") as file:
        status = os.fstat(file.fileno())
        if not stat.S_ISREG(status.st_mode):
            raise MediaError(f"{name!r} is not a regular file; give the path of a picture or video file")
        if status.st_size == 0:
            raise MediaError(f"{name!r} is empty (0 bytes); it may be an unfinished download")
        if status.st_size > max_bytes:
            raise MediaError(f"{name!r} has {status.st_size:,} bytes; at most {max_bytes:,} are accepted")
        yield file


# --- writing ---------------------------------------------------------------------------------------------------------


def new_part(folder: Path) -> Path:
    """Create an empty hidden file with a unique name in ``folder``; OSError if that cannot be done."""
    path = folder / f"{PART_PREFIX}{secrets.token_hex(8)}{PART_SUFFIX}"
    os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))
    return path.absolute()


def new_part_folder(folder: Path) -> Path:
    """Create an empty hidden folder with a unique name in ``folder``; OSError if that cannot be done."""
    path = folder / f"{PART_PREFIX}{secrets.token_hex(8)}{PART_SUFFIX}"
    path.mkdir()
    return path.absolute()


def discard(part: Path) -> None:
    """Remove a part file or folder, if it is still there."""
    if part.is_dir() and not part.is_symlink():
        shutil.rmtree(part, ignore_errors=True)
    else:
        part.unlink(missing_ok=True)


def publish(part: Path, target: Path, *, overwrite: bool) -> None:
    """Make a finished part appear as ``target`` in one step, safe against power loss; OSError if that cannot be done.

    Without ``overwrite`` only a free name or an empty file (a reservation) is taken; whatever else stands there raises
    FileExistsError. A link at ``target`` is replaced, never written through.
    """
    sync(part)
    if overwrite or _is_reservation(target):
        os.replace(part, target)
    else:
        _rename_to_free_name(part, target)
    sync(target.absolute().parent)


def publish_folder(part: Path, target: Path, *, overwrite: bool) -> None:
    """The same for a folder of finished files; with ``overwrite`` the old folder is moved aside, then removed."""
    for file in part.iterdir():
        sync(file)
    sync(part)
    if overwrite and target.is_dir() and not target.is_symlink():
        old = target.absolute().parent / f"{PART_PREFIX}{secrets.token_hex(8)}{PART_SUFFIX}"
        os.rename(target, old)
        os.rename(part, target)
        discard(old)
    else:
        os.rename(part, target)  # fails on a file and on a folder that holds anything
    sync(target.absolute().parent)


def refuse_taken(target: Path, *, overwrite: bool) -> None:
    """Raise RequestError if a file may not be made at ``target``."""
    name = shorten(target.name)
    if not os.path.lexists(target):
        return
    if target.is_dir():
        raise RequestError(f"{name!r} is a folder; give a file name in it", field="path")
    if target.exists() and not target.is_file():
        raise RequestError(f"{name!r} is not a regular file; give another name", field="path")
    if not overwrite and not _is_reservation(target):
        raise RequestError(f"{name!r} exists already; choose another name or ask to overwrite it", field="path")


def remove_stale_parts(folder: Path, *, older_than: float = 86_400.0) -> list[Path]:
    """Remove what killed writers left in ``folder`` more than ``older_than`` seconds ago; returns what was removed."""
    now = time.time()
    stale = [
        part
        for part in folder.glob(f"{PART_PREFIX}*{PART_SUFFIX}")
        if not part.is_symlink() and now - part.stat().st_mtime > older_than
    ]
    for part in stale:
        discard(part)
    return stale


def _is_reservation(path: Path) -> bool:
    return path.is_file() and not path.is_symlink() and path.stat().st_size == 0


def _rename_to_free_name(part: Path, target: Path) -> None:
    try:
        os.link(part, target)  # unlike a rename, a link never replaces anything
    except FileExistsError:
        raise
    except OSError as error:
        if error.errno not in {errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK, errno.EINVAL}:
            raise
        # A disk without hard links (FAT, some network shares): reserve the name, then replace our own reservation.
        os.close(os.open(target, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))
        os.replace(part, target)
    else:
        part.unlink()


def sync(path: Path) -> None:
    """Flush a file or folder to the disk."""
    if os.name == "nt":
        if path.is_dir():  # Windows has no handle for flushing a folder
            return
        flags = os.O_RDWR
    else:
        flags = os.O_RDONLY
    handle = os.open(path, flags)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
