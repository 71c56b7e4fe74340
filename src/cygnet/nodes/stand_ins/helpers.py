"""``node_helpers``: conditionings with further entries, pictures that are slightly broken, channels of opacity."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F

from cygnet.errors import RequestError, UnsupportedError
from cygnet.nodes.conditioning import Conditioning


def conditioning_set_values(
    conditioning: Conditioning, values: Mapping[str, Any] | None = None, append: bool = False
) -> Conditioning:
    """A copy with further entries beside each tensor; with ``append`` they are added to what is there."""
    found = []
    for tensor, beside in conditioning:
        joined = dict(beside)
        for name, value in (values or {}).items():
            earlier = joined.get(name) if append else None
            joined[name] = value if earlier is None else earlier + value
        found.append([tensor, joined])
    return found


def conditioning_set_values_with_timestep_range(
    conditioning: Conditioning,
    values: Mapping[str, Any] | None = None,
    start_percent: float = 0.0,
    end_percent: float = 1.0,
) -> Conditioning:
    """The same for the whole sampling; cygnet's samplers are steered alike in all steps."""
    if start_percent > 0 or end_percent < 1:
        raise UnsupportedError(
            f"a conditioning is to hold from {start_percent:g} to {end_percent:g} of the sampling; cygnet steers all "
            "steps alike, so give 0 and 1"
        )
    return conditioning_set_values(conditioning, values)


def pillow(function: Callable[[Any], Any], argument: Any) -> Any:
    """``function(argument)``; if Pillow finds a picture cut short, once more with what is there of it."""
    from PIL import ImageFile, UnidentifiedImageError

    try:
        return function(argument)
    except (OSError, UnidentifiedImageError, ValueError):
        earlier = ImageFile.LOAD_TRUNCATED_IMAGES
        ImageFile.LOAD_TRUNCATED_IMAGES = True
        try:
            return function(argument)
        finally:
            ImageFile.LOAD_TRUNCATED_IMAGES = earlier


def image_alpha_fix(destination: torch.Tensor, source: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Both ``[B, H, W, C]``; the second with as many channels as the first, opaque where it had no opacity."""
    missing = destination.shape[-1] - source.shape[-1]
    if missing < 0:
        return destination, source[..., : destination.shape[-1]]
    return destination, F.pad(source, (0, missing), value=1.0)


def hasher() -> Any:
    """The function for digests of files."""
    return hashlib.sha256


def string_to_torch_dtype(string: str) -> torch.dtype:
    """``fp32``, ``fp16`` or ``bf16``."""
    known = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
    if string not in known:
        raise RequestError(f"the type is {string!r}; choose one of {', '.join(known)}")
    return known[string]


def names() -> dict[str, Any]:
    """What the module holds."""
    own: tuple[Callable[..., Any], ...] = (
        conditioning_set_values, conditioning_set_values_with_timestep_range, pillow, image_alpha_fix, hasher,
        string_to_torch_dtype,
    )  # fmt: skip
    return {it.__name__: it for it in own}
