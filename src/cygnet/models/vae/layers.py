"""Building blocks of Wan-VAE, written for chunks of frames that arrive one after another.

Legend: B batch, C channels, T H W frames/height/width of the tensor at hand.

Every layer takes ``stream``: None when the whole video is given at once (training, short clips), else the
:class:`Stream` of this pass. The two are the same function (Wan-Video/Wan2.1: wan/modules/vae.py caches the same
frames under slot numbers; here each convolution owns its history by identity).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol

import torch
import torch.nn.functional as F
from torch import nn

from cygnet.ops.attention import sdpa
from cygnet.ops.conv import conv3d
from cygnet.ops.norms import channel_scale


class Stream:
    """What one pass over one video remembers between chunks: the last frames that each convolution has seen.

    Made by the caller, handed to every call, dropped at the end; never stored on a module. Its size does not depend
    on how many frames have passed.
    """

    def __init__(self, *, sparing: bool = False) -> None:
        self.sparing = sparing
        """Whether memory is so short that keeping it from lying about in pieces is worth time."""
        self.started = False
        self.still = Still()
        self._history: dict[nn.Module, torch.Tensor] = {}
        self._spare: torch.Tensor | None = None
        self._size: tuple[int, ...] | None = None

    def expect(self, size: tuple[int, ...]) -> None:
        """Raise ValueError when a chunk is not of the first one's batch, height and width."""
        if self._size not in (None, size):
            raise ValueError(f"a chunk has batch, height and width {size}; those before it have {self._size}")
        self._size = size

    def window(self, layer: nn.Module, x: torch.Tensor, frames: int) -> torch.Tensor:
        """Uninitialised room for ``frames`` of history and ``x.shape[2]`` new frames; the history is filled in."""
        batch, channels, new, height, width = x.shape
        shape = (batch, channels, frames + new, height, width)
        window = torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=torch.channels_last_3d)
        past = self._history.get(layer)
        known = 0 if past is None else past.shape[2]
        window[:, :, : frames - known].zero_()
        if past is not None:
            window[:, :, frames - known : frames] = past
        return window

    def history(self, layer: nn.Module, like: torch.Tensor, frames: int) -> torch.Tensor:
        """The last ``frames`` frames that the layer has seen, zeros for those that never were: as ``like`` but in T.

        They may be written over, and then given to :meth:`keep`.
        """
        past = self._history.get(layer)
        if past is not None and past.shape[2] == frames:
            return past.to(like.device) if _may_be_written(past) else past.to(like.device, copy=True)
        return self.window(layer, like[:, :, :0], frames)

    def is_new(self, layer: nn.Module) -> bool:
        """Whether the layer has seen no frame of this video yet."""
        return layer not in self._history

    def remember(self, layer: nn.Module, x: torch.Tensor, frames: int) -> None:
        """Keep the last ``frames`` frames of ``x`` as the layer's history."""
        self._history[layer] = x[:, :, -frames:].clone()

    def keep(self, layer: nn.Module, history: torch.Tensor) -> None:
        """Make ``history``, which is nobody else's, the layer's history."""
        self._history[layer] = history

    def recycle(self, x: torch.Tensor) -> None:
        """Let the next :meth:`room` be that of ``x``, to which nothing else refers any more.

        Memory that is given back for each layer and asked for again comes from the system page by page, which takes a
        tenth of the time of a pass; and in between others would settle in it.
        """
        if not self.sparing:
            self._spare = x

    def room(self, like: torch.Tensor, channels: int) -> torch.Tensor:
        """Uninitialised room for as many frames as ``like`` has, of ``channels`` channels, channels-last."""
        spare, layout = self._spare, torch.channels_last_3d
        self._spare = None
        shape = (like.shape[0], channels, *like.shape[2:])
        if (
            spare is not None
            and (spare.shape, spare.dtype, spare.device) == (shape, like.dtype, like.device)
            and spare.is_contiguous(memory_format=layout)
            and _may_be_written(spare)
        ):
            return spare
        del spare
        return torch.empty(shape, dtype=like.dtype, device=like.device, memory_format=layout)

    def park(self) -> None:
        """Move what is remembered to the host's memory; layers fetch it from there when the next chunk comes."""
        self._spare = None
        self._history = {layer: past.cpu() for layer, past in self._history.items()}


def _may_be_written(x: torch.Tensor) -> bool:
    """Not outside of ``torch.inference_mode`` what was made within it."""
    return torch.is_inference_mode_enabled() or not x.is_inference()


