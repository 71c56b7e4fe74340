"""Where the weights of a request's networks will be, how much the VAE works on at a time, and whether that fits."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch

from cygnet.pipelines.record import Half
from cygnet.pipelines.request import GenerateRequest
from cygnet.pipelines.sizes import latent_frames_at_once, latent_grid
from cygnet.pipelines.tiles import Portions, in_portions
from cygnet.planning.machine import Machine
from cygnet.planning.needs import SLACK, Needs, bounds_of, frame_bytes, needs_of
from cygnet.planning.subject import Subject
from cygnet.planning.tiling import largest
from cygnet.planning.words import gib
from cygnet.runtime.plan import MARGIN, SHARE_OF_MEMORY, WORDS, Offload, Placement, choose
from cygnet.runtime.streaming import AHEAD_BYTES
from cygnet.types import ComponentName, Phase, Tiles


@dataclass(frozen=True, kw_only=True)
class Decision:
    """Where weights will be, how much the VAE works on at a time, and whether that fits."""

    placement: Placement
    portions: Portions
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
    usual = Portions(decode_tiles=subject.decode_tiles, encode_tiles=subject.encode_tiles)
    if not exact:
        bounds = bounds_of(subject, request)
        placement = choose(weights, free, offload, bounds)
        # What is whole even by these bounds, and resident unless that was ruled out, is so by any measure.
        best = not placement.eight_bit and not placement.streamed and placement.resident == (not offload)
        if best and _fits(placement, subject, bounds, machine, frames):
            return Decision(placement=placement, portions=usual, why="it fits", fits=True)
    needs = _in_portions_that_fit(subject, request, machine, offload, needs_of(subject, request, usual))
    work = needs.work()
    placement = choose(weights, free, offload, work)
    return Decision(
        placement=placement,
        portions=needs.portions,
        why=_why(placement, subject, request, work, machine, usual, needs.portions),
        fits=_fits(placement, subject, work, machine, frames, needs.parked()),
        needs=needs,
    )


def _at_once(request: GenerateRequest) -> int:
    """Latent frames that are decoded at a time without tiles; the first is alone."""
    frames, *grid = latent_grid(request.num_frames, request.width, request.height)
    return min(latent_frames_at_once(*grid), frames - 1)


def _in_portions_that_fit(
    subject: Subject, request: GenerateRequest, machine: Machine, offload: Offload, needs: Needs
) -> Needs:
    """Smaller portions where the usual ones do not fit at all, for they can change rounding: the largest that fit.

    Of decoding that is one latent frame at a time, then tiles; those that were asked for stay as they are.
    """
    free, weights = machine.device_room, subject.weights
    beside = sum(it.eight_bit for it in weights.values()) if offload is False else weights["vae"].whole
    rows, columns = latent_grid(request.num_frames, request.width, request.height)[1:]

    def change(**portions: Any) -> None:
        nonlocal needs
        needs = needs.in_portions(subject, request, replace(needs.portions, **portions))

    def tile(half: Half, phase: Phase, asked: Tiles | None, dtype: torch.dtype, others: int) -> None:
        if phase not in needs.demands or others + needs.taken(phase) <= free:
            return
        if asked is not None:
            change(parked=not machine.shares)
            return
        room = (MARGIN * free - others) / SLACK
        tiles, parked = largest(
            subject.vae,
            dtype,
            rows,
            columns,
            half,
            room,
            parks=not machine.shares,
            on_processor=subject.on_processor,
        )
        change(**{f"{half}_tiles": tiles}, parked=parked or needs.portions.parked)

    encoding: tuple[Phase, ...] = ("image", "encode")
    for phase in encoding:
        tile("encode", phase, subject.encode_tiles, subject.dtypes["vae"], beside)
    held = frame_bytes(request) if machine.shares else 0
    tile("decode", "decode", subject.decode_tiles, subject.decode_dtype, beside + held)
    return needs


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
    placement: Placement,
    subject: Subject,
    work: Mapping[ComponentName, int],
    machine: Machine,
    frames: int,
    parked: int = 0,
) -> bool:
    """Whether device and host hold the fullest stage; ``frames`` are the bytes of the host that the encoder holds.

    ``parked`` are those of what waits there.
    """
    if machine.shares:
        work = {**work, "vae": work["vae"] + frames}
    return room_left(placement, subject, work, machine.device_room) >= 0 and host_fits(
        placement, subject, machine, frames, parked
    )


def host_fits(placement: Placement, subject: Subject, machine: Machine, frames: int, parked: int = 0) -> bool:
    """Whether the host holds what passes through it on the way to another device, and what waits or swaps there."""
    if machine.shares:
        return True
    if any(subject.weights[part].swaps for part in placement.streamed):
        # The rule of Weights.swapped_from leaves much more than frames take.
        return parked <= (1 - SHARE_OF_MEMORY) * machine.host_room
    largest = max(each.largest for each in subject.weights.values())
    return AHEAD_BYTES + max(largest, frames + parked) <= machine.host_room


def _why(
    placement: Placement,
    subject: Subject,
    request: GenerateRequest,
    work: Mapping[ComponentName, int],
    machine: Machine,
    usual: Portions,
    portions: Portions,
) -> str:
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
    halves: tuple[tuple[Half, Tiles | None, Tiles | None], ...] = (
        ("encode", usual.encode_tiles, portions.encode_tiles),
        ("decode", usual.decode_tiles, portions.decode_tiles),
    )
    for half, asked, tiles in halves:
        if tiles is None:
            continue
        single = half == "decode" and tiles.count(request.width, request.height) == 1
        what = f"{_at_once(request)} at a time do" if single else "one whole does"
        reason = f"{what} not fit {free}" if asked is None else "that was asked for"
        words.append(f"{in_portions(half, tiles, request.width, request.height)} because {reason}")
    if portions.parked:
        words.append("what tiles remember waits in the host's memory, for the device's does not hold it")
    if not words:
        fullest = max(subject.weights, key=lambda part: subject.weights[part].whole + work.get(part, 0))
        size = subject.weights[fullest].whole
        words.append(
            f"the fullest stage, the {WORDS[fullest]}'s {gib(size)} and {gib(work.get(fullest, 0))} of work, fits "
            f"{free}"
        )
    return "; ".join(words)
