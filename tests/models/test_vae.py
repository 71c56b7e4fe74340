from __future__ import annotations

import copy
import functools
from collections.abc import Iterator

import pytest
import torch

import cygnet
from cygnet.models.vae.config import VAEConfig
from cygnet.models.vae.layers import Still, Stream
from cygnet.models.vae.model import WanVAE
from support import fill, filled_weights, parameter_shapes, relative_l2

CONFIG = VAEConfig(base_width=4)


@functools.cache
def vae() -> WanVAE:
    module = WanVAE(CONFIG)
    module.load_state_dict(filled_weights(parameter_shapes(module)))
    return module.requires_grad_(False).channels_last()


VIDEO, LATENTS = fill("video", [1, 3, 17, 16, 24]), fill("latents", [1, 16, 5, 2, 3])


def whole_encode(video: torch.Tensor) -> torch.Tensor:
    return vae().normalise(vae().posterior(video)[0])


def whole_decode(latents: torch.Tensor) -> torch.Tensor:
    return vae().reconstruct(vae().denormalise(latents)).clamp(-1, 1)


@pytest.mark.parametrize("chunk", [1, 2, 3, 100])
def test_the_chunk_size_changes_nothing(chunk: int) -> None:
    assert relative_l2(vae().encode(VIDEO, chunk=chunk), whole_encode(VIDEO)) < 1e-5
    assert relative_l2(vae().decode(LATENTS, chunk=chunk), whole_decode(LATENTS)) < 1e-5


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 3e-2)])
@pytest.mark.parametrize("name", ["embedded", "seeded"])
def test_what_chunks_change_is_rounding(name: str, dtype: torch.dtype, tolerance: float) -> None:
    """Equal bit for bit here for the embedded autoencoder; kernels promise no more than this for any."""
    network = cygnet.load_vae("tiny-vae") if name == "embedded" else copy.deepcopy(vae())
    network.decode_in(dtype)
    latents = fill("latents", [1, network.config.latent_channels, 9, 6, 10])
    together = network.decode(latents, chunk=8)
    assert together.std() > 0.01
    for chunk in (1, 2, 3):
        assert relative_l2(network.decode(latents, chunk=chunk), together) < tolerance


