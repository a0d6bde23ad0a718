"""Deliveries go out: signed, to where they may go, by the schedule, and a bad receiver holds up nobody."""

import ipaddress
import logging
import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from typing import Any
from uuid import uuid4

import pytest
from django.db import OperationalError, connection, transaction
from django.utils import timezone
from standardwebhooks import WebhookVerificationError

from accounts import guard
from accounts.models import User
from mailqueue import jobs
from mailqueue.webhooks import deliveries, endpoints, fanout, sender, wire
from mailqueue.webhooks.models import Delivery, Endpoint, State
from mailqueue.webhooks.sender import Sender
from tasks.events import Listener
from tests.factories import UserFactory
from tests.machine import until
from tests.receiver import Receiver, hanging

pytestmark = pytest.mark.django_db(
    transaction=True, available_apps=["accounts", "tasks", "mailqueue.webhooks"]
)
LOOPBACK = (ipaddress.ip_network("127.0.0.0/8"), ipaddress.ip_network("::1/128"))
AN_HOUR = timedelta(hours=1)


@pytest.fixture(autouse=True)
def allow_loopback(settings: Any) -> None:
    settings.SMTP_ALLOWED_NETWORKS = LOOPBACK


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    with Receiver() as running:
        yield running


@pytest.fixture
def running(receiver: Receiver) -> Iterator[Sender]:
    running = Sender().start()
    try:
        yield running
    finally:
        running.stop(5)


def hook(owner: User, url: str) -> tuple[Endpoint, str]:
    return endpoints.make(owner, url, [], "")


def waiting(endpoint: Endpoint, count: int = 1, **fields: Any) -> list[Delivery]:
    return Delivery.objects.bulk_create(
        [
            Delivery(
                endpoint=endpoint,
                message_id=f"evt_{uuid4().hex}",
                event="task.sent",
                payload='{"type":"task.sent","data":{"reply":"Grüße"}}',
                **fields,
            )
            for _ in range(count)
        ]
    )


def settled(running: Sender, tries: int = 1, **which: Any) -> list[Delivery]:
    """All of them, as soon as each has been tried so often."""

    def done() -> bool:
        running.look()
        return not Delivery.objects.filter(**which).filter(tries__lt=tries).exists()

    until(done, "all of them are tried")
    return list(Delivery.objects.filter(**which).order_by("id"))


def due_now() -> None:
    Delivery.objects.filter(state=State.PENDING).update(next_attempt_at=timezone.now() - timedelta(minutes=1))


def wait_of(row: Delivery) -> float:
    assert row.last_attempt_at is not None
    return (row.next_attempt_at - row.last_attempt_at).total_seconds()


# What goes out ---------------------------------------------------------------------------------------


def test_the_receivers_library_verifies_it(owner, receiver, running):
    endpoint, secret = hook(owner, f"{receiver.url}?shop=1")
    (row,) = waiting(endpoint)
    (row,) = settled(running)
    assert (row.state, row.code, row.error, row.tries) == (State.DELIVERED, 204, "", 1)
    assert row.finished_at is not None
    (call,) = receiver.calls
    assert call.verified(secret) == {"type": "task.sent", "data": {"reply": "Grüße"}}
    assert (call.id, call.path) == (row.message_id, "/hook?shop=1")
    assert call.headers["content-type"] == "application/json"
    assert call.headers["host"] == f"127.0.0.1:{receiver.port}"
    with pytest.raises(WebhookVerificationError):
        call.verified(hook(owner, receiver.url)[1])


def test_for_the_time_of_grace_both_secrets_verify_it(owner, receiver, running):
    endpoint, old = hook(owner, receiver.url)
    _, new = endpoints.rotate(endpoint, AN_HOUR)
    waiting(endpoint)
    settled(running)
    assert receiver.calls[0].verified(new) == receiver.calls[0].verified(old)
    Endpoint.objects.update(old_secret_until=timezone.now())
    waiting(endpoint)
    settled(running)
    assert receiver.calls[1].verified(new)
    with pytest.raises(WebhookVerificationError):
        receiver.calls[1].verified(old)


def test_a_receiver_that_was_down_gets_all_of_them_under_the_same_ids(owner, running):
    with Receiver() as lost:
        port = lost.port
    endpoint, secret = hook(owner, lost.url)
    rows = waiting(endpoint, 30)
    for each in settled(running, 1):
        assert (each.state, each.code, each.error) == (State.PENDING, None, "The connection was refused.")
        assert 5 <= wait_of(each) < 6
    with Receiver(port) as back:
        due_now()
        assert {each.state for each in settled(running, 2)} == {State.DELIVERED}
        assert sorted(back.ids) == sorted(row.message_id for row in rows)
        assert all(call.verified(secret) for call in back.calls)


