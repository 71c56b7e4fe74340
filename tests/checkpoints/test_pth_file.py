"""PyTorch files are read without running anything that is in them."""

from __future__ import annotations

import argparse
import io
import os
import pickle
import time
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cygnet.checkpoints.open import open_weights
from cygnet.checkpoints.pth_file import read_pth
from cygnet.errors import CygnetError, WeightFileError

DTYPES = [
    torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.int64, torch.int32, torch.int16, torch.int8,
    torch.uint8, torch.bool, torch.float8_e4m3fn, torch.float8_e5m2, torch.uint16,
]  # fmt: skip


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_every_stored_type_is_read_as_torch_reads_it(tmp_path: Path, dtype: torch.dtype) -> None:
    value = torch.arange(12).reshape(3, 4).to(dtype)
    path = tmp_path / "x.pth"
    torch.save({"x": value}, path)
    opened = read_pth(path)
    assert opened.tensors["x"].shape == (3, 4)
    assert opened.tensor("x").dtype is dtype
    assert opened.tensor("x").view(torch.uint8).equal(value.view(torch.uint8))


def test_views_parameters_scalars_and_empty_tensors_are_read(tmp_path: Path) -> None:
    base = torch.arange(24, dtype=torch.float32).reshape(4, 6)
    state = OrderedDict(
        whole=base, transposed=base.T, part=base[1:3, 2:5], shared=base[3], scalar=torch.tensor(3.5),
        none=torch.zeros(0, 2), parameter=torch.nn.Parameter(torch.ones(2)),
    )  # fmt: skip
    path = tmp_path / "x.pth"
    torch.save(state, path)
    opened = read_pth(path)
    assert list(opened.tensors) == list(state)
    for name, tensor in state.items():
        assert opened.tensor(name).equal(tensor.detach())


def test_a_module_state_with_its_version_notes_is_read(tmp_path: Path) -> None:
    module = torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.LayerNorm(2))
    torch.save(module.state_dict(), tmp_path / "x.pth")
    opened = read_pth(tmp_path / "x.pth")
    assert {n: opened.tensor(n).tolist() for n in opened.tensors} == {
        n: t.tolist() for n, t in module.state_dict().items()
    }


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_every_pickle_protocol_is_read(tmp_path: Path, protocol: int) -> None:
    torch.save({"x": torch.ones(2)}, tmp_path / "x.pth", pickle_protocol=protocol)
    assert read_pth(tmp_path / "x.pth").tensor("x").tolist() == [1, 1]


@pytest.mark.parametrize("wrapper", ["state_dict", "model_state", "generator", "generator_ema"])
def test_a_trainers_wrapper_is_taken_off(tmp_path: Path, wrapper: str) -> None:
    torch.save({wrapper: {"x": torch.ones(2)}, "epoch": 3, "note": "n"}, tmp_path / "x.pt")
    assert list(read_pth(tmp_path / "x.pt").tensors) == ["x"]


def test_averaged_weights_are_preferred(tmp_path: Path) -> None:
    torch.save({"generator": {"x": torch.zeros(1)}, "generator_ema": {"x": torch.ones(1)}}, tmp_path / "x.pt")
    assert read_pth(tmp_path / "x.pt").tensor("x").item() == 1


def test_tensors_are_mapped_and_not_copied(tmp_path: Path) -> None:
    torch.save({"x": torch.ones(1000), "y": torch.ones(1000)}, tmp_path / "x.pth")
    opened = read_pth(tmp_path / "x.pth")
    assert opened.tensor("x").data_ptr() == opened.tensor("x").data_ptr() != opened.tensor("y").data_ptr()


# Payloads ------------------------------------------------------------------------------------------------------------


class Payload:
    """Pickles as a call of ``function``."""

    def __init__(self, function: Callable[..., Any], *arguments: Any) -> None:
        self.call = (function, arguments)

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return self.call


def _as_archive(path: Path, program: bytes, extra: dict[str, bytes] | None = None) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("x/data.pkl", program)
        archive.writestr("x/byteorder", "little")
        for name, data in (extra or {}).items():
            archive.writestr(f"x/{name}", data)
    return path


def _payloads(canary: Path) -> dict[str, Any]:
    return {
        "system": Payload(os.system, f"touch {canary}"),
        "mkdir": Payload(os.mkdir, str(canary)),
        "eval": Payload(eval, f"open({str(canary)!r}, 'w')"),
        "open": Payload(open, str(canary), "w"),
        "getattr": Payload(getattr, os, "system"),
        "numpy": __import__("numpy").zeros(3),
        "class instance": argparse.Namespace(lr=0.1),
        "torch function": Payload(torch.load, str(canary)),
    }


