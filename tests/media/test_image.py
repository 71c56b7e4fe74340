"""Still pictures: every mode by its rule, every trap in words (rows B1 to B7 of the fault list)."""

from __future__ import annotations

import contextlib
import io
import os
import struct
import time
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageCms, PngImagePlugin

from cygnet.errors import MediaError
from cygnet.media.headers import PNG_SIGNATURE
from cygnet.media.image import load_image, picture_from_array, picture_from_pillow

Array = npt.NDArray[np.generic]


def coded(image: Image.Image, format: str = "PNG", **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


def gradient(mode: str = "RGB", width: int = 32, height: int = 24) -> Image.Image:
    channels = len(mode) if mode in {"RGB", "RGBA", "CMYK", "LA"} else 1
    values = np.add.outer(np.arange(height) * 3, np.arange(width) * 3)
    array = np.stack([(values + 40 * channel) % 256 for channel in range(channels)], axis=-1).astype(np.uint8)
    return Image.fromarray(array if channels > 1 else array[..., 0], mode=None if mode != "CMYK" else "CMYK")


def chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def with_chunk(png: bytes, kind: bytes, body: bytes) -> bytes:
    """``png`` with one more chunk behind its header."""
    return png[:33] + chunk(kind, body) + png[33:]


def raw_png(width: int, height: int, depth: int, colour: int, rows: Array, extra: bytes = b"") -> bytes:
    """A PNG of any depth and colour type; ``rows`` are big-endian samples ``[H, ...]``."""
    packed = b"".join(b"\0" + row.tobytes() for row in rows)
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0))
    return PNG_SIGNATURE + header + extra + chunk(b"IDAT", zlib.compress(packed)) + chunk(b"IEND", b"")


PNG, JPEG, WEBP = coded(gradient()), coded(gradient(), "JPEG", quality=95), coded(gradient(), "WEBP", lossless=True)


# --- what is read ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("suffix", "data"), [("png", PNG), ("webp", WEBP), ("jpeg", JPEG), ("JPG", JPEG), ("", PNG)])
def test_the_three_formats_are_read_from_files_and_bytes(tmp_path: Path, suffix: str, data: bytes) -> None:
    path = tmp_path / f"picture.{suffix}".rstrip(".")
    path.write_bytes(data)
    for source in (path, str(path), data):
        picture = load_image(source)
        error = np.abs(picture.pixels.astype(int) - np.asarray(gradient()))
        assert error.max() <= (40 if data is JPEG else 0)
        assert (picture.width, picture.height, picture.notes) == (32, 24, ())
        assert picture.pixels.dtype == np.uint8
        assert picture.pixels.flags["C_CONTIGUOUS"]
        assert picture.pixels.flags["WRITEABLE"]


def test_grey_and_one_bit_pictures_become_three_channels() -> None:
    grey = gradient("L")
    assert np.array_equal(load_image(coded(grey)).pixels, np.asarray(grey)[..., None].repeat(3, axis=2))
    black_white = grey.point(lambda v: 255 if v > 100 else 0).convert("1")
    assert np.array_equal(load_image(coded(black_white)).pixels[..., 0], np.asarray(black_white.convert("L")))


def test_palettes_are_looked_up() -> None:
    palette = gradient().quantize(16)
    assert np.array_equal(load_image(coded(palette)).pixels, np.asarray(palette.convert("RGB")))
    clear = load_image(coded(palette, transparency=palette.getpixel((0, 0))))
    assert clear.pixels[0, 0].tolist() == [255, 255, 255]
    assert clear.notes == ("transparent parts were laid over white",)


def test_alpha_is_laid_over_white_exactly() -> None:
    image = gradient("RGBA")
    array = np.asarray(image).astype(float)
    alpha = array[..., 3:] / 255
    expected = array[..., :3] * alpha + 255 * (1 - alpha)
    for data in (coded(image), coded(image, "WEBP", lossless=True, exact=True)):
        picture = load_image(data)
        assert np.abs(picture.pixels - expected).max() <= 0.51
        assert picture.notes == ("transparent parts were laid over white",)
    grey = gradient("LA")
    array = np.asarray(grey).astype(float)
    expected = array[..., :1] * (array[..., 1:] / 255) + 255 - array[..., 1:]
    assert np.abs(load_image(coded(grey)).pixels - expected).max() <= 0.51


