"""A private Exim on loopback ports, in a folder of its own: a relay that nobody here wrote, and unlike Postfix.

    with Relay() as destination, Exim(destination.port, make_certificates(folder)) as exim:
        exim.ports["starttls"]

It passes on what it accepts to the destination. It runs without root, from where .ci/unpack-exim has put it, and
asks for its own user by name, which libnss-wrapper answers: nothing of the machine is changed.
"""

import grp
import os
import pwd
import re
import shutil
import signal
import tempfile
from collections.abc import Iterable
from pathlib import Path
from socket import create_connection
from typing import Self

from mailqueue.embedded.process import ROOT, end, spawn
from mailqueue.embedded.redis import free_port
from tests.machine import until

USER, PASSWORD = "ada", "Gänse, füße & 100 % spaß"
#: The largest mail that it takes (bytes).
SIZE_LIMIT = 20_000
#: One port each: with STARTTLS but for "smtps"; offering the mechanism of that name alone, or all.
SERVICES = ("starttls", "smtps", "login", "cram-md5")
UNPACKED, _PROGRAM = ROOT / ".local" / "exim", "usr/sbin/exim4"

_CONFIGURATION = r"""
primary_hostname = relay.test
spool_directory = FOLDER/spool
log_file_path = FOLDER/%s.log
log_selector = +incoming_interface
pid_file_path =
keep_environment =
local_interfaces = 127.0.0.1
daemon_smtp_ports = ALL_PORTS
tls_on_connect_ports = SMTPS_PORT
tls_advertise_hosts = *
tls_certificate = FOLDER/good.pem
tls_privatekey = FOLDER/good.pem
message_size_limit = SIZE
smtp_accept_max = 100
smtp_accept_queue_per_connection = 0
deliver_drop_privilege
acl_smtp_rcpt = recipient

begin acl
recipient:
  deny !authenticated = *
  defer recipients = grey@example.com
        message = Greylisted, come back later
  deny !recipients = \N^reader\d+@example\.com$\N
       message = Nobody of that name
  accept

begin routers
onwards:
  driver = manualroute
  route_list = * 127.0.0.1 byname
  self = send
  transport = onwards

begin transports
onwards:
  driver = smtp
  port = DESTINATION
  hosts_try_dane =

begin authenticators
plain:
  driver = plaintext
  public_name = PLAIN
  server_prompts = :
  server_condition = ${if eq{$auth3}{${lookup{$auth2}lsearch{FOLDER/users}{$value}fail}}}
  server_set_id = $auth2
  server_advertise_condition = ${if def:tls_in_cipher {${if inlist{$received_port}{OFFER_PLAIN}}}}
login:
  driver = plaintext
  public_name = LOGIN
  server_prompts = Username:: : Password::
  server_condition = ${if eq{$auth2}{${lookup{$auth1}lsearch{FOLDER/users}{$value}fail}}}
  server_set_id = $auth1
  server_advertise_condition = ${if def:tls_in_cipher {${if inlist{$received_port}{OFFER_LOGIN}}}}
cram:
  driver = cram_md5
  public_name = CRAM-MD5
  server_secret = ${lookup{$auth1}lsearch{FOLDER/users}{$value}fail}
  server_set_id = $auth1
  server_advertise_condition = ${if def:tls_in_cipher {${if inlist{$received_port}{OFFER_CRAM_MD5}}}}
"""


def missing() -> str:
    """What keeps it from running here, as a sentence; empty if nothing does."""
    there = (UNPACKED / _PROGRAM).exists()
    return "" if there else "Exim is not there; .ci/unpack-exim fetches it where there is apt."


