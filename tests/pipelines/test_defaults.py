from __future__ import annotations

from dataclasses import replace

import pytest

from cygnet.models.dit.config import FLF2V_14B, I2V_14B, T2V_1_3B, T2V_14B, TINY_I2V, TINY_T2V, DiTConfig
from cygnet.pipelines.presets import defaults_for
from cygnet.pipelines.request import GenerateRequest


@pytest.mark.parametrize(
    ("config", "steps", "shift", "size"),
    [
        (T2V_1_3B, 50, 5.0, (832, 480)),
        (T2V_14B, 50, 5.0, (1280, 720)),
        (I2V_14B, 40, 3.0, (832, 480)),
        (FLF2V_14B, 50, 16.0, (1280, 720)),
    ],
)
def test_published_models_have_the_official_defaults(
    config: DiTConfig, steps: int, shift: float, size: tuple[int, int]
) -> None:
    defaults = defaults_for(config)
    assert (defaults.num_frames, defaults.fps, defaults.guidance_scale, defaults.solver) == (81, 16.0, 5.0, "unipc")
    assert (defaults.num_steps, (defaults.width, defaults.height)) == (steps, size)
    assert defaults.shift_for(*size) == shift


def test_the_name_tells_models_of_one_architecture_apart() -> None:
    assert defaults_for(I2V_14B, "i2v-14b-720p").width == 1280
    assert defaults_for(I2V_14B, "i2v-14b-480p").width == 832


def test_negative_prompts_build_on_one_another_as_the_official_ones_do() -> None:
    t2v, i2v, flf2v = (defaults_for(config).negative_prompt for config in (T2V_14B, I2V_14B, FLF2V_14B))
    assert t2v.startswith("色调艳丽，过曝")
    assert t2v.endswith("背景人很多，倒着走")
    assert i2v == "镜头晃动，" + t2v
    assert flf2v == "镜头切换，" + i2v


def test_an_unknown_architecture_gets_the_defaults_of_its_variant() -> None:
    assert defaults_for(replace(I2V_14B, num_layers=7)).negative_prompt == defaults_for(I2V_14B).negative_prompt


@pytest.mark.parametrize("config", [T2V_1_3B, T2V_14B, I2V_14B, FLF2V_14B, TINY_T2V, TINY_I2V])
def test_all_defaults_are_requests_that_can_be_made(config: DiTConfig) -> None:
    GenerateRequest.create({"prompt": "a swan"}, defaults_for(config))


def test_the_embedded_models_make_small_clips() -> None:
    for config in (TINY_T2V, TINY_I2V):
        defaults = defaults_for(config)
        assert (defaults.num_frames, defaults.width, defaults.height, defaults.fps) == (17, 128, 128, 16.0)
