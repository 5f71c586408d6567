"""What was typed, read as a case as far as it goes, and judged by the core: every problem at once.

The core refuses a case with a fault in it before it looks at any rule. A page wants to say both at
once, so what can't be read is left out and the rest is looked at; nothing is made of such a case.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

from referrals.case import Case
from referrals.case_files import unflatten
from referrals.directory import Intervention, Place
from referrals.eligibility import Assessment
from referrals.errors import CaseInvalid, Problem
from referrals.rules import Finding
from referrals.service import Service

_MOST_ROUNDS = 12
_LISTS = ("incidents", "consents", "overrides")


@dataclass(frozen=True)
class Reading:
    """A case as it was typed. Paths in it are names of fields, whatever was left blank between.

    `problems` are those that keep the whole from being a case; `case` is what could be read.
    """

    problems: tuple[Problem, ...]
    case: Case | None = field(default=None, repr=False)
    place: Place | None = None
    _numbers: Mapping[str, Sequence[str]] = field(default_factory=dict, repr=False)

    def assess(self, service: Service, intervention_id: str) -> Assessment | None:
        """None while it is not known where the case is."""
        if self.case is None or self.place is None:
            return None
        found = service.assess(self.case, self.place, intervention_id)
        return replace(
            found,
            problems=tuple(self._named(problem) for problem in found.problems),
            findings=tuple(self._placed(finding) for finding in found.findings),
        )

    def is_ready(self, assessment: Assessment) -> bool:
        """Whether a letter may be made of it."""
        return not self.problems and assessment.ready

    def lacking(self, assessments: Iterable[Assessment]) -> list[Problem]:
        """Every problem of the case and of these interventions, each place once."""
        found = {problem.where: problem for problem in self.problems}
        for assessment in assessments:
            for problem in assessment.problems:
                # What was left out because it could not be read is not missing besides.
                if not any(_touch(problem.where, other.where) for other in self.problems):
                    found.setdefault(problem.where, problem)
        return list(found.values())

    def _named(self, problem: Problem) -> Problem:
        return replace(problem, where=_renumbered(problem.where, self._numbers))

    def _placed(self, finding: Finding) -> Finding:
        where = finding.where
        return replace(finding, where=where and _renumbered(where, self._numbers))


def _touch(one: str, other: str) -> bool:
    return one == other or one.startswith(f"{other}.") or other.startswith(f"{one}.")


def read(service: Service, cells: Mapping[str, str]) -> Reading:
    """Read columns and their values as a case."""
    left = dict(cells)
    problems: tuple[Problem, ...] | None = None
    for _ in range(_MOST_ROUNDS):
        numbers = {name: list(_numbers(left, name)) for name in _LISTS}
        try:
            case, place = service.read(unflatten(left.items()))
        except CaseInvalid as error:
            found = [replace(one, where=_renumbered(one.where, numbers)) for one in error.problems]
            problems = tuple(found) if problems is None else problems
            if not _leave_out(left, found):
                break
        else:
            return Reading(problems or (), case, place, numbers)
    return Reading(problems or ())


def _numbers(cells: Iterable[str], group: str) -> Iterator[str]:
    """The numbers that a list's items have, in order: the first of them is the core's 1."""
    own = {name.split(".")[1] for name in cells if name.startswith(f"{group}.")}
    yield from sorted(own, key=int)


def _renumbered(where: str, numbers: Mapping[str, Sequence[str]]) -> str:
    group, *rest = where.split(".")
    known = numbers.get(group, ())
    if rest and rest[0].isdigit() and int(rest[0]) <= len(known):
        rest[0] = known[int(rest[0]) - 1]
    return ".".join((group, *rest))


def _leave_out(cells: dict[str, str], problems: Iterable[Problem]) -> bool:
    """Take out what has a problem, or what it is missing in; whether anything was taken out."""
    before = len(cells)
    for problem in problems:
        where = problem.where
        if where.startswith("answers.") and problem.code == "missing":
            continue
        while where:
            within = [name for name in cells if name == where or name.startswith(f"{where}.")]
            for name in within:
                del cells[name]
            if within:
                break
            where = where.rpartition(".")[0]
    return len(cells) < before


# In the words of a page

OF_THE_ADDRESS = ("GEN-003", "GEN-004", "GEN-005")
"""What is said of an address in words of its own beside it."""


def read_out(findings: Iterable[Finding], intervention: Intervention) -> Iterator[Finding]:
    """For a page: a rule that names a question by its key in config/ names it by its label."""
    labels = {one.name: one.label for one in intervention.fields if "_" in one.name}
    for one in findings:
        words = re.sub(r"\w+", lambda key: _quoted(labels, key[0]), one.text)
        yield replace(one, text=words)


def _quoted(labels: Mapping[str, str], word: str) -> str:
    return f"“{labels[word]}”" if word in labels else word
