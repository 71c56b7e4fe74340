"""What of a network is kept in 8 bits, and what LoRAs do beside it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch

from cygnet.assembly.kinds import STACKS, block_matrices, matrices_of
from cygnet.checkpoints import ComponentConfig, ComponentWeights
from cygnet.checkpoints.lora.beside import Branches, set_beside
from cygnet.checkpoints.weight_file import shown
from cygnet.errors import WeightFileError
from cygnet.ops.quantised import dequantise, quantise_rows
from cygnet.runtime.eight_bit import KINDS, WeightDtype, between_ends, keep_in_eight_bits
from cygnet.runtime.streaming import streamed_names
from cygnet.types import ComponentName


@dataclass(frozen=True)
class EightBits:
    """What of a network is kept in 8 bits, by name, and the changes that run beside it."""

    weights: ComponentWeights
    matrices: Mapping[str, tuple[torch.Tensor, torch.Tensor | None]]
    """Values and scales as the file has them."""
    branches: Branches
    rounding: Mapping[str, torch.dtype]
    """What is rounded to 8 bits as it is read, to which type."""

    @property
    def kept(self) -> frozenset[str]:
        """All that is in 8 bits once the network is there."""
        return frozenset((*self.matrices, *self.rounding))

    @torch.no_grad()
    def rounded(self, name: str) -> tuple[torch.Tensor, torch.Tensor]:
        """Values and scales of one of :attr:`rounding`, read now; raises ``WeightFileError`` if it is not finite.

        On the processor, wherever it will compute: so the values are the same on every device.
        """
        stored, scale = quantise_rows(self.weights.copied(name, torch.float32), self.rounding[name])
        if not bool(scale.isfinite().all()):
            raise WeightFileError(
                f"tensor {name!r} of {shown(self.weights.file.path)} holds NaN or infinity, which 8 bits cannot keep; "
                "download the file again"
            )
        return stored, scale

    def widened(self, name: str, dtype: torch.dtype) -> torch.Tensor:
        """The weight in ``dtype`` with the values that it has when it is kept in 8 bits, read now."""
        if name in self.rounding:
            return dequantise(*self.rounded(name), dtype)
        return self.weights.copied(name, dtype)


def in_eight_bits(
    weights: ComponentWeights, *, stored: bool, rounded: bool = False, weight_dtype: WeightDtype = "auto"
) -> EightBits:
    """The matrices of linear layers in blocks that are kept as they are ``stored``, in 8 bits, and LoRAs' branches.

    LoRAs run beside what the file has in 8 bits even where it is widened, so that the result does not depend on how
    much memory is free. With ``rounded`` the others will be rounded to 8 bits, so that LoRAs run beside all of them.

    ``weight_dtype`` says what the matrices that the file has not in 8 bits are rounded to; those of the first and the
    last block are not, and LoRAs are merged into them. What is in 8 bits already is never rounded again, unless a
    change that is no low-rank one was merged into it.
    """
    quantised = weights.quantisation != "none"
    kind = KINDS.get(weight_dtype)
    if not (quantised or rounded or kind):
        return EightBits(weights, {}, Branches(), {})
    names = block_matrices(weights)
    in_file = [name for name in names if quantised and ComponentWeights.eight_bit(weights, name) is not None]
    inner = between_ends(names) if kind else []
    weights, branches = set_beside(weights, names if rounded else {*in_file, *inner})
    asked = in_file if stored or kind else ()
    found = {name: matrix for name in asked if (matrix := weights.eight_bit(name)) is not None}
    rounding = {} if kind is None else dict.fromkeys((name for name in inner if name not in found), kind)
    return EightBits(weights, found if stored else {}, branches, rounding)


def rounded_of(part: ComponentName, config: ComponentConfig) -> frozenset[str]:
    """What of an architecture is rounded to 8 bits where that is asked for, and its file has none of it in them."""
    return frozenset(between_ends(matrices_of(part, config)))


@torch.no_grad()
def round_matrices(dit: torch.nn.Module, kind: torch.dtype, device: torch.device) -> None:
    """Round the blocks' matrices to values of an 8-bit type and keep them in it; they compute as before."""
    for name in streamed_names(dit, STACKS):
        keep_in_eight_bits(dit, {name: (dit.get_parameter(name).to(kind), None)}, device)
