"""What stands before every page: hosts, sizes, time, sessions, and the headers of each answer."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from http.cookies import SimpleCookie
from urllib.parse import urlsplit

from starlette.concurrency import run_in_threadpool
from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from referrals.settings import WebSettings
from referrals.web.login import SignIn
from referrals.web.store import Session, Store

CSP = (
    "default-src 'none'; style-src 'self'; script-src 'self'; img-src 'self'; font-src 'self'; "
    "connect-src 'self'; frame-src 'self'; form-action 'self'; manifest-src 'self'; "
    "base-uri 'none'; frame-ancestors 'none'"
)
_HEADERS = {
    "Content-Security-Policy": CSP,
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Permissions-Policy": "camera=(), geolocation=(), microphone=(), payment=(), usb=()",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    # Pages hold personal data: neither a proxy nor the disk of a shared computer may keep them.
    "Cache-Control": "no-store",
}
_HSTS = "max-age=31536000"
_SMALL_BODY = 1_000_000
_BODY_WITHIN_S = 30.0
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
        try:
            name = urlsplit(f"//{header}").hostname
        except ValueError:
            return False
        return name is not None and name.lower() in self._names


class Guard:
    """The outermost layer."""

    def __init__(self, app: ASGIApp, web: WebSettings) -> None:
        self._app = app
        self._web = web
        self._hosts = Hosts(web)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)

        async def dressed(message: Message) -> None:
            if message["type"] == "http.response.start":
                answer = MutableHeaders(scope=message)
                for name, value in _HEADERS.items():
                    answer.setdefault(name, value)
                if self._web.is_secure:
                    answer.setdefault("Strict-Transport-Security", _HSTS)
            await send(message)

        refusal = self._refusal(scope, headers)
        if refusal is not None:
            await refusal(scope, receive, dressed)
            return
        limited = _Limited(receive, self._largest(scope["path"]))
        started = False

        async def noting(message: Message) -> None:
            nonlocal started
            started = started or message["type"] == "http.response.start"
            await dressed(message)

        try:
            await self._app(scope, limited, noting)
        except _Refused as refused:
            if started:
                raise
            # The rest of the body is not waited for: the link is closed with the answer.
            answer = PlainTextResponse(refused.text, refused.status, {"Connection": "close"})
            await answer(scope, receive, dressed)

    def _largest(self, path: str) -> int:
        if path.startswith("/batch"):
            return self._web.largest_upload_mb * 1_000_000
        return _SMALL_BODY

    def _refusal(self, scope: Scope, headers: Headers) -> PlainTextResponse | None:
        if len(headers.getlist("host")) != 1 or not self._hosts.knows(headers["host"]):
            return PlainTextResponse(
                "This page does not answer to that host name. See web.address in the settings.\n",
                421,
            )
        length = headers.get("content-length")
        if length and not (length.isascii() and length.isdigit()):
            return PlainTextResponse("Content-Length is not a number.\n", 400)
        if length and int(length) > self._largest(scope["path"]):
            return PlainTextResponse(
                "That is too large to be taken.\n", 413, {"Connection": "close"}
            )
        if scope["method"] in ("GET", "HEAD", "OPTIONS"):
            return None
        # Fetch Metadata and Origin, besides the token in each form.
        site = headers.get("sec-fetch-site", "same-origin")
        origin = headers.get("origin")
        foreign = origin is not None and urlsplit(origin).netloc != headers["host"]
        if site not in ("same-origin", "none") or foreign:
            return PlainTextResponse("This form was sent from another site.\n", 403)
        return None


class _Refused(Exception):
    def __init__(self, status: int, text: str) -> None:
        self.status = status
        self.text = text
        super().__init__(text)


class _Limited:
    """A body that is neither too large nor too slow."""

    def __init__(self, receive: Receive, largest: int) -> None:
        self._receive = receive
        self._left = largest
        self._until: float | None = None
        self._whole = False

    async def __call__(self) -> Message:
        if self._whole:
            return await self._receive()  # waits for the browser to go away
        loop = asyncio.get_running_loop()
        self._until = self._until or loop.time() + _BODY_WITHIN_S
        try:
            async with asyncio.timeout_at(self._until):
                message = await self._receive()
        except TimeoutError:
            raise _Refused(408, "The rest of that did not come in time.\n") from None
        if message["type"] == "http.request":
            self._left -= len(message.get("body", b""))
            if self._left < 0:
                raise _Refused(413, "That is too large to be taken.\n")
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
        session = await run_in_threadpool(self._found, before)
        request.state.session = session
        request.state.user = self._sign_in.user(request, session)

        async def with_cookie(message: Message) -> None:
            if message["type"] == "http.response.start":
                now: Session = request.state.session  # signing in or out gives another
                if now.token != before:
                    self._cookie.write(MutableHeaders(scope=message), now.token)
            await send(message)

        await self._app(scope, receive, with_cookie)

    def _found(self, token: str | None) -> Session:
        from referrals.bootstrap import now

        moment = now()
        found = self._store.session(token, moment, self._idle, self._longest) if token else None
        return found or self._store.begin(moment)


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
