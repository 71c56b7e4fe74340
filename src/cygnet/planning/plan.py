"""From a request to its plan: what each stage takes by the placement that is chosen, and what would fit instead.

The same decision is made by :func:`decide` before every run, so a plan says what a run does.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch

from cygnet.errors import OutOfMemory
from cygnet.pipelines.denoise import Guidance
from cygnet.pipelines.request import GenerateRequest
from cygnet.pipelines.sizes import (
    FRAME_STRIDE,
    SIZE_MULTIPLE,
    fewer_at_once,
    latent_frames_at_once,
    latent_grid,
    num_tokens,
)
from cygnet.planning import stages
from cygnet.planning.machine import Machine
from cygnet.planning.stages import Demand
from cygnet.planning.subject import Subject
from cygnet.runtime import flops
from cygnet.runtime.calibration import Rates
from cygnet.runtime.plan import MARGIN, WORDS, Offload, Placement, choose
from cygnet.runtime.streaming import AHEAD_BYTES
from cygnet.solvers import start_step_for_strength
from cygnet.types import ComponentName, Phase

HOST_BASE = 375 * 2**20
"""What a process takes with torch, cygnet and the video encoder, and pieces of memory that its allocator keeps.

Measured on Linux with torch for CPUs: 320 MiB, and 0 to 110 of the latter.
"""
HOST_BASE_CUDA = 1536 * 2**20
"""The same with CUDA's libraries; an estimate."""
DEVICE_BASE = 512 * 2**20
"""What CUDA itself takes on a device; an estimate."""
SLACK = 1.1
"""What allocators lose: blocks that are free and too small for what is needed next."""
BYTES_PER_PIXEL = 0.03
"""Of a finished file, roughly; it depends on what is to be seen."""
SHARE_AFTER_FAILURE = 0.8
"""Of what a request takes that failed, what the next one may take."""
ENCODER_FRAMES = 60
"""Frames that the video encoder looks ahead over and holds."""


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


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What a request will take. Sizes are bytes."""

    model: str | None
    variant: str
    request: GenerateRequest
    machine: Machine
    placement: Placement
    decode_chunk: int
    """Latent frames that are decoded at a time."""
    why: str
    stages: tuple[Stage, ...]
    files: int
    """Read from disk: the weights, once."""
    output: int
    """Written to disk; as much is taken by the hidden file that becomes the result."""
    present: bool
    """Whether the weights are on this machine."""
    fits: bool
    nearest: GenerateRequest | None = None
    """Of a request that does not fit: the nearest that does; None if none does."""

    @property
    def device_peak(self) -> int:
        """The most that any stage takes of the device."""
        return max(stage.device_peak for stage in self.stages)

    @property
    def host_peak(self) -> int:
        """The most that any stage takes of the host."""
        return max(stage.host_peak for stage in self.stages)

    @property
    def seconds(self) -> float | None:
        """Of all stages together."""
        known = [stage.seconds for stage in self.stages if stage.seconds is not None]
        return sum(known) if len(known) == len(self.stages) else None

    @property
    def calibrated(self) -> bool:
        """Whether the times come from a measurement of this machine."""
        return self.machine.rates is not None and self.machine.rates.measured

    def refusal(self) -> str:
        """Why the request is not begun, and what could be."""
        where = "memory" if self.machine.shares else "the device's memory"
        take = self.host_peak - HOST_BASE if self.machine.shares else self.device_peak
        return (
            f"{shape(self.request)} need {gib(take)} of {where} even with {self.placement.describe()}, and "
            f"{gib(self.machine.device_free)} are free; {advice(self.nearest)}"
        )

    def to_json(self) -> dict[str, Any]:
        """As plain values for ``json.dumps``."""
        machine = self.machine
        return {
            "model": self.model,
            "variant": self.variant,
            "weights_present": self.present,
            "fits": self.fits,
            "request": self.request.model_dump(mode="json"),
            "nearest": None if self.nearest is None else self.nearest.model_dump(mode="json"),
            "placement": {
                "resident": self.placement.resident,
                "eight_bit": sorted(self.placement.eight_bit),
                "streamed": sorted(self.placement.streamed),
                "decode_chunk": self.decode_chunk,
                "description": self.placement.describe(),
                "why": self.why,
            },
            "device": str(machine.device),
            "bytes": {
                "device_peak": self.device_peak,
                "device_free": machine.device_free,
                "host_peak": self.host_peak,
                "host_free": machine.host_free,
                "host_limit": machine.host_limit,
                "weights_read": self.files,
                "output": self.output,
                "temporary": self.output,
            },
            "seconds": self.seconds,
            "calibrated": self.calibrated,
            "calibration": None if machine.rates is None else machine.rates.date,
            "stages": [asdict(stage) for stage in self.stages],
        }


def shape(request: GenerateRequest) -> str:
    """In words: 81 frames of 832x480."""
    frames = "1 frame" if request.num_frames == 1 else f"{request.num_frames} frames"
    return f"{frames} of {request.width}x{request.height}"


def gib(size: float) -> str:
    """Bytes in words, in the unit that memory is sold in."""
    return f"{size / 2**30:.1f} GiB" if size >= 0.95 * 2**30 else f"{size / 2**20:.0f} MiB"


def advice(nearest: GenerateRequest | None) -> str:
    """What to ask for instead."""
    if nearest is None:
        return "no request of this model fits: take a smaller model, or weights stored in 8 bits"
    return f"{shape(nearest)} {'fits' if nearest.num_frames == 1 else 'fit'}"


# What the stages take ------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Needs:
    """The demands of a request's stages, and of each network the most that it takes beside weights."""

    demands: Mapping[Phase, tuple[tuple[ComponentName, Demand], ...]]
    chunk: int
    held: int
    """Bytes of the network that stays from one stage to a later one."""

    def work(self) -> dict[ComponentName, int]:
        """Of each network the most beside its own weights, allocators' losses counted."""
        most: dict[ComponentName, int] = {}
        for several in self.demands.values():
            for part, demand in several:
                more = self.held if part == "dit" else 0
                most[part] = max(most.get(part, 0), round(SLACK * demand.cost.peak) + more)
        return most


