"""A model as small as its structure allows, and four clips to teach it."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from teaching import Configure, write_clip

from cygnet.training.config import TrainConfig
from cygnet.training.config_file import config_from
from random_models import write_model


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, str]]:
    """Files of a text-to-video and an image-to-video model."""
    place = tmp_path_factory.mktemp("models")
    found = {}
    for variant in ("t2v", "i2v"):
        (place / variant).mkdir()
        paths = write_model(place / variant, variant)  # type: ignore[arg-type]
        found[variant] = {name: str(path) for name, path in paths.items()}
    return found


@pytest.fixture(scope="session")
def made_clips(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three videos of 5 frames and a picture, each with a caption."""
    folder = tmp_path_factory.mktemp("made") / "clips"
    folder.mkdir()
    for number in range(3):
        write_clip(folder / f"{number}.mp4", seed=number).with_suffix(".txt").write_text(f"the blue square {number}")
    Image.fromarray(np.full((40, 40, 3), 90, np.uint8)).save(folder / "still.png")
    (folder / "still.txt").write_text("a red ball\n")
    return folder


@pytest.fixture(scope="session")
def shared_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where all tests keep what they have encoded: the same clips give the same rows."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture
def clips(tmp_path: Path, made_clips: Path) -> Path:
    """A copy of the clips that a test may change."""
    return Path(shutil.copytree(made_clips, tmp_path / "clips"))


@pytest.fixture
def configure(tmp_path: Path, clips: Path, models: dict[str, dict[str, str]], shared_cache: Path) -> Configure:
    """A complete configuration; keyword arguments replace or extend its tables."""

    def make(variant: str = "t2v", **changes: Any) -> TrainConfig:
        fields: dict[str, Any] = {
            "method": "lora",
            "model": models[variant],
            "output": "run",
            "steps": 4,
            "batch": 2,
            "device": "cpu",
            "data": {"path": "clips", "sizes": ["32x32"], "frames": [5], "cache": str(shared_cache)},
            "lora": {"rank": 2},
            "memory": {"dtype": "float32"},
            "optimizer": {"rate": 1e-2, "warmup": 1},
            "every": {"save": 2, "log": 1},
        }
        for name, value in changes.items():
            old = fields.get(name)
            fields[name] = {**old, **value} if isinstance(old, dict) and isinstance(value, dict) else value
        if fields["method"] != "lora":
            del fields["lora"]
        if fields["method"] == "vae":
            del fields["data"]["cache"]
        return config_from(fields, tmp_path)

    return make
