"""Mails of subscriptions: one for each time, whoever runs twice, dies, or is away for an hour."""

import threading
from datetime import UTC, datetime, timedelta
from email import message_from_bytes, policy
from typing import Any

import pytest
from django.db import connection, connections
from django.utils import timezone

from accounts import quota
from accounts.models import User
from mailqueue import jobs
from mailqueue.subscriptions import contents, deeds, links, schedule
from mailqueue.subscriptions import tick as ticking
from mailqueue.subscriptions.models import Occurrence, Outcome, Policy, State, Subscription
from mailqueue.subscriptions.schedule import Schedule
from mailqueue.subscriptions.tick import tick
from tasks import submission
from tasks.models import MailTask
from tasks.states import CancelReason, Lane, Status
from tasks.suppressions import Suppression
from tests.factories import UserFactory

pytestmark = pytest.mark.django_db
HOUR, SECOND = timedelta(hours=1), timedelta(seconds=1)
#: Far from the clock of this machine, which plays no part.
T = datetime(2031, 1, 7, 10, tzinfo=UTC)


@pytest.fixture
def owner() -> User:
    user: User = UserFactory()
    contents.make(user, "news", "The week", "<p>What was new.</p>")
    return user


def subscribed(owner: User, recipient: str = "jane@example.com", **wanted: Any) -> Subscription:
    wanted = {"content_type": "news", "line": "@hourly"} | wanted
    made, is_new = deeds.subscribe(owner, recipient, wanted.pop("content_type"), **wanted)
    if is_new:
        soon(made, schedule.following(made.schedule, T - SECOND))
        made.refresh_from_db()
    return made


def soon(subscription: Subscription, at: datetime) -> None:
    Subscription.objects.filter(pk=subscription.pk).update(next_at=at)


def times(subscription: Subscription) -> list[datetime]:
    return list(subscription.occurrences.order_by("at").values_list("at", flat=True))


# One mail for each time ---------------------------------------------------------------------------------


def test_a_mail_is_made_when_it_is_due_and_the_next_one_is_waited_for(owner: User) -> None:
    jane = subscribed(owner, max_tries=3, name="weekly")
    assert tick(T - SECOND) == 0
    assert tick(T) == 1
    task = MailTask.objects.get()
    assert (task.status, task.lane, task.max_tries) == (Status.QUEUED, Lane.BULK, 3)
    assert (task.recipient, task.subject) == ("jane@example.com", "The week")
    assert task.details["metadata"] == {"task": "weekly", "type": "subscribe", "subscription": str(jane.pk)}
    (made,) = jane.occurrences.all()
    assert (made.at, made.outcome, made.task_id) == (T, Outcome.QUEUED, task.pk)
    jane.refresh_from_db()
    assert jane.next_at == T + HOUR
    assert tick(T + HOUR - SECOND) == 0
    assert MailTask.objects.count() == 1


@pytest.mark.django_db(transaction=True)
def test_the_beat_asks_each_second(owner: User, settings: Any) -> None:
    jane = subscribed(owner)
    soon(jane, timezone.now() - SECOND)
    (entry,) = (
        each for each in settings.CELERY_BEAT_SCHEDULE.values() if each["task"] == jobs.subscriptions.name
    )
    assert entry["schedule"] == 1.0
    assert [jobs.subscriptions.apply().get() for _ in range(2)] == [{"made": 1}, {"made": 0}]
    assert MailTask.objects.count() == 1


def test_html_has_a_text_beside_it(owner: User) -> None:
    subscribed(owner)
    tick(T)
    mail: Any = message_from_bytes(bytes(MailTask.objects.get().content.raw), policy=policy.default)
    assert mail.get_body(("html",)).get_content().strip() == "<p>What was new.</p>"
    assert mail.get_body(("plain",)).get_content().strip() == "What was new."


def test_what_is_sent_is_the_newest_version(owner: User) -> None:
    subscribed(owner)
    contents.change(owner, "news", "The other week", "Plain.")
    tick(T)
    assert MailTask.objects.get().subject == "The other week"


