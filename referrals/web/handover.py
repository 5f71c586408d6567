"""The journey's last pages: each e-mail as it will go, drafts, submitting, and what came of it.

What is shown is read out of the bytes of the draft. The page that submits says which letters it
showed; should one be different by then, nothing is queued and the new one is shown first.
"""

from __future__ import annotations

import hashlib
import secrets
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from email import message_from_bytes
from email.policy import default

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute

from referrals.cli.hold import holds_by_agency, kept
from referrals.delivery import DeliveryStatus
from referrals.errors import AddressUnverified, ReferralsError
from referrals.queueing import Held
from referrals.service import Referral
from referrals.web import downloads
from referrals.web.journeys import Errors, Journey, journey_of
from referrals.web.letter_frame import header_lines, letter_frame
from referrals.web.reading import OF_THE_ADDRESS, read_out
from referrals.web.routes import Posted, goto, page, posted, shown
from referrals.web.site import Role
from referrals.web.words import Told, clock_of, held_words, kept_words, told

_PATIENCE_S = 3.0
_LOOK_EVERY_S = 0.1
_UNDER_WAY = (DeliveryStatus.QUEUED, DeliveryStatus.SENDING)


@dataclass(frozen=True)
class Shown:
    """A letter as it stands in its draft's bytes."""

    header: str = field(repr=False)
    """Line by line, just as it is."""
    text: str = field(repr=False)
    html: str = field(repr=False)

    @classmethod
    def of(cls, draft: bytes) -> Shown:
        message = message_from_bytes(draft, policy=default)
        parts = {part.get_content_type(): part for part in message.walk()}
        return cls(
            draft.partition(b"\r\n\r\n")[0].decode("ascii").replace("\r\n", "\n"),
            parts["text/plain"].get_content(),
            parts["text/html"].get_content(),
        )


@dataclass(frozen=True)
class Seen:
    """What tells one letter from another: where it goes, and its words. Told as hashes."""

    to: str
    letter: str

    @classmethod
    def of(cls, referral: Referral) -> Seen:
        letter = referral.letter
        words = "\0".join((letter.subject, letter.text, letter.html))
        return cls(_digest(referral.agency.email or ""), _digest(words))

    @classmethod
    def posted(cls, sent: Posted, intervention: str) -> Seen:
        to, _, letter = sent.get(f"seen.{intervention}").partition(".")
        return cls(to, letter)

    def __str__(self) -> str:
        return f"{self.to}.{self.letter}"


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def _referral(request: Request, journey: Journey) -> Referral:
    """Raises HTTPException 404."""
    wanted = request.path_params["intervention"]
    found = next((one for one in journey.referrals if one.intervention_id == wanted), None)
    if found is None:
        raise HTTPException(404)
    return found


# Preview and drafts


def preview_first(request: Request) -> Response:
    journey = journey_of(request)
    if journey.gap or not journey.ready:
        return goto(journey.gap or journey.url("check"))
    return goto(journey.url(f"preview/{journey.referrals[0].intervention_id}"))


def preview(request: Request) -> Response:
    journey = journey_of(request)
    if journey.gap:
        return goto(journey.gap)
    wanted = request.path_params["intervention"]
    if wanted in journey.chosen and all(one.intervention_id != wanted for one in journey.referrals):
        return goto(journey.url("check"))
    referral = _referral(request, journey)
    draft = journey.service.draft(referral)
    mail = journey.service.mail
    return page(
        request,
        "preview.html",
        journey=journey,
        referral=referral,
        letter=Shown.of(draft),
        headers=header_lines(draft),
        findings=[
            one
            for one in read_out(referral.assessment.findings, referral.assessment.intervention)
            if one.code not in OF_THE_ADDRESS
        ],
        mailto=journey.service.mailto(referral),
        sender=f"{mail.sender_name} <{mail.sender}>" if mail.sender else None,
        today=journey.service.today(referral.assessment.place),
        after=_after(journey.referrals, referral),
        kept=kept_words(journey.site),
    )


def _after(referrals: Sequence[Referral], referral: Referral) -> Referral | None:
    at = referrals.index(referral)
    return referrals[at + 1] if at + 1 < len(referrals) else None


def preview_html(request: Request) -> Response:
    journey = journey_of(request)
    draft = journey.service.draft(_referral(request, journey))
    return letter_frame(Shown.of(draft).html)


def draft(request: Request) -> Response:
    journey = journey_of(request)
    wanted = request.path_params["file"]
    found = next((one for one in journey.referrals if one.file_name == wanted), None)
    if found is None:
        raise HTTPException(404)
    return downloads.eml(found.file_name, journey.service.draft(found))


def drafts_zip(request: Request) -> Response:
    """All drafts that can be made, in a zip that is never on a disk of ours."""
    journey = journey_of(request)
    if not journey.referrals:
        raise HTTPException(404)
    files = {one.file_name: journey.service.draft(one) for one in journey.referrals}
    today = journey.service.today(journey.reading.place)
    return downloads.zipped("referral-drafts.zip", files, today)


# Submitting


def submit(request: Request) -> Response:
    journey = journey_of(request)
    if journey.gap or not journey.ready:
        return goto(journey.gap or journey.url("check"))
    return _submit(request, journey, Errors(), Posted({}), 200)


