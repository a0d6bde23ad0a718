"""A private Postfix with SASL by Dovecot, on loopback ports, in a folder of its own: a relay nobody here wrote.

    with Relay() as destination, Postfix(destination.port, make_certificates(folder)) as postfix:
        postfix.ports["starttls"]

Postfix passes on what it accepts to the destination, where it can be counted by Message-ID. It has to be
started by root: who is not goes through `sudo -n`.
"""

import os
import re
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from socket import create_connection
from typing import Self

from mailqueue.embedded.process import Child, end, spawn
from mailqueue.embedded.redis import free_port
from tests.machine import until

USER, PASSWORD = "ada", "Gänse, füße & 100 % spaß"
#: The largest mail that it takes (bytes).
SIZE_LIMIT = 20_000

_TLS = {"smtpd_tls_security_level": "encrypt", "smtpd_tls_auth_only": "yes"}
#: One port each, by what is special about it.
SERVICES: dict[str, dict[str, str]] = {
    "starttls": _TLS,
    "login": {**_TLS, "smtpd_sasl_mechanism_filter": "login"},
    "cram-md5": {**_TLS, "smtpd_sasl_mechanism_filter": "cram-md5"},
    "cram-md5-or-login": {**_TLS, "smtpd_sasl_mechanism_filter": "cram-md5,login"},
    "smtps": {"smtpd_tls_wrappermode": "yes"},
    # For the one test that counts connections: workers may keep those of other tests open into it.
    "counted": {"smtpd_tls_wrappermode": "yes"},
    "clear": {"smtpd_tls_security_level": "none", "smtpd_tls_auth_only": "no"},
    # For whoever is in its network, without a login: how many a relay in a company's network is set up.
    "open": {
        "smtpd_tls_security_level": "none",
        "smtpd_sasl_auth_enable": "no",
        "smtpd_relay_restrictions": "permit_mynetworks,reject",
    },
}
#: As certificates.make_certificates names them; each is shown on a port with STARTTLS and on one with implicit TLS.
BAD_CERTIFICATES = ("self-signed", "expired", "other-name")
for _name in BAD_CERTIFICATES:
    _shown = {"smtpd_tls_chain_files": f"$certificates/{_name}.pem"}
    SERVICES[_name] = {**_TLS, **_shown}
    SERVICES[f"{_name}-smtps"] = {"smtpd_tls_wrappermode": "yes", **_shown}

_MAIN = """\
compatibility_level = 3.6
queue_directory = {folder}/queue
data_directory = {folder}/data
maillog_file = /dev/stdout
inet_interfaces = loopback-only
inet_protocols = ipv4
myhostname = relay.test
mydestination =
mynetworks = 127.0.0.0/8
alias_maps =
alias_database =
local_recipient_maps =
biff = no

relay_domains = example.com
relay_recipient_maps = regexp:{folder}/recipients
default_transport = smtp:[127.0.0.1]:{destination}
relay_transport = smtp:[127.0.0.1]:{destination}
disable_dns_lookups = yes
message_size_limit = {size}
header_size_limit = {size}
smtp_tls_security_level = none

certificates = {folder}/certificates
smtpd_tls_chain_files = $certificates/good.pem
smtpd_tls_loglevel = 1
smtpd_sasl_auth_enable = yes
smtpd_sasl_type = dovecot
smtpd_sasl_path = {folder}/auth
smtpd_sasl_security_options = noanonymous
smtpd_relay_restrictions = permit_sasl_authenticated, reject
smtpd_recipient_restrictions = check_recipient_access regexp:{folder}/access
smtpd_client_auth_rate_limit = 0
smtpd_error_sleep_time = 0
"""
_RECIPIENTS = r"/^((reader|someone)[0-9]+|grey|busy)@example\.com$/ ok" + "\n"
_ACCESS = """\
/^grey@/ 450 4.7.1 Greylisted, come back later
/^busy@/ 451 4.3.0 Not now
"""
_MASTER = """\
cleanup unix n - n - 0 cleanup
qmgr unix n - n 300 1 qmgr
tlsmgr unix - - n 1000? 1 tlsmgr
rewrite unix - - n - - trivial-rewrite
bounce unix - - n - 0 bounce
defer unix - - n - 0 bounce
trace unix - - n - 0 bounce
verify unix - - n - 1 verify
flush unix n - n 1000? 0 flush
proxymap unix - - n - - proxymap
smtp unix - - n - - smtp
error unix - - n - - error
retry unix - - n - - error
discard unix - - n - - discard
anvil unix - - n - 1 anvil
scache unix - - n - 1 scache
postlog unix-dgram n - n - 1 postlogd
"""
_DOVECOT = """\
base_dir = {folder}/dovecot
state_dir = {folder}/dovecot
log_path = /dev/stderr
protocols =
ssl = no
disable_plaintext_auth = no
auth_mechanisms = plain login cram-md5
auth_failure_delay = 0
passdb {{
  driver = passwd-file
  args = scheme=PLAIN username_format=%u {folder}/users
}}
service auth {{
  unix_listener {folder}/auth {{
    mode = 0666
  }}
}}
service anvil {{
  unix_listener anvil-auth-penalty {{
    mode = 0
  }}
}}
"""


def missing() -> str:
    """What keeps it from running here, as a sentence; empty if nothing does."""
    lacking = [package for program, package in _PROGRAMS.items() if not _path(program)]
    if lacking:
        return f"Postfix with SASL needs these packages: {', '.join(lacking)}."
    if os.geteuid() and subprocess.run(["sudo", "-n", "true"], capture_output=True, check=False).returncode:
        return "Postfix has to be started by root, and `sudo -n` asks for a password."
    return ""


