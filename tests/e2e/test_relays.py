"""Several relays from the command line: send, deliver, `relay check`, `relay list`, doctor."""

from __future__ import annotations

import json
from datetime import datetime
from pathlib import Path

import pytest

from referrals.relay_health import FIRST_REST_AFTER_LOGIN
from referrals.sink import Sink
from tests.e2e.conftest import Beside, Command, RelayEnv, process
from tests.e2e.test_send import LOGIN, PASSWORD, SEND
from tests.smtp_sink import free_port


class Relays:
    """Sets REFERRALS_RELAY_* of a first one, and REFERRALS_RELAYS_BACKUP_* of a second."""

    def __init__(self, environment: pytest.MonkeyPatch) -> None:
        self._environment = environment

    def __call__(self, first: int, second: int, **more: str) -> None:
        RelayEnv(self._environment)(first)
        given = {"host": "127.0.0.1", "port": str(second), "security": "none", "timeout_s": "5"}
        for name, value in {**given, **more}.items():
            self._environment.setenv(f"REFERRALS_RELAYS_BACKUP_{name.upper()}", value)


@pytest.fixture
def relays(monkeypatch: pytest.MonkeyPatch) -> Relays:
    return Relays(monkeypatch)


def test_send_goes_through_the_second_while_the_first_is_away(
    case_file: Path, relays: Relays
) -> None:
    away = free_port()
    with Beside(Sink()) as second:
        relays(away, second.port)
        would = process(*SEND[:3])
        done = process(*SEND, "--json")
        listed = process("relay", "list", "--json")
    assert f"through 127.0.0.1:{away}, or else 127.0.0.1:{second.port}" in would.out
    assert (done.code, done.json["status"]) == (0, "relayed")
    assert done.json["relay"] == f"127.0.0.1:{second.port}"
    assert done.err.count("\n") == 1
    assert f"The relay 127.0.0.1:{away} could not be reached. It is left alone until" in done.err
    assert len(second.arrived) == 1

    first, backup = listed.json
    assert (first["key"], first["well"], first["fault"]) == ("relay", False, "could not be reached")
    assert (first["faults"], first["returns"]) == (1, 0)
    assert (backup["key"], backup["well"], backup["fault"]) == ("relays.backup", True, None)


def test_check_says_which_are_well_and_takes_them_into_use(case_file: Path, relays: Relays) -> None:
    wrong_login = {"REFERRALS_RELAY_USERNAME": LOGIN[0], "REFERRALS_RELAY_PASSWORD": "not " * 5}
    with Beside(Sink()) as second:
        with Beside(Sink(login=LOGIN)) as first:
            relays(first.port, second.port)
            for number in range(2):
                sent = process(*SEND, "--set", f"reference=CASE-{number}", env=wrong_login)
                assert (sent.code, len(second.arrived)) == (0, number + 1)
            (known, _) = process("relay", "list", "--json").json
            told = process("relay", "list", env=wrong_login)
            wrong = process("relay", "check", env=wrong_login)
        away = process("relay", "check", "--json")
        with Beside(Sink(port=first.port)):
            well = process("relay", "check")
        listed = process("relay", "list")
    assert (known["faults"], known["fault"]) == (1, "refused the login (535)")
    rest = datetime.fromisoformat(known["left_alone_until"])
    assert rest - datetime.fromisoformat(known["since"]) == FIRST_REST_AFTER_LOGIN, "tried once"
    assert "refused the login (535) since" in told.out
    assert wrong.code == 11
    assert f"127.0.0.1:{first.port} (relay): " in wrong.out
    assert f"127.0.0.1:{second.port} is ready." in wrong.out
    assert "not not" not in told.said + wrong.said
    assert (away.code, away.json["ok"]) == (8, False)
    assert [one["ok"] for one in away.json["relays"]] == [False, True]
    assert (well.code, well.out.count("is ready.")) == (0, 2)
    assert "\twell; 1 faults so far\n" in listed.out


def test_both_away_leave_what_was_queued(case_file: Path, relays: Relays) -> None:
    relays(free_port(), free_port())
    done = process(*SEND, "--json")
    assert done.code == 8
    assert "No relay can be used just now." in done.json["error"]["message"]
    assert "kept in the outbox" in done.json["error"]["message"]
    counts = process("outbox", "list", "--json").json["counts"]
    assert counts == {"queued": 1}
    with Beside(Sink()) as second:
        relays(free_port(), second.port)
        assert process("deliver").code == 0


def test_list_shows_limits_and_needs_no_outbox(
    home: Path, referrals: Command, relays: Relays
) -> None:
    relays(2525, 2526, connections="3", rate_per_minute="60", security="none")
    done = referrals("relay", "list")
    assert done.code == 0
    assert [line.split("\t") for line in done.out.splitlines()] == [
        ["1", "relay", "127.0.0.1:2525", "none", "no limit", "no limit", "well"],
        ["2", "relays.backup", "127.0.0.1:2526", "none", "0 of 3", "60", "well"],
    ]
    assert not (home / "outbox").exists()


def test_without_a_relay_the_list_says_how_to_set_one(referrals: Command) -> None:
    done = referrals("relay", "list")
    assert done.code == 5
    assert "REFERRALS_RELAY_HOST" in done.err


def test_doctor_shows_all_of_them_and_no_password(referrals: Command, relays: Relays) -> None:
    relays(2525, 2526, username="u")
    words = referrals("doctor")
    assert "relays.backup.port = 2526   (REFERRALS_RELAYS_BACKUP_PORT)" in words.out
    assert "relays.backup.password is not set: it will be asked for." in words.out
    relays(2525, 2526, username="u", password=PASSWORD)
    words, as_json = referrals("doctor"), referrals("doctor", "--json")
    assert as_json.json["settings"]["relays.backup.password"] == "(set, not shown)"
    assert PASSWORD not in words.said + as_json.said


@pytest.mark.parametrize("argv", [SEND, ("deliver",), ("relay", "check")])
def test_where_nobody_can_be_asked_the_password_s_setting_is_named(
    argv: tuple[str, ...], case_file: Path, referrals: Command, relays: Relays
) -> None:
    relays(2525, 2526, username="u")
    done = referrals(*argv)
    assert done.code == 5
    assert "REFERRALS_RELAYS_BACKUP_PASSWORD" in done.err
    assert "relays_backup_password" in done.err


def test_a_file_of_authorities_that_can_not_be_read_is_named_by_its_relay(
    case_file: Path, referrals: Command, relays: Relays
) -> None:
    relays(2525, 2526, security="starttls", ca_file="nowhere.pem")
    for argv in (("deliver",), SEND):
        done = referrals(*argv, "--json")
        assert done.code == 5
        assert "relays.backup.ca_file" in json.dumps(done.json)
