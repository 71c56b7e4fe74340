"""Open weights of any supported format: a file, a set of shards, or a folder that holds one of these."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

from cygnet.checkpoints.json_text import parse_object
from cygnet.checkpoints.pth_file import read_pth
from cygnet.checkpoints.safetensors_file import MAX_HEADER_BYTES, MAX_TENSORS, read_safetensors
from cygnet.checkpoints.weight_file import (
    Format,
    MappedFile,
    Place,
    TensorInfo,
    WeightFile,
    printable,
    read_range,
    read_small_file,
    regular_file,
    shown,
)
from cygnet.errors import ModelNotFoundError, WeightFileError

SAFETENSORS_SUFFIXES = (".safetensors", ".sft")
PYTORCH_SUFFIXES = (".pth", ".pt", ".bin", ".ckpt")
INDEX_SUFFIX = ".index.json"
MAX_INDEX_BYTES = 16 * 2**20
MAX_SHARDS = 1000

_SHARD = re.compile(r"(?P<stem>.+)-(?P<number>\d{5})-of-(?P<total>\d{5})(?P<suffix>\.\w+)")


def open_weights(path: Path | str) -> WeightFile:
    """Open ``path`` and read its names, types and shapes, but no tensors.

    ``path`` is a safetensors file, a zip-format PyTorch file, one shard of a set (the whole set is opened), an index
    file, or a folder that holds exactly one of these. Raises ``ModelNotFoundError`` if nothing is there and
    ``WeightFileError``, within a second and without taking much memory, if it is damaged, unsafe or something else.
    """
    path = Path(path)
    if path.is_dir():
        return _open_folder(path)
    if path.name.endswith(INDEX_SUFFIX):
        return _open_index(path)
    shard = _SHARD.fullmatch(path.name)
    if shard and regular_file(path) and int(shard["total"]) > 1:
        return _open_shard_set(path, shard)
    return _open_file(path)


def _open_file(path: Path) -> WeightFile:
    size = regular_file(path).st_size
    content = sniff(read_range(path, 0, 512), size)
    suffix = path.suffix.lower()
    if content == "gguf" or (suffix == ".gguf" and size >= 4):
        if content != "gguf":
            raise WeightFileError(f"{shown(path)} is not a GGUF file: it does not begin with the letters GGUF")
        raise WeightFileError(f"{shown(path)} is a GGUF file, which cygnet does not read yet; use a safetensors file")
    if content in _NOT_WEIGHTS:
        raise WeightFileError(f"{shown(path)} {_NOT_WEIGHTS[content]}")
    if suffix in SAFETENSORS_SUFFIXES:
        if content in ("zip", "pickle"):
            raise WeightFileError(
                f"{shown(path)} is a PyTorch pickle under the name of a safetensors file, which is how unsafe files "
                "are passed on. If you trust its source, give it the suffix .pth"
            )
        return read_safetensors(path)
    if suffix in PYTORCH_SUFFIXES:
        if content == "pickle":
            raise WeightFileError(
                f"{shown(path)} is in the PyTorch format from before 2020, which cannot be read without running code "
                "from the file. Load it where you trust it and save it again with a current torch.save, or get a "
                "safetensors file"
            )
        if content == "safetensors":
            raise WeightFileError(f"{shown(path)} is a safetensors file; rename it to end in .safetensors")
        return read_pth(path)
    if content == "safetensors":
        return read_safetensors(path)
    if content == "zip":
        return read_pth(path)
    known = ", ".join(SAFETENSORS_SUFFIXES + PYTORCH_SUFFIXES)
    raise WeightFileError(f"{shown(path)} is no weight file that cygnet knows; known suffixes: {known}")


_NOT_WEIGHTS = {
    "lfs": "is a Git-LFS pointer, not weights: a note of where the real file is. Run `git lfs pull`, or download it",
    "html": "is a web page, not weights; the download probably needed a login or a different link",
    "json": "is JSON text, not weights; name the weight file itself (or its .index.json)",
    "gzip": "is gzip-compressed, not weights; unpack it first",
    "tar": "is a tar archive, not weights; unpack it first",
}


def sniff(start: bytes, size: int) -> str:
    """What a file of ``size`` bytes that begins with ``start`` is, by its content: one word, ``unknown`` if unclear."""
    length = int.from_bytes(start[:8], "little")
    if len(start) > 8 and start[8:9] == b"{" and 2 <= length <= max(size, MAX_HEADER_BYTES):
        return "safetensors"  # first: a header length may look like another format's magic number
    text = start.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if text.startswith(b"version https://git-lfs"):
        return "lfs"
    if text.startswith((b"<!doctype", b"<html", b"<?xml", b"<head")):
        return "html"
    if text.startswith((b"{", b"[")):
        return "json"
    magics = (
        (b"\x1f\x8b\x08", "gzip"), (b"GGUF", "gguf"), (b"PK\x03\x04", "zip"),
        (b"\x80\x02", "pickle"), (b"\x80\x03", "pickle"), (b"\x80\x04", "pickle"), (b"\x80\x05", "pickle"),
    )  # fmt: skip
    for magic, kind in magics:
        if start.startswith(magic):
            return kind
    if start[257:262] == b"ustar":
        return "tar"
    return "unknown"


# Sets of shards ------------------------------------------------------------------------------------------------------


def weight_units(folder: Path) -> list[Path]:
    """What can be opened in ``folder`` itself: index files, first shards of sets without index, and single files.

    Sorted by name. A set of shards counts once. Subfolders are not entered.
    """
    try:
        names = sorted(entry.name for entry in folder.iterdir())
    except OSError as error:
        raise WeightFileError(f"{shown(folder)} cannot be listed: {(error.strerror or 'refused').lower()}") from error
    if len(names) > 10_000:
        raise WeightFileError(f"{shown(folder)} holds more than 10,000 entries; name a weight file in it")
    indices = [name for name in names if name.endswith(INDEX_SUFFIX)]
    indexed_stems = {_index_stem(name) for name in indices}
    units = [folder / name for name in indices]
    seen: set[tuple[str, str, str]] = set()
    for name in names:
        if not name.lower().endswith(SAFETENSORS_SUFFIXES + PYTORCH_SUFFIXES):
            continue
        shard = _SHARD.fullmatch(name)
        if shard is None:
            units.append(folder / name)
        elif shard["stem"] not in indexed_stems:
            key = (shard["stem"], shard["total"], shard["suffix"])
            if key not in seen:
                seen.add(key)
                units.append(folder / name)
    return sorted(units)


def _index_stem(name: str) -> str:
    stem = name.removesuffix(INDEX_SUFFIX)
    return stem[: stem.rfind(".")] if "." in stem else stem


def _open_folder(folder: Path) -> WeightFile:
    units = weight_units(folder)
    if not units:
        raise ModelNotFoundError(f"folder {shown(folder)} holds no weight file ({', '.join(SAFETENSORS_SUFFIXES)}, …)")
    safe = [unit for unit in units if not unit.name.lower().endswith(PYTORCH_SUFFIXES)]
    units = safe or units  # the same weights are often kept in both formats
    if len(units) > 1:
        names = ", ".join(shown(unit) for unit in units[:5])
        raise WeightFileError(f"folder {shown(folder)} holds {len(units)} weight files ({names}); name one of them")
    return replace(open_weights(units[0]), path=folder)


def _open_index(path: Path) -> WeightFile:
    where = shown(path)
    index = parse_object(read_small_file(path, MAX_INDEX_BYTES), where, max_depth=8, max_values=3 * MAX_TENSORS)
    listing = index.get("weight_map")
    if not isinstance(listing, dict) or not listing:
        raise WeightFileError(f"{where} has no weight_map from tensor names to shard files")
    if len(listing) > MAX_TENSORS:
        raise WeightFileError(f"{where} lists more than {MAX_TENSORS:,} tensors")
    for name, shard in listing.items():
        if not isinstance(shard, str) or not _is_plain_file_name(shard):
            raise WeightFileError(
                f"{where} puts tensor {printable(name)!r} into {printable(str(shard))!r}; a shard must be a plain "
                "file name in the same folder"
            )
    shards = sorted(set(listing.values()))
    missing = [shard for shard in shards if not (path.parent / shard).exists()]
    if missing:
        raise WeightFileError(
            f"{len(missing)} of {len(shards)} shards named by {where} are missing, first {printable(missing[0])!r}; "
            "download them again"
        )
    merged = _merge(path, [_open_file(path.parent / shard) for shard in shards])
    for name, shard in listing.items():
        place = merged.places.get(name)
        if place is None or merged.files[place.file].name != shard:
            raise WeightFileError(f"{where} puts tensor {printable(name)!r} into {printable(shard)!r}, which lacks it")
    unlisted = [name for name in merged.tensors if name not in listing]
    if unlisted:
        raise WeightFileError(
            f"the shards of {where} hold {len(unlisted)} tensors that it does not list, first "
            f"{printable(unlisted[0])!r}"
        )
    return merged


def _is_plain_file_name(text: str) -> bool:
    plain = text not in ("", ".", "..") and not any(c in text for c in "/\\:\0")
    return plain and text.lower().endswith(SAFETENSORS_SUFFIXES + PYTORCH_SUFFIXES)


def _open_shard_set(path: Path, shard: re.Match[str]) -> WeightFile:
    index = path.parent / f"{shard['stem']}{shard['suffix']}{INDEX_SUFFIX}"
    if index.exists():
        return _open_index(index)
    total = int(shard["total"])
    if total > MAX_SHARDS:
        raise WeightFileError(f"{shown(path)} is one of {total:,} shards; the limit is {MAX_SHARDS:,}")
    paths = [
        path.parent / f"{shard['stem']}-{number:05d}-of-{shard['total']}{shard['suffix']}"
        for number in range(1, total + 1)
    ]
    missing = [candidate for candidate in paths if not candidate.exists()]
    if missing:
        raise WeightFileError(
            f"{len(missing)} of {total} shards are missing beside {shown(path)}, first {shown(missing[0])}; "
            "download them again"
        )
    return _merge(path, [_open_file(candidate) for candidate in paths])


def _merge(path: Path, parts: list[WeightFile]) -> WeightFile:
    tensors: dict[str, TensorInfo] = {}
    places: dict[str, Place] = {}
    mapped: list[MappedFile] = []
    metadata: dict[str, str] = {}
    for number, part in enumerate(parts):
        for name, info in part.tensors.items():
            if name in tensors:
                first = shown(parts[places[name].file].path)
                raise WeightFileError(f"tensor {printable(name)!r} is in two shards: {first} and {shown(part.path)}")
            tensors[name] = info
            places[name] = replace(part.places[name], file=number)
        mapped.extend(part.mapped)
        metadata.update(part.metadata)
    files = tuple(part.path for part in parts)
    kind: Format = "sharded safetensors" if parts[0].format == "safetensors" else "pytorch"
    return WeightFile(path, kind, files, metadata, tensors, places, tuple(mapped))
