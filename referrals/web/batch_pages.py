"""Many referrals from a spreadsheet: uploaded, checked, then saved as drafts or submitted.

The work is `batch_job`'s, in a process of its own. What a page knows of it is in the folder of the
spreadsheet (`batch_folder`), or in the database that machines share (`batch_shared`); whose it is
and what they decided, in the store.
"""

from __future__ import annotations

import asyncio
import csv
import hashlib
import io
import json
import logging
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractAsyncContextManager
from datetime import datetime, timedelta
from typing import Any, NamedTuple

from pydantic import SecretStr
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import BaseRoute, Route

from referrals.case_files import flatten
from referrals.directory import Agency, Directory
from referrals.errors import OutboxUnusable
from referrals.samples import sample_case
from referrals.web.batch_folder import DRAFTS, ERRORS, LEFT_OUT, BatchFolder, folders, sweep
from referrals.web.batch_shared import SharedBatch, sweep_shared
from referrals.web.repeated import repeated
from referrals.web.routes import Posted, check_role, goto, page, posted, shown
from referrals.web.site import Role, Site, site_of, user_of
from referrals.web.store import Document
from referrals.web.words import clock_of, held_words

log = logging.getLogger(__name__)

MOST_KEPT = 10
"""Spreadsheets of one user that are kept at a time, but for those that are done with."""

_KIND = "batch"
_DONE = ("queued", "unreadable")
_LONGEST_SHEET = 100
_WAIT_S = 3.0
_LOOK_EVERY_S = 0.15
_STOPS_WITHIN_S = 5.0
_TIDY_EVERY_S = 3600.0


class _Batch(NamedTuple):
    """A user's own spreadsheet: what is kept of it, its folder, and where it has got to."""

    document: Document
    folder: BatchFolder
    status: dict[str, Any]

    @property
    def id(self) -> str:
        return self.document.id

    @property
    def path(self) -> str:
        return f"/batch/{self.id}"

    @property
    def step(self) -> str:
        """Of the process at work; once there is none, what it came to, `stopped` if nothing."""
        step = str(self.status["step"])
        final = step in ("checked", "unreadable", "failed", "drafted", "queued")
        return step if final or self.status["running"] else "stopped"

    @property
    def is_agreed(self) -> bool:
        """No row is wrong, or the user has said that just these are left out."""
        return bool(
            self.step == "checked"
            and self.status["referrals"]
            and self.document.body["leave_out"] in (None, self.status["wrong"])
            and (not self.status["wrong"] or self.document.body["leave_out"])
        )


class _Way(NamedTuple):
    """How many referrals go to an agency for an intervention."""

    agency: Agency
    intervention: str
    referrals: int
    verified: bool


# Beginning


def batch(request: Request) -> Response:
    return _begin(request)


def _begin(request: Request, errors: Mapping[str, str] | None = None, sheet: str = "") -> Response:
    site, user = site_of(request), user_of(request)
    documents = site.store.listed(_KIND, user.name, site.now)
    clock = clock_of(site.service)
    return page(
        request,
        "batch.html",
        422 if errors else 200,
        batches=[(one, clock(_uploaded(one.document))) for one in _all(site, documents)],
        errors=errors,
        sheet=sheet,
        keep_hours=site.settings.web.keep_progress_hours,
    )


def upload(request: Request, form: Posted) -> Response:
    """Keep the file under a name of ours, and have it checked."""
    site, user = site_of(request), user_of(request)
    now, keep = site.now, _kept_for(site)
    tidy(site)
    sheet = form.get("sheet").strip()
    given = form.files.get("file")
    errors = {}
    if given is None or not given.size:
        named = given is not None and given.filename
        errors["file"] = "That file is empty." if named else "Choose a file."
    if len(sheet) > _LONGEST_SHEET:
        errors["sheet"] = "A sheet has a shorter name than that."
    kept_now = _all(site, site.store.listed(_KIND, user.name, now))
    if sum(one.step not in _DONE for one in kept_now) >= MOST_KEPT:
        errors.setdefault("file", "You have many spreadsheets here. Delete one of them first.")
    if errors or given is None:
        return _begin(request, errors, sheet)
    body = {"at": now.isoformat(), "sheet": sheet or None, "leave_out": None}
    document = site.store.save(_KIND, user.name, body, now, keep)
    folder = _folder(site, document)
    try:
        folder.receive(given.file)
    except OSError:
        site.store.forget(_KIND, user.name, document.id)
        text = "It could not be kept: the server’s disk is full or can’t be written. Nothing was "
        return _begin(request, {"file": text + "changed. Tell whoever runs this service."}, sheet)
    _start(request, _Batch(document, folder, folder.status()), "check")
    return goto(f"/batch/{document.id}")


