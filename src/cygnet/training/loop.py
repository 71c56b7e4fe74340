"""The training loop of the diffusion transformer: text-to-video, image-to-video and their fine-tuning."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from cygnet.errors import NumericalError
from cygnet.models.dit.model import DiT
from cygnet.training.optimizers import optimizers_for
from cygnet.training.state import Average, Run, set_learning_rate, warmup_cosine


@dataclass(frozen=True)
class Batch:
    """One step's data; shapes as for :class:`~cygnet.models.dit.model.DiT`."""

    latents: torch.Tensor
    context: torch.Tensor
    image_context: torch.Tensor | None = None
    image_condition: torch.Tensor | None = None

    def to(self, device: torch.device) -> Batch:
        """The same on another device."""
        rows = (self.latents, self.context, self.image_context, self.image_condition)
        return Batch(*(None if row is None else row.to(device) for row in rows))  # type: ignore[arg-type]


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """How long and how fast. Rates are reached after ``warmup`` steps and fall to a fiftieth along a cosine."""

    steps: int
    warmup: int = 200
    matrix_rate: float = 2e-3
    other_rate: float = 1e-3
    decay: float = 0.01
    average: float = 0.999
    """Decay of the moving average of the weights, which is what is used afterwards."""
    log_every: int = 50
    save_every: int = 500


def train_flow(
    dit: DiT,
    draw: Callable[[int], Batch],
    schedule: Schedule,
    folder: Path,
    *,
    objective: Callable[..., torch.Tensor],
    seconds: float = float("inf"),
) -> DiT:
    """Run (or go on with) a training in ``folder``; returns the averaged weights as a module.

    ``objective`` is a :class:`~cygnet.training.flow.FlowMatching`, compiled or not.

    ``draw(step)`` must depend on the step alone, so that a resumed run sees what an unbroken one would have seen. It
    stops cleanly after ``seconds``; running it again goes on. Raises :class:`~cygnet.errors.NumericalError` when a
    gradient is not finite; the last saved state stays intact.
    """
    average = Average(dit, schedule.average)
    # Muon is for matrices between features: those inside the blocks.
    matrices = [name for name, p in dit.named_parameters() if name.startswith("blocks.") and p.ndim == 2]
    optimizers = optimizers_for(
        dit, matrices, matrix_rate=schedule.matrix_rate, other_rate=schedule.other_rate, decay=schedule.decay
    )
    parts = {"dit": dit, "average": average, "muon": optimizers[0], "adamw": optimizers[1]}
    run = Run(folder)
    run.resume(parts)
    rates = (schedule.matrix_rate, schedule.other_rate), (schedule.decay, 0.0)
    for optimizer, rate, decay in zip(optimizers, *rates, strict=True):  # what is asked for now, not what was stored
        for group in optimizer.param_groups:
            group.update(initial_lr=rate, weight_decay=decay)
    losses: list[float] = []
    deadline = time.monotonic() + seconds
    while run.step < schedule.steps and time.monotonic() < deadline:
        batch = draw(run.step).to(dit.device)
        torch.manual_seed(run.step)
        set_learning_rate(optimizers, warmup_cosine(run.step, warmup=schedule.warmup, total=schedule.steps, floor=0.02))
        with torch.autocast(batch.latents.device.type, dtype=torch.bfloat16):
            loss = objective(dit, batch.latents, batch.context, batch.image_context, batch.image_condition)
        for optimizer in optimizers:
            optimizer.zero_grad(set_to_none=True)
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(dit.parameters(), 1.0)
        if not bool(torch.isfinite(norm)):
            raise NumericalError(f"the gradient is not finite at step {run.step}; the last saved state is intact")
        for optimizer in optimizers:
            optimizer.step()
        average.update(dit)
        run.step += 1
        losses.append(loss.item())
        if run.step % schedule.log_every == 0:
            run.log(loss=sum(losses) / len(losses), norm=norm.item())
            losses.clear()
        if run.step % schedule.save_every == 0:
            run.save(parts)
    run.save(parts)
    average.copy_to(dit)
    return dit