def test_opaque_alpha_changes_nothing_and_needs_no_note() -> None:
    image = gradient().convert("RGBA")
    assert load_image(coded(image)).notes == ()


@pytest.mark.parametrize(("colour", "channels"), [(0, 1), (2, 3), (4, 2), (6, 4)])
def test_16_bit_samples_keep_their_upper_byte(colour: int, channels: int) -> None:
    samples = np.random.default_rng(0).integers(0, 65536, (20, 24, channels)).astype(">u2")
    if channels in {2, 4}:
        samples[..., -1] = 65535
    picture = load_image(raw_png(24, 20, 16, colour, samples))
    colours = (samples >> 8)[..., : 1 if channels < 3 else 3]
    assert np.array_equal(picture.pixels, np.broadcast_to(colours, (20, 24, 3)))
    assert picture.notes == ("16-bit samples were reduced to their upper 8 bits",)


def test_a_transparent_16_bit_grey_is_cleared_exactly() -> None:
    samples = np.full((20, 24), 0x1234, ">u2")
    samples[3, 4] = 0x1235
    picture = load_image(raw_png(24, 20, 16, 0, samples, chunk(b"tRNS", b"\x12\x34")))
    assert picture.pixels[3, 4].tolist() == [0x12] * 3
    assert (np.delete(picture.pixels.reshape(-1, 3), 3 * 24 + 4, axis=0) == 255).all()


def test_cmyk_without_a_profile_follows_the_stated_formula() -> None:
    image = Image.new("CMYK", (16, 16), (0, 255, 255, 0))
    picture = load_image(coded(image, "JPEG", quality=100))
    assert np.abs(picture.pixels.astype(int) - (255, 0, 0)).max() <= 3
    assert "approximate" in picture.notes[0]


# --- colour profiles -------------------------------------------------------------------------------------------------

XYZ = {"rXYZ": (0.51512, 0.2412, -0.00105), "gXYZ": (0.29198, 0.69225, 0.04189), "bXYZ": (0.1571, 0.06657, 0.78407)}
"""Display P3 primaries adapted to D50, as its profile states them."""


def p3_profile(space: bytes = b"RGB ", name: str = "Wide test") -> bytes:
    """A minimal matrix profile with the primaries of Display P3 and gamma 2.2."""

    def xyz(values: tuple[float, ...]) -> bytes:
        return b"XYZ \0\0\0\0" + b"".join(struct.pack(">i", round(v * 65536)) for v in values)

    text = name.encode()
    tags = {
        b"desc": b"desc\0\0\0\0" + struct.pack(">I", len(text) + 1) + text + b"\0" * 79,
        b"wtpt": xyz((0.9642, 1.0, 0.8249)),
        **{key.encode(): xyz(value) for key, value in XYZ.items()},
        **dict.fromkeys((b"rTRC", b"gTRC", b"bTRC", b"kTRC"), b"curv\0\0\0\0\0\0\0\x01" + struct.pack(">H", 563)),
    }
    table, body, offset = b"", b"", 128 + 4 + 12 * len(tags)
    for key, value in tags.items():
        value += b"\0" * (-len(value) % 4)
        table += key + struct.pack(">II", offset + len(body), len(value))
        body += value
    total = offset + len(body)
    header = struct.pack(">II", total, 0) + b"\x02\x10\0\0mntr" + space + b"XYZ " + b"\0" * 12 + b"acsp"
    header = header.ljust(68, b"\0") + struct.pack(">iii", 63190, 65536, 54061)
    return header.ljust(128, b"\0") + struct.pack(">I", len(tags)) + table + body


