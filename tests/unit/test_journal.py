"""The journal of a worker process: what is in it outlives the process, and it does not grow without end."""

import errno
import os
import subprocess
import sys
import uuid
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mailqueue.delivery import journal
from mailqueue.delivery.journal import Content, Journal, UnwritableError, files_of, left_behind, parse
from mailqueue.delivery.replies import Answer, Fault
from mailqueue.embedded.process import ROOT
from tasks.ledger import Claimed
from tasks.states import Phase

TOKEN = uuid.UUID(int=7)
WORKER = "host:1"
TAKEN = Answer(Phase.REPLY, 250, "2.0.0 taken")


def mail(pk: int, token: uuid.UUID = TOKEN) -> Claimed:
    return Claimed(token, pk, 1, 1, 1, 8, 0, 0, None, "ada@example.com", "jane@example.com")


def only_file(folder: Path) -> Path:
    (file,) = folder.iterdir()
    return file


def content(folder: Path) -> Content:
    return parse(only_file(folder).read_bytes())


def filled(folder: Path) -> Journal:
    """One mail taken, one cut off, one refused before its content, one claimed only."""
    noted = Journal(folder, WORKER)
    noted.claimed(TOKEN)
    noted.dot(mail(1))
    noted.reply(mail(1), TAKEN)
    noted.dot(mail(2))
    noted.reply(mail(3), Answer(Phase.RCPT, 550, "5.1.1 who?"))
    return noted


def test_it_says_what_became_of_each_mail(tmp_path: Path) -> None:
    filled(tmp_path)
    assert content(tmp_path) == Content(
        {TOKEN},
        {(1, TOKEN): TAKEN, (2, TOKEN): None, (3, TOKEN): Answer(Phase.RCPT, 550, "5.1.1 who?")},
        True,
    )