def _needs(subject: Subject, request: GenerateRequest, chunk: int) -> Needs:
    """Traces of all stages."""
    grid = latent_grid(request.num_frames, request.width, request.height)
    dtypes, eye = subject.dtypes, subject.image_encoder
    texts = (subject.tokens(request.prompt), subject.tokens(request.negative_prompt))
    steps = _steps(request)
    text = stages.encode_text(subject.text_encoder, dtypes["text_encoder"], texts[0])
    if steps[0]:
        text = text.and_then(stages.encode_text(subject.text_encoder, dtypes["text_encoder"], texts[1]))
    demands: dict[Phase, tuple[tuple[ComponentName, Demand], ...]] = {"text": (("text_encoder", text),)}
    rows, held = 0, 0
    if eye is not None:
        pictures = 2 if subject.dit.variant == "flf2v" else 1
        rows = eye.num_tokens * pictures
        demands["image"] = (
            ("image_encoder", stages.look_at_pictures(eye, dtypes["image_encoder"], pictures)),
            ("vae", stages.encode(subject.vae, dtypes["vae"], grid, grey=True, last=pictures == 2)),
        )
    if request.strength < 1:
        demands["encode"] = (("vae", stages.encode(subject.vae, dtypes["vae"], grid, grey=False)),)
    if eye is not None or request.strength < 1:
        held = subject.weights["vae"].whole
    demands["denoise"] = (
        (
            "dit",
            stages.denoise_latents(
                subject.dit,
                dtypes["dit"],
                grid,
                texts=texts,
                image_rows=rows,
                solver=request.solver,
                steps=steps,
            ),
        ),
    )
    demands["decode"] = (("vae", stages.decode(subject.vae, subject.decode_dtype, grid, chunk)),)
    return Needs(demands=demands, chunk=chunk, held=held)


def _bounds(subject: Subject, request: GenerateRequest, chunk: int) -> dict[ComponentName, int]:
    """More than each network can take beside its weights, without a trace: for requests that fit many times over."""
    tokens = num_tokens(request.num_frames, request.width, request.height)
    dit, text, base = subject.dit, subject.text_encoder, subject.vae.base_width
    pixels = request.width * request.height * max(FRAME_STRIDE * chunk, FRAME_STRIDE)
    work: dict[ComponentName, int] = {
        "text_encoder": 4 * dit.text_length * (8 * text.dim + 4 * text.ffn_dim + text.num_heads * dit.text_length),
        "dit": 2 * tokens * 4 * (24 * dit.dim + 4 * dit.ffn_dim) + 2**27,
        "vae": pixels * 4 * 20 * base + 2**26,
    }
    if (eye := subject.image_encoder) is not None:
        work["image_encoder"] = 4 * eye.num_tokens * (12 * eye.dim + 4 * eye.mlp_dim)
    return work


def _steps(request: GenerateRequest) -> tuple[int, int]:
    """Steps that are guided, and that are not."""
    made = request.num_steps - start_step_for_strength(request.strength, request.num_steps)
    guided = Guidance(scale=request.guidance_scale, until=request.guidance_until).guided_steps(made)
    return guided, made - guided


# Deciding ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Decision:
    """Where weights will be, how many latent frames are decoded at a time, and whether that fits."""

    placement: Placement
    decode_chunk: int
    why: str
    fits: bool
    needs: Needs | None = None
    """What it was decided by; None where bounds were enough."""


