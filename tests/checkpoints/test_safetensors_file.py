"""The safetensors reader agrees with the reference on good files and explains every kind of bad one."""

from __future__ import annotations

import gc
import json
import time
import tracemalloc
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from cygnet.checkpoints.safetensors_file import MAX_HEADER_BYTES, MAX_TENSORS, read_safetensors
from cygnet.errors import CygnetError, WeightFileError
from weight_samples import entry, raw_safetensors, save


@pytest.fixture
def good(tmp_path: Path) -> Path:
    state = {
        "a": torch.arange(6, dtype=torch.float32).reshape(2, 3),
        "half": torch.tensor([1.5, -2.0]).bfloat16(),
        "eight": torch.tensor([[0.5, -448.0]]).to(torch.float8_e4m3fn),
        "scalar": torch.tensor(7.0),
        "none": torch.zeros(0, 4),
        "flag": torch.tensor([True, False, True]),
    }
    return save(tmp_path / "good.safetensors", state, {"note": "über"})


def test_tensors_and_metadata_equal_those_of_the_reference_reader(good: Path) -> None:
    opened = read_safetensors(good)
    expected = load_file(good)
    assert opened.metadata == {"note": "über"}
    assert set(opened.tensors) == set(expected)
    for name, tensor in expected.items():
        assert opened.tensors[name].shape == tuple(tensor.shape)
        assert f"torch.{opened.tensors[name].dtype}" == str(tensor.dtype)
        assert opened.tensor(name).equal(tensor)


def test_a_tensor_at_an_odd_offset_is_read_right(tmp_path: Path) -> None:
    values = torch.tensor([1.0, -2.5, 3.25])
    header = {"x": entry("U8", [1], 0, 1), "y": entry("F32", [3], 1, 13)}
    path = raw_safetensors(tmp_path / "odd.safetensors", header, b"\7" + values.numpy().tobytes())
    assert read_safetensors(path).tensor("y").equal(values)


def test_writing_to_a_tensor_leaves_the_file_as_it_was(good: Path) -> None:
    before = good.read_bytes()
    read_safetensors(good).tensor("a").add_(1)
    assert good.read_bytes() == before


@pytest.mark.parametrize("keep", [0, 7, 8, 100])
def test_a_file_cut_early_is_called_truncated_and_offered_again(good: Path, keep: int) -> None:
    good.write_bytes(good.read_bytes()[:keep])
    with pytest.raises(WeightFileError, match=r"truncated.*download it again"):
        read_safetensors(good)


def test_a_file_one_byte_short_is_told_with_both_sizes(good: Path) -> None:
    size = good.stat().st_size
    good.write_bytes(good.read_bytes()[:-1])
    with pytest.raises(WeightFileError, match=f"truncated: header says {size:,} bytes, file has {size - 1:,}"):
        read_safetensors(good)


