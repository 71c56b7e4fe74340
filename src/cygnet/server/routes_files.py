"""Files that go in and out: ``/view``, ``/upload/...`` and the listing of a folder.

What was uploaded or made is never served as something that a browser would run: types come from a fixed list, anything
else is an attachment, and browsers are told not to guess.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
from pathlib import Path
from typing import Any
from urllib.parse import quote

from fastapi import APIRouter
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import FileResponse, JSONResponse, Response

from cygnet.errors import RequestError
from cygnet.graph.folders import FOLDER_KINDS, FolderKind, Saved, annotated, inside
from cygnet.server.documented import documented
from cygnet.server.settings import Settings

MEDIA_TYPES = {
    ".png": "image/png",
    ".jpg": "image/jpeg",
    ".jpeg": "image/jpeg",
    ".webp": "image/webp",
    ".gif": "image/gif",
    ".avif": "image/avif",
    ".mp4": "video/mp4",
    ".webm": "video/webm",
    ".mov": "video/quicktime",
    ".mkv": "video/x-matroska",
    ".wav": "audio/wav",
    ".mp3": "audio/mpeg",
    ".flac": "audio/flac",
    ".ogg": "audio/ogg",
    ".opus": "audio/ogg",
    ".glb": "model/gltf-binary",
    ".json": "application/json",
    ".txt": "text/plain; charset=utf-8",
}
"""The only types under which files are served inline."""

_PICTURES = (".png", ".jpg", ".jpeg", ".webp", ".gif", ".avif", ".bmp")
_UPLOADS = (*MEDIA_TYPES, ".bmp", ".avi", ".m4v", ".m4a", ".aac", ".obj", ".stl", ".gltf", ".latent", ".safetensors")
_NOSNIFF = {"X-Content-Type-Options": "nosniff"}
_MOST_PIXELS = 64 * 10**6


def files_router(settings: Settings) -> APIRouter:
    """The routes, without their ``/api`` prefix."""
    router = APIRouter(tags=["files"])

    @router.head("/view", include_in_schema=False)
    @router.get("/view", openapi_extra=documented(query=("filename", "subfolder", "type", "preview", "channel")))
    async def view(request: Request) -> Response:
        query = dict(request.query_params)
        path = _asked_for(settings, query)
        preview, channel = query.get("preview"), query.get("channel", "rgba")
        if path.suffix.lower() in _PICTURES and (preview or channel != "rgba"):
            return await run_in_threadpool(_picture, path, preview, channel)
        return _file(path)

    @router.post("/upload/image", openapi_extra=documented(form=True))
    async def upload(request: Request) -> JSONResponse:
        return await _upload(request, settings)

    @router.post("/upload/mask", openapi_extra=documented(form=True))
    async def upload_mask(request: Request) -> JSONResponse:
        return await _upload(request, settings, mask=True)

    return router


def internal_files_router(settings: Settings) -> APIRouter:
    """``/internal/files``, which has no prefix."""
    router = APIRouter(tags=["files"])

    @router.get("/internal/files/{kind}")
    async def listing(kind: str) -> JSONResponse:
        if kind not in FOLDER_KINDS:
            return JSONResponse({"error": f"unknown folder {kind[:50]!r}"}, 400)
        root = settings.folders.root(_kind(kind))
        found = [it for it in os.scandir(root) if it.is_file() and not it.name.startswith(".")] if root.is_dir() else []
        found.sort(key=lambda it: it.stat().st_mtime, reverse=True)
        return JSONResponse([it.name for it in found])

    return router


# Out


def _kind(text: str) -> FolderKind:
    for kind in FOLDER_KINDS:
        if kind == text:
            return kind
    raise HTTPException(400, f"type is {text[:50]!r}; use {', '.join(FOLDER_KINDS)}")


def _asked_for(settings: Settings, query: dict[str, str]) -> Path:
    name = query.get("filename", "")
    if not name:
        raise HTTPException(404, "no filename is given")
    kind = _kind(query.get("type", "output"))
    name, kind = annotated(name, kind)
    if name.startswith("/") or ".." in name:
        raise HTTPException(400, "the filename leads out of its folder")
    try:
        folder = inside(settings.folders.root(kind), query.get("subfolder") or ".")
        path = inside(settings.folders.root(kind), os.path.join(query.get("subfolder") or ".", os.path.basename(name)))
    except RequestError as error:
        raise HTTPException(403, str(error)) from error
    if path.parent != folder:
        raise HTTPException(403, "the file is a link to another folder")
    if not path.is_file():
        raise HTTPException(404, "there is no such file")
    return path


def _file(path: Path) -> Response:
    """The file itself; ranges are answered, which players need to seek."""
    media_type = MEDIA_TYPES.get(path.suffix.lower())
    shown = "inline" if media_type else "attachment"
    headers = {**_NOSNIFF, "Content-Disposition": f"{shown}; filename*=UTF-8''{quote(path.name)}"}
    return FileResponse(path, media_type=media_type or "application/octet-stream", headers=headers)


def _picture(path: Path, preview: str | None, channel: str) -> Response:
    """A picture re-encoded smaller, or one of its channels."""
    from PIL import Image, UnidentifiedImageError

    kind, _, given = (preview or "png").partition(";")
    quality = int(given) if given.isascii() and given.isdigit() else 90
    kind = kind if kind in ("webp", "jpeg") else "png"
    try:
        with Image.open(path) as opened:
            if opened.width * opened.height > _MOST_PIXELS:
                raise HTTPException(413, "the picture is too large for a preview")
            picture: Any = opened.convert("RGBA")
    except (UnidentifiedImageError, OSError, ValueError) as error:
        raise HTTPException(415, "the file is not a picture that can be read") from error
    if channel == "a":
        picture = picture.getchannel("A")
    elif channel == "rgb" or kind == "jpeg":
        picture = picture.convert("RGB")
    out = io.BytesIO()
    picture.save(out, format=kind.upper(), **({} if kind == "png" else {"quality": max(1, min(100, quality))}))
    return Response(out.getvalue(), media_type=f"image/{kind}", headers=_NOSNIFF)


# In


async def _upload(request: Request, settings: Settings, *, mask: bool = False) -> JSONResponse:
    form = await _form(request, settings.largest_upload)
    file = form.get("image")
    if not isinstance(file, UploadFile) or not file.filename:
        raise HTTPException(400, "no file is in the field 'image'")
    name = os.path.basename(file.filename.replace("\\", "/"))
    kind = _kind(str(form.get("type") or "input"))
    if Path(name).suffix.lower() not in _UPLOADS:
        raise HTTPException(400, f"files named *{Path(name).suffix[:20]} are not taken; use a picture, video or sound")
    data = await file.read()
    if len(data) > settings.largest_upload:
        raise HTTPException(413, f"the file is larger than {settings.largest_upload} bytes")
    subfolder = str(form.get("subfolder") or "")
    overwrite = str(form.get("overwrite") or "").lower() in ("true", "1")

    def store() -> Saved:
        try:
            folder = inside(settings.folders.root(kind), subfolder or ".")
            inside(folder, name)
        except RequestError as error:
            raise HTTPException(400, str(error)) from error
        if name.startswith(".") or not name.isprintable():
            raise HTTPException(400, "the file name begins with a dot or cannot be printed; rename the file")
        content = _with_mask(data, str(form.get("original_ref") or "{}"), settings) if mask else data
        if Path(name).suffix.lower() in _PICTURES:
            _check_picture(content)
        return Saved(_write(folder, name, content, overwrite), subfolder, kind)

    saved = await run_in_threadpool(store)
    return JSONResponse({"name": saved.filename, "subfolder": saved.subfolder, "type": saved.type})


async def _form(request: Request, limit: int) -> Any:
    announced = request.headers.get("content-length", "")
    if not announced.isdigit():
        raise HTTPException(411, "an upload must say how long it is")
    if int(announced) > limit + 2**16:
        raise HTTPException(413, f"the upload is larger than {limit} bytes; start the server with --max-upload-size")
    return await request.form(max_files=1, max_fields=20)


def _check_picture(data: bytes) -> None:
    """Refuse what is not wholly a picture of a known format, before a node or a browser meets it."""
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(io.BytesIO(data), formats=("PNG", "JPEG", "WEBP", "GIF", "AVIF", "BMP")) as picture:
            if picture.width * picture.height > _MOST_PIXELS:
                raise HTTPException(413, f"the picture has {picture.width}x{picture.height} pixels; at most 64 million")
            picture.load()
    except (UnidentifiedImageError, OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise HTTPException(400, "the file is damaged or not a PNG, JPEG, WebP, GIF, AVIF or BMP picture") from error


def _write(folder: Path, name: str, data: bytes, overwrite: bool) -> str:
    """Write a file whole; another of that name stays unless ``overwrite``, and an equal one is used again."""
    folder.mkdir(parents=True, exist_ok=True)
    stem, suffix = os.path.splitext(name)
    digest = hashlib.sha256(data).digest()
    number = 0
    while True:
        candidate = folder / (name if number == 0 else f"{stem} ({number}){suffix}")
        if overwrite or not candidate.exists():
            partial = candidate.with_name(f".{candidate.name}.{os.getpid()}.partial")
            partial.write_bytes(data)
            os.replace(partial, candidate)
            return candidate.name
        if candidate.is_file() and hashlib.sha256(candidate.read_bytes()).digest() == digest:
            return candidate.name
        number += 1


def _with_mask(mask: bytes, original: str, settings: Settings) -> bytes:
    """The original picture with the alpha of an uploaded one."""
    from PIL import Image, PngImagePlugin

    try:
        ref = json.loads(original)
        path = _asked_for(settings, {key: str(ref[key]) for key in ("filename", "subfolder", "type") if key in ref})
        with Image.open(path) as opened, Image.open(io.BytesIO(mask)) as drawn:
            picture = opened.convert("RGBA")
            picture.putalpha(drawn.convert("RGBA").getchannel("A").resize(picture.size))
            texts = PngImagePlugin.PngInfo()
            for key, value in getattr(opened, "text", {}).items():
                texts.add_text(key, value)
    except (ValueError, TypeError, OSError) as error:
        raise HTTPException(400, "the mask or the picture that it belongs to cannot be read") from error
    out = io.BytesIO()
    picture.save(out, format="PNG", pnginfo=texts)
    return out.getvalue()
