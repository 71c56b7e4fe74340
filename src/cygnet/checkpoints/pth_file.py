"""PyTorch ``.pth`` files without unpickling.

A file saved by ``torch.save`` is a zip archive of ``NAME/data.pkl`` and one uncompressed entry of raw numbers per
storage. The pickle is a program for a small stack machine. cygnet runs neither that program nor torch's restricted
unpickler (which has had escapes: CVE-2025-32434, CVE-2026-24747): the interpreter below knows only the instructions
that build tables, and treats every name of a Python object as a plain label from a short list. Nothing is imported or
called, so a payload has nothing to act on; a file that asks for one is refused before any tensor is read.
"""

from __future__ import annotations

import os
import pickletools
import struct
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from cygnet.checkpoints.weight_file import (
    DTYPE_BYTES,
    MAX_ELEMENTS,
    MAX_RANK,
    MappedFile,
    Place,
    TensorInfo,
    WeightFile,
    extent,
    open_regular,
    printable,
    shown,
)
from cygnet.errors import WeightFileError

MAX_ENTRIES = 20_000
MAX_DIRECTORY_BYTES = 8 * 2**20
MAX_PICKLE_BYTES = 8 * 2**20
MAX_INSTRUCTIONS = 500_000
"""Limits that keep a refusal under a second; the largest official file has 784 tensors, some 25,000 instructions."""

WRAPPERS = ("state_dict", "model_state", "generator_ema", "generator")
"""Keys under which trainers put the weights, in order of preference (averaged before plain)."""

_STORAGES = {
    "FloatStorage": "float32", "DoubleStorage": "float64", "HalfStorage": "float16", "BFloat16Storage": "bfloat16",
    "LongStorage": "int64", "IntStorage": "int32", "ShortStorage": "int16", "CharStorage": "int8",
    "ByteStorage": "uint8", "BoolStorage": "bool",
}  # fmt: skip
_ALLOWED = frozenset(
    [
        ("collections", "OrderedDict"),
        ("torch", "Size"),
        ("torch._utils", "_rebuild_tensor_v2"),
        ("torch._utils", "_rebuild_tensor_v3"),
        ("torch._utils", "_rebuild_parameter"),
        ("torch.storage", "UntypedStorage"),
        *(("torch", name) for name in _STORAGES),
        *(("torch", name) for name in DTYPE_BYTES),
    ]
)


@dataclass(frozen=True, slots=True)
class _Label:
    """The name of a Python object; never looked up."""

    module: str
    name: str


@dataclass(frozen=True, slots=True)
class _Storage:
    key: str
    dtype: str | None  # None: bytes, typed by the tensor that uses them
    count: int


@dataclass(frozen=True, slots=True)
class _StridedTensor:
    storage: _Storage
    info: TensorInfo
    offset: int
    strides: tuple[int, ...]


class _Malformed(Exception):
    """The pickle is not one that ``torch.save`` writes for a table of tensors."""


def read_pth(path: Path) -> WeightFile:
    """Open a zip-format PyTorch file of tensors; nothing in it is executed and no tensor data is read.

    Tables under ``state_dict``, ``model_state``, ``generator_ema`` or ``generator`` are unwrapped. Raises
    ``WeightFileError`` for anything that is not a plain table of tensors.
    """
    where = shown(path)
    with os.fdopen(open_regular(path), "rb") as file:
        size = os.fstat(file.fileno()).st_size
        _check_directory(file, size, where)
        try:
            with zipfile.ZipFile(file) as archive:
                entries = archive.infolist()
                root = _root(entries, where)
                program = _read_entry(archive, entries, f"{root}data.pkl", where, MAX_PICKLE_BYTES)
                _check_byte_order(archive, entries, root, where)
        except (zipfile.BadZipFile, NotImplementedError, EOFError, OSError, ValueError, RuntimeError) as error:
            raise WeightFileError(f"{where} is a damaged PyTorch archive: {printable(str(error))}") from error
        try:
            table = _tensor_table(_interpret(program))
        except (_Malformed, ValueError, IndexError, KeyError, struct.error, OverflowError) as error:
            detail = printable(str(error), 200)
            raise WeightFileError(f"{where} is not a plain table of tensors and was not loaded: {detail}") from error
        by_name = {entry.filename: entry for entry in entries}
        tensors = {name: tensor.info for name, tensor in table.items()}
        places = {name: _place(tensor, name, by_name, root, file, size, where) for name, tensor in table.items()}
    if not tensors:
        raise WeightFileError(f"{where} holds no tensors")
    return WeightFile(path, "pytorch", (path,), {}, tensors, places, (MappedFile(path),))