def test_without_content_the_time_passes_and_is_noted(owner: User) -> None:
    jane = subscribed(owner, content_type="nothing")
    assert tick(T) == 1
    assert [each.outcome for each in jane.occurrences.all()] == [Outcome.NO_CONTENT]
    assert not MailTask.objects.exists()


def test_whoever_is_suppressed_gets_nothing(owner: User) -> None:
    subscribed(owner)
    Suppression.objects.add(owner, "jane@example.com")
    tick(T)
    task = MailTask.objects.get()
    assert (task.status, task.cancel_reason) == (Status.CANCELLED, CancelReason.SUPPRESSED)


def test_one_owners_subscribers_do_not_get_anothers_content(owner: User) -> None:
    other = UserFactory()
    contents.make(other, "news", "Other news", "Other.")
    subscribed(owner)
    subscribed(other, "joe@example.com")
    tick(T)
    assert set(MailTask.objects.values_list("owner", "recipient", "subject")) == {
        (owner.pk, "jane@example.com", "The week"),
        (other.pk, "joe@example.com", "Other news"),
    }


def test_subscriptions_of_a_closed_account_end_and_hold_up_nobody(owner: User) -> None:
    closed = UserFactory()
    contents.make(closed, "news", "x", "x")
    theirs = subscribed(closed)
    subscribed(owner)
    User.objects.filter(pk=closed.pk).update(is_active=False)
    assert tick(T) == 2
    theirs.refresh_from_db()
    assert theirs.state == State.ENDED
    assert MailTask.objects.get().owner == owner


def test_one_whose_zone_is_gone_is_paused_and_holds_up_nobody(owner: User) -> None:
    jane, joe = subscribed(owner), subscribed(owner, "joe@example.com")
    Subscription.objects.filter(pk=jane.pk).update(zone="Europe/Atlantis")
    assert tick(T) == 2
    jane.refresh_from_db()
    assert (jane.state, jane.next_at) == (State.PAUSED, None)
    assert times(joe) == [T]
    assert MailTask.objects.get().recipient == "joe@example.com"


def test_closing_an_account_takes_its_subscriptions_along(owner: User) -> None:
    subscribed(owner)
    tick(T)
    owner.close()
    assert not Subscription.objects.exists()
    assert not Occurrence.objects.exists()


@pytest.mark.parametrize("zone", ["Europe/Berlin", "America/New_York", "Australia/Lord_Howe"])
def test_a_year_over_both_changes_of_the_clock_has_each_time_once(owner: User, zone: str) -> None:
    """The beat is late, early, twice, or away for hours, as it comes; but never for longer than a day."""
    begin = datetime(2030, 1, 1, tzinfo=UTC)
    jane = subscribed(owner, line="30 2 * * *", zone=zone)
    soon(jane, schedule.following(jane.schedule, begin))
    at, gaps, number = begin, [1, 3600, 0, 7 * 3600, 30, 11 * 3600, 5 * 3600], 0
    while at < begin + timedelta(days=365):
        tick(at)
        number += 1
        at += gaps[number % len(gaps)] * SECOND
    found, expected = times(jane), []
    one = begin
    while (one := schedule.following(Schedule("30 2 * * *", zone), one)) <= at - SECOND:
        expected.append(one)
    assert found == expected[: len(found)]
    assert len(found) == len(set(found)) in (364, 365, 366)
    assert MailTask.objects.count() == len(found)


# A day's quota ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("left", "sent"), [(5, 3), (3, 3), (2, 2), (0, 0)])
def test_mails_count_for_the_quota_and_beyond_it_the_time_passes(owner: User, left: int, sent: int) -> None:
    owner.daily_quota = 10
    owner.save()
    with quota.counted(owner, 10 - left):
        pass
    other = UserFactory()
    contents.make(other, "news", "Other news", "Other.")
    subscribed(other, "joe@example.com")
    mine = [subscribed(owner, f"jane{number}@example.com") for number in range(3)]
    assert tick(T) == 4
    assert MailTask.objects.filter(owner=owner).count() == sent
    assert MailTask.objects.filter(owner=other).count() == 1
    outcomes = [one.occurrences.get().outcome for one in mine]
    assert outcomes == [Outcome.QUEUED] * sent + [Outcome.OVER_QUOTA] * (3 - sent)
    assert quota.used_today(owner, timezone.now()) == 10 - left + sent
    assert tick(T) == 0


