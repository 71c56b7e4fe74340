"""Find weight files in folders that people already have: ComfyUI's, and those that ``extra_model_paths.yaml`` names.

A folder has a kind (``diffusion_models``, ``vae``, …), which is how ComfyUI tells files apart; what a file really is
says its header, see :mod:`cygnet.checkpoints.inspect`.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml

from cygnet.checkpoints.open import PYTORCH_SUFFIXES, SAFETENSORS_SUFFIXES
from cygnet.checkpoints.weight_file import printable, read_small_file, shown
from cygnet.errors import RequestError, WeightFileError

FOLDER_NAMES: Mapping[str, tuple[str, ...]] = {
    "diffusion_models": ("diffusion_models", "unet"),
    "text_encoders": ("text_encoders", "clip"),
    "clip_vision": ("clip_vision",),
    "vae": ("vae",),
    "loras": ("loras",),
    "checkpoints": ("checkpoints",),
    "vae_approx": ("vae_approx",),
    "upscale_models": ("upscale_models",),
    "controlnet": ("controlnet",),
    "embeddings": ("embeddings",),
}
"""Kind of model → the folder names that hold it, today's name first; older installations use the second."""

MODEL_SUFFIXES = (*SAFETENSORS_SUFFIXES, *PYTORCH_SUFFIXES, ".gguf")
MODEL_PATHS_VARIABLE = "CYGNET_MODEL_PATHS"
HOME_VARIABLE = "CYGNET_HOME"
PATHS_FILE = "extra_model_paths.yaml"
USUAL_PLACES = ("ComfyUI", "comfy/ComfyUI", "Documents/ComfyUI")
"""Where ComfyUI's installers put it, relative to the home folder."""

MAX_PATHS_FILE_BYTES = 256 * 1024
MAX_BRACKETS = 200
MAX_FOLDERS = 1_000
MAX_FILES = 20_000
MAX_DEPTH = 8

_KIND_OF = {name: kind for kind, names in FOLDER_NAMES.items() for name in names}


@dataclass(frozen=True, kw_only=True)
class ModelFolder:
    """A folder to look into for one kind of model; a default one comes first and is where downloads go."""

    kind: str
    path: Path
    is_default: bool = False


@dataclass(frozen=True, kw_only=True)
class FoundModel:
    """A candidate file: its kind, its name below the folder with ``/``, where it is and its size in bytes."""

    kind: str
    name: str
    path: Path
    bytes: int


def home_folder() -> Path:
    """cygnet's own folder: ``CYGNET_HOME``, else the user's data folder of this system. It need not exist."""
    if chosen := os.environ.get(HOME_VARIABLE):
        return expanded(chosen)
    import platformdirs

    return Path(platformdirs.user_data_dir("cygnet", appauthor=False))


def config_folder() -> Path:
    """Where settings lie: ``CYGNET_HOME``, else the user's configuration folder of this system. It need not exist."""
    if chosen := os.environ.get(HOME_VARIABLE):
        return expanded(chosen)
    import platformdirs

    return Path(platformdirs.user_config_dir("cygnet", appauthor=False))


# Folders -------------------------------------------------------------------------------------------------------------


def model_folders(places: Sequence[Path | str] = ()) -> list[ModelFolder]:
    """Every folder to look into, in the order of looking.

    Those that an ``extra_model_paths.yaml`` makes the default come first, whichever file it is; else, and among them,
    ``places`` (base folders in ComfyUI's layout, or ``extra_model_paths.yaml`` files) come first, then those that the
    variable ``CYGNET_MODEL_PATHS`` lists, then cygnet's own ``extra_model_paths.yaml`` and models folder, then ComfyUI
    where its installers put it. A place that was asked for and is not there is a RequestError; the usual ones may miss.
    """
    named = [*places, *filter(None, os.environ.get(MODEL_PATHS_VARIABLE, "").split(os.pathsep))]
    folders: list[ModelFolder] = []
    for place in named:
        path = Path(os.path.expanduser(place))
        if path.is_dir():
            folders += comfy_folders(path)
        elif path.suffix.lower() in {".yaml", ".yml"} and path.exists():
            folders += read_extra_model_paths(path)
        else:
            raise RequestError(
                f"{shown(path)} is neither a folder nor a .yaml file; give ComfyUI's base folder, its models folder or "
                f"an {PATHS_FILE} (flag, or {MODEL_PATHS_VARIABLE})",
                field="model_paths",
            )
    own_file = config_folder() / PATHS_FILE
    if own_file.is_file():
        folders += read_extra_model_paths(own_file)
    usual = (home_folder(), *(expanded("~") / name for name in USUAL_PLACES))
    for base in usual:
        folders += comfy_folders(base)
        if (base / PATHS_FILE).is_file() and base / PATHS_FILE != own_file:
            folders += read_extra_model_paths(base / PATHS_FILE)
    return sorted(_once(folders), key=lambda folder: not folder.is_default)


def comfy_folders(base: Path) -> list[ModelFolder]:
    """The model folders below ``base``, which is ComfyUI's base folder or its ``models`` folder; those that exist."""
    root = base / "models" if (base / "models").is_dir() else base
    return [
        ModelFolder(kind=kind, path=root / name)
        for kind, names in FOLDER_NAMES.items()
        for name in names
        if (root / name).is_dir()
    ]


