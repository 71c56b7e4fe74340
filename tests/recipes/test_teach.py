"""What the teaching recipe trains on, and what it measures with."""

from __future__ import annotations

import json
import tomllib
from pathlib import Path

import pytest
from recipes.teach.diagonal import CLIPS, SETTINGS, TEMPLATE, combinations, measured_scenes, preserved
from recipes.tiny.captions import plain_caption
from recipes.tiny.world import BACKGROUNDS, COLOURS, DIAGONAL, MOTIONS, SHAPES

from cygnet.training.config_file import config_from


def test_the_clips_show_every_colour_shape_and_background_and_none_of_what_is_measured() -> None:
    taught = combinations()[0]
    things = [scene.entities[0] for scene in taught]
    assert len({thing.triple for thing in things}) == CLIPS
    assert {thing.motion for thing in things} == {DIAGONAL}
    assert {thing.colour for thing in things} == set(COLOURS)
    assert {thing.shape for thing in things} == set(SHAPES)
    assert {scene.background for scene in taught} == set(BACKGROUNDS)
    measured = {scene.entities[0].triple for scene in measured_scenes(100)}
    assert len(measured) == len(COLOURS) * len(SHAPES) - CLIPS
    assert not measured & {thing.triple for thing in things}


def test_no_caption_is_measured_twice_before_all_were_measured_once() -> None:
    captions = [plain_caption(scene) for scene in measured_scenes(12 * len(BACKGROUNDS))]
    assert len(set(captions)) == len(captions)


@pytest.mark.parametrize("method", SETTINGS)
def test_the_training_file_is_valid_and_preserves_known_motions_and_the_empty_prompt(
    method: str, tmp_path: Path
) -> None:
    text = TEMPLATE.format(method=method, settings=SETTINGS[method], captions=preserved())
    config = config_from(tomllib.loads(text), tmp_path)
    assert config.method == method
    assert "" in config.preserve.captions
    assert DIAGONAL not in json.dumps(config.preserve.captions)
    assert all(any(motion in text for text in config.preserve.captions) for motion in MOTIONS)
