from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from cygnet.ops import winograd
from cygnet.ops.winograd import norm_silu_conv_in_bands
from cygnet.runtime.trace import Ledger
from support import fill, relative_l2


def plainly(
    x: torch.Tensor, gamma: torch.Tensor, past: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None
) -> tuple[torch.Tensor, torch.Tensor]:
    """In float64, by the definition."""
    x, gamma, past, weight = (value.double() for value in (x, gamma, past, weight))
    norm = x * x.shape[1] ** 0.5 / x.norm(dim=1, keepdim=True).clamp_min(1e-12)
    seen = torch.cat([past, F.silu(norm * gamma)], dim=2)
    out = F.conv3d(seen, weight, None if bias is None else bias.double(), padding=(0, 1, 1))
    return out, seen[:, :, -2:]


def given(dtype: torch.dtype, *, batch: int, frames: int, height: int) -> tuple[torch.Tensor, ...]:
    shapes = ([batch, 6, frames, height, 5], [6, 1, 1, 1], [batch, 6, 2, height, 5], [4, 6, 3, 3, 3], [4])
    x, gamma, past, weight, bias = (fill(str(number), shape) for number, shape in enumerate(shapes))
    return x.to(dtype), gamma.to(dtype), past.to(dtype), weight.to(dtype), bias.to(dtype)


def in_bands(
    x: torch.Tensor,
    gamma: torch.Tensor,
    past: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    skip: torch.Tensor | None = None,
    *,
    in_place: bool = False,
) -> tuple[torch.Tensor, torch.Tensor]:
    shape = (x.shape[0], weight.shape[0], *x.shape[2:])
    out = torch.full(shape, torch.nan, dtype=x.dtype).contiguous(memory_format=torch.channels_last_3d)
    if in_place:
        assert skip is not None
        out = skip
    history = past.clone()
    norm_silu_conv_in_bands(x, gamma, history, weight, bias, skip, out=out)
    return out, history


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-6), (torch.bfloat16, 1e-2)])
@pytest.mark.parametrize(("batch", "frames", "height"), [(1, 2, 7), (2, 6, 7), (1, 4, 1), (2, 2, 12)])
@pytest.mark.parametrize("band", [1, 3 * 5 * 6 * 4, 1 << 20])
def test_it_is_the_convolution_of_the_activation(
    monkeypatch: pytest.MonkeyPatch,
    dtype: torch.dtype,
    tolerance: float,
    batch: int,
    frames: int,
    height: int,
    band: int,
) -> None:
    """In bands of one row, of a few and of all."""
    monkeypatch.setattr(winograd, "_BAND_BYTES", band)
    inputs = given(dtype, batch=batch, frames=frames, height=height)
    out, kept = in_bands(*inputs)
    wanted, history = plainly(*inputs)
    assert relative_l2(out, wanted) < tolerance
    assert relative_l2(kept, history) < tolerance


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_what_is_skipped_is_added_and_may_be_where_the_result_goes(
    monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype
) -> None:
    monkeypatch.setattr(winograd, "_BAND_BYTES", 1)
    x, gamma, past, weight, _ = given(dtype, batch=2, frames=4, height=6)
    skip = fill("skip", [2, 4, 4, 6, 5]).to(dtype)
    before = skip.clone()
    out, kept = in_bands(x, gamma, past, weight, None, skip)
    assert relative_l2(out, plainly(x, gamma, past, weight, None)[0] + before) < 1e-2
    assert torch.equal(skip, before)
    over, kept_over = in_bands(x, gamma, past, weight, None, skip, in_place=True)
    assert torch.equal(over, out)
    assert torch.equal(kept_over, kept)


def test_a_frame_depends_on_itself_and_the_two_before_alone() -> None:
    x, gamma, past, weight, bias = given(torch.float32, batch=1, frames=6, height=4)
    before, _ = in_bands(x, gamma, past, weight, bias)
    x[:, :, 3] = 100.0
    after, _ = in_bands(x, gamma, past, weight, bias)
    alike = [torch.equal(before[:, :, frame], after[:, :, frame]) for frame in range(6)]
    assert alike == [True, True, True, False, False, False]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    ("channels", "out_channels", "height", "width"),
    [
        (8, 8, 24, 32),
        (8, 8, 24, 400),
        (8, 16, 24, 100),
        (16, 8, 24, 100),
        (8, 3, 24, 100),
        (8, 8, 4, 4),
        (32, 32, 8, 8),
    ],
)
def test_what_it_takes_beside_its_results_is_counted(
    monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype, channels: int, out_channels: int, height: int, width: int
) -> None:
    """However wide a frame is, but for what the library copies of kernels, which torch does not show."""
    monkeypatch.setattr(winograd, "_BAND_BYTES", 1 << 15)
    shapes = ([1, channels, 2, height, width], [channels], [1, channels, 2, height, width])
    x, gamma, past = (fill(str(number), shape).to(dtype) for number, shape in enumerate(shapes))
    weight = fill("weight", [out_channels, channels, 3, 3, 3]).to(dtype)
    out = torch.zeros(1, out_channels, 2, height, width, dtype=dtype)
    with torch.no_grad(), Ledger() as ledger:
        norm_silu_conv_in_bands(x, gamma, past, weight, None, out, out=out)
    taken = ledger.peak
    unseen = 2 * 9 * channels * out_channels * dtype.itemsize
    counted = winograd.workspace(channels, out_channels, height, width, dtype)
    assert taken <= 1.1 * counted
    assert counted <= 1.1 * (taken + unseen)
