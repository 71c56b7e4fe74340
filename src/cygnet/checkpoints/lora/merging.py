"""Weights with LoRAs merged in, tensor by tensor as they are read: no second copy of the weights is needed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING

from cygnet.checkpoints.loading import ComponentWeights
from cygnet.checkpoints.lora.arithmetic import changed
from cygnet.checkpoints.lora.matching import Change, Coverage, matched_changes

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class PatchedWeights(ComponentWeights):
    """Weights with LoRAs merged in as they are read."""

    changes: Mapping[str, tuple[Change, ...]] = field(default_factory=dict, repr=False)
    coverage: tuple[Coverage, ...] = ()

    def tensor(self, name: str, dtype: torch.dtype | None = None) -> torch.Tensor:
        """As for :class:`ComponentWeights`; a changed tensor is computed in float32 and rounded once."""
        changes = self.changes.get(name)
        if not changes:
            return super().tensor(name, dtype)
        import torch

        kept = dtype or super().tensor(name).dtype
        value = super().tensor(name, torch.float32).clone()
        for change in changes:
            value = changed(name, value, change)
        return value.to(kept)

    def eight_bit(self, name: str) -> tuple[torch.Tensor, torch.Tensor | None] | None:
        """As for :class:`ComponentWeights`; a changed tensor is not in the file."""
        return None if self.changes.get(name) else super().eight_bit(name)

    def copied(self, name: str, dtype: torch.dtype | None = None, *, channels_last: bool = False) -> torch.Tensor:
        """As for :class:`ComponentWeights`."""
        return (
            self.tensor(name, dtype)
            if self.changes.get(name)
            else super().copied(name, dtype, channels_last=channels_last)
        )


def with_loras(
    weights: ComponentWeights, loras: Sequence[tuple[Path | str, float]], *, allow_partial: bool = False
) -> PatchedWeights:
    """``weights`` of a transformer with every ``(path, strength)`` merged in as it is read; the changes add up.

    Modules that the model lacks (image attention, in a text model) are skipped and counted in ``coverage``. Raises as
    :func:`~cygnet.checkpoints.lora.matching.matched_changes` and :func:`~cygnet.checkpoints.lora.file.read_lora`.
    """
    changes, coverage = matched_changes(weights, loras, allow_partial=allow_partial)
    plain = {item.name: getattr(weights, item.name) for item in fields(ComponentWeights)}
    return PatchedWeights(
        **plain, changes={name: tuple(rows) for name, rows in changes.items()}, coverage=tuple(coverage)
    )