def test_what_is_not_due_stays(owner, receiver, running):
    endpoint, _ = hook(owner, receiver.url)
    waiting(endpoint, next_attempt_at=timezone.now() + AN_HOUR)
    (now,) = waiting(endpoint)
    settled(running, pk=now.pk)
    assert receiver.ids == [now.message_id]


# What the receiver says ------------------------------------------------------------------------------


def test_a_failure_is_tried_again_by_the_schedule_and_at_last_given_up(owner, receiver, running):
    receiver.always = (500, {})
    waiting(hook(owner, receiver.url)[0])
    waits = []
    for tries in range(1, 11):
        (row,) = settled(running, tries)
        assert (row.code, row.error) == (500, "HTTP 500")
        waits.append(wait_of(row) if row.state == State.PENDING else None)
        due_now()
    wanted = [5, 300, 1800, 7200, 18_000, 36_000, 50_400, 72_000, 86_400]
    assert waits[9] is None
    for wait, least in zip(waits, wanted, strict=False):
        assert least <= wait <= least * 1.1 + 1
    assert row.state == State.FAILED
    assert len(receiver.calls) == 10
    assert len(set(receiver.ids)) == 1


@pytest.mark.parametrize("code", [429, 503])
def test_a_receiver_that_asks_for_patience_gets_it(owner, receiver, running, code):
    receiver.answers = [(code, {"Retry-After": "100"}), (code, {"Retry-After": "1"})]
    waiting(hook(owner, receiver.url)[0])
    (row,) = settled(running)
    assert 99 <= wait_of(row) <= 101
    due_now()
    (row,) = settled(running, 2)
    assert wait_of(row) >= 299  # the schedule is not shortened


def test_one_that_is_gone_is_disabled_and_hears_of_nothing_more(owner, receiver, running):
    receiver.always = (410, {})
    endpoint, _ = hook(owner, receiver.url)
    Listener.objects.filter(owner=owner).update(until=None)
    (first,) = waiting(endpoint)
    (row,) = settled(running)
    assert (row.state, row.code) == (State.FAILED, 410)
    endpoint.refresh_from_db()
    assert (endpoint.is_active, endpoint.reason) == (False, "The receiver answered 410 Gone.")
    assert not Listener.objects.filter(owner=owner, until=None).exists()
    (later,) = waiting(endpoint)
    other, _ = hook(owner, receiver.url)
    (others,) = waiting(other)
    settled(running, pk=others.pk)
    later.refresh_from_db()
    assert (later.state, later.tries) == (State.PENDING, 0)
    assert receiver.ids == [first.message_id, others.message_id]


def test_nobody_is_followed_elsewhere(owner, receiver, running):
    with Receiver() as elsewhere:
        receiver.always = (307, {"Location": elsewhere.url})
        waiting(hook(owner, receiver.url)[0])
        (row,) = settled(running)
        assert (row.code, row.error) == (307, "It redirects, which is not followed.")
        assert elsewhere.calls == []


def test_of_a_long_answer_little_is_read(owner, receiver, running, monkeypatch):
    monkeypatch.setattr(wire, "TOTAL_SECONDS", 60)
    receiver.always, receiver.body = (200, {}), b"x" * 50_000_000
    waiting(hook(owner, receiver.url)[0])
    (row,) = settled(running)
    assert (row.state, row.code) == (State.DELIVERED, 200)


def test_one_that_answers_no_http_has_failed(owner, running):
    with socket.create_server(("127.0.0.1", 0)) as server:
        waiting(hook(owner, f"http://127.0.0.1:{server.getsockname()[1]}/")[0])
        running.look()
        talking, _ = server.accept()
        with talking:
            talking.recv(1)
            talking.sendall(b"220 mail.example.com ESMTP\r\n\r\n")
            (row,) = settled(running)
    assert (row.state, row.code, row.error) == (State.PENDING, None, "Its answer is not HTTP.")


def test_one_that_says_nothing_is_left_in_time_and_holds_up_nobody(owner, receiver, running, monkeypatch):
    monkeypatch.setattr(wire, "TOTAL_SECONDS", 3.0)
    with hanging() as silent:
        bad, _ = hook(owner, silent.url)
        good, _ = hook(UserFactory(), receiver.url)
        waiting(bad, 300)
        running.look()
        until(lambda: silent.calls, "it hangs")
        waiting(good, 50)
        settled(running, endpoint=good)
        assert not Delivery.objects.filter(endpoint=bad, tries__gt=0).exists()
        assert silent.most_at_once <= deliveries.AT_ONCE
        until(lambda: Delivery.objects.filter(endpoint=bad, error="It took too long.").exists(), "it is left")
    Delivery.objects.filter(endpoint=bad, state=State.PENDING).update(
        next_attempt_at=timezone.now() + AN_HOUR
    )