# The archive ---------------------------------------------------------------------------------------------------------


def _check_directory(file: IO[bytes], size: int, where: str) -> None:
    """Refuse a table of contents that would cost much memory, before the zip reader takes it in."""
    tail_length = min(size, 22 + 65535)
    file.seek(size - tail_length)
    tail = file.read(tail_length)
    at = tail.rfind(b"PK\x05\x06")
    if at < 0 or at + 22 > len(tail):
        raise WeightFileError(f"{where} is truncated: the end of the archive is missing; download it again")
    entries, directory = struct.unpack_from("<HI", tail, at + 10)
    # Large archives repeat the counts in a longer record, which lies right before its 20-byte locator.
    if at >= 76 and tail[at - 76 : at - 72] == b"PK\x06\x06":
        entries, directory = struct.unpack_from("<QQ", tail, at - 76 + 32)
    if entries > MAX_ENTRIES or directory > MAX_DIRECTORY_BYTES:
        raise WeightFileError(f"{where} lists {entries:,} entries; the limit is {MAX_ENTRIES:,}")
    file.seek(0)


def _root(entries: list[zipfile.ZipInfo], where: str) -> str:
    names = [entry.filename for entry in entries]
    if len(set(names)) != len(names):
        raise WeightFileError(f"{where} lists an entry twice")
    roots = [name.removesuffix("data.pkl") for name in names if name == "data.pkl" or name.endswith("/data.pkl")]
    if len(roots) != 1 or roots[0].count("/") > 1:
        raise WeightFileError(f"{where} is a zip archive, but not one of PyTorch weights (it has no data.pkl)")
    if any(name.startswith(f"{roots[0]}code/") for name in names):
        raise WeightFileError(f"{where} is a TorchScript program, not a table of weights")
    return roots[0]


def _read_entry(archive: zipfile.ZipFile, entries: list[zipfile.ZipInfo], name: str, where: str, limit: int) -> bytes:
    entry = next(entry for entry in entries if entry.filename == name)
    if entry.compress_type != zipfile.ZIP_STORED:
        raise WeightFileError(f"{where} has a compressed {printable(name)!r}; PyTorch stores it uncompressed")
    if entry.file_size > limit:
        raise WeightFileError(f"{where} has a {printable(name)!r} of {entry.file_size:,} bytes; the limit is {limit:,}")
    return archive.read(entry)


def _check_byte_order(archive: zipfile.ZipFile, entries: list[zipfile.ZipInfo], root: str, where: str) -> None:
    name = f"{root}byteorder"
    if any(entry.filename == name for entry in entries):
        order = _read_entry(archive, entries, name, where, 16)
        if order != b"little":
            raise WeightFileError(f"{where} was written on a big-endian machine; save it again on a little-endian one")


def _place(
    tensor: _StridedTensor,
    name: str,
    entries: dict[str, zipfile.ZipInfo],
    root: str,
    file: IO[bytes],
    size: int,
    where: str,
) -> Place:
    label = f"tensor {printable(name)!r} of {where}"
    entry = entries.get(f"{root}data/{tensor.storage.key}")
    if entry is None:
        raise WeightFileError(f"{label} has no data in the archive")
    if entry.compress_type != zipfile.ZIP_STORED or entry.file_size != entry.compress_size:
        raise WeightFileError(f"{label} is compressed; PyTorch stores tensors uncompressed")
    width = DTYPE_BYTES[tensor.info.dtype]
    needed = width * (tensor.offset + extent(tensor.info.shape, tensor.strides)) if tensor.info.numel else 0
    if needed > entry.file_size:
        raise WeightFileError(f"{label} needs {needed:,} bytes, its storage has {entry.file_size:,}")
    file.seek(entry.header_offset)
    local = file.read(30)
    if len(local) < 30 or local[:4] != b"PK\x03\x04":
        raise WeightFileError(f"{label} lies outside the archive; the file is damaged")
    name_length, extra_length = struct.unpack_from("<HH", local, 26)
    start = entry.header_offset + 30 + name_length + extra_length
    if start + entry.file_size > size:
        raise WeightFileError(f"{where} is truncated: {label} ends at {start + entry.file_size:,}, file has {size:,}")
    strides = None if tensor.strides == _row_major(tensor.info.shape) else tensor.strides
    return Place(0, start + width * tensor.offset, strides)


