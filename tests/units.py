"""The units of deploy/systemd, read as systemd reads them, to be run without it."""

from __future__ import annotations

import sys
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
UNITS = ROOT / "deploy" / "systemd"
PROGRAM = "/opt/referrals/bin/referrals"
INSTALLED = str(Path(sys.executable).with_name("referrals"))


@dataclass(frozen=True)
class Unit:
    """`values` has each setting's values in order, by section and name."""

    name: str
    values: Mapping[str, Mapping[str, list[str]]]

    @classmethod
    def read(cls, name: str) -> Unit:
        values: dict[str, dict[str, list[str]]] = defaultdict(lambda: defaultdict(list))
        section = ""
        for line in (UNITS / name).read_text(encoding="utf-8").splitlines():
            if not line or line.startswith("#"):
                continue
            if line.startswith("["):
                section = line.strip("[]")
                continue
            key, _, value = line.partition("=")
            values[section][key].append(value)
        return cls(name, values)

    def all(self, key: str) -> list[str]:
        return self.values["Service"].get(key, [])

    def one(self, key: str) -> str:
        [value] = self.all(key)
        return value

    def command(self, instance: str = "1") -> list[str]:
        words = [word.replace("%i", instance) for word in self.one("ExecStart").split()]
        assert words[0] == PROGRAM
        return [INSTALLED, *words[1:]]

    def environment(self, home: Path, **changed: str) -> dict[str, str]:
        """What its process gets, with /etc, /var and its credentials in folders of `home`.

        Args:
            changed: variables that this deployment has set otherwise.
        """
        given = {"PATH": "/usr/bin:/bin", "LANG": "C.UTF-8"}
        for line in self.all("Environment"):
            name, _, value = line.partition("=")
            given[name] = value
        for file in self.all("EnvironmentFile"):
            given |= variables(home / file.lstrip("/"))
        given |= changed
        credentials = home / "run" / "credentials" / self.name
        credentials.mkdir(parents=True, exist_ok=True)
        for line in self.all("LoadCredential"):
            name, _, path = line.partition(":")
            (credentials / name).write_bytes((home / path.lstrip("/")).read_bytes())
        return {
            name: value.replace("%d", str(credentials)).replace("/var/", f"{home}/var/")
            for name, value in given.items()
        }


def variables(file: Path) -> dict[str, str]:
    """An environment file's, such as systemd and compose read."""
    lines = file.read_text(encoding="utf-8").splitlines()
    pairs = [line.partition("=") for line in lines if line and not line.startswith("#")]
    return {name: value for name, _, value in pairs}
