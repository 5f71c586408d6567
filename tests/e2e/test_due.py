"""Whose answer is late, and reminders to them, by the command line."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from datetime import timedelta
from email import message_from_bytes
from email.policy import default
from pathlib import Path

import pytest

from referrals.sink import Sink
from tests.conftest import CONFIG
from tests.e2e.conftest import Beside, Command, RelayEnv
from tests.e2e.test_outbox import NO, SEND, clock, send
from tests.peers import Drop

__all__ = ["clock"]

Clock = Callable[[timedelta], None]
ADDRESS = "community@nottinghamcityhomes.org.uk"


@pytest.fixture
def reference(case_file: Path, referrals: Command, relay_env: RelayEnv) -> str:
    """A referral that was relayed on 24 November and is to be answered by 1 December."""
    return send(referrals, relay_env)


def test_an_answer_is_awaited_until_it_is_recorded(
    reference: str, referrals: Command, clock: Clock
) -> None:
    clock(timedelta(days=7))
    assert referrals("due").out == "Nothing is overdue.\n"
    assert referrals("due", "--draft").out == "Nothing is overdue.\n"
    clock(timedelta(days=8))
    told = referrals("due").out
    assert told.split("\t")[:3] == ["NCH (Nottingham City Homes)", "1 day late", reference]
    [one] = referrals("due", "--json").json
    assert (one["acknowledge_by"], one["days_late"]) == ("2026-12-01", 1)
    assert "answered, recorded on 2 December 2026" in referrals("ack", reference).out
    assert referrals("due", "--json").json == []
    assert "recorded on 2 December 2026" in referrals("outbox", "show", reference).out
    refused = referrals("due", reference)
    assert (refused.code, "was answered" in refused.err) == (6, True)


def test_a_reminder_is_drafted_once_and_stays_as_it_was_edited(
    reference: str, referrals: Command, clock: Clock, home: Path
) -> None:
    clock(timedelta(days=8))
    done = referrals("due", "--draft")
    draft = home / "outbox" / "drafts" / f"{reference}-mediation-reminder.eml"
    assert (done.code, "reminder drafted" in done.out, draft.stat().st_mode & 0o777) == (
        0,
        True,
        0o600,
    )
    message = message_from_bytes(draft.read_bytes(), policy=default)
    shown = referrals("outbox", "show", reference, "--json").json[0]
    assert (message["To"], message["From"], message["X-Unsent"]) == (ADDRESS, None, "1")
    assert message["In-Reply-To"] == shown["message_id"]
    clock(timedelta(days=50))
    assert "drafted before, unchanged" in referrals("due", "--draft").out
    draft.write_bytes(draft.read_bytes() + b"edited")
    edited = referrals("due", "--draft")
    assert (edited.code, "differs" in edited.out) == (6, True)
    assert draft.read_bytes().endswith(b"edited")
    assert referrals("due", "--draft", "--beside").code == 0
    assert len(list(draft.parent.glob("*.eml"))) == 2


def test_a_reminder_needs_no_content_and_names_nobody(
    reference: str, referrals: Command, clock: Clock, home: Path
) -> None:
    clock(timedelta(days=40))
    assert referrals("outbox", "purge", "--json").json["purged"] == 1
    [one] = referrals("due", "--draft", reference.lower(), "--out", "rem", "--json").json
    content = (home / one["reminder"]["path"]).read_bytes()
    assert (one["not_drafted"], one["reminder"]["written"]) == (None, True)
    case = json.loads((home / "case.json").read_text())
    texts = [*case["people"]["victim"].values(), *case["referrer"].values()]
    known = [text for text in texts if isinstance(text, str)]
    assert len(known) > 5
    assert [text for text in known if text.encode() in content] == []


def test_from_is_only_what_was_given(reference: str, referrals: Command, clock: Clock) -> None:
    clock(timedelta(days=8))
    who = ("--from", "jo@council.example.com", "--name", "Jo")
    assert referrals("due", "--draft", "--out", "rem", *who).code == 0
    [file] = Path("rem").glob("*.eml")
    message = message_from_bytes(file.read_bytes(), policy=default)
    assert message["From"] == "Jo <jo@council.example.com>"
    for wrong in (
        ["--draft", "--from", "nobody"],
        ["--draft", "--name", "Jo"],
        ["--from", "jo@council.example.com"],
        ["--out", "rem"],
    ):
        assert referrals("due", *wrong).code == 2, wrong


def test_a_name_that_can_not_stand_in_a_header_is_refused(
    reference: str, referrals: Command, clock: Clock, home: Path
) -> None:
    clock(timedelta(days=8))
    who = ("--from", "jo@council.example.com", "--name", "Jo\r\nBcc: x@example.com")
    assert referrals("due", "--draft", *who).code == 5
    assert not list((home / "outbox").rglob("*.eml"))


def test_a_changed_address_gets_no_reminder_and_the_others_do(
    reference: str,
    referrals: Command,
    relay_env: RelayEnv,
    clock: Clock,
    home: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with Beside(Sink()) as relay:
        relay_env(relay.port)
        referrals("send", "victim-hardening", "case.json", "--yes", "--accept-unverified")
    config = Path(shutil.copytree(CONFIG, home / "config"))
    agencies = config / "regions" / "nottinghamshire" / "agencies.toml"
    text = agencies.read_text(encoding="utf-8")
    agencies.write_text(text.replace(ADDRESS, "mediation@council.example.com"), encoding="utf-8")
    monkeypatch.setenv("REFERRALS_CONFIG", str(config))
    clock(timedelta(days=30))
    assert "the address has changed" in referrals("due").out
    done = referrals("due", "--draft")
    assert done.code == 7
    assert f"this went to {ADDRESS}" in done.out
    [draft] = (home / "outbox" / "drafts").glob("*.eml")
    assert draft.name.endswith("-victim-hardening-reminder.eml")
    assert b"mediation@council.example.com" not in draft.read_bytes()


def test_only_what_is_late_gets_a_reminder(
    case_file: Path, referrals: Command, relay_env: RelayEnv, clock: Clock, home: Path
) -> None:
    failed = send(referrals, relay_env, NO)
    with Beside(Sink()) as relay:
        relay_env(relay.port)
        referrals("send", "victim-hardening", "case.json", "--yes", "--accept-unverified")
    early = referrals("outbox", "list", "--json").json["messages"][0]["reference"]
    for reference, words in (
        (failed, "is failed, so nobody can have answered it"),
        (early, "is not late: an answer was asked for by"),
        ("K7QM-29TX-WCF4", "is not in the outbox"),
    ):
        done = referrals("due", "--draft", reference)
        assert (done.code, words in done.err) == (6, True)
    assert not (home / "outbox" / "drafts").exists()


def test_one_that_is_still_being_tried_gets_no_reminder(
    case_file: Path, referrals: Command, relay_env: RelayEnv, clock: Clock
) -> None:
    send(referrals, relay_env, {"content": Drop()})
    clock(timedelta(days=8))
    done = referrals("due", "--draft")
    assert (done.code, "still being tried" in done.out) == (7, True)


def test_one_that_may_not_have_arrived_says_so(
    case_file: Path,
    referrals: Command,
    relay_env: RelayEnv,
    clock: Clock,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("REFERRALS_DELIVERY_ON_UNCERTAIN", "hold")
    reference = send(referrals, relay_env, {"content": Drop()})
    clock(timedelta(days=8))
    assert "it may not have arrived" in referrals("due").out
    assert referrals("due", "--draft").code == 0
    draft = Path(f"outbox/drafts/{reference}-mediation-reminder.eml").read_bytes()
    message = message_from_bytes(draft, policy=default)
    part = message.get_body(("plain",))
    assert part is not None
    assert "can't tell whether it reached you" in part.get_content()


def test_of_two_with_one_reference_one_reminder_is_drafted(
    reference: str, referrals: Command, relay_env: RelayEnv, clock: Clock, home: Path
) -> None:
    """Facts that changed are another message of the same referral."""
    clock(timedelta(days=1))
    with Beside(Sink()) as relay:
        relay_env(relay.port)
        assert referrals(*SEND, "--set", "answers.mediation.began=In May").code == 0
    clock(timedelta(days=20))
    done = referrals("due", "--draft", "--json")
    assert (done.code, [one["reference"] for one in done.json]) == (0, [reference] * 2)
    [draft] = (home / "outbox" / "drafts").glob("*.eml")
    assert b"25 November 2026" in draft.read_bytes()
