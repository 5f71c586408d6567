"""Sessions of those who have not signed in: made of their cookie alone.

Nothing is kept for them, so that strangers can't fill the disk.
"""

from __future__ import annotations

import hmac
import secrets
from datetime import UTC, datetime, timedelta

from referrals.web.store import Session, Store


def new_visitor(store: Store, now: datetime) -> Session:
    unsigned = f"v.{int(now.timestamp()):x}.{secrets.token_urlsafe(16)}"
    return _session(store, f"{unsigned}.{store.signed('visitor', unsigned)}", now, now)


def nobody(store: Store, token: str, now: datetime) -> Session:
    """A session under a token that opens nothing any more.

    Its forms have another token than those of the session that lapsed.
    """
    return _session(store, token, now, now)


def visitor(store: Store, token: str, now: datetime, longest: timedelta) -> Session | None:
    """The session of a token that we made within `longest`."""
    unsigned, _, signature = token.rpartition(".")
    expected = store.signed("visitor", unsigned)
    if not hmac.compare_digest(signature.encode(), expected.encode()):
        return None
    began = datetime.fromtimestamp(int(unsigned.split(".")[1], 16), UTC)
    return _session(store, token, began, now) if now < began + longest else None


def _session(store: Store, token: str, began: datetime, now: datetime) -> Session:
    return Session(token, store.signed("form", token), None, "", "", began, now)
