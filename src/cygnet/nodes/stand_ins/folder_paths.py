"""``folder_paths``: where models, inputs and results lie."""

from __future__ import annotations

import mimetypes
import os
from collections.abc import Collection, Iterable
from pathlib import Path
from typing import Any

from cygnet.errors import RequestError
from cygnet.graph.folders import annotated, can_be_named, inside, relative_name
from cygnet.nodes.stand_ins.absent import absent
from cygnet.nodes.workshop import WEIGHT_SUFFIXES, Workshop

_OLDER = {"unet": "diffusion_models", "clip": "text_encoders"}
_CONTENTS = ("image", "video", "audio", "model")
_MODELS = (".glb", ".gltf", ".obj", ".fbx", ".stl", ".ply")  # three-dimensional ones, of which mimetypes knows few


def map_legacy(folder_name: str) -> str:
    """Today's name of a kind of models."""
    return _OLDER.get(folder_name, folder_name)


def recursive_search(
    directory: str, excluded_dir_names: Collection[str] | None = None
) -> tuple[list[str], dict[str, float]]:
    """Files below a folder, by their names from there, and when each folder was changed; nothing of one that is not."""
    changed: dict[str, float] = {}
    found = []
    for place, folders, names in os.walk(directory, followlinks=True):
        here = os.path.realpath(place)
        if here in {os.path.realpath(it) for it in changed}:  # a link led back
            folders[:] = []
            continue
        folders[:] = sorted(it for it in folders if it not in (excluded_dir_names or ()))
        changed[place] = os.path.getmtime(place)
        found += [os.path.relpath(os.path.join(place, name), directory) for name in sorted(names)]
    return found, changed


def filter_files_extensions(files: Iterable[str], extensions: Iterable[str]) -> list[str]:
    """Those with one of the ``extensions``; all if there are none."""
    allowed = {it.lower() for it in extensions}
    return sorted(it for it in files if not allowed or Path(it).suffix.lower() in allowed)


def filter_files_content_types(files: Iterable[str], content_types: Iterable[str]) -> list[str]:
    """Those whose names say that they hold an ``image``, a ``video``, ``audio`` or a three-dimensional ``model``."""
    wanted = set(content_types)
    if unknown := wanted - set(_CONTENTS):
        raise ValueError(f"{sorted(unknown)} are no kinds of contents; there are {', '.join(_CONTENTS)}")

    def kind(name: str) -> str:
        if name.lower().endswith(_MODELS):
            return "model"
        return (mimetypes.guess_type(name)[0] or {".webp": "image"}.get(Path(name).suffix.lower(), "")).split("/")[0]

    return [it for it in files if kind(it) in wanted]


def names(shop: Workshop) -> dict[str, Any]:
    """What the module holds."""
    folders = shop.folders
    kinds = {kind: (list(map(str, roots)), set(WEIGHT_SUFFIXES)) for kind, roots in shop.models.items()}
    base = folders.output.parent

    def get_folder_paths(kind: str) -> list[str]:
        kind = map_legacy(kind)
        if kind not in kinds:
            raise KeyError(f"there is no kind of models {kind!r}; there are {', '.join(sorted(kinds))}")
        return list(kinds[kind][0])

    def get_full_path(kind: str, name: str) -> str | None:
        kind = map_legacy(kind)
        for root in map(Path, kinds.get(kind, ([], set()))[0]):
            path = root / relative_name(name)  # a client's text; that a model is a link elsewhere is its owner's doing
            if path.is_file():
                return str(path)
        found = shop.embedded.get(kind, {}).get(name)
        return None if found is None else str(found)

    def get_full_path_or_raise(kind: str, name: str) -> str:
        if (found := get_full_path(kind, name)) is None:
            raise FileNotFoundError(f"there is no {name!r} among the {kind}")
        return found

    def get_filename_list(kind: str) -> list[str]:
        kind = map_legacy(kind)
        roots, suffixes = kinds.get(kind, ([], set()))
        found = {
            path.relative_to(root).as_posix()
            for root in map(Path, roots)
            if root.is_dir()
            for path in root.rglob("*")
            if path.is_file() and (not suffixes or path.suffix.lower() in suffixes) and can_be_named(str(path))
        }
        return sorted(found | set(shop.embedded.get(kind, {})))

    def get_annotated_filepath(name: str, default_dir: str | None = None) -> str:
        if default_dir is not None and annotated(name, "input")[0] == name:
            return str(inside(Path(default_dir), name))
        return str(folders.locate(name))

    def annotated_filepath(name: str) -> tuple[str, str | None]:
        plain, kind = annotated(name, "input")
        return plain, None if plain == name else str(folders.root(kind))

    def exists_annotated_filepath(name: str) -> bool:
        plain, kind = annotated(name, "input")
        try:
            return inside(folders.root(kind), plain).is_file()
        except RequestError:
            return False

    def get_save_image_path(
        prefix: str, output_dir: str, image_width: int = 0, image_height: int = 0
    ) -> tuple[str, str, int, str, str]:
        kind: Any = "temp" if Path(output_dir) == folders.temp else "output"
        path, saved = folders.next_file(prefix, ".x", kind, width=image_width, height=image_height)
        stem, _, counter = path.name.removesuffix("_.x").rpartition("_")
        return str(path.parent), stem, int(counter), saved.subfolder, prefix

    def add_model_folder_path(kind: str, path: str, is_default: bool = False) -> None:
        roots, _ = kinds.setdefault(map_legacy(kind), ([], set()))
        if path in roots:
            roots.remove(path)
        roots.insert(0 if is_default else len(roots), path)

    def get_input_subfolders() -> list[str]:
        found = (path.relative_to(folders.input).as_posix() for path in folders.input.rglob("*") if path.is_dir())
        return sorted(filter(can_be_named, found))

    moving = "set_output_directory set_input_directory set_temp_directory set_user_directory"
    return {
        **absent("folder_paths", moving, "folders are chosen when the studio is started"),
        "base_path": str(base),
        "models_dir": str(base / "models"),
        "output_directory": str(folders.output),
        "input_directory": str(folders.input),
        "temp_directory": str(folders.temp),
        "user_directory": str(base / "user"),
        "folder_names_and_paths": kinds,
        "filename_list_cache": {},  # files are listed anew each time
        "supported_pt_extensions": set(WEIGHT_SUFFIXES),
        "get_input_directory": lambda: str(folders.input),
        "get_output_directory": lambda: str(folders.output),
        "get_temp_directory": lambda: str(folders.temp),
        "get_directory_by_type": lambda kind: str(folders.root(kind)),
        "get_user_directory": lambda: str(base / "user"),
        "get_input_subfolders": get_input_subfolders,
        "get_folder_paths": get_folder_paths,
        "get_filename_list": get_filename_list,
        "get_full_path": get_full_path,
        "get_full_path_or_raise": get_full_path_or_raise,
        "get_annotated_filepath": get_annotated_filepath,
        "annotated_filepath": annotated_filepath,
        "exists_annotated_filepath": exists_annotated_filepath,
        "get_save_image_path": get_save_image_path,
        "add_model_folder_path": add_model_folder_path,
        "filter_files_extensions": filter_files_extensions,
        "filter_files_content_types": filter_files_content_types,
        "recursive_search": recursive_search,
        "map_legacy": map_legacy,
    }
