"""What the teaching recipe trains on, and what it measures with."""

from __future__ import annotations

import tomllib
from dataclasses import replace
from pathlib import Path

import pytest
from recipes.teach import diagonal
from recipes.teach.diagonal import (
    CLIPS,
    SETTINGS,
    TEMPLATE,
    combinations,
    measured_scenes,
    parts_with,
    preserved,
    write_known,
)
from recipes.tiny.captions import plain_caption
from recipes.tiny.world import BACKGROUNDS, COLOURS, DIAGONAL, MOTIONS, SHAPES

from cygnet.training.config_file import config_from
from cygnet.training.dataset import read_items


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
def test_the_training_file_is_valid_and_preserves_known_clips_and_the_empty_prompt(method: str, tmp_path: Path) -> None:
    config = config_from(tomllib.loads(TEMPLATE.format(method=method, settings=SETTINGS[method])), tmp_path)
    assert config.method == method
    assert config.preserve.path == str(tmp_path / "known")
    assert config.preserve.empty > 0


def test_what_is_preserved_has_every_known_motion_and_not_the_new_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    captions = preserved()
    assert not any(DIAGONAL in text for text in captions)
    assert all(any(motion in text for text in captions) for motion in MOTIONS)
    monkeypatch.setattr(diagonal, "PRESERVED", 2)
    monkeypatch.setattr(diagonal, "TOGETHER", 2)
    monkeypatch.setattr(diagonal, "MEASURED", replace(diagonal.MEASURED, steps=1))
    parts = parts_with(None, "lora")
    write_known(parts, tmp_path)
    items = read_items(tmp_path)
    assert [item.caption for item in items] == captions[:2]
    assert [item.path.name for item in items] == ["000.mp4", "001.mp4"]
    before = [item.path.stat().st_mtime_ns for item in items]
    write_known(parts, tmp_path)
    assert [item.path.stat().st_mtime_ns for item in items] == before, "those that are there stay"
