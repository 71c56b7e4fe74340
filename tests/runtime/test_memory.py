from __future__ import annotations

from pathlib import Path

import psutil
import pytest
import torch

from cygnet.runtime import memory
from cygnet.runtime.memory import container_memory, free_memory

GIB = 2**30


def write(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


def test_a_container_leaves_its_limit_less_what_is_used_and_cannot_be_given_back(tmp_path: Path) -> None:
    usage = {"memory.max": f"{GIB}\n", "memory.current": f"{GIB // 2}\n", "memory.stat": "anon 1\ninactive_file 1000\n"}
    assert container_memory(write(tmp_path, usage)) == (GIB // 2 + 1000, GIB)


def test_the_first_version_of_control_groups_is_read_too(tmp_path: Path) -> None:
    files = {"limit_in_bytes": str(GIB), "usage_in_bytes": "4096"}
    write(tmp_path, {f"memory/memory.{name}": text for name, text in files.items()} | {"memory/memory.stat": ""})
    assert container_memory(tmp_path) == (GIB - 4096, GIB)


@pytest.mark.parametrize("limit", ["max", str(2**63), "what"])
def test_no_limit_and_one_above_the_machine_are_none(limit: str, tmp_path: Path) -> None:
    write(tmp_path, {"memory.max": limit, "memory.current": "1", "memory.stat": ""})
    assert container_memory(tmp_path) is None
    assert container_memory(tmp_path / "nothing") is None


def test_the_processor_has_no_more_than_its_container(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "container_memory", lambda: (123, 456))
    assert free_memory(torch.device("cpu")) == 123
    monkeypatch.setattr(memory, "container_memory", lambda: None)
    assert 0 < free_memory(torch.device("cpu")) <= psutil.virtual_memory().total
