"""Samplers as node graphs name them: functions over a denoiser, walking any list of noise levels.

They treat the latents as if noise were added without scaling the data down (variance exploding): the time is
``-ln sigma`` and the data's weight is always 1. For the straight path of flow matching Euler is the same in both views;
the others differ slightly from :mod:`cygnet.solvers.sample`, which follows the official code.

Legend: ``sigmas`` fall from at most 1 to 0; ``x_0`` is the denoiser's estimate of the data.
Sources: k-diffusion (arXiv 2206.00364), DPM-Solver++ (2211.01095), UniPC (2302.04867), ER-SDE (2309.06169),
res_multistep (2308.02157).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby, pairwise

import numpy as np
import torch

from cygnet.errors import RequestError
from cygnet.solvers.schedules import shift_sigma

Denoise = Callable[[torch.Tensor, float], torch.Tensor]
"""``denoise(x, sigma)``: the estimate of the data in ``x`` at noise level ``sigma``."""
OnStep = Callable[[int, torch.Tensor, torch.Tensor], None]
"""``on_step(step, x, x_0)`` before step ``step`` (from 0) is made; stops the run by raising."""

LEAST_SIGMA = 0.001
"""Where UniPC ends in place of 0, at which its time is infinite."""


@dataclass(frozen=True, kw_only=True)
class Walk:
    """One run's surroundings: the denoiser, fresh noise for samplers that add some, and who watches."""

    denoise: Denoise
    noise: Callable[[torch.Tensor], torch.Tensor]
    """Standard normal noise like its argument; only stochastic samplers ask for it."""
    on_step: OnStep = lambda step, x, x_0: None


Sampler = Callable[[Walk, torch.Tensor, Sequence[float]], torch.Tensor]


def euler(walk: Walk, x: torch.Tensor, sigmas: Sequence[float]) -> torch.Tensor:
    """One straight piece per step."""
    for i, (sigma, following) in enumerate(pairwise(sigmas)):
        x_0 = walk.denoise(x, sigma)
        walk.on_step(i, x, x_0)
        x = x + (x - x_0) * ((following - sigma) / sigma)
    return x


def heun(walk: Walk, x: torch.Tensor, sigmas: Sequence[float]) -> torch.Tensor:
    """Euler's slope averaged with the one at its end: two evaluations a step, but one in the last."""
    for i, (sigma, following) in enumerate(pairwise(sigmas)):
        x_0 = walk.denoise(x, sigma)
        walk.on_step(i, x, x_0)
        slope = (x - x_0) / sigma
        ahead = x + slope * (following - sigma)
        if following > 0:
            slope = (slope + (ahead - walk.denoise(ahead, following)) / following) / 2
            ahead = x + slope * (following - sigma)
        x = ahead
    return x


def euler_ancestral(walk: Walk, x: torch.Tensor, sigmas: Sequence[float]) -> torch.Tensor:
    """Euler to a lower level, then fresh noise up to the next; the form for straight paths."""
    for i, (sigma, following) in enumerate(pairwise(sigmas)):
        x_0 = walk.denoise(x, sigma)
        walk.on_step(i, x, x_0)
        if following == 0:
            return x_0
        down = following * (1 + (following / sigma - 1))
        x = (down / sigma) * x + (1 - down / sigma) * x_0
        kept, aimed = 1 - following, 1 - down
        added = math.sqrt(max(0.0, following**2 - down**2 * kept**2 / aimed**2))
        x = (kept / aimed) * x + added * walk.noise(x)
    return x


def lcm(walk: Walk, x: torch.Tensor, sigmas: Sequence[float]) -> torch.Tensor:
    """The estimate itself, noised again for the next step: for consistency models of a few steps."""
    for i, (sigma, following) in enumerate(pairwise(sigmas)):
        x_0 = walk.denoise(x, sigma)
        walk.on_step(i, x, x_0)
        x = x_0 if following == 0 else following * walk.noise(x) + (1 - following) * x_0
    return x


def dpmpp_2m(walk: Walk, x: torch.Tensor, sigmas: Sequence[float]) -> torch.Tensor:
    """Second order from the previous estimate."""
    previous: torch.Tensor | None = None
    for i, (sigma, following) in enumerate(pairwise(sigmas)):
        x_0 = walk.denoise(x, sigma)
        walk.on_step(i, x, x_0)
        if following == 0:
            return x_0
        step = math.log(sigma / following)
        target = x_0
        if previous is not None:
            ratio = math.log(sigmas[i - 1] / sigma) / step
            target = (1 + 0.5 / ratio) * x_0 - (0.5 / ratio) * previous
        x = (following / sigma) * x - math.expm1(-step) * target
        previous = x_0
    return x


