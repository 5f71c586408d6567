"""What a program may ask of us: the same operations as the command line's, as one table.

`api` makes routes of it, and `openapi` the description. The body of a request, where there is one,
is the case as it stands in a file; everything else is in the query. No operation takes a
recipient: that is the directory's.
"""

from __future__ import annotations

import base64
import secrets
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, time, timedelta
from functools import cached_property
from itertools import islice
from typing import TYPE_CHECKING, Any, Literal

from pydantic import ValidationError
from starlette.exceptions import HTTPException
from starlette.responses import Response
from typing_extensions import TypedDict

from referrals.addresses import addresses
from referrals.case import Case
from referrals.cli.hold import holds_by_agency, kept, waiting_by_hold
from referrals.delivery import DeliveryStatus, Submission
from referrals.directory import Agency, Place
from referrals.errors import (
    AddressUnverified,
    ConfigurationError,
    NoAddress,
    NotInOutbox,
    NotPossibleNow,
    Problem,
)
from referrals.holding import check_not_moved, number_of
from referrals.problems import problems_of
from referrals.releasing import Choices, Release, disclosed, prepare_release
from referrals.samples import sample_case
from referrals.schema import case_schema
from referrals.service import Referral, Service
from referrals.telling import (
    AddressJson,
    AssessmentJson,
    AttemptJson,
    ChainJson,
    EntryJson,
    HeldJson,
    HoldJson,
    InterventionJson,
    KeptJson,
    LateJson,
    ReferralJson,
    WholeInterventionJson,
    address_json,
    assessment_json,
    attempt_json,
    chain_json,
    entry_json,
    headers_of,
    held_json,
    hold_json,
    intervention_json,
    late_json,
    referral_json,
    whole_intervention_json,
)
from referrals.verification import Verification
from referrals.web.api_queries import (
    AskedOn,
    Auditing,
    Because,
    Expecting,
    Listing,
    NeededBy,
    One,
    Query,
    Releasing,
    RequestInvalid,
    Several,
    Some,
    Submitting,
    in_query,
)
from referrals.web.hold_pages import PATIENCE_S, begin_release
from referrals.web.site import Role, Site, User

if TYPE_CHECKING:
    from referrals.holding import Addressed, Hold
    from referrals.ports import Outbox
    from referrals.queueing import Held

EML = "message/rfc822"


# What is answered, where `telling` has no shape for it


class PreviewJson(ReferralJson):
    """The e-mail as it would be. `mailto` is null where the text is too long for a link."""

    text: str
    html: str
    headers: dict[str, str]
    mailto: str | None


class DraftJson(ReferralJson):
    """`content` is the .eml file, in base64."""

    status: Literal["drafted"]
    file_name: str
    content: str
    mailto: str | None


class DraftsJson(TypedDict):
    drafts: list[DraftJson]


class SubmittedJson(ReferralJson):
    """`queued_before`: the same referral was there already, and nothing was changed.

    `held`: nothing goes to its agency now, so it is kept until the agency is released.
    """

    status: DeliveryStatus
    queued_before: bool
    held: bool


class SubmissionsJson(TypedDict):
    referrals: list[SubmittedJson]


class OutboxJson(TypedDict):
    """Messages, the newest first, and how many there are of each status.

    `unfinished_and_old`: neither relayed nor cancelled, and untouched for a long time.
    `next_offset`: where the next page begins, if there is one. `holds`: agencies that are held.
    """

    counts: dict[str, int]
    unfinished_and_old: int
    messages: list[KeptJson]
    holds: list[WaitingHoldJson]
    next_offset: int | None


class WholeHeldJson(KeptJson):
    """With each attempt and what the relay said."""

    tries: list[AttemptJson]


class WaitingHoldJson(HoldJson):
    """`waiting`: how many messages it keeps."""

    waiting: int


class BegunHoldJson(WaitingHoldJson):
    """`new`: it was not held before. `under_way`: messages that may still go out."""

    new: bool
    under_way: int


class NumberJson(TypedDict):
    """How many messages to one address have one status."""

    to: str
    status: DeliveryStatus
    number: int