@pytest.mark.parametrize("format", ["PNG", "JPEG", "WEBP"])
def test_a_wide_gamut_profile_is_converted_to_srgb(format: str) -> None:
    image = Image.new("RGB", (16, 16), (120, 200, 120))
    options: dict[str, object] = {"PNG": {}, "JPEG": {"quality": 100}, "WEBP": {"lossless": True}}[format]
    picture = load_image(coded(image, format, icc_profile=p3_profile(), **options))
    # P3 (120, 200, 120) at gamma 2.2 is about (87, 203, 111) in sRGB: less red, slightly more green.
    assert np.abs(picture.pixels[8, 8].astype(int) - (87, 203, 111)).max() <= 6
    assert picture.notes == ("colours were converted from 'Wide test' to sRGB",)


def test_an_srgb_profile_changes_nothing() -> None:
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    picture = load_image(coded(gradient(), icc_profile=srgb))
    assert np.array_equal(picture.pixels, np.asarray(gradient()))
    assert picture.notes == ()


def test_alpha_survives_a_profile() -> None:
    image = gradient("RGBA")
    image.putalpha(0)
    assert (load_image(coded(image, icc_profile=p3_profile())).pixels == 255).all()


@pytest.mark.parametrize("mode", ["L", "LA", "1", "P"])
def test_other_modes_pass_through_an_rgb_profile(mode: str) -> None:
    source = gradient().quantize(8) if mode == "P" else gradient("L").convert(mode)
    picture = load_image(coded(source, icc_profile=p3_profile()))
    assert picture.pixels.shape == (24, 32, 3)
    assert "converted from 'Wide test'" in picture.notes[0]


@pytest.mark.parametrize(
    ("profile", "words"),
    [
        (b"nonsense" * 30, "damaged"),
        (p3_profile()[:200], "damaged"),
        (p3_profile(space=b"CMYK"), "does not fit"),
        (b"\0" * (5 * 2**20), "too large"),
    ],
)
def test_a_profile_that_cannot_be_used_is_ignored_with_a_note(profile: bytes, words: str) -> None:
    picture = load_image(coded(gradient(), icc_profile=profile))
    assert np.array_equal(picture.pixels, np.asarray(gradient()))
    assert words in picture.notes[0]


# --- EXIF orientation ------------------------------------------------------------------------------------------------

# Where the stored picture's top left corner ends up, as (row, column) of the upright one.
CORNERS = {1: (0, 0), 2: (0, -1), 3: (-1, -1), 4: (-1, 0), 5: (0, 0), 6: (0, -1), 7: (-1, -1), 8: (-1, 0)}


