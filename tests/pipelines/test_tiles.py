"""The VAE in tiles: the pixels and latents of whole frames, with a state of constant size."""

from __future__ import annotations

import functools
from collections.abc import Iterator

import pytest
import torch

from cygnet.assembly import load_vae
from cygnet.checkpoints import without_weights
from cygnet.errors import RequestError
from cygnet.models.vae.config import TINY_VAE, WAN_VAE, VAEConfig
from cygnet.models.vae.layers import Stream
from cygnet.models.vae.model import WanVAE
from cygnet.ops import winograd
from cygnet.pipelines import tiles as tiling
from cygnet.pipelines.tiles import decode_chunks, encode_chunks, grid_of, margin, smaller, spans, within
from cygnet.runtime import convolution
from cygnet.runtime.convolution import fit_processor
from cygnet.runtime.trace import Ledger
from cygnet.types import Tiles
from support import fill, filled_weights, parameter_shapes

CONFIG = VAEConfig(base_width=4)
LATENTS = fill("latents", [1, 16, 3, 19, 24])
VIDEO = fill("video", [1, 3, 9, 152, 192]).clamp(-1, 1)
SMALL = Tiles(width=64, height=64)


@functools.cache
def vae() -> WanVAE:
    module = WanVAE(CONFIG)
    module.load_state_dict(filled_weights(parameter_shapes(module)))
    return module.requires_grad_(False).channels_last()


def decoded(tiles: Tiles | None, latents: torch.Tensor = LATENTS, *, parked: bool = False) -> torch.Tensor:
    return torch.cat(list(decode_chunks(vae(), latents, tiles=tiles, parked=parked)), dim=2)


def pieces(video: torch.Tensor) -> Iterator[torch.Tensor]:
    yield video[:, :, :1]
    yield from video[:, :, 1:].split(4, dim=2)


def encoded(tiles: Tiles | None, video: torch.Tensor = VIDEO, *, parked: bool = False) -> torch.Tensor:
    return torch.cat(list(encode_chunks(vae(), pieces(video), tiles=tiles, parked=parked)), dim=2)


@pytest.mark.parametrize("size", [(64, 64), (96, 72), (192, 64)])
def test_tiles_give_the_pixels_of_whole_frames(size: tuple[int, int]) -> None:
    """Everywhere: at a seam as far from one."""
    tiles = Tiles(width=size[0], height=size[1])
    assert torch.allclose(decoded(tiles), decoded(None), atol=1e-5, rtol=0)
    assert torch.allclose(encoded(tiles), encoded(None), atol=1e-5, rtol=0)


