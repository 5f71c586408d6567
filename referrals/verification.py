"""That somebody of ours asked an agency, and its address is right; recorded beside config/.

A record holds for one agency and that very address: should config/ have another one later, then
nobody has checked that.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import date
from typing import Annotated, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, ValidationInfo

from referrals.directory import Agency, Directory
from referrals.errors import NoAddress, NotPossibleNow
from referrals.texts import Day, Line, fault

NAME_LENGTH = 80


def _not_later(value: date, info: ValidationInfo) -> date:
    if info.context and value > info.context["today"]:
        raise fault("future", "is in the future.", "Give the day on which the agency was asked.")
    return value


def _short(value: str) -> str:
    if len(value) > NAME_LENGTH:
        raise fault("too-long", "is too long.", f"Use {NAME_LENGTH} characters at most.")
    return value


class _Given(BaseModel):
    # Built when first used: whoever only reads records needs none of it.
    model_config = ConfigDict(
        frozen=True, extra="forbid", hide_input_in_errors=True, defer_build=True
    )

    on: Annotated[Day, AfterValidator(_not_later)]
    by: Annotated[Line, AfterValidator(_short)]


@dataclass(frozen=True)
class Verification:
    """`by` asked the agency on a day whether the address is theirs, and it is."""

    agency: str
    address: str
    on: date
    by: str

    @classmethod
    def of(cls, agency: Agency, on: date | str, by: str, today: date) -> Self:
        """A record of the address that the directory has now.

        Raises:
            NoAddress: it has none.
            ValidationError: of `on` and `by`; `problems.problems_of` words it.
        """
        if agency.email is None:
            raise NoAddress(f"The directory has no address for {agency.title} to verify.")
        given = _Given.model_validate({"on": on, "by": by}, context={"today": today})
        return cls(agency.id, agency.email, given.on, given.by)

    @property
    def detail(self) -> dict[str, str]:
        """What the audit says of it, when it is recorded or taken back."""
        return {
            "agency": self.agency,
            "address": self.address,
            "on": self.on.isoformat(),
            "by": self.by,
        }


def none_recorded(agency: str, address: str) -> NotPossibleNow:
    """Why nothing of an address can be taken back."""
    return NotPossibleNow(
        f"{agency}: nothing is recorded here of {address}, so nothing can be taken "
        "back. A verified_on in agencies.toml is changed there."
    )


def with_verifications(directory: Directory, recorded: Iterable[Verification]) -> Directory:
    """The directory in which each address was last verified when config/ or a record says.

    Of both the later day counts.
    """
    changed = {}
    for one in recorded:
        agency = directory.agencies.get(one.agency)
        if agency is None or agency.email != one.address:
            continue
        if agency.verified_on is None or agency.verified_on <= one.on:
            changed[agency.id] = agency.model_copy(
                update={"verified_on": one.on, "verified_by": one.by}
            )
    if not changed:
        return directory
    return dataclasses.replace(directory, agencies={**directory.agencies, **changed})
