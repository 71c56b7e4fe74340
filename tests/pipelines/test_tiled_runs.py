"""Whole runs in tiles: as asked, as planned, where memory runs out, and made again from the receipt."""

from __future__ import annotations

from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import cygnet
from cygnet.cli.replay import _recorded_execution, changes
from cygnet.errors import MediaError, OutOfMemory
from cygnet.models.vae.model import WanVAE
from cygnet.pipelines import sizes
from cygnet.planning import Machine
from random_models import write_model
from support import fill

ASKED: dict[str, Any] = {
    "prompt": "a red ball", "size": (96, 80), "num_frames": 13, "num_steps": 1, "seed": 3, "guidance_scale": 1.0,
}  # fmt: skip
PICTURE = fill("picture", [3, 80, 96])
TILED = cygnet.Execution(decode_tiles="64x64", encode_tiles="80x80")


def load(paths: Any, execution: cygnet.Execution = cygnet.Execution()) -> cygnet.Wan:  # noqa: B008
    return cygnet.load(paths, device="cpu", dtype="float32", offload=True, execution=execution)


@pytest.fixture(scope="module")
def plain(i2v_parts: Any) -> cygnet.Video:
    return load(i2v_parts).generate(image=PICTURE, **ASKED)


@pytest.fixture(scope="module")
def tiled(i2v_parts: Any) -> cygnet.Video:
    return load(i2v_parts, TILED).generate(image=PICTURE, **ASKED)


def near(video: cygnet.Video, plain: cygnet.Video) -> bool:
    """Whether rounding is all that is between them."""
    apart = np.abs(video.frames.astype(int) - plain.frames.astype(int))
    return int(apart.max()) <= 1 and float(apart.mean()) < 0.01


def again(wan: cygnet.Wan, video: cygnet.Video) -> np.ndarray:
    return np.concatenate(list(wan.replay(video.receipt["request"], image=PICTURE)))


def test_tiles_that_are_asked_for_are_used_said_and_recorded(
    i2v_parts: Any, plain: cygnet.Video, tiled: cygnet.Video
) -> None:
    assert "tiles" not in plain.receipt
    plan = load(i2v_parts, TILED).plan(image=PICTURE, **ASKED)
    assert plan.to_json()["placement"]["decode_tiles"] == {"size": "64x64", "count": 4}
    assert plan.to_json()["placement"]["encode_tiles"] == {"size": "80x80", "count": 2}
    assert "frames are decoded in 4 tiles of 64x64 because that was asked for" in plan.why
    assert near(tiled, plain)
    assert tiled.receipt["tiles"] == {"decode": "64x64", "encode": "80x80"}
    said = [notice for notice in tiled.receipt["notices"] if "tiles" in notice]
    assert said[0].startswith("frames are decoded in 4 tiles of 64x64; pixels are the same as without")


def test_a_replay_takes_the_recorded_tiles_whatever_is_free(
    i2v_parts: Any, plain: cygnet.Video, tiled: cygnet.Video
) -> None:
    execution = _recorded_execution(tiled.receipt)
    assert (execution.decode_tiles, execution.encode_tiles) == ("64x64", "80x80")
    wan = load(i2v_parts, execution)
    assert np.array_equal(again(wan, tiled), tiled.frames)
    other = wan.replay(tiled.receipt["request"], image=PICTURE)
    assert not [note for note in changes(tiled.receipt, other.receipt) if "VAE" in note]
    assert "the VAE decodes in whole frames; the first time in 64x64" in changes(tiled.receipt, plain.receipt)
    with pytest.raises(MediaError, match="tiles cannot be read"):
        _recorded_execution({**tiled.receipt, "tiles": {"decode": "many"}})


def test_where_one_frame_does_not_fit_it_is_made_in_tiles_and_the_plan_says_so(
    i2v_parts: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sizes, "CELLS_AT_ONCE", 1)
    wan, real, free = load(i2v_parts), Machine.of, 10**12
    monkeypatch.setattr(Machine, "of", lambda *_, **__: replace(real("cpu"), device_free=free, host_free=free))
    large: dict[str, Any] = {**ASKED, "size": (320, 192), "num_frames": 9, "image": PICTURE}
    whole = wan.plan(**large)
    assert whole.portions.decode_tiles is None
    assert whole.portions.encode_tiles is None
    decoding = next(stage for stage in whole.stages if stage.phase == "decode")
    free = (decoding.host_peak - whole.machine.host_base) * 99 // 100
    short = wan.plan(**large)
    assert short.fits, short.refusal()
    tiles = short.portions.decode_tiles
    assert tiles is not None
    assert not short.portions.parked
    assert f"tiles of {tiles} because one whole does not fit" in short.why
    assert f"tiles of {tiles}" in short.held()
    tiled = next(stage for stage in short.stages if stage.phase == "decode")
    assert tiled.host_peak - whole.machine.host_base <= free
    assert tiled.flops > decoding.flops
    assert (tiled.seconds or 0) > (decoding.seconds or 0)
    stream = wan.stream(**large)  # a run decides as its plan does
    assert stream.receipt["tiles"]["decode"] == str(tiles)
    stream.close()
    free //= 20
    with pytest.raises(OutOfMemory, match=r"frames are decoded in \d+ tiles of .* are free; "):
        wan.stream(**large)


