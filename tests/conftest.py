"""Its being here makes pytest put this folder on the import path, so that tests can import `support` and `golden`."""

from __future__ import annotations

import gc
import os
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from cygnet.types import ComponentName


@pytest.fixture(autouse=True, scope="session")
def _on_its_own(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Nothing that a test keeps reaches the caches of whoever runs it, and no test asks the registry of packs."""
    os.environ["XDG_CACHE_HOME"] = str(tmp_path_factory.mktemp("cache"))
    os.environ.setdefault("CYGNET_REGISTRY", "http://127.0.0.1:9")  # nobody listens there


@pytest.fixture(autouse=True, scope="module")
def _few_objects() -> None:
    """Each release of a network collects garbage; what there is before a module need not be looked at each time.

    It is not thawed behind the module: that would make the next one look at all of it once more.
    """
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session")
def i2v_parts(tmp_path_factory: pytest.TempPathFactory) -> dict[ComponentName, Path]:
    """The files of an image-to-video model of random weights, for tests that only read them."""
    from random_models import write_model

    return write_model(tmp_path_factory.mktemp("i2v-parts"), "i2v")
