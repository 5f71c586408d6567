"""What is done with a spreadsheet of cases, in a process of its own beside the page.

Checking takes all processors for a while, and nothing that it does may hold up the page or end it.
The process reads its order from standard input and tells how far it is in the spreadsheet's folder.
It ends soon after the page's process has.
"""

from __future__ import annotations

import gc
import logging
import os
import re
import secrets
import sys
import threading
import time
from collections import Counter
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace
from io import TextIOWrapper
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal
from zipfile import ZIP_DEFLATED, ZipFile

from pydantic import BaseModel, ConfigDict

from referrals import batch, bootstrap
from referrals.directory import Agency
from referrals.errors import AddressUnverified, CaseError, CaseInvalid, ReferralsError
from referrals.row_files import open_rows
from referrals.settings import Settings
from referrals.web import downloads
from referrals.web.batch_folder import DRAFTS, ERRORS, LEFT_OUT, UPLOAD, BatchFolder
from referrals.web.crashes import note_crash

if TYPE_CHECKING:
    from referrals.row_files import RowFile
    from referrals.service import Service

MOST_SHOWN = 200
"""Errors that the page shows; the file has all."""

_GROUP = 500
_TELL_EVERY_S = 0.3
_WAIT_S = 0.2
_NICENESS = 5

log = logging.getLogger(__name__)


