"""Read a still picture: PNG, JPEG or WebP in, plain sRGB bytes out, with a note of everything that was changed.

The rules, in the order they are applied:

1. Only PNG, JPEG and WebP; the size is read from the header and checked before anything is decoded.
2. An animation gives its first picture.
3. 16-bit samples keep their upper 8 bits; palettes are looked up; grey becomes three equal channels.
4. An embedded colour profile is converted to sRGB (perceptual intent). Without one, colours are taken as sRGB, and
   CMYK is turned into RGB as (255 - C)(255 - K) / 255.
5. Transparency (straight alpha, as both formats define it) is laid over white.
6. The EXIF orientation is applied.

Text chunks, XMP, comments and gamma chunks are ignored.

Legend: ``H W`` height, width.
"""

from __future__ import annotations

import io
import os
import struct
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageCms

from cygnet.errors import MediaError
from cygnet.media.files import open_regular, printable, shorten
from cygnet.media.headers import PictureFormat, PictureHeader, check_png_data, exif_orientation, read_header

Pixels = npt.NDArray[np.uint8]

MAX_PIXELS = 64 * 2**20
"""About 67 megapixels: every phone's normal mode, and below a gigabyte of memory while it is decoded."""
MIN_SIDE = 16
"""The smallest frame of Wan is 16x16; a picture with a shorter side is a mistake, not a picture."""
MAX_FILE_BYTES = 256 * 2**20

_SUFFIXES: dict[PictureFormat, tuple[str, ...]] = {
    "PNG": (".png", ".apng"),
    "JPEG": (".jpg", ".jpeg", ".jpe", ".jfif"),
    "WebP": (".webp",),
}
_ORIENTATION = 0x0112  # an EXIF tag
_TURNS = {
    2: (Image.Transpose.FLIP_LEFT_RIGHT, "mirrored"),
    3: (Image.Transpose.ROTATE_180, "turned by 180 degrees"),
    4: (Image.Transpose.FLIP_TOP_BOTTOM, "mirrored top to bottom"),
    5: (Image.Transpose.TRANSPOSE, "mirrored and turned"),
    6: (Image.Transpose.ROTATE_270, "turned by 90 degrees clockwise"),
    7: (Image.Transpose.TRANSVERSE, "mirrored and turned"),
    8: (Image.Transpose.ROTATE_90, "turned by 90 degrees anticlockwise"),
}
# What Pillow raises on damaged data, depending on where the damage is.
_DECODER_ERRORS = (
    OSError,
    SyntaxError,
    ValueError,
    EOFError,
    IndexError,
    KeyError,
    TypeError,
    OverflowError,
    struct.error,
    Image.DecompressionBombError,
)


@dataclass(frozen=True, kw_only=True)
class Picture:
    """A still picture: ``pixels`` uint8 ``[H, W, 3]`` in sRGB, upright, and what was done to get there."""

    pixels: Pixels
    notes: tuple[str, ...] = ()
    format: PictureFormat | None = None
    alpha: npt.NDArray[np.uint8] | None = None
    """``[H, W]``, 255 is opaque; only where it was asked for and the picture has it."""

    @property
    def width(self) -> int:
        """Pixels across."""
        return int(self.pixels.shape[1])

    @property
    def height(self) -> int:
        """Pixels down."""
        return int(self.pixels.shape[0])


def load_image(
    path_or_bytes: str | os.PathLike[str] | bytes,
    *,
    max_pixels: int = MAX_PIXELS,
    min_side: int = MIN_SIDE,
    keep_alpha: bool = False,
) -> Picture:
    """Read a picture from a regular file or from the bytes of one, by the rules at the top of this module.

    With ``keep_alpha`` transparency is not laid over white but handed out beside the colours under it.

    Raises MediaError, in words and before decoding where possible: no such file, not a regular file, empty, more than
    256 MiB, not PNG/JPEG/WebP, a suffix that contradicts the content, cut short, damaged, a second kind of file at the
    same time, a side below ``min_side`` or more than ``max_pixels`` pixels.
    """
    if isinstance(path_or_bytes, bytes):
        name, data = "the picture", path_or_bytes
        if not data:
            raise MediaError("the picture is empty (0 bytes); it may be an unfinished upload")
        if len(data) > MAX_FILE_BYTES:
            raise MediaError(f"the picture has {len(data):,} bytes; at most {MAX_FILE_BYTES:,} are accepted")
    else:
        given = os.fspath(path_or_bytes)
        name = shorten(os.path.basename(given) or given)
        with open_regular(given, max_bytes=MAX_FILE_BYTES) as file:
            data = file.read()
    header = read_header(data, name)
    if not isinstance(path_or_bytes, bytes):
        _check_suffix(os.fspath(path_or_bytes), name, header.format)
    _check_size(header, name, max_pixels=max_pixels, min_side=min_side)
    return _decode(header, name, keep_alpha=keep_alpha)


