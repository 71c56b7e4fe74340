"""docs/protocol.md names a test that exists for each of the 55 items, or says that none shows it."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

TESTS = Path(__file__).parent
ROWS = re.findall(
    r"^\| (\d+) \| (.+?) \| (.+) \|$", (TESTS.parent / "docs" / "protocol.md").read_text(encoding="utf-8"), re.MULTILINE
)


def test_there_is_a_row_for_each_item() -> None:
    assert [int(number) for number, _, _ in ROWS] == list(range(1, 56))


@pytest.mark.parametrize("shown_by", [row[2] for row in ROWS], ids=[row[0] for row in ROWS])
def test_the_tests_of_a_row_exist_or_it_says_why_there_is_none(shown_by: str) -> None:
    named = re.findall(r"`([\w/]+\.py)::(\w+)`", shown_by)
    assert named or re.search(r"\b(not shown|no test)\b", shown_by)
    assert shown_by.count("::") == len(named), "every name is written as `folder/file.py::test`"
    for file, test in named:
        tree = ast.parse((TESTS / file).read_text(encoding="utf-8"))
        assert test in {it.name for it in tree.body if isinstance(it, ast.FunctionDef)}, f"{file} has no {test}"
