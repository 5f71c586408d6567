"""`directory`: the addresses, which of them somebody has to ask about, and that one is right."""

from __future__ import annotations

import json
import shutil
from datetime import timedelta
from pathlib import Path

import pytest

from referrals.directory import Directory
from referrals.sink import Sink
from tests.conftest import CONFIG, NOW
from tests.e2e.conftest import Beside, Command, RelayEnv, process

ADDRESS = "admin@nottsvictimcare.org.uk"
SEND = ("send", "victim-hardening", "case.json", "--yes")


def test_list_has_every_agency(referrals: Command, directory: Directory) -> None:
    done = referrals("directory", "list")
    rows = [line.split("\t") for line in done.out.splitlines()]
    assert [row[0] for row in rows] == list(directory.agencies)
    assert ["victim-care", ADDRESS, "victim-hardening", "never checked by us"] in rows
    told = {one["id"]: one for one in referrals("directory", "list", "--json").json}
    assert told["nhipp"]["receives"] == {"repeat-victim-panel": ["Nottingham City"]}
    assert told["authorising-inspector"]["standing"] == "no-address"


def test_check_says_which_were_never_checked(referrals: Command, home: Path) -> None:
    done = referrals("directory", "check")
    assert done.code == 7
    assert f"ask  victim-care: {ADDRESS}: never checked by us" in done.out
    assert "note authorising-inspector: no address: drafts only" in done.out
    assert "ring 0115 746 9138" in done.out, "alerts are told"
    assert not (home / "outbox").exists(), "looking makes nothing"


def test_check_is_content_once_all_are_checked(
    referrals: Command, directory: Directory, monkeypatch: pytest.MonkeyPatch
) -> None:
    for agency in directory.agencies.values():
        if agency.email:
            assert referrals("directory", "verify", agency.id).code == 0
    assert referrals("directory", "check").code == 0
    assert referrals("directory", "check", "--json").json["ok"]
    for days, within, code, word in (
        (160, "30", 0, "note "), (160, "10", 0, "ok   "), (181, "30", 7, "ask  "),
    ):  # fmt: skip
        monkeypatch.setattr("referrals.bootstrap.now", lambda days=days: NOW + timedelta(days))
        done = referrals("directory", "check", "--within", within)
        assert (done.code, f"{word}victim-care" in done.out) == (code, True), days


def test_check_says_every_mistake_of_config(
    referrals: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tmp_path / "config"
    shutil.copytree(CONFIG, config)
    agencies = config / "regions" / "nottinghamshire" / "agencies.toml"
    broken = agencies.read_text().replace(ADDRESS, "nobody").replace("spc@broxtowe", "spc broxtowe")
    agencies.write_text(broken)
    monkeypatch.setenv("REFERRALS_CONFIG", str(config))
    done = referrals("directory", "check", "--json")
    assert done.code == 5
    wheres = [problem["where"] for problem in done.json["error"]["problems"]]
    assert len([where for where in wheres if where.endswith("email")]) == 2


def test_a_verified_address_may_be_submitted_to(
    case_file: Path, referrals: Command, relay_env: RelayEnv
) -> None:
    with Beside(Sink()) as sink:
        relay_env(sink.port)
        assert referrals(*SEND).code == 7
        done = referrals("directory", "verify", "victim-care", "--on", "02/11/2026", "--by", "Sam")
        assert done.code == 0
        assert "checked on 2 November 2026 by Sam; to be checked again by 1 May 2027" in done.out
        assert referrals(*SEND).code == 0
        assert [one.recipients for one in sink.arrived] == [(ADDRESS,)]
        assert referrals("directory", "verify", "victim-care", "--withdraw").code == 0
        again = referrals(*SEND, "--set", "reference=CASE-77")
        assert again.code == 7
    actions = [one["action"] for one in referrals("audit", "list", "--json").json]
    assert [action for action in actions if action.startswith("address")] == [
        "address verified",
        "address verification withdrawn",
    ]
    assert referrals("audit", "verify").code == 0


def test_today_and_oneself_unless_said_otherwise(
    referrals: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("getpass.getuser", lambda: "jbloggs")
    told = referrals("directory", "verify", "victim-care", "--json").json
    assert (told["verified_on"], told["verified_by"]) == ("2026-11-24", "jbloggs")
    assert (told["verified"], told["standing"]) == (True, "verified")


@pytest.mark.parametrize(
    ("argv", "code", "said"),
    [
        (["victim-car"], 2, "Did you mean victim-care?"),
        (["victim-care", "--on", "2026-11-25"], 2, "in the future"),
        (["victim-care", "--on", "May"], 2, "is not a date"),
        (["victim-care", "--by", "a\nb"], 2, "more than one line"),
        (["victim-care", "--by", "Sam", "--withdraw"], 2, "do not go with --withdraw"),
        (["authorising-inspector"], 7, "has no address"),
        (["victim-care", "--withdraw"], 6, "nothing is recorded"),
    ],
)
def test_what_can_not_be_recorded(
    argv: list[str], code: int, said: str, referrals: Command
) -> None:
    done = referrals("directory", "verify", *argv)
    assert (done.code, said in done.err) == (code, True), done.err
    assert referrals("audit", "list", "--json").json == []


def test_other_processes_know_it(home: Path) -> None:
    assert process("directory", "verify", "victim-care").code == 0
    told = {one["id"]: one for one in json.loads(
        process("directory", "list", "--json").out)}  # fmt: skip
    assert told["victim-care"]["verified"]
