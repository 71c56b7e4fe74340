"""A command run inside the test, with a model of random weights, in a folder and a home of its own."""

from __future__ import annotations

from pathlib import Path

import pytest

from cli_process import Command, Done
from cygnet.cli.main import run


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The empty current folder of the test."""
    folder = tmp_path / "here"
    folder.mkdir()
    monkeypatch.chdir(folder)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("CYGNET_HOME", str(tmp_path / "cygnet"))
    for name in ("HF_HOME", "HF_HUB_CACHE", "XDG_CACHE_HOME", "CYGNET_MODEL_PATHS", "CYGNET_DEBUG"):
        monkeypatch.delenv(name, raising=False)
    return folder


@pytest.fixture
def cygnet(capfd: pytest.CaptureFixture[str]) -> Command:
    """Runs ``cygnet`` with the given arguments in this process."""

    def call(*arguments: str | Path) -> Done:
        capfd.readouterr()
        code = run([str(argument) for argument in arguments])
        captured = capfd.readouterr()
        return Done(code, captured.out, captured.err)

    return call


@pytest.fixture(scope="session")
def t2v(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A text-to-video model of random weights."""
    from random_models import write_model

    folder = tmp_path_factory.mktemp("t2v")
    write_model(folder, "t2v")
    return folder


@pytest.fixture(scope="session")
def i2v(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An image-to-video model of random weights."""
    from random_models import write_model

    folder = tmp_path_factory.mktemp("i2v")
    write_model(folder, "i2v")
    return folder


@pytest.fixture
def small(t2v: Path) -> list[str]:
    """Options that make a video in a moment."""
    return ["--model", str(t2v), "--size", "32x32", "--frames", "5", "--steps", "2"]
