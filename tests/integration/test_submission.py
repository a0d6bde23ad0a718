"""A mail is committed first; then the bell rings, and whatever the bell does costs seconds at most."""

import socket
import threading
import time
from collections.abc import Callable, Iterator
from datetime import timedelta
from email import message_from_bytes, policy
from typing import Any

import pytest
from django.db import connection
from django.utils import timezone

from accounts.models import SmtpAccount, User
from tasks import doorbell, submission
from tasks.models import MailTask
from tasks.states import Lane, OnUncertain, Status
from tasks.submission import NewMail
from tests.factories import MailFactory, UserFactory

A_MAIL = NewMail(recipient="jane@example.com", subject="Grüße", text="Hello ✓")
HOUR = timedelta(hours=1)


def messages() -> int:
    """Wake-ups on their way to a worker."""
    return int(doorbell.client().llen("mailqueue:drain"))  # type: ignore[arg-type]


@pytest.fixture
def owner(db: None) -> User:
    user: User = UserFactory(email="ada@example.com")
    return user


@pytest.fixture
def frozen() -> Iterator[tuple[str, threading.Event]]:
    """The URL of a Redis that takes connections and never answers, and whether somebody has called it."""
    called = threading.Event()
    listener = socket.create_server(("127.0.0.1", 0))
    held: list[socket.socket] = []

    def take_calls() -> None:
        while True:
            try:
                held.append(listener.accept()[0])
            except OSError:
                return
            called.set()

    thread = threading.Thread(target=take_calls, daemon=True)
    thread.start()
    yield f"redis://127.0.0.1:{listener.getsockname()[1]}/0", called
    listener.shutdown(socket.SHUT_RDWR)
    listener.close()
    thread.join(5)
    for connected in held:
        connected.close()


@pytest.fixture
def at_redis(settings: Any) -> Iterator[Callable[[str], None]]:
    """Makes the bell use another Redis for this test."""

    def use(url: str) -> None:
        settings.REDIS_URL = url
        doorbell.client.cache_clear()

    yield use
    doorbell.client.cache_clear()


def test_a_mail_is_stored_as_it_was_asked_for(owner: User) -> None:
    asked = NewMail(
        recipient="jane@bücher.example",
        subject="Grüße",
        text="Hello ✓",
        html="<p>Hello</p>",
        expires_at=timezone.now() + HOUR,
        max_tries=3,
        lane=Lane.OTP,
        on_uncertain=OnUncertain.HOLD,
    )
    task = MailTask.objects.get(id=submission.submit(owner, asked).id)
    assert (task.owner, task.status, task.try_count) == (owner, Status.QUEUED, 0)
    assert (task.max_tries, task.lane, task.on_uncertain) == (3, Lane.OTP, OnUncertain.HOLD)
    assert (task.sender, task.recipient) == ("ada@example.com", "jane@xn--bcher-kva.example")
    assert task.expires_at == asked.expires_at
    assert task.due_at <= timezone.now()
    parsed = message_from_bytes(bytes(task.content.raw), policy=policy.default)
    assert (parsed["From"], parsed["To"]) == (task.sender, task.recipient)
    assert (parsed["Subject"], parsed["Message-ID"]) == ("Grüße", task.message_id)


def test_the_maximum_of_tries_is_the_services_unless_given(owner: User, settings: Any) -> None:
    settings.MAIL_MAX_TRIES = 5
    assert submission.submit(owner, A_MAIL).max_tries == 5


def test_the_sender_is_the_accounts_also_when_it_has_just_changed(owner: User) -> None:
    assert owner.smtp.from_email != "news@example.org"  # as it was when the caller was looked up
    SmtpAccount.objects.filter(owner=owner).update(from_email="news@example.org")
    task = submission.submit(owner, A_MAIL)
    assert task.sender == "news@example.org"
    assert message_from_bytes(bytes(task.content.raw), policy=policy.default)["From"] == "news@example.org"


def test_an_account_that_has_just_been_closed_keeps_nothing(owner: User) -> None:
    assert owner.smtp.from_email
    User.objects.filter(pk=owner.pk).update(is_active=False)
    with pytest.raises(submission.AccountClosedError):
        submission.submit(owner, A_MAIL)
    assert not MailTask.objects.exists()