def test_one_tile_is_the_whole_frame_bit_for_bit() -> None:
    large = Tiles(width=1024, height=1024)
    assert torch.equal(decoded(large), decoded(None))
    assert torch.equal(encoded(large), encoded(None))


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 0.0)])
def test_bands_in_tiles_give_the_frames_of_bands_over_all(
    dtype: torch.dtype, tolerance: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In bfloat16 bit for bit, in float32 to the last digits."""
    calls: list[int] = []
    real = convolution.norm_silu_conv_in_bands

    def counting(x: torch.Tensor, *rest: torch.Tensor, **room: torch.Tensor) -> None:
        calls.append(x.shape[4])
        real(x, *rest, **room)

    monkeypatch.setattr(convolution, "norm_silu_conv_in_bands", counting)
    monkeypatch.setattr(convolution, "bands_pay", lambda device, dtype: True)
    monkeypatch.setattr(winograd, "_BAND_BYTES", 1 << 17)
    monkeypatch.setattr(convolution, "BANDS_FROM_CHANNELS", 32)
    module = WanVAE(VAEConfig(base_width=32, width_multipliers=(1, 2, 2, 2)))
    module.load_state_dict(filled_weights(parameter_shapes(module)))
    network = fit_processor(module.requires_grad_(False).to(dtype).channels_last())
    latents = LATENTS[:, :, :2, :9, :17]
    whole = torch.cat(list(decode_chunks(network, latents)), dim=2)
    assert set(calls) == {34, 68, 136}, "where there are two frames to a latent one, and four"

    def apart() -> float:
        return float((torch.cat(list(decode_chunks(network, latents, tiles=SMALL)), dim=2) - whole).abs().max())

    calls.clear()
    assert apart() <= tolerance
    assert {88, 96, 32} <= set(calls), "what tiles of 64 see at full size"
    monkeypatch.setattr(tiling, "margin", lambda _: 2)
    assert apart() > 10 * tolerance


def test_what_a_tile_sees_beyond_its_own_is_as_much_as_it_must(monkeypatch: pytest.MonkeyPatch) -> None:
    """With a cell less the difference is there, and it is at the seams."""
    assert margin(WAN_VAE) == margin(TINY_VAE) == margin(CONFIG) == 3
    monkeypatch.setattr(tiling, "margin", lambda _: 2)
    apart = (decoded(SMALL) - decoded(None)).abs().amax(dim=(0, 1, 2))
    near = torch.zeros(152, 192, dtype=torch.bool)
    for seam in (64, 128):
        near[seam - 8 : seam + 8] = True
        near[:, seam - 8 : seam + 8] = True
    assert float(apart[near].max()) > 1e-4
    assert float(apart[~near].max()) < 1e-5


def test_a_trained_network_in_bfloat16_shows_no_seam() -> None:
    network = load_vae("tiny-vae", decode_dtype="bfloat16")
    film = torch.nn.functional.interpolate(fill("film", [5, 3, 4, 5]), size=(128, 160), mode="bicubic").clamp(-1, 1)
    latents = network.encode(film.permute(1, 0, 2, 3)[None])
    whole = torch.cat(list(decode_chunks(network, latents)), dim=2)
    tiled = torch.cat(list(decode_chunks(network, latents, tiles=SMALL)), dim=2)
    apart = (tiled - whole).abs().mean(dim=(0, 1, 2))
    assert float(apart[63:65].mean() + apart[:, 63:65].mean()) <= 4 * float(apart.mean()) + 1e-6
    assert float((tiled - whole).abs().max()) < 4 / 255, "rounding of bfloat16"


def test_what_waits_on_the_host_is_the_same_video(monkeypatch: pytest.MonkeyPatch) -> None:
    parks: list[Stream] = []
    real = Stream.park

    def park(self: Stream) -> None:
        parks.append(self)
        real(self)

    monkeypatch.setattr(Stream, "park", park)
    assert torch.equal(decoded(SMALL, parked=True), decoded(SMALL))
    assert len(parks) == 3 * 9
    assert len(set(map(id, parks))) == 9
    assert torch.equal(encoded(SMALL, parked=True), encoded(SMALL))


def test_frames_come_as_they_do_whole_and_what_is_remembered_does_not_grow() -> None:
    with without_weights():
        network = WanVAE(CONFIG).channels_last()
    latents = torch.empty(1, 16, 8, 16, 24, device="meta")
    live, counts = [], []
    with torch.no_grad(), Ledger() as ledger:
        for frames in decode_chunks(network, latents, tiles=SMALL):
            counts.append(frames.shape[2])
            del frames
            live.append(ledger.live)
    assert counts == [1, *[4] * 7]
    assert live[2] == live[-1] > live[0]


def test_a_still_picture_is_encoded_once_in_tiles_too() -> None:
    """Nothing of what follows a picture changes: the tiles are worked on for a few chunks and then left out."""
    video = VIDEO[:, :, :1].expand(-1, -1, 41, -1, -1).clone()
    video[:, :, 1:] = 0
    assert torch.allclose(encoded(SMALL, video), encoded(None, video), atol=1e-5, rtol=0)
    calls: list[int] = []
    real = vae().encoder.conv1.forward

    def counted(x: torch.Tensor, stream: Stream | None) -> torch.Tensor:
        calls.append(x.shape[2])
        return real(x, stream)

    vae().encoder.conv1.forward = counted  # type: ignore[method-assign]
    try:
        encoded(SMALL, video)
    finally:
        vae().encoder.conv1.forward = real  # type: ignore[method-assign]
    assert 9 <= len(calls) < 9 * 8, "of 11 chunks"


def test_shapes_that_cannot_be_are_refused_as_they_are_whole() -> None:
    for tiles in (None, SMALL):
        with pytest.raises(ValueError, match="latents must be"):
            decoded(tiles, torch.zeros(1, 15, 1, 9, 9))
        with pytest.raises(ValueError, match="width and height must be multiples of 8"):
            encoded(tiles, torch.zeros(1, 3, 1, 90, 90))
        with pytest.raises(ValueError, match="a later chunk has 3 frames"):
            encoded(tiles, torch.zeros(1, 3, 4, 72, 72))
    assert not list(encode_chunks(vae(), [], tiles=SMALL))


def test_tiles_cover_the_picture_once() -> None:
    for rows, columns, tiles in ((19, 24, SMALL), (8, 8, SMALL), (60, 104, Tiles(width=416, height=240))):
        covered = torch.zeros(rows, columns)
        places = grid_of(WAN_VAE, tiles, rows, columns)
        for down, across in places:
            covered[down.start : down.stop, across.start : across.stop] += 1
            assert 0 <= down.seen_from <= down.start < down.stop <= down.seen_to <= rows
        assert bool((covered == 1).all())
        assert len(places) == tiles.count(8 * columns, 8 * rows)
    assert [(it.start, it.stop, it.seen_from, it.seen_to) for it in spans(20, 8, 3)] == [
        (0, 8, 0, 11), (8, 16, 5, 19), (16, 20, 13, 20),
    ]  # fmt: skip


def test_smaller_tiles_have_half_the_sides_down_to_the_least() -> None:
    assert smaller(None, 832, 480) == Tiles(width=416, height=240)
    assert smaller(Tiles(width=2000, height=240), 832, 480) == Tiles(width=416, height=120)
    assert smaller(Tiles(width=72, height=64), 832, 480) == SMALL
    assert smaller(SMALL, 832, 480) is None
    assert smaller(None, 64, 48) is None


def test_tiles_that_see_at_most_so_much() -> None:
    assert within(WAN_VAE, 512, 832, 480) == Tiles(width=416, height=480)
    assert within(WAN_VAE, 64, 832, 480) == SMALL
    assert within(WAN_VAE, 4096, 832, 480) == Tiles(width=832, height=480)


@pytest.mark.parametrize("text", ["416", "416x", "60x64", "65x64", "64x64@", "64x64x64", "-64x64", "", 416, None])
def test_what_are_no_tiles_is_refused(text: object) -> None:
    with pytest.raises(RequestError, match=r'decode_tiles is .*; give "auto", or a width and height in multiples of 8'):
        Tiles.parse(text, "decode_tiles")


def test_tiles_are_written_as_they_are_read() -> None:
    for text in ("416x240", "64x64@5"):
        assert str(Tiles.parse(text, "tiles")) == text