class ReleaseJson(HoldJson):
    """What a release comes to, to the address `to` that the directory has now.

    `going` are released as they are, and `rerouting` made anew for it; `staying` are uncertain or
    failed, and left; the hold can't end before what is `under_way` elsewhere is over. `released`:
    it is done. `at_work`: it is being done. `not_intact`: references of what failed, since it was
    not what was queued any more. `others_have`: what another address has or may have, the newest.
    """

    to: str | None
    verified: bool
    going: list[NumberJson]
    rerouting: list[NumberJson]
    staying: list[NumberJson]
    under_way: list[NumberJson]
    others_have: list[HeldJson]
    not_intact: list[str]
    released: bool
    at_work: bool


class AuditJson(TypedDict):
    """Entries, the oldest first. `next_after`: to be asked after for more, if there are more."""

    entries: list[EntryJson]
    next_after: int | None


# The operations


@dataclass(frozen=True)
class Call:
    """One request, by somebody who may make it. `raw` is the case as it came."""

    site: Site
    user: User
    path: Mapping[str, str]
    query: Any
    wants_eml: bool = False
    raw: Mapping[str, Any] = field(default_factory=dict, repr=False)

    @cached_property
    def service(self) -> Service:
        """With what is known of the addresses when it is first asked for."""
        return self.site.service

    @property
    def today(self) -> date:
        return self.service.today()

    def read(self) -> tuple[Case, Place]:
        return self.service.read(self.raw)

    def referrals(self) -> list[Referral]:
        """One for each intervention of the query, in its order.

        Raises:
            InterventionUnknown, CaseInvalid, ReferralBlocked.
        """
        using = self.service
        for name in self.query.intervention:
            using.directory.intervention(name)
        case, place = self.read()
        names = dict.fromkeys(self.query.intervention)
        return [using.prepare(using.assess(case, place, name)) for name in names]


@dataclass(frozen=True)
class Operation:
    """`run`'s docstring is its description. `answer` is the type of what it tells."""

    method: Literal["GET", "POST"]
    path: str
    title: str
    answer: Any
    run: Callable[[Call], Any]
    role: Role = Role.REFERRER
    query: type[Query] = Query
    takes_case: bool = False
    statuses: tuple[int, ...] = (200,)
    refusals: tuple[int, ...] = ()
    """Statuses of errors besides those that every operation may have."""


def interventions(call: Call) -> list[InterventionJson]:
    """Every intervention, where it is offered, and who takes it."""
    directory, today = call.service.directory, call.today
    found = sorted(directory.interventions.values(), key=lambda one: one.id)
    return [intervention_json(one, directory, today) for one in found]


def intervention(call: Call) -> WholeInterventionJson:
    """One intervention: what it is, who takes it, its facts, fields and rules."""
    directory = call.service.directory
    one = directory.intervention(call.path["intervention"])
    return whole_intervention_json(one, directory, call.today)


def schema(call: Call) -> dict[str, Any]:
    """The JSON Schema (2020-12) of a case."""
    directory = call.service.directory
    name = call.query.needed_by
    return case_schema(directory, directory.intervention(name) if name else None)


def sample(call: Call) -> dict[str, Any]:
    """A made-up case, complete for the interventions named: a place to start from.

    Several are separated by commas.
    """
    directory = call.service.directory
    names = list(dict.fromkeys(call.path["interventions"].split(",")))
    for name in names:
        directory.intervention(name)
    return sample_case(directory, names, call.today)


def suggest(call: Call) -> list[AssessmentJson]:
    """Whether each intervention fits the case and, if not, why."""
    return [assessment_json(one) for one in call.service.suggest(*call.read())]


def check(call: Call) -> list[AssessmentJson]:
    """Every problem and every rule's finding, for the interventions named."""
    using = call.service
    for name in call.query.intervention:
        using.directory.intervention(name)
    case, place = call.read()
    names = dict.fromkeys(call.query.intervention or case.answers)
    if not names:
        raise RequestInvalid(
            [
                Problem(
                    "query.intervention",
                    "is missing, and the case has answers for none.",
                    "Name one, as in ?intervention=mediation.",
                    "missing",
                )
            ]
        )
    return [assessment_json(using.assess(case, place, name)) for name in names]


