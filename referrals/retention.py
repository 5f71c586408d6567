"""What is kept and what is forgotten: content by age, drafts by age, and all files of one case."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta
from email import message_from_bytes
from email.header import decode_header, make_header
from pathlib import Path
from typing import TYPE_CHECKING

from referrals.errors import DraftUnwritable
from referrals.reference import is_reference, referral_reference

if TYPE_CHECKING:
    from referrals.ports import Retention
    from referrals.queueing import Held
    from referrals.settings import Settings

_NOTED = "retention"
_DAILY = timedelta(days=1)
_ASK_EVERY = timedelta(minutes=10)
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


class Rarely:
    """Says every ten minutes that it is time to look: for a process that comes round often."""

    def __init__(self) -> None:
        self._last: datetime | None = None

    def __call__(self, now: datetime) -> bool:
        if self._last is not None and self._last <= now < self._last + _ASK_EVERY:
            return False
        self._last = now
        return True


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
        if _is_named_for(path.name, case_reference) or _told_in_subject(path) & wanted
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


def _is_named_for(name: str, case_reference: str) -> bool:
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
