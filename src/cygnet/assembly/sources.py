"""From what a caller names to the files it stands for: names, folders, combined files and mappings."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from cygnet.assembly.arguments import Place, Source
from cygnet.assembly.kinds import COMPONENT_NAMES, CONFIGS, bare
from cygnet.checkpoints import ComponentConfig, ComponentWeights, read_component, recognise, resolve_pipeline_folder
from cygnet.checkpoints.layouts import COMPONENT_WORDS
from cygnet.checkpoints.open import open_weights
from cygnet.checkpoints.weight_file import printable, shown
from cygnet.errors import ModelNotFoundError, RequestError
from cygnet.types import ComponentName

EMBEDDED_NAMES: Mapping[str, tuple[str, ComponentName]] = {
    "tiny-vae": ("tiny-t2v", "vae"),
    "tiny-text-encoder": ("tiny-t2v", "text_encoder"),
    "tiny-image-encoder": ("tiny-i2v", "image_encoder"),
}
"""Names for single networks of the embedded models: name -> model and component."""


class ModelFiles(NamedTuple):
    """What a model was called, if by a name, and where its parts are."""

    name: str | None
    components: dict[ComponentName, Path]
    tokenizer: Path | None
    """None if none was given."""


def find_files(source: Source) -> ModelFiles:
    """The files of a model; raises as :func:`~cygnet.assembly.load_components` does for what is none."""
    from cygnet.checkpoints import catalogue

    if isinstance(source, Mapping):
        parts: dict[str, Place] = {str(name): path for name, path in source.items() if path is not None}
        unknown = sorted(set(parts) - {*COMPONENT_NAMES, "tokenizer"})
        if unknown:
            known = ", ".join((*COMPONENT_NAMES, "tokenizer"))
            raise RequestError(f"{printable(unknown[0])!r} is no component; there are: {known}", field="model")
        tokenizer = Path(parts["tokenizer"]) if "tokenizer" in parts else None
        paths = {part: component_place(parts[part], part) for part in COMPONENT_NAMES if part in parts}
        return ModelFiles(None, paths, tokenizer)
    if isinstance(source, str) and (catalogue.is_name(source) or not Path(source).exists()):
        if not catalogue.is_name(source) and (os.sep in source or source.startswith(".")):
            raise ModelNotFoundError(f"{shown(Path(source))} does not exist; check the path")
        return ModelFiles(source.lower(), catalogue.resolve(source), None)
    if not isinstance(source, str | os.PathLike):
        raise RequestError(f"a model is given by a name, path or mapping, not {type(source).__name__}", field="model")
    path = Path(source)
    if path.is_dir():
        folder = resolve_pipeline_folder(path)
        return ModelFiles(None, folder.components, folder.tokenizer)
    file = open_weights(path)
    return ModelFiles(None, {part.component: path for part in recognise(file.tensors)}, None)


def component_place(path: Place, component: ComponentName) -> Path:
    """A path as it is; a name as the path of its component."""
    from cygnet.checkpoints import catalogue

    if isinstance(path, str) and not Path(path).exists():
        if path in EMBEDDED_NAMES:
            model, part = EMBEDDED_NAMES[path]
            return catalogue.resolve(model)[part]
        if catalogue.is_name(path):
            found = catalogue.resolve(path)
            if component not in found:
                raise ModelNotFoundError(f"{path} has no {bare(component)}; it has: {', '.join(found)}")
            return found[component]
    return Path(path)


def named_weights(path: Place, component: ComponentName, config: ComponentConfig | None) -> ComponentWeights:
    """The headers of a single network's files; ``config`` overrides what the shapes say."""
    if config is not None and not isinstance(config, CONFIGS[component]):
        raise RequestError(
            f"config is a {type(config).__name__}; {COMPONENT_WORDS[component]} has a {CONFIGS[component].__name__}",
            field="config",
        )
    return read_component(component_place(path, component), component, config=config)
