"""The training loop that every network shares: step by step, resumable at any of them, stopping at the first NaN."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from cygnet.errors import NumericalError
from cygnet.models.dit.model import DiT
from cygnet.training.flow import Batch
from cygnet.training.optimizers import optimizers_for
from cygnet.training.state import Average, Run, set_learning_rate, warmup_cosine
from cygnet.types import CancelToken


@dataclass(frozen=True)
class Piece:
    """A part of a step's data: its share of the step's loss, and what to call it if something is wrong with it."""

    loss: Callable[[], torch.Tensor]
    """Computes the mean loss over the part."""
    share: float = 1.0
    """By which it counts; the shares of a step (over all processes) add up to 1."""
    name: str = ""
    counts: bool = True
    """Whether it belongs to the loss that is told; its gradient counts either way."""


@dataclass(frozen=True, kw_only=True)
class Pace:
    """How long, and what happens every so many steps (0: never)."""

    steps: int
    warmup: int = 0
    floor: float = 0.05
    clip: float = 1.0
    log_every: int = 50
    save_every: int = 500


@dataclass
class Losses:
    """Losses since the last line of the log, part of what a checkpoint keeps."""

    values: list[float] = field(default_factory=list)

    def state_dict(self) -> dict[str, Any]:
        """Everything needed to go on."""
        return {"values": list(self.values)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Undo :meth:`state_dict`."""
        self.values = list(state["values"])


@dataclass(frozen=True)
class StepReport:
    """What a step came to: ``step`` of ``total`` are done."""

    step: int
    total: int
    loss: float


@dataclass(kw_only=True)
class Trainer:
    """Everything that a run needs; :meth:`run` does it.

    ``draw(step)`` gives the pieces of a step and must depend on the step alone, so that a resumed run sees what an
    unbroken one would have seen. ``after`` maps numbers of steps to what is done then, such as validation. With many
    processes ``reduce_gradients`` and ``reduce_loss`` bring them together; alone they do nothing.
    """

    module: nn.Module
    optimizers: Sequence[torch.optim.Optimizer]
    run: Run
    pace: Pace
    draw: Callable[[int], Iterable[Piece]]
    parts: Mapping[str, Any]
    """What a checkpoint keeps beside ``losses``, by name: anything with ``state_dict`` and ``load_state_dict``."""
    average: Average | None = None
    after: Sequence[tuple[int, Callable[[int], None]]] = ()
    on_step: Callable[[StepReport], None] = lambda report: None
    cancel: CancelToken = field(default_factory=CancelToken)
    alone: bool = True
    """Whether no other process trains along."""
    reduce_gradients: Callable[[], None] = lambda: None
    reduce_loss: Callable[[float], float] = lambda loss: loss
    agree: Callable[[bool], bool] = lambda answer: answer
    """Whether any process wants to stop; alone, this one."""
    more: Callable[[], Mapping[str, float]] = dict
    """Further values for each line of the log."""
    rate: Callable[[int], float] | None = None
    """The factor of every rate at a step, in place of the warm-up and the cosine of ``pace``."""

    def __post_init__(self) -> None:
        self.losses = Losses()

    def resume(self) -> bool:
        """Go on where the folder's newest good checkpoint is; False if there is none."""
        return self.run.resume({**self.parts, "losses": self.losses})

    def train(self, seconds: float = float("inf")) -> bool:
        """Take the steps that are left; False if it stopped before the last, after ``seconds`` or by ``cancel``.

        Either way everything is saved. Raises :class:`~cygnet.errors.NumericalError`, naming step and clips, when a
        loss or a gradient is not finite; the checkpoint before stays as it is.
        """
        run, pace = self.run, self.pace
        deadline = time.monotonic() + seconds
        saved = run.step if run.step else -1
        while run.step < pace.steps and not self.agree(self.cancel.cancelled or time.monotonic() >= deadline):
            if self.rate is not None:
                factor = self.rate(run.step)
            else:
                factor = warmup_cosine(run.step, warmup=pace.warmup, total=pace.steps, floor=pace.floor)
            set_learning_rate(self.optimizers, factor)
            loss, norm = self._step()
            self.losses.values.append(loss)
            run.step += 1
            self.on_step(StepReport(run.step, pace.steps, loss))
            if run.step % pace.log_every == 0 or run.step == pace.steps:
                values = self.losses.values
                run.log(loss=sum(values) / len(values), norm=norm, rate=factor, **self.more())
                values.clear()
            for every, work in self.after:
                if every and (run.step % every == 0 or run.step == pace.steps):
                    try:
                        work(run.step)
                    except Exception:
                        # What fails beside the training must not cost the steps since the last checkpoint. Of many
                        # processes the others may be elsewhere, and saving needs them all.
                        if self.alone:
                            self._save()
                        raise
            if run.step % pace.save_every == 0:
                self._save()
                saved = run.step
        if saved != run.step:
            self._save()
        return run.step >= pace.steps

    def _save(self) -> None:
        self.run.save({**self.parts, "losses": self.losses})

    def _step(self) -> tuple[float, float]:
        step = self.run.step
        torch.manual_seed(step)
        total, norm, wrong = gradients(
            self.module, self.optimizers, self.draw(step), self.pace.clip, self.reduce_gradients, self.reduce_loss
        )
        if not (abs(total) < float("inf") and norm < float("inf")) or wrong:
            raise NumericalError(self._told(step, total, wrong))
        for optimizer in self.optimizers:
            optimizer.step()
        if self.average is not None:
            self.average.update(self.module)
        return total, norm

    def _told(self, step: int, total: float, wrong: list[str]) -> str:
        what = "gradient" if abs(total) < float("inf") and not wrong else "loss"
        names = [name for name in wrong or [piece.name for piece in self.draw(step)] if name]
        at = f" (clips: {', '.join(names)})" if names else ""
        return (
            f"the {what} is not finite at step {step}{at}; the last checkpoint is intact: lower optimizer.rate, or "
            "look at these clips, and run the same command again"
        )


