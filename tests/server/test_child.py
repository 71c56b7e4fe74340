"""Child processes answer, fail and die without harm to the server."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from cygnet.server import child as module
from cygnet.server.child import Child, ChildFailed, ChildLost, _whole, how_it_ended


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


def test_a_full_pipe_does_not_hold_up_the_event_loop() -> None:
    async def story(child: Child, heard: list[Any], ended: list[str]) -> None:
        await until(lambda: heard)
        child.tell("hang")
        child.tell("echo", text="x" * 10_000_000)  # nobody reads it; this line was never passed before
        assert child.pid is not None

    with_child(story)


@pytest.mark.parametrize("text", ["a\ud800b", "\udcff", "\ud800\ud800", "\\ud800", "\\\ud800", '😀"\n'])
def test_what_a_child_says_can_always_be_sent_on(text: str) -> None:
    heard = json.loads(_whole(json.dumps({text: text}).encode()))
    expected = text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    assert all(len(it) == len(text) for it in heard)
    json.dumps(heard, ensure_ascii=False).encode()
    if expected == text:
        assert heard == {text: text}


def test_a_frozen_process_is_ended_and_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "BEAT", 0.02)

    async def story(child: Child, heard: list[Any], ended: list[str]) -> None:
        assert await child.ask("echo", text="alive") == "alive"
        await asyncio.sleep(1.5)
        assert ended == [], "one that lives is left alone"
        assert child.pid is not None
        os.kill(child.pid, signal.SIGSTOP)
        await until(lambda: ended)
        assert "gave no sign of life for" in ended[0]

    with_child(story)


def test_a_machine_that_sleeps_loses_no_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """All stand still together, and the server's clock has gone on: what counts is how often it has looked."""
    monkeypatch.setattr(module, "BEAT", 0.02)

    async def story(child: Child, heard: list[Any], ended: list[str]) -> None:
        assert await child.ask("echo", text="before") == "before"
        time.sleep(2)  # the loop hears nothing, and all its timers are overdue
        assert await child.ask("echo", text="after") == "after"
        assert ended == []

    with_child(story)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_to_all_processes_is_left_to_the_server(number: signal.Signals) -> None:
    async def story(child: Child, heard: list[Any], ended: list[str]) -> None:
        assert child.pid is not None
        os.kill(child.pid, number)  # while Python itself is still starting in it
        assert await child.ask("echo", text="ready") == "ready"
        os.kill(child.pid, number)
        assert await child.ask("echo", text="alive") == "alive"
        await child.stop(10)
        assert ended == ["ended with exit code 0"]

    with_child(story)


def test_what_a_child_starts_can_be_terminated() -> None:
    async def story(child: Child, heard: list[Any], ended: list[str]) -> None:
        assert await child.ask("subprocess") == [-signal.SIGTERM, -signal.SIGTERM]

    with_child(story)


def test_a_process_that_forgot_a_child_ends_all_the_same() -> None:
    code = (
        "import asyncio\nfrom cygnet.server.child import Child\n"
        "async def main():\n"
        "    child = Child('tests.server.children:echo', {}, print, print)\n"
        "    child.start()\n"
        "    await child.ask('echo', text='ready')\n"
        "if __name__ == '__main__': asyncio.run(main())\n"
    )
    assert subprocess.run([sys.executable, "-c", code], timeout=60, check=False).returncode == 0


def test_a_child_whose_server_was_killed_does_not_outlive_it() -> None:
    code = (
        "import asyncio, os, signal\nfrom cygnet.server.child import Child\n"
        "async def main():\n"
        "    child = Child('tests.server.children:echo', {}, lambda it: None, print)\n"
        "    child.start()\n"
        "    await child.ask('echo', text='ready')\n"
        "    child.tell('hang')\n"
        "    print('ready', flush=True)\n"
        "    await asyncio.sleep(60)\n"
        "if __name__ == '__main__': asyncio.run(main())\n"
    )
    server = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert server.stdout is not None
    assert server.stdout.readline() == "ready\n"
    server.kill()
    assert server.stdout.read() == "", "the child, which holds the other end, has ended too"
    server.wait()
