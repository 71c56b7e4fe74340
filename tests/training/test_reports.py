"""What a run shows of itself: curves that a kill does not tear, and a picture at the end."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from PIL import Image
from teaching import Configure

from cygnet.training.reports import plot_losses
from cygnet.training.start import Outcome, train


class Killed(BaseException):
    """As a signal would end the process."""


def run(config: Any, *, kill_at: int | None = None) -> tuple[Outcome | None, list[str]]:
    said: list[str] = []

    def step(report: Any) -> None:
        if report.step == kill_at:
            raise Killed

    if kill_at is None:
        return train(config, say=said.append, on_step=step), said
    with pytest.raises(Killed):
        train(config, say=said.append, on_step=step)
    return None, said


def test_curves_go_on_where_the_run_does(configure: Configure, monkeypatch: pytest.MonkeyPatch) -> None:
    begun: list[int] = []
    points: list[tuple[str, int]] = []
    unwritten: list[tuple[str, int]] = []

    class Writer:
        def __init__(self, folder: str, purge_step: int) -> None:
            begun.append(purge_step)

        def add_scalar(self, name: str, value: float, step: int) -> None:
            unwritten.append((name, step))

        def flush(self) -> None:
            points.extend(unwritten)
            unwritten.clear()

        def close(self) -> None:
            pass

    module = ModuleType("torch.utils.tensorboard")
    module.SummaryWriter = Writer  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", module)
    config = configure(steps=4, every={"save": 2, "validate": 2})
    run(config, kill_at=3)
    assert [point for point in points if point[1] <= 2] == [("loss", 1), ("loss", 2), ("validation", 2)]
    points.clear()
    run(config)
    assert begun == [1, 3]  # one file of events for each start, none of which takes back what the checkpoint has
    assert points == [("loss", 3), ("loss", 4), ("validation", 4)]


def test_tensorboard_reads_the_whole_curve_of_a_run_that_was_killed(configure: Configure) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    config = configure(steps=5, every={"save": 2, "validate": 2})
    run(config, kill_at=3)
    run(config)
    events = EventAccumulator(str(Path(config.output) / "tensorboard"))
    events.Reload()
    assert [point.step for point in events.Scalars("loss")] == [1, 2, 3, 4, 5]
    assert [point.step for point in events.Scalars("validation")] == [2, 4, 5]


def test_a_finished_run_leaves_a_picture_of_its_losses(configure: Configure, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    outcome, _ = run(configure(steps=3, every={"validate": 1}))
    assert outcome is not None
    assert outcome.plot is not None
    with Image.open(outcome.plot) as picture:
        assert picture.size == (880, 495)
        colours = {colour for _, colour in picture.convert("RGB").getcolors(2**20) or []}
    assert {(0x3B, 0x6E, 0xA5), (0xC0, 0x39, 0x2B)} <= colours  # both curves are there
    assert plot_losses([], tmp_path / "empty.png", print) == tmp_path / "empty.png"


def test_without_their_packages_a_run_says_so_once_and_goes_on(
    configure: Configure, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("torch.utils.tensorboard", "matplotlib.figure", "matplotlib"):
        monkeypatch.setitem(sys.modules, name, None)
    outcome, said = run(configure(steps=1))
    assert outcome is not None
    assert outcome.finished
    assert outcome.plot is None
    assert sum("cygnet[train]" in line for line in said) == 2
