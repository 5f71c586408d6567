"""An outbox in memory that is taken for a restored copy: only because somebody has said so."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

from referrals.delivery import DeliveryStatus
from referrals.errors import NotPossibleNow
from referrals.outboxes.memory.state import GIVEN_UP, MemoryPlace, Message, State
from referrals.queueing import Attempt
from referrals.relay_log import reference_of
from referrals.restored import (
    HELD_WORDS,
    NOTED,
    RELAYED_WORDS,
    SAID_SO,
    STILL_WAITS,
    Copied,
    Unsettled,
    Verdict,
    is_possible,
    moment_of,
    settled_words,
)


class MemoryOrigin(MemoryPlace):
    """`ports.Restoring`."""

    def _refuse_a_copy(self, state: State) -> None:
        """Raises OutboxRestored."""
        if state.copied is not None:
            raise state.copied.refusal(self.name)

    def _tell(self) -> None:
        """Have those who listen look."""
        raise NotImplementedError

    def copied(self) -> Copied | None:
        return self._state.copied

    def take_for_copy(self, now: datetime, *, only_say: bool = False) -> Copied:
        def run(state: State) -> Copied:
            last = state.audit[-1].moment if state.audit else None
            copied = state.copied or Copied(SAID_SO, moment_of(last), len(state.messages))
            if not only_say:
                state.copied = copied
            return copied

        return self._do(run)

    def settled(self, now: datetime, detail: Mapping[str, Any]) -> bool:
        def run(state: State) -> bool:
            if state.copied is None:
                return False
            last = state.copied.last_message
            if any(one.waits and one.id <= last for one in state.messages.values()):
                raise NotPossibleNow(STILL_WAITS)
            state.copied = None
            self._write(state, now, NOTED, detail)
            return True

        return self._do(run)

    def lost_nothing(self, now: datetime) -> bool:
        def run(state: State) -> bool:
            if state.copied is None:
                return False
            state.copied = None
            self._write(state, now, "outbox moved", {})
            return True

        return self._do(run)

    def unsettled(self, *, waiting: bool, after: int = 0, limit: int) -> list[Unsettled]:
        state = self._state
        last = state.copied.last_message if state.copied else len(state.messages)
        newest = {one.reference: one.id for one in state.messages.values()}
        found = [
            one
            for one in state.messages.values()
            if one.id > after
            and one.waits is waiting
            and (one.id <= last if waiting else one.status in GIVEN_UP)
        ]
        return [
            Unsettled(
                id=one.id,
                reference=one.reference,
                message_id=one.message_id,
                status=one.status,
                doubtful_since=min(
                    (
                        each.started_at
                        for each in state.attempts_of(one.id)
                        if each.outcome in (None, "uncertain")
                    ),
                    default=None,
                ),
                is_whole=one.purged_at is None,
                is_last=newest[one.reference] == one.id,
            )
            for one in found[:limit]
        ]

    def settle(self, verdicts: Mapping[int, Verdict], now: datetime) -> Counter[Verdict]:
        def run(state: State) -> Counter[Verdict]:
            found = Counter[Verdict]()
            for number, verdict in sorted(verdicts.items()):
                message = state.messages[number]
                if is_possible(verdict, message.status, message.waits, message.purged_at):
                    self._settle(state, message, verdict, now)
                    found[verdict] += 1
            return found

        found = self._do(run)
        if found[Verdict.DUE]:
            self._tell()
        return found

    def _settle(self, state: State, message: Message, verdict: Verdict, now: datetime) -> None:
        if verdict is Verdict.DUE:
            state.change(message, status=DeliveryStatus.QUEUED, due_at=now, failures=0)
        else:
            relayed = verdict is Verdict.RELAYED
            status = DeliveryStatus.RELAYED if relayed else DeliveryStatus.UNCERTAIN
            words = RELAYED_WORDS if relayed else HELD_WORDS
            ended = state.end_open_attempts(message, ended_at=now, outcome=str(status), words=words)
            if not ended:
                as_of = min(state.copied.as_of, now) if state.copied else now
                state.begin(
                    message, Attempt(as_of, now, str(status), None, None, None, words, None)
                )
            state.change(
                message,
                status=status,
                due_at=None,
                lease_until=None,
                lease_owner=None,
                attempts=message.attempts + (0 if ended else 1),
                maybe_doubled=message.maybe_doubled or not relayed,
                relayed_at=message.relayed_at or (now if relayed else None),
            )
        action, detail = settled_words(verdict, message.status)
        self._log(state, now, action, message, detail)

    def surely_relayed(self, since: datetime, before: datetime | None = None) -> list[str]:
        state = self._state
        return sorted(
            {
                state.messages[of].message_id
                for of, one in state.attempts.values()
                if one.outcome == "relayed"
                and one.code is not None
                and since <= one.started_at
                and (before is None or one.started_at < before)
            }
        )

    def unknown(self, message_ids: Sequence[str]) -> list[str]:
        here = {(one.reference, one.message_id) for one in self._state.messages.values()}
        return [each for each in message_ids if (reference_of(each), each) not in here]