@pytest.mark.parametrize("kind", list(_payloads(Path("x"))))
@pytest.mark.parametrize("protocol", [2, 4])
def test_a_payload_does_not_fire(tmp_path: Path, kind: str, protocol: int) -> None:
    canary = tmp_path / "canary"
    program = pickle.dumps({"x": _payloads(canary)[kind]}, protocol=protocol) if kind != "getattr" else None
    if program is None:
        program = b"\x80\x02cbuiltins\ngetattr\ncos\nsystem\nX\x01\x00\x00\x00a\x86R."
    with pytest.raises(WeightFileError, match="not a plain table of tensors"):
        read_pth(_as_archive(tmp_path / "x.pth", program))
    assert not canary.exists()


def _global(module: str, name: str) -> bytes:
    return b"c" + module.encode() + b"\n" + name.encode() + b"\n"


TRICKS = {
    "unknown global": b"\x80\x02" + _global("some.module", "thing") + b".",
    "torch internals": b"\x80\x02" + _global("torch._utils", "_rebuild_qtensor") + b".",
    "dotted attribute of an allowed name": b"\x80\x04\x8c\x0bcollections\x8c\x15OrderedDict.fromkeys.x\x93.",
    "name from a number": b"\x80\x04K\x01K\x02\x93.",
    "old instance instruction": b"(ios\nsystem\n.",
    "object with state": b"\x80\x02" + _global("torch", "Size") + b"}b.",
    "extension registry": b"\x80\x02\x82\x01.",
    "new object": b"\x80\x02" + _global("collections", "OrderedDict") + b")\x81.",
    "memo never written": b"\x80\x02h\x07.",
    "empty stack": b"\x80\x02R.",
    "mark without end": b"\x80\x02(((((",
    "tuple as table key": b"\x80\x02}))u.",
    "tuple key": b"\x80\x02})K\x01s.",
    "no end": b"\x80\x02}",
    "empty": b"",
    "text": b"hello",
    "list instead of table": b"\x80\x02].",
    "calls a table": b"\x80\x02})R.",
    "big integer": b"\x80\x02\x8b\xff\xff\xff\x7f",
    "storage from anywhere": b"\x80\x02X\x07\x00\x00\x00storageQ.",
}


@pytest.mark.parametrize("program", TRICKS.values(), ids=TRICKS)
def test_a_pickle_that_is_no_table_of_tensors_is_refused(tmp_path: Path, program: bytes) -> None:
    with pytest.raises(WeightFileError, match=r"x\.pth"):
        read_pth(_as_archive(tmp_path / "x.pth", program))


def test_the_message_names_what_the_file_asked_for(tmp_path: Path) -> None:
    program = pickle.dumps(Payload(os.system, "true"), protocol=2)
    with pytest.raises(WeightFileError, match=r"system.*Nothing was run"):
        read_pth(_as_archive(tmp_path / "x.pth", program))


def test_a_flood_of_instructions_is_refused_within_seconds(tmp_path: Path) -> None:
    path = _as_archive(tmp_path / "x.pth", b"\x80\x02" + b")" * 8_000_000)
    started = time.process_time()
    with pytest.raises(WeightFileError, match="instructions"):
        read_pth(path)
    assert time.process_time() - started < 2


def test_exponentially_nested_tuples_cost_nothing(tmp_path: Path) -> None:
    doubling = b"".join(b"q" + bytes([i]) + b"h" + bytes([i]) + b"\x86" for i in range(200))
    with pytest.raises(WeightFileError):
        read_pth(_as_archive(tmp_path / "x.pth", b"\x80\x02}K\x01" + doubling + b"s."))


# Archives ------------------------------------------------------------------------------------------------------------


def test_a_zip_without_weights_is_told(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "x.pth", "w") as archive:
        archive.writestr("photo.txt", "hello")
    with pytest.raises(WeightFileError, match=r"no data\.pkl"):
        read_pth(tmp_path / "x.pth")


def test_a_zip_inside_a_zip_is_not_looked_into(tmp_path: Path) -> None:
    inner = io.BytesIO()
    torch.save({"x": torch.ones(1)}, inner)
    with pytest.raises(WeightFileError):
        read_pth(_as_archive(tmp_path / "x.pth", inner.getvalue()))


def test_a_torchscript_program_is_refused(tmp_path: Path) -> None:
    path = _as_archive(tmp_path / "x.pt", pickle.dumps({}, protocol=2), {"code/__torch__.py": b"def f(): pass"})
    with pytest.raises(WeightFileError, match="TorchScript"):
        read_pth(path)


