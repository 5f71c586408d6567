"""From a case to the bytes for one recipient; and what a relay's reply says."""

from __future__ import annotations

import copy
import traceback
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, date, datetime, timedelta
from email import message_from_bytes
from email.message import EmailMessage
from email.policy import default
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import pytest
from hypothesis import given
from hypothesis import strategies as st

from referrals.case import Basis, Case, People, Record, Strand, shared_facts
from referrals.delivery import (
    DeliveryStatus,
    Envelope,
    Outgoing,
    Receipt,
    Reply,
    RetryPolicy,
    next_attempt,
)
from referrals.directory import Directory, Facts
from referrals.directory_files import read_directory
from referrals.eligibility import Assessment
from referrals.errors import (
    AddressUnverified,
    CaseInvalid,
    ConfigurationError,
    InterventionUnknown,
    NoAddress,
    ReferralBlocked,
    ReferralsError,
)
from referrals.message import Sender
from referrals.reference import referral_reference
from referrals.rendering import environment
from referrals.rules import Answer
from referrals.samples import sample_case
from referrals.service import LONGEST_MAILTO, Referral, Service, content_key, disclosure
from referrals.settings import MailSettings
from tests import oracle
from tests.conftest import CONFIG, NOW, TEMPLATES, TODAY

DIRECTORY = read_directory(CONFIG, TEMPLATES)
SERVICE = Service(DIRECTORY, environment(TEMPLATES), MailSettings(), lambda: NOW)
INTERVENTIONS = sorted(DIRECTORY.interventions)
TO = {
    "fire-resistant-mailbox": "communitysafetynorth@notts-fire.gov.uk",
    "mediation": "community@nottinghamcityhomes.org.uk",
    "police-dispersal-order": None,
    "positive-engagement": "positiveengagement@nottinghamshire.pnn.police.uk",
    "repeat-victim-panel": "Hate.crime@nottinghamshire.pnn.police.uk",
    "target-hardening": "cpintelligence@Nottinghamshire.pnn.police.uk",
    "victim-hardening": "admin@nottsvictimcare.org.uk",
}


def prepared(
    intervention: str, raw: dict[str, Any] | None = None, service: Service = SERVICE
) -> Referral:
    case, place = service.read(raw or sample_case(DIRECTORY, [intervention], TODAY))
    return service.prepare(service.assess(case, place, intervention))


def parsed(content: bytes) -> EmailMessage:
    message = message_from_bytes(content, policy=default)
    assert isinstance(message, EmailMessage)
    return message


def text_of(message: EmailMessage) -> str:
    part = message.get_body(("plain",))
    assert part is not None
    return str(part.get_content())


# --- what may be made of a case


def test_suggests_every_intervention_and_why_not(service: Service) -> None:
    case, place = service.read(sample_case(DIRECTORY, ["mediation"], TODAY))
    found = {one.intervention.id: one for one in service.suggest(case, place)}

    assert list(found) == INTERVENTIONS
    assert found["mediation"].ready
    assert not found["victim-hardening"].fits
    assert found["victim-hardening"].may_fit


@pytest.mark.parametrize("intervention", INTERVENTIONS)
def test_a_referral_is_named_by_its_reference_alone(service: Service, intervention: str) -> None:
    referral = prepared(intervention)

    assert referral.reference == referral_reference("SAMPLE-001", intervention)
    assert referral.file_name == f"{referral.reference}-{intervention}.eml"
    assert referral.reference in referral.letter.subject
    assert referral.case.reference == "SAMPLE-001"
    days = DIRECTORY.intervention(intervention).acknowledge_within_days
    wanted = TODAY + timedelta(days=days)
    assert wanted <= referral.acknowledge_by <= wanted + timedelta(days=2)
    assert referral.acknowledge_by.weekday() < 5


def test_an_unknown_intervention_is_refused(service: Service) -> None:
    case, place = service.read(sample_case(DIRECTORY, ["mediation"], TODAY))

    with pytest.raises(InterventionUnknown):
        service.assess(case, place, "exile")


