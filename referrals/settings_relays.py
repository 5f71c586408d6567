"""How further relays are named in variables, secret files and settings.toml.

A name has no underscore, so `REFERRALS_RELAYS_BACKUP_CA_FILE` can only be `relays.backup.ca_file`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from referrals.errors import Problem
from referrals.settings import RELAY_NAME, RelaySettings, Settings

_FLAT = re.compile(r"relays_([a-z0-9]+)_(\w+)", re.ASCII)
KEYS = tuple(RelaySettings.model_fields)
SECRET_KEYS = ("password",)


def split_off(
    flat: Mapping[str, str | None],
) -> tuple[dict[str, str | None], dict[str, dict[str, str]]]:
    """`relays_backup_host` and the like, taken from among others: the others, and these by relay.

    Args:
        flat: values by name, in lower case and without our prefix.
    """
    others: dict[str, str | None] = {}
    relays: dict[str, dict[str, str]] = {}
    for name, value in sorted(flat.items()):
        found = _FLAT.fullmatch(name)
        if found is None or value is None:
            others[name] = value
        else:
            relays.setdefault(found[1], {})[found[2]] = value
    return others, relays


def key_of(flat: str) -> str | None:
    """`relays.backup.host` for `relays_backup_host`; None if it sets nothing of a further relay."""
    found = _FLAT.fullmatch(flat)
    if found is None or found[2] not in KEYS or not re.fullmatch(RELAY_NAME, found[1]):
        return None
    return f"relays.{found[1]}.{found[2]}"


def nearly(flat: str) -> list[str]:
    """Names like this one that would set something, for one that is mistyped."""
    found = _FLAT.fullmatch(flat)
    return [f"relays_{found[1]}_{key}" for key in KEYS] if found else []


def keys_in_force(settings: Settings) -> Iterator[str]:
    """Every setting of every further relay, by its key."""
    for name in settings.relays:
        yield from (f"relays.{name}.{key}" for key in KEYS)


def value_of(settings: Settings, key: str) -> Any:
    """What a setting is, by its key: of `relays` the second part is a relay's name."""
    found: Any = settings
    for part in key.split("."):
        found = found[part] if isinstance(found, dict) else getattr(found, part)
    return found


def misnamed(values: Mapping[str, Any], file: object) -> Iterator[Problem]:
    """What is wrong with the names of further relays in settings.toml."""
    relays = values.get("relays", {})
    if not isinstance(relays, dict):
        yield Problem(f"{file}: relays", "is not a group of relays.", "Write [relays.backup].")
        return
    for name in relays:
        if not re.fullmatch(RELAY_NAME, name):
            yield Problem(
                f"{file}: relays",
                "has a relay whose name is not of small letters and digits.",
                "Call it [relays.backup], say.",
            )