@pytest.mark.parametrize(("failing", "recorded"), [(1, "64x64"), (2, "64x64@5")])
def test_where_memory_runs_out_with_one_frame_at_a_time_the_rest_is_made_in_tiles(
    failing: int, recorded: str, i2v_parts: Any, plain: cygnet.Video, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Which the receipt inside a file says, though written with the first frames: they wait for the second chunk."""
    monkeypatch.setattr(sizes, "CELLS_AT_ONCE", 1)
    real, calls = WanVAE.decode_chunk, list[int]()

    def called(self: WanVAE, latents: torch.Tensor, stream: Any) -> torch.Tensor:
        if not latents.is_meta:
            calls.append(len(calls))
            if calls[-1] == failing:
                raise MemoryError
        return real(self, latents, stream)

    monkeypatch.setattr(WanVAE, "decode_chunk", called)
    wan = load(i2v_parts)
    stream = wan.stream(image=PICTURE, **ASKED)
    chunks = [next(iter(stream))]
    early = stream.receipt.get("tiles")
    chunks += list(stream)
    assert [len(chunk) for chunk in chunks] == [1, 4, 4, 4]
    video = cygnet.Video(np.concatenate(chunks), 16, stream.receipt)
    assert near(video, plain)
    assert video.receipt["tiles"] == {"decode": recorded}
    assert early == (None if failing == 2 else {"decode": recorded})
    said = [notice for notice in video.receipt["notices"] if "memory ran out" in notice]
    assert len(said) == 1
    assert "done again in less: frames are decoded in 4 tiles of 64x64, and last digits can differ" in said[0]
    assert np.array_equal(again(load(i2v_parts, _recorded_execution(video.receipt)), video), video.frames)


@pytest.mark.parametrize(("failing", "lengths", "recorded"), [(1, [1, 4, 4, 4], "96x80"), (2, [1, 8, 4], "96x80@9")])
def test_where_memory_runs_out_with_several_frames_at_a_time_the_rest_is_made_one_at_a_time(
    failing: int,
    lengths: list[int],
    recorded: str,
    i2v_parts: Any,
    plain: cygnet.Video,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """One tile as large as the frame; a replay decodes as many at a time up to there, and has the same bits."""
    monkeypatch.setattr(sizes, "CELLS_AT_ONCE", 2 * 12 * 10)
    real, calls = WanVAE.decode_chunk, list[int]()

    def called(self: WanVAE, latents: torch.Tensor, stream: Any) -> torch.Tensor:
        if not latents.is_meta:
            calls.append(latents.shape[2])
            if len(calls) == failing + 1:
                raise MemoryError
        return real(self, latents, stream)

    monkeypatch.setattr(WanVAE, "decode_chunk", called)
    stream = load(i2v_parts).stream(image=PICTURE, **ASKED)
    chunks = list(stream)
    assert [len(chunk) for chunk in chunks] == lengths
    video = cygnet.Video(np.concatenate(chunks), 16, stream.receipt)
    assert near(video, plain)
    assert video.receipt["tiles"] == {"decode": recorded}
    said = [notice for notice in video.receipt["notices"] if "memory ran out" in notice]
    assert said == [
        "memory ran out while decoding; it was done again in less: latent frames are decoded one at a time, and last "
        "digits can differ"
    ]
    before, wan = len(calls), load(i2v_parts, _recorded_execution(video.receipt))
    assert np.array_equal(again(wan, video), video.frames)
    assert calls[before:] == ([1, 1, 1, 1] if failing == 1 else [1, 2, 1, 1, 1, 1])


def test_weights_go_before_portions_for_that_changes_no_bit(
    i2v_parts: Any, plain: cygnet.Video, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, calls, failing = WanVAE.decode_chunk, list[int](), range(1)

    def called(self: WanVAE, latents: torch.Tensor, stream: Any) -> torch.Tensor:
        if not latents.is_meta:
            calls.append(latents.shape[2])
            if len(calls) - 1 in failing:
                raise MemoryError
        return real(self, latents, stream)

    monkeypatch.setattr(WanVAE, "decode_chunk", called)
    for failures, chunks in ((1, [1, 1, 3]), (2, [1, 1, 1, 1, 1, 1])):
        calls.clear()
        failing = range(failures)
        wan = cygnet.load(i2v_parts, device="cpu", dtype="float32", offload=False)
        video = wan.generate(image=PICTURE, **ASKED)
        assert calls == chunks
        assert len([notice for notice in video.receipt["notices"] if "memory ran out" in notice]) == failures
        assert ("tiles" in video.receipt) == (failures == 2)
        assert near(video, plain)
        if failures == 1:
            assert np.array_equal(video.frames, plain.frames)


def test_where_memory_runs_out_in_encoding_pictures_are_encoded_in_tiles(
    i2v_parts: Any, plain: cygnet.Video, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, calls = WanVAE.encode_chunk, list[int]()

    def called(self: WanVAE, video: torch.Tensor, stream: Any) -> torch.Tensor:
        if not video.is_meta:
            calls.append(len(calls))
            raise torch.OutOfMemoryError("CUDA out of memory")
        return real(self, video, stream)

    monkeypatch.setattr(WanVAE, "encode_chunk", called)
    video = load(i2v_parts).generate(image=PICTURE, **ASKED)
    assert len(calls) == 1
    assert near(video, plain)
    assert video.receipt["tiles"] == {"encode": "64x64"}


def test_a_source_video_is_encoded_in_tiles(tmp_path: Path) -> None:
    paths = write_model(tmp_path)
    given: dict[str, Any] = {**ASKED, "num_steps": 2, "strength": 0.5, "video": fill("source", [3, 13, 80, 96])}
    given["video"] = given["video"].clamp(-1, 1)
    whole, tiled = load(paths).generate(**given), load(paths, TILED).generate(**given)
    assert near(tiled, whole)
    assert tiled.receipt["tiles"] == {"decode": "64x64", "encode": "80x80"}
    with closing(load(paths, TILED).stream(**ASKED)) as alone:
        assert alone.receipt["tiles"] == {"decode": "64x64"}, "there is nothing to encode"
