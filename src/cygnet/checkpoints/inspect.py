"""What a file or folder of weights is and what it can serve, from headers alone. Needs no torch for safetensors."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from cygnet.checkpoints import quantised
from cygnet.checkpoints.detect import ComponentConfig
from cygnet.checkpoints.folders import is_diffusers_pipeline, resolve_pipeline_folder
from cygnet.checkpoints.layouts import COMPONENT_WORDS, Layout, recognise
from cygnet.checkpoints.loading import ComponentWeights, component_weights, read_component
from cygnet.checkpoints.open import open_weights, weight_units
from cygnet.checkpoints.weight_file import Format
from cygnet.models.dit.config import DiTConfig
from cygnet.types import ComponentName


@dataclass(frozen=True)
class ComponentInspection:
    """One network: what it is, and how it is stored.

    ``dtypes`` counts tensors per stored type; ``parameters`` counts weights (scales and markers left out); ``bytes`` is
    everything of the component in its files. ``serves`` says what it can be used for.
    """

    component: ComponentName
    variant: str
    layout: Layout
    format: Format
    quantisation: quantised.Quantisation
    files: tuple[Path, ...]
    tensors: int
    parameters: int
    bytes: int
    dtypes: Mapping[str, int]
    config: ComponentConfig
    has_tokenizer: bool
    serves: tuple[str, ...]


@dataclass(frozen=True)
class Inspection:
    """A path, its components and what they can do together; ``missing`` says what else that needs."""

    path: Path
    kind: str
    components: tuple[ComponentInspection, ...]
    tokenizer: Path | None
    serves: tuple[str, ...]
    missing: tuple[str, ...]
    skipped: Mapping[str, str]

    def to_json(self) -> dict[str, Any]:
        """The same as plain values for ``json.dumps``; files as names relative to ``path`` where they lie in it."""
        return {
            "path": str(self.path),
            "kind": self.kind,
            "serves": list(self.serves),
            "missing": list(self.missing),
            "tokenizer": None if self.tokenizer is None else _relative(self.tokenizer, self.path),
            "skipped": dict(self.skipped),
            "components": [
                {
                    "component": part.component,
                    "variant": part.variant,
                    "layout": part.layout,
                    "format": part.format,
                    "quantisation": part.quantisation,
                    "files": [_relative(file, self.path) for file in part.files],
                    "tensors": part.tensors,
                    "parameters": part.parameters,
                    "bytes": part.bytes,
                    "dtypes": dict(part.dtypes),
                    "has_tokenizer": part.has_tokenizer,
                    "serves": list(part.serves),
                    "config": asdict(part.config),
                }
                for part in self.components
            ],
        }


def inspect(path: Path | str) -> Inspection:
    """Say what ``path`` is: a weight file, a set of shards, a component folder or a folder of several components.

    Only headers are read (and the scales of 8-bit files). Raises what :func:`~cygnet.checkpoints.read_component`
    raises.
    """
    path = Path(path)
    if path.is_dir() and (is_diffusers_pipeline(path) or len(weight_units(path)) > 1):
        folder = resolve_pipeline_folder(path)
        components = tuple(_component(read_component(file, name)) for name, file in folder.components.items())
        return _inspection(path, folder.kind, components, folder.tokenizer, folder.skipped)
    file = open_weights(path)
    components = tuple(_component(component_weights(file, part)) for part in recognise(file.tensors))
    return _inspection(path, "file" if path.is_file() else "component folder", components, None, {})


def _component(weights: ComponentWeights) -> ComponentInspection:
    stored = _stored_names(weights)
    infos = weights.file.tensors
    return ComponentInspection(
        component=weights.component,
        variant=weights.variant,
        layout=weights.layout,
        format=weights.file.format,
        quantisation=weights.quantisation,
        files=weights.sources,
        tensors=len(stored),
        parameters=weights.parameters,
        bytes=sum(infos[name].nbytes for name in (*stored, *weights.auxiliary.values())),
        dtypes=dict(Counter(infos[name].dtype for name in stored).most_common()),
        config=weights.config,
        has_tokenizer="spiece_model" in weights.auxiliary,
        serves=_component_serves(weights),
    )


def _stored_names(weights: ComponentWeights) -> list[str]:
    return [name for source in weights.sources_of.values() for name in source.names]


def _component_serves(weights: ComponentWeights) -> tuple[str, ...]:
    if isinstance(weights.config, DiTConfig):
        return _TASKS[weights.config.variant]
    return (_PARTS[weights.component],)


_TASKS: Mapping[str, tuple[str, ...]] = {
    "t2v": ("text-to-video", "text-to-image", "video-to-video"),
    "i2v": ("image-to-video",),
    "flf2v": ("first-and-last-frame-to-video",),
    "vace": ("text-to-video", "control-to-video", "reference-to-video", "inpainting", "outpainting"),
    "control": ("control-to-video",),
    "camera": ("camera-path-to-video",),
}


_PARTS: Mapping[ComponentName, str] = {
    "vae": "decoding and encoding for every Wan 2.1 model",
    "text_encoder": "prompts for every Wan 2.1 model of its width",
    "image_encoder": "pictures for image-to-video models",
}


def _inspection(
    path: Path,
    kind: str,
    components: tuple[ComponentInspection, ...],
    tokenizer: Path | None,
    skipped: Mapping[str, str],
) -> Inspection:
    present = {part.component: part for part in components}
    dit = present.get("dit")
    if dit is None or not isinstance(dit.config, DiTConfig):
        return Inspection(path, kind, components, tokenizer, (), ("a diffusion transformer",), skipped)
    needed: list[ComponentName] = ["vae", "text_encoder"]
    needed += ["image_encoder"] if dit.config.image_dim is not None else []
    missing = [COMPONENT_WORDS[name] for name in needed if name not in present]
    text = present.get("text_encoder")
    if tokenizer is None and not (text is not None and text.has_tokenizer):
        missing.append("a tokenizer")
    return Inspection(path, kind, components, tokenizer, dit.serves, tuple(missing), skipped)


def _relative(file: Path, folder: Path) -> str:
    try:
        return str(file.relative_to(folder)) if file != folder else file.name
    except ValueError:
        return file.name