_PROGRAMS = {"postfix": "postfix", "dovecot": "dovecot-core"}


def _path(program: str) -> str | None:
    """Debian keeps both in sbin, which is not on everybody's PATH."""
    return shutil.which(program, path=f"{os.environ.get('PATH', '')}:/usr/sbin")


class Postfix:
    """Start it with `with`. `ports`: by the names of SERVICES, and `expired`, `expired-smtps` and so on."""

    def __init__(self, destination: int, certificates: Path, **settings: str) -> None:
        """`destination`: the loopback port to which everything goes on. `settings` are lines of main.cf."""
        self.destination, self.certificates, self.settings = destination, certificates, settings
        self.ports = {name: free_port() for name in SERVICES}

    def __enter__(self) -> Self:
        # Not pytest's own folder: that is closed to Postfix's and Dovecot's users, and too long for a socket.
        self.folder = Path(tempfile.mkdtemp(prefix="postfix-"))
        self.log = self.folder / "log"
        self._children: list[Child] = []
        try:
            self._configure()
            self._start("dovecot", "-F", "-c", str(self.folder / "dovecot.conf"))
            self._start("postfix", "-c", str(self.folder / "etc"), "start-fg")
            until((self.folder / "auth").is_socket, "Dovecot listens")
            until(lambda: all(map(_listens, self.ports.values())), "Postfix listens")
        except BaseException as error:
            error.add_note(self.log.read_text(errors="replace")[-2000:] if self.log.exists() else "")
            self.__exit__()
            raise
        return self

    def __exit__(self, *_exc: object) -> None:
        stops = {
            "dovecot": ("-c", str(self.folder / "dovecot.conf"), "stop"),
            "postfix": ("-c", str(self.folder / "etc"), "abort"),
        }
        for name, arguments in stops.items():
            subprocess.run(self._as_root(name, *arguments), capture_output=True, check=False)
        for child in self._children:
            with suppress(subprocess.TimeoutExpired):  # it may be sudo, to which we cannot send a signal
                child.wait(10)
            end(child, signal.SIGTERM, 10)
        subprocess.run([*_SUDO, "rm", "-rf", self.folder], check=False)

    # What it saw ------------------------------------------------------------------------------------

    def said(self, service: str = "") -> str:
        """Its log, or what one service wrote into it."""
        lines = self.log.read_text(errors="replace").splitlines()
        return "\n".join(line for line in lines if f"postfix/{service}" in line)

    def sessions(self, service: str) -> list[Mapping[str, str]]:
        """The connections that have ended, in order: how many of which command, as {"auth": "0/1"}.

        0/1 is one that failed. Who only connects, as `__enter__` does, is left out.
        """
        ended = re.findall(r"smtpd\[\d+\]: disconnect from \S+ (.*)", self.said(f"{service}/"))
        counts = [dict(word.split("=", 1) for word in words.split()) for words in ended]
        return [count for count in counts if set(count) - {"commands", "quit"}]

    def logins(self, service: str) -> list[str]:
        """The mechanism of each mail's login."""
        return re.findall(r"sasl_method=(\S+), sasl_username=", self.said(f"{service}/"))

    # How it is made ---------------------------------------------------------------------------------

    def _configure(self) -> None:
        self.folder.chmod(0o711)
        values = {"folder": self.folder, "destination": self.destination, "size": SIZE_LIMIT}
        main = _MAIN.format(**values) + "".join(
            f"{name} = {value}\n" for name, value in self.settings.items()
        )
        files = {
            "etc/main.cf": main,
            "etc/master.cf": _MASTER + "".join(map(self._service, SERVICES)),
            "recipients": _RECIPIENTS,
            "access": _ACCESS,
            "dovecot.conf": _DOVECOT.format(**values),
            "users": f"{USER}:{{PLAIN}}{PASSWORD}\n",
        }
        for name, content in files.items():
            (self.folder / name).parent.mkdir(exist_ok=True)
            (self.folder / name).write_text(content)
        shutil.copytree(self.certificates, self.folder / "certificates")
        for name, owner in {"etc": "root", "queue": "root", "data": "postfix"}.items():
            subprocess.run(
                [*_SUDO, "install", "-d", "-m", "755", "-o", owner, self.folder / name], check=True
            )
        subprocess.run([*_SUDO, "chown", "-R", "root", self.folder / "etc"], check=True)

    def _service(self, name: str) -> str:
        """One smtpd in master.cf, on its port and under its name in the log."""
        options = {"syslog_name": f"postfix/{name}", **SERVICES[name]}
        head = f"127.0.0.1:{self.ports[name]} inet n - n - - smtpd\n"
        return head + "".join(f"  -o {option}={value}\n" for option, value in options.items())

    def _start(self, name: str, *arguments: str) -> None:
        with self.log.open("ab") as log:
            self._children.append(spawn(self._as_root(name, *arguments), output=log))

    def _as_root(self, name: str, *arguments: str) -> list[str]:
        return [*_SUDO, _path(name) or name, *arguments]


_SUDO = [] if os.geteuid() == 0 else ["sudo", "-n"]


def _listens(port: int) -> bool:
    try:
        create_connection(("127.0.0.1", port), timeout=1).close()
    except OSError:
        return False
    return True
