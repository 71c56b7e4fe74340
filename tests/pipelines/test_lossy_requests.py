"""What trades exactness for time: asked for by name, checked like everything else, and recorded."""

from __future__ import annotations

from typing import Any

import pytest

from cygnet.errors import RequestError
from cygnet.models.dit.config import TINY_T2V
from cygnet.pipelines.caching import parse_caching
from cygnet.pipelines.denoise import Sampling
from cygnet.pipelines.presets import PRESETS
from cygnet.pipelines.recipes import RECIPES
from cygnet.pipelines.request import GenerateRequest
from cygnet.types import StepCaching


def request(**fields: Any) -> GenerateRequest:
    return GenerateRequest.create({"prompt": "a red ball", "seed": 1, **fields}, PRESETS[TINY_T2V])


def test_nothing_lossy_is_on_by_default() -> None:
    made = request()
    assert (made.caching(), made.guidance_until, made.guidance_rest) == (None, 1.0, "prompt")


@pytest.mark.parametrize(
    ("text", "wish"),
    [
        ("easy", StepCaching(policy="easy")),
        ("easy:0.05", StepCaching(policy="easy", threshold=0.05)),
        ("mag:0.24:6", StepCaching(policy="mag", threshold=0.24, most=6)),
        ("tea::3", StepCaching(policy="tea", most=3)),
        ("calibrate", StepCaching(policy="calibrate")),
    ],
)
def test_a_cache_is_asked_for_by_name_threshold_and_most_in_a_row(text: str, wish: StepCaching) -> None:
    assert parse_caching(text) == wish
    assert request(cache=text).caching() == wish


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"cache": "fast"}, r"cache is 'fast'; it is \"easy\", \"mag\" or \"tea\""),
        ({"cache": "easy:much"}, "threshold must be a number from 0 to 10"),
        ({"cache": "easy:-1"}, "threshold must be a number"),
        ({"cache": "easy:nan"}, "threshold must be a number"),
        ({"cache": "easy:0.1:0"}, "in a row must be a whole number from 1"),
        ({"cache": "easy:0.1:2:3"}, "cache is"),
        ({"cache": "calibrate:1"}, "cache is"),
        ({"cache": 0.1}, "cache is 0.1; it is"),
        ({"cache": "easy", "cache_table": [1.0]}, "takes none"),
        ({"cache_table": [1.0]}, "without cache"),
        ({"cache": "mag", "cache_table": []}, "has 0 values; 'mag' takes one ratio per step"),
        ({"cache": "mag", "cache_table": ["1"]}, "list of numbers"),
        ({"guidance_rest": "none"}, "guidance_rest is 'none'; choose \"prompt\""),
        ({"recipe": "turbo"}, '"lightx2v", "self-forcing"'),
    ],
)
def test_what_cannot_be_is_refused_in_words(fields: dict[str, Any], words: str) -> None:
    with pytest.raises(RequestError, match=words):
        request(**fields)


def test_a_cached_request_survives_json() -> None:
    made = request(cache="mag:0.1", cache_table=[1.0, 0.99], guidance_rest="reuse", guidance_until=0.5)
    assert GenerateRequest.create(made.model_dump(mode="json")) == made
    assert made.caching() == StepCaching(policy="mag", threshold=0.1, table=(1.0, 0.99))


def test_a_recipe_stands_for_values_that_can_be_overridden() -> None:
    made = request(recipe="self-forcing", num_steps=3)
    assert (made.solver, made.num_steps, made.shift, made.guidance_scale) == ("renoise", 3, 5.0, 1.0)
    assert "recipe" not in made.model_dump()


@pytest.mark.parametrize("name", sorted(RECIPES))
def test_the_recipes_walk_the_published_levels(name: str) -> None:
    recipe = RECIPES[name]
    sampling = Sampling(solver=recipe.solver, num_steps=recipe.num_steps, shift=recipe.shift)
    # Entries 1000, 750, 500 and 250 of a table of 1000 levels shifted by 5.
    table = [5 * (k / 1000) / (1 + 4 * (k / 1000)) for k in (1000, 750, 500, 250)]
    assert sampling.sigmas == pytest.approx((*table, 0.0))
    assert recipe.guidance_scale == 1
