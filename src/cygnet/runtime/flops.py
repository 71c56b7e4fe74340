"""Floating-point operations of every network, by formula; one multiplication with its addition counts as two.

Legend: d width, f width of the feed-forward, L blocks, N video tokens, n text rows, m image rows; T H W frames, height,
width at the place at hand. Norms, activations, embeddings and modulation are left out: their time goes by the bytes
that they move. The sums are checked against torch's FlopCounterMode.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Literal, NamedTuple

import torch

from cygnet.models.clip.config import CLIPVisionConfig
from cygnet.models.dit.config import DiTConfig
from cygnet.models.umt5.config import UMT5Config
from cygnet.models.vae.config import VAEConfig
from cygnet.models.vae.layers import Still, Window

Kind = Literal["matmul", "attention", "conv"]


class Work(NamedTuple):
    """``flops`` operations of one kind. ``width`` says how wide: input features or channels, or rows attended to."""

    kind: Kind
    flops: float
    width: int


def total(work: Sequence[Work]) -> float:
    """The sum of all."""
    return sum(each.flops for each in work)


def _linear(rows: int, inside: int, outside: int) -> Work:
    return Work("matmul", 2.0 * rows * inside * outside, inside)


def _attention(rows: int, keys: int, width: int) -> Work:
    """Scores and their sums: ``2 * rows * keys * width`` each."""
    return Work("attention", 4.0 * rows * keys * width, keys)


def _conv(inside: int, outside: int, taps: int, places: int) -> Work:
    return Work("conv", 2.0 * inside * outside * taps * places, inside)


# The transformer -----------------------------------------------------------------------------------------------------


def dit_prepare(config: DiTConfig, text_rows: int, image_rows: int = 0) -> list[Work]:
    """Keys and values of one prompt (``text_rows`` with the one for padding) and picture, for every block."""
    d, blocks = config.dim, config.num_layers + len(config.vace_layers)
    work = [_linear(text_rows, config.text_dim, d), _linear(text_rows, d, d)]
    if image_rows:
        assert config.image_dim is not None
        work += [_linear(image_rows, config.image_dim, config.image_dim), _linear(image_rows, config.image_dim, d)]
    return work + [_linear(text_rows + image_rows, d, d)] * (2 * blocks)


def dit_step(config: DiTConfig, tokens: int, text_rows: int, image_rows: int = 0, prompts: int = 1) -> list[Work]:
    """One evaluation for ``prompts`` prompts: ``L N (12 d^2 + 4 d f) + 4 L N^2 d + 4 L N (n + m) d`` for each.

    No text has reached the self-attention of the first block, so that is computed once for all prompts.
    """
    d, patch, each = config.dim, 4, tokens * prompts
    work = [
        _conv(config.in_channels, d, patch, tokens),
        _linear(1, config.freq_dim, d), _linear(1, d, d), _linear(1, d, 6 * d),
    ]  # fmt: skip
    for block in range(config.num_layers):
        seen = tokens if block == 0 else each
        work += [_linear(seen, d, d)] * 4  # query, key, value, output
        work += [_attention(seen, tokens, d)]
        work += _read(config, each, text_rows, image_rows)
    return [*work, _linear(each, d, patch * config.out_channels)]


def _read(config: DiTConfig, rows: int, text_rows: int, image_rows: int) -> list[Work]:
    d = config.dim
    looks = [_attention(rows, keys, d) for keys in (text_rows, image_rows) if keys]
    return [*[_linear(rows, d, d)] * 2, *looks, _linear(rows, d, config.ffn_dim), _linear(rows, config.ffn_dim, d)]


# The encoders --------------------------------------------------------------------------------------------------------


def umt5(config: UMT5Config, tokens: int) -> list[Work]:
    """``L n (8 d a + 6 d f) + 4 L n^2 a`` with attention width a."""
    d, a = config.dim, config.attention_dim
    block = [_linear(tokens, d, a)] * 3 + [_linear(tokens, a, d), _attention(tokens, tokens, a)]
    block += [_linear(tokens, d, config.ffn_dim)] * 2 + [_linear(tokens, config.ffn_dim, d)]
    return block * config.num_layers


def clip(config: CLIPVisionConfig, pictures: int = 1) -> list[Work]:
    """The tower without its last block, which is not run."""
    d, rows, patches = config.dim, config.num_tokens * pictures, (config.num_tokens - 1) * pictures
    block = [_linear(rows, d, 3 * d), _linear(rows, d, d), _attention(rows, config.num_tokens, d)]
    block += [_linear(rows, d, config.mlp_dim), _linear(rows, config.mlp_dim, d)]
    return [_conv(3, d, config.patch_size**2, patches), *block * (config.num_layers - 1)]


class Tiled(NamedTuple):
    """How the autoencoder works in tiles: its ``levels`` widest ones do, on ``seen`` times the cells of the frame."""

    levels: int
    seen: float


# The autoencoder -----------------------------------------------------------------------------------------------------


class _Grid(NamedTuple):
    """Frames, height and width of a chunk, and whether it is one frame before which there is nothing."""

    frames: int
    height: int
    width: int
    alone: bool

    @property
    def places(self) -> int:
        return self.frames * self.height * self.width

    @property
    def taps(self) -> int:
        """Of a 3x3x3 convolution: those over time meet nothing in a frame that is alone."""
        return 9 if self.alone else 27


def _residual(inside: int, outside: int, grid: _Grid) -> list[Work]:
    work = [_conv(inside, outside, grid.taps, grid.places), _conv(outside, outside, grid.taps, grid.places)]
    return [*work, _conv(inside, outside, 1, grid.places)] if inside != outside else work


def _middle(width: int, grid: _Grid) -> Iterator[list[Work]]:
    yield _residual(width, width, grid)
    cells = grid.height * grid.width
    around = [_conv(width, 3 * width, 1, grid.places), _conv(width, width, 1, grid.places)]
    yield [*around, _attention(grid.places, cells, width)]
    yield _residual(width, width, grid)


def vae_decode(
    config: VAEConfig, frames: int, rows: int, columns: int, chunk: int = 1, tiled: Tiled | None = None
) -> list[Work]:
    """``frames`` latent frames of ``rows`` x ``columns`` cells, the first alone and then ``chunk`` at a time."""
    work: list[Work] = []
    for start in (0, *range(1, frames, chunk)):
        count = min(chunk, frames - start) if start else 1
        work += _decode_chunk(config, _Grid(count, rows, columns, start == 0), second=start == 1, tiled=tiled)
    return work


def _decode_chunk(config: VAEConfig, grid: _Grid, *, second: bool, tiled: Tiled | None) -> list[Work]:
    z = config.latent_channels
    widths = [config.base_width * m for m in reversed(config.width_multipliers)]
    width = widths[0]
    work = [_conv(z, z, 1, grid.places), _conv(z, width, grid.taps, grid.places)]
    for layer in _middle(width, grid):
        work += layer
    for level, out in enumerate(widths):
        for _ in range(config.residual_blocks + 1):
            work += _residual(width, out, grid)
            width = out
        if level < len(widths) - 1:
            if tiled is not None and level == len(widths) - 1 - tiled.levels:
                whole = len(work)
            temporal = tuple(reversed(config.temporal_downsample))[level]
            if temporal and not grid.alone:
                # The first frame has not been through here, so the second may be the one before which nothing is.
                work.append(_conv(width, 2 * width, 1 if second and grid.frames == 1 else 3, grid.places))
                grid = grid._replace(frames=2 * grid.frames)
            grid = grid._replace(height=2 * grid.height, width=2 * grid.width)
            work.append(_conv(width, width // 2, 9, grid.places))
            width //= 2
    work.append(_conv(width, 3, grid.taps, grid.places))
    return work if tiled is None else [*work[:whole], *_more(work[whole:], tiled.seen)]


def _more(work: Sequence[Work], times: float) -> list[Work]:
    return [each._replace(flops=times * each.flops) for each in work]


def vae_encode(
    config: VAEConfig,
    frames: int,
    rows: int,
    columns: int,
    *,
    windows: Sequence[Window] = (),
    last: bool = False,
    tiled: Tiled | None = None,
) -> list[Work]:
    """``frames`` latent frames of ``rows`` x ``columns`` cells, from pixels: one at first and then four at a time.

    With ``windows``, those of the encoder's layers, all pixels but the first frame's are grey, with ``last`` but the
    last frame's too: layers that see nothing but grey are then left out, as :class:`Still` decides; those that are
    tiled all or none.
    """
    work: list[Work] = []
    still, nothing = Still(), torch.empty(0)
    in_tiles = 0 if tiled is None else 1 + tiled.levels * (config.residual_blocks + 1)
    for number in range(frames):
        skipped = 0
        if windows:
            final = last and number == frames - 1
            still.note([False] if number == 0 else [number > 1, True, True, not final])
            skipped, _ = still.resume(nothing)
            if (settled := still.depth(windows)) > skipped and settled >= in_tiles:
                still.keep(settled, nothing)
        stride = config.spatial_stride
        grid = _Grid(4 if number else 1, rows * stride, columns * stride, number == 0)
        layers = list(_encoder_layers(config, grid))
        if tiled is not None:
            layers = [*(_more(layer, tiled.seen) for layer in layers[:in_tiles]), *layers[in_tiles:]]
        work += [each for layer in layers[skipped:] for each in layer]
    return work


def _encoder_layers(config: VAEConfig, grid: _Grid) -> Iterator[list[Work]]:
    z = config.latent_channels
    widths = [config.base_width * m for m in config.width_multipliers]
    width = widths[0]
    yield [_conv(3, width, grid.taps, grid.places)]
    for level, out in enumerate(widths):
        for _ in range(config.residual_blocks):
            yield _residual(width, out, grid)
            width = out
        if level < len(widths) - 1:
            grid = grid._replace(height=grid.height // 2, width=grid.width // 2)
            layer = [_conv(width, width, 9, grid.places)]
            if config.temporal_downsample[level] and not grid.alone:
                grid = grid._replace(frames=grid.frames // 2)
                layer.append(_conv(width, width, 3, grid.places))
            yield layer
    yield from _middle(width, grid)
    yield [_conv(width, 2 * z, grid.taps, grid.places), _conv(2 * z, 2 * z, 1, grid.places)]
