"""What the page keeps of one case beside the outbox: for whoever has to export or erase all of it.

Half-made referrals, by the case reference that was typed into them; and spreadsheets with a row or
a draft of the case. A spreadsheet goes as a whole, since what was made of it speaks of that row in
other places; whoever uploaded it has it, and uploads it again without the row.

It needs none of the packages that the page needs.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, Literal
from zipfile import BadZipFile, ZipFile

from pydantic_core import PydanticCustomError

from referrals import bootstrap
from referrals.errors import CaseError, NotPossibleNow
from referrals.retention import is_named_for
from referrals.row_files import open_rows
from referrals.texts import as_reference
from referrals.web.batch_folder import (
    DRAFTS,
    LEFT_OUT,
    UPLOAD,
    BatchFolder,
    folders,
    is_workplace,
)

if TYPE_CHECKING:
    from referrals.directory import Directory
    from referrals.settings import Settings
    from referrals.web.store import Tables
    from referrals.web.store_file import StoreFile

_JOURNEY, _BATCH = "journey", "batch"


@dataclass(frozen=True)
class Kept:
    """One thing that the page keeps, until it expires at the latest. Times are aware.

    `owner` is "" where nobody can reach it any more. `is_sure`: it is known to be of the case; what
    can't be read may be. `under_way`: a process is at work on it. `content` is what it holds of the
    case, as JSON's kind of value.
    """

    kind: Literal["half-made referral", "spreadsheet"]
    id: str
    owner: str
    saved_at: datetime
    expires_at: datetime
    is_sure: bool = True
    under_way: bool = False
    content: Any = field(default=None, repr=False)


@contextmanager
def kept_by_page(settings: Settings) -> Iterator[CaseKept]:
    """Raises OutboxUnusable: there is a page's store, and it can't be used."""
    if settings.database is not None:
        from referrals.web.store_postgres import StoreDatabase

        yield CaseKept(settings, StoreDatabase(bootstrap.database_of(settings)))
        return
    path = settings.outbox / "web.sqlite3"
    if not path.exists():
        yield CaseKept(settings, None)
        return
    from referrals.web.store_file import StoreFile

    file = StoreFile(path)
    try:
        yield CaseKept(settings, file, file)
    finally:
        file.close()


class CaseKept:
    """Of the store that the settings name; there may be none."""

    def __init__(
        self, settings: Settings, tables: Tables | None, file: StoreFile | None = None
    ) -> None:
        self._settings = settings
        self._tables = tables
        self._file = file

    def of_case(self, case_reference: str, directory: Directory | None) -> list[Kept]:
        """What is of this case, or may be; expired or not, as long as it is there.

        Args:
            directory: without one no spreadsheet can be read.
        """
        if self._tables is None:
            return []
        return [
            *self._half_made(case_reference),
            *self._spreadsheets(case_reference, directory),
        ]

    def erase(self, kept: Iterable[Kept]) -> None:
        """Remove these, overwritten where we can.

        Raises:
            NotPossibleNow: a process works on a spreadsheet by now; the others are gone.
        """
        if self._tables is None:
            return
        busy = []
        for one in kept:
            if one.kind == "spreadsheet" and not self._folder(one.id).remove():
                busy.append(one)
                continue
            kind = _BATCH if one.kind == "spreadsheet" else _JOURNEY
            with self._tables.writing(surely=True) as db:
                db.execute("DELETE FROM document WHERE kind = ? AND id = ?", (kind, one.id))
        if self._file is not None:
            self._file.forget_log()
        if busy:
            raise at_work()

    def _half_made(self, case_reference: str) -> Iterator[Kept]:
        for row in self._documents(_JOURNEY):
            typed: Mapping[str, list[str]] = json.loads(row["body"])["typed"]
            if _is(" ".join(typed.get("reference", ())), case_reference):
                yield Kept(
                    "half-made referral",
                    row["id"],
                    row["owner"],
                    _moment(row["saved_at"]),
                    _moment(row["expires_at"]),
                    content=typed,
                )

    def _spreadsheets(self, case_reference: str, directory: Directory | None) -> Iterator[Kept]:
        documents = {row["id"]: row for row in self._documents(_BATCH)}
        for id, made_at in {**dict.fromkeys(documents), **self._folders()}.items():
            row = documents.get(id)
            folder = self._folder(id)
            sheet = json.loads(row["body"]).get("sheet") if row else None
            rows = _of_case(folder, case_reference, directory, sheet, self._settings.outbox)
            if rows == []:
                continue
            saved_at = _moment(row["saved_at"]) if row else made_at or bootstrap.now()
            keep = timedelta(hours=self._settings.web.keep_progress_hours)
            yield Kept(
                "spreadsheet",
                id,
                row["owner"] if row else "",
                saved_at,
                _moment(row["expires_at"]) if row else saved_at + keep,
                is_sure=rows is not None,
                under_way=folder.is_running,
                content=rows,
            )

    def _documents(self, kind: str) -> list[Any]:
        if self._tables is None:
            return []
        with self._tables.reading() as db:
            return db.execute(
                "SELECT id, owner, body, saved_at, expires_at FROM document WHERE kind = ?"
                " ORDER BY saved_at, id",
                (kind,),
            ).fetchall()

    def _folders(self) -> dict[str, datetime | None]:
        """When each was made that somebody may have, or nobody any more."""
        if self._settings.database is not None and self._tables is not None:
            with self._tables.reading() as db:
                rows = db.execute("SELECT id, made_at FROM batch ORDER BY made_at, id").fetchall()
            return {row["id"]: row["made_at"] for row in rows}
        found = folders(self._settings.outbox)
        return {
            path.name: datetime.fromtimestamp(path.stat().st_mtime, UTC)
            for path in (sorted(found.iterdir()) if found.is_dir() else ())
            if path.is_dir() and not is_workplace(path)
        }

    def _folder(self, id: str) -> BatchFolder:
        if self._settings.database is not None and self._tables is not None:
            from referrals.web.batch_shared import SharedBatch

            return SharedBatch(self._tables, self._settings.outbox, id)
        return BatchFolder(folders(self._settings.outbox) / id)


def at_work() -> NotPossibleNow:
    """Why a spreadsheet can't be removed yet."""
    return NotPossibleNow(
        "A spreadsheet on the page that holds this case is being worked on just now. Wait until "
        "that is done, or delete it there; then try again."
    )