def template(request: Request) -> Response:
    return _template(request)


def _template(request: Request, errors: Mapping[str, str] | None = None) -> Response:
    directory = site_of(request).service.directory
    offered = sorted(directory.interventions.values(), key=lambda one: one.title)
    return page(
        request, "batch_template.html", 422 if errors else 200, offered=offered, errors=errors
    )


def template_csv(request: Request) -> Response:
    service = site_of(request).service
    known = service.directory.interventions
    chosen = [one for one in request.query_params.getlist("intervention") if one in known]
    if not chosen:
        return _template(request, {"intervention": "Choose what you want to refer people to."})
    content = sample_csv(service.directory, chosen, service)
    return Response(
        content.encode("utf-8-sig"),  # Excel takes it for UTF-8 by its mark alone
        media_type="text/csv",
        headers={"Content-Disposition": 'attachment; filename="spreadsheet.csv"'},
    )


def sample_csv(directory: Directory, interventions: Iterable[str], service: Any) -> str:
    """Column names and one made-up row, as `referrals new --csv` prints them."""
    cells = dict(flatten(sample_case(directory, interventions, service.today())))
    rows = io.StringIO(newline="")
    csv.writer(rows).writerows([cells, cells.values()])
    return rows.getvalue()


# One of them


def one(request: Request) -> Response:
    found = _found(request)
    site = site_of(request)
    if found.step == "stopped":
        found.folder.tidy()  # what was half-made
    ways = _ways(site, found) if found.step == "checked" else []
    return page(
        request,
        _TEMPLATES[found.step],
        batch=found,
        status=found.status,
        words=progress(found.status),
        ways=ways,
        kept=_kept(site, ways),
        held=_held_titles(site) if found.step == "queued" else [],
        undraftable=[way for way in ways if way.agency.email is None],
        has=found.folder.has,
        uploaded=clock_of(site.service)(_uploaded(found.document)),
        keep_hours=site.settings.web.keep_progress_hours,
        can_start_again=found.folder.has("upload"),
    )


_TEMPLATES = {
    "waiting": "batch_working.html",
    "checking": "batch_working.html",
    "drafting": "batch_working.html",
    "queueing": "batch_working.html",
    "checked": "batch_checked.html",
    "unreadable": "batch_unreadable.html",
    "drafted": "batch_drafted.html",
    "queued": "batch_queued.html",
    "failed": "batch_stopped.html",
    "stopped": "batch_stopped.html",
}


def state(request: Request) -> Response:
    """For the script of a page that waits."""
    found = _found(request)
    return JSONResponse({"running": bool(found.status["running"]), "words": progress(found.status)})


def progress(status: Mapping[str, Any]) -> str:
    done, total = status.get("done", 0), status.get("of")
    words = {
        "waiting": "Waiting for its turn.",
        "checking": f"{done:,} rows checked so far.",
        "drafting": f"{done:,} of {total or 0:,} drafts made.",
        "queueing": f"{done:,} of {total or 0:,} referrals queued.",
    }
    return words.get(str(status["step"]), "")


def errors_csv(request: Request) -> Response:
    return _file(request, ERRORS, "rows-to-put-right.csv", "text/csv")


def left_out(request: Request) -> Response:
    """The rows that are wrong, as they are, in a file of the same form."""
    found = _found(request).folder.opened(LEFT_OUT)
    if found is None:
        raise HTTPException(404)
    start = next(found[1], b"")
    if start.startswith(b"PK"):
        kind = "application/vnd.openxmlformats-officedocument.spreadsheetml.sheet"
        return _file(request, LEFT_OUT, "rows-left-out.xlsx", kind)
    if start.startswith(b"{"):
        return _file(request, LEFT_OUT, "rows-left-out.jsonl", "application/x-ndjson")
    return _file(request, LEFT_OUT, "rows-left-out.csv", "text/csv")


def drafts_zip(request: Request) -> Response:
    return _file(request, DRAFTS, "drafts.zip", "application/zip")


def _file(request: Request, name: str, saved_as: str, kind: str) -> Response:
    found = _found(request).folder.opened(name)
    if found is None:
        raise HTTPException(404)
    size, pieces = found
    headers = {
        "Content-Disposition": f'attachment; filename="{saved_as}"',
        "Content-Length": str(size),
    }
    return StreamingResponse(pieces, media_type=kind, headers=headers)


# Deciding


def again(request: Request, _: Posted) -> Response:
    """Check it anew, where a process was stopped."""
    found = _found(request)
    if found.step in ("stopped", "failed"):
        found = _decided(request, found, None)
        _start(request, found, "check")
    return goto(found.path)


