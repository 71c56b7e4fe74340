"""Two processes give the loss of one, with weights in shards and with tokens shared out."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from conftest import Configure  # type: ignore[attr-defined]
from cygnet.errors import RequestError
from cygnet.models.dit.config import DiTConfig
from cygnet.training.config import TrainConfig
from cygnet.training.parallel import many_processes
from cygnet.training.start import train
from cygnet.training.state import newest_state
from random_models import dit_config, state_of

WORKER = Path(__file__).with_name("parallel_worker.py")


def losses(config: TrainConfig) -> list[float]:
    lines = (Path(config.output) / "log.jsonl").read_text().splitlines()
    return [row["loss"] for row in map(json.loads, lines) if "loss" in row]


def together(config: TrainConfig, place: Path, processes: int = 2) -> None:
    place.write_text(config.model_dump_json(by_alias=True))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    common = {**os.environ, "WORLD_SIZE": str(processes), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    started = [
        subprocess.Popen(
            [sys.executable, str(WORKER), str(place)], env={**common, "RANK": str(rank), "LOCAL_RANK": str(rank)}
        )
        for rank in range(processes)
    ]
    try:
        assert [process.wait(120) for process in started] == [0] * processes
    finally:
        for process in started:
            process.kill()


@pytest.mark.parametrize(
    ("method", "context"), [("full", 1), ("lora", 2)], ids=["weights-in-shards", "tokens-shared-out"]
)
def test_two_processes_give_the_loss_of_one(
    configure: Configure, tmp_path: Path, method: str, context: int, models: dict[str, dict[str, str]]
) -> None:
    fields = {"method": method, "steps": 3, "optimizer": {"average": 0.9, "rate": 1e-3}, "every": {"save": 3, "log": 1}}
    if context > 1:
        fields["model"] = {**models["t2v"], "dit": two_heads(tmp_path)}
    alone = configure(output="alone", **fields)
    train(alone, say=lambda text: None)
    shared = configure(output="shared", parallel={"context": context}, **fields)
    together(shared, tmp_path / "shared.json")
    assert losses(shared) == pytest.approx(losses(alone), rel=1e-4)
    name = "lora.safetensors" if method == "lora" else "dit.safetensors"
    one, other = load_file(Path(alone.output) / name), load_file(Path(shared.output) / name)
    assert one.keys() == other.keys()
    for key, value in one.items():
        assert torch.allclose(value.float(), other[key].float(), atol=2e-2), key
    # What two processes saved, one goes on with.
    state = newest_state(Path(shared.output))
    assert state is not None
    assert all(type(value) is torch.Tensor for value in state["weights"].values())
    longer = shared.model_copy(update={"every": alone.every})
    assert train(longer, say=lambda text: None).step == 3


def two_heads(folder: Path) -> str:
    from dataclasses import replace

    from cygnet.checkpoints import save_official

    config: DiTConfig = replace(dit_config("t2v"), dim=256, num_heads=2)
    return str(save_official(folder / "two-heads.safetensors", state_of(config), config))


def test_what_cannot_be_shared_out_is_refused(configure: Configure, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    for changes, field in (
        ({"batch": 3}, "batch"),
        ({"parallel": {"context": 3}}, "parallel.context"),
        ({"optimizer": {"name": "muon"}}, "optimizer.name"),
        ({"memory": {"block_swap": 1}}, "memory.block_swap"),
    ):
        with pytest.raises(RequestError) as raised, many_processes(configure(**changes)):
            pass
        assert raised.value.field == field