# Where it may go -------------------------------------------------------------------------------------


def test_the_guard_judges_at_each_connection(owner, receiver, running, settings):
    waiting(hook(owner, receiver.url)[0])
    settings.SMTP_ALLOWED_NETWORKS = ()
    (row,) = settled(running)
    assert (row.code, row.error) == (None, "Nothing may be sent to the address of this host.")
    assert receiver.calls == []


def test_it_goes_to_the_address_that_was_judged_and_no_resolver_is_asked_twice(
    owner, receiver, running, monkeypatch
):
    asked = []

    def resolve(host: str) -> list[guard.Address]:
        asked.append(host)
        return [ipaddress.ip_address("127.0.0.1")]

    monkeypatch.setattr(guard, "resolve", resolve)
    waiting(hook(owner, f"http://shop.invalid:{receiver.port}/")[0])
    (row,) = settled(running)
    assert (row.state, asked) == (State.DELIVERED, ["shop.invalid"])
    assert receiver.calls[0].headers["host"] == f"shop.invalid:{receiver.port}"


def test_plain_http_does_not_leave_the_allowed_networks(owner, receiver, running, monkeypatch):
    waiting(hook(owner, f"http://shop.invalid:{receiver.port}/")[0])
    monkeypatch.setattr(guard, "resolve", lambda _: [ipaddress.ip_address("8.8.8.8")])
    (row,) = settled(running)
    assert row.error == "Events go over https only."


def test_a_certificate_is_verified_against_the_name(owner, certificate, monkeypatch):
    context, authority = certificate
    monkeypatch.setenv("SSL_CERT_FILE", authority)
    running = Sender().start()
    try:
        with Receiver(tls=context) as receiver:
            good, secret = hook(owner, f"https://localhost:{receiver.port}/hook")
            bad, _ = hook(owner, f"https://127.0.0.1:{receiver.port}/hook")
            waiting(good)
            waiting(bad)
            by_name, by_address = settled(running)
            assert by_name.state == State.DELIVERED
            assert receiver.calls[0].verified(secret)
            assert (by_address.code, by_address.error) == (None, "The certificate is not valid.")
            assert len(receiver.calls) == 1
    finally:
        running.stop(5)


# A webhook that never takes anything ------------------------------------------------------------------


def test_after_five_days_of_failures_alone_it_is_disabled(owner, receiver, running):
    receiver.always = (500, {})
    endpoint, _ = hook(owner, receiver.url)
    now = timezone.now()
    Endpoint.objects.update(failing_since=now - timedelta(days=4, hours=23), last_failed_at=now - AN_HOUR)
    waiting(endpoint)
    settled(running)
    endpoint.refresh_from_db()
    assert endpoint.is_active
    Endpoint.objects.update(failing_since=now - timedelta(days=5))
    due_now()
    settled(running, 2)
    until(lambda: not Endpoint.objects.get().is_active, "it is disabled")
    assert Endpoint.objects.get().reason == "Every attempt has failed for 5 days."


def test_a_success_or_a_long_silence_begins_the_five_days_anew(owner, receiver, running):
    endpoint, _ = hook(owner, receiver.url)
    long_ago = timezone.now() - timedelta(days=30)
    Endpoint.objects.update(failing_since=long_ago, last_failed_at=long_ago)
    receiver.answers = [(500, {})]
    waiting(endpoint)
    settled(running)
    until(lambda: Endpoint.objects.get().failing_since != long_ago, "the failure is noted")
    assert Endpoint.objects.get().is_active
    due_now()
    settled(running, 2)
    until(lambda: Endpoint.objects.get().failing_since is None, "the success is noted")


# Who dies, and who comes late -------------------------------------------------------------------------


def test_what_a_dead_sender_held_is_sent_by_the_next(owner, receiver, running):
    waiting(hook(owner, receiver.url)[0], 3)
    assert len(deliveries.claim(10)) == 3
    assert deliveries.claim(10) == []
    assert deliveries.rescue() == 0
    Delivery.objects.update(lease_until=timezone.now() - timedelta(seconds=1))
    assert {each.state for each in settled(running)} == {State.DELIVERED}
    assert len(receiver.calls) == 3


