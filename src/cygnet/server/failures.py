"""What a client is told when the machine, and not the client, is at fault; one shape for every route."""

from __future__ import annotations

import errno
import logging
import sqlite3
from pathlib import Path

from fastapi import FastAPI
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response

from cygnet.errors import CygnetError, DiskFullError, OutputError
from cygnet.media.files import output_error

_log = logging.getLogger(__name__)


def add_failures(app: FastAPI) -> None:
    """Answer in words: 507 for a full disk, 503 for another failure of the machine, 400 for an impossible name."""
    app.add_exception_handler(OutputError, _output)
    app.add_exception_handler(OSError, _system)
    app.add_exception_handler(sqlite3.Error, _store)
    app.add_exception_handler(ClientDisconnect, _gone)


def told(error: CygnetError, status: int) -> JSONResponse:
    """An error in the shape of a refused submission, which the page shows."""
    shape = {"type": error.code, "message": str(error), "details": "", "extra_info": {}}
    return JSONResponse({"error": shape, "node_errors": {}}, status)


async def _output(request: Request, error: Exception) -> Response:
    assert isinstance(error, OutputError)
    _log.error("%s %s: %s", request.method, request.url.path, error)
    return told(error, 507 if isinstance(error, DiskFullError) else 503)


async def _system(request: Request, error: Exception) -> Response:
    assert isinstance(error, OSError)
    if error.errno in (errno.ENAMETOOLONG, errno.ENOTDIR, errno.EISDIR, errno.ELOOP):
        return JSONResponse({"detail": "the system refused the name; give another"}, 400)
    return await _output(request, output_error(error, Path(str(error.filename or "a file"))))


async def _store(request: Request, error: Exception) -> Response:
    return await _output(request, OutputError(f"the job file could not be read: {error}"))


async def _gone(request: Request, error: Exception) -> Response:
    return Response(status_code=400)  # nobody reads it; what was half sent has changed nothing
