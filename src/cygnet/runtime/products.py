"""Matrix products in float32 on processors for which torch's library of them was not written.

Torch multiplies float32 matrices by MKL, which on AMD's processors leaves half of AVX-512's rate unused; oneDNN, which
torch carries for convolutions and bfloat16, does not (docs/speed.md). The sums are the same up to their order.
"""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from torch.autograd import forward_ad

LEAST_ROWS = 8
"""Of fewer rows a product is as fast as its weights are read, by either library."""

_TOLERANCE = 1e-5


class OneDNNLinear(nn.Linear):
    """A linear layer whose products go the faster way; layers become it where they are, by :func:`use_onednn`."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """``[..., in]`` -> ``[..., out]``."""
        return linear(x, self.weight, self.bias)


def use_onednn(module: nn.Module) -> None:
    """Let the linear layers of ``module`` multiply by oneDNN where that is faster on this processor, in place.

    What is in another type than float32, on a GPU, or has gradients is multiplied as before.
    """
    if not onednn_pays():
        return
    for layer in module.modules():
        if type(layer) is nn.Linear:
            layer.__class__ = OneDNNLinear


def linear(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    """``x [..., in] @ weight[out, in].T + bias``, by the faster library; what does not fit, torch refuses as ever."""
    recorded = torch.compiler.is_compiling() or torch.jit.is_tracing()  # type: ignore[attr-defined, no-untyped-call]
    if recorded or not _plain(x, weight, bias):
        return F.linear(x, weight, bias)
    if x.numel() < LEAST_ROWS * x.shape[-1] or torch.is_autocast_enabled("cpu") or not onednn_pays():
        return F.linear(x, weight, bias)
    return _by_onednn(x, weight, bias)


def _plain(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> bool:
    """Whether these are matrices and a vector that can be multiplied, in float32, dense, here, and none of them learns.

    oneDNN reads what it is given as such, whatever it is.
    """
    given = (x, weight) if bias is None else (x, weight, bias)
    if any(it.dtype != torch.float32 or it.device.type != "cpu" or it.layout != torch.strided for it in given):
        return False
    if forward_ad._current_level >= 0 or (torch.is_grad_enabled() and any(it.requires_grad for it in given)):
        return False
    if weight.ndim != 2 or x.ndim < 2 or x.shape[-1] != weight.shape[1] or not weight.numel():
        return False
    return bias is None or (bias.ndim < 2 and bias.numel() in (1, weight.shape[0]))


@functools.cache
def onednn_pays() -> bool:
    """Whether this is a processor of AMD's with AVX-512, and torch's oneDNN there gives right products."""
    if vendor() != "AuthenticAMD" or "AVX512" not in torch.backends.cpu.get_cpu_capability():
        return False
    if not torch.backends.mkl.is_available() or not torch.backends.mkldnn.is_available():
        return False
    generator = torch.Generator("cpu").manual_seed(0)
    shapes = ((2, 9, 40), (24, 40), (24,))  # on the processor, whatever torch's default device and type are
    x, weight, bias = (torch.randn(it, generator=generator, device="cpu", dtype=torch.float32) for it in shapes)
    try:
        found = _by_onednn(x, weight, bias)
    except (RuntimeError, TypeError, AttributeError):  # another torch may name or call it otherwise
        return False
    right = F.linear(x.double(), weight.double(), bias.double())
    return bool((found - right).norm() <= _TOLERANCE * right.norm())


@functools.cache
def vendor(cpuinfo: Path = Path("/proc/cpuinfo")) -> str | None:
    """Who made the processor, in its own spelling; None where that cannot be told."""
    try:
        text = cpuinfo.read_text(encoding="ascii", errors="replace")
    except OSError:
        return None
    return next((line.split(":", 1)[1].strip() for line in text.splitlines() if line.startswith("vendor_id")), None)


def _by_onednn(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    multiply: Any = torch.ops.mkldnn._linear_pointwise
    # It reads a bias as if it were dense.
    dense = None if bias is None else bias.expand(weight.shape[0]).contiguous()
    out: torch.Tensor = multiply(x, weight, dense, "none", [], "")
    return out
