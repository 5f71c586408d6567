"""A real Postfix as submission service: its own folder, ports and login, and no way out.

It has no service that could send anything on: whatever it takes ends in one Maildir.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import pytest

from referrals.sink import CertificatePair
from tests.peers import Certificates
from tests.smtp_sink import free_port, is_listening, need, wait_until

LOGIN = ("officer", "a long enough password 1")
REALM = "relay.test"
ANVIL_UNIT_S = 1
_DAEMONS = Path("/usr/lib/postfix/sbin")
_SASLPASSWD = Path("/usr/sbin/saslpasswd2")
_NOBODY = 65534

_MAIN = """\
compatibility_level = 3.6
queue_directory = {folder}/queue
data_directory = {folder}/data
daemon_directory = /usr/lib/postfix/sbin
command_directory = /usr/sbin
shlib_directory = /usr/lib/postfix
meta_directory = /etc/postfix
mail_owner = postfix
setgid_group = postdrop
maillog_file = {folder}/log
maillog_file_prefixes = {folder}
myhostname = relay.test
mydestination =
mynetworks =
inet_interfaces = 127.0.0.1
inet_protocols = ipv4
alias_maps =
alias_database =
default_transport = error:this one sends nothing on
relay_transport = error:this one sends nothing on
virtual_mailbox_domains = static:all
virtual_mailbox_maps = static:all/
virtual_mailbox_base = {folder}/mail
virtual_uid_maps = static:{uid}
virtual_gid_maps = static:{gid}
virtual_minimum_uid = 1
smtpd_tls_security_level = encrypt
smtpd_tls_chain_files = {key}, {certificate}
smtpd_sasl_auth_enable = yes
smtpd_sasl_local_domain = {realm}
cyrus_sasl_config_path = {folder}/sasl
smtpd_relay_restrictions = permit_sasl_authenticated, reject
smtpd_recipient_restrictions =
smtpd_error_sleep_time = 0
smtpd_client_event_limit_exceptions =
anvil_rate_time_unit = {unit}s
"""
_SASL = """\
pwcheck_method: auxprop
auxprop_plugin: sasldb
sasldb_path: {folder}/sasl/db
mech_list: {mechanisms}
"""
_INSIDE = """\
cleanup unix n - n - 0 cleanup
qmgr unix n - n 300 1 qmgr
rewrite unix - - n - - trivial-rewrite
bounce unix - - n - 0 bounce
defer unix - - n - 0 bounce
trace unix - - n - 0 bounce
error unix - - n - - error
retry unix - - n - - error
virtual unix - n n - - virtual
tlsmgr unix - - n 1000? 1 tlsmgr
anvil unix - - n - 1 anvil
proxymap unix - - n - - proxymap
postlog unix-dgram n - n - 1 postlogd
"""


@dataclass(frozen=True)
class Port:
    port: int
    host: str = "127.0.0.1"


class Postfix:
    """One Postfix with a port for each of `services`, which are parameters by name.

    Every service demands TLS and a login unless its own parameters say otherwise.
    """

    def __init__(
        self, certificates: Certificates, services: Mapping[str, Mapping[str, str]]
    ) -> None:
        need(_DAEMONS / "master", _SASLPASSWD)
        self._as_root = _as_root()
        self._certificates = certificates
        self._services = services
        self.ports = {name: free_port() for name in services}
        self._master: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        # Not below pytest's folder, which is for one user alone: Postfix has several.
        self._folder = Path(tempfile.mkdtemp(prefix="postfix-"))
        self._folder.chmod(0o755)
        try:
            self._write()
            self.start()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()
        self._run("rm", "-rf", self._folder)

    def _run(self, *command: str | Path, given: bytes = b"") -> bytes:
        done = subprocess.run(
            [*self._as_root, *command], input=given, capture_output=True, check=False, timeout=30
        )
        assert done.returncode == 0, (command, done.stderr)
        return done.stdout

    def _write(self) -> None:
        folder, good = self._folder, self._certificates.good
        own = folder / "certificates"
        own.mkdir()
        # Postfix's certificates are in its reach, and its private keys are root's.
        for pair in (good, self._certificates.expired, self._certificates.other_host,
                     self._certificates.self_signed):  # fmt: skip
            for part in (pair.certificate, pair.key):
                self._run("cp", part, own / part.name)
        uid = os.geteuid() or _NOBODY
        (folder / "main.cf").write_text(
            _MAIN.format(
                folder=folder,
                uid=uid,
                gid=os.getegid() or _NOBODY,
                key=own / good.key.name,
                certificate=own / good.certificate.name,
                realm=REALM,
                unit=ANVIL_UNIT_S,
            )
        )
        listening = ""
        for name, parameters in self._services.items():
            listening += f"127.0.0.1:{self.ports[name]} inet n - n - - smtpd\n"
            listening += f"  -o {{ syslog_name = {name} }}\n"
            for key, value in parameters.items():
                listening += f"  -o {{ {key} = {value.format(folder=own)} }}\n"
        (folder / "master.cf").write_text(listening + _INSIDE)
        sasl = folder / "sasl"
        sasl.mkdir()
        (sasl / "smtpd.conf").write_text(_SASL.format(folder=folder, mechanisms="PLAIN LOGIN"))
        user, password = LOGIN
        self._run(_SASLPASSWD, "-p", "-c", "-f", sasl / "db", "-u", REALM, user,
                  given=password.encode())  # fmt: skip
        self._run("chown", "-R", "postfix", sasl)
        for names, owner, mode in (
            ("active bounce corrupt defer deferred flush hold incoming private saved trace",
             "postfix", "700"),
            ("maildrop public", "postfix", "710"),
            ("pid", "root", "755"),
        ):  # fmt: skip
            places = [folder / "queue" / name for name in names.split()]
            self._run("install", "-d", "-o", owner, "-m", mode, *places)
        self._run("install", "-d", "-o", "postfix", "-m", "700", folder / "data")
        self._run("install", "-d", "-o", str(uid), "-m", "700", folder / "mail")

    def at(self, service: str) -> Port:
        return Port(self.ports[service])

    def start(self) -> None:
        self._master = subprocess.Popen(
            [*self._as_root, _DAEMONS / "master", "-c", self._folder, "-d"],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        wait_until(
            lambda: (
                all(map(is_listening, self.ports.values()))
                or (self._master and self._master.poll() is not None)
            ),
            "Postfix to listen",
        )
        assert self._master.poll() is None, self.log()

    def stop(self) -> None:
        """As `postfix stop` does: its processes finish what they are at, then end."""
        self._signal(signal.SIGTERM)

    def kill(self) -> None:
        """All of its processes at once, without a word."""
        self._signal(signal.SIGKILL, to_all=True)

    def pause(self) -> None:
        self._signal(signal.SIGSTOP, to_all=True, ends=False)

    def resume(self) -> None:
        self._signal(signal.SIGCONT, to_all=True, ends=False)

    def _signal(self, number: signal.Signals, *, to_all: bool = False, ends: bool = True) -> None:
        if self._master is None:
            return
        # Its own word for it: what we started may be sudo.
        master = int(self._run("cat", self._folder / "queue" / "pid" / "master.pid"))
        whom = -os.getpgid(master) if to_all else master
        # The shell's own: a small Debian has no other.
        self._run("bash", "-c", f"kill -{number.value} -- {whom}")
        if ends:
            self._master.wait(20)
            self._master = None

    def log(self) -> str:
        written = self._run("sh", "-c", f"cat {self._folder}/log 2>/dev/null || true")
        return written.decode(errors="replace")

    def arrived(self) -> list[bytes]:
        """Every message in the Maildir, once the queue has run empty; line ends are CRLF."""
        queue = self._folder / "queue"
        places = [queue / name for name in ("incoming", "active", "deferred")]
        # A file that Postfix has promised to deliver is executable; others are half-written.
        whole: list[str | Path] = ["find", *places, "-type", "f", "-perm", "-u+x"]
        wait_until(lambda: not self._run(*whole), "the queue to run empty")
        new = self._folder / "mail" / "all" / "new"
        # The parent is for its owner alone; root reads it anyway.
        found = sorted(new.iterdir()) if new.exists() else []
        return [path.read_bytes().replace(b"\n", b"\r\n") for path in found]

    def forget(self) -> None:
        """Empty the Maildir."""
        self._run("rm", "-rf", self._folder / "mail" / "all")


def presenting(pair: CertificatePair) -> dict[str, str]:
    """The parameters of a service that shows this certificate."""
    return {
        "smtpd_tls_chain_files": f"{{folder}}/{pair.key.name}, {{folder}}/{pair.certificate.name}"
    }


def _as_root() -> list[str]:
    if os.geteuid() == 0:
        return []
    sudo = shutil.which("sudo")
    if (
        sudo
        and not subprocess.run([sudo, "-n", "true"], check=False, capture_output=True).returncode
    ):
        return [sudo, "-n"]
    if os.environ.get("CI"):
        pytest.fail("Postfix needs root, or sudo without a password")
    pytest.skip("Postfix needs root, or sudo without a password")
