"""One encoder per file format, all with the same three moves: take frames as they come, finish, or give up.

Each encoder writes into a part (a hidden file, or a hidden folder for PNG) that :mod:`cygnet.media.video` makes and
publishes. Frames are uint8 ``[H, W, 3]`` in sRGB order R, G, B. Memory does not grow with the number of frames.

Legend: ``T H W`` frames, height, width.
"""

from __future__ import annotations

import contextlib
import io
import json
import math
import struct
from collections.abc import Mapping
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, cast

import numpy as np
import numpy.typing as npt
from PIL import GifImagePlugin, Image, PngImagePlugin

from cygnet.media.sound import Sound, SoundTrack

if TYPE_CHECKING:
    from av.video.stream import VideoStream

Frames = npt.NDArray[np.uint8]

# Where a WebP or PNG reader of ComfyUI's looks for a graph: EXIF Model and Make, as "key:value".
EXIF_PROMPT, EXIF_WORKFLOW = 0x0110, 0x010F
EXIF_OTHERS = 0x010E  # ImageDescription: a JSON object with every other key
FPS_KEY = "fps"  # written by the formats that cannot state their rate exactly
# What containers write about themselves under these names; never ours.
RESERVED_KEYS = frozenset(
    {FPS_KEY, "major_brand", "minor_version", "compatible_brands", "encoder", "creation_time", "duration"}
)
GIF_COMMENT_MARK = "cygnet metadata "


class Encoder(Protocol):
    """What a writer needs of a format."""

    def add(self, frame: Frames) -> None:
        """Append one frame ``[H, W, 3]``."""
        ...

    def finish(self) -> None:
        """Complete the part."""
        ...

    def abort(self) -> None:
        """Let go of every handle; the part will be thrown away."""
        ...


def frame_end(index: int, fps: Fraction, unit: int) -> int:
    """When frame ``index`` ends, in 1/unit seconds, rounded, so that rounding never adds up over a video."""
    return round((index + 1) * unit / fps)


class AVEncoder:
    """H.264 in MP4, VP9 or AV1 in WebM through FFmpeg, 4:2:0 in BT.709 limited range, tagged as exactly that.

    The conversion from RGB is asked for explicitly: FFmpeg's implicit one is BT.601, and tagging its result BT.709
    shifts pure colours by up to 40/255. ``chroma_left`` puts the colour samples where players of this codec look for
    them, at the left pixel of each pair (H.264) or between the two (VP9); the wrong place blurs every coloured edge.
    """

    def __init__(
        self,
        part: Path,
        *,
        container: str,
        codec: str,
        pixel_format: str = "yuv420p",
        chroma_left: bool,
        size: tuple[int, int],
        fps: Fraction,
        codec_options: Mapping[str, str],
        container_options: Mapping[str, str],
        metadata: Mapping[str, str],
        sound: Sound | None = None,
    ) -> None:
        import av
        from av.video.reformatter import ColorPrimaries, ColorRange, Colorspace, ColorTrc

        self._frame_type = av.VideoFrame
        self._colorspace, self._range = Colorspace.ITU709, ColorRange.MPEG
        self._primaries, self._transfer = ColorPrimaries.BT709, ColorTrc.BT709
        self._time_base = 1 / fps
        self._count = 0
        self._container = av.open(str(part), "w", format=container, options=dict(container_options))
        try:
            self._container.metadata.update(metadata)
            stream = self._container.add_stream(codec, rate=fps, options=dict(codec_options))
            self._stream = cast("VideoStream", stream)  # the codec decides the kind, which its type cannot say
            self._stream.width, self._stream.height = size
            self._stream.pix_fmt = pixel_format
            self._tag(self._stream.codec_context)
            self._sound = None if sound is None else SoundTrack(self._container, container, sound)
            self._filter = av.filter.Graph()
            self._filter.link_nodes(
                self._filter.add_buffer(
                    width=size[0], height=size[1], format=av.VideoFormat("rgb24"), time_base=self._time_base
                ),
                self._filter.add(
                    "scale",
                    out_color_matrix="bt709",
                    out_range="limited",
                    out_h_chr_pos="0" if chroma_left else "128",
                    out_v_chr_pos="128",
                    flags="bicubic+accurate_rnd+full_chroma_inp",
                ),
                self._filter.add("format", pixel_format),
                self._filter.add("buffersink"),
            ).configure()
        except BaseException:
            self.abort()
            raise

    def add(self, frame: Frames) -> None:
        """Append one frame ``[H, W, 3]``."""
        given = self._frame_type.from_ndarray(np.ascontiguousarray(frame), format="rgb24")
        given.pts, given.time_base = self._count, self._time_base
        self._filter.vpush(given)
        picture = self._filter.vpull()
        self._tag(picture)
        self._container.mux(self._stream.encode(picture))
        self._count += 1
        if self._sound is not None:
            self._sound.until(self._count * self._time_base)

    def finish(self) -> None:
        """Flush the codecs and write the index."""
        if self._sound is not None:
            self._sound.finish()
        self._container.mux(self._stream.encode(None))
        self._container.close()

    def abort(self) -> None:
        """Close the container; what it says about being incomplete no longer matters."""
        from av.error import FFmpegError

        with contextlib.suppress(FFmpegError, OSError):
            self._container.close()

    def _tag(self, target: object) -> None:
        for name, value in (
            ("colorspace", self._colorspace),
            ("color_range", self._range),
            ("color_primaries", self._primaries),
            ("color_trc", self._transfer),
        ):
            setattr(target, name, int(value))


