"""Request bodies, read within limits.

JSON is parsed whatever the content type says: the page labels some bodies as text and the command-line clients label
theirs as forms. What keeps other sites out is :mod:`cygnet.server.guard`, not the label.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

from starlette.exceptions import HTTPException
from starlette.requests import Request

LARGEST_JSON = 32 * 2**20
DEEPEST_JSON = 200
_ESCAPED_HALF = re.compile(r"\\u[dD][89a-fA-F]")


async def read_bytes(request: Request, limit: int) -> bytes:
    """The body; answers 413 as soon as it is longer than ``limit`` bytes."""
    announced = request.headers.get("content-length", "0")
    if announced.isdigit() and int(announced) > limit:
        raise HTTPException(413, f"the body has {announced} bytes; at most {limit} are taken")
    parts, total = [], 0
    async for part in request.stream():
        total += len(part)
        if total > limit:
            raise HTTPException(413, f"the body is longer than {limit} bytes")
        parts.append(part)
    return b"".join(parts)


async def read_json(request: Request, *, limit: int = LARGEST_JSON) -> Any:
    """The body as JSON; answers 400 for anything else, 413 when it is too long."""
    data = await read_bytes(request, limit)
    try:
        return parse_json(data)
    except ValueError as error:
        raise HTTPException(400, f"the body is not JSON that can be taken: {error}") from error


def parse_json(data: bytes | str) -> Any:
    """Strict JSON: no key twice, no NaN, no deeper than :data:`DEEPEST_JSON`. Raises ValueError.

    Whatever is taken can be sent again: no number beyond a double, no half of a character.
    """
    text = data.decode("utf-8") if isinstance(data, bytes) else data  # UnicodeDecodeError is a ValueError
    try:
        value = json.loads(text, object_pairs_hook=_without_repeats, parse_constant=_no_constant, parse_float=_finite)
    except RecursionError:
        value = None
        deep = True
    else:
        deep = _is_deep(value)
    if deep:
        raise ValueError(f"it is nested more than {DEEPEST_JSON} deep")
    if _ESCAPED_HALF.search(text):  # mostly halves that make a whole, which are fine
        _refuse_halves(value)
    return value


def _is_deep(value: Any) -> bool:
    level = [value]
    for _ in range(DEEPEST_JSON + 1):
        level = [
            inner
            for outer in level
            if isinstance(outer, (dict, list))
            for inner in (outer.values() if isinstance(outer, dict) else outer)
        ]
        if not level:
            return False
    return True


def _without_repeats(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        names = [name for name, _ in pairs]
        repeated = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"the key {repeated[:100]!r} is there twice")
    return found


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is no number")


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"{text[:50]} is larger than any number that can be kept")
    return value


def _refuse_halves(value: Any) -> None:
    try:
        json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
        raise ValueError("a text holds one half of a surrogate pair") from error


# What routes ask of an object: a field of another type is refused, for guessing what was meant has cleared queues.


def flag(order: Mapping[str, Any], name: str) -> bool:
    """A true or false that may be absent; answers 400 for anything else."""
    value = order.get(name)
    if value is not None and not isinstance(value, bool):
        raise HTTPException(400, f"{name} is {str(value)[:50]!r}; it must be true or false")
    return bool(value)


def names(order: Mapping[str, Any], name: str) -> list[str] | None:
    """A list of texts; None when it is absent. Answers 400 for anything else."""
    value = order.get(name)
    if value is None:
        return None
    if not isinstance(value, list) or not all(isinstance(it, str) for it in value):
        raise HTTPException(400, f"{name} is {str(value)[:50]!r}; it must be a list of ids")
    return value


def text(order: Mapping[str, Any], name: str) -> str | None:
    """A text; None when it is absent. Answers 400 for anything else."""
    value = order.get(name)
    if value is not None and not isinstance(value, str):
        raise HTTPException(400, f"{name} is {str(value)[:50]!r}; it must be a text")
    return value
