"""Child processes answer, fail and die without harm to the server."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from cygnet.server.child import Child, ChildFailed, ChildLost, how_it_ended


def with_child(story: Callable[[Child, list[Any], list[str]], Awaitable[None]]) -> None:
    async def whole() -> None:
        heard: list[Any] = []
        ended: list[str] = []
        child = Child("tests.server.children:echo", {"name": "Ada"}, heard.append, ended.append)
        child.start()
        try:
            await asyncio.wait_for(story(child, heard, ended), 60)
        finally:
            child.kill()

    asyncio.run(whole())


async def until(condition: Callable[[], Any]) -> None:
    while not condition():
        await asyncio.sleep(0.01)


def test_it_answers_tells_and_stops() -> None:
    async def story(child: Child, heard: list[Any], ended: list[str]) -> None:
        texts = await asyncio.gather(*(child.ask("echo", text=f"héllo {i}") for i in range(20)))
        assert texts == [f"héllo {i}" for i in range(20)]
        assert heard[0]["hello"] == "Ada"
        with pytest.raises(ChildFailed, match="ZeroDivisionError"):
            await child.ask("fail")
        assert await child.ask("echo", text="still there") == "still there"
        await child.stop(10)
        await until(lambda: ended)
        assert heard[-1] == {"goodbye": True}
        assert ended == ["ended with exit code 0"]
        with pytest.raises(ChildLost):
            await child.ask("echo", text="gone")

    with_child(story)


@pytest.mark.parametrize(
    ("what", "how"), [("crash", "was ended by SIGSEGV"), ("leave", "ended with exit code 3"), ("kill", "was killed")]
)
def test_a_crash_is_told_to_whoever_waits(what: str, how: str) -> None:
    async def story(child: Child, heard: list[Any], ended: list[str]) -> None:
        await child.ask("echo", text="ready")
        if what == "kill":
            assert child.pid is not None
            os.kill(child.pid, signal.SIGKILL)
        else:
            with pytest.raises(ChildLost, match=how):
                await child.ask(what)
        await until(lambda: ended)
        assert how in ended[0]
        assert child.pid is None

    with_child(story)


def test_exit_codes_in_words() -> None:
    assert how_it_ended(None) == "is still running"
    assert how_it_ended(-250) == "was ended by signal 250"


def test_a_process_that_hangs_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cygnet.server.child.PATIENCE", 0.5)

    async def story(child: Child, heard: list[Any], ended: list[str]) -> None:
        await until(lambda: heard)
        with pytest.raises(ChildLost, match="did not answer"):
            await child.ask("hang")
        await until(lambda: ended)
        assert child.pid is None

    with_child(story)


def shorten_lease(child: Child, seconds: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cygnet.server.child.LEASE", seconds)
    assert child._watcher is not None
    child._watcher.cancel()
    child._watcher = asyncio.create_task(child._watch())


def test_a_process_that_gives_no_sign_of_life_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    async def story(child: Child, heard: list[Any], ended: list[str]) -> None:
        await until(lambda: heard)
        shorten_lease(child, 1.0, monkeypatch)
        assert child.pid is not None
        os.kill(child.pid, signal.SIGSTOP)  # it is there, and does nothing
        await until(lambda: ended)
        assert ended == ["gave no sign of life for 1 s and was ended"]

    with_child(story)


def test_a_busy_process_that_has_nothing_to_say_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cygnet.server.child.BEAT", 0.1)

    async def story(child: Child, heard: list[Any], ended: list[str]) -> None:
        await until(lambda: heard)
        shorten_lease(child, 2.0, monkeypatch)
        child.tell("hang")
        await asyncio.sleep(2.5)
        assert (ended, child.pid is None) == ([], False)

    with_child(story)


def test_a_full_pipe_does_not_hold_up_the_event_loop() -> None:
    async def story(child: Child, heard: list[Any], ended: list[str]) -> None:
        await until(lambda: heard)
        child.tell("hang")
        child.tell("echo", text="x" * 10_000_000)  # nobody reads it; this line was never passed before
        assert child.pid is not None

    with_child(story)
