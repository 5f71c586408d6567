"""Where a command listens, as one types it."""

from __future__ import annotations

import re
from dataclasses import dataclass

import click

_TYPED = re.compile(
    r"(?:(?P<host>[A-Za-z0-9.\-]{1,253}|\[[0-9A-Fa-f:.]{2,45}\]):)?(?P<port>[0-9]{1,5})"
)


@dataclass(frozen=True)
class Address:
    host: str
    port: int


class AddressType(click.ParamType[Address]):
    """`9464` is on this machine alone; `0.0.0.0:9464` or `[::]:9464` for others, too."""

    name = "address"

    def convert(
        self, value: object, param: click.Parameter | None, ctx: click.Context | None
    ) -> Address:
        if isinstance(value, Address):
            return value
        found = _TYPED.fullmatch(str(value))
        if found is None or int(found["port"]) > 65535:
            self.fail("is neither a port nor HOST:PORT, such as 9464 or 0.0.0.0:9464.", param, ctx)
        return Address((found["host"] or "127.0.0.1").strip("[]"), int(found["port"]))
