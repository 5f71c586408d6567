"""Many cases: each row checked by itself and against the others, before anything is sent or saved.

A row asks for the interventions in its column `intervention` (`a; b`), or, without one, for those
that it has answers for. What is kept of a row is its number and a few small numbers more, so that
a file of any length can be checked.

What is to be made of a row is made in the same look at it, since that takes most of the time and
can be shared out over the processors. It waits in files without a name (drafts: under hidden ones,
see `drafts.Staging`) until every row was seen: if one is wrong, or we are stopped, it vanishes.
"""

from __future__ import annotations

import csv
import os
import pickle
import tempfile
from collections import Counter
from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, NamedTuple, Self

from pydantic_core import PydanticCustomError

from referrals.case_files import name_in_file
from referrals.errors import (
    AddressUnverified,
    CaseInvalid,
    CaseUnreadable,
    DraftUnwritable,
    NoAddress,
    Problem,
)
from referrals.problems import unknown_key
from referrals.processes import MOST, in_order, worker_number
from referrals.reference import referral_reference
from referrals.texts import as_reference, split_list

if TYPE_CHECKING:
    from referrals.case import Case
    from referrals.directory import Agency, Directory
    from referrals.eligibility import Assessment
    from referrals.row_files import RowFile
    from referrals.service import Referral, Service
    from referrals.tables import Row

Make = Callable[["Referral"], Any]
"""What is made of a referral; it can be pickled."""

_ROWS_AT_ONCE = 50

COLUMN = "intervention"

# What each case has, so that what is missing is said of the columns, not of a group of them.
_GROUPS: Mapping[str, Any] = {"referrer": {}, "location": {}}


@dataclass(frozen=True)
class RowError:
    """One thing to put right in one row; `problem.where` names the column."""

    row: int
    problem: Problem


@dataclass(frozen=True)
class Checked:
    """A row, and either where it goes, by agency and intervention, or what is wrong with it."""

    row: int
    reference: str | None
    asked: tuple[str, ...]
    going: tuple[tuple[str, str], ...]
    problems: tuple[Problem, ...]


def check_row(
    row: Row, service: Service, *, submitting: bool = False
) -> tuple[Checked, list[Assessment]]:
    """What a row asks for, with every problem of form, of the case and of each rule.

    With it the assessments of its referrals, if nothing is wrong.

    Args:
        submitting: a referral that can't be submitted, for want of an address, is wrong too.
    """
    raw = dict(row.raw)
    named = raw.pop(COLUMN, None)
    asked, problems = _asked(named, raw, service)
    if row.problems and not row.raw:
        return Checked(row.number, None, (), (), row.problems), []
    problems = [*row.problems, *problems]
    ready: list[Assessment] = []
    case: Case | None = None
    try:
        case, place = service.read({**_GROUPS, **raw})
    except CaseInvalid as error:
        said = {problem.where for problem in row.problems}
        problems += (
            one
            for one in _as_in_file(error.problems, row)
            if one.where not in said and not _is_for_another(one, asked)
        )
    except CaseUnreadable as error:
        problems.append(Problem("(the row)", str(error), "", "case-unreadable"))
    else:
        for assessment in (service.assess(case, place, name) for name in asked):
            problems += _as_in_file((*assessment.problems, *_blocks(assessment)), row)
            ready.append(assessment)
        if submitting and not problems:
            problems += _unaddressed(ready)
    distinct = tuple(dict.fromkeys(problems))
    going = [] if distinct else ready
    checked = Checked(
        row=row.number,
        reference=case.reference if case else _case_reference(raw.get("reference")),
        asked=asked,
        going=tuple((one.agency.id, one.intervention.id) for one in going if one.agency),
        problems=distinct,
    )
    return checked, going


def _as_in_file(problems: Iterable[Problem], row: Row) -> Iterator[Problem]:
    if not row.numbers:
        return iter(problems)
    return (replace(one, where=name_in_file(one.where, row.numbers)) for one in problems)


