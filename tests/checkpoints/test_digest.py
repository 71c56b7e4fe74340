from __future__ import annotations

from pathlib import Path

import pytest

from cygnet.checkpoints import digest as module
from cygnet.checkpoints.digest import digest
from cygnet.errors import ModelNotFoundError


def written(folder: Path, name: str, data: bytes) -> Path:
    path = folder / name
    path.write_bytes(data)
    return path


def test_small_files_have_their_plain_sha256(tmp_path: Path) -> None:
    import hashlib

    path = written(tmp_path, "a", b"weights")
    assert digest([path]) == f"sha256:{hashlib.sha256(b'weights').hexdigest()}"


def test_names_do_not_count_and_content_does(tmp_path: Path) -> None:
    same = [digest([written(tmp_path, name, b"x" * 1000)]) for name in ("a", "b")]
    assert same[0] == same[1]
    assert digest([written(tmp_path, "c", b"x" * 999 + b"y")]) != same[0]


def test_large_files_are_told_apart_by_size_header_and_samples(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "WHOLE_BYTES", 100)
    monkeypatch.setattr(module, "HEAD_BYTES", 64)
    monkeypatch.setattr(module, "SAMPLE_BYTES", 16)
    data = bytes(10_000)
    first = digest([written(tmp_path, "a", data)])
    assert first.startswith("sha256-sampled:")
    assert digest([written(tmp_path, "b", data)]) == first
    assert digest([written(tmp_path, "c", data + b"\0")]) != first
    assert digest([written(tmp_path, "d", b"\1" + data[1:])]) != first
    sampled = 10_000 * 5 // module.SAMPLES
    assert digest([written(tmp_path, "e", data[:sampled] + b"\1" + data[sampled + 1 :])]) != first


def test_shards_count_in_their_order(tmp_path: Path) -> None:
    a, b = written(tmp_path, "a", b"1"), written(tmp_path, "b", b"2")
    assert digest([a, b]) != digest([b, a])


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ModelNotFoundError, match="gone"):
        digest([tmp_path / "gone"])