def test_the_day_of_referral_is_by_the_regions_clock() -> None:
    """Half past eleven in the evening, UTC, in July is tomorrow in Nottingham: a birthday."""
    raw = sample_case(DIRECTORY, ["positive-engagement"], date(2026, 7, 1))
    raw["people"]["young_person"]["date_of_birth"] = "2008-07-02"
    before = replace(SERVICE, now=lambda: datetime(2026, 7, 1, 22, 59, tzinfo=UTC))
    after = replace(SERVICE, now=lambda: datetime(2026, 7, 1, 23, 0, tzinfo=UTC))

    assert before.assess(*before.read(raw), "positive-engagement").fits
    assert not after.assess(*after.read(raw), "positive-engagement").fits
    assert (before.today(), after.today()) == (date(2026, 7, 1), date(2026, 7, 2))


def test_a_blocked_referral_makes_no_letter_and_says_what_else_is_missing(
    service: Service,
) -> None:
    raw = sample_case(DIRECTORY, ["victim-hardening"], TODAY)
    raw["consents"] = []
    del raw["people"]["victim"]["address"]
    with pytest.raises(ReferralBlocked) as refused:
        prepared("victim-hardening", raw)

    assert [finding.code for finding in refused.value.findings] == ["VIC-001"]
    assert [one.where for one in refused.value.problems] == ["people.victim.address"]
    said = str(refused.value)
    assert "VIC-001" in said
    assert "people.victim.address: is missing." in said


def test_only_missing_facts_are_the_cases_problem(service: Service) -> None:
    raw = sample_case(DIRECTORY, ["victim-hardening"], TODAY)
    del raw["people"]["victim"]["address"]

    with pytest.raises(CaseInvalid, match=r"people\.victim\.address"):
        prepared("victim-hardening", raw)


def test_no_agency_no_letter(service: Service) -> None:
    """Even if no rule should block, a letter without an agency is never made."""
    case, place = service.read(sample_case(DIRECTORY, ["mediation"], TODAY))
    nowhere = replace(service.assess(case, place, "mediation"), agency=None)

    with pytest.raises(ReferralBlocked):
        service.prepare(nowhere)


def test_an_override_is_told_to_the_agency(service: Service) -> None:
    raw = sample_case(DIRECTORY, ["mediation"], TODAY)
    raw["answers"]["mediation"]["court_proceedings"] = True
    raw["overrides"] = [
        {
            "code": code,
            "reason": reason,
            "authorised_by": "Inspector Example",
            "on": "2026-11-20",
        }
        for code, reason in [
            ("MED-006", "The court asked both to try mediation."),
            ("MED-004", "Never looked at, as its rule does not bite."),
        ]
    ]
    letter = prepared("mediation", raw).letter

    for part in (letter.text, letter.html):
        assert "The court asked both to try mediation." in part
        assert "Inspector Example" in part
        assert "20 November 2026" in part
        assert "Never looked at" not in part


def test_a_measure_that_nobody_takes_is_not_in_the_letter(service: Service) -> None:
    raw = sample_case(DIRECTORY, ["target-hardening"], TODAY)
    raw["answers"]["target-hardening"]["measures"] = ["cpo-patrols", "pruning", "cctv-installation"]
    letter = prepared("target-hardening", raw).letter

    for part in (letter.text, letter.html):
        assert "Additional CPO patrols" in part
        assert "runing" not in part
        assert "CCTV" not in part


def test_a_letter_holds_no_facts_but_its_interventions(service: Service) -> None:
    """One case for everything: each agency is told its own part (UK GDPR art. 5(1)(c))."""
    raw = sample_case(DIRECTORY, INTERVENTIONS, TODAY)
    telling = {
        "Robin Instance": {"mediation"},
        "Charlie Specimen": {"positive-engagement"},
        "Jo Specimen": {"positive-engagement"},
        "Alex Sample": {
            "mediation",
            "victim-hardening",
            "repeat-victim-panel",
            "fire-resistant-mailbox",
        },
    }
    for intervention in INTERVENTIONS:
        letter = prepared(intervention, raw).letter
        for name, told in telling.items():
            assert (name in letter.text) == (name in letter.html) == (intervention in told)


# --- one referral, one recipient, from the directory


