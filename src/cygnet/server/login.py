"""The page where a person at a browser gives the token, which then stays in a cookie."""

from __future__ import annotations

import html
from urllib.parse import parse_qs, quote, urlsplit

from fastapi import APIRouter, Request
from fastapi.responses import HTMLResponse, RedirectResponse, Response

from cygnet.server.guard import COOKIE, Access, WrongTokens, address_of, matches

_LARGEST_FORM = 4096
_PAGE = """<!doctype html>
<html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>cygnet</title>
<style>
body {{ font: 16px system-ui; display: grid; place-items: center; min-height: 90vh; background: #202020; color: #eee }}
form {{ display: grid; gap: 12px; width: 20rem }}
input, button {{ font: inherit; padding: 8px; border-radius: 6px; border: 1px solid #666 }}
p {{ color: #f99; min-height: 1.2em; margin: 0 }}
</style>
<form method="post" action="/login?next={next}">
<label for="token">The token that this server was started with</label>
<input id="token" name="token" type="password" autocomplete="current-password" required autofocus>
<button>Open the studio</button>
<p role="alert">{message}</p>
</form></html>
"""
_HEADERS = {
    "cache-control": "no-store",
    "content-security-policy": "default-src 'none'; style-src 'unsafe-inline'; form-action 'self'; "
    "frame-ancestors 'none'; base-uri 'none'",
    "referrer-policy": "no-referrer",
    "x-content-type-options": "nosniff",
}


def login_router(access: Access, wrong: WrongTokens) -> APIRouter:
    """``/login`` shows the page, takes its form, and sets the cookie; with no token to give it leads to the studio."""
    router = APIRouter(tags=["login"])

    @router.get("/login")
    async def form(request: Request) -> Response:
        target = own_path(request.query_params.get("next", "/"))
        return RedirectResponse(target, 303) if access.token is None else _form(target)

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
        answer = RedirectResponse(target, 303, {"cache-control": "no-store"})
        # Where a proxy does the encrypting, only the browser knows; it says so, and what it says was checked.
        secure = request.url.scheme == "https" or request.headers.get("origin", "").startswith("https://")
        answer.set_cookie(COOKIE, access.token, httponly=True, samesite="strict", secure=secure, max_age=30 * 86_400)
        return answer

    @router.post("/logout")
    async def leave() -> Response:
        answer = RedirectResponse("/login", 303)
        answer.delete_cookie(COOKIE, httponly=True, samesite="strict")
        return answer

    return router


def own_path(path: str) -> str:
    """``path`` if it leads to this server, else its start page; never another site."""
    try:
        parts = urlsplit(path)
    except ValueError:
        return "/"
    own = not parts.scheme and not parts.netloc and path.startswith("/") and not path.startswith("//")
    return path if own and path.isprintable() and "\\" not in path and len(path) <= 2000 else "/"


def _form(target: str, message: str = "", status: int = 200) -> HTMLResponse:
    page = _PAGE.format(next=html.escape(quote(target, safe="/")), message=html.escape(message))
    return HTMLResponse(page, status, _HEADERS)


async def _limited(request: Request) -> str:
    """The form as sent; nothing of one that is too long."""
    body = b""
    async for piece in request.stream():
        body += piece
        if len(body) > _LARGEST_FORM:
            return ""
    return body.decode("latin-1")
