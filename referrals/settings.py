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


def _nameable(path: Path) -> Path:
    if "\0" in str(path):
        raise ValueError("holds a NUL, which no name of a file can.")
    return path


NamedPath = Annotated[Path, AfterValidator(_nameable)]


class _Part(BaseModel):
    # Built when first used: a command needs a few of the models, not all of them.
    model_config = ConfigDict(
        frozen=True, extra="forbid", hide_input_in_errors=True, defer_build=True
    )


class RelaySettings(_Part):
    """The submission server (RFC 6409). Without `host` nothing can be submitted."""

    host: str | None = Field(None, max_length=253, pattern=r"^[^\s\x00-\x1f\x7f]+$")
    port: int | None = Field(None, ge=1, le=65535)
    security: Security = Security.STARTTLS
    username: str | None = None
    password: SecretStr | None = None
    timeout_s: float = Field(30.0, gt=0, le=600)
    ca_file: NamedPath | None = None
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


class OnUncertain(StrEnum):
    """What to do when it can't be known whether the relay took a message."""

    RETRY = "retry"
    HOLD = "hold"


class Purge(StrEnum):
    """When old content is forgotten: once a day by `deliver`, or by `outbox purge` alone."""

    DAILY = "daily"
    BY_HAND = "by-hand"


class DeliverySettings(_Part):
    """How the queue is worked off."""

    lanes: int = Field(8, ge=1, le=64)
    rate_per_minute: int = Field(0, ge=0, le=1_000_000)
    first_wait_s: float = Field(60, gt=0, le=86_400)
    longest_wait_s: float = Field(14_400, gt=0, le=604_800)
    give_up_after_h: float = Field(96, gt=0, le=8_760)
    on_uncertain: OnUncertain = OnUncertain.RETRY
    keep_content_days: int = Field(30, ge=0, le=3_650)
    keep_unfinished_days: int = Field(90, ge=1, le=3_650)
    keep_drafts_days: int = Field(90, ge=0, le=3_650)
    purge: Purge = Purge.DAILY


class Settings(_Part):
    """`config` and `templates` name folders that replace the shipped ones as a whole.

    `secrets` names a folder with a file for each secret, such as `relay_password`.
    """

    config: NamedPath | None = None
    secrets: NamedPath | None = None
    templates: NamedPath | None = None
    outbox: NamedPath = Path("outbox")
    mail: MailSettings = Field(default_factory=MailSettings)
    relay: RelaySettings = Field(default_factory=RelaySettings)
    delivery: DeliverySettings = Field(default_factory=DeliverySettings)
