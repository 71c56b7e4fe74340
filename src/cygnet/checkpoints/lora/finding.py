"""Where a LoRA is that was named: a path, or a file of that name in the folders that people keep LoRAs in."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from cygnet.checkpoints.discovery import find_models, model_folders
from cygnet.checkpoints.weight_file import printable
from cygnet.errors import ModelNotFoundError


def find_lora(name: Path | str, places: Sequence[Path | str] = ()) -> Path:
    """``name`` if there is such a file or folder, else the file of that name in a ``loras`` folder.

    The folders are those of :func:`~cygnet.checkpoints.discovery.model_folders`; ``name`` may leave out folders below
    them and the suffix. Raises ``ModelNotFoundError`` if there is none, or files of that name in several subfolders.
    """
    path = Path(name)
    if path.exists() or path.is_absolute():
        return path
    wanted = path.as_posix()
    listed = find_models(model_folders(places), "loras")
    for way in range(3):
        matches = [it for it in listed if (it.name, it.path.name, it.path.stem)[way] == wanted]
        if len({found.name for found in matches}) > 1:
            several = ", ".join(printable(found.name) for found in matches[:5])
            raise ModelNotFoundError(f"{printable(wanted)} is the name of several LoRAs: {several}; name one of them")
        if matches:
            return matches[0].path
    raise ModelNotFoundError(
        f"{printable(wanted)} does not exist, neither here nor in a loras folder; check the path, or name the folder "
        "that holds loras with --model-paths"
    )


def loras_called(name: str, places: Sequence[Path | str] = ()) -> list[Path]:
    """Every file of exactly this name in the ``loras`` folders of :func:`find_lora`, at any depth."""
    return [it.path for it in find_models(model_folders(places), "loras") if it.path.name == name]
