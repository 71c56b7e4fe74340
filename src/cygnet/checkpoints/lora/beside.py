"""Changes that run beside a matrix instead of in it: for matrices that are stored or rounded in 8 bits.

A matrix in 8 bits would round a small change away. A low-rank change is then a branch, ``y = W x + up (down x)``: that
of LoRA, and that of LoHa, whose Hadamard product of two products of ranks r and s is one product of rank r s. LoKr,
DoRA and differences of whole matrices are no low-rank changes; they are merged as the matrix is read, which widens one
in 8 bits.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from cygnet.checkpoints.loading import ComponentWeights
from cygnet.checkpoints.lora.matching import Change
from cygnet.checkpoints.lora.merging import PatchedWeights
from cygnet.errors import WeightFileError

if TYPE_CHECKING:
    import torch

    from cygnet.models.lora import Adapters


@dataclass(frozen=True)
class Branches:
    """Low-rank changes by the layer they run beside, still in their files."""

    changes: Mapping[str, tuple[Change, ...]] = field(default_factory=dict)

    @property
    def parameters(self) -> int:
        """Number of their weights."""
        total = 0
        for rows in self.changes.values():
            for change in rows:
                out, inner = _factor_shapes(change)
                total += _rank(change) * (out + inner)
        return total

    def read(self, dtype: torch.dtype, device: torch.device | str) -> Adapters:
        """The branches as adapters, of one branch per layer, ready to be attached.

        Raises ``WeightFileError`` if a factor holds NaN or infinity.
        """
        import torch

        from cygnet.models.lora import Adapters, LowRank

        branches: dict[str, LowRank] = {}
        for layer, rows in self.changes.items():
            pairs = [_factors(change) for change in rows]
            down, up = torch.cat([it for it, _ in pairs]), torch.cat([it for _, it in pairs], dim=1)
            if not (bool(torch.isfinite(down).all()) and bool(torch.isfinite(up).all())):
                raise WeightFileError(
                    f"{rows[0].lora.name} holds NaN or infinity for {layer!r}; the file is damaged, or the strength "
                    "too large"
                )
            branches[layer] = LowRank(down.to(device, dtype), up.to(device, dtype))
        return Adapters(branches).requires_grad_(False)


def set_beside(weights: ComponentWeights, names: Collection[str]) -> tuple[ComponentWeights, Branches]:
    """``weights`` without the low-rank changes of the matrices in ``names``, and these as branches.

    A matrix that also changes in another way, or whose branch would be no smaller than itself, keeps all its changes.
    """
    if not isinstance(weights, PatchedWeights):
        return weights, Branches()
    apart = {
        name: weights.changes[name]
        for name in names
        if weights.changes.get(name) and _can_run_beside(weights.changes[name])
    }
    left = {name: rows for name, rows in weights.changes.items() if name not in apart}
    return replace(weights, changes=left), Branches({name.removesuffix(".weight"): it for name, it in apart.items()})


def _can_run_beside(rows: tuple[Change, ...]) -> bool:
    low_rank = all(
        change.role == "product" and change.adapter.kind in ("LoRA", "LoHa") and "mid" not in change.adapter.parts
        for change in rows
    )
    if not low_rank:
        return False
    out, inner = _factor_shapes(rows[0])
    return sum(map(_rank, rows)) * (out + inner) < out * inner


def _factor_shapes(change: Change) -> tuple[int, int]:
    """Outputs and inputs of the matrix."""
    tensors, parts = change.lora.file.tensors, change.adapter.parts
    first, second = ("up", "down") if "down" in parts else ("hada_w1_a", "hada_w1_b")
    return tensors[parts[first]].shape[0], tensors[parts[second]].shape[1]


def _rank(change: Change) -> int:
    tensors, parts = change.lora.file.tensors, change.adapter.parts
    if "down" in parts:
        return tensors[parts["down"]].shape[0]
    return tensors[parts["hada_w1_b"]].shape[0] * tensors[parts["hada_w2_b"]].shape[0]


def _factors(change: Change) -> tuple[torch.Tensor, torch.Tensor]:
    """``down [R, in]`` and ``up [out, R]`` in float32, with strength and scale in ``up``."""

    def part(role: str) -> torch.Tensor:
        return change.lora.file.tensor(change.adapter.parts[role]).float()

    if "down" in change.adapter.parts:
        down, up = part("down").flatten(1), part("up").flatten(1)
    else:  # (A B) * (C D) has the rows a_i c_j as inputs and the columns b_i d_j as outputs of rank i j
        down = (part("hada_w1_b")[:, None] * part("hada_w2_b")[None]).flatten(0, 1)
        up = (part("hada_w1_a")[:, :, None] * part("hada_w2_a")[:, None]).flatten(1)
    return down, change.strength * change.adapter.scale * up
