from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cygnet.errors import RequestError
from cygnet.pipelines.sizes import latent_grid, nearest_frames, nearest_sides, num_tokens, size_for_image
from support import golden_facts


@pytest.mark.parametrize("case", golden_facts()["i2v_latent_sizes"], ids=lambda case: str(list(case.values())[:3]))
def test_the_reference_exact_rule_gives_the_official_sizes(case: dict[str, Any]) -> None:
    width, height = size_for_image(case["width"], case["height"], case["area"], reference_exact=True)
    assert [height // 8, width // 8] == case["latent"]


def test_the_default_rule_has_no_rounding_accident() -> None:
    assert size_for_image(832, 480, 832 * 480) == (832, 480)
    assert size_for_image(832, 480, 832 * 480, reference_exact=True) == (832, 464)


@given(st.integers(16, 4000), st.integers(16, 4000), st.sampled_from([128 * 128, 832 * 480, 1280 * 720]))
def test_sizes_are_multiples_of_16_within_the_area_and_near_the_aspect(width: int, height: int, area: int) -> None:
    if max(width, height) > 20 * min(width, height):
        return
    columns, rows = size_for_image(width, height, area)
    assert (columns % 16, rows % 16) == (0, 0)
    assert columns * rows <= area
    assert (columns + 16) * (rows + 16) > area
    # One step more on either side would leave the exact aspect rectangle.
    assert columns**2 * height <= area * width < (columns + 16) ** 2 * height


def test_a_thread_of_a_picture_is_refused() -> None:
    with pytest.raises(RequestError, match="crop it first"):
        size_for_image(20_000, 16, 128 * 128)


def test_nearest_values_are_valid_and_one_suffices_for_a_valid_one() -> None:
    assert nearest_frames(81.0) == (81,)
    assert nearest_frames(80) == (77, 81)
    assert nearest_sides(480.0) == (480,)
    assert nearest_sides(479.9) == (464, 480)


def test_grids_and_tokens_of_the_published_sizes() -> None:
    assert latent_grid(81, 832, 480) == (21, 60, 104)
    assert num_tokens(81, 832, 480) == 32_760
    assert num_tokens(81, 1280, 720) == 75_600
    assert latent_grid(1, 1024, 1024) == (1, 128, 128)
