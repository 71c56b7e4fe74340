from __future__ import annotations

from pathlib import Path

import pytest

from cygnet.graph.folders import Folders
from cygnet.nodes.workshop import FileHandle, ModelHandle, Workshop
from random_models import write_model


def test_a_network_is_built_once_while_there_is_room(tmp_path: Path) -> None:
    paths, shop = write_model(tmp_path), Workshop(Folders.below(tmp_path), device="cpu")
    vae, dit = shop.vae(FileHandle(paths["vae"])), shop.dit(ModelHandle(paths["dit"]))
    assert shop.vae(FileHandle(paths["vae"])) is vae
    assert shop.dit(ModelHandle(paths["dit"])) is dit
    shop.unload()
    assert shop.vae(FileHandle(paths["vae"])) is not vae


def test_networks_used_longest_ago_make_room_for_one_that_would_not_fit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    paths, shop = write_model(tmp_path), Workshop(Folders.below(tmp_path), device="cpu")
    text = shop.text_encoder(FileHandle(paths["text_encoder"]))
    vae = shop.vae(FileHandle(paths["vae"]))
    shop.text_encoder(FileHandle(paths["text_encoder"]))
    # Room again as soon as one is gone.
    monkeypatch.setattr("cygnet.nodes.workshop.fits", lambda *_: len(shop._loaded) < 2)
    shop.dit(ModelHandle(paths["dit"]))
    assert shop.text_encoder(FileHandle(paths["text_encoder"])) is text
    assert shop.vae(FileHandle(paths["vae"])) is not vae
