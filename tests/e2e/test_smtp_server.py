"""The command against a relay of another maker, Node's smtp-server: each login, kills, restarts."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from referrals.case_files import flatten
from referrals.directory import Directory
from referrals.outboxes.sqlite.outbox import SqliteOutbox
from referrals.samples import sample_case
from tests.account import Wanted, check
from tests.conftest import ROOT, TODAY
from tests.e2e.conftest import REFERRALS, RelayEnv, process
from tests.e2e.test_batch import rows_of, write
from tests.peers import Certificates
from tests.smtp_sink import wait_until

LOGIN = ("officer", "a long enough password 1")
COUNT = 60
FOLDER = ROOT / "tests" / "relays"
SEND = ("batch", "cases.csv", "--send", "--accept-unverified")


@dataclass
class NodeRelay:
    """One process; `options` are those of relay.js."""

    certificates: Certificates
    folder: Path
    options: dict[str, Any] = field(default_factory=dict)
    port: int = 0
    process: subprocess.Popen[str] | None = None

    def start(self) -> None:
        """At the same port each time."""
        self.folder.mkdir(exist_ok=True)
        good = self.certificates.good
        given = {
            "folder": str(self.folder),
            "key": str(good.key),
            "certificate": str(good.certificate),
            "user": LOGIN[0],
            "password": LOGIN[1],
            "port": self.port,
            **self.options,
        }
        self.process = subprocess.Popen(
            ["node", FOLDER / "relay.js", json.dumps(given)], stdout=subprocess.PIPE, text=True
        )
        assert self.process.stdout is not None
        self.port = int(self.process.stdout.readline())

    def kill(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.communicate()
            self.process = None

    @property
    def arrived(self) -> list[bytes]:
        return [one.read_bytes() for one in self.folder.iterdir() if one.suffix != ".part"]


@pytest.fixture
def relay(certificates: Certificates, tmp_path: Path) -> Iterator[NodeRelay]:
    if not shutil.which("node") or not (FOLDER / "node_modules" / "smtp-server").is_dir():
        missing = "Node.js or its smtp-server is missing: scripts/install_test_tools.sh installs it"
        if os.environ.get("CI"):
            pytest.fail(missing)
        pytest.skip(missing)
    relay = NodeRelay(certificates, tmp_path / "arrived")
    yield relay
    relay.kill()


@pytest.fixture
def _cases(directory: Directory, home: Path) -> None:
    write(rows_of(dict(flatten(sample_case(directory, ["mediation"], TODAY))), COUNT))


def use(relay_env: RelayEnv, relay: NodeRelay, security: str = "starttls") -> None:
    user, password = LOGIN
    ca_file = relay.certificates.ca_file
    relay_env(relay.port, security, ca_file=ca_file, username=user, password=password)


def account(relay: NodeRelay) -> dict[str, int]:
    """What there is of each status; each message arrived once, but for those that are marked."""
    with SqliteOutbox.open(Path("outbox/outbox.sqlite3"), "test") as outbox:
        held = outbox.held(limit=1_000)
        queued = [Wanted(one.reference, outbox.content(one.id) or b"") for one in held]
        assert len(queued) == COUNT
        marked = {
            wanted.content for one, wanted in zip(held, queued, strict=True) if one.maybe_doubled
        }
        arrived = relay.arrived
        sure = [one for one in arrived if one not in marked]
        return check(outbox, queued, sure, [one for one in arrived if one in marked])


@pytest.mark.usefixtures("_cases")
@pytest.mark.parametrize(
    ("security", "method", "more"),
    [
        ("starttls", "PLAIN", {}),
        ("starttls", "CRAM-MD5", {"onebyone": True}),
        ("tls", "LOGIN", {"links": 2, "thinks": 3}),
    ],
)
def test_all_arrive_as_they_were_written(
    security: str, method: str, more: dict[str, Any], relay: NodeRelay, relay_env: RelayEnv
) -> None:
    """Fewer links than we have lanes are enough."""
    relay.options = {"secure": security == "tls", "methods": [method], **more}
    relay.start()
    use(relay_env, relay, security)

    checked = process("relay", "check")
    assert checked.code == 0, checked.said
    assert "logged in: yes" in checked.out
    done = process(*SEND)
    assert done.code == 0, done.said
    assert account(relay) == {"relayed": COUNT}
    assert len(relay.arrived) == COUNT


@pytest.mark.usefixtures("_cases")
def test_what_is_too_big_for_it_fails_and_a_wrong_password_fails_nothing(
    relay: NodeRelay, relay_env: RelayEnv
) -> None:
    relay.options = {"size": 100}
    relay.start()
    use(relay_env, relay)
    relay_env(
        relay.port,
        "starttls",
        ca_file=relay.certificates.ca_file,
        username=LOGIN[0],
        password="another one",
    )
    refused = process(*SEND)
    assert refused.code == 11
    assert "refused the login: 535 " in refused.err
    assert account(relay) == {"queued": COUNT}

    use(relay_env, relay)
    done = process("deliver")
    assert done.code == 9
    assert "too big" in done.said
    assert account(relay) == {"failed": COUNT}
    assert relay.arrived == []


@pytest.mark.usefixtures("_cases")
def test_both_are_killed_in_the_midst(
    relay: NodeRelay, relay_env: RelayEnv, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("REFERRALS_DELIVERY_FIRST_WAIT_S", "0.1")
    monkeypatch.setenv("REFERRALS_DELIVERY_LANES", "3")
    relay.options = {"thinks": 20}
    relay.start()
    use(relay_env, relay)

    for some in (10, 20):
        sending = subprocess.Popen(
            [*REFERRALS, *SEND], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        wait_until(lambda some=some: len(relay.arrived) >= some, "some to arrive")  # type: ignore[misc]
        if some == 10:
            sending.kill()
        else:
            relay.kill()
        sending.wait(30)
        relay.kill()
        relay.start()

    def all_relayed() -> bool:
        return process("deliver").code == 0 and set(account(relay)) == {"relayed"}

    wait_until(all_relayed, "all to be relayed")
    assert COUNT <= len(relay.arrived) <= COUNT + 6, "three lanes, cut short twice"
