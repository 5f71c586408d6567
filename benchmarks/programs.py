"""The programs that take part: ours through its own commands, the peers through theirs."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from benchmarks import rows
from benchmarks.cold_start import ROOT, environment
from benchmarks.letter import Parts, Template, read_parts, sentinels, take_apart
from benchmarks.measure import Program, Run, run
from benchmarks.relay import HOST, dumped, nobody_listens, sink, source

SESSIONS = 8
_SAMPLE = 300
_DELAYED = 8  # our exit code when the relay can't be reached, which is how a queue is filled


@dataclass(frozen=True)
class Workshop:
    """Where all of it happens, and what was made there once for all runs.

    Args:
        referrals: our command.
        peers: the folder of the peers' Python and commands.
    """

    top: Path
    referrals: Path
    peers: Path

    def rows(self, count: int, *, flat: bool = False) -> Path:
        path = self.top / f"{'flat' if flat else 'ours'}-{count}.csv"
        if not path.exists():
            (rows.write_flat if flat else rows.write_ours)(path, count)
        return path

    @cached_property
    def template(self) -> Template:
        made, folder = sentinels(), self._made("sentinel")
        rows.write(folder / "row.csv", [rows.our_row(made)])
        out = folder / "drafts"
        run([*self._batch(folder / "row.csv"), "--draft", "--out", str(out)], folder, environment())
        (draft,) = out.iterdir()
        return take_apart(draft.read_bytes(), made)

    @cached_property
    def drafts(self) -> Path:
        """Some drafts of ours."""
        folder = self._made("drafts")
        self.draft(folder, _SAMPLE)
        return folder / "drafts"

    @cached_property
    def messages(self) -> Path:
        """Some messages of ours as they arrived."""
        folder = self._made("messages")
        with sink(_SAMPLE, folder / "dump") as port:
            self._submit(folder, _SAMPLE, port)
        ready = folder / "ready"
        ready.mkdir()
        for number, content in enumerate(dumped(folder / "dump")):
            (ready / f"{number}.eml").write_bytes(content)
        return ready

    @cached_property
    def mean_size(self) -> int:
        sizes = [path.stat().st_size for path in self.messages.iterdir()]
        return sum(sizes) // len(sizes)

    def queue(self, count: int) -> Path:
        """An outbox with so many waiting messages, made once; copy it."""
        folder = self.top / f"queue-{count}"
        if not folder.exists():
            folder.mkdir()
            self.fill(folder, count)
        return folder / "outbox"

    # Ours

    def check(self, folder: Path, count: int) -> Run:
        return run(self._batch(self.rows(count)), folder, environment())

    def draft(self, folder: Path, count: int, *, one_core: bool = False) -> Run:
        argv = [*self._batch(self.rows(count)), "--draft", "--out", str(folder / "drafts")]
        done = run(argv, folder, environment(), one_core=one_core)
        _expect(count, sum(1 for _ in (folder / "drafts").glob("*.eml")), "drafts")
        return done

    def send(self, folder: Path, count: int) -> Run:
        with sink(count) as port:
            return self._submit(folder, count, port)

    def fill(self, folder: Path, count: int) -> Run:
        """Queue only: the relay is away, which the exit code says at once."""
        argv = [*self._batch(self.rows(count)), "--send", "--accept-unverified"]
        with nobody_listens() as port:
            return run(argv, folder, settings(port), good=[_DELAYED])

    def deliver(self, folder: Path, count: int, *, lanes: int = SESSIONS) -> Run:
        """Submit what waits in the folder's outbox."""
        with sink(count) as port:
            env = settings(port, lanes)
            return run([str(self.referrals), "deliver"], folder, env)

    def deliver_copy(self, folder: Path, count: int) -> Run:
        shutil.copytree(self.queue(count), folder / "outbox")
        os.sync()
        return self.deliver(folder, count)

    def _submit(self, folder: Path, count: int, port: int) -> Run:
        argv = [*self._batch(self.rows(count)), "--send", "--accept-unverified"]
        return run(argv, folder, settings(port))

    def _batch(self, file: Path) -> list[str]:
        return [str(self.referrals), "batch", str(file)]

    # The peers and the limits

    def peer(self, name: str, folder: Path, port: int, count: int) -> Run:
        """The whole job, by a peer."""
        send = self._prepared(name, folder, port, count)
        if name == "mailmerge":
            return run([*self._mailmerge, "--no-dry-run"], folder, environment())
        return run(send, folder, _modules())

    def dry_run(self, folder: Path, count: int, *, one_core: bool = False) -> Run:
        self._prepared("mailmerge", folder, 9, count)
        return run([*self._mailmerge, "--dry-run"], folder, environment(), one_core=one_core)

    def sending(self, name: str) -> Program:
        def play(folder: Path, count: int) -> Run:
            with sink(count) as port:
                return self.peer(name, folder, port, count)

        return Program(_SHOWN[name], play)

    @property
    def _mailmerge(self) -> list[str]:
        # Of its ways to print, `raw` is the one that decodes nothing.
        return [str(self.peers / "mailmerge"), "--no-limit", "--output-format", "raw"]

    def _prepared(self, name: str, folder: Path, port: int, count: int) -> list[str]:
        """Give a peer its files; returns the command that sends."""
        (folder / "rows.csv").symlink_to(self.rows(count, flat=True))
        self.template.write(folder / "letter")
        module = [str(self.peers / "python"), "-m", f"benchmarks.peers.{name}"]
        run([*module, "prepare", str(folder), str(port)], folder, _modules())
        return [*module, "send", str(folder), str(port)]

    def bare(self, folder: Path, count: int) -> Run:
        module = [str(self.peers / "python"), "-m", "benchmarks.peers.bare_aiosmtplib"]
        with sink(count) as port:
            argv = [*module, str(self.messages), str(port), str(count), str(SESSIONS)]
            return run(argv, folder, _modules())

    def smtp_source(self, folder: Path, count: int) -> Run:
        with sink(count) as port:
            return run(source(port, count, SESSIONS, self.mean_size), folder, environment())

    def write_limit(self, folder: Path, count: int) -> Run:
        module = [sys.executable, "-m", "benchmarks.write_limit"]
        done = run([*module, str(self.drafts), str(folder), str(count)], folder, _modules())
        _expect(count, sum(1 for _ in folder.glob("*.eml")), "files")
        return done

    def _made(self, name: str) -> Path:
        folder = self.top / name
        folder.mkdir()
        return folder


