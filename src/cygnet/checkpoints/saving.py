"""Write canonical state dicts as official files and as Diffusers folders.

A file or folder appears whole or not at all: it is written beside its target under a hidden name, forced to disk and
renamed. Tensors are written one by one, so saving needs no second copy of the weights.
"""

from __future__ import annotations

import errno
import json
import os
import secrets
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from cygnet.checkpoints.detect import ComponentConfig, variant_name
from cygnet.checkpoints.diffusers_config import (
    COMPONENT_FILES,
    component_config,
    image_processor_config,
    in_diffusers,
    model_index,
    official_config,
    scheduler_config,
    tokenizer_config,
)
from cygnet.checkpoints.hints import metadata_for
from cygnet.checkpoints.layouts import KeyMap, Layout, Source, key_map
from cygnet.checkpoints.open import INDEX_SUFFIX
from cygnet.checkpoints.safetensors_file import TORCH_NAMES
from cygnet.checkpoints.weight_file import TensorInfo, read_small_file, shown
from cygnet.errors import OutputError, StateMismatchError, WeightFileError
from cygnet.models.clip.config import CLIPVisionConfig
from cygnet.models.dit.config import DiTConfig
from cygnet.models.umt5.config import UMT5Config
from cygnet.models.vae.config import VAEConfig
from cygnet.types import ComponentName

if TYPE_CHECKING:
    import torch

    State = Mapping[str, torch.Tensor]

DEFAULT_SHARD_BYTES = 10 * 10**9
TOKENIZER_PARTS = ("tokenizer.json", "spiece.model", "tokenizer_config.json", "special_tokens_map.json")
SAVED_SUFFIXES = frozenset({".safetensors", ".json", ".model"})
"""Of all files that the functions below write."""
MAX_TOKENIZER_FILE_BYTES = 64 * 2**20

_FORMAT_NAMES = {torch_name: name for name, torch_name in TORCH_NAMES.items()}


@dataclass(frozen=True)
class Entry:
    """A tensor to write: its type and shape now, its values when its turn comes."""

    info: TensorInfo
    read: Callable[[], torch.Tensor]


def component_of(config: ComponentConfig) -> ComponentName:
    """The component that a config describes."""
    kinds: Mapping[type[Any], ComponentName] = {
        DiTConfig: "dit",
        VAEConfig: "vae",
        UMT5Config: "text_encoder",
        CLIPVisionConfig: "image_encoder",
    }
    return kinds[type(config)]


def save_official(
    path: Path | str,
    state: State,
    config: ComponentConfig,
    *,
    dtype: torch.dtype | None = None,
    tokenizer: bytes | None = None,
    metadata: Mapping[str, str] | None = None,
    overwrite: bool = False,
) -> Path:
    """Write ``state`` (official names) as one safetensors file; returns its path.

    The header also carries what shapes cannot tell of ``config``. ``dtype`` casts floating tensors. ``tokenizer`` is a
    serialised SentencePiece model to embed in a text encoder, as ComfyUI does. Raises ``OutputError`` if the file
    exists and ``overwrite`` is False, or if it cannot be written.
    """
    path = Path(path)
    entries = _entries(state, dtype)
    if tokenizer is not None:
        entries["spiece_model"] = _bytes_entry(tokenizer)
    notes = {"format": "pt", **metadata_for(config), **(metadata or {})}
    with staged_file(path, overwrite=overwrite) as file:
        write_safetensors(file, entries, notes)
    return path


def save_official_folder(
    folder: Path | str,
    state: State,
    config: DiTConfig,
    *,
    dtype: torch.dtype | None = None,
    max_shard_bytes: int = DEFAULT_SHARD_BYTES,
    overwrite: bool = False,
) -> Path:
    """Write a DiT as the official repositories have it: shards with an index, and ``config.json``; returns ``folder``.

    Raises ``OutputError`` as :func:`save_official`.
    """
    folder = Path(folder)
    with staged_folder(folder, overwrite=overwrite) as staging:
        notes = {"format": "pt", **metadata_for(config)}
        _write_shards(staging, "diffusion_pytorch_model", _entries(state, dtype), notes, max_shard_bytes)
        _write_json(staging / "config.json", official_config(config))
    return folder


