"""Previews look like what they foretell."""

from __future__ import annotations

import io

import numpy as np
import torch
from PIL import Image

import cygnet
from cygnet.models.dit.config import T2V_1_3B, TINY_T2V
from cygnet.nodes.previews import preview


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