def read_extra_model_paths(path: Path) -> list[ModelFolder]:
    """The folders that an ``extra_model_paths.yaml`` names, those of default sections first.

    Top-level names are free; each holds an optional ``base_path``, an optional ``is_default`` and one entry per kind
    with a folder, or several on lines of their own. ``~`` and variables are expanded; relative paths count from
    ``base_path``, and that from the file's folder. Folders need not exist. Raises WeightFileError if the file cannot be
    read or has another form.
    """
    sections = _parse(path)
    folders: list[ModelFolder] = []
    for title, section in sections.items():
        if section is None:
            continue
        where = f"section {printable(str(title))!r} of {shown(path)}"
        if not isinstance(section, dict):
            raise WeightFileError(f"{where} is no list of 'kind: folder' lines")
        folders += _section(section, path.absolute().parent, where)
        if len(folders) > MAX_FOLDERS:
            raise WeightFileError(f"{shown(path)} names more than {MAX_FOLDERS:,} folders")
    return sorted(_once(folders), key=lambda folder: not folder.is_default)


def _section(section: Mapping[Any, Any], beside: Path, where: str) -> Iterator[ModelFolder]:
    base = beside
    if section.get("base_path") is not None:
        base = beside / expanded(_text(section["base_path"], where, "base_path"))
    is_default = section.get("is_default", False)
    if not isinstance(is_default, bool):
        raise WeightFileError(f"is_default in {where} is {printable(str(is_default))!r}; write true or false")
    for key, value in section.items():
        if key in ("base_path", "is_default") or value is None:
            continue
        kind = _text(key, where, "a kind")
        for line in _text(value, where, kind).splitlines():
            if line.strip():
                folder = base / expanded(line.strip())
                yield ModelFolder(kind=_KIND_OF.get(kind, kind), path=folder, is_default=is_default)


def _text(value: object, where: str, what: str) -> str:
    if not isinstance(value, str) or "\0" in value:
        raise WeightFileError(f"{printable(what)} in {where} is no text: {printable(str(value))!r}")
    return value


def expanded(text: str) -> Path:
    """``text`` as a path, with ``~`` and variables filled in where they are known (a container may have no home)."""
    return Path(os.path.expanduser(os.path.expandvars(text)))


class _UniqueKeyLoader(yaml.SafeLoader):
    """Plain values only, and no name twice: of two equal sections one would vanish without a word."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen: set[str] = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode):
                if key.value in seen:
                    raise yaml.YAMLError(f"{printable(str(key.value))!r} is there twice")
                seen.add(key.value)
        return super().construct_mapping(node, deep)


def _parse(path: Path) -> dict[Any, Any]:
    data = read_small_file(path, MAX_PATHS_FILE_BYTES)
    if data.count(b"[") + data.count(b"{") > MAX_BRACKETS:  # the parser takes seconds over deep nesting, then fails
        raise WeightFileError(f"{shown(path)} is no YAML that can be read: too many brackets")
    try:
        content = yaml.load(data, _UniqueKeyLoader)
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        reason = "nested too deeply" if isinstance(error, RecursionError) else " ".join(str(error).split())
        raise WeightFileError(f"{shown(path)} is no YAML that can be read: {printable(reason)[:300]}") from error
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise WeightFileError(f"{shown(path)} has no named sections; see ComfyUI's {PATHS_FILE}.example for the form")
    return content


def _once(folders: Iterable[ModelFolder]) -> list[ModelFolder]:
    unique: dict[tuple[str, Path], ModelFolder] = {}
    for folder in folders:
        key = (folder.kind, Path(os.path.abspath(folder.path)))
        known = unique.get(key)
        unique[key] = folder if known is None else replace(known, is_default=known.is_default or folder.is_default)
    return list(unique.values())


# Files ---------------------------------------------------------------------------------------------------------------


def find_models(folders: Iterable[ModelFolder], kind: str | None = None) -> list[FoundModel]:
    """The weight files in ``folders``, of one ``kind`` if given, in the order of the folders, then by name.

    Subfolders are entered (links too, but never in circles), hidden ones are not. Only regular files count and none is
    opened. A folder that does not exist or may not be read holds nothing. Raises WeightFileError beyond 20,000 files.
    """
    found: list[FoundModel] = []
    for folder in folders:
        if kind is None or folder.kind == kind:
            found += _files_in(folder)
            if len(found) > MAX_FILES:
                raise WeightFileError(
                    f"the model folders hold more than {MAX_FILES:,} weight files; name fewer folders"
                )
    return found


def _files_in(folder: ModelFolder) -> list[FoundModel]:
    found: list[FoundModel] = []
    entered = {os.path.realpath(folder.path)}
    for place, subfolders, names in os.walk(folder.path, followlinks=True):
        depth = len(Path(place).relative_to(folder.path).parts)
        subfolders[:] = (
            [] if depth >= MAX_DEPTH else [name for name in sorted(subfolders) if _enter(place, name, entered)]
        )
        for name in sorted(names):
            if name.lower().endswith(MODEL_SUFFIXES) and (size := _regular_size(Path(place, name))) is not None:
                path = Path(place, name)
                relative = path.relative_to(folder.path).as_posix()
                found.append(FoundModel(kind=folder.kind, name=relative, path=path, bytes=size))
        if len(found) > MAX_FILES:
            break
    return found


def _enter(place: str, name: str, entered: set[str]) -> bool:
    real = os.path.realpath(os.path.join(place, name))
    if name.startswith(".") or real in entered:
        return False
    entered.add(real)
    return True


def _regular_size(path: Path) -> int | None:
    try:
        status = path.stat()
    except OSError:  # a broken link, or a file that vanished while looking
        return None
    return status.st_size if stat.S_ISREG(status.st_mode) else None
