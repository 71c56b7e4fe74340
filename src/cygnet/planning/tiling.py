"""What the VAE takes when it works on a frame in tiles, and the largest tiles that fit.

Layers that see the whole frame and those that see a tile are traced apart, on a picture of few cells. What they take
grows with the cells that they see, so the account of any frame in any tiles is a sum.

Legend: ``t h w`` latent grid.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import torch

from cygnet.models.vae.config import VAEConfig
from cygnet.models.vae.layers import Stream
from cygnet.pipelines import tiles as tiling
from cygnet.pipelines.record import Half
from cygnet.pipelines.tiles import TILED_LEVELS, Span, grid_of, margin, spans
from cygnet.planning.stages import CELLS, Demand, Grid, Laps, total_of, vae_on_meta
from cygnet.runtime import flops
from cygnet.runtime.convolution import bands_room
from cygnet.runtime.flops import Tiled
from cygnet.runtime.trace import Cost, Ledger
from cygnet.types import Tiles

_FRAMES = 4
"""Of pixels in a chunk, one latent frame."""


@dataclass(frozen=True)
class _Part:
    """Some layers of the VAE on a frame or tile of ``CELLS`` x ``CELLS`` cells."""

    laps: Laps
    held: int
    """Bytes that stay from one chunk to the next."""
    given: int
    """Bytes of a chunk's input, counted in the laps."""
    made: int
    """Bytes of its output."""


@dataclass(frozen=True)
class _Seen:
    """Cells that the layers of a tiled frame see."""

    rows: int
    columns: int
    tiles: int
    """Of all tiles together."""
    most: int
    """Of the largest tile."""
    count: int
    parked: bool = False
    """Whether what tiles remember waits on the host."""

    @property
    def frame(self) -> int:
        """Of a whole frame."""
        return self.rows * self.columns


def demand(
    config: VAEConfig,
    dtype: torch.dtype,
    grid: Grid,
    tiles: Tiles,
    half: Half,
    *,
    parked: bool = False,
    grey: bool = False,
    last: bool = False,
    on_processor: bool = False,
) -> Demand:
    """One latent frame after the other, in ``tiles``.

    ``parked`` as of :class:`~cygnet.pipelines.tiles.Portions`, ``grey`` and ``last`` as of :func:`~.stages.encode`.
    """
    frames, rows, columns = grid
    places = grid_of(config, tiles, rows, columns)
    each = [down.seen * across.seen for down, across in places]
    seen = _Seen(rows, columns, sum(each), max(each), len(each), parked)
    tiled = Tiled(TILED_LEVELS, seen.tiles / seen.frame)
    cost = total_of(_laps_of(config, dtype, half, seen, on_processor), frames)
    waits = round(_parts(config, dtype, half, on_processor)[1].held * seen.tiles / CELLS**2) if parked else 0
    if half == "decode":
        work = flops.vae_decode(config, frames, rows, columns, tiled=tiled)
        return Demand(cost=cost, work=tuple(work), parked=waits)
    work = whole = flops.vae_encode(config, frames, rows, columns, tiled=tiled)
    if grey:
        windows = vae_on_meta(config, dtype).encoder.windows
        work = flops.vae_encode(config, frames, rows, columns, windows=windows, last=last, tiled=tiled)
    share = flops.total(work) / flops.total(whole)
    cost = Cost(cost.peak, round(cost.moved * share), round(cost.kernels * share))
    return Demand(cost=cost, work=tuple(work), parked=waits)


