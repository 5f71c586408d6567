"""How quick the page is: the real server under wrk, beside a bare Starlette page; and 50 users."""

from __future__ import annotations

import re
import shutil
import signal
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import httpx2

from benchmarks.cold_start import ROOT, environment
from benchmarks.programs import Workshop
from tests.web.walking import Walker

MOST_MS = 50.0
"""Median of a page for one user."""
USERS = 50
MESSAGES = 1_000
_CHOSEN = ("mediation", "victim-hardening")
_STARTED = re.compile(r"https?://\S+:\d+")
_UNITS = {"us": 0.001, "ms": 1.0, "s": 1_000.0, "m": 60_000.0}


@dataclass(frozen=True)
class Timed:
    """What wrk tells of one page."""

    rate: float
    median_ms: float
    slowest_ms: float
    """99 of 100 were no slower."""
    errors: int

    @classmethod
    def read(cls, text: str) -> Timed:
        """Raises RuntimeError: it is not what wrk 4 prints."""
        rate = re.search(r"Requests/sec:\s+([\d.]+)", text)
        spread = dict(re.findall(r"^\s+(50|99)%\s+([\d.]+[a-z]+)\s*$", text, re.MULTILINE))
        if rate is None or spread.keys() != {"50", "99"}:
            raise RuntimeError(f"wrk says what we can't read:\n{text}")
        wrong = re.findall(r"(?:Non-2xx or 3xx responses:|connect|read|write|timeout) (\d+)", text)
        return cls(float(rate[1]), _ms(spread["50"]), _ms(spread["99"]), sum(map(int, wrong)))


def _ms(text: str) -> float:
    number, unit = re.fullmatch(r"([\d.]+)([a-z]+)", text).groups()  # type: ignore[union-attr]  # as read
    return float(number) * _UNITS[unit]


def measure(shop: Workshop, seconds: float) -> bool:
    """Print both tables; whether every target was met.

    Args:
        seconds: how long each page is asked for; the 50 users walk four times as long.

    Raises:
        RuntimeError: no wrk, or the server did not start.
    """
    wrk = shutil.which("wrk")
    if wrk is None:
        raise RuntimeError("wrk is missing. Debian: apt-get install wrk")
    folder = shop.top / "page"
    folder.mkdir()
    shop.fill(folder, MESSAGES)
    print(f"\nThe page: wrk, {seconds:g} s each; {MESSAGES:,} messages in the outbox\n")
    head = f"{'':26}{'users':>6}{'KB':>6}{'pages/s':>9}{'median':>10}{'99%':>10}{'errors':>8}"
    with _server([str(shop.referrals), "serve", "--port", "0"], folder) as at:
        pages, cookie = _pages(at)
        sizes = {name: len(_get(at + path, cookie)) for name, path in pages.items()}
        bare_argv = [sys.executable, "-m", "benchmarks.bare_page", str(sizes["home"])]
        with _server(bare_argv, ROOT) as bare_at:
            met, ratios = True, []
            for users, long in ((1, seconds), (USERS, 2 * seconds)):
                print(head)
                bare = _wrk(wrk, f"{bare_at}/", "", users, long)
                _line("bare Starlette", users, sizes["home"], bare)
                for name, path in pages.items():
                    timed = _wrk(wrk, at + path, cookie, users, long)
                    _line(name, users, sizes[name], timed)
                    good = timed.errors == 0 and (users > 1 or timed.median_ms < MOST_MS)
                    met &= good
                    if users == 1:
                        ratios.append((name, timed.median_ms / bare.median_ms, good))
                print()
        for name, ratio, good in ratios:
            word = "met" if good else "MISSED"
            print(f"{name + ' : bare Starlette, median':52}{ratio:>6.1f}  < {MOST_MS:g} ms  {word}")
        return _crowd(at, 4 * seconds) and met


def _line(name: str, users: int, size: int, timed: Timed) -> None:
    print(
        f"{name:26}{users:>6}{size / 1000:>6.1f}{timed.rate:>9,.0f}{timed.median_ms:>7.1f} ms"
        f"{timed.slowest_ms:>7.1f} ms{timed.errors:>8,}"
    )


