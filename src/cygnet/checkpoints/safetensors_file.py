"""The safetensors format, read with cygnet's own checks.

A file is: 8 bytes, the little-endian length N of the header; N bytes of JSON; the data. The header maps each name to
``{"dtype", "shape", "data_offsets": [begin, end]}`` relative to the data, and may hold ``__metadata__`` with strings.
The spans must tile the data exactly: no holes, no overlap, nothing behind (format description: safetensors 0.8 README).
"""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import Any

from cygnet.checkpoints.json_text import parse_object
from cygnet.checkpoints.weight_file import (
    DTYPE_BYTES,
    MAX_ELEMENTS,
    MAX_RANK,
    MappedFile,
    Place,
    TensorInfo,
    WeightFile,
    open_regular,
    printable,
    shown,
)
from cygnet.errors import WeightFileError

MAX_HEADER_BYTES = 16 * 2**20
"""The format allows 100 MB; the published models need 0.3 MB, a workflow in the metadata a few more."""
MAX_TENSORS = 20_000
"""Seven times the largest file of this family; keeps a refusal under a second and 100 MB."""

TORCH_NAMES = {
    "BOOL": "bool", "U8": "uint8", "I8": "int8", "U16": "uint16", "I16": "int16", "U32": "uint32", "I32": "int32",
    "U64": "uint64", "I64": "int64", "F8_E4M3": "float8_e4m3fn", "F8_E4M3FNUZ": "float8_e4m3fnuz",
    "F8_E5M2": "float8_e5m2", "F8_E5M2FNUZ": "float8_e5m2fnuz", "F8_E8M0": "float8_e8m0fnu",
    "F16": "float16", "BF16": "bfloat16", "F32": "float32", "F64": "float64", "C64": "complex64",
}  # fmt: skip
"""Type names of the format and torch's names for them."""

_AGAIN = "download it again"


def read_safetensors(path: Path) -> WeightFile:
    """Open a safetensors file: the header is read and checked, no data.

    Raises ``WeightFileError`` naming the tensor or the two sizes that disagree.
    """
    where = shown(path)
    with os.fdopen(open_regular(path), "rb") as file:
        size = os.fstat(file.fileno()).st_size
        start = file.read(8)
        if len(start) < 8:
            raise WeightFileError(
                f"{where} is truncated: a safetensors file begins with 8 bytes of header length, this one has "
                f"{len(start)} bytes in all; {_AGAIN}"
            )
        length = int.from_bytes(start, "little")
        if length < 2:
            raise WeightFileError(f"{where} is damaged: its header length is {length}; {_AGAIN}")
        if 8 + length > size and length <= 2**32:
            raise WeightFileError(
                f"{where} is truncated: header says {8 + length:,} bytes before the data, file has {size:,}; {_AGAIN}"
            )
        if length > MAX_HEADER_BYTES:
            raise WeightFileError(
                f"{where} has a header of {length:,} bytes; the limit is {MAX_HEADER_BYTES:,}, and real models need "
                "under a million. It is damaged or not a safetensors file"
            )
        header = file.read(length)
    if len(header) < length:
        raise WeightFileError(f"{where} is truncated inside its header; {_AGAIN}")
    return _from_header(path, header, data_start=8 + length, size=size)


def _from_header(path: Path, header: bytes, *, data_start: int, size: int) -> WeightFile:
    where = shown(path)
    if header.count(b'"data_offsets"') > MAX_TENSORS:
        raise WeightFileError(f"{where} lists more than {MAX_TENSORS:,} tensors; real models have under 2,000")
    if not header.startswith(b"{"):
        raise WeightFileError(f"{where} is not a safetensors file: its header does not begin with an opening brace")
    entries = parse_object(header, f"the header of {where}", max_depth=3, max_values=20 * MAX_TENSORS)
    metadata = _metadata(entries.pop("__metadata__", {}), where)
    spans: list[tuple[int, int, str]] = []
    tensors: dict[str, TensorInfo] = {}
    places: dict[str, Place] = {}
    for name, entry in entries.items():
        info, begin, end = _entry(name, entry, where)
        tensors[name] = info
        places[name] = Place(0, data_start + begin)
        spans.append((begin, end, name))
    _check_tiling(spans, size - data_start, data_start, where)
    return WeightFile(path, "safetensors", (path,), metadata, tensors, places, (MappedFile(path),))


def _metadata(value: Any, where: str) -> dict[str, str]:
    if not isinstance(value, dict) or not all(isinstance(text, str) for text in value.values()):
        raise WeightFileError(f"the header of {where} has metadata that is not a table of strings")
    return value


def _entry(name: str, entry: Any, where: str) -> tuple[TensorInfo, int, int]:
    label = f"tensor {printable(name)!r} of {where}"
    if not isinstance(entry, dict) or set(entry) != {"dtype", "shape", "data_offsets"}:
        raise WeightFileError(f"{label} must have exactly dtype, shape and data_offsets")
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in TORCH_NAMES:
        raise WeightFileError(f"{label} has type {printable(str(dtype))!r}; known types: {', '.join(TORCH_NAMES)}")
    if not _is_count_list(shape) or len(shape) > MAX_RANK:
        raise WeightFileError(f"{label} has a shape that is not a list of at most {MAX_RANK} counts")
    if math.prod(shape) > MAX_ELEMENTS:  # Python integers: the product cannot wrap around
        raise WeightFileError(f"{label} claims more than 2**48 elements")
    if not _is_count_list(offsets) or len(offsets) != 2 or offsets[0] > offsets[1]:
        raise WeightFileError(f"{label} has data_offsets that are not [begin, end]")
    info = TensorInfo(TORCH_NAMES[dtype], tuple(shape))
    begin, end = offsets
    if info.nbytes != end - begin:
        raise WeightFileError(
            f"{label} has shape {list(info.shape)} of {dtype}, which is {info.nbytes:,} bytes, but {end - begin:,} "
            f"bytes of data ({DTYPE_BYTES[info.dtype]} per element)"
        )
    return info, begin, end


def _is_count_list(value: Any) -> bool:
    return isinstance(value, list) and all(type(n) is int and 0 <= n < 2**63 for n in value)


def _check_tiling(spans: list[tuple[int, int, str]], data_size: int, data_start: int, where: str) -> None:
    position = 0
    for begin, end, name in sorted(spans):
        if begin != position:
            fault = "overlaps the tensor before it" if begin < position else "leaves a gap before it"
            raise WeightFileError(
                f"{where} is damaged: the data of tensor {printable(name)!r} {fault} (begins at {begin:,}, expected "
                f"{position:,})"
            )
        position = end
    if position > data_size:
        raise WeightFileError(
            f"{where} is truncated: header says {data_start + position:,} bytes, file has {data_start + data_size:,}; "
            f"{_AGAIN}"
        )
    if position < data_size:
        raise WeightFileError(
            f"{where} is damaged: {data_size - position:,} bytes follow the last tensor "
            f"(header says {data_start + position:,} bytes, file has {data_start + data_size:,})"
        )
