"""The models that have a name: what they are, which files hold them, and where these are on this machine.

File names are those of the official, Diffusers and ComfyUI repositories on the Hugging Face hub; sizes follow from
parameter counts and types, so they leave out headers (well below 1 %).
"""

from __future__ import annotations

import difflib
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Literal

from cygnet.checkpoints.discovery import FoundModel, expanded, find_models, model_folders
from cygnet.checkpoints.folders import DIFFUSERS_FOLDERS, TOKENIZER_FILES
from cygnet.checkpoints.layouts import COMPONENT_WORDS
from cygnet.checkpoints.open import INDEX_SUFFIX, weight_units
from cygnet.checkpoints.weight_file import printable
from cygnet.errors import CygnetError, ModelNotFoundError, RequestError
from cygnet.types import ComponentName

SourceName = Literal["official", "comfy", "diffusers"]
Role = ComponentName | Literal["tokenizer"]
Task = Literal["t2v", "i2v", "flf2v"]

EMBEDDED = Path(__file__).parent.parent / "weights" / "tiny"
"""The trained tiny model that comes with the package."""

COMFY_REPO = "Comfy-Org/Wan_2.1_ComfyUI_repackaged"
COMFY_PREFIX = "split_files/"
LICENCE = "Apache-2.0"

SERVES: Mapping[Task, tuple[str, ...]] = {
    "t2v": ("text-to-video", "text-to-image", "video-to-video"),
    "i2v": ("image-to-video",),
    "flf2v": ("first-and-last-frame-to-video",),
}


@dataclass(frozen=True, kw_only=True)
class RemoteFile:
    """A file of a repository, or several by a pattern with ``*``; ``bytes`` is roughly what they are together."""

    path: str
    role: Role
    bytes: int


@dataclass(frozen=True, kw_only=True)
class Source:
    """One place to fetch a model from. ``files`` are needed whatever ``choices`` (stored type → files) is made."""

    name: SourceName
    repo: str
    files: tuple[RemoteFile, ...]
    choices: Mapping[str, tuple[RemoteFile, ...]]

    @property
    def default_dtype(self) -> str:
        """The stored type that is fetched unless another is asked for."""
        return next(iter(self.choices))

    def select(self, dtype: str | None = None) -> tuple[RemoteFile, ...]:
        """All files for the stored type ``dtype``; RequestError if this source does not have it."""
        wanted = dtype or self.default_dtype
        if wanted not in self.choices:
            raise RequestError(
                f"{self.repo} has no {printable(wanted)} files; it has: {', '.join(self.choices)}", field="dtype"
            )
        return (*self.choices[wanted], *self.files)

    def bytes(self, dtype: str | None = None) -> int:
        """Roughly what a download of everything takes."""
        return sum(file.bytes for file in self.select(dtype))


@dataclass(frozen=True, kw_only=True)
class Entry:
    """A named model. ``parameters`` counts its DiT (None where the recipe may still change it).

    ``local_names`` are patterns of file names that single-file collections use for its DiT.
    """

    name: str
    title: str
    task: Task
    parameters: int | None
    components: tuple[ComponentName, ...]
    sources: tuple[Source, ...] = ()
    local_names: tuple[str, ...] = ()
    embedded: Mapping[ComponentName, str] | None = None
    licence: str = LICENCE

    @property
    def serves(self) -> tuple[str, ...]:
        """What can be asked of it."""
        return SERVES[self.task]

    def source(self, name: str | None = None) -> Source:
        """The source of that name, or the first; RequestError if there is none."""
        if not self.sources:
            raise RequestError(f"{self.name} comes with cygnet; there is nothing to fetch", field="name")
        for source in self.sources:
            if name in (None, source.name):
                return source
        known = ", ".join(source.name for source in self.sources)
        raise RequestError(f"source is {printable(str(name))!r}; {self.name} has: {known}", field="source")


# The entries ---------------------------------------------------------------------------------------------------------

