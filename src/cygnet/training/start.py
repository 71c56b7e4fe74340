"""A configuration to a finished training: what ``cygnet train`` and every recipe call."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from cygnet.assembly import LoadedModel
from cygnet.pipelines.presets import defaults_for
from cygnet.runtime.precision import parse_device
from cygnet.training.batches import Batches
from cygnet.training.cache import Cache
from cygnet.training.config import TrainConfig
from cygnet.training.dataset import read_items
from cygnet.training.encode import Example, Tell, prepare, prepare_texts
from cygnet.training.flow import FlowMatching
from cygnet.training.flow_run import FlowRun
from cygnet.training.loop import Pace, StepReport, Trainer
from cygnet.training.networks import architecture, build_network, build_optimizers
from cygnet.training.parallel import ALONE, Group, WholeModule, WholeOptimizer
from cygnet.training.preflight import checked, claimed
from cygnet.training.reports import Charts, plot_losses
from cygnet.training.state import Average, Run
from cygnet.training.taught import Begun, Taught
from cygnet.types import CancelToken


@dataclass(frozen=True)
class Outcome:
    """How a run ended."""

    finished: bool
    step: int
    result: Path | None
    """The file that was written; None where this process is not the one that writes."""
    plot: Path | None
    wall_seconds: float
    cpu_seconds: float
    """Of this call, over all threads."""
    validation: float | None
    """The last validation loss."""


def objective_of(config: TrainConfig, model: LoadedModel) -> FlowMatching:
    """Flow matching with the model's own shift, unless the file says another."""
    shift = config.objective.shift
    if shift is None:
        width, height = max(config.data.shapes, key=lambda size: size[0] * size[1])
        shift = defaults_for(model.components.dit, model.name).shift_for(width, height)
    return FlowMatching(mean=config.objective.mean, std=config.objective.std, shift=shift)


def begun_from(config: TrainConfig, model: LoadedModel) -> str:
    """A digest of what the training changes: weights, or for ``scratch``, which reads none, their shapes."""
    if config.method == "scratch":
        return hashlib.sha256(repr(architecture(config, model.components.dit)).encode()).hexdigest()
    digest: str = model.describe()["components"]["vae" if config.method == "vae" else "dit"]["digest"]
    return digest


def train(
    config: TrainConfig,
    *,
    group: Group = ALONE,
    say: Callable[[str], None] = print,
    tell: Tell = lambda what, done, total: None,
    on_step: Callable[[StepReport], None] = lambda report: None,
    cancel: CancelToken | None = None,
    seconds: float = float("inf"),
) -> Outcome:
    """Run (or go on with) a training; stops cleanly after ``seconds`` or by ``cancel``.

    ``group`` are the processes that train together (:func:`~cygnet.training.parallel.many_processes`). ``say`` hears
    notes, ``tell`` how far preparing is, ``on_step`` every step. What can be known to go wrong is refused before
    anything is encoded (:mod:`cygnet.training.preflight`).
    """
    if config.threads:
        torch.set_num_threads(config.threads)
    model = checked(config)
    with claimed(config, writes=group.first):
        if config.method == "vae":
            from cygnet.training.vae_run import train_vae

            return train_vae(config, model, say=say, on_step=on_step, cancel=cancel, seconds=seconds)
        return _train_flow(
            config, model, group=group, say=say, tell=tell, on_step=on_step, cancel=cancel, seconds=seconds
        )


def _train_flow(
    config: TrainConfig,
    model: LoadedModel,
    *,
    group: Group,
    say: Callable[[str], None],
    tell: Tell,
    on_step: Callable[[StepReport], None],
    cancel: CancelToken | None,
    seconds: float,
) -> Outcome:
    """The same for a transformer."""
    clocks = time.monotonic(), time.process_time()
    folder = Path(config.output)
    run = Run(folder, identity=config.identity(), keep=config.every.keep, writes=group.first, quiet=True)
    cache = Cache(Path(config.data.cache or folder / "cache"), owner=group.rank, say=say)

    def prepared(place: str, field: str, trigger: str = config.data.trigger) -> list[Example]:
        return prepare(
            read_items(Path(place), field), config.data.model_copy(update={"trigger": trigger}), model, cache,
            field=field, rank=group.rank, world=group.world, barrier=group.barrier, tell=tell,
        )  # fmt: skip

    examples = prepared(config.data.path, "data.path")
    validation = examples if config.data.validation is None else prepared(config.data.validation, "data.validation")
    preserve = config.preserve
    kept = [] if preserve.path is None else prepared(preserve.path, "preserve.path", trigger="")
    empty, *preserved = prepare_texts(
        ["", *preserve.captions], model, cache, rank=group.rank, barrier=group.barrier, tell=tell
    )
    network = build_network(config, model, parse_device(config.device))
    group.spread(network)
    optimizers = build_optimizers(config.optimizer, network.trained)
    average = Average(network.trained, config.optimizer.average) if config.optimizer.average else None
    flow = FlowRun(
        config=config,
        model=model,
        network=network,
        cache=cache,
        batches=Batches(examples, config.batch, config.seed),
        validation=validation,
        empty=empty,
        preserved=preserved,
        kept=Batches(kept, preserve.batch, config.seed) if kept else None,
        objective=objective_of(config, model),
        average=average,
        group=group,
    )
    # These first, so that nothing is loaded where they are others.
    parts: dict[str, Any] = {"clips": Taught((one.clip, one.text) for one in examples)}
    if kept:
        parts["kept clips"] = Taught(((one.clip, one.text) for one in kept), "preserve.path")
    parts["model"] = Begun(begun_from(config, model))
    parts["weights"] = WholeModule(network.trained)
    parts |= {f"optimizer {number}": WholeOptimizer(optimizer) for number, optimizer in enumerate(optimizers)}
    if average is not None:
        parts["average"] = average
    charts = Charts(folder, say, draws=group.first)
    last: list[float] = []

    def validate(step: int) -> None:
        last[:] = [flow.validate()]
        run.log(validation=last[0])
        charts.add(step, validation=last[0])

    def sample(step: int) -> None:
        for path in flow.sample(step, folder / "samples", say):
            say(f"sample {path}")

    every = config.every

    def charted(report: StepReport) -> None:
        charts.add(report.step, loss=report.loss)
        on_step(report)

    trainer = Trainer(
        module=network.trained,
        optimizers=optimizers,
        run=run,
        pace=Pace(
            steps=config.steps,
            warmup=config.optimizer.warmup,
            floor=config.optimizer.floor,
            clip=config.optimizer.clip,
            log_every=every.log,
            save_every=every.save,
        ),
        draw=flow.pieces,
        parts=parts,
        average=average,
        after=((every.validate_, validate), (every.sample, sample)),
        on_step=charted,
        cancel=cancel or CancelToken(),
        alone=group.world == 1,
        reduce_gradients=lambda: group.reduce_gradients(network),
        reduce_loss=group.mean,
        agree=group.any,
        more=lambda: flow.told,
    )
    if trainer.resume():
        say(f"going on at step {run.step}")
    charts.begin(run.step)
    try:
        finished = trainer.train(seconds)
        result = flow.write(run.step, folder)
    finally:
        network.close()
        charts.close()
    plot = plot_losses(run.rows(), folder / "loss.png", say) if finished and group.first else None
    now = time.monotonic(), time.process_time()
    return Outcome(finished, run.step, result, plot, now[0] - clocks[0], now[1] - clocks[1], last[0] if last else None)
