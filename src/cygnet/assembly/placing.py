"""The networks of one model, each built where and how a placement holds it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property, partial

import torch

from cygnet.assembly.build import build, build_vae, executed
from cygnet.assembly.eight_bit import in_eight_bits
from cygnet.assembly.kinds import KINDS, STACKS
from cygnet.assembly.memory import weights_taken
from cygnet.checkpoints import ComponentWeights, materialise, without_weights
from cygnet.models.dit.model import DiT
from cygnet.runtime.block_swap import BlockSwap
from cygnet.runtime.execution import Execution, check_fp8_streams
from cygnet.runtime.memory import free_memory
from cygnet.runtime.plan import Offload, Placement, Weights, choose
from cygnet.runtime.products import use_onednn
from cygnet.runtime.residency import Placed, Resident, Stage, StageResidency, loaded
from cygnet.runtime.streaming import MatrixStream, streamed_names
from cygnet.types import ComponentName, Progress, ProgressSink, Residency


@dataclass(frozen=True, kw_only=True)
class Networks:
    """A model's networks as their headers have them, and what each is to be built with."""

    weights: Mapping[ComponentName, ComponentWeights]
    dtypes: Mapping[ComponentName, torch.dtype]
    decode_dtype: torch.dtype
    """Of the VAE's decoding half."""
    device: torch.device
    execution: Execution

    @cached_property
    def taken(self) -> Mapping[ComponentName, Weights]:
        """What each takes on the device, by how it is held."""
        taken = {
            part: weights_taken(it, self.dtypes[part], self.decode_dtype, self.execution)
            for part, it in self.weights.items()
        }
        if self.device.type == "cuda":
            host = free_memory(torch.device("cpu"))
            taken = {part: it.swapped_from(host) for part, it in taken.items()}
        return taken

    def placed(self, offload: Offload, on_progress: ProgressSink) -> Placed:
        """The networks in the fastest placement that fits the free memory; those that stay resident are read now.

        Where memory runs out in that, none stays; with ``offload`` False :class:`~cygnet.errors.OutOfMemory` is raised.
        """
        check_fp8_streams(self.execution, offload, self.taken)
        placement = choose(self.taken, free_memory(self.device), offload)
        residency = Placed(placement, self.taken, partial(self._hold, on_progress=on_progress))
        residency.prepare(fixed=offload is False)
        return residency

    def _hold(self, placement: Placement, *, on_progress: ProgressSink) -> Residency:
        if placement.resident:
            return self._all_resident(placement, on_progress)
        return StageResidency({part: self._stage(part, placement) for part in self.weights})

    def _all_resident(self, placement: Placement, on_progress: ProgressSink) -> Resident:
        modules: dict[ComponentName, torch.nn.Module] = {}
        for part in self.weights:
            on_progress(Progress(phase="load", step=len(modules), total=len(self.weights), message=part))
            modules[part] = self._build(part, placement)
        on_progress(Progress(phase="load", step=len(modules), total=len(self.weights)))
        return Resident(modules)

    def _stage(self, part: ComponentName, placement: Placement) -> Stage:
        if part in placement.streamed:
            return self._streamed(part)
        return loaded(partial(self._build, part, placement))

    def _build(self, part: ComponentName, placement: Placement) -> torch.nn.Module:
        weights, dtype = self.weights[part], self.dtypes[part]
        if part == "vae":
            return build_vae(weights, dtype, self.decode_dtype, self.device, self.execution)
        module: torch.nn.Module = build(
            KINDS[part],
            weights,
            dtype,
            self.device,
            eight_bit=part in placement.eight_bit,
            execution=self.execution if part == "dit" else None,
        )
        return module

    def _streamed(self, part: ComponentName) -> Stage:
        """Its blocks come in as they run: from the machine's memory if that holds them, else from the file."""
        weights, dtype, device = self.weights[part], self.dtypes[part], self.device
        bringers: list[MatrixStream | BlockSwap] = []

        def bring() -> torch.nn.Module:
            if self.taken[part].swaps:
                execution = self.execution if part == "dit" else None
                module: torch.nn.Module = build(KINDS[part], weights, dtype, "cpu", execution=execution, runs_on=device)
                bringers.append(BlockSwap(module, STACKS, device))
                return module
            # LoRAs are merged into each matrix as it comes, as they are into a resident network; and it is rounded as
            # there, which here saves nothing but gives the same video.
            plan = in_eight_bits(
                weights, stored=False, weight_dtype=self.execution.weight_dtype if part == "dit" else "auto"
            )
            with without_weights():
                module = KINDS[part](weights.config)
            materialise(module, plan.weights, dtype=dtype, device=device, leave=streamed_names(module, STACKS))
            if isinstance(module, DiT):
                executed(module, device, self.execution)
            use_onednn(module)
            branches, fetch = plan.branches.read(dtype, device), partial(plan.widened, dtype=dtype)
            bringers.append(MatrixStream(module, STACKS, fetch, device=device))
            # As in a network that is whole: hooks would keep its blocks from being compiled, and so change rounding.
            branches.install(module)
            return module.eval().requires_grad_(False)

        def send_away(_: torch.nn.Module) -> None:
            bringers.pop().close()

        return Stage(bring, send_away, in_turns=True)
