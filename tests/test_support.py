"""The reference fill is itself checked against the numbers printed with its definition."""

from __future__ import annotations

import pytest

from support import fill


def test_the_fill_gives_the_printed_numbers() -> None:
    assert fill("a", [4]).tolist() == pytest.approx([-0.3201613, 0.8448403, -0.9632463, -0.5259004], abs=1e-7)
    expected = [0.4834643, -0.0076994, -0.3392437]
    assert fill("blocks.0.self_attn.q.weight", [3]).tolist() == pytest.approx(expected, abs=1e-7)
