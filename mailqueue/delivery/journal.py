"""What one worker process knows about its mails and the ledger does not yet: an append-only file.

A line before each final dot and one after its reply, in the kernel's hands (no fsync) before the worker goes on,
so that they outlive a killed process. The next courier of this machine reads what dead ones left (recovery.py).

    B boot-id                          the machine's start in which it was written
    C token                            mails are held under this claim token
    D id token                         the final dot may leave
    R id token phase code fault text   how the transaction ended

A process holds its file by flock as long as it lives; whoever can lock a file has a dead one's before him.
"""

import contextlib
import errno
import fcntl
import os
import threading
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path

from mailqueue.delivery.replies import Answer, Fault
from tasks.ledger import Claimed
from tasks.states import Phase

#: Written anew, with what is still open, when so many bytes have been added.
LARGEST = 4 * 1024 * 1024
#: Longest text of a reply that is kept (characters), as on the row.
MOST_TEXT = 500
#: An unfinished new file is older than this (seconds) only if its maker has died over it.
SURELY_ABANDONED = 3600
_FINISHED, _UNFINISHED = ".journal", ".new"


class UnwritableError(Exception):
    """The journal cannot be written."""


class Journal:
    """The file of one living process. Its methods may be called from any thread.

    It is made with the first line, so that a courier without mail leaves nothing behind.
    """

    def __init__(self, folder: Path, worker: str) -> None:
        # The worker's name is its host and process id, and in a container that is the same after each restart.
        self._path = folder / f"{worker}:{uuid.uuid4().hex[:12]}{_FINISHED}"
        self._open: dict[uuid.UUID, dict[int, bytes]] = {}
        self._lock = threading.Lock()
        self._fd: int | None = None
        self._size = self._largest = 0

    def claimed(self, token: uuid.UUID) -> None:
        """Mails are about to be held under this token; twice is once. UnwritableError if that cannot be noted."""
        with self._lock:
            if token in self._open:
                return
            self._open[token] = {}
            try:
                self._write(b"C %s\n" % token.hex.encode())
            except UnwritableError:
                del self._open[token]
                raise

    def dot(self, mail: Claimed) -> None:
        """The final dot is about to leave. UnwritableError if that cannot be noted: then it must not."""
        with self._lock:
            self._note(mail, b"D %d %032x\n" % (mail.id, mail.token.int))

    def reply(self, mail: Claimed, answer: Answer) -> None:
        """The transaction has ended; UnwritableError if that cannot be noted."""
        text = " ".join(answer.text.split())[:MOST_TEXT].encode("utf-8", "replace")
        fault = answer.fault.name.encode() if answer.fault else b"-"
        end = (mail.id, mail.token.int, answer.phase, answer.code or 0, fault, text)
        with self._lock:
            self._note(mail, b"R %d %032x %d %d %s %s\n" % end)

    def settled(self, mail: Claimed) -> None:
        """The ledger knows."""
        with self._lock:
            self._open.get(mail.token, {}).pop(mail.id, None)

    def released(self, token: uuid.UUID) -> None:
        """Nothing is held under it any more."""
        with self._lock:
            self._open.pop(token, None)

    def close(self) -> None:
        """At the end of the process; leaves the file to the next courier if anything is still held."""
        with self._lock:
            if self._fd is None:
                return
            if not self._open:
                self._path.unlink(missing_ok=True)
            os.close(self._fd)
            self._fd = None

    def _note(self, mail: Claimed, line: bytes) -> None:
        self._open[mail.token][mail.id] = line
        self._write(line)

    def _write(self, line: bytes) -> None:
        try:
            if self._fd is None or self._size > self._largest:
                self._begin_anew()  # with this line in it, for it is noted as open already
                return
            self._append(self._fd, line)
        except OSError as error:
            raise UnwritableError(f"{self._path}: {error.strerror}") from error

    def _append(self, fd: int, line: bytes) -> None:
        try:
            _write_all(fd, line)
        except OSError:
            os.ftruncate(fd, self._size)  # half a line must not spoil the next
            raise
        self._size += len(line)

    def _begin_anew(self) -> None:
        """A file with what is open takes the place of the old one. It is locked before it has its name, and the
        old one is let go after that: at no moment could another take the file for a dead process's."""
        unfinished = self._path.with_suffix(_UNFINISHED)
        self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        lines = [b"B %s\n" % boot_id().encode()]
        for token, mails in self._open.items():
            lines += [b"C %s\n" % token.hex.encode(), *mails.values()]
        content = b"".join(lines)
        fd = os.open(unfinished, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX)
            _write_all(fd, content)
            unfinished.replace(self._path)
        except OSError:
            os.close(fd)
            with contextlib.suppress(OSError):
                unfinished.unlink()
            raise
        if self._fd is not None:
            os.close(self._fd)
        self._fd, self._size, self._largest = fd, len(content), len(content) + LARGEST


