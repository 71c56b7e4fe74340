"""The nodes that skip steps."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from cygnet.checkpoints import save_official
from cygnet.graph.folders import Folders
from cygnet.nodes import sampling, step_caches
from cygnet.nodes.workshop import ModelHandle, Workshop
from random_models import dit_config, state_of


@pytest.fixture
def shop(tmp_path: Path) -> Workshop:
    return Workshop(Folders.below(tmp_path))


@pytest.fixture
def model(tmp_path: Path) -> ModelHandle:
    config = dit_config("t2v")
    return ModelHandle(save_official(tmp_path / "dit.safetensors", state_of(config), config), dtype="float32")


def latents(shop: Workshop, model: ModelHandle) -> torch.Tensor:
    it: Any = sampling.KSampler.bind(shop)()
    prompt, negative = [[torch.ones(1, 3, 32), {}]], [[torch.zeros(1, 2, 32), {}]]
    start = {"samples": torch.zeros(1, 16, 2, 4, 4)}
    return it.run(model, 7, 8, 3.0, "euler", "simple", prompt, negative, start)[0]["samples"]  # type: ignore[no-any-return]


@pytest.mark.parametrize("name", ["EasyCache", "LazyCache"])
def test_steps_are_skipped_between_the_given_shares_and_the_log_says_how_many(
    name: str, shop: Workshop, model: ModelHandle, caplog: pytest.LogCaptureFixture
) -> None:
    plain = latents(shop, model)
    it: Any = getattr(step_caches, name).bind(shop)()
    [patched] = it.run(model, 3.0, 0.15, 0.95)
    with caplog.at_level(logging.INFO, "cygnet.nodes.sampling"):
        assert not torch.equal(latents(shop, patched), plain)
    assert "4 of 8 evaluations were answered from earlier ones" in caplog.text
    assert torch.equal(latents(shop, it.run(model, 0.0, 0.15, 0.95)[0]), plain)
    assert torch.equal(latents(shop, it.run(model, 3.0, 0.9, 0.1)[0]), plain)
    assert torch.equal(latents(shop, replace(patched, caching=None)), plain)
