"""The denoising: noise, guided velocities, and the watch over both. The loop itself is the solvers' own.

Legend: ``t h w`` latent grid; latents are float32 ``[1, 16, t, h, w]``.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import torch

from cygnet.errors import NumericalError, RequestError
from cygnet.models.dit.model import DiT, PreparedContext
from cygnet.pipelines.conditioning import Conditioning
from cygnet.solvers import SolverName, StepReport, make_solver, sample
from cygnet.types import CancelToken, Progress, ProgressSink, ignore_progress

TOKENS_AT_ONCE = 4096
"""Above this many video tokens a prompt fills the machine by itself, and both at once would only take more memory."""


GuidanceRest = Literal["prompt", "reuse"]


class StepCache(Protocol):
    """Answers some evaluations from earlier ones; made for one run. Lossy."""

    skipped: int
    evaluations: int

    def begin(
        self, dit: DiT, latents: torch.Tensor, timestep: torch.Tensor, step: int, *, rows: int, exact: bool = False
    ) -> None:
        """Decide about the coming evaluation, of ``rows`` prompts in the step of that number."""
        ...

    def ask(self, dit: DiT, network: Network) -> torch.Tensor:
        """The velocities of that evaluation."""
        ...

    def tables(self) -> dict[str, list[float]]:
        """What was measured, if that was the task."""
        ...


class Network(Protocol):
    """The network with its inputs."""

    def __call__(self, *, without_blocks: bool) -> torch.Tensor:
        """Velocities, through its blocks and control branches or through neither."""
        ...


@dataclass(frozen=True, kw_only=True)
class SkippedLayers:
    """Skip-layer guidance: away from what the prompt gives without some of the blocks.

    It works at noise levels from ``end`` to ``start`` (sigma, 1 is pure noise). ``rescale`` draws the spread of the
    estimate back towards that of the prompt's own, 0 not at all and 1 wholly.
    """

    blocks: frozenset[int]
    scale: float
    start: float = 1.0
    end: float = 0.0
    rescale: float = 0.0


@dataclass(frozen=True, kw_only=True)
class Guidance:
    """``velocity = negative + scale * (prompt - negative)`` in the first ``until`` share of the steps."""

    scale: float
    until: float = 1.0
    rest: GuidanceRest = "prompt"
    """The other steps: the prompt's answer alone, or with what guidance last added to it."""
    zero_star: bool = False
    """Scale the negative's velocity to fit the prompt's best before the difference is taken (CFG-Zero*)."""
    skip: SkippedLayers | None = None

    def guided_steps(self, num_steps: int) -> int:
        """How many of ``num_steps`` steps, from the first on, ask for both prompts."""
        return 0 if self.scale == 1 else round(self.until * num_steps)


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """Which way from noise to data."""

    solver: SolverName
    num_steps: int
    shift: float
    start_step: int = 0
    """First step that is made; above 0 the latents already hold data, noised to ``sigmas[0]``."""
    seed: int = 0
    """Of the noise that a solver adds on its way, if it does."""

    @property
    def sigmas(self) -> tuple[float, ...]:
        """The noise levels walked through; the last is 0."""
        return make_solver(self.solver, self.num_steps, self.shift, start_step=self.start_step).sigmas

    @property
    def steps_made(self) -> int:
        """Steps that are made, of ``num_steps`` in the schedule."""
        return self.num_steps - self.start_step


def check_noise_device(device: str) -> None:
    """Raise :class:`~cygnet.errors.RequestError` unless this machine has ``device`` ("cpu" or "cuda")."""
    if device != "cpu" and not torch.cuda.is_available():
        raise RequestError(f"noise_device is {device!r}, which this machine has not; use 'cpu'", field="noise_device")


def make_noise(grid: tuple[int, int, int], channels: int, seed: int, device: str = "cpu") -> torch.Tensor:
    """Standard normal noise ``[1, channels, t, h, w]`` float32, made by the random numbers of ``device``.

    Those of the CPU are the same on every machine. Raises as :func:`check_noise_device`.
    """
    check_noise_device(device)
    generator = torch.Generator(device=device).manual_seed(seed)
    return torch.randn((1, channels, *grid), generator=generator, device=device, dtype=torch.float32)


