"""The VAE on a picture that does not fit into memory whole: its wide layers on one tile of it after another.

Nearly all memory goes to the last two levels of the decoder and the first two of the encoder, which work at half and at
full size. Those run tile by tile. The others, with the attention over all of a frame, see the whole frame. A tile is
given all that its pixels depend on (``margin``), and what it makes beyond its own is cut off: so tiles fit together
without a seam and without blending, and the result is that of the whole picture up to rounding.

Every tile has a :class:`Stream` of its own, which lives as long as the video: frames come as they do without tiles, and
memory does not grow with their number.

Legend: ``B`` batch; ``T H W`` frames, height, width; ``t h w`` latent grid; features are ``[B, C, T, y, x]``.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, product

import torch
from torch import nn

from cygnet.models.vae.config import VAEConfig
from cygnet.models.vae.layers import Downsample, Stream, Upsample, norm_silu_conv
from cygnet.models.vae.model import WanVAE
from cygnet.pipelines.record import Half
from cygnet.types import Tiles

TILED_LEVELS = 2
"""Of the decoder the last, of the encoder the first that run tile by tile."""


@dataclass(frozen=True, kw_only=True)
class Portions:
    """How much of a video the VAE works on at a time."""

    decode_tiles: Tiles | None = None
    """None for whole frames, as many at a time as suit the size. In tiles it is one latent frame at a time, also where
    one tile holds the whole frame."""
    encode_tiles: Tiles | None = None
    """The same of encoding."""
    parked: bool = False
    """Whether what tiles remember waits in the host's memory while others are worked on. The result is the same."""


WHOLE = Portions()


@dataclass(frozen=True)
class Span:
    """Along one axis, in latent cells: what a tile gives, and what it is given."""

    start: int
    stop: int
    seen_from: int
    seen_to: int

    @property
    def seen(self) -> int:
        """Cells that it is given."""
        return self.seen_to - self.seen_from


