"""A small OpenID Connect provider for tests: a server of its own, with faults on demand.

Source: OpenID Connect Core 1.0 §3.1, Discovery 1.0, RFC 7636.
"""

from __future__ import annotations

import base64
import hashlib
import json
import secrets
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache, partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Self
from urllib.parse import parse_qs, urlencode, urlsplit

from joserfc import jwt
from joserfc.jwk import KeySet, OctKey, RSAKey
from joserfc.jws import JWSRegistry

CLIENT, SECRET = "referrals", "the client's own secret, which is long enough"


@dataclass
class Provider:
    """Signs everybody in as one person. What is in `claims` is told; None leaves a claim out."""

    claims: dict[str, Any] = field(default_factory=dict)
    metadata: dict[str, Any] = field(default_factory=dict)
    back: dict[str, str] = field(default_factory=dict)
    """Parameters that the way back to the client has besides, or instead."""
    algorithm: str = "RS256"
    key: Any = None
    """Signs instead of the published one."""
    without_id_token: bool = False
    secret: str | None = SECRET
    asked: list[dict[str, str]] = field(default_factory=list)
    """The parameters of each way to its sign-in page."""
    refused: list[str] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)

    def __enter__(self) -> Self:
        self.keys = KeySet([_key("one")])
        self._codes: dict[str, dict[str, str]] = {}
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(self))
        self.issuer = f"http://127.0.0.1:{self._server.server_port}"
        serve = partial(self._server.serve_forever, 0.02)
        self._thread = threading.Thread(target=serve, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join(10)

    def turn_key(self) -> None:
        self.keys = KeySet([_key("two")])

    def discovery(self) -> dict[str, Any]:
        return {
            "issuer": self.issuer,
            "authorization_endpoint": f"{self.issuer}/authorize",
            "token_endpoint": f"{self.issuer}/token",
            "jwks_uri": f"{self.issuer}/jwks",
            "end_session_endpoint": f"{self.issuer}/end",
            "response_types_supported": ["code"],
            "id_token_signing_alg_values_supported": ["RS256", "HS256", "none"],
            **self.metadata,
        }

    def authorize(self, asked: dict[str, str]) -> str:
        """Where the browser is sent back to."""
        self.asked.append(asked)
        code = secrets.token_urlsafe(16)
        self._codes[code] = asked
        back = {"code": code, "state": asked["state"], "iss": self.issuer, **self.back}
        return f"{asked['redirect_uri']}?{urlencode(back)}"

    def token(self, form: Mapping[str, str], authorization: str) -> tuple[int, dict[str, Any]]:
        asked = self._codes.pop(form.get("code", ""), None)
        basic = base64.b64encode(f"{CLIENT}:{self.secret}".encode()).decode()
        digest = hashlib.sha256(form.get("code_verifier", "").encode()).digest()
        challenge = base64.urlsafe_b64encode(digest).decode().rstrip("=")
        problems = {
            "code": asked is None,
            "client": authorization != f"Basic {basic}" if self.secret else bool(authorization),
            "verifier": asked is None or asked.get("code_challenge") != challenge,
            "method": asked is None or asked.get("code_challenge_method") != "S256",
            "redirect": asked is None or asked["redirect_uri"] != form.get("redirect_uri"),
        }
        wrong = [name for name, is_wrong in problems.items() if is_wrong]
        if wrong or asked is None:
            self.refused += wrong
            return 400, {"error": "invalid_grant"}
        answer = {"access_token": secrets.token_urlsafe(16), "token_type": "Bearer"}
        if not self.without_id_token:
            answer["id_token"] = self._id_token(asked)
        return 200, answer

    def _id_token(self, asked: Mapping[str, str]) -> str:
        now = int(time.time())
        claims = {
            "iss": self.issuer,
            "aud": CLIENT,
            "sub": "248289761001",
            "exp": now + 300,
            "iat": now,
            "nonce": asked.get("nonce"),
            "preferred_username": "jane.smith",
            "name": "Jane Smith",
            "roles": ["referrals-sender", "something-else"],
            **self.claims,
        }
        told = {name: value for name, value in claims.items() if value is not None}
        key = self.key or self.keys.keys[0]
        if self.algorithm == "none":
            key = OctKey.import_key("")
        header = {"alg": self.algorithm}
        if isinstance(key, RSAKey):
            header["kid"] = self.keys.keys[0].kid or ""
        registry = JWSRegistry(algorithms=[self.algorithm])
        return jwt.encode(header, told, key, registry=registry)


@cache
def _key(name: str) -> RSAKey:
    """Made once, since that takes a while."""
    return RSAKey.generate_key(2048, {"kid": name})


def _handler(provider: Provider) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            pass

        def do_GET(self) -> None:
            url = urlsplit(self.path)
            provider.requests.append(url.path)
            asked = {name: values[0] for name, values in parse_qs(url.query).items()}
            match url.path:
                case "/.well-known/openid-configuration":
                    self._answer(200, provider.discovery())
                case "/jwks":
                    self._answer(200, dict(provider.keys.as_dict(private=False)))
                case "/authorize":
                    self.send_response(302)
                    self.send_header("Location", provider.authorize(asked))
                    self.end_headers()
                case _:
                    self._answer(404, {})

        def do_POST(self) -> None:
            provider.requests.append(self.path)
            body = self.rfile.read(int(self.headers["Content-Length"])).decode()
            form = {name: values[0] for name, values in parse_qs(body).items()}
            self._answer(*provider.token(form, self.headers.get("Authorization", "")))

        def _answer(self, status: int, content: dict[str, Any]) -> None:
            body = json.dumps(content).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

    return Handler
