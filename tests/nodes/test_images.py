"""The picture and mask nodes do what their tables say, on pictures small enough to check by hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from cygnet.graph.context import Context, running
from cygnet.graph.events import NodeSpoke, Place
from cygnet.graph.folders import Folders
from cygnet.media.video import open_writer
from cygnet.nodes import basics, files, images, latents, sampling
from cygnet.nodes.workshop import ModelHandle, Node, Workshop
from cygnet.types import CancelToken


@pytest.fixture
def shop(tmp_path: Path) -> Workshop:
    made = Workshop(Folders.below(tmp_path))
    made.folders.input.mkdir()
    return made


def run(kind: type[Node], *values: Any) -> Any:
    it: Any = kind()
    return it.run(*values)


def test_sizes_are_told_and_shown() -> None:
    told: list[Any] = []
    with running(Context(Place(node="1", display="1", real="1"), told.append, CancelToken())):
        assert run(images.GetImageSize, torch.zeros(5, 4, 8, 3)) == (8, 4, 5)
    assert isinstance(told[0], NodeSpoke)
    assert "8" in told[0].text


@pytest.mark.parametrize("method", images.METHODS)
def test_pictures_are_scaled(method: str) -> None:
    image = torch.rand(2, 6, 12, 3)
    (scaled,) = run(images.ImageScale, image, method, 8, 4, "disabled")
    assert scaled.shape == (2, 4, 8, 3)
    assert float(scaled.mean()) == pytest.approx(float(image.mean()), abs=0.1)
    assert run(images.ImageScale, image, method, 0, 3, "disabled")[0].shape == (2, 3, 6, 3)
    assert run(images.ImageScale, image, method, 4, 4, "center")[0].shape == (2, 4, 4, 3)
    assert run(images.ImageScale, image, method, 0, 0, "center")[0] is image


def test_a_mask_becomes_transparency() -> None:
    (joined,) = run(images.JoinImageWithAlpha, torch.rand(1, 4, 4, 3), torch.ones(1, 2, 2) * 0.25)
    assert joined.shape == (1, 4, 4, 4)
    assert float(joined[0, 0, 0, 3]) == 0.75


def test_masks_grow_and_shrink() -> None:
    mask = torch.zeros(1, 7, 7)
    mask[0, 3, 3] = 1
    assert int(run(images.GrowMask, mask, 1, True)[0].sum()) == 5
    assert int(run(images.GrowMask, mask, 1, False)[0].sum()) == 9
    assert int(run(images.GrowMask, mask, 2, True)[0].sum()) == 13
    grown = run(images.GrowMask, mask, 2, False)[0]
    assert torch.equal(run(images.GrowMask, grown, -2, False)[0], mask)
    assert torch.equal(run(images.GrowMask, mask, 0, True)[0], mask)


def test_a_border_is_grey_and_marked_and_feathered_only_where_it_is() -> None:
    padded, mask = run(images.ImagePadForOutpaint, torch.zeros(1, 16, 16, 3), 8, 0, 0, 0, 4)
    assert padded.shape == (1, 16, 24, 3)
    assert float(padded[0, 0, 0, 0]) == 0.5
    assert mask[0, 8, :8].tolist() == [1] * 8
    assert mask[0, 8, 8:13].tolist() == [1, 0.5625, 0.25, 0.0625, 0]
    assert float(mask[0, :, -1].sum()) == 0


def test_a_picture_is_pasted_through_a_mask_and_cut_at_the_edge() -> None:
    below, above = torch.zeros(1, 4, 4, 3), torch.ones(1, 2, 2, 3)
    (pasted,) = run(images.ImageCompositeMasked, below, above, 3, 3, False)
    assert float(pasted.sum()) == 3
    mask = torch.tensor([[[1.0, 0.0], [0.5, 0.0]]])
    (pasted,) = run(images.ImageCompositeMasked, below, above, 0, 0, False, mask)
    assert pasted[0, :2, :2, 0].tolist() == [[1, 0], [0.5, 0]]
    (pasted,) = run(images.ImageCompositeMasked, below, above, 0, 0, True)
    assert float(pasted.mean()) == 1
    assert float(run(images.ImageCompositeMasked, below, above, 9, 9, False)[0].sum()) == 0
    assert float(below.sum()) == 0


def test_canny_draws_thin_lines_where_brightness_jumps() -> None:
    image = torch.zeros(1, 20, 20, 3)
    image[:, 5:15, 5:15] = 1
    (edges,) = run(images.Canny, image, 0.4, 0.8)
    assert edges.shape == image.shape
    assert set(edges.unique().tolist()) == {0.0, 1.0}
    on = edges[0, :, :, 0]
    assert float(on[10, 3:8].sum()) in (1.0, 2.0)
    assert float(on[8:12, 8:12].sum()) == 0
    assert float(on[:2].sum()) == 0
    assert float(run(images.Canny, torch.full((1, 8, 8, 3), 0.5), 0.4, 0.8)[0].sum()) == 0


def test_a_video_of_the_input_folder_is_taken_apart(shop: Workshop) -> None:
    frames = np.zeros((5, 16, 16, 3), np.uint8)
    frames[:, :, :, 0] = 200
    with open_writer(shop.folders.input / "a.mp4", width=16, height=16, fps=8) as writer:
        writer.write(frames)
    loader: Any = files.LoadVideo.bind(shop)
    assert loader.INPUT_TYPES()["required"]["file"][1]["options"] == ["a.mp4"]
    (video,) = loader().run("a.mp4")
    pictures, audio, fps = run(images.GetVideoComponents, video)
    assert (pictures.shape, audio, fps) == ((5, 16, 16, 3), None, 8.0)
    assert float(pictures[..., 0].mean()) == pytest.approx(200 / 255, abs=0.03)
    assert loader.VALIDATE_INPUTS("none.mp4") is not True


def test_small_nodes() -> None:
    assert run(basics.PrimitiveInt, 3) == (3,)
    mask = run(basics.SolidMask, 0.25, 4, 2)[0]
    assert (mask.shape, float(mask.mean())) == ((1, 2, 4), 0.25)
    assert float(run(basics.InvertMask, mask)[0].mean()) == 0.75
    assert run(basics.MaskToImage, mask)[0].shape == (1, 2, 4, 3)
    picture = torch.rand(3, 2, 2, 4)
    assert torch.equal(run(basics.ImageToMask, picture, "blue")[0], picture[..., 2])
    assert run(basics.RepeatImageBatch, picture, 2)[0].shape[0] == 6
    assert torch.equal(run(basics.ImageFromBatch, picture, -1, 5)[0], picture[2:])
    assert torch.equal(run(basics.ImageFromBatch, picture, 1, 1)[0], picture[1:2])
    assert run(basics.PreviewAny, [1, "a"]) == {"ui": {"text": ["[1, 'a']"]}}
    assert run(latents.EmptySD3LatentImage, 64, 32, 2)[0]["samples"].shape == (2, 16, 1, 4, 8)
    handle = ModelHandle(Path("x"))
    assert run(sampling.ModelSamplingSD3, handle, 5.0)[0].shift == 5.0
    it: Any = sampling.UNetTemporalAttentionMultiply()
    assert it.run(handle, self_structural=2.0) == (handle,)
    trimmed = run(latents.TrimVideoLatent, {"samples": torch.zeros(1, 16, 5, 2, 2), "x": 1}, 2)[0]
    assert (trimmed["samples"].shape[2], trimmed["x"]) == (3, 1)
