"""The runner of the benchmarks; the cases themselves need the extra ``oracle`` and minutes."""

from __future__ import annotations

import math
import time

import pytest
import torch
from benchmarks import floor
from benchmarks.measure import Timing, in_turn, relative_error


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Time that passes only when work is done."""
    now = [0.0]
    monkeypatch.setattr(time, "perf_counter", lambda: now[0])
    return now


@pytest.mark.parametrize(("budget", "rounds"), [(math.inf, 5), (30, 5), (18, 2), (10, 1), (1, 1), (-5, 1)])
def test_as_many_rounds_are_made_as_fit_and_at_least_one(clock: list[float], budget: float, rounds: int) -> None:
    order: list[str] = []

    def work(name: str, seconds: float) -> torch.Tensor:
        order.append(name)
        clock[0] += seconds
        return torch.zeros(())

    found = in_turn({"a": lambda: work("a", 1), "b": lambda: work("b", 4)}, 5, budget)
    assert {name: timing.seconds for name, timing in found.items()} == {"a": (1.0,) * rounds, "b": (4.0,) * rounds}
    assert "".join(order) == "ab" + ("abba" * 3)[: 2 * rounds]


def test_medians_quartiles_and_errors() -> None:
    assert Timing((3.0, 1.0, 2.0)).median == 2
    assert Timing((4.0, 1.0)).quartiles == (1, 4)
    assert relative_error(torch.tensor([3.0, 4.0]), torch.tensor([3.0, 0.0])) == pytest.approx(4 / 3)


def test_a_floor_counts_every_heavy_operator_as_often_as_it_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    layer, conv = torch.nn.Linear(8, 16), torch.nn.Conv3d(3, 4, 3)
    asked: list[tuple[str, tuple[int, ...]]] = []

    def best(func: torch._ops.OpOverload, form: object, leaves: list[object]) -> float:
        asked.append((func.__name__, tuple(leaves[1].size)))  # type: ignore[attr-defined]
        return 1.0 if "convolution" in func.__name__ else 10.0

    def work() -> torch.Tensor:
        x = layer(torch.zeros(5, 8)).relu() + layer(torch.zeros(5, 8)).relu()
        return x.sum() + conv(torch.zeros(1, 3, 4, 5, 5)).sum()

    monkeypatch.setattr(floor, "_best", best)
    assert floor.floor_of(work) == 21
    assert [name.split(".")[0] for name, _ in asked] == ["addmm", "convolution"], "once each, however often they ran"


def test_a_floor_is_no_more_than_the_work() -> None:
    weight, x = torch.randn(256, 256), torch.randn(64, 256)

    def work() -> torch.Tensor:
        for _ in range(20):
            x @ weight
        return torch.zeros(())

    found = floor.floor_of(work)
    start = time.perf_counter()
    work()
    assert 0 < found < 3 * (time.perf_counter() - start)
