"""What is kept and what is forgotten: content by age, drafts by age, and all files of one case."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from datetime import datetime, timedelta
from email import message_from_bytes
from email.header import decode_header, make_header
from pathlib import Path
from typing import TYPE_CHECKING

from referrals.errors import DraftUnwritable, ReferralsError
from referrals.reference import is_reference, referral_reference

if TYPE_CHECKING:
    from referrals.ports import Retention
    from referrals.queueing import Held
    from referrals.settings import Settings

_NOTED = "retention"
_DAILY = timedelta(days=1)
_ASK_EVERY = timedelta(minutes=10)
_STOPPED_S = 2.0
"""How long a stop waits for a purge that is under way."""
_REFERENCE_LENGTH = len("K7QM-29TX-WCF4")
_MOST_OF_A_HEADER = 64_000


@dataclass(frozen=True)
class Retained:
    """What a purge came to. `unfinished` are whole still, each with when it was last tried."""

    messages: int
    given_up: int
    drafts: list[Path]
    unfinished: list[tuple[Held, datetime]]


def purge(
    outbox: Retention,
    settings: Settings,
    now: datetime,
    *,
    keep_content_days: int | None = None,
    unfinished: bool = False,
) -> Retained:
    """Forget the content of what was relayed or cancelled long ago, and delete old drafts.

    Args:
        keep_content_days: instead of the setting.
        unfinished: forget what failed or stayed uncertain for `keep_unfinished_days`, too. Without
            it that is only told: a referral that never arrived is not to vanish by itself.

    Raises:
        DraftUnwritable: a draft can't be deleted.
    """
    limits = _Limits.of(settings, now, keep_content_days)
    messages = outbox.purge(limits.relayed_before, now)
    given_up = outbox.purge_unfinished(limits.untouched_since, now) if unfinished else 0
    old = old_drafts(settings.outbox, limits.drafted_before)
    try:
        delete(old)
    finally:
        gone = [path for path in old if not os.path.lexists(path)]
        counts = {"messages": messages, "given_up": given_up, "drafts": len(gone)}
        outbox.note(_NOTED, counts, now)
    return Retained(messages, given_up, gone, outbox.unfinished(limits.untouched_since))


def foreseen(
    outbox: Retention,
    settings: Settings,
    now: datetime,
    *,
    keep_content_days: int | None = None,
) -> Retained:
    """What `purge` would forget and delete, and what is unfinished; nothing is changed."""
    limits = _Limits.of(settings, now, keep_content_days)
    return Retained(
        messages=outbox.purgeable(limits.relayed_before),
        given_up=0,
        drafts=old_drafts(settings.outbox, limits.drafted_before),
        unfinished=outbox.unfinished(limits.untouched_since),
    )


@dataclass(frozen=True)
class _Limits:
    relayed_before: datetime
    untouched_since: datetime
    drafted_before: datetime

    @classmethod
    def of(cls, settings: Settings, now: datetime, keep_content_days: int | None) -> _Limits:
        delivery = settings.delivery
        content = delivery.keep_content_days if keep_content_days is None else keep_content_days
        return cls(
            relayed_before=now - timedelta(days=content),
            untouched_since=now - timedelta(days=delivery.keep_unfinished_days),
            drafted_before=now - timedelta(days=delivery.keep_drafts_days),
        )


def is_due(outbox: Retention, now: datetime) -> bool:
    """Whether the last purge was a day ago; or later than now, by a clock that was set back."""
    last = outbox.last_noted(_NOTED)
    return last is None or not last <= now < last + _DAILY


def purge_if_due(outbox: Retention, settings: Settings, now: datetime) -> Retained | None:
    """The daily purge, if it is switched on and a day has passed; None if not.

    Raises:
        OutboxUnusable, DraftUnwritable, OSError: it is tried again at the next call.
    """
    if settings.delivery.purge != "daily" or not is_due(outbox, now):
        return None
    return purge(outbox, settings, now)


class DailyPurge:
    """The daily purge of a process that goes on delivering, in a thread of its own.

    So neither the delivery nor a stop ever waits for it. One that is still under way soon after a
    stop is left to end with the process: each of its steps is kept whole or not at all, and the
    next purge goes on from there.

    Args:
        open_outbox: one for the purge alone, since whoever closes an outbox waits for what was
            asked of it.
        done: told of each purge, in its thread.
        failed: told why one did not come about, once until it is another reason.
    """

    def __init__(
        self,
        open_outbox: Callable[[], AbstractContextManager[Retention]],
        settings: Settings,
        *,
        done: Callable[[Retained, datetime], None] = lambda *_: None,
        failed: Callable[[str], None],
    ) -> None:
        self._open_outbox = open_outbox
        self._settings = settings
        self._done = done
        self._failed = failed
        self._asked: datetime | None = None
        self._fault = ""
        self._thread: threading.Thread | None = None
        self._stopping = threading.Event()

    def look(self, now: datetime) -> None:
        """Purge if a day has passed. Call it as often as you like: every ten minutes it looks."""
        if self._settings.delivery.purge != "daily" or self._is_under_way():
            return
        if self._asked is not None and self._asked <= now < self._asked + _ASK_EVERY:
            return
        self._asked = now
        self._stopping.clear()
        self._thread = threading.Thread(target=self._run, args=(now,), name="purge", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Wait a moment for what is under way; what comes of it later is told to nobody."""
        if self._thread is not None:
            self._thread.join(_STOPPED_S)
        self._stopping.set()

    def _is_under_way(self) -> bool:
        return self._thread is not None and self._thread.is_alive()

    def _run(self, now: datetime) -> None:
        try:
            with self._open_outbox() as outbox:
                retained = purge_if_due(outbox, self._settings, now)
        except (ReferralsError, OSError) as error:
            self._tell(str(error))
        except Exception as error:  # its text could hold personal data
            self._tell(f"there is a fault of ours in it ({type(error).__name__}).")
        else:
            self._fault = ""
            if retained is not None and not self._stopping.is_set():
                self._done(retained, now)

    def _tell(self, fault: str) -> None:
        if fault != self._fault and not self._stopping.is_set():
            self._failed(fault)
        self._fault = fault