def res_multistep(walk: Walk, x: torch.Tensor, sigmas: Sequence[float]) -> torch.Tensor:
    """Second order by exponential integration, from the previous estimate."""
    previous: torch.Tensor | None = None
    for i, (sigma, following) in enumerate(pairwise(sigmas)):
        x_0 = walk.denoise(x, sigma)
        walk.on_step(i, x, x_0)
        if previous is None or following == 0:
            x = x + (x - x_0) * ((following - sigma) / sigma)
        else:
            step = math.log(sigma / following)
            back = math.log(sigma / sigmas[i - 1]) / step  # negative: the previous estimate lies behind
            phi_1, phi_2 = -math.expm1(-step) / step, (math.expm1(-step) / step + 1) / step
            newer, older = phi_1 - phi_2 / back, phi_2 / back
            x = math.exp(-step) * x + step * (newer * x_0 + older * previous)
        previous = x_0
    return x


def er_sde(walk: Walk, x: torch.Tensor, sigmas: Sequence[float]) -> torch.Tensor:
    """Extended reverse-time SDE of up to third order, with noise scaled by the paper's fifth choice."""

    def level(sigma: float) -> float:
        return sigma / (1 - sigma)  # noise over signal on the straight path

    def scale(value: float) -> float:
        return value * (math.exp(value**0.3) + 10.0)

    # At sigma 1 there is no signal at all, and the ratio is infinite.
    sigmas = [min(it, 1 - 1e-4) for it in sigmas]
    older: list[torch.Tensor] = []
    for i, (sigma, following) in enumerate(pairwise(sigmas)):
        x_0 = walk.denoise(x, sigma)
        walk.on_step(i, x, x_0)
        if following == 0:
            return x_0
        here, there = level(sigma), level(following)
        shrink, weight = scale(there) / scale(here), 1 - following
        x_next = (weight / (1 - sigma)) * shrink * x + weight * (1 - shrink) * x_0
        if older:
            points = there + (here - there) / 200 * np.arange(200)
            inverse = 1 / np.array([scale(float(it)) for it in points])
            width = (here - there) / 200
            before = level(sigmas[i - 1])
            slope = (x_0 - older[-1]) / (here - before)
            x_next = x_next + weight * (there - here + float(inverse.sum()) * width * scale(there)) * slope
            if len(older) > 1:
                first = level(sigmas[i - 2])
                earlier = (older[-1] - older[-2]) / (before - first)
                bend = (slope - earlier) / ((here - first) / 2)
                area = float(((points - here) * inverse).sum()) * width
                x_next = x_next + weight * ((there - here) ** 2 / 2 + area * scale(there)) * bend
        spread = there**2 - here**2 * shrink**2
        x = x_next + weight * math.sqrt(max(0.0, spread)) * walk.noise(x)
        older.append(x_0)
    return x


def uni_pc(walk: Walk, x: torch.Tensor, sigmas: Sequence[float]) -> torch.Tensor:
    """Predictor-corrector of up to third order with the first choice of B(h)."""
    return _uni_pc(walk, x, sigmas, first_choice=True)


def uni_pc_bh2(walk: Walk, x: torch.Tensor, sigmas: Sequence[float]) -> torch.Tensor:
    """Predictor-corrector of up to third order with the second choice of B(h)."""
    return _uni_pc(walk, x, sigmas, first_choice=False)


def _uni_pc(walk: Walk, x: torch.Tensor, sigmas: Sequence[float], *, first_choice: bool) -> torch.Tensor:
    levels = [*sigmas[:-1], sigmas[-1] or LEAST_SIGMA]
    steps = len(levels) - 1
    highest = min(3, steps - 1)
    if highest < 1:
        return euler(walk, x, levels)
    times = [-math.log(it) for it in levels]
    estimates = [walk.denoise(x, levels[0])]
    walk.on_step(0, x, estimates[0])
    for step in range(1, steps + 1):
        order = step if step < highest else min(highest, steps + 1 - step)
        newest, time = estimates[-1], times[step - 1]
        length = times[step] - time
        decay = math.expm1(-length)
        height = -length if first_choice else decay
        ratios = [(times[step - 1 - k] - time) / length for k in range(1, order)]
        slopes = [(estimates[-1 - k] - newest) / ratio for k, ratio in enumerate(ratios, 1)]
        rows, right = _unified_system([*ratios, 1.0], length, height)
        base = (levels[step] / levels[step - 1]) * x - decay * newest
        # The paper's closed form where one slope is known.
        ahead_weights = [0.5] if order == 2 else list(np.linalg.solve(rows[:-1, :-1], right[:-1])) if order > 2 else []
        ahead = base - height * _weighted(ahead_weights, slopes, base)
        if step == steps:
            return ahead
        estimate = walk.denoise(ahead, levels[step])
        walk.on_step(step, ahead, estimate)
        weights = [0.5] if order == 1 else list(np.linalg.solve(rows, right))
        x = base - height * _weighted(weights, [*slopes, estimate - newest], base)
        estimates = [*estimates[-(highest - 1) :], estimate] if highest > 1 else [estimate]
    raise AssertionError("the loop returns in its last step")


