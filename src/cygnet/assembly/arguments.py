"""What callers may say: which model, which LoRAs, which types and which device."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch

from cygnet.checkpoints.weight_file import printable
from cygnet.errors import RequestError
from cygnet.runtime.precision import parse_device, parse_dtype, pick_dtype
from cygnet.types import ComponentName

Place = str | os.PathLike[str]
Source = Place | Mapping[str, Place] | Mapping[ComponentName, Place]
Lora = Place | tuple[Place, float]
"""A LoRA file, or one and its strength; 1 by default."""
Dtype = str | torch.dtype
Device = str | torch.device


def with_strengths(loras: Sequence[Lora]) -> list[tuple[Path, float]]:
    """Every LoRA as its path and strength; raises :class:`~cygnet.errors.RequestError` for what is none."""
    if isinstance(loras, str | os.PathLike):
        raise RequestError("loras is one path; give a list of paths, or of (path, strength)", field="loras")
    found = []
    for lora in loras:
        place, strength = (lora, 1.0) if isinstance(lora, str | os.PathLike) else _pair(lora)
        found.append((Path(place), strength))
    return found


def _pair(lora: object) -> tuple[Place, float]:
    match lora:
        case (str() | os.PathLike() as place, int() | float() as strength):
            return place, strength
    raise RequestError(f"{printable(str(lora))} is no LoRA; give a path, or (path, strength)", field="loras")


def dtype_of(component: ComponentName, dtype: Dtype, device: Device) -> torch.dtype:
    """The dtype that was asked for, or for "auto" the one that suits the component on ``device``."""
    asked = parse_dtype(dtype)
    return asked if asked is not None else pick_dtype(component, parse_device(device))
