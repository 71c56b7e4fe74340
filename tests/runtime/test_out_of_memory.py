"""Memory runs out in each stage once: the stage is done again in less, and the video is the same bit for bit."""

from __future__ import annotations

import gc
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import cygnet
from cygnet.assembly import build as build_module
from cygnet.errors import CygnetError, OutOfMemory
from cygnet.models.clip.model import CLIPVision
from cygnet.models.dit.model import DiT
from cygnet.models.umt5.model import UMT5Encoder
from cygnet.models.vae.model import WanVAE
from support import fill

SMALL: dict[str, Any] = {
    "prompt": "a red ball", "size": (32, 16), "num_frames": 17, "num_steps": 2, "seed": 3, "negative_prompt": "blue",
}  # fmt: skip
PICTURE = fill("picture", [3, 16, 32])
STAGES: Mapping[str, tuple[type[torch.nn.Module], str, str]] = {
    "text": (UMT5Encoder, "forward", "encoding the text"),
    "picture": (CLIPVision, "forward", "encoding the picture"),
    "condition": (WanVAE, "encode_chunk", "encoding the picture"),
    "denoising": (DiT, "forward", "denoising"),
    "decoding": (WanVAE, "decode_chunk", "decoding"),
}
ERRORS: list[Callable[[], BaseException]] = [
    lambda: torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
    MemoryError,
    lambda: RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"),
]


@pytest.fixture(scope="module")
def plain(i2v_parts: Mapping[Any, Path]) -> np.ndarray:
    wan = cygnet.load(i2v_parts, device="cpu", dtype="float32", offload=False)
    return wan.generate(image=PICTURE, **SMALL).frames


def fail(monkeypatch: pytest.MonkeyPatch, stage: str, on: range, error: Callable[[], BaseException]) -> list[int]:
    """Make the calls of a stage's network that are numbered in ``on`` raise; returns a list that grows by call."""
    kind, method, _ = STAGES[stage]
    real, calls = getattr(kind, method), list[int]()

    def called(*args: Any, **kwargs: Any) -> Any:
        if args[1].is_meta:  # a plan
            return real(*args, **kwargs)
        calls.append(len(calls))
        if calls[-1] in on:
            raise error()
        return real(*args, **kwargs)

    monkeypatch.setattr(kind, method, called)
    return calls


