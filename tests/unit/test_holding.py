"""What a hold says, what releasing an agency comes to, and how a message gets another address."""

from __future__ import annotations

import dataclasses
import hashlib
from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from referrals.delivery import DeliveryStatus
from referrals.directory import Directory
from referrals.errors import AddressUnverified, MessageRefused, NoAddress
from referrals.holding import (
    Addressed,
    Hold,
    Kept,
    Plan,
    Reason,
    Rerouting,
    check_present_address,
    number_of,
)
from referrals.message import Sender, compose_outgoing, readdressed
from referrals.rendering import Letter
from referrals.samples import sample_case
from referrals.service import Service, content_key, content_keys
from tests.conftest import NOW, TODAY

OLD, NEW = "old@agency.test", "New.Desk@agency.test"
LATER = datetime(2026, 12, 1, 9, 30, tzinfo=UTC)
TEXT = st.text(st.characters(codec="utf-8", exclude_characters="\0\ufffe\uffff"), max_size=400)


def composed(
    to: str, at: datetime, message_id: str, text: str = "a\nb\n", name: str = "Jo"
) -> bytes:
    letter = Letter(subject="Mediation R-1", text=f"{text}.\n", html=f"<p>{len(text)}</p>")
    return compose_outgoing(
        letter, Sender(name, "jo@police.test", "jo@police.test"), to, "OFFICIAL",
        date=at, message_id=message_id,
    )  # fmt: skip


@given(
    st.sampled_from(["short", "To: x\nDate: y\nMessage-ID: z\n\nTo: again\n", "é" * 300]),
    st.sampled_from(["Jo", "Zoë Ångström-Featherstonehaugh", "A. B, C " * 12]),
    st.sampled_from([NEW, "a@b.test", f"{'long' * 12}@{'domain' * 6}.test"]),
)
def test_it_is_what_would_have_been_composed_for_the_new_address(
    text: str, name: str, to: str
) -> None:
    """Octet for octet, folded headers and letters that look like headers included."""
    old = composed(OLD, NOW, "<R-1.old@police.test>", text, name)
    made = readdressed(old, to, date=LATER, message_id="<R-1.new@police.test>")
    assert made == composed(to, LATER, "<R-1.new@police.test>", text, name)


WHOLE = composed(OLD, NOW, "<R-1.old@police.test>")


@pytest.mark.parametrize(
    "content",
    [
        b"",
        WHOLE.replace(b"To: old", b"Cc: old"),
        WHOLE.replace(b"Date:", b"X-Date:"),
        WHOLE.replace(b"To: old", b"To: one@a.test\r\nto: old"),
        WHOLE.replace(b"Subject:", b"no header\r\nSubject:"),
        WHOLE.replace(b"\r\nSubject:", b"\nSubject:"),
        WHOLE[: WHOLE.index(b"\r\n\r\n") + 2],
    ],
)
def test_what_is_no_message_of_ours_is_not_guessed_at(content: bytes) -> None:
    with pytest.raises(MessageRefused):
        readdressed(content, NEW, date=LATER, message_id="<R-1.new@police.test>")


@pytest.mark.parametrize("to", ["", "a@b.test, c@d.test", "a@b.test\r\nBcc: c@d.test", "nobody"])
def test_only_one_plain_address_is_written(to: str) -> None:
    with pytest.raises(MessageRefused):
        readdressed(WHOLE, to, date=LATER, message_id="<R-1.new@police.test>")


def test_what_is_not_what_was_queued_gets_no_other_address() -> None:
    rerouting = Rerouting("a", NEW, accepted_unverified=False)
    kept = Kept(OLD, hashlib.sha256(WHOLE).hexdigest(), WHOLE)
    made = rerouting.message("R-1", "<R-1.old@police.test>", kept, "t", LATER)
    assert made is not None
    assert made.message_id == "<R-1.t@police.test>"
    assert made.sha256 == hashlib.sha256(made.content).hexdigest()
    changed = dataclasses.replace(kept, content=WHOLE + b"x")
    assert rerouting.message("R-1", "<R-1.old@police.test>", changed, "t", LATER) is None
    other = b"Subject: x\r\n\r\n"
    strange = Kept(OLD, hashlib.sha256(other).hexdigest(), other)
    assert rerouting.message("R-1", "<R-1.old@police.test>", strange, "t", LATER) is None


# By what a referral is known


def test_the_facts_key_is_the_same_whatever_the_address(
    service: Service, directory: Directory
) -> None:
    case, place = service.read(sample_case(directory, ["mediation"], TODAY))
    assessment = service.assess(case, place, "mediation")
    assert assessment.agency is not None
    whole, facts = content_keys(assessment)
    for email in (NEW, None):
        agency = assessment.agency.model_copy(update={"email": email})
        elsewhere = content_keys(dataclasses.replace(assessment, agency=agency))
        assert (elsewhere[0] != whole, elsewhere[1] == facts) == (True, True)
    assert whole == content_key(assessment)
    other = dataclasses.replace(assessment, answers={})
    assert content_keys(other)[1] != facts
    referral = service.prepare(assessment)
    made = service.submission(referral, token="t", accept_unverified=True)
    assert (made.content_key, made.facts_key) == (whole, facts)


# What releasing comes to


def one(recipient: str, status: str, *, waits: bool = False, whole: bool = True) -> Addressed:
    return Addressed(recipient, DeliveryStatus(status), waits, whole, 2)


def test_what_releasing_an_agency_comes_to() -> None:
    here, queued = one(NEW, "queued", waits=True), one(OLD, "queued", waits=True)
    delayed, uncertain = one(OLD, "delayed", waits=True), one(OLD, "uncertain")
    failed, forgotten = one(OLD, "failed"), one(OLD, "failed", whole=False)
    sending, failed_here = one(OLD, "sending"), one(NEW, "failed")
    everything = [
        here, queued, delayed, uncertain, failed, forgotten, sending, failed_here,
        one(NEW, "sending"),
    ]  # fmt: skip
    plain = Plan.of(everything, Rerouting("a", NEW, accepted_unverified=False))
    assert plain == Plan((here,), (queued, delayed), (uncertain, failed), (sending,))
    assert (number_of(plain.moving), plain.waiting) == (4, 6)
    along = Rerouting("a", NEW, accepted_unverified=False, with_uncertain=True, with_failed=True)
    assert Plan.of(everything, along) == Plan(
        (here,), (queued, delayed, uncertain, failed), (), (sending,)
    )


def test_the_address_must_be_there_and_checked_unless_that_is_accepted(
    directory: Directory,
) -> None:
    agency = directory.agencies["victim-care"]
    checked = agency.model_copy(update={"verified_on": TODAY})
    assert not check_present_address(checked, TODAY, accept_unverified=False)
    assert not check_present_address(checked, TODAY, accept_unverified=True)
    assert check_present_address(agency, TODAY, accept_unverified=True)
    with pytest.raises(AddressUnverified, match="directory verify victim-care"):
        check_present_address(agency, TODAY, accept_unverified=False)
    with pytest.raises(NoAddress, match="no address"):
        check_present_address(
            agency.model_copy(update={"email": None}), TODAY, accept_unverified=True
        )


@pytest.mark.parametrize("why", Reason)
def test_a_hold_is_told_in_words(why: Reason) -> None:
    hold = Hold("a", NOW, "jo", why)
    assert hold.words == f"held since 24 November 2026 12:00 UTC by jo: {why.words}"
    assert hold.detail == {"agency": "a", "why": str(why)}
