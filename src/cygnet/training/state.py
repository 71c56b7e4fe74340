"""What a training run must keep to go on after a stop, written whole or not at all.

A run's folder holds ``checkpoints/<step>.pt`` (weights, averaged weights, optimisers, step), each with a
``<step>.json`` that names its digest, and ``log.jsonl``. A checkpoint counts only once its ``.json`` is
there and the digest fits, so a kill or a full disk at any moment leaves the one before it.
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, cast

import torch
from torch import nn
from torch.distributed.tensor import DTensor, distribute_tensor

from cygnet.checkpoints.saving import staged_file
from cygnet.errors import RequestError, WeightFileError

log = logging.getLogger(__name__)


class Average:
    """Exponential moving average of a module's trained parameters, kept in float32 beside it.

    The decay rises with the step count, ``min(decay, (1 + n) / (10 + n))``, so that early averages follow quickly.
    """

    def __init__(self, module: nn.Module, decay: float) -> None:
        self.decay = decay
        self.updates = 0
        self.shadow = {name: p.detach().clone().float() for name, p in _trained(module)}

    @torch.no_grad()
    def update(self, module: nn.Module) -> None:
        """Move the average towards the module's present parameters."""
        self.updates += 1
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        ours = [_local(value) for value in self.shadow.values()]
        theirs = [_local(p.detach()).float() for _, p in _trained(module)]
        torch._foreach_lerp_(ours, theirs, 1 - decay)

    @torch.no_grad()
    def copy_to(self, module: nn.Module) -> None:
        """Write the average into a module of the same shape."""
        for name, p in module.named_parameters():
            if name in self.shadow:
                p.copy_(self.shadow[name])

    @torch.no_grad()
    def swap(self, module: nn.Module) -> None:
        """Exchange the average with the module's parameters; twice restores both bit for bit (float32 ones)."""
        for name, p in _trained(module):
            kept = p.detach().clone()
            p.copy_(self.shadow[name])
            self.shadow[name].copy_(kept)

    def state_dict(self) -> dict[str, Any]:
        """Everything needed to go on; whole tensors, so every process of a sharded run must call it."""
        whole = {
            name: value.full_tensor() if isinstance(value, DTensor) else value for name, value in self.shadow.items()
        }
        return {"updates": self.updates, "shadow": whole}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Undo :meth:`state_dict`."""
        self.updates = state["updates"]
        for name, value in state["shadow"].items():
            ours = self.shadow[name]
            if isinstance(ours, DTensor):
                value = distribute_tensor(value.to(ours.device), ours.device_mesh, ours.placements)
            ours.copy_(value)


def _trained(module: nn.Module) -> Iterable[tuple[str, nn.Parameter]]:
    return ((name, p) for name, p in module.named_parameters() if p.requires_grad)


def _local(value: torch.Tensor) -> torch.Tensor:
    return value.to_local() if isinstance(value, DTensor) else value


@dataclass
class Run:
    """A training run on disk: where it is, how far it is, and its log.

    ``identity`` stands for everything that decides the weights; a checkpoint of another one is refused.
    """

    folder: Path
    step: int = 0
    identity: str | None = None
    keep: int = 2
    writes: bool = True
    """False in all processes but the first of many."""
    quiet: bool = False
    """Whether log lines are not also printed."""
    started: float = field(default_factory=time.monotonic)

    def __post_init__(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)

    @property
    def log_path(self) -> Path:
        """One JSON object a line."""
        return self.folder / "log.jsonl"

    def save(self, parts: Mapping[str, Any]) -> None:
        """Write the state of every part (anything with ``state_dict``), then remove all but the newest ``keep``.

        Raises :class:`~cygnet.errors.OutputError` if the disk is full or refuses; what was there stays.
        """
        state = {
            "step": self.step,
            "rng": torch.get_rng_state(),
            **{name: part.state_dict() for name, part in parts.items()},
        }
        if not self.writes:
            return
        places = self.folder / "checkpoints"
        places.mkdir(exist_ok=True)
        path = places / f"{self.step:08d}.pt"
        with staged_file(path, overwrite=True) as file:
            hashed = _Hashing(file)
            try:
                torch.save(state, hashed)  # type: ignore[arg-type]
            except RuntimeError as error:  # torch's writer hides the system's reason
                if hashed.problem is not None:
                    raise hashed.problem from error
                raise
        facts = {
            "step": self.step,
            "identity": self.identity,
            "bytes": hashed.count,
            "sha256": hashed.digest.hexdigest(),
        }
        with staged_file(path.with_suffix(".json"), overwrite=True) as file:
            file.write((json.dumps(facts) + "\n").encode())
        for old in sorted(places.glob("*.json"))[: -self.keep]:
            old.unlink()
            old.with_suffix(".pt").unlink(missing_ok=True)

    def resume(self, parts: Mapping[str, Any]) -> bool:
        """Load the newest good checkpoint into the parts; False when the run is new.

        Log lines past it (all, when the run is new) are removed: they are written again. Raises
        :class:`~cygnet.errors.RequestError` if it was made by a run with other settings, clips or another model, or by
        an earlier version that kept less.
        """
        state = newest_state(self.folder, self.identity)
        if state is None:
            if self.writes:
                self._cut_log()
            return False
        for name, told in (("clips", "names no clips"), ("model", "does not say of which model")):
            if name in parts and name not in state:
                log.warning("the checkpoint is of an earlier version and %s; that it is the same is assumed", told)
                state[name] = parts[name].state_dict()
        if missing := [name for name in parts if name not in state]:
            raise RequestError(
                f"the checkpoint in {self.folder.name!r} is of an earlier version and lacks {', '.join(missing)}; "
                "choose another output, or remove the folder to begin anew",
                field="output",
            )
        for name, part in parts.items():
            part.load_state_dict(state[name])
        torch.set_rng_state(state["rng"])
        self.step = state["step"]
        if self.writes:
            self._cut_log()
        return True

    def log(self, **values: float) -> None:
        """Append one line to the log and print it."""
        if not self.writes:
            return
        row: dict[str, float] = {"step": self.step, "seconds": round(time.monotonic() - self.started, 1)}
        row.update({name: _rounded(float(value)) for name, value in values.items()})
        with self.log_path.open("a") as file:
            file.write(json.dumps(row) + "\n")
        if not self.quiet:
            print(" ".join(f"{name}={value}" for name, value in row.items()), flush=True)

    def rows(self) -> list[dict[str, float]]:
        """The log so far; a last line that a kill cut short does not count, nor any other that is no row of a log."""
        found = []
        try:
            lines = self.log_path.read_text(errors="replace").splitlines()
        except FileNotFoundError:
            return []
        for line in lines:
            try:
                row = json.loads(line)
            except (ValueError, RecursionError):
                continue
            if isinstance(row, dict) and isinstance(row.get("step"), int):
                found.append(row)
        return found

    def _cut_log(self) -> None:
        kept = [row for row in self.rows() if row["step"] <= self.step] if self.step else []
        if self.log_path.exists():
            with staged_file(self.log_path, overwrite=True) as file:
                file.write("".join(json.dumps(row) + "\n" for row in kept).encode())


class _Hashing:
    """A file to write to that knows the digest of what went through it, and why writing failed."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self.digest = hashlib.sha256()
        self.count = 0
        self.problem: OSError | None = None

    def write(self, data: Any) -> int:
        try:
            written = self._file.write(data)
        except OSError as error:
            self.problem = error
            raise
        self.digest.update(data)
        self.count += written
        return written

    def flush(self) -> None:
        self._file.flush()


