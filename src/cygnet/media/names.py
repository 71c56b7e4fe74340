"""File names: labels made safe, and names that are not taken yet."""

from __future__ import annotations

import os
import re
import unicodedata
from pathlib import Path

from cygnet.errors import OutputError, RequestError
from cygnet.media.files import output_error, shorten

MAX_LABEL_CHARACTERS = 80
MAX_LABEL_BYTES = 120  # leaves room for a counter, a suffix and ".json" below the usual limit of 255 bytes
_MAX_TRIES = 100_000

# Names that Windows keeps for devices, whatever follows the first dot.
_DEVICE = re.compile(r"(?i)^(con|prn|aux|nul|com[0-9¹²³]|lpt[0-9¹²³]|conin\$|conout\$|clock\$)$")


def safe_label(text: str, fallback: str = "video") -> str:
    """Turn free text (a prompt, a client's label) into a stem that is a harmless file name everywhere.

    Letters, digits and their accents stay, in any script; every run of anything else becomes one ``-``. The result
    never starts or ends with a dot or dash, is no device name of Windows, holds no separator, and is at most 80
    characters and 120 UTF-8 bytes long. Text with nothing to keep (only emoji, only dots) gives ``fallback``. Equal
    text gives an equal label; different texts may share one, so pair it with :func:`unused_path`.
    """
    kept: list[str] = []
    for character in unicodedata.normalize("NFC", text):
        kind = unicodedata.category(character)
        accent = kind.startswith("M") and bool(kept) and kept[-1] not in "-."
        kept.append(character if kind[0] in "LN" or accent or character in "_." else "-")
    label = re.sub(r"[-.]*-[-.]*", "-", "".join(kept))
    label = re.sub(r"\.{2,}", ".", label)[:MAX_LABEL_CHARACTERS]
    label = label.encode("utf-8")[:MAX_LABEL_BYTES].decode("utf-8", "ignore").strip("-._")
    if not label:
        return fallback
    if _DEVICE.match(label.split(".")[0]):
        return f"{fallback}-{label}"
    return label


def unused_path(folder: str | os.PathLike[str], stem: str, suffix: str) -> Path:
    """Reserve ``folder/stem+suffix``, or the first of ``stem-2``, ``stem-3``, … that is free, and return its path.

    The name is reserved by creating an empty file exclusively, so two jobs with one label never share it. A writer
    replaces the empty file when the result is whole and removes it when there is none (see
    :func:`cygnet.media.video.open_writer`); a caller that never gets that far calls :func:`release`. For ``.png`` the
    folder that numbered frames would go to must be free as well.

    Raises RequestError if ``stem`` or ``suffix`` holds a separator (clean it with :func:`safe_label`), OutputError if
    the folder cannot be written to.
    """
    if not stem or stem in {".", ".."} or any(c in "/\\\0" for c in stem + suffix):
        raise RequestError(f"{shorten(stem)!r} is not a plain file name; clean it with safe_label", field="stem")
    place = Path(folder)
    for count in range(1, _MAX_TRIES):
        name = stem if count == 1 else f"{stem}-{count}"
        path = place / f"{name}{suffix}"
        if suffix.lower() == ".png" and os.path.lexists(place / name):
            continue
        try:
            os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))
        except FileExistsError:
            continue
        except OSError as error:
            raise output_error(error, path) from error
        return path
    raise OutputError(f"{_MAX_TRIES} files named {shorten(stem)!r} exist already; choose another label or folder")


def release(path: str | os.PathLike[str]) -> None:
    """Give back a name from :func:`unused_path` that was not used; a file with content is left alone."""
    place = Path(path)
    if place.is_file() and not place.is_symlink() and place.stat().st_size == 0:
        place.unlink(missing_ok=True)
