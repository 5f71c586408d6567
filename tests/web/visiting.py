"""The page without a socket, for a visitor of one role or another; its clock stands still."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

from httpx2 import Response
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.responses import Response as Answer
from starlette.routing import BaseRoute
from starlette.testclient import TestClient

from referrals.bootstrap import open_outbox
from referrals.delivery import DeliveryStatus, Reply, RetryPolicy, Submission
from referrals.ports import Outbox
from referrals.queueing import Claimed, Outcome
from referrals.reference import referral_reference
from referrals.settings import Settings
from referrals.web.app import build_app, build_site
from referrals.web.site import Role, Site, User, roles_with
from referrals.web.store import Session
from tests.conftest import NOW
from tests.peers import run
from tests.queued import submission
from tests.web.conftest import HERE
from tests.web.signing import csrf

ADDRESS = "admin@nottsvictimcare.org.uk"


@dataclass
class As:
    """A sign-in that takes everybody for one user."""

    role: Role = Role.ADMINISTRATOR
    name: str = "jo"
    title: str = "Jo Bloggs"
    can_sign_out: bool = False

    def user(self, request: Request, session: Session) -> User | None:
        return User(self.name, roles_with([self.role]), self.title)

    def first(self, request: Request) -> Answer:
        return PlainTextResponse("Sign in first.", 401)

    def routes(self) -> Sequence[BaseRoute]:
        return ()


@dataclass
class Visitor:
    """Somebody at the page; a redirect is not followed."""

    site: Site
    client: TestClient = field(repr=False)

    def get(self, path: str) -> Response:
        answer: Response = self.client.get(path, follow_redirects=False)
        return answer

    def post(self, path: str, data: Mapping[str, Any] | None = None) -> Response:
        """With the token of the session that this browser has."""
        token = csrf(self.client.get("/you"))
        answer: Response = self.client.post(
            path, data={**(data or {}), "csrf": token}, follow_redirects=False
        )
        return answer


@contextmanager
def visiting(settings: Settings, role: Role = Role.ADMINISTRATOR) -> Iterator[Visitor]:
    site = dataclasses.replace(build_site(settings), sign_in=As(role))
    with TestClient(build_app(site), HERE) as client:
        yield Visitor(site, client)


@dataclass
class Filled:
    """An outbox in which each kind of message has its case: `reference("failed")`."""

    settings: Settings
    cases: dict[str, str] = field(default_factory=dict)

    def reference(self, kind: str) -> str:
        return referral_reference(self.cases[kind], "victim-hardening")

    def add(
        self,
        kind: str,
        status: DeliveryStatus,
        *,
        ago: timedelta = timedelta(0),
        hold: bool = False,
        reply: Reply | None = None,
    ) -> Submission:
        """A message queued at NOW less `ago`, and one attempt that came to `status`, if any."""
        one = self._submission(kind, NOW - ago)
        with self.open() as outbox:
            run(_add(outbox, one, status, NOW - ago, hold, reply))
        return one

    def add_queued(self, count: int) -> None:
        """Of kinds "0", "1" and so on."""
        with self.open() as outbox:
            outbox.queue([self._submission(str(number), NOW) for number in range(count)], NOW)

    def _submission(self, kind: str, at: datetime) -> Submission:
        self.cases[kind] = f"CASE-{len(self.cases) + 1}"
        return submission(
            len(self.cases),
            reference=self.reference(kind),
            case_reference=self.cases[kind],
            intervention="victim-hardening",
            agency="victim-care",
            acknowledge_by=(at + timedelta(days=7)).date(),
            recipient=ADDRESS,
        )

    def open(self) -> Outbox:
        return open_outbox(self.settings, "jo")


async def _add(
    outbox: Outbox,
    one: Submission,
    status: DeliveryStatus,
    then: datetime,
    hold: bool,
    reply: Reply | None,
) -> None:
    [queued] = outbox.queue([one], then)
    if status is DeliveryStatus.QUEUED:
        return
    if status is DeliveryStatus.CANCELLED:
        outbox.cancel(one.outgoing.reference, then)
        return
    claimed = await outbox.claim("lane", then, timedelta(minutes=5), only=queued.id)
    assert isinstance(claimed, Claimed)
    if status is DeliveryStatus.SENDING:
        return
    outcome = Outcome(status, "smtp.example.com:587", "content", reply)
    await outbox.record(claimed, "lane", outcome, then, RetryPolicy(), hold_uncertain=hold)
