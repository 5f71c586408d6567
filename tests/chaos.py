"""A relay in which anything may go wrong at any step, by chance, and that remembers what it did."""

from __future__ import annotations

import asyncio
import random
from dataclasses import dataclass, field
from weakref import WeakKeyDictionary

from tests.peers import ORDERLY, Drop, Hang, Say, ScriptedRelay, Step


@dataclass(frozen=True)
class HalfClose:
    """Say no more, but listen on."""


Fault = Step | HalfClose
_DOWN = b"421 4.3.2 going down\r\n"
_GONE: tuple[Step, ...] = (Drop(), Drop(reset=True), Say(_DOWN, close=True))
GOING: tuple[Fault, ...] = (*_GONE, HalfClose(), Say(_DOWN))
SAYING_NO = (Say(b"451 4.3.0 not now\r\n"), Say(b"550 5.7.1 not this one\r\n"))
_TAKEN = Say(b"250 2.0.0 taken\r\n")
_FAULTS: dict[str, tuple[Fault, ...]] = {
    "greeting": (*GOING, Say(b"554 5.7.1 not you\r\n", close=True)),
    "ehlo": GOING,
    "ehlo-secured": GOING,
    "starttls": (*GOING, Say(b"454 4.7.0 no TLS just now\r\n")),
    "auth": (*GOING, Say(b"454 4.7.0 no login just now\r\n")),
    "mail": (*GOING, *SAYING_NO, Say(b"452 4.3.1 full\r\n"), Say(b"250 ok\r\n250 ok\r\n")),
    "rcpt": (*GOING, *SAYING_NO, Say(b"250 ok\r\n250 ok\r\n")),
    "data": GOING,
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


MANNERS = (
    *("octets", "late", "wordy", "letters", "terse", "wrong", "LF"),
    *("HELO", "bare", "forgetful"),
)
"""What a relay may be like: none of it is a fault, nor may cost a message anything but time."""


def _said(octets: bytes, manner: str) -> bytes:
    """The same reply, in another manner."""
    code, text = octets[:3], octets[4:]
    match manner:
        case "wordy":
            return code + b"-" + b"x" * 20_000 + b"\r\nno code\r\n" + octets
        case "letters":
            return code + b"-\xe9\x00\x1b[31m \xc3\xa9\r\n" + octets
        case "terse":
            return code + b"\r\n"
        case "wrong":
            return code + b" 5.9.9 " + text
        case "LF":
            return octets.replace(b"\r\n", b"\n")
    return octets


@dataclass
class ChaosRelay(ScriptedRelay):
    """Each step goes wrong with the same odds, another way each time; the same for a seed.

    One link in `odd` has a manner of its own.

    `taken` are the contents whose 250 it gave, and `doubtful` those that it had the whole of when
    it went silent, each as often as that befell it. `cut_short` is how often it went wrong in
    mid-content, when the client may have written the dot already. About each message it thinks
    for up to `pause_s`.
    """

    seed: int = 0
    odds: float = 0.0
    odd: int = 2
    pause_s: float = 0.0
    taken: list[bytes] = field(default_factory=list)
    doubtful: list[bytes] = field(default_factory=list)
    cut_short: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        self._chance = random.Random(self.seed)
        self._manners: WeakKeyDictionary[asyncio.StreamWriter, str] = WeakKeyDictionary()

    async def _converse(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self.odds and self._chance.randrange(self.odd) == 0:
            self._manners[writer] = self._chance.choice(MANNERS)
        await super()._converse(reader, writer)

    def _offered(self, manner: str, usual: Step | None) -> Step | None:
        if manner == "HELO":
            return Say(b"502 5.5.1 what?\r\n")
        if manner == "bare":
            return Say(b"250 relay.test\r\n")
        if manner == "forgetful" and isinstance(usual, Say):
            return Say(b"250-PIPELINING\r\n" + usual.octets)
        return usual

    def _fault(self, name: str) -> Fault | None:
        faults = _FAULTS.get(name, ())
        return self._chance.choice(faults) if faults and self._chance.random() < self.odds else None

    async def _take_content(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        if self._chance.random() < self.odds:
            self.cut_short += 1
            await reader.readexactly(64)
            await super()._answer("mid-content", reader, writer, self._chance.choice(_GONE))
        await super()._take_content(reader, writer)

    async def _answer(
        self,
        name: str,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        usual: Step | None = None,
    ) -> None:
        manner = self._manners.get(writer, "")
        if name == "ehlo" and self.tls is None:
            usual = self._offered(manner, usual)
        elif name == "helo":
            usual = Say(b"250 relay.test\r\n")
        step = self._fault(name) or usual
        if name == "content":
            step = step or _TAKEN
            content = self.contents.pop()
            await asyncio.sleep(self._chance.uniform(0, self.pause_s))
            if isinstance(step, Say) and step.octets == _TAKEN.octets:
                self.taken.append(content)
            elif not isinstance(step, Say) or step.octets.startswith(b"2"):
                self.doubtful.append(content)
        if isinstance(step, HalfClose):
            if writer.can_write_eof():
                writer.write_eof()
            step = Hang()
        step = step or ORDERLY[name]
        whole = isinstance(step, Say) and step.octets.endswith(b"\n")
        if isinstance(step, Say) and whole and not name.startswith("ehlo"):
            step = Say(_said(step.octets, manner), step.close)
        if isinstance(step, Say) and manner == "late":
            await asyncio.sleep(self._chance.uniform(0, 0.1))
        if isinstance(step, Say) and manner == "octets":
            for octet in step.octets[:-1]:
                writer.write(bytes([octet]))
                await writer.drain()
                await asyncio.sleep(0)
            step = Say(step.octets[-1:], step.close)
        if manner == "forgetful" and name in ("mail", "rcpt"):
            reader._buffer.clear()  # type: ignore[attr-defined]
        await super()._answer(name, reader, writer, step)
