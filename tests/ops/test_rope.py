"""Rotary positions are rotations, in the published order and frequencies."""

from __future__ import annotations

import math

import torch

from cygnet.ops.rope import rotary_table, rotate
from support import relative_l2


def test_the_slowest_frequencies_are_the_published_ones() -> None:
    table = rotary_table((2, 2, 2), 128)
    last = torch.atan2(table.sin[-1], table.cos[-1])  # the token at (1, 1, 1): each angle is its frequency
    assert table.cos.shape == (8, 64)
    assert math.isclose(float(last[21]), 1.5199e-4, rel_tol=1e-3)
    assert math.isclose(float(last[22 + 20]), 1.5505e-4, rel_tol=1e-3)
    assert math.isclose(float(last[0]), 1.0, rel_tol=1e-6)


def test_tokens_are_numbered_frame_by_frame_and_row_by_row() -> None:
    table = rotary_table((2, 3, 4), 128)
    angle = torch.atan2(table.sin, table.cos)
    token = (1 * 3 + 2) * 4 + 3
    assert torch.allclose(angle[token, [0, 22, 43]], torch.tensor([1.0, 2.0, 3.0]))


def test_rotation_equals_complex_multiplication_in_double_precision() -> None:
    torch.manual_seed(0)
    x = torch.randn(2, 24, 3, 128)
    table = rotary_table((2, 3, 4), 128)
    pairs = torch.view_as_complex(x.double().unflatten(-1, (-1, 2)))
    turn = torch.complex(table.cos.double(), table.sin.double())[:, None]
    wanted = torch.view_as_real(pairs * turn).flatten(-2).float()
    assert relative_l2(rotate(x, table), wanted) < 1e-6


def test_scores_depend_on_the_distance_between_positions_alone() -> None:
    torch.manual_seed(0)
    q, k = torch.randn(1, 1, 1, 128), torch.randn(1, 1, 1, 128)
    table = rotary_table((8, 1, 1), 128)
    turned_q = rotate(q.expand(1, 8, 1, 128), table)[0, :, 0]
    turned_k = rotate(k.expand(1, 8, 1, 128), table)[0, :, 0]
    scores = turned_q @ turned_k.T
    assert torch.allclose(scores.diagonal(1), scores[0, 1].expand(7), atol=1e-4)
    assert torch.allclose(scores.diagonal(-3), scores[3, 0].expand(5), atol=1e-4)
