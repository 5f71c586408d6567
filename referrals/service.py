"""The use cases: suggest, check, prepare, draft, submit."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date, datetime
from functools import lru_cache
from itertools import chain
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from referrals.case import Case
from referrals.directory import Agency, Directory, Place
from referrals.eligibility import Assessment, assess, read_case
from referrals.errors import AddressUnverified, CaseInvalid, NoAddress, ReferralBlocked
from referrals.message import Sender, compose_draft, compose_outgoing
from referrals.reference import referral_reference
from referrals.rendering import Letter, letter_values, render

if TYPE_CHECKING:
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    from referrals.delivery import Outgoing, Submission
    from referrals.settings import MailSettings

LONGEST_MAILTO = 1_800
"""Characters of a mailto: link that every mail client takes; RFC 6068 gives no limit."""


@dataclass(frozen=True)
class Referral:
    """One case, one intervention, one agency: ready to be drafted or submitted."""

    reference: str
    assessment: Assessment
    agency: Agency
    letter: Letter = field(repr=False)
    acknowledge_by: date

    @property
    def case(self) -> Case:
        return self.assessment.case

    @property
    def intervention_id(self) -> str:
        return self.assessment.intervention.id

    @property
    def file_name(self) -> str:
        """Of its draft: reference and intervention, nothing of a person."""
        return f"{self.reference}-{self.intervention_id}.eml"


@dataclass(frozen=True)
class Service:
    """What one may do with a case. `now` gives the time, aware; it decides the day of referral."""

    directory: Directory
    templates: ImmutableSandboxedEnvironment = field(repr=False)
    mail: MailSettings
    now: Callable[[], datetime]

    def today(self, place: Place | None = None) -> date:
        """The day by the region's clock; before the region is known, by the first one's."""
        from zoneinfo import ZoneInfo

        region = place.region if place else next(iter(self.directory.regions.values()))
        return self.now().astimezone(ZoneInfo(region.timezone)).date()

    def read(self, raw: Mapping[str, Any]) -> tuple[Case, Place]:
        """Raises CaseInvalid with every problem that the case has."""
        return read_case(raw, self.directory, self.today())

    def assess(self, case: Case, place: Place, intervention_id: str) -> Assessment:
        """Raises InterventionUnknown."""
        intervention = self.directory.intervention(intervention_id)
        return assess(case, place, intervention, self.directory, self.today(place))

    def suggest(self, case: Case, place: Place) -> list[Assessment]:
        """Every intervention of the directory against this case."""
        return [self.assess(case, place, name) for name in sorted(self.directory.interventions)]

    def prepare(self, assessment: Assessment) -> Referral:
        """The letter to the one agency.

        Raises:
            ReferralBlocked: a rule says no; missing facts are said with it.
            CaseInvalid: only facts are missing.
            ConfigurationError: the template is at fault.
        """
        intervention, agency = assessment.intervention, assessment.agency
        if assessment.blocks or agency is None:
            raise ReferralBlocked(intervention.id, assessment.blocks, assessment.problems)
        if assessment.problems:
            raise CaseInvalid(assessment.problems)
        today = self.today(assessment.place)
        reference = referral_reference(assessment.case.reference, intervention.id)
        values = letter_values(
            assessment, reference=reference, marking=self.mail.marking, today=today
        )
        return Referral(
            reference=reference,
            assessment=assessment,
            agency=agency,
            letter=render(self.templates, intervention.template, values),
            acknowledge_by=intervention.acknowledge_by(today),
        )

    def draft(self, referral: Referral) -> bytes:
        """An .eml that opens ready to edit, from the referrer, to the directory's address."""
        referrer = referral.case.referrer
        sender = Sender(referrer.name, referrer.email, referrer.email)
        return compose_draft(referral.letter, sender, referral.agency.email, self.mail.marking)

    def mailto(self, referral: Referral) -> str | None:
        """A mailto: link with the whole text (RFC 6068), or None where it would be too long."""
        subject = referral.letter.subject
        if self.mail.marking:
            subject = f"{self.mail.marking}: {subject}"
        body = referral.letter.text.replace("\n", "\r\n")
        to = quote(referral.agency.email or "", safe="@")
        link = f"mailto:{to}?subject={quote(subject, safe='')}&body={quote(body, safe='')}"
        return link if len(link) <= LONGEST_MAILTO else None

    def check_address(self, referral: Referral, *, accept_unverified: bool) -> str:
        """The one address that a relay may be given.

        Raises:
            NoAddress: the directory has none, whatever anybody typed.
            AddressUnverified: nobody checked it within its review time.
        """
        agency = referral.agency
        if agency.email is None:
            raise NoAddress(
                f"{referral.intervention_id}: the directory has no address for {agency.title}, so "
                "this can only be drafted. The draft's To is empty for you to fill in. An address "
                "set in your own config/ (agencies.toml) makes submitting possible."
            )
        if not accept_unverified and not agency.is_verified(self.today(referral.assessment.place)):
            raise AddressUnverified(
                f"{referral.intervention_id}: nobody has checked {agency.email} within "
                f"{agency.review_after_days} days. Ask {agency.title} whether it is right, then "
                f"`referrals directory verify {agency.id}`; or add --accept-unverified, which is "
                "recorded." + (f" Note: {agency.alert}" if agency.alert else "")
            )
        return agency.email

    def outgoing(
        self, referral: Referral, *, token: str, accept_unverified: bool = False
    ) -> Outgoing:
        """The finished message in its envelope, with its one Date and Message-ID.

        Args:
            token: random letters and digits that make the Message-ID unique.

        Raises:
            NoAddress, AddressUnverified: as for `check_address`.
        """
        from referrals.delivery import Envelope, Outgoing

        recipient = self.check_address(referral, accept_unverified=accept_unverified)
        referrer = referral.case.referrer
        if self.mail.sender:
            sender = Sender(self.mail.sender_name, self.mail.sender, referrer.email)
        else:
            sender = Sender(referrer.name, referrer.email, referrer.email)
        content = compose_outgoing(
            referral.letter,
            sender,
            recipient,
            self.mail.marking,
            date=self.now(),
            message_id=_message_id(referral, token, sender.address),
        )
        return Outgoing(referral.reference, Envelope(sender.address, recipient), content)

    def submission(
        self, referral: Referral, *, token: str, accept_unverified: bool = False
    ) -> Submission:
        """The finished message with what the queue and the audit need to know of it.

        Raises:
            NoAddress, AddressUnverified: as for `check_address`.
        """
        from referrals.delivery import Submission

        outgoing = self.outgoing(referral, token=token, accept_unverified=accept_unverified)
        today = self.today(referral.assessment.place)
        whole, facts = content_keys(referral.assessment)
        return Submission(
            content_key=whole,
            facts_key=facts,
            case_reference=referral.case.reference,
            intervention=referral.intervention_id,
            agency=referral.agency.id,
            message_id=_message_id(referral, token, outgoing.envelope.sender),
            acknowledge_by=referral.acknowledge_by,
            outgoing=outgoing,
            detail=disclosure(referral)
            | {"accepted_unverified": not referral.agency.is_verified(today)},
        )


