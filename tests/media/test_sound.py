"""The sound of videos: written beside the pictures, read back, cut, and refused in words."""

from __future__ import annotations

from pathlib import Path

import av
import numpy as np
import pytest

from cygnet.errors import MediaError, RequestError
from cygnet.media.sound import Sound
from cygnet.media.sound_read import read_sound
from cygnet.media.video import open_writer
from cygnet.media.video_read import read_video


def tone(seconds: float, rate: int = 44100, pitches: tuple[float, ...] = (440.0, 660.0)) -> Sound:
    times = np.arange(round(seconds * rate)) / rate
    return Sound(np.stack([0.4 * np.sin(2 * np.pi * pitch * times) for pitch in pitches]).astype(np.float32), rate)


def written(path: Path, sound: Sound | None, frames: int = 32) -> tuple[str, ...]:
    with open_writer(path, width=32, height=16, fps=16, sound=sound) as writer:
        for i in range(frames):
            writer.write(np.full((1, 16, 32, 3), 7 * i % 256, np.uint8))
    return writer.notes


def pitch(samples: np.ndarray, rate: int) -> float:
    middle = samples[len(samples) // 4 : 3 * len(samples) // 4]
    return float(np.abs(np.fft.rfft(middle * np.hanning(len(middle)))).argmax() * rate / len(middle))


@pytest.mark.parametrize(
    ("suffix", "rate", "kept"), [(".mp4", 44100, 44100), (".mp4", 37000, 48000), (".webm", 44100, 48000)]
)
def test_what_was_written_is_heard(tmp_path: Path, suffix: str, rate: int, kept: int) -> None:
    path = tmp_path / f"x{suffix}"
    assert written(path, tone(2.0, rate)) == ()
    assert read_video(path).frames.shape == (32, 16, 32, 3)
    sound = read_sound(path)
    assert sound is not None
    assert (sound.samples.shape[0], sound.rate) == (2, kept)
    assert abs(sound.seconds - 2.0) < 0.06
    assert abs(pitch(sound.samples[0], kept) - 440) < 2
    assert abs(pitch(sound.samples[1], kept) - 660) < 2
    middle = sound.samples[0][kept // 2 : kept]
    assert 0.36 < np.abs(middle).max() < 0.48


def test_tracks_lie_side_by_side(tmp_path: Path) -> None:
    written(tmp_path / "x.mp4", tone(10.0), frames=160)
    with av.open(str(tmp_path / "x.mp4")) as container:
        kinds = [packet.stream.type for packet in container.demux() if packet.size]
    first_half = kinds[: len(kinds) // 2]
    assert 0.3 < first_half.count("audio") / kinds.count("audio") < 0.7


def test_a_longer_sound_is_cut_and_a_shorter_one_ends_early(tmp_path: Path) -> None:
    for given, kept in ((5.0, 2.0), (0.5, 0.5)):
        path = tmp_path / f"{given}.mp4"
        written(path, tone(given, pitches=(300.0,)))
        sound = read_sound(path)
        assert sound is not None
        assert sound.samples.shape[0] == 1
        assert abs(sound.seconds - kept) < 0.06


def test_files_without_sound_say_so(tmp_path: Path) -> None:
    written(tmp_path / "x.mp4", None)
    assert read_sound(tmp_path / "x.mp4") is None
    assert "gif has no sound" in written(tmp_path / "x.gif", tone(1.0))
    assert read_sound(tmp_path / "x.gif") is None


def test_what_is_no_sound_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match=r"float64 \[2, 4\]; it must be float32"):
        Sound(np.zeros((2, 4)), 44100)  # type: ignore[arg-type]
    with pytest.raises(RequestError, match="rate is 5;"):
        Sound(np.zeros((2, 4), np.float32), 5)
    for odd in (np.nan, np.inf):
        with pytest.raises(RequestError, match="NaN or infinity"):
            Sound(np.full((1, 4), odd, np.float32), 44100)
    written(tmp_path / "x.mp4", tone(2.0))
    with pytest.raises(MediaError, match="more than 1 seconds of sound"):
        read_sound(tmp_path / "x.mp4", max_seconds=1.0)


def test_a_coding_that_nobody_uses_is_not_decoded(tmp_path: Path) -> None:
    with av.open(str(tmp_path / "x.mkv"), "w", format="matroska") as container:
        stream = container.add_stream("wavpack", rate=22050, layout="mono")
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1012), np.int16), format="s16p", layout="mono")
        frame.sample_rate = 22050
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    with pytest.raises(MediaError, match="wavpack, which is not read here"):
        read_sound(tmp_path / "x.mkv")
