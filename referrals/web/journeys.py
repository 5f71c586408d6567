"""A half-made referral: what was typed, what was chosen and what was done with it, kept per user.

The typed values are kept as they came, so nothing is lost to a mistake. A case is made of them anew
for each page, by the core.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from functools import cached_property
from typing import Any

from starlette.exceptions import HTTPException
from starlette.requests import Request

from referrals.directory import Intervention
from referrals.eligibility import Assessment
from referrals.errors import Problem
from referrals.service import Referral, Service
from referrals.web.fields import (
    Field,
    Group,
    Typed,
    cells_of,
    every_field,
    field_at,
    numbers,
    told,
    with_context,
)
from referrals.web.forms import case_form, details_form, override_form, you_form
from referrals.web.reading import Reading, read
from referrals.web.routes import Posted
from referrals.web.site import Site, User, site_of, user_of
from referrals.web.store import Document

KIND = "journey"
_YOU = "you"
_UNFINISHED_YOU = "you-unfinished"
_KEEP_YOU = timedelta(days=180)


def you_of(site: Site, user: User) -> dict[str, list[str]]:
    """What a user told of themselves, by input; nothing if they have not yet."""
    kept = site.store.listed(_YOU, user.name, site.now)
    return kept[0].body["typed"] if kept else {}


def keep_you(site: Site, user: User, typed: Typed) -> None:
    now = site.now
    kept = site.store.listed(_YOU, user.name, now)
    body = {"typed": {name: list(values) for name, values in typed.items()}}
    site.store.save(_YOU, user.name, body, now, _KEEP_YOU, kept[0].id if kept else None)


def unfinished_you(site: Site, user: User) -> dict[str, list[str]] | None:
    """What was typed of them and is not right yet; it counts for nothing."""
    kept = site.store.listed(_UNFINISHED_YOU, user.name, site.now)
    return kept[0].body["typed"] if kept else None


def keep_unfinished_you(site: Site, user: User, typed: Typed | None) -> None:
    """Instead of what there was of it; None forgets that."""
    for one in site.store.listed(_UNFINISHED_YOU, user.name, site.now):
        site.store.forget(_UNFINISHED_YOU, user.name, one.id)
    if typed is not None:
        body = {"typed": {name: list(values) for name, values in typed.items()}}
        keep = timedelta(hours=site.settings.web.keep_progress_hours)
        site.store.save(_UNFINISHED_YOU, user.name, body, site.now, keep)


@dataclass(frozen=True)
class Errors:
    """What a page says is wrong: `at` its fields, by name, and all of it `listed` with links."""

    at: Mapping[str, str] = field(default_factory=dict, repr=False)
    listed: tuple[Mapping[str, str], ...] = field(default=(), repr=False)

    def __bool__(self) -> bool:
        return bool(self.listed)


@dataclass(frozen=True)
class Journey:
    """One of them, and the site and the user that it belongs to. `submitted` is by intervention.

    `service` is the site's as it was when the request came: config/ may change in its midst.
    """

    site: Site
    service: Service = field(repr=False)
    user: User
    id: str
    typed: Typed = field(default_factory=dict, repr=False)
    chosen: tuple[str, ...] = ()
    stage: str = "case"
    submitted: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    saved_at: datetime | None = None
    expires_at: datetime | None = None

    @classmethod
    def of(cls, site: Site, user: User, document: Document) -> Journey:
        body, service = document.body, site.service
        known = service.directory.interventions
        return cls(
            site,
            service,
            user,
            document.id,
            body["typed"],
            tuple(name for name in body["chosen"] if name in known),
            body["stage"],
            body["submitted"],
            document.saved_at,
            document.expires_at,
        )

    def keep(self, **changes: Any) -> Journey:
        """Save it with these changes; it is kept from now on as long as the settings say."""
        changed = replace(self, **changes)
        body = {
            "typed": {name: list(values) for name, values in changed.typed.items()},
            "chosen": list(changed.chosen),
            "stage": changed.stage,
            "submitted": {name: dict(one) for name, one in changed.submitted.items()},
        }
        keep = timedelta(hours=self.site.settings.web.keep_progress_hours)
        saved = self.site.store.save(KIND, self.user.name, body, self.site.now, keep, self.id)
        return replace(changed, saved_at=saved.saved_at, expires_at=saved.expires_at)

    def forget(self) -> None:
        self.site.store.forget(KIND, self.user.name, self.id)

    def url(self, page: str, anchor: str = "") -> str:
        return f"/referrals/{self.id}/{page}" + (f"#{anchor}" if anchor else "")

    def problems_url(self, page: str, anchor: str = "") -> str:
        """To a page that says at once what is wrong with it."""
        return self.url(f"{page}?show=problems", anchor)

    @property
    def reference(self) -> str:
        """The case reference as it was typed."""
        return " ".join(self.typed.get("reference", ()))[:60].strip()

    # What the core makes of it

    @cached_property
    def you(self) -> Typed:
        return you_of(self.site, self.user)

    @cached_property
    def interventions(self) -> tuple[Intervention, ...]:
        return tuple(self.service.directory.intervention(name) for name in self.chosen)

    @cached_property
    def case_groups(self) -> list[Group]:
        return case_form(self.service.directory, self.typed)

    @cached_property
    def details_groups(self) -> list[Group]:
        return details_form(self.service.directory, self.chosen, self.typed)

    @cached_property
    def override_codes(self) -> dict[int, str]:
        """By number of its record, the rule that a supervisor has set aside."""
        return {
            number: self.typed[f"overrides.{number}.code"][0]
            for number in numbers(self.typed, "overrides")
            if f"overrides.{number}.code" in self.typed
        }

    @property
    def _offered(self) -> Typed:
        """What was typed, but for agreement to what config/ has no more: no page offers that."""
        known = self.service.directory.interventions
        return {
            name: [one for one in values if one in known]
            if name.startswith("consents.") and name.endswith(".interventions")
            else values
            for name, values in self.typed.items()
        }

    @cached_property
    def reading(self) -> Reading:
        groups = [you_form(), *self.case_groups, *self.details_groups]
        cells = cells_of(groups, {**self._offered, **self.you})
        for number, code in self.override_codes.items():
            if code in self.service.directory.overridable:
                cells |= cells_of([override_form(number)], self.typed)
                cells[f"overrides.{number}.code"] = code
        return read(self.service, cells)

    def assess(self, intervention_id: str) -> Assessment | None:
        return self.reading.assess(self.service, intervention_id)

    @cached_property
    def assessments(self) -> tuple[Assessment, ...]:
        """Of the chosen interventions, in the order of the directory."""
        found = map(self.assess, self.chosen)
        return tuple(one for one in found if one is not None)

    @cached_property
    def ready(self) -> tuple[Assessment, ...]:
        return tuple(one for one in self.assessments if self.reading.is_ready(one))

    @cached_property
    def referrals(self) -> tuple[Referral, ...]:
        """The letters of those that are ready."""
        return tuple(map(self.service.prepare, self.ready))

    @cached_property
    def lacking(self) -> list[Problem]:
        """What has to be put right, in the order of the pages."""
        order = {
            one.name: at
            for at, one in enumerate(every_field([*self.case_groups, *self.details_groups]))
        }

        def at(problem: Problem) -> int:
            place = self.place_of(problem.where)
            return order[place[1].name] if place else len(order)

        return sorted(self.reading.lacking(self.assessments), key=at)

    @cached_property
    def first_gap(self) -> str | None:
        """The page to go to before any after the case can be made sense of."""
        if not self.you:
            return f"/you?next={self.id}"
        for problem in self.reading.problems:
            if problem.where.split(".")[0] == "referrer":
                return f"/you?next={self.id}"
            if field_at(problem.where, every_field(self.case_groups)):
                return self.problems_url("case")
        return None if self.reading.place else self.problems_url("case")

    @cached_property
    def gap(self) -> str | None:
        """The page to go to before any that needs the interventions chosen."""
        return self.first_gap or (None if self.chosen else self.url("choose"))

    # Where things are said

    def place_of(self, where: str) -> tuple[str, Field] | None:
        """The page and the field that a path of the core stands for."""
        pages = {
            "details": list(every_field(self.details_groups)),
            "case": list(every_field(self.case_groups)),
        }
        for page, fields in pages.items():
            found = next((one for one in fields if one.name == where), None)
            if found:
                return page, found
        for page, fields in pages.items():
            found = field_at(where, fields)
            if found:
                return page, found
        return None

    def link(self, where: str) -> str:
        """To the field that a path of the core stands for."""
        if where.split(".")[0] == "referrer":
            return f"/you?next={self.id}"
        if where in ("consents", "lawful_basis"):
            return self.url("details", where)
        found = self.place_of(where)
        if found is None:
            return self.url("details")
        return self.problems_url(found[0], found[1].anchor)

    def errors(self, problems: Iterable[Problem], groups: Sequence[Group]) -> Errors:
        """What these problems say on the page of these groups; those of other pages link there."""
        own = list(every_field(groups))
        context = _contexts(groups, len(self.chosen) > 1)
        at: dict[str, str] = {}
        elsewhere = []
        for problem in problems:
            here = field_at(problem.where, own)
            place = self.place_of(problem.where)
            if here is not None and (place is None or place[1].name == here.name):
                at.setdefault(here.name, told(problem, here, self.typed))
            else:
                text = told(problem, place[1], self.typed) if place else str(problem)
                elsewhere.append({"text": text, "href": self.link(problem.where)})
        listed = (
            {
                "text": with_context(context.get(one.name, ""), at[one.name]),
                "href": f"#{one.anchor}",
            }
            for one in own
            if one.name in at
        )
        return Errors(at, (*listed, *elsewhere))


def _contexts(groups: Iterable[Group], several: bool) -> dict[str, str]:
    """By field, whose it is, for a message that stands away from its heading."""
    made = {}
    for group in groups:
        for inner in group.groups or (group,):
            if inner.id.startswith(("people.", "incidents.", "consents.")) or (
                several and inner.id.startswith("answers.")
            ):
                made.update({one.name: inner.title for one in inner.every()})
    return made


def journey_of(request: Request, user: User | None = None) -> Journey:
    """The one that the address names, if it is this user's own.

    Args:
        user: by default, who is asking.

    Raises:
        HTTPException: 404.
    """
    site, user = site_of(request), user or user_of(request)
    kept = site.store.load(KIND, user.name, request.path_params["journey"], site.now)
    if kept is None:
        raise HTTPException(404)
    return Journey.of(site, user, kept)


def journeys_of(request: Request) -> list[Journey]:
    """A user's own, the one touched last first."""
    site, user = site_of(request), user_of(request)
    return [Journey.of(site, user, one) for one in site.store.listed(KIND, user.name, site.now)]


def begin(request: Request) -> Journey:
    site, user = site_of(request), user_of(request)
    keep = timedelta(hours=site.settings.web.keep_progress_hours)
    body = {"typed": {}, "chosen": [], "stage": "case", "submitted": {}}
    return Journey.of(site, user, site.store.save(KIND, user.name, body, site.now, keep))


def taken(typed: Typed, posted: Posted, groups: Iterable[Group]) -> dict[str, list[str]]:
    """What was typed, with a page's fields as they were posted; nothing else of it is kept."""
    fields = list(every_field(groups))
    inputs = {name for one in fields for name in one.inputs}
    made = {name: list(values) for name, values in typed.items() if name not in inputs}
    for one in fields:
        for name in one.inputs:
            values = list(posted.all(name))
            if one.name.startswith("consents.") and one.leaf == "interventions":
                # Agreement to what is not chosen now stays recorded.
                offered = dict(one.options)
                values += [value for value in typed.get(name, ()) if value not in offered]
            if any(values):
                made[name] = values
    return made
