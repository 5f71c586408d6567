"""Settings: which source wins, what is refused, and that no secret is ever shown."""

from __future__ import annotations

import traceback
from collections.abc import Callable
from enum import StrEnum
from itertools import combinations
from pathlib import Path

import pytest
from pydantic import SecretStr, ValidationError

from referrals.errors import ConfigurationError, Problem
from referrals.settings import (
    Login,
    MailSettings,
    RelaySettings,
    Security,
    Settings,
    WebSettings,
    is_loopback,
)
from referrals.settings_sources import (
    config_folder,
    read_settings,
    setting_keys,
    shipped_folder,
    templates_folder,
    variable_of,
)

CANARY = "qz-canary-zq"
"""A secret that may be seen nowhere."""


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder that we are in; no variable of ours is set."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


class Sources:
    """Each way in which a setting can be given."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.folder = folder
        self.monkeypatch = monkeypatch
        self.config = folder / "config"
        self.secrets = folder / "secrets"
        self.config.mkdir()
        self.secrets.mkdir()

    def environment(self, key: str, value: str) -> None:
        self.monkeypatch.setenv(variable_of(key), value)

    def dotenv(self, key: str, value: str) -> None:
        with (self.folder / ".env").open("a", encoding="utf-8") as file:
            file.write(f"{variable_of(key)}={value}\n")

    def secret(self, key: str, value: str) -> None:
        self.environment("secrets", str(self.secrets))
        (self.secrets / key.replace(".", "_")).write_text(f"{value}\n", encoding="utf-8")

    def toml(self, text: str) -> None:
        self.environment("config", str(self.config))
        (self.config / "settings.toml").write_text(text, encoding="utf-8")


@pytest.fixture
def sources(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Sources:
    return Sources(folder, monkeypatch)


def problems() -> tuple[Problem, ...]:
    with pytest.raises(ConfigurationError) as raised:
        read_settings()
    return raised.value.problems


def the_problem() -> Problem:
    (problem,) = problems()
    return problem


# Order

GIVE: dict[str, Callable[[Sources, str], None]] = {
    "environment": lambda sources, value: sources.environment("relay.host", value),
    ".env": lambda sources, value: sources.dotenv("relay.host", value),
    "secrets": lambda sources, value: sources.secret("relay.host", value),
    "settings.toml": lambda sources, value: sources.toml(f'[relay]\nhost = "{value}"\n'),
}


@pytest.mark.parametrize(("first", "second"), list(combinations(GIVE, 2)))
def test_of_two_sources_the_earlier_wins(sources: Sources, first: str, second: str) -> None:
    """Order: the environment, .env, the secrets folder, settings.toml."""
    GIVE[second](sources, "second.example.org")
    assert read_settings().relay.host == "second.example.org"
    GIVE[first](sources, "first.example.org")
    assert read_settings().relay.host == "first.example.org"


def test_settings_of_one_group_come_from_several_sources(sources: Sources) -> None:
    sources.environment("relay.host", "relay.example.org")
    sources.dotenv("relay.port", "2525")
    sources.secret("relay.password", "s3cret")
    sources.toml('[relay]\nusername = "u"\nsecurity = "tls"\n[mail]\nsender_name = "Us"\n')
    relay = read_settings().relay
    assert (relay.host, relay.port, relay.security) == ("relay.example.org", 2525, Security.TLS)
    assert relay.username == "u"
    assert relay.password == SecretStr("s3cret")
    assert read_settings().mail.sender_name == "Us"


def test_without_any_source_the_defaults_stand(sources: Sources) -> None:
    sources.environment("config", str(sources.config))
    settings = read_settings()
    assert settings.model_dump() == Settings(config=sources.config).model_dump()
    assert settings.relay.host is None
    assert settings.relay.security is Security.STARTTLS
    assert settings.relay.timeout_s == 30
    assert settings.mail.marking == "OFFICIAL-SENSITIVE"
    assert settings.mail.sender is None
    assert settings.outbox == Path("outbox")


SECRETS = (
    "database",
    "database_password",
    "relay.password",
    "web.metrics_token",
    "web.oidc_client_secret",
    "web.proxy_secret",
)


@pytest.mark.parametrize("key", [key for key in setting_keys() if key not in SECRETS])
def test_every_setting_can_be_given_in_the_environment(
    sources: Sources, tmp_path: Path, key: str
) -> None:
    default: object = Settings()
    for part in key.split("."):
        default = getattr(default, part)
    values = {
        "mail.sender": "a@example.org",
        "relay.port": "26",
        "secrets": str(tmp_path),
        "web.host": "127.0.0.2",
        "web.address": "https://referrals.example.org",
        "web.oidc_issuer": "https://login.example.org",
    }
    if isinstance(default, StrEnum):
        value = str(next(choice for choice in type(default) if choice is not default))
    elif isinstance(default, bool):
        value = str(not default)
    elif isinstance(default, int | float):
        value = "5"
    else:
        value = values.get(key, "given")
    sources.environment(key, value)
    found: object = read_settings()
    for part in key.split("."):
        found = getattr(found, part)
    assert str(found) in (value, f"{value}.0")


def test_an_empty_variable_is_as_if_it_was_not_set(sources: Sources) -> None:
    sources.toml('[relay]\nhost = "toml.example.org"\n')
    sources.environment("relay.host", "")
    assert read_settings().relay.host == "toml.example.org"


@pytest.mark.parametrize("name", ["OTHER_RELAY_HOST", "RELAY_HOST", "referrals_relay_host"])
@pytest.mark.parametrize("with_ours", [False, True])
def test_other_variables_are_left_alone(
    sources: Sources, monkeypatch: pytest.MonkeyPatch, name: str, with_ours: bool
) -> None:
    monkeypatch.setenv(name, "other.example.org")
    if with_ours:
        sources.environment("outbox", "elsewhere")
    assert read_settings().relay.host is None


def test_the_config_folder_named_in_dotenv_gives_its_settings(sources: Sources) -> None:
    (sources.config / "settings.toml").write_text('outbox = "of-toml"\n', encoding="utf-8")
    sources.dotenv("config", str(sources.config))
    settings = read_settings()
    assert settings.outbox == Path("of-toml")
    assert config_folder(settings) == sources.config


def test_an_empty_secret_counts_as_none(sources: Sources) -> None:
    """Who runs us may have to name a file for each, whether there is a secret or not."""
    sources.secret("relay.host", "smtp.council.test")
    (sources.secrets / "relay_password").write_text("", encoding="utf-8")
    settings = read_settings()
    assert (settings.relay.host, settings.relay.password) == ("smtp.council.test", None)


def test_the_secrets_folder_named_in_dotenv_gives_its_secrets(sources: Sources) -> None:
    (sources.secrets / "relay_username").write_text("u\n", encoding="utf-8")
    sources.dotenv("secrets", str(sources.secrets))
    assert read_settings().relay.username == "u"


def test_a_setting_with_several_words_is_read_from_the_secrets_folder(sources: Sources) -> None:
    sources.secret("mail.sender_name", "Us all")
    assert read_settings().mail.sender_name == "Us all"


def test_folders_are_the_shipped_ones_unless_named(sources: Sources) -> None:
    assert config_folder(read_settings()) == shipped_folder("config")
    assert templates_folder(read_settings()) == shipped_folder("templates") / "email"
    assert (shipped_folder("config") / "settings.toml").is_file()
    sources.environment("templates", "letters")
    assert templates_folder(read_settings()) == Path("letters")


# The shorter way to the same


@pytest.mark.parametrize(
    "text",
    [
        "",
        'outbox = "elsewhere"\n',
        '[relay]\nhost = "relay.example.org"\nport = 26\nsecurity = "tls"\ntimeout_s = 5\n',
        '[mail]\nsender = "Us@Example.org"\nsender_name = "Us"\nmarking = ""\n',
        'templates = "letters"\n[relay]\nhost = "::1"\nsecurity = "none"\n',
        # and mistakes
        "outbox = 3\n",
        "[relay]\nport = 70000\nhots = 'x'\n",
        "[relay]\nhost = 'relay.example.org'\nsecurity = 'none'\n",
        f"[relay]\npassword = '{CANARY}'\n",
        "[mail]\nsender = 'nobody'\nmarking = 'ÖFFENTLICH'\n",
        "relay = 3\n",
        "secrets = 'x'\nconfig = 'y'\n",
        "[relay\n",
    ],
)
def test_settings_are_the_same_with_and_without_variables(
    sources: Sources, monkeypatch: pytest.MonkeyPatch, text: str
) -> None:
    """Where there is no variable and no .env, pydantic-settings is left out: a faster start."""
    (sources.config / "settings.toml").write_text(text, encoding="utf-8")
    monkeypatch.setattr("referrals.settings_sources.shipped_folder", lambda _: sources.config)

    def outcome() -> object:
        try:
            return read_settings().model_dump()
        except ConfigurationError as error:
            return error.problems

    short = outcome()
    (sources.folder / ".env").write_text("", encoding="utf-8")
    assert outcome() == short


# What is refused


@pytest.mark.parametrize(
    ("name", "remedy"),
    [
        ("REFERRALS_RELAY_HOTS", "Did you mean REFERRALS_RELAY_HOST?"),
        ("REFERRALS_RELAY__HOST", "Did you mean REFERRALS_RELAY_HOST?"),
        ("REFERRALS_QQQ", "doctor"),
        ("REFERRALS_relay_host", ""),
    ],
)
@pytest.mark.parametrize("where", ["environment", ".env"])
def test_a_variable_that_sets_nothing_is_refused(
    sources: Sources, monkeypatch: pytest.MonkeyPatch, name: str, remedy: str, where: str
) -> None:
    if where == ".env":
        (sources.folder / ".env").write_text(f"{name}={CANARY}\n", encoding="utf-8")
    else:
        monkeypatch.setenv(name, CANARY)
    problem = the_problem()
    assert problem.where == name
    assert remedy in problem.remedy
    assert CANARY not in str(problem)


def test_others_variables_in_dotenv_are_left_alone(sources: Sources) -> None:
    sources.dotenv("relay.host", "relay.example.org")
    with (sources.folder / ".env").open("a", encoding="utf-8") as file:
        file.write(f"DATABASE_URL={CANARY}\nRELAY_PORT=26\nrelay={CANARY}\n")
    settings = read_settings()
    assert (settings.relay.host, settings.relay.port) == ("relay.example.org", None)


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("relay.port", "0", "too small"),
        ("relay.port", "65536", "too large"),
        ("relay.port", "smtp", "not a whole number"),
        ("relay.timeout_s", "0", "too small"),
        ("relay.timeout_s", "601", "too large"),
        ("relay.timeout_s", "soon", "not a number"),
        ("relay.security", "ssl", "not one of the choices"),
        ("mail.sender", "nobody", "not an e-mail address"),
        ("mail.sender", "a@example.org, b@example.org", "not an e-mail address"),
        ("mail.sender_name", "x" * 81, "too long"),
        ("mail.sender_name", "a\nBcc: b", "right form"),
        ("mail.marking", "a\r\nBcc: b@example.org", "right form"),
        ("mail.marking", "GEHEIM\N{EN DASH}X", "right form"),
        ("mail.marking", "x" * 61, "too long"),
        ("relay.local_hostname", "a b", "right form"),
        ("relay.local_hostname", "a\r\nMAIL FROM:<x>", "right form"),
    ],
)
def test_a_wrong_value_is_named_by_its_variable_and_not_repeated(
    sources: Sources, key: str, value: str, words: str
) -> None:
    sources.environment(key, value)
    problem = the_problem()
    assert problem.where == variable_of(key)
    assert words in problem.what
    assert "Bcc" not in str(problem)


@pytest.mark.parametrize(
    ("give", "where"),
    [
        (lambda sources: sources.dotenv("relay.port", "x"), ".env: REFERRALS_RELAY_PORT"),
        (lambda sources: sources.toml("[relay]\nport = 'x'\n"), "config/settings.toml: relay.port"),
        (lambda sources: sources.toml("[relay]\nprot = 1\n"), "config/settings.toml: relay.prot"),
        (lambda sources: sources.toml("outbx = 1\n"), "config/settings.toml: outbx"),
        (lambda sources: sources.secret("relay.port", "x"), "secrets/relay_port"),
        (lambda sources: sources.secret("relay.passwrod", "x"), "secrets/relay_passwrod"),
    ],
)
def test_a_wrong_value_is_named_by_its_file_and_key(
    sources: Sources, give: Callable[[Sources], None], where: str
) -> None:
    give(sources)
    assert the_problem().where.endswith(where)


def test_several_wrong_values_are_said_at_once(sources: Sources) -> None:
    sources.environment("relay.port", "x")
    sources.environment("mail.sender", "nobody")
    sources.toml('[relay]\nhots = "x"\n')
    assert {problem.where.rpartition("/")[2] for problem in problems()} == {
        "REFERRALS_RELAY_PORT",
        "REFERRALS_MAIL_SENDER",
        "settings.toml: relay.hots",
    }


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"[relay\n", "is not TOML"),
        (b'outbox = "Caf\xe9"\n', "can't be read"),
        (None, "can't be read"),
    ],
)
@pytest.mark.parametrize("with_dotenv", [False, True])
def test_an_unreadable_settings_file_is_named(
    sources: Sources,
    monkeypatch: pytest.MonkeyPatch,
    content: bytes | None,
    words: str,
    with_dotenv: bool,
) -> None:
    monkeypatch.setattr("referrals.settings_sources.shipped_folder", lambda _: sources.config)
    file = sources.config / "settings.toml"
    if content is None:
        file.mkdir()
    else:
        file.write_bytes(content)
    if with_dotenv:
        (sources.folder / ".env").touch()
    problem = the_problem()
    assert problem.where == str(file)
    assert words in problem.what


def test_an_unreadable_dotenv_is_named(sources: Sources) -> None:
    (sources.folder / ".env").write_bytes(b"REFERRALS_RELAY_HOST=\xff\xfe\n")
    assert the_problem().where == ".env"


def test_a_secret_that_is_not_text_is_said_with_its_folder(sources: Sources) -> None:
    sources.secret("relay.username", "u")
    (sources.secrets / "relay_password").write_bytes(CANARY.encode() + b"\xff")
    with pytest.raises(ConfigurationError) as raised:
        read_settings()
    assert raised.value.problems[0].where == str(sources.secrets)
    assert CANARY not in everything_said(raised.value)


def test_other_programs_secrets_in_the_folder_are_left_alone(sources: Sources) -> None:
    sources.secret("relay.host", "relay.example.org")
    (sources.secrets / "db_password").write_text(CANARY, encoding="utf-8")
    assert read_settings().relay.host == "relay.example.org"


def test_a_secrets_folder_as_kubernetes_mounts_it_is_read(sources: Sources) -> None:
    """Files are links to links into a hidden folder, swapped when a secret changes."""
    hidden = sources.secrets / "..2026_11_24"
    hidden.mkdir()
    (hidden / "relay_username").write_text("u\n", encoding="utf-8")
    (sources.secrets / "..data").symlink_to(hidden.name)
    (sources.secrets / "relay_username").symlink_to("..data/relay_username")
    sources.environment("secrets", str(sources.secrets))
    assert read_settings().relay.username == "u"


@pytest.mark.parametrize("where", ["environment", "dotenv"])
def test_a_secrets_folder_that_is_not_there_is_named(sources: Sources, where: str) -> None:
    getattr(sources, where)("secrets", str(sources.folder / "nowhere"))
    problem = the_problem()
    assert problem.where == "REFERRALS_SECRETS"
    assert "not there" in problem.what


@pytest.mark.parametrize("key", ["config", "secrets"])
def test_settings_toml_can_t_say_where_to_look(sources: Sources, key: str) -> None:
    sources.toml(f'{key} = "elsewhere"\n')
    problem = the_problem()
    assert problem.where.endswith(f"settings.toml: {key}")
    assert variable_of(key) in problem.remedy


# Secrets


def test_a_password_in_settings_toml_is_refused_and_not_repeated(sources: Sources) -> None:
    sources.toml(f'[relay]\nusername = "u"\npassword = "{CANARY}"\n')
    problem = the_problem()
    assert problem.where.endswith("settings.toml: relay.password")
    assert "REFERRALS_RELAY_PASSWORD" in problem.remedy
    assert "relay_password" in problem.remedy
    assert CANARY not in str(problem)


@pytest.mark.parametrize("source", ["environment", "dotenv", "secret"])
def test_a_password_is_read_and_never_shown(sources: Sources, source: str) -> None:
    sources.environment("relay.username", "u")
    getattr(sources, source)("relay.password", CANARY)
    settings = read_settings()
    assert settings.relay.password
    assert settings.relay.password.get_secret_value() == CANARY
    for shown in (
        repr(settings),
        str(settings),
        repr(settings.relay),
        str(settings.relay),
        str(settings.model_dump()),
        settings.model_dump_json(),
        settings.relay.name,
    ):
        assert CANARY not in shown


@pytest.mark.parametrize("source", ["environment", "dotenv", "secret"])
@pytest.mark.parametrize(
    "wrong",
    [
        {"relay.port": "x"},
        {"relay.security": "none", "relay.host": "relay.example.org"},
        {"mail.sender": "nobody"},
        {},  # a password without a user name
    ],
    ids=["port", "security", "sender", "no user name"],
)
def test_a_password_is_in_no_error(sources: Sources, source: str, wrong: dict[str, str]) -> None:
    if wrong:
        sources.environment("relay.username", "u")
    getattr(sources, source)("relay.password", CANARY)
    for key, value in wrong.items():
        sources.environment(key, value)
    with pytest.raises(ConfigurationError) as raised:
        read_settings()
    assert CANARY not in everything_said(raised.value)


@pytest.mark.parametrize(
    "value",
    [
        f'{{"password": "{CANARY}"}}',
        f'{{"username": "u", "password": "{CANARY}", "port": "x"}}',
        f'["{CANARY}"]',
        f'"{CANARY}"',
        f"{{{CANARY}",
        CANARY,
    ],
)
@pytest.mark.parametrize("where", ["environment", ".env", "secrets"])
def test_a_group_given_as_a_whole_is_refused_and_not_repeated(
    sources: Sources, monkeypatch: pytest.MonkeyPatch, value: str, where: str
) -> None:
    """REFERRALS_RELAY='{...}' is taken by pydantic-settings: it may hold a password."""
    if where == "environment":
        monkeypatch.setenv("REFERRALS_RELAY", value)
    elif where == ".env":
        (sources.folder / ".env").write_text(f"REFERRALS_RELAY='{value}'\n", encoding="utf-8")
    else:
        sources.secret("relay", value)
    with pytest.raises(ConfigurationError) as raised:
        read_settings()
    assert "REFERRALS_RELAY" in str(raised.value) or "relay" in str(raised.value)
    assert CANARY not in everything_said(raised.value)


def test_a_stranger_in_the_secrets_folder_is_not_repeated(sources: Sources) -> None:
    sources.secret("relay.passwrod", CANARY)
    with pytest.raises(ConfigurationError) as raised:
        read_settings()
    assert CANARY not in everything_said(raised.value)


def everything_said(error: BaseException) -> str:
    """All that an error and what led to it says when it is printed or logged."""
    return "".join(traceback.format_exception(error)) + repr(error) + str(error)


def test_pydantic_s_own_error_repeats_no_password() -> None:
    with pytest.raises(ValidationError) as raised:
        RelaySettings.model_validate({"password": CANARY, "port": CANARY})
    assert CANARY not in str(raised.value)
    assert CANARY not in repr(raised.value)


# The relay


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1", "127.8.8.8", "::1"])
def test_no_security_is_for_this_machine(host: str) -> None:
    assert RelaySettings(host=host, security=Security.NONE).name == f"{host}:25"
    assert is_loopback(host)


@pytest.mark.parametrize(
    "host",
    [
        "relay.example.org",
        "10.0.0.1",
        "192.168.1.1",
        "0.0.0.0",
        "::",
        "localhost.example.org",
        "127.0.0.1.example.org",
        "LOCALHOST.",
        "2130706433",
        "::ffff:10.0.0.1",
    ],
)
def test_no_security_is_refused_for_any_other_machine(sources: Sources, host: str) -> None:
    sources.environment("relay.host", host)
    sources.environment("relay.security", "none")
    problem = the_problem()
    assert "on this machine only" in problem.what
    assert not is_loopback(host)


def test_no_security_without_a_host_is_no_fault() -> None:
    assert RelaySettings(security=Security.NONE).host is None


@pytest.mark.parametrize(
    ("security", "port"), [(Security.STARTTLS, 587), (Security.TLS, 465), (Security.NONE, 25)]
)
def test_the_port_is_that_of_the_security_unless_given(security: Security, port: int) -> None:
    assert RelaySettings(host="localhost", security=security).effective_port == port
    assert RelaySettings(host="localhost", security=security, port=26).effective_port == 26


def test_a_password_needs_a_user_name() -> None:
    with pytest.raises(ValidationError, match="needs a username"):
        RelaySettings(password=SecretStr("x"))


# The marking


@pytest.mark.parametrize("where", ["settings.toml", "keyword"])
def test_the_marking_may_be_empty(sources: Sources, where: str) -> None:
    if where == "keyword":
        assert MailSettings(marking="").marking == ""
        return
    sources.toml('[mail]\nmarking = ""\n')
    assert read_settings().mail.marking == ""


def test_the_sender_keeps_its_spelling(sources: Sources) -> None:
    sources.environment("mail.sender", "Our.Service@Council.Example.ORG")
    assert read_settings().mail.sender == "Our.Service@Council.Example.ORG"


WEB_SAFE = {"host": "0.0.0.0", "address": "https://referrals.example.org", "login": "accounts"}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"login": "none"}, "web.login must be"),
        ({"address": None}, "https:// address"),
        ({"address": "http://referrals.example.org"}, "https:// address"),
        ({"login": "proxy"}, "web.proxy_secret"),
        ({"login": "oidc"}, "web.oidc_issuer"),
    ],
)
def test_a_page_that_others_can_reach_must_be_safe(change: dict[str, str], words: str) -> None:
    """Login, and TLS before it."""
    assert WebSettings.model_validate(WEB_SAFE).login is Login.ACCOUNTS
    with pytest.raises(ValidationError, match=words):
        WebSettings.model_validate(WEB_SAFE | change)


def test_the_secrets_of_the_page_stay_out_of_the_file(sources: Sources) -> None:
    sources.toml(
        f'[web]\nproxy_secret = "{CANARY}"\nmetrics_token = "{CANARY}"\noidc_client_secret = "x"\n'
    )
    with pytest.raises(ConfigurationError) as caught:
        read_settings()
    assert len(caught.value.problems) == 3
    assert CANARY not in str(caught.value)
