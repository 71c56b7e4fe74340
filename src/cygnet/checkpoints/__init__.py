"""Weight files of every published layout to canonical state dicts, and back."""

from __future__ import annotations

from cygnet.checkpoints.detect import ComponentConfig, detect_config, variant_name
from cygnet.checkpoints.folders import PipelineFolder, resolve_pipeline_folder
from cygnet.checkpoints.inspect import ComponentInspection, Inspection, inspect
from cygnet.checkpoints.layouts import recognise
from cygnet.checkpoints.loading import (
    ComponentWeights,
    check_state,
    materialise,
    read_component,
    verify_finite,
    without_weights,
)
from cygnet.checkpoints.open import open_weights
from cygnet.checkpoints.saving import (
    save_diffusers_component,
    save_diffusers_pipeline,
    save_official,
    save_official_folder,
)
from cygnet.checkpoints.weight_file import TensorInfo, WeightFile

__all__ = [
    "ComponentConfig",
    "ComponentInspection",
    "ComponentWeights",
    "Inspection",
    "PipelineFolder",
    "TensorInfo",
    "WeightFile",
    "check_state",
    "detect_config",
    "inspect",
    "materialise",
    "open_weights",
    "read_component",
    "recognise",
    "resolve_pipeline_folder",
    "save_diffusers_component",
    "save_diffusers_pipeline",
    "save_official",
    "save_official_folder",
    "variant_name",
    "verify_finite",
    "without_weights",
]
