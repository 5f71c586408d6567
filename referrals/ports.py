"""What the service asks of the world."""

from __future__ import annotations

from typing import Protocol

from referrals.delivery import Outgoing, Receipt


class Transport(Protocol):
    """A way to a relay."""

    async def deliver(self, outgoing: Outgoing) -> Receipt:
        """Hand over these exact bytes, once.

        Returning means that the relay now holds the message (RFC 5321 §6.1).

        Raises:
            MessageRefused: a draft, or bytes that SMTP can't carry unchanged.
            TransientDeliveryError: worth trying again later; the relay does not hold it.
            PermanentDeliveryError: this message will not be accepted.
            DeliveryUncertain: the link broke after the end of the content, before the reply.
            RelayRefused: login, certificate or TLS; says nothing of this message.

        A cancelled call may have handed the message over: treat it as uncertain.
        """
        ...