_T5, _VAE, _CLIP, _CLIP_VISUAL = 5_680_910_336, 126_892_531, 1_193_014_785, 632_076_800
_TOKENIZER_BYTES = 21_000_000
_SHARED_WITH_ALL: tuple[ComponentName, ...] = ("vae", "text_encoder", "image_encoder")
"""Equal in every published model, so they are taken from wherever they are."""

_LOCAL_NAMES: Mapping[ComponentName, tuple[str, ...]] = {
    "vae": ("wan_2.1_vae*", "Wan2.1_VAE*", "Wan2_1_VAE_*"),
    "text_encoder": ("umt5_xxl_*",),
    "image_encoder": ("clip_vision_h*", "open-clip-xlm-roberta-large-vit-huge-14*"),
}
_FOLDER_OF: Mapping[ComponentName, tuple[str, ...]] = {
    "dit": ("diffusion_models",),
    "vae": ("vae",),
    "text_encoder": ("text_encoders",),
    "image_encoder": ("clip_vision", "text_encoders"),
}
_TYPE_ORDER = ("bf16", "fp16", "fp32", "fp8_scaled", "fp8_e4m3fn", "fp8")


def _official(repo: str, parameters: int, *, clip: bool) -> Source:
    files = [
        RemoteFile(path="models_t5_umt5-xxl-enc-bf16.pth", role="text_encoder", bytes=2 * _T5),
        RemoteFile(path="google/umt5-xxl/*", role="tokenizer", bytes=_TOKENIZER_BYTES),
        RemoteFile(path="Wan2.1_VAE.pth", role="vae", bytes=4 * _VAE),
    ]
    if clip:
        name = "models_clip_open-clip-xlm-roberta-large-vit-huge-14.pth"
        files.append(RemoteFile(path=name, role="image_encoder", bytes=4 * _CLIP))
    dit = (
        RemoteFile(path="diffusion_pytorch_model*", role="dit", bytes=4 * parameters),
        RemoteFile(path="config.json", role="dit", bytes=1_000),
    )
    return Source(name="official", repo=repo, files=tuple(files), choices={"fp32": dit})


def _diffusers(repo: str, parameters: int, *, clip: bool) -> Source:
    files = [
        RemoteFile(path="model_index.json", role="dit", bytes=1_000),
        RemoteFile(path="scheduler/*", role="dit", bytes=1_000),
        RemoteFile(path="text_encoder/*", role="text_encoder", bytes=2 * _T5),
        RemoteFile(path="tokenizer/*", role="tokenizer", bytes=_TOKENIZER_BYTES),
        RemoteFile(path="vae/*", role="vae", bytes=4 * _VAE),
    ]
    if clip:
        files.append(RemoteFile(path="image_encoder/*", role="image_encoder", bytes=2 * _CLIP_VISUAL))
        files.append(RemoteFile(path="image_processor/*", role="image_encoder", bytes=10_000_000))
    dit = (RemoteFile(path="transformer/*", role="dit", bytes=4 * parameters),)
    return Source(name="diffusers", repo=repo, files=tuple(files), choices={"as published": dit})


def _comfy(stem: str, parameters: int, dtypes: Sequence[str], *, clip: bool) -> Source:
    def file(folder: str, name: str, role: Role, size: int) -> RemoteFile:
        return RemoteFile(path=f"{COMFY_PREFIX}{folder}/{name}.safetensors", role=role, bytes=size)

    files = [file("vae", "wan_2.1_vae", "vae", 2 * _VAE)]
    if clip:
        files.append(file("clip_vision", "clip_vision_h", "image_encoder", 2 * _CLIP_VISUAL))
    full = file("text_encoders", "umt5_xxl_fp16", "text_encoder", 2 * _T5)
    small = file("text_encoders", "umt5_xxl_fp8_e4m3fn_scaled", "text_encoder", 6_735_000_000)
    choices = {
        dtype: (
            file("diffusion_models", f"{stem}_{dtype}", "dit", parameters * (1 if dtype.startswith("fp8") else 2)),
            small if dtype.startswith("fp8") else full,
        )
        for dtype in dtypes
    }
    return Source(name="comfy", repo=COMFY_REPO, files=tuple(files), choices=choices)