def decide(
    subject: Subject, request: GenerateRequest, machine: Machine, offload: Offload = True, *, exact: bool = False
) -> Decision:
    """The placement of a request. Unless ``exact``, nothing is traced where the request plainly fits."""
    free, weights = machine.device_free, subject.weights
    grid = latent_grid(request.num_frames, request.width, request.height)
    usual = latent_frames_at_once(*grid[1:])
    if not exact:
        bounds = _bounds(subject, request, usual)
        placement = choose(weights, free, offload, bounds)
        # What is whole even by these bounds, and resident unless that was ruled out, is so by any measure.
        best = not placement.eight_bit and not placement.streamed and placement.resident == (not offload)
        if best and _room(placement, subject, bounds, free) >= 0:
            return Decision(placement=placement, decode_chunk=usual, why="it fits", fits=True)
    needs = _needs(subject, request, usual)
    while needs.work()["vae"] + weights["vae"].whole > MARGIN * free and needs.chunk > 1:
        fewer = fewer_at_once(needs.chunk)
        less = stages.decode(subject.vae, subject.decode_dtype, grid, fewer)
        needs = replace(needs, chunk=fewer, demands={**needs.demands, "decode": (("vae", less),)})
    work = needs.work()
    placement = choose(weights, free, offload, work)
    return Decision(
        placement=placement,
        decode_chunk=needs.chunk,
        why=_why(placement, subject, work, machine, usual, needs.chunk),
        fits=_room(placement, subject, work, free) >= 0 and _host_fits(placement, subject, machine),
        needs=needs,
    )


def _room(placement: Placement, subject: Subject, work: Mapping[ComponentName, int], free: int) -> int:
    """Bytes left in the fullest stage; negative if it does not fit."""
    taken = {part: placement.bytes(part, each) for part, each in subject.weights.items()}
    if placement.resident:
        return free - sum(taken.values()) - max(work.values())
    return free - max(taken[part] + work.get(part, 0) for part in taken)


def _host_fits(placement: Placement, subject: Subject, machine: Machine) -> bool:
    """Whether the host holds what passes through it on the way to another device, and what is swapped from it."""
    if machine.shares:
        return True
    return (
        any(subject.weights[part].swaps for part in placement.streamed)
        or AHEAD_BYTES + max(each.largest for each in subject.weights.values()) <= machine.host_free
    )


def _why(
    placement: Placement,
    subject: Subject,
    work: Mapping[ComponentName, int],
    machine: Machine,
    usual: int,
    chunk: int,
) -> str:
    free = gib(machine.device_free)
    words: list[str] = []
    for part in sorted(placement.eight_bit | placement.streamed):
        weights, size = subject.weights[part], work.get(part, 0)
        if weights.whole + size > MARGIN * machine.device_free:
            words.append(
                f"the {WORDS[part]}'s {gib(weights.whole)} and {gib(size)} of work do not fit {free} with room to spare"
            )
        else:
            words.append(f"the {WORDS[part]} is streamed because that was asked for")
    if chunk != usual:
        words.append(f"{chunk} latent frames are decoded at a time, not {usual}, to fit {free}")
    if not words:
        fullest = max(subject.weights, key=lambda part: subject.weights[part].whole + work.get(part, 0))
        size = subject.weights[fullest].whole
        words.append(
            f"the fullest stage, the {WORDS[fullest]}'s {gib(size)} and {gib(work.get(fullest, 0))} of work, fits "
            f"{free}"
        )
    return "; ".join(words)


# The plan ------------------------------------------------------------------------------------------------------------


def plan(subject: Subject, request: GenerateRequest, machine: Machine, offload: Offload = True) -> Plan:
    """What the request will take on the machine. Of one that does not fit, also the nearest that does."""
    subject = on_machine(subject, machine)
    decision = decide(subject, request, machine, offload, exact=True)
    assert decision.needs is not None
    pixels = request.width * request.height * request.num_frames
    return Plan(
        model=subject.name,
        variant=subject.variant,
        request=request,
        machine=machine,
        placement=decision.placement,
        decode_chunk=decision.decode_chunk,
        why=decision.why,
        stages=tuple(_stages(subject, request, machine, decision, decision.needs)),
        files=sum(subject.files.values()),
        output=round(pixels * BYTES_PER_PIXEL) + 20_000,
        present=subject.present,
        fits=decision.fits,
        nearest=None if decision.fits else nearest(subject, request, machine, offload),
    )


def on_machine(subject: Subject, machine: Machine) -> Subject:
    """The subject with weights that can be swapped between a device and a machine that holds them."""
    if machine.shares:
        return subject
    weights = {part: each.swapped_from(machine.host_free) for part, each in subject.weights.items()}
    return replace(subject, weights=weights)


