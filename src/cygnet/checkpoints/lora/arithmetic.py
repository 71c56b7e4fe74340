"""What changes do to a tensor, in float32."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from cygnet.checkpoints.lora.matching import Change, magnitude_axis
from cygnet.errors import WeightFileError

if TYPE_CHECKING:
    import torch


def changed(name: str, value: torch.Tensor, change: Change) -> torch.Tensor:
    """``value`` (float32) of the tensor ``name`` after one change; raises ``WeightFileError`` if it is not finite."""
    import torch

    result = value
    for role in change.role.split("+"):
        result = _one(result, change, role)
    if not bool(torch.isfinite(result).all()):
        raise WeightFileError(
            f"{change.lora.name} at strength {change.strength:g} makes {name!r} NaN or infinite; the file is damaged, "
            "or the strength too large"
        )
    return result


def _one(value: torch.Tensor, change: Change, role: str) -> torch.Tensor:
    adapter, strength = change.adapter, change.strength

    def part(role: str) -> torch.Tensor:
        return change.lora.file.tensor(adapter.parts[role]).float()

    if role == "set":
        return part("set").reshape(value.shape)
    if role == "up_bias":
        return value + strength * adapter.scale * part("up_bias").reshape(value.shape)
    if role != "product":
        return value + strength * part(role).reshape(value.shape)
    delta = adapter.scale * product(adapter.parts, part).reshape(value.shape)
    if adapter.kind == "DoRA":
        return value + strength * (_decomposed(value, delta, part("magnitude")) - value)
    return value + strength * delta


def product(parts: Mapping[str, str], part: Callable[[str], torch.Tensor]) -> torch.Tensor:
    """``[out, in]`` from low-rank, Hadamard or Kronecker factors; ``part`` gives each in float32."""
    import torch

    if "down" in parts:
        up, down = part("up").flatten(1), part("down").flatten(1)
        if "mid" in parts:  # [rank, rank, *taps] between the two
            return torch.einsum("or,rs...,si->oi...", up, part("mid"), down)
        return up @ down
    if "hada_w1_a" in parts:
        return (part("hada_w1_a") @ part("hada_w1_b")) * (part("hada_w2_a") @ part("hada_w2_b"))
    first = part("lokr_w1") if "lokr_w1" in parts else part("lokr_w1_a") @ part("lokr_w1_b")
    second = part("lokr_w2") if "lokr_w2" in parts else part("lokr_w2_a") @ part("lokr_w2_b").flatten(1)
    return torch.kron(first, second.flatten(1))


def _decomposed(value: torch.Tensor, delta: torch.Tensor, magnitude: torch.Tensor) -> torch.Tensor:
    """DoRA: the direction of ``value + delta`` with lengths of its own, per output or per input."""
    import torch

    moved = (value + delta).flatten(1)
    axis = magnitude_axis(tuple(magnitude.shape), (moved.shape[0], moved.shape[1]))
    length = torch.linalg.vector_norm(moved, dim=axis, keepdim=True) + torch.finfo(torch.float32).eps
    turned: torch.Tensor = moved * (magnitude.reshape(length.shape) / length)
    return turned.reshape(value.shape)
