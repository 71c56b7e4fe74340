"""Write a video: frames go in as they are decoded, and a whole file appears, or none.

Formats by suffix: ``.mp4`` H.264, ``.webm`` VP9, ``.webp`` animated WebP, ``.gif``, ``.png`` (one picture, or a folder
of numbered ones). A one-frame video is allowed in all of them.

Legend: ``T H W`` frames, height, width.
"""

from __future__ import annotations

import contextlib
import json
import math
import numbers
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path
from typing import Literal, Protocol, get_args

import numpy as np
import numpy.typing as npt

from cygnet.errors import OutputError, RequestError, UnsupportedError
from cygnet.media.encoders import FPS_KEY, RESERVED_KEYS, AVEncoder, Encoder, GifEncoder, PngEncoder, WebPEncoder
from cygnet.media.files import (
    discard,
    new_part,
    new_part_folder,
    output_error,
    publish,
    publish_folder,
    refuse_taken,
    shorten,
)
from cygnet.media.sound import Sound

Frames = npt.NDArray[np.uint8]
VideoFormat = Literal["mp4", "webm", "webp", "gif", "png"]
FORMATS: tuple[VideoFormat, ...] = get_args(VideoFormat)

DEFAULT_QUALITY = 8.0
"""The level the official export uses, on a scale of 0 (smallest file) to 10 (closest to the frames)."""
MIN_FPS, MAX_FPS = 0.1, 240.0
MAX_FPS_GIF = 50.0  # players slow a GIF down when a frame lasts less than 2/100 s
MAX_SIDE: Mapping[VideoFormat, int] = {"mp4": 16384, "webm": 16384, "webp": 16383, "gif": 65535, "png": 65535}
MAX_METADATA_BYTES = 16 * 2**20
_TRANSPARENT: tuple[VideoFormat, ...] = ("webp", "png")
_JSON_STRING = re.compile(r'"(?:[^"\\]|\\.)*"')
Codec = Literal["h264", "vp9", "av1"]
_CODECS: Mapping[VideoFormat, tuple[Codec, ...]] = {"mp4": ("h264",), "webm": ("vp9", "av1")}
"""What a format's video may be coded by; the first is the default."""
_ENCODERS: Mapping[Codec, str] = {"h264": "libx264", "vp9": "libvpx-vp9", "av1": "libsvtav1"}
_KEY = re.compile(r"[a-z][a-z0-9_]{0,63}")
_FRAME_NAME = re.compile(r"\d{5,}\.png")
# A fixed number of threads: x264 divides its work by it, so the bytes would differ between machines.
_THREADS = "4"


class VideoWriter(Protocol):
    """An open video. Use it only inside the ``with`` block of :func:`open_writer`."""

    @property
    def path(self) -> Path:
        """Where the result appears; final once the block has ended (PNG: a file or a folder)."""
        ...

    @property
    def num_frames(self) -> int:
        """How many frames were written so far."""
        ...

    @property
    def notes(self) -> tuple[str, ...]:
        """What the format could not keep exactly, in words."""
        ...

    def write(self, frames: Frames) -> None:
        """Append frames: uint8 ``[T, H, W, 3]``, or 4 with alpha, T of 1 or more; the array may be reused after it."""
        ...


@dataclass(frozen=True, kw_only=True)
class OutputPlan:
    """A checked wish for a video file; made by :func:`check_output`."""

    path: Path
    format: VideoFormat
    width: int
    height: int
    fps: Fraction
    quality: float
    num_frames: int | None
    overwrite: bool
    notes: tuple[str, ...]
    channels: int = 3
    """4: the last says how opaque a pixel is."""
    effort: int = 4
    codec: Codec = "h264"
    rate_factor: int | None = None
    """The codec's own measure of quality, in place of ``quality``."""


