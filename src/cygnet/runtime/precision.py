"""Which device and which dtype, from a word to a decision.

| component | CPU with bfloat16 instructions | other CPU | CUDA |
|---|---|---|---|
| transformer, text encoder | bfloat16 | float32 | bfloat16 |
| image encoder | float32 | float32 | float16 (as published) |
| VAE, encoding | float32 | float32 | float32 |
| VAE, decoding | bfloat16 | float32 | bfloat16 |

The VAE encodes in float32 because encoding a picture in bfloat16 shifts every later step; what decoding in bfloat16
changes is less than a pixel's 8 bits show. (Wan-Video/Wan2.1 does both in float32.) :func:`cygnet.load_vae` takes any
dtype, but for float16 on a processor (:func:`check_vae_dtype`). Norms, modulation and time embedding are
float32 everywhere: see ``fp32_parameters`` of each network.
"""

from __future__ import annotations

import functools
from pathlib import Path

import torch

from cygnet.errors import RequestError
from cygnet.types import ComponentName

DTYPES: dict[str, torch.dtype] = {
    "float32": torch.float32,
    "fp32": torch.float32,
    "bfloat16": torch.bfloat16,
    "bf16": torch.bfloat16,
    "float16": torch.float16,
    "fp16": torch.float16,
}
"""Accepted spellings; "auto" decides by :func:`pick_dtype`."""


def parse_device(device: str | torch.device = "auto") -> torch.device:
    """The device that a word names: "auto", "cpu", "cuda", "cuda:1" or "mps".

    "auto" is the first CUDA device if there is one, else the CPU. Raises :class:`~cygnet.errors.RequestError` for a
    word that names no device, or one that this machine has not.
    """
    if device == "auto":
        return torch.device("cuda", 0) if torch.cuda.is_available() else torch.device("cpu")
    try:
        parsed = torch.device(device)
    except (RuntimeError, TypeError) as error:
        raise RequestError(
            f'device is {str(device)[:80]!r}; give "auto", "cpu", "cuda" or "cuda:N"{_apple()}', field="device"
        ) from error
    if parsed.type == "cuda":
        return _checked_cuda(parsed)
    if parsed.type == "mps" and not torch.backends.mps.is_available():
        raise RequestError(
            "device is mps, but this machine has no Apple GPU that torch can use; use cpu", field="device"
        )
    if parsed.type not in ("cpu", "mps"):
        raise RequestError(
            f'device is {str(parsed)!r}; cygnet runs on "cpu", "cuda" or "cuda:N"{_apple()}', field="device"
        )
    return parsed


def _apple() -> str:
    """Offered only where there is one."""
    return ', or "mps"' if torch.backends.mps.is_available() else ""


def _checked_cuda(device: torch.device) -> torch.device:
    if not torch.cuda.is_available():
        reason = "this torch was built without CUDA" if torch.version.cuda is None else "no CUDA device answers"
        raise RequestError(
            f"device is {device}, but {reason}; use cpu, or install torch for CUDA and a driver", field="device"
        )
    index = 0 if device.index is None else device.index
    count = torch.cuda.device_count()
    if not 0 <= index < count:
        raise RequestError(f"device is {device}, but there are {count} CUDA devices, from cuda:0 on", field="device")
    return torch.device("cuda", index)


def parse_dtype(dtype: str | torch.dtype, field: str = "dtype") -> torch.dtype | None:
    """The dtype that a word names, or None for "auto"; raises :class:`~cygnet.errors.RequestError` for another.

    ``field`` is the option that gave it.
    """
    if dtype == "auto":
        return None
    found = dtype if isinstance(dtype, torch.dtype) else DTYPES.get(dtype)
    if found not in DTYPES.values():
        raise RequestError(
            f'{field} is {str(dtype)[:80]!r}; give "auto", "float32", "bfloat16" or "float16"', field=field
        )
    return found


def pick_dtype(component: ComponentName, device: torch.device, asked: torch.dtype | None = None) -> torch.dtype:
    """The dtype of a component by the table above; ``asked`` overrides it for all but the VAE."""
    if component == "vae":
        return torch.float32
    if asked is not None:
        return asked
    if device.type == "cuda":
        if component == "image_encoder":
            return torch.float16
        return torch.bfloat16 if torch.cuda.get_device_capability(device)[0] >= 8 else torch.float16
    if device.type == "cpu" and component != "image_encoder" and cpu_multiplies_bfloat16():
        return torch.bfloat16
    return torch.float32


def pick_decode_dtype(device: torch.device, asked: torch.dtype | None = None) -> torch.dtype:
    """What the VAE decodes in by the table above; float32 if that was ``asked`` of the other networks."""
    if asked == torch.float32:
        return torch.float32
    if device.type == "cuda" and torch.cuda.get_device_capability(device)[0] >= 8:
        return torch.bfloat16
    return torch.bfloat16 if device.type == "cpu" and cpu_multiplies_bfloat16() else torch.float32


def check_vae_dtype(dtype: torch.dtype, device: torch.device, field: str = "dtype") -> torch.dtype:
    """``dtype``, if a VAE can work in it on ``device``; raises :class:`~cygnet.errors.RequestError` otherwise."""
    if dtype == torch.float16 and device.type == "cpu":
        raise RequestError(
            f"{field} is float16, in which a processor convolves about a hundred times as slowly; give bfloat16 or "
            "float32 for the VAE there",
            field=field,
        )
    return dtype


@functools.cache
def cpu_multiplies_bfloat16(cpuinfo: Path = Path("/proc/cpuinfo")) -> bool:
    """Whether the CPU has bfloat16 dot products (AVX-512 BF16, AMX, or Arm's); False where that cannot be told."""
    try:
        text = cpuinfo.read_text(encoding="ascii", errors="replace")
    except OSError:
        return False
    lines = (line for line in text.splitlines() if line.lower().startswith(("flags", "features")))
    flags = set(next(lines, "").split())
    return bool(flags & {"avx512_bf16", "amx_bf16", "bf16"})
