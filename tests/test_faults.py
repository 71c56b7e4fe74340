"""The table of faults names tests that exist."""

from __future__ import annotations

import re
from pathlib import Path

TESTS = Path(__file__).parent
TABLE = TESTS.parent / "docs" / "faults.md"


def test_every_test_that_the_table_names_exists_and_every_row_names_one() -> None:
    rows = [line for line in TABLE.read_text().splitlines() if re.match(r"\| [A-Z]\d+ \|", line)]
    assert len(rows) >= 50
    for row in rows:
        named = re.findall(r"`([\w/]+\.py)::(\w+)`", row)
        assert named, row
        for file, name in named:
            assert f"def {name}(" in (TESTS / file).read_text(), f"{file}::{name}"
