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
_BIASES = frozenset({"up_bias", "diff_b"})


def origin_of(lora: LoraFile) -> dict[str, Any]:
    """What a file made from this one says of it."""
    return {"from": [{"file": lora.name, "digest": digest(lora.file.files)}]}


def _sorted(lora: LoraFile, adapter: Adapter, form: LoraForm) -> tuple[LowRankChange | None, dict[str, torch.Tensor]]:
    """An adapter's low-rank change, if that is what it is, and its other parts by role."""
    import torch

    parts = {role: lora.file.tensor(stored) for role, stored in adapter.parts.items()}
    if "magnitude" in parts and parts["magnitude"].ndim == 1:  # PEFT's; ComfyUI wants a column
        parts["magnitude"] = parts["magnitude"][:, None]
    # One bias of two: the layer's own, which the product's scale applies to, and a difference that stands alone.
    if "up" in parts and not parts.keys().isdisjoint(_BIASES):
        kept = [
            parts.pop(role).float() * (adapter.scale if role == "up_bias" else 1) for role in _BIASES & parts.keys()
        ]
        parts["up_bias" if form == "diffusers" else "diff_b"] = sum(kept[1:], kept[0]).to(parts["up"].dtype)
    if adapter.kind not in ("LoRA", "difference") or "mid" in parts:
        if adapter.alpha is None and adapter.scale != 1:
            if adapter.rank is not None:
                parts["alpha"] = torch.tensor(adapter.scale * adapter.rank)
            else:  # LoKr of two whole matrices, which have no rank to divide an alpha by
                parts["lokr_w1"] = (parts["lokr_w1"].float() * adapter.scale).to(parts["lokr_w1"].dtype)
        return None, parts
    parts.pop("alpha", None)
    if adapter.kind == "difference":
        return None, parts
    assert adapter.rank is not None
    change = LowRankChange(parts.pop("down"), parts.pop("up"), adapter.scale * adapter.rank)
    return change, parts
