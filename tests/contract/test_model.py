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
from pathlib import Path
from typing import Any, ClassVar, TypeVar

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
from referrals.errors import OutboxError
from referrals.outboxes.memory import MemoryOutbox
from referrals.outboxes.postgres_verified import PostgresVerified
from referrals.outboxes.verified import read_verified
from referrals.queueing import Claimed, NotYet, Outcome
from referrals.verification import Verification
from tests.conftest import NOW, TODAY
from tests.outboxes import DURABLE, Harness, Outbox
from tests.queued import submission

MINUTE = timedelta(minutes=1)
LEASE = 20 * MINUTE
POLICY = RetryPolicy(longest_wait=10 * MINUTE, give_up_after=timedelta(hours=1))
OWNERS = ("one/0", "one/1", "two/0")
AGENCIES = ("a", "b", "c")
_MORE = int(os.environ.get("REFERRALS_MODEL_EXAMPLES", "0"))

T = TypeVar("T")

numbers = st.integers(0, 7)
references = st.integers(0, 3).map(lambda number: f"R-{number}")
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
    relay=st.sampled_from(["relay:25", "other:587"]),
    stage=st.sampled_from(["", "sender", "content"]),
    reply=st.sampled_from(
        [None, Reply(250, "2.0.0", "Ok"), Reply(451, "4.7.1", "a\0b"), Reply(550, None, "\udcff")]
    ),
    words=st.sampled_from(["", "the link was lost"]),
)


def a_submission(number: int) -> Submission:
    """Of one reference there are several, as of one agency and of one case."""
    return submission(
        number,
        reference=f"R-{number % 4}",
        agency=AGENCIES[number % 3],
        case_reference=f"CASE-{number % 3}",
        acknowledge_by=TODAY + timedelta(days=number % 2),
    )


@dataclass(frozen=True)
class Taken:
    """A message that both have claimed."""

    owner: str
    model: Claimed
    real: Claimed


def shown(answer: Any) -> Any:
    """What must be equal: the number of an attempt is each outbox's own affair."""
    return replace(answer, attempt=0) if isinstance(answer, Claimed) else answer


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

    def teardown(self) -> None:
        try:
            self.look()
        finally:
            for one in self.reals:
                one.close()
            self._runner.close()
            self._folder.cleanup()

    # Asking both

    def run(self, asked: Coroutine[Any, Any, T]) -> T:
        return self._runner.run(asked)

    @staticmethod
    def answer(ask: Callable[[], Any]) -> Any:
        """What it says, or the fault that it finds."""
        try:
            return ask()
        except OutboxError as error:
            return type(error), str(error)

    def both(self, ask: Callable[[Outbox], Any], by: int = 0) -> Any:
        """The one answer that they give."""
        model = self.answer(lambda: ask(self.models[by]))
        real = self.answer(lambda: ask(self.reals[by]))
        assert real == model
        return model

    def take(self, owner: str, **how: Any) -> None:
        def claim(outbox: Outbox, **how: Any) -> Claimed | NotYet | None:
            return self.run(outbox.claim(owner, self.now, LEASE, **how))

        real = claim(self.reals[1], **how)
        self.same(owner, real, lambda **only: claim(self.models[1], **how, **only), "only" in how)

    def same(
        self,
        owner: str,
        real: Claimed | NotYet | None,
        ask_model: Callable[..., Claimed | NotYet | None],
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

    @initialize(some=st.lists(numbers, min_size=3, max_size=8))
    def begin(self, some: list[int]) -> None:
        self.queue(some)

    @rule(some=st.lists(numbers, min_size=1, max_size=4))
    def queue(self, some: list[int]) -> None:
        self.both(lambda outbox: outbox.queue([a_submission(one) for one in some], self.now))

    @rule(jump=jumps)
    def time_goes_by(self, jump: timedelta) -> None:
        self.now += jump

    @rule(jump=jumps)
    def clock_is_put_back(self, jump: timedelta) -> None:
        """Then a worker mends first what that has put off, as it does at the start of each run."""
        self.now -= jump
        self.recover(None, False)

    @rule(owner=st.sampled_from(OWNERS))
    def claim(self, owner: str) -> None:
        self.take(owner)

    @rule(owner=st.sampled_from(OWNERS), every=st.sampled_from([MINUTE / 3, 2 * MINUTE]))
    def claim_at_a_pace(self, owner: str, every: timedelta) -> None:
        self.take(owner, every=every)

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
        status, following = self.run(
            self.reals[1].record_and_claim(one.real, one.owner, outcome, self.now, POLICY, LEASE)
        )
        model = self.models[1]
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
        def is_gone(owner: str) -> bool:
            return owner.partition("/")[0] == gone

        self.both(
            lambda outbox: self.run(
                outbox.recover(self.now, POLICY, is_gone=is_gone, hold_uncertain=hold)
            )
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

    @rule(age=ages)
    def purge(self, age: timedelta) -> None:
        self.both(lambda outbox: outbox.purge(self.now - age, self.now))

    @rule(age=ages)
    def purge_unfinished(self, age: timedelta) -> None:
        self.both(lambda outbox: outbox.purge_unfinished(self.now - age, self.now))

    @rule(case_reference=cases)
    def erase(self, case_reference: str) -> None:
        self.both(lambda outbox: outbox.erase(case_reference, self.now))

    @rule(agency=st.sampled_from(AGENCIES), by=st.sampled_from(["Jo", "Sam"]))
    def verify_address(self, agency: str, by: str) -> None:
        one = Verification(agency, f"{agency}@council.test", TODAY, by)
        self.both(lambda outbox: outbox.verify(one, self.now))

    @rule(agency=st.sampled_from(AGENCIES))
    def withdraw_address(self, agency: str) -> None:
        self.both(lambda outbox: outbox.withdraw(agency, f"{agency}@council.test", self.now))

    @rule(action=st.sampled_from(["retention", "exported"]), case_reference=cases)
    def note(self, action: str, case_reference: str) -> None:
        self.both(
            lambda outbox: outbox.note(action, {"n": 1}, self.now, case_reference=case_reference)
        )

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
        "known": outbox.known(f"key {number}" for number in range(8)),
        "unanswered": outbox.unacknowledged(TODAY + timedelta(days=1)),
        "purgeable": outbox.purgeable(now - 5 * MINUTE),
        "unfinished": outbox.unfinished(now - 5 * MINUTE),
        "entries": outbox.newest_entries(limit=5, offset=1),
        "of case": outbox.newest_entries("CASE-1", limit=3),
        "count": (outbox.count_entries(), outbox.count_entries("CASE-2")),
        "noted": outbox.last_noted("retention"),
    }


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
