"""Who is asking, as a reverse proxy says that signs people in and proves itself by a secret."""

from __future__ import annotations

import hmac
import re
from collections.abc import Sequence

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute

from referrals.settings import WebSettings
from referrals.web.faults import refused
from referrals.web.login import roles_named
from referrals.web.site import User, roles_with
from referrals.web.store import Session

SECRET_HEADER = "X-Proxy-Secret"  # noqa: S105  # its name
_LONGEST_NAME = 200
_LONGEST_ROLES = 8_000


class BehindProxy:
    """`web.login = "proxy"`. The proxy has to overwrite these headers where a browser sends them.

    Each must come exactly once: of two, one may be the browser's.
    """

    can_sign_out = False

    def __init__(self, web: WebSettings) -> None:
        if web.proxy_secret is None:
            raise AssertionError("the settings see to it")
        self._secret = web.proxy_secret
        self._user_header = web.proxy_user_header
        self._roles_header = web.proxy_roles_header

    def user(self, request: Request, session: Session) -> User | None:
        if not self._is_proxy(request):
            return None
        name = _text(_only(request, self._user_header)).strip()
        if not name or len(name) > _LONGEST_NAME or not name.isprintable():
            return None
        groups = _only(request, self._roles_header)
        roles = roles_named(re.split(r"[,;|\s]+", groups)) if len(groups) <= _LONGEST_ROLES else []
        # No colon, which would let a name pass for a token's.
        return User(name.replace(":", "."), roles_with(roles))

    def _is_proxy(self, request: Request) -> bool:
        told = _only(request, SECRET_HEADER)
        expected = self._secret.get_secret_value()
        return bool(expected) and hmac.compare_digest(told.encode(), expected.encode())

    def first(self, request: Request) -> Response:
        return refused(request, HTTPException(403, "no-proxy"))

    def routes(self) -> Sequence[BaseRoute]:
        return ()


def _only(request: Request, header: str) -> str:
    """The value of a header that came once; of several or none, nothing."""
    values = request.headers.getlist(header)
    return values[0] if len(values) == 1 else ""


def _text(value: str) -> str:
    """Headers are octets: most proxies put UTF-8 into them."""
    try:
        return value.encode("latin-1").decode("utf-8")
    except UnicodeError:
        return value
