"""Bodies are read within limits, and JSON strictly."""

from __future__ import annotations

import json
from typing import Any

import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route
from starlette.testclient import TestClient

from cygnet.server.body import DEEPEST_JSON, parse_json, read_json


@pytest.mark.parametrize(
    "text",
    [
        *('{"a": [1, "x\\"]", null]}', "3", "1e-999", '"\\ud83d\\ude00"', '"[[["'),
        "[" * DEEPEST_JSON + "]" * DEEPEST_JSON,
    ],
)
def test_json_is_taken(text: str) -> None:
    assert parse_json(text) == json.loads(text)


@pytest.mark.parametrize(
    ("text", "why"),
    [
        *(("{", ""), ("", ""), ('{"a": 1,}', ""), ("{'a': 1}", ""), (b"\xff", ""), ("[NaN]", "no number")),
        *(('{"a": 1, "a": 2}', "twice"), ("[" * 100_000, "deep"), ("[-Infinity]", "no number")),
        *(("[1e999]", "larger than any number"), ("[-1e999]", "larger than any number"), ("1" * 5000, "")),
        *(('["\\ud800"]', "half of a surrogate"), ('{"\\uDfff": 1}', "half of a surrogate")),
    ],
)
def test_other_bodies_are_refused_in_words(text: Any, why: str) -> None:
    with pytest.raises(ValueError, match=why or None):
        parse_json(text)


async def echo(request: Request) -> JSONResponse:
    return JSONResponse(await read_json(request, limit=100))


CLIENT = TestClient(Starlette(routes=[Route("/", echo, methods=["POST"])]))


@pytest.mark.parametrize(
    "label", ["application/json", "text/plain;charset=UTF-8", "application/x-www-form-urlencoded", ""]
)
def test_the_label_does_not_matter(label: str) -> None:
    answer = CLIENT.post("/", content=b'{"a": 1}', headers={"content-type": label})
    assert (answer.status_code, answer.json()) == (200, {"a": 1})


def test_long_bodies_are_refused_announced_or_not() -> None:
    assert CLIENT.post("/", content=b" " * 101).status_code == 413
    assert CLIENT.post("/", content=iter([b" " * 60, b" " * 60])).status_code == 413
    assert CLIENT.post("/", content=b"{").status_code == 400