def leave_out(request: Request, _: Posted) -> Response:
    found = _found(request)
    if found.step == "checked" and found.status["referrals"]:
        _decided(request, found, int(found.status["wrong"]))
    return goto(found.path)


def drafts(request: Request, _: Posted) -> Response:
    found = _found(request)
    if found.is_agreed:
        _start(request, found, "draft")
    return goto(found.path)


def submit(request: Request) -> Response:
    """The question before anything is queued."""
    return _confirm(request, _found(request))


def _confirm(
    request: Request,
    found: _Batch,
    errors: Mapping[str, str] | None = None,
    typed: Mapping[str, str] | None = None,
) -> Response:
    ways = _submittable(site_of(request), found)
    if not ways:
        return goto(found.path)
    return page(
        request,
        "batch_submit.html",
        422 if errors else 200,
        batch=found,
        status=found.status,
        ways=ways,
        kept=_kept(site_of(request), ways),
        unverified=_unverified(ways),
        seen=_seen(ways),
        errors=errors,
        typed=typed or {},
    )


def _seen(ways: Iterable[_Way]) -> str:
    """What tells where all goes from where else it might: the addresses that a page showed."""
    shown = [(way.agency.id, way.agency.email, way.intervention, way.referrals) for way in ways]
    return hashlib.sha256(json.dumps(shown).encode()).hexdigest()


def submit_all(request: Request, form: Posted) -> Response:
    found = _found(request)
    ways = _submittable(site_of(request), found)
    if not ways:
        return goto(found.path)
    total = int(found.status["referrals"])
    accepted = form.get("accept") == "yes"
    count = form.get("count").strip()
    errors = {}
    if form.get("seen") != _seen(ways):
        accepted = False  # of what was shown
        errors["changed"] = (
            "The directory has changed since this page was shown. See that it all goes to the "
            "right addresses before you submit."
        )
    elif _unverified(ways) and not accepted:
        errors["accept"] = "Say that these addresses may be used, or check them first."
    if count.replace(",", "").replace(" ", "") != str(total):
        errors["count"] = f"Type {total}, the number of referrals, to confirm."
    if errors:
        typed = {"accept": "yes" if accepted else "", "count": count}
        return _confirm(request, found, errors, typed)
    _start(request, found, "submit", accept_unverified=accepted)
    return goto(found.path)


def delete(request: Request, _: Posted) -> Response:
    """Forget it with all that was made of it; a process at work is stopped first."""
    site, found = site_of(request), _found(request)
    until = time.monotonic() + _STOPS_WITHIN_S
    if found.status["running"]:
        found.folder.stop()
    while not found.folder.remove():
        if time.monotonic() > until:
            return goto(found.path)
        time.sleep(_LOOK_EVERY_S)
    site.store.forget(_KIND, user_of(request).name, found.id)
    return goto("/batch")


# What they share


def tidy(site: Site) -> None:
    """Remove what nobody has used for so long, and what is half-made."""
    sweep(site.settings.outbox, site.now, _kept_for(site))
    if site.settings.database is not None:
        try:
            sweep_shared(site.store.tables)
        except OutboxUnusable as error:
            log.warning("Old spreadsheets were not removed: %s", error)


def kept_tidy(site: Site) -> AbstractAsyncContextManager[None]:
    """While the block runs, that is done at once and every hour."""
    return repeated(lambda: tidy(site), _TIDY_EVERY_S)


def _kept_for(site: Site) -> timedelta:
    return timedelta(hours=site.settings.web.keep_progress_hours)


def _folder(site: Site, document: Document) -> BatchFolder:
    if site.settings.database is not None:
        return SharedBatch(site.store.tables, site.settings.outbox, document.id)
    return BatchFolder(folders(site.settings.outbox) / document.id)


def _all(site: Site, documents: Iterable[Document]) -> Iterable[_Batch]:
    for document in documents:
        folder = _folder(site, document)
        yield _Batch(document, folder, folder.status())


def _found(request: Request) -> _Batch:
    """Raises HTTPException 404 for what is not there, has expired or is another user's."""
    site, user = site_of(request), user_of(request)
    document = site.store.load(_KIND, user.name, request.path_params["id"], site.now)
    if document is None:
        raise HTTPException(404)
    return next(iter(_all(site, [document])))


def _decided(request: Request, found: _Batch, wrong: int | None) -> _Batch:
    """Keep how many wrong rows the user has agreed to leave out; None: nobody was asked yet."""
    site = site_of(request)
    body = {**found.document.body, "leave_out": wrong}
    owner = user_of(request).name
    saved = site.store.save(_KIND, owner, body, site.now, _kept_for(site), found.id)
    return found._replace(document=saved)


