"""The outbox's pages: what they tell, who may decide, and what comes of it."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import pytest

from referrals.delivery import DeliveryStatus, Reply
from referrals.settings import RelaySettings, Security, Settings, WebSettings
from referrals.sink import Sink
from referrals.web.site import Role
from tests.conftest import NOW
from tests.e2e.conftest import Beside
from tests.peers import Say, ScriptedRelay
from tests.queued import SENDER
from tests.web.conftest import web_settings
from tests.web.signing import said
from tests.web.test_courier import until
from tests.web.visiting import ADDRESS, Filled, Visitor, visiting

REFUSED = Reply(550, "5.1.1", "no such <user> here")


pytestmark = pytest.mark.usefixtures("clock_stands_still")


@pytest.fixture
def filled(tmp_path: Path) -> Filled:
    """One of each status, the newest last."""
    made = Filled(web_settings(tmp_path))
    made.add("late", DeliveryStatus.RELAYED, ago=timedelta(days=9))
    made.add("relayed", DeliveryStatus.RELAYED, ago=timedelta(hours=8))
    made.add("failed", DeliveryStatus.FAILED, reply=REFUSED)
    made.add("delayed", DeliveryStatus.DELAYED)
    made.add("uncertain", DeliveryStatus.UNCERTAIN)
    made.add("held", DeliveryStatus.UNCERTAIN, hold=True)
    made.add("cancelled", DeliveryStatus.CANCELLED)
    made.add("sending", DeliveryStatus.SENDING)
    made.add("queued", DeliveryStatus.QUEUED)
    return made


@pytest.fixture
def visitor(filled: Filled) -> Iterator[Visitor]:
    with visiting(filled.settings, Role.SENDER) as one:
        yield one


def test_the_list_has_every_message_the_newest_first(filled: Filled, visitor: Visitor) -> None:
    answer = visitor.get("/outbox")
    text = said(answer)
    assert answer.status_code == 200
    places = [text.index(filled.reference(kind)) for kind in reversed(filled.cases)]
    assert places == sorted(places)
    assert f"{filled.reference('held')} Victim hardening Uncertain waits for you CASE-6" in text
    assert "late, was due 22 November 2026" in text
    assert "24 November 2026, 04:00" in text, "by the region's clock"
    assert "9 referrals" in text
    assert SENDER not in answer.text


def test_an_empty_outbox_says_so(tmp_path: Path) -> None:
    with visiting(web_settings(tmp_path)) as one:
        text = said(one.get("/outbox"))
    assert "Nothing was submitted yet." in text
    assert "No relay" not in text, "nothing waits for one"


@pytest.mark.parametrize("status", ["failed", "relayed", "delayed"])
def test_one_status_alone_can_be_shown(status: str, filled: Filled, visitor: Visitor) -> None:
    text = said(visitor.get(f"/outbox?status={status}"))
    for kind in filled.cases:
        wanted = kind == status or (status, kind) == ("relayed", "late")
        assert (filled.reference(kind) in text) == wanted, kind


def test_a_status_that_there_is_not_shows_all(filled: Filled, visitor: Visitor) -> None:
    assert "9 referrals" in said(visitor.get("/outbox?status=lost&page=-3"))


def test_a_referral_is_found_by_its_reference_or_its_cases(
    filled: Filled, visitor: Visitor
) -> None:
    wanted, other = filled.reference("failed"), filled.reference("queued")
    for find in (wanted, wanted.lower(), wanted.replace("-", " "), " case-3 "):
        text = said(visitor.get(f"/outbox?find={find}"))
        assert (wanted in text, other in text) == (True, False), find
    for find in ("CASE", "nobody", "<script>alert(1)</script>", "%00", "x" * 3000):
        answer = visitor.get(f"/outbox?find={find}")
        assert (answer.status_code, "There is nothing like that" in answer.text) == (200, True)
        assert "<script>alert" not in answer.text
    assert wanted not in said(visitor.get(f"/outbox?find={wanted}&status=queued"))


def test_a_page_waits_for_whoever_reads_it(filled: Filled, visitor: Visitor) -> None:
    """None loads itself anew: what is under way has a link instead (WCAG 2.2.1, F41)."""
    for kind in filled.cases:
        assert "http-equiv" not in visitor.get(f"/outbox/{filled.reference(kind)}").text, kind


def test_many_are_told_in_pages(tmp_path: Path) -> None:
    filled = Filled(web_settings(tmp_path))
    filled.add_queued(60)
    with visiting(filled.settings) as one:
        pages = [one.get(f"/outbox?page={number}").text for number in (1, 2, 3)]
        beyond = one.get("/outbox?page=99").text
        filtered = one.get("/outbox?status=queued&page=2").text
    for kind in filled.cases:
        where = [filled.reference(kind) in text for text in pages]
        assert where.count(True) == 1, kind
    assert [text.count('scope="row"') for text in pages] == [25, 25, 10]
    assert filled.reference("0") in beyond
    assert "/outbox?status=queued&amp;page=3" in filtered


# One


def test_one_referral_tells_its_attempts_and_what_to_do(filled: Filled, visitor: Visitor) -> None:
    answer = visitor.get(f"/outbox/{filled.reference('failed').lower()}")
    text = said(answer)
    assert "550 5.1.1 no such <user> here" in text
    assert "<user>" not in answer.text
    assert "The agency has not had it." in text
    assert "Read what the relay said" in text
    assert ADDRESS in text
    assert "Victim Care" in text
    assert SENDER not in answer.text
    assert "words of a letter" not in answer.text, "its content is nobody's to see here"


@pytest.mark.parametrize(
    ("kind", "buttons"),
    [
        ("queued", {"Cancel it"}),
        ("sending", set()),
        ("delayed", {"Try again now", "Cancel it"}),
        ("failed", {"Try again now", "Cancel it"}),
        ("uncertain", {"Record an answer", "Try again now", "Cancel it"}),
        ("held", {"Record an answer", "Try again now", "Cancel it"}),
        ("relayed", {"Record an answer"}),
        ("late", {"Record an answer", "Send a reminder"}),
        ("cancelled", set()),
    ],
)
def test_it_offers_what_the_outbox_would_do(
    kind: str, buttons: set[str], filled: Filled, visitor: Visitor
) -> None:
    text = said(visitor.get(f"/outbox/{filled.reference(kind)}"))
    known = {"Record an answer", "Try again now", "Cancel it", "Send a reminder"}
    assert {one for one in known if one in text} == buttons


def test_what_is_tried_again_says_when(filled: Filled, visitor: Visitor) -> None:
    for kind, words in (("delayed", "soon after."), ("uncertain", "and may arrive twice")):
        text = said(visitor.get(f"/outbox/{filled.reference(kind)}"))
        assert "tried again at 12:01 on 24 November 2026" in text
        assert words in text


def test_a_referral_that_is_not_there_is_not_found(visitor: Visitor) -> None:
    for reference in ("K7QM-29TX-WCF4", "<script>", "..%2f..%2fetc"):
        answer = visitor.get(f"/outbox/{reference}")
        assert answer.status_code == 404
        assert "<script>" not in answer.text.lower().replace('<script type="module"', "")


def test_retrying_makes_it_due_in_the_users_name(filled: Filled, visitor: Visitor) -> None:
    reference = filled.reference("failed")
    answer = visitor.post(f"/outbox/{reference}/retry")
    assert (answer.status_code, answer.headers["location"]) == (
        303,
        f"/outbox/{reference}?done=retried",
    )
    assert "It is tried again now." in said(visitor.get(answer.headers["location"]))
    with filled.open() as outbox:
        assert outbox.held(reference=reference)[0].status is DeliveryStatus.QUEUED
        [*_, last] = outbox.audit()
    assert (last.action, last.actor, last.reference) == ("retried", "jo", reference)


def test_cancelling_asks_first(filled: Filled, visitor: Visitor) -> None:
    path = f"/outbox/{filled.reference('failed')}/cancel"
    assert "Cancel this referral?" in said(visitor.get(path))
    with filled.open() as outbox:
        assert outbox.counts()["failed"] == 1
        assert visitor.post(path).status_code == 303
        assert "failed" not in outbox.counts()
    assert visitor.get(path).status_code == 409
    assert visitor.post(path).status_code == 409


def test_an_answer_is_recorded_with_the_day(filled: Filled, visitor: Visitor) -> None:
    path = f"/outbox/{filled.reference('late')}/answered"
    assert "Has the agency answered?" in said(visitor.get(path))
    assert "recorded" in said(visitor.get(visitor.post(path).headers["location"]))
    assert "Recorded on 24 November 2026" in said(visitor.get(path.removesuffix("/answered")))
    assert visitor.get(path).status_code == 409


def test_whose_content_is_forgotten_is_not_tried_again(filled: Filled, visitor: Visitor) -> None:
    with filled.open() as outbox:
        outbox.purge_unfinished(NOW + timedelta(days=1), NOW)
    text = said(visitor.get(f"/outbox/{filled.reference('failed')}"))
    assert "refer again from the case" in text
    assert "Try again now" not in text
    assert visitor.post(f"/outbox/{filled.reference('failed')}/retry").status_code == 409


def test_a_referrer_looks_and_does_not_decide(filled: Filled) -> None:
    reference = filled.reference("failed")
    with visiting(filled.settings, Role.REFERRER) as one:
        text = said(one.get(f"/outbox/{reference}"))
        assert "Try again now" not in text
        assert "Somebody who may submit referrals decides on this" in text
        for verb in ("retry", "cancel", "answered"):
            assert one.post(f"/outbox/{reference}/{verb}").status_code == 403
        assert one.get(f"/outbox/{reference}/cancel").status_code == 403
    with filled.open() as outbox:
        assert outbox.held(reference=reference)[0].status is DeliveryStatus.FAILED


def test_no_form_works_without_its_token(filled: Filled, visitor: Visitor) -> None:
    for verb in ("retry", "cancel", "answered"):
        path = f"/outbox/{filled.reference('held')}/{verb}"
        assert visitor.client.post(path, data={"csrf": "x"}).status_code == 403
    with filled.open() as outbox:
        assert outbox.held(reference=filled.reference("held"))[0].status == "uncertain"


def test_several_of_one_reference_are_all_told(tmp_path: Path) -> None:
    """The same referral with other facts, as `content_key` knows them apart."""
    filled = Filled(web_settings(tmp_path))
    first = filled.add("one", DeliveryStatus.CANCELLED, ago=timedelta(days=1))
    with filled.open() as outbox:
        outbox.queue([first], NOW)
    with visiting(filled.settings) as visitor:
        text = said(visitor.get(f"/outbox/{filled.reference('one')}"))
    assert "Queued before, with other facts" in text
    assert "Cancelled" in text


# What keeps it from being submitted


def test_unfinished_and_old_ones_are_named(tmp_path: Path) -> None:
    filled = Filled(web_settings(tmp_path))
    filled.add("old", DeliveryStatus.FAILED, ago=timedelta(days=100))
    with visiting(filled.settings) as visitor:
        text = said(visitor.get("/outbox"))
    assert "1 referral neither relayed nor cancelled, and untouched for 90 days or more" in text


def test_without_a_relay_what_waits_is_said_to_wait(visitor: Visitor) -> None:
    assert "No relay (outgoing mail server) is set up" in said(visitor.get("/outbox"))


def test_where_another_process_delivers_that_is_said(filled: Filled) -> None:
    relay = RelaySettings(host="127.0.0.1", port=9, security=Security.NONE)
    settings = filled.settings.model_copy(
        update={"relay": relay, "web": WebSettings(deliver=False)}
    )
    with visiting(settings) as one:
        assert "<code>referrals deliver</code> does" in one.get("/outbox").text


def test_a_relay_that_refuses_is_told_on_the_page_and_pages_go_on(tmp_path: Path) -> None:
    filled = Filled(web_settings(tmp_path))
    filled.add("queued", DeliveryStatus.QUEUED)
    relay = ScriptedRelay({"greeting": Say(b"554 5.7.1 <go> away\r\n", close=True)})
    with Beside(relay), visiting(_through(filled, relay.port)) as one:
        until(lambda: bool(one.site.courier.fault))
        for path in ("/outbox", f"/outbox/{filled.reference('queued')}"):
            text = said(one.get(path))
            assert "Nothing can be submitted just now" in text
            assert "5.7.1 <go> away" in text


def test_a_click_has_it_relayed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("referrals.worker._POLL_S", 3600.0)
    filled = Filled(web_settings(tmp_path))
    sent = filled.add("failed", DeliveryStatus.FAILED)
    with Beside(Sink()) as sink, visiting(_through(filled, sink.port), Role.SENDER) as one:
        one.post(f"/outbox/{filled.reference('failed')}/retry")
        until(lambda: bool(sink.arrived))
        [arrived] = sink.arrived
        assert (arrived.content, arrived.recipients) == (sent.outgoing.content, (ADDRESS,))
        path = f"/outbox/{filled.reference('failed')}"
        until(lambda: "Relayed" in said(one.get(path)))


def _through(filled: Filled, port: int) -> Settings:
    relay = RelaySettings(host="127.0.0.1", port=port, security=Security.NONE, timeout_s=5)
    return filled.settings.model_copy(update={"relay": relay})
