"""The cygnet command: finds the verb, runs it, and turns whatever goes wrong into one message and an exit code.

Exit codes: 0 done, 1 failure, 2 bad request, 130 interrupted, 143 terminated. Results go to stdout, everything else to
stderr. Nothing heavy is imported before a verb needs it, so that help appears at once.
"""

from __future__ import annotations

import contextlib
import errno
import os
import sys
import traceback
from collections.abc import Sequence
from typing import TYPE_CHECKING

from cygnet.cli.interrupts import EXIT_INTERRUPTED, EXIT_TERMINATED, terminated_by_signal
from cygnet.cli.options import DASH
from cygnet.cli.output import Voice, error_line, print_error
from cygnet.errors import CygnetError, OutOfMemory, OutputError, RequestError, Terminated, out_of_memory

if TYPE_CHECKING:
    from cyclopts import App, CycloptsError

VERBS = {
    "generate": "Make a video from a prompt, or from a picture and a prompt.",
    "plan": "Say what a video would take, before it is made: memory, disk, time.",
    "run": "Run a workflow file without a browser.",
    "launch": "Start the studio: ComfyUI's web page and protocol, with cygnet doing the work.",
    "jobs": "List, show, cancel, move or retry the studio's jobs.",
    "nodes": "List, install, remove and update packs of custom nodes.",
    "mcp": "Give a language model tools that make videos, by the Model Context Protocol.",
    "train": "Teach a model: a LoRA, a whole transformer, an autoencoder.",
    "data": "Find what is wrong with a data set before training on it.",
    "replay": "Make a video again from its receipt, and compare.",
    "inspect": "Say what a weight file or folder is, and what it can serve.",
    "lora": "Inspect, convert, merge and extract LoRAs.",
    "models": "List the models that have a name, and what of them is here.",
    "pull": "Fetch the weights of a named model.",
    "bench": "Measure how well and how fast VAEs carry videos.",
    "doctor": "Say what this machine can run, what is missing, and the remedy.",
}
"""Verb → what it is for. The function of that name in the module of that name does it; its docstring is its help."""

WITH_ACTIONS = frozenset({"lora"})
"""Verbs whose actions have options of their own: each is a parser, not a function."""

EPILOGUE = "Start here: cygnet generate 'a red ball moves right on a black background'"
DEBUG_VARIABLE = "CYGNET_DEBUG"


def build_app(verb: str | None = None) -> App:
    """The parser with all verbs. Only the module of ``verb``, the one that was named, will be imported."""
    from cyclopts import App

    app = App(
        name="cygnet",
        help="Make videos from a prompt, or from a picture and a prompt, with Wan 2.1.",
        help_epilogue=EPILOGUE,
        help_format="plaintext",
        version=_version,
        result_action="return_value",
        suppress_keyboard_interrupt=False,
    )
    for name, purpose in VERBS.items():
        place = f"cygnet.cli.{name}:{name}"
        if name == verb and name in WITH_ACTIONS:
            app.command(place, name=name)
        elif name == verb:
            app.command(place, name=name, sort_key=list(VERBS).index(name))
        else:
            app.command(place, name=name, sort_key=list(VERBS).index(name), help=purpose)
    return app


