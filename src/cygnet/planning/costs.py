"""What each stage of a decided request takes: bytes of device and host, operations, and seconds."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch

from cygnet.pipelines.request import GenerateRequest
from cygnet.planning import stages
from cygnet.planning.decision import Decision
from cygnet.planning.machine import DEVICE_BASE, Machine
from cygnet.planning.needs import SLACK, Needs, frame_bytes
from cygnet.planning.stages import Demand
from cygnet.planning.subject import Subject
from cygnet.runtime import flops
from cygnet.runtime.calibration import Rates
from cygnet.runtime.plan import Placement
from cygnet.runtime.streaming import AHEAD_BYTES
from cygnet.types import ComponentName, Phase


@dataclass(frozen=True, kw_only=True)
class Stage:
    """What one phase of a run takes."""

    phase: Phase
    device_peak: int
    """Bytes; on the CPU equal to ``host_peak``."""
    host_peak: int
    """Bytes of the process, with its code."""
    flops: float
    seconds: float | None
    """None where the device is not here."""


def stage_costs(
    subject: Subject, request: GenerateRequest, machine: Machine, decision: Decision, needs: Needs
) -> Iterator[Stage]:
    """Loading, then the stages that ``needs`` holds, then writing."""
    placement, rates = decision.placement, machine.rates
    held = {part: _resident_bytes(placement, part, subject, machine) for part in subject.weights}
    base = machine.host_base
    yield Stage(
        phase="load",
        device_peak=base + max(held.values()) if machine.shares else DEVICE_BASE + max(held.values()),
        host_peak=base + (max(held.values()) if machine.shares else AHEAD_BYTES),
        flops=0.0,
        seconds=None if rates is None else sum(_load_seconds(subject, placement, part, rates) for part in held),
    )
    stays = 0  # the VAE, from the stage that encodes to the one that decodes
    for phase, several in needs.demands.items():
        peak, work, seconds = 0, 0.0, 0.0
        for part, demand in several:
            weights = sum(held.values()) if placement.resident else held[part] + (stays if part != "vae" else 0)
            peak = max(peak, weights + round(SLACK * demand.cost.peak))
            work += flops.total(demand.work)
            if rates is not None:
                dtype = subject.decode_dtype if phase == "decode" else subject.dtypes[part]
                seconds += _seconds(subject, placement, part, demand, rates, dtype, shares=machine.shares)
            if part == "vae" and not placement.resident:
                stays = held["vae"]
        frames = frame_bytes(request) if phase == "decode" else 0
        yield Stage(
            phase=phase,
            device_peak=base + peak + frames if machine.shares else DEVICE_BASE + peak,
            host_peak=base + frames + (peak if machine.shares else _host_share(subject, placement, several)),
            flops=work,
            seconds=None if rates is None else seconds,
        )
    pixels = request.width * request.height * request.num_frames
    yield Stage(
        phase="write",
        device_peak=0 if not machine.shares else base + frame_bytes(request),
        host_peak=base + frame_bytes(request),
        flops=0.0,
        seconds=None if rates is None else pixels / rates.video,
    )


def _resident_bytes(placement: Placement, part: ComponentName, subject: Subject, machine: Machine) -> int:
    """What a network's weights take while it works; of tables mapped from a file, no more than a few rows are there."""
    taken = placement.bytes(part, subject.weights[part])
    mapped = machine.shares and part not in subject.converted
    return taken - subject.weights[part].gathered if mapped else taken


def _host_share(subject: Subject, placement: Placement, several: tuple[tuple[ComponentName, Demand], ...]) -> int:
    """What the host holds while another device works: weights that are on their way, or all that are swapped."""
    swapped = [
        subject.weights[part].whole for part, _ in several if part in placement.streamed and subject.weights[part].swaps
    ]
    parked = max(demand.parked for _, demand in several)
    if swapped:
        return max(swapped) + parked
    return (
        parked
        + AHEAD_BYTES
        + max((subject.weights[part].largest for part, _ in several if part in placement.streamed), default=0)
    )


def _load_seconds(subject: Subject, placement: Placement, part: ComponentName, rates: Rates) -> float:
    if part not in subject.converted or part in placement.streamed:
        return 0.0  # read when it is used
    return subject.files[part] / rates.disk + rates.moving(subject.files[part] + subject.weights[part].whole, 100)


def _seconds(
    subject: Subject,
    placement: Placement,
    part: ComponentName,
    demand: Demand,
    rates: Rates,
    dtype: torch.dtype,
    *,
    shares: bool,
) -> float:
    weights = subject.weights[part]
    seconds = stages.seconds(demand, rates, dtype) * rates.whole("vae" if part == "vae" else "dit", dtype)
    seconds += demand.passes * rates.reading(weights.whole - weights.gathered, dtype)
    if part in placement.eight_bit:
        seconds += demand.passes * rates.moving(weights.eight_bit + 3 * weights.whole, 1)
    seconds += demand.passes * rates.moving(3 * weights.widened, 1)
    if part in placement.streamed:
        read = subject.files[part] / rates.disk
        again = (demand.passes - 1) * rates.moving(subject.files[part] + weights.whole, 100)
        seconds = seconds + read + again if shares else max(seconds, read + again)
    elif part not in subject.converted and shares:
        seconds += (subject.files[part] - weights.gathered) / rates.disk  # mapped: read when it is first used
    return seconds