def save_diffusers_component(
    folder: Path | str,
    state: State,
    config: ComponentConfig,
    *,
    dtype: torch.dtype | None = None,
    max_shard_bytes: int = DEFAULT_SHARD_BYTES,
    overwrite: bool = False,
) -> Path:
    """Write ``state`` (official names) as a folder that Diffusers or transformers opens with ``from_pretrained``.

    Raises ``OutputError`` as :func:`save_official`, and ``StateMismatchError`` for a name that the layout has not.
    """
    folder = Path(folder)
    with staged_folder(folder, overwrite=overwrite) as staging:
        _write_component(staging, state, config, dtype, max_shard_bytes)
    return folder


def save_diffusers_pipeline(
    folder: Path | str,
    components: Mapping[ComponentName, tuple[State, ComponentConfig]],
    *,
    tokenizer: Path | bytes,
    flow_shift: float = 5.0,
    dtype: torch.dtype | None = None,
    max_shard_bytes: int = DEFAULT_SHARD_BYTES,
    overwrite: bool = False,
) -> Path:
    """Write a whole pipeline for Diffusers' ``WanPipeline``, or ``WanImageToVideoPipeline`` if the DiT takes pictures.

    ``components`` maps names to (state under official names, config): ``dit``, ``vae``, ``text_encoder`` and, for
    image-to-video, ``image_encoder``. ``tokenizer`` is a folder with ``tokenizer.json`` or ``spiece.model``, or the
    bytes of the latter. Raises ``WeightFileError`` if a component is missing, ``OutputError`` as above.
    """
    folder = Path(folder)
    for name, (_, config) in components.items():
        if component_of(config) != name:
            raise WeightFileError(f"the config given for {name} is that of {component_of(config)}")
    dit = components["dit"][1] if "dit" in components else None
    if not isinstance(dit, DiTConfig):
        raise WeightFileError("a pipeline needs a dit; give its state and config")
    _refuse_without_class(dit)
    eye: CLIPVisionConfig | None = None
    needed: list[ComponentName] = ["dit", "vae", "text_encoder"]
    if dit.image_dim is not None:
        needed.append("image_encoder")
    missing = [name for name in needed if name not in components]
    if missing:
        raise WeightFileError(f"for {dit.variant} a pipeline also needs: {', '.join(missing)}")
    if "image_encoder" in needed:
        described = components["image_encoder"][1]
        eye = described if isinstance(described, CLIPVisionConfig) else None
    with staged_folder(folder, overwrite=overwrite) as staging:
        for name in needed:
            state, config = components[name]
            subfolder = staging / COMPONENT_FILES[name].folder
            subfolder.mkdir()
            _write_component(subfolder, state, config, dtype, max_shard_bytes)
        (staging / "scheduler").mkdir()
        _write_json(staging / "scheduler" / "scheduler_config.json", scheduler_config(flow_shift))
        if eye is not None:
            (staging / "image_processor").mkdir()
            _write_json(staging / "image_processor" / "preprocessor_config.json", image_processor_config(eye))
        _write_tokenizer(staging / "tokenizer", tokenizer)
        _write_json(staging / "model_index.json", model_index(dit, eye))
    return folder


def _refuse_without_class(config: ComponentConfig) -> None:
    if isinstance(config, DiTConfig) and not in_diffusers(config):
        raise WeightFileError(f"Diffusers has no class for {variant_name(config)}; write it in the official layout")


def _write_component(
    folder: Path, state: State, config: ComponentConfig, dtype: torch.dtype | None, max_shard_bytes: int
) -> None:
    _refuse_without_class(config)
    component = component_of(config)
    files = COMPONENT_FILES[component]
    entries = _foreign_entries(_entries(state, dtype), key_map(component, files.layout, state), files.layout)
    _write_shards(folder, files.stem, entries, {"format": "pt"}, max_shard_bytes)
    _write_json(folder / "config.json", component_config(config))


def _write_tokenizer(folder: Path, tokenizer: Path | bytes) -> None:
    folder.mkdir()
    if isinstance(tokenizer, bytes):
        _write_bytes(folder / "spiece.model", tokenizer)
        _write_json(folder / "tokenizer_config.json", tokenizer_config())
        return
    present = [name for name in TOKENIZER_PARTS if (tokenizer / name).is_file()]
    if not {"tokenizer.json", "spiece.model"} & set(present):
        raise WeightFileError(f"folder {shown(tokenizer)} has neither tokenizer.json nor spiece.model")
    for name in present:
        _write_bytes(folder / name, read_small_file(tokenizer / name, MAX_TOKENIZER_FILE_BYTES))
    if "tokenizer_config.json" not in present:
        _write_json(folder / "tokenizer_config.json", tokenizer_config())


