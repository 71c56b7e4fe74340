"""The safe form of 3-D convolution is the same convolution."""

from __future__ import annotations

import pytest
import torch

from cygnet.ops import conv
from cygnet.ops.conv import conv3d
from support import relative_l2


def draw(batch: int, frames: int, kernel: tuple[int, int]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    torch.manual_seed(1)
    taps, side = kernel
    window = torch.randn(batch, 6, frames, 5, 7)
    return window, torch.randn(4, 6, taps, side, side, requires_grad=True), torch.randn(4, requires_grad=True)


@pytest.mark.parametrize(
    ("frames", "stride", "kernel"), [(3, 1, (3, 3)), (7, 1, (3, 3)), (7, 2, (3, 1)), (4, 1, (1, 1))]
)
def test_stacked_taps_give_the_same_values_and_gradients(frames: int, stride: int, kernel: tuple[int, int]) -> None:
    window, weight, bias = draw(2, frames, kernel)
    plain = conv3d(window, weight, bias, spatial_padding=kernel[1] // 2, temporal_stride=stride)
    plain.square().sum().backward()
    wanted = (weight.grad, bias.grad)
    weight.grad = bias.grad = None
    stacked = conv._stacked_taps(window, weight, bias, kernel[1] // 2, stride)
    stacked.square().sum().backward()
    assert relative_l2(stacked.detach(), plain.detach()) < 1e-5
    assert wanted[0] is not None
    assert relative_l2(weight.grad, wanted[0]) < 1e-5
    assert relative_l2(bias.grad, wanted[1]) < 1e-5


@pytest.mark.parametrize("stride", [1, 2])
def test_the_kernel_for_inference_gives_the_same_values(stride: int) -> None:
    window, weight, bias = draw(1, 7, (3, 3))
    learning = conv3d(window, weight, bias, spatial_padding=1, temporal_stride=stride)
    with torch.no_grad():
        inference = conv3d(window, weight, bias, spatial_padding=1, temporal_stride=stride)
    assert relative_l2(inference, learning.detach()) < 1e-6


def test_the_dangerous_gradient_is_never_asked_of_a_cpu_with_amx(monkeypatch: pytest.MonkeyPatch) -> None:
    used: list[str] = []
    monkeypatch.setattr(conv, "uses_amx", lambda: True)
    monkeypatch.setattr(conv, "_stacked_taps", lambda *_: used.append("stacked") or torch.zeros(1))
    window, weight, bias = draw(2, 3, (3, 3))
    conv3d(window, weight, bias, spatial_padding=1)
    assert not used, "float32 is sound"
    with torch.autocast("cpu", dtype=torch.bfloat16):
        conv3d(window, weight, bias, spatial_padding=1)
    assert used == ["stacked"]
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        conv3d(window, weight, bias, spatial_padding=1)
    assert used == ["stacked"], "without gradients the plain kernel is sound, and faster"


@pytest.mark.parametrize(("limit", "answer"), [("AVX512_CORE_BF16", False), ("AVX512_CORE_AMX", True), ("", True)])
def test_limiting_onednn_rules_amx_out(limit: str, answer: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: True)
    monkeypatch.setenv("DNNL_MAX_CPU_ISA", limit)
    assert conv.uses_amx() is answer
