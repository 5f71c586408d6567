"""What the operator decides: the model. `settings_sources` reads it."""

from enum import StrEnum
from ipaddress import ip_address
from pathlib import Path
from typing import Annotated, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, SecretStr, model_validator

from referrals.texts import check_email


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
    # Built when first used: a command needs a few of the models, not all of them.
    model_config = ConfigDict(
        frozen=True, extra="forbid", hide_input_in_errors=True, defer_build=True
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
        if self.password is not None and self.username is None:
            raise ValueError("a password needs a username beside it.")
        return self


class MailSettings(_Part):
    """How messages are headed. Without `sender`, From is the referrer."""

    sender: Annotated[str, AfterValidator(check_email)] | None = None
    sender_name: str = Field("Referrals", max_length=80, pattern=r"^[^\x00-\x1f\x7f]*$")
    marking: str = Field("OFFICIAL-SENSITIVE", max_length=60, pattern=r"^[ -~]*$")


class Settings(_Part):
    """`config` and `templates` name folders that replace the shipped ones as a whole.

    `secrets` names a folder with a file for each secret, such as `relay_password`.
    """

    config: Path | None = None
    secrets: Path | None = None
    templates: Path | None = None
    outbox: Path = Path("outbox")
    mail: MailSettings = Field(default_factory=MailSettings)
    relay: RelaySettings = Field(default_factory=RelaySettings)
