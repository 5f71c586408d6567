"""What may stand in the query of an operation; an unknown name is a problem, not a guess."""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from referrals.audit import Noted
from referrals.delivery import DeliveryStatus
from referrals.errors import CaseInvalid, Problem
from referrals.holding import Reason
from referrals.texts import Day, as_reference, fault

_MOST_INTERVENTIONS = 50


class RequestInvalid(CaseInvalid):
    """The query, the case in the body, or both."""

    code = "request-invalid"
    heading = "The request has {count} to put right:"


def in_query(problem: Problem) -> Problem:
    """Told apart from those of the case."""
    return replace(problem, where=f"query.{problem.where}")


def _digits(value: Any) -> Any:
    if isinstance(value, str) and not (value.isascii() and value.isdigit() and len(value) < 10):
        raise fault("number", "is not a whole number.", "Write it in digits.")
    return value


def _true_false(value: Any) -> Any:
    if isinstance(value, str) and value not in ("true", "false"):
        raise fault("yes-no", "is neither true nor false.", "Write true or false.")
    return value


def _noted(value: Any) -> Any:
    try:
        return Noted.parse(value)
    except ValueError:
        raise fault(
            "noted", "is not NUMBER:HASH.", "Give `noted` as audit/verify told it before."
        ) from None


_Ids = Annotated[list[str], Field(max_length=_MOST_INTERVENTIONS)]
_Whole = Annotated[int, BeforeValidator(_digits)]
_CaseReference = Annotated[str, BeforeValidator(as_reference)]


class Query(BaseModel):
    """No parameters."""

    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)


class NeededBy(Query):
    needed_by: str | None = Field(
        None, description="An intervention: then it also says what that one needs."
    )


class Some(Query):
    intervention: _Ids = Field(
        [], description="Interventions to look at; by default those that the case has answers for."
    )


class One(Query):
    intervention: str = Field(description="The intervention.")


class Several(Query):
    intervention: _Ids = Field(min_length=1, description="Each intervention to refer to.")


class Submitting(Several):
    accept_unverified: Annotated[bool, BeforeValidator(_true_false)] = Field(
        False,
        description="Submit to an address that nobody has verified within its review time. "
        "The audit records it.",
    )


class Listing(Query):
    status: DeliveryStatus | None = Field(None, description="Only messages of one status.")
    case_reference: _CaseReference | None = Field(None, description="Only those of one case.")
    held: Annotated[bool, BeforeValidator(_true_false)] = Field(
        False, description="Only those that are kept, since their agency is held."
    )
    limit: _Whole = Field(100, ge=1, le=500, description="How many at most.")
    offset: _Whole = Field(0, ge=0, le=100_000, description="How many of the newest to pass over.")


class Auditing(Query):
    case_reference: _CaseReference | None = Field(None, description="Only entries of one case.")
    since: Day | None = Field(None, description="Only entries of that day (UTC) and later.")
    after: _Whole = Field(0, ge=0, description="Only entries with a higher number.")
    limit: _Whole = Field(1_000, ge=1, le=10_000, description="How many at most.")


class Expecting(Query):
    expect: Annotated[Any, BeforeValidator(_noted)] = Field(
        None,
        description="An entry that has to be there: `noted` as an earlier answer told it.",
        json_schema_extra={"type": "string", "pattern": "^[0-9]{1,15}:[0-9a-f]{16,64}$"},
    )


class Because(Query):
    because: Reason = Field(description="Why nothing is to go there; the audit keeps it.")


class Releasing(Query):
    with_uncertain: Annotated[bool, BeforeValidator(_true_false)] = Field(
        False, description="Reroute those, too, that the old address may have already."
    )
    with_failed: Annotated[bool, BeforeValidator(_true_false)] = Field(
        False, description="Reroute those, too, that have failed."
    )
    accept_unverified: Annotated[bool, BeforeValidator(_true_false)] = Field(
        False,
        description="Reroute although nobody has verified the address within its review time. The "
        "audit records it.",
    )


class AskedOn(Query):
    on: Day | None = Field(
        None, description="The day on which the agency was asked; by default today."
    )
    by: str | None = Field(None, description="Who asked; by default the token's own name.")