@pytest.mark.parametrize("length", [0, 1, 2**63, 2**64 - 1, 99 * 2**20, 2**31])
def test_an_absurd_header_length_costs_no_memory(tmp_path: Path, length: int) -> None:
    path = raw_safetensors(tmp_path / "x.safetensors", b"{}", length=length)
    tracemalloc.start()
    with pytest.raises(WeightFileError, match="header"):
        read_safetensors(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2**20


def test_a_header_over_the_own_limit_is_refused_unread(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    with path.open("wb") as file:
        file.write((99 * 10**6).to_bytes(8, "little"))
        file.truncate(8 + 99 * 10**6 + 10)
    with pytest.raises(WeightFileError, match=f"the limit is {MAX_HEADER_BYTES:,}"):
        read_safetensors(path)


def _many(count: int) -> bytes:
    one = '"dtype":"F32","shape":[],"data_offsets":[0,0]'
    return ("{" + ",".join(f'"{i}":{{{one}}}' for i in range(count)) + "}").encode()


HOSTILE = {
    "200,000 tensors": _many(200_000),
    "depth 10,000 in arrays": b'{"x":' + b"[" * 10_000 + b"]" * 10_000 + b"}",
    "depth 10,000 in objects": b'{"x":' * 10_000 + b"1" + b"}" * 10_000,
    "eight million values": b'{"x":[' + b"1," * 8_000_000 + b"1]}",
    "five million empty lists": b'{"x":[' + b"[]," * 5_000_000 + b"[]]}",
    "one string without end": b'{"x":"' + b'\\"' * 8_000_000,
    "closing brackets in strings": b'{"]]]]":[[[[[[0]]]]]]}',
}


@pytest.mark.parametrize("header", HOSTILE.values(), ids=HOSTILE)
def test_a_hostile_header_is_refused_within_a_second_and_100_mb(tmp_path: Path, header: bytes) -> None:
    path = raw_safetensors(tmp_path / "x.safetensors", header[:MAX_HEADER_BYTES])
    started = time.process_time()
    with pytest.raises(WeightFileError):
        read_safetensors(path)
    assert time.process_time() - started < 1
    tracemalloc.start()
    with pytest.raises(WeightFileError):
        read_safetensors(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 100e6


def test_the_most_tensors_allowed_are_counted_on_the_text() -> None:
    assert _many(10).count(b'"data_offsets"') == 10 < MAX_TENSORS


BAD_HEADERS: dict[str, tuple[Any, bytes, str]] = {
    "repeated key": (
        b'{"x":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},"x":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}}',
        b"1",
        "names 'x' twice",
    ),
    "metadata of numbers": ({"__metadata__": {"a": 1}}, b"", "not a table of strings"),
    "trailing bytes": ({"x": entry("U8", [2], 0, 2)}, b"123", "1 bytes follow the last tensor"),
    "overlap": ({"x": entry("U8", [2], 0, 2), "y": entry("U8", [2], 1, 3)}, b"123", "'y' overlaps"),
    "gap": ({"x": entry("U8", [1], 0, 1), "y": entry("U8", [1], 2, 3)}, b"123", "'y' leaves a gap"),
    "gap at the start": ({"x": entry("U8", [1], 1, 2)}, b"12", "'x' leaves a gap"),
    "shape against bytes": ({"x": entry("F32", [2, 2], 0, 12)}, b"0" * 12, "16 bytes, but 12"),
    "overflowing product": ({"x": entry("F32", [2**40, 2**40], 0, 4)}, b"0000", r"more than 2\*\*48"),
    "product that wraps to the right size": ({"x": entry("U8", [2**32, 2**32 + 1], 0, 0)}, b"", r"more than 2\*\*48"),
    "negative dimension": ({"x": entry("F32", [-1], 0, 4)}, b"0000", "'x' .* list of at most 16 counts"),
    "huge dimension": ({"x": entry("F32", [2**70], 0, 4)}, b"0000", "'x' .* counts"),
    "boolean dimension": (b'{"x":{"dtype":"U8","shape":[true],"data_offsets":[0,1]}}', b"0", "counts"),
    "fractional dimension": (b'{"x":{"dtype":"U8","shape":[1.0],"data_offsets":[0,1]}}', b"0", "counts"),
    "too many axes": ({"x": entry("U8", [1] * 17, 0, 1)}, b"0", "16 counts"),
    "reversed offsets": ({"x": entry("U8", [1], 1, 0)}, b"0", "data_offsets"),
    "unknown type": ({"x": entry("Q4", [1], 0, 1)}, b"0", "type 'Q4'; known types: BOOL"),
    "extra field": ({"x": {**entry("U8", [1], 0, 1), "z": 1}}, b"0", "exactly dtype, shape and data_offsets"),
    "not a number": (b'{"x":{"dtype":"U8","shape":[NaN],"data_offsets":[0,1]}}', b"0", "NaN"),
    "not JSON": (b"{nonsense}", b"", "not valid JSON"),
    "not UTF-8": (b'{"\xff":1}', b"", "not valid JSON"),
    "thousands of digits": (b'{"x":{"dtype":"U8","shape":[' + b"9" * 5000 + b'],"data_offsets":[0,1]}}', b"0", "JSON"),
    "a list": (b'["x"]', b"", "opening brace"),
}


@pytest.mark.parametrize(("header", "data", "message"), BAD_HEADERS.values(), ids=BAD_HEADERS)
def test_a_wrong_header_is_refused_by_name(tmp_path: Path, header: Any, data: bytes, message: str) -> None:
    path = raw_safetensors(tmp_path / "x.safetensors", header, data)
    with pytest.raises(WeightFileError, match=message):
        read_safetensors(path)


def test_a_message_holds_neither_folders_nor_control_characters(tmp_path: Path) -> None:
    path = raw_safetensors(tmp_path / "x.safetensors", {"\x1b[31mred": entry("Q4", [1], 0, 1)}, b"0")
    with pytest.raises(WeightFileError) as caught:
        read_safetensors(path)
    assert str(tmp_path) not in str(caught.value)
    assert "\x1b" not in str(caught.value)


def test_a_file_replaced_while_in_use_is_noticed(good: Path) -> None:
    opened = read_safetensors(good)
    opened.tensor("a")
    good.write_bytes(good.read_bytes()[:-1])
    with pytest.raises(WeightFileError, match="changed while it was in use"):
        opened.tensor("a")


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(position=st.integers(0, 600), value=st.integers(0, 255), cut=st.integers(0, 600))
def test_a_damaged_file_is_read_or_refused_but_never_crashes(good: Path, position: int, value: int, cut: int) -> None:
    original = good.read_bytes()
    data = bytearray(original)
    data[position % len(data)] = value
    bad = good.with_name("bad.safetensors")
    bad.write_bytes(bytes(data[: len(data) - cut % 3]))
    try:
        opened = read_safetensors(bad)
    except CygnetError:
        return
    for name in opened.tensors:
        assert opened.tensor(name).shape == opened.tensors[name].shape


def test_header_names_survive_any_unicode(tmp_path: Path) -> None:
    names = ["球", "a.b", '"quoted"', "\\"]
    header = {name: entry("U8", [1], i, i + 1) for i, name in enumerate(names)}
    text = json.dumps(header, ensure_ascii=False).encode()
    assert list(read_safetensors(raw_safetensors(tmp_path / "u.safetensors", text, b"1234")).tensors) == names


def test_the_pages_of_a_file_go_with_the_last_tensor_in_them(tmp_path: Path) -> None:
    save_file({"a": torch.ones(4), "b": torch.zeros(4)}, tmp_path / "x.safetensors")
    file = read_safetensors(tmp_path / "x.safetensors")
    first, second = file.tensor("a"), file.tensor("b")
    mapping = file.mapped[0]._map
    assert mapping is not None
    assert mapping() is not None
    del first
    assert mapping() is not None
    del second
    gc.collect()
    assert mapping() is None
    assert torch.equal(file.tensor("a"), torch.ones(4))
