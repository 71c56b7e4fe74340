from __future__ import annotations

import copy
import functools
from typing import Any

import pytest
import torch

from cygnet.models.vae.config import WAN_VAE, VAEConfig
from cygnet.models.vae.layers import CausalConv3d, Still, Stream, norm_silu_then_convolve
from cygnet.models.vae.model import WanVAE
from cygnet.runtime import convolution
from cygnet.runtime.convolution import fit_processor
from support import fill, filled_weights, parameter_shapes, relative_l2

CONFIG = VAEConfig(base_width=32)
"""Two of whose four levels are wide enough for bands."""
VIDEO, LATENTS = fill("video", [1, 3, 17, 24, 32]), fill("latents", [1, 16, 5, 3, 4])


@functools.cache
def plain() -> WanVAE:
    module = WanVAE(CONFIG)
    module.load_state_dict(filled_weights(parameter_shapes(module)))
    return module.requires_grad_(False).channels_last()


@pytest.fixture
def in_bands(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many frames each convolution in bands was given."""
    counted: list[int] = []
    real = convolution.norm_silu_conv_in_bands

    def counting(x: torch.Tensor, *rest: torch.Tensor, **room: torch.Tensor) -> None:
        counted.append(x.shape[2])
        real(x, *rest, **room)

    monkeypatch.setattr(convolution, "norm_silu_conv_in_bands", counting)
    monkeypatch.setattr(convolution, "bands_pay", lambda device, dtype: True)
    return counted


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 3e-2)])
@pytest.mark.parametrize("chunk", [1, 3])
def test_videos_and_latents_are_the_same_to_rounding(
    in_bands: list[int], dtype: torch.dtype, tolerance: float, chunk: int
) -> None:
    network = copy.deepcopy(plain()).to(dtype)
    fitted = fit_processor(copy.deepcopy(network))
    assert relative_l2(fitted.decode(LATENTS, chunk=chunk), network.decode(LATENTS, chunk=chunk)) < tolerance
    assert in_bands, "none was in bands"
    in_bands.clear()
    assert relative_l2(fitted.encode(VIDEO, chunk=chunk), network.encode(VIDEO, chunk=chunk)) < tolerance
    assert in_bands, "none was in bands"
    assert not any(frames % 2 for frames in in_bands)


def test_grey_frames_are_encoded_once_bit_for_bit(in_bands: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    fitted = fit_processor(copy.deepcopy(plain()))
    grey = torch.zeros(1, 3, 81, 16, 16)
    grey[:, :, 0] = VIDEO[:, :, 0, :16, :16]
    once = fitted.encode(grey)
    times = len(in_bands)
    in_bands.clear()
    monkeypatch.setattr(Still, "depth", lambda still, windows: 0)
    assert torch.equal(once, fitted.encode(grey))
    assert times < 0.75 * len(in_bands)


@pytest.mark.usefixtures("in_bands")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_grey_frames_are_so_after_a_long_chunk_too(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of an odd number, which is convolved in another way than the chunks that follow."""
    fitted = fit_processor(copy.deepcopy(plain()).to(dtype))
    grey = torch.zeros(1, 3, 53, 16, 16)
    grey[:, :, 0] = VIDEO[:, :, 0, :16, :16]
    pieces = grey.split([33, *[4] * 5], dim=2)
    once = list(fitted.encode_chunks(pieces))
    monkeypatch.setattr(Still, "depth", lambda still, windows: 0)
    assert all(map(torch.equal, once, fitted.encode_chunks(pieces)))


def test_gradients_and_whole_videos_go_the_plain_way(in_bands: list[int]) -> None:
    fitted = fit_processor(copy.deepcopy(plain())).requires_grad_(True)
    reached = fitted.reconstruct(fitted.posterior(VIDEO)[0])
    reached.square().mean().backward()
    assert not in_bands
    learnt = copy.deepcopy(plain()).requires_grad_(True)
    learnt.reconstruct(learnt.posterior(VIDEO)[0]).square().mean().backward()
    for ours, theirs in zip(fitted.parameters(), learnt.parameters(), strict=True):
        assert ours.grad is not None
        assert theirs.grad is not None
        assert torch.equal(ours.grad, theirs.grad)


def test_narrow_convolutions_stay_as_they_are() -> None:
    fitted = fit_processor(WanVAE(VAEConfig(base_width=8)))
    ways = [module.after_norm for module in fitted.modules() if isinstance(module, CausalConv3d)]
    assert ways
    assert all(way is norm_silu_then_convolve for way in ways)


def test_bands_are_for_processors_of_few_threads_and_where_it_was_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    pays, here = convolution.bands_pay, torch.device("cpu")
    assert pays(here, torch.float32)
    assert not pays(torch.device("cuda"), torch.float32)
    assert not pays(here, torch.float16)
    monkeypatch.setattr(convolution, "uses_amx", lambda: True)
    assert not pays(here, torch.bfloat16)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 64)
    assert not pays(here, torch.float32)