def refuse_what_cannot_fit(subject: Subject, request: GenerateRequest, machine: Machine, offload: Offload) -> Decision:
    """The decision for a run; raises :class:`~cygnet.errors.OutOfMemory`, with the nearest request that fits."""
    decision = decide(subject, request, machine, offload)
    if not decision.fits:
        raise OutOfMemory(f"not begun, for want of memory: {plan(subject, request, machine, offload).refusal()}")
    return decision


def _stages(
    subject: Subject, request: GenerateRequest, machine: Machine, decision: Decision, needs: Needs
) -> Iterator[Stage]:
    placement, rates = decision.placement, machine.rates
    held = {part: _resident_bytes(placement, part, subject, machine) for part in subject.weights}
    base = HOST_BASE if machine.shares else HOST_BASE_CUDA
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
        frames = _frame_bytes(request) if phase == "decode" else 0
        yield Stage(
            phase=phase,
            device_peak=base + peak + frames if machine.shares else DEVICE_BASE + peak,
            host_peak=base + (peak if machine.shares else _host_share(subject, placement, several)) + frames,
            flops=work,
            seconds=None if rates is None else seconds,
        )
    pixels = request.width * request.height * request.num_frames
    yield Stage(
        phase="write",
        device_peak=0 if not machine.shares else base + _frame_bytes(request),
        host_peak=base + _frame_bytes(request),
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
    if swapped:
        return max(swapped)
    return AHEAD_BYTES + max(
        (subject.weights[part].largest for part, _ in several if part in placement.streamed), default=0
    )


def _frame_bytes(request: GenerateRequest) -> int:
    """What the encoder holds: frames of one and a half bytes a pixel, twice."""
    return round(3 * request.width * request.height * min(request.num_frames, ENCODER_FRAMES))


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
    if part in placement.streamed:
        read = subject.files[part] / rates.disk
        again = (demand.passes - 1) * rates.moving(subject.files[part] + weights.whole, 100)
        seconds = seconds + read + again if shares else max(seconds, read + again)
    elif part not in subject.converted and shares:
        seconds += (subject.files[part] - weights.gathered) / rates.disk  # mapped: read when it is first used
    return seconds


def after_failure(subject: Subject, request: GenerateRequest, machine: Machine, offload: Offload) -> str:
    """What to ask for after memory ran out although the plan did not see it: clearly less than the request takes."""
    decision = decide(subject, request, machine, offload, exact=True)
    assert decision.needs is not None
    taken = machine.device_free - _room(decision.placement, subject, decision.needs.work(), machine.device_free)
    less = min(machine.device_free, round(SHARE_AFTER_FAILURE * taken))
    return advice(nearest(subject, request, machine.with_more(less - machine.device_free), offload))


# What would fit ------------------------------------------------------------------------------------------------------


def nearest(
    subject: Subject, request: GenerateRequest, machine: Machine, offload: Offload = True
) -> GenerateRequest | None:
    """The request most like ``request`` that fits: fewer frames, else a smaller picture, else both; None if none is."""

    def fits(frames: int, width: int, height: int) -> bool:
        return decide(subject, _changed(request, frames, width, height), machine, offload).fits

    least = 5 if subject.dit.variant == "flf2v" else 1
    width, height = request.width, request.height

    def fewer(count: int) -> tuple[int, int, int]:
        return FRAME_STRIDE * count + 1, width, height

    def smaller(count: int) -> tuple[int, int, int]:
        return request.num_frames, *_scaled(width, height, count)

    def least_of_all(count: int) -> tuple[int, int, int]:
        return least, *_scaled(width, height, count)

    longest, largest = (request.num_frames - 1) // FRAME_STRIDE, min(width, height) // SIZE_MULTIPLE
    for change, low, high in (
        (fewer, max(least // FRAME_STRIDE, longest // 2), longest),  # less than half as long is another video
        (smaller, 1, largest),
        (least_of_all, 1, largest),
    ):
        found = _largest(lambda count, change=change: fits(*change(count)), low, high)  # type: ignore[misc]
        if found is not None:
            return _changed(request, *change(found))
    return None


def _changed(request: GenerateRequest, frames: int, width: int, height: int) -> GenerateRequest:
    return request.model_copy(update={"num_frames": frames, "width": width, "height": height})


def _scaled(width: int, height: int, cells: int) -> tuple[int, int]:
    """The same aspect with a shorter side of ``cells`` tokens."""
    scale = cells * SIZE_MULTIPLE / min(width, height)
    return tuple(max(round(side * scale / SIZE_MULTIPLE), 1) * SIZE_MULTIPLE for side in (width, height))  # type: ignore[return-value]


def _largest(holds: Callable[[int], bool], low: int, high: int) -> int | None:
    """The largest number from ``low`` to ``high`` of which ``holds`` is true, if it is of all below that one."""
    if low > high or not holds(low):
        return None
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if holds(middle) else (low, middle - 1)
    return low
