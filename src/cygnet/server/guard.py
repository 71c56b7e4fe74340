"""Who may talk to the server: a gate in front of every route and of the socket.

A browser on this machine runs pages of other sites, and those can reach a loopback address. What tells them apart is
what the browser adds by itself: ``Origin`` and ``Sec-Fetch-Site`` (set on requests that other sites cause) and ``Host``
(which keeps the name that a rebound domain was reached by). Programs send none of the first two and pass. On an address
that other machines reach, a token is needed besides.
"""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
import logging
import re
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping, MutableMapping
from dataclasses import dataclass, field
from http.cookies import CookieError, SimpleCookie
from typing import Any
from urllib.parse import parse_qs, quote, urlsplit

from cygnet.errors import RequestError

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

COOKIE = "cygnet_token"
FRAMED_COOKIE = "cygnet_token_framed"
"""Of a page in a frame: browsers send no other cookie from within a frame of another site."""
_LOOPBACK_NAMES = frozenset(("localhost", "127.0.0.1", "::1"))
_WRONG_TOKENS, _WINDOW = 20, 60.0  # so many wrong tokens from an address in so many seconds are answered one by one
_MOST_ADDRESSES = 10_000
_ORIGIN = re.compile(r"https?://[a-z0-9.\-]+(:[0-9]+)?|https?://\[[0-9a-f:]+\](:[0-9]+)?")
FRAMES = "frame-ancestors 'self' vscode-webview:"
"""The page may be framed by itself and by an editor's simple browser, by nobody else."""
_ALWAYS = {
    b"x-content-type-options": b"nosniff",
    b"cross-origin-resource-policy": b"same-origin",
    b"content-security-policy": FRAMES.encode(),
    b"referrer-policy": b"same-origin",
}
"""Headers of every answer that does not bring its own: for browsers that do not say which site caused a request."""
_log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Access:
    """Who is let in.

    ``listen`` is the address bound to, ``names`` further host names under which users reach the server, ``origins``
    other sites' origins that may call it, ``token`` the secret that every request must carry.
    """

    listen: str = "127.0.0.1"
    names: frozenset[str] = frozenset()
    origins: frozenset[str] = frozenset()
    token: str | None = None

    def __post_init__(self) -> None:
        for name in ("names", "origins"):  # in lower case, as browsers send them
            object.__setattr__(self, name, frozenset(it.lower() for it in getattr(self, name)))
        for origin in self.origins:
            if not _ORIGIN.fullmatch(origin):
                raise RequestError(
                    f"{origin[:100]!r} is no origin that can be let in; name one site, such as https://tool.example:8080",
                    field="enable_cors_header",
                )
        if self.token is None and not is_loopback(self.listen):
            raise RequestError(
                f"listening on {self.listen} lets other machines in, and needs a token: start with --token-file FILE "
                "(a file with a long random line), or leave --listen away to serve this machine alone",
                field="listen",
            )
        if self.token is not None and len(self.token) < 16:
            raise RequestError("the token is shorter than 16 characters; use a long random one", field="token")
        if self.token is not None and not (self.token.isascii() and self.token.isprintable()):
            raise RequestError(
                "the token holds characters that no header can carry; use letters and digits", field="token"
            )

    def knows(self, host: str) -> bool:
        """Whether ``host``, without port, is a name of this server."""
        own = {self.listen.lower()} if self.listen not in ("0.0.0.0", "::") else set()
        return host in _LOOPBACK_NAMES | own | self.names or (self.token is not None and _is_address(host))


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach ``host``."""
    return host in _LOOPBACK_NAMES or (_is_address(host) and ipaddress.ip_address(host).is_loopback)


def _is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


@dataclass
class WrongTokens:
    """When each address gave wrong tokens.

    The right token is let in whatever was guessed before: behind a tunnel or a proxy all clients have one address, and
    a page that still holds yesterday's token must not keep its owner out. What guessing cannot do in time is the
    token's own merit, so that a short one is refused at start; a guesser is told to wait, and is logged.
    """

    clock: Callable[[], float] = time.monotonic
    times: dict[str, list[float]] = field(default_factory=dict)

    def too_many(self, address: str) -> bool:
        """Whether ``address`` must wait."""
        now = self.clock()
        recent = [at for at in self.times.pop(address, []) if now - at < _WINDOW]
        if recent:
            self.times[address] = recent
        return len(recent) >= _WRONG_TOKENS

    def add(self, address: str) -> None:
        """``address`` gave a wrong one."""
        given = self.times.setdefault(address, [])
        given.append(self.clock())
        if len(given) == _WRONG_TOKENS:
            _log.warning("%d wrong tokens from %s within a minute; it is told to wait", len(given), address)
        while len(self.times) > _MOST_ADDRESSES:
            del self.times[next(iter(self.times))]


@dataclass
class Guard:
    """ASGI middleware. ``is_page(path)`` tells documents and static files, which may be navigated to, from data."""

    app: App
    access: Access
    is_page: Callable[[str], bool]
    wrong: WrongTokens = field(default_factory=WrongTokens)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Let the request through, or answer it."""
        if scope["type"] not in ("http", "websocket"):
            await self.app(scope, receive, send)
            return
        refusal = self.refusal(scope)
        if scope["type"] == "websocket":
            if refusal is None:
                await self.app(scope, receive, send)
                return
            await receive()
            await send({"type": "websocket.close", "code": 1008, "reason": refusal.reason})
            return

        async def guarded(message: MutableMapping[str, Any]) -> None:
            if message["type"] == "http.response.start":
                there = {name.lower() for name, _ in message.get("headers", ())}
                missing = [row for row in _ALWAYS.items() if row[0] not in there]
                message = {**message, "headers": [*message.get("headers", ()), *missing]}
            await send(message)

        if refusal is None:
            await self.app(scope, receive, guarded)
        else:
            await refusal.answer(guarded)

    def refusal(self, scope: Scope) -> Refusal | None:
        """Why a request is not let through; None if it is."""
        headers = _headers(scope)
        hosts = headers.get("host", [])
        host = _host_name(hosts[0]) if len(hosts) == 1 else None
        if host is None or not self.access.knows(host):
            return Refusal(403, "this host name is not one of the server's; add it with --allow-host")
        if (reason := self._foreign(scope, headers, hosts[0])) is not None:
            return Refusal(403, reason)
        return self._without_token(scope, headers)

    def _foreign(self, scope: Scope, headers: Mapping[str, list[str]], host: str) -> str | None:
        visiting = (
            scope["type"] == "http"
            and scope.get("method") in ("GET", "HEAD")
            and self.is_page(scope["path"])
            and "origin" not in headers
        )
        for origin in headers.get("origin", []):
            if origin not in self.access.origins and _site_of(origin) != host.lower():
                return f"requests from {origin[:100]!r} are refused"
        sites = headers.get("sec-fetch-site", [])
        if any(site not in ("same-origin", "none") for site in sites) and not visiting:
            allowed = set(headers.get("origin", [])) & self.access.origins
            if not allowed:
                return "requests that another site causes are refused"
        return None

    def _without_token(self, scope: Scope, headers: Mapping[str, list[str]]) -> Refusal | None:
        if self.access.token is None or scope["path"] in ("/login", "/health") or self._asks_first(scope, headers):
            return None
        address, given = address_of(scope), tokens_in(scope)
        # Not the first alone: of a page's two cookies one may be of yesterday.
        if any([matches(it, self.access.token) for it in given]):  # noqa: C419 (each is compared, in equal time)
            return None
        visits = scope["type"] == "http" and scope.get("method") == "GET" and self.is_page(scope["path"])
        if given and not visits:  # a page is asked for with a token of yesterday, and gets a new one
            if self.wrong.too_many(address):
                return Refusal(429, "too many wrong tokens; wait a minute")
            self.wrong.add(address)
        if visits and "text/html" in ",".join(headers.get("accept", [])):
            query = scope.get("query_string", b"").decode("latin-1")
            target = f"{scope['path']}?{query}" if query else scope["path"]
            return Refusal(303, "a token is needed", location=f"/login?next={quote(target)}")
        return Refusal(401, "a token is needed: open /login, or send it as 'Authorization: Bearer ...'")

    def _asks_first(self, scope: Scope, headers: Mapping[str, list[str]]) -> bool:
        """A browser's question whether an allowed site may call; it carries no cookie and gets no data."""
        asks = scope["type"] == "http" and scope.get("method") == "OPTIONS"
        return asks and any(origin in self.access.origins for origin in headers.get("origin", []))


