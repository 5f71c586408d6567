"""Links to relays, and the health of relays, in memory."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime

from referrals.outboxes.memory.state import MemoryPlace, State
from referrals.relay_health import (
    RelayFault,
    RelayLink,
    RelayState,
    after_fault,
    on_trial,
    well_again,
)


class MemoryLinks(MemoryPlace):
    """`ports.Links`. All who have a place are in this process, so no lease need end."""

    async def take_link(
        self,
        relay: str,
        owner: str,
        machine: str,
        most: int,
        now: datetime,
        *,
        is_gone: Callable[[str], bool],
    ) -> bool:
        def run(state: State) -> bool:
            for of, other in list(state.links):
                if of == relay and (other == owner or is_gone(other)):
                    del state.links[of, other]
            if sum(of == relay for of, _ in state.links) >= most:
                return False
            state.links[relay, owner] = RelayLink(relay, owner, machine, now)
            return True

        return await self._await(run)

    async def keep_link(self, relay: str, owner: str, now: datetime) -> bool:
        return await self._await(lambda state: (relay, owner) in state.links)

    async def give_link_back(self, relay: str, owner: str) -> None:
        await self._await(lambda state: state.links.pop((relay, owner), None))

    async def count_links(
        self, relay: str, now: datetime, *, is_gone: Callable[[str], bool]
    ) -> int:
        return await self._await(
            lambda state: sum(of == relay and not is_gone(owner) for of, owner in state.links)
        )

    def links(self, now: datetime, *, is_gone: Callable[[str], bool]) -> list[RelayLink]:
        there = (one for one in self._state.links.values() if not is_gone(one.owner))
        return sorted(there, key=lambda one: (one.relay, one.machine, one.since))

    # Health

    async def recall_relays(self, now: datetime) -> dict[str, RelayState]:
        return await self._await(lambda state: dict(state.relays))

    def relay_states(self, now: datetime) -> dict[str, RelayState]:
        return dict(self._state.relays)

    async def take_trial(self, state: RelayState, now: datetime) -> bool:
        def run(kept: State) -> bool:
            before = kept.relays.get(state.relay, RelayState(state.relay))
            if before.turn != state.turn:
                return False
            kept.relays[state.relay] = on_trial(before, now)
            return True

        return await self._await(run)

    async def note_fault(
        self, relay: str, fault: RelayFault, now: datetime, *, on_trial: bool
    ) -> RelayState:
        def run(state: State) -> RelayState:
            before = state.relays.get(relay, RelayState(relay))
            after = after_fault(before, fault, now, on_trial=on_trial)
            state.relays[relay] = after
            return after

        return await self._await(run)

    async def note_well(self, relay: str, now: datetime) -> None:
        def run(state: State) -> None:
            before = state.relays.get(relay)
            if before is not None and before.fault is not None:
                state.relays[relay] = well_again(before)

        await self._await(run)