@contextmanager
def _server(argv: Sequence[str], folder: Path) -> Iterator[str]:
    """A server in a process of its own, which prints where it listens; its address."""
    process = subprocess.Popen(
        argv, cwd=folder, env=environment(), stdout=subprocess.PIPE, text=True
    )
    try:
        line = process.stdout.readline() if process.stdout else ""
        found = _STARTED.search(line)
        if found is None:
            raise RuntimeError(f"{' '.join(argv)} did not start: {line}")
        yield found[0]
    finally:
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=20)


def _wrk(wrk: str, url: str, cookie: str, users: int, seconds: float) -> Timed:
    def words(duration: float) -> list[str]:
        asked = ["-t1", f"-c{users}", f"-d{max(round(duration), 1)}s", "--timeout", "30s"]
        return [wrk, *asked, "--latency", *(["-H", f"Cookie: {cookie}"] if cookie else []), url]

    subprocess.run(words(1), capture_output=True, check=True)  # warms up
    done = subprocess.run(words(seconds), capture_output=True, text=True, check=True)
    return Timed.read(done.stdout)


# Users


def _client(at: str) -> httpx2.Client:
    return httpx2.Client(base_url=at, timeout=30, trust_env=False)


def _sample() -> dict[str, Any]:
    from referrals.bootstrap import build_service
    from referrals.samples import sample_case
    from referrals.settings import Settings

    using = build_service(Settings())
    return sample_case(using.directory, _CHOSEN, using.today())


def _pages(at: str) -> tuple[dict[str, str], str]:
    """Paths of the pages by what they are called, and the cookie of whoever filled them in."""
    with _client(at) as client:
        walker = Walker.with_case(cast(Any, client), _sample())
        walker.to_check(*_CHOSEN)
        cookie = "; ".join(f"{one.name}={one.value}" for one in client.cookies.jar)
    pages = {
        "home": "/",
        "details, filled in": f"{walker.at}/details",
        "check your answers": f"{walker.at}/check",
        "preview": f"{walker.at}/preview/{_CHOSEN[0]}",
        f"outbox of {MESSAGES:,}": "/outbox",
    }
    return pages, cookie


def _get(url: str, cookie: str) -> bytes:
    answer = httpx2.get(url, headers={"Cookie": cookie}, timeout=30, trust_env=False)
    if answer.status_code != 200:
        raise RuntimeError(f"{url} answers {answer.status_code}")
    return answer.content


@dataclass
class _Crowd:
    """Users, each in a thread, who walk the journey over and over until the time is up."""

    at: str
    raw: Mapping[str, Any]
    until: float
    taken: list[float] = field(default_factory=list)
    walks: int = 0
    faults: list[str] = field(default_factory=list)

    def walk(self) -> None:
        with _client(self.at) as client:
            client.event_hooks = {"response": [self._note]}
            while time.monotonic() < self.until:
                try:
                    walker = Walker.with_case(cast(Any, client), self.raw)
                    walker.to_check(*_CHOSEN)
                    walker.get(f"{walker.at}/preview/{_CHOSEN[0]}")
                    walker.get("/outbox")
                    self.walks += 1
                except Exception as fault:  # whatever it is, a user saw it
                    self.faults.append(f"{type(fault).__name__}: {str(fault)[:200]}")

    def _note(self, answer: httpx2.Response) -> None:
        answer.read()
        self.taken.append(answer.elapsed.total_seconds())


def _crowd(at: str, seconds: float) -> bool:
    """Whether all of them walked without an error. Their threads share one core with the server."""
    crowd = _Crowd(at, _sample(), time.monotonic() + seconds)
    threads = [threading.Thread(target=crowd.walk) for _ in range(USERS)]
    for one in threads:
        one.start()
    for one in threads:
        one.join()
    spread = statistics.quantiles(crowd.taken, n=100) if len(crowd.taken) > 1 else [0.0] * 99
    print(
        f"\n{USERS} users, each from an empty form to the preview, {seconds:g} s: {crowd.walks:,} "
        f"walks, {len(crowd.taken):,} requests, median {spread[49] * 1000:,.0f} ms, 99% "
        f"{spread[98] * 1000:,.0f} ms, {len(crowd.faults)} errors"
        f"  {'met' if not crowd.faults and crowd.walks else 'MISSED'}"
    )
    for fault in sorted(set(crowd.faults))[:5]:
        print(f"  {fault}")
    return not crowd.faults and crowd.walks > 0
