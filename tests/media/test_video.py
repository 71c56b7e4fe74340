"""What a written video promises: whole or absent, true colours, playable, reproducible, refused in words."""

from __future__ import annotations

import contextlib
import os
import signal
import struct
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import av
import numpy as np
import numpy.typing as npt
import pytest
from av.video.reformatter import ColorRange, Colorspace
from PIL import Image, ImageSequence

from cygnet.errors import DiskFullError, OutputError, RequestError, UnsupportedError
from cygnet.media import files, video
from cygnet.media.names import unused_path
from cygnet.media.video import FORMATS, VideoFormat, check_output, open_writer, unavailable_formats
from cygnet.media.video_read import read_metadata, read_video

Frames = npt.NDArray[np.uint8]
PRIMARIES = ((255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 0), (0, 255, 255), (255, 0, 255))
GREYS = ((0, 0, 0), (128, 128, 128), (255, 255, 255))


def noise(count: int, height: int = 32, width: int = 48) -> Frames:
    return np.random.default_rng(0).integers(0, 256, (count, height, width, 3), dtype=np.uint8)


def save(path: Path, frames: Frames, **options: object) -> Path:
    height, width = frames.shape[1:3]
    with open_writer(path, width=width, height=height, **{"fps": 16, **options}) as writer:  # type: ignore[arg-type]
        writer.write(frames)
    return writer.path


def box_order(data: bytes) -> list[bytes]:
    names, position = [], 0
    while position < len(data):
        (length,) = struct.unpack_from(">I", data, position)
        names.append(data[position + 4 : position + 8])
        position += length
    return names


# --- what comes out --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize("count", [1, 6])
def test_every_format_takes_frames_in_pieces_and_one_frame_alone(tmp_path: Path, kind: VideoFormat, count: int) -> None:
    frames = noise(count)
    with open_writer(tmp_path / f"x.{kind}", width=48, height=32, fps=16) as writer:
        for piece in (frames[:1], frames[1:5], frames[5:]):
            writer.write(piece)
        assert list(tmp_path.glob("x*")) == []
    assert writer.num_frames == count
    assert [entry.name for entry in tmp_path.iterdir()] == [writer.path.name]
    assert read_video(writer.path).frames.shape == frames.shape


@pytest.mark.parametrize("kind", FORMATS)
def test_pure_colours_and_greys_survive(tmp_path: Path, kind: VideoFormat) -> None:
    stripes = np.repeat(np.array([PRIMARIES + GREYS], np.uint8), 16, axis=1).repeat(32, axis=0)
    frames = np.repeat(stripes[None], 3, axis=0)
    got = read_video(save(tmp_path / f"x.{kind}", frames)).frames
    middles = slice(8, None, 16)  # away from the edges, where 4:2:0 mixes neighbours
    error = np.abs(got[:, :, middles].astype(int) - frames[:, :, middles])
    assert error.max() <= (0 if kind == "png" else 3)


@pytest.mark.parametrize("kind", ["webp", "png"])
def test_lossless_formats_return_the_very_bytes(tmp_path: Path, kind: VideoFormat) -> None:
    frames = noise(3)
    assert np.array_equal(read_video(save(tmp_path / f"x.{kind}", frames, quality=10)).frames, frames)


def test_mp4_is_what_browsers_play(tmp_path: Path) -> None:
    path = save(tmp_path / "x.mp4", noise(5), quality=10)
    order = box_order(path.read_bytes())
    assert order.index(b"moov") < order.index(b"mdat")
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        assert stream.codec_context.name == "h264"
        assert stream.codec_context.profile == "High"
        assert stream.codec_context.pix_fmt == "yuv420p"
        assert stream.average_rate == 16
        assert stream.frames == 5


@pytest.mark.parametrize("kind", ["mp4", "webm"])
def test_frames_are_tagged_as_they_were_converted(tmp_path: Path, kind: VideoFormat) -> None:
    with av.open(str(save(tmp_path / f"x.{kind}", noise(2)))) as container:
        frame = next(container.decode(video=0))
    assert (frame.colorspace, frame.color_range) == (Colorspace.ITU709, ColorRange.MPEG)
    assert (frame.color_primaries, frame.color_trc) == (1, 1)


