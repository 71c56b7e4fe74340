"""Receipts: what a file was made from, stored inside it and beside it.

A receipt is a JSON object whose ``cygnet_receipt`` is the version of its form; what else it says is decided where it is
made. Inside a file it is one metadata value under the same key; beside it, it is ``<file name>.json``.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from cygnet.errors import MediaError, RequestError
from cygnet.media.files import discard, new_part, open_regular, output_error, publish, refuse_taken, shorten
from cygnet.media.video_read import read_metadata

RECEIPT_KEY = "cygnet_receipt"
RECEIPT_VERSION = 1
MADE_BY_WORKFLOW = "workflow"
"""``made_by`` of a file that a graph made: what to make it from is the graph that lies beside the receipt."""
_LONGEST_NAME = 255  # bytes
MAX_RECEIPT_BYTES = 16 * 2**20


def embed(receipt: Mapping[str, Any]) -> dict[str, str]:
    """The metadata that puts ``receipt`` inside a file: pass it to :func:`cygnet.media.video.open_writer`.

    Raises RequestError if it is no receipt or holds what JSON cannot (NaN, infinity, objects).
    """
    return {RECEIPT_KEY: _to_json(receipt, indent=None)}


def sidecar_path(path: str | os.PathLike[str]) -> Path:
    """Where the receipt of ``path`` lies: ``x.mp4.json`` for ``x.mp4``, ``x.json`` for a folder ``x`` of frames."""
    place = Path(path)
    if not place.name:
        raise RequestError(f"{str(path)!r} names no file; give one such as video.mp4", field="path")
    return place.with_name(place.name + ".json")


def check_sidecar(path: str | os.PathLike[str]) -> None:
    """Raise RequestError when the receipt beside ``path`` would have a longer name than file systems hold."""
    sidecar = sidecar_path(path)
    if len(os.fsencode(sidecar.name)) > _LONGEST_NAME:
        raise RequestError(
            f"the name {shorten(Path(path).name)!r} is too long: with .json for the receipt it has "
            f"{len(os.fsencode(sidecar.name))} bytes, and disks hold {_LONGEST_NAME}; choose a shorter one",
            field="path",
        )


@contextmanager
def staged_sidecar(
    folder: Path, receipt: Mapping[str, Any], *, overwrite: bool = False
) -> Iterator[Callable[[str | os.PathLike[str]], Path]]:
    """The receipt, written in ``folder`` under a hidden name; calling what is yielded puts it beside that file.

    What can fail, such as a full disk, fails before the file it belongs to appears, so both appear or neither. Raises
    RequestError as :func:`embed` does and if the sidecar exists and ``overwrite`` is off, OutputError if it cannot be
    written.
    """
    data = (_to_json(receipt, indent=2) + "\n").encode("ascii")
    try:
        part = new_part(folder)
    except OSError as error:
        raise output_error(error, folder / "receipt") from error

    def place(path: str | os.PathLike[str]) -> Path:
        target = sidecar_path(path)
        refuse_taken(target, overwrite=overwrite)
        try:
            publish(part, target, overwrite=overwrite)
        except OSError as error:
            raise output_error(error, target) from error
        return target

    try:
        try:
            part.write_bytes(data)
        except OSError as error:
            raise output_error(error, folder / "receipt") from error
        yield place
    finally:
        discard(part)


def read_receipt(path: str | os.PathLike[str]) -> dict[str, Any]:
    """The receipt of a file that cygnet made: from inside it, or from the sidecar if there is none inside.

    ``path`` may also be the sidecar itself. Raises MediaError if there is no receipt or it cannot be read; a receipt
    that is there but damaged is never passed over for another.
    """
    place = Path(path)
    name = shorten(place.name)
    if place.suffix.lower() == ".json" and place.is_file():
        return _from_sidecar(place)
    beside = sidecar_path(place)
    if not place.exists() and beside.is_file():
        return _from_sidecar(beside)
    inside = read_metadata(place).get(RECEIPT_KEY)
    if inside is not None:
        return _from_json(inside, f"the receipt in {name!r}")
    if beside.is_file():
        return _from_sidecar(beside)
    raise MediaError(
        f"{name!r} carries no receipt and there is no {shorten(beside.name)!r} beside it; "
        "it was not made by cygnet, or another program rewrote it"
    )


def _from_sidecar(place: Path) -> dict[str, Any]:
    with open_regular(place, max_bytes=MAX_RECEIPT_BYTES) as file:
        data = file.read()
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise MediaError(f"the receipt {shorten(place.name)!r} is damaged: it is not UTF-8 text") from error
    return _from_json(text, f"the receipt {shorten(place.name)!r}")


def _from_json(text: str, what: str) -> dict[str, Any]:
    try:
        receipt = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise MediaError(f"{what} is damaged: it is not JSON that can be read") from error
    if not isinstance(receipt, dict) or RECEIPT_KEY not in receipt:
        raise MediaError(f"{what} is no receipt of cygnet: it has no {RECEIPT_KEY!r}")
    if receipt[RECEIPT_KEY] != RECEIPT_VERSION:
        raise MediaError(
            f"{what} has version {shorten(str(receipt[RECEIPT_KEY]))}; this cygnet reads version {RECEIPT_VERSION}: "
            "install the version that wrote it"
        )
    return receipt


def _to_json(receipt: Mapping[str, Any], *, indent: int | None) -> str:
    if RECEIPT_KEY not in receipt:
        raise RequestError(f"a receipt needs {RECEIPT_KEY!r}, the version of its form", field="receipt")
    try:
        text = json.dumps(dict(receipt), allow_nan=False, indent=indent)
    except (TypeError, ValueError, RecursionError) as error:
        raise RequestError(f"the receipt cannot be written as JSON: {error}", field="receipt") from error
    if len(text) > MAX_RECEIPT_BYTES:
        raise RequestError(f"the receipt has {len(text):,} bytes; at most {MAX_RECEIPT_BYTES:,}", field="receipt")
    return text
