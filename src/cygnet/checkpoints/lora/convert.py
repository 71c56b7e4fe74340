"""A LoRA in another form: the same changes under the names that ComfyUI or Diffusers expects."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from cygnet.checkpoints.digest import digest
from cygnet.checkpoints.lora.file import Adapter, LoraFile, read_lora
from cygnet.checkpoints.lora.names import LoraForm
from cygnet.checkpoints.lora.writing import NOTE_KEY, LowRankChange, save_lora
from cygnet.checkpoints.weight_file import printable
from cygnet.errors import RequestError

if TYPE_CHECKING:
    import torch


def convert_lora(
    source: Path | str,
    target: Path | str,
    form: LoraForm,
    *,
    dtype: torch.dtype | None = None,
    overwrite: bool = False,
) -> Path:
    """Write the LoRA at ``source``, of any dialect, to ``target`` in ``form``; returns where.

    "comfyui" holds every kind of change, "diffusers" LoRA alone; see
    :func:`~cygnet.checkpoints.lora.writing.save_lora` for alphas and ``dtype``. The header keeps what the source's
    said. Raises ``RequestError`` for a change that the form has no name for, or tensors of another network, and as
    :func:`~cygnet.checkpoints.lora.file.read_lora` and ``save_lora``.
    """
    lora = read_lora(source)
    if lora.unknown:
        raise RequestError(
            f"{lora.name} also holds {lora.unknown_modules} modules of no Wan transformer, first "
            f"{printable(lora.unknown[0])!r}; they have no name in the other form",
            field="source",
        )
    modules: dict[str, LowRankChange] = {}
    rest: dict[str, dict[str, torch.Tensor]] = {}
    for module, adapter in lora.adapters.items():
        whole, others = _sorted(lora, adapter, form)
        if whole is not None:
            modules[module] = whole
        if others:
            rest[module] = others
    kept = {key: value for key, value in lora.file.metadata.items() if key not in _OUR_KEYS}
    return save_lora(
        target, modules, rest=rest, form=form, dtype=dtype, note=origin_of(lora), metadata=kept, overwrite=overwrite
    )


_OUR_KEYS = frozenset({"format", NOTE_KEY, "lora_adapter_metadata"})


def origin_of(lora: LoraFile) -> dict[str, Any]:
    """What a file made from this one says of it."""
    return {"from": [{"file": lora.name, "digest": digest(lora.file.files)}]}


def _sorted(lora: LoraFile, adapter: Adapter, form: LoraForm) -> tuple[LowRankChange | None, dict[str, torch.Tensor]]:
    """An adapter's low-rank change, if that is what it is, and its other parts by role."""
    import torch

    parts = {role: lora.file.tensor(stored) for role, stored in adapter.parts.items()}
    if "magnitude" in parts and parts["magnitude"].ndim == 1:  # PEFT's; ComfyUI wants a column
        parts["magnitude"] = parts["magnitude"][:, None]
    if adapter.kind not in ("LoRA", "difference") or "mid" in parts:
        if adapter.alpha is None and adapter.scale != 1 and adapter.rank is not None:
            parts["alpha"] = torch.tensor(adapter.scale * adapter.rank)
        return None, parts
    if "up" in parts:  # a bias of its own, which the product's scale applies to, and one that stands alone
        biases = [
            parts.pop(role).float() * factor
            for role, factor in (("up_bias", adapter.scale), ("diff_b", 1.0))
            if role in parts
        ]
        if biases:
            parts["up_bias" if form == "diffusers" else "diff_b"] = sum(biases[1:], biases[0]).to(parts["up"].dtype)
    parts.pop("alpha", None)
    if adapter.kind == "difference":
        return None, parts
    assert adapter.rank is not None
    change = LowRankChange(parts.pop("down"), parts.pop("up"), adapter.scale * adapter.rank)
    return change, parts