def picture_from_array(array: npt.NDArray[np.uint8]) -> Picture:
    """Take pixels already in memory: uint8 ``[H, W]``, ``[H, W, 1]``, ``[H, W, 3]`` or ``[H, W, 4]`` in sRGB.

    Grey becomes three channels and alpha is laid over white, as for files. The array is copied. Raises MediaError on
    another shape or dtype; a float picture in [0, 1] is not guessed at.
    """
    shape = list(array.shape)
    if array.dtype != np.uint8 or array.ndim not in {2, 3} or array.size == 0 or shape[2:] not in ([], [1], [3], [4]):
        raise MediaError(f"the picture is {array.dtype} {shape}; give uint8 [H, W], [H, W, 1], [H, W, 3] or [H, W, 4]")
    if array.ndim == 3 and array.shape[2] == 4:
        flat, notes = _over_white(Image.fromarray(np.ascontiguousarray(array)))
        return Picture(pixels=np.array(flat), notes=notes)
    grey = array if array.ndim == 3 else array[..., None]
    return Picture(pixels=np.ascontiguousarray(np.broadcast_to(grey, (*array.shape[:2], 3))).copy())


def picture_from_pillow(image: Image.Image) -> Picture:
    """Take an open Pillow picture as if it came from its file: its depth, profile, transparency and EXIF orientation.

    Raises MediaError when it is empty, damaged, or of a mode that holds no picture.
    """
    if min(image.size) < MIN_SIDE:
        raise MediaError(f"the picture is {image.width}x{image.height}; both sides must be at least {MIN_SIDE} pixels")
    try:
        kept = image.copy()
        kept.info = dict(image.info)
        if kept.mode in {"La", "RGBa"}:  # premultiplied
            kept = kept.convert("LA" if kept.mode == "La" else "RGBA")
        if kept.mode in {"I", "F"} or (kept.mode.startswith("I;16") and kept.mode != "I;16"):
            raise MediaError(f"the picture's mode is {kept.mode}; convert it to RGB first, scaled as you want it")
        if kept.mode not in {"1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "I;16"}:
            kept = kept.convert("RGBA" if kept.mode == "PA" else "RGB")
        exif = image.getexif().get(_ORIENTATION)
        return _converted(kept, deep=kept.mode == "I;16", profile=image.info.get("icc_profile"), orientation=exif)
    except (*_DECODER_ERRORS, ValueError) as error:
        raise MediaError(f"the picture cannot be read ({printable(str(error))})") from error


# --- checks ----------------------------------------------------------------------------------------------------------


def _check_suffix(given: str, name: str, kind: PictureFormat) -> None:
    suffix = os.path.splitext(given)[1].lower()
    if suffix and suffix not in _SUFFIXES[kind]:
        raise MediaError(f"{name!r} holds a {kind} picture; rename it to end in {_SUFFIXES[kind][0]} and try again")


def _check_size(header: PictureHeader, name: str, *, max_pixels: int, min_side: int) -> None:
    width, height = header.width, header.height
    if width * height > max_pixels:
        raise MediaError(
            f"{name!r} says it is {width}x{height}, {width * height / 1e6:,.1f} megapixels; at most "
            f"{max_pixels / 1e6:,.1f} are accepted: scale it down first"
        )
    if min(width, height) < min_side:
        raise MediaError(f"{name!r} is {width}x{height}; both sides must be at least {min_side} pixels")


# --- pixels ----------------------------------------------------------------------------------------------------------


def _decode(header: PictureHeader, name: str, *, keep_alpha: bool) -> Picture:
    notes = list(header.notes)
    if header.animated:
        notes.append(f"the {header.format} file is animated: only its first picture was used")
    if header.format == "PNG":
        check_png_data(header.pixels, name)
    try:
        with Image.open(io.BytesIO(header.pixels), formats=[header.format.upper()]) as image:
            if image.size != (header.width, header.height):
                raise MediaError(f"{name!r} is damaged: its parts disagree about its size")
            image.load()
            deep = header.format == "PNG" and header.pixels[24] == 16  # bit depth in IHDR
            orientation = None if header.exif is None else exif_orientation(header.exif)
            done = _converted(image, deep=deep, profile=header.profile, orientation=orientation, keep_alpha=keep_alpha)
    except _DECODER_ERRORS as error:
        raise MediaError(
            f"{name!r} is damaged and cannot be decoded ({printable(str(error))}); copy or save it again"
        ) from error
    return replace(done, notes=(*notes, *done.notes), format=header.format)


def _converted(
    image: Image.Image, *, deep: bool, profile: bytes | None, orientation: int | None, keep_alpha: bool = False
) -> Picture:
    """A decoded picture as plain upright sRGB, and what was done for it."""
    # In order; each step returns the picture and what it did.
    steps: tuple[Callable[[Image.Image], tuple[Image.Image, tuple[str, ...]]], ...] = (
        lambda picture: _to_8_bit(picture, deep=deep),
        lambda picture: _to_srgb(picture, profile),
        (lambda picture: (picture, ())) if keep_alpha else _over_white,
        lambda picture: _upright(picture, orientation),
    )
    picture = image
    notes: list[str] = []
    for step in steps:
        picture, done = step(picture)
        notes += done
    pixels = np.array(picture)
    alpha = pixels[..., 3].copy() if pixels.shape[2] == 4 else None
    return Picture(pixels=pixels[..., :3].copy(), notes=tuple(notes), alpha=alpha)


def _to_8_bit(image: Image.Image, *, deep: bool) -> tuple[Image.Image, tuple[str, ...]]:
    """To mode L, LA, RGB, RGBA or CMYK; ``deep``: the file had 16 bits."""
    notes = ("16-bit samples were reduced to their upper 8 bits",) if deep else ()
    if image.mode == "I;16":
        grey = np.array(image)
        small = Image.fromarray((grey >> 8).astype(np.uint8))
        if "transparency" in image.info:
            clear = grey == image.info["transparency"]
            small.putalpha(Image.fromarray(np.where(clear, 0, 255).astype(np.uint8)))
        return small, notes
    if deep and image.mode == "RGB" and "transparency" in image.info:
        # The transparent colour is given in 16 bits, which are gone; matching 8 would clear too much.
        del image.info["transparency"]
        return image, (*notes, "the transparent colour was ignored")
    if image.mode == "P" or "transparency" in image.info:
        return image.convert("RGBA" if "transparency" in image.info else "RGB"), notes
    if image.mode == "1":
        return image.convert("L"), notes
    return image, notes


def _to_srgb(image: Image.Image, profile: bytes | None) -> tuple[Image.Image, tuple[str, ...]]:
    """To mode RGB or RGBA, through the embedded profile if there is one that fits."""
    target = "RGBA" if image.mode in {"LA", "RGBA"} else "RGB"
    naive = ("CMYK was turned into RGB without a profile; colours are approximate",) if image.mode == "CMYK" else ()
    if profile is None:
        return image.convert(target), naive
    alpha = image.getchannel("A") if target == "RGBA" else None
    space, colours = {
        "L": ("GRAY", image),
        "LA": ("GRAY", image.getchannel(0)),
        "RGB": ("RGB ", image),
        "RGBA": ("RGB ", image),
        "CMYK": ("CMYK", image),
    }[image.mode]
    try:
        source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        label = printable((source.profile.profile_description or "unnamed").strip())
        own_space = source.profile.xcolor_space
        if own_space == "RGB " and space == "GRAY":  # a grey picture of an RGB workflow
            space, colours = "RGB ", colours.convert("RGB")
        if own_space != space:
            return image.convert(target), (*naive, f"the colour profile {label!r} does not fit the picture: ignored")
        if label.lower().startswith("srgb"):
            return image.convert(target), ()
        if colours.mode == "RGBA":
            colours = colours.convert("RGB")
        done = ImageCms.profileToProfile(colours, source, ImageCms.createProfile("sRGB"), outputMode="RGB")
    except (ImageCms.PyCMSError, OSError) as error:
        reason = printable(str(error))
        return image.convert(target), (*naive, f"the colour profile is damaged and was ignored ({reason})")
    if done is None:
        raise RuntimeError("profileToProfile returns a picture unless it works in place")
    if alpha is not None:
        done.putalpha(alpha)
    return done, (f"colours were converted from {label!r} to sRGB",)


def _over_white(image: Image.Image) -> tuple[Image.Image, tuple[str, ...]]:
    if image.mode != "RGBA":
        return image, ()
    alpha = image.getchannel("A")
    flat = Image.new("RGB", image.size, (255, 255, 255))
    flat.paste(image.convert("RGB"), mask=alpha)
    opaque = alpha.getextrema() == (255, 255)
    return flat, () if opaque else ("transparent parts were laid over white",)


def _upright(image: Image.Image, orientation: int | None) -> tuple[Image.Image, tuple[str, ...]]:
    if orientation not in _TURNS:
        return image, ()
    how, words = _TURNS[orientation]
    return image.transpose(how), (f"{words}, as its EXIF orientation asks",)