@pytest.mark.parametrize("format", ["PNG", "JPEG", "WEBP"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_every_exif_orientation_is_applied_and_noted(format: str, orientation: int) -> None:
    array = np.zeros((16, 32, 3), np.uint8)
    array[:8, :8] = 255
    exif = Image.Exif()
    exif[0x0112] = orientation
    picture = load_image(coded(Image.fromarray(array), format, exif=exif.tobytes()))
    assert (picture.height, picture.width) == ((16, 32) if orientation < 5 else (32, 16))
    bright = {corner for corner in {(0, 0), (0, -1), (-1, 0), (-1, -1)} if picture.pixels[corner].min() > 200}
    assert bright == {CORNERS[orientation]}
    assert bool(picture.notes) == (orientation != 1)


@pytest.mark.parametrize("exif", [b"", b"MM\0*", b"II*\0\xff\xff\xff\xff", b"\xff" * 200, b"MM\0*" + b"\0" * 70_000])
def test_broken_or_huge_exif_does_no_harm(exif: bytes) -> None:
    picture = load_image(with_chunk(PNG, b"eXIf", exif))
    assert np.array_equal(picture.pixels, np.asarray(gradient()))


# --- sizes -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [(20_000, 20_000), (65_500, 65_500), (2**31 - 1, 2**31 - 1), (1, 2**31 - 1)])
def test_a_declared_size_is_refused_before_decoding(size: tuple[int, int]) -> None:
    bomb = PNG_SIGNATURE + chunk(b"IHDR", struct.pack(">IIBBBBB", *size, 8, 2, 0, 0, 0))
    bomb += chunk(b"IDAT", zlib.compress(b"\0" * 10**6)) + chunk(b"IEND", b"")
    started = time.monotonic()
    with pytest.raises(MediaError, match=rf"{size[0]}x{size[1]}, .* megapixels; at most 67.1"):
        load_image(bomb)
    assert time.monotonic() - started < 1.0


def test_declared_sizes_of_jpeg_and_webp_are_refused_too() -> None:
    at = JPEG.index(b"\xff\xc0") + 5
    with pytest.raises(MediaError, match="65500x65500"):
        load_image(JPEG[:at] + struct.pack(">HH", 65_500, 65_500) + JPEG[at + 4 :])
    extended = b"VP8X" + struct.pack("<I", 10) + b"\0\0\0\0" + (16_382).to_bytes(3, "little") * 2
    data = b"WEBP" + extended + WEBP[12:]
    with pytest.raises(MediaError, match="16383x16383"):
        load_image(b"RIFF" + struct.pack("<I", len(data)) + data)


@pytest.mark.parametrize("size", [(1, 1), (1, 2000), (2000, 15)])
def test_pictures_too_small_to_be_pictures_are_refused(size: tuple[int, int]) -> None:
    with pytest.raises(MediaError, match="both sides must be at least 16"):
        load_image(coded(Image.new("RGB", size)))


def test_limits_are_the_callers_to_set() -> None:
    with pytest.raises(MediaError, match="scale it down first"):
        load_image(PNG, max_pixels=32 * 24 - 1)
    assert load_image(PNG, max_pixels=32 * 24).width == 32
    assert load_image(coded(Image.new("RGB", (1, 1))), min_side=1).width == 1


def test_zero_sizes_are_damage() -> None:
    with pytest.raises(MediaError, match="0x5"):
        load_image(PNG_SIGNATURE + chunk(b"IHDR", struct.pack(">IIBBBBB", 0, 5, 8, 2, 0, 0, 0)) + chunk(b"IEND", b""))


# --- other kinds of file ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (coded(gradient(), "GIF"), "is a GIF; give a PNG, JPEG or WebP"),
        (coded(gradient(), "TIFF"), "is a TIFF"),
        (coded(gradient(), "BMP"), "is a BMP"),
        (b"\0\0\0\x18ftypheic" + b"\0" * 50, "is a HEIC"),
        (b"\0\0\0\x18ftypavif" + b"\0" * 50, "is an AVIF"),
        (b"\0\0\0\x18ftypisom" + b"\0" * 50, "is a video"),
        (b"%PDF-1.7", "is a PDF"),
        (b'<?xml version="1.0"?><!DOCTYPE svg [<!ENTITY a "aaaa">]><svg>&a;</svg>', "SVG"),
        (b"<!doctype html><html>", "is a web page"),
        (b"version https://git-lfs.github.com/spec/v1\n", "Git-LFS pointer"),
        (b"SIMPLE  =                    T", "FITS"),
        (b"PK\x03\x04" + b"\0" * 40, "zip archive"),
        (b"just text", "no picture that is known here"),
        (b"\0", "no picture that is known here"),
    ],
)
def test_other_kinds_of_file_are_named(data: bytes, words: str) -> None:
    with pytest.raises(MediaError, match=words) as caught:
        load_image(data)
    assert caught.value.exit_code == 2


@pytest.mark.parametrize(
    ("name", "data", "words"),
    [
        ("x.jpg", PNG, "'x.jpg' holds a PNG picture; rename it to end in .png"),
        ("x.png", JPEG, "'x.png' holds a JPEG picture"),
        ("x.gif", WEBP, "'x.gif' holds a WebP picture"),
        ("x.txt", PNG, "'x.txt' holds a PNG picture"),
    ],
)
def test_a_suffix_that_contradicts_the_content_is_refused(tmp_path: Path, name: str, data: bytes, words: str) -> None:
    (tmp_path / name).write_bytes(data)
    with pytest.raises(MediaError, match=words):
        load_image(tmp_path / name)


