"""What signals do to the work, and when."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Callable
from contextlib import suppress

import pytest

from cygnet.cli.interrupts import WholeStack, cancelled_by_interrupt, terminated_by_signal, uninterrupted
from cygnet.errors import Terminated, by_signal


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


def caught(work: Callable[[], object]) -> BaseException:
    try:
        work()
    except BaseException as error:
        return error
    raise AssertionError("nothing was raised")


def raised(kind: type[BaseException]) -> Callable[[], object]:
    def work() -> None:
        raise kind

    return work


def test_what_a_signal_raised_is_told_from_what_code_raises() -> None:
    interrupt = lambda: os.kill(os.getpid(), signal.SIGINT)  # noqa: E731
    with cancelled_by_interrupt(lambda _: None):
        assert not by_signal(caught(raised(KeyboardInterrupt)))
        interrupt()
        assert not by_signal(caught(raised(KeyboardInterrupt)))  # though a stop was asked for
        assert by_signal(caught(interrupt))
    with terminated_by_signal():
        assert by_signal(caught(lambda: os.kill(os.getpid(), signal.SIGTERM)))
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        assert by_signal(caught(interrupt))
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        assert not by_signal(caught(raised(KeyboardInterrupt)))
    finally:
        signal.signal(signal.SIGINT, before)
    assert not by_signal(SystemExit())


def test_what_asyncios_handler_raises_is_by_signal() -> None:
    seen: list[bool] = []

    async def work() -> None:
        with suppress(asyncio.CancelledError):  # the first asks
            os.kill(os.getpid(), signal.SIGINT)
            await asyncio.sleep(5)
        seen.append(by_signal(caught(lambda: os.kill(os.getpid(), signal.SIGINT))))
        seen.append(by_signal(caught(raised(KeyboardInterrupt))))

    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with suppress(KeyboardInterrupt):
            asyncio.run(work())
    finally:
        signal.signal(signal.SIGINT, before)
    assert seen == [True, False]
