"""The four kinds of networks: their classes, their configs, and which parts of them are held or brought in apart."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, get_args

import torch

from cygnet.checkpoints import ComponentConfig, ComponentWeights, without_weights
from cygnet.checkpoints.layouts import COMPONENT_WORDS
from cygnet.models.clip.config import CLIPVisionConfig
from cygnet.models.clip.model import CLIPVision
from cygnet.models.dit.config import DiTConfig
from cygnet.models.dit.model import DiT
from cygnet.models.umt5.config import UMT5Config
from cygnet.models.umt5.model import UMT5Encoder
from cygnet.models.vae.config import VAEConfig
from cygnet.models.vae.model import WanVAE
from cygnet.runtime.streaming import streamed_names
from cygnet.types import ComponentName

COMPONENT_NAMES: tuple[ComponentName, ...] = get_args(ComponentName)
KINDS: Mapping[ComponentName, Callable[[Any], Any]] = {
    "dit": DiT,
    "vae": WanVAE,
    "text_encoder": UMT5Encoder,
    "image_encoder": CLIPVision,
}
CONFIGS: Mapping[ComponentName, type[Any]] = {
    "dit": DiTConfig,
    "vae": VAEConfig,
    "text_encoder": UMT5Config,
    "image_encoder": CLIPVisionConfig,
}
STACKS = ("blocks", "vace_blocks")
"""Where the transformer and the text encoder keep their repeated blocks."""
STREAMED: tuple[ComponentName, ...] = ("dit", "text_encoder")
"""The networks that can be brought in block by block; the others are small."""
DECODING = ("decoder", "conv2")
"""The parts of the VAE that decode."""


def block_matrices(weights: ComponentWeights) -> list[str]:
    """The weights of linear layers in the network's blocks."""
    return [name for name in matrices_of(weights.component, weights.config) if name in weights.infos]


def matrices_of(part: ComponentName, config: ComponentConfig) -> list[str]:
    """The same of an architecture."""
    with without_weights():
        module: torch.nn.Module = KINDS[part](config)
    return streamed_names(module, STACKS)


def bare(part: ComponentName) -> str:
    """The component's words without the article."""
    return COMPONENT_WORDS[part].split(" ", 1)[1]
