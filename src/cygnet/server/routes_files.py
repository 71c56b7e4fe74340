"""Files that go in and out: ``/view``, ``/upload/...`` and the listing of a folder.

What was uploaded or made is never served as something that a browser would run: types come from a fixed list, anything
else is an attachment, and browsers are told not to guess.
"""

from __future__ import annotations

import itertools
import os
from pathlib import Path
from typing import Any
from urllib.parse import quote

from fastapi import APIRouter
from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import FileResponse, JSONResponse, Response

from cygnet.errors import RequestError
from cygnet.graph.folders import FOLDER_KINDS, FolderKind, Saved, annotated, can_be_named, inside
from cygnet.server import pictures
from cygnet.server.body import parse_json
from cygnet.server.documented import documented
from cygnet.server.guard import FRAMES
from cygnet.server.settings import Settings
from cygnet.server.whole import write_whole

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

_UPLOADS = (*MEDIA_TYPES, ".bmp", ".avi", ".m4v", ".m4a", ".aac", ".obj", ".stl", ".gltf", ".latent", ".safetensors")
_CONTENT = {
    "X-Content-Type-Options": "nosniff",
    "Content-Security-Policy": f"default-src 'none'; img-src 'self'; media-src 'self'; style-src 'unsafe-inline'; "
    f"form-action 'none'; base-uri 'none'; {FRAMES}",
}
"""Of every file that somebody sent or made: whatever is in it, nothing of it runs. No ``sandbox``: a video opened in a
tab of its own asks for itself once more, and from a sandbox that would be another site's request."""


def files_router(settings: Settings) -> APIRouter:
    """The routes, without their ``/api`` prefix."""
    router = APIRouter(tags=["files"])
    decoding = pictures.Decoding()

    @router.head("/view", include_in_schema=False)
    @router.get("/view", openapi_extra=documented(query=("filename", "subfolder", "type", "preview", "channel")))
    async def view(request: Request) -> Response:
        query = dict(request.query_params)
        path = _asked_for(settings, query)
        preview, channel = query.get("preview"), query.get("channel", "rgba")
        if pictures.is_picture(path.name) and (preview or channel != "rgba"):
            data, media_type = await decoding.run(pictures.reencoded, path, preview, channel)
            return Response(data, media_type=media_type, headers=_CONTENT)
        return _file(path)

    @router.post("/upload/image", openapi_extra=documented(form=True))
    async def upload(request: Request) -> JSONResponse:
        return await _upload(request, settings, decoding)

    @router.post("/upload/mask", openapi_extra=documented(form=True))
    async def upload_mask(request: Request) -> JSONResponse:
        return await _upload(request, settings, decoding, mask=True)

    return router


def internal_files_router(settings: Settings) -> APIRouter:
    """``/internal/files``, which has no prefix."""
    router = APIRouter(tags=["files"])

    @router.get("/internal/files/{kind}")
    def listing(kind: str) -> JSONResponse:
        if kind not in FOLDER_KINDS:
            return JSONResponse({"error": f"unknown folder {kind[:50]!r}"}, 400)
        root = settings.folders.root(_kind(kind))
        listed = os.scandir(root) if root.is_dir() else ()
        found = [it for it in listed if it.is_file() and not it.name.startswith(".") and can_be_named(it.name)]
        found.sort(key=_changed, reverse=True)
        return JSONResponse([it.name for it in found])

    return router


def _changed(entry: os.DirEntry[str]) -> float:
    try:
        return entry.stat().st_mtime
    except OSError:  # it was removed meanwhile
        return 0.0


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
    headers = {**_CONTENT, "Content-Disposition": f"{shown}; filename*=UTF-8''{quote(path.name)}"}
    return FileResponse(path, media_type=media_type or "application/octet-stream", headers=headers)


# In


async def _upload(
    request: Request, settings: Settings, decoding: pictures.Decoding, *, mask: bool = False
) -> JSONResponse:
    form = await _form(request, settings.largest_upload)
    file = form.get("image")
    if not isinstance(file, UploadFile) or not file.filename:
        raise HTTPException(400, "no file is in the field 'image'")
    name = os.path.basename(file.filename.replace("\\", "/"))
    kind = _kind(str(form.get("type") or "input"))
    if mask and not name.lower().endswith(".png"):
        raise HTTPException(400, "a mask makes a PNG picture; its name must end in .png")
    if Path(name).suffix.lower() not in _UPLOADS:
        raise HTTPException(400, f"files named *{Path(name).suffix[:20]} are not taken; use a picture, video or sound")
    if (file.size or 0) > settings.largest_upload:
        raise HTTPException(413, f"the file is larger than {settings.largest_upload} bytes")
    folder, subfolder = _place(settings, kind, str(form.get("subfolder") or ""), name)
    overwrite = str(form.get("overwrite") or "").lower() in ("true", "1")
    original = str(form.get("original_ref") or "{}")

    def store() -> str:
        data = file.file.read()
        if pictures.is_picture(name):
            pictures.check(data, name)
        content = _with_mask(data, original, settings) if mask else data
        return _store(folder, name, content, overwrite)

    saved = Saved(await decoding.run(store), subfolder, kind)
    return JSONResponse({"name": saved.filename, "subfolder": saved.subfolder, "type": saved.type})


def _place(settings: Settings, kind: FolderKind, subfolder: str, name: str) -> tuple[Path, str]:
    """The folder that an upload goes into; answers 400 for a name that is none or leads elsewhere."""
    try:
        folder = inside(settings.folders.root(kind), subfolder or ".")
        inside(folder, name)
    except RequestError as error:
        raise HTTPException(400, str(error)) from error
    parts = [*Path(subfolder.replace("\\", "/")).parts, name]
    if any(it.startswith(".") or not it.isprintable() for it in parts):
        raise HTTPException(400, "the file name begins with a dot or cannot be printed; rename the file")
    if any(it.is_file() for it in (folder, *folder.parents)):
        raise HTTPException(400, "a folder of that path is a file already; choose another subfolder")
    return folder, subfolder


async def _form(request: Request, limit: int) -> Any:
    announced = request.headers.get("content-length", "")
    if not announced.isdigit():
        raise HTTPException(411, "an upload must say how long it is")
    if int(announced) > limit + 2**16:
        raise HTTPException(413, f"the upload is larger than {limit} bytes; start the server with --max-upload-size")
    return await request.form(max_files=1, max_fields=20)


def _store(folder: Path, name: str, data: bytes, overwrite: bool) -> str:
    """Write a file whole; another of that name stays unless ``overwrite``, and an equal one is used again."""
    stem, suffix = os.path.splitext(name)
    for number in itertools.count():
        candidate = folder / (name if number == 0 else f"{stem} ({number}){suffix}")
        if overwrite and candidate.is_dir():
            raise HTTPException(400, "there is a folder of that name; rename the file")
        try:
            write_whole(candidate, data, overwrite=overwrite)
        except FileExistsError:
            if _holds(candidate, data):
                return candidate.name
        else:
            return candidate.name
    raise AssertionError("counting never ends")


def _holds(path: Path, data: bytes) -> bool:
    return path.is_file() and path.stat().st_size == len(data) and path.read_bytes() == data


def _with_mask(mask: bytes, original: str, settings: Settings) -> bytes:
    """The original picture with the alpha of an uploaded one."""
    try:
        ref = parse_json(original)
        asked = {key: str(ref[key]) for key in ("filename", "subfolder", "type") if key in ref}
    except (ValueError, TypeError) as error:
        raise HTTPException(400, "original_ref is no JSON object that names a picture") from error
    return pictures.with_mask(_asked_for(settings, asked), mask)
