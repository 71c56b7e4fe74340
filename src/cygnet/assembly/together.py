"""Whether the parts of a model belong together."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from cygnet.assembly.kinds import bare
from cygnet.checkpoints import ComponentWeights, variant_name
from cygnet.checkpoints.weight_file import shown
from cygnet.errors import ModelNotFoundError, StateMismatchError
from cygnet.models.clip.config import CLIPVisionConfig
from cygnet.models.dit.config import DiTConfig
from cygnet.models.umt5.config import UMT5Config
from cygnet.models.umt5.tokenizer import MAX_TOKENS
from cygnet.models.vae.config import VAEConfig
from cygnet.types import ComponentName


class Architectures(NamedTuple):
    """Of the networks of one model."""

    dit: DiTConfig
    vae: VAEConfig
    text_encoder: UMT5Config
    image_encoder: CLIPVisionConfig | None


def checked_together(weights: Mapping[ComponentName, ComponentWeights]) -> Architectures:
    """The architectures, if nothing is missing and each fits the transformer."""
    configs: dict[ComponentName, Any] = {part: each.config for part, each in weights.items()}
    dit = configs.get("dit")
    needed: list[ComponentName] = ["dit", "vae", "text_encoder"]
    if isinstance(dit, DiTConfig) and dit.image_dim is not None:
        needed.append("image_encoder")
    missing = [bare(part) for part in needed if part not in configs]
    if missing:
        present = ", ".join(bare(part) for part in configs) or "nothing"
        what = variant_name(dit) if isinstance(dit, DiTConfig) else "a model"
        raise ModelNotFoundError(
            f"the {', the '.join(missing)} is missing: {what} needs {len(needed)} parts, and given are: {present}. "
            'Name every file: load({"dit": ..., "vae": ..., "text_encoder": ..., "image_encoder": ...})'
        )
    assert isinstance(dit, DiTConfig)
    vae, text, eye = configs["vae"], configs["text_encoder"], configs.get("image_encoder")
    model = variant_name(dit)
    _check_equal("text_encoder", weights, "features", text.dim, dit.text_dim, model)
    if dit.text_length != MAX_TOKENS:
        raise StateMismatchError(
            f"the {model} transformer's config says that it takes {dit.text_length} rows of text; Wan 2.1 takes "
            f"{MAX_TOKENS}: correct text_len in its config.json"
        )
    _check_equal("vae", weights, "latent channels", vae.latent_channels, dit.out_channels, model)
    if dit.image_dim is None:
        return Architectures(dit, vae, text, None)
    assert isinstance(eye, CLIPVisionConfig)
    _check_equal("image_encoder", weights, "features", eye.dim, dit.image_dim, model)
    return Architectures(dit, vae, text, eye)


def _check_equal(
    part: ComponentName,
    weights: Mapping[ComponentName, ComponentWeights],
    what: str,
    have: int,
    need: int | None,
    model: str,
) -> None:
    if have != need:
        raise StateMismatchError(
            f"{shown(weights[part].file.path)} is {weights[part].variant} with {have} {what}, but {model} needs "
            f"{need}; give the {bare(part)} that belongs to the model"
        )