@pytest.mark.parametrize("kind", FORMATS)
def test_the_same_frames_give_the_same_bytes(tmp_path: Path, kind: VideoFormat) -> None:
    one, two = (save(tmp_path / f"{name}.{kind}", noise(1), metadata={"a": "b"}) for name in "xy")
    assert one.read_bytes() == two.read_bytes()


def test_the_same_frames_give_the_same_mp4_again_and_again(tmp_path: Path) -> None:
    # Drifting blurs make the encoder look ahead, where its fastest code is not deterministic.
    drift = np.random.default_rng(1).normal(size=(5, 8, 8, 3)).cumsum(axis=0)
    small = np.clip(drift * 30 + 128, 0, 255).astype(np.uint8)
    frames = np.stack([np.asarray(Image.fromarray(it).resize((64, 64), Image.Resampling.BICUBIC)) for it in small])
    paths = [save(tmp_path / f"{i}.mp4", frames) for i in range(24)]
    assert len({path.read_bytes() for path in paths}) == 1


@pytest.mark.parametrize("kind", ["mp4", "webm", "webp"])
def test_higher_quality_makes_a_larger_file(tmp_path: Path, kind: VideoFormat) -> None:
    sizes = [save(tmp_path / f"{q}.{kind}", noise(2), quality=q).stat().st_size for q in (2, 5, 8, 10)]
    assert sizes == sorted(set(sizes))


@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize("fps", [16, 12.5, 24])
def test_the_rate_survives(tmp_path: Path, kind: VideoFormat, fps: float) -> None:
    assert read_video(save(tmp_path / f"x.{kind}", noise(9), fps=fps)).fps == pytest.approx(fps)


def test_gif_says_that_it_cannot_keep_16_fps_and_keeps_the_length(tmp_path: Path) -> None:
    plan = check_output(tmp_path / "x.gif", width=32, height=32, fps=16)
    assert "on average" in plan.notes[0]
    assert check_output(tmp_path / "x.gif", width=32, height=32, fps=20).notes == ()
    data = save(tmp_path / "x.gif", noise(16)).read_bytes()
    delays = [
        struct.unpack_from("<H", data, at + 4)[0] for at in range(len(data) - 8) if data[at : at + 4] == b"!\xf9\x04\0"
    ]
    assert set(delays) == {6, 7}
    assert sum(delays) == 100


def test_many_png_frames_become_a_folder_and_one_becomes_a_file(tmp_path: Path) -> None:
    assert save(tmp_path / "one.png", noise(1)) == tmp_path / "one.png"
    folder = save(tmp_path / "many.png", noise(3))
    assert folder == tmp_path / "many"
    assert sorted(entry.name for entry in folder.iterdir()) == ["00000.png", "00001.png", "00002.png"]


@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize("name", ["übung 视频 with spaces", "a:b", "%d", "-x", "n" * 200, "file:x"])
def test_unusual_file_names_work(tmp_path: Path, kind: VideoFormat, name: str) -> None:
    folder = tmp_path / "größe" / ("d" * 100)
    folder.mkdir(parents=True)
    path = save(folder / f"{name}.{kind}", noise(1))
    assert read_video(path).frames.shape == (1, 32, 48, 3)


@pytest.mark.parametrize("kind", ["mp4", "webm"])
def test_the_smallest_size_works(tmp_path: Path, kind: VideoFormat) -> None:
    assert read_video(save(tmp_path / f"x.{kind}", noise(2, 16, 16))).frames.shape == (2, 16, 16, 3)


# --- whole or not at all ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize("stop", [RuntimeError, KeyboardInterrupt])
def test_stopping_half_way_leaves_nothing(tmp_path: Path, kind: VideoFormat, stop: type[BaseException]) -> None:
    def start_and_stop() -> None:
        with open_writer(tmp_path / f"x.{kind}", width=48, height=32, fps=16) as writer:
            writer.write(noise(3))
            raise stop

    with pytest.raises(stop):
        start_and_stop()
    assert list(tmp_path.iterdir()) == []


