"""Made-up referrals from a fixed seed: as our CSV, and as flat columns for other programs.

Every referral asks for victim hardening in a district of the county, and every one differs. The
people are invented, the telephone numbers are those that Ofcom keeps for drama.
"""

from __future__ import annotations

import csv
import random
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import date, timedelta
from pathlib import Path

from referrals.reference import referral_reference

INTERVENTION = "victim-hardening"
SEED = 20_261_124

# The same in all rows, and so part of the other programs' templates.
_FIXED = {
    "intervention": INTERVENTION,
    "location.area": "county",
    "incidents.1.record": "crime",
    "incidents.2.record": "crime",
    "consents.1.person": "victim",
    "consents.1.interventions": INTERVENTION,
    "consents.1.given": "yes",
    "consents.1.how": "in-person",
    "lawful_basis.basis": "public-task",
    f"answers.{INTERVENTION}.children_at_home": "yes",
}

_FIRST = ["Alex", "Amina", "Bilal", "Chloé", "Dev", "Ewa", "Farah", "Grace", "Hana", "Ivan", "Jo"]
_FIRST += ["Kemi", "Łukasz", "Mei", "Niamh", "Omar", "Pat", "Robin", "Siân", "Tariq", "Uma", "Zoë"]
_LAST = ["Sample", "Example", "Specimen", "Instance", "O'Pattern", "Model-Case", "Test", "Muster"]
_OFFICERS = ["Sam Officer", "Kit Warden", "Lee Constable", "Ash Keeper", "Bo Patrol", "Max Steward"]
_ROLES = ["Police constable", "PCSO", "Housing officer", "Community protection officer"]
_ORGANISATIONS = ["Nottinghamshire Police", "Example District Council", "Example Homes & Tenants"]
_DISTRICTS = {"ashfield": "Ashfield", "gedling": "Gedling", "mansfield": "Mansfield"}
_STREETS = ["Sample Road", "Example Street", "Pattern Lane", "Specimen Close", "Model Avenue"]
_METHODS = ["Call to the mobile", "Text message first, then a call", "Through the support worker"]
_TIMES = ["Weekdays, 10 am to 2 pm", "Mornings, not on Fridays", "After 6 pm", "Any day but Sunday"]
_AVOID = ["No letters to the home, and no voicemail.", "Do not call the landline; it is shared."]
_LANGUAGES = [
    "English",
    "Polish; an interpreter is needed",
    "Urdu; some English",
    "English and BSL",
]
_NEEDS = ["Uses a wheelchair.", "Hard of hearing in one ear.", "Reads large print.", "Asthma."]
_CONCERNS = {"doors; lighting": "Doors and locks; Lighting outside", "windows": "Windows"}
_CONCERNS |= {"alarm; boundary": "Alarm; Gate, fence or shared entrance"}
_TENURES = {
    "council-tenant": "Council tenant",
    "owner": "Owner",
    "private-tenant": "Private tenant",
}
_LANDLORD = {"given": "Given", "asked": "Asked, no answer yet", "not-needed": "Not needed"}
_KNOWN = {"yes": "Yes", "no": "No", "not-known": "Not known"}
_HAPPENED = [
    "Abuse was shouted at the family on their doorstep while the children were coming home.",
    "Paint was thrown at the front door in the night, and the letter box was glued shut.",
    "A group of four stood across the road for about an hour and took pictures of the windows.",
    "Eggs and stones hit the kitchen window; one pane cracked, and the frame no longer closes.",
    "The words used were about the person's religion – a neighbour heard them & wrote them down.",
    "The bins were set on fire beside the porch; the fire service put it out within minutes.",
    "The car's tyres were let down for the third time this month, at a cost of £60 each time.",
    "A note that said ‘go home’ was pushed through the door, and kept for the officers.",
]
_HELP = [
    "The front door's lock is loose and the shared passage is dark after the lamp was broken.",
    "They would feel safer with a stronger lock, a chain, and a light that comes on by itself.",
    "The back gate doesn't close, so that anybody can walk from the lane up to the kitchen.",
    "The bedroom is on the ground floor, and its window opens on to the path behind the shops.",
    "They have asked the landlord twice for a new door & had no answer in more than a month.",
]
_VULNERABLE = [
    "They live alone with a young son and have been sleeping badly since the last incident.",
    "They have a heart condition, and the doctor has told them to keep away from any strain.",
    "Their family lives abroad, and they know nobody in the area whom they could call at night.",
    "They stopped going to the day centre, which was the only company that they had in a week.",
]
_REASONS = [
    "To prevent further harm to the people in this case, who have been targeted at home.",
    "To keep the victim safe at home, since what has been done so far has not stopped it.",
]


@dataclass(frozen=True)
class Fact:
    """One value that differs from row to row.

    Args:
        path: its column in our CSV; None for what we work out ourselves.
        typed: as it stands there.
        printed: as it reads in a letter.
    """

    path: str | None
    typed: str
    printed: str


