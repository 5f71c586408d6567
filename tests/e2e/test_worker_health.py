"""What a worker answers about itself, and to whom."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import httpx2
import pytest
from pydantic import SecretStr

from referrals import figures
from referrals.delivery import DeliveryStatus
from referrals.errors import RelayRefused
from referrals.health_server import answering
from referrals.settings import Settings, WebSettings
from referrals.supervisor import Supervisor
from referrals.vitals import Vitals
from referrals.worker import LEASE, Report

READY = {"ready": True, "parts": {"outbox": "ok", "worker": "ok"}}


class Clock:
    shows = 0.0

    def __call__(self) -> float:
        return self.shows


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(outbox=tmp_path, web=WebSettings(metrics_token=SecretStr("ours")))


@pytest.fixture
def vitals() -> Vitals:
    made = Vitals(Supervisor(), 4, Clock())
    made.opened()
    return made


@pytest.fixture
def client(settings: Settings, vitals: Vitals) -> Iterator[httpx2.Client]:
    with (
        answering("127.0.0.1", 0, settings, vitals) as address,
        httpx2.Client(base_url=address, timeout=20) as asking,
    ):
        yield asking


def link_to(client: httpx2.Client) -> socket.socket:
    return socket.create_connection((client.base_url.host, client.base_url.port or 80))


def test_it_answers_in_the_shapes_of_the_page(client: httpx2.Client) -> None:
    assert client.get("/health/live").json() == {"live": True}
    answer = client.get("/health/ready?again")
    assert (answer.status_code, answer.json()) == (200, READY)
    assert answer.headers["Cache-Control"] == "no-store"
    assert answer.headers["Server"] == "referrals"
    head = client.head("/metrics")
    assert (head.status_code, head.content) == (200, b"")
    assert head.headers["Content-Type"] == figures.TEXT


def test_figures_are_those_of_its_work(client: httpx2.Client, vitals: Vitals) -> None:
    vitals.recorded(DeliveryStatus.UNCERTAIN)
    vitals.seen(Report(recovered=2, relay_fault=RelayRefused("jo@council.test", stage="login")))
    told = client.get("/metrics").text.splitlines()
    assert 'referrals_worker_outcomes_total{status="uncertain"} 1.0' in told
    assert 'referrals_worker_outcomes_total{status="relayed"} 0.0' in told
    assert "referrals_worker_recovered_total 2.0" in told
    assert "referrals_worker_relay_fault 1.0" in told
    assert "referrals_worker_lanes 4.0" in told
    assert "referrals_outbox_usable 1.0" in told
    assert not [line for line in told if "jo@" in line]
    vitals.seen(Report())
    assert "referrals_worker_relay_fault 0.0" in client.get("/metrics").text


@pytest.mark.parametrize(
    ("event", "word", "live"),
    [("waiting", "waiting", 200), ("stopping", "stopping", 200), ("", "stuck", 503)],
)
def test_it_is_not_ready_while_it_can_not_work(
    client: httpx2.Client, vitals: Vitals, event: str, word: str, live: int
) -> None:
    """That the relay takes nothing is no such case: what is queued is kept."""
    vitals.seen(Report(relay_fault=RelayRefused("no", stage="login")))
    assert client.get("/health/ready").status_code == 200
    if event:
        getattr(vitals, event)()
    else:
        Clock.shows = 2 * LEASE.total_seconds() + 1
    try:
        answer = client.get("/health/ready")
        assert (answer.status_code, answer.json()["parts"]["worker"]) == (503, word)
        assert client.get("/health/live").status_code == live
    finally:
        Clock.shows = 0.0


def test_an_outbox_that_can_not_be_used(client: httpx2.Client, settings: Settings) -> None:
    (settings.outbox / "outbox.sqlite3").write_bytes(b"no outbox")
    answer = client.get("/health/ready")
    assert (answer.status_code, answer.json()["parts"]["outbox"]) == (503, "outbox-unusable")
    told = client.get("/metrics").text
    assert "referrals_outbox_usable 0.0" in told
    assert "referrals_outbox_messages" not in told
    assert str(settings.outbox) not in answer.text + told


def test_a_database_that_does_not_answer_is_not_waited_for(
    client: httpx2.Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Or Prometheus would give up first, and nobody learn why."""
    over = threading.Event()
    monkeypatch.setattr("referrals.health_server._LOOK_S", 0.05)
    monkeypatch.setattr(
        "referrals.figures.look", lambda *_, **__: over.wait(20) and figures.Sight("ok")
    )
    try:
        assert client.get("/health/ready").json()["parts"]["outbox"] == "slow"
        assert "referrals_outbox_usable 0.0" in client.get("/metrics").text
    finally:
        over.set()


@pytest.mark.parametrize("header", ["Forwarded", "X-Forwarded-For", "Via"])
def test_a_stranger_learns_whether_and_no_more(client: httpx2.Client, header: str) -> None:
    passed_on = {header: "192.0.2.7"}
    assert client.get("/health/ready", headers=passed_on).json() == {"ready": True}
    assert client.get("/metrics", headers=passed_on).status_code == 404
    for token, code in (("theirs", 404), ("ours", 200)):
        proof = passed_on | {"Authorization": f"Bearer {token}"}
        assert client.get("/metrics", headers=proof).status_code == code
    proof = passed_on | {"Authorization": "Bearer ours"}
    assert client.get("/health/ready", headers=proof).json() == READY


def test_what_is_not_asked_as_it_should_be(
    client: httpx2.Client, capfd: pytest.CaptureFixture[str]
) -> None:
    for method, path, code in (
        ("POST", "/health/live", 501),
        ("GET", "/Jane-Smith", 404),
        ("GET", "/metrics/", 404),
    ):
        answer = client.request(method, path)
        assert (answer.status_code, "Jane" in answer.text) == (code, False)
    for octets in (b"\x16\x03\x01\x02\0\r\n\r\n", b"GET /Jane HTTP/9.9\r\n\r\n", b"\r\n" * 9):
        with closing(
            socket.create_connection((client.base_url.host, client.base_url.port))
        ) as link:
            link.sendall(octets)
    assert client.get("/health/live").status_code == 200
    said = capfd.readouterr()
    assert (said.out, said.err) == ("", "")


def test_who_says_nothing_keeps_nobody_else_out(
    client: httpx2.Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("referrals.health_server._Handler.timeout", 0.2)
    links = [link_to(client) for _ in range(40)]
    try:
        until = time.monotonic() + 20
        while True:
            try:
                answer = client.get("/health/live")
                break
            except httpx2.TransportError:
                assert time.monotonic() < until
                time.sleep(0.05)
        assert answer.json() == {"live": True}
    finally:
        for link in links:
            link.close()


def test_it_listens_where_it_is_told_to(settings: Settings, vitals: Vitals) -> None:
    with answering("::1", 0, settings, vitals) as address:
        assert address.startswith("http://[::1]:")
        assert httpx2.get(f"{address}/health/live").status_code == 200