def _start(request: Request, found: _Batch, task: str, **more: Any) -> None:
    site = site_of(request)
    body = found.document.body
    order = {
        "task": task,
        "actor": user_of(request).name,
        "settings": _settings_for(site),
        "agencies": {
            name: agency.model_dump(mode="json")
            for name, agency in site.service.directory.agencies.items()
        },
        "sheet": body["sheet"],
        "leave_out": bool(body["leave_out"]),
        "expected": 0 if task == "check" else found.status["referrals"],
        "going": [] if task == "check" else found.status["going"],
        **more,
    }
    found.folder.start(order, site.courier.kick if task == "submit" else lambda: None)


def _settings_for(site: Site) -> dict[str, Any]:
    """Neither the relay's secrets nor the page's are any matter of that process."""
    settings = site.settings
    told = settings.model_dump(mode="json", include={"config", "templates", "outbox", "mail"})
    for name in ("database", "database_password"):
        secret: SecretStr | None = getattr(settings, name)
        if secret is not None:
            told[name] = secret.get_secret_value()
    return told


def _ways(site: Site, found: _Batch) -> list[_Way]:
    service = site.service
    today = service.today()
    agencies, interventions = service.directory.agencies, service.directory.interventions
    ways = [
        _Way(
            agencies[agency], interventions[name].title, count, agencies[agency].is_verified(today)
        )
        for agency, name, count in found.status["going"]
        if agency in agencies and name in interventions
    ]
    return sorted(ways, key=lambda way: (way.agency.title, way.intervention))


def _submittable(site: Site, found: _Batch) -> list[_Way]:
    """Where all would go, if all may be submitted; else nothing."""
    ways = _ways(site, found) if found.is_agreed and site.can_submit else []
    return ways if all(way.agency.email for way in ways) else []


def _unverified(ways: Iterable[_Way]) -> list[Agency]:
    return list({way.agency.id: way.agency for way in ways if not way.verified}.values())


def _kept(site: Site, ways: Iterable[_Way]) -> list[tuple[Agency, int, str]]:
    """Of each agency among them that is held: how many referrals would be kept, and since when."""
    holds, clock = site.holds(), clock_of(site.service)
    numbers = Counter[str]()
    for way in ways:
        numbers[way.agency.id] += way.referrals
    agencies = {way.agency.id: way.agency for way in ways}
    return [
        (agencies[name], number, held_words(holds[name], clock))
        for name, number in numbers.items()
        if name in holds
    ]


def _held_titles(site: Site) -> list[str]:
    """Names of the agencies that are held, whether any of these referrals goes there or not."""
    agencies = site.service.directory.agencies
    return [agencies[name].title for name in site.holds() if name in agencies]


def _uploaded(document: Document) -> datetime:
    return datetime.fromisoformat(document.body["at"])


def _awaited(path: str, answer: Callable[[Request], Response]) -> Route:
    """A page that waits a little for what is under way: so most people never see it wait.

    Nothing reloads by itself, which would take away the place of whoever reads with other means
    than eyes (WCAG 2.2, failure F41); a script does better where there is one.
    """

    async def endpoint(request: Request) -> Response:
        check_role(request, Role.REFERRER)
        found = await run_in_threadpool(_found, request)
        until = time.monotonic() + _WAIT_S
        # Another process's end is no event of ours.
        while time.monotonic() < until:
            if not await run_in_threadpool(lambda: found.folder.is_running):
                break
            await asyncio.sleep(_LOOK_EVERY_S)
        return await run_in_threadpool(answer, request)

    return Route(path, endpoint, methods=["GET"], name=answer.__name__)


def routes() -> list[BaseRoute]:
    a_batch = "/batch/{id}"
    return [
        shown("/batch", batch),
        posted("/batch", upload),
        shown("/batch/template", template),
        shown("/batch/template.csv", template_csv),
        _awaited(a_batch, one),
        shown(f"{a_batch}/state", state),
        shown(f"{a_batch}/errors.csv", errors_csv),
        shown(f"{a_batch}/left-out", left_out),
        shown(f"{a_batch}/drafts.zip", drafts_zip),
        posted(f"{a_batch}/again", again),
        posted(f"{a_batch}/leave-out", leave_out),
        posted(f"{a_batch}/drafts", drafts),
        shown(f"{a_batch}/submit", submit, role=Role.SENDER),
        posted(f"{a_batch}/submit", submit_all, role=Role.SENDER),
        posted(f"{a_batch}/delete", delete),
    ]
