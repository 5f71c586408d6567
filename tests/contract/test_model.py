"""SQLite and PostgreSQL beside the outbox in memory: by chance, step by step, the same answers.

Whatever is asked of an outbox is asked of the model as well, in the same order and at the same
time by a clock that jumps; then all that either tells must be equal, to the hash of each entry of
the audit. Of two that differ one is wrong, or the contract is.

`REFERRALS_MODEL_EXAMPLES=2000` looks for that many new ways, and for longer ones.
"""

from __future__ import annotations

import asyncio
import os
import tempfile
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from itertools import count
from pathlib import Path
from typing import Any, ClassVar, TypeVar
from unittest import mock

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from referrals.audit import verify
from referrals.delivery import DeliveryStatus, Reply, RetryPolicy, Submission
from referrals.errors import OutboxError, OutboxRestored
from referrals.holding import Reason, Rerouting
from referrals.outboxes.memory.outbox import MemoryOutbox
from referrals.outboxes.postgres.verified import PostgresVerified
from referrals.outboxes.sqlite.verified import read_verified
from referrals.queueing import Claimed, Outcome
from referrals.relay_health import RelayFault, RelayLink, RelayState
from referrals.relay_log import RelayLog
from referrals.restored import Copied, evidence_of, settle
from referrals.verification import Verification
from tests.conftest import NOW, TODAY
from tests.outboxes import DURABLE, Harness, Outbox
from tests.queued import submission

MINUTE = timedelta(minutes=1)
LEASE = 20 * MINUTE
POLICY = RetryPolicy(longest_wait=10 * MINUTE, give_up_after=timedelta(hours=1))
OWNERS = ("one/0", "one/1", "two/0")
AGENCIES = ("a", "b", "c")
ADDRESSES = ("new@agency.test", "newer@agency.test", "old@agency.test")
RELAYS = ("other:587", "relay:25")
_MORE = int(os.environ.get("REFERRALS_MODEL_EXAMPLES", "0"))

T = TypeVar("T")

numbers = st.integers(0, 7)
references = st.integers(0, 3).map(lambda number: f"R-{number}")
agencies = st.sampled_from(AGENCIES)
addresses = st.sampled_from(ADDRESSES)
relays = st.sampled_from(RELAYS)
owners = st.sampled_from(OWNERS)
cases = st.integers(0, 2).map(lambda number: f"CASE-{number}")
jumps = st.sampled_from(
    [MINUTE / 60, MINUTE / 2, MINUTE, 3 * MINUTE, 10 * MINUTE, 21 * MINUTE, timedelta(days=1)]
)
ages = st.sampled_from([-MINUTE, MINUTE, 10 * MINUTE])
outcomes = st.builds(
    Outcome,
    status=st.sampled_from(
        [
            DeliveryStatus.RELAYED,
            DeliveryStatus.DELAYED,
            DeliveryStatus.FAILED,
            DeliveryStatus.UNCERTAIN,
        ]
    ),
    relay=relays,
    stage=st.sampled_from(["", "sender", "content"]),
    reply=st.sampled_from(
        [None, Reply(250, "2.0.0", "Ok"), Reply(451, "4.7.1", "a\0b"), Reply(550, None, "\udcff")]
    ),
    words=st.sampled_from(["", "the link was lost"]),
)


def a_submission(number: int, to: str) -> Submission:
    """Of one reference there are several, as of one agency and of one case.

    Some can't be given another address, and some were queued by a version without facts' keys.
    """
    message_id = f"<R-{number % 4}.{number}@police.test>"
    to_line = f"To: {to}\r\n" if number % 7 else ""
    return submission(
        number,
        reference=f"R-{number % 4}",
        agency=AGENCIES[number % 3],
        case_reference=f"CASE-{number % 3}",
        acknowledge_by=TODAY + timedelta(days=number % 2),
        recipient=to,
        message_id=message_id,
        content_key=key(number, to),
        facts_key=f"facts {number}" if number % 4 else None,
        content=(
            f"{to_line}Date: Tue, 24 Nov 2026 12:00:00 +0000\r\n"
            f"Message-ID: {message_id}\r\n\r\nletter {number}\r\n"
        ).encode(),
    )


def key(number: int, to: str) -> str:
    return f"key {number} {to}"


@dataclass(frozen=True)
class Taken:
    """A message that both have claimed."""

    owner: str
    model: Claimed
    real: Claimed


def shown(answer: Any) -> Any:
    """What must be equal: not the number of an attempt, nor how it is known that this is a copy."""
    match answer:
        case Claimed():
            return replace(answer, attempt=0)
        case Copied():
            return replace(answer, why="")
        case _:
            return answer


