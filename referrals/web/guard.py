"""What stands before every page: hosts, sizes, time, sessions, and the headers of each answer."""

from __future__ import annotations

import asyncio
import re
from datetime import timedelta
from http.cookies import SimpleCookie
from urllib.parse import urlsplit

from starlette.concurrency import run_in_threadpool
from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import PlainTextResponse, RedirectResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from referrals import bootstrap
from referrals.settings import WebSettings
from referrals.web.crashes import note_crash
from referrals.web.login import SignIn
from referrals.web.site import Lapsed
from referrals.web.store import LAPSED_FOR, Session, Store
from referrals.web.visitors import new_visitor, nobody, visitor

CSP = (
    "default-src 'none'; style-src 'self'; script-src 'self'; img-src 'self'; font-src 'self'; "
    "connect-src 'self'; frame-src 'self'; form-action 'self'; manifest-src 'self'; "
    "base-uri 'none'; frame-ancestors 'none'"
)
_HEADERS = {
    "Content-Security-Policy": CSP,
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    # With "no-referrer" a browser's form says `Origin: null`, and we could not tell whose it is.
    "Referrer-Policy": "same-origin",
    "Permissions-Policy": "camera=(), geolocation=(), microphone=(), payment=(), usb=()",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    # Pages hold personal data: neither a proxy nor the disk of a shared computer may keep them.
    "Cache-Control": "no-store",
}
_HSTS = "max-age=31536000"
_SMALL_BODY = 1_000_000
_BODY_WITHIN_S = 30.0
_SLOWEST_BODY = 50_000
"""Octets a second; a large body gets so much longer."""
_HOST = re.compile(r"(?P<name>\[[0-9A-Fa-f:.]{2,45}\]|[A-Za-z0-9.\-]{1,253})(:[0-9]{1,5})?")
_METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS")
_UNTRACKED = ("/static/", "/health/", "/metrics", "/api/")
"""Paths that need no session."""


class Hosts:
    """Which hosts are ours (RFC 9110 §7.2): others may be a rebound DNS name."""

    def __init__(self, web: WebSettings) -> None:
        self._names: set[str] = set()
        if web.address:
            self._names.add((urlsplit(web.address).hostname or "").lower())
        if web.is_private:
            self._names |= {"localhost", "127.0.0.1", "::1", web.host.lower()}

    def knows(self, header: str) -> bool:
        found = _HOST.fullmatch(header)
        return found is not None and found["name"].strip("[]").lower() in self._names


class Guard:
    """The outermost layer."""

    def __init__(self, app: ASGIApp, web: WebSettings) -> None:
        self._app = app
        self._web = web
        self._hosts = Hosts(web)
        self._schemes = ("https",) if web.is_secure else ("http", "https")

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        if scope["type"] != "http":
            raise AssertionError("only HTTP is spoken here")
        started = False

        async def dressed(message: Message) -> None:
            nonlocal started
            if message["type"] == "http.response.start":
                started = True
                answer = MutableHeaders(scope=message)
                for name, value in _HEADERS.items():
                    answer.setdefault(name, value)
                if self._web.is_secure:
                    answer.setdefault("Strict-Transport-Security", _HSTS)
            await send(message)

        headers = Headers(scope=scope)
        refusal = self._refusal(scope, headers)
        try:
            if refusal is not None:
                await refusal(scope, receive, dressed)
            else:
                largest = self._largest(scope["path"])
                declared = int(headers.get("content-length") or largest)
                await self._app(scope, _Limited(receive, largest, declared), dressed)
        except HTTPException as error:  # of a body, and nobody made an answer of it
            if not started:
                answer = PlainTextResponse(f"{error.detail}\n", error.status_code, error.headers)
                await answer(scope, receive, dressed)
        except Exception as error:
            # Starlette answers and raises it again, for the server to log with all that it holds.
            if not started:
                note_crash(error)
                await PlainTextResponse("Internal Server Error\n", 500)(scope, receive, dressed)

    def _largest(self, path: str) -> int:
        if path == "/batch" or path.startswith("/batch/"):
            return self._web.largest_upload_mb * 1_000_000
        return _SMALL_BODY

    def _refusal(self, scope: Scope, headers: Headers) -> Response | None:
        if len(headers.getlist("host")) != 1:  # RFC 9112 §3.2
            text = "A request names one host.\n"
            return PlainTextResponse(text, 400, {"Connection": "close"})
        if not self._hosts.knows(headers["host"]):
            text = "This page does not answer to that host name. See web.address in the settings.\n"
            return PlainTextResponse(text, 421, {"Connection": "close"})
        if scope["method"] not in _METHODS:
            return PlainTextResponse("That method is not known here.\n", 501)
        path = scope["path"]
        if not _is_plain(path):
            return PlainTextResponse("There is no such page.\n", 404)
        if path != "/" and path.endswith("/") and scope["method"] in ("GET", "HEAD"):
            # Of the path alone, which has a single slash in front: it can't leave this host.
            return RedirectResponse(path.rstrip("/"), 308)
        length = headers.get("content-length")
        if length and not (length.isascii() and length.isdigit() and len(length) < 20):
            return PlainTextResponse("Content-Length is not a number.\n", 400)
        if length and int(length) > self._largest(path):
            return PlainTextResponse("That is too large to be taken.\n", 413)
        if scope["method"] in ("GET", "HEAD", "OPTIONS"):
            return None
        if self._is_foreign(headers):
            return PlainTextResponse("This form was sent from another site.\n", 403)
        return None

    def _is_foreign(self, headers: Headers) -> bool:
        """Whether another site's page sends it. Besides the token in each form.

        Source: Fetch Metadata Request Headers §2.4; RFC 6454 §7.
        """
        site = headers.get("sec-fetch-site")
        if site is not None and site not in ("same-origin", "none"):
            return True
        origin = headers.get("origin")
        if origin is None:
            return False
        ours = {f"{scheme}://{headers['host']}" for scheme in self._schemes}
        return origin not in ours


