"""Every attention kernel gives the same result and the same gradients."""

from __future__ import annotations

import pytest
import torch

from cygnet.ops.attention import matmul_attention, sdpa
from support import relative_l2


@pytest.mark.parametrize("scale", [None, 0.3])
@pytest.mark.parametrize("biased", [False, True])
def test_products_of_matrices_equal_the_fused_kernel(scale: float | None, biased: bool) -> None:
    torch.manual_seed(0)
    q, k, v = (torch.randn(2, 3, n, 16, requires_grad=True) for n in (7, 5, 5))
    bias = torch.randn(1, 1, 1, 5) if biased else None
    results = []
    for kernel in (sdpa, matmul_attention):
        out = kernel(q, k, v, bias, scale)
        results.append((out, *torch.autograd.grad(out.square().sum(), (q, k, v))))
    for fused, plain in zip(*results, strict=True):
        assert relative_l2(plain, fused) < 1e-6


def test_a_bfloat16_result_stays_bfloat16() -> None:
    q = torch.randn(1, 2, 4, 16, dtype=torch.bfloat16)
    assert matmul_attention(q, q, q).dtype == torch.bfloat16