def denoise(
    dit: DiT,
    latents: torch.Tensor,
    conditioning: Conditioning,
    sampling: Sampling,
    guidance: Guidance,
    *,
    on_progress: ProgressSink = ignore_progress,
    cancel: CancelToken | None = None,
    on_step: Callable[[StepReport], None] | None = None,
    cache: StepCache | None = None,
) -> torch.Tensor:
    """Clean latents ``[1, 16, t, h, w]``, float32 on the network's device, from ``latents`` at the first noise level.

    ``on_progress`` hears one report before the first step and one after each; ``cancel`` is looked at before each
    evaluation of the network and before each of its blocks. Raises :class:`~cygnet.errors.NumericalError`, naming the
    step and the part of the network, as soon as a velocity is NaN or infinite.
    """
    velocity = GuidedVelocity(dit, conditioning, sampling.steps_made, guidance, cancel or CancelToken(), cache)

    def report(step: StepReport) -> None:
        velocity.step = step.step
        if not all_finite(step.latents):
            raise NumericalError(
                f"step {step.step} of {step.total}: the latents grew beyond float32; use a smaller guidance_scale "
                f"than {guidance.scale:g}"
            )
        on_progress(Progress(phase="denoise", step=step.step, total=step.total))
        if on_step is not None:
            on_step(step)

    on_progress(Progress(phase="denoise", step=0, total=sampling.steps_made))
    return sample(
        velocity,
        latents.to(dit.device),
        sampling.solver,
        sampling.num_steps,
        sampling.shift,
        start_step=sampling.start_step,
        seed=sampling.seed,
        on_step=report,
    )


class GuidedVelocity:
    """The network as a solver sees it: prompts prepared once, guidance applied, answers checked.

    Called with latents ``[1, 16, t, h, w]`` and a timestep in 0..1000 it gives the velocity. Whoever walks the steps
    sets :attr:`step` to the number of those made.

    Prompt and negative prompt are answered by one evaluation: each weight is read once for both, and the self-attention
    of the first block, which no text has reached yet, is computed once. Many tokens are worked on one prompt at a time.

    Every part of the network is watched in its first evaluation: attention kernels turn NaN scores into zeros, so a
    damaged weight of a query or key need not show in the answer. Later only the answer is looked at.

    With a ``cache`` some evaluations leave the blocks out; those of skip-layer guidance never do.
    """

    def __init__(
        self,
        dit: DiT,
        conditioning: Conditioning,
        num_steps: int,
        guidance: Guidance,
        cancel: CancelToken,
        cache: StepCache | None = None,
    ) -> None:
        self.dit = dit
        self.conditioning = conditioning
        self.num_steps = num_steps
        self.guidance = guidance
        self.guided_steps = guidance.guided_steps(num_steps)
        self.cancel = cancel
        self.cache = cache
        self.step = 0
        self.added: torch.Tensor | None = None
        self.watched = False
        self.prompt = self._prepare(conditioning.context)
        self.both: PreparedContext | None = None
        if self.guided_steps:
            assert conditioning.negative_context is not None
            self.both = PreparedContext.joined((self.prompt, self._prepare(conditioning.negative_context)))

    def __call__(self, latents: torch.Tensor, timestep: torch.Tensor) -> torch.Tensor:
        skip = self.guidance.skip
        if skip is not None and not skip.end <= float(timestep) / 1000 <= skip.start:
            skip = None
        both = self.both if self.step < self.guided_steps else None
        if self.cache is not None:
            self.cache.begin(
                self.dit, latents, timestep, self.step, rows=1 if both is None else 2, exact=skip is not None
            )
        if both is None:
            answer = guided = self._ask(latents, timestep, self.prompt)
            if self.added is not None:
                guided = answer + self.added
        else:
            answer, opposite = self._ask(latents, timestep, both).chunk(2)
            if self.guidance.zero_star:
                sigma = float(timestep) / 1000
                guided = guided_from_fitted(latents, sigma, answer, opposite, self.guidance.scale)
            else:
                guided = opposite + self.guidance.scale * (answer - opposite)
            if self.guidance.rest == "reuse":
                self.added = guided - answer
        if skip is None:
            return guided
        sigma = float(timestep) / 1000
        guided = guided + skip.scale * (answer - self._ask(latents, timestep, self.prompt, skip.blocks))
        return respread(latents, sigma, guided, answer, skip.rescale) if skip.rescale else guided

    def _prepare(self, context: torch.Tensor) -> PreparedContext:
        self.cancel.check()
        with torch.no_grad(), _watched(self.dit) as found:
            prepared = self.dit.prepare(context, self.conditioning.image_context)
        self._raise_if(found)
        return prepared

    def _ask(
        self,
        latents: torch.Tensor,
        timestep: torch.Tensor,
        context: PreparedContext,
        skip_blocks: frozenset[int] = frozenset(),
    ) -> torch.Tensor:
        self.cancel.check()
        if not self.watched:
            answer = self._ask_watched(latents, timestep, context)
            self.watched = True
            return answer
        answer = self._evaluate(latents, timestep, context, skip_blocks)
        if not all_finite(answer):
            self._ask_watched(latents, timestep, context)
            raise self._error("the network gave NaN or infinity once, but not again: the hardware or a kernel errs")
        return answer

    def _ask_watched(self, latents: torch.Tensor, timestep: torch.Tensor, context: PreparedContext) -> torch.Tensor:
        if not all_finite(latents):
            raise self._error("the latents hold NaN or infinity before the network sees them")
        with _watched(self.dit) as found:
            answer = self._evaluate(latents, timestep, context)
        self._raise_if(found)
        return answer

    def _evaluate(
        self,
        latents: torch.Tensor,
        timestep: torch.Tensor,
        context: PreparedContext,
        skip_blocks: frozenset[int] = frozenset(),
    ) -> torch.Tensor:
        given = self.conditioning

        def network(*, without_blocks: bool) -> torch.Tensor:
            answer: torch.Tensor = self.dit(
                latents,
                timestep.expand(latents.shape[0]),
                context,
                image_condition=given.image_condition,
                vace=() if without_blocks else given.vace,
                camera=given.camera,
                skip_blocks=range(len(self.dit.blocks)) if without_blocks else skip_blocks,
                one_by_one=self.dit.num_tokens(latents) > TOKENS_AT_ONCE,
            )
            return answer

        with _stoppable(self.dit, self.cancel):
            if self.cache is None or skip_blocks:
                return network(without_blocks=False)
            return self.cache.ask(self.dit, network)

    def _raise_if(self, found: list[tuple[str, torch.nn.Module]]) -> None:
        if found:
            raise self._error(_describe(self.dit, *found[0]))

    def _error(self, what: str) -> NumericalError:
        return NumericalError(f"step {self.step + 1} of {self.num_steps}: {what}")