def _is_plain(path: str) -> bool:
    """Whether every program between a browser and us reads the path in the same way."""
    return (
        path.startswith("/")
        and "//" not in path
        and "\\" not in path
        and path.isprintable()
        and not {".", ".."} & set(path.split("/"))
    )


class _Limited:
    """A body that is neither too large nor too slow; otherwise HTTPException 413 or 408."""

    def __init__(self, receive: Receive, largest: int, declared: int) -> None:
        self._receive = receive
        self._left = largest
        self._within_s = _BODY_WITHIN_S + declared / _SLOWEST_BODY
        self._until: float | None = None
        self._whole = False

    async def __call__(self) -> Message:
        if self._whole:
            return await self._receive()  # waits for the browser to go away
        loop = asyncio.get_running_loop()
        self._until = self._until or loop.time() + self._within_s
        try:
            async with asyncio.timeout_at(self._until):
                message = await self._receive()
        except TimeoutError:
            # The link is closed with the answer: the rest is not waited for.
            raise HTTPException(
                408, "The rest of that did not come in time.", {"Connection": "close"}
            ) from None
        if message["type"] == "http.request":
            self._left -= len(message.get("body", b""))
            if self._left < 0:
                raise HTTPException(413, "That is too large to be taken.")
            self._whole = not message.get("more_body", False)
        return message


class Sessions:
    """Finds or begins the session of each request to a page, and who is asking."""

    def __init__(self, app: ASGIApp, web: WebSettings, store: Store, sign_in: SignIn) -> None:
        self._app = app
        self._store = store
        self._sign_in = sign_in
        self._cookie = Cookie(web)
        self._idle = timedelta(minutes=web.idle_minutes)
        self._longest = timedelta(hours=web.longest_hours)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"].startswith(_UNTRACKED):
            await self._app(scope, receive, send)
            return
        request = Request(scope)
        before = self._cookie.read(request)
        await run_in_threadpool(self._find, request, before)

        async def with_cookie(message: Message) -> None:
            if message["type"] == "http.response.start":
                now: Session = request.state.session  # signing in or out gives another
                if now.token != before:
                    self._cookie.write(MutableHeaders(scope=message), now.token)
            await send(message)

        await self._app(scope, receive, with_cookie)

    def _find(self, request: Request, token: str | None) -> None:
        now, store, longest = bootstrap.now(), self._store, self._longest
        session = before = None
        if token is not None:
            session = visitor(store, token, now, longest)
            session = session or store.session(token, now, self._idle, longest)
        if token is not None and session is None:
            before = store.lapsed(token, now)
            if before is not None:
                # The browser keeps its token, for the forms that it still has open.
                session = nobody(store, token, now)
            else:
                before = visitor(store, token, now, longest + LAPSED_FOR)
        session = session or new_visitor(store, now)
        whose = self._sign_in.user(request, before) if before else None
        request.state.session = session
        request.state.user = self._sign_in.user(request, session)
        request.state.lapsed = Lapsed(before, whose) if before and whose else None


class Cookie:
    """The session's token in the browser: until it is closed, for us alone, not for scripts.

    Source: RFC 6265bis §4.1.3.2 (`__Host-`), which needs TLS.
    """

    def __init__(self, web: WebSettings) -> None:
        self._secure = web.is_secure
        self.name = "__Host-referrals" if web.is_secure else "referrals"

    def read(self, request: Request) -> str | None:
        return request.cookies.get(self.name)

    def write(self, headers: MutableHeaders, token: str) -> None:
        cookie: SimpleCookie = SimpleCookie()
        cookie[self.name] = token
        for name, value in (("path", "/"), ("httponly", True), ("samesite", "Lax")):
            cookie[self.name][name] = value
        if self._secure:
            cookie[self.name]["secure"] = True
        headers.append("Set-Cookie", cookie.output(header="").strip())