def open_writer(
    path: str | os.PathLike[str],
    *,
    width: int,
    height: int,
    fps: float,
    format: VideoFormat | None = None,
    quality: float | None = None,
    metadata: Mapping[str, str] | None = None,
    num_frames: int | None = None,
    overwrite: bool = False,
    sound: Sound | None = None,
    alpha: bool = False,
    effort: int = 4,
    codec: Codec | None = None,
    rate_factor: int | None = None,
) -> AbstractContextManager[VideoWriter]:
    """Open a video of ``width`` x ``height`` pixels at ``fps`` frames per second for writing, as a context manager.

    ``format`` is taken from the suffix unless given. ``quality`` runs from 0 to 10 (default 8, the official export
    level; 10 makes WebP lossless) and does nothing for GIF and PNG. ``metadata`` is stored inside the file: keys of
    lower-case letters, digits and ``_``; values of any text without NUL. ``num_frames``, if known, is held to, and
    decides early whether ``name.png`` becomes a picture or a folder ``name/`` of ``00000.png``, ``00001.png``, ….

    ``sound`` begins with the first frame and is cut off after the last. MP4 keeps it as AAC, WebM as Opus; the other
    formats have none, which they say in their notes.

    With ``alpha`` frames have a fourth channel, 255 where they are opaque; WebP and PNG alone can keep it. ``effort``,
    from 0 (fast) to 6 (small), is WebP's. WebM is VP9, or AV1 of 10 bits if ``codec`` says so, and takes its codec's
    ``rate_factor`` in place of ``quality``: 0 (VP9: nothing lost after the conversion to 4:2:0) to 63.

    The file appears under its name when the block ends well. On any exception, Ctrl-C included, nothing stays. An
    existing file is replaced only with ``overwrite``; an empty file counts as a name reserved for this writer
    (:func:`cygnet.media.names.unused_path`) and is removed when the writing fails.

    Everything is checked when this is called, before any frame exists: see :func:`check_output` for what it raises.
    Inside the block and at its end: RequestError for frames of another shape or dtype, OutputError if the disk is full
    (code ``disk_full``), may not be written, or the encoder fails.
    """
    plan = check_output(
        path,
        width=width,
        height=height,
        fps=fps,
        format=format,
        quality=quality,
        num_frames=num_frames,
        overwrite=overwrite,
        codec=codec,
    )
    if rate_factor is not None and (plan.format != "webm" or rate_factor not in range(64)):
        raise RequestError(f"rate_factor is {rate_factor}; WebM takes one from 0 to 63", field="rate_factor")
    if alpha and plan.format not in _TRANSPARENT:
        raise RequestError(f"{plan.format} keeps no transparency; use {' or '.join(_TRANSPARENT)}", field="alpha")
    if effort not in range(7):
        raise RequestError(f"effort is {effort}; it must be from 0 (fast) to 6 (small)", field="effort")
    plan = replace(plan, channels=4 if alpha else 3, effort=effort, rate_factor=rate_factor)
    if sound is not None and plan.format not in _CODECS:
        plan, sound = replace(plan, notes=(*plan.notes, f"{plan.format} has no sound")), None
    return _writing(plan, check_metadata(metadata or {}), sound)


def check_output(
    path: str | os.PathLike[str],
    *,
    width: int,
    height: int,
    fps: float,
    format: VideoFormat | None = None,
    quality: float | None = None,
    num_frames: int | None = None,
    overwrite: bool = False,
    codec: Codec | None = None,
) -> OutputPlan:
    """Check everything about an output that can be known before the work begins; writes nothing.

    Raises RequestError (unknown suffix, size or rate that the format cannot hold, name taken, no such folder, no
    permission) and UnsupportedError (this installation lacks the encoder).
    """
    target = Path(path)
    kind = _format_of(target, format)
    if "\0" in str(target):
        raise RequestError(f"the output name {shorten(target.name)!r} holds a NUL character", field="path")
    coder = _codec_of(kind, codec)
    _check_size(kind, width, height)
    if num_frames is not None and num_frames < 1:
        raise RequestError(f"num_frames is {num_frames}; a video has at least 1", field="num_frames")
    rate = _check_fps(kind, fps)
    notes = []
    if quality is not None and kind in {"gif", "png"}:
        notes.append(f"quality has no effect on {kind}")
    level = DEFAULT_QUALITY if quality is None else quality
    if isinstance(level, bool) or not isinstance(level, int | float) or not 0 <= level <= 10:
        raise RequestError(f"quality is {quality!r}; give a number from 0 (smallest) to 10 (best)", field="quality")
    if kind == "gif" and 100 % rate:
        notes.append(
            f"GIF counts time in 1/100 s: {float(rate):g} frames per second is kept on average, with frames lasting "
            f"{math.floor(100 / rate)}/100 or {math.ceil(100 / rate)}/100 s"
        )
    plan = OutputPlan(
        path=target,
        format=kind,
        width=width,
        height=height,
        fps=rate,
        quality=float(level),
        num_frames=num_frames,
        overwrite=overwrite,
        notes=tuple(notes),
        codec=coder,
    )
    _check_place(plan)
    _check_encoder(kind, coder)
    return plan