def nobody(_: str) -> bool:
    return False


def those_of(process: str | None) -> Callable[[str], bool]:
    return lambda owner: owner.partition("/")[0] == process


class Beside(RuleBasedStateMachine):
    """One outbox and the model, each opened twice."""

    kind: ClassVar[str]

    def __init__(self) -> None:
        super().__init__()
        self._folder = tempfile.TemporaryDirectory(prefix="model-")
        self._runner = asyncio.Runner()
        self.now = NOW
        self.harness = Harness.of(self.kind, Path(self._folder.name))
        memory = Harness.of("memory", Path(self._folder.name))
        self.reals = [self.harness.open(actor) for actor in ("page", "worker")]
        self.models = [memory.open(actor) for actor in ("page", "worker")]
        self.taken: list[Taken] = []
        self._steps, self._tokens = count(), iter("")
        self._tokens_made = mock.patch("secrets.token_hex", self._token)
        self._tokens_made.start()

    def teardown(self) -> None:
        try:
            self.look()
        finally:
            for one in self.reals:
                one.close()
            self._tokens_made.stop()
            self._runner.close()
            self._folder.cleanup()

    def _token(self, _: int) -> str:
        return next(self._tokens)

    # Asking both

    def run(self, asked: Coroutine[Any, Any, T]) -> T:
        return self._runner.run(asked)

    @staticmethod
    def answer(ask: Callable[[], Any]) -> Any:
        """What it says, or the fault that it finds."""
        try:
            return ask()
        except OutboxRestored as error:
            return type(error)  # its words name the outbox
        except OutboxError as error:
            return type(error), str(error)

    def both(self, ask: Callable[[Outbox], Any], by: int = 0) -> Any:
        """The one answer that they give; Message-IDs are made of the same letters."""
        step = next(self._steps)
        self._tokens = (f"{step:08x}{number:08x}" for number in count())
        model = self.answer(lambda: ask(self.models[by]))
        self._tokens = (f"{step:08x}{number:08x}" for number in count())
        real = self.answer(lambda: ask(self.reals[by]))
        assert shown(real) == shown(model)
        return model

    def take(self, owner: str, **how: Any) -> None:
        def claim(outbox: Outbox, **how: Any) -> Any:
            return self.answer(lambda: self.run(outbox.claim(owner, self.now, LEASE, **how)))

        real = claim(self.reals[1], **how)
        self.same(owner, real, lambda **only: claim(self.models[1], **how, **only), "only" in how)

    def same(
        self,
        owner: str,
        real: Any,
        ask_model: Callable[..., Any],
        named: bool = False,
    ) -> None:
        """Whose turn it is PostgreSQL decides by another rule: any that may be claimed will do."""
        by_turns = self.harness.takes_turns and isinstance(real, Claimed) and not named
        model = ask_model(only=real.id) if by_turns and isinstance(real, Claimed) else ask_model()
        assert shown(real) == shown(model)
        if isinstance(real, Claimed) and isinstance(model, Claimed):
            assert named or self.harness.takes_turns or real.due_at <= self.now
            self.taken.append(Taken(owner, model, real))

    # What may be done

    @initialize(
        some=st.lists(numbers, min_size=3, max_size=8),
        to=addresses,
        ended=st.lists(outcomes, max_size=4),
    )
    def begin(self, some: list[int], to: str, ended: list[Outcome]) -> None:
        """With some in each status, which chance alone makes too few of."""
        self.queue(some, to)
        for number, outcome in enumerate(ended, 1):
            self.attempt(number, outcome, hold=False)

    @rule(some=st.lists(numbers, min_size=1, max_size=4), to=addresses)
    def queue(self, some: list[int], to: str) -> None:
        self.both(lambda outbox: outbox.queue([a_submission(one, to) for one in some], self.now))

    @rule(jump=jumps)
    def time_goes_by(self, jump: timedelta) -> None:
        """Whoever has a link says so now and then: only in a file it lapses else."""
        self.now += jump
        for link in self.models[1].links(self.now, is_gone=nobody):
            self.keep_link(link.relay, link.owner)

    @rule(jump=jumps)
    def clock_is_put_back(self, jump: timedelta) -> None:
        """Then a worker mends first what that has put off, as it does at the start of each run."""
        self.now -= jump
        self.recover(None, False)

    @rule(owner=st.sampled_from(OWNERS))
    def claim(self, owner: str) -> None:
        self.take(owner)

    @rule(
        owner=st.sampled_from(OWNERS),
        every=st.sampled_from([None, MINUTE / 3, 2 * MINUTE]),
        pace=st.none() | st.tuples(relays, st.sampled_from([MINUTE / 2, 3 * MINUTE])),
        only=st.none() | st.integers(1, 9),
    )
    def claim_at_a_pace(self, owner: str, only: int | None, **paces: Any) -> None:
        self.take(owner, **paces | ({} if only is None else {"only": only}))

    @rule(owner=st.sampled_from(OWNERS), number=st.integers(1, 9))
    def claim_by_name(self, owner: str, number: int) -> None:
        self.take(owner, only=number)

    def one_taken(self, which: int) -> Taken:
        return self.taken[which % len(self.taken)]

    @precondition(lambda self: self.taken)
    @rule(
        which=st.integers(0, 20),
        outcome=outcomes,
        jitter=st.sampled_from([0.0, 1.0, -0.5]),
        hold=st.booleans(),
    )
    def record(self, which: int, outcome: Outcome, jitter: float, hold: bool) -> None:
        """Also once others have it, or a second time."""
        one = self.one_taken(which)

        def ask(outbox: Outbox, claimed: Claimed) -> Any:
            return self.answer(
                lambda: self.run(
                    outbox.record(
                        claimed,
                        one.owner,
                        outcome,
                        self.now,
                        POLICY,
                        jitter=jitter,
                        hold_uncertain=hold,
                    )
                )
            )

        assert ask(self.reals[1], one.real) == ask(self.models[1], one.model)

    @rule(number=st.integers(1, 9), outcome=outcomes, hold=st.booleans())
    def attempt(self, number: int, outcome: Outcome, hold: bool) -> None:
        """As a worker does: so that there is something to decide on."""
        before = len(self.taken)
        self.take(OWNERS[0], only=number)
        if len(self.taken) > before:
            self.record(before, outcome, 0.0, hold)

    @precondition(lambda self: self.taken)
    @rule(which=st.integers(0, 20), outcome=outcomes)
    def record_and_claim(self, which: int, outcome: Outcome) -> None:
        one = self.one_taken(which)
        real = self.answer(
            lambda: self.run(
                self.reals[1].record_and_claim(
                    one.real, one.owner, outcome, self.now, POLICY, LEASE
                )
            )
        )
        model = self.models[1]
        if real is OutboxRestored:
            with pytest.raises(OutboxRestored):
                self.run(
                    model.record_and_claim(one.model, one.owner, outcome, self.now, POLICY, LEASE)
                )
            return
        status, following = real
        said = self.answer(
            lambda: self.run(model.record(one.model, one.owner, outcome, self.now, POLICY))
        )
        assert said == status if status else isinstance(said, tuple)
        self.same(
            one.owner,
            following,
            lambda **only: self.run(model.claim(one.owner, self.now, LEASE, **only)),
        )

    @precondition(lambda self: self.taken)
    @rule(which=st.integers(0, 20))
    def release(self, which: int) -> None:
        one = self.taken.pop(which % len(self.taken))
        self.run(self.reals[1].release(one.real, one.owner))
        self.run(self.models[1].release(one.model, one.owner))

    @rule(gone=st.sampled_from([None, "one", "two"]), hold=st.booleans())
    def recover(self, gone: str | None, hold: bool) -> None:
        self.both(
            lambda outbox: self.run(
                outbox.recover(self.now, POLICY, is_gone=those_of(gone), hold_uncertain=hold)
            ),
            by=1,
        )

    @precondition(lambda self: self.taken)
    @rule(which=st.integers(0, 20), hold=st.booleans())
    def take_over(self, which: int, hold: bool) -> None:
        """Another has it by then; what the first one says, he may say yet."""
        one = self.one_taken(which)
        self.recover(one.owner.partition("/")[0], hold)
        self.take("two/0" if one.owner != "two/0" else "one/0", only=one.real.id)

    @rule(reference=references)
    def retry(self, reference: str) -> None:
        self.both(lambda outbox: outbox.retry(reference, self.now))

    @rule(reference=references)
    def cancel(self, reference: str) -> None:
        self.both(lambda outbox: outbox.cancel(reference, self.now))

    @rule(reference=references)
    def acknowledge(self, reference: str) -> None:
        self.both(lambda outbox: outbox.acknowledge(reference, TODAY, self.now))

    @rule(age=ages, case_reference=cases, which=st.integers(0, 2))
    def forget(self, age: timedelta, case_reference: str, which: int) -> None:
        before = self.now - age
        ways: list[Callable[[Outbox], int]] = [
            lambda outbox: outbox.purge(before, self.now),
            lambda outbox: outbox.purge_unfinished(before, self.now),
            lambda outbox: outbox.erase(case_reference, self.now),
        ]
        self.both(ways[which])

    @rule(agency=agencies, by=st.sampled_from(["Jo", "Sam", ""]), case_reference=cases)
    def write_down(self, agency: str, by: str, case_reference: str) -> None:
        """That an address was verified, or is no more; and what was done beside the outbox."""
        address = f"{agency}@council.test"
        if by:
            one = Verification(agency, address, TODAY, by)
            self.both(lambda outbox: outbox.verify(one, self.now))
        else:
            self.both(lambda outbox: outbox.withdraw(agency, address, self.now))
        self.both(lambda outbox: outbox.note("retention", {"n": 1}, self.now))
        self.both(
            lambda outbox: outbox.note("exported", {}, self.now, case_reference=case_reference)
        )

    # Agencies that are held

    @rule(agency=agencies, why=st.sampled_from(Reason))
    def hold(self, agency: str, why: Reason) -> None:
        self.both(lambda outbox: outbox.hold(agency, why, self.now))

    @rule(agency=agencies, to=addresses, uncertain=st.booleans(), failed=st.booleans())
    def reroute(self, agency: str, to: str, uncertain: bool, failed: bool) -> None:
        rerouting = Rerouting(
            agency, to, accepted_unverified=failed, with_uncertain=uncertain, with_failed=failed
        )
        self.both(lambda outbox: list(outbox.reroute(rerouting, self.now)))

    @rule(agency=agencies, to=st.none() | addresses)
    def resume(self, agency: str, to: str | None) -> None:
        self.both(lambda outbox: outbox.resume(agency, to, self.now))

    @rule(agency=agencies, to=addresses)
    def release_all(self, agency: str, to: str) -> None:
        """As a person does it: whatever waits goes to one address."""
        self.reroute(agency, to, uncertain=True, failed=False)
        self.resume(agency, to)

    @rule(
        number=st.integers(1, 9),
        outcome=outcomes,
        to=addresses,
        uncertain=st.booleans(),
        failed=st.booleans(),
    )
    def hold_during_an_attempt(
        self, number: int, outcome: Outcome, to: str, uncertain: bool, failed: bool
    ) -> None:
        """What was under way is finished, and then released to whatever address it has by then."""
        before = len(self.taken)
        self.take(OWNERS[0], only=number)
        if len(self.taken) == before:
            return
        agency = self.taken[before].model.agency
        self.hold(agency, Reason.WRONG_ADDRESS)
        self.resume(agency, to)  # not if it is under way to another
        self.record(before, outcome, 0.0, False)
        self.take(OWNERS[0], only=number)
        self.reroute(agency, to, uncertain, failed)
        self.resume(agency, to)

    # Relays

    @rule(relay=relays, owner=owners, most=st.integers(1, 2), gone=st.sampled_from([None, "one"]))
    def take_link(self, relay: str, owner: str, most: int, gone: str | None) -> None:
        self.both(
            lambda outbox: self.run(
                outbox.take_link(relay, owner, "desk", most, self.now, is_gone=those_of(gone))
            ),
            by=1,
        )

    def keep_link(self, relay: str, owner: str) -> None:
        self.both(lambda outbox: self.run(outbox.keep_link(relay, owner, self.now)), by=1)

    @rule(relay=relays, owner=owners)
    def give_link_back(self, relay: str, owner: str) -> None:
        self.both(lambda outbox: self.run(outbox.give_link_back(relay, owner)), by=1)

    @rule(
        relay=relays,
        fault=st.sampled_from(
            [
                None,
                RelayFault("connect"),
                RelayFault("sender", 421),
                RelayFault("login", 535, refused_login=True),
            ]
        ),
        on_trial=st.booleans(),
        late=st.integers(0, 1),
    )
    def use_a_relay(self, relay: str, fault: RelayFault | None, on_trial: bool, late: int) -> None:
        if on_trial:
            state = self.model.relay_states(self.now).get(relay, RelayState(relay))
            known = replace(state, turn=state.turn - late)
            self.both(lambda outbox: self.run(outbox.take_trial(known, self.now)), by=1)
        self.both(
            lambda outbox: self.run(
                outbox.note_well(relay, self.now)
                if fault is None
                else outbox.note_fault(relay, fault, self.now, on_trial=on_trial)
            ),
            by=1,
        )

    # A restored copy

    @rule(only_say=st.booleans())
    def take_for_copy(self, only_say: bool) -> None:
        """Whoever delivers sees it when it looks round next."""
        self.both(lambda outbox: outbox.take_for_copy(self.now, only_say=only_say))
        self.recover(None, False)

    @rule()
    def lost_nothing(self) -> None:
        self.both(lambda outbox: outbox.lost_nothing(self.now))

    @rule(
        taken=st.none() | st.sets(st.integers(1, 15), max_size=6),
        named=st.sets(st.integers(1, 15), max_size=3),
        complete_for=st.none() | jumps,
        only_say=st.booleans(),
    )
    def bring_in_order(
        self,
        taken: set[int] | None,
        named: set[int],
        complete_for: timedelta | None,
        only_say: bool,
    ) -> None:
        ids = {one.id: one.message_id for one in self.models[0].held()}
        ids |= {13: "<R-1.13@police.test>", 14: "<R-9.14@police.test>"}

        def ask(outbox: Outbox) -> Any:
            evidence = None
            if taken is not None:
                known = {ids[one] for one in taken if one in ids}
                log = RelayLog(known, known | {ids[one] for one in named if one in ids}, 1)
                since = None if complete_for is None else self.now - complete_for
                if since is not None:
                    log.taken.update(outbox.surely_relayed(since))
                evidence = evidence_of(outbox, log, since)
            return settle(outbox, outbox.copied(), evidence, self.now, only_say=only_say)

        self.both(ask)

    # What must hold

    @invariant()
    def the_account_is_equal(self) -> None:
        self.both(lambda outbox: outbox.held(), by=1)
        self.both(lambda outbox: list(outbox.audit()))

    @rule()
    def look(self) -> None:
        """At all that there is to be seen."""
        for by in (0, 1):
            self.both(lambda outbox: told(outbox, self.now), by)
        assert self.recorded() == self.model.recorded()
        assert list(verify(self.reals[0].audit())) == []

    @property
    def model(self) -> MemoryOutbox:
        model = self.models[0]
        assert isinstance(model, MemoryOutbox)
        return model

    def recorded(self) -> tuple[Verification, ...]:
        if self.harness.server is None:
            return read_verified(self.harness.place)
        return PostgresVerified(self.harness.server.database(self.harness.database)).read()


