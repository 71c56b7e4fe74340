"""Pictures that clients send and look at: checked before they are decoded, a few at a time.

Sizes in a header cost nothing to claim, so that they are looked at first; decoding takes memory, so that no more than
:data:`AT_ONCE` are decoded together, however many ask.
"""

from __future__ import annotations

import functools
import io
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

import anyio
import anyio.to_thread
from starlette.exceptions import HTTPException

from cygnet.errors import MediaError

if TYPE_CHECKING:
    from PIL.Image import Image

FORMATS = {
    ".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG", ".webp": "WEBP", ".gif": "GIF", ".avif": "AVIF", ".bmp": "BMP",
}  # fmt: skip
"""Suffix of a picture and what it must hold. No other decoder is ever asked: some start programs."""
MOST_PIXELS = 64 * 10**6
AT_ONCE = 2

P = ParamSpec("P")
T = TypeVar("T")


class Decoding:
    """Runs work on pictures in threads, :data:`AT_ONCE` at a time. Belongs to one server."""

    def __init__(self) -> None:
        self._limiter: anyio.CapacityLimiter | None = None

    async def run(self, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """The result of ``work``."""
        if self._limiter is None:  # made where an event loop runs
            self._limiter = anyio.CapacityLimiter(AT_ONCE)
        return await anyio.to_thread.run_sync(functools.partial(work, *args, **kwargs), limiter=self._limiter)


def is_picture(name: str) -> bool:
    """Whether a file of this name is to be a picture."""
    return Path(name).suffix.lower() in FORMATS


def check(data: bytes, name: str) -> None:
    """Refuse what is not wholly a picture of the kind that its name says, and nothing else besides.

    Answers 413 for one of too many pixels, 400 for any other.
    """
    from cygnet.media.image import load_image

    wanted = FORMATS[Path(name).suffix.lower()]
    with opened(io.BytesIO(data), name) as picture:
        found = picture.format
        picture.load()
    if found != wanted and {found, wanted} != {"MPO", "JPEG"}:
        raise HTTPException(400, f"the file holds a {found} picture; rename it to end in .{str(found).lower()}")
    if wanted in ("PNG", "JPEG", "WEBP"):
        try:
            load_image(data, min_side=1, max_pixels=MOST_PIXELS)
        except MediaError as error:
            raise HTTPException(400, str(error)) from error


@contextmanager
def opened(source: Path | io.BytesIO, name: str = "the file") -> Iterator[Image]:
    """A picture, open, of a bounded size; answers 413 or 400 also for what goes wrong while it is used."""
    from PIL import Image, UnidentifiedImageError

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # our own limit is lower
            with Image.open(source, formats=[*dict.fromkeys(FORMATS.values()), "MPO"]) as picture:
                if picture.width * picture.height > MOST_PIXELS:
                    size = f"{picture.width}x{picture.height}"
                    raise HTTPException(413, f"the picture has {size} pixels; at most {MOST_PIXELS:,} are taken")
                yield picture
    except Image.DecompressionBombError as error:
        raise HTTPException(413, f"the picture has more than {MOST_PIXELS:,} pixels") from error
    except (
        UnidentifiedImageError,
        OSError,
        SyntaxError,
        ValueError,
        EOFError,
        IndexError,
        KeyError,
        TypeError,
    ) as error:
        text = f"{name[:100]!r} is damaged or not a PNG, JPEG, WebP, GIF, AVIF or BMP picture"
        raise HTTPException(400, text) from error


def reencoded(path: Path, preview: str | None, channel: str) -> tuple[bytes, str]:
    """A picture made smaller, or one of its channels; and its media type."""
    kind, _, given = (preview or "png").partition(";")
    quality = int(given) if given.isascii() and given.isdigit() and len(given) < 4 else 90
    kind = kind if kind in ("webp", "jpeg") else "png"
    with opened(path, path.name) as found:
        picture: Any = found.convert("RGBA")
        if channel == "a":
            picture = picture.getchannel("A")
        elif channel == "rgb" or kind == "jpeg":
            picture = picture.convert("RGB")
        out = io.BytesIO()
        picture.save(out, format=kind.upper(), **({} if kind == "png" else {"quality": max(1, min(100, quality))}))
    return out.getvalue(), f"image/{kind}"


def with_mask(original: Path, mask: bytes) -> bytes:
    """A picture as PNG with the alpha of an uploaded one, resized, and with its own texts."""
    from PIL import PngImagePlugin

    with opened(original, original.name) as found, opened(io.BytesIO(mask), "the mask") as drawn:
        picture = found.convert("RGBA")
        picture.putalpha(drawn.convert("RGBA").getchannel("A").resize(picture.size))
        texts = PngImagePlugin.PngInfo()
        for key, value in getattr(found, "text", {}).items():
            texts.add_text(key, value)
        out = io.BytesIO()
        picture.save(out, format="PNG", pnginfo=texts)
    return out.getvalue()
