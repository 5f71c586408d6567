"""Signing in at an OpenID Connect provider: authorization code flow with PKCE, by Authlib.

Source: OpenID Connect Core 1.0 §3.1; Discovery 1.0; RFC 7636 (PKCE); RFC 9700 (best practice).
"""

from __future__ import annotations

import hashlib
import logging
import time
from collections.abc import Mapping, Sequence
from datetime import timedelta
from typing import Any
from urllib.parse import urlencode, urlsplit

import httpx2
from authlib.common.errors import AuthlibBaseError  # type: ignore[import-untyped]
from authlib.integrations.starlette_client import OAuth  # type: ignore[import-untyped]
from joserfc.errors import JoseError
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response
from starlette.routing import BaseRoute, Route

from referrals.errors import ConfigurationError, Problem
from referrals.settings import WebSettings, is_loopback
from referrals.web.login import (
    after_sign_in,
    enter,
    next_page,
    no_role,
    roles_named,
    sign_in_page,
    sign_out_routes,
    why_again,
)
from referrals.web.metrics import count_sign_in
from referrals.web.routes import goto, page, shown
from referrals.web.site import User, roles_with, session_of, site_of
from referrals.web.store import Session

log = logging.getLogger(__name__)

BACK = "/sign-in/back"
_KIND = "sign-in"
_MOST_BEGUN = 5_000
"""Strangers can begin: beyond that, the oldest beginnings make room."""
_TEN_MINUTES = timedelta(minutes=10)
_METADATA_FOR_S = 3_600.0
_TIMEOUT_S = 10.0
# Those with a public key alone: an unsigned token, or one signed with what the client knows, would
# prove nothing. Whatever else the provider offers is not taken.
_ALGORITHMS = ("RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512",
               "EdDSA", "Ed25519")  # fmt: skip


class _Refused(Exception):
    """What the provider said is not good enough; its text is for the log, and names nobody."""