def _case_reference(raw: Any) -> str | None:
    try:
        return as_reference(raw)
    except PydanticCustomError:
        return None  # which is among the problems


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


def _unaddressed(ready: Sequence[Assessment]) -> Iterator[Problem]:
    for one in ready:
        if one.agency is not None and one.agency.email is None:
            yield Problem(
                COLUMN,
                f"{one.intervention.id} can only be drafted: the directory has no address for "
                f"{one.agency.title}.",
                f"Draft it instead, or take {one.intervention.id} out of the row.",
                NoAddress.code,
            )


@dataclass
class Survey:
    """What is known of a file once every row was looked at.

    `dates_wrong`: there is a date that is none, which may tell something of the others.
    """

    rows: int = 0
    wrong: set[int] = field(default_factory=set)
    errors: int = 0
    dates_wrong: bool = False
    _going: dict[int, tuple[tuple[str, str], ...]] = field(default_factory=dict, repr=False)
    _shared: dict[Any, Any] = field(default_factory=dict, repr=False)
    _first: dict[str, int] = field(default_factory=dict, repr=False)

    @property
    def referrals(self) -> int:
        return sum(len(going) for row, going in self._going.items() if row not in self.wrong)

    def by_agency(self, directory: Directory) -> Mapping[tuple[Agency, str], int]:
        """How many referrals of sound rows go to an agency, for each intervention."""
        counts = Counter(
            one for row, going in self._going.items() if row not in self.wrong for one in going
        )
        return {
            (directory.agencies[agency], intervention): count
            for (agency, intervention), count in counts.items()
        }

    def add(self, checked: Checked) -> Iterator[RowError]:
        """Take a row in; yields what is wrong with it, and with an earlier one that it repeats."""
        self.rows += 1
        errors = [RowError(checked.row, problem) for problem in checked.problems]
        errors += self._repeated(checked)
        if not errors:
            # Rows that go the same way share one value: there may be a hundred thousand.
            self._going[checked.row] = self._shared.setdefault(checked.going, checked.going)
        elif any(problem.code in ("date", "moment") for problem in checked.problems):
            self.dates_wrong = True
        yield from [self.note(error) for error in errors]

    def note(self, error: RowError) -> RowError:
        self.wrong.add(error.row)
        self.errors += 1
        return error

    def _repeated(self, checked: Checked) -> Iterator[RowError]:
        """Neither of two rows for one referral can be taken for the right one."""
        if checked.reference is None:
            return  # said already
        for name in checked.asked:
            key = referral_reference(checked.reference, name)
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
    file: RowFile,
    service: Service,
    seen: Survey,
    *,
    submitting: bool = False,
    make: Make | None = None,
    made: Made | None = None,
    despite_errors: bool = False,
    processes: int | None = None,
) -> Iterator[RowError | None]:
    """Look at every row; yields each error, and None after each row, for whoever shows progress.

    Args:
        seen: filled as it goes.
        submitting: see `check_row`.
        make, made: what to make of a referral, and where to keep it until all rows were seen.
        despite_errors: go on making when a row is wrong.
        processes: see `in_order`.

    Raises:
        CaseUnreadable, CaseInvalid: the file can't be read to its end.
        ConfigurationError: a template is at fault.
        DraftUnwritable: there is no room for what is made.
    """

    def look(group: tuple[list[Row], bool]) -> tuple[list[Checked], Kept | None]:
        rows, making = group
        looked = [check_row(row, service, submitting=submitting) for row in rows]
        checked = [one for one, _ in looked]
        if make is None or made is None or not making:
            return checked, None
        # Step by step for all of them, not row by row: a processor is quicker at what it has just
        # done, since code and data are still in its cache.
        numbers = [one.row for one, ready in looked for _ in ready]
        referrals = [service.prepare(assessment) for _, ready in looked for assessment in ready]
        return checked, made.keep(list(zip(numbers, map(make, referrals), strict=True)))

    def groups() -> Iterator[tuple[list[Row], bool]]:
        rows = file.rows()
        # Without their cells, which are for writing rows out again.
        while group := [replace(row, cells=()) for row in islice(rows, _ROWS_AT_ONCE)]:
            yield group, despite_errors or not seen.wrong

    for looked, kept in in_order(look, groups(), processes=processes):
        if made is not None and kept is not None:
            made.note(kept)
        for checked in looked:
            yield from seen.add(checked)
            yield None
    if seen.dates_wrong:
        from referrals.day_or_month import in_doubt

        for number, problem in in_doubt(file.rows(), service.directory):
            yield seen.note(RowError(number, problem))