def told(outbox: Outbox, now: datetime) -> dict[str, Any]:
    held = outbox.held()
    return {
        "page": outbox.held(limit=2, offset=1),
        "waiting": outbox.held(status=DeliveryStatus.QUEUED, case_reference="CASE-1"),
        "counts": outbox.counts(),
        "oldest due": outbox.oldest_due(now),
        "attempts": {one.id: outbox.attempts(one.id) for one in held},
        "contents": {one.id: outbox.content(one.id) for one in held},
        "known": outbox.known(key(number, to) for number in range(8) for to in ADDRESSES),
        "unanswered": outbox.unacknowledged(TODAY + timedelta(days=1)),
        "purgeable": outbox.purgeable(now - 5 * MINUTE),
        "unfinished": outbox.unfinished(now - 5 * MINUTE),
        "entries": outbox.newest_entries(limit=5, offset=1),
        "of case": outbox.newest_entries("CASE-1", limit=3),
        "count": (outbox.count_entries(), outbox.count_entries("CASE-2")),
        "noted": outbox.last_noted("retention"),
        "holds": outbox.holds(),
        "addressed": {one: outbox.addressed(one) for one in AGENCIES},
        "disclosed": outbox.disclosed("a", ADDRESSES[0], limit=5),
        "links": sorted(outbox.links(now, is_gone=nobody), key=_of_link),
        "relays": outbox.relay_states(now),
        "copied": shown(outbox.copied()),
        "open": outbox.unsettled(waiting=True, limit=9),
        "to decide": outbox.unsettled(waiting=False, after=1, limit=9),
        "relayed": outbox.surely_relayed(NOW - timedelta(hours=1), now),
        "unknown": outbox.unknown([f"<R-{one % 5}.{one}@police.test>" for one in range(12)]),
    }


def _of_link(link: RelayLink) -> tuple[str, str]:
    return link.relay, link.owner


@pytest.mark.parametrize("kind", DURABLE)
def test_it_does_and_tells_what_the_model_does_and_tells(kind: str) -> None:
    machine = type(f"Beside_{kind}", (Beside,), {"kind": kind})
    examples = _MORE or {"sqlite": 60, "postgres": 15}[kind]
    run_state_machine_as_test(
        machine,
        settings=settings(
            max_examples=examples,
            stateful_step_count=60 if _MORE else 40,
            derandomize=not _MORE,
            deadline=None,
            database=None,
            print_blob=bool(_MORE),
            report_multiple_bugs=False,
            # To make an example small takes minutes, which a run of all tests has not.
            phases=[Phase.generate, Phase.shrink] if _MORE else [Phase.generate],
            suppress_health_check=list(HealthCheck),
        ),
    )
