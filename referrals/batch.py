"""Many cases: each row checked by itself and against the others, before anything is made of any.

A row asks for the interventions in its column `intervention` (`a; b`), or, without one, for those
that it has answers for. What is kept of a row is its number and a few small numbers more, so that
a file of any length can be checked.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from pydantic_core import PydanticCustomError

from referrals.errors import (
    AddressUnverified,
    CaseInvalid,
    CaseUnreadable,
    NoAddress,
    Problem,
)
from referrals.problems import unknown_key
from referrals.reference import referral_reference
from referrals.texts import as_reference, split_list

if TYPE_CHECKING:
    from referrals.directory import Agency
    from referrals.eligibility import Assessment
    from referrals.row_files import Row, RowFile
    from referrals.service import Referral, Service

COLUMN = "intervention"


@dataclass(frozen=True)
class RowError:
    """One thing to put right in one row; `problem.where` names the column."""

    row: int
    problem: Problem


@dataclass(frozen=True)
class Checked:
    """A row, and either what it asks for, ready to be written, or what is wrong with it."""

    row: int
    asked: tuple[str, ...]
    ready: tuple[Assessment, ...]
    problems: tuple[Problem, ...]


def check_row(row: Row, service: Service) -> Checked:
    """What a row asks for, with every problem of form, of the case and of each rule."""
    raw = dict(row.raw)
    named = raw.pop(COLUMN, None)
    asked, problems = _asked(named, raw, service)
    problems = [*row.problems, *problems]
    if row.problems and not row.raw:
        return Checked(row.number, (), (), row.problems)
    ready: list[Assessment] = []
    try:
        case, place = service.read(raw)
    except CaseInvalid as error:
        problems += (one for one in error.problems if not _is_for_another(one, asked))
    except CaseUnreadable as error:
        problems.append(Problem("(the row)", str(error), "", "case-unreadable"))
    else:
        for assessment in (service.assess(case, place, name) for name in asked):
            problems += [*assessment.problems, *_blocks(assessment)]
            ready.append(assessment)
    distinct = tuple(dict.fromkeys(problems))
    return Checked(row.number, asked, () if distinct else tuple(ready), distinct)


def _asked(
    named: Any, raw: Mapping[str, Any], service: Service
) -> tuple[tuple[str, ...], list[Problem]]:
    known = sorted(service.directory.interventions)
    if named is None:
        answers = raw.get("answers")
        asked = [name for name in known if isinstance(answers, dict) and name in answers]
        if asked:
            return tuple(asked), []
        remedy = f"Name one or more, as in `{known[0]}; {known[-1]}`." if known else ""
        return (), [Problem(COLUMN, "is not given, and nothing is answered.", remedy, "missing")]
    listed = split_list(named)
    if not isinstance(listed, list) or not all(isinstance(name, str) for name in listed):
        remedy = "Write it as one; two, in JSON as a list of texts."
        return (), [Problem(COLUMN, "is not a list of interventions.", remedy, "list")]
    names = dict.fromkeys(name.strip().lower() for name in listed)
    strangers = [unknown_key(COLUMN, name, known) for name in names if name not in known]
    return tuple(name for name in names if name in known), strangers


def _is_for_another(problem: Problem, asked: tuple[str, ...]) -> bool:
    """An answer that is missing for an intervention that the row does not ask for."""
    group, _, rest = problem.where.partition(".")
    return problem.code == "missing" and group == "answers" and rest.split(".")[0] not in asked


def _blocks(assessment: Assessment) -> Iterator[Problem]:
    name = assessment.intervention.id
    for finding in assessment.blocks:
        remedy = f"Put it right, or take {name} out of the row."
        if finding.overridable:
            remedy = f"A supervisor may set {finding.code} aside, in overrides. {remedy}"
        yield Problem(finding.where or COLUMN, f"{name}: {finding.text}", remedy, finding.code)


@dataclass
class Survey:
    """What is known of a file once every row was looked at."""

    rows: int = 0
    wrong: set[int] = field(default_factory=set)
    errors: int = 0
    _places: dict[tuple[Agency, str], int] = field(default_factory=dict, repr=False)
    _going: dict[int, tuple[int, ...]] = field(default_factory=dict, repr=False)
    _first: dict[str, int] = field(default_factory=dict, repr=False)

    @property
    def referrals(self) -> int:
        return sum(self.by_agency().values())

    def by_agency(self) -> Mapping[tuple[Agency, str], int]:
        """How many referrals of sound rows go to an agency, for each intervention."""
        counts = Counter(
            place
            for row, places in self._going.items()
            if row not in self.wrong
            for place in places
        )
        return {key: counts[number] for key, number in self._places.items() if counts[number]}

    def add(self, checked: Checked, case_reference: Any) -> Iterator[RowError]:
        """Take a row in; yields what is wrong with it, and with an earlier one that it repeats."""
        self.rows += 1
        errors = [RowError(checked.row, problem) for problem in checked.problems]
        errors += self._repeated(checked, case_reference)
        self.wrong.update(error.row for error in errors)
        self.errors += len(errors)
        if not errors:
            self._going[checked.row] = tuple(
                self._places.setdefault((one.agency, one.intervention.id), len(self._places))
                for one in checked.ready
                if one.agency is not None
            )
        yield from errors

    def _repeated(self, checked: Checked, case_reference: Any) -> Iterator[RowError]:
        """Neither of two rows for one referral can be taken for the right one."""
        try:
            reference = as_reference(case_reference)
        except PydanticCustomError:
            return  # said already
        for name in checked.asked:
            key = referral_reference(reference, name).replace("-", "")
            first = self._first.setdefault(key, checked.row)
            if first != checked.row:
                for row, other in ((checked.row, first), (first, checked.row)):
                    yield RowError(
                        row,
                        Problem(
                            "reference",
                            f"has the same case reference and intervention ({name}) as row "
                            f"{other}.",
                            "Keep the one that is right.",
                            "repeated",
                        ),
                    )


def survey(
    file: RowFile, service: Service, seen: Survey, *, submitting: bool = False
) -> Iterator[RowError | None]:
    """Look at every row; yields each error, and None after each row, for whoever shows progress.

    Args:
        seen: filled as it goes.
        submitting: a referral that can't be submitted, for want of an address, is an error too.
    """
    for row in file.rows():
        checked = check_row(row, service)
        if submitting:
            checked = _addressed(checked)
        yield from seen.add(checked, row.raw.get("reference"))
        yield None


def _addressed(checked: Checked) -> Checked:
    problems = [
        Problem(
            COLUMN,
            f"{one.intervention.id} can only be drafted: the directory has no address for "
            f"{one.agency.title}.",
            f"Draft it instead, or take {one.intervention.id} out of the row.",
            NoAddress.code,
        )
        for one in checked.ready
        if one.agency is not None and one.agency.email is None
    ]
    if not problems:
        return checked
    return Checked(checked.row, checked.asked, (), tuple(problems))


def check_addresses(seen: Survey, service: Service) -> None:
    """Raises AddressUnverified, once for all the agencies whose address nobody checked."""
    agencies = {agency.id: agency for agency, _ in seen.by_agency()}
    unverified = [one for one in agencies.values() if not one.is_verified(service.today())]
    if unverified:
        listed = "; ".join(f"{one.title}, {one.email}" for one in unverified)
        raise AddressUnverified(
            f"Nobody has checked these addresses lately: {listed}. Ask whether they are right and "
            "set verified_on in agencies.toml; or add --accept-unverified, which is recorded. "
            "Nothing was queued."
        )


def sound(file: RowFile, service: Service, seen: Survey) -> Iterator[Referral]:
    """The referrals of all rows that were found right, in the order of the file.

    Letters are written only here: that takes most of the time, and no row is at fault for it.

    Raises:
        ConfigurationError: a template is at fault.
        CaseUnreadable: a row is no longer what it was when it was looked at.
    """
    for row in file.rows():
        if row.number in seen.wrong:
            continue
        checked = check_row(row, service)
        if checked.problems:
            raise CaseUnreadable(
                f"Row {row.number} changed while the file was being read. Run the same command "
                "again: what was made before is not made twice."
            )
        yield from map(service.prepare, checked.ready)
