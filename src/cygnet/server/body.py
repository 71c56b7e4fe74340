"""Request bodies, read within limits.

JSON is parsed whatever the content type says: the page labels some bodies as text and the command-line clients label
theirs as forms. What keeps other sites out is :mod:`cygnet.server.guard`, not the label.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from starlette.exceptions import HTTPException
from starlette.requests import Request

LARGEST_JSON = 32 * 2**20
DEEPEST_JSON = 200


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
    """Strict JSON: no key twice, no NaN, no deeper than :data:`DEEPEST_JSON`. Raises ValueError."""
    text = data.decode("utf-8") if isinstance(data, bytes) else data  # UnicodeDecodeError is a ValueError
    try:
        value = json.loads(text, object_pairs_hook=_without_repeats, parse_constant=_no_constant)
    except RecursionError:
        value = None
        deep = True
    else:
        deep = _is_deep(value)
    if deep:
        raise ValueError(f"it is nested more than {DEEPEST_JSON} deep")
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
