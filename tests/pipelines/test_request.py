from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cygnet.errors import RequestError
from cygnet.models.dit.config import I2V_14B, T2V_14B
from cygnet.pipelines.presets import defaults_for
from cygnet.pipelines.request import MAX_CHARACTERS, MAX_SEED, GenerateRequest

DEFAULTS = defaults_for(T2V_14B)


def create(**fields: Any) -> GenerateRequest:
    return GenerateRequest.create({"prompt": "a swan", **fields}, DEFAULTS)


def refusal(**fields: Any) -> RequestError:
    with pytest.raises(RequestError) as caught:
        create(**fields)
    return caught.value


def test_defaults_fill_what_is_absent() -> None:
    request = create(seed=7)
    assert (request.num_frames, request.width, request.height) == (81, 1280, 720)
    assert (request.num_steps, request.shift, request.guidance_scale) == (50, 5.0, 5.0)
    assert request.negative_prompt == DEFAULTS.negative_prompt


def test_an_empty_negative_prompt_stays_empty() -> None:
    assert create(negative_prompt="").negative_prompt == ""


def test_the_shift_follows_the_size() -> None:
    defaults = defaults_for(I2V_14B)
    small = GenerateRequest.create({"prompt": "a", "width": 832, "height": 480}, defaults)
    large = GenerateRequest.create({"prompt": "a", "width": 1280, "height": 720}, defaults)
    assert (small.shift, large.shift) == (3.0, 5.0)


@pytest.mark.parametrize(
    ("value", "nearest"),
    [(-1, "nearest: 1)"), (0, "nearest: 1)"), (2, "1 or 5"), (80, "77 or 81"), (82, "81 or 85"), (10**9, "4093)")],
)
def test_lengths_that_wan_cannot_make_are_refused_with_the_nearest(value: int, nearest: str) -> None:
    error = refusal(num_frames=value)
    assert error.field == "num_frames"
    assert str(value) in str(error)
    assert "4n+1" in str(error)
    assert nearest in str(error)


def test_the_message_is_the_one_of_the_style_guide() -> None:
    assert str(refusal(num_frames=80)) == "num_frames is 80; Wan needs 4n+1 (nearest: 77 or 81)"


@pytest.mark.parametrize(
    "value", [3.5, 81.0, "81", True, None, math.nan, 1e309, [81], 10**5000], ids=lambda value: type(value).__name__
)
def test_lengths_of_another_type_are_refused_and_not_converted(value: object) -> None:
    error = refusal(num_frames=value)
    assert error.field == "num_frames"
    assert len(str(error)) < 300


@pytest.mark.parametrize("side", ["width", "height"])
@pytest.mark.parametrize(
    ("value", "nearest"), [(0, "16"), (-5, "16"), (8, "16"), (17, "16 or 32"), (100_000, "16384"), (481, "480 or 496")]
)
def test_sides_that_wan_cannot_make_are_refused_with_the_nearest(side: str, value: int, nearest: str) -> None:
    error = refusal(**{side: value})
    assert error.field == side
    assert f"nearest: {nearest})" in str(error)


def test_a_video_of_too_many_tokens_is_refused() -> None:
    assert "tokens" in str(refusal(width=16384, height=16384))


@pytest.mark.parametrize(
    "fields",
    [
        {"num_steps": 0},
        {"num_steps": -1},
        {"num_steps": 10**6},
        {"num_steps": True},
        {"guidance_scale": math.nan},
        {"guidance_scale": -5},
        {"guidance_scale": 10**6},
        {"guidance_scale": "5"},
        {"guidance_scale": True},
        {"shift": 0},
        {"shift": math.inf},
        {"fps": 0},
        {"fps": 10**6},
        {"strength": 0},
        {"strength": 1.5},
        {"guidance_until": -0.1},
        {"solver": "heun"},
        {"solver": 3},
        {"image_fit": "squash"},
        {"noise_device": "tpu"},
        {"seed": 2**63},
        {"seed": 2**64},
        {"seed": -2},
        {"seed": "abc"},
        {"seed": 1.0},
        {"seed": True},
    ],
)
def test_numbers_and_choices_outside_their_range_are_refused_by_name(fields: dict[str, Any]) -> None:
    (name,) = fields
    error = refusal(**fields)
    assert error.field == name
    assert str(error).startswith(f"{name} is ")
    assert "must" in str(error) or "choose" in str(error)
    assert error.exit_code == 2


@pytest.mark.parametrize("seed", [0, 2**32, MAX_SEED])
def test_every_seed_of_the_documented_range_is_kept(seed: int) -> None:
    assert create(seed=seed).seed == seed


@pytest.mark.parametrize("fields", [{}, {"seed": None}, {"seed": -1}])
def test_a_missing_seed_is_drawn_and_recorded(fields: dict[str, Any]) -> None:
    first, second = create(**fields).seed, create(**fields).seed
    assert first != second
    assert 0 <= first <= MAX_SEED


@pytest.mark.parametrize(
    "prompt", ["", "  \n\t", None, 3, b"bytes", "x" * (MAX_CHARACTERS + 1), "a\0b", "half \ud83d", ["a"]]
)
def test_prompts_that_are_no_text_are_refused(prompt: object) -> None:
    with pytest.raises(RequestError, match=r"^prompt ") as caught:
        GenerateRequest.create({"prompt": prompt}, DEFAULTS)
    assert caught.value.field == "prompt"
    assert len(str(caught.value)) < 300


@pytest.mark.parametrize(
    "prompt",
    [
        "👩‍👩‍👧 walks",
        "\u202eright to left\u202c",
        "a\u0301\u0301\u0301\u0301",
        "\ufeffmark",
        "\x1b[31mred",
        "<b>${HOME} %n; rm",
    ],
)
def test_odd_prompts_are_kept_exactly(prompt: str) -> None:
    assert create(prompt=prompt).prompt == prompt


def test_a_misspelt_field_is_refused_with_the_likely_name() -> None:
    assert "did you mean 'num_steps'?" in str(refusal(num_step=3))
    assert "prompt, negative_prompt" in str(refusal(zzz=3))


def test_messages_hold_no_control_characters() -> None:
    for error in (refusal(solver="\x1b[2J\n"), refusal(**{"\x1b[2J\n": 1})):
        assert str(error).isprintable()


def test_several_faults_are_told_at_once() -> None:
    error = refusal(num_frames=80, width=7)
    assert "num_frames is 80" in str(error)
    assert "width is 7" in str(error)


def test_a_request_cannot_be_changed_and_survives_json() -> None:
    request = create(seed=5)
    with pytest.raises(ValueError, match="frozen"):
        request.seed = 6
    assert GenerateRequest.create(request.model_dump(mode="json")) == request


values = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.text(max_size=20),
    st.binary(max_size=5),
    st.lists(st.none()),
)


@settings(max_examples=60, deadline=None)
@given(st.dictionaries(st.sampled_from([*GenerateRequest.model_fields, "other"]), values, max_size=4))
def test_any_mapping_is_taken_or_refused_in_words(fields: dict[str, Any]) -> None:
    message = ""
    try:
        request = create(**fields)
    except RequestError as error:
        message = str(error)
    assert message.isprintable()
    if not message:
        kept = request.model_dump()
        assert all(kept[name] == value for name, value in fields.items() if name != "seed")