class Order(BaseModel):
    """What to do. `agencies` are the page's, with what it knows of their addresses.

    `worker` is who works on the spreadsheet `batch`, if it lies in the database.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)

    task: Literal["check", "draft", "submit"]
    parent: int
    batch: str = ""
    worker: str = ""
    actor: str
    settings: Settings
    agencies: dict[str, Agency]
    sheet: str | None = None
    leave_out: bool = False
    expected: int = 0
    """Referrals that the person has seen and agreed to."""
    going: list[tuple[str, str, int]] = []
    """And how many to which agency for which intervention."""
    accept_unverified: bool = False


def main() -> int:
    order = Order.model_validate_json(sys.stdin.buffer.read())
    folder = _folder(order, Path(sys.argv[1]))
    os.nice(_NICENESS)
    # As in `cli.batch`: what is there stays, and rows leave few cycles.
    gc.freeze()
    gc.set_threshold(50_000, 20, 50)
    job = Job(order, folder)
    threading.Thread(target=_end_with, args=(order.parent, folder, job), daemon=True).start()
    try:
        folder.begin()
        job.run()
        folder.end()
    except ReferralsError as error:
        log.error("%s", error)  # noqa: TRY400
        return 1
    except Exception as error:  # the page says that it was stopped
        note_crash(error)
        return 1
    return 0


def _folder(order: Order, path: Path) -> BatchFolder:
    if not order.worker:
        return BatchFolder(path)
    from referrals.web.batch_shared import SharedBatch
    from referrals.web.store_postgres import StoreDatabase

    tables = StoreDatabase(bootstrap.database_of(order.settings))
    return SharedBatch(tables, order.settings.outbox, order.batch, order.worker)


def _end_with(parent: int, folder: BatchFolder, job: Job) -> None:
    """End when the page's process has ended, or when somebody has thought better of it.

    From a thread, since a workbook may take long to open.
    """
    while True:
        if folder.is_to_stop or os.getppid() != parent:
            with job.gate:
                if not job.is_bound:
                    os._exit(1)  # what is half-made has no name, or one that is tidied away
        time.sleep(_WAIT_S)


class Job:
    """One order, carried out by `run`.

    `is_bound`: from here on it goes on to its end, as the user has agreed to all of it. It changes
    under `gate`.
    """

    def __init__(self, order: Order, folder: BatchFolder) -> None:
        self._order = order
        self._folder = folder
        self._seen = batch.Survey()
        self._shown: list[dict[str, Any]] = []
        self._told_at = 0.0
        self._new = 0
        self.gate = threading.Lock()
        self.is_bound = False

    def run(self) -> None:
        """Do it, and tell what came of it, faults that somebody can mend included."""
        folder = self._folder
        try:
            with folder.turn(lambda: time.sleep(_WAIT_S)):
                self._do()
        except CaseInvalid as error:
            folder.tidy(UPLOAD)  # nobody needs it now
            folder.tell({"step": "unreadable", "problems": [_told(one) for one in error.problems]})
        except CaseError as error:
            folder.tidy(UPLOAD)
            folder.tell({"step": "unreadable", "words": page_words(str(error), folder.upload)})
        except (ReferralsError, OSError) as error:
            words = str(error) if isinstance(error, ReferralsError) else error.strerror
            log.error("%s", words)  # noqa: TRY400
            folder.tell({"step": "failed", "new": self._new})
        finally:
            folder.tidy()

    def _do(self) -> None:
        order = self._order
        service = bootstrap.build_service(order.settings)
        agencies = {**service.directory.agencies, **order.agencies}
        service = replace(service, directory=replace(service.directory, agencies=agencies))
        self._directory = service.directory
        self._step("checking", 0)
        rows = open_rows(self._folder.upload, service.directory, order.sheet)
        match order.task:
            case "check":
                self._check(rows, service)
            case "draft":
                self._draft(rows, service)
            case "submit":
                self._submit(rows, service)

    # Checking

    def _check(self, rows: RowFile, service: Service) -> None:
        self._survey(rows, service)
        self._tell_checked(rows)

    def _survey(
        self,
        rows: RowFile,
        service: Service,
        make: batch.Make | None = None,
        made: batch.Made | None = None,
    ) -> None:
        order = self._order
        found = batch.survey(
            rows,
            service,
            self._seen,
            submitting=order.task == "submit",
            make=make,
            made=made,
            despite_errors=order.leave_out,
        )
        with (
            self._folder.writing(ERRORS) as file,
            TextIOWrapper(file, "utf-8-sig", newline="") as text,
        ):
            write = batch.error_writer(text)
            for error in found:
                if error is None:
                    self._step("checking", self._seen.rows, order.expected or None)
                    continue
                write(error)
                if len(self._shown) < MOST_SHOWN:
                    self._shown.append({"row": error.row, **_told(error.problem)})

    def _tell_checked(self, rows: RowFile, **more: Any) -> None:
        """That all rows were seen, and nothing was made of them."""
        seen = self._seen
        self._folder.tidy(LEFT_OUT)
        if seen.wrong and seen.referrals:
            # Without openpyxl a workbook's rows can't be written; the errors have their numbers.
            with suppress(CaseError), self._folder.placing(LEFT_OUT) as path:
                rows.copy(path, seen.wrong)
        self._folder.tell(
            {
                "step": "checked",
                "rows": seen.rows,
                "wrong": len(seen.wrong),
                "errors": seen.errors,
                "referrals": seen.referrals,
                "going": self._going(),
                "shown": self._shown,
                **more,
            }
        )

    def _going(self) -> list[tuple[str, str, int]]:
        return [
            (agency.id, intervention, count)
            for (agency, intervention), count in self._seen.by_agency(self._directory).items()
        ]

    def _changed(self, rows: RowFile) -> bool:
        """Whether the rows no longer come to what the person has seen.

        A rule may go by the day, and config/ may have changed.
        """
        seen, order = self._seen, self._order
        is_same = seen.referrals == order.expected and sorted(self._going()) == sorted(order.going)
        if is_same and (order.leave_out or not seen.wrong):
            return False
        self._tell_checked(rows, again="changed")
        return True

    # Making

    def _draft(self, rows: RowFile, service: Service) -> None:
        def draft(referral: Any) -> tuple[str, bytes]:
            return referral.file_name, service.draft(referral)

        with batch.Made(self._folder.path) as made:
            self._survey(rows, service, draft, made)
            if self._changed(rows):
                return
            total = self._seen.referrals
            day = service.today()
            with self._folder.writing(DRAFTS) as file:
                with ZipFile(file, "w", ZIP_DEFLATED) as packed:
                    for number, (name, content) in enumerate(made.but(self._seen.wrong), 1):
                        packed.writestr(downloads.entry(name, day), content)
                        self._step("drafting", number, total)
                size = file.tell()
        self._folder.tidy(UPLOAD)
        self._folder.tell(
            {"step": "drafted", "drafts": total, "size": size, "wrong": len(self._seen.wrong)}
        )

    def _submit(self, rows: RowFile, service: Service) -> None:
        """Queue all, once all were checked and made; known ones are left as they are."""

        def submission(referral: Any) -> Any:
            return service.submission(
                referral, token=secrets.token_hex(8), accept_unverified=True
            )  # asked below, for all at once

        before: Counter[str] = Counter()
        with batch.Made(self._folder.path) as made:
            self._survey(rows, service, submission, made)
            if self._changed(rows):
                return
            if not self._order.accept_unverified:
                try:
                    batch.check_addresses(self._seen, service)
                except AddressUnverified:
                    self._tell_checked(rows, again="unverified")
                    return
            total = self._seen.referrals
            things = made.but(self._seen.wrong)
            with self.gate:
                self.is_bound = True
            with bootstrap.open_outbox(self._order.settings, self._order.actor) as outbox:
                done = 0
                self._folder.tell({"step": "queueing", "done": done, "of": total})
                while group := list(islice(things, _GROUP)):
                    for one in outbox.queue(group, bootstrap.now()):
                        self._new += one.new
                        if not one.new:
                            before[str(one.status)] += 1
                    done += len(group)
                    self._folder.tell(
                        {"step": "queueing", "done": done, "of": total, "new": self._new}
                    )
        self._folder.tidy(UPLOAD)
        self._folder.tell(
            {
                "step": "queued",
                "new": self._new,
                "before": dict(before),
                "wrong": len(self._seen.wrong),
            }
        )

    # Telling

    def _step(self, step: str, done: int, of: int | None = None) -> None:
        now = time.monotonic()
        if now - self._told_at < _TELL_EVERY_S:
            return
        self._told_at = now
        self._folder.tell({"step": step, "done": done, "of": of})


def _told(problem: Any) -> dict[str, str]:
    return {
        "where": problem.where,
        "what": problem.what,
        "remedy": page_words(problem.remedy),
    }


_FOR_THE_PAGE: Mapping[str, str] = {
    r"Choose one with --sheet, by number or name, and run the others after it": (
        "Start again and name one under “Sheet”, by number or name; upload the others after it"
    ),
    r"`referrals new --csv` prints (?:one|them)( to start from)?\.": (
        "Download a spreadsheet to start from."
    ),
    r", as in `referrals new`\.": ".",
    r"; or give a single case to `referrals draft` or `send`": "",
    r"Then run the same command again,": "Then upload it again,",
    r": pip install 'referrals\[xlsx\]'": "",
}


def page_words(text: str, path: Path | None = None) -> str:
    """What the core says of a file, where it speaks of paths and commands, as the page says it."""
    if path is not None:
        text = re.sub(rf"^{re.escape(str(path))}", "The file", text)
        text = text.replace(str(path), "the file")
    for pattern, words in _FOR_THE_PAGE.items():
        text = re.sub(pattern, words, text)
    return text


if __name__ == "__main__":
    sys.exit(main())
