"""deploy/: that its files are right, and that what they start does its work."""

from __future__ import annotations

import http.client
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import httpx2
import pytest
import yaml  # type: ignore[import-untyped]
from pydantic import SecretStr

from referrals import supervisor
from referrals.bootstrap import now
from referrals.cli import cli
from referrals.delivery import DeliveryStatus
from referrals.health_server import answering
from referrals.outboxes.postgres import connections
from referrals.outboxes.postgres.outbox import PostgresOutbox
from referrals.settings_sources import PREFIX, setting_keys, variable_of
from referrals.sink import Sink
from referrals.vitals import Vitals
from referrals.worker import LEASE
from tests.e2e.conftest import Beside
from tests.postgres import Server
from tests.queued import submissions
from tests.units import INSTALLED, PROGRAM, ROOT, UNITS, Unit, variables
from tests.web.asking import with_relay
from tests.web.test_metrics import asking

DEPLOY = ROOT / "deploy"
COMPOSE = DEPLOY / "compose.yaml"
CONTAINERFILE = (DEPLOY / "container" / "Containerfile").read_text(encoding="utf-8")
OPERATIONS = (ROOT / "docs" / "operations.md").read_text(encoding="utf-8")
SERVICES = sorted(path.name for path in UNITS.glob("*.service"))
KNOWN = {variable_of(key) for key in setting_keys()}
SECRETS = {key.replace(".", "_") for key in setting_keys()}


# The files


@pytest.mark.parametrize(
    "file",
    [path for path in sorted(DEPLOY.rglob("*")) if path.is_file() and "secrets/" not in str(path)],
    ids=lambda path: path.name,
)
def test_every_setting_named_is_one(file: Path) -> None:
    named = re.findall(rf"{PREFIX}[A-Z_]+", file.read_text(encoding="utf-8"))
    assert set(named) <= KNOWN


def test_the_example_settings_hold_no_secret() -> None:
    given = variables(DEPLOY / "referrals.env.example") | variables(DEPLOY / "web.env.example")
    secrets = {"relay.password", "database_password", "web.metrics_token", "web.proxy_secret"}
    assert not set(given) & {variable_of(key) for key in secrets}


