"""Reading from the registry of packs over https, within a size and a time."""

from __future__ import annotations

import time
from http.client import HTTPMessage
from typing import IO
from urllib.error import HTTPError
from urllib.parse import urlsplit
from urllib.request import HTTPRedirectHandler, Request, build_opener

from cygnet.errors import CygnetError

LONGEST = 1800.0  # seconds


class FetchError(CygnetError):
    """Something could not be fetched; ``status`` is what the other side answered, if it did."""

    code = "fetch_failed"

    def __init__(self, message: str, status: int | None = None) -> None:
        super().__init__(message)
        self.status = status


def fetch(address: str, *, most: int, body: bytes | None = None, seconds: float = 60) -> bytes:
    """The content at an https address, or what is answered to a JSON ``body`` posted there.

    Raises :class:`FetchError` for any other scheme (http is for this machine alone), also behind a redirection; for a
    refusal; when nothing comes for ``seconds``, or not all within :data:`LONGEST`; and for more than ``most`` bytes.
    """
    _judge(address)
    parts = urlsplit(address)
    headers = {"User-Agent": "cygnet"} | ({} if body is None else {"Content-Type": "application/json"})
    begun, data = time.monotonic(), b""
    try:
        with _OPENER.open(Request(address, body, headers), timeout=seconds) as answer:
            while piece := answer.read1(2**20):
                data += piece
                if len(data) > most:
                    raise FetchError(f"{parts.path} is larger than {most / 2**20:.0f} MB")
                if time.monotonic() - begun > LONGEST:
                    raise FetchError(f"{parts.hostname} took more than {LONGEST / 60:.0f} minutes for {parts.path}")
    except HTTPError as error:
        words = f"{parts.hostname} answers {error.code} ({error.reason}) for {parts.path}"
        raise FetchError(words, error.code) from error
    except OSError as error:
        raise FetchError(f"{parts.hostname} cannot be reached ({error})") from error
    return data


def _judge(address: str) -> None:
    parts = urlsplit(address)
    if parts.scheme != "https" and not (parts.scheme == "http" and parts.hostname in ("127.0.0.1", "localhost")):
        raise FetchError(f"{address[:100]!r} is not fetched; only https is")


class _Redirections(HTTPRedirectHandler):
    def redirect_request(
        self, req: Request, fp: IO[bytes], code: int, msg: str, headers: HTTPMessage, newurl: str
    ) -> Request | None:
        _judge(newurl)
        if urlsplit(req.full_url).scheme == "https" and urlsplit(newurl).scheme != "https":
            raise FetchError(f"{urlsplit(req.full_url).hostname} leads to {newurl[:100]!r}, which is not fetched")
        return super().redirect_request(req, fp, code, msg, headers, newurl)


_OPENER = build_opener(_Redirections)
