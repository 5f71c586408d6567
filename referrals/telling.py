"""How each thing is told to programs: by the commands with --json, and by the page's API.

Every shape is a type, so that the API's description is made of the very same. Nothing here tells
what was typed into a case, but for the letter itself.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from datetime import date
from typing import TYPE_CHECKING, Any, NotRequired

from typing_extensions import TypedDict

from referrals import errors
from referrals.delivery import DeliveryStatus

if TYPE_CHECKING:
    from referrals.addresses import Address
    from referrals.audit import Entry, Noted
    from referrals.delivery import Reply
    from referrals.directory import Agency, Directory, Intervention, Question
    from referrals.eligibility import Assessment
    from referrals.holding import Hold
    from referrals.queueing import Attempt, Held
    from referrals.rules import Finding
    from referrals.service import Referral

# What is wrong


class ProblemJson(TypedDict):
    """One thing to put right. `where` is the path of a field; no value is repeated."""

    where: str
    what: str
    remedy: str
    code: str


def problem_json(problem: errors.Problem) -> ProblemJson:
    return {
        "where": problem.where,
        "what": problem.what,
        "remedy": problem.remedy,
        "code": problem.code,
    }


class FindingJson(TypedDict):
    """What one rule says."""

    code: str
    level: str
    text: str
    source: str
    where: str | None
    missing: bool
    overridable: bool
    overridden: bool


def finding_json(finding: Finding) -> FindingJson:
    return {
        "code": finding.code,
        "level": str(finding.level),
        "text": finding.text,
        "source": finding.source,
        "where": finding.where,
        "missing": finding.missing,
        "overridable": finding.overridable,
        "overridden": finding.override is not None,
    }


class ReplyJson(TypedDict):
    """What the relay said."""

    code: int
    enhanced: str | None
    text: str


def reply_json(reply: Reply) -> ReplyJson:
    return {"code": reply.code, "enhanced": reply.enhanced, "text": reply.text}


class ErrorJson(TypedDict):
    """`code` is stable; `message` is fit to show."""

    code: str
    message: str
    problems: NotRequired[list[ProblemJson]]
    intervention: NotRequired[str]
    findings: NotRequired[list[FindingJson]]
    stage: NotRequired[str]
    reply: NotRequired[ReplyJson | None]


def described(error: errors.ReferralsError) -> ErrorJson:
    """An error: code, message and, if there are some, problems and findings."""
    made: ErrorJson = {"code": error.code, "message": str(error)}
    if isinstance(error, errors.CaseInvalid | errors.ConfigurationError | errors.ReferralBlocked):
        made["problems"] = [problem_json(problem) for problem in error.problems]
    if isinstance(error, errors.ReferralBlocked):
        made["intervention"] = error.intervention_id
        made["findings"] = [finding_json(finding) for finding in error.findings]
    if isinstance(error, errors.DeliveryError):
        made["stage"] = error.stage
        made["reply"] = reply_json(error.reply) if error.reply else None
    return made


# The directory


class AgencyJson(TypedDict):
    """Who receives a referral; without `email` it can only be drafted."""

    id: str
    title: str
    email: str | None
    phone: str | None
    source: str
    verified_on: str | None
    verified: bool
    alert: str | None


def agency_json(agency: Agency, today: date) -> AgencyJson:
    return {
        "id": agency.id,
        "title": agency.title,
        "email": agency.email,
        "phone": agency.phone,
        "source": agency.source,
        "verified_on": agency.verified_on.isoformat() if agency.verified_on else None,
        "verified": agency.is_verified(today),
        "alert": agency.alert or None,
    }


class AddressJson(AgencyJson):
    """How an agency's address stands; `receives` has areas or districts by intervention."""

    verified_by: str | None
    check_again_by: str | None
    standing: str
    receives: dict[str, list[str]]


def address_json(address: Address, today: date) -> AddressJson:
    agency, again = address.agency, address.agency.check_again_by
    return {
        **agency_json(agency, today),
        "verified_by": agency.verified_by or None,
        "check_again_by": again.isoformat() if again else None,
        "standing": str(address.standing),
        "receives": {one.intervention.id: list(one.places) for one in address.receives},
    }


def routes_of(intervention: Intervention, directory: Directory) -> Iterator[tuple[str, Agency]]:
    """(area or district, agency) in the order of config/."""
    for place_id, agency_id in intervention.routes.items():
        yield place_id, directory.agencies[agency_id]


class InterventionJson(TypedDict):
    """`routes` has the agency by area or, more exactly, by district."""

    id: str
    title: str
    summary: str
    source: str
    areas: list[str]
    routes: dict[str, AgencyJson]
    acknowledge_within_days: int


