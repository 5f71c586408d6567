"""The made-up cases that a referrer starts from, and the files in samples/."""

from __future__ import annotations

from datetime import date
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest

from referrals.case_files import parse
from referrals.directory import Area, Directory, Region
from referrals.eligibility import assess, read_case
from referrals.errors import InterventionUnknown
from referrals.samples import sample_case

ROOT = Path(__file__).parents[2]
TODAY = date(2026, 11, 24)
INTERVENTIONS = sorted(path.stem for path in (ROOT / "config/interventions").glob("*.toml"))


@pytest.mark.parametrize("intervention", INTERVENTIONS)
@pytest.mark.parametrize(
    "today",
    [TODAY, date(2028, 2, 29), date(2027, 1, 1), date(2026, 12, 31), date(2027, 1, 14)],
    ids=str,
)
def test_a_sample_can_be_drafted_on_any_day(
    directory: Directory, intervention: str, today: date
) -> None:
    case, place = read_case(sample_case(directory, [intervention], today), directory, today)
    found = assess(case, place, directory.intervention(intervention), directory, today)

    assert found.ready, (found.problems, found.blocks)


def test_one_sample_may_serve_several_interventions(directory: Directory) -> None:
    for chosen in [*combinations(INTERVENTIONS, 2), INTERVENTIONS]:
        case, place = read_case(sample_case(directory, chosen, TODAY), directory, TODAY)
        for intervention in chosen:
            found = assess(case, place, directory.intervention(intervention), directory, TODAY)
            # Those about a place must name nobody; the others' people do no harm to them.
            assert found.ready, (intervention, found.problems, found.blocks)


def test_a_sample_holds_no_more_than_its_intervention_needs(directory: Directory) -> None:
    order = sample_case(directory, ["police-dispersal-order"], TODAY)
    engagement = sample_case(directory, ["positive-engagement"], TODAY)

    assert "people" not in order
    assert "consents" not in order
    assert set(engagement["people"]) == {"young_person", "parent_or_carer"}
    assert list(engagement["answers"]) == ["positive-engagement"]


def test_nobody_in_a_sample_exists(directory: Directory) -> None:
    """Ofcom's numbers for drama, and RFC 2606's domains."""
    raw = sample_case(directory, INTERVENTIONS, TODAY)

    assert raw["referrer"]["email"].endswith(".example.com")
    assert raw["referrer"]["phone"].startswith("0115 496 0")
    for person in raw["people"].values():
        assert person["phone"].startswith("07700 900")


def test_a_region_need_not_have_districts(directory: Directory) -> None:
    region = Region(id="town", title="Town", areas=(Area(id="city", title="City"),))
    small = Directory({"town": region}, directory.agencies, directory.interventions)
    raw = sample_case(small, ["mediation"], TODAY)
    case, place = read_case(raw, small, TODAY)

    assert raw["location"] == {"area": "city"}
    assert assess(case, place, small.intervention("mediation"), small, TODAY).ready


def test_samples_share_nothing(directory: Directory) -> None:
    """A sample that somebody fills in must not change the next one."""
    first = sample_case(directory, INTERVENTIONS, TODAY)
    before = repr(sample_case(directory, INTERVENTIONS, TODAY))
    first["referrer"]["name"] = "Changed"
    first["people"]["victim"]["safe_contact"]["method"] = "Changed"
    first["incidents"][0]["what"] = "Changed"
    first["answers"]["target-hardening"]["measures"].append("Changed")

    assert repr(sample_case(directory, INTERVENTIONS, TODAY)) == before


def test_an_unknown_intervention_has_no_sample(directory: Directory) -> None:
    with pytest.raises(InterventionUnknown):
        sample_case(directory, ["mediation", "exile"], TODAY)


def load(name: str) -> dict[str, Any]:
    (raw,) = parse((ROOT / "samples" / name).read_bytes(), name)
    return raw


@pytest.mark.parametrize(
    ("name", "ready"),
    [
        (
            "city.json",
            {
                "fire-resistant-mailbox",
                "positive-engagement",
                "repeat-victim-panel",
                "target-hardening",
                "victim-hardening",
            },
        ),
        ("county.csv", {"police-dispersal-order", "repeat-victim-panel", "victim-hardening"}),
        ("mediation.json", {"mediation"}),
    ],
)
def test_the_sample_files_are_ready_for_what_they_ask(
    directory: Directory, name: str, ready: set[str]
) -> None:
    raw = load(name)
    case, place = read_case(raw, directory, TODAY)
    found = {
        intervention
        for intervention, offered in directory.interventions.items()
        if assess(case, place, offered, directory, TODAY).ready
    }

    assert found == ready == set(raw["answers"])
