"""What the page's background does with what is queued."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path

import pytest

from referrals.bootstrap import now, open_outbox
from referrals.delivery import DeliveryStatus
from referrals.ports import Outbox
from referrals.settings import FurtherRelay, RelaySettings, Security, Settings, WebSettings
from referrals.sink import Sink
from referrals.web import courier as courier_module
from referrals.web.courier import Courier
from tests.e2e.conftest import Beside
from tests.peers import Drop, Hang, Say, ScriptedRelay, Step
from tests.queued import submission, submissions


def settings(folder: Path, port: int | None, *, deliver: bool = True) -> Settings:
    relay = RelaySettings(security=Security.NONE, timeout_s=5)
    if port is not None:
        relay = RelaySettings(host="127.0.0.1", port=port, security=Security.NONE, timeout_s=5)
    return Settings(outbox=folder / "outbox", relay=relay, web=WebSettings(deliver=deliver))


def until(true: Callable[[], bool], limit_s: float = 10.0) -> None:
    end = time.monotonic() + limit_s
    while not true():
        assert time.monotonic() < end, "it never came to be"
        time.sleep(0.01)


@pytest.fixture
def outbox(tmp_path: Path) -> Iterator[Outbox]:
    with open_outbox(settings(tmp_path, None), "jo") as opened:
        yield opened


def running(one: Courier, meanwhile: Callable[[], None]) -> None:
    """Runs a courier while something is done in another thread."""

    async def run() -> None:
        async with one:
            await asyncio.to_thread(meanwhile)

    asyncio.run(run())


def statuses(outbox: Outbox) -> dict[str, int]:
    return outbox.counts()


def test_what_is_queued_is_relayed_as_soon_as_it_says_so(
    tmp_path: Path, outbox: Outbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without `kick` it would come round an hour later."""
    monkeypatch.setattr("referrals.worker._POLL_S", 3600.0)
    with Beside(Sink()) as sink:
        one = Courier(settings(tmp_path, sink.port))

        def meanwhile() -> None:
            assert one.runs
            for number in (1, 2):
                outbox.queue([submission(number)], now())
                one.kick()
                until(lambda number=number: statuses(outbox) == {"relayed": number})  # type: ignore[misc]

        running(one, meanwhile)
        assert [arrived.content for arrived in sink.arrived] == [
            each.outgoing.content for each in submissions(2)
        ]
    assert not one.runs
    assert one.fault == ""


def test_two_beside_each_other_submit_nothing_twice(tmp_path: Path, outbox: Outbox) -> None:
    outbox.queue(submissions(60), now())
    with Beside(Sink()) as sink:
        first, second = (Courier(settings(tmp_path, sink.port)) for _ in range(2))

        def wait() -> None:
            until(lambda: statuses(outbox) == {"relayed": 60}, 30)

        running(first, lambda: running(second, wait))
        assert len(sink.arrived) == 60