def zipped() -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("index.html", "<script>alert(1)</script>")
    return buffer.getvalue()


@pytest.mark.parametrize("data", [PNG, JPEG, WEBP])
@pytest.mark.parametrize("tail", [zipped(), b"<html><script>alert(1)</script></html>"])
def test_a_picture_that_is_something_else_as_well_is_refused(data: bytes, tail: bytes) -> None:
    with pytest.raises(MediaError, match=r"second kind of file|at once"):
        load_image(data + tail)


def test_archives_and_documents_inside_a_chunk_are_found() -> None:
    with pytest.raises(MediaError, match="zip archive at once"):
        load_image(with_chunk(PNG, b"prIv", zipped()))
    with pytest.raises(MediaError, match="PDF document at once"):
        load_image(with_chunk(PNG, b"tEXt", b"Comment\0%PDF-1.4"))


def test_what_cameras_append_to_a_jpeg_is_ignored_with_a_note() -> None:
    picture = load_image(JPEG + b"\0\0\0\x18ftypmp42" + b"film" * 10)
    assert picture.notes == ("52 bytes after the end of the picture were ignored",)
    assert load_image(JPEG + b"\0" * 100).notes == ()


# --- animations ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("format", ["PNG", "WEBP"])
def test_an_animation_gives_its_first_picture_with_a_note(format: str) -> None:
    second = Image.new("RGB", (32, 24), (1, 2, 3))
    data = coded(gradient(), format, save_all=True, append_images=[second], duration=50, lossless=True)
    picture = load_image(data)
    assert np.array_equal(picture.pixels, np.asarray(gradient()))
    assert "only its first picture" in picture.notes[0]


# --- damage ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("data", [PNG, JPEG, WEBP], ids=["png", "jpeg", "webp"])
@pytest.mark.parametrize("keep", [1, 7, 12, 20, 40, 0.3, 0.6, 0.9, -12, -2, -1])
def test_a_picture_cut_short_is_refused(data: bytes, keep: float) -> None:
    cut = data[: int(keep * len(data))] if isinstance(keep, float) else data[:keep]
    with pytest.raises(MediaError):
        load_image(cut)


def test_a_cut_picture_says_so() -> None:
    for data in (PNG, JPEG, WEBP):
        with pytest.raises(MediaError, match="cut short"):
            load_image(data[: len(data) * 2 // 3])


def test_pixel_data_that_ends_early_is_damage() -> None:
    with pytest.raises(MediaError, match="damaged"):
        load_image(raw_png(24, 20, 8, 2, np.zeros((5, 72), np.uint8)))


def test_a_wrong_checksum_is_damage() -> None:
    at = PNG.index(b"IDAT") + 6
    with pytest.raises(MediaError, match="damaged"):
        load_image(PNG[:at] + bytes([PNG[at] ^ 1]) + PNG[at + 1 :])


def test_interlaced_pictures_are_read_whole_and_missed_when_cut() -> None:
    # Adam7 of a one-colour 17x19 picture: every pass is rows of a filter byte and equal samples.
    passes = ((3, 3), (2, 3), (5, 2), (4, 5), (9, 5), (8, 10), (17, 9))  # columns, rows
    rows = b"".join((b"\0" + b"\x4d" * columns) * count for columns, count in passes)
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 17, 19, 8, 0, 0, 0, 1))
    for data, whole in ((rows, True), (rows[:-1], False)):
        png = PNG_SIGNATURE + header + chunk(b"IDAT", zlib.compress(data)) + chunk(b"IEND", b"")
        if whole:
            assert (load_image(png).pixels == 0x4D).all()
        else:
            with pytest.raises(MediaError, match="1 bytes of its pixels are missing"):
                load_image(png)


