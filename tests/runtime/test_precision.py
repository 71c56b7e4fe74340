from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

import cygnet
from cygnet.errors import RequestError
from cygnet.runtime import precision
from cygnet.runtime.execution import Execution
from cygnet.runtime.precision import cpu_multiplies_bfloat16, parse_device, parse_dtype, pick_decode_dtype, pick_dtype

CPU, CUDA = torch.device("cpu"), torch.device("cuda", 0)


def test_cpu_is_always_there() -> None:
    assert parse_device("cpu") == CPU
    assert parse_device(CPU) == CPU


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device here")
def test_cuda_that_is_absent_is_refused_with_the_remedy() -> None:
    assert parse_device("auto") == CPU
    with pytest.raises(RequestError, match=r"device is cuda:1, but .*; use cpu, or install torch for CUDA"):
        parse_device("cuda:1")


@pytest.mark.parametrize("word", ["gpu", "", "cuda:x", "xla", "\x1b[2J"])
def test_words_that_name_no_device_are_refused(word: str) -> None:
    with pytest.raises(RequestError, match="device is") as caught:
        parse_device(word)
    assert caught.value.field == "device"
    assert ("mps" in str(caught.value)) == torch.backends.mps.is_available()
    assert str(caught.value).isprintable()


def test_dtypes_have_their_usual_names() -> None:
    assert parse_dtype("bf16") is parse_dtype("bfloat16") is parse_dtype(torch.bfloat16) is torch.bfloat16
    assert parse_dtype("auto") is None


@pytest.mark.parametrize("dtype", ["float64", "int8", torch.int64, torch.float64])
def test_other_dtypes_are_refused(dtype: str | torch.dtype) -> None:
    with pytest.raises(RequestError, match='give "auto", "float32"'):
        parse_dtype(dtype)


def test_the_vae_stays_in_float32_whatever_is_asked() -> None:
    assert pick_dtype("vae", CPU, torch.bfloat16) is torch.float32
    assert pick_dtype("vae", CUDA) is torch.float32


@pytest.mark.skipif(torch.cuda.is_available(), reason="the default device of some of these is then no processor")
@pytest.mark.parametrize(
    "ask",
    [
        lambda: cygnet.load("tiny-t2v", execution=Execution(decode_dtype="float16")),
        lambda: cygnet.plan("tiny-t2v", execution=Execution(decode_dtype="float16")),
        lambda: cygnet.load_vae("tiny-vae", "float16"),
        lambda: cygnet.load_vae("tiny-vae", decode_dtype=torch.float16),
    ],
)
def test_the_vae_is_not_left_to_float16_on_a_processor(ask: Callable[[], object]) -> None:
    """It convolves a hundred times as slowly there."""
    with pytest.raises(RequestError, match=r"dtype is float16, .*; give bfloat16 or float32"):
        ask()


def test_with_networks_in_float16_the_vae_decodes_as_ever_on_a_processor() -> None:
    assert Execution().decodes_in(CPU, torch.float16) is pick_decode_dtype(CPU)
    assert Execution(decode_dtype="float16").decodes_in(CUDA, None) is torch.float16


@pytest.mark.parametrize("has", [False, True])
def test_the_cpu_uses_bfloat16_only_where_it_can_multiply_it(has: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(precision, "cpu_multiplies_bfloat16", lambda: has)
    expected = torch.bfloat16 if has else torch.float32
    assert pick_dtype("dit", CPU) is pick_dtype("text_encoder", CPU) is expected
    assert pick_dtype("image_encoder", CPU) is torch.float32
    assert pick_dtype("dit", CPU, torch.float16) is torch.float16


@pytest.mark.parametrize(("capability", "expected"), [((8, 0), torch.bfloat16), ((7, 5), torch.float16)])
def test_cuda_uses_bfloat16_from_ampere_on(
    capability: tuple[int, int], expected: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    assert pick_dtype("dit", CUDA) is expected
    assert pick_dtype("image_encoder", CUDA) is torch.float16


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("processor: 0\nflags\t\t: fpu avx512f avx512_bf16\n", True),
        ("flags : fpu amx_bf16 amx_tile\n", True),
        ("Features : fp asimd bf16\n", True),
        ("flags : fpu avx2 avx512f\n", False),
        ("", False),
    ],
)
def test_bfloat16_instructions_are_read_from_the_processor_flags(tmp_path: Path, text: str, expected: bool) -> None:
    place = tmp_path / "cpuinfo"
    place.write_text(text, encoding="ascii")
    assert cpu_multiplies_bfloat16(place) is expected


def test_without_processor_flags_bfloat16_is_not_assumed(tmp_path: Path) -> None:
    assert cpu_multiplies_bfloat16(tmp_path / "absent") is False
