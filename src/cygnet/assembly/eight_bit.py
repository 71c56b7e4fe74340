"""What of a network is kept in 8 bits, and what LoRAs do beside it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch

from cygnet.assembly.kinds import STACKS, block_matrices
from cygnet.checkpoints import ComponentWeights
from cygnet.checkpoints.lora.beside import Branches, set_beside
from cygnet.runtime.eight_bit import keep_in_eight_bits
from cygnet.runtime.streaming import streamed_names


@dataclass(frozen=True)
class EightBits:
    """What of a network is kept in 8 bits: stored values and scales by name, and the changes that run beside them."""

    weights: ComponentWeights
    matrices: Mapping[str, tuple[torch.Tensor, torch.Tensor | None]]
    branches: Branches


def in_eight_bits(weights: ComponentWeights, *, stored: bool, rounded: bool = False) -> EightBits:
    """The matrices of linear layers in blocks that are kept as they are ``stored``, in 8 bits, and LoRAs' branches.

    LoRAs run beside what the file has in 8 bits even where it is widened, so that the result does not depend on how
    much memory is free. With ``rounded`` the others will be rounded to 8 bits, so that LoRAs run beside all of them.
    """
    quantised = weights.quantisation != "none"
    if not (quantised or rounded):
        return EightBits(weights, {}, Branches())
    names = block_matrices(weights)
    in_file = [name for name in names if quantised and ComponentWeights.eight_bit(weights, name) is not None]
    weights, branches = set_beside(weights, names if rounded else in_file)
    found = ((name, weights.eight_bit(name)) for name in (in_file if stored else ()))
    return EightBits(weights, {name: matrix for name, matrix in found if matrix is not None}, branches)


@torch.no_grad()
def round_matrices(dit: torch.nn.Module, kind: torch.dtype, device: torch.device) -> None:
    """Round the blocks' matrices to values of an 8-bit type and keep them in it; they compute as before."""
    for name in streamed_names(dit, STACKS):
        keep_in_eight_bits(dit, {name: (dit.get_parameter(name).to(kind), None)}, device)