def margin(config: VAEConfig) -> int:
    """Latent cells beyond its own that a tile must see: as far as its layers reach, rounded up.

    In pixels the decoder's reach 1 (head), 2 a block and 1 (upsampling) at full size, and the same without the head at
    half, where each step is two pixels. The encoder has one block less a level, and reaches less far.
    """
    blocks = config.residual_blocks + 1
    reach = 1 + (2 * blocks + 1) * 1 + (2 * blocks + 1) * 2
    return -(-reach // config.spatial_stride)


def spans(length: int, tile: int, beyond: int) -> list[Span]:
    """Tiles of ``tile`` cells along an axis of ``length`` cells, each of which sees ``beyond`` more on either side."""
    return [
        Span(start, min(start + tile, length), max(start - beyond, 0), min(start + tile + beyond, length))
        for start in range(0, length, tile)
    ]


def smaller(tiles: Tiles | None, width: int, height: int, at_once: int = 1) -> Tiles | None:
    """The next smaller portion of a picture; None if there is none.

    Where ``at_once`` latent frames, more than one, are worked on whole, it is a single one, whole: one tile as large as
    the picture. Else tiles of half the sides, of the smallest at least.
    """
    if tiles is None and at_once > 1:
        return Tiles(width=max(width, Tiles.LEAST), height=max(height, Tiles.LEAST))
    before = (width, height) if tiles is None else (min(tiles.width, width), min(tiles.height, height))
    halves = [max(-(-side // (2 * Tiles.CELL)) * Tiles.CELL, Tiles.LEAST) for side in before]
    if all(half >= side for half, side in zip(halves, before, strict=True)):
        return None
    return Tiles(width=halves[0], height=halves[1])


def within(config: VAEConfig, side: int, width: int, height: int) -> Tiles:
    """Tiles of about equal size that see at most ``side`` pixels along each axis, if that is no less than possible."""
    own = max(side - 2 * margin(config) * Tiles.CELL, Tiles.LEAST)

    def even(length: int) -> int:
        count = 1 if length <= side else -(-length // own)
        return max(-(-length // (count * Tiles.CELL)) * Tiles.CELL, Tiles.LEAST)

    return Tiles(width=even(width), height=even(height))


def describe(tiles: Tiles, width: int, height: int) -> str:
    """In words: 4 tiles of 416x240."""
    count = tiles.count(width, height)
    size = f"{min(tiles.width, width)}x{min(tiles.height, height)}"
    return f"{count} tiles of {size}" if count > 1 else f"one tile of {size}"


def in_portions(half: Half, tiles: Tiles, width: int, height: int) -> str:
    """In words: frames are decoded in 4 tiles of 416x240."""
    if half == "decode" and tiles.count(width, height) == 1:
        return "latent frames are decoded one at a time"
    return f"frames are {half}d in {describe(tiles, width, height)}"


def grid_of(config: VAEConfig, tiles: Tiles, rows: int, columns: int) -> list[tuple[Span, Span]]:
    """The tiles of a picture of ``rows`` x ``columns`` cells: each its rows and its columns, row by row."""
    cell, beyond = config.spatial_stride, margin(config)
    down, across = spans(rows, tiles.height // cell, beyond), spans(columns, tiles.width // cell, beyond)
    return list(product(down, across))


def stream_of_tile() -> Stream:
    """What one tile remembers; there are many, so none holds room for later."""
    return Stream(sparing=True)


def decode_chunks(
    vae: WanVAE, latents: torch.Tensor, *, chunk: int = 1, tiles: Tiles | None = None, parked: bool = False
) -> Iterator[torch.Tensor]:
    """As :meth:`WanVAE.decode_chunks`; with ``tiles`` one latent frame at a time, tile by tile.

    ``parked`` as of :class:`Portions`.
    """
    vae.check_latents(latents)
    if tiles is None or len(grid_of(vae.config, tiles, *latents.shape[3:])) == 1:
        yield from vae.decode_chunks(latents, chunk=chunk if tiles is None else 1)
        return
    whole, wide = decoder_parts(vae)
    grid = grid_of(vae.config, tiles, *latents.shape[3:])
    streams = [stream_of_tile() for _ in grid]
    stream = Stream()
    for piece in latents.split(1, dim=2):
        yield decoded_tiles(vae, decoded_whole(vae, piece, whole, stream), wide, grid, streams, parked=parked).clamp_(
            -1, 1
        )


@torch.no_grad()
def decoded_whole(vae: WanVAE, latents: torch.Tensor, layers: Sequence[nn.Module], stream: Stream) -> torch.Tensor:
    """Features of a whole frame, before the levels that are tiled."""
    raw = vae.denormalise(latents).to(vae.device, vae.decode_dtype, memory_format=torch.channels_last_3d)
    x: torch.Tensor = vae.decoder.conv1(vae.conv2(raw, stream), stream)
    for layer in layers:
        x = layer(x, stream)
    stream.started = True
    return x


@torch.no_grad()
def decoded_tiles(
    vae: WanVAE,
    features: torch.Tensor,
    layers: Sequence[nn.Module],
    grid: Sequence[tuple[Span, Span]],
    streams: Sequence[Stream],
    *,
    parked: bool = False,
) -> torch.Tensor:
    """Frames ``[B, 3, T, H, W]`` float32 of a chunk's features."""
    cell, last = vae.config.spatial_stride, vae.decoder.head
    rows, columns = grid[-1][0].stop, grid[-1][1].stop
    scale = features.shape[3] // rows  # features along a side of a cell
    frames: torch.Tensor | None = None
    for (down, across), stream in zip(grid, streams, strict=True):
        x = _cut(features, down.seen_from, down.seen_to, across.seen_from, across.seen_to, scale)
        for layer in layers:
            x = layer(x, stream)
        x = norm_silu_conv(last["0"], last["2"], x, stream)  # type: ignore[arg-type]
        stream.started = True
        if parked:
            stream.park()
        if frames is None:
            shape = (*x.shape[:3], rows * cell, columns * cell)
            frames = torch.empty(shape, dtype=torch.float32, device=x.device)
        _place(frames, x, down, across, cell)
    assert frames is not None
    return frames


def encode_chunks(
    vae: WanVAE, chunks: Iterable[torch.Tensor], *, tiles: Tiles | None = None, parked: bool = False
) -> Iterator[torch.Tensor]:
    """As :meth:`WanVAE.encode_chunks`; with ``tiles`` tile by tile, and there too nothing is done twice."""
    chunks, cell = iter(chunks), vae.config.spatial_stride
    first = next(chunks, None)
    if first is None:
        return
    vae.check_video(first)
    rows, columns = (side // cell for side in first.shape[3:])
    chunks = chain([first], chunks)
    if tiles is None or len(grid := grid_of(vae.config, tiles, rows, columns)) == 1:
        yield from vae.encode_chunks(chunks)
        return
    wide, whole = encoder_parts(vae)
    streams = [stream_of_tile() for _ in grid]
    stream = Stream()
    for video in chunks:
        vae.check_video(video, first=not stream.started)
        stream.expect((video.shape[0], *video.shape[3:]))
        stream.still.look(video)
        yield _encoded(vae, video, wide, whole, grid, streams, stream, parked=parked)


@torch.no_grad()
def _encoded(
    vae: WanVAE,
    video: torch.Tensor,
    wide: Sequence[nn.Module],
    whole: Sequence[nn.Module],
    grid: Sequence[tuple[Span, Span]],
    streams: Sequence[Stream],
    stream: Stream,
    *,
    parked: bool,
) -> torch.Tensor:
    """Latents of one chunk. What is kept of a still picture is kept of the whole frame, behind the tiles."""
    still = stream.still
    done, x = still.resume(video)
    settled = still.depth(vae.encoder.windows)
    if done < len(wide):
        x, done = encoded_tiles(vae, video, wide, grid, streams, parked=parked), len(wide)
        if settled == done:
            still.keep(settled, x)
    return encoded_whole(vae, x, whole[done - len(wide) :], stream, done, settled)


def encoded_whole(
    vae: WanVAE, x: torch.Tensor, layers: Sequence[nn.Module], stream: Stream, done: int, settled: int = 0
) -> torch.Tensor:
    """Latents of features behind ``done`` layers of the encoder; the output of layer ``settled`` is remembered."""
    head = vae.encoder.head
    for number, layer in enumerate(layers, done + 1):
        x = layer(x, stream)
        if number == settled:
            stream.still.keep(settled, x)
    x = norm_silu_conv(head["0"], head["2"], x, stream)  # type: ignore[arg-type]
    stream.started = True
    return vae.normalise(vae.conv1(x, stream).chunk(2, dim=1)[0])


def encoded_tiles(
    vae: WanVAE,
    video: torch.Tensor,
    layers: Sequence[nn.Module],
    grid: Sequence[tuple[Span, Span]],
    streams: Sequence[Stream],
    *,
    parked: bool = False,
) -> torch.Tensor:
    """Features of a chunk of frames, behind the levels that are tiled."""
    cell, rows, columns = vae.config.spatial_stride, grid[-1][0].stop, grid[-1][1].stop
    scale = cell // 2 ** sum(isinstance(layer, Downsample) for layer in layers)  # features along a side of a cell
    features: torch.Tensor | None = None
    for (down, across), stream in zip(grid, streams, strict=True):
        x = _cut(video, down.seen_from, down.seen_to, across.seen_from, across.seen_to, cell)
        x = x.to(vae.device, vae.dtype, memory_format=torch.channels_last_3d)
        for layer in layers:
            x = layer(x, stream)
        stream.started = True
        if parked:
            stream.park()
        if features is None:
            shape = (*x.shape[:3], rows * scale, columns * scale)
            features = torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=torch.channels_last_3d)
        _place(features, x, down, across, scale)
    assert features is not None
    return features


def decoder_parts(vae: WanVAE) -> tuple[list[nn.Module], list[nn.Module]]:
    """Layers behind the decoder's first convolution that see the whole frame, and those before its head that do not."""
    layers = [*vae.decoder.middle, *vae.decoder.upsamples]
    steps = [number for number, layer in enumerate(layers) if isinstance(layer, Upsample)]
    split = steps[-TILED_LEVELS:][0]
    return layers[:split], layers[split:]


def encoder_parts(vae: WanVAE) -> tuple[list[nn.Module], list[nn.Module]]:
    """Layers of the encoder that see a tile, with its first convolution, and those before its head that do not."""
    layers = [vae.encoder.conv1, *vae.encoder.downsamples, *vae.encoder.middle]
    steps = [number for number, layer in enumerate(layers) if isinstance(layer, Downsample)]
    split = steps[:TILED_LEVELS][-1] + 1
    return layers[:split], layers[split:]


def _cut(x: torch.Tensor, top: int, bottom: int, left: int, right: int, scale: int) -> torch.Tensor:
    """What lies in the cells from ``top`` to ``bottom`` and ``left`` to ``right``, ``scale`` values along each side."""
    part = x[..., top * scale : bottom * scale, left * scale : right * scale]
    return part.contiguous(memory_format=torch.channels_last_3d)


def _place(into: torch.Tensor, tile: torch.Tensor, down: Span, across: Span, scale: int) -> None:
    """Put a tile's own part into the whole."""
    rows = slice((down.start - down.seen_from) * scale, (down.stop - down.seen_from) * scale)
    columns = slice((across.start - across.seen_from) * scale, (across.stop - across.seen_from) * scale)
    where = (slice(down.start * scale, down.stop * scale), slice(across.start * scale, across.stop * scale))
    into[..., where[0], where[1]] = tile[..., rows, columns]