def test_a_webp_whose_parts_disagree_about_size_is_refused() -> None:
    extended = b"VP8X" + struct.pack("<I", 10) + b"\0\0\0\0" + (99).to_bytes(3, "little") * 2
    data = b"WEBP" + extended + WEBP[12:]
    with pytest.raises(MediaError, match="damaged"):
        load_image(b"RIFF" + struct.pack("<I", len(data)) + data)


@settings(max_examples=150, deadline=None, database=None)
@given(st.sampled_from([PNG, JPEG, WEBP]), st.lists(st.tuples(st.integers(0, 2**16), st.integers(0, 255)), max_size=8))
def test_flipped_bytes_give_a_picture_or_an_error_in_words(data: bytes, changes: list[tuple[int, int]]) -> None:
    broken = bytearray(data)
    for at, value in changes:
        broken[at % len(broken)] = value
    with contextlib.suppress(MediaError):  # anything else fails the test
        assert load_image(bytes(broken), max_pixels=10**6).pixels.ndim == 3


# --- hidden weight ---------------------------------------------------------------------------------------------------


def text_bomb() -> bytes:
    info = PngImagePlugin.PngInfo()
    info.add_text("Comment", "x" * 10_000_000, zip=True)
    info.add_itxt("XML:com.adobe.xmp", "<x:xmpmeta>" + "y" * 10_000_000, zip=True)
    return coded(gradient(), pnginfo=info)


def jpeg_with_segments() -> bytes:
    segment = b"\xff\xe1" + struct.pack(">H", 65_535) + b"http://ns.adobe.com/xap/1.0/\0" + b"z" * 65_504
    return JPEG[:2] + segment * 40 + b"\xff\xfe\0\x06abcd" + JPEG[2:]


@pytest.mark.parametrize("make", [text_bomb, jpeg_with_segments])
def test_huge_text_is_ignored(make: Callable[[], bytes]) -> None:
    picture = load_image(make())
    assert picture.pixels.shape == (24, 32, 3)
    assert picture.notes == ()


def test_a_profile_that_unpacks_without_end_is_ignored() -> None:
    bomb = b"bomb\0\0" + zlib.compress(b"\0" * 50_000_000)
    picture = load_image(with_chunk(PNG, b"iCCP", bomb))
    assert "too large" in picture.notes[0]


def test_pixel_data_that_unpacks_without_end_is_read_only_as_far_as_needed() -> None:
    rows = b"".join(b"\0" + row.tobytes() for row in np.asarray(gradient()))
    data = zlib.compress(rows + b"\0" * 100_000_000)
    at, end = PNG.index(b"IDAT") - 4, PNG.index(b"IEND") - 4
    started = time.monotonic()
    picture = load_image(PNG[:at] + chunk(b"IDAT", data) + PNG[end:])
    assert np.array_equal(picture.pixels, np.asarray(gradient()))
    assert time.monotonic() - started < 1.0


def test_a_jpeg_of_endless_scans_is_refused() -> None:
    at = JPEG.index(b"\xff\xda")
    with pytest.raises(MediaError, match="more than 200 scans"):
        load_image(JPEG[:at] + JPEG[at:-2] * 300 + b"\xff\xd9")


# --- places ----------------------------------------------------------------------------------------------------------


def test_places_that_hold_no_picture_are_named_without_their_folders(tmp_path: Path) -> None:
    (tmp_path / "empty.png").touch()
    (tmp_path / "loop.png").symlink_to("loop.png")
    for given_path, words in (
        (tmp_path / "missing.png", "there is no file 'missing.png'"),
        (tmp_path, "is not a regular file"),
        (tmp_path / "empty.png", "'empty.png' is empty"),
        (tmp_path / "loop.png", "'loop.png' cannot be opened"),
        (tmp_path / "a\0b.png", "cannot be opened"),
        (tmp_path / "red\x1b[31m\n.png", r"red\\x1b\[31m\\n.png"),
        ("/dev/zero", "is not a regular file"),
        ("https://example.com/x.png", "is an address; download it first"),
        ("", "there is no file"),
        (b"", "the picture is empty"),
    ):
        with pytest.raises(MediaError, match=words) as caught:
            load_image(given_path)
        assert str(tmp_path.parent) not in str(caught.value)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no FIFOs there")