def preview(call: Call) -> PreviewJson:
    """The e-mail that would be made; nothing is saved or submitted."""
    using = call.service
    using.directory.intervention(call.query.intervention)
    case, place = call.read()
    referral = using.prepare(using.assess(case, place, call.query.intervention))
    return {
        **referral_json(referral),
        "text": referral.letter.text,
        "html": referral.letter.html,
        "headers": headers_of(using.draft(referral)),
        "mailto": using.mailto(referral),
    }


def drafts(call: Call) -> DraftsJson | Response:
    """An .eml draft for each intervention, ready to edit in a mail client; none is kept here.

    With `Accept: message/rfc822` and one intervention, the answer is the file itself.
    """
    using = call.service
    if call.wants_eml and len(set(call.query.intervention)) > 1:
        raise HTTPException(406, f"{EML} holds one draft: name one intervention.")
    referrals = call.referrals()
    if call.wants_eml:
        [one] = referrals
        kept_as = {"Content-Disposition": f'attachment; filename="{one.file_name}"'}
        return Response(using.draft(one), media_type=EML, headers=kept_as)
    return {
        "drafts": [
            {
                **referral_json(one),
                "status": "drafted",
                "file_name": one.file_name,
                "content": base64.b64encode(using.draft(one)).decode("ascii"),
                "mailto": using.mailto(one),
            }
            for one in referrals
        ]
    }


_NO_RELAY = Problem(
    "relay.host",
    "is not set, so nothing can be submitted; drafts work without it.",
    "Ask whoever looks after this service.",
    "no-relay",
)


def submit(call: Call) -> tuple[SubmissionsJson, int]:
    """Queue the e-mail for each intervention, all of them or none; it is tried in the background.

    The recipient is the directory's. The same referral is queued once, however often it is asked
    for: 202 if any was queued now, 200 if all were there before. GET outbox/{reference} tells what
    became of each.
    """
    using = call.service
    if not call.site.can_submit:
        raise ConfigurationError([_NO_RELAY])
    referrals = call.referrals()
    submissions = [
        _submission(using, one, accept_unverified=call.query.accept_unverified) for one in referrals
    ]
    with call.site.outbox(call.user) as outbox:
        queued = outbox.queue(submissions, call.site.now)
        holds = holds_by_agency(outbox)
    call.site.courier.kick()
    told: list[SubmittedJson] = [
        {
            **referral_json(one),
            "status": now.status,
            "queued_before": not now.new,
            "held": one.agency.id in holds,
        }
        for one, now in zip(referrals, queued, strict=True)
    ]
    return {"referrals": told}, 202 if any(one.new for one in queued) else 200


def _submission(using: Service, referral: Referral, *, accept_unverified: bool) -> Submission:
    try:
        return using.submission(
            referral, token=secrets.token_hex(8), accept_unverified=accept_unverified
        )
    except AddressUnverified:
        agency = referral.agency
        raise AddressUnverified(
            f"{referral.intervention_id}: nobody has checked {agency.email} within "
            f"{agency.review_after_days} days. Ask {agency.title} whether it is right, and have an "
            "administrator record it; or add accept_unverified=true, which is recorded."
            + (f" Note: {agency.alert}" if agency.alert else "")
        ) from None


def outbox_list(call: Call) -> OutboxJson:
    """Queued messages, the newest first, and how many there are of each status."""
    query: Listing = call.query
    days = call.site.settings.delivery.keep_unfinished_days
    with call.site.outbox(call.user) as outbox:
        found = outbox.held(
            status=query.status,
            case_reference=query.case_reference,
            kept=query.held,
            limit=query.limit + 1,
            offset=query.offset,
        )
        counts = outbox.counts()
        holds = waiting_by_hold(outbox)
        old = len(outbox.unfinished(call.site.now - timedelta(days=days)))
    by_agency = {hold.agency: hold for hold, _ in holds}
    return {
        "counts": counts,
        "unfinished_and_old": old,
        "messages": [_kept_json(one, by_agency) for one in found[: query.limit]],
        "holds": [_waiting_json(hold, number) for hold, number in holds],
        "next_offset": query.offset + query.limit if len(found) > query.limit else None,
    }


