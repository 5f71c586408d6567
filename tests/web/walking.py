"""Somebody who walks the journey without JavaScript: reads each form, fills it in, posts it."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from html.parser import HTMLParser
from typing import Any

import httpx2

from referrals.case_files import flatten
from tests.web.signing import csrf, said


class Form(HTMLParser):
    """The form of a page that has this action: its fields as a browser would send them."""

    def __init__(self, html: str, action: str) -> None:
        super().__init__()
        self._wanted = action
        self._inside = False
        self._select: str | None = None
        self._text: str | None = None
        self.values: dict[str, list[str]] = {}
        self.offered: dict[str, list[str]] = {}
        """By name, every value that radios, checkboxes and selects have; of other inputs, none."""
        self.feed(html)
        assert self.offered, f"no form for {action}"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        about = {name: value or "" for name, value in attrs}
        if tag == "form":
            self._inside = about.get("action", "").partition("?")[0] == self._wanted
        if not self._inside:
            return
        name, value = about.get("name", ""), about.get("value", "")
        match tag, about.get("type", ""):
            case "input", "radio" | "checkbox":
                self.offered.setdefault(name, []).append(value)
                if "checked" in about:
                    self.values.setdefault(name, []).append(value)
            case "input", _:
                self.offered.setdefault(name, [])
                self.values[name] = [value]
            case "select", _:
                self._select = name
                self.offered[name] = []
            case "option", _ if self._select:
                self.offered[self._select].append(value)
                if "selected" in about or self._select not in self.values:
                    self.values[self._select] = [value]
            case "textarea", _:
                self._text = name
                self.offered[name] = []
                self.values[name] = [""]
            case _:
                pass

    def handle_data(self, data: str) -> None:
        if self._text is not None:
            self.values[self._text][0] += data

    def handle_endtag(self, tag: str) -> None:
        if tag == "textarea" and self._text is not None:
            # A browser drops a line break right after the tag.
            self.values[self._text] = [self.values[self._text][0].removeprefix("\n")]
            self._text = None
        elif tag == "select":
            self._select = None
        elif tag == "form":
            self._inside = False


@dataclass
class Walker:
    """`cells` are what is typed, by the columns of a case; `at` is the journey's address."""

    client: httpx2.Client
    cells: dict[str, str] = field(default_factory=dict)
    at: str = ""

    @classmethod
    def with_case(cls, client: httpx2.Client, raw: Mapping[str, Any]) -> Walker:
        return cls(client, dict(flatten(raw)))

    def get(self, path: str) -> httpx2.Response:
        answer: httpx2.Response = self.client.get(path)
        assert answer.status_code == 200, (path, answer.status_code, answer.text[-2000:])
        return answer

    def form(self, path: str) -> Form:
        return Form(self.get(path).text, path.partition("?")[0])

    def post(
        self, path: str, values: Mapping[str, Sequence[str] | str], expected: int = 303
    ) -> httpx2.Response:
        token = csrf(self.client.get("/"))
        answer: httpx2.Response = self.client.post(
            path, data={"csrf": token, **values}, follow_redirects=False
        )
        assert answer.status_code == expected, (path, answer.status_code, said(answer))
        return answer

    def fill(self, path: str, **more: Sequence[str] | str) -> dict[str, Sequence[str] | str]:
        """The form of a page with what `cells` have for its fields, and `more`."""
        form = self.form(path)
        filled: dict[str, Sequence[str] | str] = {**form.values}
        roles = {
            name.removesuffix(".person"): values[0]
            for name, values in form.values.items()
            if name.endswith(".person")
        }
        for name, cell in self._renamed(roles):
            filled.update(_inputs(name, cell, form.offered))
        return {**filled, **more}

    def _renamed(self, roles: Mapping[str, str]) -> Iterator[tuple[str, str]]:
        """Records of agreement stand where the form has that person's."""
        own = {
            name.removesuffix(".person"): cell
            for name, cell in self.cells.items()
            if re.fullmatch(r"consents\.\d+\.person", name)
        }
        places = {role: place for place, role in roles.items()}
        for name, cell in self.cells.items():
            found = re.fullmatch(r"(consents\.\d+)\.(\w+)", name)
            if found:
                yield f"{places.get(own[found[1]], 'nowhere')}.{found[2]}", cell
            else:
                yield name, cell

    # The steps

    def start(self) -> None:
        went = self.post("/referrals", {}).headers["location"]
        if went.startswith("/you"):
            assert "next=" in went
            went = self.post(went, self.fill_you(went)).headers["location"]
        self.at = went.rpartition("/")[0].partition("?")[0]

    def fill_you(self, path: str) -> dict[str, Sequence[str] | str]:
        return self.fill(path)

    def case(self) -> httpx2.Response:
        path = f"{self.at}/case"
        count = len({name.split(".")[1] for name in self.cells if name.startswith("incidents.")})
        while sum(name.endswith(".on-day") for name in self.form(path).values) < count:
            self.post(path, self.fill(path, action="add-incident"))
        return self.post(path, self.fill(path, action="continue"))

    def choose(self, *interventions: str) -> httpx2.Response:
        return self.post(f"{self.at}/choose", {"chosen": interventions})

    def details(self) -> httpx2.Response:
        path = f"{self.at}/details"
        return self.post(path, self.fill(path, action="continue"))

    def to_check(self, *interventions: str) -> str:
        """All the way to the answers; the page that reads them back."""
        self.start()
        self.case()
        self.choose(*interventions)
        went = self.details().headers["location"]
        assert went == f"{self.at}/check"
        return self.get(went).text

    def seen(self) -> dict[str, str]:
        """The hidden fields of the page that submits: which letters it showed."""
        form = self.form(f"{self.at}/submit")
        return {name: one[0] for name, one in form.values.items() if name.startswith("seen.")}

    def submit(self, *interventions: str, expected: int = 303, **more: Any) -> httpx2.Response:
        values = {**self.seen(), "submit": interventions, "accept": interventions, **more}
        return self.post(f"{self.at}/submit", values, expected)


def _inputs(
    name: str, cell: str, offered: Mapping[str, Sequence[str]]
) -> Iterator[tuple[str, Sequence[str] | str]]:
    if f"{name}-day" in offered:
        year, month, rest = cell.split("-", 2)
        day, _, time = rest.replace("T", " ").partition(" ")
        yield f"{name}-day", day.lstrip("0")
        yield f"{name}-month", month.lstrip("0")
        yield f"{name}-year", year
        if f"{name}-time" in offered:
            yield f"{name}-time", time
    elif name in offered:
        several = "; " in cell and offered[name]
        yield name, cell.split("; ") if several else cell
