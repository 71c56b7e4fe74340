"""LoRA files of our own: low-rank changes by module, under the names that ComfyUI or Diffusers expects."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cygnet.checkpoints.lora.file import read_lora
from cygnet.checkpoints.lora.names import LoraForm, is_official, stored_name
from cygnet.checkpoints.saving import Entry, staged_file, write_safetensors
from cygnet.checkpoints.weight_file import TensorInfo, printable
from cygnet.errors import RequestError, WeightFileError

if TYPE_CHECKING:
    import torch

    from cygnet.models.lora import Adapters

NOTE_KEY = "cygnet.lora"
"""Header key of a JSON object that says what the file was made for and how."""


@dataclass(frozen=True)
class LowRankChange:
    """``weight += (alpha / R) * up @ down``: ``down [R, in, ...]``, ``up [out, R, ...]``; alpha None means R."""

    down: torch.Tensor
    up: torch.Tensor
    alpha: float | None = None

    @property
    def rank(self) -> int:
        """The inner width."""
        return int(self.down.shape[0])

    @property
    def scale(self) -> float:
        """What the product is multiplied with."""
        return 1.0 if self.alpha is None else self.alpha / self.rank


def save_lora(
    path: Path | str,
    modules: Mapping[str, LowRankChange],
    *,
    rest: Mapping[str, Mapping[str, torch.Tensor]] | None = None,
    form: LoraForm = "comfyui",
    dtype: torch.dtype | None = None,
    note: Mapping[str, Any] | None = None,
    metadata: Mapping[str, str] | None = None,
    overwrite: bool = False,
) -> Path:
    """Write low-rank changes of ``modules`` (official names, such as ``blocks.0.self_attn.q``); returns ``path``.

    "comfyui" writes ``diffusion_model.<module>.lora_A.weight``, ``.lora_B.weight`` and ``.alpha``, which every program
    reads. "diffusers" writes ``transformer.<its module>.lora_A.weight`` and ``.lora_B.weight``; it knows no alphas, so
    ``up`` is multiplied with ``alpha / R``: exact for powers of two, else rounded once to ``dtype``. ``rest`` holds
    other parts by module (``diff``, ``diff_b``, ...), for "comfyui" alone. ``dtype`` casts all but the alphas; None
    keeps each tensor's own. ``note`` goes into the header as JSON, with the rank or ranks; ``metadata`` as it is.

    The file appears whole or not at all. Raises ``RequestError`` for a name that is no module of the transformer, a
    rank of 0, shapes that do not go together, a value that is not finite (in ``dtype``) or a part that the form has
    not, and ``OutputError`` as :func:`cygnet.checkpoints.save_official`.
    """
    path = Path(path)
    tensors: dict[str, torch.Tensor] = {}
    for module, change in modules.items():
        _check(module, change)
        tensors |= _pair(module, change, form, dtype)
    for module, parts in (rest or {}).items():
        _check_name(module)
        for part, value in parts.items():
            kept = part == "alpha" or not value.is_floating_point()
            try:
                tensors[stored_name(module, part, form)] = value.detach() if kept else value.detach().to(dtype=dtype)
            except KeyError:
                raise RequestError(
                    f"{printable(module)} changes by its {part}, for which {form} has no name; write the form "
                    '"comfyui", or merge the LoRA into a model',
                    field="form",
                ) from None
    ranks = sorted({change.rank for change in modules.values()})
    said = {**(note or {}), "modules": len(modules.keys() | (rest or {}).keys()), "ranks": ranks}
    notes = {"format": "pt", **(metadata or {}), NOTE_KEY: noted(said)}
    entries = {name: _entry(value) for name, value in tensors.items()}
    _check_finite(tensors)
    with staged_file(path, overwrite=overwrite) as file:
        write_safetensors(file, entries, notes)
        file.flush()
        _check_readable(Path(file.name))
    return path


def save_adapters(
    path: Path | str,
    adapters: Adapters,
    *,
    form: LoraForm = "comfyui",
    dtype: torch.dtype | None = None,
    note: Mapping[str, Any] | None = None,
    overwrite: bool = False,
) -> Path:
    """Write trained :class:`~cygnet.models.lora.Adapters`; see :func:`save_lora`."""
    modules = {
        name: LowRankChange(branch.down.detach(), branch.up.detach(), branch.alpha)
        for name, branch in adapters.branches.items()
    }
    return save_lora(path, modules, form=form, dtype=dtype, note=note, overwrite=overwrite)


def noted(said: Mapping[str, Any]) -> str:
    """A JSON object as a header's value."""
    return json.dumps(said, ensure_ascii=False, sort_keys=True)


def _check(module: str, change: LowRankChange) -> None:
    import torch

    where = f"the change of {printable(module)}"
    _check_name(module)
    down, up = list(change.down.shape), list(change.up.shape)
    if len(down) < 2 or len(up) < 2 or up[1] != down[0] or not down[0]:
        raise RequestError(f"{where} has down {down} and up {up}; they must be [R, in] and [out, R]", field="modules")
    if change.alpha is not None and not math.isfinite(change.alpha):
        raise RequestError(f"{where} has the alpha {change.alpha}; it must be a finite number", field="modules")
    if not (bool(torch.isfinite(change.down.float()).all()) and bool(torch.isfinite(change.up.float()).all())):
        raise RequestError(f"{where} holds NaN or infinity; the training that made it diverged", field="modules")


def _check_finite(tensors: Mapping[str, torch.Tensor]) -> None:
    """Of what is written, after casts and products: a large number is infinite in a narrow type."""
    import torch

    for name, value in tensors.items():
        if not bool(torch.isfinite(value.float()).all()):
            kind = str(value.dtype).removeprefix("torch.")
            raise RequestError(
                f"{printable(name)} would hold NaN or infinity in {kind}; choose bfloat16 or float32 for the file, or "
                "check where it came from",
                field="dtype",
            )


def _check_readable(written: Path) -> None:
    """Raise ``RequestError`` unless cygnet itself reads what was written."""
    try:
        read_lora(written)
    except WeightFileError as error:
        raise RequestError(f"the file would be one that cygnet refuses: {error}", field="modules") from error


def _check_name(module: str) -> None:
    if not is_official(module):
        raise RequestError(
            f"{printable(module)!r} is no module of the transformer; give official names, such as blocks.0.self_attn.q",
            field="modules",
        )


def _pair(module: str, change: LowRankChange, form: LoraForm, dtype: torch.dtype | None) -> dict[str, torch.Tensor]:
    import torch

    down, up = change.down.detach(), change.up.detach()
    found: dict[str, torch.Tensor] = {}
    if form == "diffusers" and change.scale != 1:
        up = (up.float() * change.scale).to(up.dtype)
    elif form == "comfyui":
        alpha = float(change.rank if change.alpha is None else change.alpha)
        found[stored_name(module, "alpha", form)] = torch.tensor(alpha)
    found[stored_name(module, "down", form)] = down.to(dtype=dtype)
    found[stored_name(module, "up", form)] = up.to(dtype=dtype)
    return found


def _entry(value: torch.Tensor) -> Entry:
    return Entry(TensorInfo(str(value.dtype).removeprefix("torch."), tuple(value.shape)), value.cpu)