def _row_major(shape: tuple[int, ...]) -> tuple[int, ...]:
    strides: list[int] = []
    step = 1
    for count in reversed(shape):
        strides.append(step)
        step *= max(count, 1)
    return tuple(reversed(strides))


# The pickle ----------------------------------------------------------------------------------------------------------

_LITERALS = frozenset(
    ["BININT", "BININT1", "BININT2", "LONG1", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8", "BINFLOAT"]
)
_EMPTY: dict[str, type[dict[Any, Any]] | type[list[Any]] | type[tuple[Any, ...]]] = {
    "EMPTY_DICT": dict,
    "EMPTY_LIST": list,
    "EMPTY_TUPLE": tuple,
}
_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}


def _interpret(program: bytes) -> Any:
    """The tables, numbers, texts and tensor descriptions that the pickle spells out. Values are inert throughout."""
    stack: list[Any] = []
    marks: list[list[Any]] = []
    memo: dict[Any, Any] = {}
    for count, (opcode, argument, _) in enumerate(pickletools.genops(program)):
        if count >= MAX_INSTRUCTIONS:
            raise _Malformed(f"it has more than {MAX_INSTRUCTIONS:,} instructions")
        name = opcode.name
        if name in _LITERALS:
            stack.append(argument)
        elif name in _EMPTY:
            stack.append(_EMPTY[name]())
        elif name in _CONSTANTS:
            stack.append(_CONSTANTS[name])
        elif name in ("PROTO", "FRAME"):
            continue
        elif name == "MARK":
            marks.append(stack)
            stack = []
        elif name in ("BINPUT", "LONG_BINPUT"):
            memo[argument] = stack[-1]
        elif name == "MEMOIZE":
            memo[len(memo)] = stack[-1]
        elif name in ("BINGET", "LONG_BINGET"):
            stack.append(memo[argument])
        elif name == "GLOBAL":
            stack.append(_label(*str(argument).split(" ", 1)))
        elif name == "STACK_GLOBAL":
            label, module = stack.pop(), stack.pop()
            stack.append(_label(module, label))
        elif name in ("TUPLE1", "TUPLE2", "TUPLE3"):
            width = int(name[-1])
            if len(stack) < width:
                raise _Malformed("its stack runs empty")
            stack[-width:] = [tuple(stack[-width:])]
        elif name == "TUPLE":
            items, stack = stack, marks.pop()
            stack.append(tuple(items))
        elif name in ("APPENDS", "SETITEMS"):
            items, stack = stack, marks.pop()
            _extend(stack[-1], items, name)
        elif name == "APPEND":
            item = stack.pop()
            _extend(stack[-1], [item], "APPENDS")
        elif name == "SETITEM":
            value, key = stack.pop(), stack.pop()
            _extend(stack[-1], [key, value], "SETITEMS")
        elif name == "BINPERSID":
            stack.append(_storage(stack.pop()))
        elif name == "REDUCE":
            arguments, function = stack.pop(), stack.pop()
            stack.append(_describe(function, arguments))
        elif name == "BUILD":
            state = stack.pop()
            if not isinstance(stack[-1], dict) or not isinstance(state, dict):
                raise _Malformed("it sets attributes of an object")
            # The only state of a table of weights is torch's own version note, which loading does not need.
        elif name == "STOP":
            return stack.pop()
        else:
            raise _Malformed(f"it uses the instruction {name}, which weights do not need")
    raise _Malformed("it ends early")


