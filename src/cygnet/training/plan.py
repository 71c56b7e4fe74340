"""How much memory and time a training will take, before any of it is done: no weight is read.

The step itself is gone through over shapes (:mod:`cygnet.training.rehearsal`); machines, their limits and rates, and
the words are those of :mod:`cygnet.planning`, as for a video.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from cygnet.api import USUAL_PROMPT
from cygnet.errors import RequestError
from cygnet.pipelines.sizes import latent_grid, num_tokens
from cygnet.planning import Machine, stages, subject_of_loaded
from cygnet.planning.machine import DEVICE_BASE
from cygnet.planning.needs import SLACK
from cygnet.planning.words import gib
from cygnet.training.config import TrainConfig
from cygnet.training.networks import DTYPES, architecture
from cygnet.training.preflight import checked
from cygnet.training.rehearsal import rehearse

COMPILER = 55 * 2**20
"""What torch's compiler takes on the host; its optimisers load it, whether anything is compiled or not."""
PIECES_KEPT = 0.25
"""Of the small tensors that are there at the peak or that a block makes in a step, what the C library's allocator keeps
besides, in pieces that nothing fits.

Set from runs on glibc 2.36, whose aligned allocations find no room where one of their size was freed; see
docs/training.md.
"""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Bytes by what they hold, and seconds per step."""

    memory: dict[str, int]
    """Of the device; on the CPU of the process."""
    host: int
    """Bytes of the host beside a device of its own; on the CPU the same as :attr:`total`."""
    machine: Machine
    trained: int
    tokens: int
    steps: int
    flops: float
    """Of one step."""
    step_seconds: float | None
    """None where the device is not here."""
    advice: str

    @property
    def total(self) -> int:
        """Bytes of the device in all."""
        return sum(self.memory.values())

    @property
    def fits(self) -> bool:
        """Whether device and host hold it, beside what this process has taken of them already."""
        machine = self.machine
        if machine.shares:
            return self.total - machine.host_base <= machine.device_room
        return self.total - DEVICE_BASE <= machine.device_room and self.host - machine.host_base <= machine.host_room

    def refusal(self) -> str:
        """Why it does not fit, and what could be changed."""
        machine = self.machine
        where = "memory" if machine.shares else "the device's memory"
        told = f"{gib(self.total)} of {where} are needed and {gib(machine.device_free)} are free"
        if not machine.shares:
            told += f"; {gib(self.host)} of the host's, of which {gib(machine.host_free)} are free"
        return f"{told}; {self.advice}"

    def to_json(self) -> dict[str, Any]:
        """As plain values for ``json.dumps``."""
        machine = self.machine
        fields = {name: value for name, value in asdict(self).items() if name != "machine"}
        return {
            **fields,
            "total": self.total,
            "fits": self.fits,
            "device": str(machine.device),
            "bytes": {
                "device_free": machine.device_free,
                "host_free": machine.host_free,
                "host_limit": machine.host_limit,
            },
            "calibration": None if machine.rates is None else machine.rates.date,
        }


def plan_for(config: TrainConfig) -> Plan:
    """Predict a run; refuses what the run would, but for clips that are not there yet. No plan for the autoencoder."""
    if config.method == "vae":
        raise RequestError("there is no plan for method vae; its memory is that of a crop", field="method")
    model = checked(config, runs=False)
    subject, machine = subject_of_loaded(model), Machine.of(config.device)
    width, height = max(config.data.shapes, key=lambda size: size[0] * size[1])
    frames = max(config.data.frames)
    eye = subject.image_encoder
    seen = rehearse(
        config,
        architecture(config, subject.dit),
        latent_grid(frames, width, height),
        text_rows=subject.tokens(USUAL_PROMPT),
        image_rows=0 if eye is None else eye.num_tokens,
    )
    process = machine.host_base + COMPILER
    memory = {
        "the process" if machine.shares else "CUDA itself": process if machine.shares else DEVICE_BASE,
        "frozen weights": seen.frozen,
        "swapped weights at home": seen.swapped if machine.shares else 0,
        "trained weights and their averages": seen.learning,
        "activations and gradients": seen.demand.cost.peak,
        "pieces that the allocator keeps": round(
            PIECES_KEPT * (seen.churn + seen.small * seen.demand.cost.peak)
            if machine.shares
            else (SLACK - 1) * seen.demand.cost.peak
        ),
    }
    total = sum(memory.values())
    dtype, rates = DTYPES[config.memory.dtype], machine.rates
    return Plan(
        memory={name: size for name, size in memory.items() if size},
        host=total if machine.shares else process + seen.swapped,
        machine=machine,
        trained=seen.trained,
        tokens=num_tokens(frames, width, height),
        steps=config.steps,
        flops=sum(each.flops for each in seen.demand.work),
        step_seconds=None if rates is None else stages.seconds(seen.demand, rates, dtype) * rates.whole("dit", dtype),
        advice=_advice(config),
    )


def _advice(config: TrainConfig) -> str:
    if config.accumulate < config.batch:
        return "raise accumulate, or lower batch"
    if config.memory.checkpointing != "full":
        return 'set memory.checkpointing to "full"'
    if config.method == "lora" and config.memory.base == "as_dtype":
        return 'set memory.base to "fp8", or memory.block_swap'
    return "train on smaller or shorter clips"
