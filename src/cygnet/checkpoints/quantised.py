"""8-bit weights in files: which scale belongs to which weight, and whether it can.

Layouts: plain fp8 (values as they are); ComfyUI's scaled fp8, older (``X.scale_weight`` and a top-level ``scaled_fp8``
marker) and newer (``X.weight_scale`` and ``X.comfy_quant``, JSON with the format); musubi-tuner's per-row and per-block
``scale_weight``; LightX2V's per-row ``weight_scale`` on fp8 or int8. :mod:`cygnet.ops.quantised` widens them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from cygnet.checkpoints.json_text import parse_object
from cygnet.checkpoints.layouts import Part
from cygnet.checkpoints.weight_file import TensorInfo, WeightFile, printable
from cygnet.errors import WeightFileError

Quantisation = Literal["none", "fp8", "scaled fp8", "scaled int8"]

_SUFFIXES = (".scale_weight", ".weight_scale")
_FORMATS = ("float8_e4m3fn", "float8_e5m2")
_COMFY_QUANT_LIMIT = 4096


def is_eight_bit(dtype: str) -> bool:
    """Whether values of this type are only storage: they are converted before any arithmetic."""
    return dtype.startswith("float8") or dtype == "int8"


def find_scales(part: Part, tensors: Mapping[str, TensorInfo]) -> dict[str, str]:
    """Stored name of each scaled weight to the stored name of its scale; checked from the header alone.

    Raises ``WeightFileError`` for a scale without weight, an 8-bit weight that should have a scale and has none, two
    scales for one weight, and a scale whose shape does not divide the weight.
    """
    stored_weights = {name for source in part.tensors.values() for name in source.names}
    scales: dict[str, str] = {}
    for short, stored in part.auxiliary.items():
        suffix = next((s for s in _SUFFIXES if short.endswith(s)), None)
        if suffix is None:
            continue
        weight = f"{stored.removesuffix(suffix)}.weight"
        if weight not in stored_weights:
            raise WeightFileError(
                f"scale {printable(stored)!r} has no weight {printable(weight)!r}; the file is incomplete or mixed up"
            )
        if weight in scales:
            raise WeightFileError(f"weight {printable(weight)!r} has two scales: {scales[weight]!r} and {stored!r}")
        info = tensors[weight]
        if not is_eight_bit(info.dtype):
            raise WeightFileError(
                f"weight {printable(weight)!r} has a scale but is stored as {info.dtype}; scales go with 8-bit weights"
            )
        _check_scale_shape(weight, info.shape, tensors[stored].shape)
        scales[weight] = stored
    marked = "scaled_fp8" in part.auxiliary or bool(scales)
    marks = {f"{s.removesuffix('.comfy_quant')}.weight" for s in part.auxiliary.values() if s.endswith(".comfy_quant")}
    for weight in sorted(stored_weights):
        info = tensors[weight]
        if weight in scales or not is_eight_bit(info.dtype):
            continue
        if info.dtype == "int8" or weight in marks or (marked and len(info.shape) == 2):
            raise WeightFileError(
                f"weight {printable(weight)!r} is stored as {info.dtype} and needs a scale, but the file has none for "
                "it; it is incomplete, or was converted wrongly"
            )
    return scales


def _check_scale_shape(weight: str, shape: tuple[int, ...], scale: tuple[int, ...]) -> None:
    count = 1
    for size in scale:
        count *= size
    rows = shape[0] if shape else 1
    per_row = scale in ((rows,), (rows, *(1,) * (len(shape) - 1)))
    per_block = len(shape) == 2 and len(scale) == 3 and scale[0] == rows and scale[2] == 1
    if count == 1 or per_row or (per_block and scale[1] > 0 and shape[1] % scale[1] == 0):
        return
    raise WeightFileError(
        f"the scale of {printable(weight)!r} has shape {list(scale)}, which fits no scheme for a weight of "
        f"{list(shape)}: one number, one per row, or one per block of a row"
    )


def check_formats(part: Part, weights: WeightFile) -> None:
    """Read the small per-layer format notes. Raises ``WeightFileError`` for a format that cygnet does not know."""
    for short, stored in part.auxiliary.items():
        if not short.endswith(".comfy_quant"):
            continue
        label = f"the format note {printable(stored)!r}"
        info = weights.tensors[stored]
        if info.dtype != "uint8" or info.numel > _COMFY_QUANT_LIMIT:
            raise WeightFileError(f"{label} is not a short text")
        data = bytes(weights.tensor(stored).flatten().tolist())
        kind = parse_object(data, label, max_depth=4, max_values=100).get("format")
        if kind not in _FORMATS:
            raise WeightFileError(f"{label} says {printable(str(kind))!r}; known formats: {', '.join(_FORMATS)}")


def check_scale_values(scales: Mapping[str, str], weights: WeightFile) -> None:
    """Raise ``WeightFileError`` if a scale is zero, negative, infinite or not a number. Reads the scales only."""
    for weight, scale in scales.items():
        values = weights.tensor(scale).float()
        if not bool((values.isfinite() & (values > 0)).all()):
            raise WeightFileError(
                f"the scale {printable(scale)!r} of {printable(weight)!r} holds a value that is not a positive number; "
                "download the file again"
            )


def describe(part: Part, tensors: Mapping[str, TensorInfo]) -> Quantisation:
    """How the weights of ``part`` are stored."""
    stored = {name for source in part.tensors.values() for name in source.names}
    kinds = {tensors[name].dtype for name in stored}
    if "int8" in kinds:
        return "scaled int8"
    if not any(is_eight_bit(kind) for kind in kinds):
        return "none"
    scaled = any(short.endswith(_SUFFIXES) for short in part.auxiliary)
    return "scaled fp8" if scaled else "fp8"
