"""From an error to words and an exit code: the one table."""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING, Any

import click

from referrals import errors
from referrals.rules import Finding

if TYPE_CHECKING:
    from referrals.delivery import Reply

_EXIT_CODES: tuple[tuple[type[errors.ReferralsError], int], ...] = (
    (errors.ReferralBlocked, 4),
    (errors.CaseError, 3),
    (errors.ConfigurationError, 5),
    (errors.MessageRefused, 5),
    (errors.DraftError, 6),
    (errors.OutboxError, 6),
    (errors.RoutingError, 7),
    (errors.TransientDeliveryError, 8),
    (errors.PermanentDeliveryError, 9),
    (errors.DeliveryUncertain, 10),
    (errors.RelayRefused, 11),
)


def exit_code(error: errors.ReferralsError) -> int:
    return next((code for kind, code in _EXIT_CODES if isinstance(error, kind)), 1)


def report(error: Exception, as_json: bool) -> int:
    """Say what went wrong, on standard error or as JSON on standard output.

    The traceback of a bug, which may hold personal data, is shown only if somebody asks for it
    with _REFERRALS_TRACEBACK.
    """
    if isinstance(error, errors.ReferralsError):
        _say(described(error), as_json)
        return exit_code(error)
    if os.environ.get("_REFERRALS_TRACEBACK"):
        raise error
    if isinstance(error, OSError):  # ours are translated where they arise: this is the output's
        reason = os.strerror(error.errno) if error.errno else "the system says no"
        _say({"code": "output", "message": f"The output could not be written: {reason}."}, False)
        return 1
    text = (
        f"This is a fault of ours ({type(error).__name__}). A draft is whole or not there; if you "
        "were submitting, treat it as uncertain and ask before you try again. "
        "_REFERRALS_TRACEBACK=1 shows details, which may hold personal data."
    )
    _say({"code": "fault", "message": text}, as_json)
    return 1


def _say(described_error: dict[str, Any], as_json: bool) -> None:
    from referrals.cli import wants_colour

    if as_json:
        click.echo(json.dumps({"ok": False, "error": described_error}, indent=2))
    else:
        text = click.style("Error: ", fg="red", bold=True) + described_error["message"]
        click.echo(text, err=True, color=wants_colour())


def described(error: errors.ReferralsError) -> dict[str, Any]:
    """An error as JSON: code, message and, if there are some, problems and findings."""
    made: dict[str, Any] = {"code": error.code, "message": str(error)}
    if isinstance(error, errors.CaseInvalid | errors.ConfigurationError | errors.ReferralBlocked):
        made["problems"] = [problem_json(problem) for problem in error.problems]
    if isinstance(error, errors.ReferralBlocked):
        made["intervention"] = error.intervention_id
        made["findings"] = [finding_json(finding) for finding in error.findings]
    if isinstance(error, errors.DeliveryError):
        made["stage"] = error.stage
        reply = error.reply
        made["reply"] = reply_json(reply) if reply else None
    return made


def reply_json(reply: Reply) -> dict[str, Any]:
    return {"code": reply.code, "enhanced": reply.enhanced, "text": reply.text}


def problem_json(problem: errors.Problem) -> dict[str, str]:
    return {
        "where": problem.where,
        "what": problem.what,
        "remedy": problem.remedy,
        "code": problem.code,
    }


def finding_json(finding: Finding) -> dict[str, Any]:
    return {
        "code": finding.code,
        "level": str(finding.level),
        "text": finding.text,
        "source": finding.source,
        "where": finding.where,
        "missing": finding.missing,
        "overridable": finding.overridable,
        "overridden": finding.override is not None,
    }