def _submit(
    request: Request, journey: Journey, errors: Errors, sent: Posted, status: int
) -> Response:
    today = journey.service.today(journey.reading.place)
    with_address = [one for one in journey.referrals if one.agency.email]
    return page(
        request,
        "submit.html",
        status,
        journey=journey,
        referrals=with_address,
        unaddressed=[one for one in journey.referrals if not one.agency.email],
        unready=[
            one.intervention for one in journey.assessments if not journey.reading.is_ready(one)
        ],
        seen={one.intervention_id: str(Seen.of(one)) for one in with_address},
        ticked=sent.all("submit"),
        accepted=[
            one.intervention_id
            for one in with_address
            if one.intervention_id in sent.all("accept")
            and Seen.posted(sent, one.intervention_id).to == Seen.of(one).to
        ],
        may_submit=journey.user.may(Role.SENDER),
        can_submit=journey.site.can_submit,
        errors=errors,
        kept=kept_words(journey.site),
        today=today,
    )


def submit_posted(request: Request, sent: Posted) -> Response:
    journey = journey_of(request)
    if journey.gap or not journey.ready:
        return goto(journey.gap or journey.url("check"))
    if not journey.site.can_submit:
        return _submit(request, journey, Errors(), sent, 409)
    ticked = [one for one in journey.referrals if one.intervention_id in sent.all("submit")]
    problems = _refusals(journey, ticked, sent)
    if problems:
        at = dict(problems)
        listed = tuple({"text": text, "href": f"#{name}"} for name, text in problems)
        return _submit(request, journey, Errors(at, listed), sent, 422)
    accepted = sent.all("accept")
    submissions = [
        journey.service.submission(
            one, token=secrets.token_hex(8), accept_unverified=one.intervention_id in accepted
        )
        for one in ticked
    ]
    with journey.site.outbox(journey.user) as outbox:
        queued = outbox.queue(submissions, journey.site.now)
        journey.site.courier.kick()
        until = time.monotonic() + _PATIENCE_S
        while journey.site.courier.runs and time.monotonic() < until:
            held = [outbox.held(message_id=one.id)[0] for one in queued]
            holds = holds_by_agency(outbox)
            if not any(one.status in _UNDER_WAY and not kept(one, holds) for one in held):
                break
            time.sleep(_LOOK_EVERY_S)
    submitted = {
        one.intervention_id: {"id": result.id, "new": result.new}
        for one, result in zip(ticked, queued, strict=True)
    }
    try:
        latest = journey_of(request)  # another page of it may have been saved meanwhile
    except HTTPException:  # or it was deleted
        return goto("/outbox")
    latest.keep(submitted={**latest.submitted, **submitted}, stage="done")
    return goto(journey.url("done"))


def _refusals(journey: Journey, ticked: Sequence[Referral], sent: Posted) -> list[tuple[str, str]]:
    """By the id of an input, why nothing is queued."""
    ready = [one.intervention_id for one in journey.referrals]
    if any(name not in ready for name in sent.all("submit")):
        text = (
            "Something that you ticked is not ready any more, since your answers or the directory "
            "have changed. Look at what goes now, and at what is missing."
        )
        return [("submit", text)]
    if not ticked:
        return [("submit", "Choose what to submit.")]
    found: list[tuple[str, str]] = []
    for one in ticked:
        name = one.intervention_id
        title = one.assessment.intervention.title
        before, now = Seen.posted(sent, name), Seen.of(one)
        if before.to != now.to:
            text = (
                f"{title}: the directory has another address for it since this page was shown. "
                "See that it is right before you submit it."
            )
            found.append((f"submit-{name}", text))
            continue  # what was accepted was the other one
        try:
            journey.service.check_address(one, accept_unverified=name in sent.all("accept"))
        except AddressUnverified:
            found.append(
                (
                    f"accept-{name}",
                    f"{title}: nobody has checked the address lately. Check it with the agency, "
                    "or tick that you accept this.",
                )
            )
        except ReferralsError as error:
            found.append(("submit", str(error)))
        if before.letter != now.letter:
            found.append(
                (
                    f"submit-{name}",
                    f"{title}: the e-mail has changed since this page was shown. Look at it again "
                    "before you submit it.",
                )
            )
    return found


# What came of it


@dataclass(frozen=True)
class Came:
    """What came of a submitted referral; `new` is false where it had been queued before."""

    title: str
    held: Held
    told: Told
    new: bool
    kept: str
    """Since when its agency is held and keeps it, in words; "" if that is not so."""


def done(request: Request) -> Response:
    journey = journey_of(request)
    came: list[Came] = []
    clock = clock_of(journey.service)
    if journey.submitted:
        with journey.site.outbox(journey.user) as outbox:
            holds = holds_by_agency(outbox)
            for name, about in journey.submitted.items():
                known = journey.service.directory.interventions.get(name)
                title = known.title if known else name
                for one in outbox.held(message_id=about["id"]):
                    hold = kept(one, holds)
                    words = held_words(hold, clock) if hold else ""
                    came.append(Came(title, one, told(one, kept=bool(hold)), about["new"], words))
    drafted = () if journey.gap else journey.referrals
    return page(
        request,
        "done.html",
        journey=journey,
        came=came,
        under_way=any(one.held.status in _UNDER_WAY and not one.kept for one in came),
        drafted=[one for one in drafted if one.intervention_id not in journey.submitted],
        clock=clock,
    )


def routes() -> list[BaseRoute]:
    at = "/referrals/{journey}"
    return [
        shown(f"{at}/preview", preview_first),
        shown(f"{at}/preview/{{intervention}}", preview),
        shown(f"{at}/preview/{{intervention}}/html", preview_html),
        shown(f"{at}/drafts.zip", drafts_zip),
        shown(f"{at}/drafts/{{file}}", draft),
        shown(f"{at}/submit", submit),
        posted(f"{at}/submit", submit_posted, role=Role.SENDER),
        shown(f"{at}/done", done),
    ]
