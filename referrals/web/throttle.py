"""How often one may try to sign in: each wrong attempt makes the next wait longer.

Never for ever, since that would let anybody lock a colleague out; and a browser that has signed in
to an account before is counted by itself, so that strangers' attempts don't delay its owner.

Source: OWASP Authentication Cheat Sheet (login throttling); OWASP, "Slow Down Online Guessing
Attacks with Device Cookies".
"""

from __future__ import annotations

import hmac
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from ipaddress import IPv6Address, ip_address

from starlette.requests import Request
from starlette.responses import Response

from referrals.settings import WebSettings
from referrals.web.store import FORGET_AFTER, Store

_KNOWN_FOR = timedelta(days=90)


@dataclass(frozen=True)
class Allowance:
    """The first `free` attempts cost nothing; then the wait doubles from `first` to `longest`."""

    free: int
    first: timedelta
    longest: timedelta

    def wait(self, count: int) -> timedelta:
        """How long after the last of so many attempts the next one may come."""
        if count < self.free:
            return timedelta(0)
        # Beyond 2^20 the longest wait is long reached, and a large power would overflow.
        doubled: int = 2 ** min(count - self.free, 20)
        return min(self.first * doubled, self.longest)


ACCOUNT = Allowance(5, timedelta(seconds=2), timedelta(minutes=5))
# Many people may share an address: an office, or a proxy that doesn't say whose it is.
ADDRESS = Allowance(30, timedelta(seconds=1), timedelta(minutes=1))


@dataclass(frozen=True)
class Attempt:
    """An attempt that was counted, or may not be made yet."""

    keys: tuple[str, ...]
    wait: timedelta


class Throttle:
    def __init__(self, store: Store) -> None:
        self._store = store

    def begin(self, name: str, address: str, browser: str | None, now: datetime) -> Attempt:
        """Count an attempt before it is made, so that many at once are no way round.

        Args:
            name: of an account, which need not exist.
            browser: the browser's own key, if it is known to the account.
        """
        limits: Sequence[tuple[str, Allowance]]
        if browser is not None:
            limits = [(self._store.signed("browser", name, browser), ACCOUNT)]
        else:
            limits = [
                (self._store.signed("account", name), ACCOUNT),
                (self._store.signed("address", address), ADDRESS),
            ]
        keys = tuple(key for key, _ in limits)
        moment = now.timestamp()
        with self._store.writing(alone=True) as connection:
            wait = timedelta(0)
            for key, allowance in limits:
                row = connection.execute("SELECT * FROM attempt WHERE key = ?", (key,)).fetchone()
                if row is None:
                    continue
                passed = timedelta(seconds=moment - row["last_at"])
                # Of attempts at once, a later one may have been counted first: that is no clock
                # that was set back.
                if -allowance.longest <= passed < FORGET_AFTER:
                    wait = max(wait, allowance.wait(row["count"]) - max(passed, timedelta(0)))
                else:
                    connection.execute("DELETE FROM attempt WHERE key = ?", (key,))
            if wait > timedelta(0):
                return Attempt(keys, wait)
            for key in keys:
                connection.execute(
                    "INSERT INTO attempt (key, count, last_at) VALUES (?, 1, ?)"
                    " ON CONFLICT (key)"
                    " DO UPDATE SET count = attempt.count + 1, last_at = CASE"
                    " WHEN attempt.last_at > excluded.last_at THEN attempt.last_at"
                    " ELSE excluded.last_at END",
                    (key, moment),
                )
        return Attempt(keys, timedelta(0))

    def succeeded(self, attempt: Attempt) -> None:
        """It was right: forget the account's count, and this one attempt of the address.

        Were the address's forgotten, somebody with an account could guess at others' for ever.
        """
        account, *address = attempt.keys
        with self._store.writing() as connection:
            connection.execute("DELETE FROM attempt WHERE key = ?", (account,))
            for key in address:
                connection.execute(
                    "UPDATE attempt SET count = count - 1 WHERE key = ? AND count > 0", (key,)
                )


class KnownBrowser:
    """A cookie that says: this browser has signed in to that account before. It opens nothing."""

    def __init__(self, web: WebSettings, store: Store) -> None:
        self._store = store
        self._secure = web.is_secure
        self._name = "__Host-referrals-known" if web.is_secure else "referrals-known"

    def key(self, request: Request, account: str, now: datetime) -> str | None:
        """The browser's own key, if it is known to this account."""
        value = request.cookies.get(self._name, "")
        unsigned, _, signature = value.rpartition(".")
        expected = self._store.signed("known", account, unsigned)
        if not hmac.compare_digest(signature.encode(), expected.encode()):
            return None
        made_at = int(unsigned.split(".")[0], 16)
        return unsigned if now.timestamp() < made_at + _KNOWN_FOR.total_seconds() else None

    def remember(self, answer: Response, account: str, now: datetime) -> None:
        unsigned = f"{int(now.timestamp()):x}.{secrets.token_urlsafe(12)}"
        answer.set_cookie(
            self._name,
            f"{unsigned}.{self._store.signed('known', account, unsigned)}",
            max_age=int(_KNOWN_FOR.total_seconds()),
            path="/",
            secure=self._secure,
            httponly=True,
            samesite="lax",
        )


def address_of(request: Request, web: WebSettings) -> str:
    """Whose attempts count together: an IPv4 address, or the /64 of an IPv6 one.

    Behind a proxy (there is one if `web.address` is set), what it put last into X-Forwarded-For.
    """
    told = request.client.host if request.client else ""
    forwarded = request.headers.getlist("x-forwarded-for")
    if web.address and forwarded:
        told = forwarded[-1].rpartition(",")[2].strip()
        if told.count(":") == 1:  # some proxies put the port behind it
            told = told.partition(":")[0]
    try:
        address = ip_address(told)
    except ValueError:
        return "unknown"
    if isinstance(address, IPv6Address):
        if address.ipv4_mapped:
            return str(address.ipv4_mapped)
        return str(IPv6Address(int(address) >> 64 << 64))
    return str(address)


def wait_words(wait: timedelta) -> str:
    """`20 seconds`, `1 minute`, `5 minutes`: never too short."""
    seconds = max(1, -(-wait // timedelta(seconds=1)))
    if seconds <= 50:
        return "1 second" if seconds == 1 else f"{seconds} seconds"
    minutes = -(-seconds // 60)
    return "1 minute" if minutes == 1 else f"{minutes} minutes"