def facts(number: int) -> dict[str, Fact]:
    """The facts of row `number`, by the column that they have in a flat CSV."""
    pick = random.Random(SEED + number)  # noqa: S311  (letters, not secrets)
    case_reference = f"BEN-{number:07d}"
    officer = pick.choice(_OFFICERS)
    mailbox = officer.lower().replace(" ", ".")
    first_on = date(2026, 1, 2) + timedelta(days=pick.randrange(150))
    second_on = first_on + timedelta(days=pick.randrange(1, 90))
    agreed_on = second_on + timedelta(days=pick.randrange(1, 30))
    district, concerns = pick.choice([*_DISTRICTS.items()]), pick.choice([*_CONCERNS.items()])
    made = {
        "case_reference": _same("reference", case_reference),
        "referral": Fact(None, "", referral_reference(case_reference, INTERVENTION)),
        "officer": _same("referrer.name", officer),
        "role": _same("referrer.role", pick.choice(_ROLES)),
        "organisation": _same("referrer.organisation", pick.choice(_ORGANISATIONS)),
        "officer_email": _same("referrer.email", f"{mailbox}@police.example.com"),
        "officer_phone": _same("referrer.phone", f"0115 496 0{pick.randrange(1000):03d}"),
        "district": Fact("location.district", *district),
        "victim": _same("people.victim.name", f"{pick.choice(_FIRST)} {pick.choice(_LAST)}"),
        "address": _same(
            "people.victim.address",
            f"{pick.randrange(1, 400)} {pick.choice(_STREETS)}, {district[1]}",
        ),
        "phone": _same("people.victim.phone", f"07700 900{pick.randrange(1000):03d}"),
        "method": _same("people.victim.safe_contact.method", pick.choice(_METHODS)),
        "times": _same("people.victim.safe_contact.times", pick.choice(_TIMES)),
        "avoid": _same("people.victim.safe_contact.avoid", pick.choice(_AVOID)),
        "language": _same("people.victim.language", pick.choice(_LANGUAGES)),
        "needs": _same("people.victim.access_needs", pick.choice(_NEEDS)),
        "first_on": _day("incidents.1.on", first_on),
        "first_what": _same("incidents.1.what", _prose(pick, _HAPPENED, 3)),
        "first_reference": _same("incidents.1.reference", f"26*{pick.randrange(10**7):07d}"),
        "second_on": _day("incidents.2.on", second_on),
        "second_what": _same("incidents.2.what", _prose(pick, _HAPPENED, 4)),
        "second_reference": _same("incidents.2.reference", f"26*{pick.randrange(10**7):07d}"),
        "agreed_on": _day("consents.1.on", agreed_on),
        "agreed_by": _same("consents.1.recorded_by", pick.choice(_OFFICERS)),
        "basis_reason": _same("lawful_basis.reason", pick.choice(_REASONS)),
        "basis_by": _same("lawful_basis.recorded_by", pick.choice(_OFFICERS)),
        "basis_on": _day("lawful_basis.on", agreed_on + timedelta(days=1)),
    }
    answers = {
        "concerns": Fact("security_concerns", *concerns),
        "help": _same("concern_details", _prose(pick, _HELP, 3)),
        "tenure": Fact("tenure", *pick.choice([*_TENURES.items()])),
        "landlord": Fact("landlord_agrees", *pick.choice([*_LANDLORD.items()])),
        "known": Fact("address_known", *pick.choice([*_KNOWN.items()])),
        "vulnerable": _same("vulnerability", _prose(pick, _VULNERABLE, 2)),
    }
    for name, fact in answers.items():
        made[name] = Fact(f"answers.{INTERVENTION}.{fact.path}", fact.typed, fact.printed)
    return made


def _same(path: str, value: str) -> Fact:
    return Fact(path, value, value)


def _day(path: str, day: date) -> Fact:
    return Fact(path, f"{day:%d/%m/%Y}", f"{day.day} {day:%B %Y}")


def _prose(pick: random.Random, sentences: list[str], count: int) -> str:
    return " ".join(pick.sample(sentences, count))


def our_row(made: Mapping[str, Fact]) -> dict[str, str]:
    return _FIXED | {fact.path: fact.typed for fact in made.values() if fact.path}


def flat_row(made: Mapping[str, Fact]) -> dict[str, str]:
    return {column: fact.printed for column, fact in made.items()}


def write_ours(path: Path, count: int, first: int = 0) -> None:
    write(path, (our_row(facts(first + number)) for number in range(count)))


def write_flat(path: Path, count: int, first: int = 0) -> None:
    write(path, (flat_row(facts(first + number)) for number in range(count)))


def write(path: Path, rows: Iterable[Mapping[str, str]]) -> None:
    made: Iterator[Mapping[str, str]] = iter(rows)
    one = next(made)
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(one))
        writer.writeheader()
        writer.writerow(one)
        writer.writerows(made)