def intervention_json(
    intervention: Intervention, directory: Directory, today: date
) -> InterventionJson:
    return {
        "id": intervention.id,
        "title": intervention.title,
        "summary": intervention.summary,
        "source": intervention.source,
        "areas": list(intervention.areas),
        "routes": {
            place_id: agency_json(agency, today)
            for place_id, agency in routes_of(intervention, directory)
        },
        "acknowledge_within_days": intervention.acknowledge_within_days,
    }


class FactsJson(TypedDict):
    """Paths of the case's facts that the agency is told."""

    required: list[str]
    optional: list[str]


class OptionJson(TypedDict):
    """`no_address` says why nobody can be written to about it."""

    value: str
    label: str
    no_address: str | None


class QuestionJson(TypedDict):
    """A field of an intervention's own."""

    name: str
    label: str
    type: str
    required: bool
    hint: str
    sensitivity: str
    options: list[OptionJson]


class WholeInterventionJson(InterventionJson):
    """With its facts, fields and rules."""

    facts: FactsJson
    fields: list[QuestionJson]
    rules: list[dict[str, Any]]


def whole_intervention_json(
    intervention: Intervention, directory: Directory, today: date
) -> WholeInterventionJson:
    facts = intervention.facts
    return {
        **intervention_json(intervention, directory, today),
        "facts": {"required": list(facts.required), "optional": list(facts.optional)},
        "fields": [_question_json(question) for question in intervention.fields],
        "rules": [rule.model_dump(mode="json") for rule in intervention.rules],
    }


def _question_json(question: Question) -> QuestionJson:
    return {
        "name": question.name,
        "label": question.label,
        "type": str(question.type),
        "required": question.required,
        "hint": question.hint,
        "sensitivity": str(question.sensitivity),
        "options": [
            {"value": option.value, "label": option.label, "no_address": option.no_address}
            for option in question.options
        ],
    }


# A case and its referrals


class AddresseeJson(TypedDict):
    id: str
    title: str
    email: str | None


class AssessmentJson(TypedDict):
    """What is known of one case and one intervention.

    `fits`: no rule says no. `may_fit`: nothing speaks against it but records still to be made.
    `ready`: it fits, and nothing is missing.
    """

    intervention: str
    fits: bool
    may_fit: bool
    ready: bool
    agency: AddresseeJson | None
    problems: list[ProblemJson]
    findings: list[FindingJson]


def assessment_json(assessment: Assessment) -> AssessmentJson:
    agency = assessment.agency
    return {
        "intervention": assessment.intervention.id,
        "fits": assessment.fits,
        "may_fit": assessment.may_fit,
        "ready": assessment.ready,
        "agency": {"id": agency.id, "title": agency.title, "email": agency.email}
        if agency
        else None,
        "problems": [problem_json(problem) for problem in assessment.problems],
        "findings": [finding_json(finding) for finding in assessment.findings],
    }


class AgencyNameJson(TypedDict):
    id: str
    title: str


class ReferralJson(TypedDict):
    """A referral that is ready to be drafted or submitted. `to` is the directory's address."""

    reference: str
    intervention: str
    agency: AgencyNameJson
    to: str | None
    subject: str
    acknowledge_by: str
    findings: list[FindingJson]


def referral_json(referral: Referral) -> ReferralJson:
    return {
        "reference": referral.reference,
        "intervention": referral.intervention_id,
        "agency": {"id": referral.agency.id, "title": referral.agency.title},
        "to": referral.agency.email,
        "subject": referral.letter.subject,
        "acknowledge_by": referral.acknowledge_by.isoformat(),
        "findings": [finding_json(finding) for finding in referral.assessment.findings],
    }


def headers_of(content: bytes) -> dict[str, str]:
    """Those of a message's headers that a reader sees, as they read."""
    from email import message_from_bytes
    from email.policy import default

    message = message_from_bytes(content, policy=default)
    wanted = ("From", "Reply-To", "To", "Subject", "X-Protective-Marking")
    return {name: str(message[name]) for name in wanted if message[name]}


# The outbox


class HeldJson(TypedDict):
    """A message in the outbox, without its content.

    `rerouted_to`: the address of the message that was made of it, if one was; it is cancelled then.
    """

    reference: str
    case_reference: str
    intervention: str
    agency: str
    to: str
    status: DeliveryStatus
    attempts: int
    may_arrive_twice: bool
    queued_at: str
    due_at: str | None
    relayed_at: str | None
    acknowledge_by: str
    acknowledged_on: str | None
    message_id: str
    sha256: str
    size: int
    purged_at: str | None
    rerouted_to: str | None


