"""Holds on the page: who may begin and end one, what is said before, and what comes of it."""

from __future__ import annotations

import re
import shutil
import sqlite3
import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from pydantic import SecretStr

from referrals.bootstrap import open_outbox
from referrals.case_files import flatten
from referrals.delivery import DeliveryStatus, Reply
from referrals.errors import TransientDeliveryError
from referrals.holding import Reason
from referrals.outboxes.sqlite.outbox import SqliteOutbox
from referrals.ports import Outbox
from referrals.queueing import Outcome
from referrals.relay_health import RelayFault
from referrals.settings import FurtherRelay, RelaySettings, Security, Settings, WebSettings
from referrals.sink import Sink
from referrals.transports.failover import shared_name
from referrals.web import hold_pages
from referrals.web.site import Role
from tests.conftest import CONFIG, NOW
from tests.e2e.conftest import Beside
from tests.peers import run
from tests.postgres import server
from tests.rows import as_csv, rows_of
from tests.web.asking import Api, api_of
from tests.web.conftest import browsing, web_settings
from tests.web.held import AGENCY, FAILED, NEW, RELAYED, UNCERTAIN, correct, put, reference
from tests.web.signing import said
from tests.web.test_batch_pages import Visit
from tests.web.test_courier import until
from tests.web.test_journey import sample
from tests.web.test_metrics import asking, figures
from tests.web.visiting import ADDRESS, Visitor, visiting
from tests.web.walking import Form, Walker

PAGE, OTHER = f"/directory/{AGENCY}", "/directory/nottingham-city-homes"
HELD = "Held since 24 November 2026, 12:00, by jo: its address was found wrong."

pytestmark = pytest.mark.usefixtures("clock_stands_still")


@pytest.fixture
def config(tmp_path: Path) -> Path:
    """A deployment's own config/."""
    folder = tmp_path / "config"
    shutil.copytree(CONFIG, folder)
    return folder


@pytest.fixture
def settings(tmp_path: Path, config: Path) -> Settings:
    """With a relay that nothing is given to."""
    relay = RelaySettings(host="127.0.0.1", port=25, security=Security.NONE)
    made = web_settings(tmp_path, deliver=False)
    return made.model_copy(update={"config": config, "relay": relay})


@pytest.fixture
def visitor(settings: Settings) -> Iterator[Visitor]:
    with visiting(settings) as one:
        yield one


def hold(visitor: Visitor, why: str = "wrong-address") -> None:
    answer = visitor.post(f"{PAGE}/hold", {"why": why})
    assert (answer.status_code, answer.headers["location"]) == (303, f"{PAGE}?done=held")


def release_form(visitor: Visitor, **more: str) -> dict[str, Any]:
    values = Form(visitor.get(f"{PAGE}/release").text, f"{PAGE}/release").values
    values.pop("csrf")
    return {**values, **more}


def recipients(settings: Settings) -> dict[str, list[tuple[str, str]]]:
    """Status and recipient of each message of a reference, the oldest first."""
    found: dict[str, list[tuple[str, str]]] = {}
    with open_outbox(settings) as outbox:
        for one in reversed(outbox.held()):
            found.setdefault(one.reference, []).append((str(one.status), one.recipient))
    return found


# Holding


def test_an_administrator_holds_an_agency_and_every_page_says_so(
    visitor: Visitor, settings: Settings
) -> None:
    put(settings, 1)
    asked = said(visitor.get(f"{PAGE}/hold"))
    assert "Hold this agency?" in asked
    assert "1 message waits for it now." in asked
    hold(visitor)
    text = said(visitor.get(f"{PAGE}?done=held"))
    assert "The agency is held. Nothing goes to it until it is released." in text
    assert f"{HELD} 1 message kept." in text
    assert f"{HELD} 1 message kept." in said(visitor.get("/directory"))
    with open_outbox(settings) as outbox:
        [*_, entry] = outbox.audit()
    assert (entry.action, entry.actor) == ("agency held", "jo")
    assert entry.detail == {"agency": AGENCY, "why": "wrong-address"}


