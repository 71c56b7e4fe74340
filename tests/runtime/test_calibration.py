from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from cygnet.runtime import calibration
from cygnet.runtime.calibration import Rates, calibrate, guessed, keep, recall
from cygnet.runtime.flops import Work

CPU = torch.device("cpu")


def rates(**changes: object) -> Rates:
    fields = {
        **calibration.identity(CPU),
        "date": "2026-01-01T00:00:00+00:00",
        "compute": {"matmul float32": [(10, 100.0), (1000, 10000.0)], "reading float32": [(10, 50.0)]},
        "pointwise": [(1000, 100.0)],
        "launch": 0.5,
        "disk": 10.0,
    }
    return Rates(**{**fields, **changes})  # type: ignore[arg-type]


def test_a_rate_between_measured_widths_lies_on_the_line_of_logarithms_and_beyond_them_stays() -> None:
    for width, rate in ((10, 100), (100, 1000), (1000, 10000), (1, 100), (10**6, 10000)):
        assert rates().seconds([Work("matmul", 1e6, width)], torch.float32) == pytest.approx(1e6 / rate)


def test_a_type_that_was_not_measured_is_taken_for_float32_and_kernels_take_time_however_small() -> None:
    assert rates().seconds([Work("matmul", 100, 10)], torch.bfloat16) == pytest.approx(1)
    assert rates().moving(200, 4) == pytest.approx(2 + 2)
    assert rates().reading(100, torch.float32) == pytest.approx(2)


def test_a_measurement_is_kept_for_this_device_these_threads_and_this_torch(tmp_path: Path) -> None:
    assert recall(CPU, tmp_path) is None
    path = keep(rates(), tmp_path)
    found = recall(CPU, tmp_path)
    assert found is not None
    assert found.measured
    assert found.seconds([Work("matmul", 1e6, 10)], torch.float32) == pytest.approx(1e4)
    assert [it.name for it in tmp_path.iterdir()] == [path.name]
    keep(rates(threads=999), tmp_path)
    assert len(list(tmp_path.iterdir())) == 2


@pytest.mark.parametrize(
    "change",
    [{"format": 0}, {"version": "0"}, {"disk": 0}, {"launch": -1}, {"pointwise": [[1, -1]]}, {"unknown": 1}],
)
def test_a_measurement_that_cannot_be_used_counts_as_none(change: dict[str, object], tmp_path: Path) -> None:
    path = keep(rates(), tmp_path)
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    assert recall(CPU, tmp_path) is None
    path.write_text("nothing")
    assert recall(CPU, tmp_path) is None


def test_a_guess_says_that_it_is_one_and_knows_every_kind_of_work() -> None:
    guess = guessed(CPU)
    assert not guess.measured
    assert guess.seconds([Work("conv", 1e9, 96), Work("attention", 1e9, 320)], torch.bfloat16) > 0
    assert guess.reading(1e9, torch.float16) > 0


def test_calibrating_measures_everything(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(calibration, "_MATMULS", ((8, 16, 16),))
    monkeypatch.setattr(calibration, "_ATTENTIONS", ((1, 16),))
    monkeypatch.setattr(calibration, "_CONVS", ((4, 8),))
    monkeypatch.setattr(calibration, "_DISK_BYTES", 2**20)
    monkeypatch.setattr(calibration, "_BUDGET", 0.0)
    measured = calibrate(CPU, tmp_path)
    assert measured.measured
    assert measured.device
    assert {"matmul float32", "matmul bfloat16", "attention bfloat16", "conv float32"} <= set(measured.compute)
    assert all(rate > 0 for points in measured.compute.values() for _, rate in points)
    assert measured.disk > 0
    assert list(tmp_path.iterdir()) == []


def test_long_runs_are_measured_twice_and_short_ones_for_the_budget() -> None:
    """What calibrating takes is runs; the first one of each warms up."""
    for length, runs in ((1.0, 3), (calibration._BUDGET / 9.5, 11), (1e-9, 51)):
        now, done = 0.0, 0

        def work() -> None:
            nonlocal now, done
            now, done = now + length, done + 1  # noqa: B023 (called in this turn)

        assert calibration._Stopwatch(CPU, lambda: now)(work) == pytest.approx(length)  # noqa: B023
        assert done == runs


def test_attention_is_measured_with_the_kernel_that_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def chosen(*of: object) -> object:
        asked.append(of)
        return lambda q, k, v: q

    monkeypatch.setattr(calibration, "choose_attention", chosen)
    width, rate = calibration._attention(
        calibration._Stopwatch(CPU, iter(range(999)).__next__), CPU, torch.float32, 1, 8
    )
    assert (width, rate, asked) == (8, 4 * 8 * 8 * 128, [("auto", CPU, torch.float32, 128)])