@given(
    text=st.text(),
    code=st.none() | st.integers(200, 599),
    fault=st.none() | st.sampled_from(Fault),
    phase=st.sampled_from(Phase),
)
def test_any_answer_is_read_as_it_was_noted(
    text: str, code: int | None, fault: Fault | None, phase: Phase, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("journal")
    noted = Journal(folder, WORKER)
    noted.claimed(TOKEN)
    noted.dot(mail(1))
    noted.reply(mail(1), Answer(phase, code, text, fault))
    noted.dot(mail(2))
    found = content(folder).answers
    assert found == {(1, TOKEN): Answer(phase, code, " ".join(text.split())[:500], fault), (2, TOKEN): None}
    noted.close()


def test_torn_at_any_byte_it_says_what_was_written_in_full(tmp_path: Path) -> None:
    filled(tmp_path)
    whole = only_file(tmp_path).read_bytes()
    for length in range(len(whole) + 1):
        complete = whole[: whole.rfind(b"\n", 0, length) + 1]
        assert parse(whole[:length]) == parse(complete)
    assert parse(whole[:-1]).answers == {(1, TOKEN): TAKEN, (2, TOKEN): None}


@pytest.mark.parametrize(
    "garbage",
    [
        b"", b"D", b"D 1", b"D x y", b"C", b"C 0123", b"R 1", b"\0\0\0", b"\xff\xfe", b"X 1 2 3", b"D 9 " + b"g" * 32,
        b"R 9 " + b"0" * 32 + b" 99 250 - ok", b"R 9 " + b"0" * 32 + b" 8 250 WHAT ok", b"D 9 " + b"0" * 31,
    ],
)  # fmt: skip
def test_a_line_that_makes_no_sense_is_skipped(tmp_path: Path, garbage: bytes) -> None:
    filled(tmp_path)
    whole = only_file(tmp_path).read_bytes()
    assert parse(whole.replace(b"\nD 2", b"\n" + garbage + b"\nD 2")) == parse(whole)


@given(st.binary())
def test_any_bytes_can_be_read(data: bytes) -> None:
    parse(data)


# Size -----------------------------------------------------------------------------------------------


def test_written_anew_it_keeps_what_is_open_and_forgets_the_rest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(journal, "LARGEST", 100)
    noted = filled(tmp_path)
    gone = uuid.uuid4()
    noted.claimed(gone)
    noted.settled(mail(1))
    for _ in range(100):
        noted.dot(mail(4, gone))
    noted.released(gone)
    for _ in range(100):
        noted.dot(mail(5))
    assert content(tmp_path) == Content(
        {TOKEN}, {(2, TOKEN): None, (3, TOKEN): Answer(Phase.RCPT, 550, "5.1.1 who?"), (5, TOKEN): None}, True
    )


def test_it_stays_small_over_100_000_mails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(journal, "LARGEST", 50_000)
    noted = Journal(tmp_path, WORKER)
    largest = 0
    for group in range(500):
        token = uuid.uuid4()
        noted.claimed(token)
        mails = [mail(200 * group + number, token) for number in range(200)]
        for one in mails:
            noted.dot(one)
            noted.reply(one, TAKEN)
        largest = max(largest, only_file(tmp_path).stat().st_size)
        for one in mails:
            noted.settled(one)
        noted.released(token)
    assert 50_000 < largest < 100_000  # what is allowed, and what was open


def test_with_nothing_open_it_leaves_no_file(tmp_path: Path) -> None:
    noted = filled(tmp_path)
    noted.released(TOKEN)
    noted.close()
    assert not list(tmp_path.iterdir())
    Journal(tmp_path, WORKER).close()
    assert not list(tmp_path.iterdir())


def test_with_something_open_it_is_left_to_the_next(tmp_path: Path) -> None:
    filled(tmp_path).close()
    with left_behind(only_file(tmp_path)) as left:
        assert left is not None
        assert left.worker == WORKER
        assert left.content.tokens == {TOKEN}


# One process, one file ------------------------------------------------------------------------------

ANOTHER = """
import pathlib, sys, uuid, django
django.setup()
from mailqueue.delivery import journal
journal.LARGEST = 0  # written anew with every other line
noted = journal.Journal(pathlib.Path(sys.argv[1]), "host:2")
while True:
    noted.claimed(uuid.uuid4())
    print(flush=True)
    if not sys.stdin.readline():
        break
"""


def test_a_living_process_keeps_its_own_and_a_killed_one_leaves_it(tmp_path: Path) -> None:
    command = [sys.executable, "-c", ANOTHER, str(tmp_path)]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, cwd=ROOT, text=True) as other:
        assert other.stdin
        assert other.stdout
        for lines in range(1, 20):
            other.stdout.readline()
            (file,) = files_of(tmp_path, WORKER)
            with left_behind(file) as left:
                assert left is None
            assert len(parse(file.read_bytes()).tokens) == lines
            other.stdin.write("\n")
            other.stdin.flush()
        other.kill()
        other.wait()
    with left_behind(file) as left:
        assert left is not None
        assert len(left.content.tokens) >= 19


def test_two_that_find_the_same_file_do_not_both_get_it(tmp_path: Path) -> None:
    filled(tmp_path).close()
    file = only_file(tmp_path)
    with left_behind(file) as first, left_behind(file) as second:
        assert first is not None
        assert second is None
        first.remove()
    with left_behind(file) as third:
        assert third is None


