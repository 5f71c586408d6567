# ruff: noqa: F811 - fixtures are imported
"""Further relays in the settings: their order, their names, and that no secret is shown."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from referrals import settings_relays
from referrals.errors import ConfigurationError
from referrals.settings import RelaySettings, Security
from referrals.settings_sources import read_settings, variable_of
from tests.unit.test_settings import (  # noqa: F401 - fixtures
    CANARY,
    Sources,
    everything_said,
    folder,
    problems,
    sources,
    the_problem,
)

FIRST = '[relay]\nhost = "first.example.org"\n'
TWO = FIRST + '[relays.zeta]\nhost = "zeta.example.org"\n[relays.beta]\nhost = "beta.example.org"\n'


def test_they_come_in_the_order_of_the_file_and_then_by_name(sources: Sources) -> None:
    sources.toml(TWO)
    assert list(read_settings().relays) == ["zeta", "beta"]
    sources.environment("relays.omega.host", "omega.example.org")
    sources.environment("relays.beta.port", "26")
    sources.dotenv("relays.alpha.host", "alpha.example.org")
    assert list(read_settings().relays) == ["zeta", "beta", "alpha", "omega"]


@pytest.mark.parametrize("key", settings_relays.KEYS)
@pytest.mark.parametrize("give", ["environment", "dotenv", "secret"])
def test_every_setting_of_theirs_can_be_given_anywhere(
    sources: Sources, key: str, give: str
) -> None:
    sources.toml(TWO)
    sources.environment("relays.beta.username", "u")
    values = {"port": "26", "security": "tls", "timeout_s": "5.0", "host": "other.example.org"}
    numbers = {"connections": "5", "rate_per_minute": "5"}
    value = (values | numbers).get(key, "given")
    if key == "username":
        sources.environment("relays.beta.username", "")
    getattr(sources, give)(f"relays.beta.{key}", value)

    found = getattr(read_settings().relays["beta"], key)
    shown = found.get_secret_value() if key == "password" else str(found)
    assert shown == value


def test_of_two_sources_the_earlier_wins_for_them_too(sources: Sources) -> None:
    sources.toml(TWO)
    for give, port in ((sources.secret, "3"), (sources.dotenv, "2"), (sources.environment, "1")):
        give("relays.beta.port", port)
        assert read_settings().relays["beta"].port == int(port)
    assert read_settings().relays["beta"].host == "beta.example.org"


def test_they_have_the_rules_and_the_defaults_of_the_first(sources: Sources) -> None:
    sources.toml(TWO)
    one = read_settings().relays["beta"]
    assert one.model_dump(exclude={"host"}) == RelaySettings().model_dump(exclude={"host"})
    assert (one.security, one.name) == (Security.STARTTLS, "beta.example.org:587")


@pytest.mark.parametrize(
    ("give", "where", "words"),
    [
        (lambda at: at.environment("relays.beta.port", "x"), "REFERRALS_RELAYS_BETA_PORT", ""),
        (lambda at: at.dotenv("relays.beta.port", "x"), ".env: REFERRALS_RELAYS_BETA_PORT", ""),
        (lambda at: at.secret("relays.beta.port", "x"), "secrets/relays_beta_port", ""),
        (lambda at: at.secret("relays.beta.passwrod", "x"), "secrets/relays_beta_passwrod", ""),
        (lambda at: at.environment("relays.beta.hots", "x"), "REFERRALS_RELAYS_BETA_HOTS", "not a"),
        (lambda at: at.environment("relays.bet_a.host", "x"), "RELAYS_BET_A_HOST", "not a"),
        (lambda at: at.environment("relays.2.host", "x"), "REFERRALS_RELAYS_2_HOST", "not a"),
        (lambda at: at.environment("relays.new.port", "1"), "toml: relays.new.host", "missing"),
        (lambda at: at.environment("relays.beta.security", "none"), "toml: relays.beta", "machine"),
        (lambda at: at.environment("relays.beta.password", "x"), "toml: relays.beta", "username"),
        (lambda at: at.environment("relays.beta.connections", "-1"), "CONNECTIONS", "too small"),
        (lambda at: at.environment("relays.beta.host", "first.example.org"), "relays", "beta"),
        (lambda at: at.toml(TWO + "prot = 1\n"), "toml: relays.beta.prot", "not known"),
        (lambda at: at.toml(TWO + "[relays.Back-up]\n"), "toml: relays", "small letters"),
        (lambda at: at.toml(TWO.removeprefix(FIRST)), "toml: relays", "no first one"),
        (lambda at: at.toml(FIRST + "relays = 3\n"), "toml: relay.relays", "not known"),
        (lambda at: at.toml("relays = 3\n" + FIRST), "toml: relays", "not a group"),
    ],
)  # fmt: skip
def test_a_mistake_is_one_error_that_names_the_key(
    sources: Sources, give: Callable[[Sources], None], where: str, words: str
) -> None:
    sources.toml(TWO)
    give(sources)
    problem = the_problem()
    assert problem.where.endswith(where)
    assert words in problem.what


def test_a_mistyped_variable_is_told_with_the_right_one(sources: Sources) -> None:
    sources.toml(TWO)
    sources.environment("relays.beta.tiemout_s", "5")
    assert "REFERRALS_RELAYS_BETA_TIMEOUT_S" in the_problem().remedy


def test_their_passwords_are_refused_in_the_file_and_not_repeated(sources: Sources) -> None:
    sources.toml(TWO + f'username = "u"\npassword = "{CANARY}"\n')
    problem = the_problem()
    assert problem.where.endswith("settings.toml: relays.beta.password")
    assert "REFERRALS_RELAYS_BETA_PASSWORD" in problem.remedy
    assert "relays_beta_password" in problem.remedy
    assert CANARY not in str(problem)


@pytest.mark.parametrize("source", ["environment", "dotenv", "secret"])
def test_their_passwords_are_read_and_never_shown(sources: Sources, source: str) -> None:
    sources.toml(TWO)
    sources.environment("relays.beta.username", "u")
    getattr(sources, source)("relays.beta.password", CANARY)
    settings = read_settings()
    password = settings.relays["beta"].password
    assert password is not None
    assert password.get_secret_value() == CANARY
    for shown in (repr(settings), str(settings.model_dump()), settings.model_dump_json()):
        assert CANARY not in shown


@pytest.mark.parametrize("whole", ["RELAYS", "RELAYS_BETA"])
@pytest.mark.parametrize("source", ["environment", "dotenv", "secret"])
def test_one_given_as_a_whole_is_refused_and_not_repeated(
    sources: Sources, whole: str, source: str
) -> None:
    sources.toml(TWO)
    getattr(sources, source)(whole.lower(), f'{{"password": "{CANARY}", "port": "x"}}')
    with pytest.raises(ConfigurationError) as raised:
        read_settings()
    assert CANARY not in everything_said(raised.value)


def test_a_key_of_theirs_is_a_variable_and_back() -> None:
    assert variable_of("relays.backup.ca_file") == "REFERRALS_RELAYS_BACKUP_CA_FILE"
    assert settings_relays.key_of("relays_backup_ca_file") == "relays.backup.ca_file"
    assert settings_relays.key_of("relays_back_up_host") is None