def _write_all(fd: int, data: bytes) -> None:
    if os.write(fd, data) < len(data):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@lru_cache
def boot_id() -> str:
    """Changes when the machine starts; empty where there is none to read, which equals no other."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return ""


type_mail = tuple[int, uuid.UUID]


@dataclass
class Content:
    """What a journal says: claim tokens, and the last word on each mail whose transaction came far enough."""

    tokens: set[uuid.UUID] = field(default_factory=set)
    #: Mails whose dot may have left; the answer, where it is known.
    answers: dict[type_mail, Answer | None] = field(default_factory=dict)
    #: Written since the machine was started. Lines of before may be missing, for nobody waited for the disk.
    is_whole: bool = False


def parse(data: bytes) -> Content:
    """Lines that make no sense are skipped, and so is a last one that was not finished."""
    content = Content()
    for line in data.split(b"\n")[:-1]:
        with contextlib.suppress(ValueError, KeyError):
            _read_line(content, line)
    return content


def _read_line(content: Content, line: bytes) -> None:
    kind, _, rest = line.decode().partition(" ")
    if kind == "B":
        content.is_whole = rest != "" and rest == boot_id()
    elif kind == "C":
        content.tokens.add(_token(rest))
    elif kind == "D":
        pk, token = rest.split(" ")
        content.answers[int(pk), _token(token)] = None
    elif kind == "R":
        pk, token, phase, code, fault, text = rest.split(" ", 5)
        answer = Answer(Phase(int(phase)), int(code) or None, text, None if fault == "-" else Fault[fault])
        content.answers[int(pk), _token(token)] = answer


def _token(text: str) -> uuid.UUID:
    if len(text) != 32:
        raise ValueError(text)
    return uuid.UUID(text)


def files_of(folder: Path, worker: str) -> list[Path]:
    """The journals in the folder of this worker's host, and those written since this machine's start by any other
    container, whose name may never come back. Another machine's may be alive, for on a shared volume flock need not
    reach from one machine to the next."""
    host = worker.rpartition(":")[0]
    ours = [
        path
        for path in sorted(folder.glob("*"))
        if _worker_of(path).rpartition(":")[0] == host or _is_of_this_start(path)
    ]
    for path in ours:
        with contextlib.suppress(FileNotFoundError):
            if path.suffix == _UNFINISHED and time.time() - path.stat().st_mtime > SURELY_ABANDONED:
                path.unlink()
    return [path for path in ours if path.suffix == _FINISHED]


def _is_of_this_start(path: Path) -> bool:
    """Whether its first line names the start of the machine that we run on: there flock reaches everybody."""
    try:
        with path.open("rb") as file:
            return boot_id() != "" and file.readline(100) == b"B %s\n" % boot_id().encode()
    except FileNotFoundError:  # somebody has settled it meanwhile
        return False


def _worker_of(path: Path) -> str:
    return path.name.rpartition(":")[0]


@dataclass
class LeftBehind:
    """A dead process's journal, which is ours alone for now."""

    path: Path
    content: Content

    @property
    def worker(self) -> str:
        """Whose it was."""
        return _worker_of(self.path)

    def remove(self) -> None:
        """Everything in it is settled."""
        self.path.unlink(missing_ok=True)


@contextlib.contextmanager
def left_behind(path: Path) -> Iterator[LeftBehind | None]:
    """The journal if its process is dead and nobody else has it in hand, else None."""
    try:
        fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError:  # somebody was faster
        yield None
        return
    with os.fdopen(fd, "rb") as file:
        yield LeftBehind(path, parse(file.read())) if _is_ours_now(fd, path) else None


def _is_ours_now(fd: int, path: Path) -> bool:
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        # What we have locked may have been removed or replaced since we opened it.
        return os.path.samestat(os.fstat(fd), path.stat())
    except (BlockingIOError, FileNotFoundError):
        return False
