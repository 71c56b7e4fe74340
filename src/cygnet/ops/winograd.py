"""Norm, SiLU and a causal 3x3x3 convolution as one walk over bands of rows, two frames at a time with 4/6 of the taps.

Legend: B batch, C channels, T frames, H W height and width.

Two frames of a convolution over time cost six 2-D convolutions, or four by Winograd's F(2, 3): with taps g0 g1 g2 and
frames x0 x1 x2 x3, the results y0 = g0 x0 + g1 x1 + g2 x2 and y1 = g0 x1 + g1 x2 + g2 x3 are

    m0 = g0 (x0 - x2),  m1 = (g0 + g1 + g2)/2 (x1 + x2),  m2 = (g0 - g1 + g2)/2 (x2 - x1),  m3 = g2 (x1 - x3),
    y0 = m0 + m1 + m2,  y1 = m1 - m2 - m3

(Lavin and Gray, Fast Algorithms for Convolutional Neural Networks, 2015). The sums are cheap as long as they stay in
the processor's cache. So frames are worked on in bands of rows, and what comes before the convolution is done there as
well: the activation never lies in memory whole.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F

from cygnet.ops.norms import channel_scale

_BAND_BYTES = 1 << 20
"""What a frame's rows of a band may take for each thread."""


def norm_silu_conv_in_bands(
    x: torch.Tensor,
    gamma: torch.Tensor,
    history: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    skip: torch.Tensor | None = None,
    *,
    out: torch.Tensor,
) -> None:
    """``conv(history and silu(norm(x) * gamma)) + skip``, to rounding.

    ``x [B, C, T, H, W]`` with an even T; ``history [B, C, 2, H, W]``, the activation of the two frames before, which
    that of the last two frames takes the place of; ``weight [C', C, 3, 3, 3]``; ``skip`` as the result. The result
    ``[B, C', T, H, W]`` is written to ``out``, which may be ``skip`` and nothing else that is read. Each frame of it
    depends on its own three frames alone. No gradients. On the meta device there is nothing to write.
    """
    batch, channels, frames, height, width = x.shape
    if x.device.type == "meta":
        return
    rows = _rows(height, width * channels * x.element_size())
    ring, sums = x.new_zeros((4, rows + 2, width, channels)), x.new_empty((4, rows + 2, width, channels))
    kernels = _transformed(weight)
    above = x.new_empty((batch, 2, width, channels))  # the history's row above a band, which the last one wrote over
    given, past, results = (each.permute(0, 2, 3, 4, 1) for each in (x, history, out))
    added = None if skip is None else skip.permute(0, 2, 3, 4, 1)
    for top in range(0, height, rows):
        bottom = min(top + rows, height)
        seen = slice(max(top - 1, 0), min(bottom + 1, height))
        size, inside = bottom - top + 2, slice(seen.start - top + 1, seen.stop - top + 1)
        if bottom == height:
            ring[:, size - 1].zero_()  # what is below the picture; what is above it was zero from the start
        for number in range(batch):
            x0, x1, x2, x3 = (frame[:size] for frame in ring)
            ring[:2, inside] = past[number, :, seen]
            if top:
                ring[:2, 0] = above[number]
            above[number] = past[number, :, bottom - 1]
            for first in range(0, frames, 2):
                _norm_silu(given[number, first, seen], gamma.flatten(), x2[inside])
                _norm_silu(given[number, first + 1, seen], gamma.flatten(), x3[inside])
                pair = number, slice(first, first + 2), slice(top, bottom)
                beside = None if added is None else added[pair]
                _convolve_pair((x0, x1, x2, x3), sums[:, :size], kernels, bias, beside, results[pair])
                x0, x1, x2, x3 = x2, x3, x0, x1
            past[number, 0, top:bottom] = x0[1:-1]
            past[number, 1, top:bottom] = x1[1:-1]


def workspace(channels: int, out_channels: int, height: int, width: int, dtype: torch.dtype) -> int:
    """Bytes that :func:`norm_silu_conv_in_bands` takes beside its results, for frames of that size."""
    row, rows = width * channels * dtype.itemsize, _rows(height, width * channels * dtype.itemsize)
    read = 8 * (rows + 2) * row  # four of activation, four of sums
    made = 5 * rows * row * out_channels // channels
    kernel = 9 * channels * out_channels
    # Kernels are made in float32, before any row is; then there are two, and two copies in the order of the library.
    return read + max(4 * kernel * 4, made + 4 * kernel * dtype.itemsize)


def _rows(height: int, row_bytes: int) -> int:
    """Rows of a band: as many as fit, shared out evenly."""
    room = _BAND_BYTES * torch.get_num_threads()
    count = max(1, round(height * row_bytes / room))
    return -(-height // count)


def _norm_silu(x: torch.Tensor, gamma: torch.Tensor, out: torch.Tensor) -> None:
    torch.mul(x, channel_scale(x, -1), out=out).mul_(gamma)
    F.silu(out, inplace=True)


def _convolve_pair(
    frames: tuple[torch.Tensor, ...],
    sums: torch.Tensor,
    kernels: tuple[torch.Tensor, ...],
    bias: torch.Tensor | None,
    skip: torch.Tensor | None,
    out: torch.Tensor,
) -> None:
    """Rows ``[H + 2, W, C]`` of four frames to ``[2, H, W, C']``; ``sums`` is room for what is convolved."""
    x0, x1, x2, x3 = frames
    torch.sub(x0, x2, out=sums[0])
    torch.add(x1, x2, out=sums[1])
    torch.sub(x2, x1, out=sums[2])
    torch.sub(x1, x3, out=sums[3])
    biases = None, bias, None, None
    m0, m1, m2, m3 = (_convolve(*each) for each in zip(sums, kernels, biases, strict=True))
    if skip is None:
        torch.add(m1, m2, out=out[0]).add_(m0)
        torch.sub(m1, m2, out=out[1]).sub_(m3)
        return
    # The last sum of each in one go, for what is skipped may be where it goes.
    difference = torch.sub(m1, m2).sub_(m3)
    torch.add(m1.add_(m2).add_(m0), skip[0], out=out[0])
    torch.add(difference, skip[1], out=out[1])


def _convolve(rows: torch.Tensor, kernel: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    return F.conv2d(rows.permute(2, 0, 1)[None], kernel, bias, padding=(0, 1))[0].permute(1, 2, 0)


def _transformed(weight: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """The four 2-D kernels; the two mixed ones are summed in float32."""
    first, second, third = weight.unbind(2)
    ends, middle = (first.float() + third.float()) / 2, second.float() / 2
    return first, (ends + middle).to(weight.dtype), (ends - middle).to(weight.dtype), third