class Still:
    """Notices a stretch of video in which nothing changes, so that layers that see nothing else need not run again.

    Image-to-video encodes one picture and then many grey frames. Once a layer has been run on grey alone, its next
    output is the one before, bit for bit: of 81 frames that saves two thirds of the work.
    """

    def __init__(self) -> None:
        self.frames = 0
        """How many of the frames given last, in chunks of one length, are one and the same picture."""
        self._last: torch.Tensor | None = None
        self._chunk = 0
        self._kept: tuple[int, torch.Tensor] | None = None

    def look(self, video: torch.Tensor) -> None:
        """Take note of a chunk ``[B, C, T, H, W]`` before it is worked on."""
        fresh = video.unbind(2)
        before = (self._last, *fresh[:-1])
        self.note([old is not None and torch.equal(old, new) for old, new in zip(before, fresh, strict=True)])
        self._last = fresh[-1].clone()

    def note(self, alike: Sequence[bool]) -> None:
        """The same of a chunk of which is known for each frame whether it equals the one before."""
        if not all(alike) or len(alike) != self._chunk:
            self._kept = None
        if len(alike) != self._chunk:  # another length may be convolved in another way, and then last digits differ
            self.frames = 0
        for same in alike:
            self.frames = self.frames + 1 if same else 1
        self._chunk = len(alike)

    def resume(self, x: torch.Tensor) -> tuple[int, torch.Tensor]:
        """The number of layers that can be left out for this chunk and the output of the last of them, or 0 and x."""
        if self._kept is None:
            return 0, x
        done, kept = self._kept
        return done, kept.clone()

    def depth(self, windows: Sequence[Window]) -> int:
        """How many of the layers that look through ``windows``, from the first on, see nothing but one picture."""
        alike, frames = self.frames, self._chunk
        for number, window in enumerate(windows):
            if alike < window.past + frames:
                return number
            alike, frames = (alike - window.past) // window.stride, frames // window.stride
        return len(windows)

    def keep(self, depth: int, x: torch.Tensor) -> None:
        """Remember the output of the first ``depth`` layers, for a next chunk that shows the same picture."""
        self._kept = (depth, x.clone()) if depth else None  # the next layer may overwrite x


class Window(NamedTuple):
    """What a layer sees of time: ``past`` frames before the present ones, of which it makes one in ``stride``."""

    past: int
    stride: int = 1


class CausalConv3d(nn.Conv3d):
    """3-D convolution that never sees the future: all temporal padding is in front."""

    def __init__(self, in_channels: int, out_channels: int, kernel: tuple[int, int, int]) -> None:
        super().__init__(in_channels, out_channels, kernel)
        self.history = kernel[0] - 1
        self.spatial_padding = kernel[1] // 2
        self.after_norm: NormedConvolution = norm_silu_then_convolve
        """How it is done together with a norm and SiLU before it; set from outside for a device."""

    def convolve(self, window: torch.Tensor) -> torch.Tensor:
        """Convolve frames that already carry their history in front."""
        return conv3d(window, self.weight, self.bias, spatial_padding=self.spatial_padding)

    def is_alone(self, x: torch.Tensor, stream: Stream | None) -> bool:
        """Whether ``x`` is one frame before which there is nothing: only the last temporal tap then meets data."""
        return x.shape[2] == 1 and (stream is None or stream.is_new(self))

    def convolve_alone(self, x: torch.Tensor, stream: Stream | None) -> torch.Tensor:
        """The convolution of such a frame, without the taps that would meet zeros: three times less work."""
        if stream is not None:
            # With the zeros before it, so that what is remembered has one size from the start and can be written over.
            history = stream.window(self, x, self.history - 1)
            history[:, :, self.history - 1 :] = x
            stream.keep(self, history)
        frames, batch = fold_time(x)
        return unfold_time(F.conv2d(frames, self.weight[:, :, -1], self.bias, padding=self.spatial_padding), batch)

    def forward(self, x: torch.Tensor, stream: Stream | None) -> torch.Tensor:  # type: ignore[override]
        """``x [B, C, T, H, W]`` -> ``[B, C', T, H, W]``."""
        if self.history == 0:
            return self.convolve(x)
        if self.is_alone(x, stream):
            return self.convolve_alone(x, stream)
        if stream is None:
            return self.convolve(F.pad(x, (0, 0, 0, 0, self.history, 0)))
        window = stream.window(self, x, self.history)
        window[:, :, self.history :] = x
        stream.remember(self, window, self.history)
        return self.convolve(window)