def test_the_quota_of_all_counts_for_those_without_one_of_their_own(owner: User, settings: Any) -> None:
    settings.MAIL_DAILY_QUOTA = 1
    for number in range(2):
        subscribed(owner, f"jane{number}@example.com")
    tick(T)
    assert MailTask.objects.count() == 1


# Twice, dead, away --------------------------------------------------------------------------------------


def test_a_clock_that_is_set_back_sends_nothing_again(owner: User) -> None:
    jane = subscribed(owner)
    tick(T)
    soon(jane, T)
    assert tick(T) == 1
    assert times(jane) == [T]
    assert MailTask.objects.count() == 1


@pytest.mark.django_db(transaction=True)
def test_two_ticks_at_once_make_each_mail_once(owner: User, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ticking, "BITE", 7)
    for number in range(50):
        subscribed(owner, f"jane{number}@example.com")
    together, total, lock = threading.Barrier(3), [0], threading.Lock()

    def run() -> None:
        try:
            together.wait()
            made = tick(T, seconds=60)
            with lock:
                total[0] += made
        finally:
            connections.close_all()

    threads = [threading.Thread(target=run) for _ in range(3)]
    for each in threads:
        each.start()
    for each in threads:
        each.join()
    # A bite that finds the rest held ends a tick; the next one goes on.
    total[0] += tick(T, seconds=60)
    assert total[0] == 50
    assert MailTask.objects.count() == len(set(MailTask.objects.values_list("recipient", flat=True))) == 50
    assert Occurrence.objects.count() == 50


class Killed(BaseException):
    pass


@pytest.fixture(params=["the mails", "the occurrences", "the next time"])
def killed_before(request: Any, monkeypatch: pytest.MonkeyPatch) -> str:
    """Whoever makes mails dies before it writes one of these."""

    def die(*_args: Any, **_more: Any) -> None:
        raise Killed

    real = ticking._write
    if request.param == "the mails":
        monkeypatch.setattr(submission, "submit_many", die)
    else:
        fatal = ticking._ENTER if request.param == "the occurrences" else ticking._MOVE_ON
        monkeypatch.setattr(ticking, "_write", lambda sql, rows: die() if sql == fatal else real(sql, rows))
    return str(request.param)


