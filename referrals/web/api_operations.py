"""What a program may ask of us: the same operations as the command line's, as one table.

`api` makes routes of it, and `openapi` the description. The body of a request, where there is one,
is the case as it stands in a file; everything else is in the query. No operation takes a
recipient: that is the directory's.
"""

from __future__ import annotations

import base64
import secrets
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, time, timedelta
from functools import cached_property
from itertools import islice
from typing import Any, Literal

from pydantic import ValidationError
from starlette.exceptions import HTTPException
from starlette.responses import Response
from typing_extensions import TypedDict

from referrals.addresses import addresses
from referrals.case import Case
from referrals.delivery import DeliveryStatus, Submission
from referrals.directory import Agency, Place
from referrals.errors import (
    AddressUnverified,
    ConfigurationError,
    NoAddress,
    NotInOutbox,
    Problem,
)
from referrals.problems import problems_of
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
    InterventionJson,
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
    intervention_json,
    late_json,
    referral_json,
    whole_intervention_json,
)
from referrals.verification import Verification
from referrals.web.api_queries import (
    AskedOn,
    Auditing,
    Expecting,
    Listing,
    NeededBy,
    One,
    Query,
    RequestInvalid,
    Several,
    Some,
    Submitting,
    in_query,
)
from referrals.web.site import Role, Site, User

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
    """`queued_before`: the same referral was there already, and nothing was changed."""

    status: DeliveryStatus
    queued_before: bool


class SubmissionsJson(TypedDict):
    referrals: list[SubmittedJson]


class OutboxJson(TypedDict):
    """Messages, the newest first, and how many there are of each status.

    `unfinished_and_old`: neither relayed nor cancelled, and untouched for a long time.
    `next_offset`: where the next page begins, if there is one.
    """

    counts: dict[str, int]
    unfinished_and_old: int
    messages: list[HeldJson]
    next_offset: int | None


class WholeHeldJson(HeldJson):
    """With each attempt and what the relay said."""

    tries: list[AttemptJson]


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
    call.site.courier.kick()
    told: list[SubmittedJson] = [
        {**referral_json(one), "status": now.status, "queued_before": not now.new}
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
            limit=query.limit + 1,
            offset=query.offset,
        )
        counts = outbox.counts()
        old = len(outbox.unfinished(call.site.now - timedelta(days=days)))
    return {
        "counts": counts,
        "unfinished_and_old": old,
        "messages": [held_json(one) for one in found[: query.limit]],
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
        return [
            {**held_json(one), "tries": [attempt_json(each) for each in outbox.attempts(one.id)]}
            for one in found
        ]


def retry(call: Call) -> HeldJson:
    """Make a delayed, failed or uncertain message due now."""
    with call.site.outbox(call.user) as outbox:
        held = outbox.retry(call.path["reference"].upper(), call.site.now)
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


def due(call: Call) -> list[LateJson]:
    """Referrals whose answer is late, and what to do about each."""
    directory, today = call.service.directory, call.today
    with call.site.outbox(call.user) as outbox:
        return [late_json(one, directory, today) for one in outbox.unacknowledged(today)]


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
    Operation("GET", "/due", "List what is late", list[LateJson], due),
    Operation("GET", "/directory", "List the directory", list[AddressJson], agencies),
    Operation("POST", "/directory/{agency}/verify", "Record a verified address",
              AddressJson, verify, Role.ADMINISTRATOR, AskedOn, refusals=(404, 409)),
    Operation("POST", "/directory/{agency}/withdraw", "Take back a verified address", AddressJson,
              withdraw, Role.ADMINISTRATOR, refusals=(404, 409)),
    Operation("GET", "/audit", "List the audit", AuditJson, audit, Role.ADMINISTRATOR, Auditing),
    Operation("GET", "/audit/verify", "Verify the audit", ChainJson, audit_verify,
              Role.ADMINISTRATOR, Expecting),
)  # fmt: skip