def _of_case(
    folder: BatchFolder,
    case_reference: str,
    directory: Directory | None,
    sheet: str | None,
    outbox: Path,
) -> list[Any] | None:
    """What a spreadsheet holds of a case; None if something of it can't be read."""
    found: list[Any] = []
    for name in (UPLOAD, LEFT_OUT):
        with _file(folder, name, outbox) as path:
            if path is None:
                continue
            if directory is None:
                return None
            try:
                found += [
                    dict(row.raw)
                    for row in open_rows(path, directory, sheet).rows()
                    if _is(row.raw.get("reference"), case_reference)
                ]
            except CaseError:
                return None
    with _file(folder, DRAFTS, outbox) as path:
        if path is not None:
            try:
                with ZipFile(path) as packed:
                    names = packed.namelist()
            except (BadZipFile, OSError):
                return None
            found += [{"draft": one} for one in names if is_named_for(one, case_reference)]
    return found


@contextmanager
def _file(folder: BatchFolder, name: str, outbox: Path) -> Iterator[Path | None]:
    """A file of it to read, for as long as the block runs; None if there is none."""
    if type(folder) is BatchFolder:
        yield folder.path / name if folder.has(name) else None
        return
    opened = folder.opened(name)
    if opened is None:
        yield None
        return
    outbox.mkdir(mode=0o700, parents=True, exist_ok=True)
    with TemporaryDirectory(prefix=".erase-", dir=outbox) as temporary:
        path = Path(temporary) / name
        with path.open("wb") as file:
            for piece in opened[1]:
                file.write(piece)
        yield path


def _is(typed: Any, case_reference: str) -> bool:
    try:
        return as_reference(typed) == case_reference
    except PydanticCustomError:
        return False


def _moment(seconds: float) -> datetime:
    return datetime.fromtimestamp(seconds, UTC)
