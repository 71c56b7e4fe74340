"""The command as a whole: help, versions, exit codes and messages."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from cli_process import Command, started
from cygnet.cli import main
from cygnet.errors import CygnetError, DownloadError, ModelNotFoundError, RequestError

HEAVY = "{'torch', 'numpy', 'av', 'PIL', 'huggingface_hub', 'tokenizers'}"


def python(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        env={**os.environ, **environment},
    )


@pytest.mark.parametrize("verb", ["", *main.VERBS])
def test_every_verb_has_help_with_its_options(verb: str, cygnet: Command) -> None:
    done = cygnet(*filter(None, [verb]), "--help")
    assert (done.code, done.err) == (0, "")
    assert f"Usage: cygnet {verb}".rstrip() in done.out
    if verb in main.WITH_ACTIONS:
        actions = [line.split()[1] for line in done.out.splitlines() if line.startswith("│ ") and line[2] != " "]
        assert actions
        helps = [cygnet(verb, action, "--help").out for action in actions]
        assert all("--debug" in text for text in helps)
        return
    assert ("--debug" if verb else "--help") in done.out


def test_help_and_version_need_nothing_heavy() -> None:
    for arguments in (["--help"], ["generate", "--help"], ["--version"], ["models"], ["pull", "nonsense"]):
        code = (
            f"import sys; from cygnet.cli.main import run; run({arguments}); print(sorted({HEAVY} & set(sys.modules)))"
        )
        done = python(code)
        assert done.stdout.endswith("[]\n"), (arguments, done.stdout[-200:], done.stderr)


@pytest.mark.parametrize(
    "arguments",
    [
        *(["--frames", "80"], ["--size", "100x100"], ["--steps", "0"], ["--guidance", "nan"], ["--solver", "x"]),
        *(["--image", "no.png"], ["--video", "no.mp4"], ["--out", "a.avi"], ["--out", "nowhere/a.mp4"]),
    ],
)
def test_what_no_model_could_make_is_refused_before_torch_is_imported(arguments: list[str]) -> None:
    code = (
        f"import sys; from cygnet.cli.main import run; code = run(['generate', 'a ball', *{arguments}]); "
        "print(code, 'torch' in sys.modules)"
    )
    assert python(code).stdout == "2 False\n"


def test_help_is_there_in_a_third_of_a_second_of_work() -> None:
    code = "import time; from cygnet.cli.main import run; run(['--help']); print(); print(time.process_time())"
    assert min(float(python(code).stdout.split()[-1]) for _ in range(3)) < 0.3


def test_the_installed_entry_point_and_the_module_are_the_same_command() -> None:
    script = Path(sys.executable).with_name("cygnet")
    for command in ([str(script)], [sys.executable, "-m", "cygnet"]):
        done = subprocess.run([*command, "--version"], capture_output=True, text=True, timeout=60, check=False)
        assert (done.returncode, done.stdout.split()[0], done.stderr) == (0, "cygnet", "")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["frobnicate"], "frobnicate"),
        (["generate"], "PROMPT"),
        (["generate", "x", "--sed", "3"], "--seed"),
        (["generate", "a", "red", "ball"], "quotes"),
        (["generate", "x", "--frames", "3.5"], "frames is '3.5'"),
        (["generate", "x", "--frames", "true"], "frames is 'true'"),
        (["generate", "x", "--frames", "0x10"], "frames is '0x10'"),
        (["generate", "x", "--seed", "abc"], "seed is 'abc'"),
        (["generate", "x", "--guidance", "nan"], "guidance is 'nan'"),
        (["generate", "x", "--shift", "1e309"], "shift is '1e309'"),
        (["generate", "x", "--fps", "inf"], "fps is 'inf'"),
        (["generate", "x", "--steps", "\x1b[31m5"], "\\x1b"),
        (["generate", "x", "--image"], "--image"),
        (["pull", "t2v-1.3b", "--source", "torrent"], "torrent"),
        (["pull", "no-such-model"], "names: tiny-t2v"),
        (["inspect", "no-such-file"], "no-such-file"),
        (["replay", "no-such-file.mp4"], "no-such-file.mp4"),
        (["models", "--model-paths", "no-such-folder"], "no-such-folder"),
    ],
)
def test_misuse_is_told_in_one_line_with_exit_code_2(
    arguments: list[str], words: str, cygnet: Command, place: Path
) -> None:
    done = cygnet(*arguments)
    assert (done.code, done.out) == (2, "")
    assert done.err.startswith("error: ")
    assert done.err.count("\n") == 1
    assert words in done.err
    assert "\x1b" not in done.err
    assert list(place.iterdir()) == []
    as_json = cygnet(*arguments[:1], "--json", *arguments[1:])
    assert as_json.code == 2
    assert words.replace("\\", "") in as_json.json()["error"]["message"].replace("\\", "")
    assert as_json.err == ""


@pytest.mark.parametrize(
    ("error", "code", "name"),
    [
        (RequestError("no", field="seed"), 2, "bad_request"),
        (ModelNotFoundError("no"), 2, "model_missing"),
        (DownloadError("no"), 1, "download_failed"),
        (MemoryError(), 1, "out_of_memory"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory"), 1, "out_of_memory"),
        (OSError(28, "No space left on device"), 1, "output_failed"),
        (ZeroDivisionError("by zero"), 1, "failed"),
    ],
)
def test_whatever_goes_wrong_becomes_one_message_and_its_code(
    error: Exception,
    code: int,
    name: str,
    cygnet: Command,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fail(given: list[str]) -> int:
        raise error

    monkeypatch.setattr(main, "_dispatch", fail)
    plain, as_json = cygnet("models"), cygnet("models", "--json")
    assert plain.code == as_json.code == code
    assert plain.err.count("\n") == 1
    assert "Traceback" not in plain.err
    assert as_json.json()["error"]["code"] == name
    assert as_json.json()["error"]["field"] == getattr(error, "field", None)


def test_debug_shows_where_an_error_came_from(cygnet: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "Traceback" in cygnet("pull", "no-such-model", "--debug").err
    monkeypatch.setenv("CYGNET_DEBUG", "1")
    assert "Traceback" in cygnet("pull", "no-such-model").err


def test_an_interrupt_before_the_work_is_130(cygnet: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(given: list[str]) -> int:
        raise KeyboardInterrupt

    monkeypatch.setattr(main, "_dispatch", interrupt)
    assert cygnet("models").code == 130
    assert cygnet("models", "--json").json()["error"]["code"] == "interrupted"


def test_a_reader_that_has_seen_enough_ends_the_command_quietly() -> None:
    process = started("models", "--json", stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout is not None
    process.stdout.close()
    _, errors = process.communicate(timeout=60)
    assert (process.returncode, errors) == (0, b"")


def test_the_command_works_without_a_home_a_terminal_or_utf_8(tmp_path: Path) -> None:
    bare = {"PATH": os.environ["PATH"], "LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    done = subprocess.run(
        [sys.executable, "-m", "cygnet", "inspect", "ящик.safetensors"],
        capture_output=True,
        timeout=60,
        check=False,
        env=bare,
        cwd=tmp_path,
        stdin=subprocess.DEVNULL,
    )
    assert done.returncode == 2
    assert b"does not exist" in done.stderr
    assert b"Traceback" not in done.stderr


def test_errors_of_the_command_are_errors_of_cygnet() -> None:
    assert issubclass(main.OutOfMemory, CygnetError)


def test_a_temporary_folder_that_is_given_is_never_emptied_itself(tmp_path: Path) -> None:
    from cygnet.cli.studio import folders_of

    given = folders_of(tmp_path / "base", {"input": None, "output": None, "temp": tmp_path})
    assert given.temp == tmp_path / "cygnet-temp"
    assert folders_of(tmp_path / "base", {"input": None, "output": None, "temp": None}).temp == tmp_path / "base/temp"