def diffusers_tensors(state: State, config: ComponentConfig) -> dict[str, torch.Tensor]:
    """``state`` under the names and in the shapes of Diffusers and transformers, where it is: memory is shared.

    For handing a network over within a process; raises :class:`~cygnet.errors.StateMismatchError` for a tensor that has
    no name there.
    """
    component = component_of(config)
    layout = COMPONENT_FILES[component].layout
    entries = {
        name: Entry(TensorInfo(str(value.dtype).removeprefix("torch."), tuple(value.shape)), lambda value=value: value)  # type: ignore[misc]
        for name, value in state.items()
    }
    foreign = _foreign_entries(entries, key_map(component, layout, state), layout)
    return {name: entry.read() for name, entry in foreign.items()}


# Tensors -------------------------------------------------------------------------------------------------------------


def _entries(state: State, dtype: torch.dtype | None) -> dict[str, Entry]:
    """``state`` cast to ``dtype``. Lazy mappings are read once here for types and shapes, once more when written."""
    entries: dict[str, Entry] = {}
    for name in state:
        tensor = state[name]
        kind = dtype if dtype is not None and tensor.is_floating_point() else tensor.dtype
        info = TensorInfo(str(kind).removeprefix("torch."), tuple(tensor.shape))
        entries[name] = Entry(info, _reader(state, name, kind))
    return entries


def _reader(state: State, name: str, kind: torch.dtype) -> Callable[[], torch.Tensor]:
    return lambda: state[name].detach().to("cpu", kind)


def _bytes_entry(data: bytes) -> Entry:
    def read() -> torch.Tensor:
        import torch

        return torch.frombuffer(bytearray(data), dtype=torch.uint8)

    return Entry(TensorInfo("uint8", (len(data),)), read)


def _foreign_entries(entries: Mapping[str, Entry], names: KeyMap, layout: Layout) -> dict[str, Entry]:
    foreign: dict[str, Entry] = {}
    for official, entry in entries.items():
        try:
            source = names.from_official(official)
        except KeyError:
            raise StateMismatchError(f"tensor {official!r} has no name in the {layout} layout") from None
        for i, name in enumerate(source.names):
            foreign[name] = _foreign_entry(entry, source, i)
    return foreign


def _foreign_entry(entry: Entry, source: Source, part: int) -> Entry:
    """What the foreign tensor number ``part`` of ``source`` takes from the official ``entry``."""
    shape, kind = entry.info.shape, entry.info.dtype
    if source.how == "lift":
        kept = shape[next((i for i, size in enumerate(shape) if size > 1), len(shape) - 1) :]
        return Entry(TensorInfo(kind, kept), lambda: entry.read().reshape(kept))
    if source.how == "transpose":
        return Entry(TensorInfo(kind, (shape[1], shape[0])), lambda: entry.read().T)
    if source.how == "stack":
        rows = shape[0] // len(source.names)
        first = part * rows
        return Entry(TensorInfo(kind, (rows, *shape[1:])), lambda: entry.read()[first : first + rows])
    return entry


def write_safetensors(file: IO[bytes], entries: Mapping[str, Entry], metadata: Mapping[str, str]) -> None:
    """Write the safetensors format: widest types first, so that every tensor is aligned, then by name."""
    import torch

    order = sorted(entries, key=lambda name: (-entries[name].info.nbytes // max(entries[name].info.numel, 1), name))
    header: dict[str, Any] = {"__metadata__": dict(metadata)} if metadata else {}
    position = 0
    for name in order:
        info = entries[name].info
        end = position + info.nbytes
        header[name] = {
            "dtype": _FORMAT_NAMES[info.dtype],
            "shape": list(info.shape),
            "data_offsets": [position, end],
        }
        position = end
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    file.write(len(text).to_bytes(8, "little"))
    file.write(text)
    for name in order:
        info, tensor = entries[name].info, entries[name].read().contiguous()
        if tuple(tensor.shape) != info.shape or str(tensor.dtype) != f"torch.{info.dtype}":
            raise StateMismatchError(f"tensor {name!r} changed its type or shape while it was being saved")
        if info.numel:
            file.write(tensor.reshape(-1).view(torch.uint8).numpy().data)


def _write_shards(
    folder: Path, stem: str, entries: Mapping[str, Entry], metadata: Mapping[str, str], max_shard_bytes: int
) -> None:
    shards: list[dict[str, Entry]] = [{}]
    filled = 0
    for name, entry in entries.items():
        if shards[-1] and filled + entry.info.nbytes > max_shard_bytes:
            shards.append({})
            filled = 0
        shards[-1][name] = entry
        filled += entry.info.nbytes
    weight_map: dict[str, str] = {}
    for number, shard in enumerate(shards, start=1):
        part = "" if len(shards) == 1 else f"-{number:05d}-of-{len(shards):05d}"
        name = f"{stem}{part}.safetensors"
        with open(folder / name, "xb") as file:
            write_safetensors(file, shard, metadata)
            _force(file)
        weight_map |= dict.fromkeys(shard, name)
    if len(shards) > 1:
        total = sum(entry.info.nbytes for entry in entries.values())
        index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(weight_map.items()))}
        _write_json(folder / f"{stem}.safetensors{INDEX_SUFFIX}", index)