def check_metadata(metadata: Mapping[str, str]) -> dict[str, str]:
    """Return a copy of ``metadata`` if every format can hold it; RequestError otherwise."""
    for key, value in metadata.items():
        if not _KEY.fullmatch(key) or key in RESERVED_KEYS:
            raise RequestError(
                f"metadata key {shorten(key)!r} is not allowed: use at most 64 lower-case letters, digits and '_', "
                f"but none of {', '.join(sorted(RESERVED_KEYS))}",
                field="metadata",
            )
        try:
            too_long = len(value.encode("utf-8")) > MAX_METADATA_BYTES
        except UnicodeEncodeError:
            raise RequestError(f"metadata {key!r} holds a lone surrogate; escape it first", field="metadata") from None
        if "\0" in value or too_long:
            raise RequestError(
                f"metadata {key!r} holds a NUL or more than {MAX_METADATA_BYTES:,} bytes; shorten or escape it",
                field="metadata",
            )
    return dict(metadata)


def unavailable_formats() -> dict[VideoFormat, str]:
    """The formats this installation cannot write, each with the reason and the remedy; empty when all work."""
    missing: dict[VideoFormat, str] = {}
    for kind in FORMATS:
        try:
            _check_encoder(kind)
        except UnsupportedError as error:
            missing[kind] = str(error)
    return missing


# --- the writer ------------------------------------------------------------------------------------------------------


class _Writer:
    """Checks frames, hands them to an encoder and puts the reasons for a failure into words."""

    def __init__(self, plan: OutputPlan, encoder: Encoder, errors: tuple[type[BaseException], ...]) -> None:
        self._plan, self._encoder, self._errors = plan, encoder, errors
        self._open = True
        self.path = plan.path
        self.num_frames = 0
        self.notes = plan.notes

    def write(self, frames: Frames) -> None:
        """Append frames ``[T, H, W, C]``."""
        plan = self._plan
        if not self._open:
            raise RequestError("this video is closed; open a new writer", field="frames")
        shape = (plan.height, plan.width, plan.channels)
        if frames.dtype != np.uint8 or frames.ndim != 4 or frames.shape[1:] != shape:
            wanted = ", ".join(map(str, shape))
            raise RequestError(
                f"frames are {frames.dtype} {list(frames.shape)}; this video takes uint8 [T, {wanted}]",
                field="frames",
            )
        if plan.num_frames is not None and self.num_frames + len(frames) > plan.num_frames:
            raise RequestError(f"more than the announced {plan.num_frames} frames were given", field="frames")
        try:
            for frame in frames:
                self._encoder.add(frame)
                self.num_frames += 1
        except self._errors as error:
            raise output_error(error, plan.path) from error

    def finish(self) -> None:
        """Complete the part."""
        plan = self._plan
        self._open = False
        if self.num_frames == 0 or plan.num_frames not in {None, self.num_frames}:
            wanted = "at least 1" if plan.num_frames is None else str(plan.num_frames)
            raise OutputError(f"{self.num_frames} frames were given where {wanted} were due; nothing was written")
        try:
            self._encoder.finish()
        except self._errors as error:
            raise output_error(error, plan.path) from error

    def abort(self) -> None:
        """Give up."""
        self._open = False
        self._encoder.abort()


@contextlib.contextmanager
def _writing(plan: OutputPlan, metadata: Mapping[str, str], sound: Sound | None) -> Iterator[VideoWriter]:
    target, folder = plan.path, plan.path.absolute().parent
    reserved = os.path.lexists(target) and not plan.overwrite
    errors = _encoder_errors(plan.format)
    try:
        part = new_part_folder(folder) if plan.format == "png" else new_part(folder)
    except OSError as error:
        raise output_error(error, target) from error
    published = False
    try:
        try:
            writer = _Writer(plan, _new_encoder(plan, part, metadata, sound), errors)
        except errors as error:
            raise output_error(error, target) from error
        try:
            yield writer
            writer.finish()
        except BaseException:
            writer.abort()
            raise
        try:
            writer.path = _publish(plan, part, writer.num_frames)
        except OSError as error:
            raise output_error(error, target) from error
        published = True
    finally:
        discard(part)
        if reserved and not (published and writer.path == target):
            _drop_reservation(target)


