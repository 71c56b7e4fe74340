"""When a step may be answered from earlier ones: three published rules, and one that only measures.

A rule sees each evaluation of the network before it is made and says whether it may be skipped. What it has added up
since the last one that was computed is the error that it expects; a threshold bounds that.

Legend: ``x`` latents, ``v`` the velocity answered for the prompt, ``[1, C, t, h, w]``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

import torch


@dataclass(frozen=True)
class Evaluation:
    """One evaluation that is to be made: the ``number``-th of a schedule of ``total``, the first is 0."""

    number: int
    total: int
    latents: torch.Tensor
    time_embedding: torch.Tensor
    """What the network makes of the timestep, ``[1, D]``."""


class Policy(Protocol):
    """The rule of one run; holds its state, and is asked about every evaluation in turn."""

    def may_skip(self, coming: Evaluation, *, forced: bool) -> bool:
        """Whether the evaluation can do without the network; ``forced`` ones will be computed whatever is said."""
        ...

    def answered(self, coming: Evaluation, velocity: torch.Tensor, residual: torch.Tensor | None) -> None:
        """The evaluation's velocity; ``residual [1, L, D]`` is what the blocks added, None if it was skipped."""
        ...


@dataclass
class EasyCache:
    """The change of the answer expected from that of the latents, at the rate last seen: arXiv 2507.02860.

    The rate is ``|v - v'| / |x - x'|`` between the last two computed evaluations; the expected change of a coming one,
    beside the size of the last answer, is added up.
    """

    threshold: float
    rate: float | None = None
    expected: float = 0.0
    last: tuple[torch.Tensor, torch.Tensor] | None = None
    """Latents and velocity of the last evaluation, computed or not."""
    computed: tuple[torch.Tensor, torch.Tensor] | None = None

    def may_skip(self, coming: Evaluation, *, forced: bool) -> bool:
        """See :class:`Policy`."""
        if forced or self.rate is None or self.last is None:
            self.expected = 0.0
            return False
        x, v = self.last
        self.expected += self.rate * _size(coming.latents - x) / max(_size(v), 1e-12)
        if self.expected < self.threshold:
            return True
        self.expected = 0.0
        return False

    def answered(self, coming: Evaluation, velocity: torch.Tensor, residual: torch.Tensor | None) -> None:
        """See :class:`Policy`."""
        self.last = (coming.latents, velocity)
        if residual is None:
            return
        if self.computed is not None:
            x, v = self.computed
            moved = _size(coming.latents - x)
            self.rate = _size(velocity - v) / moved if moved > 0 else None
        self.computed = self.last


@dataclass
class MagCache:
    """The error expected from how much smaller the blocks' sum is at each step: arXiv 2506.09045.

    ``ratios`` hold one number per step of the schedule that they were measured with, from the second on.
    """

    threshold: float
    ratios: Sequence[float]
    ratio: float = 1.0
    expected: float = 0.0

    def may_skip(self, coming: Evaluation, *, forced: bool) -> bool:
        """See :class:`Policy`."""
        self.ratio *= nearest(self.ratios, coming.number, coming.total)
        self.expected += abs(1 - self.ratio)
        if not forced and self.expected < self.threshold:
            return True
        self.ratio, self.expected = 1.0, 0.0
        return False

    def answered(self, coming: Evaluation, velocity: torch.Tensor, residual: torch.Tensor | None) -> None:
        """Nothing: the ratios are known."""


def nearest(values: Sequence[float], number: int, total: int) -> float:
    """The value of step ``number`` of ``total`` in a list made for another number of steps."""
    if total <= 1:
        return values[-1]
    return values[round(number * (len(values) - 1) / (total - 1))]


@dataclass
class TeaCache:
    """The change of the answer from that of the time embedding, by a polynomial fitted to a model: arXiv 2411.19108."""

    threshold: float
    coefficients: Sequence[float]
    """Highest power first."""
    expected: float = 0.0
    before: torch.Tensor | None = None

    def may_skip(self, coming: Evaluation, *, forced: bool) -> bool:
        """See :class:`Policy`."""
        before, self.before = self.before, coming.time_embedding
        if before is not None:
            change = _size(coming.time_embedding - before) / max(_size(before), 1e-12)
            self.expected += polynomial(self.coefficients, change)
        if not forced and before is not None and self.expected < self.threshold:
            return True
        self.expected = 0.0
        return False

    def answered(self, coming: Evaluation, velocity: torch.Tensor, residual: torch.Tensor | None) -> None:
        """Nothing: only the timesteps count."""


def polynomial(coefficients: Sequence[float], x: float) -> float:
    """Its value at ``x``, highest power first."""
    value = 0.0
    for coefficient in coefficients:
        value = value * x + coefficient
    return value


@dataclass
class Calibration:
    """Skips nothing and measures what the tables of the others hold."""

    ratios: list[float] = field(default_factory=list)
    changes: list[tuple[float, float]] = field(default_factory=list)
    """Relative change of the time embedding, and of the velocity, from each evaluation to the next."""
    _before: tuple[torch.Tensor, torch.Tensor, torch.Tensor] | None = None

    def may_skip(self, coming: Evaluation, *, forced: bool) -> bool:
        """Never."""
        return False

    def answered(self, coming: Evaluation, velocity: torch.Tensor, residual: torch.Tensor | None) -> None:
        """See :class:`Policy`."""
        assert residual is not None
        if self._before is None:
            self.ratios.append(1.0)
        else:
            time, v, sums = self._before
            lengths = residual.float().norm(dim=-1) / sums.float().norm(dim=-1).clamp_min(1e-12)
            self.ratios.append(float(lengths.mean()))
            inputs = _size(coming.time_embedding - time) / max(_size(time), 1e-12)
            self.changes.append((inputs, _size(velocity - v) / max(_size(v), 1e-12)))
        self._before = (coming.time_embedding, velocity, residual)

    def tables(self) -> dict[str, list[float]]:
        """``mag`` and, from enough steps, ``tea``: what their options take."""
        tables = {"mag": [round(ratio, 5) for ratio in self.ratios]}
        if len(self.changes) > TEA_POWERS:
            tables["tea"] = fitted(self.changes)
        return tables


TEA_POWERS = 4


def fitted(changes: Sequence[tuple[float, float]]) -> list[float]:
    """The polynomial of degree 4, highest power first, that fits the pairs best."""
    x, y = (torch.tensor(column, dtype=torch.float64) for column in zip(*changes, strict=True))
    scale = float(x.max()) or 1.0  # powers of small numbers would be lost beside 1
    powers = torch.stack([(x / scale) ** power for power in range(TEA_POWERS, -1, -1)], dim=1)
    found = torch.linalg.lstsq(powers, y[:, None], driver="gelsd").solution[:, 0]
    return [float(value) / scale**power for value, power in zip(found, range(TEA_POWERS, -1, -1), strict=True)]


def _size(value: torch.Tensor) -> float:
    return float(value.float().abs().mean())