class WebPEncoder:
    """Animated WebP: each frame is coded by Pillow and put into the animation container as it comes.

    ``quality`` is 0 to 100 as WebP counts it, or None for lossless; with ``alpha`` frames have four channels. Source of
    the layout: the WebP container specification (RIFF chunks VP8X, ANIM, ANMF, EXIF).
    """

    def __init__(
        self,
        part: Path,
        *,
        size: tuple[int, int],
        fps: Fraction,
        quality: int | None,
        metadata: Mapping[str, str],
        alpha: bool = False,
        effort: int = 4,
    ) -> None:
        self._size, self._fps, self._quality, self._metadata, self._effort = size, fps, quality, metadata, effort
        self._count = 0
        self._file = part.open("wb")
        width, height = size
        flags = 0x02 | (0x08 if metadata else 0) | (0x10 if alpha else 0)  # animation, EXIF, transparency
        self._file.write(b"RIFF\0\0\0\0WEBP")  # the size is filled in at the end
        self._file.write(_chunk(b"VP8X", bytes([flags, 0, 0, 0]) + _u24(width - 1) + _u24(height - 1)))
        self._file.write(_chunk(b"ANIM", b"\xff\xff\xff\xff" + struct.pack("<H", 0)))  # white, endless

    def add(self, frame: Frames) -> None:
        """Append one frame ``[H, W, 3 or 4]``."""
        buffer = io.BytesIO()
        image = Image.fromarray(frame)
        if self._quality is None:
            # exact: what is wholly transparent keeps its colour too
            image.save(buffer, "WEBP", lossless=True, quality=60, method=self._effort, exact=True)
        else:
            image.save(buffer, "WEBP", quality=self._quality, method=self._effort)
        width, height = self._size
        duration = frame_end(self._count, self._fps, 1000) - frame_end(self._count - 1, self._fps, 1000)
        place = _u24(0) + _u24(0) + _u24(width - 1) + _u24(height - 1) + _u24(duration)
        no_blending = 0x02
        coded = buffer.getvalue()[12:]
        if coded.startswith(b"VP8X"):  # a header of whole files, which has no place in a frame
            coded = coded[18:]
        self._file.write(_chunk(b"ANMF", place + bytes([no_blending]) + coded))
        self._count += 1

    def finish(self) -> None:
        """Append the metadata and fill in the size."""
        if self._metadata:
            self._file.write(_chunk(b"EXIF", exif_of(self._metadata)))
        length = self._file.tell()
        self._file.seek(4)
        self._file.write(struct.pack("<I", length - 8))
        self._file.close()

    def abort(self) -> None:
        """Close the file."""
        _close_quietly(self._file)


