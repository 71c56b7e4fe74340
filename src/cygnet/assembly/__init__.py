"""The one place that joins weight files, networks and their placement into components ready for use.

From the words of a caller (``arguments``) to files (``sources``, ``tokenizer``), to single networks (``kinds``,
``eight_bit``, ``build``, ``single``) and what they take in memory (``memory``), to whole models (``together``,
``placing``, ``model``).
"""

from __future__ import annotations

from cygnet.assembly.arguments import Device, Dtype, Lora, Place, Source
from cygnet.assembly.eight_bit import rounded_of
from cygnet.assembly.kinds import COMPONENT_NAMES, DECODING, STACKS, STREAMED
from cygnet.assembly.memory import fits, network_taken, weights_taken
from cygnet.assembly.model import LoadedModel, ReadModel, load_components, read_model
from cygnet.assembly.single import (
    ImageEncoder,
    TextEncoder,
    load_dit,
    load_image_encoder,
    load_preview_decoder,
    load_text_encoder,
    load_vae,
    read_tensors,
)
from cygnet.assembly.sources import EMBEDDED_NAMES
from cygnet.assembly.tokenizer import TokenizerSource
from cygnet.checkpoints.lora import Coverage
from cygnet.runtime.execution import DEFAULT, Execution, check_execution
from cygnet.runtime.memory import device_memory
from cygnet.runtime.plan import Offload, check_offload
from cygnet.runtime.residency import release_unused
from cygnet.runtime.step_cache import make_step_cache

__all__ = [
    "COMPONENT_NAMES",
    "DECODING",
    "DEFAULT",
    "EMBEDDED_NAMES",
    "STACKS",
    "STREAMED",
    "Coverage",
    "Device",
    "Dtype",
    "Execution",
    "ImageEncoder",
    "LoadedModel",
    "Lora",
    "Offload",
    "Place",
    "ReadModel",
    "Source",
    "TextEncoder",
    "TokenizerSource",
    "check_execution",
    "check_offload",
    "device_memory",
    "fits",
    "load_components",
    "load_dit",
    "load_image_encoder",
    "load_preview_decoder",
    "load_text_encoder",
    "load_vae",
    "make_step_cache",
    "network_taken",
    "read_model",
    "read_tensors",
    "release_unused",
    "rounded_of",
    "weights_taken",
]
