"""Its being here makes pytest put this folder on the import path, so that tests can import `support` and `golden`."""

from __future__ import annotations

import os

import pytest


@pytest.fixture(autouse=True, scope="session")
def _on_its_own(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Nothing that a test keeps reaches the caches of whoever runs it, and no test asks the registry of packs."""
    os.environ["XDG_CACHE_HOME"] = str(tmp_path_factory.mktemp("cache"))
    os.environ.setdefault("CYGNET_REGISTRY", "http://127.0.0.1:9")  # nobody listens there
