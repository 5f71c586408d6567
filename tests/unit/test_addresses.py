"""How an address stands, and what is sent there."""

from __future__ import annotations

import dataclasses
from datetime import date, timedelta

import pytest

from referrals.addresses import Address, Standing, addresses, unaddressed
from referrals.directory import Directory
from tests.conftest import TODAY


def standing(directory: Directory, verified_on: date | None, by: str = "Sam") -> Address:
    agency = directory.agencies["victim-care"].model_copy(
        update={"verified_on": verified_on, "verified_by": by}
    )
    changed = dataclasses.replace(directory, agencies={"victim-care": agency})
    [one] = addresses(dataclasses.replace(changed, interventions={}), TODAY)
    return one


@pytest.mark.parametrize(
    ("ago", "expected"),
    [
        (0, Standing.VERIFIED),
        (150, Standing.VERIFIED),
        (151, Standing.REVIEW_SOON),
        (180, Standing.REVIEW_SOON),
        (181, Standing.LAPSED),
        (-1, Standing.LAPSED),
    ],
)
def test_it_lapses_after_its_review_time(
    ago: int, expected: Standing, directory: Directory
) -> None:
    one = standing(directory, TODAY - timedelta(days=ago))
    assert one.standing is expected
    assert one.is_wanting == (not one.agency.is_verified(TODAY))


def test_its_words_say_who_checked_it_and_until_when(directory: Directory) -> None:
    assert standing(directory, None).words == "never checked by us"
    assert standing(directory, TODAY).words == (
        "checked on 24 November 2026 by Sam; to be checked again by 23 May 2027"
    )
    assert standing(directory, date(2026, 1, 1), "").words == (
        "checked on 1 January 2026, more than 180 days ago"
    )
    assert standing(directory, date(2027, 1, 1)).words.endswith("by Sam, which is in the future")


def test_it_receives_what_the_routes_say(directory: Directory) -> None:
    for one in addresses(directory, TODAY):
        for intervention in directory.interventions.values():
            places = [
                place for place in directory.places
                if directory.agency_for(intervention, place) == one.agency
            ]  # fmt: skip
            received = [each for each in one.receives if each.intervention is intervention]
            assert bool(places) == bool(received)
            for place in places:
                assert (place.region, place.area) in one.areas


def test_measures_without_an_address_are_known(directory: Directory) -> None:
    assert (
        {option.value for _, option in unaddressed(directory)}
        == {
            option.value
            for intervention in directory.interventions.values()
            for question in intervention.fields
            for option in question.options
            if option.no_address
        }
        != set()
    )
