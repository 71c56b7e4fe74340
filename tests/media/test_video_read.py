"""Videos come back as they were; hostile or damaged ones are refused in words (rows B8 and B9 of the fault list)."""

from __future__ import annotations

import contextlib
import io
import struct
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import numpy.typing as npt
import pytest
from av.audio.stream import AudioStream
from av.video.reformatter import VideoReformatter
from av.video.stream import VideoStream
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from cygnet.errors import MediaError
from cygnet.media import video_read
from cygnet.media.video import FORMATS, VideoFormat, open_writer
from cygnet.media.video_read import read_metadata, read_video

Frames = npt.NDArray[np.uint8]


def blocks(count: int = 3, height: int = 32, width: int = 48) -> Frames:
    """Flat 16x16 blocks of random colours, so that 4:2:0 loses nothing in their middles."""
    colours = np.random.default_rng(1).integers(0, 256, (count, height // 16, width // 16, 3), dtype=np.uint8)
    return colours.repeat(16, axis=1).repeat(16, axis=2)


def save(path: Path, frames: Frames, fps: float = 16) -> Path:
    with open_writer(path, width=frames.shape[2], height=frames.shape[1], fps=fps, quality=10) as writer:
        writer.write(frames)
    return writer.path


def film(
    path: Path,
    times: Sequence[int],
    *,
    frames: Frames | None = None,
    codec: str = "libx264",
    pix_fmt: str = "yuv420p",
    colorspace: int | None = None,
    full_range: bool = False,
    size: tuple[int, int] = (48, 32),
) -> Path:
    """Write frames at given times (1/1000 s) with FFmpeg directly, tagged or not."""
    with av.open(str(path), "w") as container:
        # x265 reads memory that it never wrote when a film is shorter than its reordering: no reordering, then.
        options = {"x265-params": "bframes=0:log-level=none"} if codec == "libx265" else {}
        stream = container.add_stream(codec, rate=Fraction(25), options=options)
        assert isinstance(stream, VideoStream)
        stream.width, stream.height = size
        stream.pix_fmt = pix_fmt
        stream.time_base = stream.codec_context.time_base = Fraction(1, 1000)
        if colorspace is not None:
            stream.codec_context.colorspace = colorspace
            stream.codec_context.color_range = 2 if full_range else 1
        container.start_encoding()
        for index, at in enumerate(times):
            array = np.zeros((size[1], size[0], 3), np.uint8) if frames is None else frames[index]
            frame = VideoReformatter().reformat(
                av.VideoFrame.from_ndarray(array, format="rgb24"),
                format=pix_fmt,
                dst_colorspace=colorspace if colorspace is not None else 5,
                dst_color_range=2 if full_range else 1,
            )
            frame.pts, frame.time_base = at, Fraction(1, 1000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def middles(frames: Frames) -> npt.NDArray[np.int64]:
    return frames[:, 8::16, 8::16].astype(np.int64)


# --- what comes back -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize("count", [1, 5])
def test_every_format_that_is_written_is_read(tmp_path: Path, kind: VideoFormat, count: int) -> None:
    frames = blocks(count)
    clip = read_video(save(tmp_path / f"x.{kind}", frames))
    assert clip.frames.dtype == np.uint8
    assert clip.frames.flags["C_CONTIGUOUS"]
    assert np.abs(middles(clip.frames) - middles(frames)).max() <= 4
    assert (clip.fps, clip.metadata, clip.notes) == (16.0, {}, ())


@pytest.mark.parametrize("name", ["x.bin", "x", "x.gif"])
def test_the_content_decides_and_not_the_name(tmp_path: Path, name: str) -> None:
    save(tmp_path / "x.mp4", blocks()).rename(tmp_path / name)
    assert read_video(tmp_path / name).frames.shape == (3, 32, 48, 3)


@pytest.mark.parametrize(
    ("suffix", "codec", "pix_fmt", "colorspace", "full_range"),
    [
        ("mp4", "libx264", "yuv420p", None, False),  # untagged and small: BT.601
        ("mp4", "libx264", "yuv444p", 1, False),
        ("mp4", "libx264", "yuv420p", 5, False),
        ("mp4", "libx264", "yuvj420p", 1, True),
        ("mp4", "libx265", "yuv420p10le", 1, False),
        ("mkv", "ffv1", "yuv444p", 1, False),
        ("mov", "prores_ks", "yuv422p10le", 1, False),
        ("webm", "libsvtav1", "yuv420p", 1, False),
    ],
)
def test_colours_follow_the_tags_of_the_file(
    tmp_path: Path, suffix: str, codec: str, pix_fmt: str, colorspace: int | None, full_range: bool
) -> None:
    frames = np.repeat(blocks(1, 64, 96), 2, axis=0)
    path = film(
        tmp_path / f"x.{suffix}",
        [0, 40],
        frames=frames,
        codec=codec,
        pix_fmt=pix_fmt,
        colorspace=colorspace,
        full_range=full_range,
        size=(96, 64),
    )
    got = read_video(path).frames
    assert np.abs(middles(got) - middles(frames)).max() <= 12
    assert np.abs(middles(got) - middles(frames)).mean() <= 2.5


@pytest.mark.parametrize(("quarter_turns", "matrix"), [(1, (0, -1, 1, 0)), (2, (-1, 0, 0, -1)), (3, (0, 1, -1, 0))])
def test_a_rotation_in_the_file_is_applied(
    tmp_path: Path, quarter_turns: int, matrix: tuple[int, int, int, int]
) -> None:
    frames = blocks()
    path = save(tmp_path / "x.mp4", frames)
    data = bytearray(path.read_bytes())
    at = data.index(b"tkhd") + 4 + 40
    a, b, c, d = (value * 65536 for value in matrix)
    data[at : at + 36] = struct.pack(">9i", a, b, 0, c, d, 0, 0, 0, 1 << 30)
    path.write_bytes(data)
    clip = read_video(path)
    assert np.abs(middles(clip.frames) - middles(np.rot90(frames, quarter_turns, axes=(1, 2)))).max() <= 4
    assert "turned by" in clip.notes[0]


def test_an_uneven_rate_is_reported_and_frames_are_kept(tmp_path: Path) -> None:
    clip = read_video(film(tmp_path / "x.mp4", [0, 40, 80, 400, 440, 480]))
    assert len(clip.frames) == 6
    assert clip.fps == pytest.approx(5 / 0.48)
    assert "unevenly spaced" in clip.notes[0]


def test_negative_times_are_only_times(tmp_path: Path) -> None:
    clip = read_video(film(tmp_path / "x.mkv", [-80, -40, 0, 40], codec="ffv1", pix_fmt="yuv444p"))
    assert len(clip.frames) == 4
    assert clip.fps == pytest.approx(25)


def test_transparency_is_laid_over_white(tmp_path: Path) -> None:
    clear, solid = Image.new("RGBA", (32, 32), (0, 0, 0, 0)), Image.new("RGBA", (32, 32), (10, 20, 30, 255))
    clear.save(tmp_path / "x.webp", save_all=True, append_images=[solid], lossless=True, duration=50)
    frames = read_video(tmp_path / "x.webp").frames
    assert frames[0, 0, 0].tolist() == [255, 255, 255]
    assert frames[1, 0, 0].tolist() == [10, 20, 30]


@pytest.mark.parametrize(("delay", "fps"), [(60, 50 / 3), (40, 25.0), (100, 10.0)])
def test_a_foreign_gif_has_the_rate_of_its_delays(tmp_path: Path, delay: int, fps: float) -> None:
    images = [Image.fromarray(frame) for frame in blocks(20)]
    images[0].save(tmp_path / "x.gif", save_all=True, append_images=images[1:], duration=delay)
    assert read_video(tmp_path / "x.gif").fps == pytest.approx(fps)


def test_a_foreign_comment_is_kept_as_a_comment(tmp_path: Path) -> None:
    Image.new("RGB", (16, 16)).save(tmp_path / "x.gif", comment=b"made elsewhere")
    assert read_metadata(tmp_path / "x.gif") == {"comment": "made elsewhere"}


def test_a_picture_without_a_rate_says_what_was_assumed(tmp_path: Path) -> None:
    Image.new("RGB", (32, 32)).save(tmp_path / "x.png")
    clip = read_video(tmp_path / "x.png")
    assert clip.fps == 16.0
    assert clip.notes == ("the file states no rate; 16 fps was assumed",)


# --- limits ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", FORMATS)
def test_limits_are_held_in_every_format(tmp_path: Path, kind: VideoFormat) -> None:
    path = save(tmp_path / f"x.{kind}", blocks(5))
    with pytest.raises(MediaError, match=r"more than 4 frames; shorten it"):
        read_video(path, max_frames=4)
    with pytest.raises(MediaError, match=r"frames of 48x32; at most 1,535 pixels"):
        read_video(path, max_pixels=48 * 32 - 1)
    with pytest.raises(MediaError, match="took more than"):
        read_video(path, max_seconds=-1)
    assert len(read_video(path, max_frames=5, max_pixels=48 * 32).frames) == 5


@pytest.mark.parametrize("head", [b"GIF89a" + struct.pack("<HHBBB", 65_000, 65_000, 0, 0, 0) + b";", None])
def test_declared_sizes_are_refused_before_decoding(tmp_path: Path, head: bytes | None) -> None:
    path = tmp_path / "x"
    extended = b"WEBPVP8X" + struct.pack("<I", 10) + b"\x02\0\0\0" + (16_382).to_bytes(3, "little") * 2
    path.write_bytes(head if head is not None else b"RIFF" + struct.pack("<I", len(extended)) + extended)
    with pytest.raises(MediaError):
        read_video(path)


# --- refused ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("x.m3u8", b"#EXTM3U\n#EXTINF:1,\n/etc/passwd\n"),
        ("x.mp4", b"ffconcat version 1.0\nfile /etc/passwd\n"),
        ("x.mp4", b"#EXTM3U\nhttp://127.0.0.1/x\n"),
        ("x.mpd", b'<?xml version="1.0"?><MPD></MPD>'),
        ("x.sdp", b"v=0\no=- 0 0 IN IP4 127.0.0.1\n"),
        ("x.mp4", b"<!doctype html>"),
        ("x.avi", b"RIFF\0\0\0\0AVI LIST"),
        ("x.mp4", b"x"),
    ],
)
@pytest.mark.parametrize("read", [read_video, read_metadata])
def test_playlists_scripts_and_other_files_are_no_videos(tmp_path: Path, name: str, data: bytes, read: object) -> None:
    (tmp_path / name).write_bytes(data)
    with pytest.raises(MediaError, match="is no video that is known here"):
        read(tmp_path / name)  # type: ignore[operator]


def test_a_demuxer_that_follows_references_gets_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Were the check of the first bytes ever passed, no second file could be opened all the same."""
    film(tmp_path / "secret.mp4", [0, 40, 80])
    script = tmp_path / "x.txt"
    script.write_text(f"ffconcat version 1.0\nfile {tmp_path / 'secret.mp4'}\n")
    with av.open(str(script), format="concat", options={"safe": "0"}) as container:
        assert len(list(container.decode(video=0))) == 3  # FFmpeg left to itself follows it
    opener = av.open

    def open_as_script(*args: Any, **options: Any) -> Any:
        options["format"] = "concat"
        options["container_options"] = {**options["container_options"], "safe": "0"}
        return opener(*args, **options)

    monkeypatch.setattr(video_read, "kind_of", lambda *_: "mp4")
    monkeypatch.setattr(av, "open", open_as_script)
    with pytest.raises(MediaError, match="damaged"):
        read_video(script)


def test_sound_alone_is_no_video(tmp_path: Path) -> None:
    with av.open(str(tmp_path / "x.mp4"), "w") as container:
        stream = container.add_stream("aac", rate=16_000)
        assert isinstance(stream, AudioStream)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
        frame.sample_rate = 16_000
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    with pytest.raises(MediaError, match="no picture track"):
        read_video(tmp_path / "x.mp4")


def test_a_gif_that_grows_is_refused(tmp_path: Path) -> None:
    path = save(tmp_path / "x.gif", blocks(2))
    data = bytearray(path.read_bytes())
    place = data.rindex(b"," + struct.pack("<4H", 0, 0, 48, 32)) + 1
    struct.pack_into("<H", data, place, 16)  # the second frame begins further right
    path.write_bytes(data)
    with pytest.raises(MediaError, match="changes its frame size"):
        read_video(path)


@pytest.mark.parametrize("suffix", ["mp4", "mkv"])
def test_a_video_without_frames_is_an_error(tmp_path: Path, suffix: str) -> None:
    with pytest.raises(MediaError, match=r"no frames|no picture track|damaged"):
        read_video(film(tmp_path / f"x.{suffix}", []))


@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize("share", [0.02, 0.3, 0.6, 0.9, 0.98])
def test_a_video_cut_short_is_refused(tmp_path: Path, kind: VideoFormat, share: float) -> None:
    count = 1 if kind == "png" else 5
    rng = np.random.default_rng(2)
    path = save(tmp_path / f"x.{kind}", rng.integers(0, 256, (count, 32, 48, 3), dtype=np.uint8))
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * share)])
    with pytest.raises(MediaError):
        read_video(path)


def test_frame_folders_with_gaps_or_mixed_sizes_or_no_frames_are_refused(tmp_path: Path) -> None:
    with pytest.raises(MediaError, match="holds no frames named"):
        read_video(tmp_path)
    folder = save(tmp_path / "x.png", blocks(3))
    (folder / "00001.png").rename(folder / "00003.png")
    with pytest.raises(MediaError, match="gaps"):
        read_video(folder)
    Image.new("RGB", (8, 8)).save(folder / "00001.png")
    with pytest.raises(MediaError, match="different sizes"):
        read_video(folder)


def test_a_missing_video_is_named(tmp_path: Path) -> None:
    with pytest.raises(MediaError, match=r"there is no file 'x\.mp4'") as caught:
        read_video(tmp_path / "x.mp4")
    assert caught.value.exit_code == 2


SAMPLES: dict[str, bytes] = {}


def sample(kind: VideoFormat, folder: Path) -> bytes:
    if kind not in SAMPLES:
        path = folder / f"sample.{kind}"
        if not path.exists():
            with open_writer(path, width=32, height=32, fps=16, metadata={"a": "b"}) as writer:
                writer.write(blocks(1 if kind == "png" else 2, 32, 32))
        SAMPLES[kind] = path.read_bytes()
    return SAMPLES[kind]


@settings(max_examples=150, deadline=None, database=None)
@given(
    st.sampled_from(FORMATS), st.lists(st.tuples(st.integers(0, 2**16), st.integers(0, 255)), min_size=1, max_size=6)
)
def test_flipped_bytes_give_a_clip_or_an_error_in_words(
    tmp_path_factory: pytest.TempPathFactory, kind: VideoFormat, changes: list[tuple[int, int]]
) -> None:
    folder = tmp_path_factory.getbasetemp()
    broken = bytearray(sample(kind, folder))
    for at, value in changes:
        broken[at % len(broken)] = value
    path = folder / "broken"
    path.write_bytes(broken)
    with contextlib.suppress(MediaError):  # anything else fails the test
        assert read_video(path, max_frames=10, max_pixels=10**6, max_seconds=5).frames.ndim == 4
    with contextlib.suppress(MediaError):
        read_metadata(path)


def test_bytes_of_a_chunk_that_claims_too_much_are_not_read(tmp_path: Path) -> None:
    path = tmp_path / "x.webp"
    buffer = io.BytesIO()
    Image.new("RGB", (16, 16)).save(buffer, "WEBP")
    data = buffer.getvalue()
    path.write_bytes(data[:16] + struct.pack("<I", 2**31) + data[20:])
    with pytest.raises(MediaError, match="cut short"):
        read_metadata(path)