def _label(module: Any, name: Any = "") -> _Label:
    if (module, name) not in _ALLOWED:
        raise _Malformed(
            f"it asks for {printable(f'{module}.{name}')!r}, and a weight file has no reason to. Nothing was run"
        )
    return _Label(module, name)


def _extend(target: Any, items: list[Any], how: str) -> None:
    if how == "APPENDS" and isinstance(target, list):
        target.extend(items)
    elif how == "SETITEMS" and isinstance(target, dict) and len(items) % 2 == 0:
        for key, value in zip(items[::2], items[1::2], strict=True):
            # Hashing a nested tuple can take for ever; numbers and texts cannot.
            if not isinstance(key, str | int):
                raise _Malformed("it has a table key that is neither text nor number")
            target[key] = value
    else:
        raise _Malformed("it puts items into something that is not a table or list")


def _storage(value: Any) -> _Storage:
    match value:
        case ("storage", _Label(module="torch.storage", name="UntypedStorage"), str(key), str(), int(count)):
            return _Storage(key, None, count)
        case ("storage", _Label(module="torch", name=name), str(key), str(), int(count)) if name in _STORAGES:
            return _Storage(key, _STORAGES[name], count)
    raise _Malformed("it refers to outside data that is not a tensor storage")


def _describe(function: Any, arguments: Any) -> Any:
    match function, arguments:
        case _Label(name="OrderedDict"), ():
            return {}
        case _Label(name="OrderedDict"), (list(pairs),):
            table: dict[Any, Any] = {}
            for pair in pairs:
                if not isinstance(pair, list | tuple) or len(pair) != 2:
                    raise _Malformed("it builds a table from something else than pairs")
                _extend(table, list(pair), "SETITEMS")
            return table
        case _Label(name="Size"), (tuple(counts),):
            return counts
        case _Label(name="_rebuild_parameter"), (_StridedTensor() as tensor, _, _):
            return tensor
        case _Label(name="_rebuild_tensor_v2"), (_Storage() as storage, offset, shape, strides, *_):
            if storage.dtype is None:
                raise _Malformed("it has a tensor without a type")
            return _tensor(storage, storage.dtype, offset, shape, strides)
        case (
            _Label(name="_rebuild_tensor_v3"),
            (_Storage() as storage, offset, shape, strides, _, _, _Label(module="torch", name=dtype), *_),
        ) if dtype in DTYPE_BYTES:
            return _tensor(storage, dtype, offset, shape, strides)
    raise _Malformed("it calls a function with arguments that do not describe a tensor")


def _tensor(storage: _Storage, dtype: str, offset: Any, shape: Any, strides: Any) -> _StridedTensor:
    if not (_is_counts(shape) and _is_counts(strides) and len(shape) == len(strides) and _is_counts((offset,))):
        raise _Malformed("it has a tensor whose shape, strides or offset are not counts")
    info = TensorInfo(dtype, shape)
    if info.numel > MAX_ELEMENTS:
        raise _Malformed("it has a tensor of more than 2**48 elements")
    return _StridedTensor(storage, info, offset, strides)


def _is_counts(value: Any) -> bool:
    return isinstance(value, tuple) and len(value) <= MAX_RANK and all(type(n) is int and 0 <= n < 2**63 for n in value)


def _tensor_table(value: Any) -> dict[str, _StridedTensor]:
    """The one table of tensors in ``value``; numbers and texts beside it (such as ``epoch``) are left out."""
    if not isinstance(value, dict):
        raise _Malformed("it is not a table")
    for wrapper in WRAPPERS:
        if isinstance(value.get(wrapper), dict):
            value = value[wrapper]
            break
    table: dict[str, _StridedTensor] = {}
    for name, item in value.items():
        if isinstance(item, _StridedTensor) and isinstance(name, str):
            table[name] = item
        elif not isinstance(item, str | int | float | None):
            known = ", ".join(WRAPPERS)
            raise _Malformed(
                f"entry {printable(str(name))!r} holds neither a tensor nor a number; weights may be wrapped under "
                f"{known}"
            )
    return table