def test_a_file_that_was_replaced_between_open_and_lock_is_not_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its owner has written it anew meanwhile and let the old one go, so the lock proves nothing."""
    monkeypatch.setattr(journal, "LARGEST", 0)
    noted = filled(tmp_path)
    really = os.open

    def opened_and_then_replaced(path: Any, *args: Any) -> int:
        fd = really(path, *args)
        if Path(path).suffix == ".journal":
            noted.dot(mail(9))
            noted.dot(mail(9))  # one of the two begins anew
        return fd

    monkeypatch.setattr(os, "open", opened_and_then_replaced)
    with left_behind(only_file(tmp_path)) as left:
        assert left is None


def test_a_new_process_of_the_same_name_spoils_nothing(tmp_path: Path) -> None:
    filled(tmp_path).close()
    filled(tmp_path)
    assert len(files_of(tmp_path, WORKER)) == 2


def workers_of(files: list[Path]) -> list[str]:
    return sorted(path.name.rpartition(":")[0] for path in files)


def journals_of(folder: Path, *workers: str) -> None:
    for worker in workers:
        noted = Journal(folder, worker)
        noted.claimed(TOKEN)
        noted.close()


@pytest.mark.parametrize("boot", ["another", ""])
def test_another_machines_files_are_not_touched(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, boot: str
) -> None:
    with monkeypatch.context() as elsewhere:
        elsewhere.setattr(journal, "boot_id", lambda: boot)
        journals_of(tmp_path, "host:1", "host:22", "other:1", "a.host:1", "host.a:1")
    assert workers_of(files_of(tmp_path, "host:3")) == ["host:1", "host:22"]
    monkeypatch.setattr(journal, "boot_id", lambda: "")  # which equals no other
    assert workers_of(files_of(tmp_path, "host:3")) == ["host:1", "host:22"]


def test_another_containers_files_on_the_same_machine_are_taken_over(tmp_path: Path) -> None:
    journals_of(tmp_path, "host:1", "another-container:1")
    assert workers_of(files_of(tmp_path, "third-container:1")) == ["another-container:1", "host:1"]


def test_an_unfinished_file_is_never_read_and_goes_when_it_is_old(tmp_path: Path) -> None:
    filled(tmp_path).close()
    unfinished = only_file(tmp_path).rename(only_file(tmp_path).with_suffix(".new"))
    assert files_of(tmp_path, WORKER) == []
    assert unfinished.exists()
    os.utime(unfinished, (0, 0))
    assert files_of(tmp_path, WORKER) == []
    assert not unfinished.exists()


def test_without_a_folder_nobody_has_left_anything(tmp_path: Path) -> None:
    assert files_of(tmp_path / "none", WORKER) == []


@pytest.mark.parametrize("boot", ["another", ""])
def test_one_from_before_the_machine_was_started_is_not_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, boot: str
) -> None:
    filled(tmp_path)
    assert content(tmp_path).is_whole
    monkeypatch.setattr(journal, "boot_id", lambda: boot)
    assert not content(tmp_path).is_whole


# A full disk ----------------------------------------------------------------------------------------


def test_half_a_line_on_a_full_disk_is_an_error_and_spoils_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    noted = filled(tmp_path)
    before = only_file(tmp_path).read_bytes()
    really = os.write
    monkeypatch.setattr(os, "write", lambda fd, data: really(fd, data[: len(data) // 2]))
    for note in (lambda: noted.dot(mail(4)), lambda: noted.claimed(uuid.uuid4())):
        with pytest.raises(UnwritableError, match="No space left"):
            note()
    assert only_file(tmp_path).read_bytes() == before
    monkeypatch.undo()
    noted.dot(mail(5))
    assert content(tmp_path).answers[5, TOKEN] is None


def test_a_disk_that_takes_nothing_is_an_error_that_names_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(_fd: int, _data: bytes) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    noted = Journal(tmp_path / "journal", WORKER)
    monkeypatch.setattr(os, "write", full)
    with pytest.raises(UnwritableError, match=r"host:1:\w+\.journal: No space left"):
        noted.claimed(TOKEN)
    assert not list((tmp_path / "journal").iterdir())
    monkeypatch.undo()
    noted.claimed(TOKEN)
    assert content(tmp_path / "journal").tokens == {TOKEN}


def test_a_folder_that_cannot_be_made_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "journal").write_text("a file is in the way")
    with pytest.raises(UnwritableError):
        Journal(tmp_path / "journal", WORKER).claimed(TOKEN)
