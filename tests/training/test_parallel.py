"""Two processes give the loss of one, with weights in shards and with tokens shared out."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from teaching import Configure

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


def free_port() -> str:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return str(free.getsockname()[1])


def together(configs: list[TrainConfig], folder: Path, processes: int = 2) -> None:
    words: list[str] = []
    for number, config in enumerate(configs):
        place = folder / f"{number}.json"
        place.write_text(config.model_dump_json(by_alias=True, exclude_unset=True))
        words += [str(place), free_port()]
    common = {**os.environ, "WORLD_SIZE": str(processes), "MASTER_ADDR": "127.0.0.1"}
    started = [
        subprocess.Popen(
            [sys.executable, str(WORKER), *words], env={**common, "RANK": str(rank), "LOCAL_RANK": str(rank)}
        )
        for rank in range(processes)
    ]
    try:
        assert [process.wait(200) for process in started] == [0] * processes
    finally:
        for process in started:
            process.kill()


def test_two_processes_give_the_loss_of_one(
    configure: Configure, tmp_path: Path, models: dict[str, dict[str, str]]
) -> None:
    """Once with all weights trained, in shards; once with an adapter, the tokens of each clip shared out."""
    common = {"steps": 3, "optimizer": {"average": 0.9, "rate": 1e-3}, "every": {"save": 3, "log": 1}}
    ways: dict[str, dict[str, Any]] = {
        "dit.safetensors": {"method": "full", **common},
        "lora.safetensors": {
            "parallel": {"context": 2},
            "model": {**models["t2v"], "dit": two_heads(tmp_path)},
            "preserve": {"captions": ["a red ball"], "batch": 2},
            **common,
        },
    }
    shared = {name: configure(output=f"shared-{name}", **fields) for name, fields in ways.items()}
    together(list(shared.values()), tmp_path)
    for name, fields in ways.items():
        alone = configure(output=f"alone-{name}", **{**fields, "parallel": {"context": 1}})
        train(alone, say=lambda text: None)
        assert losses(shared[name]) == pytest.approx(losses(alone), rel=1e-4), name
        one, other = load_file(Path(alone.output) / name), load_file(Path(shared[name].output) / name)
        assert one.keys() == other.keys()
        for key, value in one.items():
            assert torch.allclose(value.float(), other[key].float(), atol=2e-2), key
        state = newest_state(Path(shared[name].output))
        assert state is not None
        assert all(type(value) is torch.Tensor for value in state["weights"].values())
        again = shared[name].model_copy(update={"parallel": alone.parallel})
        assert train(again, say=lambda text: None).step == 3  # one process goes on with what two have saved


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
        ({"method": "vae"}, "method"),
    ):
        with pytest.raises(RequestError) as raised, many_processes(configure(**changes)):
            pass
        assert raised.value.field == field
