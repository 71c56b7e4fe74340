"""Read the sound of a video file.

Legend: ``C`` channels, ``N`` samples per channel.
"""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import numpy.typing as npt

from cygnet.errors import MediaError
from cygnet.media.files import open_regular, shorten
from cygnet.media.sound import Sound
from cygnet.media.video_read import MAX_FILE_BYTES, kind_of, opened

MAX_SOUND_SECONDS = 3600.0
_CODECS = frozenset(("aac", "mp3", "opus", "vorbis", "flac", "alac", "ac3", "pcm_s16le", "pcm_s24le", "pcm_f32le"))
"""Codings that are read: those of common cameras, editors and browsers, and none of FFmpeg's hundreds of old ones."""


def read_sound(path: str | os.PathLike[str], *, max_seconds: float = MAX_SOUND_SECONDS) -> Sound | None:
    """The first sound track of an MP4, MOV, WebM or Matroska file; None if it has none, or is of another kind.

    More than two channels are mixed down to two. Raises MediaError for a damaged file, a coding that is not
    read, or more than ``max_seconds``.
    """
    from av import AudioResampler

    place = Path(path)
    name = shorten(place.name)
    if place.is_dir():
        return None
    with open_regular(place, max_bytes=MAX_FILE_BYTES) as file:
        kind = kind_of(file, name)
        if kind not in {"mp4", "matroska"}:
            return None
        with opened(file, kind, name) as container:
            if not container.streams.audio:
                return None
            stream = container.streams.audio[0]
            codec = stream.codec_context
            coding = "something unknown" if codec is None else codec.codec.canonical_name
            if coding not in _CODECS:
                raise MediaError(
                    f"the sound of {name!r} is coded as {coding}, which is not read here; convert it to AAC"
                )
            rate = codec.sample_rate
            layout = "mono" if codec.channels == 1 else "stereo"
            resampler = AudioResampler(format="fltp", layout=layout, rate=rate)
            parts: list[npt.NDArray[np.float32]] = []
            total = 0
            for frame in container.decode(stream):
                for piece in resampler.resample(frame):
                    parts.append(piece.to_ndarray().astype(np.float32))
                    total += parts[-1].shape[1]
                if total > max_seconds * rate:
                    raise MediaError(f"{name!r} has more than {max_seconds:g} seconds of sound; cut it first")
            parts += [piece.to_ndarray().astype(np.float32) for piece in resampler.resample(None)]
    if not parts:
        return None
    return Sound(np.ascontiguousarray(np.concatenate(parts, axis=1)), rate)