def gradients(
    module: nn.Module,
    optimizers: Sequence[torch.optim.Optimizer],
    pieces: Iterable[Piece],
    clip: float,
    reduce_gradients: Callable[[], None] = lambda: None,
    reduce_loss: Callable[[float], float] = lambda loss: loss,
) -> tuple[float, float, list[str]]:
    """Put the clipped gradients of a step's ``pieces`` in place of those before.

    Returns the loss, the norm of the gradients before they were clipped, and the names of pieces whose loss is not
    finite.
    """
    for optimizer in optimizers:
        optimizer.zero_grad(set_to_none=True)
    total, wrong = 0.0, []
    for piece in pieces:
        loss = piece.loss() * piece.share
        value = float(loss.detach())
        if value != value or value in (float("inf"), float("-inf")):
            wrong.append(piece.name)
        loss.backward()
        total += value if piece.counts else 0.0
    reduce_gradients()
    total = reduce_loss(total)
    trained = [p for p in module.parameters() if p.requires_grad]
    norm = torch.nn.utils.clip_grad_norm_(trained, clip)
    return total, float(norm.full_tensor() if hasattr(norm, "full_tensor") else norm), wrong


# The embedded model's trainings --------------------------------------------------------------------------------------


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
    """Train all weights with Muon on batches that a program makes; returns the averaged weights as a module.

    ``objective`` is a :class:`~cygnet.training.flow.FlowMatching`, compiled or not. ``draw`` as for :class:`Trainer`.
    It stops cleanly after ``seconds``; running it again goes on, at the rates that are asked for then.
    """
    average = Average(dit, schedule.average)
    # Muon is for matrices between features: those inside the blocks.
    matrices = [name for name, p in dit.named_parameters() if name.startswith("blocks.") and p.ndim == 2]
    optimizers = optimizers_for(
        dit, matrices, matrix_rate=schedule.matrix_rate, other_rate=schedule.other_rate, decay=schedule.decay
    )

    def pieces(step: int) -> list[Piece]:
        batch = draw(step).to(dit.device)

        def loss() -> torch.Tensor:
            with torch.autocast(batch.latents.device.type, dtype=torch.bfloat16):
                return objective(dit, batch.latents, batch.context, batch.image_context, batch.image_condition)

        return [Piece(loss)]

    trainer = Trainer(
        module=dit,
        optimizers=optimizers,
        run=Run(folder),
        pace=Pace(
            steps=schedule.steps,
            warmup=schedule.warmup,
            floor=0.02,
            log_every=schedule.log_every,
            save_every=schedule.save_every,
        ),
        draw=pieces,
        parts={"dit": dit, "average": average, "muon": optimizers[0], "adamw": optimizers[1]},
        average=average,
    )
    trainer.resume()
    rates = (schedule.matrix_rate, schedule.other_rate), (schedule.decay, 0.0)
    for optimizer, rate, decay in zip(optimizers, *rates, strict=True):  # what is asked for now, not what was stored
        for group in optimizer.param_groups:
            group.update(initial_lr=rate, weight_decay=decay)
    trainer.train(seconds)
    average.copy_to(dit)
    return dit