class ChannelRMSNorm(nn.Module):
    """Scale each voxel's channel vector to root-mean-square 1, then by ``gamma``; statistics in float32."""

    def __init__(self, channels: int, dims: int) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.ones(channels, *(1,) * dims))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """``x [B, C, ...]`` -> the same shape."""
        return x * channel_scale(x, 1) * self.gamma


class NormedConvolution(Protocol):
    """Computes ``conv(silu(norm(x))) + skip``."""

    def __call__(
        self,
        norm: ChannelRMSNorm,
        conv: CausalConv3d,
        x: torch.Tensor,
        stream: Stream | None,
        skip: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """``x [B, C, T, H, W]`` -> ``[B, C', T, H, W]``, the shape of ``skip``; without one nothing is added.

        While streaming, with a ``skip``, that may be overwritten with the result, and ``x`` by what comes later.
        """
        ...


def norm_silu_conv(
    norm: ChannelRMSNorm,
    conv: CausalConv3d,
    x: torch.Tensor,
    stream: Stream | None,
    skip: torch.Tensor | None = None,
) -> torch.Tensor:
    """``conv(silu(norm(x))) + skip``, as :class:`NormedConvolution`, in the way that was chosen for ``conv``."""
    return conv.after_norm(norm, conv, x, stream, skip)


def norm_silu_then_convolve(
    norm: ChannelRMSNorm,
    conv: CausalConv3d,
    x: torch.Tensor,
    stream: Stream | None,
    skip: torch.Tensor | None = None,
) -> torch.Tensor:
    """The same, one after the other. While streaming, the activation is written straight behind the history."""
    if stream is None or conv.is_alone(x, stream):
        out: torch.Tensor = conv(F.silu(norm(x)), stream)
        return out if skip is None else out + skip
    window = stream.window(conv, x, conv.history)
    fresh = window[:, :, conv.history :]
    torch.mul(x, channel_scale(x, 1), out=fresh)
    fresh.mul_(norm.gamma)
    F.silu(fresh, inplace=True)
    stream.remember(conv, window, conv.history)
    out = conv.convolve(window)
    del window, fresh
    return out if skip is None else out.add_(skip)


class ResidualBlock(nn.Module):
    """Two causal 3x3x3 convolutions with norm and SiLU before each, plus a shortcut."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        # Indices follow the published keys: 0 norm, 2 conv, 3 norm, 6 conv (1 and 4 SiLU, 5 dropout hold no weights).
        self.residual = nn.ModuleDict(
            {
                "0": ChannelRMSNorm(in_channels, 3),
                "2": CausalConv3d(in_channels, out_channels, (3, 3, 3)),
                "3": ChannelRMSNorm(out_channels, 3),
                "6": CausalConv3d(out_channels, out_channels, (3, 3, 3)),
            }
        )
        self.shortcut = (
            CausalConv3d(in_channels, out_channels, (1, 1, 1)) if in_channels != out_channels else nn.Identity()
        )

    def forward(self, x: torch.Tensor, stream: Stream | None) -> torch.Tensor:
        """``x [B, C, T, H, W]`` -> ``[B, C', T, H, W]``. While streaming, ``x`` may be overwritten with the result.

        So may the result by the next block, in place: a hook that keeps it keeps a copy.
        """
        norm1, conv1, norm2, conv2 = (self.residual[key] for key in ("0", "2", "3", "6"))
        h = norm_silu_conv(norm1, conv1, x, stream)  # type: ignore[arg-type]
        skip = self.shortcut(x, stream) if isinstance(self.shortcut, CausalConv3d) else x
        return norm_silu_conv(norm2, conv2, h, stream, skip)  # type: ignore[arg-type]


class SpatialAttention(nn.Module):
    """One head of attention over the positions of each frame."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = ChannelRMSNorm(channels, 2)
        self.to_qkv = nn.Conv2d(channels, 3 * channels, 1)
        self.proj = nn.Conv2d(channels, channels, 1)

    def forward(self, x: torch.Tensor, stream: Stream | None) -> torch.Tensor:
        """``x [B, C, T, H, W]`` -> the same shape; frames do not see each other."""
        frames, batch = fold_time(x)  # [B*T, C, H, W]
        qkv = self.to_qkv(self.norm(frames)).flatten(2).transpose(1, 2).unsqueeze(1)  # [B*T, 1, H*W, 3C]
        q, k, v = qkv.chunk(3, dim=-1)
        out = sdpa(q, k, v).squeeze(1).transpose(1, 2).reshape(frames.shape)
        return x + unfold_time(self.proj(out), batch)


class Downsample(nn.Module):
    """Halve height and width, and with ``temporal`` the frame rate."""

    def __init__(self, channels: int, *, temporal: bool) -> None:
        super().__init__()
        self.resample = nn.ModuleDict({"1": nn.Conv2d(channels, channels, 3, stride=2)})
        self.time_conv = CausalConv3d(channels, channels, (3, 1, 1)) if temporal else None

    def forward(self, x: torch.Tensor, stream: Stream | None) -> torch.Tensor:
        """``[B, C, T, H, W]`` -> ``[B, C, T', H/2, W/2]``; T' is (T+1)/2 for a first chunk, T/2 after it, or T."""
        frames, batch = fold_time(x)
        x = unfold_time(self.resample["1"](F.pad(frames, (0, 1, 0, 1))), batch)
        if self.time_conv is None:
            return x
        # The first frame of a video passes alone; every later output sees its last input and the two before it.
        if stream is None or not stream.started:
            if stream is not None:
                stream.remember(self, x, 1)
            return x if x.shape[2] == 1 else torch.cat([x[:, :, :1], self._halve(x)], dim=2)
        window = stream.window(self, x, 1)
        window[:, :, 1:] = x
        stream.remember(self, window, 1)
        return self._halve(window)

    def _halve(self, window: torch.Tensor) -> torch.Tensor:
        assert self.time_conv is not None
        return conv3d(window, self.time_conv.weight, self.time_conv.bias, temporal_stride=2)


class Upsample(nn.Module):
    """Double height and width while halving channels, and with ``temporal`` double the frame rate."""

    def __init__(self, channels: int, *, temporal: bool) -> None:
        super().__init__()
        self.resample = nn.ModuleDict({"1": nn.Conv2d(channels, channels // 2, 3, padding=1)})
        self.enlarge: Enlarging = repeat_then_convolve
        """How a frame is enlarged; set from outside for a device."""
        self.time_conv = CausalConv3d(channels, 2 * channels, (3, 1, 1)) if temporal else None

    def forward(self, x: torch.Tensor, stream: Stream | None) -> torch.Tensor:
        """``[B, C, T, H, W]`` -> ``[B, C/2, T', 2H, 2W]``; T' is 2T-1 for a first chunk, 2T after it, or T."""
        if self.time_conv is not None:
            if stream is not None and stream.started:
                x = self._double(x, stream)
            elif x.shape[2] > 1:
                # The first frame is not context for the second: the network was trained with zeros there.
                x = torch.cat([x[:, :, :1], self._double(x[:, :, 1:], stream)], dim=2)
        frames, batch = fold_time(x)
        return unfold_time(self.enlarge(frames, self.resample["1"]), batch)  # type: ignore[arg-type]

    def _double(self, x: torch.Tensor, stream: Stream | None) -> torch.Tensor:
        assert self.time_conv is not None
        pairs = self.time_conv(x, stream).unflatten(1, (2, -1))  # [B, 2, C, T, H, W]: first half is the earlier frame
        in_time = pairs.permute(0, 3, 1, 4, 5, 2).flatten(1, 2)  # [B, 2T, H, W, C], so that the result is channels-last
        return in_time.permute(0, 4, 1, 2, 3)  # type: ignore[no-any-return]


class Enlarging(Protocol):
    """Doubles height and width by repeating each pixel, and convolves the result."""

    def __call__(self, x: torch.Tensor, conv: nn.Conv2d) -> torch.Tensor:
        """``x [N, C, H, W]`` -> ``[N, C', 2H, 2W]``; ``conv`` is 3x3 with a padding of 1."""
        ...


def repeat_then_convolve(x: torch.Tensor, conv: nn.Conv2d) -> torch.Tensor:
    """As :class:`Enlarging`, one after the other."""
    return conv(F.interpolate(x, scale_factor=2.0, mode="nearest-exact"))  # type: ignore[no-any-return]


def fold_time(x: torch.Tensor) -> tuple[torch.Tensor, int]:
    """``[B, C, T, H, W]`` -> ``[B*T, C, H, W]`` and B."""
    return x.transpose(1, 2).flatten(0, 1), x.shape[0]


def unfold_time(frames: torch.Tensor, batch: int) -> torch.Tensor:
    """``[B*T, C, H, W]`` -> ``[B, C, T, H, W]``."""
    frames_of_each: torch.Tensor = frames.unflatten(0, (batch, -1))
    return frames_of_each.transpose(1, 2)