def test_a_compression_bomb_is_refused_unread(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "x.pth", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("x/data.pkl", b"\0" * 50_000_000)
    with pytest.raises(WeightFileError, match="compressed"):
        read_pth(tmp_path / "x.pth")


def test_a_long_table_of_contents_is_refused(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "x.pth", "w") as archive:
        for i in range(20_001):
            archive.writestr(f"x/{i}", b"")
    with pytest.raises(WeightFileError, match="entries; the limit is"):
        read_pth(tmp_path / "x.pth")


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_an_entry_listed_twice_is_refused(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "x.pth", "w") as archive:
        archive.writestr("x/data.pkl", pickle.dumps({}, protocol=2))
        archive.writestr("x/data.pkl", pickle.dumps({}, protocol=2))
    with pytest.raises(WeightFileError, match="twice"):
        read_pth(tmp_path / "x.pth")


def test_a_tensor_larger_than_its_storage_is_refused(tmp_path: Path) -> None:
    torch.save({"x": torch.ones(4)}, tmp_path / "good.pth")
    with zipfile.ZipFile(tmp_path / "good.pth") as source:
        program, data = source.read("good/data.pkl"), source.read("good/data/0")
    with zipfile.ZipFile(tmp_path / "x.pth", "w") as archive:
        archive.writestr("x/data.pkl", program)
        archive.writestr("x/data/0", data[:8])
    with pytest.raises(WeightFileError, match="needs 16 bytes, its storage has 8"):
        read_pth(tmp_path / "x.pth")


def test_a_missing_storage_is_told(tmp_path: Path) -> None:
    torch.save({"x": torch.ones(4)}, tmp_path / "good.pth")
    with zipfile.ZipFile(tmp_path / "good.pth") as source:
        program = source.read("good/data.pkl")
    with pytest.raises(WeightFileError, match=r"'x' .* has no data"):
        read_pth(_as_archive(tmp_path / "x.pth", program))


def test_big_endian_files_are_refused(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "x.pth", "w") as archive:
        archive.writestr("x/data.pkl", pickle.dumps({}, protocol=2))
        archive.writestr("x/byteorder", "big")
    with pytest.raises(WeightFileError, match="big-endian"):
        read_pth(tmp_path / "x.pth")


def test_an_optimiser_state_is_refused_in_words(tmp_path: Path) -> None:
    torch.save({"model": {"x": torch.ones(1)}, "optimizer": {"lr": 0.1}}, tmp_path / "x.pth")
    with pytest.raises(WeightFileError, match=r"'model' holds neither a tensor nor a number.*state_dict"):
        read_pth(tmp_path / "x.pth")


def test_the_format_from_before_2020_is_refused_without_reading_it(tmp_path: Path) -> None:
    torch.save({"x": torch.ones(1)}, tmp_path / "x.pth", _use_new_zipfile_serialization=False)
    with pytest.raises(WeightFileError, match=r"before 2020.*torch\.save"):
        open_weights(tmp_path / "x.pth")


def test_a_truncated_archive_is_told(tmp_path: Path) -> None:
    torch.save({"x": torch.ones(1000)}, tmp_path / "x.pth")
    data = (tmp_path / "x.pth").read_bytes()
    for keep in (4, 100, len(data) // 2, len(data) - 1):
        (tmp_path / "x.pth").write_bytes(data[:keep])
        with pytest.raises(WeightFileError, match=r"truncated|damaged"):
            read_pth(tmp_path / "x.pth")


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(edits=st.lists(st.tuples(st.integers(0, 5000), st.integers(0, 255)), min_size=1, max_size=4))
def test_a_damaged_file_is_read_or_refused_but_never_crashes(tmp_path: Path, edits: list[tuple[int, int]]) -> None:
    good = tmp_path / "good.pth"
    if not good.exists():
        torch.save({"x": torch.ones(3), "y": torch.zeros(2, 2).bfloat16()}, good)
    data = bytearray(good.read_bytes())
    for position, value in edits:
        data[position % len(data)] = value
    bad = tmp_path / "bad.pth"
    bad.write_bytes(bytes(data))
    try:
        opened = read_pth(bad)
    except CygnetError:
        return
    for name in opened.tensors:
        assert opened.tensor(name).shape == opened.tensors[name].shape


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(program=st.binary(max_size=60))
def test_no_random_pickle_escapes_the_interpreter(tmp_path: Path, program: bytes) -> None:
    path = _as_archive(tmp_path / "x.pth", b"\x80\x02" + program + b".")
    with pytest.raises(WeightFileError):
        read_pth(path)
