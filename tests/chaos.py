"""A relay in which anything may go wrong at any step, by chance, and that remembers what it did."""

from __future__ import annotations

import asyncio
import random
from dataclasses import dataclass, field

from tests.peers import Drop, Hang, Say, ScriptedRelay, Step

GOING = (Drop(), Drop(reset=True), Say(b"421 4.3.2 going down\r\n", close=True))
SAYING_NO = (Say(b"451 4.3.0 not now\r\n"), Say(b"550 5.7.1 not this one\r\n"))
_TAKEN = Say(b"250 2.0.0 taken\r\n")
_FAULTS: dict[str, tuple[Step, ...]] = {
    "greeting": GOING,
    "ehlo": GOING,
    "ehlo-secured": GOING,
    "starttls": (*GOING, Say(b"454 4.7.0 no TLS just now\r\n")),
    "auth": (*GOING, Say(b"454 4.7.0 no login just now\r\n")),
    "mail": (*GOING, *SAYING_NO),
    "rcpt": (*GOING, *SAYING_NO),
    "data": GOING,
    "mid-content": GOING,
    "content": (
        *GOING,
        *SAYING_NO,
        Hang(),
        Say(b"250 2.0.0 ta", close=True),
        Say(_TAKEN.octets, close=True),
        Say(_TAKEN.octets[:3]),
    ),
    "rset": GOING,
    "quit": GOING,
}


@dataclass
class ChaosRelay(ScriptedRelay):
    """Each step goes wrong with the same odds, another way each time; the same for a seed.

    `taken` are the contents whose 250 it gave, and `doubtful` those that it had the whole of when
    it went silent, each as often as that befell it. `cut_short` is how often it went wrong in
    mid-content, when the client may have written the dot already. About each message it thinks
    for up to `pause_s`.
    """

    seed: int = 0
    odds: float = 0.0
    pause_s: float = 0.0
    taken: list[bytes] = field(default_factory=list)
    doubtful: list[bytes] = field(default_factory=list)
    cut_short: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        self._chance = random.Random(self.seed)

    def _fault(self, name: str) -> Step | None:
        faults = _FAULTS.get(name, ())
        return self._chance.choice(faults) if faults and self._chance.random() < self.odds else None

    async def _take_content(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        fault = self._fault("mid-content")
        if fault is not None:
            self.cut_short += 1
            await reader.readexactly(64)
            await super()._answer("mid-content", reader, writer, fault)
        await super()._take_content(reader, writer)

    async def _answer(
        self,
        name: str,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        usual: Step | None = None,
    ) -> None:
        step = self._fault(name) or usual
        if name == "content":
            step = step or _TAKEN
            content = self.contents.pop()
            await asyncio.sleep(self._chance.uniform(0, self.pause_s))
            if isinstance(step, Say) and step.octets == _TAKEN.octets:
                self.taken.append(content)
            elif not isinstance(step, Say) or step.octets.startswith(b"2"):
                self.doubtful.append(content)
        await super()._answer(name, reader, writer, step)