def outbox_show(call: Call) -> list[WholeHeldJson]:
    """The messages of a reference, the newest first, with each attempt and what the relay said.

    There are several where the facts of a case have changed and it was referred again.
    """
    reference = call.path["reference"].upper()
    with call.site.outbox(call.user) as outbox:
        found = outbox.held(reference=reference, limit=10)
        if not found:
            raise NotInOutbox("That is not in the outbox.")
        holds = holds_by_agency(outbox)
        return [
            {
                **_kept_json(one, holds),
                "tries": [attempt_json(each) for each in outbox.attempts(one.id)],
            }
            for one in found
        ]


def _kept_json(held: Held, holds: Mapping[str, Hold]) -> KeptJson:
    return {**held_json(held), "held": kept(held, holds) is not None}


def _waiting_json(hold: Hold, waiting: int) -> WaitingHoldJson:
    return {**hold_json(hold), "waiting": waiting}


def retry(call: Call) -> HeldJson:
    """Make a delayed, failed or uncertain message due now."""
    with call.site.outbox(call.user) as outbox:
        reference = call.path["reference"].upper()
        for newest in outbox.held(reference=reference, limit=1):
            check_not_moved(newest, call.service.directory.agencies.get(newest.agency))
        held = outbox.retry(reference, call.site.now)
    call.site.courier.kick()
    return held_json(held)


def cancel(call: Call) -> HeldJson:
    """Keep a message that is not relayed from being tried again."""
    with call.site.outbox(call.user) as outbox:
        return held_json(outbox.cancel(call.path["reference"].upper(), call.site.now))


def acknowledge(call: Call) -> HeldJson:
    """Record that the agency has answered: today."""
    with call.site.outbox(call.user) as outbox:
        held = outbox.acknowledge(call.path["reference"].upper(), call.today, call.site.now)
    return held_json(held)


class LateHeldJson(LateJson):
    """`held`: nothing goes to its agency now, so nobody is to be reminded there."""

    held: bool


def due(call: Call) -> list[LateHeldJson]:
    """Referrals whose answer is late, and what to do about each."""
    directory, today = call.service.directory, call.today
    with call.site.outbox(call.user) as outbox:
        holds = holds_by_agency(outbox)
        return [
            {**late_json(one, directory, today), "held": one.agency in holds}
            for one in outbox.unacknowledged(today)
        ]


def agencies(call: Call) -> list[AddressJson]:
    """Every agency: its address, how it stands, by whom it was verified, and what goes there."""
    found = addresses(call.service.directory, call.today)
    return [address_json(one, call.today) for one in found]


def verify(call: Call) -> AddressJson:
    """Record that somebody asked the agency, and its address is right.

    It counts for the address that the directory has now, and no other.
    """
    agency = _agency(call)
    by = call.user.name if call.query.by is None else call.query.by
    try:
        one = Verification.of(agency, call.query.on or call.today, by, call.today)
    except ValidationError as error:
        raise RequestInvalid(list(map(in_query, problems_of(error)))) from None
    with call.site.outbox(call.user) as outbox:
        outbox.verify(one, call.site.now)
    return _address_now(call, agency.id)


def withdraw(call: Call) -> AddressJson:
    """Take back what was recorded of an agency's address; what config/ says stays."""
    agency = _agency(call)
    if agency.email is None:
        raise NoAddress(f"The directory has no address for {agency.title}.")
    with call.site.outbox(call.user) as outbox:
        outbox.withdraw(agency.id, agency.email, call.site.now)
    return _address_now(call, agency.id)


def _agency(call: Call) -> Agency:
    agency = call.service.directory.agencies.get(call.path["agency"])
    if agency is None:
        raise HTTPException(404, "The directory has no such agency.")
    return agency


def _address_now(call: Call, agency_id: str) -> AddressJson:
    found = addresses(call.site.service.directory, call.today)
    [one] = [one for one in found if one.agency.id == agency_id]
    return address_json(one, call.today)


def holds(call: Call) -> list[WaitingHoldJson]:
    """Agencies that nothing goes to for now, and how many messages are kept for each."""
    with call.site.outbox(call.user) as outbox:
        return [_waiting_json(hold, number) for hold, number in waiting_by_hold(outbox)]


