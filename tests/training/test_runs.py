"""A training from its file to its result: what is learnt, what a stop loses (nothing), what stops it."""

from __future__ import annotations

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from teaching import Configure

import cygnet
from cygnet.checkpoints.lora import read_lora
from cygnet.errors import MediaError, NumericalError, OutOfMemory, OutputError, RequestError
from cygnet.training import flow_run
from cygnet.training import state as state_module
from cygnet.training.batches import load_batch
from cygnet.training.cache import Cache, key_of
from cygnet.training.config import TrainConfig
from cygnet.training.encode import Example
from cygnet.training.flow import Batch
from cygnet.training.flow_run import FlowRun
from cygnet.training.plan import plan_for
from cygnet.training.preflight import open_model
from cygnet.training.start import Outcome, train
from cygnet.training.state import newest_state
from cygnet.training.taught import Taught
from cygnet.types import CancelToken


def quiet(config: TrainConfig, **options: Any) -> Outcome:
    return train(config, say=lambda text: None, **options)


def losses(config: TrainConfig) -> list[tuple[float, float]]:
    lines = (Path(config.output) / "log.jsonl").read_text().splitlines()
    return [(row["step"], row["loss"]) for row in map(json.loads, lines) if "loss" in row]


def same(one: Any, other: Any) -> bool:
    if isinstance(one, torch.Tensor):
        return torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(same, one, other))
    return bool(one == other)


def test_a_lora_is_trained_saved_and_loaded_again(configure: Configure, models: dict[str, dict[str, str]]) -> None:
    config = configure(
        every={"validate": 2, "sample": 4}, sample={"prompts": ["the red ball"], "steps": 2},
        optimizer={"average": 0.9},
    )  # fmt: skip
    outcome = quiet(config)
    assert outcome.finished
    assert outcome.result is not None
    assert read_lora(outcome.result).adapters
    wan = cygnet.load(models["t2v"], loras=[outcome.result], device="cpu")
    assert (
        "20 of 20"
        in wan.generate("the red ball", size=(32, 32), num_frames=5, num_steps=1, seed=1).receipt["notices"][0]
    )
    log = [json.loads(line) for line in (Path(config.output) / "log.jsonl").read_text().splitlines()]
    assert [row["step"] for row in log if "validation" in row] == [2, 4]
    sample = Path(config.output) / "samples" / "00000004-0.mp4"
    receipt = json.loads(sample.with_name(sample.name + ".json").read_text())
    assert receipt["training"]["step"] == 4
    assert receipt["request"]["prompt"] == "the red ball"


@pytest.mark.parametrize("method", ["lora", "full"])
def test_a_killed_run_goes_on_bit_for_bit(configure: Configure, tmp_path: Path, method: str) -> None:
    whole = configure(method=method, output="whole", steps=6, optimizer={"average": 0.9})
    quiet(whole)
    broken = configure(method=method, output="broken", steps=6, optimizer={"average": 0.9})

    class Killed(BaseException):
        pass

    def kill(report: Any) -> None:
        if report.step == 5:  # past the checkpoint of step 4, whose log lines must go
            raise Killed

    with pytest.raises(Killed):
        quiet(broken, on_step=kill)
    assert quiet(broken).finished
    assert losses(broken) == losses(whole)
    assert same(newest_state(Path(broken.output)), newest_state(Path(whole.output)))
    name = "lora.safetensors" if method == "lora" else "dit.safetensors"
    assert same(load_file(Path(broken.output) / name), load_file(Path(whole.output) / name))


def test_a_process_that_is_killed_anywhere_leaves_a_run_that_goes_on(configure: Configure, tmp_path: Path) -> None:
    config = configure(output="killed", steps=400, every={"save": 1, "log": 1})
    (tmp_path / "config.json").write_text(config.model_dump_json(by_alias=True, exclude_unset=True))
    program = (
        "import json, sys, torch; torch.set_num_threads(1)\n"
        "from pathlib import Path\nfrom cygnet.training.config_file import config_from\n"
        "from cygnet.training.start import train\n"
        f"place = Path({str(tmp_path)!r})\n"
        "fields = json.loads((place / 'config.json').read_text())\n"
        "train(config_from({k: v for k, v in fields.items()}, place), say=lambda text: None)\n"
    )
    process = subprocess.Popen([sys.executable, "-c", program])
    end = time.monotonic() + 100
    while not len(list(Path(config.output).glob("checkpoints/*.json"))) > 1 and time.monotonic() < end:
        assert process.poll() is None
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    reached = newest_state(Path(config.output))
    assert reached is not None
    whole = configure(output="whole", steps=400, every={"save": 1, "log": 1})
    stop_at = reached["step"] + 3

    def until(config: TrainConfig) -> None:
        cancel = CancelToken()
        quiet(config, cancel=cancel, on_step=lambda report: cancel.cancel() if report.step == stop_at else None)

    until(config)
    until(whole)
    assert losses(config) == losses(whole)
    assert same(newest_state(Path(config.output)), newest_state(Path(whole.output)))