@pytest.mark.django_db(transaction=True)
def test_a_kept_connection_that_postgresql_has_ended_costs_no_mail() -> None:
    owner, pid = UserFactory(), connection.connection.info.backend_pid
    other = connection.copy()
    with other.cursor() as cursor:
        cursor.execute("SELECT pg_terminate_backend(%s, 5000)", [pid])
    other.close()
    connection.close_if_unusable_or_obsolete()  # as at the beginning of each request
    assert submission.submit(owner, A_MAIL).pk


def test_a_mail_for_later_is_scheduled_and_rings_nobody(owner: User) -> None:
    later = timezone.now() + HOUR
    task = submission.submit(owner, NewMail("jane@example.com", "s", "t", scheduled_at=later))
    assert (task.status, task.due_at) == (Status.SCHEDULED, later)
    assert messages() == 0


def test_a_time_in_the_past_means_now(owner: User) -> None:
    earlier = timezone.now() - HOUR
    task = submission.submit(owner, NewMail("jane@example.com", "s", "t", scheduled_at=earlier))
    assert (task.status, task.scheduled_at) == (Status.QUEUED, earlier)
    assert task.due_at > earlier


@pytest.mark.django_db(transaction=True)
def test_the_bell_rings_once_for_many_mails() -> None:
    owner = UserFactory()
    for _ in range(20):
        submission.submit(owner, A_MAIL)
    assert messages() == 1


@pytest.mark.django_db(transaction=True)
def test_the_bell_rings_again_once_a_worker_has_come() -> None:
    owner = UserFactory()
    submission.submit(owner, A_MAIL)
    doorbell.answer()
    submission.submit(owner, A_MAIL)
    assert messages() == 2


@pytest.mark.django_db(transaction=True)
def test_the_mail_is_committed_before_the_bell_is_rung(
    frozen: tuple[str, threading.Event], at_redis: Callable[[str], None]
) -> None:
    url, called = frozen
    owner = UserFactory()
    at_redis(url)

    def submit() -> None:
        submission.submit(owner, A_MAIL)
        connection.close()

    caller = threading.Thread(target=submit)
    caller.start()
    assert called.wait(10)
    assert MailTask.objects.filter(owner=owner, status=Status.QUEUED).exists()
    caller.join(20)
    assert not caller.is_alive()


def test_a_frozen_redis_costs_seconds_and_no_mail(
    owner: User, frozen: tuple[str, threading.Event], at_redis: Callable[[str], None]
) -> None:
    at_redis(frozen[0])
    began = time.monotonic()
    task = submission.submit(owner, A_MAIL)
    assert time.monotonic() - began < 3  # the promise of the contract, not a measurement
    assert MailTask.objects.filter(id=task.id, status=Status.QUEUED).exists()


def test_a_dead_redis_costs_no_mail(owner: User, at_redis: Callable[[str], None]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as unused:
        port = unused.getsockname()[1]
    at_redis(f"redis://127.0.0.1:{port}/0")
    assert submission.submit(owner, A_MAIL).pk
    assert not doorbell.ring()
    doorbell.answer()


def test_after_a_failure_the_bell_is_left_alone_for_a_while(
    owner: User, frozen: tuple[str, threading.Event], at_redis: Callable[[str], None]
) -> None:
    """So that a frozen Redis slows one call and not each."""
    url, called = frozen
    at_redis(url)
    assert not doorbell.ring()
    called.clear()
    doorbell.client.cache_clear()  # the next ring would have to connect anew
    assert not doorbell.ring()
    assert not called.is_set()


@pytest.mark.django_db(transaction=True)
def test_a_retry_rings() -> None:
    mail = MailFactory(status=Status.CANCELLED)
    submission.retry(MailTask.objects.filter(id=mail.id))
    assert messages() == 1


@pytest.mark.django_db(transaction=True)
def test_a_retry_that_changes_nothing_is_silent() -> None:
    mail = MailFactory(status=Status.SUCCESS)
    submission.retry(MailTask.objects.filter(id=mail.id))
    assert messages() == 0
