"""``VIDEO`` as it flows through a graph: what custom nodes call on one, and how it is read and written."""

from __future__ import annotations

import io
import json
import os
import tempfile
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch

from cygnet.errors import MediaError, RequestError
from cygnet.media.frames import Frames
from cygnet.media.sound import Sound
from cygnet.media.sound_read import read_sound
from cygnet.media.video import VideoFormat, open_writer
from cygnet.media.video_read import kind_of, read_video
from cygnet.nodes.workshop import log

_CONTAINERS = {"mp4": "mov,mp4,m4a,3gp,3g2,mj2", "matroska": "matroska,webm"}
"""FFmpeg's names, which are what packs compare."""


@dataclass
class VideoComponents:
    """What a ``VIDEO`` is made of."""

    images: torch.Tensor
    """``[T, H, W, C]`` in 0..1"""
    frame_rate: Fraction
    audio: Mapping[str, Any] | None = None
    """``AUDIO`` as it flows through a graph: ``waveform [1, C, N]`` in -1..1 and ``sample_rate``."""
    metadata: Mapping[str, Any] | None = None


class VideoInput(ABC):
    """A video. A class of a pack need only say what it is made of."""

    @abstractmethod
    def get_components(self) -> VideoComponents:
        """Frames, rate and sound."""

    def get_dimensions(self) -> tuple[int, int]:
        """Width and height."""
        images = self.get_components().images
        return images.shape[2], images.shape[1]

    def get_frame_count(self) -> int:
        """How many frames there are."""
        return len(self.get_components().images)

    def get_frame_rate(self) -> Fraction:
        """Frames per second; 30000/1001 and its like are told as such."""
        return Fraction(self.get_components().frame_rate)

    def get_duration(self) -> float:
        """Seconds."""
        return float(self.get_frame_count() / self.get_frame_rate())

    def get_container_format(self) -> str:
        """FFmpeg's name for the kind of file that :meth:`get_stream_source` gives."""
        return _CONTAINERS["mp4"]

    def get_stream_source(self) -> str | io.BytesIO:
        """The video as a file: a path, or its contents; mp4 unless it was read from another kind."""
        file = io.BytesIO()
        self.save_to(file)
        file.seek(0)
        return file

    def as_trimmed(
        self, start_time: float = 0.0, duration: float = 0.0, strict_duration: bool = True
    ) -> VideoInput | None:
        """A part of it, in seconds: from the end if ``start_time`` is negative, to the end if ``duration`` is 0.

        None if there is less than ``duration`` and that is not allowed, or nothing at all.
        """
        parts = self.get_components()
        rate, count = float(parts.frame_rate), len(parts.images)
        first = round(start_time * rate) if start_time >= 0 else max(0, count + round(start_time * rate))
        wanted = round(duration * rate) if duration else count - first
        if first >= count or wanted <= 0 or (strict_duration and duration and first + wanted > count):
            return None
        audio = parts.audio
        if audio is not None:
            samples = int(audio["sample_rate"])
            begin, end = (round(frame / rate * samples) for frame in (first, min(count, first + wanted)))
            audio = {**audio, "waveform": audio["waveform"][..., begin:end]}
        return VideoValue(parts.images[first : first + wanted], rate, audio)

    def save_to(
        self,
        path: str | os.PathLike[str] | io.BytesIO,
        format: Any = "auto",
        codec: Any = "auto",
        metadata: Mapping[str, Any] | None = None,
    ) -> None:
        """Write an mp4 file, over one that is there; ``metadata`` is kept inside, as JSON where it is no text."""
        for name, value, allowed in (("format", format, "mp4"), ("codec", codec, "h264")):
            if getattr(value, "value", value) not in ("auto", allowed):  # texts, or an enumeration of them
                raise RequestError(f"{name} is {value!r}; a video is saved as {allowed}, or auto", field=name)
        told = {key: it if isinstance(it, str) else json.dumps(it) for key, it in (metadata or {}).items()}
        if isinstance(path, io.BytesIO):
            with tempfile.TemporaryDirectory() as folder:
                self.save_to(file := Path(folder) / "video.mp4", metadata=told)
                path.write(file.read_bytes())
            return
        it = self.get_components()
        sound = None if it.audio is None else to_sound(it.audio)
        fill(Path(path), it.images, float(it.frame_rate), "mp4", told, sound=sound, overwrite=True)


@dataclass(frozen=True)
class VideoValue(VideoInput):
    """One in memory."""

    images: torch.Tensor
    fps: float
    audio: Mapping[str, Any] | None = None

    def get_components(self) -> VideoComponents:
        """Frames, rate and sound."""
        short = Fraction(self.fps).limit_denominator(1001)
        rate = short if float(short) == self.fps else Fraction(self.fps)
        return VideoComponents(self.images, rate, self.audio)


