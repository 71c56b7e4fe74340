"""What a training run must keep to go on after a stop, written whole or not at all.

A run's folder holds ``state.pt`` (weights, averaged weights, optimiser, step, random states) and ``log.jsonl``.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn


class Average:
    """Exponential moving average of a module's parameters, kept in float32 beside it.

    The decay rises with the step count, ``min(decay, (1 + n) / (10 + n))``, so that early averages follow quickly.
    """

    def __init__(self, module: nn.Module, decay: float) -> None:
        self.decay = decay
        self.updates = 0
        self.shadow = {name: p.detach().clone().float() for name, p in module.named_parameters()}

    @torch.no_grad()
    def update(self, module: nn.Module) -> None:
        """Move the average towards the module's present parameters."""
        self.updates += 1
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        ours = list(self.shadow.values())
        theirs = [p.detach().float() for _, p in module.named_parameters()]
        torch._foreach_lerp_(ours, theirs, 1 - decay)

    @torch.no_grad()
    def copy_to(self, module: nn.Module) -> None:
        """Write the average into a module of the same shape."""
        for name, p in module.named_parameters():
            p.copy_(self.shadow[name])

    def state_dict(self) -> dict[str, Any]:
        """Everything needed to go on."""
        return {"updates": self.updates, "shadow": self.shadow}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Undo :meth:`state_dict`."""
        self.updates = state["updates"]
        for name, value in state["shadow"].items():
            self.shadow[name].copy_(value)


@dataclass
class Run:
    """A training run on disk: where it is, how far it is, and its log."""

    folder: Path
    step: int = 0
    started: float = field(default_factory=time.monotonic)

    def __post_init__(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)

    @property
    def state_path(self) -> Path:
        """The resumable state."""
        return self.folder / "state.pt"

    def save(self, parts: Mapping[str, Any]) -> None:
        """Write the state of every part (anything with ``state_dict``) beside the old one, then replace it."""
        state = {"step": self.step, "rng": torch.get_rng_state()}
        state.update({name: part.state_dict() for name, part in parts.items()})
        partial = self.state_path.with_suffix(".partial")
        with partial.open("wb") as file:
            torch.save(state, file)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(self.state_path)

    def resume(self, parts: Mapping[str, Any]) -> bool:
        """Load the newest state into the parts; False when the run is new."""
        if not self.state_path.exists():
            return False
        state = torch.load(self.state_path, map_location="cpu", weights_only=True)
        for name, part in parts.items():
            part.load_state_dict(state[name])
        torch.set_rng_state(state["rng"])
        self.step = state["step"]
        return True

    def log(self, **values: float) -> None:
        """Append one line to the log and print it."""
        row: dict[str, float] = {"step": self.step, "seconds": round(time.monotonic() - self.started, 1)}
        row.update({name: round(float(value), 6) for name, value in values.items()})
        with (self.folder / "log.jsonl").open("a") as file:
            file.write(json.dumps(row) + "\n")
        print(" ".join(f"{name}={value}" for name, value in row.items()), flush=True)


def decayed(module: nn.Module) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
    """Parameters with and without weight decay: matrices and kernels are decayed, vectors and norms are not."""
    matrices = [p for p in module.parameters() if p.requires_grad and p.ndim >= 2]
    vectors = [p for p in module.parameters() if p.requires_grad and p.ndim < 2]
    return matrices, vectors


def warmup_cosine(step: int, *, warmup: int, total: int, floor: float = 0.05) -> float:
    """Learning-rate factor: linear rise over ``warmup`` steps, then half a cosine down to ``floor``."""
    if step < warmup:
        return (step + 1) / warmup
    progress = min(1.0, (step - warmup) / max(1, total - warmup))
    return floor + (1 - floor) * 0.5 * (1 + float(torch.cos(torch.tensor(torch.pi * progress))))


def set_learning_rate(optimizers: Iterable[torch.optim.Optimizer], factor: float) -> None:
    """Set every group to its initial rate times ``factor``."""
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = group.setdefault("initial_lr", group["lr"]) * factor