def _published(
    name: str, title: str, task: Task, parameters: int, repo: str, diffusers: str, stem: str, dtypes: Sequence[str]
) -> Entry:
    clip = task != "t2v"
    return Entry(
        name=name,
        title=title,
        task=task,
        parameters=parameters,
        components=("dit", "vae", "text_encoder", *(("image_encoder",) if clip else ())),
        sources=(
            _official(repo, parameters, clip=clip),
            _comfy(stem, parameters, dtypes, clip=clip),
            _diffusers(diffusers, parameters, clip=clip),
        ),
        local_names=(
            f"{stem}_*",
            repo.removeprefix("Wan-AI/").replace("Wan2.1-", "Wan2_1-").replace("-1.3B", "-1_3B") + "_*",
        ),
    )


def _tiny(name: str, title: str, task: Task, dit: str, *, clip: bool) -> Entry:
    files: dict[ComponentName, str] = {"dit": dit, "vae": "vae.safetensors", "text_encoder": "text_encoder.safetensors"}
    if clip:
        files["image_encoder"] = "image_encoder.safetensors"
    return Entry(name=name, title=title, task=task, parameters=None, components=tuple(files), embedded=files)


_BOTH, _ALL = ("bf16", "fp16"), ("bf16", "fp16", "fp8_scaled", "fp8_e4m3fn")

ENTRIES: tuple[Entry, ...] = (
    _tiny("tiny-t2v", "embedded text-to-video model of coloured shapes", "t2v", "t2v.safetensors", clip=False),
    _tiny("tiny-i2v", "embedded image-to-video model of coloured shapes", "i2v", "i2v.safetensors", clip=True),
    _published("t2v-1.3b", "Wan 2.1 text-to-video 1.3B, 480p", "t2v", 1_418_996_800,
               "Wan-AI/Wan2.1-T2V-1.3B", "Wan-AI/Wan2.1-T2V-1.3B-Diffusers", "wan2.1_t2v_1.3B", _BOTH),
    _published("t2v-14b", "Wan 2.1 text-to-video 14B, 480p and 720p", "t2v", 14_288_491_584,
               "Wan-AI/Wan2.1-T2V-14B", "Wan-AI/Wan2.1-T2V-14B-Diffusers", "wan2.1_t2v_14B", _ALL),
    _published("i2v-14b-480p", "Wan 2.1 image-to-video 14B, 480p", "i2v", 16_394_878_784,
               "Wan-AI/Wan2.1-I2V-14B-480P", "Wan-AI/Wan2.1-I2V-14B-480P-Diffusers", "wan2.1_i2v_480p_14B", _ALL),
    _published("i2v-14b-720p", "Wan 2.1 image-to-video 14B, 720p", "i2v", 16_394_878_784,
               "Wan-AI/Wan2.1-I2V-14B-720P", "Wan-AI/Wan2.1-I2V-14B-720P-Diffusers", "wan2.1_i2v_720p_14B", _ALL),
    _published("flf2v-14b-720p", "Wan 2.1 first-and-last-frame-to-video 14B, 720p", "flf2v", 16_395_536_704,
               "Wan-AI/Wan2.1-FLF2V-14B-720P", "Wan-AI/Wan2.1-FLF2V-14B-720P-diffusers", "wan2.1_flf2v_720p_14B",
               ("fp16", "fp8_e4m3fn")),
)  # fmt: skip
NAMES: tuple[str, ...] = tuple(entry.name for entry in ENTRIES)


def is_name(text: str) -> bool:
    """Whether ``text`` is the name of a model here (upper and lower case are one)."""
    return text.lower() in NAMES


