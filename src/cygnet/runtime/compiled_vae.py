"""The VAE's norms, SiLUs, biases and skips compiled: between two convolutions one or two passes over memory, not six.

torch makes a pass each of the norm's sums, its two factors, SiLU, the bias (which cuDNN adds after convolving) and the
skip. On a GPU those take as long as the convolutions. Here a norm with SiLU is one pass, which also adds the bias of
the convolution before it in a block, and the block's last bias is added together with the skip.
"""

from __future__ import annotations

import logging
import math

import torch
import torch.nn.functional as F

from cygnet.models.vae.layers import CausalConv3d, ChannelRMSNorm, NormedConvolution, ResidualBlock, Stream
from cygnet.models.vae.model import WanVAE
from cygnet.ops.conv import conv3d
from cygnet.runtime.compile import Compile, CompiledFunction, Switch, missing_for_compiling

_log = logging.getLogger("cygnet")


def compile_vae(vae: WanVAE, mode: Compile, device: torch.device) -> WanVAE:
    """Let ``vae`` make its passes compiled on a GPU, in place; nothing without a compiler.

    A processor convolves otherwise (:mod:`cygnet.runtime.convolution`), and keeps what it has.
    """
    # "auto" leaves it: compiling takes seconds the first time, and what it can save is a few tenths of a second a
    # video, for on an H200 half of the 1.25 s of 81 frames at 832x480 are convolutions. Once a GPU has measured it,
    # "auto" may take it where it pays.
    if mode is not True or device.type != "cuda":
        return vae
    if missing := missing_for_compiling(device.type):
        _log.warning("the VAE is not compiled: %s", missing)
        return vae
    return fuse_passes(vae, device.type)


def fuse_passes(vae: WanVAE, device_type: str) -> WanVAE:
    """The same whatever the device; on one of another type, and wherever passes are not fused, it runs as before."""
    passes = _Passes(device_type)
    for module in vae.modules():
        if isinstance(module, ResidualBlock):
            module.forward = FusedBlock(module, passes)  # type: ignore[method-assign]
    for half in (vae.encoder, vae.decoder):
        conv: CausalConv3d = half.head["2"]  # type: ignore[assignment]
        conv.after_norm = _FusedHead(conv.after_norm, passes)
    return vae


class FusedBlock:
    """A block's ``forward`` in fused passes while a video streams by without gradients; else the plain one.

    Hooks fire as they do on the plain one: on the block and its shortcut.
    """

    def __init__(self, block: ResidualBlock, passes: _Passes) -> None:
        self._plain = block.forward
        self._block = block
        self._passes = passes

    def __call__(self, x: torch.Tensor, stream: Stream | None) -> torch.Tensor:
        """``x [B, C, T, H, W]`` -> ``[B, C', T, H, W]``."""
        parts, passes = self._block.residual, self._passes
        norm1, norm2 = parts["0"], parts["3"]
        conv1, conv2 = parts["2"], parts["6"]
        assert isinstance(conv1, CausalConv3d) and isinstance(conv2, CausalConv3d)  # noqa: PT018
        assert isinstance(norm1, ChannelRMSNorm) and isinstance(norm2, ChannelRMSNorm)  # noqa: PT018
        if stream is None or not passes.apply(conv1, x, stream):
            return self._plain(x, stream)
        # What is decided is done to the end, whatever happens to the compiler on the way: the second norm adds the bias
        # that the first convolution left out. Each large tensor goes as soon as it has been read.
        window = passes.activate(norm1, conv1, x, None, stream)
        h = _convolve_without_bias(conv1, window)
        del window
        window = passes.activate(norm2, conv2, h, conv1.bias, stream)
        del h
        out = _convolve_without_bias(conv2, window)
        del window
        skip = self._block.shortcut(x, stream) if isinstance(self._block.shortcut, CausalConv3d) else x
        return passes.add(out, conv2.bias, skip)