@pytest.mark.usefixtures("in_bands")
def test_room_for_bands_is_that_of_the_picture_and_its_level(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[int, ...]] = []
    real = convolution.workspace

    def asking(*shape: Any) -> int:
        asked.append(shape[:4])
        return real(*shape)

    monkeypatch.setattr(convolution, "workspace", asking)
    room = convolution.bands_room(WAN_VAE, torch.float32, 60, 104)
    assert asked == [
        (96, 96, 480, 832), (96, 192, 240, 416), (192, 192, 240, 416), (192, 384, 120, 208), (384, 384, 120, 208),
        (384, 384, 60, 104), (384, 384, 60, 104),
    ]  # fmt: skip
    assert room == max(real(*shape, torch.float32) for shape in asked)  # type: ignore[arg-type]
    assert convolution.bands_room(VAEConfig(base_width=8), torch.float32, 60, 104) == 0


@pytest.mark.parametrize("sparing", [True, False])
def test_pieces_are_given_back_where_memory_is_short(
    in_bands: list[int], monkeypatch: pytest.MonkeyPatch, sparing: bool
) -> None:
    given_back: list[None] = []
    monkeypatch.setattr(convolution, "give_back_pieces", lambda: given_back.append(None))
    fitted, stream = fit_processor(copy.deepcopy(plain())), Stream(sparing=sparing)
    for piece in LATENTS[:, :, :3].split([1, 2], dim=2):
        fitted.decode_chunk(piece, stream)
    assert in_bands
    levels = 2 * 3  # of two chunks
    assert len(given_back) == (len(in_bands) + levels if sparing else levels)


def test_enlarging_is_as_before_where_bands_are_not_meant(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(convolution, "bands_pay", lambda device, dtype: False)
    fitted = fit_processor(copy.deepcopy(plain()))
    assert torch.equal(fitted.decode(LATENTS), plain().decode(LATENTS))


def test_one_pass_uses_the_same_memory_again_and_leaves_the_input_alone(in_bands: list[int]) -> None:
    fitted, stream = fit_processor(copy.deepcopy(plain())), Stream()
    first, second, third = LATENTS[:, :, :5].split([1, 2, 2], dim=2)
    wanted = list(fitted.decode_chunks(LATENTS, chunk=2))
    again: list[bool] = []
    real = stream.room

    def room(like: torch.Tensor, channels: int) -> torch.Tensor:
        spare = stream._spare
        found = real(like, channels)
        again.append(found is spare)
        return found

    fitted.decode_chunk(first, stream)
    fitted.decode_chunk(second, stream)
    histories = {layer: past.data_ptr() for layer, past in stream._history.items()}
    stream.room = room  # type: ignore[method-assign]
    in_bands.clear()
    given = third.clone()
    assert torch.equal(fitted.decode_chunk(third, stream).clamp(-1, 1), wanted[2])
    assert torch.equal(third, given)
    # Of every two convolutions one writes over its input; the others use one room, but for the first of each size.
    assert len(again) <= len(in_bands) // 2 + 1
    assert again.count(False) <= 5
    in_place = [module for module in fitted.modules() if getattr(module, "after_norm", None) is convolution._in_bands]
    seen = [layer for layer in in_place if layer in histories]
    assert seen
    assert all(stream._history[layer].data_ptr() == histories[layer] for layer in seen)


def test_room_is_for_the_shape_asked_for_and_a_sparing_pass_keeps_none() -> None:
    like, old = torch.empty(1, 8, 2, 4, 4), torch.empty(1, 6, 2, 4, 4).contiguous(memory_format=torch.channels_last_3d)
    stream = Stream()
    stream.recycle(old)
    assert stream.room(like, 6) is old
    assert stream.room(like, 6) is not old
    stream.recycle(old)
    assert stream.room(like, 8).shape == (1, 8, 2, 4, 4)
    assert stream.room(like, 6) is not old, "it was let go"
    sparing = Stream(sparing=True)
    sparing.recycle(old)
    assert sparing.room(like, 6) is not old


@pytest.mark.usefixtures("in_bands")
def test_a_pass_goes_on_outside_of_inference_mode_and_within() -> None:
    fitted = fit_processor(copy.deepcopy(plain()))
    pieces = LATENTS.split(1, dim=2)
    wanted = [frames.clone() for frames in fitted.decode_chunks(LATENTS)]
    for first_within in (True, False):
        stream, found = Stream(), []
        for number, piece in enumerate(pieces):
            with torch.inference_mode((number < 3) == first_within):
                found.append(fitted.decode_chunk(piece, stream).clamp(-1, 1))
        assert all(torch.equal(*pair) for pair in zip(found, wanted, strict=True))
