"""The directory's pages: who is written to, and that an address was checked."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import pytest

from referrals.directory import Directory
from referrals.web.site import Role
from tests.conftest import CONFIG, NOW
from tests.web.conftest import web_settings
from tests.web.signing import said
from tests.web.visiting import ADDRESS, Visitor, visiting

AGENCY = "/directory/victim-care"
RIGHT = {"on-day": "2", "on-month": "11", "on-year": "2026", "by": "Sam Smith",
         "address": ADDRESS}  # fmt: skip


pytestmark = pytest.mark.usefixtures("clock_stands_still")


@pytest.fixture
def visitor(tmp_path: Path) -> Iterator[Visitor]:
    with visiting(web_settings(tmp_path)) as one:
        yield one


def test_every_agency_is_there_with_its_address_and_alert(
    visitor: Visitor, directory: Directory
) -> None:
    text = said(visitor.get("/directory"))
    for agency in directory.agencies.values():
        assert agency.title in text
        assert (agency.email or "No address: drafts only") in text
        assert agency.alert in text
        about = said(visitor.get(f"/directory/{agency.id}"))
        assert agency.source in about
        assert agency.alert in about
    places = [text.index(f"For {title}") for title in (
        "Nottingham City and Nottinghamshire County", "Nottingham City Agency",
        "Nottinghamshire County Agency",
    )]  # fmt: skip
    assert places == sorted(places)
    assert "7 addresses have not been checked in time." in text


def test_measures_without_an_address_are_listed(visitor: Visitor) -> None:
    text = said(visitor.get("/directory"))
    assert "Pruning" in text
    assert "The source gives no address for pruning" in text


def test_an_agency_that_there_is_not_is_not_found(visitor: Visitor) -> None:
    assert visitor.get("/directory/nobody").status_code == 404
    assert visitor.post("/directory/nobody/verify", RIGHT).status_code == 404


def test_a_check_is_recorded_and_holds_at_once(visitor: Visitor) -> None:
    answer = visitor.post(f"{AGENCY}/verify", RIGHT)
    assert (answer.status_code, answer.headers["location"]) == (303, f"{AGENCY}?done=verified")
    text = said(visitor.get(answer.headers["location"]))
    assert "It is recorded that the address is right." in text
    assert "Checked on 2 November 2026 by Sam Smith; to be checked again by 1 May 2027." in text
    assert "2 November 2026, Sam Smith Again by 1 May 2027" in said(visitor.get("/directory"))
    service = visitor.site.service
    assert service.directory.agencies["victim-care"].is_verified(service.today())


def test_the_audit_says_who_recorded_it(visitor: Visitor) -> None:
    visitor.post(f"{AGENCY}/verify", RIGHT)
    visitor.post(f"{AGENCY}/withdraw")
    with visitor.site.outbox(visitor.site.sign_in.user(None, None)) as outbox:  # type: ignore[arg-type]
        entries = list(outbox.audit())
    assert [entry.action for entry in entries] == [
        "address verified",
        "address verification withdrawn",
    ]
    for entry in entries:
        assert entry.actor == "jo"
        assert entry.detail == {
            "agency": "victim-care", "address": ADDRESS, "on": "2026-11-02", "by": "Sam Smith",
        }  # fmt: skip


def test_a_record_can_be_taken_back(visitor: Visitor) -> None:
    assert "Take the record back" not in said(visitor.get(AGENCY))
    visitor.post(f"{AGENCY}/verify", RIGHT)
    answer = visitor.post(f"{AGENCY}/withdraw")
    text = said(visitor.get(answer.headers["location"]))
    assert "The record is taken back." in text
    assert "Never checked by us." in text
    assert visitor.post(f"{AGENCY}/withdraw").status_code == 409


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"on-day": ""}, "Enter the day on which they were asked"),
        ({"on-day": "31", "on-month": "2"}, "Enter the day on which they were asked"),
        ({"on-year": "26"}, "Enter the day on which they were asked"),
        ({"on-day": "25"}, "is in the future"),
        ({"by": " "}, "Who asked them is empty"),
        ({"by": "x" * 81}, "Use 80 characters at most"),
        ({"by": "a\nb"}, "has more than one line"),
    ],
)
def test_what_was_typed_wrong_is_said_and_kept(
    wrong: dict[str, str], words: str, visitor: Visitor
) -> None:
    typed = RIGHT | wrong
    answer = visitor.post(f"{AGENCY}/verify", typed)
    assert answer.status_code == 422
    assert words in said(answer)
    assert f'value="{typed["on-year"]}"' in answer.text
    [link] = set(re.findall(r'<a href="#([a-z-]+)">', answer.text))
    assert f'id="{link}"' in answer.text
    assert visitor.site.service.directory.agencies["victim-care"].verified_on is None


def test_every_fault_is_said_at_once(visitor: Visitor) -> None:
    answer = visitor.post(f"{AGENCY}/verify")
    assert re.findall(r'<a href="#([a-z-]+)">', answer.text) == ["on-day", "by"]
    hostile = "<script>alert(1)</script>\n"
    assert "<script>alert" not in visitor.post(f"{AGENCY}/verify", RIGHT | {"by": hostile}).text


def test_only_the_address_that_was_shown_is_recorded(visitor: Visitor) -> None:
    """Somebody may have changed config/ while the page was open; nor is an address ever taken."""
    answer = visitor.post(f"{AGENCY}/verify", RIGHT | {"address": "other@example.com"})
    text = said(visitor.get(answer.headers["location"]))
    assert "nothing was recorded" in text
    assert "other@example.com" not in text
    assert "Never checked by us" in text


def test_an_agency_without_an_address_is_not_verified(visitor: Visitor) -> None:
    path = "/directory/authorising-inspector"
    assert "Record that" not in said(visitor.get(path))
    assert visitor.post(f"{path}/verify", RIGHT).status_code == 409
    assert visitor.post(f"{path}/withdraw").status_code == 409


@pytest.mark.parametrize("role", [Role.REFERRER, Role.SENDER])
def test_only_an_administrator_records_it(role: Role, tmp_path: Path) -> None:
    with visiting(web_settings(tmp_path), role) as one:
        text = said(one.get(AGENCY))
        assert "Record it" not in text
        assert "An administrator of this service records" in text
        assert one.post(f"{AGENCY}/verify", RIGHT).status_code == 403
        assert one.post(f"{AGENCY}/withdraw").status_code == 403
        assert one.site.service.directory.agencies["victim-care"].verified_on is None


def test_another_address_in_config_is_not_verified_by_it(visitor: Visitor, tmp_path: Path) -> None:
    visitor.post(f"{AGENCY}/verify", RIGHT)
    config = tmp_path / "config"
    shutil.copytree(CONFIG, config)
    agencies = config / "regions" / "nottinghamshire" / "agencies.toml"
    agencies.write_text(agencies.read_text().replace(ADDRESS, "new@victimcare.example.com"))
    settings = visitor.site.settings.model_copy(update={"config": config})
    with visiting(settings) as one:
        text = said(one.get(AGENCY))
    assert "Never checked by us" in text
    assert "Sam Smith" not in text


def test_a_check_of_long_ago_has_lapsed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [NOW]
    monkeypatch.setattr("referrals.bootstrap.now", lambda: clock[0])
    with visiting(web_settings(tmp_path)) as one:
        one.post(f"{AGENCY}/verify", RIGHT)
        for days, tag in ((128, "Checked"), (129, "Check soon"), (158, "Check soon"),
                          (159, "Check again")):  # fmt: skip
            clock[0] = NOW + timedelta(days=days)
            assert f"Checked {tag} Checked on 2 November" in said(one.get(AGENCY)), days
