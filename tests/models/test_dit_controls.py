"""What the controlled variants add to the transformer, and what they refuse."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import pytest
import torch

import cygnet
from cygnet.checkpoints import read_component, save_diffusers_component, save_official
from cygnet.errors import WeightFileError
from cygnet.models.dit.config import DiTConfig, Variant
from cygnet.models.dit.control import VaceContext
from cygnet.models.dit.model import DiT, initialise
from random_models import dit_config, state_of
from support import relative_l2


def make(config: DiTConfig) -> DiT:
    torch.manual_seed(0)
    dit = DiT(config)
    initialise(dit)
    torch.nn.init.normal_(dit.head.head.weight, std=0.05)
    return dit.eval().requires_grad_(False)


def inputs(config: DiTConfig) -> dict[str, Any]:
    torch.manual_seed(1)
    given: dict[str, Any] = {
        "latents": torch.randn(1, 16, 2, 4, 6),
        "timestep": torch.full((1,), 700.0),
        "context": torch.randn(1, 9, config.text_dim),
    }
    if config.image_dim is not None:
        given["image_context"] = torch.randn(1, 5, config.image_dim)
        given["image_condition"] = torch.randn(1, config.condition_channels, 2, 4, 6)
    return given


def control(strength: float = 1.0) -> VaceContext:
    torch.manual_seed(2)
    return VaceContext(torch.randn(1, 96, 2, 4, 6), strength)


@pytest.mark.parametrize("variant", get_args(Variant))
def test_every_variant_is_told_from_its_file(tmp_path: Path, variant: Variant) -> None:
    config = dit_config(variant)
    save_official(tmp_path / "dit.safetensors", state_of(config), config)
    assert cygnet.load_dit(tmp_path / "dit.safetensors").config == config


def test_a_vace_model_keeps_its_names_and_layers_in_diffusers_layout(tmp_path: Path) -> None:
    config = replace(dit_config("vace"), num_layers=3, vace_layers=(0, 2))
    state = state_of(config)
    weights = read_component(save_diffusers_component(tmp_path / "dit", state, config))
    assert weights.config == config
    assert set(weights.sources_of) == set(state)
    for name, value in state.items():
        assert torch.equal(weights.tensor(name), value), name


def test_a_model_that_diffusers_has_no_class_for_is_refused_there(tmp_path: Path) -> None:
    config = dit_config("camera")
    with pytest.raises(WeightFileError, match=r"Diffusers has no class for tiny CAMERA .*official layout"):
        save_diffusers_component(tmp_path / "dit", state_of(config), config)
    assert not list(tmp_path.iterdir())


def test_an_untrained_control_branch_changes_nothing() -> None:
    config = dit_config("vace")
    dit, given = make(config), inputs(config)
    assert torch.equal(dit(**given, vace=[control()]), dit(**given))


def test_the_hints_of_several_controls_add_up_by_their_strength() -> None:
    config = replace(dit_config("vace"), num_layers=1)
    dit, given = make(config), inputs(config)
    torch.nn.init.normal_(dit.vace_blocks[0].after_proj.weight, std=0.1)
    plain = dit(**given)
    assert relative_l2(dit(**given, vace=[control()]), plain) > 1e-2
    assert torch.equal(dit(**given, vace=[control(0.0)]), plain)
    assert relative_l2(dit(**given, vace=[control(0.25), control(0.5)]), dit(**given, vace=[control(0.75)])) < 1e-5


def test_a_reference_is_seen_and_is_no_frame_of_the_result() -> None:
    config = dit_config("control")
    dit, given = make(config), inputs(config)
    with_reference = dit(**given, reference=torch.randn(1, 16, 4, 6))
    assert with_reference.shape == given["latents"].shape
    assert relative_l2(with_reference, dit(**given)) > 1e-3


def test_camera_rays_are_seen_frame_by_frame() -> None:
    config = replace(dit_config("camera"), num_layers=1)
    dit, given = make(config), inputs(config)
    dit.blocks[0].modulation.zero_()
    for parameter in (dit.time_projection[1].weight, dit.time_projection[1].bias, dit.blocks[0].cross_attn.o.weight):
        parameter.zero_()  # no attention to others: each frame is on its own
    rays = torch.randn(1, 24, 2, 32, 48)
    changed = rays.clone()
    changed[:, :, 1] += 1
    before, after = dit(**given, camera=rays), dit(**given, camera=changed)
    assert torch.equal(before[:, :, 0], after[:, :, 0])
    assert relative_l2(before[:, :, 1], after[:, :, 1]) > 1e-3


def test_a_skipped_block_is_as_good_as_absent() -> None:
    config = dit_config("t2v")
    dit, given = make(config), inputs(config)
    short = DiT(replace(config, num_layers=1)).requires_grad_(False)
    short.load_state_dict({name: value for name, value in dit.state_dict().items() if not name.startswith("blocks.1.")})
    assert torch.equal(dit(**given, skip_blocks={1}), short(**given))


@pytest.mark.parametrize(
    ("variant", "change", "message"),
    [
        ("t2v", {"vace": [control()]}, "t2v transformer; it takes no vace control"),
        ("t2v", {"camera": torch.zeros(1, 24, 2, 32, 48)}, "takes no camera"),
        ("i2v", {"reference": torch.zeros(1, 16, 4, 6)}, "takes no reference"),
        ("vace", {"vace": [VaceContext(torch.zeros(1, 96, 1, 4, 6))]}, r"must be \[1, 96, 2, 4, 6\]"),
        ("camera", {"camera": torch.zeros(1, 24, 2, 4, 6)}, r"camera must be \[1, 24, 2, 32, 48\]"),
        ("control", {"reference": torch.zeros(1, 16, 1, 4, 6)}, r"reference must be \[1, 16, 4, 6\]"),
    ],
)
def test_controls_of_another_model_or_size_are_refused(variant: Variant, change: dict[str, Any], message: str) -> None:
    config = dit_config(variant)
    with pytest.raises(ValueError, match=message):
        make(config)(**inputs(config), **change)


@pytest.mark.parametrize(
    ("variant", "change", "message"),
    [
        ("vace", {"vace_layers": ()}, "vace_layers is given for vace"),
        ("vace", {"vace_layers": (1, 0)}, "rising"),
        ("vace", {"vace_layers": (0, 2)}, "below 2"),
        ("t2v", {"camera_channels": 24}, "camera_channels is given for camera"),
        ("i2v", {"reference": True}, "for the Fun models"),
    ],
)
def test_a_config_that_contradicts_itself_is_refused(variant: Variant, change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        replace(dit_config(variant), **change)
