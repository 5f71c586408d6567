"""The letters' pages: each intervention as config/ has it, and its letter in a frame."""

from __future__ import annotations

import re
from collections.abc import Iterator
from html import unescape
from pathlib import Path

import pytest
from starlette.testclient import TestClient

from referrals.directory import Directory
from referrals.settings import Settings
from referrals.web.app import build_app, build_site
from referrals.web.letter_frame import header_lines, letter_frame
from referrals.web.letters_pages import KINDS, LEVELS, SENSITIVITIES, fact_title
from tests.conftest import CONFIG

INTERVENTIONS = sorted(path.stem for path in (CONFIG / "interventions").glob("*.toml"))


@pytest.fixture
def client(tmp_path: Path) -> Iterator[TestClient]:
    site = build_site(Settings(outbox=tmp_path / "outbox"))
    yield TestClient(build_app(site), "http://127.0.0.1")
    site.store.close()


def words(html: str) -> str:
    return " ".join(unescape(re.sub(r"<[^>]+>", " ", html)).split())


def test_every_intervention_is_listed(client: TestClient, directory: Directory) -> None:
    text = client.get("/letters").text
    for one in directory.interventions.values():
        assert f'href="/letters/{one.id}"' in text
        assert one.summary in words(text)


@pytest.mark.parametrize("name", INTERVENTIONS)
def test_a_letter_with_all_that_is_known_of_it(
    name: str, client: TestClient, directory: Directory
) -> None:
    answer = client.get(f"/letters/{name}")
    assert answer.status_code == 200
    text = words(answer.text)
    one = directory.intervention(name)

    for question in one.fields:
        assert question.label in text
    for path in one.facts:
        assert fact_title(path) in text
        assert path in text
    for rule in one.rules:
        assert rule.text in text
        assert rule.source in text
    for agency in {directory.agencies[agency] for agency in one.routes.values()}:
        assert (agency.email or "No address in the directory") in text
        assert agency.alert in text
    assert "Alex Sample" in text or "SAMPLE-001" in text


@pytest.mark.parametrize("name", INTERVENTIONS)
def test_its_html_can_do_nothing(name: str, client: TestClient) -> None:
    page = client.get(f"/letters/{name}").text
    assert re.search(rf'<iframe [^>]*sandbox title="[^"]+" src="/letters/{name}/html">', page)
    frame = client.get(f"/letters/{name}/html")
    policy = frame.headers["content-security-policy"]

    assert "SAMPLE-001" in frame.text
    assert policy.startswith("sandbox; default-src 'none'; style-src 'unsafe-inline'")
    assert "frame-ancestors 'self'" in policy
    assert "allow-" not in policy
    assert frame.headers["x-frame-options"] == "SAMEORIGIN"
    assert frame.headers["cache-control"] == "no-store"


@pytest.mark.parametrize("path", ["/letters/nothing", "/letters/nothing/html", "/letters/%3Cb%3E"])
def test_another_is_not_there(path: str, client: TestClient) -> None:
    assert client.get(path).status_code == 404


def test_every_kind_has_a_word() -> None:
    for table in (KINDS, LEVELS, SENSITIVITIES):
        assert set(table) == set(type(next(iter(table))))


def test_a_fact_is_told_with_whom_it_is_of() -> None:
    assert fact_title("people.victim.phone") == "Person harmed: phone"
    assert fact_title("consents.other_party") == "Other party: agreement to this referral"
    assert fact_title("incidents.on") == "Each incident: date"
    assert fact_title("lawful_basis") == "Lawful basis"


def test_a_header_is_shown_decoded() -> None:
    content = (
        b"From: =?utf-8?q?J=C3=B3?= <jo@example.org>\r\nX-Other: 1\r\nSubject: A\r\n b\r\n\r\n"
    )

    assert header_lines(content) == [("From", "Jó <jo@example.org>"), ("Subject", "A b")]


def test_a_frame_is_html_alone() -> None:
    assert letter_frame("<p>Hello").headers["content-type"] == "text/html; charset=utf-8"