def error_writer(file: IO[str]) -> Callable[[RowError], None]:
    """Begins a CSV of errors that Excel opens as it is; returns what adds one.

    Args:
        file: opened with `encoding="utf-8-sig", newline=""`.
    """
    writer = csv.writer(file)
    writer.writerow(["row", "column", "what", "remedy", "code"])

    def write(error: RowError) -> None:
        one = error.problem
        writer.writerow([error.row, one.where, one.what, one.remedy, one.code])

    return write


class Kept(NamedTuple):
    """Where some of what was made lies: which file, from where, how many bytes."""

    file: int
    start: int
    length: int


class Made:
    """What was made of the rows, in files without names; gone once closed, or once we are gone.

    There is a file for each process that makes something, so that only its place goes from one
    process to another.
    """

    def __init__(self, folder: Path) -> None:
        """In the folder or, if it is not there yet, in the nearest above that is."""
        self._folder = next(one for one in (folder, *folder.absolute().parents) if one.is_dir())
        self._kept: list[Kept] = []
        with ExitStack() as opened, self._writing():
            self._files = [
                opened.enter_context(tempfile.TemporaryFile(buffering=0, dir=self._folder))
                for _ in range(MOST + 1)
            ]
            self._opened = opened.pop_all()

    def keep(self, things: Sequence[tuple[int, Any]]) -> Kept:
        """Keep things with the number of the row that each is made of; in whichever process.

        Raises:
            DraftUnwritable: the system says no.
        """
        number = worker_number()
        file = self._files[number]
        octets = memoryview(pickle.dumps(things))
        with self._writing():
            start, written = file.seek(0, os.SEEK_END), 0
            while written < len(octets):
                written += file.write(octets[written:]) or 0
        return Kept(number, start, written)

    def note(self, kept: Kept) -> None:
        """Take it in, as the next; in the parent."""
        self._kept.append(kept)

    def but(self, wrong: Container[int]) -> Iterator[Any]:
        """Each thing in order, but those of these rows."""
        for kept in self._kept:
            octets = os.pread(self._files[kept.file].fileno(), kept.length, kept.start)
            # Our own pickles, from a file that nobody else can open.
            for row, thing in pickle.loads(octets):  # noqa: S301
                if row not in wrong:
                    yield thing

    @contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            reason = os.strerror(error.errno) if error.errno else "the system says no"
            raise DraftUnwritable(
                f"What is made of the rows can't be kept in {self._folder} until all were seen: "
                f"{reason}. Nothing was made. Free some room, or choose another folder."
            ) from None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._opened.close()


def check_addresses(seen: Survey, service: Service) -> None:
    """Raises AddressUnverified, once for all the agencies whose address nobody checked."""
    agencies = {agency.id: agency for agency, _ in seen.by_agency(service.directory)}
    unverified = [one for one in agencies.values() if not one.is_verified(service.today())]
    if unverified:
        listed = "; ".join(f"{one.title}, {one.email}" for one in unverified)
        raise AddressUnverified(
            f"Nobody has checked these addresses lately: {listed}. Ask whether they are right, "
            "then `referrals directory verify AGENCY`; or add --accept-unverified, which is "
            "recorded. Nothing was queued."
        )
