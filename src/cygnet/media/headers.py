"""What a PNG, JPEG or WebP file says about itself, read without decoding a pixel.

The walk finds the size, the animation flag, the colour profile and the EXIF block, refuses files that are cut short or
are something else as well, and leaves a copy that holds nothing but the picture. A decoder that is given this copy
never sees text chunks, XMP, comments, thumbnails or trailers.

Sources: PNG specification (third edition), ITU T.81 (JPEG), WebP container specification, ICC.1 annex B.
"""

from __future__ import annotations

import io
import re
import struct
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from cygnet.errors import MediaError

PictureFormat = Literal["PNG", "JPEG", "WebP"]

MAX_PROFILE_BYTES = 4 * 2**20  # the largest press profiles in use have about 3 MB
MAX_EXIF_BYTES = 2**16
MAX_CHUNKS = 100_000
MAX_SCANS = 200  # a progressive JPEG has about 10; each further one costs a pass over all pixels

_PIECE = 2**18

PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_PNG_PIXELS = {b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND"}
_JPEG_MARKER = re.compile(rb"\xff[^\x00\xff\xd0-\xd7]")
_MARKUP = re.compile(rb"(?i)<(!doctype|html|script|svg|body|iframe|\?php)")

# What people hand over by mistake, by its first bytes.
_STRANGERS: tuple[tuple[re.Pattern[bytes], str], ...] = (
    (re.compile(rb"GIF8[79]a"), "a GIF"),
    (re.compile(rb"BM.{4}\0\0\0\0", re.DOTALL), "a BMP picture"),
    (re.compile(rb"II\*\0|MM\0\*"), "a TIFF or raw camera picture"),
    (re.compile(rb".{4}ftyp(hei|hev|mif1|msf1)", re.DOTALL), "a HEIC picture"),
    (re.compile(rb".{4}ftypavi", re.DOTALL), "an AVIF picture"),
    (re.compile(rb".{4}ftyp", re.DOTALL), "a video (MP4 or MOV)"),
    (re.compile(rb"\x1aE\xdf\xa3"), "a video (WebM or Matroska)"),
    (re.compile(rb"%PDF-"), "a PDF document"),
    (re.compile(rb"PK\x03\x04"), "a zip archive"),
    (re.compile(rb"\x1f\x8b"), "a gzip archive"),
    (re.compile(rb"version https://git-lfs"), "a Git-LFS pointer, not the picture itself"),
    (re.compile(rb"(?i)\s*(\xef\xbb\xbf)?<(!doctype|html|svg|\?xml)"), "a web page or SVG drawing"),
    (re.compile(rb"SIMPLE  ="), "a FITS picture"),
)


@dataclass(frozen=True, kw_only=True)
class PictureHeader:
    """What is known before decoding. ``pixels`` is the file without anything that is not needed for its pixels."""

    format: PictureFormat
    width: int
    height: int
    animated: bool
    profile: bytes | None
    exif: bytes | None
    pixels: bytes
    notes: tuple[str, ...]


def read_header(data: bytes, name: str) -> PictureHeader:
    """Walk the bytes of a picture file; ``name`` is used in messages.

    Raises MediaError if the file is no PNG, JPEG or WebP, is cut short or malformed, or is a second kind of file too.
    """
    if data.startswith(PNG_SIGNATURE):
        header = _png(data, name)
    elif data.startswith(b"\xff\xd8\xff"):
        header = _jpeg(data, name)
    elif data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        header = _webp(data, name)
    else:
        kind = next((words for pattern, words in _STRANGERS if pattern.match(data)), "no picture that is known here")
        raise MediaError(f"{name!r} is {kind}; give a PNG, JPEG or WebP picture")
    if header.width < 1 or header.height < 1:
        raise MediaError(f"{name!r} is damaged: its header says {header.width}x{header.height} pixels")
    _refuse_second_nature(data, name)
    return header


def png_chunks(data: bytes, name: str) -> Iterator[tuple[bytes, bytes, int]]:
    """Yield (type, body, end position) of each chunk up to IEND; MediaError if the file ends before that."""
    position = len(PNG_SIGNATURE)
    for _ in range(MAX_CHUNKS):
        if position + 12 > len(data):
            raise truncated(name, len(data))
        (length,) = struct.unpack_from(">I", data, position)
        kind, end = data[position + 4 : position + 8], position + 12 + length
        if end > len(data):
            raise truncated(name, len(data), end)
        yield kind, data[position + 8 : end - 4], end
        if kind == b"IEND":
            return
        position = end
    raise MediaError(f"{name!r} has more than {MAX_CHUNKS:,} chunks; save it anew with a picture editor")


def riff_chunks(data: bytes, name: str) -> Iterator[tuple[bytes, bytes]]:
    """Yield (type, body) of each chunk of a RIFF file; MediaError if the file ends before its stated length."""
    end = 8 + struct.unpack_from("<I", data.ljust(8, b"\0"), 4)[0]
    if end > len(data):
        raise truncated(name, len(data), end)
    position = 12
    for _ in range(MAX_CHUNKS):
        if position + 8 > end:
            return
        (length,) = struct.unpack_from("<I", data, position + 4)
        if position + 8 + length > end:
            raise truncated(name, len(data), position + 8 + length)
        yield data[position : position + 4], data[position + 8 : position + 8 + length]
        position += 8 + length + length % 2
    raise MediaError(f"{name!r} has more than {MAX_CHUNKS:,} chunks; save it anew with a picture editor")


def inflate(data: bytes, limit: int) -> bytes | None:
    """Decompress at most ``limit`` bytes; None if there are more, or if the data is damaged."""
    worker = zlib.decompressobj()
    try:
        plain = worker.decompress(data, limit)
    except zlib.error:
        return None
    return plain if worker.eof else None


def truncated(name: str, has: int, needs: int | None = None) -> MediaError:
    """The error for a file that ends too soon."""
    wanted = "" if needs is None else f": its header asks for {needs:,} bytes or more, it has {has:,}"
    return MediaError(f"{name!r} is cut short{wanted}; copy or download it again")


def exif_orientation(exif: bytes) -> int | None:
    """The orientation (1 to 8) in a TIFF block, None if there is none or the block is damaged."""
    for tag, kind, value in _exif_entries(exif):
        if (tag, kind, len(value)) == (0x0112, 3, 2):
            orientation = int.from_bytes(value, "little" if exif[:2] == b"II" else "big")
            return orientation if 1 <= orientation <= 8 else None
    return None


def exif_texts(exif: bytes) -> dict[int, str]:
    """The texts of the first directory of a TIFF block by tag. EXIF states no encoding; they are read as UTF-8."""
    return {
        tag: value.rstrip(b"\0").decode("utf-8", "replace") for tag, kind, value in _exif_entries(exif) if kind == 2
    }


def _exif_entries(exif: bytes) -> Iterator[tuple[int, int, bytes]]:
    """Yield (tag, type, value) of texts and 16-bit numbers in the first directory that lie within bounds."""
    order = {b"II*\0": "<", b"MM\0*": ">"}.get(exif[:4])
    if order is None or len(exif) < 8:
        return
    (start,) = struct.unpack_from(order + "I", exif, 4)
    if start + 2 > len(exif):
        return
    (count,) = struct.unpack_from(order + "H", exif, start)
    for at in range(start + 2, min(start + 2 + 12 * count, len(exif) - 11), 12):
        tag, kind, number = struct.unpack_from(order + "HHI", exif, at)
        length = number * {2: 1, 3: 2}.get(kind, 0)
        where = at + 8 if length <= 4 else int(struct.unpack_from(order + "I", exif, at + 8)[0])
        if length and where + length <= len(exif):
            yield tag, kind, exif[where : where + length]


# --- PNG -------------------------------------------------------------------------------------------------------------


def _png(data: bytes, name: str) -> PictureHeader:
    kept = [PNG_SIGNATURE]
    start = end = len(PNG_SIGNATURE)
    width = height = 0
    animated, profile, exif = False, None, None
    notes: list[str] = []
    for kind, body, end in png_chunks(data, name):
        if start == len(PNG_SIGNATURE):
            if kind != b"IHDR" or len(body) != 13:
                raise MediaError(f"{name!r} is damaged: a PNG must begin with its header")
            width, height = struct.unpack_from(">II", body)
        if kind in _PNG_PIXELS:
            if zlib.crc32(data[start + 4 : end - 4]).to_bytes(4, "big") != data[end - 4 : end]:
                raise MediaError(f"{name!r} is damaged: a checksum is wrong; copy or download it again")
            kept.append(data[start:end])
        elif kind == b"acTL":
            animated = True
        elif kind == b"iCCP":
            profile = inflate(body[body.find(b"\0") + 2 :], MAX_PROFILE_BYTES)
            if profile is None:
                notes.append("the colour profile is damaged or too large and was ignored; colours were taken as sRGB")
        elif kind == b"eXIf":
            exif = _limited_exif(body, notes)
        start = end
    if data[end:].strip(b"\0"):
        raise _trailer(name, len(data) - end)
    return PictureHeader(
        format="PNG",
        width=width,
        height=height,
        animated=animated,
        profile=profile,
        exif=exif,
        pixels=b"".join(kept),
        notes=tuple(notes),
    )


def check_png_data(data: bytes, name: str) -> None:
    """Raise MediaError unless the compressed rows are sound and all there; the decoder fills what is missing in black.

    Unpacks everything once in small pieces, so call it after the size was checked.
    """
    missing = 0
    worker = zlib.decompressobj()
    try:
        for kind, body, _ in png_chunks(data, name):
            if kind == b"IHDR":
                missing = _unpacked_size(body)
            if kind != b"IDAT":
                continue
            while missing > 0:  # bounded pieces, and no more than is due: the rest may be a bomb
                piece = worker.decompress(body, _PIECE)
                body = worker.unconsumed_tail
                missing -= len(piece)
                if not body and len(piece) < _PIECE:
                    break
    except zlib.error as error:
        raise MediaError(f"{name!r} is damaged: its pixels cannot be unpacked; copy or download it again") from error
    if missing > 0:
        raise MediaError(f"{name!r} is damaged: {missing:,} bytes of its pixels are missing; copy or download it again")


def _unpacked_size(ihdr: bytes) -> int:
    """Bytes of all rows with their filter bytes; 0 for a colour type that the decoder will refuse."""
    width, height, depth, colour, _, _, interlace = struct.unpack(">IIBBBBB", ihdr)
    bits = depth * {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}.get(colour, 0)
    if not bits:
        return 0
    passes = [(0, 0, 1, 1)]
    if interlace:  # Adam7: first column, first row, column step, row step
        passes = [(0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2)]
    total = 0
    for left, top, across, down in passes:
        columns, rows = -(-(width - left) // across), -(-(height - top) // down)
        if columns > 0 and rows > 0:
            total += rows * (1 + (columns * bits + 7) // 8)
    return total


# --- JPEG ------------------------------------------------------------------------------------------------------------


def _jpeg(data: bytes, name: str) -> PictureHeader:
    kept = [b"\xff\xd8"]
    width = height = scans = 0
    exif: bytes | None = None
    profile_parts: dict[int, bytes] = {}
    notes: list[str] = []
    position = 2
    for _ in range(MAX_CHUNKS):
        found = _JPEG_MARKER.search(data, position)
        if found is None:
            raise truncated(name, len(data))
        if scans == 0 and data[position : found.start()].strip(b"\xff"):
            raise MediaError(f"{name!r} is damaged: there is stray data in its header")
        marker, body_at = data[found.end() - 1], found.end()
        if marker == 0xD9:  # end of image
            kept.append(data[position:body_at])
            position = body_at
            break
        if body_at + 2 > len(data):
            raise truncated(name, len(data))
        end = body_at + int(struct.unpack_from(">H", data, body_at)[0])
        if end > len(data) or end < body_at + 2:
            raise truncated(name, len(data), max(end, body_at + 2))
        body = data[body_at + 2 : end]
        keep = True
        if marker in {0xC0, 0xC1, 0xC2, 0xC3, 0xC5, 0xC6, 0xC7, 0xC9, 0xCA, 0xCB, 0xCD, 0xCE, 0xCF}:
            if len(body) < 6 or width:
                raise MediaError(f"{name!r} is damaged: it has a broken or a second frame header")
            height, width = struct.unpack_from(">HH", body, 1)
        elif marker == 0xDA:
            scans += 1
            if not width:
                raise MediaError(f"{name!r} is damaged: its pixels come before its size")
            if scans > MAX_SCANS:
                raise MediaError(f"{name!r} has more than {MAX_SCANS} scans; save it anew with a picture editor")
        elif marker == 0xE1 and body.startswith(b"Exif\0\0"):
            exif = exif or _limited_exif(body[6:], notes)
            keep = False
        elif marker == 0xE2 and body.startswith(b"ICC_PROFILE\0") and len(body) > 14:
            profile_parts[body[12]] = body[14:]
            keep = False
        elif 0xE1 <= marker <= 0xEF or marker == 0xFE:
            keep = marker == 0xEE  # Adobe: says how the colours are coded
        if keep or scans:
            kept.append(data[position:end])
        position = end
    else:
        raise MediaError(f"{name!r} has more than {MAX_CHUNKS:,} segments; save it anew with a picture editor")
    trailer = data[position:]
    if _MARKUP.search(trailer):
        raise _trailer(name, len(trailer))
    if trailer.strip(b"\0\xff"):  # cameras append a film clip or a second picture here
        notes.append(f"{len(trailer):,} bytes after the end of the picture were ignored")
    profile = b"".join(part for _, part in sorted(profile_parts.items())) or None
    if profile is not None and len(profile) > MAX_PROFILE_BYTES:
        profile = None
        notes.append("the colour profile is too large and was ignored; colours were taken as sRGB")
    return PictureHeader(
        format="JPEG",
        width=width,
        height=height,
        animated=False,
        profile=profile,
        exif=exif,
        pixels=b"".join(kept),
        notes=tuple(notes),
    )


# --- WebP ------------------------------------------------------------------------------------------------------------


def _webp(data: bytes, name: str) -> PictureHeader:
    kept: list[bytes] = []
    size: tuple[int, int] | None = None
    animated, profile, exif = False, None, None
    notes: list[str] = []
    for kind, body in riff_chunks(data, name):
        keep = False
        if kind == b"VP8X" and len(body) >= 10:
            animated = bool(body[0] & 0x02)
            size = (1 + int.from_bytes(body[4:7], "little"), 1 + int.from_bytes(body[7:10], "little"))
            body = bytes([body[0] & 0x12]) + body[1:]  # alpha and animation; the rest is left out
            keep = True
        elif kind == b"VP8 " and len(body) >= 10:
            across, down = struct.unpack_from("<HH", body, 6)  # the upper two bits ask for scaling
            size = size or (across & 0x3FFF, down & 0x3FFF)
            keep = True
        elif kind == b"VP8L" and len(body) >= 5:
            bits = int.from_bytes(body[1:5], "little")
            size = size or (1 + (bits & 0x3FFF), 1 + (bits >> 14 & 0x3FFF))
            keep = True
        elif kind == b"ANMF":
            keep = not any(chunk.startswith(b"ANMF") for chunk in kept)  # the first frame is enough
        elif kind == b"ICCP":
            profile = body if len(body) <= MAX_PROFILE_BYTES else None
            if profile is None:
                notes.append("the colour profile is too large and was ignored; colours were taken as sRGB")
        elif kind == b"EXIF":
            exif = _limited_exif(body.removeprefix(b"Exif\0\0"), notes)
        elif kind in {b"ANIM", b"ALPH"}:
            keep = True
        if keep:
            kept.append(kind + struct.pack("<I", len(body)) + body + b"\0" * (len(body) % 2))
    end = 8 + struct.unpack_from("<I", data, 4)[0]
    end += end % 2
    if data[end:].strip(b"\0"):
        raise _trailer(name, len(data) - end)
    if size is None:
        raise MediaError(f"{name!r} is damaged: it is a WebP file without a picture")
    pixels = b"WEBP" + b"".join(kept)
    return PictureHeader(
        format="WebP",
        width=size[0],
        height=size[1],
        animated=animated,
        profile=profile,
        exif=exif,
        pixels=b"RIFF" + struct.pack("<I", len(pixels)) + pixels,
        notes=tuple(notes),
    )


# --- shared ----------------------------------------------------------------------------------------------------------


def _limited_exif(body: bytes, notes: list[str]) -> bytes | None:
    if len(body) <= MAX_EXIF_BYTES:
        return body
    notes.append(f"EXIF data of {len(body):,} bytes was ignored")
    return None


def _trailer(name: str, length: int) -> MediaError:
    return MediaError(
        f"{name!r} goes on for {length:,} bytes after the end of the picture, so it may be a second kind of file as "
        "well; save it anew with a picture editor"
    )


def _refuse_second_nature(data: bytes, name: str) -> None:
    """A picture that other programs would open as an archive or document is refused."""
    second = None
    if b"%PDF-" in data[:1024]:
        second = "a PDF document"
    elif b"PK\x05\x06" in data[-66_000:]:  # where a zip reader looks; checked further, as chance can write four bytes
        try:
            with zipfile.ZipFile(io.BytesIO(data)) as archive:
                second = "a zip archive" if archive.namelist() else None
        except (zipfile.BadZipFile, ValueError, NotImplementedError, struct.error, OSError):
            second = None
    if second:
        raise MediaError(f"{name!r} is a picture and {second} at once; save it anew with a picture editor")