def check_identity(folder: Path, identity: str) -> None:
    """Raise :class:`~cygnet.errors.RequestError` if the newest checkpoint is of another ``identity``, by its note."""
    for note in sorted((folder / "checkpoints").glob("*.json"), reverse=True):
        try:
            facts = json.loads(note.read_text())
        except (OSError, ValueError, RecursionError):
            continue
        if isinstance(facts, dict) and note.with_suffix(".pt").exists():
            _refuse_others(folder, note, facts, identity)
            return


def _refuse_others(folder: Path, note: Path, facts: Mapping[str, Any], identity: str) -> None:
    if facts.get("identity") != identity:
        raise RequestError(
            f"{folder.name!r} holds a run of other settings (step {int(note.stem)}), or one that another version of "
            "cygnet began; choose another output, or go back to the settings that it was begun with",
            field="output",
        )


def newest_state(folder: Path, identity: str | None = None) -> dict[str, Any] | None:
    """The newest checkpoint of a run's folder that is whole; None if there is none.

    Raises :class:`~cygnet.errors.RequestError` if it belongs to another ``identity``, and
    :class:`~cygnet.errors.WeightFileError` if there are checkpoints but none is whole.
    """
    notes = sorted((folder / "checkpoints").glob("*.json"), reverse=True)
    for note in notes:
        path = note.with_suffix(".pt")
        try:
            facts = json.loads(note.read_text())
            with open(path, "rb") as file:
                whole = hashlib.file_digest(file, "sha256").hexdigest() == facts["sha256"]
        except (OSError, ValueError, KeyError, TypeError, RecursionError):  # whatever a damaged note may hold
            whole = False
        if not whole:
            log.warning("checkpoint %s is damaged; the one before it is used", path.name)
            continue
        if identity is not None:
            _refuse_others(folder, note, facts, identity)
        return cast("dict[str, Any]", torch.load(path, map_location="cpu", weights_only=True))
    if notes:
        raise WeightFileError(f"every checkpoint in {folder.name!r} is damaged; remove the folder to begin anew")
    return None


def _rounded(value: float) -> float:
    """Seven significant digits, which is what float32 holds."""
    return float(f"{value:.7g}") if math.isfinite(value) else value


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
    return floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * progress))


def set_learning_rate(optimizers: Iterable[torch.optim.Optimizer], factor: float) -> None:
    """Set every group to its initial rate times ``factor``."""
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = group.setdefault("initial_lr", group["lr"]) * factor