@pytest.mark.parametrize("intervention", INTERVENTIONS)
@pytest.mark.parametrize("sender", [None, "referrals@council.example.com"])
def test_what_is_submitted_goes_to_the_directorys_address(
    intervention: str, sender: str | None
) -> None:
    service = replace(SERVICE, mail=MailSettings(sender=sender))
    referral = prepared(intervention, service=service)
    draft = parsed(service.draft(referral))
    assert draft["From"].addresses[0].addr_spec == "sam.officer@council.example.com"
    assert draft["X-Unsent"] == "1"
    assert draft["Date"] is None
    assert draft["Message-ID"] is None

    to = TO[intervention]
    if to is None:
        assert draft["To"] is None
        with pytest.raises(NoAddress, match="Inspector"):
            service.outgoing(referral, token="t", accept_unverified=True)
        return
    assert draft["To"] == to
    outgoing = service.outgoing(referral, token="abc123", accept_unverified=True)
    message = parsed(outgoing.content)
    own = sender or "sam.officer@council.example.com"
    assert outgoing.reference == referral.reference
    assert outgoing.envelope == Envelope(own, to)
    assert message["To"] == to
    assert message["From"].addresses[0].addr_spec == own
    assert message["Reply-To"] == "sam.officer@council.example.com"
    assert message["Message-ID"] == f"<{referral.reference}.abc123@council.example.com>"
    assert message["Date"].datetime == NOW
    assert message["X-Unsent"] is None
    assert "sam.officer" not in repr(outgoing)


ADDRESS = st.sampled_from(
    ["victim@example.com", "press@example.org", "o'brien@example.net", "Hate.crime@example.uk"]
)
HEADER = st.sampled_from(["To", "Cc", "Bcc", "Resent-To", "Reply-To", "From", "X-Unsent", "To "])
LINE_END = st.sampled_from(
    ["\n", "\r\n", "\r", "\u2028", "\x85", "%0d%0a", "\\n", "\x0b", "=0D=0A", " ", ", ", ";", "\t"]
)
hostile = st.one_of(
    st.builds(lambda end, name, to: f"x{end}{name}: {to}{end}{end}", LINE_END, HEADER, ADDRESS),
    st.builds(
        lambda name, to: f"{name} <{to}>", st.sampled_from(["Sam", '"', "=?utf-8?q?x?="]), ADDRESS
    ),
    st.builds(lambda end, to: f"a@example.com{end}{to}", LINE_END, ADDRESS),
    ADDRESS,
)
RAW = sample_case(DIRECTORY, INTERVENTIONS, TODAY)


