"""Options that several verbs share, and how numbers are read: nothing is rounded or guessed."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter, Token

from cygnet.cli.output import error_line
from cygnet.errors import RequestError

DASH = "\0-"
"""A lone ``-`` on the command line. The parser takes ``-`` for an option; no real argument can hold a NUL."""


def whole_number(_: Any, tokens: Sequence[Token]) -> int:
    """The one token as a whole number in decimal digits; RequestError otherwise."""
    text, option = tokens[0].value, (tokens[0].keyword or "value").lstrip("-")
    if re.fullmatch(r"[+-]?[0-9]{1,30}", text):
        return int(text)
    raise RequestError(f"{option} is {error_line(repr(text[:80]))}; it must be a whole number", field=option)


def number(_: Any, tokens: Sequence[Token]) -> float:
    """The one token as a decimal number; RequestError otherwise (also for NaN and infinity)."""
    text, option = tokens[0].value, (tokens[0].keyword or "value").lstrip("-")
    if re.fullmatch(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]{1,3})?", text) and len(text) < 80:
        value = float(text)
        if abs(value) < float("inf"):
            return value
    raise RequestError(f"{option} is {error_line(repr(text[:80]))}; it must be a number", field=option)


Whole = Annotated[int | None, Parameter(converter=whole_number, metavar="N", n_tokens=1)]
Number = Annotated[float | None, Parameter(converter=number, metavar="X", n_tokens=1)]
File = Annotated[Path | None, Parameter(metavar="FILE")]
Text = Annotated[str | None, Parameter(metavar="TEXT")]

Json = Annotated[
    bool, Parameter(negative=(), show_default=False, help="Print one JSON object on stdout and nothing else there.")
]
Quiet = Annotated[
    bool, Parameter(negative=(), show_default=False, help="No progress and no notes; errors still appear.")
]
Debug = Annotated[
    bool, Parameter(negative=(), show_default=False, help="Show where an error came from (also CYGNET_DEBUG=1).")
]
Switch = Annotated[bool, Parameter(negative=(), show_default=False)]
Places = Annotated[
    tuple[Path, ...],
    Parameter(
        name="--model-paths",
        negative=(),
        metavar="PATH",
        help="ComfyUI's base folder, a models folder, or an extra_model_paths.yaml; may be given again "
        "(also CYGNET_MODEL_PATHS).",
    ),
]
Loras = Annotated[tuple[str, ...], Parameter(name="--lora", negative=(), metavar="FILE[:STRENGTH]")]
Partial = Annotated[
    bool,
    Parameter(
        name="--allow-partial-lora",
        negative=(),
        show_default=False,
        help="Take what fits of a LoRA even if that is less than half of it.",
    ),
]
