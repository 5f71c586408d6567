"""From area, district or postcode to exactly one agency; never a guess."""

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from referrals.case import Location
from referrals.directory import Directory, Place
from referrals.directory_files import read_directory
from referrals.errors import InterventionUnknown, Problem
from referrals.routing import locate
from tests.conftest import CONFIG, TEMPLATES

WHOLE = read_directory(CONFIG, TEMPLATES)
POSTCODES = list(WHOLE.postcodes["nottinghamshire"])

COUNTY = {
    "ashfield": "Ashfield",
    "bassetlaw": "Bassetlaw",
    "broxtowe": "Broxtowe",
    "gedling": "Gedling",
    "mansfield": "Mansfield",
    "newark-and-sherwood": "Newark and Sherwood",
    "rushcliffe": "Rushcliffe",
}
AREA_OF = {"nottingham": "city", **dict.fromkeys(COUNTY, "county")}
POSTCODE_OF = {
    "nottingham": "NG2 3NG",
    "ashfield": "NG17 8DA",
    "bassetlaw": "S80 2AH",
    "broxtowe": "NG9 1AB",
    "gedling": "NG5 6LU",
    "mansfield": "NG19 7BH",
    "newark-and-sherwood": "NG24 1BY",
    "rushcliffe": "NG2 7YG",
}
EVERYWHERE = {
    "victim-hardening": "admin@nottsvictimcare.org.uk",
    "positive-engagement": "positiveengagement@nottinghamshire.pnn.police.uk",
    "target-hardening": "cpintelligence@Nottinghamshire.pnn.police.uk",
    "police-dispersal-order": None,
    "fire-resistant-mailbox": "communitysafetynorth@notts-fire.gov.uk",
}
# As the source document spells them, letter by letter.
ADDRESSES = {
    "city": {
        **EVERYWHERE,
        "mediation": "community@nottinghamcityhomes.org.uk",
        "repeat-victim-panel": "Hate.crime@nottinghamshire.pnn.police.uk",
    },
    "county": {**EVERYWHERE, "repeat-victim-panel": "spc@broxtowe.gov.uk"},
}


def found(directory: Directory, **location: str) -> Place:
    place, problems = locate(Location(**location), directory)
    assert problems == []
    assert place is not None
    return place


def refused(directory: Directory, **location: str) -> list[Problem]:
    place, problems = locate(Location(**location), directory)
    assert place is None
    assert problems
    assert all(problem.what and problem.remedy for problem in problems)
    return problems


def addresses_at(directory: Directory, place: Place) -> dict[str, str | None]:
    """The address of every intervention that is offered at a place."""
    return {
        offered.id: agency.email
        for offered in directory.interventions.values()
        if (agency := directory.agency_for(offered, place))
    }


# --- where it goes


@pytest.mark.parametrize("district", AREA_OF)
def test_each_way_of_saying_where_gives_the_same_addresses(
    directory: Directory, district: str
) -> None:
    """All seven interventions, in the city and in each of the county's districts."""
    area, postcode = AREA_OF[district], POSTCODE_OF[district]
    ways = [
        {"district": district},
        {"postcode": postcode},
        {"area": area, "district": district},
        {"area": area, "postcode": postcode},
        {"district": district, "postcode": postcode},
        {"area": area, "district": district, "postcode": postcode},
    ]
    for way in ways:
        place = found(directory, **way)
        assert (place.area.id, place.district and place.district.id) == (area, district)
        assert addresses_at(directory, place) == ADDRESSES[area]


@pytest.mark.parametrize("area", ["city", "county"])
def test_an_area_alone_is_enough(directory: Directory, area: str) -> None:
    place = found(directory, area=area)

    assert (place.area.id, place.district) == (area, None)
    assert addresses_at(directory, place) == ADDRESSES[area]