_SHOWN = {
    "mailmerge": "mailmerge",
    "post_office": "django-post-office",
    "red_mail": "redmail",
    "fastapi_mail": "fastapi-mail",
}
PEERS = tuple(_SHOWN)


def settings(port: int, lanes: int | None = None) -> dict[str, str]:
    """Our environment with a relay on this machine; the outbox is in the folder we are in."""
    relay = {"RELAY_HOST": HOST, "RELAY_PORT": str(port), "RELAY_SECURITY": "none"}
    if lanes is not None:
        relay["DELIVERY_LANES"] = str(lanes)
    return environment() | {f"REFERRALS_{name}": value for name, value in relay.items()}


def _modules() -> dict[str, str]:
    return environment() | {"PYTHONPATH": str(ROOT)}


def check_same_letter(shop: Workshop, count: int = 10) -> dict[str, int]:
    """Whether every peer's message reads as ours does; the mean size of each one's messages.

    Raises:
        RuntimeError: it does not.
    """
    ours: dict[str, Parts] = {}
    for path in shop.messages.iterdir():
        parts = read_parts(path.read_bytes())
        ours[parts.headers["Subject"]] = parts
    sizes = {"referrals": shop.mean_size}
    for name in PEERS:
        folder = shop.top / f"same-{name}"
        folder.mkdir()
        with sink(count, folder / "dump") as port:
            shop.peer(name, folder, port, count)
        arrived = list(dumped(folder / "dump"))
        _expect(count, len(arrived), f"messages of {name}")
        for content in arrived:
            parts = read_parts(content)
            if parts != ours.get(parts.headers["Subject"]):
                difference = _first_difference(parts, ours)
                raise RuntimeError(f"{name} wrote another letter than ours: {difference}")
        sizes[_SHOWN[name]] = sum(map(len, arrived)) // count
    return sizes


def _first_difference(parts: Parts, ours: Mapping[str, Parts]) -> str:
    same = ours.get(parts.headers["Subject"])
    if same is None:
        return f"its subject is {parts.headers['Subject']!r}."
    if parts.headers != same.headers:
        return f"{dict(parts.headers)} for {dict(same.headers)}."
    here, there = (parts.text, same.text) if parts.text != same.text else (parts.html, same.html)
    at = next((i for i, (a, b) in enumerate(zip(here, there, strict=False)) if a != b), -1)
    return f"{here[at - 40 : at + 40]!r} for {there[at - 40 : at + 40]!r}."


def _expect(wanted: int, found: int, what: str) -> None:
    if found != wanted:
        raise RuntimeError(f"{found} {what}, where {wanted} were wanted.")