def entry(name: str) -> Entry:
    """The model of that name; ModelNotFoundError with the names there are otherwise."""
    for candidate in ENTRIES:
        if candidate.name == name.lower():
            return candidate
    begun = [known for known in NAMES if name and known.startswith(name.lower())]
    close = begun or difflib.get_close_matches(name.lower(), NAMES, n=1)
    hint = f"did you mean {' or '.join(close)}? " if close else ""
    raise ModelNotFoundError(f"no model is called {printable(name)!r}; {hint}names: {', '.join(NAMES)}")


# Finding them --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Presence:
    """What of a model is on this machine: component → the path to load it from, and what is not there."""

    entry: Entry
    paths: Mapping[ComponentName, Path]
    missing: tuple[ComponentName, ...]

    @property
    def complete(self) -> bool:
        """Whether it can be loaded."""
        return not self.missing


def resolve(
    name: str, *, places: Sequence[Path | str] = (), cache_folder: Path | None = None
) -> dict[ComponentName, Path]:
    """Component → the file or folder to load it from, for a model that is on this machine; never downloads.

    Looked into: the package itself, the model folders of :func:`~cygnet.checkpoints.discovery.model_folders` (with
    ``places`` first), and the shared download cache. Raises ModelNotFoundError if the name is unknown or a component is
    missing; the message says which, and what to run.
    """
    found = look_for(name, places=places, cache_folder=cache_folder)
    if found.missing:
        parts = ", ".join(COMPONENT_WORDS[part] for part in found.missing)
        if found.entry.embedded is not None:
            raise ModelNotFoundError(
                f"{found.entry.name} should come with cygnet, but this installation lacks {parts}; install cygnet again"
            )
        size = found.entry.source().bytes() / 1e9
        raise ModelNotFoundError(
            f"{found.entry.name} is not complete on this machine: {parts} missing. "
            f"Run: cygnet pull {found.entry.name} (about {size:.0f} GB), or name the files one by one"
        )
    return dict(found.paths)


def look_for(name: str, *, places: Sequence[Path | str] = (), cache_folder: Path | None = None) -> Presence:
    """What of the model called ``name`` is here; see :func:`resolve`."""
    return look_for_all([entry(name)], places=places, cache_folder=cache_folder)[0]


def look_for_all(
    entries: Iterable[Entry] = ENTRIES, *, places: Sequence[Path | str] = (), cache_folder: Path | None = None
) -> list[Presence]:
    """What of each model is here; folders are listed once for all of them."""
    listed: list[FoundModel] | None = None
    presences = []
    for model in entries:
        paths: dict[ComponentName, Path] = {}
        if model.embedded is not None:
            paths = {part: EMBEDDED / name for part, name in model.embedded.items() if (EMBEDDED / name).is_file()}
        else:
            if listed is None:
                listed = find_models(model_folders(places))
            for part in model.components:
                path = _in_folders(model, part, listed) or _in_cache(model, part, cache_folder or default_cache())
                if path is not None:
                    paths[part] = path
        missing = tuple(part for part in model.components if part not in paths)
        presences.append(Presence(entry=model, paths=paths, missing=missing))
    return presences


def _in_folders(model: Entry, part: ComponentName, listed: Sequence[FoundModel]) -> Path | None:
    patterns = model.local_names if part == "dit" else _LOCAL_NAMES[part]
    matches = [
        found
        for found in listed
        if found.kind in _FOLDER_OF[part]
        and not found.name.lower().endswith(".gguf")
        and any(fnmatchcase(found.path.name.lower(), pattern.lower()) for pattern in patterns)
    ]
    return min(matches, key=_type_rank).path if matches else None  # min keeps the first of equals: folder order


def _type_rank(found: FoundModel) -> int:
    stem = found.path.stem.lower()
    return next((rank for rank, dtype in enumerate(_TYPE_ORDER) if dtype in stem), len(_TYPE_ORDER))