def test_every_postcode_of_ng5_goes_where_its_own_district_says(directory: Directory) -> None:
    """NG5 is half city, half county: its sector would misroute a thousand homes."""
    ng5 = [pair for pair in POSTCODES if pair[0].startswith("NG5 ")]
    seen = set()
    for postcode, district in ng5:
        place = found(directory, postcode=postcode)
        assert place.district is not None
        assert (place.district.id, place.area.id) == (district, AREA_OF[district])
        seen.add(place.area.id)
    assert len(ng5) > 2_500
    assert seen == {"city", "county"}


@given(st.sampled_from(POSTCODES), st.booleans(), st.booleans())
def test_any_postcode_of_the_region_gives_one_place(
    pair: tuple[str, str], lower: bool, tight: bool
) -> None:
    postcode, district = pair
    typed = postcode.replace(" ", "") if tight else postcode
    place = found(WHOLE, postcode=typed.lower() if lower else typed)

    assert place == found(WHOLE, district=district)
    assert addresses_at(WHOLE, place) == ADDRESSES[AREA_OF[district]]


@given(st.sampled_from(POSTCODES), st.sampled_from(sorted(AREA_OF)))
def test_a_district_and_a_postcode_agree_or_are_refused(pair: tuple[str, str], typed: str) -> None:
    postcode, district = pair
    place, problems = locate(Location(district=typed, postcode=postcode), WHOLE)

    assert (place is None) == (typed != district) == bool(problems)
    assert all((one.where, one.code) == ("location.postcode", "contradiction") for one in problems)


# --- names


@pytest.mark.parametrize(
    ("typed", "area"),
    [
        ("city", "city"),
        (" CITY ", "city"),
        ("Nottingham City", "city"),
        ("nottingham  CITY", "city"),
        ("County", "county"),
        ("nottinghamshire county", "county"),
    ],
)
def test_an_area_is_known_by_id_and_title_in_any_case(
    directory: Directory, typed: str, area: str
) -> None:
    assert found(directory, area=typed).area.id == area


@pytest.mark.parametrize(("district", "title"), [*COUNTY.items(), ("nottingham", "Nottingham")])
def test_a_district_is_known_by_id_and_title_in_any_case(
    directory: Directory, district: str, title: str
) -> None:
    for typed in (district, title, title.upper(), title.swapcase(), district.replace("-", " ")):
        place = found(directory, district=typed)
        assert place.district is not None
        assert place.district.id == district


@pytest.mark.parametrize(
    "typed", ["Newark & Sherwood", "newark&sherwood", "NEWARK AND SHERWOOD", "Newark-and-Sherwood"]
)
def test_newark_and_sherwood_may_be_written_as_on_its_letterhead(
    directory: Directory, typed: str
) -> None:
    place = found(directory, district=typed)

    assert place.district is not None
    assert place.district.id == "newark-and-sherwood"


@pytest.mark.parametrize("typed", ["Nottinghamshire", "Nottingham", "ctiy", "city county", "NG5"])
def test_an_unknown_area_is_not_guessed(directory: Directory, typed: str) -> None:
    (problem,) = refused(directory, area=typed)

    assert (problem.where, problem.code) == ("location.area", "area")
    assert "city, county" in problem.remedy


@pytest.mark.parametrize("typed", ["Newark", "city", "Derby", "Erewash", "West Bridgford"])
def test_an_unknown_district_is_not_guessed(directory: Directory, typed: str) -> None:
    (problem,) = refused(directory, district=typed)

    assert (problem.where, problem.code) == ("location.district", "district")
    assert "newark-and-sherwood" in problem.remedy


def test_somewhere_must_be_said(directory: Directory) -> None:
    for location in ({}, {"place": "Market Square"}):
        (problem,) = refused(directory, **location)
        assert (problem.where, problem.code) == ("location", "missing")


# --- contradictions


