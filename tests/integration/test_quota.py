"""So many mails a user and UTC day, and nothing to pay where there is no quota."""

from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, date, datetime, timedelta

import pytest
import time_machine
from django.db import connection
from django.test import Client
from django.test.utils import CaptureQueriesContext
from django.utils import timezone

from accounts import quota
from accounts.api import authentication
from accounts.models import User
from accounts.quota import DailyUse, QuotaExceededError, counted, used_today
from tasks import submission
from tasks.models import MailTask
from tests.factories import UserFactory, client_of

pytestmark = pytest.mark.django_db

MAIL = {"recipient_email": "jane@example.com", "subject": "hello", "body": "Hello."}


def enqueue(user: User):
    return client_of(user).post("/api/v1/task/enqueue", MAIL, format="json")


def is_used_up(response) -> bool:
    assert response["Content-Type"] == "application/problem+json"
    return (response.status_code, response.json()["code"]) == (429, "quota_exceeded")


def test_beyond_the_quota_mail_waits_for_midnight():
    with time_machine.travel(datetime(2030, 1, 31, 23, 0, tzinfo=UTC), tick=False) as clock:
        user = UserFactory(daily_quota=2)
        answers = [enqueue(user) for _ in range(3)]
        assert [each.status_code for each in answers] == [202, 202, 429]
        assert [each["RateLimit"] for each in answers] == [f'"quota";r={left};t=3600' for left in (1, 0, 0)]
        assert {each["RateLimit-Policy"] for each in answers} == {'"quota";q=2;w=86400'}
        assert is_used_up(answers[2])
        assert answers[2]["Retry-After"] == "3600"
        assert MailTask.objects.count() == 2
        assert enqueue(UserFactory(daily_quota=2)).status_code == 202
        clock.shift(timedelta(hours=1))
        assert [enqueue(user).status_code for _ in range(3)] == [202, 202, 429]


def test_a_users_own_quota_goes_before_that_of_all(settings):
    settings.MAIL_DAILY_QUOTA = 1
    users = [UserFactory(daily_quota=own) for own in (None, 0, 3)]
    passed = [[enqueue(user).status_code for _ in range(4)].count(202) for user in users]
    assert passed == [1, 0, 3]


def test_without_a_quota_nothing_is_counted_or_asked(settings, monkeypatch):
    monkeypatch.setattr(authentication, "KEEP_SECONDS", 3600)  # however slow the machine
    assert settings.MAIL_DAILY_QUOTA == 0
    free, bound = UserFactory(), UserFactory(daily_quota=9)
    costs = []
    for user in (free, bound):
        client_of(user).get("/api/v1/user/0")  # who it is, is known from now on
        with CaptureQueriesContext(connection) as found:
            assert enqueue(user).status_code == 202
        costs.append([each["sql"] for each in found])
    # Its own transaction (here a savepoint, and its release) and the count.
    assert len(costs[1]) == len(costs[0]) + 3
    assert "dailyuse" not in " ".join(costs[0])
    assert not DailyUse.objects.filter(owner=free).exists()


def test_what_was_not_kept_does_not_count(monkeypatch):
    def closed(*_args):
        raise submission.AccountClosedError

    user = UserFactory(daily_quota=5)
    monkeypatch.setattr(submission, "submit", closed)
    assert enqueue(user).status_code == 401
    assert used_today(user, timezone.now()) == 0


def test_many_at_once_pass_whole_or_not_at_all():
    user = UserFactory(daily_quota=5)
    with counted(user, 4) as standing:
        assert standing
        assert standing.left == 1
    with pytest.raises(QuotaExceededError) as refused, counted(user, 2):
        pytest.fail("too many")
    assert refused.value.standing.left == 1
    with counted(user, 1):
        pass
    assert used_today(user, timezone.now()) == 5
    with pytest.raises(QuotaExceededError), counted(UserFactory(daily_quota=5), 6):
        pytest.fail("too many for a day")


def test_of_forty_at_once_the_quota_passes(transactional_db):
    user = UserFactory(daily_quota=10)

    def attempt(_number):
        try:
            return enqueue(user).status_code
        finally:
            connection.close()

    with ThreadPoolExecutor(20) as pool:
        answers = sorted(pool.map(attempt, range(40)))
    assert answers == [202] * 10 + [429] * 30
    assert MailTask.objects.filter(owner=user).count() == 10


def test_a_process_whose_clock_is_behind_does_not_give_the_day_back():
    user = UserFactory(daily_quota=5)
    DailyUse.objects.create(owner=user, day=date(2030, 2, 1), accepted=4)
    with time_machine.travel(datetime(2030, 1, 31, 23, 59, 59, tzinfo=UTC), tick=False):
        with counted(user, 1):
            pass
        with pytest.raises(QuotaExceededError), counted(user, 1):
            pytest.fail("too many")
    assert DailyUse.objects.get(owner=user).day == date(2030, 2, 1)


def test_a_quota_that_was_lowered_leaves_nothing_and_not_less():
    user = UserFactory(daily_quota=1)
    DailyUse.objects.create(owner=user, day=timezone.now().date(), accepted=4)
    response = enqueue(user)
    assert is_used_up(response)
    assert '"quota";r=0;' in response["RateLimit"]


def test_nobody_gives_themselves_a_quota():
    user = UserFactory(daily_quota=1)
    client_of(user).patch(f"/api/v1/user/{user.pk}", {"daily_quota": 1000}, format="json")
    user.refresh_from_db()
    assert user.daily_quota == 1


def test_staff_set_it_and_see_what_is_used():
    user = UserFactory(daily_quota=1000)
    DailyUse.objects.create(owner=user, day=timezone.now().date(), accepted=417)
    staff = Client()
    staff.force_login(UserFactory(is_staff=True, is_superuser=True))
    address = f"/admin/accounts/user/{user.pk}/change/"
    page = staff.get(address).content.decode()
    assert "417" in page
    form = {"email": user.email, "is_active": "on", "daily_quota": "2000"}
    assert staff.post(address, form).status_code == 302
    user.refresh_from_db()
    assert quota.quota_of(user) == 2000