class _FusedHead:
    """The last norm, SiLU and convolution of a half; its few channels' bias is not worth a pass of our own."""

    def __init__(self, otherwise: NormedConvolution, passes: _Passes) -> None:
        self._otherwise = otherwise
        self._passes = passes

    def __call__(
        self,
        norm: ChannelRMSNorm,
        conv: CausalConv3d,
        x: torch.Tensor,
        stream: Stream | None,
        skip: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """As :class:`~cygnet.models.vae.layers.NormedConvolution`."""
        if stream is None or not self._passes.apply(conv, x, stream):
            return self._otherwise(norm, conv, x, stream, skip)
        out = conv.convolve(self._passes.activate(norm, conv, x, None, stream))
        return out if skip is None else out.add_(skip)


class _Passes:
    """The compiled passes of one VAE, over rows of a voxel's channels each, of which there may be any number.

    So they are compiled once for each width and dtype, not for each size of frame.
    """

    def __init__(self, device_type: str) -> None:
        self._device_type = device_type
        self._switch = Switch("the VAE runs")
        self._activate = CompiledFunction(_activate_rows, self._switch)
        self._add = CompiledFunction(_add_rows, self._switch)

    def apply(self, conv: CausalConv3d, x: torch.Tensor, stream: Stream) -> bool:
        """Whether they are for this input of ``conv``. A frame with nothing before it is convolved otherwise."""
        here = self._switch.on and x.device.type == self._device_type
        return here and not torch.is_grad_enabled() and not conv.is_alone(x, stream)

    def activate(
        self, norm: ChannelRMSNorm, conv: CausalConv3d, x: torch.Tensor, bias: torch.Tensor | None, stream: Stream
    ) -> torch.Tensor:
        """``silu(norm(x + bias))`` behind the history of ``conv``, which takes note of it: ``[B, C, 2 + T, H, W]``."""
        window = stream.window(conv, x, conv.history)
        gamma = norm.gamma.detach().flatten()
        # Zeros, and a parameter's bare values, cost less than one more function to compile for each width.
        bias = torch.zeros_like(gamma) if bias is None else bias.detach()
        for one, into in zip(_channels_last(x).split(1), window.split(1), strict=True):
            self._activate(_rows(one), bias, gamma, _rows(into))
        stream.remember(conv, window, conv.history)
        return window

    def add(self, out: torch.Tensor, bias: torch.Tensor | None, skip: torch.Tensor) -> torch.Tensor:
        """``out + bias + skip``, in place."""
        assert bias is not None
        out = _channels_last(out)
        self._add(_rows(out), bias.detach(), _rows(_channels_last(skip)))
        return out


def _convolve_without_bias(conv: CausalConv3d, window: torch.Tensor) -> torch.Tensor:
    return conv3d(window, conv.weight, None, spatial_padding=conv.spatial_padding)


def _channels_last(x: torch.Tensor) -> torch.Tensor:
    return x.contiguous(memory_format=torch.channels_last_3d)  # as it nearly always is, and then x itself


def _rows(x: torch.Tensor) -> torch.Tensor:
    """``[B, C, T, H, W]`` that lies channels last -> ``[N, C]``, the same memory, for what takes any number N."""
    rows = x.permute(0, 2, 3, 4, 1).view(-1, x.shape[1])
    torch._dynamo.maybe_mark_dynamic(rows, 0)
    return rows


def _activate_rows(x: torch.Tensor, bias: torch.Tensor, gamma: torch.Tensor, window: torch.Tensor) -> None:
    """Write ``silu(norm(x + bias))`` into the last rows of ``window``, computed in float32.

    x ``[N, C]``; window ``[M, C]``, M >= N; bias and gamma ``[C]``. The whole window is given, not a view of its last
    rows, for the compiler to know that it begins at a multiple of what a GPU reads and writes at once.
    """
    wide = x.float() + bias.float()
    norm = torch.linalg.vector_norm(wide, dim=1, keepdim=True).clamp_min(1e-12)
    window[window.shape[0] - x.shape[0] :].copy_(F.silu(wide * (math.sqrt(x.shape[1]) / norm) * gamma.float()))


def _add_rows(out: torch.Tensor, bias: torch.Tensor, skip: torch.Tensor) -> None:
    """Add ``bias [C]`` and ``skip [N, C]`` to ``out [N, C]``, and round once."""
    out.copy_(out.float() + bias.float() + skip.float())
