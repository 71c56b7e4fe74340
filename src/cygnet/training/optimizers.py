"""Optimisers: Muon where a weight is a matrix, AdamW for everything else."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import nn


class KernelMuon(torch.optim.Muon):
    """Muon for matrices and convolution kernels.

    torch's own takes matrices alone. A kernel is the matrix from its inputs (channels times taps) to its outputs, so it
    is handed over as a two-dimensional view of the same memory, and its gradient likewise before each step. Kernels
    must be dense, in their usual layout or channels-last.
    """

    def __init__(self, weights: Iterable[nn.Parameter], *, lr: float, weight_decay: float) -> None:
        self.weights = list(weights)
        self.views = [nn.Parameter(_as_matrix(weight.data)) for weight in self.weights]
        for weight, view in zip(self.weights, self.views, strict=True):
            if view.data_ptr() != weight.data_ptr():
                raise ValueError(f"a kernel of shape {list(weight.shape)} is not dense; make it contiguous first")
        super().__init__(self.views, lr=lr, weight_decay=weight_decay, adjust_lr_fn="match_rms_adamw")

    def step(self, closure: Any = None) -> Any:
        """One update of the weights themselves, through their views."""
        for weight, view in zip(self.weights, self.views, strict=True):
            if weight.grad is None:
                view.grad = None
                continue
            layout = torch.channels_last_3d if weight.ndim == 5 else torch.channels_last
            channels_last = weight.ndim in (4, 5) and weight.is_contiguous(memory_format=layout)
            grad = weight.grad.contiguous(memory_format=layout if channels_last else torch.contiguous_format)
            view.grad = _as_matrix(grad).to(view.dtype)
        return super().step(closure)  # type: ignore[no-untyped-call]

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Forget the gradients of the weights and of their views."""
        for weight in self.weights:
            weight.grad = None
        super().zero_grad(set_to_none)


def _as_matrix(weight: torch.Tensor) -> torch.Tensor:
    """``[out, in, *taps]`` -> ``[out, in * taps]`` in the order in which the values lie in memory."""
    if weight.ndim == 2:
        return weight
    if not weight.is_contiguous():
        weight = weight.movedim(1, -1)
    return weight.reshape(weight.shape[0], -1)


def optimizers_for(
    module: nn.Module, matrices: Iterable[str], *, matrix_rate: float, other_rate: float, decay: float
) -> list[torch.optim.Optimizer]:
    """Muon for the named weights, AdamW for the rest.

    Muon orthogonalises each update, which on networks of this size reaches the same loss in fewer steps.
    """
    names = set(matrices)
    chosen = [p for name, p in module.named_parameters() if name in names]
    others = [p for name, p in module.named_parameters() if name not in names and p.requires_grad]
    return [
        KernelMuon(chosen, lr=matrix_rate, weight_decay=decay),
        torch.optim.AdamW(others, lr=other_rate, betas=(0.9, 0.98), weight_decay=0.0),
    ]
