from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from cygnet.ops.norms import channel_scale, layer_norm, rms_norm


def values(scale: float = 1.0) -> torch.Tensor:
    return scale * torch.randn(2, 5, 8, generator=torch.Generator().manual_seed(0))


def test_rms_norm_divides_by_the_root_mean_square_without_centring() -> None:
    x, weight = values() + 3, torch.linspace(0.5, 1.5, 8)
    expected = x / (x.square().mean(-1, keepdim=True) + 1e-6).sqrt() * weight
    torch.testing.assert_close(rms_norm(x, weight, 1e-6), expected)


def test_rms_norm_of_float16_survives_squares_that_float16_cannot_hold() -> None:
    x = values(scale=1e4).half()
    out = rms_norm(x, torch.ones(8, dtype=torch.float16), 1e-6)
    assert out.dtype == torch.float16
    torch.testing.assert_close(out.float(), rms_norm(x.float(), torch.ones(8), 1e-6), rtol=1e-3, atol=1e-3)


def test_rms_norm_rounds_to_the_input_before_it_multiplies_by_the_weight() -> None:
    x, weight = values().bfloat16(), torch.linspace(0.5, 1.5, 8, dtype=torch.bfloat16)
    assert torch.equal(rms_norm(x, weight, 1e-6), rms_norm(x, torch.ones(8, dtype=torch.bfloat16), 1e-6) * weight)


def test_layer_norm_equals_torch_in_float32() -> None:
    x, weight, bias = values() + 3, torch.linspace(0.5, 1.5, 8), torch.linspace(-1, 1, 8)
    assert torch.equal(layer_norm(x, weight, bias, eps=1e-5), F.layer_norm(x, (8,), weight, bias, 1e-5))
    assert torch.equal(layer_norm(x, eps=1e-6), F.layer_norm(x, (8,), None, None, 1e-6))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_layer_norm_of_half_precision_is_the_float32_result_rounded_once(dtype: torch.dtype) -> None:
    x, weight, bias = (values() + 30).to(dtype), torch.linspace(0.5, 1.5, 8), torch.linspace(-1, 1, 8)
    expected = F.layer_norm(x.float(), (8,), weight, bias, 1e-5).to(dtype)
    assert torch.equal(layer_norm(x, weight, bias, eps=1e-5), expected)


@pytest.mark.parametrize("size", [1e-4, 1.0, 1e4])
def test_the_scale_of_float16_is_that_of_float32(size: float) -> None:
    x = size * torch.randn(2, 384, 4, generator=torch.Generator().manual_seed(0)).half()  # as wide as the VAE's widest
    scale = channel_scale(x, 1)
    assert scale.dtype == torch.float16
    torch.testing.assert_close(scale.float(), channel_scale(x.float(), 1), rtol=1e-2, atol=0)


@pytest.mark.parametrize("size", [0.0, 6e-8])
def test_the_scale_of_the_shortest_vectors_is_finite(size: float) -> None:
    x = torch.full((1, 4, 3), size, dtype=torch.float16)
    assert torch.isfinite(x * channel_scale(x, 1)).all()
