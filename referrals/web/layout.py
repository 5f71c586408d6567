"""The templates of the page: Jinja over GOV.UK Frontend's macros."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from jinja2 import (
    ChoiceLoader,
    Environment,
    PackageLoader,
    PrefixLoader,
    Undefined,
)
from markupsafe import Markup

from referrals import __version__
from referrals.texts import day_words

_OF_DICTS = frozenset(dir(dict))


class _Environment(Environment):
    """GOV.UK Frontend's macros ask dicts for options, a thousand times a page, in dots.

    Jinja first asks for an attribute of that name, and raises, catches and raises again. A short
    way to the same answer takes a fifth off a page.
    """

    def getattr(self, obj: Any, attribute: str) -> Any:
        if type(obj) is dict and attribute not in _OF_DICTS:
            return obj[attribute] if attribute in obj else self.undefined(obj=obj, name=attribute)
        return super().getattr(obj, attribute)


def environment() -> Environment:
    """Every value is escaped. A macro's `html` option is not: give it nothing that was typed."""
    made = _Environment(
        loader=ChoiceLoader(
            [
                PackageLoader("referrals.web"),
                PrefixLoader({"govuk_frontend_jinja": PackageLoader("govuk_frontend_jinja")}),
            ]
        ),
        autoescape=True,
        undefined=Undefined,  # GOV.UK Frontend's macros ask for options that were not given
        trim_blocks=True,
        lstrip_blocks=True,
        auto_reload=False,
        extensions=["jinja2.ext.do"],
    )
    made.globals["version"] = __version__
    made.filters["day"] = day_words
    made.filters["moment"] = moment
    made.filters["commands"] = commands
    return made


def moment(value: datetime) -> str:
    """`24 November 2026, 12:00`, by the clock of the region's time zone if it was put in it."""
    return f"{day_words(value.date())}, {value:%H:%M}"


def commands(words: str) -> Markup:
    """What stands between backticks is for a terminal, and looks so."""
    told = Markup()
    for number, part in enumerate(words.split("`")):
        told += Markup("<code>{}</code>").format(part) if number % 2 else part
    return told