def old_drafts(outbox: Path, before: datetime) -> list[Path]:
    """Drafts in the outbox's own folder that nobody has written to since; no other folder's."""
    return [
        path
        for path in _files(outbox / "drafts")
        if path.suffix == ".eml" and path.stat().st_mtime < before.timestamp()
    ]


def files_of(outbox: Path, case_reference: str, interventions: Iterable[str]) -> list[Path]:
    """Drafts of one case, what was left half-written, and what a sink has kept of it.

    By its name, which begins with the referral's reference and the intervention's id; or, since
    somebody may have saved it by another, by its subject.

    Args:
        interventions: whose references to look for in subjects.
    """
    wanted = {referral_reference(case_reference, one) for one in interventions}
    return [
        path
        for folder in ("drafts", "sink")
        for path in _files(outbox / folder)
        if is_named_for(path.name, case_reference) or _told_in_subject(path) & wanted
    ]


def delete(paths: Iterable[Path]) -> None:
    """Raises DraftUnwritable, which names what is still there, once all others are gone."""
    left = []
    for path in paths:
        try:
            path.unlink(missing_ok=True)
        except OSError as error:
            left.append(f"{path} ({error.strerror})")
    if left:
        raise DraftUnwritable(
            f"Could not be deleted: {', '.join(left)}. Delete it yourself, or mend the permissions "
            "of its folder and try again."
        )


def _files(folder: Path) -> Iterator[Path]:
    """Whole drafts and half-written ones; never what a link leads to."""
    if folder.is_dir():
        for path in sorted(folder.iterdir()):
            if (
                path.suffix in (".eml", ".referral-tmp")
                and path.is_file()
                and not path.is_symlink()
            ):
                yield path


def is_named_for(name: str, case_reference: str) -> bool:
    """Whether it begins with a reference, and that is the one of this case and what follows it."""
    plain = name.removeprefix(".")
    reference, rest = plain[:_REFERENCE_LENGTH], plain[_REFERENCE_LENGTH + 1 :]
    words = rest.partition(".")[0].split("-")
    return is_reference(reference) and any(
        reference == referral_reference(case_reference, "-".join(words[:count]))
        for count in range(1, len(words) + 1)
    )


def _told_in_subject(path: Path) -> set[str]:
    with path.open("rb") as file:
        head = file.read(_MOST_OF_A_HEADER)
    subject = message_from_bytes(head).get("Subject", "")
    try:
        text = str(make_header(decode_header(subject)))
    except (LookupError, ValueError):
        text = str(subject)
    return {word for word in text.replace(":", " ").split() if is_reference(word)}
