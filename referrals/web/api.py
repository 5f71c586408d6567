"""The JSON API, /api/v1: who asks (a bearer token, never a cookie), what they ask, and errors."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from typing import Any, get_origin

from pydantic import ValidationError
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import QueryParams
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.exceptions import ExceptionMiddleware
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import BaseRoute, Mount, Route, Router

from referrals.case_files import parse_json, read_text
from referrals.errors import CaseInvalid, Problem, ReferralsError
from referrals.problems import keys_of, problems_of
from referrals.telling import described
from referrals.web import faults
from referrals.web.api_operations import EML, OPERATIONS, Call, Operation
from referrals.web.api_queries import Query, RequestInvalid, in_query
from referrals.web.openapi import Description
from referrals.web.site import Site, User, site_of

AT_ONCE, A_SECOND = 200, 20.0
"""Requests that a token may make in a burst, and how many a second from then on."""

_BODY = "The body"
_WORDS = {
    403: ("not-allowed", "This token's role does not allow that."),
    404: ("not-found", "There is no such address. /api/openapi.json lists those that there are."),
    405: ("method", "That method is not for this address."),
    406: ("not-acceptable", ""),
    415: ("media-type", "Send the case as application/json."),
    429: ("too-many", "Too many requests. Try again after the seconds in Retry-After."),
}
_CHALLENGE = 'Bearer realm="referrals"'


class Pace:
    """How often each user may ask: a bucket that fills up again as time goes by."""

    def __init__(
        self,
        at_once: int,
        a_second: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._at_once = at_once
        self._a_second = a_second
        self._clock = clock
        self._gate = threading.Lock()
        self._left: dict[str, tuple[float, float]] = {}

    def wait_s(self, user: str) -> float:
        """0.0 where this request may be made; else how long to wait for the next."""
        now = self._clock()
        with self._gate:
            left, at = self._left.get(user, (float(self._at_once), now))
            left = min(self._at_once, left + (now - at) * self._a_second)
            if left < 1:
                return (1 - left) / self._a_second
            self._left[user] = left - 1, now
        return 0.0


def routes() -> list[BaseRoute]:
    pace = Pace(AT_ONCE, A_SECOND)
    description = Description(OPERATIONS)

    def described_api(request: Request) -> Response:
        return Response(description.of(site_of(request)), media_type="application/json")

    inside = Router(
        [
            Route("/openapi.json", described_api, methods=["GET"]),
            *(
                Route(f"/v1{one.path}", _endpoint(one, pace), methods=[one.method])
                for one in OPERATIONS
            ),
        ],
        redirect_slashes=False,
    )
    handlers: Mapping[Any, Callable[[Request, Exception], Response]] = {
        ReferralsError: _told,
        HTTPException: _refused,
        Exception: _crashed,
    }
    return [Mount("/api", inside, middleware=[Middleware(ExceptionMiddleware, handlers=handlers)])]


def _endpoint(operation: Operation, pace: Pace) -> Callable[[Request], Any]:
    async def endpoint(request: Request) -> Response:
        site = site_of(request)
        user = await run_in_threadpool(_user, request, site)
        wait = pace.wait_s(user.name)
        if wait:
            raise HTTPException(429, headers={"Retry-After": str(int(wait) + 1)})
        if not user.may(operation.role):
            scope = f'{_CHALLENGE}, error="insufficient_scope", scope="{operation.role}"'
            raise HTTPException(403, headers={"WWW-Authenticate": scope})
        body = None
        if operation.takes_case:
            kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
            if kind != "application/json":
                raise HTTPException(415)
            body = await request.body()
        return await run_in_threadpool(_answer, operation, request, site, user, body)

    return endpoint


def _user(request: Request, site: Site) -> User:
    """Whom the token stands for (RFC 6750 §2.1); a token in the query or the body is none.

    Raises:
        HTTPException: 401.
    """
    given = request.headers.getlist("authorization")
    scheme, _, token = given[0].partition(" ") if len(given) == 1 else ("", "", "")
    if scheme.lower() != "bearer" or not token.strip():
        raise HTTPException(
            401,
            "Give a token, as in `Authorization: Bearer …`. `referrals tokens add` makes one.",
            {"WWW-Authenticate": _CHALLENGE},
        )
    user = site.store.token_user(token.strip())
    if user is None:
        raise HTTPException(
            401,
            "This token is not known here, has expired or was revoked.",
            {"WWW-Authenticate": f'{_CHALLENGE}, error="invalid_token"'},
        )
    return user


def _answer(
    operation: Operation, request: Request, site: Site, user: User, body: bytes | None
) -> Response:
    query, problems = _query(operation.query, request.query_params)
    raw: Mapping[str, Any] = {}
    if body is not None:
        try:
            raw = parse_json(read_text(body, _BODY), _BODY)
        except CaseInvalid as error:
            raise RequestInvalid([*problems, *error.problems]) from None
    if problems:
        if body is not None:
            problems += _of_case(site, raw)
        raise RequestInvalid(problems)
    accepts = request.headers.get("accept", "")
    call = Call(site, user, request.path_params, query, EML in accepts, raw)
    told = operation.run(call)
    if isinstance(told, Response):
        return told
    status = 200
    if isinstance(told, tuple):
        told, status = told
    return JSONResponse(told, status)


def _query(model: type[Query], given: QueryParams) -> tuple[Query | None, list[Problem]]:
    """The query in its types, or every problem with it."""
    values: dict[str, Any] = {}
    problems: list[Problem] = []
    for name in given:
        every = given.getlist(name)
        known = model.model_fields.get(name)
        if known is not None and _is_list(known.annotation):
            values[name] = every
        else:
            values[name] = every[-1]
            if len(every) > 1 and known is not None:
                problems.append(
                    Problem(name, "stands twice.", "Keep the one that is right.", "doubled")
                )
    try:
        return model.model_validate(values), list(map(in_query, problems))
    except ValidationError as error:
        problems += problems_of(error, keys_of(model), private=True)
        return None, list(map(in_query, problems))


def _is_list(annotation: Any) -> bool:
    return get_origin(annotation) is list


def _of_case(site: Site, raw: Mapping[str, Any]) -> list[Problem]:
    try:
        site.service.read(raw)
    except CaseInvalid as error:
        return list(error.problems)
    return []


# Errors


def _json(
    error: Mapping[str, Any], status: int, headers: Mapping[str, str] | None = None
) -> Response:
    return JSONResponse({"ok": False, "error": error}, status, headers)


def _told(_: Request, error: Exception) -> Response:
    if not isinstance(error, ReferralsError):
        raise error
    return _json(described(error), faults.status_of(error))


def _refused(_: Request, error: Exception) -> Response:
    if not isinstance(error, HTTPException):
        raise error
    status = error.status_code
    code, words = _WORDS.get(status, ("not-signed-in" if status == 401 else "refused", ""))
    # Starlette's own detail only repeats the status in words.
    from http import HTTPStatus

    said = error.detail if error.detail != HTTPStatus(status).phrase else ""
    return _json({"code": code, "message": said or words}, status, error.headers)


def _crashed(request: Request, error: Exception) -> Response:
    faults.crashed(request, error)  # says to the log what it was, without what was typed
    text = "Something went wrong on our side. If you were submitting, ask the outbox before again."
    return _json({"code": "fault", "message": text}, 500)
