"""Steps answered without the blocks: what they added last time is added again.

Between neighbouring steps the sum that a transformer's blocks add to its tokens changes little. A :class:`StepCache`
keeps the last one for each prompt and, when its policy allows, lets the network run without its blocks and puts the
kept sum in their place, before the head. The network itself knows nothing of it. Skipping is lossy: see docs/speed.md
for what each policy costs.

Legend: B prompts, L tokens, D width.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch.utils.hooks import RemovableHandle

from cygnet.errors import RequestError
from cygnet.models.dit.config import DiTConfig
from cygnet.models.dit.layers import timestep_embedding
from cygnet.models.dit.model import DiT
from cygnet.runtime.cache_policies import Calibration, EasyCache, Evaluation, MagCache, Policy, TeaCache
from cygnet.runtime.cache_tables import coefficients, magnitude_ratios
from cygnet.types import StepCaching

EASY_THRESHOLD = 0.05
MAG_THRESHOLD, MAG_MOST = 0.12, 2
FIRST_SHARE = 0.2
"""Of the steps that EasyCache and MagCache always compute, as published."""


class Network(Protocol):
    """The network with its inputs."""

    def __call__(self, *, without_blocks: bool) -> torch.Tensor:
        """Velocities ``[B, C, t, h, w]``, through its blocks and control branches or through neither."""
        ...


@dataclass
class StepCache:
    """One run's: decides before each evaluation, keeps what the blocks added, and counts."""

    policy: Policy
    total: int
    """Steps of the whole schedule."""
    offset: int = 0
    """Steps of the schedule that the run leaves out at its start."""
    always_first: int = 1
    most: int | None = None
    sigmas: tuple[float, float] = (1.0, 0.0)
    skipped: int = 0
    evaluations: int = 0
    _sums: torch.Tensor | None = None
    _rows: int = 1
    _in_a_row: int = 0
    _coming: Evaluation | None = None
    _skipping: bool = False

    def begin(
        self, dit: DiT, latents: torch.Tensor, timestep: torch.Tensor, step: int, *, rows: int, exact: bool = False
    ) -> None:
        """Decide about the evaluation of ``latents`` for ``rows`` prompts in step ``step`` of the run (0 is the first).

        ``exact`` has it computed whatever the policy says. The next :meth:`ask` is of this evaluation.
        """
        time = dit.time_embedding(timestep_embedding(timestep.reshape(1).to(dit.device), dit.config.freq_dim))
        self._coming = Evaluation(self.offset + step, self.total, latents, time)
        last = self.offset + step >= self.total - 1
        upper, lower = self.sigmas
        outside = not lower < float(timestep) / 1000 <= upper
        tired = self.most is not None and self._in_a_row >= self.most
        # A guided step may follow one that asked for the prompt alone: what its other prompt adds is not known then.
        unknown = self._sums is None or len(self._sums) < rows
        forced = exact or last or outside or tired or unknown or step < self.always_first
        self._skipping = self.policy.may_skip(self._coming, forced=forced) and not forced
        self._rows = rows
        self.evaluations += 1
        self.skipped += self._skipping
        self._in_a_row = self._in_a_row + 1 if self._skipping else 0

    def ask(self, dit: DiT, network: Network) -> torch.Tensor:
        """Velocities of the prompts, the positive one first, computed or answered from what is kept."""
        assert self._coming is not None
        if self._skipping:
            assert self._sums is not None
            with _in_place_of_blocks(dit, self._sums[: self._rows]):
                velocity = network(without_blocks=True)
            self.policy.answered(self._coming, velocity[:1], None)
            return velocity
        with _watched_blocks(dit) as sums:
            velocity = network(without_blocks=False)
        self._sums = sums[0]
        self.policy.answered(self._coming, velocity[:1], sums[0][:1])
        return velocity

    def tables(self) -> dict[str, list[float]]:
        """What a calibration measured; nothing for the other policies."""
        return self.policy.tables() if isinstance(self.policy, Calibration) else {}


def make_step_cache(
    config: DiTConfig, wish: StepCaching, *, num_steps: int, start_step: int = 0, pixels: int = 0
) -> StepCache:
    """The cache for one run of ``num_steps - start_step`` steps that make frames of ``pixels`` pixels.

    Raises :class:`~cygnet.errors.RequestError` where the policy needs a table, none was published for the
    architecture, and ``wish`` brings none.
    """
    share = FIRST_SHARE
    policy: Policy
    most = wish.most
    match wish.policy:
        case "easy":
            policy = EasyCache(_or(wish.threshold, EASY_THRESHOLD))
        case "mag":
            ratios = wish.table or magnitude_ratios(config, pixels)
            if ratios is None:
                raise _no_table("mag", "magnitude ratios")
            policy, most = MagCache(_or(wish.threshold, MAG_THRESHOLD), ratios), MAG_MOST if most is None else most
        case "tea":
            published = coefficients(config, pixels)
            table = wish.table or (published.polynomial if published else None)
            if table is None:
                raise _no_table("tea", "coefficients")
            if wish.threshold is None and published is None:
                raise RequestError(
                    "cache is 'tea', and this model has no published threshold; give one, such as tea:0.1",
                    field="cache",
                )
            policy = TeaCache(_or(wish.threshold, published.threshold if published else 0.0), table)
            share = 0.0
        case "calibrate":
            policy = Calibration()
    made = num_steps - start_step
    first = max(1, round(_or(wish.first, share) * made))
    return StepCache(policy, num_steps, start_step, first, most, wish.sigmas)


def _or(value: float | None, default: float) -> float:
    return default if value is None else value


def _no_table(policy: str, what: str) -> RequestError:
    return RequestError(
        f"cache is {policy!r}, and no {what} were published for this model; measure them with cache 'calibrate' and "
        "give what it found as cache_table (--cache-table RECEIPT.json), or use 'easy', which needs none",
        field="cache",
    )


@contextmanager
def _watched_blocks(dit: DiT) -> Iterator[list[torch.Tensor]]:
    """A list that holds, after the block, what the blocks added in the evaluation made in it: ``[B, L, D]``."""
    before: list[torch.Tensor] = []
    sums: list[torch.Tensor] = []

    def enter(_: torch.nn.Module, given: tuple[Any, ...]) -> None:
        before.append(given[0])

    def leave(_: torch.nn.Module, given: tuple[Any, ...]) -> None:
        sums.append(given[0] - before[0])

    with _hooked(dit.blocks[0], enter), _hooked(dit.head, leave):
        yield sums


@contextmanager
def _in_place_of_blocks(dit: DiT, sums: torch.Tensor) -> Iterator[None]:
    """Add ``sums [B, L, D]`` to what reaches the head."""

    def add(_: torch.nn.Module, given: tuple[Any, ...]) -> tuple[Any, ...]:
        return (given[0] + sums, *given[1:])

    with _hooked(dit.head, add):
        yield


@contextmanager
def _hooked(module: torch.nn.Module, hook: Any) -> Iterator[None]:
    mine = threading.get_ident()

    def ours(part: torch.nn.Module, given: tuple[Any, ...]) -> Any:
        return hook(part, given) if threading.get_ident() == mine else None  # others may use the network too

    handle: RemovableHandle = module.register_forward_pre_hook(ours)
    try:
        yield
    finally:
        handle.remove()
