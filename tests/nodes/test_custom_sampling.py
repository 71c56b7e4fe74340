"""Sampling in parts equals sampling in one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from cygnet.checkpoints import save_official
from cygnet.graph.context import Context, running
from cygnet.graph.events import NodePreviewed, Place
from cygnet.graph.folders import Folders
from cygnet.nodes import custom_sampling, sampling
from cygnet.nodes.conditioning import Conditioning
from cygnet.nodes.workshop import ModelHandle, Node, Workshop
from cygnet.types import CancelToken
from random_models import dit_config, state_of
from support import relative_l2

PROMPT: Conditioning = [[torch.ones(1, 3, 32), {}]]
NEGATIVE: Conditioning = [[torch.zeros(1, 2, 32), {}]]
EMPTY = {"samples": torch.zeros(2, 16, 2, 4, 4), "kept": 1}


@pytest.fixture
def shop(tmp_path: Path) -> Workshop:
    return Workshop(Folders.below(tmp_path))


@pytest.fixture
def model(tmp_path: Path) -> ModelHandle:
    config = dit_config("t2v")
    return ModelHandle(save_official(tmp_path / "dit.safetensors", state_of(config), config), dtype="float32")


def node(shop: Workshop, kind: type[Node]) -> Any:
    return kind.bind(shop)()


def whole(shop: Workshop, model: ModelHandle, sampler: str = "euler", cfg: float = 3.0) -> torch.Tensor:
    it = node(shop, sampling.KSampler)
    return it.run(model, 7, 4, cfg, sampler, "simple", PROMPT, NEGATIVE, EMPTY)[0]["samples"]  # type: ignore[no-any-return]


@pytest.mark.parametrize(("pause", "count"), [(0.0, 8), (1000.0, 4)])
def test_previews_keep_a_pause_between_them(
    shop: Workshop, model: ModelHandle, pause: float, count: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sampling, "SHOW_EVERY", pause)
    shown: list[Any] = []
    place = Place(node="1", display="1", real="1")
    with running(Context(place, lambda it: shown.append(it) if isinstance(it, NodePreviewed) else None, CancelToken())):
        whole(shop, model)
    assert len(shown) == count, "of two videos of four steps, each with its first and its last"


@pytest.mark.parametrize("sampler", ["euler", "heun", "er_sde"])
def test_a_custom_sampler_gives_what_the_plain_one_gives(shop: Workshop, model: ModelHandle, sampler: str) -> None:
    sigmas = node(shop, custom_sampling.BasicScheduler).run(model, "simple", 4, 1.0)[0]
    chosen = node(shop, custom_sampling.KSamplerSelect).run(sampler)[0]
    it = node(shop, custom_sampling.SamplerCustom)
    out, estimate = it.run(model, True, 7, 3.0, PROMPT, NEGATIVE, chosen, sigmas, EMPTY)
    assert relative_l2(out["samples"], whole(shop, model, sampler)) < 1e-4
    assert out["kept"] == estimate["kept"] == 1
    assert torch.isfinite(estimate["samples"]).all()


def test_noise_and_guidance_may_come_from_nodes_of_their_own(shop: Workshop, model: ModelHandle) -> None:
    sigmas = node(shop, custom_sampling.BasicScheduler).run(model, "simple", 4, 1.0)[0]
    noise = node(shop, custom_sampling.RandomNoise).run(7)[0]
    it = node(shop, custom_sampling.SamplerCustomAdvanced)
    guided = node(shop, custom_sampling.CFGGuider).run(model, PROMPT, NEGATIVE, 3.0)[0]
    assert relative_l2(it.run(noise, guided, "euler", sigmas, EMPTY)[0]["samples"], whole(shop, model)) < 1e-4
    plain = node(shop, custom_sampling.BasicGuider).run(model, PROMPT)[0]
    out = it.run(noise, plain, "euler", sigmas, EMPTY)[0]["samples"]
    assert relative_l2(out, whole(shop, model, cfg=1.0)) < 1e-4
    assert relative_l2(out, whole(shop, model)) > 1e-3


def test_the_last_estimate_is_where_euler_ends(shop: Workshop, model: ModelHandle) -> None:
    sigmas = node(shop, custom_sampling.BasicScheduler).run(model, "simple", 4, 1.0)[0]
    it = node(shop, custom_sampling.SamplerCustom)
    out, estimate = it.run(model, True, 7, 3.0, PROMPT, NEGATIVE, "euler", sigmas, EMPTY)
    assert torch.allclose(out["samples"], estimate["samples"], atol=1e-4)


def test_two_samplers_that_share_the_steps_give_what_one_gives(shop: Workshop, model: ModelHandle) -> None:
    it = node(shop, sampling.KSamplerAdvanced)
    rest = (7, 4, 3.0, "euler", "simple", PROMPT, NEGATIVE)
    first = it.run(model, "enable", *rest, EMPTY, 0, 2, "enable")[0]
    second = it.run(model, "disable", *rest, first, 2, 10000, "disable")[0]
    assert torch.allclose(second["samples"], whole(shop, model), atol=1e-4)
    assert torch.allclose(it.run(model, "enable", *rest, EMPTY, 0, 10000, "disable")[0]["samples"], whole(shop, model))


def test_levels_are_split_at_the_one_they_share(shop: Workshop) -> None:
    high, low = node(shop, custom_sampling.SplitSigmas).run(torch.tensor([1.0, 0.5, 0.2, 0.0]), 1)
    assert high.tolist() == [1.0, 0.5]
    assert low.tolist() == pytest.approx([0.5, 0.2, 0.0])


def test_without_a_step_to_make_the_latents_come_back(shop: Workshop, model: ModelHandle) -> None:
    it = node(shop, sampling.KSamplerAdvanced)
    assert (
        it.run(model, "enable", 7, 4, 3.0, "euler", "simple", PROMPT, NEGATIVE, EMPTY, 9, 10000, "disable")[0] is EMPTY
    )
    sigmas = node(shop, custom_sampling.BasicScheduler).run(model, "simple", 4, 0.0)[0]
    assert sigmas.numel() == 0
