"""One relay made of several: a link goes to the first that is well and has a free place.

One that can't be used is left alone for a while by all processes on the outbox, then tried again by
one lane; `relay_health` says for how long. The worker tells what it meets over a link by the
exception that it leaves the session's block with: RelayRefused, or NoLink where the relay takes no
message at all just now. Anything else that becomes of a message says nothing of its relay.

A relay whose places are all taken is not ill: lanes wait for a place. Otherwise the second relay
would be in use whenever the first is busy, and its limit would limit nothing.
"""

from __future__ import annotations

import asyncio
import logging
import re
import secrets
import socket
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from typing import TypeVar

from referrals.delivery import Outgoing, Receipt
from referrals.errors import (
    DeliveryError,
    OutboxError,
    PermanentDeliveryError,
    RelayRefused,
    TransientDeliveryError,
)
from referrals.ports import Links
from referrals.relay_health import RelayFault, RelayState
from referrals.settings import is_loopback
from referrals.worker import Elsewhere, NoLink, NoPlace, Relay, Renew, Session, is_gone, owner_name

log = logging.getLogger(__name__)

_KEPT_FOR = timedelta(minutes=5)
_SUBSTITUTE_FOR = timedelta(minutes=1)
_SUBSTITUTE_MESSAGES = 100
"""After so much, a link to a relay that is not the first ends, since an earlier may be well."""
_BROKEN_IN_A_ROW = 3
_CLOSING = 421
_FIRST_KEY = re.compile(
    r"\brelay\.(host|port|security|username|password|ca_file|local_hostname)\b", re.ASCII
)

Fault = RelayRefused | TransientDeliveryError
F = TypeVar("F", bound=DeliveryError)


@dataclass(frozen=True)
class Limits:
    """For all processes on one outbox together; 0 is no limit."""

    connections: int = 0
    rate_per_minute: int = 0


@dataclass(eq=False)
class Choice:
    """One of the relays; `key` is what the settings call it, `shared_as` what the outbox does."""

    key: str
    relay: Relay
    shared_as: str
    limits: Limits = Limits()
    open: int = 0  # links of ours that are up, or about to be
    up: int = 0
    refused_at: int = 0  # how many were up when it allowed no more
    broken: int = 0  # links in a row that took nothing and were lost
    failed: int = 0
    last: Fault | None = None
    opening: asyncio.Lock = field(default_factory=asyncio.Lock)

    def has_link(self) -> bool:
        return self.up > 0

    @property
    def every(self) -> timedelta | None:
        rate = self.limits.rate_per_minute
        return timedelta(minutes=1) / rate if rate else None


def shared_name(name: str, host: str | None) -> str:
    """What all machines call a relay; one on the machine itself is another on each."""
    return f"{name} on {socket.gethostname()}" if host and is_loopback(host) else name


@dataclass(frozen=True)
class _Try:
    """A relay to be tried, again if it is `due` for that, or because nothing better is left.

    `failed` is how often it had failed before we asked whether it is well.
    """

    choice: Choice
    failed: int
    due: RelayState | None = None
    last_resort: bool = False


