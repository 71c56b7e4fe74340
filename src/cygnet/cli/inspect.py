"""``cygnet inspect``: what a weight file or folder is, from its headers."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

from cygnet.cli.options import Debug, Json, Places
from cygnet.cli.output import Voice, escaped, gigabytes

if TYPE_CHECKING:
    from cygnet.checkpoints.inspect import Inspection
    from cygnet.checkpoints.lora.inspection import LoraInspection


def inspect(
    path: Annotated[str, Parameter(name="PATH")],
    /,
    *,
    model_paths: Places = (),
    json: Json = False,
    debug: Debug = False,
) -> int:
    """Say what a weight file, a folder of weights, a LoRA or a named model is, and what it can serve.

    Only headers are read; no tensor is loaded and nothing in the file is run.
    """
    from cygnet.checkpoints import catalogue
    from cygnet.checkpoints import inspect as look_into

    if (told := _lora(Path(path))) is not None:
        Voice(as_json=json).result(told.to_json(), [escaped(line) for line in told.lines()])
        return 0
    if not Path(path).exists() and catalogue.is_name(path):
        parts = catalogue.resolve(path, places=model_paths)
        found = [look_into(part) for part in dict.fromkeys(parts.values())]
        # Each file alone lacks the others; together they lack nothing, or the name would not have been resolved.
        found = [replace(each, missing=()) for each in found]
    else:
        found = [look_into(Path(path))]
    value: dict[str, Any] = found[0].to_json() if len(found) == 1 else {"parts": [each.to_json() for each in found]}
    Voice(as_json=json).result(value, [escaped(line) for each in found for line in _lines(each)])
    return 0


def _lora(path: Path) -> LoraInspection | None:
    """What the LoRA at ``path`` is; None for anything else."""
    from cygnet.checkpoints import open_weights
    from cygnet.checkpoints.lora.file import is_lora
    from cygnet.checkpoints.lora.inspection import inspect_lora
    from cygnet.errors import WeightFileError

    if not path.is_file():
        return None
    try:
        found = is_lora(open_weights(path))
    except WeightFileError:  # it will be said in the words for models
        return None
    return inspect_lora(path) if found else None


def _lines(found: Inspection) -> list[str]:
    lines = [f"{found.path.name}: {found.kind}"]
    for part in found.components:
        dtypes = ", ".join(f"{count} {dtype}" for dtype, count in part.dtypes.items())
        lines.append(f"  {part.component}: {part.variant}, {part.layout} layout, {part.format}")
        lines.append(
            f"    {part.parameters:,} parameters in {part.tensors:,} tensors ({dtypes}), {gigabytes(part.bytes)}"
        )
        if part.quantisation != "none":
            lines.append(f"    quantised: {part.quantisation}")
        lines.append(f"    serves: {', '.join(part.serves)}")
    if found.serves:
        lines.append(f"  together: {', '.join(found.serves)}")
        if found.missing:
            lines.append(f"  still needs: {', '.join(found.missing)}")
    lines += [f"  skipped {name}: {reason}" for name, reason in found.skipped.items()]
    return lines
