"""Convolution over time with history in front, and a form of it whose gradients are safe on every CPU.

Legend: B batch, C channels, T frames, H W height and width.
"""

from __future__ import annotations

import os

import torch
import torch.nn.functional as F


def conv3d(
    window: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    *,
    spatial_padding: int = 0,
    temporal_stride: int = 1,
) -> torch.Tensor:
    """Convolve ``window [B, C, T, H, W]`` without temporal padding: -> ``[B, C', (T - kt) // stride + 1, H, W]``.

    oneDNN's bfloat16 weight gradient of 3-D convolutions crashes or corrupts memory on CPUs with AMX (seen with a batch
    above 1 or a single output frame, torch 2.13). Wherever that gradient could be asked for there, the same sum is
    computed as one 2-D convolution over frames whose temporal taps are stacked on channels; its gradients are sound.
    """
    half = torch.is_autocast_enabled("cpu") or window.dtype in (torch.bfloat16, torch.float16)
    learning = torch.is_grad_enabled() and weight.requires_grad
    if learning and half and window.device.type == "cpu" and uses_amx():
        return _stacked_taps(window, weight, bias, spatial_padding, temporal_stride)
    padding = (0, spatial_padding, spatial_padding)
    plain = window.dtype == torch.float32 and window.device.type == "cpu" and not half
    if plain and not learning and torch.backends.mkldnn.is_available():
        # torch hands small float32 inputs (B*C*T*H up to 20,480) to its own kernel, ten times slower than oneDNN's.
        return torch.mkldnn_convolution(window, weight, bias, padding, (temporal_stride, 1, 1), (1, 1, 1), 1)
    return F.conv3d(window, weight, bias, stride=(temporal_stride, 1, 1), padding=padding)


def uses_amx() -> bool:
    """Whether oneDNN may use this CPU's AMX tiles; ``DNNL_MAX_CPU_ISA`` below AMX rules it out."""
    limit = os.environ.get("DNNL_MAX_CPU_ISA", "").upper()
    return torch.cpu._is_amx_tile_supported() and (not limit or "AMX" in limit or limit in ("ALL", "DEFAULT"))


# All that torch.compiler.assume_constant_result does, which first loads the compiler: a second at every start.
uses_amx._dynamo_marked_constant = True  # type: ignore[attr-defined]


def _stacked_taps(
    window: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, padding: int, stride: int
) -> torch.Tensor:
    batch, channels, frames, height, width = window.shape
    out_channels, _, taps, kh, kw = weight.shape
    count = (frames - taps) // stride + 1
    by_frame = window.transpose(1, 2)  # [B, T, C, H, W]
    shifted = [by_frame[:, tap : tap + stride * (count - 1) + 1 : stride] for tap in range(taps)]
    stacked = torch.cat(shifted, dim=2).reshape(batch * count, taps * channels, height, width)
    kernel = weight.transpose(1, 2).reshape(out_channels, taps * channels, kh, kw)
    stacked = stacked.contiguous(memory_format=torch.channels_last)
    out = F.conv2d(stacked, kernel, bias, padding=padding)
    frames_of_each: torch.Tensor = out.unflatten(0, (batch, count))
    return frames_of_each.transpose(1, 2)
