"""How the VAE convolves on a processor: fewer operations for the same sums, and less memory.

Measured on processors without AMX (docs/speed.md). AMX multiplies bfloat16 so fast that the sums of Winograd's form
would weigh more than the products that they save, so there float32 alone goes this way; and with many threads bands are
too small to share.
"""

from __future__ import annotations

import torch
from torch import nn

from cygnet.models.vae.config import VAEConfig
from cygnet.models.vae.layers import (
    CausalConv3d,
    ChannelRMSNorm,
    Stream,
    Upsample,
    norm_silu_then_convolve,
    repeat_then_convolve,
)
from cygnet.models.vae.model import WanVAE
from cygnet.ops.conv import uses_amx
from cygnet.ops.upsample import upsample_conv_by_phases
from cygnet.ops.winograd import norm_silu_conv_in_bands, workspace
from cygnet.runtime.memory import give_back_pieces

BANDS_FROM_CHANNELS = 96
"""Narrower convolutions take no longer than the sums."""
UP_TO_THREADS = 8

_PROCESSOR = ("cpu", "meta")
"""Shapes alone, without numbers, are of plans that were made for a processor."""


def fit_processor(vae: WanVAE) -> WanVAE:
    """Let ``vae`` convolve in bands and by phases where that is faster on a processor, in place.

    What is on a GPU when it is used is done as before; so it does not matter where the weights are now.
    """
    for module in vae.modules():
        if isinstance(module, CausalConv3d) and module.kernel_size == (3, 3, 3):
            if module.in_channels >= BANDS_FROM_CHANNELS:
                module.after_norm = _in_bands
        elif isinstance(module, Upsample):
            module.enlarge = _by_phases
    return vae


def _in_bands(
    norm: ChannelRMSNorm, conv: CausalConv3d, x: torch.Tensor, stream: Stream | None, skip: torch.Tensor | None = None
) -> torch.Tensor:
    if stream is None or x.shape[2] % 2 or torch.is_grad_enabled() or not bands_pay(x.device, x.dtype):
        return norm_silu_then_convolve(norm, conv, x, stream, skip)
    history = stream.history(conv, x, conv.history)
    out = stream.room(x, conv.out_channels) if skip is None else skip
    norm_silu_conv_in_bands(x, norm.gamma, history, conv.weight, conv.bias, skip, out=out)
    stream.keep(conv, history)
    if skip is not None:
        stream.recycle(x)
    if stream.sparing:
        give_back_pieces()
    return out


def bands_room(config: VAEConfig, dtype: torch.dtype, rows: int, columns: int) -> int:
    """Bytes that convolving in bands takes beside tensors, on this machine's processor.

    At most, over the levels of a picture of ``rows`` x ``columns`` latent cells.
    """
    if not bands_pay(torch.device("cpu"), dtype):
        return 0
    room, before, scale = 0, 0, config.spatial_stride
    for multiplier in config.width_multipliers:
        width = config.base_width * multiplier
        for channels in (before, width):
            if channels >= BANDS_FROM_CHANNELS:
                room = max(room, workspace(channels, width, rows * scale, columns * scale, dtype))
        before, scale = width, max(scale // 2, 1)
    return room


def _by_phases(x: torch.Tensor, conv: nn.Conv2d) -> torch.Tensor:
    if torch.is_grad_enabled() or not bands_pay(x.device, x.dtype):
        return repeat_then_convolve(x, conv)
    out = upsample_conv_by_phases(x, conv.weight, conv.bias)
    give_back_pieces()  # all that follows is of other sizes; what a level leaves would add up to a tenth of the peak
    return out


def bands_pay(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether convolutions in bands are meant for this machine's processor and ``dtype``."""
    if device.type not in _PROCESSOR or torch.get_num_threads() > UP_TO_THREADS:
        return False
    if dtype == torch.bfloat16:
        return bool(torch.cpu._is_avx512_bf16_supported()) and not uses_amx()
    return dtype == torch.float32 and "AVX" in torch.backends.cpu.get_cpu_capability()
