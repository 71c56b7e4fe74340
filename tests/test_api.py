from __future__ import annotations

import errno
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import cygnet
from cygnet.api import Video, Wan
from cygnet.errors import Cancelled, MediaError, ModelNotFoundError, OutputError, RequestError
from cygnet.media.frames import to_signed
from cygnet.media.receipt import read_receipt
from cygnet.media.video_read import read_video
from cygnet.types import Progress
from random_models import write_model

SMALL: dict[str, Any] = {"size": (32, 16), "num_frames": 5, "num_steps": 2, "seed": 3}
PIXELS = np.random.default_rng(0).integers(0, 256, (20, 40, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def t2v(tmp_path_factory: pytest.TempPathFactory) -> Wan:
    return cygnet.load(write_model(tmp_path_factory.mktemp("t2v")), device="cpu", dtype="float32")


@pytest.fixture(scope="module")
def i2v(tmp_path_factory: pytest.TempPathFactory) -> Wan:
    return cygnet.load(write_model(tmp_path_factory.mktemp("i2v"), "i2v"), device="cpu", dtype="float32")


@pytest.fixture(scope="module")
def video(t2v: Wan) -> Video:
    return t2v.generate("a red ball moves right", **SMALL)


def test_a_prompt_becomes_frames(video: Video) -> None:
    assert video.frames.shape == (5, 16, 32, 3)
    assert video.frames.dtype == np.uint8
    assert video.fps == 16.0


def test_streamed_frames_are_those_of_the_whole(t2v: Wan, video: Video) -> None:
    chunks = list(t2v.stream("a red ball moves right", **SMALL))
    assert [len(chunk) for chunk in chunks] == [1, 4]
    assert np.array_equal(np.concatenate(chunks), video.frames)


def test_nothing_is_computed_before_the_first_frame_is_asked_for(t2v: Wan) -> None:
    seen: list[Progress] = []
    stream = t2v.stream("a red ball", on_progress=seen.append, **SMALL)
    assert seen == []
    next(iter(stream))
    assert seen
    stream.close()
    assert list(stream) == []


def test_a_saved_video_carries_its_receipt_inside_and_beside(video: Video, tmp_path: Path) -> None:
    path = video.save(tmp_path / "ball.mp4")
    assert path == tmp_path / "ball.mp4"
    assert read_video(path).frames.shape == video.frames.shape
    assert read_receipt(path) == video.receipt
    assert json.loads((tmp_path / "ball.mp4.json").read_text(encoding="utf-8")) == video.receipt


def test_a_picture_is_saved_when_there_is_one_frame(t2v: Wan, tmp_path: Path) -> None:
    one = t2v.generate("a red ball", **{**SMALL, "num_frames": 1})
    path = one.save(tmp_path / "ball.png", sidecar=False)
    assert np.array_equal(np.asarray(Image.open(path)), one.frames[0])
    assert not (tmp_path / "ball.png.json").exists()


def test_nothing_is_written_when_the_receipt_would_replace_another_file(video: Video, tmp_path: Path) -> None:
    (tmp_path / "ball.mp4.json").write_text("mine", encoding="utf-8")
    with pytest.raises(RequestError, match=r"ball\.mp4\.json exists"):
        video.save(tmp_path / "ball.mp4")
    assert not (tmp_path / "ball.mp4").exists()
    video.save(tmp_path / "ball.mp4", overwrite=True)
    assert read_receipt(tmp_path / "ball.mp4.json") == video.receipt


def test_no_video_appears_when_its_receipt_cannot_be_written(
    video: Video, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(path: Path, data: bytes) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(OutputError, match="disk is full"):
        video.save(tmp_path / "ball.mp4")
    assert list(tmp_path.iterdir()) == []


def test_the_receipt_holds_the_whole_request_and_what_made_it(video: Video) -> None:
    receipt = video.receipt
    assert receipt["request"]["prompt"] == "a red ball moves right"
    assert receipt["request"]["seed"] == 3
    assert receipt["request"]["negative_prompt"]
    assert receipt["sigmas"][-1] == 0
    assert set(receipt["model"]["components"]) == {"dit", "vae", "text_encoder"}
    assert all(part["digest"].startswith("sha256:") for part in receipt["model"]["components"].values())
    assert receipt["versions"]["torch"] == torch.__version__
    assert set(receipt["seconds"]) == {"load", "text", "denoise", "decode"}
    assert receipt["notices"] == []


def test_a_receipt_names_no_folder_of_this_machine(video: Video, tmp_path: Path) -> None:
    text = json.dumps(video.receipt)
    assert str(tmp_path.parent) not in text
    assert str(Path.home()) not in text


def test_a_receipt_makes_the_same_video_again(t2v: Wan, video: Video) -> None:
    again = np.concatenate(list(t2v.replay(video.receipt["request"])))
    assert np.array_equal(again, video.frames)


def test_a_missing_seed_is_drawn_recorded_and_reproducible(t2v: Wan) -> None:
    options = {name: value for name, value in SMALL.items() if name != "seed"}
    first, second = (t2v.generate("a red ball", **options) for _ in range(2))
    assert first.receipt["request"]["seed"] != second.receipt["request"]["seed"]
    again = t2v.generate("a red ball", **options, seed=first.receipt["request"]["seed"])
    assert np.array_equal(first.frames, again.frames)


def as_file(folder: Path) -> Path:
    Image.fromarray(PIXELS).save(folder / "swan.png")
    return folder / "swan.png"


@pytest.mark.parametrize("kind", ["path", "text", "bytes", "pillow", "array", "tensor", "uint8 tensor"])
def test_pictures_of_every_kind_mean_the_same(i2v: Wan, tmp_path: Path, kind: str) -> None:
    path = as_file(tmp_path)
    pictures: dict[str, Any] = {
        "path": path,
        "text": str(path),
        "bytes": path.read_bytes(),
        "pillow": Image.fromarray(PIXELS),
        "array": PIXELS,
        "tensor": to_signed(PIXELS[None])[:, 0],
        "uint8 tensor": torch.from_numpy(PIXELS.copy()),
    }
    stream = i2v.stream("a swan", pictures[kind], **SMALL)
    reference = i2v.stream("a swan", PIXELS, **SMALL)
    assert stream.receipt["inputs"] == reference.receipt["inputs"]
    assert stream.receipt["inputs"]["image"]["shape"] == [3, 20, 40]


def test_a_picture_makes_a_video_of_it(i2v: Wan) -> None:
    made = i2v.generate("a swan", PIXELS, **SMALL)
    assert made.frames.shape == (5, 16, 32, 3)
    assert "image" in made.receipt["seconds"]


def test_what_was_done_to_a_picture_is_told(i2v: Wan, tmp_path: Path) -> None:
    clear = np.dstack((PIXELS, np.full((20, 40), 100, np.uint8)))
    Image.fromarray(clear).save(tmp_path / "clear.png")
    notices = i2v.stream("a swan", tmp_path / "clear.png", **SMALL).notices
    assert any("image: transparent parts were laid over white" in notice for notice in notices)


def test_pictures_that_are_none_are_refused(i2v: Wan, t2v: Wan, tmp_path: Path) -> None:
    (tmp_path / "page.png").write_text("<html>", encoding="utf-8")
    with pytest.raises(MediaError):
        i2v.stream("a swan", tmp_path / "page.png", **SMALL)
    with pytest.raises(MediaError):
        i2v.stream("a swan", PIXELS.astype(np.float32), **SMALL)
    with pytest.raises(RequestError, match="image is of type int"):
        i2v.stream("a swan", 3, **SMALL)  # type: ignore[arg-type]
    with pytest.raises(RequestError, match="video is of type int"):
        t2v.stream("a swan", video=3, **SMALL)  # type: ignore[arg-type]


def test_a_text_model_refuses_a_picture_in_words(t2v: Wan) -> None:
    with pytest.raises(RequestError, match="image-to-video needs an I2V model"):
        t2v.generate("a swan", PIXELS, **SMALL)


@pytest.mark.parametrize("size", ["32x16", "32*16", " 32 X 16 ", (32, 16), [32, 16], "32×16"])
def test_sizes_are_written_as_people_write_them(t2v: Wan, size: Any) -> None:
    request = t2v.stream("a swan", size=size).request
    assert (request.width, request.height) == (32, 16)


@pytest.mark.parametrize("size", ["32", "axb", "32x", 32, (32,), "1e3x16", None.__class__])
def test_sizes_that_are_none_are_refused(t2v: Wan, size: Any) -> None:
    with pytest.raises(RequestError) as caught:
        t2v.stream("a swan", size=size)
    assert caught.value.field == "size"


def test_sizes_of_numbers_that_wan_cannot_make_name_the_side(t2v: Wan) -> None:
    with pytest.raises(RequestError, match=r"width is 33; .*nearest: 32 or 48"):
        t2v.stream("a swan", size=(33, 16))
    with pytest.raises(RequestError, match=r"height is 16\.5"):
        t2v.stream("a swan", size=(32, 16.5))  # type: ignore[arg-type]


def test_without_a_size_the_picture_gives_the_aspect_and_the_model_the_area(i2v: Wan) -> None:
    wide = np.zeros((480, 832, 3), np.uint8)
    request = i2v.stream("a swan", wide).request
    assert (request.width, request.height, request.image_fit, request.shift) == (832, 480, "stretch", 3.0)
    exact = i2v.stream("a swan", wide, reference_exact=True).request
    assert (exact.width, exact.height) == (832, 464)
    tall = i2v.stream("a swan", wide.transpose(1, 0, 2).copy(), size="720p").request
    assert (tall.width, tall.height, tall.shift) == (720, 1248, 5.0)


def test_an_area_without_a_picture_has_its_usual_shape(t2v: Wan) -> None:
    request = t2v.stream("a swan", size="720p").request
    assert (request.width, request.height) == (1280, 720)


def test_a_size_that_is_given_is_kept_and_the_picture_cut_to_it(i2v: Wan) -> None:
    stream = i2v.stream("a swan", PIXELS, **SMALL | {"size": (16, 16)})
    assert (stream.request.width, stream.request.height, stream.request.image_fit) == (16, 16, "crop")
    list(stream)
    assert "image was cut from 40x20 to 20x20" in stream.notices[0]


def test_none_means_the_default_and_a_misspelt_option_is_refused(t2v: Wan) -> None:
    assert t2v.stream("a swan", num_steps=None).request.num_steps == t2v.defaults.num_steps
    with pytest.raises(RequestError, match="did you mean 'num_frames'"):
        t2v.stream("a swan", num_frame=5)  # type: ignore[call-arg]


def test_a_video_gives_length_and_strength_unless_they_are_said(t2v: Wan, video: Video) -> None:
    source = np.repeat(video.frames, 2, axis=0)  # 10 frames
    request = t2v.stream("again", video=source, size=(32, 16)).request
    assert (request.num_frames, request.strength) == (9, t2v.defaults.strength)
    made = t2v.generate("again", video=source, **SMALL, strength=0.5)
    assert made.frames.shape == video.frames.shape
    assert len(made.receipt["sigmas"]) == 2


def test_a_saved_video_can_be_made_anew_from_its_file(t2v: Wan, video: Video, tmp_path: Path) -> None:
    path = video.save(tmp_path / "ball.mp4")
    assert t2v.stream("again", video=path, size=(32, 16)).request.num_frames == 5


@pytest.mark.parametrize("layout", ["diffusers", "official"])
def test_a_saved_model_opens_again_and_makes_the_same_video(i2v: Wan, tmp_path: Path, layout: Any) -> None:
    folder = i2v.save_pretrained(tmp_path / "copy", layout)
    again = cygnet.load(folder, device="cpu", dtype="float32")
    assert again.model.components.dit == i2v.model.components.dit
    first, second = (model.generate("a swan", PIXELS, **SMALL) for model in (i2v, again))
    assert np.array_equal(first.frames, second.frames)


def test_a_saved_copy_of_a_folder_with_its_own_tokenizer_keeps_it(t2v: Wan, tmp_path: Path) -> None:
    folder = t2v.save_pretrained(tmp_path / "diffusers")
    from_folder = cygnet.load(folder, device="cpu", dtype="float32")
    official = from_folder.save_pretrained(tmp_path / "official", "official")
    assert (official / "google" / "umt5-xxl" / "spiece.model").is_file()
    again = cygnet.load(official, device="cpu", dtype="float32")
    first, second = (model.generate("a red ball", **SMALL) for model in (t2v, again))
    assert np.array_equal(first.frames, second.frames)


def test_a_layout_that_does_not_exist_is_refused(t2v: Wan, tmp_path: Path) -> None:
    with pytest.raises(RequestError, match='choose "diffusers" or "official"'):
        t2v.save_pretrained(tmp_path / "copy", "gguf")  # type: ignore[arg-type]
    assert not (tmp_path / "copy").exists()


def test_the_public_names_are_there_and_no_others() -> None:
    assert dir(cygnet) == cygnet.__all__
    for name in cygnet.__all__:
        assert getattr(cygnet, name) is not None
    with pytest.raises(AttributeError, match="has no attribute 'lod'"):
        cygnet.lod  # noqa: B018
    with pytest.raises(ModelNotFoundError):
        cygnet.load("no-such-model")


def test_solvers_are_reached_from_the_package() -> None:
    x = torch.ones(1)
    assert torch.equal(cygnet.solvers.sample(lambda x, t: torch.zeros_like(x), x, num_steps=2), x)


@pytest.mark.parametrize("shape", [(), (3,), (3, 0, 0), (4, 8, 8)])
def test_a_float_tensor_of_no_picture_is_refused_in_words(t2v: Wan, i2v: Wan, shape: tuple[int, ...]) -> None:
    with pytest.raises(RequestError, match="image is"):
        i2v.generate("a ball", torch.zeros(shape), size="480p")
    with pytest.raises(RequestError, match="video is"):
        t2v.generate("a ball", video=torch.zeros(shape))
    with pytest.raises(RequestError, match="video is"):
        t2v.generate("a ball", video=np.zeros(shape, np.uint8))


def test_a_stop_is_heard_between_the_frames_that_the_vae_encodes(t2v: Wan, i2v: Wan) -> None:
    for model, pictures, phase in (
        (i2v, {"image": PIXELS}, "image"),
        (t2v, {"video": np.stack([PIXELS] * 9)}, "encode"),
    ):
        seen: list[Progress] = []
        token = cygnet.CancelToken()

        def stop(it: Progress, seen: list[Progress] = seen, token: Any = token, phase: str = phase) -> None:
            seen.append(it)
            if it.phase == phase and it.step == 2:
                token.cancel()

        with pytest.raises(Cancelled):
            model.generate("a ball", **pictures, **{**SMALL, "num_frames": 9}, on_progress=stop, cancel=token)
        assert seen[-1].phase == phase
        assert seen[-1].step == 2 < seen[-1].total


def test_a_short_video_is_made_without_loading_the_compiler_of_torch() -> None:
    """It takes longer than such a video."""
    code = (
        "import sys, torch; torch.set_num_threads(1); import cygnet; wan = cygnet.load('tiny-t2v', device='cpu');"
        "wan.generate('a red ball', num_frames=1, num_steps=1, seed=1); print('torch._dynamo' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False)
    assert (done.returncode, done.stdout) == (0, "False\n"), done.stderr