def test_a_restored_copy_is_told_and_nothing_is_submitted_before_it_is_in_order(
    tmp_path: Path, outbox: Outbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(courier_module, "_AGAIN_S", (0.05,))
    outbox.queue([submission()], now())
    outbox.take_for_copy(now())
    with Beside(Sink()) as sink:
        one = Courier(settings(tmp_path, sink.port))

        def meanwhile() -> None:
            until(lambda: "is a restored copy" in one.fault)
            assert statuses(outbox) == {"queued": 1}
            outbox.lost_nothing(now())
            until(lambda: statuses(outbox) == {"relayed": 1})
            until(lambda: one.fault == "")

        running(one, meanwhile)


def test_a_relay_that_refuses_us_is_told_and_takes_nothing_down(
    tmp_path: Path, outbox: Outbox
) -> None:
    outbox.queue([submission()], now())
    relay = ScriptedRelay({"greeting": Say(b"554 5.7.1 not you\r\n", close=True)})
    with Beside(relay):
        one = Courier(settings(tmp_path, relay.port))

        def meanwhile() -> None:
            until(lambda: bool(one.fault))
            assert "5.7.1 not you" in one.fault
            assert statuses(outbox) == {"queued": 1}
            assert one.runs
            tries = relay.connections
            for _ in range(5):
                one.kick()  # a wrong password is not tried at each click
                time.sleep(0.05)
            assert relay.connections == tries

        running(one, meanwhile)


def test_a_relay_that_is_back_is_found_at_a_kick(tmp_path: Path, outbox: Outbox) -> None:
    outbox.queue([submission()], now())
    script: dict[str, Step] = {"greeting": Drop()}
    relay = ScriptedRelay(script)
    with Beside(relay):
        one = Courier(settings(tmp_path, relay.port))

        def meanwhile() -> None:
            until(lambda: bool(one.fault))
            script.clear()
            one.kick()
            until(lambda: statuses(outbox) == {"relayed": 1}, 1.5)
            until(lambda: one.fault == "")

        running(one, meanwhile)


def test_a_stop_waits_for_the_relays_word_but_not_for_ever(
    tmp_path: Path, outbox: Outbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the relay may have is uncertain; what was only waiting stays queued."""
    monkeypatch.setattr(courier_module, "_GRACE_S", 0.3)
    outbox.queue(submissions(30), now())
    relay = ScriptedRelay({"content": Hang()})
    with Beside(relay):
        one = Courier(settings(tmp_path, relay.port))
        running(one, lambda: until(lambda: relay.connections > 0 and _in_content(outbox)))
    counts = statuses(outbox)
    assert counts.keys() == {"queued", "uncertain"}
    assert sum(counts.values()) == 30
    for held in outbox.held(status=DeliveryStatus.UNCERTAIN):
        [attempt] = outbox.attempts(held.id)
        assert attempt.words == "we were stopped"


def _in_content(outbox: Outbox) -> bool:
    if not statuses(outbox).get("sending"):
        return False
    time.sleep(0.3)
    return True


def test_an_outbox_that_can_not_be_used_is_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(courier_module, "_AGAIN_S", (0.05,))
    folder = tmp_path / "outbox"
    folder.write_text("not a folder")
    with Beside(Sink()) as sink:
        one = Courier(settings(tmp_path, sink.port))

        def meanwhile() -> None:
            until(lambda: "can't be used" in one.fault)
            folder.unlink()
            with open_outbox(settings(tmp_path, None), "jo") as outbox:
                outbox.queue([submission()], now())
                until(lambda: statuses(outbox) == {"relayed": 1})
            until(lambda: one.fault == "")

        running(one, meanwhile)


def test_a_fault_of_ours_is_logged_without_its_words(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(*_: object, **__: object) -> None:
        raise RuntimeError("Canary Person")

    monkeypatch.setattr("referrals.bootstrap.build_worker", broken)
    one = Courier(settings(tmp_path, 9))
    with caplog.at_level(logging.WARNING):
        running(one, lambda: until(lambda: bool(one.fault)))
    assert "RuntimeError" in caplog.text
    assert "Canary" not in caplog.text + one.fault


@pytest.mark.parametrize("case", ["no relay", "switched off", "no password"])
def test_where_it_can_not_or_should_not_run_it_does_not(case: str, tmp_path: Path) -> None:
    chosen = settings(tmp_path, None if case == "no relay" else 9, deliver=case != "switched off")
    if case == "no password":
        relay = chosen.relay.model_copy(update={"username": "jo"})
        chosen = chosen.model_copy(update={"relay": relay})
    one = Courier(chosen)

    def meanwhile() -> None:
        assert not one.runs
        one.kick()
        assert ("relay.password" in one.fault) == (case == "no password")
        assert one.should_run == (case == "no password")

    running(one, meanwhile)


def test_it_goes_through_the_second_relay_while_the_first_is_away(
    tmp_path: Path, outbox: Outbox, caplog: pytest.LogCaptureFixture
) -> None:
    outbox.queue([submission()], now())
    with Beside(Sink()) as sink:
        backup = FurtherRelay(host=sink.host, port=sink.port, security=Security.NONE)
        chosen = settings(tmp_path, 9).model_copy(update={"relays": {"backup": backup}})
        with caplog.at_level(logging.WARNING):
            one = Courier(chosen)
            running(one, lambda: until(lambda: statuses(outbox) == {"relayed": 1}))
    assert one.fault == ""
    assert caplog.text.count("is left alone until") == 1


def test_the_password_of_a_further_relay_is_asked_for_by_its_name(tmp_path: Path) -> None:
    backup = FurtherRelay(host="127.0.0.1", port=10, security=Security.NONE, username="jo")
    one = Courier(settings(tmp_path, 9).model_copy(update={"relays": {"backup": backup}}))

    def meanwhile() -> None:
        assert not one.runs
        assert "relays.backup.password" in one.fault
        assert "REFERRALS_RELAYS_BACKUP_PASSWORD" in one.fault

    running(one, meanwhile)


def test_old_content_is_forgotten_once_a_day(tmp_path: Path, outbox: Outbox) -> None:
    long_ago = now() - timedelta(days=40)
    outbox.queue([submission()], long_ago)
    outbox.cancel("R-1", long_ago)
    with Beside(Sink()) as sink:
        one = Courier(settings(tmp_path, sink.port))
        running(one, lambda: until(lambda: outbox.held()[0].purged_at is not None))
        running(one, lambda: time.sleep(0.2))
    assert [entry.action for entry in outbox.audit()].count("retention") == 1
