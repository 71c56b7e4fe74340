"""Tracks of Wan-Move: made, joined, carried into the latents, drawn."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from cygnet.checkpoints.catalogue import EMBEDDED
from cygnet.errors import RequestError
from cygnet.graph.folders import Folders
from cygnet.nodes import move
from cygnet.nodes.workshop import FileHandle, Workshop


def made(**changes: Any) -> dict[str, Any]:
    given: dict[str, Any] = {
        "width": 160, "height": 80, "start_x": 0.0, "start_y": 0.5, "end_x": 1.0, "end_y": 0.5, "num_frames": 5,
        "num_tracks": 3, "track_spread": 0.1, "bezier": False, "mid_x": 0.5, "mid_y": 0.0, "interpolation": "linear",
    }  # fmt: skip
    tracks, frames = move.GenerateTracks().run(**(given | changes))
    assert frames == len(tracks["track_path"])
    return dict(tracks)


def test_tracks_run_side_by_side_along_a_line() -> None:
    path = made()["track_path"]
    assert path[:, 1].tolist() == [[0, 40], [40, 40], [80, 40], [120, 40], [160, 40]]
    assert torch.allclose(path[:, 2] - path[:, 0], torch.tensor([0.0, 24.0]))  # twice a tenth of (160 + 80) / 2
    assert made()["track_visibility"].all()


def test_a_curve_passes_its_ends_and_bends_to_its_middle() -> None:
    path = made(bezier=True, num_tracks=1)["track_path"][:, 0]
    assert path[0].tolist() == [0, 40]
    assert path[-1].tolist() == [160, 40]
    assert path[2].tolist() == [80, 20]  # half way to the control point


@pytest.mark.parametrize(
    ("kind", "middle"), [("ease_in", 40), ("ease_out", 120), ("ease_in_out", 80), ("constant", 0), ("linear", 80)]
)
def test_speed_along_the_path(kind: str, middle: float) -> None:
    assert made(interpolation=kind, num_tracks=1)["track_path"][2, 0, 0] == middle


def test_what_stands_still_is_spread_sideways_and_a_mask_hides() -> None:
    mask = torch.zeros(2, 4, 4)
    mask[0, 1, 1] = 1
    tracks = made(end_x=0.0, track_mask=mask)
    assert tracks["track_path"][0, :, 0].tolist() == [-12, 0, 12]
    assert tracks["track_visibility"].tolist() == [[True] * 3, *[[False] * 3] * 4]


def test_tracks_from_coordinates() -> None:
    text = "[[{'x': 1, 'y': 2}, {'x': 3, 'y': 4}], [{'x': 5, 'y': 6}]]"
    tracks, frames = move.WanMoveTracksFromCoords().run(text)
    assert frames == 2
    assert tracks["track_path"][:, 0].tolist() == [[1, 2], [3, 4]]
    assert tracks["track_visibility"].tolist() == [[True, True], [True, False]]
    with pytest.raises(RequestError, match="no track"):
        move.WanMoveTracksFromCoords().run("nonsense")


def test_tracks_are_joined_if_they_are_as_long() -> None:
    one, other = made(num_tracks=2), made(num_tracks=1)
    (both,) = move.WanMoveConcatTrack().run(one, other)  # type: ignore[arg-type]
    assert both["track_path"].shape == (5, 3, 2)
    assert move.WanMoveConcatTrack().run(one) == (one,)  # type: ignore[arg-type]
    with pytest.raises(RequestError, match="5 and 9 frames"):
        move.WanMoveConcatTrack().run(one, made(num_frames=9))  # type: ignore[arg-type]


def test_a_feature_follows_its_track_with_its_strength() -> None:
    path = torch.tensor([[8.0, 0.0], [0, 0], [0, 0], [0, 0], [17, 9], [0, 0], [0, 0], [0, 0], [500, 0]])[:, None]
    hidden = torch.zeros(9, 1, 2)
    tracks: Any = {
        "track_path": torch.cat((path, hidden), dim=1),
        "track_visibility": torch.tensor([[True, False]]).expand(9, 2),
    }
    cells = move.track_cells(tracks, 32, 16, 9)
    assert cells.tolist() == [[[0, 1], [-1, -1]], [[1, 2], [-1, -1]], [[-1, -1], [-1, -1]]]
    latents = torch.arange(3 * 2 * 4).float().view(1, 1, 3, 2, 4)
    out = move.carried(latents, cells, 0.5)
    changed = latents.clone()
    changed[0, 0, 1, 1, 2] = (latents[0, 0, 1, 1, 2] + latents[0, 0, 0, 0, 1]) / 2
    assert torch.equal(out, changed)


def test_a_track_leads_to_the_cells_that_are_left_of_a_size_off_the_grid() -> None:
    points = [[(1.0, 2.0)], [(2.0, 2.0)], [(73.9, 41.9)], [(74.0, 10.0)]]  # 76 x 44 without two pixels on each side
    path = torch.tensor(points).repeat_interleave(4, dim=0)
    tracks: Any = {"track_path": path, "track_visibility": torch.ones(16, 1, dtype=torch.bool)}
    assert move.track_cells(tracks, 76, 44, 16)[:, 0].tolist() == [[-1, -1], [0, 0], [4, 8], [-1, -1]]


def test_the_positive_side_alone_is_moved(tmp_path: Path) -> None:
    shop = Workshop(Folders.below(tmp_path), device="cpu")
    node: Any = move.WanMoveTrackToVideo.bind(shop)()
    given = [[torch.zeros(1, 2, 4), {}]]
    picture = torch.rand(1, 64, 128, 3, generator=torch.Generator().manual_seed(0))
    tracks = made(width=128, height=64, num_frames=9)
    vae = FileHandle(EMBEDDED / "vae.safetensors")
    positive, negative, latent = node.run(given, given, vae, 1.0, 128, 64, 9, 1, picture, tracks)
    moved, still = (it[0][1]["concat_latent_image"] for it in (positive, negative))
    assert latent["samples"].shape == moved.shape == (1, 16, 3, 8, 16)
    assert torch.equal(moved[:, :, 0], still[:, :, 0])
    assert torch.equal(moved[:, :, 1, 4, 8], still[:, :, 0, 4, 0])
    plain = node.run(given, given, vae, 0.0, 128, 64, 9, 1, picture, tracks)[0]
    assert torch.equal(plain[0][1]["concat_latent_image"], still)


def test_tracks_are_drawn_on_frames() -> None:
    node = move.WanMoveVisualizeTracks()
    (frames,) = node.run(torch.zeros(1, 80, 160, 3), 24, 6, 1.0, 4, made(num_tracks=1))  # type: ignore[arg-type]
    assert frames.shape == (5, 80, 160, 3)
    assert frames[2, 40, 80].max() > 0.9
    assert frames[2, 40, 60].max() > 0.2, "there is no tail"
    assert frames[2, 40, 130].max() == 0
    images = torch.rand(2, 8, 8, 3)
    assert node.run(images, 24, 6, 1.0, 4)[0] is images