def hold(call: Call) -> BegunHoldJson:
    """Let nothing go to an agency until it is released; its referrals are queued and kept.

    One that is held already is left as it is.
    """
    with call.site.outbox(call.user) as outbox:
        name = _name_of_agency(call, outbox)
        begun, new = outbox.hold(name, call.query.because, call.site.now)
        addressed = outbox.addressed(name)
    call.site.releases.forget(name)
    sending = (one for one in addressed if one.status is DeliveryStatus.SENDING)
    waiting = number_of(one for one in addressed if one.waits)
    return {**_waiting_json(begun, waiting), "new": new, "under_way": number_of(sending)}


def _name_of_agency(call: Call, outbox: Outbox) -> str:
    """One that has left the directory counts while something of it is in the outbox."""
    name = call.path["agency"]
    if name not in call.service.directory.agencies and not (
        name in holds_by_agency(outbox) or outbox.addressed(name)
    ):
        raise HTTPException(404, "The directory has no such agency.")
    return name


_MOST_ELSEWHERE = 500


def release_plan(call: Call) -> ReleaseJson:
    """What releasing an agency would come to; nothing is changed."""
    release, others = _prepared(call)
    running = call.site.releases.of(release.hold.agency)
    at_work = running is not None and not running.is_over
    return _release_json(call, release, others, released=False, at_work=at_work)


def release(call: Call) -> tuple[ReleaseJson, int]:
    """End a hold: what was kept goes to the address that the directory has now.

    What was to go to another address is made anew: To, Date and Message-ID change and nothing
    else, and the old message is cancelled. 202 if it takes longer than a moment: it is done in the
    background, and `GET /holds` tells when the hold has ended. Should it be broken off, the hold
    stands: ask again, and it goes on.
    """
    found, others = _prepared(call)
    today = call.today
    if found.needs_acceptance(today) and found.agency is not None:
        raise AddressUnverified(
            f"{found.hold.agency}: nobody has checked {found.to} within "
            f"{found.agency.review_after_days} days. Ask {found.agency.title} whether it is "
            "right, and have an administrator record it; or add accept_unverified=true, which is "
            "recorded."
        )
    running = begin_release(call.site, call.user, found)
    over = running.wait(PATIENCE_S)
    if over and running.fault:
        raise NotPossibleNow(running.fault)
    told = _release_json(call, found, others, released=over, at_work=not over)
    return {**told, "not_intact": list(running.broken)}, 200 if over else 202


def _prepared(call: Call) -> tuple[Release, list[Held]]:
    query: Releasing = call.query
    choices = Choices(query.accept_unverified, query.with_uncertain, query.with_failed)
    with call.site.outbox(call.user) as outbox:
        name = _name_of_agency(call, outbox)
        agency = call.service.directory.agencies.get(name)
        found = prepare_release(outbox, name, agency, choices)
        return found, disclosed(outbox, found, limit=_MOST_ELSEWHERE)


def _release_json(
    call: Call, found: Release, others: list[Held], *, released: bool, at_work: bool
) -> ReleaseJson:
    plan = found.plan
    return {
        **hold_json(found.hold),
        "to": found.to,
        "verified": found.is_verified(call.today),
        "going": _numbers_json(plan.going),
        "rerouting": _numbers_json(plan.moving),
        "staying": _numbers_json(plan.staying),
        "under_way": _numbers_json(plan.under_way),
        "others_have": [held_json(one) for one in others],
        "not_intact": [],
        "released": released,
        "at_work": at_work,
    }


def _numbers_json(some: Iterable[Addressed]) -> list[NumberJson]:
    return [{"to": one.recipient, "status": one.status, "number": one.number} for one in some]


def audit(call: Call) -> AuditJson:
    """The disclosure log: who told whom what kind of thing, when and on what ground."""
    query: Auditing = call.query
    start = datetime.combine(query.since, time(), UTC) if query.since else None
    with call.site.outbox(call.user) as outbox:
        chosen = (
            entry
            for entry in outbox.audit(query.case_reference)
            if entry.number > query.after and (start is None or entry.at >= start)
        )
        found = list(islice(chosen, query.limit + 1))
    entries = found[: query.limit]
    return {
        "entries": [entry_json(entry) for entry in entries],
        "next_after": entries[-1].number if len(found) > len(entries) else None,
    }