class GifEncoder:
    """Animated GIF, 256 colours chosen anew for every frame, metadata in a comment that comes first.

    GIF counts time in 1/100 s; each frame ends at the nearest hundredth, so the whole video keeps its length.
    Source of the layout: the GIF89a specification.
    """

    def __init__(self, part: Path, *, size: tuple[int, int], fps: Fraction, metadata: Mapping[str, str]) -> None:
        self._fps, self._count = fps, 0
        self._file = part.open("wb")
        self._file.write(b"GIF89a" + struct.pack("<HHBBB", *size, 0x70, 0, 0))
        self._file.write(b"!\xff\x0bNETSCAPE2.0\x03\x01\0\0\0")  # play without end
        if metadata:
            comment = (GIF_COMMENT_MARK + json.dumps(dict(metadata))).encode("ascii")
            self._file.write(b"!\xfe")
            for start in range(0, len(comment), 255):
                block = comment[start : start + 255]
                self._file.write(bytes([len(block)]) + block)
            self._file.write(b"\0")

    def add(self, frame: Frames) -> None:
        """Append one frame ``[H, W, 3]``."""
        # Colours are chosen from at most 128x128 pixels of a regular grid: from all of a large frame it takes seconds.
        step = math.ceil(math.sqrt(frame.shape[0] * frame.shape[1] / 128**2))
        sample = Image.fromarray(np.ascontiguousarray(frame[::step, ::step]))
        palette = sample.quantize(256, method=Image.Quantize.MEDIANCUT)
        image = Image.fromarray(frame).quantize(palette=palette, dither=Image.Dither.NONE)
        hundredths = frame_end(self._count, self._fps, 100) - frame_end(self._count - 1, self._fps, 100)
        for data in GifImagePlugin.getdata(image, duration=10 * hundredths, include_color_table=True):
            self._file.write(data)
        self._count += 1

    def finish(self) -> None:
        """Write the trailer."""
        self._file.write(b";")
        self._file.close()

    def abort(self) -> None:
        """Close the file."""
        _close_quietly(self._file)


class PngEncoder:
    """Numbered PNG pictures in a folder, each with the metadata in its text chunks."""

    def __init__(self, part: Path, *, metadata: Mapping[str, str]) -> None:
        self._folder, self._count = part, 0
        self._text = PngImagePlugin.PngInfo()
        for key, value in metadata.items():
            if value.isascii():
                self._text.add_text(key, value)
            else:
                self._text.add_itxt(key, value)

    def add(self, frame: Frames) -> None:
        """Append one frame ``[H, W, 3 or 4]``."""
        Image.fromarray(frame).save(
            self._folder / f"{self._count:05d}.png", "PNG", pnginfo=self._text, compress_level=4
        )
        self._count += 1

    def finish(self) -> None:
        """Nothing is left to do: every picture is complete."""

    def abort(self) -> None:
        """Nothing is open."""


def exif_of(metadata: Mapping[str, str]) -> bytes:
    """Metadata as an EXIF block (a TIFF header and one directory), the ComfyUI keys where ComfyUI looks for them."""
    exif = Image.Exif()
    others = {key: value for key, value in metadata.items() if key not in {"prompt", "workflow"}}
    for tag, key in ((EXIF_PROMPT, "prompt"), (EXIF_WORKFLOW, "workflow")):
        if key in metadata:
            exif[tag] = f"{key}:{metadata[key]}".encode()
    if others:
        exif[EXIF_OTHERS] = json.dumps(others).encode("ascii")
    return exif.tobytes().removeprefix(b"Exif\0\0")


def _chunk(name: bytes, data: bytes) -> bytes:
    return name + struct.pack("<I", len(data)) + data + b"\0" * (len(data) % 2)


def _u24(value: int) -> bytes:
    return value.to_bytes(3, "little")


def _close_quietly(file: io.BufferedWriter) -> None:
    with contextlib.suppress(OSError):  # a full disk fails again while flushing what is thrown away
        file.close()
