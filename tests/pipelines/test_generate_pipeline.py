from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from cygnet.assembly import load_components
from cygnet.errors import Cancelled, NumericalError, RequestError
from cygnet.models.dit.config import Variant
from cygnet.pipelines.components import Components
from cygnet.pipelines.generate import generate
from cygnet.pipelines.inputs import Inputs
from cygnet.pipelines.presets import defaults_for
from cygnet.pipelines.record import Record
from cygnet.pipelines.request import GenerateRequest
from cygnet.types import CancelToken, Progress
from random_models import write_model
from support import fill, relative_l2

SMALL = {"prompt": "a red ball", "width": 32, "height": 16, "num_frames": 5, "num_steps": 2, "seed": 3}
IMAGE, LAST = fill("image", [3, 16, 32]), fill("last", [3, 16, 32])


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[Variant, Components]:
    loaded: dict[Variant, Components] = {}
    variants: tuple[Variant, ...] = ("t2v", "i2v", "flf2v")
    for variant in variants:
        paths = write_model(tmp_path_factory.mktemp(variant), variant)
        loaded[variant] = load_components(paths, device="cpu", dtype="float32").components
    return loaded


def request(components: Components, **fields: Any) -> GenerateRequest:
    return GenerateRequest.create({**SMALL, **fields}, defaults_for(components.dit))


def frames(components: Components, inputs: Inputs | None = None, **fields: Any) -> torch.Tensor:
    return torch.cat(list(generate(components, request(components, **fields), inputs)), dim=2)


def test_text_becomes_frames_one_first_and_then_a_few_at_a_time(models: dict[Variant, Components]) -> None:
    chunks = list(generate(models["t2v"], request(models["t2v"], num_frames=41, num_steps=1)))
    assert [tuple(chunk.shape) for chunk in chunks] == [(1, 3, 1, 16, 32), (1, 3, 32, 16, 32), (1, 3, 8, 16, 32)]
    assert all(float(chunk.abs().max()) <= 1 for chunk in chunks)


def test_large_frames_come_four_at_a_time_and_are_the_same(
    models: dict[Variant, Components], monkeypatch: pytest.MonkeyPatch
) -> None:
    at_once = frames(models["t2v"], num_frames=9)
    monkeypatch.setattr("cygnet.pipelines.sizes.CELLS_AT_ONCE", 1)
    chunks = list(generate(models["t2v"], request(models["t2v"], num_frames=9)))
    assert [chunk.shape[2] for chunk in chunks] == [1, 4, 4]
    assert relative_l2(torch.cat(chunks, dim=2), at_once) < 1e-5


def test_text_becomes_a_picture_when_one_frame_is_asked_for(models: dict[Variant, Components]) -> None:
    assert frames(models["t2v"], num_frames=1).shape == (1, 3, 1, 16, 32)


def test_a_seed_gives_the_same_video_and_another_seed_another(models: dict[Variant, Components]) -> None:
    first = frames(models["t2v"])
    assert torch.equal(first, frames(models["t2v"]))
    assert not torch.equal(first, frames(models["t2v"], seed=4))


def test_pictures_and_prompts_change_the_video(models: dict[Variant, Components]) -> None:
    i2v = models["i2v"]
    first = frames(i2v, Inputs(image=IMAGE))
    assert first.shape == (1, 3, 5, 16, 32)
    assert not torch.equal(first, frames(i2v, Inputs(image=LAST)))
    assert not torch.equal(first, frames(i2v, Inputs(image=IMAGE), prompt="the blue square spins"))


def test_the_last_frame_changes_the_video(models: dict[Variant, Components]) -> None:
    flf2v = models["flf2v"]
    first = frames(flf2v, Inputs(image=IMAGE, last_image=LAST))
    assert not torch.equal(first, frames(flf2v, Inputs(image=IMAGE, last_image=-LAST)))


def test_a_source_video_is_kept_the_more_the_lower_the_strength(models: dict[Variant, Components]) -> None:
    t2v, record = models["t2v"], Record()
    source = fill("source", [3, 5, 16, 32])
    with t2v.use_vae() as vae:
        kept = vae.decode(vae.encode(source[None]))

    def distance(strength: float) -> float:
        made = frames(t2v, Inputs(video=source), strength=strength, num_steps=20, guidance_scale=1.0, solver="euler")
        return float((made - kept).norm())

    assert distance(0.05) < distance(1.0)
    list(generate(t2v, request(t2v, strength=0.5, num_steps=4), Inputs(video=source), record=record))
    assert len(record.sigmas) == 3


