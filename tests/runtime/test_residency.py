from __future__ import annotations

import gc
import weakref

import pytest
import torch

from cygnet.errors import ModelNotFoundError
from cygnet.runtime.residency import Resident, StageResidency, loaded, moved


def test_resident_components_stay_after_release() -> None:
    module = torch.nn.Linear(2, 2)
    residency = Resident({"vae": module})
    for _ in range(2):
        with residency.use("vae") as present:
            assert present is module
        residency.release("vae")


def test_a_loaded_component_is_loaded_once_per_stage_and_freed_after_it() -> None:
    made: list[weakref.ref[torch.nn.Module]] = []

    def load() -> torch.nn.Module:
        module = torch.nn.Linear(2, 2)
        made.append(weakref.ref(module))
        return module

    residency = StageResidency({"dit": loaded(load)})
    for _ in range(2):
        with residency.use("dit"):
            assert residency.present == ("dit",)
    assert len(made) == 1
    residency.release("dit")
    gc.collect()
    assert made[0]() is None
    with residency.use("dit"):
        pass
    assert len(made) == 2


def test_a_moved_component_is_on_its_device_for_its_stage_alone() -> None:
    module = torch.nn.Linear(2, 2)
    residency = StageResidency({"vae": moved(module, "meta", home="meta")})
    assert module.weight.device.type == "cpu"
    with residency.use("vae") as present:
        assert present is module
        assert module.weight.device.type == "meta"
    residency.release("vae")
    assert residency.present == ()


def test_releasing_what_is_not_there_does_nothing() -> None:
    StageResidency({"vae": loaded(lambda: torch.nn.Linear(1, 1))}).release("vae")


def test_a_component_that_the_model_has_not_is_named() -> None:
    for residency in (Resident({}), StageResidency({})):
        with pytest.raises(ModelNotFoundError, match="without its image_encoder"), residency.use("image_encoder"):
            pass
