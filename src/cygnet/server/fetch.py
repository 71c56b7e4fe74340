"""Reading from the registry of packs over https, within a size and a time."""

from __future__ import annotations

from urllib.error import HTTPError
from urllib.parse import urlsplit
from urllib.request import Request, urlopen

from cygnet.errors import CygnetError


class FetchError(CygnetError):
    """Something could not be fetched; ``status`` is what the other side answered, if it did."""

    code = "fetch_failed"

    def __init__(self, message: str, status: int | None = None) -> None:
        super().__init__(message)
        self.status = status


def fetch(address: str, *, most: int, body: bytes | None = None, seconds: float = 60) -> bytes:
    """The content at an https address, or what is answered to a JSON ``body`` posted there.

    Raises :class:`FetchError` for any other scheme (http is for this machine alone), for a refusal, when nothing comes
    for ``seconds``, and for more than ``most`` bytes.
    """
    parts = urlsplit(address)
    if parts.scheme != "https" and not (parts.scheme == "http" and parts.hostname in ("127.0.0.1", "localhost")):
        raise FetchError(f"{address[:100]!r} is not fetched; only https is")
    headers = {"User-Agent": "cygnet"} | ({} if body is None else {"Content-Type": "application/json"})
    try:
        with urlopen(Request(address, body, headers), timeout=seconds) as answer:
            data: bytes = answer.read(most + 1)
    except HTTPError as error:
        words = f"{parts.hostname} answers {error.code} ({error.reason}) for {parts.path}"
        raise FetchError(words, error.code) from error
    except OSError as error:
        raise FetchError(f"{parts.hostname} cannot be reached ({error})") from error
    if len(data) > most:
        raise FetchError(f"{parts.path} is larger than {most / 2**20:.0f} MB")
    return data