# Whole or not at all -------------------------------------------------------------------------------------------------


def check_target(path: Path, *, overwrite: bool) -> None:
    """Raise ``OutputError`` if no file can be written at ``path``, as far as can be told before it is."""
    if path.exists() and not overwrite:
        raise OutputError(f"{shown(path)} exists; choose another name or say to overwrite it")
    if path.is_dir():
        raise OutputError(f"{shown(path)} is a folder; give the name of a file")
    if not path.parent.is_dir():
        raise OutputError(
            f"{shown(path)} could not be written: no such file or directory; make the folder {shown(path.parent)} first"
        )


@contextmanager
def staged_file(path: Path, *, overwrite: bool) -> Iterator[IO[bytes]]:
    """A file that takes the name ``path`` when the block ends well, and vanishes when it does not."""
    check_target(path, overwrite=overwrite)
    temporary = path.parent / _hidden(path)
    try:
        with open(temporary, "xb") as file:
            yield file
            _force(file)
        os.replace(temporary, path)
        _force_folder(path.parent)
    except OSError as error:
        raise _output_error(path, error) from error
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def staged_folder(path: Path, *, overwrite: bool) -> Iterator[Path]:
    """A folder that takes the name ``path`` when the block ends well, and vanishes when it does not."""
    if os.path.lexists(path):
        _refuse_taken_folder(path, overwrite=overwrite)
    temporary, previous = path.parent / _hidden(path), path.parent / _hidden(path)
    try:
        temporary.mkdir()
        yield temporary
        if path.exists():
            os.replace(path, previous)
        os.replace(temporary, path)
        _force_folder(path.parent)
    except OSError as error:
        raise _output_error(path, error) from error
    finally:
        if previous.exists() and not path.exists():
            os.replace(previous, path)
        for leftover in (temporary, previous):
            shutil.rmtree(leftover, ignore_errors=True)


def _refuse_taken_folder(path: Path, *, overwrite: bool) -> None:
    """Only a folder of weights may be replaced: removing anything else would be a disaster."""
    if path.is_symlink() or not path.is_dir():
        raise OutputError(f"{shown(path)} exists and is no folder of its own; choose another name")
    holds_files = False
    for place, _, files in os.walk(path):
        for name in files:
            holds_files = True
            if Path(name).suffix not in SAVED_SUFFIXES or (Path(place) / name).is_symlink():
                raise OutputError(f"{shown(path)} also holds {shown(Path(name))}, not of a model; choose another name")
    if holds_files and not overwrite:
        raise OutputError(f"{shown(path)} exists; choose another name or say to overwrite it")


def _hidden(path: Path) -> str:
    return f".{path.name}.{secrets.token_hex(6)}.part"


def _output_error(path: Path, error: OSError) -> OutputError:
    hint = "; free some space and try again" if error.errno in (errno.ENOSPC, errno.EDQUOT) else ""
    return OutputError(f"{shown(path)} could not be written: {(error.strerror or 'refused').lower()}{hint}")


def _write_json(path: Path, value: Mapping[str, Any]) -> None:
    _write_bytes(path, (json.dumps(value, indent=2, ensure_ascii=False) + "\n").encode())


def _write_bytes(path: Path, data: bytes) -> None:
    with open(path, "xb") as file:
        file.write(data)
        _force(file)


def _force(file: IO[bytes]) -> None:
    file.flush()
    os.fsync(file.fileno())


def _force_folder(folder: Path) -> None:
    if os.name == "posix":
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
