"""What speaks against a run is said before anything is read, encoded or written."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock
from teaching import Configure

from cygnet.errors import RequestError, UnsupportedError
from cygnet.training import preflight, start
from cygnet.training.config import TrainConfig
from cygnet.training.plan import plan_for
from cygnet.training.preflight import LOCK
from cygnet.training.start import train


@pytest.fixture
def ask(monkeypatch: pytest.MonkeyPatch) -> Callable[[TrainConfig], None]:
    """Begin a run that must not come to its clips."""

    def reads(*given: Any) -> Any:
        raise AssertionError("clips were read before the run was refused")

    def begin(config: TrainConfig) -> None:
        with monkeypatch.context() as patch:
            patch.setattr(start, "read_items", reads)
            train(config, say=lambda text: None)

    return begin


SWAPPED = {"block_swap": 9, "checkpointing": "full"}


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"memory": {"checkpointing": "none", "base": "fp8"}}, "memory.base"),
        ({"memory": {"checkpointing": "none", "block_swap": 1}}, "memory.block_swap"),
        ({"memory": SWAPPED}, "memory.block_swap"),
        ({"memory": {"base": "int8", "block_swap": 1}}, "memory.block_swap"),
        ({"memory": {"base": "int8", "compile": True}}, "memory.compile"),
        ({"lora": {"targets": ["self_attn.q", "attn.to_q"]}}, "lora.targets"),
        ({"preserve": {"path": "none"}}, "preserve.path"),
        ({"data": {"validation": "none"}}, "data.validation"),
        ({"method": "scratch", "scratch": {"num_heads": 7}}, "scratch"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_contradictions_are_refused_by_run_and_plan_before_anything_is_read(
    configure: Configure, ask: Callable[[TrainConfig], None], changes: dict[str, Any], field: str
) -> None:
    config = configure(**changes)
    for way in (ask, plan_for):
        with pytest.raises(RequestError) as raised:
            way(config)
        assert raised.value.field == field
    assert not Path(config.output).exists()


def test_the_layers_that_there_are_are_told(configure: Configure, ask: Callable[[TrainConfig], None]) -> None:
    with pytest.raises(RequestError, match=r"no block has a layer 'attn\.to_q'; there are: self_attn\.q"):
        ask(configure(lora={"targets": ["attn.to_q"]}))


def test_8_bit_adamw_without_its_package_says_so(
    configure: Configure, ask: Callable[[TrainConfig], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("bitsandbytes", "bitsandbytes.optim"):
        monkeypatch.setitem(sys.modules, name, None)
    for way in (ask, plan_for):
        with pytest.raises(UnsupportedError, match="bitsandbytes"):
            way(configure(optimizer={"name": "adamw8bit"}))


def test_missing_clips_are_refused_by_the_run_alone(configure: Configure, ask: Callable[[TrainConfig], None]) -> None:
    config = configure(data={"path": "none"})
    with pytest.raises(RequestError, match="there is no 'none'") as raised:
        ask(config)
    assert raised.value.field == "data.path"
    assert plan_for(config).trained


def test_a_run_of_other_settings_is_refused_before_anything_is_read(
    configure: Configure, ask: Callable[[TrainConfig], None]
) -> None:
    train(configure(steps=1), say=lambda text: None)
    with pytest.raises(RequestError, match="another version of cygnet") as raised:
        ask(configure(steps=1, seed=1))
    assert raised.value.field == "output"
    assert plan_for(configure(steps=1, seed=1)).steps == 1


@pytest.mark.parametrize("wrong", ["run", "run/checkpoints", "run/log.jsonl/x", "run/lora.safetensors/x"])
def test_an_output_that_takes_nothing_is_refused_before_anything_is_read(
    configure: Configure, ask: Callable[[TrainConfig], None], tmp_path: Path, wrong: str
) -> None:
    place = tmp_path / wrong
    place.parent.mkdir(parents=True, exist_ok=True)
    place.write_text("a file")
    with pytest.raises(RequestError, match="choose") as raised:
        ask(configure())
    assert raised.value.field == "output"
    assert str(tmp_path / "run") in str(raised.value)
    assert place.read_text() == "a file"


def test_a_file_system_that_only_reads_is_told(
    configure: Configure, ask: Callable[[TrainConfig], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuses(*given: Any, **options: Any) -> Any:
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(preflight.tempfile, "TemporaryFile", refuses)
    with pytest.raises(RequestError, match="nothing can be written \\(read-only file system") as raised:
        ask(configure())
    assert raised.value.field == "output"


def test_two_runs_do_not_write_in_one_folder(
    configure: Configure, ask: Callable[[TrainConfig], None], tmp_path: Path
) -> None:
    config = configure(steps=1)
    lock = Path(config.output) / LOCK
    lock.parent.mkdir()
    program = (
        "import sys, time\nfrom filelock import FileLock\n"
        "lock = FileLock(sys.argv[1])\nlock.acquire()\nprint('held', flush=True)\ntime.sleep(60)\n"
    )
    with subprocess.Popen([sys.executable, "-c", program, str(lock)], stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "held\n"
        try:
            with pytest.raises(RequestError, match="another cygnet train is at work") as raised:
                ask(config)
        finally:
            os.kill(other.pid, signal.SIGKILL)
    assert raised.value.field == "output"
    held: list[bool] = []

    def look(report: Any) -> None:
        held.append(not _free(lock))

    assert _train(config, look), "a killed run holds nothing"
    assert held == [True]
    assert _free(lock)


def _free(lock: Path) -> bool:
    mine = FileLock(lock, timeout=0)
    try:
        with mine:
            return True
    except TimeoutError:
        return False


def _train(config: TrainConfig, on_step: Callable[[Any], None]) -> bool:
    return train(config, say=lambda text: None, on_step=on_step).finished