class Exim:
    """Start it with `with`. `ports`: by the names of SERVICES."""

    def __init__(self, destination: int, certificates: Path) -> None:
        """`destination`: the loopback port to which everything goes on."""
        self.destination, self.certificates = destination, certificates
        self.ports = {name: free_port() for name in SERVICES}

    def __enter__(self) -> Self:
        # Not pytest's own folder: that is closed to other users.
        self.folder = Path(tempfile.mkdtemp(prefix="exim-"))
        self._user = "mail" if os.geteuid() == 0 else None
        try:
            self._configure()
            command = [str(self.folder / _PROGRAM), "-C", str(self.folder / "exim.conf"), "-bdf"]
            with (self.folder / "said.log").open("wb") as said:
                self._child = spawn(
                    command, env=self._environment(), cwd=self.folder, user=self._user, output=said
                )
        except BaseException:
            shutil.rmtree(self.folder)
            raise
        try:
            until(self._listens_or_has_died, "Exim listens")
            assert self._child.poll() is None, "Exim ended at once"
        except BaseException as error:
            error.add_note(self.said()[-2000:])
            self.__exit__()
            raise
        return self

    def __exit__(self, *_exc: object) -> None:
        end(self._child, signal.SIGTERM, 10)
        shutil.rmtree(self.folder)

    def said(self) -> str:
        """Its logs."""
        return "".join(log.read_text(errors="replace") for log in sorted(self.folder.glob("*.log")))

    def logins(self, service: str) -> list[str]:
        """The mechanism of each accepted mail's login."""
        lines = [line for line in self.said().splitlines() if f"I=[127.0.0.1]:{self.ports[service]} " in line]
        return [found[1] for line in lines if (found := re.search(r" <= .* A=(\w+):", line))]

    def _listens_or_has_died(self) -> bool:
        return self._child.poll() is not None or all(map(_listens, self.ports.values()))

    def _configure(self) -> None:
        # A copy, for the clone may lie in a folder that is closed to other users.
        for name in ("usr/sbin", "usr/lib"):
            shutil.copytree(UNPACKED / name, self.folder / name, symlinks=True)
        values: dict[str, object] = {
            "FOLDER": self.folder,
            "ALL_PORTS": _list(self.ports.values()),
            "SMTPS_PORT": self.ports["smtps"],
            "SIZE": SIZE_LIMIT,
            "DESTINATION": self.destination,
        }
        for name in ("plain", "login", "cram-md5"):
            offering = {
                port for service, port in self.ports.items() if service in (name, "starttls", "smtps")
            }
            values[f"OFFER_{name.upper().replace('-', '_')}"] = _list(offering)
        uid, gid = (os.getuid(), os.getgid())
        if self._user:
            uid, gid = pwd.getpwnam(self._user).pw_uid, grp.getgrnam(self._user).gr_gid
        files = {
            "exim.conf": re.sub("|".join(values), lambda name: str(values[name[0]]), _CONFIGURATION),
            "users": f"{USER}: {PASSWORD}\n",
            "passwd": f"Debian-exim:x:{uid}:{gid}::/nonexistent:/usr/sbin/nologin\n",
            "group": f"Debian-exim:x:{gid}:\n",
            "good.pem": (self.certificates / "good.pem").read_text(),
        }
        for name, content in files.items():
            (self.folder / name).write_text(content)
            (self.folder / name).chmod(0o600)
        for path in [self.folder, *self.folder.iterdir()]:
            os.chown(path, uid, gid)

    def _environment(self) -> dict[str, str]:
        libraries = {str(path.parent) for path in self.folder.glob("usr/lib/**/*.so*")}
        return {
            "PATH": os.environ["PATH"],
            "LD_LIBRARY_PATH": ":".join(sorted(libraries)),
            "LD_PRELOAD": "libnss_wrapper.so",
            "NSS_WRAPPER_PASSWD": str(self.folder / "passwd"),
            "NSS_WRAPPER_GROUP": str(self.folder / "group"),
        }


def _list(ports: Iterable[int]) -> str:
    return " : ".join(map(str, ports))


def _listens(port: int) -> bool:
    try:
        create_connection(("127.0.0.1", port), timeout=1).close()
    except OSError:
        return False
    return True
