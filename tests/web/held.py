"""Letters to an agency whose address is found wrong, and is corrected in config/."""

from __future__ import annotations

from datetime import datetime, timedelta
from pathlib import Path

from referrals.bootstrap import open_outbox
from referrals.delivery import DeliveryStatus, Reply, RetryPolicy
from referrals.ports import Outbox
from referrals.queueing import Claimed, Outcome
from referrals.reference import referral_reference
from referrals.settings import Settings
from tests.conftest import NOW
from tests.peers import run
from tests.queued import submission
from tests.web.visiting import ADDRESS

AGENCY = "victim-care"
NEW = "New.Desk@victimcare.example.org"

RELAYED = Outcome(DeliveryStatus.RELAYED, "relay:587", "content", Reply.parse(250, "2.0.0 Ok"))
FAILED = Outcome(DeliveryStatus.FAILED, "relay:587", "recipient", Reply.parse(550, "5.1.1 who?"))
UNCERTAIN = Outcome(DeliveryStatus.UNCERTAIN, "relay:587", "content", None, "the link was lost")


def correct(config: Path, to: str = NEW, agency_was: str = ADDRESS) -> None:
    file = config / "regions" / "nottinghamshire" / "agencies.toml"
    text = file.read_text()
    assert agency_was in text
    file.write_text(text.replace(agency_was, to))


def reference(number: int) -> str:
    return referral_reference(f"CASE-{number}", "victim-hardening")


def put(
    settings: Settings,
    number: int,
    outcome: Outcome | None = None,
    *,
    on_hold: bool = False,
    at: datetime = NOW,
) -> None:
    """A letter to the agency, and what an attempt came to, if there was one."""
    content = (
        f"From: officer@police.test\r\nTo: {ADDRESS}\r\nSubject: R-{number}\r\n"
        f"Date: Tue, 24 Nov 2026 12:00:00 +0000\r\nMessage-ID: <R-{number}.t@police.test>\r\n\r\n"
        f"letter {number}\r\n"
    ).encode()
    one = submission(
        number, reference=reference(number), agency=AGENCY, recipient=ADDRESS, content=content,
        intervention="victim-hardening", facts_key=f"facts {number}", detail={},
        acknowledge_by=(at + timedelta(days=7)).date(),
    )  # fmt: skip
    with open_outbox(settings, "jo") as outbox:
        [queued] = outbox.queue([one], at)
        if outcome is not None:
            run(_attempt(outbox, queued.id, outcome, on_hold, at))


async def _attempt(
    outbox: Outbox, number: int, outcome: Outcome, on_hold: bool, at: datetime
) -> None:
    claimed = await outbox.claim("lane", at, timedelta(minutes=5), only=number)
    assert isinstance(claimed, Claimed)
    await outbox.record(claimed, "lane", outcome, at, RetryPolicy(), hold_uncertain=on_hold)