@pytest.mark.parametrize("frames", [1, 5, 9])
def test_short_videos_are_the_same_in_chunks_and_at_once(frames: int) -> None:
    video, latents = VIDEO[:, :, :frames], LATENTS[:, :, : 1 + (frames - 1) // 4]
    assert relative_l2(vae().encode(video), whole_encode(video)) < 1e-5
    assert relative_l2(vae().decode(latents), whole_decode(latents)) < 1e-5


def test_chunks_of_uneven_length_give_the_same_latents() -> None:
    pieces = VIDEO.split([5, 4, 8], dim=2)
    assert relative_l2(torch.cat(list(vae().encode_chunks(pieces)), dim=2), whole_encode(VIDEO)) < 1e-5


def test_future_frames_do_not_change_past_latents() -> None:
    changed = VIDEO.clone()
    changed[:, :, 9:] = fill("other", [1, 3, 8, 16, 24])
    before, after = vae().encode(VIDEO), vae().encode(changed)
    assert torch.equal(before[:, :, :3], after[:, :, :3])
    assert not torch.equal(before[:, :, 3:], after[:, :, 3:])


def test_future_latents_do_not_change_past_frames() -> None:
    changed = LATENTS.clone()
    changed[:, :, 3:] = fill("other", [1, 16, 2, 2, 3])
    before, after = vae().decode(LATENTS), vae().decode(changed)
    assert torch.equal(before[:, :, :9], after[:, :, :9])
    assert not torch.equal(before[:, :, 9:], after[:, :, 9:])


def test_frames_are_decoded_one_first_and_then_four_per_latent_frame() -> None:
    assert [chunk.shape[2] for chunk in vae().decode_chunks(LATENTS)] == [1, 4, 4, 4, 4]
    assert [chunk.shape[2] for chunk in vae().decode_chunks(LATENTS, chunk=3)] == [1, 12, 4]


def test_frames_are_clamped_and_latents_are_float32() -> None:
    frames = vae().decode(10 * LATENTS)
    assert float(frames.abs().max()) == 1
    assert frames.dtype == vae().encode(VIDEO).dtype == torch.float32


@pytest.mark.parametrize("chunk", [1, 2])
@pytest.mark.parametrize(
    "video", ["grey after one picture", "and another at the end", "still throughout", "in between"]
)
def test_what_does_not_change_is_encoded_once_bit_for_bit(
    video: str, chunk: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    pixels = torch.zeros(1, 3, 121, 16, 16)
    pixels[:, :, 0] = fill("first", [1, 3, 16, 16])
    if video == "and another at the end":
        pixels[:, :, -1] = fill("last", [1, 3, 16, 16])
    if video == "still throughout":
        pixels = pixels[:, :, :1].expand(-1, -1, 121, -1, -1)
    if video == "in between":
        pixels[:, :, 30:33] = fill("moving", [1, 3, 3, 16, 16])
    work: list[int] = []
    hooks = [
        layer.register_forward_hook(lambda _, args, out: work.append(out.shape[2]))
        for layer in vae().encoder.downsamples
    ]
    latents = vae().encode(pixels, chunk=chunk)
    saved, work[:] = sum(work), []
    monkeypatch.setattr(Still, "depth", lambda still, windows: 0)
    assert torch.equal(latents, vae().encode(pixels, chunk=chunk))
    assert saved < 0.75 * sum(work)
    for hook in hooks:
        hook.remove()


def stream_bytes(stream: Stream) -> int:
    return sum(past.numel() * past.element_size() for past in stream._history.values())


def test_what_a_stream_remembers_does_not_grow_with_the_video() -> None:
    decoding, encoding = Stream(), Stream()
    decoded, encoded = [], []
    for step in range(8):
        vae().decode_chunk(LATENTS[:, :, :1], decoding)
        vae().encode_chunk(VIDEO[:, :, : 4 if step else 1], encoding)
        decoded.append(stream_bytes(decoding))
        encoded.append(stream_bytes(encoding))
    assert len(set(decoded[2:])) == 1
    assert len(set(encoded[2:])) == 1


def test_a_stream_holds_its_own_copies_and_not_views_of_larger_tensors() -> None:
    stream = Stream()
    for _ in range(3):
        vae().decode_chunk(LATENTS[:, :, :1], stream)
    for past in stream._history.values():
        assert past.untyped_storage().nbytes() == past.numel() * past.element_size()


def test_decoding_takes_latents_as_they_come() -> None:
    taken = 0

    def pieces() -> Iterator[torch.Tensor]:
        nonlocal taken
        for piece in VIDEO.split([1, 4, 4, 4, 4], dim=2):
            taken += 1
            yield piece

    latents = vae().encode_chunks(pieces())
    next(latents)
    assert taken == 1
    next(latents)
    assert taken == 2


def test_two_videos_at_once_are_two_videos_alone() -> None:
    other = fill("other", [1, 16, 5, 2, 3])
    together = vae().decode(torch.cat((LATENTS, other)))
    assert relative_l2(together, torch.cat((vae().decode(LATENTS), vae().decode(other)))) < 1e-5


def test_normalising_is_undone_by_denormalising_and_uses_the_published_numbers() -> None:
    raw = fill("raw", [1, 16, 1, 2, 2])
    assert relative_l2(vae().denormalise(vae().normalise(raw)), raw) < 1e-6
    assert float(vae().normalise(torch.zeros(1, 16, 1, 1, 1))[0, 0]) == pytest.approx(0.7571 / 2.8184)


@pytest.mark.parametrize(
    "shape", [[1, 3, 4, 16, 16], [1, 3, 5, 12, 16], [1, 4, 5, 16, 16], [3, 5, 16, 16], [1, 3, 5, 0, 16]]
)
def test_videos_that_do_not_fit_are_refused_and_never_cut(shape: list[int]) -> None:
    with pytest.raises(ValueError, match="video"):
        vae().encode(torch.zeros(shape))


def test_latents_and_chunks_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match="latents must be"):
        vae().decode(torch.zeros(1, 15, 1, 2, 2))
    with pytest.raises(ValueError, match="chunk is 0"):
        vae().decode(LATENTS, chunk=0)


def test_every_chunk_is_checked() -> None:
    first, later = torch.zeros(1, 3, 1, 16, 16), torch.zeros(1, 3, 4, 16, 16)
    for chunks, words in (
        ([torch.zeros(1, 3, 1, 12, 12)], "multiples of 8"),
        ([first, torch.zeros(1, 3, 2, 16, 16)], "later chunk has 2 frames"),
        ([first, first], "later chunk has 1 frames"),
        ([later], "the video has 4 frames"),
        ([first, torch.zeros(1, 3, 4, 16, 24)], r"\(1, 16, 24\)"),
        ([first, torch.zeros(2, 3, 4, 16, 16)], r"\(2, 16, 16\)"),
    ):
        with pytest.raises(ValueError, match=words):
            list(vae().encode_chunks(chunks))
    for shape in ((1, 16, 0, 2, 2), (1, 16, 1, 0, 2), (0, 16, 1, 2, 2)):
        with pytest.raises(ValueError, match="none of them 0"):
            vae().decode(torch.zeros(shape))
