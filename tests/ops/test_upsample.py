from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from cygnet.ops.upsample import upsample_conv_by_phases
from support import fill, relative_l2


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-7), (torch.float32, 1e-6), (torch.bfloat16, 1e-2)])
@pytest.mark.parametrize(("height", "width"), [(1, 1), (3, 5), (8, 2)])
@pytest.mark.parametrize("biased", [True, False])
def test_it_is_the_convolution_of_the_enlarged_picture(
    dtype: torch.dtype, tolerance: float, height: int, width: int, biased: bool
) -> None:
    x, weight, bias = fill("x", [3, 4, height, width]), fill("weight", [6, 4, 3, 3]), fill("bias", [6])
    x, weight, bias = x.to(dtype), weight.to(dtype), bias.to(dtype)
    enlarged = F.interpolate(x.double(), scale_factor=2.0, mode="nearest-exact")
    wanted = F.conv2d(enlarged, weight.double(), bias.double() if biased else None, padding=1)
    out = upsample_conv_by_phases(x, weight, bias if biased else None)
    assert out.is_contiguous(memory_format=torch.channels_last)
    assert relative_l2(out, wanted) < tolerance