def test_a_reason_is_chosen(visitor: Visitor, settings: Settings) -> None:
    form = Form(visitor.get(f"{PAGE}/hold").text, f"{PAGE}/hold")
    assert form.offered["why"] == [str(one) for one in Reason]
    assert "why" not in form.values, "none is chosen beforehand"
    for typed in ({}, {"why": "<script>alert(1)</script>"}):
        answer = visitor.post(f"{PAGE}/hold", typed)
        assert answer.status_code == 422
        assert "Choose why nothing is to go to this agency" in said(answer)
        assert 'href="#why"' in answer.text
        assert 'id="why"' in answer.text
        assert "<script>alert" not in answer.text
    with open_outbox(settings) as outbox:
        assert outbox.holds() == []


def test_a_second_click_changes_nothing(visitor: Visitor, settings: Settings) -> None:
    hold(visitor)
    answer = visitor.post(f"{PAGE}/hold", {"why": "other"})
    assert answer.headers["location"] == f"{PAGE}?done=held-before"
    assert "was held before already" in said(visitor.get(answer.headers["location"]))
    assert visitor.get(f"{PAGE}/hold").headers["location"] == PAGE
    with open_outbox(settings) as outbox:
        assert [one.why for one in outbox.holds()] == [Reason.WRONG_ADDRESS]
        assert [entry.action for entry in outbox.audit()] == ["agency held"]


@pytest.mark.parametrize("role", [Role.REFERRER, Role.SENDER])
def test_nobody_else_holds_or_releases(role: Role, settings: Settings) -> None:
    with visiting(settings) as administrator:
        hold(administrator)
        form = release_form(administrator)
    with visiting(settings, role) as one:
        assert HELD in said(one.get(PAGE))
        assert "An administrator of this service releases the agency" in said(one.get(PAGE))
        for path, typed in ((f"{PAGE}/release", form),
                            (f"{OTHER}/hold", {"why": "other"})):  # fmt: skip
            assert "Hold this agency" not in said(one.get(OTHER))
            assert one.get(path).status_code == 403
            assert one.post(path, typed).status_code == 403
        assert one.get(f"{PAGE}/elsewhere").status_code == 200
    with open_outbox(settings) as outbox:
        assert [one.agency for one in outbox.holds()] == [AGENCY]


def test_no_form_works_without_its_token(visitor: Visitor, settings: Settings) -> None:
    assert visitor.client.post(f"{PAGE}/hold", data={"why": "other"}).status_code == 403
    hold(visitor)
    form = release_form(visitor) | {"csrf": "x"}
    assert visitor.client.post(f"{PAGE}/release", data=form).status_code == 403
    with open_outbox(settings) as outbox:
        assert len(outbox.holds()) == 1


def test_an_agency_that_there_is_not_is_not_found(visitor: Visitor) -> None:
    for verb in ("hold", "release", "elsewhere"):
        assert visitor.get(f"/directory/nobody/{verb}").status_code == 404
    assert visitor.post("/directory/nobody/hold", {"why": "other"}).status_code == 404
    assert visitor.post("/directory/nobody/release").status_code == 404


# Releasing


@pytest.fixture
def kept(settings: Settings, config: Path) -> Iterator[Visitor]:
    """A held agency with something of every kind, its address corrected since."""
    put(settings, 1, RELAYED)
    put(settings, 2, FAILED)
    put(settings, 3, UNCERTAIN, on_hold=True)
    put(settings, 4)
    put(settings, 5)
    with visiting(settings) as one:
        hold(one)
    correct(config)
    with visiting(settings) as one:
        yield one


def test_it_is_said_first_what_would_go_where(kept: Visitor, settings: Settings) -> None:
    before = recipients(settings)
    text = said(kept.get(f"{PAGE}/release"))
    assert f"Address now {NEW}" in text
    assert "Nobody has checked it within 180 days" in text
    assert f"2 queued: rerouted from {ADDRESS} to {NEW}" in text
    assert f"1 failed, 1 uncertain, to {ADDRESS} : left as they are" in text
    assert f"{reference(1)} Victim hardening {ADDRESS} Relayed 24 November 2026, 12:00" in text
    assert recipients(settings) == before
    assert "Held since" in said(kept.get("/directory"))