def default_cache() -> Path:
    """The download cache shared with every program that uses the Hugging Face hub (``HF_HUB_CACHE``, ``HF_HOME``)."""
    if chosen := os.environ.get("HF_HUB_CACHE") or os.environ.get("HUGGINGFACE_HUB_CACHE"):
        return expanded(chosen)
    if chosen := os.environ.get("HF_HOME"):
        return expanded(chosen) / "hub"
    base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return expanded(base) / "huggingface" / "hub"


def _in_cache(model: Entry, part: ComponentName, cache: Path) -> Path | None:
    """The component in a snapshot of one of the model's repositories; what all models share, in any repository."""
    models = [model]
    if part in _SHARED_WITH_ALL:
        models += [other for other in ENTRIES if other is not model and part in other.components]
    looked: set[str] = set()
    for candidate in models:
        for source in candidate.sources:
            key = f"{source.repo} {candidate.name if part == 'dit' else ''}"
            if key in looked:
                continue
            looked.add(key)
            for snapshot in snapshots(cache, source.repo):
                path = _FIND_IN[source.name](snapshot, source, part)
                if path is not None:
                    return path
    return None


def snapshots(cache: Path, repo: str) -> Iterator[Path]:
    """The snapshots of ``repo`` in the cache: what ``main`` points to first, then the newest."""
    storage = cache / f"models--{repo.replace('/', '--')}"
    try:
        folders = sorted((storage / "snapshots").iterdir(), key=lambda path: path.stat().st_mtime, reverse=True)
        main = (
            (storage / "refs" / "main").read_text(encoding="ascii").strip() if (storage / "refs/main").is_file() else ""
        )
    except (OSError, ValueError):  # no such repository in the cache, or one that may not be read
        return
    yield from sorted((path for path in folders if path.is_dir()), key=lambda path: path.name != main)


def _find_official(snapshot: Path, source: Source, part: ComponentName) -> Path | None:
    if part == "dit":
        return _dit_unit(snapshot)
    file = next(snapshot / file.path for file in source.files if file.role == part)
    if not file.is_file() or (part == "text_encoder" and not _has_tokenizer(snapshot / "google" / "umt5-xxl")):
        return None
    return file


def _find_comfy(snapshot: Path, source: Source, part: ComponentName) -> Path | None:
    chosen = [file for choice in source.choices.values() for file in choice]
    for file in (*chosen, *source.files):
        if file.role == part and (snapshot / file.path).is_file():
            return snapshot / file.path
    return None


def _find_diffusers(snapshot: Path, source: Source, part: ComponentName) -> Path | None:
    folder = snapshot / next(name for name, component in DIFFUSERS_FOLDERS.items() if component == part)
    if not folder.is_dir() or _dit_unit(folder) is None:
        return None
    if part == "text_encoder" and not _has_tokenizer(snapshot / "tokenizer"):
        return None
    return folder


_FIND_IN: Mapping[SourceName, Callable[[Path, Source, ComponentName], Path | None]] = {
    "official": _find_official,
    "comfy": _find_comfy,
    "diffusers": _find_diffusers,
}


def _dit_unit(folder: Path) -> Path | None:
    """The one complete safetensors file, or index of a complete set of shards, in ``folder``."""
    try:
        units = [unit for unit in weight_units(folder) if not unit.name.endswith((".pth", ".pt", ".bin", ".ckpt"))]
    except CygnetError:
        return None
    complete = [unit for unit in units if _is_complete(unit)]
    return complete[0] if len(complete) == 1 else None


def _is_complete(unit: Path) -> bool:
    if not unit.name.endswith(INDEX_SUFFIX):
        return unit.is_file()
    stem = unit.name.removesuffix(INDEX_SUFFIX).rsplit(".", 1)[0]
    shards = [path.stem for path in unit.parent.glob(f"{stem}-*-of-*") if path.is_file()]
    return bool(shards) and all(int(shard.rsplit("-of-", 1)[1]) == len(shards) for shard in shards)


def _has_tokenizer(folder: Path) -> bool:
    return any((folder / name).is_file() for name in TOKENIZER_FILES)
