"""Small values and protocols that every layer may use. Nothing here imports torch at run time."""

from __future__ import annotations

import re
import threading
from collections import deque
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from statistics import median
from typing import TYPE_CHECKING, ClassVar, Literal, Protocol, get_args

from cygnet.errors import Cancelled, RequestError

if TYPE_CHECKING:
    import torch

ComponentName = Literal["dit", "vae", "text_encoder", "image_encoder"]
SolverName = Literal["unipc", "dpm++", "euler", "renoise"]
SOLVER_NAMES: tuple[SolverName, ...] = get_args(SolverName)
CachePolicy = Literal["easy", "mag", "tea", "calibrate"]
CACHE_POLICIES: tuple[CachePolicy, ...] = get_args(CachePolicy)
Phase = Literal["load", "text", "image", "encode", "denoise", "decode", "write"]


@dataclass(frozen=True, kw_only=True)
class Progress:
    """One report: ``step`` of ``total`` units of ``phase`` are done (0 <= step <= total)."""

    phase: Phase
    step: int
    total: int
    message: str = ""


@dataclass(frozen=True, kw_only=True)
class StepCaching:
    """How steps may be answered from earlier ones; what is None takes the policy's or the model's own value."""

    policy: CachePolicy
    threshold: float | None = None
    """Change that may add up before the network is asked again; 0 skips nothing."""
    most: int | None = None
    """Steps skipped in a row at most."""
    table: tuple[float, ...] | None = None
    """Coefficients (``tea``, highest power first) or one magnitude ratio per step (``mag``), in place of published."""
    first: float | None = None
    """The share of the steps, from the first on, that are always computed."""
    sigmas: tuple[float, float] = (1.0, 0.0)
    """Nothing is skipped above the first noise level nor at or below the second."""


@dataclass(frozen=True, kw_only=True)
class Tiles:
    """The size of the tiles in which the VAE works on a picture that is too large for it, in pixels.

    Those at the right and at the bottom are what is left. A size beyond the picture's is one tile.
    """

    width: int
    height: int
    from_frame: int = 0
    """Frames before this one are decoded whole: memory ran out only then."""

    CELL: ClassVar[int] = 8
    """Pixels of a side of a latent cell, of which a tile has a whole number."""
    LEAST: ClassVar[int] = 64
    """Pixels of a side at least; smaller ones would see mostly what their neighbours see too."""

    @classmethod
    def parse(cls, text: object, field: str) -> Tiles:
        """``WxH``, or in a receipt ``WxH@FRAME``; raises :class:`~cygnet.errors.RequestError` for anything else."""
        match = re.fullmatch(r"(\d{1,5})x(\d{1,5})(?:@(\d{1,6}))?", text) if isinstance(text, str) else None
        sides = (0, 0) if match is None else (int(match[1]), int(match[2]))
        if match is None or min(sides) < cls.LEAST or any(side % cls.CELL for side in sides):
            raise RequestError(
                f'{field} is {str(text)[:40]!r}; give "auto", or a width and height in multiples of {cls.CELL} pixels '
                f"from {cls.LEAST} on, such as 416x240",
                field=field,
            )
        return cls(width=sides[0], height=sides[1], from_frame=int(match[3] or 0))

    def __str__(self) -> str:
        return f"{self.width}x{self.height}" + (f"@{self.from_frame}" if self.from_frame else "")

    def count(self, width: int, height: int) -> int:
        """How many tiles a picture of ``width`` x ``height`` has."""
        return -(-width // self.width) * -(-height // self.height)


ProgressSink = Callable[[Progress], None]


def ignore_progress(_: Progress) -> None:
    """The sink for callers who do not watch."""


class Estimate:
    """The time that one phase still needs: the median of its latest steps, times the steps left.

    ``phase`` is any name; another one, or a step back, begins anew.
    """

    LATEST = 8

    def __init__(self) -> None:
        self._phase: str | None = None
        self._step = 0.0
        self._since = 0.0
        self._durations: deque[float] = deque(maxlen=self.LATEST)

    def update(self, phase: str, step: float, total: float, now: float) -> float | None:
        """Seconds left in ``phase`` after ``step`` of ``total``; None as long as it cannot be told."""
        if phase != self._phase or step < self._step:
            self._phase, self._step, self._since = phase, step, now
            self._durations.clear()
        elif step > self._step:
            self._durations.append((now - self._since) / (step - self._step))
            self._step, self._since = step, now
        # One step tells little: the first one also warms caches and compiles kernels.
        return median(self._durations) * (total - step) if len(self._durations) >= 2 else None


def time_left(seconds: float | None) -> str:
    """``, about 1:05 left``; nothing as long as it cannot be told."""
    if seconds is None:
        return ""
    whole = round(seconds)
    clock = (
        f"{whole // 3600}:{whole // 60 % 60:02d}:{whole % 60:02d}"
        if whole >= 3600
        else f"{whole // 60}:{whole % 60:02d}"
    )
    return f", about {clock} left"


class CancelToken:
    """Set from any thread or signal handler; long work calls :meth:`check` between units."""

    def __init__(self) -> None:
        self._event = threading.Event()

    def cancel(self) -> None:
        """Ask the work to stop at its next check."""
        self._event.set()

    @property
    def cancelled(self) -> bool:
        """True once :meth:`cancel` was called."""
        return self._event.is_set()

    def check(self) -> None:
        """Raise :class:`~cygnet.errors.Cancelled` if a stop was asked for."""
        if self._event.is_set():
            raise Cancelled("stopped on request; nothing was written")


class Residency(Protocol):
    """Decides where a component's weights are while it works; pipelines depend on this alone."""

    def use(self, name: ComponentName) -> AbstractContextManager[torch.nn.Module]:
        """The component, ready on its device for the length of a ``with`` block."""
        ...

    def release(self, name: ComponentName) -> None:
        """The component is not needed again in this request."""
        ...

    def shrink(self, name: ComponentName) -> str | None:
        """Memory ran out: give back what can be, and hold ``name`` in less; how, in words, or None if there is no way.

        Nothing may be in use. Results stay the same bit for bit.
        """
        ...


class TextMemory(Protocol):
    """Features of texts that come again and again, such as a model's own negative prompt."""

    def recall(self, text: str) -> torch.Tensor | None:
        """Features ``[1, n, D]`` of ``text`` on the CPU, just as the text encoder would give them; None if unknown."""
        ...

    def keep(self, text: str, features: torch.Tensor) -> None:
        """Remember them, if this is a text to remember."""
        ...


class Attention(Protocol):
    """Scaled dot-product attention as models expect it; kernels and parallel forms are passed in.

    q ``[B, N, Lq, K]``, k and v ``[B, N, Lk, K]``, one floating dtype; ``bias`` broadcasts to ``[B, N, Lq, Lk]`` and
    is added to the scores; ``scale`` defaults to ``1/sqrt(K)``. Returns ``[B, N, Lq, K]``.
    """

    def __call__(
        self,
        q: torch.Tensor,
        k: torch.Tensor,
        v: torch.Tensor,
        bias: torch.Tensor | None = None,
        scale: float | None = None,
    ) -> torch.Tensor: ...
