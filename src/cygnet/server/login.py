"""The page where a person at a browser gives the token, which then stays in a cookie."""

from __future__ import annotations

import html
from http.cookies import SimpleCookie
from urllib.parse import parse_qs, quote, urlsplit

from fastapi import APIRouter, Request
from fastapi.responses import HTMLResponse, RedirectResponse, Response

from cygnet.server.guard import (
    COOKIE,
    FRAMED_COOKIE,
    FRAMES,
    Access,
    WrongTokens,
    address_of,
    matches,
    tokens_in,
)

_LARGEST_FORM = 4096
_KEPT = 30 * 86_400  # seconds
ENTERED = "entered"
"""In the query of the login page: the right token was given."""
_IN_A_FRAME = ("iframe", "frame", "embed", "object")
_PAGE = """<!doctype html>
<html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>cygnet</title>
<style>
body {{ font: 16px system-ui; display: grid; place-items: center; min-height: 90vh; background: #202020; color: #eee }}
form {{ display: grid; gap: 12px; width: 20rem }}
input, button {{ font: inherit; padding: 8px; border-radius: 6px; border: 1px solid #666 }}
p {{ margin: 0; max-width: 36rem; line-height: 1.5 }}
[role=alert] {{ color: #f99; min-height: 1.2em }}
a {{ color: #9cf }}
</style>
{body}</html>
"""
_FORM = """<form method="post" action="/login?next={next}">
<label for="token">The token that this server was started with</label>
<input id="token" name="token" type="password" autocomplete="current-password" required autofocus>
<button>Open the studio</button>
<p role="alert">{message}</p>
</form>"""
_NOT_KEPT = """<p>That was the token, but the browser did not keep it. Inside the frame of another site, as in an
editor, it keeps one only if this page came by https or from this machine.</p>
<p>Open the studio in a window of its own: <a href="{address}" target="_blank" rel="noopener">{address}</a></p>
<p>Or forward its port to this machine (ssh -L {port}:127.0.0.1:{port}, or the editor's own forwarding) and open
http://localhost:{port}/ here. In a window of its own, cookies of this site must be allowed.</p>"""
_HEADERS = {
    "cache-control": "no-store",
    "content-security-policy": "default-src 'none'; style-src 'unsafe-inline'; form-action 'self'; "
    f"base-uri 'none'; {FRAMES}",
    # Not no-referrer: with it the form comes from an origin "null", and is refused as another site's.
    "referrer-policy": "same-origin",
    "x-content-type-options": "nosniff",
}


def login_router(access: Access, wrong: WrongTokens) -> APIRouter:
    """``/login`` shows the page, takes its form, and sets the cookie; with no token to give it leads to the studio."""
    router = APIRouter(tags=["login"])

    @router.get("/login")
    async def form(request: Request) -> Response:
        target = own_path(request.query_params.get("next", "/"))
        if access.token is None:
            return RedirectResponse(target, 303)
        if ENTERED not in request.query_params:
            return _form(target)
        kept = any(matches(it, access.token) for it in tokens_in(request.scope))
        return RedirectResponse(target, 303, {"cache-control": "no-store"}) if kept else _not_kept(request)

    @router.post("/login")
    async def enter(request: Request) -> Response:
        target = own_path(request.query_params.get("next", "/"))
        if access.token is None:
            return RedirectResponse(target, 303)
        address = address_of(request.scope)
        given = parse_qs(await _limited(request)).get("token", [""])[0].strip()
        if not matches(given, access.token):
            if wrong.too_many(address):
                return _form(target, "That is not the token, and many before were not; wait a minute.", 429)
            wrong.add(address)
            return _form(target, "That is not the token.", 401)
        back = f"/login?next={quote(target, safe='')}&{ENTERED}=1"  # where it is seen whether the browser kept it
        answer = RedirectResponse(back, 303, {"cache-control": "no-store"})
        if request.headers.get("sec-fetch-dest") in _IN_A_FRAME:  # told only by pages that may keep such a cookie
            answer.headers.append("set-cookie", _framed_cookie(access.token, _KEPT))
        else:
            # Where a proxy does the encrypting, only the browser knows; it says so, and what it says was checked.
            secure = request.url.scheme == "https" or request.headers.get("origin", "").startswith("https://")
            answer.set_cookie(COOKIE, access.token, httponly=True, samesite="strict", secure=secure, max_age=_KEPT)
        return answer

    @router.post("/logout")
    async def leave() -> Response:
        answer = RedirectResponse("/login", 303)
        answer.delete_cookie(COOKIE, httponly=True, samesite="strict")
        answer.headers.append("set-cookie", _framed_cookie("", 0))
        return answer

    return router


def _framed_cookie(token: str, seconds: int) -> str:
    """A cookie that the browser sends from within a frame of the site that frames it now, and nowhere else.

    That other sites may cause requests that carry it gives them nothing: the guard refuses those by what the browser
    says of them (``Origin``, ``Sec-Fetch-Site``).
    """
    cookie: SimpleCookie = SimpleCookie()
    cookie[FRAMED_COOKIE] = token
    marks = f"Path=/; Max-Age={seconds}; HttpOnly; Secure; SameSite=None; Partitioned"  # the last is new to Python
    return f"{cookie[FRAMED_COOKIE].OutputString()}; {marks}"


def own_path(path: str) -> str:
    """``path`` if it leads to this server, else its start page; never another site."""
    try:
        parts = urlsplit(path)
    except ValueError:
        return "/"
    own = not parts.scheme and not parts.netloc and path.startswith("/") and not path.startswith("//")
    return path if own and path.isprintable() and "\\" not in path and len(path) <= 2000 else "/"


def _form(target: str, message: str = "", status: int = 200) -> HTMLResponse:
    form = _FORM.format(next=html.escape(quote(target, safe="/")), message=html.escape(message))
    return HTMLResponse(_PAGE.format(body=form), status, _HEADERS)


def _not_kept(request: Request) -> HTMLResponse:
    """What to do where the browser keeps no token."""
    address = f"{request.url.scheme}://{request.url.netloc}/"
    body = _NOT_KEPT.format(address=html.escape(address), port=request.url.port or 80)
    return HTMLResponse(_PAGE.format(body=body), 200, _HEADERS)


async def _limited(request: Request) -> str:
    """The form as sent; nothing of one that is too long."""
    body = b""
    async for piece in request.stream():
        body += piece
        if len(body) > _LARGEST_FORM:
            return ""
    return body.decode("latin-1")
