"""The audit: who told whom what kind of thing, when and on what ground; and whether it is whole."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import BaseRoute

from referrals.audit import as_csv
from referrals.cli.held import counted
from referrals.reference import is_reference
from referrals.telling import chain_json, entry_json
from referrals.web import words
from referrals.web.outbox_pages import page_number, pagination
from referrals.web.routes import Posted, goto, page, posted, shown
from referrals.web.site import Role, Site, User, site_of, user_of

if TYPE_CHECKING:
    from referrals.audit import Entry
    from referrals.ports import Outbox
    from referrals.telling import ChainJson

_A_PAGE = 50
_MOST_AT_ONCE = 20_000
"""So many entries are verified while somebody waits for the list; more, when they ask for it."""


@dataclass(frozen=True)
class Proof:
    """What became of verifying the chain, and when."""

    chain: ChainJson
    at: datetime


class _Proofs:
    """The last proof of this process: each entry costs a hash, so it is not made at each look."""

    def __init__(self) -> None:
        self._gate = threading.Lock()
        self._last: tuple[str, Proof] | None = None

    def get(self, site: Site, outbox: Outbox, *, anew: bool = False) -> Proof | None:
        """Made anew if entries came since; None if there are many and nobody has asked for it."""
        [*newest] = outbox.newest_entries(limit=1)
        end = f"{outbox.name} {newest[0].number} {newest[0].hash}" if newest else outbox.name
        with self._gate:
            if self._last is not None and self._last[0] == end and not anew:
                return self._last[1]
            if not anew and newest and newest[0].number > _MOST_AT_ONCE:
                return None
            proof = Proof(chain_json(outbox.audit(), None), site.now)
            self._last = end, proof
            return proof


_proofs = _Proofs()


@dataclass(frozen=True)
class Shown:
    """An entry as the page shows it."""

    entry: Entry
    detail: list[tuple[str, str]]
    has_page: bool


def audit(request: Request) -> Response:
    """Filter: `case`, a case reference."""
    site, asked = site_of(request), request.query_params
    case = asked.get("case", "").strip().upper() or None
    with site.outbox(user_of(request)) as outbox:
        total = outbox.count_entries(case)
        number = page_number(asked, total, _A_PAGE)
        entries = outbox.newest_entries(case, limit=_A_PAGE, offset=(number - 1) * _A_PAGE)
        proof = _proofs.get(site, outbox)
    return page(
        request,
        "audit.html",
        entries=[_shown(entry) for entry in entries],
        case=case or "",
        total=total,
        pages=pagination("/audit", {"case": case} if case else {}, number, total, _A_PAGE),
        proof=proof,
        clock=words.clock_of(site.service),
        counted=counted,
    )


def _shown(entry: Entry) -> Shown:
    detail = [(key.replace("_", " "), _plain(value)) for key, value in entry.detail.items()]
    return Shown(entry, detail, is_reference(entry.reference))


def _plain(value: Any) -> str:
    if value is None:
        return "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list) and all(isinstance(one, str) for one in value):
        return ", ".join(value) or "none"
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def audit_verify(request: Request, _: Posted) -> Response:
    """Prove the whole of it now."""
    site = site_of(request)
    with site.outbox(user_of(request)) as outbox:
        _proofs.get(site, outbox, anew=True)
    return goto("/audit")


def audit_export(request: Request) -> Response:
    """What `audit export` prints, as a file."""
    site, user = site_of(request), user_of(request)
    case = request.query_params.get("case", "").strip().upper() or None
    kinds = {"jsonl": (_lines, "application/x-ndjson"), "csv": (as_csv, "text/csv")}
    form = request.path_params["form"]
    if form not in kinds:
        raise HTTPException(404)
    write, kind = kinds[form]
    headers = {"Content-Disposition": f'attachment; filename="audit.{form}"'}
    lines = write(_entries(site, user, case))
    return StreamingResponse(lines, media_type=kind, headers=headers)


def _entries(site: Site, user: User, case: str | None) -> Iterator[Entry]:
    with site.outbox(user) as outbox:
        yield from outbox.audit(case)


def _lines(entries: Iterator[Entry]) -> Iterator[str]:
    for entry in entries:
        yield json.dumps(entry_json(entry), sort_keys=True) + "\n"


def routes() -> list[BaseRoute]:
    return [
        shown("/audit", audit, role=Role.ADMINISTRATOR),
        posted("/audit/verify", audit_verify, role=Role.ADMINISTRATOR),
        shown("/audit/audit.{form}", audit_export, role=Role.ADMINISTRATOR),
    ]