class VideoFromComponents(VideoValue):
    """One of what a custom node made."""

    def __init__(self, components: VideoComponents) -> None:
        super().__init__(components.images, float(components.frame_rate), components.audio)


class VideoFromFile(VideoInput):
    """One of a file, or of a file's contents, which are read when they are needed and then kept.

    ``start_time`` and ``duration`` are seconds, as :meth:`VideoInput.as_trimmed` takes them.
    """

    def __init__(
        self, file: str | os.PathLike[str] | io.BytesIO, *, start_time: float = 0, duration: float = 0
    ) -> None:
        self._file = file
        self._part = (start_time, duration)

    @cached_property
    def _value(self) -> VideoValue:
        if not isinstance(self._file, io.BytesIO):
            return _read(Path(self._file))
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "video"
            path.write_bytes(self._file.getvalue())
            return _read(path)

    @cached_property
    def _components(self) -> VideoComponents:
        if not any(self._part):
            return self._value.get_components()
        part = self._value.as_trimmed(*self._part, strict_duration=False)
        if part is None:
            raise MediaError(f"the video has no part of {self._part[1]:g} s at {self._part[0]:g} s; choose another one")
        return part.get_components()

    def get_components(self) -> VideoComponents:
        """Frames, rate and sound; raises MediaError for what is no video that can be read."""
        return self._components

    def get_stream_source(self) -> str | io.BytesIO:
        """The file itself, unless it is a part of it that is meant."""
        if any(self._part):
            return super().get_stream_source()
        return io.BytesIO(self._file.getvalue()) if isinstance(self._file, io.BytesIO) else str(self._file)

    def get_container_format(self) -> str:
        """FFmpeg's name for the kind of file."""
        if any(self._part):
            return super().get_container_format()
        if isinstance(self._file, io.BytesIO):
            kind = kind_of(io.BytesIO(self._file.getvalue()), "the video")
        else:
            with open(self._file, "rb") as file:
                kind = kind_of(file, Path(self._file).name)
        return _CONTAINERS.get(kind, kind)


def _read(path: Path) -> VideoValue:
    clip = read_video(path)
    try:
        sound = read_sound(path)
    except MediaError as error:
        log.warning("the video is used without its sound: %s", error)
        sound = None
    images = torch.from_numpy(clip.frames.astype(np.float32) / 255.0)
    return VideoValue(images, float(clip.fps), None if sound is None else to_audio(sound))


def video_components(video: Any) -> VideoComponents:
    """What a ``VIDEO`` is made of, whichever class a custom node made it of."""
    if not callable(getattr(video, "get_components", None)):
        raise RequestError(f"video is a {type(video).__name__}, which is no VIDEO", field="video")
    found: VideoComponents = video.get_components()
    return found


def to_audio(sound: Sound) -> dict[str, Any]:
    """A sound as it flows through a graph."""
    return {"waveform": torch.from_numpy(sound.samples)[None], "sample_rate": sound.rate}


def to_sound(audio: Mapping[str, Any]) -> Sound:
    """The first sound of a batch; raises RequestError in words if it is none."""
    waveform, rate = audio.get("waveform"), audio.get("sample_rate")
    if not isinstance(waveform, torch.Tensor) or waveform.ndim != 3 or not isinstance(rate, int):
        raise RequestError("audio is not a waveform [B, C, N] and a sample_rate", field="audio")
    return Sound(waveform[0].float().cpu().contiguous().numpy(), rate)


def fill(
    path: Path, images: torch.Tensor, fps: float, kind: VideoFormat, metadata: Mapping[str, str], **more: Any
) -> None:
    """Write frames ``[T, H, W, C]`` in 0..1 as one file; opacity, a fourth channel, is kept where the format can."""
    height, width, channels = images.shape[1:]
    alpha = channels == 4 and kind in ("webp", "png")
    writer = open_writer(
        path,
        width=width,
        height=height,
        fps=fps,
        format=kind,
        metadata=metadata,
        num_frames=len(images),
        alpha=alpha,
        **more,
    )
    with writer as opened:
        for frame in images:
            opened.write(to_bytes(frame, 4 if alpha else 3)[None])


def to_bytes(frame: torch.Tensor, channels: int = 3) -> Frames:
    """``[H, W, C]`` in 0..1 to uint8, its first ``channels``, cut off and not rounded, as the official export does."""
    pixels: Frames = (frame[..., :channels].clamp(0, 1) * 255).to(torch.uint8).cpu().numpy()
    return pixels
