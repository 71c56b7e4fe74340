"""Previews look like what they foretell."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

import cygnet
from cygnet.graph.context import Context, running
from cygnet.graph.events import Place
from cygnet.graph.folders import Folders
from cygnet.models.dit.config import T2V_1_3B, TINY_T2V
from cygnet.models.taehv.model import PreviewDecoder
from cygnet.nodes.previews import preview, previews
from cygnet.nodes.workshop import Workshop
from cygnet.types import CancelToken


def test_a_preview_of_the_embedded_model_shows_its_colours() -> None:
    video = torch.full((1, 3, 1, 128, 128), -0.6)
    video[:, 0, :, 32:96, 32:96] = 0.9  # a red square on dark grey
    latents = cygnet.load_vae("tiny-vae").encode(video)
    shown = np.asarray(Image.open(io.BytesIO(preview(latents, TINY_T2V))), np.float64) / 127.5 - 1
    assert shown.shape == (128, 128, 3)
    red, green, blue = shown[56:72, 56:72].mean((0, 1))
    assert red > 0.7 > 0.3 > max(green, blue)
    assert np.abs(shown[:16, :16].mean((0, 1)) + 0.6).max() < 0.2


def test_other_networks_have_the_published_colours_and_bad_values_do_no_harm() -> None:
    latents = torch.zeros(1, 16, 2, 6, 100)
    latents[0, 0, 1, 0, 0] = float("nan")
    picture = Image.open(io.BytesIO(preview(latents, T2V_1_3B)))
    assert picture.size == (512, 31)
    assert np.abs(np.asarray(picture)[20, 400].astype(int) - [104, 116, 84]).max() <= 3


def test_previews_are_as_large_as_the_server_is_told(tmp_path: Path) -> None:
    shown = previews(Workshop(Folders.below(tmp_path), preview_side=40), T2V_1_3B)(torch.zeros(1, 16, 2, 6, 100))
    assert shown is not None
    assert Image.open(io.BytesIO(shown)).size == (40, 2)


def test_taehv_shows_what_comes_where_its_weights_are(tmp_path: Path) -> None:
    shop = Workshop(Folders.below(tmp_path), {"vae_approx": (tmp_path,)})
    latents = torch.zeros(1, 16, 3, 8, 8)
    assert shop.preview_decoder() is None
    plain = previews(shop, T2V_1_3B)(latents)
    decoder = PreviewDecoder()
    for value in decoder.parameters():
        torch.nn.init.zeros_(value)
    decoder.state_dict()["decoder.22.bias"].copy_(torch.tensor([1.0, 0.5, 0.0]))
    save_file(decoder.state_dict(), tmp_path / "taew2_1.safetensors")
    shown = previews(shop, T2V_1_3B)(latents)
    assert shown is not None
    picture = np.asarray(Image.open(io.BytesIO(shown))).astype(int)
    assert picture.shape == (64, 64, 3)
    assert np.abs(picture.mean((0, 1)) - [255, 128, 0]).max() < 4
    assert previews(shop, TINY_T2V)(latents) == preview(latents, TINY_T2V)  # whose latents TAEHV does not know
    with running(asking("latent2rgb")):
        assert previews(shop, T2V_1_3B)(latents) == plain
    with running(asking("none")):
        assert previews(shop, T2V_1_3B)(latents) is None


def test_a_file_that_is_not_taehv_is_named_in_the_log(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "taew2_1.pth").write_bytes(b"<html>")
    shop = Workshop(Folders.below(tmp_path), {"vae_approx": (tmp_path,)})
    assert previews(shop, T2V_1_3B)(torch.zeros(1, 16, 1, 8, 8))
    assert "previews are made without TAEHV" in caplog.text


def asking(method: str) -> Context:
    return Context(Place(node="1", display="1", real="1"), lambda event: None, CancelToken(), method)
