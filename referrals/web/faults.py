"""From an error to a page and an HTTP status: the one table."""

from __future__ import annotations

import logging

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response

from referrals import errors
from referrals.settings import Login
from referrals.web.crashes import note_crash
from referrals.web.routes import bare_page, page
from referrals.web.site import site_of

log = logging.getLogger(__name__)

STATUSES: tuple[tuple[type[errors.ReferralsError], int], ...] = (
    (errors.ReferralBlocked, 422),
    (errors.CaseError, 422),
    (errors.ConfigurationError, 503),
    (errors.InterventionUnknown, 404),
    (errors.RoutingError, 409),
    (errors.NotInOutbox, 404),
    (errors.NotPossibleNow, 409),
    (errors.OutboxError, 503),
    (errors.DraftChanged, 409),
    (errors.DraftError, 503),
    (errors.MessageRefused, 422),
    (errors.DeliveryError, 503),
    (errors.ReferralsError, 500),
)

_WORDS = {
    400: ("That request can’t be understood", "Go back and try again."),
    403: (
        "You can’t do that",
        "Your account has no permission for it. Ask whoever looks after this service.",
    ),
    404: (
        "There is no such page",
        "If you typed the address, check it. A referral that was being filled in is kept for a "
        "limited time only.",
    ),
    405: ("That request can’t be understood", "Go back and try again."),
    408: ("The rest of that did not arrive in time", "Check the connection and try again."),
    413: ("That is too large", "Send a smaller file."),
}
_SAID = {
    "expired-form": (
        "This page was open for too long",
        "Nothing was changed. Go back, reload the page and try again.",
    ),
    "no-role": (
        "You have no access yet",
        "You signed in, but your account has no role in this service: referrer, sender or "
        "administrator. Ask whoever looks after it.",
    ),
    "no-proxy": (
        "You can’t use the page at this address",
        "It does not say who you are. Open the page at its usual address; if this is the usual "
        "address, tell whoever looks after this service.",
    ),
}
_CRASHED = (
    "Something went wrong on our side",
    "What you typed before this page is kept. Go back and try again; if it happens again, tell "
    "whoever looks after this service.",
)
_AWAY = (
    "Referrals can’t be used just now",
    "What it keeps can’t be reached. What was saved before is safe.\n"
    "If you were sending a form, it was not taken. Wait a minute, go back to it in your browser "
    "and send it again: what you typed is still there.\n"
    "If it goes on, tell whoever looks after this service.",
)


def status_of(error: errors.ReferralsError) -> int:
    return next(status for kind, status in STATUSES if isinstance(error, kind))


def _page(request: Request, status: int, title: str, text: str) -> Response:
    if not hasattr(request.state, "session"):  # before there is one: too early for a whole page
        return PlainTextResponse(f"{title}. {text}\n", status)
    return page(request, "fault.html", status, title=title, text=text)


def told(request: Request, error: Exception) -> Response:
    """An error of ours, whose text is fit to show."""
    if not isinstance(error, errors.ReferralsError):
        raise error
    status = status_of(error)
    nobody = getattr(request.state, "user", None) is None
    if isinstance(error, errors.OutboxUnusable) and nobody:
        return _away(request, status, error)
    return _page(request, status, "That can’t be done now", str(error))


def _away(request: Request, status: int, error: errors.OutboxUnusable) -> Response:
    """What is wrong is not for strangers, so it goes to the log."""
    log.warning("%s", error)
    title, text = _AWAY
    if site_of(request).settings.web.login is Login.NONE:  # on this machine, nobody else asks
        text = f"{error}\n{text}"
    answer = bare_page(request, "fault.html", status, title=title, text=text)
    answer.headers["Retry-After"] = "10"
    return answer


def refused(request: Request, error: Exception) -> Response:
    if not isinstance(error, HTTPException):
        raise error
    title, text = _SAID.get(error.detail) or _WORDS.get(error.status_code, _WORDS[400])
    answer = _page(request, error.status_code, title, text)
    answer.headers.update(error.headers or {})
    return answer


def sign_in_first(request: Request, _: Exception) -> Response:
    return site_of(request).sign_in.first(request)


def crashed(request: Request, error: Exception) -> Response:
    """A fault of ours: said to the log without what was typed, and to the reader without detail."""
    if isinstance(error, errors.ReferralsError):  # before there is a session: no fault of ours
        return told(request, error)
    note_crash(error)
    try:
        return _page(request, 500, *_CRASHED)
    except Exception:  # it is the pages that are broken
        return PlainTextResponse("{}. {}\n".format(*_CRASHED), 500)
