"""The text by which people ask for cached steps, such as ``easy:0.05``, and what it may hold."""

from __future__ import annotations

import math
from collections.abc import Sequence

from cygnet.types import CACHE_POLICIES, CachePolicy, StepCaching

MAX_THRESHOLD = 10.0
MAX_TABLE = 1000
ALLOWED = 'it is "easy", "mag" or "tea", each with :THRESHOLD and :MOST-IN-A-ROW if wished, or "calibrate"'
TABLES: dict[CachePolicy, str] = {"mag": "one ratio per step", "tea": "the coefficients of a polynomial"}
"""What a table holds, for the policies that take one."""


def parse_caching(text: str, table: Sequence[float] | None = None) -> StepCaching:
    """What ``NAME[:THRESHOLD[:MOST]]`` asks for; raises ValueError, in words, for anything else."""
    name, *numbers = text.split(":")
    policy = next((it for it in CACHE_POLICIES if it == name), None)
    shown = repr(text[:80])
    if policy is None or len(numbers) > 2 or (policy == "calibrate" and numbers):
        raise ValueError(f"cache is {shown}; {ALLOWED}, as in easy:0.05")
    threshold = most = None
    if numbers and numbers[0]:
        threshold = _number(numbers[0])
        if threshold is None or not 0 <= threshold <= MAX_THRESHOLD:
            raise ValueError(f"cache is {shown}; the threshold must be a number from 0 to {MAX_THRESHOLD:g}")
    if len(numbers) == 2:
        if not (numbers[1].isascii() and numbers[1].isdigit() and 1 <= int(numbers[1][:6]) <= 1000):
            raise ValueError(f"cache is {shown}; the most steps skipped in a row must be a whole number from 1 to 1000")
        most = int(numbers[1])
    if table is not None:
        if policy not in TABLES:
            raise ValueError(f"cache_table is given, and cache {policy!r} takes none; leave it out, or use mag or tea")
        if not 1 <= len(table) <= MAX_TABLE or not all(math.isfinite(value) for value in table):
            raise ValueError(
                f"cache_table has {len(table)} values; {policy!r} takes {TABLES[policy]}: 1 to {MAX_TABLE:,} finite "
                "numbers"
            )
    return StepCaching(policy=policy, threshold=threshold, most=most, table=None if table is None else tuple(table))


def _number(text: str) -> float | None:
    try:
        value = float(text)
    except ValueError:
        return None
    return value if math.isfinite(value) else None