class Failover:
    """`worker.Relay` over several, the preferred first. To be made in the loop that it runs in."""

    def __init__(
        self,
        choices: Sequence[Choice],
        outbox: Links,
        now: Callable[[], datetime],
        tell: Callable[[str], None] = log.warning,
    ) -> None:
        self._choices = tuple(choices)
        self._outbox = outbox
        self._now = now
        self._tell = tell
        self._told: set[str] = set()

    @property
    def name(self) -> str:
        return self._choices[0].relay.name

    @asynccontextmanager
    async def session(self) -> AsyncIterator[Session]:
        """A link to the first relay that gives one.

        Raises:
            NoPlace: all links that the relay may have are in use.
            RelayRefused, TransientDeliveryError: no relay is left.
            Elsewhere: from within the block; it was left over what another relay may not have.
        """
        faults: list[Fault] = []
        tries = await self._tries()
        while tries:
            tried = tries.pop(0)
            choice, on_trial = tried.choice, False
            if tried.due is not None:
                on_trial = await self._outbox.take_trial(tried.due, self._now())
                if not on_trial:  # another lane is at it
                    if not tried.due.refused_login:
                        tries.append(replace(tried, due=None, last_resort=True))
                    continue
            async with AsyncExitStack() as stack:
                try:
                    link = await self._open(stack, tried, on_trial=on_trial)
                except (RelayRefused, TransientDeliveryError) as error:
                    faults.append(error)
                    continue
                except NoPlace:
                    if on_trial:
                        continue
                    raise
                try:
                    yield link
                except (RelayRefused, NoLink) as error:
                    fault = RelayFault.of(error.fault if isinstance(error, NoLink) else error)
                    await self._leave_alone(choice, fault, on_trial=on_trial and link.is_in_doubt)
                    if len(self._choices) == 1 or tried.last_resort:
                        raise
                    raise Elsewhere from None
                except Renew:
                    await self._ended(choice, link, on_trial=on_trial)
                    raise
                await self._ended(choice, link, on_trial=False)
                return
        raise await self._none_left(faults)

    # Which

    async def _tries(self) -> list[_Try]:
        """Those that are well or due, then, if there is nothing else, those left alone.

        Not one that refused the login: it is tried when its time has come, or a person says so.
        """
        tries = [_Try(choice, choice.failed) for choice in self._choices]
        if len(tries) == 1:
            return tries
        states = await self._outbox.recall_relays(self._now())
        first, later = [], []
        for one in tries:
            state = states.get(one.choice.shared_as)
            self._tell_of(one.choice, state)
            if state is None or state.fault is None:
                first.append(one)
            elif not state.is_left_alone(self._now()):
                first.append(replace(one, due=state))
            elif not state.refused_login:
                later.append(replace(one, last_resort=True))
        return first + later

    async def _none_left(self, faults: Sequence[Fault]) -> Fault:
        """The fault that says so: a refusal only if all of them refused us."""
        if len(self._choices) == 1:
            return faults[0]
        states = await self._outbox.recall_relays(self._now())
        asleep = [
            f"{choice.relay.name} {state.fault.words}, and is left alone until "
            f"{state.until:%H:%M} UTC. Once that is mended, `referrals relay check` takes it into "
            "use at once."
            for choice in self._choices
            if (state := states.get(choice.shared_as)) and state.fault and state.refused_login
            if not any(choice.relay.name in str(fault) for fault in faults)
        ]
        text = " ".join(("No relay can be used just now.", *map(str, faults), *asleep))
        passing = [fault for fault in faults if not isinstance(fault, RelayRefused)]
        if passing or not (faults or asleep):
            stage, reply = (passing[0].stage, passing[0].reply) if passing else ("connect", None)
            return TransientDeliveryError(text, stage=stage, reply=reply)
        return RelayRefused(text, stage=faults[0].stage if faults else "login")

    # A link

    async def _open(self, stack: AsyncExitStack, tried: _Try, *, on_trial: bool) -> _Through:
        """Raises what `session` does, having told of it."""
        choice, limits = tried.choice, tried.choice.limits
        if limits.rate_per_minute and choice.open >= limits.rate_per_minute:
            # More would only keep links open for longer than a relay bears with.
            raise NoPlace(choice.relay.name, lambda: _is(choice.open < limits.rate_per_minute))
        choice.open += 1
        stack.callback(_one_less_open, choice)
        owner = ""
        if limits.connections:
            owner = await self._take_place(stack, choice)
        try:
            session = await self._connect(stack, tried)
        except (RelayRefused, TransientDeliveryError) as error:
            if _allows_no_more(choice, error):
                choice.refused_at = choice.up
                raise NoPlace(choice.relay.name, lambda: _has_fewer(choice)) from None
            await self._leave_alone(choice, RelayFault.of(error), on_trial=on_trial)
            raise
        choice.up += 1
        stack.callback(_one_less_up, choice)
        return _Through(
            self,
            choice,
            session,
            owner,
            is_substitute=choice is not self._choices[0],
            is_in_doubt=on_trial or tried.last_resort,
        )

    async def _take_place(self, stack: AsyncExitStack, choice: Choice) -> str:
        most, relay = choice.limits.connections, choice.shared_as
        owner = f"{owner_name()}/{secrets.token_hex(4)}"
        taken = await self._outbox.take_link(
            relay, owner, socket.gethostname(), most, self._now(), is_gone=is_gone
        )
        if not taken:

            async def is_free() -> bool:
                links = await self._outbox.count_links(relay, self._now(), is_gone=is_gone)
                return links < most

            raise NoPlace(choice.relay.name, is_free)

        async def give_back() -> None:
            with suppress(OutboxError):  # then it is with whatever is written next
                await self._outbox.give_link_back(relay, owner)

        stack.push_async_callback(give_back)
        return owner

    async def _connect(self, stack: AsyncExitStack, tried: _Try) -> Session:
        """The first link by one lane alone: a wrong password is tried once, not once a lane."""
        choice = tried.choice
        async with AsyncExitStack() as alone:
            if not choice.has_link():
                await alone.enter_async_context(choice.opening)
                if choice.failed != tried.failed and choice.last is not None:
                    raise _again(choice.last)
                if choice.has_link():
                    await alone.aclose()
            try:
                return await stack.enter_async_context(choice.relay.session())
            except (RelayRefused, TransientDeliveryError) as error:
                fault = of_key(error, choice.key)
            choice.failed, choice.last = choice.failed + 1, fault
        raise _again(fault)

    # Health

    async def _leave_alone(self, choice: Choice, fault: RelayFault, *, on_trial: bool) -> None:
        if len(self._choices) == 1:
            return
        state = await self._outbox.note_fault(
            choice.shared_as, fault, self._now(), on_trial=on_trial
        )
        self._tell_of(choice, state)

    async def _ended(self, choice: Choice, link: _Through, *, on_trial: bool) -> None:
        """A link was used to its end, or broke: a relay that breaks one after another is ill."""
        await link.settle()
        if link.works or not link.messages:
            choice.broken = 0
            return
        choice.broken += 1
        if on_trial or choice.broken >= _BROKEN_IN_A_ROW:
            choice.broken = 0
            await self._leave_alone(choice, RelayFault("link"), on_trial=on_trial)

    async def is_well(self, choice: Choice) -> None:
        await self._outbox.note_well(choice.shared_as, self._now())
        self._tell_of(choice, None)

    def _tell_of(self, choice: Choice, state: RelayState | None) -> None:
        """Each failover once, and each return."""
        name = choice.relay.name
        if state is not None and state.fault is not None and state.until is not None:
            if name not in self._told:
                self._told.add(name)
                self._tell(
                    f"The relay {name} {state.fault.words}. It is left alone until "
                    f"{state.until:%H:%M:%S} UTC, and the others are used."
                )
        elif name in self._told:
            self._told.discard(name)
            self._tell(f"The relay {name} is used again.")

    async def keep_place(self, choice: Choice, owner: str) -> bool:
        return await self._outbox.keep_link(choice.shared_as, owner, self._now())

    def now(self) -> datetime:
        return self._now()