def _publish(plan: OutputPlan, part: Path, num_frames: int) -> Path:
    if plan.format != "png":
        publish(part, plan.path, overwrite=plan.overwrite)
        return plan.path
    if num_frames == 1:
        publish(part / "00000.png", plan.path, overwrite=plan.overwrite)
        return plan.path
    publish_folder(part, frames_folder(plan.path), overwrite=plan.overwrite)
    return frames_folder(plan.path)


def frames_folder(path: Path) -> Path:
    """Where the numbered frames of ``name.png`` go: the folder ``name`` beside it."""
    return path.with_suffix("") if path.suffix else path.with_name(path.name + "-frames")


def _drop_reservation(target: Path) -> None:
    if target.is_file() and not target.is_symlink() and target.stat().st_size == 0:
        target.unlink(missing_ok=True)


def braces_escaped(text: str) -> str:
    """JSON that means the same and has no brace in a string, which the web page needs: in WebM it counts braces to find
    where a workflow ends. Any other text is returned as it is."""
    try:
        json.loads(text)
    except ValueError:
        return text
    return _JSON_STRING.sub(lambda it: it[0].replace("{", "\\u007b").replace("}", "\\u007d"), text)


def _new_encoder(plan: OutputPlan, part: Path, metadata: Mapping[str, str], sound: Sound | None) -> Encoder:
    size = (plan.width, plan.height)
    if plan.format not in _CODECS:  # these have no exact rate, or none at all
        metadata = {FPS_KEY: f"{float(plan.fps):.6g}", **metadata}
    if plan.format == "gif":
        return GifEncoder(part, size=size, fps=plan.fps, metadata=metadata)
    if plan.format == "png":
        return PngEncoder(part, metadata=metadata)
    if plan.format == "webp":
        quality = None if plan.quality == 10 else round(plan.quality * 10)
        return WebPEncoder(
            part,
            size=size,
            fps=plan.fps,
            quality=quality,
            metadata=metadata,
            alpha=plan.channels == 4,
            effort=plan.effort,
        )
    if plan.format == "webm":
        metadata = {key: braces_escaped(value) for key, value in metadata.items()}
        factor = _crf(plan.quality, 63) if plan.rate_factor is None else str(plan.rate_factor)
        if plan.codec == "av1":
            os.environ.setdefault("SVT_LOG", "1")  # else the encoder writes its settings to stderr for every file
            codec_options = {"crf": factor, "b": "0", "preset": "6"}
        else:
            codec_options = {"crf": factor, "b": "0", "cpu-used": "2", "row-mt": "1", "threads": _THREADS}
            codec_options |= {"lossless": "1"} if factor == "0" else {}
        container_options = {"fflags": "+bitexact"}  # otherwise every file gets a random identity
    else:
        # crf 0 would switch H.264 to a lossless profile that browsers do not play; _crf never gives it.
        # x264's AVX-512 code is not deterministic (its macroblock tree reads what it never wrote): the same frames gave
        # up to six different files. cpu-independent keeps to code whose result is one on every machine.
        codec_options = {
            "crf": _crf(plan.quality, 51),
            "preset": "medium",
            "profile": "high",
            "threads": _THREADS,
            "x264-params": "cpu-independent=1",
        }
        # faststart: the index comes first, so a browser plays while it loads. use_metadata_tags: keep free keys.
        container_options = {"movflags": "+faststart+use_metadata_tags", "fflags": "+bitexact"}
    return AVEncoder(
        part,
        container=plan.format,
        codec=_ENCODERS[plan.codec],
        pixel_format="yuv420p10le" if plan.codec == "av1" else "yuv420p",
        chroma_left=plan.format == "mp4",
        size=size,
        fps=plan.fps,
        codec_options=codec_options,
        container_options=container_options,
        metadata=metadata,
        sound=sound,
    )


def _crf(quality: float, worst: int) -> str:
    """The codec's rate factor: quality 10 is 1 (near lossless), 0 is the codec's worst, linear between."""
    return str(max(1, int(round((1 - quality / 10) * worst, 6))))  # 24.999999999999996 means 25


# --- checks ----------------------------------------------------------------------------------------------------------


def _format_of(path: Path, given: str | None) -> VideoFormat:
    name = given if given is not None else path.suffix.lower().lstrip(".")
    for kind in FORMATS:
        if name == kind:
            return kind
    raise RequestError(
        f"the output {shorten(path.name)!r} names no known format"
        + (f" ({given!r})" if given is not None else "")
        + f"; end it in one of {', '.join('.' + kind for kind in FORMATS)}",
        field="format" if given is not None else "path",
    )