def test_a_damaged_checkpoint_gives_way_to_the_one_before(configure: Configure) -> None:
    config = configure()
    quiet(config)
    newest = max(Path(config.output).glob("checkpoints/*.pt"))
    data = bytearray(newest.read_bytes())
    data[len(data) // 2] ^= 1
    newest.write_bytes(data)
    found = newest_state(Path(config.output))
    assert found is not None
    assert found["step"] == 2
    assert quiet(config).finished


def test_a_full_disk_at_a_checkpoint_leaves_the_one_before(
    configure: Configure, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = configure()
    plain = state_module._Hashing.write

    def full(self: Any, data: Any) -> int:
        if sum(1 for _ in Path(config.output).glob("checkpoints/*.json")) == 1:
            self.problem = OSError(errno.ENOSPC, "No space left on device")
            raise self.problem
        return plain(self, data)

    monkeypatch.setattr(state_module._Hashing, "write", full)
    with pytest.raises(OutputError, match="free some space"):
        quiet(config)
    found = newest_state(Path(config.output))
    assert found is not None
    assert found["step"] == 2
    assert not list(Path(config.output).glob("checkpoints/.*"))


def test_nan_stops_the_run_and_names_step_and_clips(configure: Configure, monkeypatch: pytest.MonkeyPatch) -> None:
    from cygnet.training import flow_run

    plain = flow_run.load_batch

    def poisoned(examples: Any, *rest: Any) -> Any:
        batch = plain(examples, *rest)
        bad = any(example.name == "1.mp4" for example in examples)
        return flow_run.replace(batch, latents=batch.latents * float("nan")) if bad else batch

    monkeypatch.setattr(flow_run, "load_batch", poisoned)
    config = configure(steps=20, accumulate=2, every={"save": 1})
    with pytest.raises(NumericalError, match=r"step \d+ \(clips: 1\.mp4\)"):
        quiet(config)
    found = newest_state(Path(config.output))
    if found is not None:
        assert all(bool(torch.isfinite(value).all()) for value in found["weights"].values())


def test_a_run_of_other_settings_is_refused(configure: Configure) -> None:
    quiet(configure(steps=2))
    with pytest.raises(RequestError, match="other settings") as raised:
        quiet(configure(steps=2, optimizer={"rate": 0.5}))
    assert raised.value.field == "output"


@pytest.mark.parametrize("method", ["lora", "vae"])
def test_a_run_does_not_go_on_with_other_clips(configure: Configure, clips: Path, method: str) -> None:
    (clips / "still.png").unlink()
    changes: dict[str, Any] = {"vae": {"crop": 16, "frames": 5}} if method == "vae" else {}
    cancel = CancelToken()
    config = configure(method=method, steps=3, **changes)
    quiet(config, cancel=cancel, on_step=lambda report: cancel.cancel())
    kept = (clips / "2.mp4").read_bytes()
    (clips / "2.mp4").unlink()
    with pytest.raises(RequestError, match="clips gone: 1, new: 0") as raised:
        quiet(config)
    assert raised.value.field == "data.path"
    (clips / "2.mp4").write_bytes(kept)
    (clips / "3.mp4").write_bytes((clips / "0.mp4").read_bytes())
    (clips / "3.txt").write_text("another")
    with pytest.raises(RequestError, match="is not the one that this run"):
        quiet(config)
    (clips / "3.mp4").unlink()
    assert quiet(config).finished


def test_the_order_of_clips_counts_and_a_checkpoint_without_clips_is_taken(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    one, other = Taught([("ab" * 20, "cd" * 20), ("ef" * 20, "cd" * 20)]), Taught([("ef" * 20, "cd" * 20)] * 2)
    other.load_state_dict(other.state_dict())
    with pytest.raises(RequestError, match="gone: 1, new: 1"):
        other.load_state_dict(one.state_dict())
    turned = Taught([("ef" * 20, "cd" * 20), ("ab" * 20, "cd" * 20)])
    with pytest.raises(RequestError, match="another order"):
        turned.load_state_dict(one.state_dict())
    state_module.Run(tmp_path / "old", step=3).save({})
    assert state_module.Run(tmp_path / "old").resume({"clips": one})
    assert "names no clips" in caplog.text


def test_a_note_of_a_checkpoint_that_is_no_object_is_damaged(configure: Configure) -> None:
    config = configure()
    quiet(config)
    max(Path(config.output).glob("checkpoints/*.json")).write_text("[]")
    found = newest_state(Path(config.output))
    assert found is not None
    assert found["step"] == 2


def test_samples_that_cannot_be_made_are_refused_before_anything_is_trained(configure: Configure) -> None:
    sampled: dict[str, Any] = {"every": {"sample": 2}, "sample": {"prompts": ["a red ball"]}}
    with pytest.raises(RequestError, match="needs a picture"):
        quiet(configure("i2v", **sampled))
    sampled["sample"]["image"] = "none.png"
    config = configure("i2v", **sampled)
    for ask in (quiet, plan_for):
        with pytest.raises(MediaError, match=r"none\.png"):
            ask(config)
    assert not Path(config.output).exists()


def test_a_sample_that_fails_costs_no_step(configure: Configure, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*given: Any, **options: Any) -> Any:
        raise OutOfMemory("out of memory")

    monkeypatch.setattr(cygnet.Wan, "generate", fails)
    config = configure(every={"sample": 1, "save": 100}, sample={"prompts": ["a red ball"]}, steps=2)
    said: list[str] = []
    assert train(config, say=said.append).finished
    assert [line for line in said if "sample 0 of step 1 failed" in line and "out of memory" in line]


def test_what_fails_beside_the_training_leaves_the_step_saved(
    configure: Configure, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(self: Any) -> float:
        raise ValueError("no loss")

    monkeypatch.setattr(FlowRun, "validate", fails)
    config = configure(every={"validate": 1, "save": 100})
    with pytest.raises(ValueError, match="no loss"):
        quiet(config)
    found = newest_state(Path(config.output))
    assert found is not None
    assert found["step"] == 1


def test_parts_of_a_step_give_the_loss_of_the_whole(configure: Configure) -> None:
    one, two = configure(output="one", steps=3), configure(output="two", steps=3, accumulate=2)
    quiet(one)
    quiet(two)
    for (_, a), (_, b) in zip(losses(one), losses(two), strict=True):
        assert abs(a - b) < 1e-5 * abs(a)


@pytest.mark.parametrize(
    ("variant", "changes"),
    [
        ("i2v", {}),
        ("t2v", {"preserve": {"captions": ["a red ball", "the square"], "batch": 3}}),
        ("t2v", {"method": "full", "preserve": {"captions": ["a red ball"]}}),
        ("t2v", {"method": "full", "preserve": {"path": "clips"}}),
        ("t2v", {"method": "full", "optimizer": {"name": "muon", "rate": 1e-3}, "memory": {"dtype": "bfloat16"}}),
        ("t2v", {"method": "scratch", "scratch": {"num_layers": 1, "ffn_dim": 64}}),
        ("t2v", {"memory": {"base": "fp8", "dtype": "bfloat16"}}),
        ("t2v", {"memory": {"base": "int8"}}),
        ("t2v", {"memory": {"block_swap": 1, "checkpointing": "full"}}),
        ("t2v", {"method": "vae", "vae": {"crop": 16, "frames": 5}, "data": {"path": "videos"}}),
    ],
    ids=[
        "i2v",
        "lora-preserving",
        "full-preserving",
        "full-preserving-clips",
        "full-muon",
        "scratch",
        "fp8",
        "int8",
        "swap",
        "vae",
    ],
)
def test_every_way_of_training_trains(configure: Configure, clips: Path, variant: str, changes: dict[str, Any]) -> None:
    if changes.get("method") == "vae":
        clips.rename(clips.with_name("videos"))
        (clips.with_name("videos") / "still.png").unlink()
    config = configure(variant, steps=2, **changes)
    outcome = quiet(config)
    assert outcome.result is not None
    assert outcome.result.exists()
    assert all(loss == loss for _, loss in losses(config))


def test_clips_that_should_stay_are_asked_as_they_are(
    configure: Configure, clips: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = clips.with_name("kept")
    kept.mkdir()
    shutil.copy(clips / "1.mp4", kept / "own.mp4")
    (kept / "own.txt").write_text("the red square")
    digest = open_model(configure()).describe()["components"]["text_encoder"]["digest"]
    asked: list[tuple[list[str], list[bool], list[str]]] = []

    def load(rows: list[Example], cache: Cache, without: list[bool], empty: str) -> Batch:
        asked.append(([row.name for row in rows], list(without), [row.text for row in rows]))
        return load_batch(rows, cache, without, empty)

    monkeypatch.setattr(flow_run, "load_batch", load)
    config = configure(
        steps=8,
        data={"path": str(clips), "trigger": "sks"},
        preserve={"path": str(kept), "batch": 3, "empty": 0.5},
    )
    cancel = CancelToken()
    quiet(config, cancel=cancel, on_step=lambda report: report.step == 7 and cancel.cancel())
    about = [row for row in asked if row[0] == ["own.mp4"] * 3]
    assert len(about) == 7
    dropped = [mark for row in about for mark in row[1]]
    assert 0 < sum(dropped) < len(dropped)
    assert {text for row in about for text in row[2]} == {key_of("text", "the red square", digest)}, (
        "without the trigger"
    )
    (kept / "own.txt").write_text("the red circle")
    with pytest.raises(RequestError, match="is not the one that this run"):
        quiet(config)


def test_swapped_blocks_train_as_resident_ones(configure: Configure) -> None:
    plain = configure(output="plain", memory={"checkpointing": "full"})
    swapped = configure(output="swapped", memory={"checkpointing": "full", "block_swap": 2})
    assert same(losses(plain) if quiet(plain) else None, losses(swapped) if quiet(swapped) else None)
