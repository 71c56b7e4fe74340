"""The modules that custom nodes import from their host, on top of ours.

Packs written for ComfyUI ask ``folder_paths`` for files and ``comfy`` for devices and progress. What is here does what
those names promise; a name that is not here fails at import with Python's own message, which then stands beside the
pack's name. Networks are not part of it: MODEL, CLIP and VAE are opaque between our nodes.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import torch
import torch.nn.functional as F

from cygnet.errors import Cancelled, RequestError
from cygnet.graph.context import current
from cygnet.graph.folders import annotated, can_be_named, inside, relative_name
from cygnet.graph.results import ExecutionBlocker
from cygnet.nodes import files, modern
from cygnet.nodes.host import Host
from cygnet.nodes.latents import MOST
from cygnet.nodes.modern_ui import ui_names
from cygnet.nodes.workshop import WEIGHT_SUFFIXES, Workshop
from cygnet.pipelines.conditioning import crop_to_aspect


class ProgressBar:
    """Progress of the node that is running."""

    def __init__(self, total: float, node_id: str | None = None) -> None:
        self.total = total
        self.current = 0.0

    def update_absolute(self, value: float, total: float | None = None, preview: object = None) -> None:
        """Set how much is done."""
        self.total = self.total if total is None else total
        self.current = min(value, self.total)
        current().progress(self.current, self.total)

    def update(self, value: float) -> None:
        """Add to how much is done."""
        self.update_absolute(self.current + value)


def common_upscale(samples: torch.Tensor, width: int, height: int, upscale_method: str, crop: str) -> torch.Tensor:
    """Resize ``[B, C, H, W]``; with ``crop="center"`` first cut to the new aspect."""
    if crop == "center":
        samples = crop_to_aspect(samples, width, height)
    mode = {"lanczos": "bicubic", "bislerp": "bilinear"}.get(upscale_method, upscale_method)
    return F.interpolate(samples, size=(height, width), mode=mode)


def install(shop: Workshop, host: Host) -> None:
    """Put the modules where packs import them from; ``host`` is what they take for the server."""
    for name, contents in _modules(shop, host).items():
        module = sys.modules.setdefault(name, ModuleType(name))
        vars(module).update(contents)
        parent, _, child = name.rpartition(".")
        if parent:
            setattr(sys.modules[parent], child, module)


def _modules(shop: Workshop, host: Host) -> dict[str, dict[str, Any]]:
    chosen = "cuda" if torch.cuda.is_available() else "cpu"
    device = torch.device(chosen if shop.device == "auto" else shop.device)
    cpu = torch.device("cpu")
    return {
        "folder_paths": _folder_paths(shop),
        "comfy": {"__path__": []},
        "comfy.utils": {"ProgressBar": ProgressBar, "common_upscale": common_upscale},
        "comfy.model_management": {
            "get_torch_device": lambda: device,
            "intermediate_device": lambda: cpu,
            "unet_offload_device": lambda: cpu,
            "text_encoder_device": lambda: device,
            "vae_device": lambda: device,
            "soft_empty_cache": lambda force=False: None,
            "throw_exception_if_processing_interrupted": lambda: current().cancel.check(),
            "processing_interrupted": lambda: current().cancel.cancelled,
            "InterruptProcessingException": Cancelled,
        },
        "nodes": {"MAX_RESOLUTION": MOST, "NODE_CLASS_MAPPINGS": {}, "NODE_DISPLAY_NAME_MAPPINGS": {}},
        "server": {"PromptServer": SimpleNamespace(instance=host)},
        **_modern(shop),
    }


def _video_from_components(components: files.VideoComponents) -> files.VideoValue:
    """A ``VIDEO`` of what a custom node made."""
    return files.VideoValue(components.images, float(components.frame_rate), components.audio)


def _modern(shop: Workshop) -> dict[str, dict[str, Any]]:
    """The modules of the current contract, under the names of its versions."""
    io, ui = modern.io_names(), ui_names(shop)
    made = {"VideoFromComponents": _video_from_components}
    parts = {"VideoComponents": files.VideoComponents}
    spaces = {
        "IO": SimpleNamespace(**io),
        "UI": SimpleNamespace(**ui),
        "InputImpl": SimpleNamespace(**made),
        "Types": SimpleNamespace(**parts),
    }
    found: dict[str, dict[str, Any]] = {
        "comfy_api": {"__path__": []},
        "comfy_api.input_impl": made,
        "comfy_api.util": parts,
    }
    for version in ("comfy_api.latest", "comfy_api.v0_0_2"):
        found[version] = {"__path__": [], "ComfyExtension": modern.ComfyExtension, **spaces}
        found |= {f"{version}.{name}": io for name in ("io", "_io")}
        found |= {f"{version}.{name}": ui for name in ("ui", "_ui")}
    return {
        **found,
        "comfy_execution": {"__path__": []},
        "comfy_execution.graph_utils": {"ExecutionBlocker": ExecutionBlocker},
        "comfy_execution.graph": {"ExecutionBlocker": ExecutionBlocker},
    }


def _folder_paths(shop: Workshop) -> dict[str, Any]:
    folders = shop.folders
    kinds = {kind: (list(map(str, roots)), set(WEIGHT_SUFFIXES)) for kind, roots in shop.models.items()}
    base = folders.output.parent

    def get_full_path(kind: str, name: str) -> str | None:
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
        return str(folders.locate(name))

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
        roots, _ = kinds.setdefault(kind, ([], set()))
        roots.insert(0 if is_default else len(roots), path)

    def filter_files_extensions(files: Iterable[str], extensions: Iterable[str]) -> list[str]:
        allowed = {it.lower() for it in extensions}
        return sorted(it for it in files if not allowed or Path(it).suffix.lower() in allowed)

    return {
        "base_path": str(base),
        "models_dir": str(base / "models"),
        "folder_names_and_paths": kinds,
        "supported_pt_extensions": set(WEIGHT_SUFFIXES),
        "get_input_directory": lambda: str(folders.input),
        "get_output_directory": lambda: str(folders.output),
        "get_temp_directory": lambda: str(folders.temp),
        "get_directory_by_type": lambda kind: str(folders.root(kind)),
        "get_user_directory": lambda: str(base / "user"),
        "get_folder_paths": lambda kind: list(kinds[kind][0]),
        "get_filename_list": get_filename_list,
        "get_full_path": get_full_path,
        "get_full_path_or_raise": get_full_path_or_raise,
        "get_annotated_filepath": get_annotated_filepath,
        "exists_annotated_filepath": exists_annotated_filepath,
        "get_save_image_path": get_save_image_path,
        "add_model_folder_path": add_model_folder_path,
        "filter_files_extensions": filter_files_extensions,
    }
