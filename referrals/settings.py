"""What the operator decides: the model. `settings_sources` reads it."""

from enum import StrEnum
from ipaddress import ip_address
from pathlib import Path
from typing import Annotated, Any, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    SecretStr,
    StringConstraints,
    ValidationInfo,
    field_validator,
    model_validator,
)

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
    """The submission server (RFC 6409). Without `host` nothing can be submitted.

    `connections` and `rate_per_minute` hold for all processes and machines on one outbox together;
    0 is no limit.
    """

    host: str | None = Field(None, max_length=253, pattern=r"^[^\s\x00-\x1f\x7f]+$")
    port: int | None = Field(None, ge=1, le=65535)
    security: Security = Security.STARTTLS
    username: str | None = None
    password: SecretStr | None = None
    timeout_s: float = Field(30.0, gt=0, le=600)
    ca_file: NamedPath | None = None
    local_hostname: str | None = Field(None, pattern=r"^[A-Za-z0-9.\-\[\]:]{1,253}$")
    connections: int = Field(0, ge=0, le=1_000)
    rate_per_minute: int = Field(0, ge=0, le=1_000_000)

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


class FurtherRelay(RelaySettings):
    """One that takes over while those before it can't be used; it must have a host."""

    host: str = Field(max_length=253, pattern=r"^[^\s\x00-\x1f\x7f]+$")


RELAY_NAME = r"^[a-z][a-z0-9]{0,30}$"


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

    lanes: int = Field(16, ge=1, le=64)
    rate_per_minute: int = Field(0, ge=0, le=1_000_000)
    first_wait_s: float = Field(60, gt=0, le=86_400)
    longest_wait_s: float = Field(14_400, gt=0, le=604_800)
    give_up_after_h: float = Field(96, gt=0, le=8_760)
    on_uncertain: OnUncertain = OnUncertain.RETRY
    keep_content_days: int = Field(30, ge=0, le=3_650)
    keep_unfinished_days: int = Field(90, ge=1, le=3_650)
    keep_drafts_days: int = Field(90, ge=0, le=3_650)
    purge: Purge = Purge.DAILY


class Login(StrEnum):
    """How the page knows who one is.

    `none` is for a page that only this machine can reach. `accounts` are kept by us, with hashed
    passwords; `oidc` leaves it to an OpenID Connect provider; `proxy` to a reverse proxy that
    proves itself by a shared secret.
    """

    NONE = "none"
    ACCOUNTS = "accounts"
    OIDC = "oidc"
    PROXY = "proxy"


class WebSettings(_Part):
    """The page, `referrals serve`.

    `address` is what people type, such as https://referrals.council.example.com; without it, the
    host and port listened on. It decides which hosts are answered and whether cookies are Secure.
    """

    host: str = Field("127.0.0.1", max_length=253, pattern=r"^[A-Za-z0-9.\-:]+$")
    port: int = Field(8080, ge=0, le=65535)
    address: str | None = Field(None, max_length=300, pattern=r"^https?://[A-Za-z0-9.\-\[\]:]+$")
    login: Login = Login.NONE
    idle_minutes: int = Field(30, ge=1, le=1_440)
    longest_hours: int = Field(10, ge=1, le=168)
    keep_progress_hours: int = Field(72, ge=1, le=720)
    deliver: bool = True
    largest_upload_mb: int = Field(20, ge=1, le=200)
    metrics_token: SecretStr | None = None
    proxy_secret: SecretStr | None = None
    proxy_user_header: str = Field("X-Remote-User", pattern=r"^[A-Za-z0-9\-]{1,60}$")
    proxy_roles_header: str = Field("X-Remote-Groups", pattern=r"^[A-Za-z0-9\-]{1,60}$")
    oidc_issuer: str | None = Field(None, max_length=300, pattern=r"^https?://\S+$")
    oidc_client_id: str | None = Field(None, max_length=300)
    oidc_client_secret: SecretStr | None = None
    oidc_roles_claim: str = Field("roles", max_length=100)

    @property
    def is_private(self) -> bool:
        """Whether only this machine can reach the page."""
        return is_loopback(self.host)

    @property
    def is_secure(self) -> bool:
        """Whether browsers reach us over TLS."""
        return bool(self.address and self.address.startswith("https://"))

    @model_validator(mode="after")
    def _safe(self) -> Self:
        if self.login is Login.NONE and not self.is_private:
            raise ValueError(
                "the page may be reached from other machines, so web.login must be 'accounts', "
                "'oidc' or 'proxy'; or let web.host be 127.0.0.1."
            )
        if not self.is_private and not self.is_secure:
            raise ValueError(
                "the page may be reached from other machines, so web.address must say by which "
                "https:// address: cookies and forms would else cross the network unprotected."
            )
        if self.login is Login.PROXY and self.proxy_secret is None:
            raise ValueError("web.login = 'proxy' needs web.proxy_secret, which the proxy sends.")
        if self.login is Login.OIDC and not (self.oidc_issuer and self.oidc_client_id):
            raise ValueError("web.login = 'oidc' needs web.oidc_issuer and web.oidc_client_id.")
        return self


def is_database_url(value: object) -> bool:
    return isinstance(value, str) and value.startswith(("postgresql://", "postgres://"))


def _database_url(value: SecretStr) -> SecretStr:
    if not is_database_url(value.get_secret_value()):
        raise ValueError("is no URL of PostgreSQL's, such as postgresql://app@host/referrals.")
    return value


class Settings(_Part):
    """`config` and `templates` name folders that replace the shipped ones as a whole.

    `secrets` names a folder with a file for each secret, such as `relay_password`.
    `database` is where the queue is, if not in a file in the folder `outbox`; `outbox` may name it
    instead, and the folder is then the default one. It may hold a password, so it is a secret.
    `relays` are further ones by name, in the order in which they are tried after `relay`.
    """

    config: NamedPath | None = None
    secrets: NamedPath | None = None
    templates: NamedPath | None = None
    outbox: NamedPath = Path("outbox")
    database: Annotated[SecretStr, AfterValidator(_database_url)] | None = None
    database_password: SecretStr | None = None
    mail: MailSettings = Field(default_factory=MailSettings)
    relay: RelaySettings = Field(default_factory=RelaySettings)
    relays: dict[Annotated[str, StringConstraints(pattern=RELAY_NAME)], FurtherRelay] = Field(
        default_factory=dict
    )
    delivery: DeliverySettings = Field(default_factory=DeliverySettings)
    web: WebSettings = Field(default_factory=WebSettings)

    @field_validator("relays", mode="after")
    @classmethod
    def _all_different(
        cls, further: dict[str, FurtherRelay], info: ValidationInfo
    ) -> dict[str, FurtherRelay]:
        first = info.data.get("relay")
        if first is None:
            return further  # wrong itself, and that is said
        if further and not first.host:
            raise ValueError(
                "there are further relays, but no first one. Set relay.host, or take them out."
            )
        known = {first.name: "relay"}
        for name, one in further.items():
            if one.name in known:
                raise ValueError(
                    f"relays.{name} has the host and port of {known[one.name]}. Give it others, "
                    "or take it out."
                )
            known[one.name] = f"relays.{name}"
        return further

    @model_validator(mode="before")
    @classmethod
    def _outbox_in_database(cls, given: Any) -> Any:
        if isinstance(given, dict) and is_database_url(given.get("outbox")):
            given = dict(given)
            given.setdefault("database", given.pop("outbox"))
        return given
