"""How each agency's address stands today, and what is sent there."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import date
from enum import StrEnum

from referrals.directory import Agency, Area, Directory, Intervention, Option, Region
from referrals.texts import day_words

SOON_DAYS = 30


class Standing(StrEnum):
    """Whether an address may be relied on."""

    NO_ADDRESS = "no-address"
    NEVER_VERIFIED = "never-verified"
    LAPSED = "lapsed"
    REVIEW_SOON = "review-soon"
    VERIFIED = "verified"


_WANTING = (Standing.NEVER_VERIFIED, Standing.LAPSED)


@dataclass(frozen=True)
class Receives:
    """An intervention, and from where its referrals go to the agency: areas or districts."""

    intervention: Intervention
    places: tuple[str, ...]


@dataclass(frozen=True)
class Address:
    """An agency's address: `areas` are those from which anything is sent there."""

    agency: Agency
    standing: Standing
    words: str
    receives: tuple[Receives, ...]
    areas: tuple[tuple[Region, Area], ...]

    @property
    def is_wanting(self) -> bool:
        """Whether somebody has to ask the agency before anything is submitted."""
        return self.standing in _WANTING


def addresses(directory: Directory, today: date, soon_days: int = SOON_DAYS) -> list[Address]:
    """Of every agency, in the directory's order.

    Args:
        soon_days: so many days before its time an address is to be reviewed soon.
    """
    titles = {area.id: area.title for region in directory.regions.values() for area in region.areas}
    for place in directory.places:
        if place.district is not None:
            titles[place.district.id] = place.district.title
    return [
        Address(
            agency=agency,
            standing=(standing := _standing(agency, today, soon_days)),
            words=_words(agency, standing, today),
            receives=tuple(
                Receives(one, tuple(titles.get(place, place) for place in places))
                for one in directory.interventions.values()
                if (places := [place for place, to in one.routes.items() if to == agency.id])
            ),
            areas=_areas(directory, agency),
        )
        for agency in directory.agencies.values()
    ]


def _standing(agency: Agency, today: date, soon_days: int) -> Standing:
    if agency.email is None:
        return Standing.NO_ADDRESS
    if agency.verified_on is None or agency.check_again_by is None:
        return Standing.NEVER_VERIFIED
    if not agency.is_verified(today):
        return Standing.LAPSED
    soon = (agency.check_again_by - today).days < soon_days
    return Standing.REVIEW_SOON if soon else Standing.VERIFIED


def _words(agency: Agency, standing: Standing, today: date) -> str:
    if standing is Standing.NO_ADDRESS:
        return "no address: drafts only"
    on, again = agency.verified_on, agency.check_again_by
    if on is None or again is None:
        return "never checked by us"
    checked = f"checked on {day_words(on)}" + (
        f" by {agency.verified_by}" if agency.verified_by else ""
    )
    if on > today:
        return f"{checked}, which is in the future"
    if standing is Standing.LAPSED:
        return f"{checked}, more than {agency.review_after_days} days ago"
    return f"{checked}; to be checked again by {day_words(again)}"


def _areas(directory: Directory, agency: Agency) -> tuple[tuple[Region, Area], ...]:
    found = {
        (place.region.id, place.area.id): (place.region, place.area)
        for place in directory.places
        for one in directory.interventions.values()
        if directory.agency_for(one, place) == agency
    }
    return tuple(found.values())


def unaddressed(directory: Directory) -> list[tuple[Intervention, Option]]:
    """The measures about which nobody can be written to."""
    return [
        (one, option)
        for one in directory.interventions.values()
        for question in one.fields
        for option in question.options
        if option.no_address
    ]
