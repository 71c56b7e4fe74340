"""Where the weights of a request's networks will be, and whether that fits."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from cygnet.pipelines.request import GenerateRequest
from cygnet.planning.machine import Machine
from cygnet.planning.needs import Needs, bounds_of, frame_bytes, needs_of
from cygnet.planning.subject import Subject
from cygnet.planning.words import gib
from cygnet.runtime.plan import MARGIN, WORDS, Offload, Placement, choose
from cygnet.runtime.streaming import AHEAD_BYTES
from cygnet.types import ComponentName


@dataclass(frozen=True, kw_only=True)
class Decision:
    """Where weights will be, and whether that fits."""

    placement: Placement
    why: str
    fits: bool
    needs: Needs | None = None
    """What it was decided by; None where bounds were enough."""


def decide(
    subject: Subject, request: GenerateRequest, machine: Machine, offload: Offload = True, *, exact: bool = False
) -> Decision:
    """The placement of a request. Unless ``exact``, nothing is traced where the request plainly fits."""
    free, weights = machine.device_room, subject.weights
    frames = frame_bytes(request)
    if not exact:
        bounds = bounds_of(subject, request)
        placement = choose(weights, free, offload, bounds)
        # What is whole even by these bounds, and resident unless that was ruled out, is so by any measure.
        best = not placement.eight_bit and not placement.streamed and placement.resident == (not offload)
        if best and _fits(placement, subject, bounds, machine, frames):
            return Decision(placement=placement, why="it fits", fits=True)
    needs = needs_of(subject, request)
    work = needs.work()
    placement = choose(weights, free, offload, work)
    return Decision(
        placement=placement,
        why=_why(placement, subject, work, machine),
        fits=_fits(placement, subject, work, machine, frames),
        needs=needs,
    )


def room_left(placement: Placement, subject: Subject, work: Mapping[ComponentName, int], free: int) -> int:
    """Bytes left in the fullest stage; negative if it does not fit."""
    return free - fullest_stage(placement, subject, work)[1]


def fullest_stage(
    placement: Placement, subject: Subject, work: Mapping[ComponentName, int]
) -> tuple[ComponentName, int]:
    """The network whose stage takes most, and how many bytes that is; ``work`` is what each takes beside weights."""
    taken = {part: placement.bytes(part, each) for part, each in subject.weights.items()}
    held = {part: sum(taken.values()) if placement.resident else size for part, size in taken.items()}
    fullest = max(held, key=lambda part: held[part] + work.get(part, 0))
    return fullest, held[fullest] + work.get(fullest, 0)


def _fits(
    placement: Placement, subject: Subject, work: Mapping[ComponentName, int], machine: Machine, frames: int
) -> bool:
    """Whether device and host hold the fullest stage; ``frames`` are the bytes of the host that the encoder holds."""
    if machine.shares:
        work = {**work, "vae": work["vae"] + frames}
    return room_left(placement, subject, work, machine.device_room) >= 0 and host_fits(
        placement, subject, machine, frames
    )


def host_fits(placement: Placement, subject: Subject, machine: Machine, frames: int) -> bool:
    """Whether the host holds what passes through it on the way to another device, and what is swapped from it."""
    if machine.shares or any(subject.weights[part].swaps for part in placement.streamed):
        return True  # the latter by the rule of Weights.swapped_from, which leaves much more than this
    largest = max(each.largest for each in subject.weights.values())
    return AHEAD_BYTES + max(largest, frames) <= machine.host_room


def _why(placement: Placement, subject: Subject, work: Mapping[ComponentName, int], machine: Machine) -> str:
    free = gib(machine.device_room)
    words: list[str] = []
    for part in sorted(placement.eight_bit | placement.streamed):
        weights, size = subject.weights[part], work.get(part, 0)
        if weights.whole + size > MARGIN * machine.device_room:
            words.append(
                f"the {WORDS[part]}'s {gib(weights.whole)} and {gib(size)} of work do not fit {free} with room to spare"
            )
        else:
            words.append(f"the {WORDS[part]} is streamed because that was asked for")
    if not words:
        fullest = max(subject.weights, key=lambda part: subject.weights[part].whole + work.get(part, 0))
        size = subject.weights[fullest].whole
        words.append(
            f"the fullest stage, the {WORDS[fullest]}'s {gib(size)} and {gib(work.get(fullest, 0))} of work, fits "
            f"{free}"
        )
    return "; ".join(words)