@pytest.mark.timeout(10)
def test_a_pipe_never_blocks(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "x.png")
    (tmp_path / "link.png").symlink_to("x.png")
    for name in ("x.png", "link.png"):
        with pytest.raises(MediaError, match="not a regular file"):
            load_image(tmp_path / name)


def test_a_link_to_a_picture_is_followed(tmp_path: Path) -> None:
    (tmp_path / "x.png").write_bytes(PNG)
    (tmp_path / "link.png").symlink_to("x.png")
    assert load_image(tmp_path / "link.png").width == 32


def test_a_file_beyond_the_byte_limit_is_refused_unread(tmp_path: Path) -> None:
    with (tmp_path / "x.png").open("wb") as file:
        file.truncate(2**30)  # sparse: takes no room
    with pytest.raises(MediaError, match="1,073,741,824 bytes; at most"):
        load_image(tmp_path / "x.png")


# --- arrays ----------------------------------------------------------------------------------------------------------


def test_arrays_become_pictures_by_the_same_rules() -> None:
    array = np.asarray(gradient())
    picture = picture_from_array(array)
    assert np.array_equal(picture.pixels, array)
    assert not np.shares_memory(picture.pixels, array)
    grey = np.asarray(gradient("L"))
    for given_array in (grey, grey[..., None]):
        assert np.array_equal(picture_from_array(given_array).pixels, grey[..., None].repeat(3, axis=2))
    rgba = np.zeros((16, 16, 4), np.uint8)
    assert (picture_from_array(rgba).pixels == 255).all()
    assert picture_from_array(rgba).notes == ("transparent parts were laid over white",)


@pytest.mark.parametrize(
    "array", [np.zeros((4, 4, 3)), np.zeros((4, 4, 2), np.uint8), np.zeros(4, np.uint8), np.zeros((0, 4, 3), np.uint8)]
)
def test_arrays_of_another_shape_or_dtype_are_refused(array: npt.NDArray[np.uint8]) -> None:
    with pytest.raises(MediaError, match=r"give uint8 \[H, W\]"):
        picture_from_array(array)


# Pillow pictures are taken as their files would be.


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK"])
def test_an_open_picture_gives_the_pixels_of_its_file(mode: str) -> None:
    image = (
        gradient(mode) if mode not in ("1", "P", "LA") else gradient("RGBA" if mode == "LA" else "RGB").convert(mode)
    )
    data = coded(image, "JPEG" if mode == "CMYK" else "PNG")
    read, opened = load_image(data), picture_from_pillow(Image.open(io.BytesIO(data)))
    assert np.array_equal(read.pixels, opened.pixels)
    assert read.notes == opened.notes


def test_an_open_picture_is_turned_upright_and_keeps_its_upper_bits() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    data = coded(gradient(width=40, height=30), "JPEG", exif=exif.tobytes())
    opened = picture_from_pillow(Image.open(io.BytesIO(data)))
    assert opened.pixels.shape == (40, 30, 3)
    assert np.array_equal(opened.pixels, load_image(data).pixels)
    deep = Image.fromarray(np.arange(0, 65536, 64, dtype=np.uint16).reshape(32, 32))
    assert np.array_equal(picture_from_pillow(deep).pixels[..., 0], np.asarray(deep) >> 8)
    assert picture_from_pillow(gradient("RGB").convert("La")).pixels.shape == (24, 32, 3)


def test_pillow_pictures_that_hold_none_are_refused() -> None:
    with pytest.raises(MediaError, match="0x5"):
        picture_from_pillow(Image.new("RGB", (0, 5)))
    with pytest.raises(MediaError, match="mode is F"):
        picture_from_pillow(Image.new("F", (20, 20)))