@pytest.mark.django_db(transaction=True)
def test_killed_anywhere_it_leaves_nothing_half_done(
    owner: User, killed_before: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    jane = subscribed(owner)
    with pytest.raises(Killed):
        tick(T)
    assert not MailTask.objects.exists()
    monkeypatch.undo()
    tick(T + SECOND)
    assert times(jane) == [T]
    assert MailTask.objects.count() == 1


@pytest.mark.parametrize(("policy", "mails"), [(Policy.LAST, 1), (Policy.SKIP, 0)])
def test_an_hour_without_beat_is_made_up_for_by_policy_once(owner: User, policy: Policy, mails: int) -> None:
    jane = subscribed(owner, line="*/10 * * * *", policy=policy)
    back = T + HOUR + timedelta(minutes=7)
    for _ in range(3):
        tick(back)
    assert times(jane) == [T + HOUR]
    assert MailTask.objects.count() == mails
    outcome = Outcome.QUEUED if mails else Outcome.MISSED
    assert [each.outcome for each in jane.occurrences.all()] == [outcome]
    jane.refresh_from_db()
    assert jane.next_at == T + HOUR + timedelta(minutes=10)


def test_what_is_minutes_late_is_not_missed(owner: User) -> None:
    subscribed(owner, policy=Policy.SKIP)
    tick(T + timedelta(minutes=4))
    assert MailTask.objects.count() == 1


def test_what_comes_late_waits_for_its_window(owner: User) -> None:
    jane = subscribed(owner, line="@daily", window="08:00-09:00")
    opens = jane.next_at
    assert opens is not None
    tick(opens + 2 * HOUR)
    assert MailTask.objects.get().scheduled_at == opens + timedelta(days=1)


def test_the_rest_is_left_to_the_next_tick_when_its_time_is_over(
    owner: User, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ticking, "BITE", 2)
    for number in range(5):
        subscribed(owner, f"jane{number}@example.com")
    assert [tick(T, seconds=-1) for _ in range(4)] == [2, 2, 1, 0]


# Pause, resume, end -------------------------------------------------------------------------------------


def test_what_would_have_come_in_a_pause_does_not_come_later(owner: User) -> None:
    jane = subscribed(owner)
    soon(jane, timezone.now() - HOUR)
    deeds.pause(jane.pk)
    assert tick(T + 5 * HOUR) == 0
    before = timezone.now()
    resumed = deeds.resume(jane.pk)
    assert resumed.next_at is not None
    assert before < resumed.next_at <= before + HOUR + timedelta(minutes=5)
    assert tick(resumed.next_at) == 1


def test_to_resume_what_runs_changes_nothing(owner: User) -> None:
    jane = subscribed(owner)
    soon(jane, T - 3 * HOUR)
    assert deeds.resume(jane.pk).next_at == T - 3 * HOUR


def test_the_end_cancels_what_waits(owner: User) -> None:
    jane = subscribed(owner)
    tick(T)
    assert deeds.end(Subscription.objects.all()) == [jane.pk]
    task = MailTask.objects.get()
    assert (task.status, task.cancel_reason) == (Status.CANCELLED, CancelReason.USER)
    assert tick(T + HOUR) == 0
    assert deeds.end(Subscription.objects.all()) == []
    with pytest.raises(deeds.EndedError):
        deeds.resume(jane.pk)


def test_subscribing_again_changes_the_one_there_is(owner: User) -> None:
    jane = subscribed(owner)
    tick(T)
    again, is_new = deeds.subscribe(owner, "JANE@example.com", "news", line="@daily")
    assert (again.pk, is_new, again.line) == (jane.pk, False, "@daily")
    assert again.next_at is not None
    assert again.next_at.hour == 0
    deeds.end(Subscription.objects.all())
    assert subscribed(owner).state == State.ACTIVE


def test_subscribing_again_to_the_same_drops_nothing_that_is_due(owner: User) -> None:
    jane = subscribed(owner)
    soon(jane, T - HOUR)
    assert subscribed(owner).next_at == T - HOUR


def test_old_occurrences_are_pruned(owner: User, settings: Any) -> None:
    settings.MAIL_KEEP_DAYS = 1
    jane = subscribed(owner)
    tick(T)
    tick(T + HOUR)
    old = jane.occurrences.order_by("at").first()
    assert old
    Occurrence.objects.filter(pk=old.pk).update(created_at=timezone.now() - timedelta(days=2))
    assert deeds.prune() == 1
    assert times(jane) == [T + HOUR]


# The way out --------------------------------------------------------------------------------------------


def test_mails_carry_the_headers_of_rfc_8058(owner: User, settings: Any) -> None:
    settings.PUBLIC_URL = "https://mail.example.com"
    jane = subscribed(owner)
    tick(T)
    raw = bytes(MailTask.objects.get().content.raw).decode()
    link = f"https://mail.example.com/unsubscribe/{links.token_of(jane.pk)}"
    assert f"\r\nList-Unsubscribe: <{link}>\r\n" in raw
    assert "\r\nList-Unsubscribe-Post: List-Unsubscribe=One-Click\r\n" in raw


def test_without_a_public_address_there_is_no_such_header(owner: User, settings: Any) -> None:
    settings.PUBLIC_URL = ""
    subscribed(owner)
    tick(T)
    assert b"List-Unsubscribe" not in bytes(MailTask.objects.get().content.raw)


def test_the_table_keeps_an_occurrence_from_being_there_twice(owner: User) -> None:
    jane = subscribed(owner)
    with connection.cursor() as cursor:
        cursor.execute("SELECT indexdef FROM pg_indexes WHERE indexname = 'occurrence_once'")
        assert "UNIQUE" in cursor.fetchone()[0]
    assert jane.occurrences.count() == 0
