"""What a folder of weights holds: an official repository, a Diffusers pipeline, or single files side by side."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from cygnet.checkpoints.layouts import COMPONENT_WORDS, recognise
from cygnet.checkpoints.open import PYTORCH_SUFFIXES, open_weights, weight_units
from cygnet.checkpoints.weight_file import printable, shown
from cygnet.errors import ModelNotFoundError, UnknownLayoutError, WeightFileError
from cygnet.types import ComponentName

FolderKind = Literal["diffusers", "official", "flat"]

DIFFUSERS_FOLDERS: dict[str, ComponentName] = {
    "transformer": "dit",
    "vae": "vae",
    "text_encoder": "text_encoder",
    "image_encoder": "image_encoder",
}
TOKENIZER_FILES = ("tokenizer.json", "spiece.model")
MAX_UNITS = 64


@dataclass(frozen=True)
class PipelineFolder:
    """Where each component of a folder is, and the tokenizer's folder if there is one.

    ``skipped`` names weight files that are no component of Wan 2.1, with the reason.
    """

    path: Path
    kind: FolderKind
    components: dict[ComponentName, Path]
    tokenizer: Path | None
    skipped: dict[str, str]


def resolve_pipeline_folder(path: Path | str) -> PipelineFolder:
    """Find the components of a folder: Diffusers subfolders, or files told apart by their headers.

    Raises ``ModelNotFoundError`` if ``path`` is no folder or holds no component, and ``WeightFileError`` if it holds
    two of one kind, so that one must be chosen.
    """
    folder = Path(path)
    if not folder.is_dir():
        raise ModelNotFoundError(f"{shown(folder)} is not a folder; check the path")
    if is_diffusers_pipeline(folder):
        components = {
            name: folder / subfolder for subfolder, name in DIFFUSERS_FOLDERS.items() if (folder / subfolder).is_dir()
        }
        return PipelineFolder(folder, "diffusers", components, _tokenizer_folder(folder), {})
    components, skipped = _by_content(folder)
    if not components:
        reasons = "; ".join(f"{name}: {reason}" for name, reason in list(skipped.items())[:3])
        raise ModelNotFoundError(f"folder {shown(folder)} holds no component of Wan 2.1. {reasons}".rstrip(" ."))
    official = any(unit.name.endswith(PYTORCH_SUFFIXES) for unit in components.values())
    return PipelineFolder(folder, "official" if official else "flat", components, _tokenizer_folder(folder), skipped)


def component_path(path: Path, component: ComponentName | None) -> Path:
    """Where ``component`` lies: ``path`` itself, or the part of the pipeline folder ``path`` that holds it."""
    if component is None or not path.is_dir():
        return path
    if not is_diffusers_pipeline(path):
        units = weight_units(path)
        if len(units) <= 1:
            return path
    folder = resolve_pipeline_folder(path)
    if component not in folder.components:
        present = ", ".join(COMPONENT_WORDS[name] for name in folder.components) or "none"
        raise ModelNotFoundError(
            f"folder {shown(path)} has no {COMPONENT_WORDS[component].split(' ', 1)[1]}; it has: {present}"
        )
    return folder.components[component]


def is_diffusers_pipeline(folder: Path) -> bool:
    """Whether ``folder`` has the subfolders of a Diffusers pipeline."""
    return (folder / "model_index.json").is_file() or (folder / "transformer").is_dir()


def _by_content(folder: Path) -> tuple[dict[ComponentName, Path], dict[str, str]]:
    units = weight_units(folder)
    if len(units) > MAX_UNITS:
        raise WeightFileError(f"folder {shown(folder)} holds {len(units)} weight files; name the ones to use")
    found: dict[ComponentName, Path] = {}
    skipped: dict[str, str] = {}
    for unit in units:
        try:
            parts = recognise(open_weights(unit).tensors)
        except UnknownLayoutError as error:
            skipped[printable(unit.name)] = str(error)
            continue
        for part in parts:
            if part.component in found:
                raise WeightFileError(
                    f"folder {shown(folder)} holds {COMPONENT_WORDS[part.component]} twice: "
                    f"{shown(found[part.component])} and {shown(unit)}; name the one to use"
                )
            found[part.component] = unit
    return found, skipped


def _tokenizer_folder(folder: Path) -> Path | None:
    for candidate in (folder / "tokenizer", folder / "google" / "umt5-xxl", folder):
        if any((candidate / name).is_file() for name in TOKENIZER_FILES):
            return candidate
    return None
