"""Where weights are: the choice, and the steps down from it."""

from __future__ import annotations

import pytest

from cygnet.runtime.plan import MARGIN, Placement, Weights, choose, fits_alone, smaller
from cygnet.types import ComponentName

DIT, TEXT = Weights(whole=100, eight_bit=60, streamed=10), Weights(whole=50, eight_bit=50, streamed=5)
VAE = Weights(whole=8, eight_bit=8)
MODEL: dict[ComponentName, Weights] = {"dit": DIT, "vae": VAE, "text_encoder": TEXT}


def parts(*names: ComponentName) -> frozenset[ComponentName]:
    return frozenset(names)


@pytest.mark.parametrize(
    ("free", "placement"),
    [
        (1000, Placement(resident=True)),
        (158 / 0.6 - 1, Placement(resident=True, eight_bit=parts("dit"))),
        (118 / 0.6 - 1, Placement(resident=False)),
        (100 / 0.6 - 1, Placement(resident=False, eight_bit=parts("dit"))),
        (60 / 0.6 - 1, Placement(resident=False, eight_bit=parts("dit"), streamed=parts("dit"))),
        (50 / 0.6 - 1, Placement(resident=False, eight_bit=parts("dit"), streamed=parts("dit", "text_encoder"))),
    ],
)
def test_without_a_request_weights_may_take_a_share_of_what_is_free(free: float, placement: Placement) -> None:
    assert choose(MODEL, int(free)) == placement


def test_what_is_asked_for_is_done() -> None:
    assert choose(MODEL, 10_000, True) == Placement(resident=False)
    assert choose(MODEL, 10_000, "stream") == Placement(resident=False, streamed=parts("dit", "text_encoder"))
    assert choose(MODEL, 1, False).resident


def test_with_a_request_its_work_counts_stage_by_stage() -> None:
    work: dict[ComponentName, int] = {"dit": 80, "vae": 40, "text_encoder": 1}
    assert choose(MODEL, int(180 / MARGIN) + 1, True, work) == Placement(resident=False)
    assert choose(MODEL, int(180 / MARGIN) - 1, True, work) == Placement(resident=False, eight_bit=parts("dit"))
    assert choose(MODEL, int(140 / MARGIN) - 1, True, work).streamed == parts("dit")
    assert choose(MODEL, int(238 / MARGIN) + 1, None, work).resident
    assert not choose(MODEL, int(198 / MARGIN) - 1, None, work).resident


def test_each_step_down_takes_less_until_there_is_none() -> None:
    at = Placement(resident=True)
    seen = [at]
    while (step := smaller(at, MODEL, "dit")) is not None:
        seen.append(at := step)
    assert seen == [
        Placement(resident=True),
        Placement(resident=False),
        Placement(resident=False, eight_bit=parts("dit")),
        Placement(resident=False, eight_bit=parts("dit"), streamed=parts("dit")),
    ]
    assert [it.bytes("dit", DIT) for it in seen] == [100, 100, 60, 10]
    assert smaller(Placement(resident=False), MODEL, "vae") is None
    assert "the transformer is streamed block by block" in at.describe()


def test_weights_of_which_nothing_else_is_known_leave_room_to_work() -> None:
    assert fits_alone(60, 100)
    assert not fits_alone(61, 100)
