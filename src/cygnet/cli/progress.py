"""How far the work is: a bar on a terminal, now and then a line elsewhere, both on stderr.

The time that remains is told for the phase that runs, from its own latest steps, and only once there are some; what a
later phase will take is not known and not guessed.
"""

from __future__ import annotations

import os
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Protocol

from cygnet.cli.output import Voice, gigabytes
from cygnet.types import Estimate, Phase, Progress, time_left

if TYPE_CHECKING:
    from rich.progress import Progress as RichProgress

PHASE_WORDS: dict[Phase, str] = {
    "load": "loading the model",
    "text": "reading the prompt",
    "image": "reading the picture",
    "encode": "encoding the source video",
    "denoise": "denoising",
    "decode": "decoding",
    "write": "writing",
}
SECONDS_BETWEEN_LINES = 10.0


class Rate:
    """Bytes per second over the last seconds, and what remains at that rate."""

    def __init__(self) -> None:
        self._points: deque[tuple[float, int]] = deque(maxlen=64)

    def update(self, done: int, total: int, now: float) -> float | None:
        """Seconds left, or None while that cannot be told."""
        if self._points and done < self._points[-1][1]:
            self._points.clear()
        if not self._points or now - self._points[-1][0] >= 0.5:
            self._points.append((now, done))
        start, before = self._points[0]
        if now - start < 1.0 or done <= before:
            return None
        return (total - done) * (now - start) / (done - before)


class Display(Protocol):
    """Something that shows progress."""

    def report(self, progress: Progress) -> None:
        """Show a step of a generation."""
        ...

    def bytes(self, what: str, done: int, total: int) -> None:
        """Show a download."""
        ...

    def title(self, text: str) -> None:
        """Say what the following steps belong to."""
        ...


class SilentDisplay:
    """Shows nothing, apart from events for programs if they were asked for."""

    def __init__(self, voice: Voice) -> None:
        self._voice = voice

    def report(self, progress: Progress) -> None:
        self._voice.event("progress", phase=progress.phase, step=progress.step, total=progress.total)

    def bytes(self, what: str, done: int, total: int) -> None:
        self._voice.event("progress", what=what, done=done, total=total)

    def title(self, text: str) -> None:
        return None


class LineDisplay:
    """A line when a phase begins, another when ten seconds have passed without one."""

    def __init__(self, voice: Voice, clock: Callable[[], float] = time.monotonic) -> None:
        self._voice, self._clock = voice, clock
        self._estimate, self._rate = Estimate(), Rate()
        self._phase: str | None = None
        self._last_line = 0.0

    def report(self, progress: Progress) -> None:
        now = self._clock()
        left = self._estimate.update(progress.phase, progress.step, progress.total, now)
        words = PHASE_WORDS[progress.phase]
        if progress.phase != self._phase:
            self._line(f"{words} ({progress.total} steps)" if progress.phase == "denoise" else words, now)
            self._phase = progress.phase
        elif now - self._last_line >= SECONDS_BETWEEN_LINES and progress.step < progress.total:
            self._line(f"{words} {progress.step}/{progress.total}{time_left(left)}", now)

    def bytes(self, what: str, done: int, total: int) -> None:
        now = self._clock()
        left = self._rate.update(done, total, now)
        if what != self._phase or now - self._last_line >= SECONDS_BETWEEN_LINES:
            self._phase = what
            self._line(f"{what}: {gigabytes(done)} of {gigabytes(total)}{time_left(left)}", now)

    def title(self, text: str) -> None:
        self._phase = None
        self._line(text, self._clock())

    def _line(self, text: str, now: float) -> None:
        self._last_line = now
        self._voice.note(text)


class BarDisplay:
    """One bar that follows the phase."""

    def __init__(self, bars: RichProgress) -> None:
        self._bars = bars
        self._task = bars.add_task("starting", total=None, left="")
        self._estimate, self._rate = Estimate(), Rate()
        self._title = ""

    def report(self, progress: Progress) -> None:
        left = self._estimate.update(progress.phase, progress.step, progress.total, time.monotonic())
        self._show(f"{self._title}{PHASE_WORDS[progress.phase]}", progress.step, progress.total, left)

    def bytes(self, what: str, done: int, total: int) -> None:
        left = self._rate.update(done, total, time.monotonic())
        self._show(f"{what} ({gigabytes(done)} of {gigabytes(total)})", done, total, left)

    def title(self, text: str) -> None:
        self._title = f"{text}: "

    def _show(self, what: str, done: int, total: int, left: float | None) -> None:
        try:
            self._bars.update(
                self._task,
                description=what,
                completed=done,
                total=max(total, 1),
                left=time_left(left).removeprefix(", "),
            )
        except OSError:  # the terminal is gone; the work goes on
            return


@contextmanager
def open_display(voice: Voice) -> Iterator[Display]:
    """The display that suits where stderr goes and what was asked for."""
    if voice.quiet or voice.as_stream:
        yield SilentDisplay(voice)
    elif not sys.stderr.isatty() or os.environ.get("TERM") == "dumb":
        yield LineDisplay(voice)
    else:
        from rich.console import Console
        from rich.progress import BarColumn, TextColumn
        from rich.progress import Progress as Bars

        console = Console(stderr=True)
        columns = (
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=30),
            TextColumn("{task.percentage:>3.0f}%"),
            TextColumn("{task.fields[left]}"),
        )
        with Bars(*columns, console=console, transient=True) as bars:
            yield BarDisplay(bars)
