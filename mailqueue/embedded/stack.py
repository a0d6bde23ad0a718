"""Everything on one machine under one command: starts it in order, keeps it running, takes it down."""

import asyncio
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime
from functools import partial
from itertools import cycle
from pathlib import Path

from honcho.colour import get_colours
from honcho.printer import Message, Printer
from rich.console import Console
from rich.table import Table

from mailqueue.embedded import environment, parts
from mailqueue.embedded.keeper import Keeper
from mailqueue.embedded.process import MARK, CannotStartError, Child, Server, end_leftovers, spawn
from mailqueue.embedded.services import needed

PORTS = ("PORT", "FLOWER_PORT", "SANDBOX_SMTP_PORT")
SERVERS_WITHIN = 60.0
#: A second signal this soon is the first one, passed on once more by a shell or make.
SAME_SIGNAL = 1.0


def run() -> int:
    """Until Ctrl-C or SIGTERM; returns the exit code."""
    data = environment.data_dir()
    try:
        with environment.held(data):
            return _run_alone(data)
    except environment.Busy as busy:
        sys.stderr.write(
            f"A stack runs on {data} already (process {busy}). Stop it, or choose another folder:"
            " make run DATA_DIR=elsewhere\n"
        )
    except PermissionError as error:
        sys.stderr.write(f"{error.filename}: no permission. Another user may have made it; see DATA_DIR.\n")
    return 1


def _run_alone(data: Path) -> int:
    environment.unpublish(data)
    env = environment.complete(data)
    for process in end_leftovers(data):
        sys.stderr.write(f"left over from an earlier run, ended: {process}\n")
    taken = [name for name in PORTS if not _is_free(int(env[name]))]
    for name in taken:
        sys.stderr.write(f"Port {env[name]} is taken ({name}).\n")
    if taken:
        other = " ".join(f"{name}={int(env[name]) + 1}" for name in taken)
        sys.stderr.write(f"Stop what uses it, or choose another: make run {other}\n")
        return 1
    return asyncio.run(Stack(data, env).run())


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


class Stack:
    def __init__(self, data: Path, env: dict[str, str]) -> None:
        self.data = data
        self.env = env
        self.servers = needed(env, data)
        self.parts = parts.all_parts(env | {MARK: str(data)}, self._flower_login())
        self.keepers: dict[str, Keeper] = {}
        self.stop = asyncio.Event()
        self.hurry = asyncio.Event()
        self._stopped_at = 0.0
        self._printer = Printer(output=sys.stdout, width=max(len(part.name) for part in self.parts) + 1)
        self._colours = cycle(get_colours())
        self._colour_of: dict[str, str] = {}

    async def run(self) -> int:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            loop.add_signal_handler(number, self._told_to_stop)
        start = asyncio.create_task(self._start())
        stop = asyncio.create_task(self.stop.wait())
        try:
            await asyncio.wait({start, stop}, return_when=asyncio.FIRST_COMPLETED)
            if start.done():
                start.result()
                await stop
            else:
                start.cancel()
        except CannotStartError as error:
            self.say("stack", str(error))
            return 1
        finally:
            await self._end()
        return 0

    def say(self, name: str, text: str) -> None:
        colour = self._colour_of.setdefault(name, next(self._colours))
        now = datetime.now(UTC).astimezone()
        try:
            self._printer.write(Message("line", text, now, name, colour))
        except OSError:  # nobody reads any more: the terminal or the pipe is gone
            self.stop.set()

    def _told_to_stop(self) -> None:
        now = time.monotonic()
        if not self.stop.is_set():
            self._stopped_at = now
            self.stop.set()
        elif now - self._stopped_at > SAME_SIGNAL:
            self.hurry.set()

    async def _start(self) -> None:
        await asyncio.gather(*(self._start_server(server) for server in self.servers))
        environment.publish(self.data, self.env)
        prepare = parts.prepare(self.env | {MARK: str(self.data)})
        if await self._keeper(prepare).run_once():
            raise CannotStartError("the database could not be prepared; see above")
        for part in self.parts:
            self._keeper(part).keep()
        await asyncio.gather(*(self._until_up(part) for part in self.parts))
        self._welcome()

    async def _start_server(self, server: Server) -> None:
        server.prepare()

        def start() -> Child:
            return server.spawn(subprocess.PIPE, self.env | {MARK: str(self.data)})

        keeper = Keeper(server.name, start, self.say, stop_signal=server.stop_signal)
        self.keepers[server.name] = keeper
        keeper.keep()
        deadline = time.monotonic() + SERVERS_WITHIN
        while not server.answers():
            if time.monotonic() > deadline:
                raise CannotStartError(f"{server.name} does not answer")
            await asyncio.sleep(0.05)

    def _keeper(self, part: parts.Part) -> Keeper:
        start: Callable[[], Child] = partial(spawn, part.command, env=part.env, output=subprocess.PIPE)
        self.keepers[part.name] = Keeper(part.name, start, self.say, greeting=part.greeting)
        return self.keepers[part.name]

    async def _until_up(self, part: parts.Part) -> None:
        keeper = self.keepers[part.name]
        while not (keeper.is_running and await part.is_up(keeper.greeted, keeper.age)):  # noqa: ASYNC110 -- only asking tells
            await asyncio.sleep(0.1)

    async def _end(self) -> None:
        self.say("stack", "stopping")
        began = time.monotonic()
        for names, seconds in parts.STOPPED_BY:
            left = max(began + seconds - time.monotonic(), 0.5)
            present = [self.keepers[name] for name in names if name in self.keepers]
            await asyncio.gather(*(keeper.end(left, self.hurry) for keeper in present))
        for server in self.servers:
            server.tidy()
        environment.unpublish(self.data)
        self.say("stack", "stopped")

    def _flower_login(self) -> str:
        password = environment.value(self.env, "ADMIN_PASSWORD")
        if "," in password and not self.env.get("FLOWER_BASIC_AUTH"):
            raise CannotStartError(
                "ADMIN_PASSWORD has a comma, at which Flower splits logins: set FLOWER_BASIC_AUTH too."
            )
        return f"{environment.value(self.env, 'ADMIN_EMAIL')}:{password}"

    def _welcome(self) -> None:
        port, flower, smtp = (self.env[name] for name in PORTS)
        home = f"http://127.0.0.1:{port}"
        table = Table(show_header=False, box=None, padding=(0, 2))
        for row in (
            ("API", f"{home}/api/docs"),
            ("admin", f"{home}/admin/"),
            ("sandbox inbox", f"{home}/sandbox/"),
            ("Flower", f"http://127.0.0.1:{flower}"),
            ("sandbox SMTP", f"127.0.0.1:{smtp}"),
            ("login", environment.value(self.env, "ADMIN_EMAIL")),
            (
                "password",
                "as you set it" if environment.given("ADMIN_PASSWORD") else self.env["ADMIN_PASSWORD"],
            ),
        ):
            table.add_row(*row)
        try:
            sys.stdout.write(f"ready: {home}\n")
            Console(file=sys.stdout, highlight=False, soft_wrap=True).print(table)
            sys.stdout.flush()
        except OSError:
            self.stop.set()