def test_an_interrupt_signal_while_encoding_leaves_nothing(tmp_path: Path) -> None:
    script = f"""
        import signal
        import numpy as np
        from cygnet.media.video import open_writer
        signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job inherits it ignored
        with open_writer({str(tmp_path / "x.mp4")!r}, width=256, height=256, fps=16) as writer:
            print("ready", flush=True)
            while True:
                writer.write(np.zeros((1, 256, 256, 3), np.uint8))
    """
    with subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(script)], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as child:
        assert child.stdout is not None
        child.stdout.readline()
        child.send_signal(signal.SIGINT)
        try:
            child.wait(100)
        finally:
            child.kill()
    assert child.returncode != 0
    assert list(tmp_path.iterdir()) == []


def test_a_killed_writer_leaves_only_a_hidden_part_that_is_swept_later(tmp_path: Path) -> None:
    script = f"""
        import os, signal
        import numpy as np
        from cygnet.media.video import open_writer
        with open_writer({str(tmp_path / "x.mp4")!r}, width=64, height=64, fps=16) as writer:
            writer.write(np.zeros((1, 64, 64, 3), np.uint8))
            os.kill(os.getpid(), signal.SIGKILL)
    """
    subprocess.run([sys.executable, "-c", textwrap.dedent(script)], check=False)
    (part,) = tmp_path.iterdir()
    assert part.name.startswith(".cygnet-")
    assert files.remove_stale_parts(tmp_path) == []
    assert files.remove_stale_parts(tmp_path, older_than=-1) == [part]
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(os.name == "nt", reason="no file-size limit there")
@pytest.mark.parametrize("kind", FORMATS)
def test_a_disk_that_takes_no_more_is_named_and_nothing_stays(tmp_path: Path, kind: VideoFormat) -> None:
    script = f"""
        import resource
        import numpy as np
        from cygnet.errors import OutputError
        from cygnet.media.video import open_writer
        frames = np.random.default_rng(0).integers(0, 256, (8, 128, 128, 3), dtype=np.uint8)
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
        try:
            with open_writer({str(tmp_path / f"x.{kind}")!r}, width=128, height=128, fps=16, quality=10) as writer:
                writer.write(frames)
        except OutputError as error:
            print(error.code, error)
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)], capture_output=True, text=True, check=False, timeout=60
    )
    assert done.stdout.startswith("disk_full 'x."), done.stderr
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_at_the_very_end_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(handle: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(files.os, "fsync", full)
    with pytest.raises(DiskFullError, match="disk is full") as caught:
        save(tmp_path / "x.mp4", noise(2))
    assert caught.value.code == "disk_full"
    assert list(tmp_path.iterdir()) == []


def test_no_frames_and_too_few_or_many_frames_are_errors(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="0 frames"), open_writer(tmp_path / "a.mp4", width=48, height=32, fps=16):
        pass
    with pytest.raises(OutputError, match="2 frames were given where 5"):
        save(tmp_path / "a.mp4", noise(2), num_frames=5)
    with pytest.raises(RequestError, match="announced 5"):
        save(tmp_path / "a.mp4", noise(6), num_frames=5)
    assert list(tmp_path.iterdir()) == []


# --- never over something else ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", FORMATS)
def test_an_existing_file_is_replaced_only_when_asked(tmp_path: Path, kind: VideoFormat) -> None:
    path = tmp_path / f"x.{kind}"
    path.write_bytes(b"precious")
    with pytest.raises(RequestError, match="exists already"):
        save(path, noise(1))
    assert path.read_bytes() == b"precious"
    save(path, noise(1), overwrite=True)
    assert read_video(path).frames.shape == (1, 32, 48, 3)


def test_a_file_that_appears_meanwhile_is_not_overwritten(tmp_path: Path) -> None:
    path = tmp_path / "x.mp4"

    def race() -> None:
        with open_writer(path, width=48, height=32, fps=16) as writer:
            writer.write(noise(1))
            path.write_bytes(b"precious")

    with pytest.raises(OutputError, match="appeared"):
        race()
    assert path.read_bytes() == b"precious"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize("count", [1, 2])
def test_a_reserved_name_is_filled_or_given_back(tmp_path: Path, kind: VideoFormat, count: int) -> None:
    path = unused_path(tmp_path, "x", f".{kind}")
    with contextlib.suppress(ZeroDivisionError), open_writer(path, width=48, height=32, fps=16):
        raise ZeroDivisionError
    assert list(tmp_path.iterdir()) == []
    made = save(unused_path(tmp_path, "x", f".{kind}"), noise(count))
    assert list(tmp_path.iterdir()) == [made]


def test_a_disk_without_hard_links_is_written_to_as_well(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_links(*_: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(files.os, "link", no_links)
    path = save(tmp_path / "x.mp4", noise(1))
    assert list(tmp_path.iterdir()) == [path]
    assert read_video(path).frames.shape == (1, 32, 48, 3)


def test_a_link_at_the_output_is_replaced_and_not_written_through(tmp_path: Path) -> None:
    other = tmp_path / "other.mp4"
    other.write_bytes(b"precious")
    (tmp_path / "x.mp4").symlink_to(other)
    with pytest.raises(RequestError, match="exists already"):
        save(tmp_path / "x.mp4", noise(1))
    save(tmp_path / "x.mp4", noise(1), overwrite=True)
    assert other.read_bytes() == b"precious"
    assert not (tmp_path / "x.mp4").is_symlink()


def test_only_a_folder_of_frames_is_ever_replaced(tmp_path: Path) -> None:
    folder = save(tmp_path / "x.png", noise(3))
    with pytest.raises(RequestError, match="holds frames already"):
        save(tmp_path / "x.png", noise(2))
    save(tmp_path / "x.png", noise(2), overwrite=True)
    assert len(list(folder.iterdir())) == 2
    (folder / "notes.txt").write_text("precious")
    with pytest.raises(RequestError, match=r"other files \('notes.txt'\)"):
        save(tmp_path / "x.png", noise(2), overwrite=True)
    assert [entry.name for entry in tmp_path.iterdir()] == ["x"]


def test_one_known_png_frame_does_not_mind_a_folder_of_its_stem(tmp_path: Path) -> None:
    (tmp_path / "x").mkdir()
    (tmp_path / "x" / "other").touch()
    assert save(tmp_path / "x.png", noise(1), num_frames=1) == tmp_path / "x.png"


# --- refused in words, before any work -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "field", "words"),
    [
        ({"path": "x.avi"}, "path", "'x.avi' names no known format; end it in one of .mp4"),
        ({"path": "x"}, "path", "names no known format"),
        ({"format": "mkv"}, "format", "'mkv'"),
        ({"width": 63}, "width", "width is 63; mp4 .*even sides.*nearest: 62 or 64"),
        ({"height": 33}, "height", "height is 33"),
        ({"width": 0}, "width", "takes 1 to 16384"),
        ({"height": -16}, "height", "takes 1 to 16384"),
        ({"width": 100_000}, "width", "takes 1 to 16384"),
        ({"width": 64.0}, "width", "whole number"),
        ({"width": True}, "width", "whole number"),
        ({"fps": 0}, "fps", "fps is 0; mp4 takes 0.1 to 240"),
        ({"fps": 10**6}, "fps", "takes 0.1 to 240"),
        ({"fps": float("nan")}, "fps", "fps is nan"),
        ({"fps": float("inf")}, "fps", "fps is inf"),
        ({"fps": "16"}, "fps", "fps is '16'"),
        ({"path": "x.gif", "fps": 60}, "fps", "gif takes 0.1 to 50"),
        ({"quality": 11}, "quality", "quality is 11; give a number from 0"),
        ({"quality": True}, "quality", "from 0"),
        ({"num_frames": 0}, "num_frames", "at least 1"),
        ({"path": "a\0b.mp4"}, "path", "NUL"),
    ],
)
def test_a_wrong_request_is_refused_by_name(tmp_path: Path, options: dict[str, object], field: str, words: str) -> None:
    request = {"path": "x.mp4", "width": 64, "height": 32, "fps": 16, **options}
    path = tmp_path / str(request.pop("path"))
    with pytest.raises(RequestError, match=words) as caught:
        open_writer(path, **request)  # type: ignore[arg-type]
    assert caught.value.field == field
    assert caught.value.exit_code == 2
    assert str(tmp_path) not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "frames",
    [np.zeros((1, 32, 64, 3), np.float32), np.zeros((1, 64, 32, 3), np.uint8), np.zeros((32, 64, 3), np.uint8)],
)
def test_frames_of_another_shape_or_dtype_are_refused(tmp_path: Path, frames: Frames) -> None:
    with (
        pytest.raises(RequestError, match=r"takes uint8 \[T, 32, 64, 3\]"),
        open_writer(tmp_path / "x.mp4", width=64, height=32, fps=16) as writer,
    ):
        writer.write(frames)
    assert list(tmp_path.iterdir()) == []


def test_a_writer_is_used_inside_its_block_only(tmp_path: Path) -> None:
    with open_writer(tmp_path / "x.mp4", width=48, height=32, fps=16) as writer:
        writer.write(noise(1))
    with pytest.raises(RequestError, match="closed"):
        writer.write(noise(1))


@pytest.mark.parametrize(
    "metadata", [{"Key": "x"}, {"": "x"}, {"a b": "x"}, {"fps": "3"}, {"a": "x\0y"}, {"a": "\ud800"}, {"a=": "x"}]
)
def test_metadata_that_a_format_would_change_is_refused(tmp_path: Path, metadata: dict[str, str]) -> None:
    with pytest.raises(RequestError) as caught:
        save(tmp_path / "x.mp4", noise(1), metadata=metadata)
    assert caught.value.field == "metadata"


def test_places_that_cannot_be_written_to_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(RequestError, match="does not exist; create it"):
        save(tmp_path / "missing" / "x.mp4", noise(1))
    (tmp_path / "x.mp4").mkdir()
    with pytest.raises(RequestError, match="is a folder"):
        save(tmp_path / "x.mp4", noise(1))
    monkeypatch.setattr(video.os, "access", lambda *_: False)
    with pytest.raises(RequestError, match="no permission"):
        save(tmp_path / "y.mp4", noise(1))


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no FIFOs there")
def test_a_pipe_as_output_is_refused_without_blocking(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "x.mp4")
    for overwrite in (False, True):
        with pytest.raises(RequestError, match="not a regular file"):
            save(tmp_path / "x.mp4", noise(1), overwrite=overwrite)


def test_a_missing_encoder_is_found_at_the_start_with_a_remedy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert unavailable_formats() == {}
    monkeypatch.setattr(av, "codecs_available", set())
    with pytest.raises(UnsupportedError, match="no encoder libx264"):
        open_writer(tmp_path / "x.mp4", width=64, height=32, fps=16)
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(UnsupportedError, match="pip install --force-reinstall av"):
        open_writer(tmp_path / "x.webm", width=64, height=32, fps=16)
    assert set(unavailable_formats()) == {"mp4", "webm"}
    save(tmp_path / "x.webp", noise(1))


def test_an_encoder_that_fails_is_reported_and_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(video, "_crf", lambda *_: "nonsense")
    with pytest.raises(OutputError, match=r"'x\.mp4' was not written"):
        save(tmp_path / "x.mp4", noise(1))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("kind", "quality"), [("webp", 10), ("webp", 8), ("png", None)])
def test_transparency_is_kept(tmp_path: Path, kind: VideoFormat, quality: float | None) -> None:
    frames = np.full((2, 32, 48, 4), (200, 10, 60, 255), np.uint8)
    frames[:, :, 24:, 3] = 0
    frames[1, :16, :, 3] = 128
    path = tmp_path / f"x.{kind}"
    with open_writer(
        path, width=48, height=32, fps=8, alpha=True, quality=quality, metadata={"prompt": "{}"}, effort=0
    ) as writer:
        writer.write(frames)
    pictures = [Image.open(it) for it in sorted((tmp_path / "x").glob("*"))] if kind == "png" else [Image.open(path)]
    shown = [one.convert("RGBA") for picture in pictures for one in ImageSequence.Iterator(picture)]
    assert len(shown) == 2
    for image, frame in zip(shown, frames, strict=True):
        pixels = np.asarray(image).astype(int)
        assert np.array_equal(pixels[..., 3], frame[..., 3])
        assert np.abs(pixels[:, :20, :3] - frame[:, :20, :3]).max() <= (20 if quality == 8 else 0)
    assert read_metadata(path if kind == "webp" else tmp_path / "x")["prompt"] == "{}"


def test_transparency_where_there_can_be_none_and_other_efforts_are_refused(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="mp4 keeps no transparency"):
        open_writer(tmp_path / "x.mp4", width=48, height=32, fps=8, alpha=True)
    with pytest.raises(RequestError, match="effort is 7"):
        open_writer(tmp_path / "x.webp", width=48, height=32, fps=8, effort=7)
    with open_writer(tmp_path / "x.webp", width=48, height=32, fps=8, alpha=True) as writer:
        with pytest.raises(RequestError, match=r"takes uint8 \[T, 32, 48, 4\]"):
            writer.write(noise(1))
        writer.write(np.zeros((1, 32, 48, 4), np.uint8))


@pytest.mark.parametrize(
    ("codec", "decoded_as", "pixels"),
    [("vp9", "vp9", "yuv420p"), ("av1", "libdav1d", "yuv420p10le"), (None, "vp9", "yuv420p")],
)
def test_webm_is_coded_as_asked(codec: Any, decoded_as: str, pixels: str, tmp_path: Path) -> None:
    ramp = np.linspace(30, 220, 64, dtype=np.uint8)[None, None, :, None]
    frames = np.broadcast_to(ramp + np.arange(5, dtype=np.uint8)[:, None, None, None], (5, 48, 64, 3))
    with open_writer(tmp_path / "x.webm", width=64, height=48, fps=16, codec=codec, rate_factor=20) as writer:
        writer.write(frames)
    with av.open(str(tmp_path / "x.webm")) as file:
        stream = file.streams.video[0]
        assert (stream.codec_context.name, stream.pix_fmt) == (decoded_as, pixels)
        found = [frame.to_ndarray(format="rgb24") for frame in file.decode(stream)]
    assert len(found) == 5
    assert np.abs(np.stack(found).astype(int) - frames).mean() < 6


def test_a_rate_factor_of_0_loses_nothing_but_colour_resolution(tmp_path: Path) -> None:
    grey = np.repeat(np.random.default_rng(1).integers(16, 235, (3, 48, 64, 1), dtype=np.uint8), 3, axis=3)

    def size_and_error(factor: int) -> tuple[int, int]:
        path = tmp_path / f"{factor}.webm"
        with open_writer(path, width=64, height=48, fps=16, rate_factor=factor) as writer:
            writer.write(grey)
        with av.open(str(path)) as file:
            found = np.stack([frame.to_ndarray(format="rgb24") for frame in file.decode(video=0)])
        return path.stat().st_size, int(np.abs(found.astype(int) - grey).max())

    (exact_size, exact), (small, lossy) = size_and_error(0), size_and_error(30)
    assert exact <= 1 < lossy
    assert small < exact_size


@pytest.mark.parametrize(
    ("name", "options", "words"),
    [
        ("x.mp4", {"codec": "av1"}, "mp4 takes h264"),
        ("x.gif", {"codec": "vp9"}, "gif has none"),
        ("x.webm", {"rate_factor": 64}, "from 0 to 63"),
        ("x.mp4", {"rate_factor": 20}, "WebM takes one"),
    ],
)
def test_a_codec_or_rate_factor_that_cannot_be_is_refused(
    name: str, options: dict[str, Any], words: str, tmp_path: Path
) -> None:
    with pytest.raises(RequestError, match=words):
        open_writer(tmp_path / name, width=64, height=48, fps=16, **options)