def _message_id(referral: Referral, token: str, sender: str) -> str:
    return f"<{referral.reference}.{token}@{sender.rpartition('@')[2]}>"


def content_key(assessment: Assessment) -> str:
    """The same for the same case, intervention, agency and facts told, on whatever day.

    SHA-256 of what the agency is told of the people and incidents, not of the letter, which has
    a date in it; so that a referral queued twice is noticed, whoever does it.
    """
    return content_keys(assessment)[0]


def content_keys(assessment: Assessment) -> tuple[str, str]:
    """`content_key`, and the same without the address, which may be corrected later."""
    case, intervention = assessment.case, assessment.intervention
    facts = {
        path: _told_at(case, parts)
        for path, parts in _parts(intervention.facts.required, intervention.facts.optional)
    }
    answers = {name: str(answer) for name, answer in assessment.answers.items()}
    email = assessment.agency.email if assessment.agency else None
    start = f"[{_as_text(case.reference)},{_as_text(intervention.id)},"
    to = "null" if email is None else _as_text(email)
    told = _JSON.encode([facts, answers])[1:]
    return _digest(f"{start}{to},{told}"), _digest(f"{start}{told}")


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode("ascii")).hexdigest()


def _as_json(value: Any) -> Any:
    return value.isoformat() if type(value) is date else value.model_dump(mode="json")


# Outboxes keep these digests: written otherwise, a referral in one would be queued again. The first
# is that of a JSON list: reference, intervention, address, facts, answers.
_as_text = json.encoder.encode_basestring_ascii
_JSON = json.JSONEncoder(sort_keys=True, separators=(",", ":"), default=_as_json)


@lru_cache(maxsize=64)
def _parts(*facts: tuple[str, ...]) -> Sequence[tuple[str, Sequence[str]]]:
    """Each fact's path and its parts, but for consents, which may be given anew."""
    return [(path, path.split(".")) for path in chain(*facts) if not path.startswith("consents.")]


def _told_at(value: Any, parts: Sequence[str]) -> Any:
    """What stands at a fact's place in the case; of a list, that of each item."""
    for place, part in enumerate(parts):
        if value is None:
            return None
        if type(value) is list:
            return [_told_at(item, parts[place:]) for item in value]
        value = getattr(value, part)
    return value


def disclosure(referral: Referral) -> dict[str, Any]:
    """What the audit keeps of a referral: names of facts and fields, codes and dates, no values."""
    case, intervention = referral.case, referral.assessment.intervention
    consents = {}
    for role in type(case.people).model_fields:
        consent = case.consent_of(role, intervention.id)
        if consent:
            consents[role] = {"on": consent.on.isoformat(), "given": consent.stands}
    return {
        "facts": sorted(intervention.facts),
        "fields": sorted(referral.assessment.answers),
        "lawful_basis": str(case.lawful_basis.basis) if case.lawful_basis else None,
        "consents": consents,
        "overrides": sorted(
            finding.code for finding in referral.assessment.findings if finding.override
        ),
    }