class WithProvider:
    """`web.login = "oidc"`. Raises ConfigurationError: the issuer is not https."""

    can_sign_out = True

    def __init__(self, web: WebSettings) -> None:
        if not (web.oidc_issuer and web.oidc_client_id):
            raise AssertionError("the settings see to it")
        parts = urlsplit(web.oidc_issuer)
        if parts.scheme != "https" and not is_loopback(parts.hostname or ""):
            raise ConfigurationError(
                [
                    Problem(
                        "web.oidc_issuer",
                        "is not an https:// address.",
                        "Who signs in would cross the network unprotected: use the provider's "
                        "https:// address.",
                        "oidc-issuer",
                    )
                ]
            )
        self._web = web
        self._issuer = web.oidc_issuer
        self._client_id = web.oidc_client_id
        self._made: Any = None
        self._made_at = 0.0

    def user(self, request: Request, session: Session) -> User | None:
        if session.user is None:
            return None
        return User(session.user, roles_with(roles_named(session.roles.split())), session.title)

    def first(self, request: Request) -> Response:
        return sign_in_page(request)

    def routes(self) -> Sequence[BaseRoute]:
        everywhere = {
            "text": "sign out of your work account too",
            "href": "/sign-out/everywhere",
        }
        return [
            shown("/sign-in", self.sign_in, role=None),
            # A link and no form: our policy lets no form lead to another host, which is as well.
            Route("/sign-in/start", self.start, methods=["GET"]),
            Route(BACK, self.back, methods=["GET"]),
            *sign_out_routes(everywhere),
            Route("/sign-out/everywhere", self.sign_out_everywhere, methods=["GET"]),
        ]

    def sign_in(self, request: Request) -> Response:
        after = next_page(request.query_params.get("next", "/"))
        if session_of(request).user is not None:
            return goto(after)
        return self._page(request, after)

    def _page(
        self, request: Request, after: str = "/", status: int = 200, title: str = "", text: str = ""
    ) -> Response:
        start = f"/sign-in/start?{urlencode({'next': after})}"
        text = text or why_again(request, "kept" in request.query_params)
        return page(request, "sign-in-oidc.html", status, start=start, title=title, text=text)

    async def start(self, request: Request) -> Response:
        after = next_page(request.query_params.get("next", "/"))
        kept: dict[str, Any] = {}
        request.scope["session"] = kept
        try:
            client = await self._client()
            answer: Response = await client.authorize_redirect(request, self._back(request))
        except Exception as error:
            return await self._failed(request, error)
        body = {"flow": kept, "after": after}
        await run_in_threadpool(self._keep, request, body)
        return answer

    async def back(self, request: Request) -> Response:
        body = await run_in_threadpool(self._taken, request)
        try:
            if body is None:
                raise _Refused("nobody had begun to sign in with that browser")
            claims = await self._claims(request, body["flow"])
        except Exception as error:
            return await self._failed(request, error)
        roles = roles_named(_listed(claims.get(self._web.oidc_roles_claim)))
        if not roles:
            count_sign_in(request, "refused")
            log.warning("A sign-in was refused: the provider gives no role.")
            raise no_role()
        name, title = _name(self._issuer, claims)
        after = after_sign_in(request, name, str(body["after"]))
        await run_in_threadpool(enter, request, name, " ".join(roles), title)
        count_sign_in(request, "accepted")
        return goto(after)

    async def sign_out_everywhere(self, request: Request) -> Response:
        """RP-Initiated Logout 1.0 §2, without a hint: the provider asks whom, if it has to."""
        try:
            client = await self._client()
        except Exception as error:
            return await self._failed(request, error)
        end = client.server_metadata.get("end_session_endpoint")
        if not isinstance(end, str) or not _is_safe(end):
            return goto("/signed-out")
        after = self._address(request) + "/signed-out"
        asked = urlencode({"client_id": self._client_id, "post_logout_redirect_uri": after})
        return RedirectResponse(f"{end}{'&' if '?' in end else '?'}{asked}", 303)

    async def _claims(self, request: Request, flow: dict[str, Any]) -> Mapping[str, Any]:
        """What the provider says of who has signed in, verified.

        Authlib checks state, signature, nonce and times; issuer and audience as we tell it.
        """
        issuer = request.query_params.get("iss", self._issuer)  # RFC 9207
        if issuer != self._issuer:
            raise _Refused("the answer is of another issuer")
        client = await self._client()
        request.scope["session"] = flow
        answer = await client.authorize_access_token(
            request,
            claims_options={
                "iss": {"essential": True, "value": self._issuer},
                "aud": {"essential": True, "value": self._client_id},
            },
        )
        claims = answer.get("userinfo")
        if not isinstance(claims, Mapping) or not claims.get("sub"):
            raise _Refused("the answer has no ID token")
        return claims

    async def _client(self) -> Any:
        """Authlib's client, with what the provider says of itself; that is asked for once an hour.

        Raises:
            _Refused, httpx2.HTTPError.
        """
        if self._made is not None and time.monotonic() - self._made_at < _METADATA_FOR_S:
            return self._made
        secret = self._web.oidc_client_secret
        made = OAuth().register(
            "oidc",
            client_id=self._client_id,
            client_secret=secret.get_secret_value() if secret else None,
            server_metadata_url=f"{self._issuer.rstrip('/')}/.well-known/openid-configuration",
            client_kwargs={
                "scope": "openid profile email",
                "code_challenge_method": "S256",
                "token_endpoint_auth_method": "client_secret_basic" if secret else "none",
                "timeout": _TIMEOUT_S,
            },
        )
        metadata = await made.load_server_metadata()
        if metadata.get("issuer") != self._issuer:  # Discovery §4.3
            raise _Refused("the provider calls itself by another name than web.oidc_issuer")
        for key in ("authorization_endpoint", "token_endpoint", "jwks_uri"):
            if not _is_safe(metadata.get(key)):
                raise _Refused(f"the provider's {key} is not an https address")
        offered = metadata.get("id_token_signing_alg_values_supported") or ["RS256"]
        taken = [name for name in _ALGORITHMS if name in offered]
        if not taken:
            raise _Refused("the provider signs in no way that we take")
        metadata["id_token_signing_alg_values_supported"] = taken
        self._made, self._made_at = made, time.monotonic()
        return made

    async def _failed(self, request: Request, error: Exception) -> Response:
        if not isinstance(
            error,
            _Refused | AuthlibBaseError | JoseError | httpx2.HTTPError | ValueError | RuntimeError,
        ):
            raise error
        if not isinstance(error, httpx2.TransportError):
            self._made = None  # its keys may have changed without a new name
        count_sign_in(request, "failed")
        # Authlib's texts repeat what the provider said, which may name somebody.
        said = str(error) if isinstance(error, _Refused) else type(error).__name__
        log.warning("A sign-in failed: %s.", said)
        return await run_in_threadpool(
            self._page,
            request,
            "/",
            502 if isinstance(error, httpx2.HTTPError) else 403,
            "You could not be signed in",
            "Your organisation’s sign-in page could not be used just now, or what it said was out "
            "of date. Nothing was changed.",
        )

    def _back(self, request: Request) -> str:
        return self._address(request) + BACK

    def _address(self, request: Request) -> str:
        # The guard has seen to it that the host is ours.
        return self._web.address or f"http://{request.headers['host']}"

    # What is remembered of a sign-in that has begun, for this browser alone, once.

    def _keep(self, request: Request, body: dict[str, Any]) -> None:
        site, browser = site_of(request), _browser(request)
        site.store.save(_KIND, browser, body, site.now, _TEN_MINUTES, browser, most=_MOST_BEGUN)

    def _taken(self, request: Request) -> dict[str, Any] | None:
        site, browser = site_of(request), _browser(request)
        return site.store.take(_KIND, browser, browser, site.now)


def _browser(request: Request) -> str:
    return hashlib.sha256(session_of(request).token.encode()).hexdigest()


def _is_safe(url: object) -> bool:
    if not isinstance(url, str):
        return False
    parts = urlsplit(url)
    return parts.scheme == "https" or (parts.scheme == "http" and is_loopback(parts.hostname or ""))


def _listed(claim: object) -> list[str]:
    """Roles as a list, or as one text with blanks or commas between."""
    if isinstance(claim, str):
        return claim.replace(",", " ").split()
    if isinstance(claim, list):
        return [one for one in claim if isinstance(one, str)]
    return []


def _name(issuer: str, claims: Mapping[str, Any]) -> tuple[str, str]:
    """A name for the audit that nobody else has, and how to call them.

    `sub` alone is unique and never given to another (Core §5.7); the readable name, which people
    may be able to change, stands in front of a digest of it.
    """
    digest = hashlib.sha256(f"{issuer}\0{claims['sub']}".encode()).hexdigest()[:12]
    readable = next(
        (
            value
            for key in ("preferred_username", "email", "sub")
            if isinstance(value := claims.get(key), str) and value.isprintable() and value.strip()
        ),
        "somebody",
    )
    title = claims.get("name")
    called = title if isinstance(title, str) and title.isprintable() else readable
    return f"{readable.strip().replace(':', '.')[:80]}#{digest}", called.strip()[:100]