def largest(
    config: VAEConfig,
    dtype: torch.dtype,
    rows: int,
    columns: int,
    half: Half,
    room: float,
    *,
    parks: bool,
    on_processor: bool = False,
) -> tuple[Tiles, bool]:
    """Tiles whose peak is at most ``room`` bytes, those of the least work; without any, those of the least peak.

    And whether what they remember must wait on the host, which is tried last and if ``parks``.
    """
    cell, beyond = config.spatial_stride, margin(config)
    least = Tiles.LEAST // cell

    def cuts(length: int) -> Iterator[tuple[int, list[Span]]]:
        sizes = {-(-length // count) for count in range(1, max(length // least, 1) + 1)} if length > least else {least}
        yield from ((size, spans(length, size, beyond)) for size in sizes)

    found: list[tuple[int, int, Tiles, _Seen]] = []
    for height, down in cuts(rows):
        for width, across in cuts(columns):
            total = sum(it.seen for it in down) * sum(it.seen for it in across)
            most = max(it.seen for it in down) * max(it.seen for it in across)
            seen = _Seen(rows, columns, total, most, len(down) * len(across))
            found.append((total, most, Tiles(width=width * cell, height=height * cell), seen))

    def peak(seen: _Seen) -> int:
        return max(lap.peak for lap in _laps_of(config, dtype, half, seen, on_processor))

    found.sort(key=lambda it: it[:2])
    ways = (False, True) if parks else (False,)
    for parked in ways:
        for _, _, tiles, seen in found:
            if peak(replace(seen, parked=parked)) <= room:
                return tiles, parked
    return min(found, key=lambda it: peak(replace(it[3], parked=parks)))[2], parks


def _laps_of(config: VAEConfig, dtype: torch.dtype, half: Half, seen: _Seen, on_processor: bool) -> Laps:
    """What the first chunks of a video take."""
    whole, tile = _parts(config, dtype, half, on_processor)
    frame, tiles, most = (cells / CELLS**2 for cells in (seen.frame, seen.tiles, seen.most))
    pixels = 4 * 3 * _FRAMES * config.spatial_stride**2 * CELLS**2  # float32: a chunk's, of as many cells
    features = whole.made if half == "decode" else tile.made
    # In a tile's turn there are besides it the features of the frame, the pixels of this chunk, when decoding those of
    # the one before, which the caller may still hold, when encoding the last frame, to compare it; and what all hold.
    beside = features + round(pixels * (2 if half == "decode" else 1 + 1 / _FRAMES))
    others = frame * whole.held + (0 if seen.parked else tiles * tile.held)
    room = bands_room(config, dtype, seen.rows, seen.columns) if on_processor else 0
    laps = []
    for of_whole, of_tile in zip(whole.laps, tile.laps, strict=True):
        in_tile = frame * beside + most * (of_tile.peak - (0 if seen.parked else tile.held))
        in_whole = frame * (of_whole.peak - whole.held + pixels)
        laps.append(
            Cost(
                round(others + max(in_tile, in_whole)) + room,
                round(frame * (of_whole.moved + 2 * features) + tiles * of_tile.moved),
                of_whole.kernels + seen.count * of_tile.kernels,
            )
        )
    return tuple(laps)


@functools.lru_cache(maxsize=32)
def _parts(config: VAEConfig, dtype: torch.dtype, half: Half, on_processor: bool) -> tuple[_Part, _Part]:
    """The layers that see the frame, and those that see a tile."""
    vae = vae_on_meta(config, dtype, on_processor=on_processor)
    place = [(Span(0, CELLS, 0, CELLS), Span(0, CELLS, 0, CELLS))]
    if half == "decode":
        whole, wide = tiling.decoder_parts(vae)
        latents = (1, config.latent_channels, 1, CELLS, CELLS)

        def features(x: torch.Tensor, stream: Stream) -> torch.Tensor:
            return tiling.decoded_whole(vae, x, whole, stream)

        def frames(x: torch.Tensor, stream: Stream) -> torch.Tensor:
            return tiling.decoded_tiles(vae, x, wide, place, [stream])

        first, shapes = _part(features, [(latents, torch.float32)] * 3, Stream())
        second, _ = _part(frames, [(shape, dtype) for shape in shapes], tiling.stream_of_tile())
        return first, second
    wide, whole = tiling.encoder_parts(vae)
    side = CELLS * config.spatial_stride

    def seen(x: torch.Tensor, stream: Stream) -> torch.Tensor:
        return tiling.encoded_tiles(vae, x, wide, place, [stream])

    def encoded(x: torch.Tensor, stream: Stream) -> torch.Tensor:
        return tiling.encoded_whole(vae, x, whole, stream, len(wide))

    videos: list[tuple[tuple[int, ...], torch.dtype]] = [
        ((1, 3, count, side, side), torch.float32) for count in (1, _FRAMES, _FRAMES)
    ]
    second, shapes = _part(seen, videos, tiling.stream_of_tile())
    first, _ = _part(encoded, [(shape, dtype) for shape in shapes], Stream())
    return first, second


def _part(
    run: Callable[[torch.Tensor, Stream], torch.Tensor],
    inputs: list[tuple[tuple[int, ...], torch.dtype]],
    stream: Stream,
) -> tuple[_Part, list[tuple[int, ...]]]:
    """The account of some layers over a few chunks, and the shapes of what they make."""
    laps: list[Cost] = []
    shapes: list[tuple[int, ...]] = []
    with torch.no_grad(), Ledger() as ledger:
        for shape, dtype in inputs:
            layout = torch.channels_last_3d
            given = torch.empty(shape, dtype=dtype, device="meta", memory_format=layout)
            out = run(given, stream)
            sizes = given.nbytes, out.nbytes
            shapes.append(tuple(out.shape))
            del given, out
            laps.append(ledger.cost)
            ledger.mark()
    return _Part(tuple(laps), ledger.live, *sizes), shapes