def run(*command: str | Path, env: Mapping[str, str] | None = None, cwd: Path | None = None) -> str:
    """All that it said; the test fails if it did."""
    done = subprocess.run(
        [str(word) for word in command],
        env=env,
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    return done.stdout + done.stderr


def is_command(words: list[str]) -> bool:
    """Whether `referrals` has that command with those options: its parser says so."""
    with click.Context(cli) as context:
        name, command, rest = cli.resolve_command(context, list(words))
    assert command is not None
    while isinstance(command, click.Group):
        with click.Context(command, info_name=name) as context:
            name, inner, rest = command.resolve_command(context, rest)
        assert inner is not None
        command = inner
    command.make_context(name, list(rest))
    return True


# systemd


@pytest.fixture(scope="module")
def units(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The units as a machine with the program at another place would have them."""
    folder = tmp_path_factory.mktemp("units")
    for file in UNITS.glob("referrals-*"):
        text = file.read_text(encoding="utf-8").replace(PROGRAM, INSTALLED)
        (folder / file.name).write_text(text, encoding="utf-8")
    return folder


def systemd_analyze(*words: str | Path) -> str:
    if shutil.which("systemd-analyze") is None:
        message = "no systemd-analyze: apt-get install systemd"
        assert os.environ.get("CI") != "true", message
        pytest.skip(message)
    return run("systemd-analyze", *words)


def test_systemd_takes_every_line_of_the_units(units: Path) -> None:
    said = systemd_analyze("verify", "--man=no", *sorted(units.iterdir()))
    assert said.strip() == ""


@pytest.mark.parametrize("name", SERVICES)
def test_the_units_may_do_next_to_nothing_to_the_machine(units: Path, name: str) -> None:
    """1.5 of 10, where 10 is a service that may do everything."""
    systemd_analyze("security", "--offline=true", "--no-pager", "--threshold=15", units / name)


@pytest.mark.parametrize("name", SERVICES)
def test_what_the_units_start_is_a_command(name: str) -> None:
    assert is_command(Unit.read(name).command()[1:])


@pytest.mark.parametrize("name", SERVICES)
def test_the_units_name_real_secrets_and_roles(name: str) -> None:
    unit = Unit.read(name)
    made = (DEPLOY / "secrets.sh").read_text(encoding="utf-8")
    for credential in unit.all("LoadCredential"):
        secret, _, path = credential.partition(":")
        assert secret in SECRETS
        assert path.rpartition("/")[2] in made
    [user] = [line for line in unit.all("Environment") if line.startswith("PGUSER=")]
    assert f"CREATE ROLE {user.partition('=')[2]} " in sql(1)


def seconds(span: str) -> float:
    [(number, unit)] = re.findall(r"^([0-9]+)(s|min|h|)$", span)
    return float(number) * {"s": 1, "min": 60, "h": 3600, "": 1}[unit]


def test_a_worker_has_time_to_finish_and_wrong_settings_do_not_restart_it() -> None:
    """The relay's last word takes ten minutes at most; a lease is what nobody may outlive."""
    unit = Unit.read("referrals-worker@.service")
    assert 600 < seconds(unit.one("TimeoutStopSec")) < LEASE.total_seconds()
    assert seconds(unit.one("WatchdogSec")) < LEASE.total_seconds()
    assert (unit.one("Restart"), unit.one("Type")) == ("on-failure", "notify")
    grace = read_compose()["services"]["worker"]["stop_grace_period"]
    assert 600 < seconds(grace.replace("m", "min")) < LEASE.total_seconds()
    for name in ("referrals-worker@.service", "referrals-web.service"):
        assert Unit.read(name).one("RestartPreventExitStatus").split() == ["2", "5"]


@pytest.mark.parametrize("name", SERVICES)
def test_memory_with_letters_is_never_dumped_and_leases_can_be_judged(name: str) -> None:
    unit = Unit.read(name)
    assert unit.one("LimitCORE") == "0"
    assert unit.one("UMask") == "0077"
    assert not unit.all("ProcSubset")  # `worker.is_gone` reads /proc/sys/kernel/random/boot_id


# compose


def read_compose() -> dict[str, Any]:
    """With its merge keys and anchors resolved."""
    read: dict[str, Any] = yaml.safe_load(COMPOSE.read_text(encoding="utf-8"))
    return read


def test_every_file_that_compose_names_is_there() -> None:
    told = read_compose()
    examples = {"referrals.env": "referrals.env.example", "web.env": "web.env.example"}
    named = []
    for service in told["services"].values():
        for volume in service.get("volumes", []):
            source, target, *_ = volume.split(":")
            if source.startswith("."):
                named.append(DEPLOY / source)
            else:
                assert source in told["volumes"], target
        named += [DEPLOY / examples[file] for file in service.get("env_file", [])]
        if "build" in service:
            context = DEPLOY / service["build"]["context"]
            named.append(context / service["build"]["dockerfile"])
    assert len(named) > 8
    for path in named:
        assert path.exists(), path


def test_every_service_is_kept_small_and_watched() -> None:
    told = read_compose()
    for name, service in told["services"].items():
        assert service["read_only"] is True, name
        assert service["cap_drop"] == ["ALL"], name
        assert service["security_opt"] == ["no-new-privileges:true"], name
        assert {"cpus", "memory", "pids"} <= set(service["deploy"]["resources"]["limits"]), name
        assert service["restart"] in ("unless-stopped", "no"), name
        assert "healthcheck" in service, name
        assert set(service["networks"]) <= set(told["networks"]), name
        assert set(service.get("depends_on", ())) <= set(told["services"]), name
    assert told["networks"]["inside"]["internal"] is True
    assert [name for name, service in told["services"].items() if "ports" in service] == ["proxy"]
    assert told["services"]["worker"]["deploy"]["replicas"] == 2


def test_compose_starts_commands_with_roles_and_secrets_that_there_are(tmp_path: Path) -> None:
    told = read_compose()
    run(DEPLOY / "secrets.sh", tmp_path / "secrets")
    made = {path.name for path in (tmp_path / "secrets").iterdir()}
    assert {Path(secret["file"]).name for secret in told["secrets"].values()} == made
    for name, service in told["services"].items():
        for secret in service.get("secrets", []):
            source = secret if isinstance(secret, str) else secret["source"]
            assert source in told["secrets"]
            target = source if isinstance(secret, str) else secret["target"]
            if "build" in service:
                assert target in SECRETS, name
        if "build" in service:
            assert is_command(service["command"]), name
            assert f"CREATE ROLE {service['environment']['PGUSER']} " in sql(1)
            assert set(service["environment"]) - {"PGUSER"} <= KNOWN


def test_secrets_are_made_once_and_kept_from_others(tmp_path: Path) -> None:
    folder = tmp_path / "secrets"
    run(DEPLOY / "secrets.sh", folder)
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    assert folder.stat().st_mode & 0o777 == 0o700
    assert "relay_password" in run(DEPLOY / "secrets.sh", folder)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    values = {value for name, value in before.items() if name != "relay_password"}
    assert len(values) == len(before) - 1
    assert all(re.fullmatch(rb"[0-9a-f]{64}", value) for value in values)


# PostgreSQL's SQL, which stands in docs/postgres.md alone


def sql(number: int) -> str:
    return run(DEPLOY / "postgres" / "sql", str(number))


def test_the_sql_is_that_of_the_page() -> None:
    page = (ROOT / "docs" / "postgres.md").read_text(encoding="utf-8")
    assert [sql(1), sql(2)] == re.findall(r"```sql\n(.*?)```", page, re.DOTALL)[:2]
    assert "CREATE ROLE referrals_owner" in sql(1)
    assert "GRANT UPDATE ON referrals.chain" in sql(2)


def test_a_page_without_sql_is_a_failure(tmp_path: Path) -> None:
    """Not an empty script that gives nobody any right, and says nothing."""
    (tmp_path / "postgres.md").write_text("No SQL here.\n")
    done = subprocess.run(
        [DEPLOY / "postgres" / "sql", "1"],
        env=os.environ | {"POSTGRES_PAGE": str(tmp_path / "postgres.md")},
        check=False,
    )
    assert done.returncode == 1


# The image


def test_the_image_is_built_from_hashes_alone_and_knows_no_host() -> None:
    assert "--require-hashes" in CONTAINERFILE
    assert not re.search(r"https?://|ADD |latest", CONTAINERFILE)
    assert re.findall(r"^FROM (\S+)", CONTAINERFILE, re.MULTILINE) == ["debian:trixie-slim"] * 2
    assert CONTAINERFILE.rstrip().endswith('ENTRYPOINT ["referrals"]\nCMD ["serve"]')
    for line in ("USER 10001:10001", "STOPSIGNAL SIGTERM", "HEALTHCHECK "):
        assert f"\n{line}" in CONTAINERFILE


def test_no_draft_and_no_secret_goes_to_the_builder() -> None:
    """Everything is left out but what is named."""
    lines = (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines()
    rules = [line for line in lines if line and not line.startswith("#")]
    assert rules[0] == "*"
    copied = [rule[2:] for rule in rules if rule.startswith("!/")]
    assert not [path for path in copied if not (ROOT / path).exists()]
    assert "outbox" not in copied
    assert "deploy" not in copied


def build_steps() -> list[str]:
    """What the image's first stage runs and copies, without Debian's packages."""
    stage = CONTAINERFILE.split("\nFROM ")[1]
    lines = re.sub(r"^ *#.*\n", "", stage, flags=re.MULTILINE).replace("\\\n", " ").splitlines()
    return [line for line in lines if line.startswith(("RUN ", "COPY ")) and "apt-get" not in line]


def test_the_steps_of_the_image_make_what_works(tmp_path: Path) -> None:
    """The very commands, in folders of their own; what is copied is what .dockerignore lets in."""
    rules = (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines()
    source = tmp_path / "source"

    def copied(path: str) -> None:
        target = source / path
        target.parent.mkdir(parents=True, exist_ok=True)
        if (ROOT / path).is_dir():
            leave = shutil.ignore_patterns("__pycache__", ".*")
            shutil.copytree(ROOT / path, target, ignore=leave, dirs_exist_ok=True)
        else:
            shutil.copy(ROOT / path, target)

    steps = build_steps()
    assert len(steps) == 4
    for step in steps:
        verb, _, rest = step.partition(" ")
        if verb == "COPY":
            words = rest.split()
            named = [rule[2:] for rule in rules if rule.startswith("!/")]
            for path in named if words[0] == "." else words[:-1]:
                copied(path)
            continue
        for place in ("/source", "/build", "/opt/referrals", "/wheel"):
            rest = re.sub(rf"(?<![\w.]){place}\b", f"{tmp_path}{place}", rest)
        (tmp_path / "opt").mkdir(exist_ok=True)
        script = rest.replace("python3 -m venv", f"{sys.executable} -m venv")
        run("bash", "-eu", "-c", script, env=os.environ | {"PIP_NO_COMPILE": "1"})
    inside = {path.name.lower() for path in tmp_path.glob("opt/referrals/lib/*/site-packages/*")}
    assert {"referrals", "starlette", "procrastinate", "aiosmtpd"} <= inside
    assert not {"hatchling", "pip", "pytest", "setuptools"} & inside
    program = tmp_path / "opt/referrals/bin/referrals"
    bare = {"PATH": os.defpath, "HOME": str(tmp_path), "LANG": "C.UTF-8"}
    assert "relay.host = (not set)" in run(program, "doctor", env=bare, cwd=tmp_path)
    assert "--health" in run(program, "worker", "--help", env=bare, cwd=tmp_path)


# What it all does, for real


@dataclass(frozen=True)
class Place:
    """A machine's folders, its database and the names that lead to them."""

    home: Path
    server: Server

    @property
    def url(self) -> str:
        return f"postgresql:///referrals?host={self.server.folder}"

    def psql(self, script: str) -> None:
        """Run a script of deploy/postgres as its container would."""
        text = (DEPLOY / "postgres" / script).read_text(encoding="utf-8")
        text = text.replace("/deploy/sql", str(DEPLOY / "postgres" / "sql"))
        text = text.replace("/run/secrets", str(self.home / "etc/referrals/secrets"))
        path = self.server.programs
        run(
            "sh",
            "-c",
            text,
            env={
                "PATH": f"{path}:/usr/bin:/bin",
                "PGHOST": str(self.server.folder),
                "PGDATABASE": "referrals",
                "PGUSER": "referrals_owner",
                "POSTGRES_USER": "postgres",
                "POSTGRES_DB": "referrals",
            },
        )

    def environment(self, name: str, **changed: str) -> dict[str, str]:
        return Unit.read(name).environment(self.home, REFERRALS_DATABASE=self.url, **changed)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    """Set up as docs/deployment.md says: roles, tables, rights, secrets, settings."""
    home = tmp_path_factory.mktemp("machine")
    for folder in ("etc/referrals", "var/lib/referrals", "var/cache/referrals"):
        (home / folder).mkdir(parents=True)
    run(DEPLOY / "secrets.sh", home / "etc/referrals/secrets")
    (home / "etc/referrals/secrets/relay_password").chmod(0o600)
    (home / "etc/referrals/secrets/relay_password").write_text("of the relay")
    for name in ("referrals", "web"):
        shutil.copy(DEPLOY / f"{name}.env.example", home / "etc/referrals" / f"{name}.env")
    server = Server.make()
    try:
        made = Place(home, server)
        with server.connected() as db:
            db.execute("CREATE DATABASE referrals")
        made.psql("first-start.sh")
        migrate = Unit.read("referrals-migrate.service")
        run(*migrate.command(), env=made.environment(migrate.name), cwd=home / "var/lib/referrals")
        made.psql("rights.sh")
        yield made
    finally:
        connections.close_idle()
        server.remove()


def test_each_role_has_the_password_that_lies_among_the_secrets(place: Place) -> None:
    with place.server.connected("referrals") as db:
        rows = db.execute(
            "SELECT rolname FROM pg_authid WHERE rolname LIKE 'referrals%' AND rolcanlogin"
            " AND rolpassword LIKE 'SCRAM-SHA-256$%' ORDER BY 1"
        ).fetchall()
    assert [name for (name,) in rows] == [
        f"referrals_{role}" for role in ("owner", "page", "reader", "worker")
    ]


def free_port() -> int:
    with closing(socket.socket()) as link:
        link.bind(("127.0.0.1", 0))
        port: int = link.getsockname()[1]
        return port


class Supervisor:
    """The far end of NOTIFY_SOCKET, as systemd has it."""

    def __init__(self, path: Path) -> None:
        self._link = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._link.bind(str(path))
        self._link.settimeout(0.1)
        self.heard: list[str] = []

    def until(self, line: str) -> None:
        """Listen until that was said; the test fails if it is not, within 30 seconds."""
        end = time.monotonic() + 30
        while line not in self.heard:
            assert time.monotonic() < end, self.heard
            self.listen()

    def listen(self) -> None:
        try:
            self.heard.extend(self._link.recv(1_000).decode().splitlines())
        except TimeoutError:
            return

    def close(self) -> None:
        self._link.close()


@dataclass
class Started:
    process: subprocess.Popen[bytes]
    supervisor: Supervisor
    port: int

    def ask(self, path: str, **headers: str) -> tuple[int, str]:
        with closing(http.client.HTTPConnection("127.0.0.1", self.port, timeout=10)) as link:
            link.request("GET", path, headers=headers)
            answer = link.getresponse()
            return answer.status, answer.read().decode()

    def until(self, path: str, met: Callable[[int, str], bool]) -> str:
        end = time.monotonic() + 40
        while True:
            self.supervisor.listen()  # or its pings fill the socket
            code, text = self.ask(path)
            if met(code, text):
                return text
            assert time.monotonic() < end, (code, text)
            time.sleep(0.05)

    def stop(self) -> str:
        """SIGTERM; what it has said since the start."""
        self.process.send_signal(signal.SIGTERM)
        self.supervisor.until("STOPPING=1")
        out, _ = self.process.communicate(timeout=30)
        # Uvicorn ends as the signal would have ended it, which systemd counts as clean, too.
        assert self.process.returncode in (0, -signal.SIGTERM), out
        return out.decode()


@contextmanager
def started(command: list[str], environment: dict[str, str], home: Path) -> Iterator[Started]:
    supervisor = Supervisor(home / "notify")
    process = subprocess.Popen(
        command,
        env=environment | {"NOTIFY_SOCKET": str(home / "notify"), "WATCHDOG_USEC": "300000"},
        cwd=home / "var/lib/referrals",
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    try:
        yield Started(process, supervisor, 0)
    finally:
        process.kill()
        process.communicate()
        supervisor.close()
        (home / "notify").unlink()


def test_a_worker_as_its_unit_starts_it(place: Place) -> None:
    """Ready, watched, without its database and with it again, and stopped."""
    unit = Unit.read("referrals-worker@.service")
    port = free_port()
    command = [word.replace(":9461", f":{port}") for word in unit.command("1")]
    assert f"127.0.0.1:{port}" in command
    login = ("referrals", SecretStr("of the relay"))
    with Beside(Sink(login=login)) as relay:
        environment = place.environment(
            unit.name,
            REFERRALS_RELAY_HOST="127.0.0.1",
            REFERRALS_RELAY_PORT=str(relay.port),
            REFERRALS_RELAY_SECURITY="none",
        )
        with started(command, environment, place.home) as worker:
            worker.port = port
            worker.supervisor.until("READY=1")
            with PostgresOutbox.open(place.server.database("referrals"), "page") as outbox:
                outbox.queue(submissions(3), now())
            relayed = (
                'referrals_worker_outcomes_total{status="relayed"} 3.0',
                'referrals_outbox_messages{status="relayed"} 3.0',  # asked a moment sooner or later
            )
            figures = worker.until("/metrics", lambda _, text: all(one in text for one in relayed))
            assert "referrals_outbox_oldest_due_seconds 0.0" in figures
            assert "referrals_worker_relay_fault 0.0" in figures
            assert "referrals_worker_lanes 16.0" in figures
            assert "example" not in figures
            worker.supervisor.until("STATUS=Delivering; 3 relayed since the start.")
            assert json.loads(worker.ask("/health/ready")[1]) == {
                "ready": True,
                "parts": {"outbox": "ok", "worker": "ok"},
            }
            assert worker.ask("/health/ready", Forwarded="for=192.0.2.7") == (
                200,
                '{"ready": true}',
            )
            assert worker.ask("/metrics", Forwarded="for=192.0.2.7")[0] == 404
            assert worker.ask("/anything")[0] == 404

            connections.close_idle()
            place.server.stop()
            text = worker.until("/health/ready", lambda code, _: code == 503)
            assert json.loads(text)["ready"] is False
            text = worker.until("/metrics", lambda _, text: "referrals_outbox_usable 0.0" in text)
            assert "referrals_outbox_messages{" not in text
            assert worker.ask("/health/live") == (200, '{"live": true}')
            place.server.start()
            worker.until("/health/ready", lambda code, _: code == 200)

            pings = worker.supervisor.heard.count("WATCHDOG=1")
            while worker.supervisor.heard.count("WATCHDOG=1") < pings + 3:
                worker.supervisor.listen()
            said = worker.stop()
            assert "relayed" in said
            assert "Traceback" not in said
    assert len(relay.arrived) == 3


def test_the_page_as_its_unit_starts_it(place: Place) -> None:
    unit = Unit.read("referrals-web.service")
    port = free_port()
    secret = (place.home / "etc/referrals/secrets/web_metrics_token").read_text()
    environment = place.environment(unit.name, REFERRALS_WEB_PORT=str(port))
    host = variables(DEPLOY / "web.env.example")["REFERRALS_WEB_ADDRESS"].partition("//")[2]
    with started(unit.command(), environment, place.home) as page:
        page.port = port
        page.supervisor.until("READY=1")
        page.supervisor.until("WATCHDOG=1")
        assert page.ask("/health/ready", Host="elsewhere.example.com")[0] == 421
        assert page.ask("/health/ready", Host=host) == (200, '{"ready":true}')
        assert page.ask("/metrics", Host=host)[0] == 404
        token = f"Bearer {secret}"
        code, figures = page.ask("/metrics", Host=host, Authorization=token)
        assert (code, "referrals_outbox_usable 1.0" in figures) == (200, True)
        for known, outcome in ((host, 0), ("elsewhere.example.com", 1)):
            asked = subprocess.run(
                [sys.executable, DEPLOY / "container" / "healthy", str(port)],
                env={"REFERRALS_WEB_ADDRESS": f"https://{known}"},
                stdout=subprocess.DEVNULL,
                check=False,
            )
            assert asked.returncode == outcome
        assert "Traceback" not in page.stop()


def test_every_other_unit_does_its_work(place: Place) -> None:
    unit = Unit.read("referrals-purge.service")
    place_of_it = place.home / "var/lib/referrals"
    said = run(*unit.command(), env=place.environment(unit.name), cwd=place_of_it)
    assert "Traceback" not in said


def test_a_worker_with_wrong_settings_ends_with_the_code_that_is_not_restarted(
    place: Place,
) -> None:
    unit = Unit.read("referrals-worker@.service")
    with closing(socket.socket()) as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        environment = place.environment(unit.name, REFERRALS_RELAY_HOST="127.0.0.1")
        for health, code, words in (
            (f"127.0.0.1:{port}", 5, "can't be listened on"),
            ("nonsense", 2, "neither a port nor HOST:PORT"),
        ):
            done = subprocess.run(
                [INSTALLED, "worker", "--health", health],
                env=environment,
                capture_output=True,
                text=True,
                timeout=30,
            )
            assert (done.returncode, words in done.stderr) == (code, True), done.stderr
            assert "Traceback" not in done.stderr


# Alerts


def alerts() -> list[dict[str, Any]]:
    told = yaml.safe_load((DEPLOY / "prometheus" / "alerts.yaml").read_text(encoding="utf-8"))
    return [rule for group in told["groups"] for rule in group["rules"]]


def names_of(figures: str) -> set[str]:
    """Every series that may come: of a histogram each of its three."""
    names = set()
    for name, kind in re.findall(r"^# TYPE (\S+) (\S+)$", figures, re.MULTILINE):
        ends = ("_bucket", "_sum", "_count") if kind == "histogram" else ("",)
        names |= {name + end for end in ends}
    return names


def test_every_alert_looks_at_figures_that_there_are(tmp_path: Path) -> None:
    """Those that page and worker answer with; `up` is Prometheus's own."""
    settings = with_relay(tmp_path)
    with asking(settings) as page:
        known = names_of(page.get("/metrics").text) | {"up"}
    vitals = Vitals(supervisor.Supervisor(), 4)
    vitals.recorded(DeliveryStatus.RELAYED)
    with answering("127.0.0.1", 0, settings, vitals) as address:
        known |= names_of(httpx2.get(f"{address}/metrics").text)
    for rule in alerts():
        expression = re.sub(r"\{[^}]*\}|\"[^\"]*\"|\[[^\]]*\]", "", rule["expr"])
        named = set(re.findall(r"\b(?:referrals_\w+|up)\b", expression))
        assert named, rule["alert"]
        assert named <= known, rule["alert"]
    jobs = yaml.safe_load((DEPLOY / "prometheus" / "prometheus.yaml").read_text(encoding="utf-8"))
    named = {job["job_name"] for job in jobs["scrape_configs"]}
    for rule in alerts():
        assert set(re.findall(r'job="([^"]+)"', rule["expr"])) <= named


def test_every_alert_says_what_to_do() -> None:
    anchors = {
        re.sub(r"[^a-z0-9 -]", "", heading.lower()).replace(" ", "-")
        for heading in re.findall(r"^#+ (.+)$", OPERATIONS, re.MULTILINE)
    }
    for rule in alerts():
        page, _, anchor = rule["annotations"]["runbook_url"].partition("#")
        assert page == "docs/operations.md"
        assert anchor in anchors, rule["alert"]
        assert rule["labels"]["severity"] in ("page", "today", "week")
        assert rule["annotations"]["summary"].endswith(".")
    links = re.findall(r"\]\(#([a-z-]+)\)", OPERATIONS)
    assert set(links) <= anchors


def test_the_commands_of_the_operations_page_are_commands() -> None:
    known = set(cli.list_commands(click.Context(cli)))
    texts = [OPERATIONS, (ROOT / "docs" / "deployment.md").read_text(encoding="utf-8")]
    for text in texts:
        for command in re.findall(r"(?:`|sudo |web |\$ )referrals ([a-z]+)", text):
            assert command in known