def _check_size(kind: VideoFormat, width: int, height: int) -> None:
    for field, value in (("width", width), ("height", height)):
        if isinstance(value, bool) or not isinstance(value, numbers.Integral):
            raise RequestError(f"{field} is {value!r}; give a whole number of pixels", field=field)
        if not 1 <= value <= MAX_SIDE[kind]:
            raise RequestError(f"{field} is {value}; {kind} takes 1 to {MAX_SIDE[kind]}", field=field)
        if kind in _CODECS and value % 2:
            nearest = f"{value - 1} or {value + 1}" if value > 1 else "2"
            raise RequestError(
                f"{field} is {value}; {kind} keeps one colour sample for 2x2 pixels and needs even sides "
                f"(nearest: {nearest}), or choose .webp, .gif or .png",
                field=field,
            )


def _check_fps(kind: VideoFormat, fps: float) -> Fraction:
    top = MAX_FPS_GIF if kind == "gif" else MAX_FPS
    number = isinstance(fps, numbers.Real) and not isinstance(fps, bool) and math.isfinite(fps)
    if not number or not MIN_FPS <= fps <= top:
        raise RequestError(f"fps is {fps!r}; {kind} takes {MIN_FPS:g} to {top:g} frames per second", field="fps")
    return Fraction(fps).limit_denominator(1001)  # 23.976 and 29.97 as containers count them


def _check_place(plan: OutputPlan) -> None:
    path = plan.path
    single = plan.format != "png" or plan.num_frames in {None, 1}
    if single:
        refuse_taken(path, overwrite=plan.overwrite)
    if plan.format == "png" and plan.num_frames != 1:
        _refuse_taken_folder(frames_folder(path), overwrite=plan.overwrite)
    folder = path.absolute().parent
    if not folder.is_dir():
        raise RequestError(
            f"the folder for {shorten(path.name)!r} does not exist; create it first or choose another", field="path"
        )
    if not os.access(folder, os.W_OK | os.X_OK):
        raise RequestError(f"no permission to write {shorten(path.name)!r} there; choose another folder", field="path")


def _refuse_taken_folder(folder: Path, *, overwrite: bool) -> None:
    """Only a folder of numbered frames may be replaced: removing anything else would be a disaster."""
    name = shorten(folder.name)
    if not os.path.lexists(folder):
        return
    if not folder.is_dir() or folder.is_symlink():
        raise RequestError(f"{name!r} exists and is no folder for frames; choose another name", field="path")
    strangers = [entry.name for entry in folder.iterdir() if not _FRAME_NAME.fullmatch(entry.name)]
    if strangers:
        raise RequestError(
            f"the folder {name!r} holds other files ({shorten(strangers[0])!r}); choose another name", field="path"
        )
    if not overwrite and any(folder.iterdir()):
        raise RequestError(f"the folder {name!r} holds frames already; choose another name or overwrite", field="path")


def _codec_of(kind: VideoFormat, asked: Codec | None) -> Codec:
    """The codec that is asked for, or the format's first; of no meaning for pictures in a row."""
    known = _CODECS.get(kind, ("h264",) if asked is None else ())
    if asked is not None and asked not in known:
        allowed = f"{kind} takes {' or '.join(known)}" if known else f"{kind} has none"
        raise RequestError(f"codec is {asked!r}; {allowed}", field="codec")
    return known[0] if asked is None else asked


def _check_encoder(kind: VideoFormat, codec: Codec | None = None) -> None:
    if kind in _CODECS:
        try:
            import av
        except ImportError as error:
            raise UnsupportedError(
                f"{kind} needs PyAV, which cannot be imported here ({error}); reinstall it with "
                "'pip install --force-reinstall av', or choose .webp, .gif or .png"
            ) from error
        encoder = _ENCODERS[codec or _CODECS[kind][0]]
        if encoder not in av.codecs_available:
            raise UnsupportedError(
                f"the installed PyAV has no encoder {encoder} for {kind}; install the wheel from the package "
                "index ('pip install --force-reinstall av'), or choose .webp, .gif or .png"
            )
    elif kind == "webp":
        from PIL import features

        if not features.check("webp"):
            raise UnsupportedError("the installed Pillow was built without WebP; reinstall it, or choose .mp4 or .png")


def _encoder_errors(kind: VideoFormat) -> tuple[type[BaseException], ...]:
    if kind not in _CODECS:
        return (OSError,)
    from av.error import FFmpegError

    return (OSError, FFmpegError)