@pytest.mark.parametrize(
    ("variant", "inputs", "words"),
    [
        ("t2v", Inputs(image=IMAGE), "image-to-video needs an I2V model"),
        ("t2v", Inputs(image=IMAGE, last_image=LAST), "image-to-video needs an I2V model"),
        ("t2v", Inputs(last_image=LAST), "give both, or image alone"),
        ("i2v", Inputs(), "needs a picture"),
        ("i2v", Inputs(image=IMAGE, last_image=LAST), "needs an FLF2V model"),
        ("i2v", Inputs(video=IMAGE[:, None].expand(3, 5, 16, 32)), "video-to-video needs a T2V model"),
        ("flf2v", Inputs(image=IMAGE), "needs a first and a last frame"),
        ("t2v", Inputs(image=IMAGE, video=IMAGE[:, None]), "give one of them"),
        ("t2v", Inputs(video=IMAGE[:, None]), "ask for at most 1"),
        ("i2v", Inputs(image=IMAGE * 3), "must be in [-1, 1]"),
        ("i2v", Inputs(image=IMAGE * torch.nan), "must be in [-1, 1]"),
        ("i2v", Inputs(image=IMAGE[None]), "it must be floating [3, H, W]"),
    ],
)
def test_impossible_combinations_are_refused_before_any_work(
    models: dict[Variant, Components], variant: Variant, inputs: Inputs, words: str
) -> None:
    components = models[variant]
    with pytest.raises(RequestError) as caught:
        generate(components, request(components), inputs)  # not iterated: nothing was computed
    assert words in str(caught.value)
    assert caught.value.field is not None


def test_the_refusal_says_which_model_this_is(models: dict[Variant, Components]) -> None:
    with pytest.raises(RequestError, match=r"^this is tiny T2V .*; image-to-video needs an I2V model: load tiny-i2v"):
        generate(models["t2v"], request(models["t2v"]), Inputs(image=IMAGE))


def test_strength_without_a_video_is_refused(models: dict[Variant, Components]) -> None:
    with pytest.raises(RequestError, match="no video is given"):
        generate(models["t2v"], request(models["t2v"], strength=0.5))


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is such a device here")
def test_noise_from_a_device_that_is_not_there_is_refused_before_any_work(models: dict[Variant, Components]) -> None:
    with pytest.raises(RequestError, match="noise_device is 'cuda'"):
        generate(models["t2v"], request(models["t2v"], noise_device="cuda"))


def test_two_given_frames_need_a_longer_video_than_one(models: dict[Variant, Components]) -> None:
    flf2v = models["flf2v"]
    with pytest.raises(RequestError, match="at least 5"):
        generate(flf2v, request(flf2v, num_frames=1), Inputs(image=IMAGE, last_image=LAST))


def notices(components: Components, inputs: Inputs, **fields: Any) -> str:
    record = Record()
    list(generate(components, request(components, **fields), inputs, record=record))
    return "; ".join(record.notices)


def test_equal_first_and_last_frames_are_told_to_give_little_motion(models: dict[Variant, Components]) -> None:
    assert "expect little motion" in notices(models["flf2v"], Inputs(image=IMAGE, last_image=IMAGE.clone()))


def test_a_last_frame_of_another_size_is_made_to_match_and_told(models: dict[Variant, Components]) -> None:
    told = notices(models["flf2v"], Inputs(image=IMAGE, last_image=fill("big", [3, 40, 40])))
    assert "last_image was scaled and cut from 40x40 to match the first frame, 32x16" in told


def test_a_picture_of_another_aspect_is_cut_and_told_unless_stretching_was_asked_for(
    models: dict[Variant, Components],
) -> None:
    square = Inputs(image=fill("square", [3, 40, 40]))
    assert "image was cut from 40x40 to 40x20 about its centre, to fit 32x16" in notices(models["i2v"], square)
    assert notices(models["i2v"], square, image_fit="stretch") == ""


def test_a_video_longer_than_the_result_is_used_from_its_beginning_and_told(models: dict[Variant, Components]) -> None:
    source = Inputs(video=fill("long", [3, 8, 16, 32]))
    assert "only the first 5 of the video's 8 frames are used" in notices(models["t2v"], source, strength=0.5)


def test_more_frames_than_the_model_knows_are_told(models: dict[Variant, Components]) -> None:
    told = notices(models["t2v"], Inputs(), num_frames=85, width=16, height=16, num_steps=1)
    assert "85 frames are more than the 81" in told