@contextmanager
def _stoppable(dit: DiT, cancel: CancelToken) -> Iterator[None]:
    """Look at ``cancel`` before each block: one evaluation of a large network can take minutes."""
    mine = threading.get_ident()

    def look(*_: Any) -> None:
        if threading.get_ident() == mine:  # other threads may be at work with the same network
            cancel.check()

    hooks = [block.register_forward_pre_hook(look) for block in dit.blocks]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def guided_from_fitted(
    latents: torch.Tensor, sigma: float, answer: torch.Tensor, opposite: torch.Tensor, scale: float
) -> torch.Tensor:
    """Guided velocity with the negative's estimate scaled by the projection of one velocity on the other.

    The scaling is of the estimates of clean data, ``latents - sigma * velocity``, as graphs of Wan's models are made
    for it. Source: CFG-Zero*, arXiv 2503.18886.
    """
    flat, other = answer.flatten(1), opposite.flatten(1)
    fit = (flat * other).sum(1, keepdim=True) / (other.square().sum(1, keepdim=True) + 1e-8)
    fit = fit.view(-1, *[1] * (answer.ndim - 1))
    left_over = (1 - fit) * (1 - scale) / max(sigma, 1e-6)
    return fit * opposite + scale * (answer - fit * opposite) + left_over * latents


def respread(
    latents: torch.Tensor, sigma: float, guided: torch.Tensor, answer: torch.Tensor, share: float
) -> torch.Tensor:
    """``guided`` with the estimate of clean data drawn to the standard deviation that ``answer`` gives it."""
    estimate = latents - sigma * guided
    factor = share * (latents - sigma * answer).std() / estimate.std() + (1 - share)
    return (latents - factor * estimate) / max(sigma, 1e-6)


def all_finite(x: torch.Tensor) -> bool:
    """Whether there is neither NaN nor infinity in ``x``.

    A sum is finite only if all that is added is, and takes a thirtieth of the time of looking at each on a processor.
    """
    return bool(torch.isfinite(x.sum())) or bool(torch.isfinite(x).all())


@contextmanager
def _watched(module: torch.nn.Module) -> Iterator[list[tuple[str, torch.nn.Module]]]:
    """A list that holds, after the block, the first part of ``module`` that gave NaN or infinity in it, if any did."""
    found: list[tuple[str, torch.nn.Module]] = []
    mine = threading.get_ident()

    def watch(name: str) -> Callable[[torch.nn.Module, Any, Any], None]:
        def look(part: torch.nn.Module, _: Any, output: Any) -> None:
            ours = threading.get_ident() == mine and isinstance(output, torch.Tensor)
            if ours and not found and not all_finite(output):
                found.append((name, part))

        return look

    # Children finish before their parents, so the first hit is the smallest part at fault.
    hooks = [part.register_forward_hook(watch(name)) for name, part in module.named_modules()]
    try:
        yield found
    finally:
        for hook in hooks:
            hook.remove()


def _describe(module: torch.nn.Module, name: str, part: torch.nn.Module) -> str:
    """What went wrong in ``part``, called ``name``, and what to do about it."""
    where = f"NaN or infinity first appears in {name or 'the network as a whole'}"
    # A weight that belongs to a block itself shows first in that block's next part, so look everywhere.
    for weight_name, weight in module.named_parameters():
        if not weight.is_meta and not bool(torch.isfinite(weight).all()):
            return f"{where}, because weight {weight_name!r} holds it; the file is damaged: fetch it again"
    kind = next((str(weight.dtype).removeprefix("torch.") for weight in part.parameters()), "its dtype")
    advice = "try dtype=float32" if kind != "float32" else "its weights are finite but too large; verify the file"
    return f"{where}, computed in {kind}; {advice}"
