"""Reference inputs, weights and results shared by parity tests.

Two independent sets exist: the arrays of ``golden/`` (weights from NumPy's Philox generator) and the numbers of
section 12.2 of the Wan 2.1 specification (weights from an integer hash, :func:`fill`). Both are the official code's.
"""

from __future__ import annotations

import functools
import json
import math
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from golden import seeded

GOLDEN = Path(__file__).parent / "golden"


@functools.cache
def golden_facts() -> dict[str, Any]:
    """Configurations, parameter shapes and notes of the golden arrays."""
    facts: dict[str, Any] = json.loads((GOLDEN / "golden.json").read_text(encoding="utf-8"))
    return facts


def golden_array(name: str) -> torch.Tensor:
    """One stored result of the official code, float32."""
    with np.load(GOLDEN / "golden.npz") as arrays:
        return torch.from_numpy(arrays[name])


def seeded_normal(name: str, shape: Sequence[int]) -> torch.Tensor:
    """The standard normal input that the golden arrays were made with."""
    return torch.from_numpy(seeded.normal(name, shape, golden_facts()["seed"]))


def seeded_weights(shapes: Mapping[str, Sequence[int]]) -> dict[str, torch.Tensor]:
    """The weights that the golden arrays were made with, in the official layout."""
    state = seeded.state_dict(dict(shapes), golden_facts()["seed"])
    return {name: torch.from_numpy(array) for name, array in state.items()}


def fill(key: str, shape: Sequence[int]) -> torch.Tensor:
    """The hash ``H(key)`` of section 12.2: uniform in [-1, 1), float32."""
    mask = np.uint64(0xFFFFFFFF)
    x = np.arange(math.prod(shape), dtype=np.uint64) * np.uint64(2654435761) + np.uint64(zlib.crc32(key.encode()))
    x &= mask
    for _ in range(2):
        x ^= x >> np.uint64(16)
        x = (x * np.uint64(0x45D9F3B)) & mask
    x ^= x >> np.uint64(16)
    return torch.from_numpy((x.astype(np.float64) / 2**31 - 1).astype(np.float32).reshape(tuple(shape)))


def filled_weights(shapes: Mapping[str, Sequence[int]]) -> dict[str, torch.Tensor]:
    """Weights by the parameter rule of section 12.2; the first rule that matches the name wins."""
    return {name: _filled_weight(name, shape) for name, shape in shapes.items()}


def parameter_shapes(module: torch.nn.Module) -> dict[str, tuple[int, ...]]:
    """Names and shapes of everything a checkpoint for ``module`` holds."""
    return {name: tuple(tensor.shape) for name, tensor in module.state_dict().items()}


def relative_l2(actual: torch.Tensor, expected: torch.Tensor) -> float:
    """``|actual - expected| / |expected|``; the shapes must be equal."""
    assert actual.shape == expected.shape, f"{tuple(actual.shape)} is not {tuple(expected.shape)}"
    expected = expected.double()
    return float((actual.double() - expected).norm() / expected.norm())


def _filled_weight(name: str, shape: Sequence[int]) -> torch.Tensor:
    h = fill(name, shape)
    if name.endswith("gamma"):
        return 1 + 0.2 * h
    if "modulation" in name or name.endswith("emb_pos"):
        return 0.3 * h
    if len(shape) == 1:
        return 1 + 0.2 * h if name.endswith(".weight") else 0.1 * h
    if "embedding.embedding" in name or name in ("token_embedding.weight", "cls_embedding", "pos_embedding"):
        return h
    return h * math.sqrt(3 / math.prod(shape[1:]))