def test_an_unchecked_address_is_accepted_by_a_tick(kept: Visitor, settings: Settings) -> None:
    refused = kept.post(f"{PAGE}/release", release_form(kept))
    assert refused.status_code == 422
    assert "Nobody has checked the address lately" in said(refused)
    assert 'href="#accept"' in refused.text
    assert 'id="accept"' in refused.text
    with open_outbox(settings) as outbox:
        assert len(outbox.holds()) == 1
    done = kept.post(f"{PAGE}/release", release_form(kept, accept="yes"))
    assert done.headers["location"] == f"{PAGE}?done=released"
    assert "The agency is released." in said(kept.get(done.headers["location"]))
    with open_outbox(settings) as outbox:
        details = [one.detail for one in outbox.audit() if one.action == "rerouted"]
        [*_, last] = outbox.audit()
    assert [one["accepted_unverified"] for one in details] == [True, True]
    assert (last.action, last.actor, last.detail["address"]) == ("agency released", "jo", NEW)


def test_what_waited_goes_to_the_new_address_and_the_rest_stays(
    kept: Visitor, settings: Settings
) -> None:
    kept.post(f"{PAGE}/release", release_form(kept, accept="yes"))
    assert recipients(settings) == {
        reference(1): [("relayed", ADDRESS)],
        reference(2): [("failed", ADDRESS)],
        reference(3): [("uncertain", ADDRESS)],
        reference(4): [("cancelled", ADDRESS), ("queued", NEW)],
        reference(5): [("cancelled", ADDRESS), ("queued", NEW)],
    }
    assert "Held" not in said(kept.get("/directory"))


def test_failed_and_uncertain_ones_are_taken_along_by_ticks(
    kept: Visitor, settings: Settings
) -> None:
    form = release_form(kept, accept="yes")
    kept.post(f"{PAGE}/release", form | {"with": ["uncertain", "failed"]})
    found = recipients(settings)
    for number in (2, 3):
        assert found[reference(number)][-1] == ("queued", NEW), number


def test_a_checked_address_needs_no_tick(kept: Visitor, settings: Settings) -> None:
    kept.post(f"{PAGE}/verify", {"on-day": "2", "on-month": "11", "on-year": "2026",
                                 "by": "Sam Smith", "address": NEW})  # fmt: skip
    form = Form(kept.get(f"{PAGE}/release").text, f"{PAGE}/release")
    assert "accept" not in form.offered
    kept.post(f"{PAGE}/release", release_form(kept))
    assert recipients(settings)[reference(4)][-1] == ("queued", NEW)


def test_only_what_the_page_showed_is_done(kept: Visitor, settings: Settings, config: Path) -> None:
    """Neither an address that config/ has since, nor one that a form names, nor another hold."""
    form = release_form(kept, accept="yes")
    for changed in ({"address": "other@example.com"}, {"since": NOW.isoformat() + "x"}):
        answer = kept.post(f"{PAGE}/release", form | changed)
        text = said(kept.get(answer.headers["location"]))
        assert "nothing was done" in text
        assert "other@example.com" not in text
    correct(config, "third@victimcare.example.org", NEW)
    with visiting(settings) as later:
        answer = later.post(f"{PAGE}/release", form)
        assert answer.headers["location"] == f"{PAGE}/release?stopped=changed"
    with open_outbox(settings) as outbox:
        assert len(outbox.holds()) == 1
        assert {one.recipient for one in outbox.held()} == {ADDRESS}


def test_a_second_click_releases_no_second_time(kept: Visitor, settings: Settings) -> None:
    form = release_form(kept, accept="yes")
    for _ in range(2):
        answer = kept.post(f"{PAGE}/release", form)
        assert answer.headers["location"] == f"{PAGE}?done=released"
    assert kept.get(f"{PAGE}/release").headers["location"] == PAGE
    assert len(recipients(settings)[reference(4)]) == 2
    with open_outbox(settings) as outbox:
        assert [one.action for one in outbox.audit()].count("agency released") == 1


