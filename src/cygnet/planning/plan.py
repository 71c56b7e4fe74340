"""From a request to its plan: what each stage takes by the placement that is chosen, and what would fit instead.

The same decision is made by :func:`decide` before every run, so a plan says what a run does.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import Any

from cygnet.errors import OutOfMemory
from cygnet.pipelines.record import Half
from cygnet.pipelines.request import GenerateRequest
from cygnet.pipelines.sizes import latent_frames_at_once, latent_grid
from cygnet.pipelines.tiles import Portions, in_portions, smaller
from cygnet.planning.assumptions import assumptions
from cygnet.planning.costs import Stage, stage_costs
from cygnet.planning.decision import Decision, decide, fullest_stage, host_fits
from cygnet.planning.machine import DEVICE_BASE, Machine
from cygnet.planning.nearest import nearest
from cygnet.planning.needs import frame_bytes, needs_of
from cygnet.planning.subject import Subject
from cygnet.planning.words import advice, gib, shape, ways_to_less
from cygnet.runtime.eight_bit import WeightDtype
from cygnet.runtime.execution import check_fp8_streams
from cygnet.runtime.plan import Offload, Placement
from cygnet.types import ComponentName, Tiles

BYTES_PER_PIXEL = 0.03
"""Of a finished file, roughly; it depends on what is to be seen."""
SHARE_AFTER_FAILURE = 0.8
"""Of what the stage of a request takes that failed, what that of the next one may take."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What a request will take. Sizes are bytes."""

    model: str | None
    variant: str
    request: GenerateRequest
    machine: Machine
    placement: Placement
    portions: Portions
    """How much the VAE works on at a time."""
    weight_dtype: WeightDtype
    """What the matrices of the transformer's blocks are rounded to; "auto" for none."""
    why: str
    stages: tuple[Stage, ...]
    files: int
    """Read from disk: the weights, once."""
    output: int
    """Written to disk; as much is taken by the hidden file that becomes the result."""
    present: bool
    """Whether the weights are on this machine."""
    fits: bool
    host_fits: bool = True
    """Of a device with memory of its own: whether the host holds what passes through it."""
    nearest: GenerateRequest | None = None
    """Of a request that does not fit: the nearest that does; None if none does."""
    ways: tuple[str, ...] = ()
    """Of one that does not fit: with what else it might, in words."""
    ways_to_the_same: tuple[str, ...] = ()
    """Those of them that change nothing of the result."""
    assumes: tuple[str, ...] = ()
    """What the run will do otherwise than it is counted here, in words."""

    @property
    def device_peak(self) -> int:
        """The most that any stage takes of the device."""
        return max(stage.device_peak for stage in self.stages)

    @property
    def host_peak(self) -> int:
        """The most that any stage takes of the host."""
        return max(stage.host_peak for stage in self.stages)

    @property
    def decode_chunk(self) -> int:
        """Latent frames that are decoded at a time: by the size alone, but one in tiles, also where one tile is all."""
        if self.portions.decode_tiles is not None:
            return 1
        return latent_frames_at_once(*latent_grid(1, self.request.width, self.request.height)[1:])

    def held(self) -> str:
        """In words, where weights are, what they are rounded to, and in what tiles the VAE works."""
        halves: tuple[tuple[Half, Tiles | None], ...] = (
            ("encode", self.portions.encode_tiles),
            ("decode", self.portions.decode_tiles),
        )
        size = self.request.width, self.request.height
        told = [in_portions(half, tiles, *size) for half, tiles in halves if tiles is not None]
        rounded = (
            [] if self.weight_dtype == "auto" else [f"the transformer's matrices are rounded to {self.weight_dtype}"]
        )
        return "; ".join([self.placement.describe(), *rounded, *told])

    @property
    def seconds(self) -> float | None:
        """Of all stages together."""
        known = [stage.seconds for stage in self.stages if stage.seconds is not None]
        return sum(known) if len(known) == len(self.stages) else None

    @property
    def calibrated(self) -> bool:
        """Whether the times come from a measurement of this machine."""
        return self.machine.rates is not None and self.machine.rates.measured

    def refusal(self, *, same: bool = False) -> str:
        """Why the request is not begun, and what could be; with ``same`` only what gives the same video."""
        machine, instead = self.machine, advice(self.nearest, self.ways)
        if same:
            instead = advice(None, self.ways_to_the_same, same=True)
        if not self.host_fits:
            take = self.host_peak - (0 if machine.host_stated else machine.host_base)
            return (
                f"{shape(self.request)} need {gib(take)} of the host's memory, through which the weights pass to the "
                f"device, and {gib(machine.host_free)} are free; {instead}"
            )
        where = "memory" if machine.shares else "the device's memory"
        # What is free was measured in a process that has taken its own share, or was stated for one that has not.
        base = 0 if machine.device_stated else machine.host_base if machine.shares else DEVICE_BASE
        take = (self.host_peak if machine.shares else self.device_peak) - base
        return (
            f"{shape(self.request)} need {gib(take)} of {where} even with {self.held()}, and "
            f"{gib(machine.device_free)} are free; {instead}"
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
            "ways": list(self.ways),
            "assumes": list(self.assumes),
            "placement": {
                "resident": self.placement.resident,
                "eight_bit": sorted(self.placement.eight_bit),
                "streamed": sorted(self.placement.streamed),
                "decode_chunk": self.decode_chunk,
                "decode_tiles": self._tiles(self.portions.decode_tiles),
                "encode_tiles": self._tiles(self.portions.encode_tiles),
                "weight_dtype": self.weight_dtype,
                "description": self.held(),
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

    def _tiles(self, tiles: Tiles | None) -> dict[str, Any] | None:
        if tiles is None:
            return None
        return {"size": str(tiles), "count": tiles.count(self.request.width, self.request.height)}


def plan(subject: Subject, request: GenerateRequest, machine: Machine, offload: Offload = True) -> Plan:
    """What the request will take on the machine. Of one that does not fit, also the nearest that does."""
    subject = on_machine(subject, machine)
    check_fp8_streams(subject.execution, offload, subject.weights)
    decision = decide(subject, request, machine, offload, exact=True)
    assert decision.needs is not None
    pixels = request.width * request.height * request.num_frames
    placement, parked = decision.placement, decision.needs.parked()
    passes = host_fits(placement, subject, machine, frame_bytes(request), parked)
    fullest, _ = fullest_stage(placement, subject, decision.needs.work())
    open_ways = not decision.fits and passes
    return Plan(
        model=subject.name,
        variant=subject.variant,
        request=request,
        machine=machine,
        placement=placement,
        portions=decision.portions,
        weight_dtype=subject.execution.weight_dtype,
        why=decision.why,
        stages=tuple(stage_costs(subject, request, machine, decision, decision.needs)),
        files=sum(subject.files.values()),
        output=round(pixels * BYTES_PER_PIXEL) + 20_000,
        present=subject.present,
        fits=decision.fits,
        host_fits=passes,
        nearest=None if decision.fits else nearest(subject, request, machine, offload),
        assumes=tuple(assumptions(subject, request, machine)),
        ways=tuple(ways_to_less(subject, placement, fullest)) if open_ways else (),
        ways_to_the_same=tuple(ways_to_less(subject, placement, fullest, same=True)) if open_ways else (),
    )


def on_machine(subject: Subject, machine: Machine) -> Subject:
    """The subject with weights that can be swapped between a device and a machine that holds them."""
    if machine.shares:
        return subject
    weights = {part: each.swapped_from(machine.host_room) for part, each in subject.weights.items()}
    return replace(subject, weights=weights)


def refuse_what_cannot_fit(
    subject: Subject, request: GenerateRequest, machine: Machine, offload: Offload, *, same: bool = False
) -> Decision:
    """The decision for a run; raises :class:`~cygnet.errors.OutOfMemory`, with the nearest request that fits.

    With ``same`` no other request will do.
    """
    decision = decide(subject, request, machine, offload)
    if not decision.fits:
        refusal = plan(subject, request, machine, offload).refusal(same=same)
        raise OutOfMemory(f"not begun, for want of memory: {refusal}")
    return decision


def after_failure(
    subject: Subject,
    request: GenerateRequest,
    machine: Machine,
    offload: Offload,
    *,
    placement: Placement,
    part: ComponentName | None,
    half: Half = "decode",
    tried: Tiles | None = None,
    same: bool = False,
) -> str:
    """What to ask for after memory ran out although the plan did not see it.

    It fits by plan, and takes clearly less than the request in the stage that failed: that of ``part``, with weights
    held by ``placement``; the fullest stage if ``part`` is None. Of the VAE that is the ``half`` that was at work, in
    the tiles that were ``tried`` last, if any. With ``same`` no other request will do.
    """
    portions = decide(subject, request, machine, offload, exact=True).portions
    work = needs_of(subject, request, portions).work()
    fullest, _ = fullest_stage(placement, subject, work)
    failed = part if part is not None else fullest
    ways = ways_to_less(subject, placement, failed, same=same, failed=True)
    if same:
        return advice(None, ways, same=True)
    if failed == "vae" and (tiles := smaller(tried, request.width, request.height)) is not None:
        ways.append(f"add --{half}-tiles {tiles}")
    taken = {each: placement.bytes(each, weights) for each, weights in subject.weights.items()}
    weights = sum(taken.values()) if placement.resident else taken[failed]
    # Where weights are most of it, less of the request can only mean less of the work.
    less = max(round(SHARE_AFTER_FAILURE * (weights + work[failed])) - weights, work[failed] // 2)

    def clearly_less(other: GenerateRequest) -> bool:
        return needs_of(subject, other, portions).work()[failed] <= less

    return advice(nearest(subject, request, machine, offload, also=clearly_less), ways)
