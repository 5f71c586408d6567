"""From where a case is to the one agency: by area, by district or by postcode.

A postcode sector does not tell the city from the county (NG5 has postcodes of both), so nothing
here is guessed: what contradicts or is not known is a problem for a person to solve.
"""

from __future__ import annotations

from collections.abc import Iterator

from referrals.case import Location
from referrals.directory import Directory, Place, plain_name
from referrals.errors import Problem
from referrals.postcodes import normalise


def locate(
    location: Location, directory: Directory, where: str = "location"
) -> tuple[Place | None, list[Problem]]:
    """The place that area, district and postcode agree on; or every problem with them."""
    places = list(directory.places)
    problems: list[Problem] = []
    if not (location.area or location.district or location.postcode):
        problems.append(
            Problem(
                where,
                "does not say where help is needed.",
                f"Give an area ({_ids(area_ids(directory))}), a district or a postcode.",
                "missing",
            )
        )
        return None, problems

    if location.area:
        named = [p for p in places if _is_called(p.area.id, p.area.title, location.area)]
        if not named:
            problems.append(
                Problem(
                    f"{where}.area",
                    "is not an area that we know.",
                    f"Use one of: {_ids(area_ids(directory))}.",
                    "area",
                )
            )
        places = named
    if location.district:
        everywhere = [
            p
            for p in directory.places
            if p.district and _is_called(p.district.id, p.district.title, location.district)
        ]
        named = [p for p in places if any(p is one for one in everywhere)]
        if not everywhere:
            problems.append(
                Problem(
                    f"{where}.district",
                    "is not a district that we know.",
                    f"Use one of: {_ids(district_ids(directory))}.",
                    "district",
                )
            )
        elif places and not named:
            problems.append(_contradiction(f"{where}.district", everywhere[0], "area"))
        places = named
    if location.postcode:
        found, problem = _by_postcode(location.postcode, directory, f"{where}.postcode")
        if problem:
            problems.append(problem)
        elif found:
            against = _against(found, location, directory)
            if against:
                problems.append(_contradiction(f"{where}.postcode", found, against))
            places = [found]
    if problems or not places:
        return None, problems
    return places[0], []


def _against(found: Place, location: Location, directory: Directory) -> str | None:
    """Which of the area and the district given, where they are known at all, says otherwise."""
    for what, typed, own in (
        ("district", location.district, found.district),
        ("area", location.area, found.area),
    ):
        named = [
            entry
            for place in directory.places
            for entry in (place.area, place.district)
            if typed and entry and _is_called(entry.id, entry.title, typed)
        ]
        if named and own not in named:
            return what
    return None


def _by_postcode(
    text: str, directory: Directory, where: str
) -> tuple[Place | None, Problem | None]:
    postcode = normalise(text)
    if postcode is None:
        return None, Problem(where, "is not a postcode.", "Write it as NG1 1AA.", "postcode")
    for region_id, table in directory.postcodes.items():
        district_id = table.district_of(postcode)
        for place in directory.places:
            district = place.district
            if district and district.id == district_id and place.region.id == region_id:
                return place, None
    tables = directory.postcodes
    remedy = "Check it; or leave it out here and give the area or district."
    if not tables:
        return None, Problem(
            where, "can't be looked up: no region has a table.", remedy, "postcode"
        )
    names = " and ".join(directory.regions[region_id].title for region_id in tables)
    if all(table.is_outside(postcode) for table in tables.values()):
        what = f"is outside {names}."
        return None, Problem(where, what, "Refer through the area where help is needed.", "outside")
    edition = " and ".join(dict.fromkeys(table.edition for table in tables.values()))
    what = f"is not in the list of postcodes ({edition}): mistyped, or newer than the list."
    return None, Problem(where, what, remedy, "unknown")


def _contradiction(where: str, found: Place, with_what: str) -> Problem:
    district = found.district.title if found.district else ""
    return Problem(
        where,
        f"lies in {district} ({found.area.title}), which contradicts the {with_what} given.",
        "Put right whichever is wrong: the agency depends on it.",
        "contradiction",
    )


def area_ids(directory: Directory) -> Iterator[str]:
    for region in directory.regions.values():
        for area in region.areas:
            yield area.id


def district_ids(directory: Directory) -> Iterator[str]:
    for place in directory.places:
        if place.district:
            yield place.district.id


def _ids(names: Iterator[str]) -> str:
    return ", ".join(names)


def _is_called(place_id: str, title: str, typed: str) -> bool:
    return plain_name(typed) in (plain_name(place_id), plain_name(title))