def test_many_who_click_at_once_double_nothing(kept: Visitor, settings: Settings) -> None:
    form = release_form(kept, accept="yes")
    answers: list[int] = []
    with visiting(settings) as other:
        threads = [
            threading.Thread(
                target=lambda one=one: answers.append(one.post(f"{PAGE}/release", form).status_code)
            )
            for one in (kept, other)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert answers == [303, 303]
    assert recipients(settings)[reference(4)] == [("cancelled", ADDRESS), ("queued", NEW)]
    with open_outbox(settings) as outbox:
        assert outbox.holds() == []


@contextmanager
def locked(settings: Settings) -> Iterator[None]:
    """Another process writes for long."""
    file = settings.outbox / "outbox.sqlite3"
    with closing(sqlite3.connect(file, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        yield
        other.execute("ROLLBACK")


def test_a_long_release_goes_on_beside_the_page(
    kept: Visitor, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hold_pages, "PATIENCE_S", 0.05)
    form = release_form(kept, accept="yes")
    with locked(settings):
        answer = kept.post(f"{PAGE}/release", form)
        assert answer.headers["location"] == f"{PAGE}/release"
        text = said(kept.get(f"{PAGE}/release"))
        assert "It is being released" in text
        assert f"2 messages have still to be rerouted to {NEW} ." in text
        again = kept.post(f"{PAGE}/release", form)
        assert again.headers["location"] == f"{PAGE}/release"
        running = [one.name for one in threading.enumerate()]
        assert running.count("release") == 1, "it is the same one"
        assert "Held" in said(kept.get("/directory")), "pages go on"
    until(lambda: kept.get(f"{PAGE}/release").status_code == 303)
    assert recipients(settings)[reference(4)] == [("cancelled", ADDRESS), ("queued", NEW)]


def test_one_that_can_not_be_written_says_so_and_may_be_done_again(
    kept: Visitor, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(SqliteOutbox.open.__func__.__kwdefaults__, "patience_s", 0.1)  # type: ignore[attr-defined]
    form = release_form(kept, accept="yes")
    with locked(settings):
        answer = kept.post(f"{PAGE}/release", form)
        assert answer.headers["location"] == f"{PAGE}/release"
        text = said(kept.get(f"{PAGE}/release"))
        assert "Another process keeps it locked" in text
        assert "Release this agency?" in text
        assert "Traceback" not in text
    kept.post(f"{PAGE}/release", form)
    assert recipients(settings)[reference(4)][-1] == ("queued", NEW)


def test_a_fault_of_ours_is_told_calmly(
    kept: Visitor, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(*_: Any) -> Any:
        raise RuntimeError(ADDRESS)

    monkeypatch.setattr(hold_pages, "carry_out", broken)
    kept.post(f"{PAGE}/release", release_form(kept, accept="yes"))
    assert "The agency is still held, and nothing is lost." in said(kept.get(f"{PAGE}/release"))
    assert ADDRESS not in caplog.text


def test_what_is_under_way_elsewhere_keeps_the_hold(kept: Visitor, settings: Settings) -> None:
    with closing(sqlite3.connect(settings.outbox / "outbox.sqlite3")) as file, file:
        file.execute("UPDATE message SET status = 'sending', due_at = NULL WHERE reference = ?",
                     (reference(5),))  # fmt: skip
    assert "the hold can’t end before that is over" in said(kept.get(f"{PAGE}/release"))
    kept.post(f"{PAGE}/release", release_form(kept, accept="yes"))
    text = said(kept.get(f"{PAGE}/release"))
    assert f"{AGENCY} is still held: 1 message waits or is being submitted" in text


def test_an_agency_that_lost_its_address_is_explained(
    settings: Settings, config: Path, visitor: Visitor
) -> None:
    put(settings, 1)
    hold(visitor)
    correct(config, "", f'\nemail = "{ADDRESS}"')
    with visiting(settings) as one:
        text = said(one.get(f"{PAGE}/release"))
        assert "The directory has no address for this agency" in text
        assert "Release it" not in text
        assert one.post(f"{PAGE}/release").status_code == 409


def test_an_agency_that_left_the_directory_is_released(settings: Settings) -> None:
    with open_outbox(settings, "jo") as outbox:
        outbox.hold("gone", Reason.OTHER, NOW)
    with visiting(settings) as one:
        text = said(one.get("/directory"))
        assert "Held, and no longer in the directory gone : held since" in text
        path = "/directory/gone/release"
        form = Form(one.get(path).text, path).values
        assert one.post(path, {**form}).headers["location"] == "/directory?done=released"
        assert "The agency is released." in said(one.get("/directory?done=released"))
        assert one.get(path).status_code == 404


def test_it_is_the_same_where_the_outbox_is_in_a_database(settings: Settings, config: Path) -> None:
    database = SecretStr(server().url(server().emptied()))
    settings = settings.model_copy(update={"database": database})
    put(settings, 1, RELAYED)
    put(settings, 2, FAILED)
    put(settings, 4)
    with visiting(settings) as one:
        hold(one)
        assert f"{HELD} 1 message kept." in said(one.get("/directory"))
        alone = said(one.get("/outbox?status=kept"))
        assert [reference(number) in alone for number in (1, 2, 4)] == [False, False, True]
    correct(config)
    with visiting(settings) as one:
        assert f"1 queued: rerouted from {ADDRESS} to {NEW}" in said(one.get(f"{PAGE}/release"))
        one.post(f"{PAGE}/release", release_form(one, accept="yes"))
        assert reference(1) in said(one.get(f"{PAGE}/elsewhere"))
        text = said(one.get(f"/outbox/{reference(4)}"))
    assert "the message that replaced it" in text
    assert recipients(settings)[reference(4)] == [("cancelled", ADDRESS), ("queued", NEW)]


# What another address has


def test_what_another_address_has_is_listed_with_links(kept: Visitor) -> None:
    answer = kept.get(f"{PAGE}/elsewhere")
    text = said(answer)
    assert f"/outbox/{reference(1)}" in answer.text
    assert f"{reference(3)} Victim hardening {ADDRESS} Uncertain" in text
    assert "2 referrals, the newest first" in text
    for number in (2, 4, 5):
        assert reference(number) not in text, "it never went out"
    kept.post(f"/outbox/{reference(1)}/answered")
    assert reference(1) not in said(kept.get(f"{PAGE}/elsewhere"))


def test_there_are_none_elsewhere(visitor: Visitor) -> None:
    assert "There are none" in said(visitor.get(f"{PAGE}/elsewhere"))


# The outbox


def test_the_outbox_says_what_is_kept_and_shows_it_alone(kept: Visitor, settings: Settings) -> None:
    answer = kept.get("/outbox")
    text = said(answer)
    assert f"Victim Care is {HELD[0].lower()}{HELD[1:]} 2 messages kept." in text
    assert f"{reference(4)} Victim hardening Queued kept: agency held" in text
    assert "Kept, as its agency is held (2)" in text
    alone = said(kept.get("/outbox?status=kept"))
    assert "2 referrals kept, as their agency is held" in alone
    for number in range(1, 6):
        assert (reference(number) in alone) == (number in (4, 5)), number
    assert reference(4) in said(kept.get(f"/outbox?status=kept&find={reference(4)}"))
    assert reference(2) not in said(kept.get(f"/outbox?status=kept&find={reference(2)}")).replace(
        f'value="{reference(2)}"', ""
    )
    kept.post(f"{PAGE}/release", release_form(kept, accept="yes"))
    assert "None is kept." in said(kept.get("/outbox?status=kept"))


def test_many_that_are_kept_are_told_in_pages(settings: Settings, visitor: Visitor) -> None:
    for number in range(30):
        put(settings, number)
    hold(visitor)
    pages = [visitor.get(f"/outbox?status=kept&page={number}").text for number in (1, 2)]
    assert [text.count('scope="row"') for text in pages] == [25, 5]
    assert "/outbox?status=kept&amp;page=2" in pages[0]


def test_a_kept_referral_names_no_time(settings: Settings, visitor: Visitor) -> None:
    delayed = Outcome(DeliveryStatus.DELAYED, "relay:587", "sender", Reply.parse(451, "later"))
    put(settings, 1, delayed)
    assert "tried again at" in said(visitor.get(f"/outbox/{reference(1)}"))
    hold(visitor)
    text = said(visitor.get(f"/outbox/{reference(1)}"))
    assert "tried again at" not in text
    assert "it is kept. The agency is held since 24 November 2026, 12:00" in text
    assert "Try again now" not in text
    assert "Cancel it" in text


def test_one_that_is_retried_while_held_is_said_to_be_kept(
    visitor: Visitor, settings: Settings
) -> None:
    put(settings, 2, FAILED)
    hold(visitor)
    answer = visitor.post(f"/outbox/{reference(2)}/retry")
    assert answer.headers["location"].endswith("?done=retried-kept")
    assert "kept as long as the agency is held" in said(visitor.get(answer.headers["location"]))


@pytest.mark.parametrize("number", [2, 3])
def test_nobody_tries_the_old_address_again(number: int, kept: Visitor, settings: Settings) -> None:
    before = recipients(settings)
    text = said(kept.get(f"/outbox/{reference(number)}"))
    assert "Try again now" not in text
    assert f"The agency’s address is {NEW} by now" in text
    assert kept.post(f"/outbox/{reference(number)}/retry").status_code == 409
    with api_of(settings) as one:
        assert one.post(f"outbox/{reference(number)}/retry").status_code == 409
    assert recipients(settings) == before


def test_a_rerouted_message_leads_to_the_other_and_back(kept: Visitor) -> None:
    kept.post(f"{PAGE}/release", release_form(kept, accept="yes"))
    answer = kept.get(f"/outbox/{reference(4)}")
    text = said(answer)
    assert f"Rerouted To {NEW}: the message that replaced it" in text
    assert f"In place of One to {ADDRESS}" in text
    assert "Queued before, to another address" in text
    assert f"Cancelled rerouted to {NEW} It was to another address" in text
    assert "What to do Nothing: the other message is what counts now." in text
    assert f"Cancelled rerouted to {NEW}" in said(kept.get("/outbox"))
    links = re.findall(r'href="#(message-\d+)"', answer.text)
    assert len(set(links)) == 2
    for link in links:
        assert f'id="{link}"' in answer.text


# Before something is submitted


def test_it_is_said_before_submitting_that_a_referral_will_be_kept(settings: Settings) -> None:
    kept = "What is submitted now is queued and kept."
    with visiting(settings) as one:
        walker = Walker.with_case(one.client, sample(one.site, "victim-hardening"))
        assert kept not in walker.to_check("victim-hardening")
        seen = walker.seen()
        hold(one)
        for page in ("check", "preview/victim-hardening", "submit"):
            assert kept in said(one.get(f"{walker.at}/{page}")), page
        assert walker.seen() == seen, "the letter is the same"
        walker.submit("victim-hardening")
        text = said(one.get(f"{walker.at}/done"))
    assert "Queued" in text
    assert "It is kept safely: the agency is held since 24 November 2026, 12:00" in text
    assert "Look again" not in text


def test_one_that_is_held_while_somebody_checks_is_kept_and_nobody_waits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The relay is there, and the page does not wait for what it will not take."""

    def wait(_: float) -> None:
        raise AssertionError

    clock = SimpleNamespace(monotonic=time.monotonic, sleep=wait)
    monkeypatch.setattr("referrals.web.handover.time", clock)
    monkeypatch.setattr("referrals.worker._POLL_S", 3600.0)
    with Beside(Sink()) as sink:
        relay = RelaySettings(host="127.0.0.1", port=sink.port, security=Security.NONE)
        settings = Settings(outbox=tmp_path / "outbox", relay=relay, web=WebSettings(port=0))
        with visiting(settings) as one:
            walker = Walker.with_case(one.client, sample(one.site, "victim-hardening"))
            walker.to_check("victim-hardening")
            seen = walker.seen()
            hold(one)
            values = {**seen, "submit": "victim-hardening", "accept": "victim-hardening"}
            walker.post(f"{walker.at}/submit", values)
            [held] = _held(settings)
            assert held.status is DeliveryStatus.QUEUED
            assert sink.arrived == []
            one.post(f"{PAGE}/release", release_form(one))
            until(lambda: bool(sink.arrived))
            [arrived] = sink.arrived
    assert arrived.recipients == (ADDRESS,)


def _held(settings: Settings) -> list[Any]:
    with open_outbox(settings) as outbox:
        return outbox.held()


def test_a_spreadsheet_says_what_of_it_will_be_kept(settings: Settings) -> None:
    with visiting(settings) as one:
        cells = dict(flatten(sample(one.site, "victim-hardening")))
        visit = Visit(one.site)
        seen = visit.upload(as_csv(rows_of(cells, 3)))
        assert "would be queued and kept" not in seen.text
        hold(one)
        told = "Victim Care is held since 24 November 2026, 12:00"
        kept = "3 referrals to it would be queued and kept"
        for path in (seen.path, f"{seen.path}/submit"):
            text = said(visit.get(path))
            assert told in text, path
            assert kept in text, path
        done = seen.submit(3)
    assert "Nothing goes to Victim Care just now" in done.text
    assert {one.recipient for one in _held(settings)} == {ADDRESS}


def test_nobody_is_reminded_at_an_agency_that_is_held(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(settings, 1, RELAYED)
    monkeypatch.setattr("referrals.bootstrap.now", lambda: NOW + timedelta(days=30))
    with visiting(settings) as one:
        path = f"/due/{reference(1)}/reminder.eml"
        assert one.get(path).status_code == 200
        hold(one)
        assert "No reminder can be made. The agency is held since" in said(one.get("/due"))
        assert one.get(path).status_code == 409
        assert one.post("/due/reminders", {"reference": reference(1)}).status_code == 409


# What else is told at the top of the outbox


def test_a_restored_copy_is_told_and_nothing_besides(settings: Settings, visitor: Visitor) -> None:
    put(settings, 1)
    visitor.site.courier._fault = "/a/path/of/ours is a restored copy"
    with open_outbox(settings) as outbox:
        outbox.take_for_copy(NOW)
    for path in ("/outbox", f"/outbox/{reference(1)}"):
        text = said(visitor.get(path))
        assert "This outbox is a restored copy, so nothing is submitted now." in text
        assert "It knows nothing after 24 November 2026, 12:00" in text
        assert "An administrator runs referrals outbox restored on the server" in text
        assert "/a/path/of/ours" not in text


def test_relays_that_are_away_are_told_without_their_words(settings: Settings) -> None:
    backup = FurtherRelay(host="127.0.0.1", port=26, security=Security.NONE)
    settings = settings.model_copy(update={"relays": {"backup": backup}})
    fault = RelayFault.of(TransientDeliveryError("secret words", stage="connect"))

    async def away(outbox: Outbox, port: int) -> None:
        name = shared_name(f"127.0.0.1:{port}", "127.0.0.1")
        await outbox.note_fault(name, fault, NOW, on_trial=False)

    put(settings, 1, RELAYED)
    with visiting(settings) as one:
        with open_outbox(settings) as outbox:
            run(away(outbox, 99))
            assert "The relay" not in said(one.get("/outbox")), "it is none of ours any more"
            run(away(outbox, 25))
            text = said(one.get("/outbox"))
            assert (
                "The relay 127.0.0.1:25 could not be reached. It has been away since 24 November "
                "2026, 12:00, and is tried again by itself. The others are used meanwhile."
            ) in text
            run(away(outbox, 26))
        text = said(one.get("/outbox"))
    assert "The relay 127.0.0.1:26 could not be reached" in text
    assert "The others are used" not in text
    with visiting(settings) as one:
        assert "The relay 127" not in said(one.get(f"/outbox/{reference(1)}")), "it has gone out"
    assert "secret words" not in text


# The API


def test_a_program_holds_and_releases(settings: Settings, config: Path) -> None:
    put(settings, 1, RELAYED)
    put(settings, 2)
    with api_of(settings) as one:
        assert one.get("holds").json() == []
        begun = one.post(f"directory/{AGENCY}/hold?because=wrong-address").json()
        told = {
            "agency": AGENCY, "since": NOW.isoformat(), "by": "token:administrator-1",
            "why": "wrong-address", "waiting": 1,
        }  # fmt: skip
        assert begun == {**told, "new": True, "under_way": 0}
        assert one.post(f"directory/{AGENCY}/hold?because=other").json()["new"] is False
        assert one.post(f"directory/{AGENCY}/hold").status_code == 422
        assert one.post(f"directory/{AGENCY}/hold?because=none").status_code == 422
        assert one.get("holds").json() == [told]
        listed = one.get("outbox").json()
        assert listed["holds"] == [told]
        assert [each["held"] for each in listed["messages"]] == [True, False]
        [alone] = one.get("outbox?held=true").json()["messages"]
        assert alone["reference"] == reference(2)
        assert one.get(f"outbox/{reference(2)}").json()[0]["held"] is True
    correct(config)
    with browsing(settings) as client:
        one = Api(client, settings, one.token)
        plan = one.get(f"holds/{AGENCY}").json()
        assert (plan["to"], plan["verified"], plan["released"]) == (NEW, False, False)
        assert plan["rerouting"] == [{"to": ADDRESS, "status": "queued", "number": 1}]
        assert [each["reference"] for each in plan["others_have"]] == [reference(1)]
        refused = one.post(f"directory/{AGENCY}/release")
        assert (refused.status_code, refused.json()["error"]["code"]) == (409, "address-unverified")
        done = one.post(f"directory/{AGENCY}/release?accept_unverified=true")
        assert (done.status_code, done.json()["released"]) == (200, True)
        assert one.get("holds").json() == []
        assert one.get(f"holds/{AGENCY}").status_code == 409
        new, old = one.get(f"outbox/{reference(2)}").json()
        assert (new["to"], new["rerouted_to"]) == (NEW, None)
        assert (old["status"], old["rerouted_to"]) == ("cancelled", NEW)


def test_a_program_hears_that_a_long_release_goes_on(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("referrals.web.api_operations.PATIENCE_S", 0.05)
    put(settings, 1)
    with api_of(settings) as one:
        one.post(f"directory/{AGENCY}/hold?because=other")
        with locked(settings):
            answer = one.post(f"directory/{AGENCY}/release")
            assert answer.status_code == 202
            assert (answer.json()["released"], answer.json()["at_work"]) == (False, True)
            assert one.get(f"holds/{AGENCY}").json()["at_work"] is True
        until(lambda: one.get("holds").json() == [])


def test_a_program_hears_that_what_it_submits_is_kept(settings: Settings) -> None:
    with api_of(settings) as one:
        path = "referrals?intervention=victim-hardening&accept_unverified=true"
        case = one.case("victim-hardening")
        one.post(f"directory/{AGENCY}/hold?because=other")
        [told] = one.post(path, case).json()["referrals"]
    assert (told["status"], told["held"]) == ("queued", True)


# Figures


def test_held_agencies_and_a_copy_are_counted(settings: Settings, visitor: Visitor) -> None:
    def told() -> dict[tuple[str, ...], float]:
        with asking(settings) as client:
            answer = client.get("/metrics")
        assert AGENCY not in answer.text
        return figures(answer)

    hold(visitor)
    assert told()["referrals_agencies_held",] == 1
    assert told()["referrals_outbox_is_restored_copy",] == 0
    with open_outbox(settings) as outbox:
        outbox.take_for_copy(NOW)
    assert told()["referrals_outbox_is_restored_copy",] == 1