def test_phases_are_reported_in_order_and_each_reaches_its_end(models: dict[Variant, Components]) -> None:
    seen: list[Progress] = []
    i2v = models["i2v"]
    list(generate(i2v, request(i2v), Inputs(image=IMAGE), on_progress=seen.append))
    assert list(dict.fromkeys(report.phase for report in seen)) == ["text", "image", "denoise", "decode"]
    for phase in ("text", "image", "denoise", "decode"):
        reports = [report for report in seen if report.phase == phase]
        assert reports[-1].step == reports[-1].total
        assert [report.step for report in reports] == list(range(reports[-1].total + 1))


def test_guidance_of_one_skips_the_negative_prompt(models: dict[Variant, Components]) -> None:
    seen: list[Progress] = []
    t2v = models["t2v"]
    list(generate(t2v, request(t2v, guidance_scale=1), on_progress=seen.append))
    assert [report.total for report in seen if report.phase == "text"] == [1, 1]
    guided, free = request(t2v, guidance_scale=1), request(t2v, guidance_scale=1, negative_prompt="something else")
    assert torch.equal(*(torch.cat(list(generate(t2v, each)), dim=2) for each in (guided, free)))


@pytest.mark.parametrize("phase", ["text", "denoise", "decode"])
def test_a_cancelled_run_ends_in_whatever_phase_it_is(models: dict[Variant, Components], phase: str) -> None:
    token = CancelToken()

    def stop(report: Progress) -> None:
        if report.phase == phase:
            token.cancel()

    with pytest.raises(Cancelled):
        list(generate(models["t2v"], request(models["t2v"]), on_progress=stop, cancel=token))


def test_nan_from_the_decoder_stops_the_run(tmp_path: Path) -> None:
    components = load_components(write_model(tmp_path), device="cpu", dtype="float32", offload=False).components
    with components.use_vae() as vae:
        vae.get_parameter("decoder.head.2.bias")[0] = torch.nan
    with pytest.raises(NumericalError, match="decoding gave NaN by latent frame 1 of 2"):
        frames(components)


def test_a_picture_of_one_colour_is_told(tmp_path: Path) -> None:
    components = load_components(write_model(tmp_path), device="cpu", dtype="float32", offload=False).components
    with components.use_vae() as vae:
        vae.get_parameter("decoder.head.2.weight").zero_()
        vae.get_parameter("decoder.head.2.bias").zero_()
    assert "same colour" in notices(components, Inputs())


def test_offloaded_equals_resident_bit_for_bit(tmp_path: Path) -> None:
    paths = write_model(tmp_path, "i2v")
    resident, offloaded = (
        load_components(paths, device="cpu", dtype="float32", offload=offload).components for offload in (False, True)
    )
    given = Inputs(image=IMAGE)
    assert torch.equal(frames(resident, given), frames(offloaded, given))


def test_every_network_is_released_when_the_run_ends_or_is_closed(tmp_path: Path) -> None:
    from cygnet.runtime.residency import Placed, StageResidency

    components = load_components(write_model(tmp_path), device="cpu", dtype="float32", offload=True).components
    assert isinstance(components.residency, Placed)
    residency = components.residency.now
    assert isinstance(residency, StageResidency)
    frames(components)
    assert not residency.present
    chunks = generate(components, request(components))
    next(chunks)
    assert list(residency.present) == ["vae"]
    chunks.close()  # type: ignore[attr-defined]
    assert not residency.present


def test_the_callers_default_dtype_changes_nothing(models: dict[Variant, Components]) -> None:
    inputs = Inputs(image=IMAGE, last_image=LAST)
    exact = frames(models["flf2v"], inputs)
    for dtype in (torch.float64, torch.bfloat16):
        torch.set_default_dtype(dtype)
        try:
            made = frames(models["flf2v"], inputs)
        finally:
            torch.set_default_dtype(torch.float32)
        assert made.dtype == torch.float32
        assert torch.equal(made, exact), dtype


def test_clip_sees_the_whole_picture_and_the_vae_what_is_left(
    models: dict[Variant, Components], monkeypatch: pytest.MonkeyPatch
) -> None:
    from cygnet.pipelines import conditioning
    from cygnet.pipelines import generate as module

    seen: dict[str, tuple[int, ...]] = {}

    def eye(model: Any, images: tuple[torch.Tensor, ...]) -> torch.Tensor:
        seen["clip"] = tuple(images[0].shape)
        return conditioning.encode_images(model, images)

    def condition(vae: Any, image: torch.Tensor, **options: Any) -> torch.Tensor:
        seen["vae"] = tuple(image.shape)
        return conditioning.image_condition(vae, image, **options)

    monkeypatch.setattr(module, "encode_images", eye)
    monkeypatch.setattr(module, "image_condition", condition)
    frames(models["i2v"], Inputs(image=fill("wide", [3, 16, 64])))
    assert seen == {"clip": (3, 16, 64), "vae": (3, 16, 32)}