@pytest.mark.parametrize("offload", [False, True])
@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_is_done_again_in_less_and_the_video_is_the_same(
    stage: str, offload: bool, i2v_parts: Any, plain: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    wan = cygnet.load(i2v_parts, device="cpu", dtype="float32", offload=offload)
    before = wan.model.residency.placement
    fail(monkeypatch, stage, range(1), ERRORS[len(stage) % len(ERRORS)])
    if offload and stage in ("picture", "condition"):
        with pytest.raises(OutOfMemory, match="encoding the picture, and the weights cannot be held in less"):
            wan.generate(image=PICTURE, **SMALL)
        return
    video = wan.generate(image=PICTURE, **SMALL)
    assert np.array_equal(video.frames, plain)
    said = [notice for notice in video.receipt["notices"] if "memory ran out" in notice]
    assert len(said) == 1
    assert f"memory ran out while {STAGES[stage][2]}; it was done again in less: " in said[0]
    if stage != "decoding":
        assert wan.model.residency.placement != before


def test_frames_that_were_given_are_not_given_again(
    i2v_parts: Any, plain: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second chunk fails: its frames come one latent frame at a time, after the first one's."""
    wan = cygnet.load(i2v_parts, device="cpu", dtype="float32", offload=True)
    fail(monkeypatch, "decoding", range(1, 2), ERRORS[0])
    chunks = list(wan.stream(image=PICTURE, **SMALL))
    assert [len(chunk) for chunk in chunks] == [1, 4, 4, 4, 4]
    assert np.array_equal(np.concatenate(chunks), plain)


def fail_to_load(monkeypatch: pytest.MonkeyPatch) -> None:
    """Memory runs out when the weights of the second network are read, the first time."""
    real, calls = build_module.materialise, list[int]()

    def called(*args: Any, **kwargs: Any) -> Any:
        calls.append(len(calls))
        if len(calls) == 2:
            raise ERRORS[0]()
        return real(*args, **kwargs)

    monkeypatch.setattr(build_module, "materialise", called)


def test_loading_is_done_again_in_less_and_the_next_video_says_so_once(
    i2v_parts: Any, plain: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    fail_to_load(monkeypatch)
    wan = cygnet.load(i2v_parts, device="cpu", dtype="float32")
    assert not wan.model.residency.placement.resident
    video = wan.generate(image=PICTURE, **SMALL)
    assert np.array_equal(video.frames, plain)
    told = "memory ran out while loading; it was done again in less: each network is in memory for its stage alone"
    assert video.receipt["notices"].count(told) == 1
    assert told not in wan.generate(image=PICTURE, **SMALL).receipt["notices"]


def test_loading_all_as_was_asked_for_fails_in_words(i2v_parts: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    fail_to_load(monkeypatch)
    with pytest.raises(OutOfMemory, match=r"while the networks were loaded \(CUDA out .* offload=False .* give True"):
        cygnet.load(i2v_parts, device="cpu", dtype="float32", offload=False)


@pytest.mark.parametrize("stage", ["text", "denoising", "decoding"])
def test_a_second_time_is_one_too_many_and_the_error_names_what_fits(
    stage: str, i2v_parts: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    wan = cygnet.load(i2v_parts, device="cpu", dtype="float32", offload=True)
    calls = fail(monkeypatch, stage, range(100), ERRORS[0])
    words = r"no request of this model fits" if stage == "text" else r"(\d+) frames? of (\d+)x(\d+) fits?; or add"
    if stage == "decoding":  # which one latent frame at a time did not help
        words += r" --decode-dtype bfloat16; or add --decode-tiles 64x64$"
    with pytest.raises(OutOfMemory, match=rf"out of memory .*; {words}") as caught:
        wan.generate(image=PICTURE, **{**SMALL, "size": (128, 64)})
    assert isinstance(caught.value, CygnetError)
    assert len(calls) == 2
    if stage != "text":  # which takes the same for every size
        found = re.search(words, str(caught.value))
        assert found is not None
        frames, width, height = map(int, found.groups())
        assert frames * width * height < SMALL["num_frames"] * 128 * 64


def test_what_a_failed_stage_computed_is_free_before_it_is_done_again(
    i2v_parts: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else the second attempt has less memory than the first."""
    import weakref

    held: list[weakref.ref[torch.Tensor]] = []
    real, alive = DiT.forward, list[bool]()

    def called(self: DiT, *args: Any, **kwargs: Any) -> Any:
        out = real(self, *args, **kwargs)
        if not held:
            held.append(weakref.ref(out))
            raise MemoryError
        alive.append(held[0]() is not None)
        return out

    monkeypatch.setattr(DiT, "forward", called)
    cygnet.load(i2v_parts, device="cpu", dtype="float32", offload=False).generate(image=PICTURE, **SMALL)
    assert not any(alive)


def test_other_errors_are_no_lack_of_memory(i2v_parts: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    wan = cygnet.load(i2v_parts, device="cpu", dtype="float32", offload=True)
    calls = fail(monkeypatch, "denoising", range(100), lambda: RuntimeError("a kernel is missing"))
    with pytest.raises(RuntimeError, match="a kernel is missing"):
        wan.generate(image=PICTURE, **SMALL)
    assert len(calls) == 1


@pytest.mark.parametrize("offload", [False, True])
def test_videos_one_after_another_leave_memory_flat(offload: bool, i2v_parts: Any) -> None:
    """No network, tensor or hook of a run outlives it. Fifty, and by bytes: ``python -m benchmarks.flat``."""
    wan = cygnet.load(i2v_parts, device="cpu", dtype="float32", offload=offload)

    def living() -> int:
        gc.collect()
        return sum(type(it) in (torch.Tensor, torch.nn.Parameter) for it in gc.get_objects())

    counts = []
    for _ in range(5 if offload else 10):
        wan.generate(image=PICTURE, **{**SMALL, "num_frames": 5, "num_steps": 1})
        counts.append(living())
    assert counts[-1] <= counts[1]
