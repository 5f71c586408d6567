"""`hold` and `release`, as an operator uses them when an address is found wrong."""

from __future__ import annotations

import json
import shutil
from datetime import timedelta
from pathlib import Path

import pytest

from referrals.sink import Sink
from tests.conftest import CONFIG, NOW
from tests.e2e.conftest import Beside, Command, RelayEnv
from tests.peers import Drop, Say, ScriptedRelay, Step
from tests.postgres import server

OLD, NEW = "admin@nottsvictimcare.org.uk", "New.Desk@victimcare.example.org"
AGENCY = "victim-care"


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A deployment's own config/, the file with its addresses."""
    folder = tmp_path / "config"
    shutil.copytree(CONFIG, folder)
    monkeypatch.setenv("REFERRALS_CONFIG", str(folder))
    return folder / "regions" / "nottinghamshire" / "agencies.toml"


@pytest.fixture(params=["file", "database"])
def place(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.param == "database":
        monkeypatch.setenv("REFERRALS_DATABASE", server().url(server().new_database()))


def correct(config: Path, old: str = OLD, new: str = NEW) -> None:
    text = config.read_text()
    assert old in text
    config.write_text(text.replace(old, new))


def send(referrals: Command, case: str = "HC-1", *more: str) -> int:
    return referrals(
        "send", "victim-hardening", "case.json", "--yes", "--accept-unverified",
        "--set", f"reference={case}", *more,
    ).code  # fmt: skip


@pytest.mark.usefixtures("place", "case_file")
def test_an_address_that_is_wrong_is_corrected_and_what_was_kept_goes_there(
    referrals: Command, relay_env: RelayEnv, config: Path
) -> None:
    with Beside(Sink()) as sink:
        relay_env(sink.port)
        assert send(referrals, "HC-0") == 0
        done = referrals("hold", AGENCY, "--because", "wrong-address")
        assert done.code == 0
        assert "its address was found wrong" in done.out
        assert "0 messages kept" in done.out
        assert "referrals release victim-care" in done.out

        assert send(referrals, "HC-1") == 8
        assert send(referrals, "HC-1") == 8
        assert send(referrals, "HC-2") == 8
        assert referrals("deliver").code == 0
        assert len(sink.arrived) == 1

        correct(config)
        dry = referrals("release", AGENCY)
        assert dry.code == 0
        assert f"would be rerouted to {NEW}: 2 queued, now to {OLD}" in dry.out
        assert f"Nobody has checked {NEW}" in dry.out
        assert f"{OLD}: relayed 24 November 2026" in dry.out, "somebody has to see to that"
        assert "Nothing was changed" in dry.out
        assert len(referrals("outbox", "list", "--json").json["messages"]) == 3

        refused = referrals("release", AGENCY, "--yes")
        assert (refused.code, "directory verify victim-care" in refused.err) == (7, True)
        assert referrals("directory", "verify", AGENCY).code == 0
        done = referrals("release", AGENCY, "--yes")
        assert done.code == 0
        assert f"rerouted to {NEW}: 2 messages" in done.out
        assert "At another address" in done.out

        assert referrals("deliver").code == 0
        assert [one.recipients for one in sink.arrived] == [(OLD,), (NEW,), (NEW,)]
    [new, old] = [
        one for one in referrals("outbox", "list", "--json").json["messages"]
        if one["case_reference"] == "HC-1"
    ]  # fmt: skip
    assert (new["to"], new["status"], old["to"], old["status"]) == (
        NEW,
        "relayed",
        OLD,
        "cancelled",
    )
    assert (new["rerouted_to"], old["rerouted_to"]) == (None, NEW)
    assert f"cancelled, rerouted to {NEW}" in referrals("outbox", "list").out
    shown = referrals("outbox", "show", new["reference"])
    assert f"status: cancelled, rerouted to {NEW}" in shown.out
    assert f"next step: none: it was rerouted to {NEW}" in shown.out
    told = referrals("outbox", "show", new["reference"], "--json").json
    assert [one["rerouted_to"] for one in told] == [None, NEW]
    assert referrals("hold").out == "No agency is held.\n"
    assert referrals("audit", "verify").code == 0
    entries = referrals("audit", "list", "--json").json
    assert [one["action"] for one in entries].count("rerouted") == 2
    assert not any(one["detail"].get("accepted_unverified") for one in entries[-4:])


@pytest.mark.usefixtures("place", "case_file")
def test_everything_says_that_an_agency_is_held(
    referrals: Command, relay_env: RelayEnv, config: Path
) -> None:
    with Beside(Sink()) as sink:
        relay_env(sink.port)
        assert send(referrals, "HC-0") == 0
        assert referrals("hold", AGENCY, "--because", "agency-asked").code == 0
        words = "held since 24 November 2026 12:00 UTC by "
        sent = referrals(
            "send", "victim-hardening", "case.json", "--yes", "--accept-unverified"
        )  # fmt: skip
        assert (sent.code, words in sent.out) == (8, True)
        as_json = referrals(
            "send", "victim-hardening", "case.json", "--yes", "--accept-unverified", "--json"
        )
        assert (as_json.code, as_json.json["held"], as_json.json["status"]) == (8, True, "queued")
        reference = as_json.json["reference"]
        dry = referrals("send", "victim-hardening", "case.json")
        assert f"{words}" in dry.out
        listed = referrals("outbox", "list")
        assert "queued, held" in listed.out
        assert "1 message kept" in listed.out
        assert referrals("outbox", "list", "--json").json["holds"][0]["waiting"] == 1
        assert words in referrals("outbox", "show", reference).out
        assert referrals("outbox", "show", reference, "--json").json[0]["held"]
        assert words in referrals("deliver").out
        checked = referrals("directory", "check")
        assert (checked.code, words in checked.out) == (7, True)
        by_id = {
            one["id"]: one["held"]
            for one in referrals("directory", "check", "--json").json["agencies"]
        }
        assert by_id[AGENCY]
        assert not by_id["nhipp"]
        listed = referrals("hold")
        assert f"{AGENCY} is {words}" in listed.out
        assert "the agency asked for it; 1 message kept" in listed.out
        [told] = referrals("hold", "--json").json
        assert (told["agency"], told["why"], told["waiting"]) == (AGENCY, "agency-asked", 1)
        again = referrals("hold", AGENCY)
        assert (again.code, "is already held" in again.out) == (0, True)

        rows = [
            {**json.loads(Path("case.json").read_text()), "reference": f"HC-{n}",
             "intervention": "victim-hardening"} for n in (11, 12)
        ]  # fmt: skip
        Path("rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        batch = referrals("batch", "rows.jsonl", "--send", "--accept-unverified")
        assert batch.code == 0, batch.said
        assert "held, not verified lately" in batch.out
        assert "3 messages kept" in batch.out
        assert len(sink.arrived) == 1

        assert referrals("release", AGENCY, "--yes").code == 0, "to the address that it had"
        assert referrals("deliver").code == 0
        assert [one.recipients for one in sink.arrived] == [(OLD,)] * 4
    assert config.exists()


@pytest.mark.usefixtures("case_file")
def test_no_reminder_goes_to_an_agency_that_is_held(
    referrals: Command, relay_env: RelayEnv, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Beside(Sink()) as sink:
        relay_env(sink.port)
        assert send(referrals) == 0
    assert referrals("hold", AGENCY).code == 0
    monkeypatch.setattr("referrals.bootstrap.now", lambda: NOW + timedelta(days=60))
    assert "held since" in referrals("due").out
    done = referrals("due", "--draft")
    assert (done.code, "not drafted" in done.out, "held since" in done.out) == (7, True, True)
    [late] = referrals("due", "--json").json
    assert late["held"]


@pytest.mark.usefixtures("place", "case_file")
@pytest.mark.parametrize(
    ("step", "outcome", "code", "option"),
    [
        ({"rcpt": Say(b"550 5.1.1 no such mailbox\r\n")}, "failed", 9, "--with-failed"),
        ({"content": Drop()}, "uncertain", 10, "--with-uncertain"),
    ],
)
def test_what_failed_or_is_uncertain_is_taken_along_if_one_says_so(
    step: dict[str, Step], outcome: str, code: int, option: str,
    referrals: Command, relay_env: RelayEnv, config: Path,
) -> None:  # fmt: skip
    with Beside(ScriptedRelay(step)) as relay:
        relay_env(relay.port)
        assert send(referrals) == code
    assert referrals("hold", AGENCY).code == 0
    correct(config)
    dry = referrals("release", AGENCY)
    assert f"would stay as it is: 1 {outcome}, to {OLD}" in dry.out
    [held] = referrals("outbox", "list", "--json").json["messages"]
    retried = referrals("outbox", "retry", held["reference"])
    assert (retried.code, f"was to go to {OLD}" in retried.err) == (6, True), "nobody tries that"
    assert f"would be rerouted to {NEW}: 1 {outcome}" in referrals("release", AGENCY, option).out
    [staying] = referrals("release", AGENCY, "--json").json["staying"]
    assert staying == {"to": OLD, "status": outcome, "number": 1}
    done = referrals("release", AGENCY, option, "--yes", "--accept-unverified", "--json")
    assert (done.code, len(done.json["rerouted"]), done.json["to"]) == (0, 1, NEW)
    assert [one["to"] for one in done.json["others_have"]] == [OLD] * (outcome == "uncertain")
    with Beside(Sink()) as sink:
        relay_env(sink.port)
        assert referrals("deliver").code == 0
        assert [one.recipients for one in sink.arrived] == [(NEW,)]
    rerouted = [
        one for one in referrals("audit", "list", "--json").json if one["action"] == "rerouted"
    ]
    assert [one["detail"]["accepted_unverified"] for one in rerouted] == [True]


def renamed(config: Path) -> None:
    """The agency leaves the directory, and another takes its place."""
    correct(config, 'id = "victim-care"', 'id = "somebody-else"')
    interventions = config.parents[2] / "interventions"
    for file in interventions.glob("*.toml"):
        file.write_text(file.read_text().replace('"victim-care"', '"somebody-else"'))


@pytest.mark.usefixtures("place", "case_file")
def test_an_agency_that_has_left_the_directory_can_be_held_while_something_waits(
    referrals: Command, relay_env: RelayEnv, config: Path
) -> None:
    with Beside(ScriptedRelay({"rcpt": Say(b"451 4.7.1 come back\r\n")})) as relay:
        relay_env(relay.port)
        assert send(referrals) == 8
    renamed(config)
    assert "1 message kept" in referrals("hold", AGENCY).out
    refused = referrals("release", AGENCY, "--yes")
    assert (refused.code, "the directory has no address for it" in refused.err) == (7, True)
    [held] = referrals("outbox", "list", "--json").json["messages"]
    assert referrals("outbox", "cancel", held["reference"]).code == 0
    assert referrals("release", AGENCY, "--yes").code == 0
    assert referrals("hold", AGENCY).code == 2, "nothing of its is in the outbox any more"


@pytest.mark.usefixtures("case_file")
def test_what_waits_can_be_held_though_config_has_a_mistake(
    referrals: Command, relay_env: RelayEnv, config: Path
) -> None:
    with Beside(ScriptedRelay({"rcpt": Say(b"451 4.7.1 come back\r\n")})) as relay:
        relay_env(relay.port)
        assert send(referrals) == 8
    correct(config, OLD, "nobody")
    assert referrals("hold", AGENCY).code == 0
    assert referrals("hold", "nhipp").code == 5


@pytest.mark.parametrize(
    ("argv", "code", "said"),
    [
        (["hold", "victim-car"], 2, "Did you mean victim-care? There are: "),
        (["hold", "victim-care", "--because", "I say so"], 2, "not-answering"),
        (["hold", "--because", "other"], 2, "--because goes with AGENCY"),
        (["release", "victim-car", "--yes"], 2, "Did you mean victim-care?"),
        (["release", "victim-care", "--yes"], 6, "victim-care is not held"),
        (["release"], 2, "Missing argument 'AGENCY'"),
    ],
)
def test_what_can_not_be_done_is_said_so(
    argv: list[str], code: int, said: str, referrals: Command
) -> None:
    done = referrals(*argv)
    assert (done.code, said in done.err) == (code, True), done.err


def test_looking_makes_nothing(referrals: Command, home: Path) -> None:
    assert referrals("hold").out == "No agency is held.\n"
    assert referrals("hold", "--json").json == []
    assert list(home.iterdir()) == []
