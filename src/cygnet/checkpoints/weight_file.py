"""One opened set of weights: names, types and shapes at once; each tensor mapped from the file when asked for."""

from __future__ import annotations

import errno
import math
import mmap
import os
import stat
import weakref
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from cygnet.errors import ModelNotFoundError, WeightFileError

if TYPE_CHECKING:
    import torch

Format = Literal["safetensors", "pytorch", "sharded safetensors"]

DTYPE_BYTES: Mapping[str, int] = {
    "bool": 1, "uint8": 1, "int8": 1, "uint16": 2, "int16": 2, "uint32": 4, "int32": 4, "uint64": 8, "int64": 8,
    "float8_e4m3fn": 1, "float8_e4m3fnuz": 1, "float8_e5m2": 1, "float8_e5m2fnuz": 1, "float8_e8m0fnu": 1,
    "float16": 2, "bfloat16": 2, "float32": 4, "float64": 8, "complex64": 8,
}  # fmt: skip
"""Bytes per element of every stored type that cygnet reads, under torch's names."""

MAX_RANK = 16
MAX_ELEMENTS = 2**48
"""Limits on one tensor; the largest published one has 2**30 elements."""

# Linux reserves swap for private mappings unless told not to; a 60 GB file must open on a 32 GB machine. Python names
# the flag only from 3.13 on.
_NORESERVE = getattr(mmap, "MAP_NORESERVE", 0x4000 if os.uname().sysname == "Linux" else 0) if os.name == "posix" else 0


def shown(path: Path) -> str:
    """The name of ``path`` for a message: no folders, no control characters."""
    return printable(path.name or str(path))


def printable(text: str, limit: int = 100) -> str:
    """``text`` from an untrusted file, safe for a terminal and short enough for one line."""
    short = text if len(text) <= limit else text[: limit - 1] + "…"
    return "".join(c if c.isprintable() else f"\\x{ord(c):02x}" for c in short)


def regular_file(path: Path) -> os.stat_result:
    """Status of ``path``, which must lead to a regular file (links are followed); never blocks.

    Raises ``ModelNotFoundError`` if nothing is there and ``WeightFileError`` for pipes, devices, sockets, folders,
    links in a circle and files that may not be read.
    """
    try:
        status = os.stat(path)
    except FileNotFoundError:
        link = " (a link whose target is gone)" if path.is_symlink() else ""
        raise ModelNotFoundError(f"{shown(path)} does not exist{link}; check the path") from None
    except (OSError, ValueError) as error:
        raise WeightFileError(f"{shown(path)} cannot be opened: {_reason(error)}") from error
    if stat.S_ISREG(status.st_mode):
        return status
    kinds = (
        (stat.S_ISDIR, "a folder"),
        (stat.S_ISFIFO, "a pipe"),
        (stat.S_ISSOCK, "a socket"),
        (stat.S_ISCHR, "a device"),
        (stat.S_ISBLK, "a device"),
    )
    kind = next((words for test, words in kinds if test(status.st_mode)), "not a file")
    raise WeightFileError(f"{shown(path)} is {kind}; weights are read from regular files only")


def open_regular(path: Path) -> int:
    """A read-only descriptor of a regular file. The check is repeated on the open file, so a swap cannot slip in."""
    regular_file(path)
    flags = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_BINARY", 0)
    try:
        descriptor = os.open(path, flags)
    except OSError as error:
        raise WeightFileError(f"{shown(path)} cannot be opened: {_reason(error)}") from error
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise WeightFileError(f"{shown(path)} is not a regular file")
    return descriptor


def read_small_file(path: Path, limit: int) -> bytes:
    """The whole of a regular file of at most ``limit`` bytes; raises ``WeightFileError`` if it is larger."""
    with os.fdopen(open_regular(path), "rb") as file:
        data = file.read(limit + 1)
    if len(data) > limit:
        raise WeightFileError(f"{shown(path)} is larger than {limit:,} bytes, far more than such a file needs")
    return data


def read_range(path: Path, start: int, length: int) -> bytes:
    """Up to ``length`` bytes of a regular file from ``start`` on; fewer at its end."""
    with os.fdopen(open_regular(path), "rb") as file:
        file.seek(start)
        return file.read(length)