def _unified_system(ratios: Sequence[float], length: float, height: float) -> tuple[np.ndarray, np.ndarray]:
    """The linear system for the weights of the slopes, in the paper's notation R(h) and b."""
    rows, right = [], []
    phi, factorial = math.expm1(-length) / -length - 1, 1.0
    for power in range(len(ratios)):
        rows.append([ratio**power for ratio in ratios])
        right.append(phi * factorial / height)
        factorial *= power + 2
        phi = phi / -length - 1 / factorial
    return np.array(rows), np.array(right)


def _weighted(weights: Sequence[float], slopes: Sequence[torch.Tensor], like: torch.Tensor) -> torch.Tensor:
    total = torch.zeros_like(like)
    for weight, slope in zip(weights, slopes, strict=True):
        total = total + float(weight) * slope
    return total


SAMPLERS: Mapping[str, Sampler] = {
    "euler": euler,
    "euler_ancestral": euler_ancestral,
    "heun": heun,
    "dpmpp_2m": dpmpp_2m,
    "lcm": lcm,
    "res_multistep": res_multistep,
    "er_sde": er_sde,
    "ddim": euler,
    "uni_pc": uni_pc,
    "uni_pc_bh2": uni_pc_bh2,
}
"""By the names that node graphs use."""

DROPS_PENULTIMATE = frozenset(("uni_pc", "uni_pc_bh2"))
"""Samplers for which one level more is computed and the last before 0 left out."""


# Levels


def _table(shift: float) -> list[float]:
    """The 1000 levels of the flow that the schedules below pick from, rising."""
    return [shift_sigma(k / 1000, shift) for k in range(1, 1001)]


def _simple(steps: int, shift: float) -> list[float]:
    table = _table(shift)
    return [table[-(1 + int(i * 1000 / steps))] for i in range(steps)]


def _normal(steps: int, shift: float) -> list[float]:
    # The last timestep is 1000 times the smallest level of the table; its level is followed by 0.
    start, end = 1.0, shift_sigma(1 / 1000, shift)
    return [shift_sigma(start + (end - start) * i / max(1, steps - 1), shift) for i in range(steps)]


def _sgm_uniform(steps: int, shift: float) -> list[float]:
    start, end = 1.0, shift_sigma(1 / 1000, shift)
    return [shift_sigma(start + (end - start) * i / steps, shift) for i in range(steps)]


def _karras(steps: int, shift: float) -> list[float]:
    table = _table(shift)
    low, high = table[0] ** (1 / 7), table[-1] ** (1 / 7)
    return [(high + i / max(1, steps - 1) * (low - high)) ** 7 for i in range(steps)]


def _exponential(steps: int, shift: float) -> list[float]:
    table = _table(shift)
    low, high = math.log(table[0]), math.log(table[-1])
    return [math.exp(high + i / max(1, steps - 1) * (low - high)) for i in range(steps)]


SCHEDULERS: Mapping[str, Callable[[int, float], list[float]]] = {
    "simple": _simple,
    "sgm_uniform": _sgm_uniform,
    "karras": _karras,
    "exponential": _exponential,
    "normal": _normal,
}
"""By the names that node graphs use: ``(steps, shift)`` to levels without the closing 0."""


def without_repeats(sigmas: Sequence[float]) -> list[float]:
    """The levels without those that equal the one before: more steps than a table has levels repeat some of them.

    A step between equal levels goes nowhere, and samplers that look back divide by its length.
    """
    return [level for level, _ in groupby(sigmas)]


def node_sigmas(scheduler: str, steps: int, shift: float, *, sampler: str = "", denoise: float = 1.0) -> list[float]:
    """The levels of a KSampler node, closed by 0; empty when ``denoise`` is 0.

    With ``denoise`` below 1 a schedule of ``int(steps / denoise)`` steps is made and its end used. Raises
    :class:`~cygnet.errors.RequestError` for a scheduler that is not there.
    """
    if scheduler not in SCHEDULERS:
        raise RequestError(f"scheduler is {scheduler!r}; choose one of {', '.join(SCHEDULERS)}", field="scheduler")
    if denoise <= 0:
        return []
    count = steps if denoise >= 1 else int(steps / denoise)
    dropped = sampler in DROPS_PENULTIMATE
    levels = [*SCHEDULERS[scheduler](count + dropped, shift), 0.0]
    if dropped:
        del levels[-2]
    return levels[-(steps + 1) :]
