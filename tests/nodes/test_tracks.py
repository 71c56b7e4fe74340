"""Features of the first frame travel along the tracks."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from cygnet.checkpoints.catalogue import EMBEDDED
from cygnet.graph.folders import Folders
from cygnet.nodes import conditioning, sampling, tracks
from cygnet.nodes.workshop import FileHandle, Workshop


def test_tracks_are_read_in_every_form_and_nonsense_is_none() -> None:
    one = [(1.0, 2.0), (3.0, 4.0)]
    assert tracks.parse_tracks('[{"x": 1, "y": 2}, {"x": 3, "y": 4}]') == [one]
    assert tracks.parse_tracks("[[{'x': 1, 'y': 2}, {'x': 3, 'y': 4}]]") == [one]
    for text in ("", "[]", "{}", "[1]", '[[{"x": 1}]]', "[" * 100_000, '[["a"]]'):
        assert tracks.parse_tracks(text) == []


def test_points_are_counted_from_the_middle_in_halves_of_the_short_side() -> None:
    places, seen = tracks.track_places([[(64, 32), (96, 32)]], 128, 64, 9)
    assert places.shape == (9, 1, 2)
    assert places[0, 0].tolist() == [0, 0]
    assert seen[0, 0] == 1
    assert float(seen[2:].sum()) == 0, "a track of two points is unseen after them"


def test_a_whole_track_is_spread_over_the_frames() -> None:
    line = [(float(i), 0.0) for i in range(121)]
    places, seen = tracks.track_places([line], 2, 2, 5)
    assert (places[:, 0, 0] + 1).tolist() == [0, 1, 31, 61, 91]
    assert seen.tolist() == [[1.0]] * 5


def test_the_feature_at_the_start_appears_where_the_track_leads() -> None:
    clean = torch.zeros(16, 2, 9, 9)
    clean[:, 0, 4, 4] = 5.0  # what is in the middle of the first frame
    places = torch.zeros(5, 1, 2)
    places[1:, 0] = torch.tensor([0.75, 0.75])
    moved, strength = tracks.moved_along(clean, places, torch.ones(5, 1), 220.0, 2)
    cell = moved[0, 1].abs().flatten().argmax()
    assert divmod(int(cell), 9) == (7, 7)
    assert float(moved[0, 1, 7, 7]) == pytest.approx(5.0, rel=1e-3)
    assert torch.equal(moved[:, 0], clean[:, 0])
    assert float(strength[0].min()) == 1
    assert float(strength[1, 7, 7]) == pytest.approx(1, rel=1e-3)
    assert float(strength[1, 0, 0]) < 1e-6


def test_an_unseen_track_does_nothing() -> None:
    clean = torch.rand(16, 2, 4, 4)
    seen = torch.zeros(5, 1)
    seen[0] = 1
    moved, strength = tracks.moved_along(clean, torch.zeros(5, 1, 2), seen, 220.0, 2)
    assert torch.equal(moved, clean)
    assert float(strength[1:].abs().max()) == 0


def test_the_node_attaches_moved_latents_and_falls_back_to_a_picture_alone(tmp_path: Path) -> None:
    shop = Workshop(Folders.below(tmp_path))
    it: Any = tracks.WanTrackToVideo.bind(shop)()
    prompt: conditioning.Conditioning = [[torch.zeros(1, 2, 32), {}]]
    vae, picture = FileHandle(EMBEDDED / "vae.safetensors"), torch.rand(1, 32, 64, 3)
    drawn = json.dumps([{"x": 16 + i / 4, "y": 16} for i in range(121)])
    rest = (64, 32, 17, 1, 5.0, 2, picture, torch.ones(1, 3, 4))
    positive, negative, latent = it.run(prompt, prompt, vae, drawn, *rest)
    extras = positive[0][1]
    assert latent["samples"].shape == (1, 16, 5, 4, 8)
    assert extras["concat_latent_image"].shape == (1, 16, 5, 4, 8)
    assert extras["concat_mask"].shape == (1, 4, 5, 4, 8)
    assert float(extras["concat_mask"][:, :, 0].abs().max()) == 0
    assert negative[0][1]["clip_vision_output"] is extras["clip_vision_output"]
    plain = it.run(prompt, prompt, vae, "[]", *rest)[0][0][1]
    assert plain["concat_mask"].shape == (1, 1, 5, 4, 8)
    given = sampling.given_frames(extras, 20, latent["samples"])
    assert not torch.allclose(given[:, 4:, 1:], sampling.given_frames(plain, 20, latent["samples"])[:, 4:, 1:])