def _reason(error: Exception) -> str:
    if isinstance(error, OSError):
        if error.errno == errno.ELOOP:
            return "it is a symbolic link that leads back to itself"
        return (error.strerror or "the system refused").lower()
    return "the path holds a character that no file name can have"


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """Type (torch's name, such as ``bfloat16``) and shape of a stored tensor."""

    dtype: str
    shape: tuple[int, ...]

    @property
    def numel(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        """Bytes that the elements take."""
        return self.numel * DTYPE_BYTES[self.dtype]


@dataclass(frozen=True, slots=True)
class Place:
    """Where a tensor lies: file number, byte offset, and strides in elements (None: row-major)."""

    file: int
    offset: int
    strides: tuple[int, ...] | None = None


class MappedFile:
    """A file mapped copy-on-write: reading costs no copy, and writing to a tensor never reaches the disk."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._opened_as = regular_file(path)
        self._map: weakref.ref[mmap.mmap] | None = None
        """Kept by the tensors in it alone, so that its pages go with the last of them."""
        self._passing: mmap.mmap | None = None

    def tensor(self, info: TensorInfo, place: Place) -> torch.Tensor:
        """The tensor at ``place``, sharing memory with the mapping wherever its alignment allows.

        Raises ``WeightFileError`` if the file changed since it was opened.
        """
        mapped = None if self._map is None else self._map()
        if mapped is None:
            mapped = self._mapped()
            self._map = weakref.ref(mapped)
        return self._view(info, place, mapped)

    @contextmanager
    def borrowed(self, info: TensorInfo, place: Place) -> Iterator[torch.Tensor]:
        """The same for the length of a block, after which its pages are given back; keep no reference to it.

        So converting a large file leaves none of it in memory.
        """
        # Its own mapping: giving back pages of the other one would undo what the owner of a tensor wrote there.
        if self._passing is None:
            self._passing = self._mapped()
        yield self._view(info, place, self._passing)
        if hasattr(mmap, "MADV_DONTNEED"):
            self._passing.madvise(mmap.MADV_DONTNEED)

    def _view(self, info: TensorInfo, place: Place, buffer: mmap.mmap) -> torch.Tensor:
        import torch

        dtype: torch.dtype = getattr(torch, info.dtype)
        if info.numel == 0:
            return torch.empty(info.shape, dtype=dtype)
        strides = place.strides
        count = info.numel if strides is None else extent(info.shape, strides)
        self._check_unchanged()
        if place.offset % DTYPE_BYTES[info.dtype]:
            # Legal in safetensors, but kernels expect aligned elements.
            end = place.offset + count * DTYPE_BYTES[info.dtype]
            flat = torch.frombuffer(bytearray(buffer[place.offset : end]), dtype=dtype)
        else:
            flat = torch.frombuffer(buffer, dtype=dtype, count=count, offset=place.offset)
        return flat.view(info.shape) if strides is None else flat.as_strided(info.shape, strides)

    def _mapped(self) -> mmap.mmap:
        descriptor = open_regular(self.path)
        try:
            if os.name == "posix":
                flags = mmap.MAP_PRIVATE | _NORESERVE
                return mmap.mmap(descriptor, 0, flags=flags, prot=mmap.PROT_READ | mmap.PROT_WRITE)
            return mmap.mmap(descriptor, 0, access=mmap.ACCESS_COPY)
        except (OSError, ValueError) as error:
            raise WeightFileError(f"{shown(self.path)} cannot be mapped into memory: {_reason(error)}") from error
        finally:
            os.close(descriptor)

    def _check_unchanged(self) -> None:
        # Touching pages behind the end of a file that was cut while mapped kills the process, so look first.
        now, then = regular_file(self.path), self._opened_as
        if (now.st_size, now.st_mtime_ns, now.st_ino) != (then.st_size, then.st_mtime_ns, then.st_ino):
            raise WeightFileError(f"{shown(self.path)} was changed while it was in use; load it again")


def extent(shape: tuple[int, ...], strides: tuple[int, ...]) -> int:
    """Elements from the first to the last one of a non-empty strided tensor."""
    return 1 + sum((size - 1) * stride for size, stride in zip(shape, strides, strict=True))


@dataclass(frozen=True)
class WeightFile:
    """An opened file, or a set of shards that act as one file.

    ``tensors`` holds names as stored, in file order; ``metadata`` the string pairs of safetensors headers.
    """

    path: Path
    format: Format
    files: tuple[Path, ...]
    metadata: Mapping[str, str]
    tensors: Mapping[str, TensorInfo]
    places: Mapping[str, Place] = field(repr=False)
    mapped: tuple[MappedFile, ...] = field(repr=False)

    def tensor(self, name: str) -> torch.Tensor:
        """The stored tensor on the CPU, unconverted. Memory-mapped: pages are read when touched.

        Changing it changes the copy in memory only. Raises ``KeyError`` for an unknown name.
        """
        place = self.places[name]
        return self.mapped[place.file].tensor(self.tensors[name], place)

    def borrowed(self, name: str) -> AbstractContextManager[torch.Tensor]:
        """The stored tensor for the length of a ``with`` block, to convert or copy; it takes no memory afterwards."""
        place = self.places[name]
        return self.mapped[place.file].borrowed(self.tensors[name], place)

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors."""
        return sum(info.nbytes for info in self.tensors.values())
