"""Wan-VAE: video ``[B, 3, T, H, W]`` in [-1, 1] to normalised latents ``[B, 16, t, h, w]`` and back.

t = 1 + (T - 1) / 4, h = H / 8, w = W / 8 for the published model. Source: Wan-Video/Wan2.1: wan/modules/vae.py.
Parameter names are the published ones. The latents' mean and standard deviation belong to the model: callers only
ever see normalised latents.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import ClassVar, Self

import torch
from torch import nn

from cygnet.models.vae.config import VAEConfig
from cygnet.models.vae.layers import (
    CausalConv3d,
    ChannelRMSNorm,
    Downsample,
    ResidualBlock,
    SpatialAttention,
    Still,
    Stream,
    Upsample,
    Window,
    norm_silu_conv,
)


def _head(channels: int, out_channels: int) -> nn.ModuleDict:
    # 0 norm, 1 SiLU (no weights), 2 convolution
    return nn.ModuleDict({"0": ChannelRMSNorm(channels, 3), "2": CausalConv3d(channels, out_channels, (3, 3, 3))})


def _middle(channels: int) -> nn.ModuleList:
    return nn.ModuleList(
        [ResidualBlock(channels, channels), SpatialAttention(channels), ResidualBlock(channels, channels)]
    )


class Encoder(nn.Module):
    """Pixels to ``2 * latent_channels`` statistics."""

    def __init__(self, config: VAEConfig) -> None:
        super().__init__()
        widths = [config.base_width * m for m in config.width_multipliers]
        self.conv1 = CausalConv3d(3, widths[0], (3, 3, 3))
        layers: list[nn.Module] = []
        self.windows = [Window(2)]  # of conv1 and all that follows up to the head
        width = widths[0]
        for level, out in enumerate(widths):
            for _ in range(config.residual_blocks):
                layers.append(ResidualBlock(width, out))
                self.windows.append(Window(4))
                width = out
            if level < len(widths) - 1:
                temporal = config.temporal_downsample[level]
                layers.append(Downsample(width, temporal=temporal))
                self.windows.append(Window(1, 2) if temporal else Window(0))
        self.downsamples = nn.ModuleList(layers)
        self.middle = _middle(width)
        self.windows += [Window(4), Window(0), Window(4)]
        self.head = _head(width, 2 * config.latent_channels)

    def forward(self, x: torch.Tensor, stream: Stream | None) -> torch.Tensor:
        """``[B, 3, T, H, W]`` -> ``[B, 2Z, t, h, w]``."""
        layers = (self.conv1, *self.downsamples, *self.middle)
        still = Still() if stream is None else stream.still
        done, x = still.resume(x)
        settled = still.depth(self.windows)
        for number, layer in enumerate(layers[done:], done + 1):
            x = layer(x, stream)
            if number == settled:
                still.keep(settled, x)
        return norm_silu_conv(self.head["0"], self.head["2"], x, stream)  # type: ignore[arg-type]


class Decoder(nn.Module):
    """Latents to pixels."""

    def __init__(self, config: VAEConfig) -> None:
        super().__init__()
        widths = [config.base_width * m for m in reversed(config.width_multipliers)]
        doubles = tuple(reversed(config.temporal_downsample))
        self.conv1 = CausalConv3d(config.latent_channels, widths[0], (3, 3, 3))
        self.middle = _middle(widths[0])
        layers: list[nn.Module] = []
        width = widths[0]
        for level, out in enumerate(widths):
            for _ in range(config.residual_blocks + 1):
                layers.append(ResidualBlock(width, out))
                width = out
            if level < len(widths) - 1:
                layers.append(Upsample(width, temporal=doubles[level]))
                width //= 2
        self.upsamples = nn.ModuleList(layers)
        self.head = _head(width, 3)

    def forward(self, x: torch.Tensor, stream: Stream | None) -> torch.Tensor:
        """``[B, Z, t, h, w]`` -> ``[B, 3, T, H, W]``."""
        x = self.conv1(x, stream)
        for layer in (*self.middle, *self.upsamples):
            x = layer(x, stream)
        return norm_silu_conv(self.head["0"], self.head["2"], x, stream)  # type: ignore[arg-type]


class WanVAE(nn.Module):
    """The causal video autoencoder. Encoding returns the mean of the posterior: nothing is sampled."""

    fp32_parameters: ClassVar[tuple[str, ...]] = ()

    latents_mean: torch.Tensor
    latents_std: torch.Tensor

    def __init__(self, config: VAEConfig) -> None:
        super().__init__()
        self.config = config
        z = config.latent_channels
        self.encoder = Encoder(config)
        self.conv1 = CausalConv3d(2 * z, 2 * z, (1, 1, 1))
        self.conv2 = CausalConv3d(z, z, (1, 1, 1))
        self.decoder = Decoder(config)

    @property
    def dtype(self) -> torch.dtype:
        """The dtype in which the encoding convolutions run."""
        return self.conv1.weight.dtype

    @property
    def decode_dtype(self) -> torch.dtype:
        """The dtype in which the decoding convolutions run."""
        return self.conv2.weight.dtype

    @property
    def device(self) -> torch.device:
        """The device of the weights."""
        return self.conv2.weight.device

    def decode_in(self, dtype: torch.dtype) -> Self:
        """Let the half that decodes compute in ``dtype``, in place; the half that encodes stays as it is."""
        self.conv2.to(dtype)
        self.decoder.to(dtype)
        return self

    def channels_last(self) -> Self:
        """Lay the kernels out channels-last, in place: the layout in which every backend convolves fastest."""
        for parameter in self.parameters():
            if parameter.ndim in (4, 5):
                layout = torch.channels_last if parameter.ndim == 4 else torch.channels_last_3d
                parameter.data = parameter.data.contiguous(memory_format=layout)
        return self

    def encode(self, video: torch.Tensor, *, chunk: int = 1) -> torch.Tensor:
        """``video [B, 3, T, H, W]`` in [-1, 1], T = 4n + 1 -> normalised latents ``[B, 16, t, h, w]``, float32.

        ``chunk`` is how many latent frames are made at a time after the first; it bounds memory, and changes
        latents in rounding alone. Raises ValueError when T, H or W does not fit the strides.
        """
        self.check_video(video)
        stride = self.config.temporal_stride * _positive(chunk)
        pieces = [video[:, :, :1], *video[:, :, 1:].split(stride, dim=2)] if video.shape[2] > 1 else [video]
        return torch.cat(list(self.encode_chunks(pieces)), dim=2)

    def encode_chunks(self, chunks: Iterable[torch.Tensor]) -> Iterator[torch.Tensor]:
        """Latents as pixels arrive: the first chunk holds 4a + 1 frames, each later one 4b; memory stays constant.

        What is not encoded again because nothing changes is what it would be, bit for bit. How a video is divided into
        chunks changes latents in rounding alone.

        Raises ValueError when a chunk has another number of frames, or another size than the first.
        """
        stream = Stream()
        for chunk in chunks:
            yield self.encode_chunk(chunk, stream)

    @torch.no_grad()
    def encode_chunk(self, video: torch.Tensor, stream: Stream) -> torch.Tensor:
        """One step of :meth:`encode_chunks` with the state in the caller's hands."""
        self.check_video(video, first=not stream.started)
        stream.expect((video.shape[0], *video.shape[3:]))
        stream.still.look(video)
        stats = self._statistics(video, stream)
        stream.started = True
        return self.normalise(stats.chunk(2, dim=1)[0])

    def decode(self, latents: torch.Tensor, *, chunk: int = 1) -> torch.Tensor:
        """Normalised latents ``[B, 16, t, h, w]`` -> video ``[B, 3, 4t - 3, H, W]`` clamped to [-1, 1], float32."""
        return torch.cat(list(self.decode_chunks(latents, chunk=chunk)), dim=2)

    def decode_chunks(self, latents: torch.Tensor, *, chunk: int = 1) -> Iterator[torch.Tensor]:
        """The frames of :meth:`decode` as they are ready: 1 first, then ``4 * chunk`` at a time."""
        self.check_latents(latents)
        stream = Stream()
        pieces = [latents[:, :, :1]]
        if latents.shape[2] > 1:
            pieces += latents[:, :, 1:].split(_positive(chunk), dim=2)
        for piece in pieces:
            yield self.decode_chunk(piece, stream).clamp_(-1, 1)

    @torch.no_grad()
    def decode_chunk(self, latents: torch.Tensor, stream: Stream) -> torch.Tensor:
        """One step of :meth:`decode_chunks`, before the clamp, with the state in the caller's hands."""
        frames = self._frames(latents, stream)
        stream.started = True
        return frames

    def posterior(self, video: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Whole-video mean and log-variance (raw, not normalised), with gradients: for training."""
        self.check_video(video)
        mean, log_variance = self._statistics(video, None).chunk(2, dim=1)
        return mean, log_variance

    def reconstruct(self, raw_latents: torch.Tensor) -> torch.Tensor:
        """Whole-video decode of raw latents, not clamped, with gradients: for training."""
        return self.decoder(self.conv2(raw_latents, None), None)  # type: ignore[no-any-return]

    def normalise(self, raw: torch.Tensor) -> torch.Tensor:
        """Raw latents to the space of the diffusion transformer, in float32."""
        mean, std = self._moments(raw)
        return (raw.float() - mean) / std

    def denormalise(self, latents: torch.Tensor) -> torch.Tensor:
        """The inverse of :meth:`normalise`."""
        mean, std = self._moments(latents)
        return latents.float() * std + mean

    def _statistics(self, video: torch.Tensor, stream: Stream | None) -> torch.Tensor:
        video = video.to(self.device, self.dtype, memory_format=torch.channels_last_3d)
        return self.conv1(self.encoder(video, stream), stream)  # type: ignore[no-any-return]

    def _frames(self, latents: torch.Tensor, stream: Stream | None) -> torch.Tensor:
        raw = self.denormalise(latents).to(self.device, self.decode_dtype, memory_format=torch.channels_last_3d)
        return self.decoder(self.conv2(raw, stream), stream).float()  # type: ignore[no-any-return]

    def _moments(self, like: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        shape = (1, -1, 1, 1, 1)
        mean = torch.tensor(self.config.latents_mean, dtype=torch.float32, device=like.device).view(shape)
        std = torch.tensor(self.config.latents_std, dtype=torch.float32, device=like.device).view(shape)
        return mean, std

    def check_video(self, video: torch.Tensor, *, first: bool = True) -> None:
        """Raise ValueError unless a video, or a later chunk of one, has a shape that can be encoded."""
        space, time = self.config.spatial_stride, self.config.temporal_stride
        if video.ndim != 5 or video.shape[1] != 3 or not video.shape[0]:
            raise ValueError(f"video must be [B, 3, T, H, W], not {list(video.shape)}")
        frames, height, width = video.shape[2:]
        if not first and (frames < 1 or frames % time):
            raise ValueError(f"a later chunk has {frames} frames; after the first they hold {time}n (4, 8, ...)")
        if first and (frames < 1 or frames % time != 1):
            raise ValueError(f"the video has {frames} frames; Wan-VAE needs {time}n+1 (1, 5, 9, ...)")
        if height % space or width % space or not height or not width:
            raise ValueError(f"the video is {width}x{height}; width and height must be multiples of {space}")

    def check_latents(self, latents: torch.Tensor) -> None:
        """Raise ValueError unless latents have a shape that can be decoded."""
        if latents.ndim != 5 or latents.shape[1] != self.config.latent_channels or not latents.numel():
            want = f"[B, {self.config.latent_channels}, t, h, w], none of them 0"
            raise ValueError(f"latents must be {want}, not {list(latents.shape)}")


def _positive(chunk: int) -> int:
    if chunk < 1:
        raise ValueError(f"chunk is {chunk}; it must be at least 1 latent frame")
    return chunk