@pytest.mark.parametrize(
    ("area", "district"), [("city", name) for name in COUNTY] + [("county", "nottingham")]
)
def test_an_area_and_a_district_elsewhere_contradict(
    directory: Directory, area: str, district: str
) -> None:
    (problem,) = refused(directory, area=area, district=district)
    assert (problem.where, problem.code) == ("location.district", "contradiction")
    assert "area" in problem.what

    (problem,) = refused(directory, area=area, postcode=POSTCODE_OF[district])
    assert (problem.where, problem.code) == ("location.postcode", "contradiction")
    assert "area" in problem.what


@pytest.mark.parametrize(
    ("district", "other"), [p for p in itertools.permutations(AREA_OF, 2) if "nottingham" in p]
)
def test_a_district_and_a_postcode_elsewhere_contradict(
    directory: Directory, district: str, other: str
) -> None:
    (problem,) = refused(directory, district=district, postcode=POSTCODE_OF[other])

    assert (problem.where, problem.code) == ("location.postcode", "contradiction")
    assert "district" in problem.what


def test_all_three_must_agree(directory: Directory) -> None:
    """Two of the county's districts: the same area, and yet one of the two is wrong."""
    (problem,) = refused(
        directory, area="county", district="gedling", postcode=POSTCODE_OF["broxtowe"]
    )
    assert "Broxtowe" in problem.what
    assert problem.code == "contradiction"


def test_every_mistake_is_said_at_once(directory: Directory) -> None:
    problems = refused(directory, area="town", district="Derby", postcode="NG5")

    assert [problem.where for problem in problems] == [
        "location.area",
        "location.district",
        "location.postcode",
    ]


# --- postcodes that lead nowhere


@pytest.mark.parametrize("postcode", ["DE1 1AA", "SW1A 1AA", "NG10 1AA", "LE1 1AA", "DN1 1AA"])
@pytest.mark.parametrize("more", [{}, {"area": "city"}, {"district": "broxtowe"}])
def test_outside_the_region_is_outside_whatever_else_is_said(
    directory: Directory, postcode: str, more: dict[str, str]
) -> None:
    """NG10 is Long Eaton, which is in Derbyshire for all its NG."""
    (problem,) = refused(directory, postcode=postcode, **more)

    assert (problem.where, problem.code) == ("location.postcode", "outside")


@pytest.mark.parametrize("postcode", ["NG5 1ZZ", "NG1 9ZZ"])
def test_an_unknown_postcode_of_the_region_is_not_guessed(
    directory: Directory, postcode: str
) -> None:
    (problem,) = refused(directory, postcode=postcode, area="city")

    assert (problem.where, problem.code) == ("location.postcode", "unknown")
    assert "November 2025" in problem.what


@pytest.mark.parametrize("postcode", ["NG5", "NG51", "ng5 1a", "N/A", "NG5 IAA", "NG\u0665 1AA"])
def test_a_malformed_postcode_is_not_mended(directory: Directory, postcode: str) -> None:
    (problem,) = refused(directory, postcode=postcode, district="gedling")

    assert (problem.where, problem.code) == ("location.postcode", "postcode")


def test_without_a_table_a_postcode_is_no_answer(directory: Directory) -> None:
    bare = replace(directory, postcodes={})

    (problem,) = refused(bare, postcode="NG5 6LU")
    assert "no region has a table" in problem.what
    assert found(bare, district="gedling").area.id == "county"


# --- the directory


def test_an_unknown_intervention_is_refused_with_those_that_there_are(
    directory: Directory,
) -> None:
    with pytest.raises(InterventionUnknown, match="mediation, police-dispersal-order") as refusal:
        directory.intervention("exile")
    assert refusal.value.__cause__ is None


def test_a_districts_own_route_comes_before_its_areas(directory: Directory) -> None:
    panel = directory.interventions["repeat-victim-panel"]
    own = panel.model_copy(update={"routes": {**panel.routes, "gedling": "victim-care"}})

    gedling = directory.agency_for(own, found(directory, district="gedling"))
    mansfield = directory.agency_for(own, found(directory, district="mansfield"))
    assert gedling is not None
    assert mansfield is not None
    assert (gedling.id, mansfield.id) == ("victim-care", "complex-case-panel")