def leaves(value: Any, at: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    if isinstance(value, str):
        yield at
        return
    entries = value.items() if isinstance(value, dict) else enumerate(value)
    for key, inner in entries:
        if not isinstance(inner, bool):
            yield from leaves(inner, (*at, key))


LEAVES = list(leaves(RAW))


def put(raw: dict[str, Any], at: tuple[Any, ...], value: Any) -> None:
    place: Any = raw
    for key in at[:-1]:
        place = place[key]
    place[at[-1]] = value


HEADERS = {
    "From",
    "Reply-To",
    "To",
    "Subject",
    "X-Protective-Marking",
    "MIME-Version",
    "Content-Type",
    "Date",
    "Message-ID",
}


def check_recipient(raw: dict[str, Any], intervention: str) -> bool:
    """Whether a message was made; if so it is for the directory's address and nobody else."""
    try:
        referral = prepared(intervention, raw)
        to = TO[intervention]
        draft = parsed(SERVICE.draft(referral))
        made = [draft]
        if to:
            outgoing = SERVICE.outgoing(referral, token="t", accept_unverified=True)
            assert outgoing.envelope.recipient == to
            made.append(parsed(outgoing.content))
        else:
            assert draft["To"] is None
    except ReferralsError as error:
        if isinstance(error, ConfigurationError):
            raise
        return False
    for message in made:
        assert set(message.keys()) <= HEADERS | {"X-Unsent"}
        assert len(set(message.keys())) == len(message.keys())
        assert message.get_all("To") == ([to] if to else None)
        assert len(message["From"].addresses) == 1
        assert len(message["Reply-To"].addresses) == 1
        assert message["Subject"].endswith(referral.reference)
        assert "@" not in message["Subject"]
    return True


@given(
    st.sampled_from(INTERVENTIONS),
    st.dictionaries(st.sampled_from(LEAVES), hostile, min_size=1, max_size=6),
)
def test_no_field_of_a_case_chooses_the_recipient(
    intervention: str, changes: dict[tuple[Any, ...], str]
) -> None:
    raw = copy.deepcopy(RAW)
    for at, value in changes.items():
        put(raw, at, value)

    check_recipient(raw, intervention)


def test_an_address_in_every_field_is_text_and_no_recipient() -> None:
    """Field by field, so that most cases are good enough to be made into a message."""
    made = 0
    for at in LEAVES:
        for value in ("victim@example.com", "x, press@example.org; Bcc: other@example.org"):
            raw = copy.deepcopy(RAW)
            put(raw, at, value)
            asked = at[1] if at[0] == "answers" else "victim-hardening"
            made += check_recipient(raw, asked)
    assert made > len(LEAVES)


def test_a_header_in_every_line_is_refused() -> None:
    for at in LEAVES:
        raw = copy.deepcopy(RAW)
        put(raw, at, "x\r\nBcc: other@example.org")
        for intervention in ("victim-hardening", "mediation"):
            if at[0] == "referrer":
                assert not check_recipient(raw, intervention)
            else:
                check_recipient(raw, intervention)


# --- an address that nobody checked


def verified(days_ago: int | None) -> Service:
    agency = DIRECTORY.agencies["victim-care"]
    day = None if days_ago is None else TODAY - timedelta(days=days_ago)
    agency = agency.model_copy(update={"verified_on": day})
    agencies = {**DIRECTORY.agencies, agency.id: agency}
    return replace(SERVICE, directory=replace(DIRECTORY, agencies=agencies))


@pytest.mark.parametrize(
    ("days_ago", "passes"), [(None, False), (0, True), (180, True), (181, False), (-1, False)]
)
def test_nothing_is_submitted_to_an_address_that_nobody_checked_lately(
    days_ago: int | None, passes: bool
) -> None:
    service = verified(days_ago)
    referral = prepared("victim-hardening", service=service)
    if passes:
        assert service.outgoing(referral, token="t").envelope.recipient == TO["victim-hardening"]
    else:
        with pytest.raises(AddressUnverified, match=r"within 180 days.*Note: ") as refused:
            service.outgoing(referral, token="t")
        assert "--accept-unverified" in str(refused.value)
    accepted = service.outgoing(referral, token="t", accept_unverified=True)
    assert accepted.envelope.recipient == TO["victim-hardening"]
    assert parsed(service.draft(referral))["To"] == TO["victim-hardening"]


def test_without_an_alert_none_is_said() -> None:
    service = verified(None)
    silent = service.directory.agencies["victim-care"].model_copy(update={"alert": ""})
    agencies = {**service.directory.agencies, "victim-care": silent}
    service = replace(service, directory=replace(DIRECTORY, agencies=agencies))

    with pytest.raises(AddressUnverified) as refused:
        service.outgoing(prepared("victim-hardening", service=service), token="t")
    assert "Note:" not in str(refused.value)


# --- what the queue and the audit are told


@pytest.mark.parametrize(("days_ago", "unverified"), [(None, True), (1, False)])
def test_a_submission_is_the_finished_message_and_what_is_known_of_it(
    days_ago: int | None, unverified: bool
) -> None:
    service = verified(days_ago)
    referral = prepared("victim-hardening", service=service)
    made = service.submission(referral, token="t", accept_unverified=unverified)

    assert made.outgoing == service.outgoing(referral, token="t", accept_unverified=unverified)
    assert parsed(made.outgoing.content)["Message-ID"] == made.message_id
    assert made.content_key == content_key(referral.assessment)
    assert (made.case_reference, made.intervention) == ("SAMPLE-001", "victim-hardening")
    assert (made.agency, made.acknowledge_by) == ("victim-care", referral.acknowledge_by)
    assert made.detail["accepted_unverified"] is unverified
    if unverified:
        with pytest.raises(AddressUnverified):
            service.submission(referral, token="t")


def test_the_audit_is_told_names_and_dates_and_no_values() -> None:
    raw = copy.deepcopy(RAW)
    raw["answers"]["mediation"]["court_proceedings"] = True
    raw["overrides"] = [
        {
            "code": "MED-006",
            "reason": "The court asked both to try.",
            "authorised_by": "Inspector Example",
            "on": "2026-11-20",
        }
    ]
    told = disclosure(prepared("mediation", raw))

    assert told["overrides"] == ["MED-006"]
    assert told["lawful_basis"] == "public-task"
    assert told["consents"] == {
        role: {"on": "2026-11-19", "given": True} for role in ("victim", "other_party")
    }
    assert "people.other_party.name" in told["facts"]
    assert "dispute" in told["fields"]
    for secret in ("Alex", "Robin", "Sam", "Inspector", "court asked", "Example Street"):
        assert secret not in repr(told)


def test_the_audit_says_how_a_referral_went_ahead_without_agreement() -> None:
    raw = sample_case(DIRECTORY, ["fire-resistant-mailbox"], TODAY)
    del raw["lawful_basis"]
    raw["consents"][0]["withdrawn_on"] = "2026-11-20"
    raw["answers"]["fire-resistant-mailbox"]["serious_harm_reason"] = "A petrol bomb was found."
    told = disclosure(prepared("fire-resistant-mailbox", raw))

    assert told["lawful_basis"] is None
    assert told["consents"]["victim"]["given"] is False
    assert "serious_harm_reason" in told["fields"]


def key_of(intervention: str, raw: dict[str, Any], service: Service = SERVICE) -> str:
    case, place = service.read(raw)
    return content_key(service.assess(case, place, intervention))


@pytest.mark.parametrize("intervention", INTERVENTIONS)
def test_the_same_referral_is_known_again_on_another_day(intervention: str) -> None:
    later = replace(SERVICE, now=lambda: NOW + timedelta(days=9))

    assert key_of(intervention, RAW) == key_of(intervention, copy.deepcopy(RAW), later)
    assert len({key_of(one, RAW) for one in INTERVENTIONS}) == len(INTERVENTIONS)


@pytest.mark.parametrize(
    ("at", "value", "another"),
    [
        (("people", "victim", "phone"), "07700 900999", True),
        (("people", "victim", "safe_contact", "times"), "Never on Mondays", True),
        (("incidents", 1, "what"), "Something else.", True),
        (("answers", "victim-hardening", "tenure"), "owner", True),
        (("location", "area"), "county", False),  # the same agency, and it is not told
        (("people", "other_party", "phone"), "07700 900999", False),
        (("answers", "mediation", "began"), "June", False),
        (("reference",), "SAMPLE-002", True),
    ],
)
def test_other_facts_told_make_another_referral(
    at: tuple[Any, ...], value: str, another: bool
) -> None:
    raw = copy.deepcopy(RAW)
    if at == ("location", "area"):
        raw["location"].pop("district", None)
        before = key_of("victim-hardening", raw)
    else:
        before = key_of("victim-hardening", RAW)
    put(raw, at, value)

    assert (key_of("victim-hardening", raw) != before) is another


TYPED = st.text(st.characters(exclude_categories=["C", "Z"]), min_size=1, max_size=12)
DAYS = st.dates(date(1900, 1, 1), TODAY)
PEOPLE = st.fixed_dictionaries(
    {},
    optional={
        "name": TYPED,
        "date_of_birth": DAYS,
        "address": TYPED,
        "safe_contact": st.fixed_dictionaries(
            {"method": TYPED, "times": TYPED}, optional={"avoid": TYPED}
        ),
    },
)
CASES = st.fixed_dictionaries(
    {
        "reference": st.just("SAMPLE-001"),
        "referrer": st.just(RAW["referrer"]),
        "location": st.fixed_dictionaries({}, optional={"area": TYPED, "place": TYPED}),
        "incidents": st.lists(
            st.fixed_dictionaries(
                {"on": DAYS, "what": TYPED},
                optional={"record": st.sampled_from(Record), "strand": st.sampled_from(Strand)},
            ),
            max_size=3,
        ),
        "people": st.fixed_dictionaries({}, optional=dict.fromkeys(People.model_fields, PEOPLE)),
    },
    optional={
        "lawful_basis": st.fixed_dictionaries(
            {"basis": st.sampled_from(Basis), "reason": TYPED, "recorded_by": TYPED, "on": DAYS}
        ),
        "overrides": st.lists(
            st.fixed_dictionaries(
                {
                    "code": TYPED,
                    "reason": st.just("A sentence."),
                    "authorised_by": TYPED,
                    "on": DAYS,
                }
            ),
            max_size=2,
        ),
    },
)
ANSWERS = st.dictionaries(
    TYPED,
    TYPED | st.booleans() | st.integers() | DAYS | st.datetimes() | st.lists(TYPED).map(tuple),
    max_size=3,
)


@given(CASES, ANSWERS, st.sets(st.sampled_from(sorted(shared_facts()))), st.booleans())
def test_what_a_referral_is_known_by_does_not_change(
    raw: dict[str, Any], answers: dict[str, Answer], told: set[str], has_agency: bool
) -> None:
    """Outboxes hold such keys: with others, what is queued there would be queued again."""
    intervention = DIRECTORY.intervention("mediation")
    assessment = Assessment(
        intervention=intervention.model_copy(
            update={"facts": Facts(required=tuple(told)[:2], optional=tuple(told)[2:])}
        ),
        case=Case.model_validate(raw),
        place=DIRECTORY.places[0],
        agency=DIRECTORY.agencies["victim-care"] if has_agency else None,
        answers=answers,
        problems=(),
        findings=(),
    )

    assert content_key(assessment) == oracle.content_key(assessment)


# --- a mailto: link


def short_service(tmp_path: Path, marking: str = "OFFICIAL") -> Service:
    for part, text in [
        ("subject.txt.j2", "Referral {{ referral.reference }}"),
        ("body.txt.j2", "Dear {{ agency.title }} & all,\n{{ referrer.name }}\n"),
        ("body.html.j2", "<p>{{ referrer.name }}</p>"),
    ]:
        file = tmp_path / "victim-hardening" / part
        file.parent.mkdir(exist_ok=True)
        file.write_text(text, encoding="utf-8")
    return replace(SERVICE, templates=environment(tmp_path), mail=MailSettings(marking=marking))


@pytest.mark.parametrize("marking", ["OFFICIAL", ""])
def test_a_short_letter_fits_a_link(tmp_path: Path, marking: str) -> None:
    service = short_service(tmp_path, marking)
    referral = prepared("victim-hardening", service=service)
    link = service.mailto(referral)

    assert link is not None
    parts = urlsplit(link)
    fields = parse_qs(parts.query, strict_parsing=True)
    assert parts.scheme == "mailto"
    assert unquote(parts.path) == TO["victim-hardening"]
    assert set(fields) == {"subject", "body"}
    prefix = f"{marking}: " if marking else ""
    assert fields["subject"] == [f"{prefix}Referral {referral.reference}"]
    assert fields["body"] == ["Dear Victim Care & all,\r\nSam Officer\r\n"]


def test_a_long_letter_has_no_link(tmp_path: Path) -> None:
    service = short_service(tmp_path)
    referral = prepared("victim-hardening", service=service)
    link = service.mailto(referral)
    assert link is not None
    room = LONGEST_MAILTO - len(link)

    def lengthened(by: int) -> Referral:
        letter = replace(referral.letter, text=referral.letter.text + "x" * by)
        return replace(referral, letter=letter)

    fitting = service.mailto(lengthened(room))
    assert fitting is not None
    assert len(fitting) == LONGEST_MAILTO
    assert service.mailto(lengthened(room + 1)) is None


def test_a_link_without_an_address_leaves_it_open() -> None:
    referral = prepared("police-dispersal-order")
    short = replace(referral, letter=replace(referral.letter, text="Short."))

    link = SERVICE.mailto(short)
    assert link is not None
    assert link.startswith("mailto:?subject=OFFICIAL-SENSITIVE%3A%20Request")


# --- nothing personal in what is shown


def test_nothing_personal_is_in_a_repr_or_a_name() -> None:
    secret = "Quetzal" + "Vanterpool"
    raw = copy.deepcopy(RAW)
    for at in LEAVES:
        leaf = at[-1]
        if leaf in ("name", "address", "phone", "method", "times", "avoid", "recorded_by"):
            put(raw, at, f"{secret} {leaf}")
    raw["referrer"]["email"] = f"{secret}@example.com"
    for intervention in INTERVENTIONS:
        referral = prepared(intervention, raw)
        shown = f"{referral!r}{referral.assessment!r}{referral.letter!r}{referral.file_name}"
        shown += f"{referral.letter.subject}{SERVICE!r}"
        if TO[intervention]:
            outgoing = SERVICE.outgoing(referral, token="t", accept_unverified=True)
            shown += f"{outgoing!r}{outgoing.envelope!r}"
            with pytest.raises(AddressUnverified) as refused:
                SERVICE.check_address(referral, accept_unverified=False)
            shown += "".join(traceback.format_exception(refused.value))
        assert secret not in shown
        assert secret in referral.letter.text


def test_a_sender_shows_nothing() -> None:
    assert "Sam" not in repr(Sender("Sam Officer", "Sam@example.com", "Sam@example.com"))


def test_a_template_that_fails_does_not_repeat_the_case(tmp_path: Path) -> None:
    service = short_service(tmp_path)
    secret = "Quetzal" + "Vanterpool"
    raw = sample_case(DIRECTORY, ["victim-hardening"], TODAY)
    raw["people"]["victim"]["name"] = secret
    body = tmp_path / "victim-hardening" / "body.txt.j2"
    for wrong in (
        "{{ people.victim.name + 1 }}",
        "{{ people.victim.name.nothing }}",
        "{{ people }}",
        "{{ people.victim.name|no_filter }}",
        "{{ people.victim.name|int / 0 }}",
        "{{ people.victim.name.__class__ }}",
    ):
        body.write_text(wrong, encoding="utf-8")
        fresh = replace(service, templates=environment(tmp_path))
        with pytest.raises(ConfigurationError) as refused:
            prepared("victim-hardening", raw, fresh)
        shown = "".join(traceback.format_exception(refused.value)) + repr(refused.value.args)
        assert secret not in shown, wrong
        assert "victim-hardening/body.txt.j2" in str(refused.value)


# --- a relay's reply


@pytest.mark.parametrize(
    ("code", "text", "enhanced", "words"),
    [
        (250, "2.0.0 Ok: queued as 4F1", "2.0.0", "Ok: queued as 4F1"),
        (250, "Ok", None, "Ok"),
        (550, "5.1.1 <a@b>: unknown\n5.1.1 see page", "5.1.1", "<a@b>: unknown see page"),
        (451, "4.7.1", "4.7.1", ""),
        (421, "", None, ""),
        (554, "no 5.7.1 here", None, "no 5.7.1 here"),
        (550, "5.1.1234 x", None, "5.1.1234 x"),
        (550, "3.1.1 x", None, "3.1.1 x"),
        (250, "2.1.5x", None, "2.1.5x"),
        (250, "first\n2.0.0 second", None, "first second"),
        (550, " 5.7.26  many\r\n\r\n", "5.7.26", "many"),
    ],
)
def test_a_reply_is_taken_apart(code: int, text: str, enhanced: str | None, words: str) -> None:
    """RFC 2034 §4, RFC 3463 §2."""
    reply = Reply.parse(code, text)

    assert (reply.code, reply.enhanced, reply.text) == (code, enhanced, words)
    assert str(reply) == " ".join(part for part in (str(code), enhanced, words) if part)


POLICY = RetryPolicy()


@pytest.mark.parametrize(
    ("failures", "minutes"), [(1, 1), (2, 2), (3, 4), (8, 128), (9, 240), (50, 240), (10**6, 240)]
)
def test_the_wait_doubles_up_to_the_longest(failures: int, minutes: int) -> None:
    """RFC 5321 §4.5.4.1."""
    wait = timedelta(minutes=minutes)

    assert next_attempt(failures, NOW, NOW, POLICY) == NOW + wait
    assert next_attempt(failures, NOW, NOW, POLICY, jitter=-1.0) == NOW + wait * 0.8
    assert next_attempt(failures, NOW, NOW, POLICY, jitter=1.0) == NOW + wait * 1.2


def test_trying_stops_after_its_time() -> None:
    last = NOW + POLICY.give_up_after - POLICY.first_wait

    assert next_attempt(1, NOW, last, POLICY) == NOW + POLICY.give_up_after
    assert next_attempt(1, NOW, last + timedelta(seconds=1), POLICY) is None


def test_there_is_no_status_for_what_we_can_not_know() -> None:
    assert not {"sent", "delivered"} & {str(status) for status in DeliveryStatus}
    receipt = Receipt(DeliveryStatus.RELAYED, "relay:587", Reply.parse(250, "2.0.0 Ok"))
    assert str(receipt.reply) == "250 2.0.0 Ok"


def test_content_is_not_in_a_repr() -> None:
    assert "secret" not in repr(Outgoing("R", Envelope("secret@a.uk", "b@c.uk"), b"secret"))


def test_the_session_shares_one_directory(directory: Directory) -> None:
    """What is checked here is what the other tests are given."""
    assert directory.agencies == DIRECTORY.agencies
