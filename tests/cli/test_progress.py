"""Progress: what is said about the time that remains is what the steps so far bear out."""

from __future__ import annotations

import io
import sys

import pytest

from cygnet.cli.output import Voice
from cygnet.cli.progress import BarDisplay, LineDisplay, Rate, SilentDisplay, open_display
from cygnet.types import Estimate, Progress


def test_nothing_is_guessed_before_two_steps_and_then_the_median_counts() -> None:
    estimate = Estimate()
    times = [0.0, 50.0, 51.0, 52.0, 53.0]  # the first step compiles
    told = [estimate.update("denoise", step, 10, now) for step, now in enumerate(times)]
    assert told[:2] == [None, None]
    assert told[4] == pytest.approx(6.0)
    assert estimate.update("denoise", 10, 10, 59.0) == 0


def test_a_new_phase_or_video_begins_anew() -> None:
    estimate = Estimate()
    for step in range(5):
        estimate.update("denoise", step, 4, float(step))
    assert estimate.update("decode", 0, 3, 5.0) is None
    assert estimate.update("decode", 1, 3, 6.0) is None
    assert estimate.update("denoise", 0, 4, 7.0) is None


def test_steps_that_come_several_at_a_time_are_counted_each() -> None:
    estimate = Estimate()
    estimate.update("decode", 0, 20, 0.0)
    estimate.update("decode", 4, 20, 8.0)
    assert estimate.update("decode", 8, 20, 16.0) == pytest.approx(24.0)


def test_a_download_is_told_by_its_rate() -> None:
    rate = Rate()
    assert rate.update(0, 100, 0.0) is None
    assert rate.update(10, 100, 0.6) is None
    assert rate.update(20, 100, 2.0) == pytest.approx(8.0)
    assert rate.update(0, 50, 3.0) is None


def test_lines_are_few_and_on_stderr(capsys: pytest.CaptureFixture[str]) -> None:
    now = [0.0]
    display = LineDisplay(Voice(), lambda: now[0])
    for step in range(31):
        display.report(Progress(phase="denoise", step=step, total=30))
        now[0] += 1.0
    out, err = capsys.readouterr()
    assert out == ""
    assert err.splitlines() == [
        "denoising (30 steps)",
        "denoising 10/30, about 0:20 left",
        "denoising 20/30, about 0:10 left",
    ]


def test_a_terminal_gets_a_bar_and_everything_else_does_not(monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    kinds = []
    for stderr, term, voice in (
        (Terminal(), "xterm", Voice()),
        (Terminal(), "dumb", Voice()),
        (io.StringIO(), "xterm", Voice()),
        (Terminal(), "xterm", Voice(quiet=True)),
    ):
        monkeypatch.setattr(sys, "stderr", stderr)
        monkeypatch.setenv("TERM", term)
        with open_display(voice) as display:
            display.title("video 1 of 2")
            for step in range(3):
                display.report(Progress(phase="decode", step=step, total=2))
            display.bytes("fetching", 1, 2)
        kinds.append(type(display))
        assert ("decoding" in stderr.getvalue() or "fetching" in stderr.getvalue()) != voice.quiet
    assert kinds == [BarDisplay, LineDisplay, LineDisplay, SilentDisplay]


def test_notes_to_a_closed_stderr_do_not_stop_the_work(monkeypatch: pytest.MonkeyPatch) -> None:
    class Closed(io.StringIO):
        def write(self, _: str) -> int:
            raise BrokenPipeError

    monkeypatch.setattr(sys, "stderr", Closed())
    Voice().note("nobody reads this")