def address_of(scope: Scope) -> str:
    """Where a request comes from."""
    client = scope.get("client")
    return str(client[0]) if client else ""


def matches(given: str, token: str) -> bool:
    """Whether a token is right, in a time that does not depend on how much of it is."""
    left, right = (hashlib.sha256(it.encode(errors="replace")).digest() for it in (given, token))
    return hmac.compare_digest(left, right)


@dataclass(frozen=True)
class Refusal:
    """An answer in place of the application's."""

    status: int
    reason: str
    location: str | None = None
    """Where to go instead."""

    async def answer(self, send: Send) -> None:
        """Send it."""
        headers = [(b"content-type", b"text/plain; charset=utf-8")]
        if self.location is not None:
            headers += [(b"location", self.location.encode()), (b"cache-control", b"no-store")]
        if self.status == 401:
            headers.append((b"www-authenticate", b"Bearer"))
        if self.status == 429:
            headers.append((b"retry-after", str(int(_WINDOW)).encode()))
        await send({"type": "http.response.start", "status": self.status, "headers": headers})
        await send({"type": "http.response.body", "body": f"{self.reason}\n".encode()})


def without_token(headers: Iterable[tuple[str, str]], token: str | None) -> list[tuple[str, str]]:
    """Headers fit to be handed on to a pack: without the server's own token, in whichever of them it came."""
    if token is None:
        return list(headers)
    kept = []
    for name, value in headers:
        if name.lower() == "cookie":
            pairs = [it.strip() for it in value.split(";")]
            value = "; ".join(it for it in pairs if it.partition("=")[0].strip() not in (COOKIE, FRAMED_COOKIE))
        if value and not (name.lower() == "authorization" and token in value):
            kept.append((name, value))
    return kept


