"""The runner of the benchmarks; the cases themselves need the extra ``oracle`` and minutes."""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from benchmarks import flat, floor, memory, previews, report, tiles
from benchmarks.measure import Timing, heading, in_turn, relative_error

import cygnet


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


def test_figures_appear_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "x.json"
    path.write_text("old")
    with pytest.raises(TypeError):
        report.write_json(path, {"figures": object()})
    monkeypatch.setattr(report, "publish", lambda part, target, *, overwrite: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        report.write_json(path, {"a": 1})
    assert [it.name for it in tmp_path.iterdir()] == ["x.json"]
    assert path.read_text() == "old"
    monkeypatch.undo()
    report.write_json(path, {"a": 1})
    assert json.loads(path.read_text()) == {"a": 1}
    for wrong, why in ((tmp_path, "is a folder"), (tmp_path / "no" / "x.json", "is in no folder")):
        with pytest.raises(argparse.ArgumentTypeError, match=why):
            report.output(str(wrong))


def test_the_command_is_told_without_where_files_lie(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["x", str(tmp_path / "a b"), "--only", "decode-33"])
    told = heading("benchmarks.memory")
    assert told["command"] == "python -m benchmarks.memory 'a b' --only decode-33"
    assert told["environment"]["torch"] == torch.__version__


def test_memory_measures_what_is_asked_and_writes_only_what_that_reads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked: list[tuple[str, int]] = []

    def ran(command: list[str], **_: object) -> SimpleNamespace:
        part = command[-1]
        asked.append((part, int(command[command.index("--steps") + 1])))
        row = {"way": part, "peak_gib": {"decode-33": 1.0, "decode-321": 1.06}.get(part, 3.0), "seconds": 1}
        return SimpleNamespace(returncode=0, stdout=json.dumps(row) + "\n")

    monkeypatch.setattr(memory, "subprocess", SimpleNamespace(run=ran, PIPE=-1))
    path = tmp_path / "x.json"
    monkeypatch.setattr(sys, "argv", ["x", "weights", "--only", "decode-321,decode-33", "--json", str(path)])
    memory.main()
    assert asked == [("write:vae", 3), ("decode-33", 3), ("decode-321", 3)]
    found = json.loads(path.read_text())
    assert [row["way"] for row in found["rows"]] == ["decode-33", "decode-321"]
    assert found["targets"] == {"decode-321": {"more": 0.06, "at_most": 0.05, "kept": False}}
    assert len(capsys.readouterr().out.splitlines()) == 2
    monkeypatch.setattr(sys, "argv", ["x", "weights"])
    memory.main()
    assert [part for part, _ in asked[3:]] == [
        *("write:dit,text_encoder,vae", "stages", "stream", "decode-33", "decode-321")
    ]
    with pytest.raises(argparse.ArgumentTypeError, match="there is no 'swap'; choose some of stages,stream"):
        memory.chosen("stages,swap")


def test_a_part_that_is_ended_ends_the_measuring(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ended = SimpleNamespace(run=lambda *_, **__: SimpleNamespace(returncode=-9, stdout=""), PIPE=-1)
    monkeypatch.setattr(memory, "subprocess", ended)
    with pytest.raises(SystemExit, match="stages was ended by signal 9"):
        memory.in_its_own_process(tmp_path, "stages", 3)


def test_memory_that_grows_is_written_and_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "x.json"
    monkeypatch.setattr(sys, "argv", ["x", "--count", "30", "--json", str(path)])
    monkeypatch.setattr(flat.cygnet, "load", lambda *_, **__: None)
    monkeypatch.setattr(flat, "sizes", lambda _, count: iter([2**20 * number for number in range(count)]))
    with pytest.raises(SystemExit, match=r"memory grew by 10\.0 MiB"):
        flat.main()
    found = json.loads(path.read_text())
    assert (found["flat"], len(found["bytes"])) == (False, 30)
    monkeypatch.setattr(flat, "sizes", lambda _, count: iter([2**20] * count))
    flat.main()
    assert json.loads(path.read_text())["flat"] is True
    monkeypatch.setattr(sys, "argv", ["x", "--count", "29"])
    with pytest.raises(SystemExit, match="2"):
        flat.main()


def test_tiles_write_both_their_tables(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "x.json"
    monkeypatch.setattr(sys, "argv", ["x", "--json", str(path)])
    monkeypatch.setattr(tiles, "compare", lambda name, *_: iter([{"network": name, "pixels": 0.0}]))
    told = 'a line before\n{"network": "n", "measured MiB": 1}\n'
    run = SimpleNamespace(run=lambda *_, **__: SimpleNamespace(stdout=told), PIPE=-1)
    monkeypatch.setattr(tiles, "subprocess", run)
    tiles.main()
    found = json.loads(path.read_text())
    assert [row["network"] for row in found["differences"]] == ["embedded", "seeded, 32 wide"]
    assert found["costs"] == [{"network": "n", "measured MiB": 1}] * 4


def test_previews_are_held_against_the_frames_that_they_stand_for() -> None:
    frames = np.arange(9, dtype=np.uint8)[:, None, None, None].repeat(16, 1).repeat(24, 2).repeat(3, 3)
    assert previews.stood_for(frames)[:, 0, 0, 0].tolist() == [0, 3, 7]
    frames[0, :8, :8] = 200
    found = previews.cells(frames)
    assert found.shape == (9, 2, 3, 3)
    assert found[0, :, :, 0].tolist() == [[200, 0, 0], [0, 0, 0]]


def test_the_way_to_the_exact_video_is_seen_and_its_end_is_the_video() -> None:
    wan = cygnet.load("tiny-t2v", device="cpu", dtype="float32")
    runs = [previews.run(wan, "a red ball", 1, size=(64, 64), num_frames=9, num_steps=4)]
    config = wan.model.components.dit
    assert [it.shape for it in runs[0].estimates] == [(1, 16, 3, 8, 8)] * 4
    assert previews.pictures(runs[0].estimates[-1], config).shape == (3, 64, 64, 3)
    rows = previews.compare(wan, runs, config)
    assert [(row["way"], row["step"]) for row in rows] == [
        *((way, step) for way in ("latents' colours", "decoded by the VAE") for step in (1, 2, 4))
    ]
    coarse, decoded = rows[2], rows[5]
    assert decoded["psnr"] > 50 > coarse["psnr"] > 10
    assert decoded["motion"] == pytest.approx(1, abs=0.02)
    costs = [{"what": "x", "seconds": 0.5, "quartiles": (0.25, 2.0)}]
    text = previews.table({"rows": rows, "embedded": costs, "full_size": []})
    assert "| x | 500 ms (250 ms–2 s) |" in text
    assert "| 8-bit attention | not measured: needs SageAttention on a GPU |" in text
