"""JSON from untrusted files: bounded in size, depth and number of values; no repeated keys; no NaN."""

from __future__ import annotations

import json
import re
from typing import Any

from cygnet.checkpoints.weight_file import printable
from cygnet.errors import WeightFileError

MAX_ESCAPES = 500_000
"""Each escaped character costs the parser as much as a value."""

# The closing quote is optional so that an unterminated string is consumed once, not once per quote inside it.
_STRING = re.compile(rb'"[^"\\]*(?:\\.[^"\\]*)*"?', re.DOTALL)
_NOT_BRACKETS = bytes(sorted(set(range(256)) - set(b"{}[]")))


def parse_object(data: bytes, what: str, *, max_depth: int, max_values: int) -> dict[str, Any]:
    """The JSON object in ``data``; ``what`` names it in messages.

    Depth and number of values are checked on the text before anything is built, so a hostile text costs no memory.
    Raises ``WeightFileError``.
    """
    # Each value is followed by at most one comma, or opens a bracket.
    if data.count(b",") + data.count(b"{") + data.count(b"[") > max_values:
        raise WeightFileError(f"{what} holds more than {max_values:,} values, far more than it needs")
    if data.count(b"\\") > MAX_ESCAPES:
        raise WeightFileError(f"{what} holds more than {MAX_ESCAPES:,} escaped characters, far more than it needs")
    brackets = _STRING.sub(b"", data).translate(None, _NOT_BRACKETS)
    for _ in range(max_depth):
        brackets = brackets.replace(b"[]", b"").replace(b"{}", b"")
    if brackets:
        raise WeightFileError(f"{what} is nested more than {max_depth} levels deep, or its brackets do not match")
    try:
        value = json.loads(data.decode("utf-8"), object_pairs_hook=_no_repeats, parse_constant=_no_constant)
    except _Refused as error:
        raise WeightFileError(f"{what} {error}") from None
    except (ValueError, RecursionError) as error:  # also bad UTF-8, and integers of thousands of digits
        raise WeightFileError(f"{what} is not valid JSON: {printable(str(error))}") from None
    if not isinstance(value, dict):
        raise WeightFileError(f"{what} is a JSON {type(value).__name__}, not an object")
    return value


class _Refused(Exception):
    """Legal JSON that weight files must not contain."""


def _no_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in pairs:
        if key in found:
            raise _Refused(f"names {printable(key)!r} twice")
        found[key] = value
    return found


def _no_constant(text: str) -> float:
    raise _Refused(f"holds {text}, which is not a number that weights may use")