def audit_verify(call: Call) -> ChainJson:
    """Whether no entry was altered, taken out or put in. Every entry is looked at.

    Note `noted` elsewhere, and expect it later: a log that was cut short at its end, or made anew
    as a whole, shows nothing by itself.
    """
    with call.site.outbox(call.user) as outbox:
        return chain_json(outbox.audit(), call.query.expect)


_ONE_MESSAGE = (404, 409)

OPERATIONS = (
    Operation("GET", "/interventions", "List the interventions", list[InterventionJson],
              interventions),
    Operation("GET", "/interventions/{intervention}", "Show an intervention",
              WholeInterventionJson, intervention, refusals=(404,)),
    Operation("GET", "/schema", "The schema of a case", dict[str, Any], schema, query=NeededBy,
              refusals=(404,)),
    Operation("GET", "/sample/{interventions}", "A made-up case", dict[str, Any], sample,
              refusals=(404,)),
    Operation("POST", "/suggest", "Which interventions fit", list[AssessmentJson], suggest,
              takes_case=True),
    Operation("POST", "/check", "Check a case", list[AssessmentJson], check, query=Some,
              takes_case=True, refusals=(404,)),
    Operation("POST", "/preview", "Preview an e-mail", PreviewJson, preview, query=One,
              takes_case=True, refusals=(404,)),
    Operation("POST", "/drafts", "Make drafts", DraftsJson, drafts, query=Several,
              takes_case=True, refusals=(404, 406)),
    Operation("POST", "/referrals", "Submit referrals", SubmissionsJson, submit, Role.SENDER,
              Submitting, takes_case=True, statuses=(200, 202), refusals=(404, 409)),
    Operation("GET", "/outbox", "List the outbox", OutboxJson, outbox_list, query=Listing),
    Operation("GET", "/outbox/{reference}", "Show a message", list[WholeHeldJson], outbox_show,
              refusals=(404,)),
    Operation("POST", "/outbox/{reference}/retry", "Try a message again", HeldJson, retry,
              Role.SENDER, refusals=_ONE_MESSAGE),
    Operation("POST", "/outbox/{reference}/cancel", "Cancel a message", HeldJson, cancel,
              Role.SENDER, refusals=_ONE_MESSAGE),
    Operation("POST", "/outbox/{reference}/acknowledge", "Record an answer", HeldJson, acknowledge,
              Role.SENDER, refusals=_ONE_MESSAGE),
    Operation("GET", "/due", "List what is late", list[LateHeldJson], due),
    Operation("GET", "/holds", "List the agencies that are held", list[WaitingHoldJson], holds),
    Operation("GET", "/directory", "List the directory", list[AddressJson], agencies),
    Operation("POST", "/directory/{agency}/verify", "Record a verified address",
              AddressJson, verify, Role.ADMINISTRATOR, AskedOn, refusals=(404, 409)),
    Operation("POST", "/directory/{agency}/withdraw", "Take back a verified address", AddressJson,
              withdraw, Role.ADMINISTRATOR, refusals=(404, 409)),
    Operation("POST", "/directory/{agency}/hold", "Hold an agency", BegunHoldJson, hold,
              Role.ADMINISTRATOR, Because, refusals=(404,)),
    Operation("GET", "/holds/{agency}", "What a release would come to", ReleaseJson, release_plan,
               Role.ADMINISTRATOR, Releasing, refusals=(404, 409)),
    Operation("POST", "/directory/{agency}/release", "Release an agency", ReleaseJson, release,
              Role.ADMINISTRATOR, Releasing, statuses=(200, 202), refusals=(404, 409)),
    Operation("GET", "/audit", "List the audit", AuditJson, audit, Role.ADMINISTRATOR, Auditing),
    Operation("GET", "/audit/verify", "Verify the audit", ChainJson, audit_verify,
              Role.ADMINISTRATOR, Expecting),
)  # fmt: skip
