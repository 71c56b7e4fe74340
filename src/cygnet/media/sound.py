"""The sound of a video, and how it is coded beside the pictures of a new file.

Legend: ``C`` channels, ``N`` samples per channel.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import numpy.typing as npt

from cygnet.errors import RequestError

if TYPE_CHECKING:
    from av.audio.stream import AudioStream
    from av.container import OutputContainer
    from av.packet import Packet

_AAC_RATES = (8000, 11025, 12000, 16000, 22050, 24000, 32000, 44100, 48000, 88200, 96000)
_CODERS = {"mp4": ("aac", "fltp", _AAC_RATES), "webm": ("libopus", "flt", (48000,))}
"""Container → coder, the samples that it takes, and at which rates."""
_BLOCK = 1024
"""Samples that are coded at once."""


@dataclass(frozen=True)
class Sound:
    """``samples`` float32 ``[C, N]`` in [-1, 1], 1 or 2 channels, ``rate`` samples per second."""

    samples: npt.NDArray[np.float32]
    rate: int

    def __post_init__(self) -> None:
        if self.samples.ndim != 2 or not 1 <= self.samples.shape[0] <= 2 or self.samples.dtype != np.float32:
            raise RequestError(
                f"a sound is {self.samples.dtype} {list(self.samples.shape)}; it must be float32 [1 or 2, N]",
                field="sound",
            )
        if not 1000 <= self.rate <= 384_000:
            raise RequestError(f"a sound's rate is {self.rate}; it must be from 1,000 to 384,000", field="sound")

        if not np.isfinite(self.samples).all():
            raise RequestError("a sound holds NaN or infinity; what made it is broken", field="sound")

    @property
    def seconds(self) -> float:
        """How long it lasts."""
        return float(self.samples.shape[1] / self.rate)


class SoundTrack:
    """Codes a sound into an open container, as far as its pictures have come: tracks lie side by side in the file."""

    def __init__(self, container: OutputContainer, kind: str, sound: Sound) -> None:
        from av import AudioResampler

        codec, samples, rates = _CODERS[kind]
        rate = sound.rate if sound.rate in rates else 48000
        layout = "mono" if sound.samples.shape[0] == 1 else "stereo"
        self._container, self._sound, self._layout = container, sound, layout
        self._stream = cast("AudioStream", container.add_stream(codec, rate=rate, layout=layout))
        self._resampler = AudioResampler(format=samples, layout=layout, rate=rate)
        self._at = 0

    def until(self, seconds: Fraction) -> None:
        """Code what is heard before ``seconds``."""
        end = min(self._sound.samples.shape[1], round(seconds * self._sound.rate))
        while self._at < end:
            until = min(self._at + _BLOCK, end)
            for packet in self._coded(self._at, until):
                self._container.mux(packet)
            self._at = until

    def finish(self) -> None:
        """Flush the codec."""
        for frame in self._resampler.resample(None):
            self._container.mux(self._stream.encode(frame))
        self._container.mux(self._stream.encode(None))

    def _coded(self, start: int, end: int) -> Iterator[list[Packet[Any]]]:
        from av import AudioFrame

        block = np.ascontiguousarray(self._sound.samples[:, start:end])
        frame = AudioFrame.from_ndarray(block, format="fltp", layout=self._layout)
        frame.sample_rate = self._sound.rate
        frame.pts, frame.time_base = start, Fraction(1, self._sound.rate)
        for piece in self._resampler.resample(frame):
            yield self._stream.encode(piece)
