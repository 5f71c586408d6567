"""What the operator decides: the model. `settings_sources` reads it."""

from __future__ import annotations

from enum import StrEnum
from ipaddress import ip_address
from pathlib import Path
from typing import Self

from pydantic import BaseModel, ConfigDict, Field, SecretStr, model_validator


class Security(StrEnum):
    """How the link to the relay is protected.

    `starttls` and `tls` demand a verified certificate; `none` is for loopback alone.
    Source: RFC 8314 §3 (implicit TLS), RFC 3207 (STARTTLS).
    """

    STARTTLS = "starttls"
    TLS = "tls"
    NONE = "none"


_DEFAULT_PORT = {Security.STARTTLS: 587, Security.TLS: 465, Security.NONE: 25}


def is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return False


class _Part(BaseModel):
    model_config = ConfigDict(
        frozen=True, extra="forbid", hide_input_in_errors=True, validate_default=False
    )


class RelaySettings(_Part):
    """The submission server (RFC 6409). Without `host` nothing can be submitted."""

    host: str | None = Field(None, min_length=1, max_length=253)
    port: int | None = Field(None, ge=1, le=65535)
    security: Security = Security.STARTTLS
    username: str | None = None
    password: SecretStr | None = None
    timeout_s: float = Field(30.0, gt=0, le=600)
    ca_file: Path | None = None
    local_hostname: str | None = Field(None, pattern=r"^[A-Za-z0-9.\-\[\]:]{1,253}$")

    @property
    def effective_port(self) -> int:
        return self.port or _DEFAULT_PORT[self.security]

    @property
    def name(self) -> str:
        return f"{self.host}:{self.effective_port}"

    @model_validator(mode="after")
    def _safe(self) -> Self:
        if self.security is Security.NONE and self.host and not is_loopback(self.host):
            raise ValueError(
                "security = 'none' is for a relay on this machine only (localhost, 127.0.0.1, "
                "::1). Use 'starttls' or 'tls'."
            )
        if (self.username is None) != (self.password is None):
            raise ValueError("a login needs both username and password. Give both or neither.")
        return self