def run(arguments: Sequence[str] | None = None) -> int:
    """Run the command line (``sys.argv`` by default) and return the exit code."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    options = given[: given.index("--")] if "--" in given else given
    as_json = "--json" in options or "--json-stream" in options
    debug = "--debug" in options or os.environ.get(DEBUG_VARIABLE, "") not in ("", "0")
    _make_output_robust()
    try:
        with terminated_by_signal():
            code = _dispatch(given)
            sys.stdout.flush()
            return code
    except BrokenPipeError:
        return _reader_is_gone()
    except KeyboardInterrupt:
        return _stopped(as_json, "interrupted", EXIT_INTERRUPTED)
    except Terminated:
        return _stopped(as_json, "terminated", EXIT_TERMINATED)
    except CygnetError as error:
        if debug:
            traceback.print_exc()
        return _failed(error, as_json)
    except Exception as error:  # the last line of defence: everything expected is a CygnetError
        if debug:
            traceback.print_exc()
        return _failed(_unexpected(error, given, debug=debug), as_json)


def _dispatch(given: list[str]) -> int:
    from cyclopts import CycloptsError

    verb = given[0] if given and given[0] in VERBS else None
    if verb == "launch":
        from cygnet.cli.comfy_flags import understood

        given = [verb, *understood(given[1:], Voice().note)]
    app = build_app(verb)
    words = [DASH if word == "-" else word for word in given] if verb in ("generate", "plan") else given
    try:
        result = app(words, exit_on_error=False, print_error=False)
    except CycloptsError as error:
        cause = error.__cause__
        if isinstance(cause, RequestError):  # from one of our own converters
            raise cause from None
        raise RequestError(_misuse(error, verb)) from error
    return result if isinstance(result, int) else 0


def _misuse(error: CycloptsError, verb: str | None) -> str:
    """What is wrong with a command line that the parser refused."""
    from cyclopts import UnusedCliTokensError

    if isinstance(error, UnusedCliTokensError) and verb is not None:
        words = ", ".join(repr(word) for word in (error.unused_tokens or [])[:5])
        advice = "it takes one argument; put quotes around blanks"
        if verb in ("models", "doctor", "launch", "mcp"):
            advice = "it takes options alone"
        elif verb in ("generate", "plan"):
            advice = "put the prompt in quotes"
        return error_line(f"{words} came after everything that cygnet {verb} takes: {advice}")
    return (
        f"{error_line(str(error))} See: cygnet {verb} --help"
        if verb
        else f"{error_line(str(error))} See: cygnet --help"
    )


def _version() -> str:
    from importlib.metadata import version

    return f"cygnet {version('cygnet')}"


_OPTIONS = {
    "num_frames": "frames", "num_steps": "steps", "guidance_scale": "guidance", "negative_prompt": "negative",
    "guidance_until": "guidance-until", "guidance_rest": "guidance-rest", "cache_table": "cache-table",
    "decode_dtype": "decode-dtype",
}  # fmt: skip
"""Fields of a request that have another name on the command line."""


def _failed(error: CygnetError, as_json: bool) -> int:
    field = getattr(error, "field", None)
    if field in _OPTIONS and str(error).startswith(f"{field} is "):
        error.args = (f"--{_OPTIONS[field]}{str(error).removeprefix(field)}",)
    try:
        print_error(error, as_json=as_json)
    except BrokenPipeError:
        _reader_is_gone()
    except OSError:  # the disk that takes our output is full
        with contextlib.suppress(OSError):
            print_error(error, as_json=False)
        _reader_is_gone()
    return error.exit_code


def _stopped(as_json: bool, word: str, code: int) -> int:
    class Stopped(CygnetError):
        """Stopped from outside."""

    Stopped.code = word
    Stopped.exit_code = code
    return _failed(Stopped(f"{word}; nothing half-written was left"), as_json)


_LESS_MEMORY = {
    "generate": "add --stream or --dtype bfloat16, ask for a smaller --size or fewer --frames, or take a smaller model",
    "replay": "add --stream",
    "run": "set a smaller size or fewer frames with --set, or choose a smaller model in the workflow",
    "bench": "ask for a smaller --size or fewer --frames, or --dtype bfloat16",
    "train": "cygnet train FILE --plan says what it takes, and what to change",
}
"""By verb, what takes less memory; the others work on files, which take what they take."""


def _unexpected(error: Exception, given: Sequence[str], *, debug: bool) -> CygnetError:
    """What a person is told about an error that nobody foresaw."""
    text = error_line(str(error)) or "no message"
    if out_of_memory(error):
        instead = _LESS_MEMORY.get(given[0] if given else "", "end other programs, or use a machine with more memory")
        return OutOfMemory(f"out of memory ({text[:200]}); {instead}")
    if isinstance(error, OSError) and error.errno in (errno.ENAMETOOLONG, errno.ELOOP):
        name = error_line(repr(os.path.basename(str(error.filename))))[:80]
        return RequestError(f"the system refused the name {name}: {(error.strerror or '').lower()}; give another")
    if isinstance(error, OSError) and error.strerror:
        return OutputError(f"the system refused: {error.strerror.lower()}")
    hint = "" if debug else f"; add --debug (or {DEBUG_VARIABLE}=1) to see where, and report it"
    return CygnetError(f"unexpected {type(error).__name__}: {text[:500]}{hint}")


def _make_output_robust() -> None:
    """Text that the terminal's encoding lacks is escaped instead of raising (locale C, odd file names)."""
    if sys.stdout is None:  # closed by whoever started us
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115 (for the life of the process)
    if sys.stderr is None:
        sys.stderr = open(os.devnull, "w")  # noqa: SIM115
    for stream in (sys.stdout, sys.stderr):
        reconfigure = getattr(stream, "reconfigure", None)
        if reconfigure is not None:
            reconfigure(errors="backslashreplace")


def _reader_is_gone() -> int:
    """Whoever read our output has closed it (``| head``): nothing more to say, and no traceback at exit."""
    null = os.open(os.devnull, os.O_WRONLY)
    for stream in (sys.stdout, sys.stderr):
        try:
            os.dup2(null, stream.fileno())
        except (OSError, ValueError):  # a stream without a descriptor cannot complain at exit either
            continue
    return 0
