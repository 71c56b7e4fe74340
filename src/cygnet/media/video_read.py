"""Read a video back: its frames, its rate, and the metadata written inside it.

The kind of file is told from its first bytes, never from its name, and FFmpeg is handed an open file and the one
demuxer that fits: playlists, concatenation scripts and references to other files or addresses are never followed.

Legend: ``T H W`` frames, height, width.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
import struct
import time
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, Literal, NoReturn, cast

import numpy as np
import numpy.typing as npt
from PIL import Image

from cygnet.errors import MediaError, UnsupportedError
from cygnet.media.encoders import EXIF_OTHERS, EXIF_PROMPT, EXIF_WORKFLOW, FPS_KEY, GIF_COMMENT_MARK, RESERVED_KEYS
from cygnet.media.files import open_regular, printable, shorten
from cygnet.media.headers import PNG_SIGNATURE, exif_texts, inflate, png_chunks, riff_chunks, truncated

if TYPE_CHECKING:
    from av.container import InputContainer
    from av.video.frame import VideoFrame
    from av.video.reformatter import VideoReformatter

Frames = npt.NDArray[np.uint8]
VideoKind = Literal["mp4", "matroska", "webp", "gif", "png"]

MAX_FRAMES = 1000
"""About a minute at 16 fps; Wan makes 81."""
MAX_PIXELS = 4096 * 4096
MAX_TOTAL_BYTES = 4 * 2**30
MAX_FILE_BYTES = 4 * 2**30
MAX_STILL_FILE_BYTES = 512 * 2**20
MAX_METADATA_BYTES = 16 * 2**20
MAX_SECONDS = 300.0
"""Decoding that takes longer than this is given up."""
WAN_FPS = 16.0

_CODECS = {"h264", "hevc", "vp8", "vp9", "av1", "mpeg4", "mjpeg", "prores", "ffv1"}
_FRAME_NAME = re.compile(r"\d{5,}\.png")
_PILLOW_ERRORS = (
    OSError,
    SyntaxError,
    ValueError,
    EOFError,
    IndexError,
    KeyError,
    TypeError,
    struct.error,
    Image.DecompressionBombError,
)


@dataclass(frozen=True, kw_only=True)
class Clip:
    """A video in memory: ``frames`` uint8 ``[T, H, W, 3]`` sRGB, ``fps`` frames per second, what was stored with it.

    ``notes`` says what could not be kept: an uneven rate (the frames stay as they are and ``fps`` is their mean), a
    rotation that was applied, a rate that the file does not state.
    """

    frames: Frames
    fps: float
    metadata: dict[str, str]
    notes: tuple[str, ...] = ()


def read_video(
    path: str | os.PathLike[str],
    *,
    max_frames: int = MAX_FRAMES,
    max_pixels: int = MAX_PIXELS,
    max_seconds: float = MAX_SECONDS,
) -> Clip:
    """Read an MP4, MOV, WebM, Matroska, WebP or GIF video, a PNG picture, or a folder of PNG pictures ``00000.png``, ….

    A rotation in the file is applied; transparency is laid over white. ``max_pixels`` counts one frame. Raises
    MediaError in words: not such a file, no picture track, no frames, more frames or pixels than allowed, cut short,
    damaged, or longer than ``max_seconds`` of decoding; UnsupportedError if PyAV is missing.
    """
    limits = _Limits(max_frames, max_pixels, time.monotonic() + max_seconds, max_seconds)
    place = Path(path)
    if place.is_dir():
        return _read_frame_folder(place, limits)
    with open_regular(place, max_bytes=MAX_FILE_BYTES) as file:
        name = shorten(place.name)
        kind = kind_of(file, name)
        if kind in {"mp4", "matroska"}:
            return _read_with_ffmpeg(file, kind, name, limits)
        return _read_with_pillow(_read_all(file, name), kind, name, limits)


def read_metadata(path: str | os.PathLike[str]) -> dict[str, str]:
    """Read what was written inside a video or picture file as ``metadata``, without decoding a frame.

    Keys come back in lower case, because WebM keeps no case. A folder of PNG frames answers for its first frame. A file
    without metadata gives an empty dict. Raises MediaError as :func:`read_video` does for files that are none.
    """
    place = Path(path)
    if place.is_dir():
        place = _numbered_frames(place)[0]
    with open_regular(place, max_bytes=MAX_FILE_BYTES) as file:
        name = shorten(place.name)
        kind = kind_of(file, name)
        if kind in {"mp4", "matroska"}:
            with opened(file, kind, name) as container:
                return _container_metadata(container)
        return _own(_still_metadata(_read_all(file, name), kind, name))


@dataclass(frozen=True)
class _Limits:
    frames: int
    pixels: int
    deadline: float
    seconds: float

    def check_size(self, width: int, height: int, name: str) -> None:
        if width < 1 or height < 1:
            raise MediaError(f"{name!r} is damaged: its frames are {width}x{height} pixels")
        if width * height > self.pixels:
            raise MediaError(
                f"{name!r} has frames of {width}x{height}; at most {self.pixels:,} pixels are accepted: scale it down"
            )

    def check_frame(self, count: int, width: int, height: int, name: str) -> None:
        """Called before frame number ``count`` (from 1) is kept."""
        if count > self.frames:
            raise MediaError(f"{name!r} has more than {self.frames} frames; shorten it first")
        if count * width * height * 3 > MAX_TOTAL_BYTES:
            raise MediaError(f"{name!r} has more than {MAX_TOTAL_BYTES:,} bytes of frames; shorten it or scale it down")
        if time.monotonic() > self.deadline:
            raise MediaError(f"decoding {name!r} took more than {self.seconds:g} s and was given up; shorten it first")


def kind_of(file: BinaryIO, name: str) -> VideoKind:
    """What an open file is, by its content; raises MediaError if it is no video that is known, or broken."""
    head = file.read(32)
    file.seek(0)
    if head[4:8] == b"ftyp":
        _check_boxes(file, name)
        return "mp4"
    if head.startswith(b"\x1aE\xdf\xa3"):
        _check_segment(file, name)
        return "matroska"
    if head[:4] == b"RIFF" and head[8:12] == b"WEBP":
        return "webp"
    if head[:6] in {b"GIF87a", b"GIF89a"}:
        return "gif"
    if head.startswith(PNG_SIGNATURE):
        return "png"
    raise MediaError(f"{name!r} is no video that is known here; give an MP4, MOV, WebM, WebP, GIF or PNG file")


def _check_boxes(file: BinaryIO, name: str) -> None:
    """Refuse an MP4 whose outermost boxes go beyond the end of the file. Source: ISO/IEC 14496-12, 4.2."""
    total = file.seek(0, os.SEEK_END)
    position = 0
    while position + 8 <= total:
        file.seek(position)
        head = file.read(16)
        length = int.from_bytes(head[:4], "big")
        if length == 1:
            length = int.from_bytes(head[8:16], "big")
        if length == 0:  # up to the end of the file
            break
        if length < 8 or position + length > total:
            raise truncated(name, total, position + max(length, 8))
        position += length
    file.seek(0)


def _check_segment(file: BinaryIO, name: str) -> None:
    """Refuse a Matroska file whose segment goes beyond the end of the file. Source: RFC 8794 and RFC 9559."""
    head = file.read(4096)
    total = file.seek(0, os.SEEK_END)
    file.seek(0)
    at = head.find(b"\x18\x53\x80\x67")
    if at < 0 or at + 12 > len(head):
        raise truncated(name, total)
    first = head[at + 4]
    width = 9 - first.bit_length()  # how many bytes the length takes; its leading zeros count them
    bits = 7 * width
    length = int.from_bytes(head[at + 4 : at + 4 + width], "big") & ((1 << bits) - 1)
    unknown = length == (1 << bits) - 1  # written by a live recorder
    end = at + 4 + width + length
    if not unknown and end > total:
        raise truncated(name, total, end)


def _read_all(file: BinaryIO, name: str) -> bytes:
    data = file.read(MAX_STILL_FILE_BYTES + 1)
    if len(data) > MAX_STILL_FILE_BYTES:
        raise MediaError(f"{name!r} has more than {MAX_STILL_FILE_BYTES:,} bytes; give an MP4 or WebM video")
    return data


# --- MP4, WebM and their kin: FFmpeg ---------------------------------------------------------------------------------


def _refuse_other_files(url: str, flags: int, options: dict[str, str]) -> NoReturn:
    raise PermissionError("a video may not open other files")


@contextlib.contextmanager
def opened(file: BinaryIO, kind: VideoKind, name: str) -> Iterator[InputContainer]:
    """The file as a container that can open nothing else; whatever goes wrong in the block becomes a MediaError."""
    try:
        import av
        from av.error import FFmpegError
    except ImportError as error:
        raise UnsupportedError(
            f"reading {name!r} needs PyAV, which cannot be imported here ({error}); reinstall it with "
            "'pip install --force-reinstall av'"
        ) from error
    try:
        with av.open(
            file,
            "r",
            format=kind,
            # Nothing but the open handle: no protocol is allowed, and nested opens are refused besides.
            container_options={"protocol_whitelist": "none"},
            io_open=_refuse_other_files,
            metadata_errors="replace",
        ) as container:
            yield container
    except (FFmpegError, OSError, ValueError, EOFError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise MediaError(f"{name!r} is damaged or cut short ({printable(reason)}); copy or save it again") from error


def _container_metadata(container: InputContainer) -> dict[str, str]:
    found = {key.lower(): value for key, value in container.metadata.items()}
    return _own({key: value for key, value in found.items() if len(value) <= MAX_METADATA_BYTES})


def _read_with_ffmpeg(file: BinaryIO, kind: VideoKind, name: str, limits: _Limits) -> Clip:
    from av.video.reformatter import VideoReformatter

    reformatter = VideoReformatter()
    frames: list[Frames] = []
    times: list[float] = []
    rotation = 0
    with opened(file, kind, name) as container:
        if not container.streams.video:
            raise MediaError(f"{name!r} has no picture track; give a video")
        stream = container.streams.video[0]
        codec = stream.codec_context
        if codec is None:  # PyAV's types do not say so, but a coding that FFmpeg does not know has none
            raise MediaError(f"{name!r} is coded in a way that is not known here; convert it to H.264 or VP9")
        coding = codec.codec.canonical_name
        if coding not in _CODECS:
            raise MediaError(f"{name!r} is coded as {coding}, which is not read here; convert it to H.264 or VP9")
        limits.check_size(codec.width, codec.height, name)
        # Threads would decode many frames ahead of the limits below.
        codec.thread_type = "SLICE"
        for frame in container.decode(stream):
            limits.check_size(frame.width, frame.height, name)
            limits.check_frame(len(frames) + 1, frame.width, frame.height, name)
            rotation = rotation or int(frame.rotation)
            picture = _to_rgb(frame, reformatter)
            if frames and picture.shape != frames[0].shape:
                raise MediaError(f"{name!r} changes its frame size half way; convert it to one size first")
            frames.append(picture)
            if frame.pts is not None:
                times.append(float(frame.pts * (frame.time_base or Fraction(1))))
        stated = stream.average_rate or stream.guessed_rate
        metadata = _container_metadata(container)
        announced = stream.frames
    if not frames:
        raise MediaError(f"{name!r} holds no frames; give a video with at least 1")
    if announced > len(frames):
        raise MediaError(f"{name!r} is cut short: {len(frames)} of its {announced} frames can be read; copy it again")
    fps, notes = _rate(times, float(stated) if stated else None)
    video = np.stack(frames)
    if rotation % 90 == 0 and rotation % 360:
        video = np.ascontiguousarray(np.rot90(video, k=rotation // 90, axes=(1, 2)))
        notes += (f"turned by {rotation % 360} degrees anticlockwise, as the file asks",)
    return Clip(frames=video, fps=fps, metadata=metadata, notes=notes)


def _to_rgb(frame: VideoFrame, reformatter: VideoReformatter) -> Frames:
    """Convert by the colour tags; an untagged frame is BT.709 from 720 lines up and BT.601 below, as players guess."""
    from av.video.reformatter import ColorRange, Colorspace, Interpolation

    unspecified = 2
    space: int = frame.colorspace
    if space in {0, unspecified} and not frame.format.is_rgb:
        space = Colorspace.ITU709 if frame.height >= 720 else Colorspace.ITU601
    full = frame.color_range == ColorRange.JPEG or frame.format.name.startswith("yuvj") or frame.format.is_rgb
    picture = reformatter.reformat(
        frame,
        format="rgb24",
        src_colorspace=space,
        src_color_range=ColorRange.JPEG if full else ColorRange.MPEG,
        dst_color_range=ColorRange.JPEG,
        interpolation=Interpolation.BILINEAR | Interpolation.ACCURATE_RND | Interpolation.FULL_CHR_H_INT,
    )
    array: Frames = np.array(picture.to_ndarray(), dtype=np.uint8)
    return array


def _rate(times: list[float], stated: float | None) -> tuple[float, tuple[str, ...]]:
    """Frames per second from the stated rate, or from the times at which frames are shown."""
    steps = np.diff(np.sort(np.asarray(times)))
    if len(steps) == 0 or float(steps.sum()) <= 0:
        return (stated, ()) if stated else (WAN_FPS, (f"the file states no rate; {WAN_FPS:g} fps was assumed",))
    mean = float(1 / steps.mean())
    fps = stated if stated and abs(stated - mean) <= 0.05 * mean else mean
    # Matroska rounds times to 1/1000 s; more than that, and a tenth of a frame, is a variable rate.
    uneven = bool((np.abs(steps - 1 / mean) > 0.1 / mean + 0.001).any())
    if uneven:
        return mean, (f"the frames are unevenly spaced; they were kept as they are, at {mean:.3f} fps on average",)
    return fps, ()


# --- WebP, GIF, PNG: Pillow ------------------------------------------------------------------------------------------


def _read_with_pillow(data: bytes, kind: VideoKind, name: str, limits: _Limits) -> Clip:
    metadata = _still_metadata(data, kind, name)
    frames: list[Frames] = []
    shown = 0.0
    limits.check_size(*_declared_size(data, kind, name), name)
    try:
        with Image.open(io.BytesIO(data), formats=[kind.upper()]) as image:
            limits.check_size(*image.size, name)
            total = int(getattr(image, "n_frames", 1))
            limits.check_frame(total, *image.size, name)
            for index in range(total):
                limits.check_frame(index + 1, *image.size, name)
                image.seek(index)
                limits.check_size(*image.size, name)  # a GIF frame may be larger than the first one
                if frames and image.size != (frames[0].shape[1], frames[0].shape[0]):
                    raise MediaError(f"{name!r} changes its frame size half way; convert it to one size first")
                frames.append(_flat(image))
                shown += float(image.info.get("duration", 0))
    except _PILLOW_ERRORS as error:
        raise MediaError(f"{name!r} is damaged or cut short ({printable(str(error))}); copy it again") from error
    fps, notes = _still_rate(len(frames), shown, metadata, unit=10 if kind == "gif" else 1)
    return Clip(frames=np.stack(frames), fps=fps, metadata=_own(metadata), notes=notes)


def _declared_size(data: bytes, kind: VideoKind, name: str) -> tuple[int, int]:
    """Width and height from the first bytes, before a decoder sees the file."""
    if len(data) < 30:
        raise truncated(name, len(data))
    if kind == "png":
        return cast("tuple[int, int]", struct.unpack_from(">II", data, 16))
    if kind == "gif":
        return cast("tuple[int, int]", struct.unpack_from("<HH", data, 6))
    if data[12:16] == b"VP8X":
        return 1 + int.from_bytes(data[24:27], "little"), 1 + int.from_bytes(data[27:30], "little")
    return 1, 1  # a still WebP without a canvas cannot be larger than 16383x16383; Pillow's answer is checked next


def _flat(image: Image.Image) -> Frames:
    if image.mode == "I;16":
        grey = (np.array(image) >> 8).astype(np.uint8)
        return np.repeat(grey[..., None], 3, axis=2)
    if image.mode in {"RGBA", "LA"} or "transparency" in image.info:
        picture = image.convert("RGBA")
        flat = Image.new("RGB", image.size, (255, 255, 255))
        flat.paste(picture.convert("RGB"), mask=picture.getchannel("A"))
        return np.array(flat)
    return np.array(image.convert("RGB"))


def _still_rate(count: int, shown_ms: float, metadata: dict[str, str], *, unit: int) -> tuple[float, tuple[str, ...]]:
    """The rate that the stored delays stand for.

    Delays are rounded to 10 ms (GIF) or 1 ms (WebP), so a whole number of frames per second that explains their sum
    within one unit is taken to be what was meant.
    """
    with contextlib.suppress(KeyError, ValueError):
        fps = float(metadata[FPS_KEY])
        if 0 < fps < 1000:
            return fps, ()
    if shown_ms <= 0:
        return WAN_FPS, (f"the file states no rate; {WAN_FPS:g} fps was assumed",)
    fps = 1000 * count / shown_ms
    whole = round(fps)
    if whole and abs(1000 * count / whole - shown_ms) <= unit:
        return float(whole), ()
    return fps, ()


def _numbered_frames(folder: Path) -> list[Path]:
    frames = sorted(entry for entry in folder.iterdir() if _FRAME_NAME.fullmatch(entry.name))
    if not frames:
        raise MediaError(f"the folder {shorten(folder.name)!r} holds no frames named 00000.png, 00001.png, …")
    return frames


def _read_frame_folder(folder: Path, limits: _Limits) -> Clip:
    name = shorten(folder.name)
    paths = _numbered_frames(folder)
    numbers = [int(path.stem) for path in paths]
    if numbers != list(range(numbers[0], numbers[0] + len(numbers))):
        raise MediaError(f"the folder {name!r} has gaps between its frame numbers; restore the missing frames")
    clips: list[Clip] = []
    for count, path in enumerate(paths, start=1):
        with open_regular(path, max_bytes=MAX_STILL_FILE_BYTES) as file:
            clip = _read_with_pillow(_read_all(file, printable(path.name)), "png", printable(path.name), limits)
        height, width = clip.frames.shape[1:3]
        limits.check_frame(count, width, height, name)
        if clips and clip.frames.shape != clips[0].frames.shape:
            raise MediaError(f"the folder {name!r} holds frames of different sizes; make them one size first")
        clips.append(clip)
    first = clips[0]
    return Clip(
        frames=np.concatenate([clip.frames for clip in clips]),
        fps=first.fps,
        metadata=first.metadata,
        notes=first.notes,
    )


# --- metadata of WebP, GIF, PNG --------------------------------------------------------------------------------------


def _own(metadata: dict[str, str]) -> dict[str, str]:
    return {key: value for key, value in metadata.items() if key not in RESERVED_KEYS}


def _still_metadata(data: bytes, kind: VideoKind, name: str) -> dict[str, str]:
    if kind == "png":
        return _png_text(data, name)
    if kind == "gif":
        return _gif_comment(data, name)
    for chunk, body in riff_chunks(data, name):
        if chunk == b"EXIF":
            return _exif_text(body.removeprefix(b"Exif\0\0"))
    return {}


def _png_text(data: bytes, name: str) -> dict[str, str]:
    """Text chunks by keyword; compressed ones are unpacked up to a limit, larger ones are left out."""
    found: dict[str, str] = {}
    for kind, body, _ in png_chunks(data, name):
        key, separator, rest = body.partition(b"\0")
        if kind not in {b"tEXt", b"zTXt", b"iTXt"} or not separator:
            continue
        text: bytes | None = rest
        if kind == b"zTXt":
            text = inflate(rest[1:], MAX_METADATA_BYTES)
        elif kind == b"iTXt":
            packed, rest = rest[:1] == b"\x01", rest[2:]
            text = rest.split(b"\0", 2)[2] if rest.count(b"\0") >= 2 else None
            text = inflate(text, MAX_METADATA_BYTES) if packed and text is not None else text
        if text is not None and len(text) <= MAX_METADATA_BYTES:
            encoding = "utf-8" if kind == b"iTXt" else "latin-1"
            found[key.decode("latin-1").lower()] = text.decode(encoding, "replace")
    return found


def _gif_comment(data: bytes, name: str) -> dict[str, str]:
    """Our comment comes before the first frame; anything else written there is kept under ``comment``."""
    if len(data) < 13:
        raise truncated(name, len(data))
    position = 13 + (3 << (data[10] & 7) + 1 if data[10] & 0x80 else 0)
    comment = b""
    while data[position : position + 1] == b"!":
        is_comment, position = data[position + 1 : position + 2] == b"\xfe", position + 2
        while True:
            if position >= len(data):
                raise truncated(name, len(data))
            length = data[position]
            if is_comment:
                comment += data[position + 1 : position + 1 + length]
            position += 1 + length
            if length == 0:
                break
        if comment:
            break
    text = comment.decode("utf-8", "replace")
    if text.startswith(GIF_COMMENT_MARK):
        found = _json_of_strings(text.removeprefix(GIF_COMMENT_MARK))
        if found is not None:
            return found
    return {"comment": text} if text else {}


def _exif_text(block: bytes) -> dict[str, str]:
    tags = exif_texts(block)
    found: dict[str, str] = {}
    for tag in (EXIF_PROMPT, EXIF_WORKFLOW, EXIF_OTHERS):
        text = tags.get(tag, "")
        key, separator, rest = text.partition(":")
        packed = _json_of_strings(text) if tag == EXIF_OTHERS else None
        if packed is not None:
            found.update(packed)
        elif separator and re.fullmatch(r"[A-Za-z0-9_]{1,64}", key):
            found[key.lower()] = rest
    return found


def _json_of_strings(text: str) -> dict[str, str] | None:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return None
    if not isinstance(value, dict) or not all(isinstance(item, str) for item in value.values()):
        return None
    return {str(key).lower(): item for key, item in value.items()}
