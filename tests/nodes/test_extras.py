"""Smaller nodes: what they give, beside what they declare."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from cygnet.checkpoints.catalogue import EMBEDDED
from cygnet.errors import OutOfMemory, RequestError
from cygnet.graph.context import Context, running
from cygnet.graph.events import NodeSpoke, Place
from cygnet.graph.folders import Folders
from cygnet.models.vae.model import WanVAE
from cygnet.nodes import extras, latents
from cygnet.nodes.catalogue import embedded_files, node_classes
from cygnet.nodes.workshop import FileHandle, Workshop
from cygnet.types import CancelToken


@pytest.fixture
def shop(tmp_path: Path) -> Workshop:
    (tmp_path / "input").mkdir()
    return Workshop(Folders.below(tmp_path), embedded=embedded_files(EMBEDDED))


def bound(kind: Any, shop: Workshop) -> Any:
    return kind.bind(shop)()


def test_tiles_give_the_picture_of_the_whole(shop: Workshop) -> None:
    torch.manual_seed(0)
    handle = FileHandle(EMBEDDED / "vae.safetensors")
    film = torch.nn.functional.interpolate(torch.rand(5, 3, 4, 5), size=(128, 160), mode="bicubic").clamp(0, 1)
    raw = latents.encode(shop.vae(handle), film.permute(0, 2, 3, 1))
    (whole,) = bound(latents.VAEDecode, shop).run({"samples": raw}, handle)
    (tiled,) = bound(extras.VAEDecodeTiled, shop).run({"samples": raw}, handle, 96, 32)
    assert tiled.shape == whole.shape == (5, 128, 160, 3)
    assert torch.allclose(tiled, whole, atol=2 / 255)  # the rounding of bfloat16
    (single,) = bound(extras.VAEDecodeTiled, shop).run({"samples": raw}, handle, 512, 64)
    assert torch.allclose(single, whole, atol=1e-5)
    (bare,) = bound(extras.VAEDecodeTiled, shop).run({"samples": torch.cat([raw, raw])}, handle, 64, 0)
    assert torch.allclose(bare, torch.cat([whole, whole]), atol=2 / 255)


def test_where_memory_runs_out_frames_are_encoded_and_decoded_in_tiles(
    shop: Workshop, monkeypatch: pytest.MonkeyPatch
) -> None:
    handle = FileHandle(EMBEDDED / "vae.safetensors")
    film = torch.rand(9, 128, 144, 3, generator=torch.Generator().manual_seed(1))
    raw = latents.encode(shop.vae(handle), film)
    (whole,) = bound(latents.VAEDecode, shop).run({"samples": raw}, handle)
    failures: list[BaseException] = [MemoryError(), torch.OutOfMemoryError("CUDA out of memory")]

    def fails(*_: object, **__: object) -> torch.Tensor:
        raise failures[-1]

    monkeypatch.setattr(WanVAE, "decode_chunk", fails)
    monkeypatch.setattr(WanVAE, "encode_chunk", fails)
    said: list[object] = []
    context = Context(Place(node="1", display="1", real="1"), said.append, CancelToken())
    with running(context):
        (tiled,) = bound(latents.VAEDecode, shop).run({"samples": raw}, handle)
        assert torch.allclose(latents.encode(shop.vae(handle), film), raw, atol=1e-4)
    assert torch.allclose(tiled, whole, atol=2 / 255)
    lines = [it.text for it in said if isinstance(it, NodeSpoke)]
    assert lines == [
        "memory ran out; latent frames are decoded one at a time",
        *(f"memory ran out; frames are {how} in 4 tiles of 72x64" for how in ("decoded", "encoded")),
    ]
    monkeypatch.setattr("cygnet.pipelines.tiles.decoded_tiles", fails)
    with pytest.raises(OutOfMemory, match="CUDA out of memory; not even the smallest tiles of a frame can be decoded"):
        bound(latents.VAEDecode, shop).run({"samples": raw}, handle)
    failures.append(RuntimeError("a kernel is missing"))
    with pytest.raises(RuntimeError, match="a kernel is missing"):
        bound(latents.VAEDecode, shop).run({"samples": raw}, handle)


def test_latents_are_cut_and_joined(shop: Workshop) -> None:
    whole = {"samples": torch.arange(2 * 3 * 4.0).view(1, 1, 2, 3, 4), "note": 1}
    cut, join = bound(extras.LatentCut, shop), bound(extras.LatentConcat, shop)
    for dim, axis in (("x", 4), ("y", 3), ("t", 2)):
        length = whole["samples"].shape[axis]  # type: ignore[attr-defined]
        (first,) = cut.run(whole, dim, 0, 1)
        (rest,) = cut.run(whole, dim, 1 - length, 99)
        assert first["note"] == 1
        assert torch.equal(join.run(first, rest, dim)[0]["samples"], whole["samples"])
        assert torch.equal(join.run(rest, first, f"-{dim}")[0]["samples"], whole["samples"])
    assert cut.run(whole, "x", 99, 5)[0]["samples"].shape[-1] == 1
    with pytest.raises(RequestError, match="differ in more than 'x'"):
        join.run(whole, {"samples": torch.zeros(1, 1, 2, 2, 4)}, "x")


def test_a_channel_becomes_a_mask(shop: Workshop) -> None:
    pixels = np.zeros((4, 6, 4), np.uint8)
    pixels[..., 0], pixels[..., 3] = 51, 204
    Image.fromarray(pixels).save(shop.folders.input / "a.png")
    Image.fromarray(pixels[..., :3]).save(shop.folders.input / "b.png")
    load = bound(extras.LoadImageMask, shop)
    assert load.run("a.png", "red")[0].shape == (1, 4, 6)
    assert float(load.run("a.png", "red")[0].mean()) == pytest.approx(0.2)
    assert float(load.run("a.png", "alpha")[0].mean()) == pytest.approx(0.2)
    assert load.run("b.png", "alpha")[0].shape == (1, 64, 64)
    assert load.VALIDATE_INPUTS("none.png") is not True


def test_pictures_are_scaled_and_conditioning_emptied(shop: Workshop) -> None:
    assert bound(extras.ImageScaleBy, shop).run(torch.zeros(2, 10, 20, 3), "area", 0.5)[0].shape == (2, 5, 10, 3)
    total = bound(extras.ImageScaleToTotalPixels, shop)
    assert total.run(torch.zeros(1, 10, 40, 3), "area", 0.01)[0].shape == (1, 51, 205, 3)
    given = [[torch.ones(1, 3, 4), {"k": 1}]]
    ((tensor, own),) = bound(extras.ConditioningZeroOut, shop).run(given)[0]
    assert (float(tensor.sum()), own) == (0.0, {"k": 1})
    assert float(given[0][0].sum()) == 12, "the given one stays"  # type: ignore[attr-defined]


def test_an_animated_png_moves_and_carries_its_workflow(shop: Workshop) -> None:
    frames = torch.zeros(3, 8, 8, 3)
    frames[1], frames[2] = 0.5, 1.0
    shown = bound(extras.SaveAnimatedPNG, shop).run(
        frames, "a/x", 8.0, 4, prompt={"1": {}}, extra_pnginfo={"workflow": {"t": "é"}}
    )["ui"]
    assert shown["animated"] == [True]
    path = shop.folders.output / "a" / shown["images"][0]["filename"]
    data = path.read_bytes()
    with Image.open(io.BytesIO(data)) as picture:
        assert (picture.n_frames, picture.info["duration"]) == (3, 125)
        picture.seek(2)
        assert picture.convert("RGB").getpixel((0, 0)) == (255, 255, 255)
    at = data.index(b"comfprompt\0")
    assert data.index(b"IDAT") < at
    assert b'comfworkflow\0{"t": "\\u00e9"}' in data
    assert [it.name for it in path.parent.iterdir()] == [path.name]


def test_an_animated_webp_takes_the_time_that_it_is_given_and_keeps_transparency(shop: Workshop) -> None:
    saver = node_classes(shop)["SaveAnimatedWEBP"]
    frames = torch.rand(2, 32, 48, 4, generator=torch.Generator().manual_seed(0))
    frames[..., :24, 3] = 0.0
    sizes = {}
    for method in ("fastest", "default", "slowest"):
        given = {"images": frames, "filename_prefix": method, "fps": 8.0, "lossless": False, "quality": 70}
        (shown,) = saver.call(saver.instance(), {**given, "method": method})["ui"]["images"]
        path = shop.folders.output / shown["filename"]
        sizes[method] = path.stat().st_size
        assert np.asarray(Image.open(path).convert("RGBA"))[..., :24, 3].max() == 0
    assert sizes["fastest"] > sizes["default"] >= sizes["slowest"]


def test_each_picture_of_a_batch_can_have_its_number_in_its_name(shop: Workshop) -> None:
    saver = node_classes(shop)["SaveImage"]
    saved = saver.call(saver.instance(), {"images": torch.rand(2, 16, 16, 3), "filename_prefix": "a%batch_num%b"})
    assert [it["filename"] for it in saved["ui"]["images"]] == ["a0b_00001_.png", "a1b_00001_.png"]
