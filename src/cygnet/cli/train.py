"""``cygnet train``: teach a model from a TOML file."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

from cygnet.cli.interrupts import EXIT_INTERRUPTED, cancelled_by_interrupt
from cygnet.cli.options import Debug, Json, Quiet, Switch
from cygnet.cli.output import Voice, table
from cygnet.errors import RequestError
from cygnet.types import Estimate, time_left

if TYPE_CHECKING:
    from cygnet.training.loop import StepReport
    from cygnet.training.plan import Plan

SECONDS_BETWEEN_LINES = 5.0


def train(
    config: Annotated[Path | None, Parameter(name="CONFIG", metavar="CONFIG.toml")] = None,
    /,
    *,
    plan: Switch = False,
    fields: Switch = False,
    json: Json = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> int:
    """Train a LoRA, a whole transformer or an autoencoder, as a TOML file says; docs/training.md has examples.

    The same command goes on where it was stopped, exactly. Ctrl-C saves and stops. Many GPUs: torchrun
    --nproc-per-node N -m cygnet train CONFIG.toml.

    Parameters
    ----------
    config
        The file.
    plan
        Say how much memory and time it will take, and train nothing.
    fields
        List every field that a file may have, with its default and what it is.
    """
    if fields:
        return _list_fields(Voice(as_json=json))
    if config is None:
        raise RequestError("give the file: cygnet train CONFIG.toml (cygnet train --fields lists what may be in it)")
    from cygnet.training.config_file import read_config

    settings = read_config(config)
    if plan:
        from cygnet.training.plan import plan_for

        return _show_plan(plan_for(settings), Voice(as_json=json, quiet=quiet))
    from cygnet.training.parallel import many_processes

    with many_processes(settings) as group:
        voice = Voice(as_json=json and group.first, quiet=quiet or not group.first)
        from cygnet.training.start import train as run

        with cancelled_by_interrupt(voice.note) as cancel:
            lines = _Lines(voice)
            outcome = run(
                settings, group=group, say=voice.note, tell=lines.preparing, on_step=lines.step, cancel=cancel
            )
        value: dict[str, Any] = {
            "finished": outcome.finished,
            "step": outcome.step,
            "result": None if outcome.result is None else str(outcome.result),
            "plot": None if outcome.plot is None else str(outcome.plot),
            "validation_loss": outcome.validation,
            "wall_seconds": round(outcome.wall_seconds, 1),
            "processor_seconds": round(outcome.cpu_seconds, 1),
        }
        if group.first:
            voice.result(value, [str(outcome.result)])
        if not outcome.finished:
            voice.note(f"stopped at step {outcome.step} of {settings.steps}; run the same command again to go on")
    return 0 if outcome.finished else EXIT_INTERRUPTED


class _Lines:
    """Progress as lines: now and then, with the time that remains."""

    def __init__(self, voice: Voice, clock: Callable[[], float] = time.monotonic) -> None:
        self._voice, self._clock = voice, clock
        self._estimate = Estimate()
        self._shown = 0.0

    def preparing(self, what: str, done: int, total: int) -> None:
        """How far reading and encoding are."""
        self._show(what, done, total, f"{what}: {done} of {total}")

    def step(self, report: StepReport) -> None:
        """How far training is."""
        text = f"step {report.step} of {report.total}, loss {report.loss:.4f}"
        self._show("training", report.step, report.total, text)

    def _show(self, phase: str, done: int, total: int, text: str) -> None:
        now = self._clock()
        left = self._estimate.update(phase, done, total, now)
        if now - self._shown >= SECONDS_BETWEEN_LINES or done == total:
            self._shown = now
            self._voice.note(text + time_left(left))


def _list_fields(voice: Voice) -> int:
    from cygnet.training.config_file import documented

    rows: list[tuple[str, ...]] = [("FIELD", "DEFAULT", "WHAT"), *documented()]
    value = {"fields": [{"field": f, "default": d, "what": w} for f, d, w in rows[1:]]}
    voice.result(value, table(rows))
    return 0


def _show_plan(plan: Plan, voice: Voice) -> int:
    from cygnet.cli.plan import NOT_MEASURED, duration
    from cygnet.planning.words import gib

    machine = plan.machine
    rows: list[tuple[str, ...]] = [("MEMORY", "")]
    rows += [(name, gib(size)) for name, size in plan.memory.items()]
    rows.append(("together", gib(plan.total)))
    if machine.shares:
        rows.append(("free here", f"{gib(machine.host_free)} of {gib(machine.host_limit)}"))
    else:
        rows += [("free on the device", gib(machine.device_free)), ("of the host", gib(plan.host))]
        rows.append(("free here", f"{gib(machine.host_free)} of {gib(machine.host_limit)}"))
    rows += [
        ("TIME", ""),
        ("trained values", f"{plan.trained:,}"),
        ("tokens per clip", f"{plan.tokens:,}"),
        ("work per step", f"{plan.flops / 1e12:.3g} TFLOP"),
        ("per step", duration(plan.step_seconds)),
    ]
    if plan.step_seconds is not None:
        measured = machine.rates is not None and machine.rates.measured
        how = f"measured {machine.rates.date}" if measured and machine.rates else NOT_MEASURED
        rows.append(("for all steps", f"{duration(plan.step_seconds * plan.steps)}, without encoding ({how})"))
    voice.result(plan.to_json(), table(rows))
    if not plan.fits:
        voice.note(f"this does not fit: {plan.refusal()}")
    return 0