def _headers(scope: Scope) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for name, value in scope["headers"]:
        found.setdefault(name.decode("latin-1").lower(), []).append(value.decode("latin-1").strip())
    return found


def _site_of(origin: str) -> str | None:
    """Host and port of an Origin header, in lower case; None when it has none that can be read."""
    try:
        return urlsplit(origin).netloc.lower()
    except ValueError:
        return None


def _cookies(header: str, name: str) -> list[str]:
    """The values that a Cookie header gives for ``name``.

    Pair by pair, for the header holds the cookies of every service of this host name, whatever its port, and a parser
    of the whole gives up at the first that is not well formed.
    """
    found = []
    for pair in header.split(";"):  # a semicolon within a value is escaped, also where the value is quoted
        key, _, value = pair.partition("=")
        if key.strip() != name:
            continue
        found.append(value.strip())
        try:
            read = SimpleCookie(pair.strip())
        except CookieError:
            continue
        if name in read and read[name].value != found[-1]:  # it was quoted
            found[-1] = read[name].value
    return found


def _host_name(host: str) -> str | None:
    """A Host header without its port; None when it is not of the form ``name[:port]``."""
    try:
        parts = urlsplit(f"//{host}")
        _ = parts.port  # raises for one that is no number
    except ValueError:
        return None
    plain = parts.hostname is not None and not parts.path and not parts.query and "@" not in host
    return parts.hostname if plain else None


def tokens_in(scope: Scope) -> list[str]:
    """What a request gives as its token: in the header alone if it has one, else in cookies, else a socket's query."""
    headers = _headers(scope)
    for value in headers.get("authorization", []):
        kind, _, given = value.partition(" ")
        if kind.lower() == "bearer":
            return [given.strip()]
    found = []
    for value in headers.get("cookie", []):
        found += [given for name in (COOKIE, FRAMED_COOKIE) for given in _cookies(value, name)]
    if not found and scope["type"] == "websocket":  # a browser can give a socket no header of its own
        found += parse_qs(scope.get("query_string", b"").decode("latin-1")).get("token", [])[:1]
    return found
