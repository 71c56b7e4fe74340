from __future__ import annotations

import gc
import threading
import weakref
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from cygnet.errors import ModelNotFoundError
from cygnet.runtime.residency import Resident, Stage, StageResidency, loaded, moved


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


def test_a_component_that_is_released_while_it_is_in_use_goes_when_that_is_over() -> None:
    away: list[torch.nn.Module] = []
    residency = StageResidency({"vae": Stage(lambda: torch.nn.Linear(1, 1), away.append)})
    with residency.use("vae"):
        with residency.use("vae"):
            residency.release("vae")
        assert not away
        assert residency.present == ("vae",)
    assert len(away) == 1
    assert residency.present == ()


def test_threads_take_turns_where_the_stage_says_so() -> None:
    residency = StageResidency({"dit": Stage(lambda: torch.nn.Linear(1, 1), lambda _: None, in_turns=True)})
    inside, most, lock = [0], [0], threading.Lock()
    together = threading.Event()

    def use(_: int) -> None:
        with residency.use("dit"), residency.use("dit"):  # and within its turn a thread may use it again
            with lock:
                inside[0] += 1
                most[0] = max(most[0], inside[0])
            together.wait(0.05)
            with lock:
                inside[0] -= 1
        residency.release("dit")

    with ThreadPoolExecutor(3) as pool:
        list(pool.map(use, range(3)))
    assert most == [1]


def test_a_turn_may_be_given_back_by_another_thread() -> None:
    """That of a generator which another thread closes."""
    residency = StageResidency({"dit": Stage(lambda: torch.nn.Linear(1, 1), lambda _: None, in_turns=True)})
    turn = residency.use("dit")
    turn.__enter__()

    def use() -> bool:
        with residency.use("dit"):
            return True

    with ThreadPoolExecutor(1) as pool:
        pool.submit(turn.__exit__, None, None, None).result(10)
        assert pool.submit(use).result(10)