def held_json(held: Held) -> HeldJson:
    return {
        "reference": held.reference,
        "case_reference": held.case_reference,
        "intervention": held.intervention,
        "agency": held.agency,
        "to": held.recipient,
        "status": held.status,
        "attempts": held.attempts,
        "may_arrive_twice": held.maybe_doubled,
        "queued_at": held.queued_at.isoformat(),
        "due_at": held.due_at.isoformat() if held.due_at else None,
        "relayed_at": held.relayed_at.isoformat() if held.relayed_at else None,
        "acknowledge_by": held.acknowledge_by.isoformat(),
        "acknowledged_on": held.acknowledged_on.isoformat() if held.acknowledged_on else None,
        "message_id": held.message_id,
        "sha256": held.sha256,
        "size": held.size,
        "purged_at": held.purged_at.isoformat() if held.purged_at else None,
        "rerouted_to": held.rerouted_to,
    }


class KeptJson(HeldJson):
    """`held`: it is kept, since its agency is held."""

    held: bool


class AttemptJson(TypedDict):
    started_at: str
    ended_at: str | None
    outcome: str | None
    stage: str | None
    code: int | None
    enhanced: str | None
    words: str | None
    relay: str | None


def attempt_json(attempt: Attempt) -> AttemptJson:
    return {
        "started_at": attempt.started_at.isoformat(),
        "ended_at": attempt.ended_at.isoformat() if attempt.ended_at else None,
        "outcome": attempt.outcome,
        "stage": attempt.stage,
        "code": attempt.code,
        "enhanced": attempt.enhanced,
        "words": attempt.words,
        "relay": attempt.relay,
    }


class LateJson(HeldJson):
    """A message whose answer is late."""

    agency_title: str
    days_late: int
    next_step: str


def late_json(held: Held, directory: Directory, today: date) -> LateJson:
    return {
        **held_json(held),
        "agency_title": agency_title(held, directory),
        "days_late": (today - held.acknowledge_by).days,
        "next_step": when_late(held, directory),
    }


def agency_title(held: Held, directory: Directory) -> str:
    """Its name, or what it was called when the referral was queued."""
    agency = directory.agencies.get(held.agency)
    return agency.title if agency else held.agency


def when_late(held: Held, directory: Directory) -> str:
    """What one does about an answer that is late."""
    from referrals.reminder import why_not

    why = why_not(held, directory)
    if why is not None:
        return why
    if held.status is DeliveryStatus.UNCERTAIN:
        return "it may not have arrived: ring, then ack or outbox retry"
    return "remind them"


class HoldJson(TypedDict):
    """An agency that nothing goes to for now: since when, in whose name, and why."""

    agency: str
    since: str
    by: str
    why: str


def hold_json(hold: Hold) -> HoldJson:
    return {
        "agency": hold.agency,
        "since": hold.since.isoformat(),
        "by": hold.by,
        "why": str(hold.why),
    }


# The audit


class EntryJson(TypedDict):
    """One thing that happened. `detail` has names, codes and dates, no value of a case."""

    number: int
    at: str
    actor: str
    action: str
    reference: str
    case_reference: str
    detail: dict[str, Any]
    before: str
    hash: str


def entry_json(entry: Entry) -> EntryJson:
    return {
        "number": entry.number,
        "at": entry.at.isoformat(),
        "actor": entry.actor,
        "action": entry.action,
        "reference": entry.reference,
        "case_reference": entry.case_reference,
        "detail": dict(entry.detail),
        "before": entry.before,
        "hash": entry.hash,
    }


class BreakJson(TypedDict):
    number: int
    what: str


class ChainJson(TypedDict):
    """Whether the log is whole. `noted` is its end, to be kept elsewhere and expected later."""

    ok: bool
    entries: int
    last_hash: str
    noted: str
    expected: str | None
    breaks: list[BreakJson]


def chain_json(entries: Iterable[Entry], expected: Noted | None) -> ChainJson:
    """Every entry is looked at, and none kept."""
    from referrals.audit import FIRST, Noted, verify

    end = Noted(0, FIRST)

    def watched() -> Iterator[Entry]:
        nonlocal end
        for entry in entries:
            end = Noted(entry.number, entry.hash)
            yield entry

    breaks: list[BreakJson] = [
        {"number": one.number, "what": one.what} for one in verify(watched(), expected)
    ]
    return {
        "ok": not breaks,
        "entries": end.number,
        "last_hash": end.hash,
        "noted": str(end),
        "expected": str(expected) if expected else None,
        "breaks": breaks,
    }
