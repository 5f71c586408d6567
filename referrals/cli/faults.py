"""From an error to words and an exit code: the one table."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from typing import Any

import click

from referrals import errors
from referrals.telling import described

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


def _say(described_error: Mapping[str, Any], as_json: bool) -> None:
    from referrals.cli import wants_colour

    if as_json:
        click.echo(json.dumps({"ok": False, "error": described_error}, indent=2))
    else:
        text = click.style("Error: ", fg="red", bold=True) + described_error["message"]
        click.echo(text, err=True, color=wants_colour())
