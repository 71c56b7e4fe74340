"""What signals do to the work, and when."""

from __future__ import annotations

import os
import signal
from contextlib import suppress

import pytest

from cygnet.cli.interrupts import (
    Terminated,
    WholeStack,
    cancelled_by_interrupt,
    terminated_by_signal,
    uninterrupted,
)


def test_the_first_interrupt_asks_and_the_second_raises() -> None:
    notes: list[str] = []
    before = signal.getsignal(signal.SIGINT)
    with cancelled_by_interrupt(notes.append) as token:
        os.kill(os.getpid(), signal.SIGINT)
        assert token.cancelled
        assert "again" in notes[0]
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
        assert signal.getsignal(signal.SIGINT) == signal.SIG_DFL
    assert signal.getsignal(signal.SIGINT) == before


def test_termination_unwinds_and_is_no_ordinary_error() -> None:
    assert not issubclass(Terminated, Exception)
    with pytest.raises(Terminated), terminated_by_signal(), suppress(Exception):
        os.kill(os.getpid(), signal.SIGTERM)


def test_a_held_signal_comes_up_when_the_block_is_over() -> None:
    done: list[str] = []

    def work() -> None:
        with uninterrupted():
            with uninterrupted():
                os.kill(os.getpid(), signal.SIGTERM)
                done.append("inner")
            done.append("outer")
        done.append("never")

    with pytest.raises(Terminated), terminated_by_signal():
        work()
    assert done == ["inner", "outer"]
    with uninterrupted():
        done.append("nothing is left over")


def test_clean_up_is_finished_before_a_signal_comes_up() -> None:
    done: list[str] = []

    def clean_up() -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        done.append("cleaned")

    def fail() -> None:
        with WholeStack() as stack:
            stack.callback(clean_up)
            raise ValueError

    with pytest.raises(Terminated), terminated_by_signal():
        fail()
    assert done == ["cleaned"]