class _Through:
    """A session through one of them; `worker.Routed` says what the worker makes of it."""

    def __init__(
        self,
        failover: Failover,
        choice: Choice,
        session: Session,
        owner: str,
        *,
        is_substitute: bool,
        is_in_doubt: bool,
    ) -> None:
        self.relay = choice.relay.name
        self.pace = (choice.shared_as, choice.every) if choice.every else None
        self._failover = failover
        self._choice = choice
        self._session = session
        self._owner = owner
        self._is_substitute = is_substitute
        self.is_in_doubt = is_in_doubt  # until it is said to be well
        self.works = False
        self._opened = self._kept = failover.now()
        self.messages = 0

    @property
    def is_spent(self) -> bool:
        return self._is_substitute and (
            self.messages >= _SUBSTITUTE_MESSAGES
            or not timedelta(0) <= self._failover.now() - self._opened < _SUBSTITUTE_FOR
        )

    async def submit(self, outgoing: Outgoing) -> Receipt:
        """As any session's.

        Raises:
            Renew: our place was taken away, since we were silent for so long.
        """
        await self.settle()
        if not await self._is_kept():
            raise Renew
        self.messages += 1
        try:
            receipt = await self._session.submit(outgoing)
        except DeliveryError as error:
            self.works = self.works or _is_of_the_message(error)
            raise
        self.works = True
        return receipt

    async def reset(self) -> None:
        await self._session.reset()

    async def settle(self) -> None:
        """Say that the relay is well, once it has shown it: never between a message and its record.

        An outbox that can't be written shows that when the outcome is recorded.
        """
        if self.is_in_doubt and self.works:
            with suppress(OutboxError):
                await self._failover.is_well(self._choice)
                self.is_in_doubt = False

    async def _is_kept(self) -> bool:
        now = self._failover.now()
        if not self._owner or timedelta(0) <= now - self._kept < _KEPT_FOR:
            return True
        kept = True
        with suppress(OutboxError):
            kept = await self._failover.keep_place(self._choice, self._owner)
            self._kept = now
        return kept


def _one_less_open(choice: Choice) -> None:
    choice.open -= 1


def _one_less_up(choice: Choice) -> None:
    choice.up -= 1


async def _is(true: bool) -> bool:
    return true


async def _has_fewer(choice: Choice) -> bool:
    """Whether a link may be had again by a relay that allowed no more than were up."""
    return choice.up < choice.refused_at


def _allows_no_more(choice: Choice, error: Fault) -> bool:
    """Whether it refuses a link because it has enough of them, for all we can tell.

    It said so, and others of ours are up: if it is ill, these will find out.
    """
    return choice.up > 0 and error.reply is not None and error.stage in ("connect", "greeting")


def _is_of_the_message(error: DeliveryError) -> bool:
    """Whether a relay refused a message as one that is well does."""
    if error.reply is None or error.reply.code == _CLOSING or isinstance(error, RelayRefused):
        return False
    return error.stage != "sender" or isinstance(error, PermanentDeliveryError)


def of_key(error: F, key: str) -> F:
    """The same fault, naming the settings of the relay that had it."""
    text = str(error)
    if key != "relay":
        text = _FIRST_KEY.sub(rf"{key}.\1", text)
    return type(error)(text, stage=error.stage, reply=error.reply)


def _again(error: F) -> F:
    """To each lane its own: an exception that several raise grows in each."""
    return type(error)(str(error), stage=error.stage, reply=error.reply)