def test_a_late_result_changes_nothing(owner, receiver):
    waiting(hook(owner, receiver.url)[0])
    (late,) = deliveries.claim(10)
    Delivery.objects.update(lease_until=timezone.now() - timedelta(seconds=1))
    deliveries.rescue()
    (now,) = deliveries.claim(10)
    result = sender.result_of(late, wire.Answer(None, "It took too long.", 15.0), 0.0)
    assert deliveries.settle([result]) == 0
    row = Delivery.objects.get()
    assert (row.state, row.claim_token, row.tries) == (State.SENDING, now.token, 0)


def test_a_sender_that_stops_puts_back_what_hangs(owner):
    with hanging() as silent:
        running = Sender().start()
        waiting(hook(owner, silent.url)[0], 3)
        running.look()
        until(lambda: len(silent.calls) == 3, "they hang")
        running.stop(0.1)
        assert list(Delivery.objects.values_list("state", "tries", "claim_token")) == [(0, 0, None)] * 3


def test_of_one_receiver_a_few_are_sent_at_once_and_of_a_failing_one_fewer(owner):
    waiting(hook(owner, "http://127.0.0.1:9/")[0], 30)
    waiting(hook(owner, "http://127.0.0.1:9/")[0], 30)
    assert len(deliveries.claim(100)) == 2 * deliveries.AT_ONCE
    assert deliveries.claim(100) == []
    Delivery.objects.update(state=State.PENDING, claim_token=None, lease_until=None)
    Endpoint.objects.update(failing_since=timezone.now())
    assert len(deliveries.claim(100)) == 2 * deliveries.AT_ONCE_FAILING
    Delivery.objects.update(state=State.PENDING, claim_token=None, lease_until=None)
    assert len(deliveries.claim(3)) == 3


def test_a_secret_that_cannot_be_read_fails_its_own_webhook_alone(owner, receiver, running):
    lost, _ = hook(owner, receiver.url)
    Endpoint.objects.filter(pk=lost.pk).update(sealed_secret="no key opens this")
    good, _ = hook(owner, receiver.url)
    waiting(lost)
    waiting(good)
    first, second = settled(running)
    assert (first.state, first.error) == (State.PENDING, "Its secret cannot be read; rotate it.")
    assert second.state == State.DELIVERED


def test_the_database_may_be_away_for_a_moment(owner, receiver, running, monkeypatch):
    monkeypatch.setattr(sender, "PAUSE_SECONDS", 0.01)
    claim, settle, trouble = deliveries.claim, deliveries.settle, iter([True, True, False, True, True])

    def troubled(deed: Any) -> Any:
        def do(*given: Any) -> Any:
            if next(trouble, False):
                raise OperationalError("away")
            return deed(*given)

        return do

    monkeypatch.setattr(deliveries, "claim", troubled(claim))
    monkeypatch.setattr(deliveries, "settle", troubled(settle))
    waiting(hook(owner, receiver.url)[0], 5)
    settled(running)
    assert sorted(receiver.ids) == sorted(Delivery.objects.values_list("message_id", flat=True))


# The job ---------------------------------------------------------------------------------------------


@pytest.fixture
def ticking(running: Sender, monkeypatch: pytest.MonkeyPatch) -> Sender:
    monkeypatch.setattr(jobs, "_sender", lambda: running)
    return running


def test_a_tick_that_finds_nothing_leaves_no_result(owner, receiver, ticking):
    done = jobs.webhooks.apply().get()
    assert done == {"queued": 0, "delivered": 0, "put_off": 0, "failed": 0, "rescued": 0}


def test_ticks_say_what_was_done(owner, receiver, ticking):
    fanout.test_delivery(hook(owner, receiver.url)[0])
    total = 0

    def all_told() -> bool:
        nonlocal total
        total += jobs.webhooks.apply().get()["delivered"]
        return total == 1

    until(all_told, "it is told")


def test_no_secret_and_no_address_is_logged(owner, receiver, running, caplog):
    caplog.set_level(logging.INFO)
    receiver.answers = [(500, {})]
    endpoint, secret = hook(owner, f"{receiver.url}/canary-in-the-path")
    waiting(endpoint, 3)
    settled(running)
    endpoints.disable(endpoint, "x")
    assert "webhook disabled" in caplog.text
    assert secret not in caplog.text
    assert "canary-in-the-path" not in caplog.text
    assert "v1," not in caplog.text


def test_a_claim_waits_for_nobody_who_holds_a_row(owner):
    first, *others = waiting(hook(owner, "http://127.0.0.1:9/")[0], 3)
    with transaction.atomic():
        Delivery.objects.select_for_update().get(pk=first.pk)
        with ThreadPoolExecutor(1) as pool:
            got = pool.submit(lambda: (deliveries.claim(10), connection.close())[0]).result(timeout=60)
    assert {each.id for each in got} == {each.pk for each in others}
