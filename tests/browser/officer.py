"""An officer at the page: finds what to fill in by what it is called, as a person does."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import count
from pathlib import Path
from typing import Any, ClassVar

from playwright.sync_api import Locator, Page, expect

from referrals.bootstrap import build_service
from referrals.case_files import flatten
from referrals.samples import sample_case
from referrals.service import Service
from referrals.settings import Settings
from referrals.web.fields import Field, Group, Kind
from referrals.web.forms import case_form, details_form, you_form
from tests.browser.conftest import DESKTOP, Look, assert_accessible
from tests.conftest import ROOT

INTERVENTIONS = sorted(path.stem for path in (ROOT / "config/interventions").glob("*.toml"))
SERVICE: Service = build_service(Settings(outbox=Path("no-outbox-is-here")))
_numbers = count(101)


def title_of(intervention: str) -> str:
    return SERVICE.directory.intervention(intervention).title


def case_for(*interventions: str) -> dict[str, Any]:
    """A made-up case that is complete for these, with a reference that no other has."""
    raw = sample_case(SERVICE.directory, interventions, SERVICE.today())
    return {**raw, "reference": f"B-{next(_numbers)}"}


@dataclass
class Officer:
    """`case` is raw, as of `case_for`; what is changed in `cells` is typed instead."""

    page: Page
    look: Look = DESKTOP
    shoot: Callable[[str], None] = lambda _: None
    case: dict[str, Any] = field(default_factory=dict)
    chosen: Sequence[str] = ()
    looked_over: ClassVar[set[tuple[str, Look]]] = set()

    @cached_property
    def cells(self) -> dict[str, str]:
        return dict(flatten(self.case))

    def sees(self, heading: str | re.Pattern[str], picture: str = "") -> None:
        """A page under this heading, the only one of its level.

        axe-core looks over each once in each look; pages of different pictures are different.
        """
        expect(self.page.get_by_role("heading", level=1)).to_have_text(heading)
        key = picture or str(heading), self.look
        if key not in self.looked_over:
            self.looked_over.add(key)
            if picture:
                self.shoot(picture)
            assert_accessible(self.page)

    def _settled(self) -> None:
        """The script has put the menu of a narrow page together, which moves what is below it."""
        if self.look.javascript:
            menu = "[data-module=govuk-service-navigation]"
            loose = self.page.locator(f"{menu}:not([data-govuk-service-navigation-init])")
            expect(loose).to_have_count(0)

    def presses(self, name: str) -> None:
        self._settled()
        self.page.get_by_role("button", name=read_as(name)).click()

    def follows(self, name: str) -> None:
        """A link, or one that looks like a button and says that it is one."""
        self._settled()
        link = self.page.get_by_role("link", name=read_as(name))
        link.or_(self.page.get_by_role("button", name=read_as(name))).click()

    # The journey

    def starts(self) -> None:
        self.page.bring_to_front()
        self.page.goto("/")
        self.sees("Refer somebody for help")
        self.presses("Start a referral")
        if "/you" in self.page.url:
            self.sees("Your details", "you")
            self.fills([you_form()])
            self.presses("Save and continue")
        self.sees("The case")

    def tells_the_case(self, picture: str = "") -> None:
        incidents = {name.split(".")[1] for name in self.cells if name.startswith("incidents.")}
        for _ in range(len(incidents) - 1):
            self.presses("Add another incident")
        self.fills(case_form(SERVICE.directory, {name: [""] for name in self.cells}))
        if picture:
            self.sees("The case", picture)
        self.presses("Save and continue")

    def chooses(self, *interventions: str) -> None:
        self.chosen = interventions
        for intervention in interventions:
            self.page.get_by_role("checkbox", name=title_of(intervention), exact=True).check()
        self.presses("Save and continue")

    @property
    def details(self) -> list[Group]:
        return details_form(SERVICE.directory, self.chosen, {})

    def gives_details(self, picture: str = "") -> None:
        self.fills(self.details)
        if picture:
            self.sees("Details", picture)
        self.presses("Save and continue")

    def comes_to_check(self, *interventions: str) -> None:
        """All the way to the answers."""
        self.case = self.case or case_for(*interventions)
        self.starts()
        self.tells_the_case()
        self.chooses(*interventions)
        self.gives_details()

    # Fields

    def fills(self, groups: Iterable[Group]) -> None:
        for group, one, column in self.answers(groups):
            fill(self.box(group), one, self.cells[column])

    def answers(self, groups: Iterable[Group]) -> Iterator[tuple[Group, Field, str]]:
        """The fields of a form that `cells` have something for, and where they have it."""
        for group in groups:
            for one in group.fields:
                column = self._column(group, one)
                if column in self.cells:
                    yield group, one, column
            yield from self.answers(group.groups)

    def _column(self, group: Group, one: Field) -> str:
        """A record of agreement may have another number in the case than on the form."""
        if not group.role:
            return one.name
        return next(
            (
                f"{name.removesuffix('person')}{one.leaf}"
                for name, cell in self.cells.items()
                if name.startswith("consents.") and cell == group.role
            ),
            "",
        )

    def box(self, group: Group) -> Locator:
        """The fields that stand under the heading of a group."""
        main = self.page.get_by_role("main")
        if group.id in ("reference", "referrer"):
            return main
        if group.role:
            title = next(one.title for one in self._agreements() if one.role == group.role)
            main = self.page.get_by_role("region", name="Agreement")
            return main.get_by_role("group", name=title, exact=True)
        return main.get_by_role("group", name=group.title, exact=True).first

    def _agreements(self) -> Iterator[Group]:
        for group in self.details:
            if group.id == "consents":
                yield from group.groups


def read_as(name: str) -> re.Pattern[str]:
    """A name as it is read out: words for screen readers alone have spaces of their own around."""
    return re.compile(
        r"^\s*" + r"\s*".join(map(re.escape, re.split(r"\s+|(?=[:(])", name))) + r"\s*$"
    )


def fill(box: Page | Locator, one: Field, cell: str) -> None:
    """Answers one question in the way that it is asked."""
    label = one.label + (" (optional)" if one.optional else "")
    group = box.get_by_role("group", name=label, exact=True)
    labels = dict(one.options) or {"yes": "Yes", "no": "No"}
    match one.kind:
        case Kind.DATE | Kind.MOMENT:
            for part, text in dated(cell).items():
                if part != "Time" or one.kind is Kind.MOMENT:
                    group.get_by_label(part, exact=True).fill(text)
        case Kind.CHOICES:
            for value in cell.split("; "):
                group.get_by_label(labels[value], exact=True).check()
        case Kind.YES_NO:
            group.get_by_label(labels[cell], exact=True).check()
        case Kind.CHOICE:
            one_of = box.get_by_role("combobox", name=label, exact=True)
            if one_of.count():
                one_of.select_option(label=labels[cell])
            else:
                group.get_by_label(labels[cell], exact=True).check()
        case _:
            box.get_by_label(label, exact=True).fill(cell)


def dated(cell: str) -> dict[str, str]:
    """What to type for a day, or a day and a time."""
    day, _, time = cell.replace("T", " ").partition(" ")
    year, month, number = day.split("-")
    parts = {"Day": number.lstrip("0"), "Month": month.lstrip("0"), "Year": year}
    return {**parts, "Time": time[:5]} if time else parts
