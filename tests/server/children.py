"""What the tests run in child processes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from typing import Any

import numpy as np

from cygnet.graph.context import current
from cygnet.graph.contract import Classic
from cygnet.server.child import Channel
from cygnet.server.worker import serve_catalogue, serve_jobs


def echo(channel: Channel, options: Mapping[str, Any]) -> None:
    channel.send({"hello": options.get("name"), "pid": os.getpid()})
    while (message := channel.receive()) is not None:
        match message["what"]:
            case "echo":
                channel.answer(message, lambda text=message["text"]: text)
            case "fail":
                channel.answer(message, lambda: 1 / 0)
            case "hang":
                time.sleep(1000)
            case "crash":
                os.kill(os.getpid(), signal.SIGSEGV)
            case "subprocess":
                channel.answer(message, _terminated)
            case "leave":
                sys.exit(3)
    channel.send({"goodbye": True})


def _terminated() -> list[int]:
    """How a program and a fork of a child end when they are asked to."""
    program = subprocess.Popen(["sleep", "60"])
    program.terminate()
    fork = os.fork()
    if not fork:
        time.sleep(20)
        os._exit(0)
    time.sleep(0.5)
    os.kill(fork, signal.SIGTERM)
    return [program.wait(), os.waitstatus_to_exitcode(os.waitpid(fork, 0)[1])]


FREED: list[bool] = []
NUMBERS: dict[str, Any] = {"nan": {"number": [float("nan")]}, "numpy": {"number": [np.float32(0.5), np.array(3)]}}


class Text:
    """A source; the text "crash" takes the process down, "fail" and "memory" raise, "wait" waits to be stopped, and
    "short" takes a moment.

    A text that begins with "freed" becomes the number of times that models were unloaded, "remaining" that of jobs.
    """

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {"required": {"text": ("STRING", {})}}

    RETURN_TYPES = ("STRING",)
    FUNCTION = "run"

    def run(self, text: str) -> tuple[str]:
        if text == "crash":
            os.kill(os.getpid(), signal.SIGSEGV)
        if text == "fail":
            raise ValueError("it broke")
        if text == "memory":
            raise MemoryError
        if text.startswith("freed"):
            return (str(len(FREED)),)
        if text.startswith("remaining"):
            return (str(REMAINING[-1]),)
        if text == "interrupt":
            raise KeyboardInterrupt
        if text in ("wait", "short"):
            steps = 10_000 if text == "wait" else 60
            for i in range(steps):
                current().progress(i, steps)
                time.sleep(0.005)
        if text == "numpy":
            current().progress(np.float32(1), np.int64(2))
        if text == "hang":
            time.sleep(1000)
        if text == "preview":
            current().preview(b"picture", "image/jpeg")
        return (text,)


class Show:
    """An output."""

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {"required": {"text": ("STRING", {"forceInput": True})}}

    RETURN_TYPES = ()
    FUNCTION = "run"
    OUTPUT_NODE = True

    def run(self, text: str) -> dict[str, Any]:
        return {"ui": {"text": [text], **NUMBERS.get(text, {})}}


class Odd(Show):
    """Declares what is no JSON."""

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {"required": {"value": (["a"], {"default": object()})}}


class Single(Show):
    """Declares a number of numpy."""

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {"required": {"value": ("FLOAT", {"default": np.float32(1.5), "max": np.int64(2)})}}


class Leaving(Show):
    """Ends the process that asks."""

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        sys.exit(3)


class Dying(Show):
    """Takes the process down that asks."""

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        os.kill(os.getpid(), signal.SIGKILL)
        return {}


PACKS: list[dict[str, Any]] = []
CLASSES = {"Text": Classic("Text", Text), "Show": Classic("Show", Show)}


REMAINING: list[int] = []


def worker(channel: Channel, options: Mapping[str, Any]) -> None:
    serve_jobs(channel, CLASSES, free=lambda: FREED.append(True), remaining=REMAINING.append)


def odd_catalogue(channel: Channel, options: Mapping[str, Any]) -> None:
    odd = {it.__name__: Classic(it.__name__, it) for it in (Odd, Single, Leaving)}
    packs = [{"name": "torn", "error": "ImportError: x"}, {"name": "good", "error": ""}]
    serve_catalogue(channel, {**odd, **CLASSES}, packs)


def dying_catalogue(channel: Channel, options: Mapping[str, Any]) -> None:
    serve_catalogue(channel, {**CLASSES, "Dying": Classic("Dying", Dying)})


def catalogue(channel: Channel, options: Mapping[str, Any]) -> None:
    serve_catalogue(channel, CLASSES, PACKS)
