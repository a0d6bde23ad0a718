"""The admin: what staff see and do, and that it asks a large ledger only what an index can answer."""

import re
from datetime import datetime, timedelta
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from django.contrib.auth.models import Permission
from django.db import connection
from django.test import Client
from django.test.utils import CaptureQueriesContext
from django.urls import reverse
from django.utils import timezone

from accounts.models import AccountChange, AccountState, SmtpAccount, User
from tasks import message
from tasks.admin import MailTaskAdmin
from tasks.admin_queries import BoundedPaginator, ListedTasks
from tasks.models import Attempt, MailTask
from tasks.states import CancelReason, Lane, Outcome, Phase, Status
from tests.factories import PASSWORD, MailFactory, UserFactory

pytestmark = pytest.mark.django_db
TASKS = "/admin/tasks/mailtask/"


@pytest.fixture
def staff() -> Client:
    client = Client()
    client.force_login(UserFactory(is_staff=True, is_superuser=True))
    return client


def viewer() -> Client:
    user = UserFactory(is_staff=True)
    user.user_permissions.add(Permission.objects.get(codename="view_mailtask"))
    client = Client()
    client.force_login(user)
    return client


def page(client: Client, address: str, **query: Any) -> str:
    answer = client.get(address, query)
    assert answer.status_code == 200
    return answer.content.decode()


def listed(client: Client, **query: Any) -> list[int]:
    return [
        int(pk) for pk in re.findall(r'name="_selected_action" value="(\d+)"', page(client, TASKS, **query))
    ]


def act(client: Client, name: str, tasks: list[MailTask], address: str = TASKS) -> str:
    chosen = {"action": name, "_selected_action": [task.pk for task in tasks]}
    return client.post(address, chosen, follow=True).content.decode()


def test_one_logs_in_with_the_address() -> None:
    UserFactory(email="ada@example.com", is_staff=True)
    answer = Client().post(
        "/admin/login/", {"username": "Ada@example.com", "password": PASSWORD, "next": "/admin/"}
    )
    assert (answer.status_code, answer.headers.get("Location")) == (302, "/admin/")


@pytest.mark.parametrize(
    "model",
    [
        "tasks_mailtask",
        "accounts_user",
        "accounts_smtpaccount",
        "accounts_apikey",
        "auth_group",
        "django_celery_beat_periodictask",
        "django_celery_beat_crontabschedule",
        "django_celery_beat_intervalschedule",
        "django_celery_results_taskresult",
    ],
)
def test_every_list_opens(staff: Client, model: str) -> None:
    page(staff, reverse(f"admin:{model}_changelist"))


def test_periodic_tasks_can_be_added(staff: Client) -> None:
    page(staff, reverse("admin:django_celery_beat_periodictask_add"))


# The ledger -------------------------------------------------------------------------------------------


def test_a_task_shows_its_mail_and_its_attempts(staff: Client) -> None:
    raw = message.build(
        sender="ada@example.com",
        recipient="reader@example.com",
        subject="hello",
        text="Schöne Grüße\n",
        html="<script>x()</script>",
        message_id="<1@example.com>",
        date=timezone.now(),
    )
    task = MailFactory(raw=raw, status=Status.FAILED)
    Attempt.objects.create(
        task=task,
        number=1,
        at=timezone.now(),
        outcome=Outcome.TEMPORARY,
        phase=Phase.RCPT,
        code=451,
        reply="later",
    )
    shown = page(staff, f"{TASKS}{task.pk}/change/")
    assert "Schöne Grüße" in shown
    assert "&lt;script&gt;x()" in shown
    assert "<script>x()" not in shown
    assert "Message-ID: &lt;1@example.com&gt;" in shown
    assert "later" in shown


def test_a_task_whose_content_was_pruned_is_still_shown(staff: Client) -> None:
    task = MailFactory()
    task.content.delete()
    page(staff, f"{TASKS}{task.pk}/change/")


def test_the_ledger_cannot_be_written_to(staff: Client) -> None:
    task = MailFactory()
    assert staff.get(f"{TASKS}add/").status_code == 403
    assert staff.post(f"{TASKS}{task.pk}/change/", {"recipient": "other@example.com"}).status_code == 403
    assert staff.post(f"{TASKS}{task.pk}/delete/", {"post": "yes"}).status_code == 403
    task.refresh_from_db()
    assert task.recipient != "other@example.com"


def test_filters_leave_what_they_say(staff: Client) -> None:
    queued = MailFactory(lane=Lane.OTP)
    rejected = MailFactory(status=Status.CANCELLED, cancel_reason=CancelReason.REJECTED)
    by_a_person = MailFactory(status=Status.CANCELLED)
    assert listed(staff, status=Status.QUEUED.value) == [queued.pk]
    assert listed(staff, lane__exact=Lane.OTP.value) == [queued.pk]
    assert listed(staff, status=Status.CANCELLED.value) == [by_a_person.pk, rejected.pk]
    assert listed(staff, cancel_reason=CancelReason.REJECTED.value) == [rejected.pk]
    assert listed(staff, owner__id__exact=queued.owner_id) == [queued.pk]


def test_search_finds_by_id_recipient_its_beginning_and_message_id(staff: Client) -> None:
    one = MailFactory(recipient="anna@example.org", message_id=message.new_message_id("ada@example.com"))
    other = MailFactory(recipient="annabel@example.org")
    MailFactory(recipient="joanna@example.org")
    assert listed(staff, q=f" {one.pk} ") == [one.pk]
    assert listed(staff, q="anna@example.org") == [one.pk]
    assert listed(staff, q="anna") == [other.pk, one.pk]
    assert listed(staff, q=one.message_id) == [one.pk]
    assert listed(staff, q=one.message_id.strip("<>")) == [one.pk]
    for absent in ("nobody", "a_na", "%", "9" * 19, "9" * 40, f"<{'f' * 32}@example.com>"):
        assert listed(staff, q=absent) == [], absent


@pytest.mark.parametrize(
    ("term", "index"),
    [
        ("anna@example.org", "task_recipient"),
        ("anna", "task_recipient"),
        ("4711", "tasks_mailtask_pkey"),
        pytest.param(message.new_message_id("ada@example.com"), "task_created", id="message-id"),
    ],
)
def test_what_is_searched_for_is_looked_up_in_an_index(term: str, index: str) -> None:
    MailFactory.create_batch(30)
    with connection.cursor() as cursor:
        cursor.execute("SET LOCAL enable_seqscan = off")  # a small table is always scanned otherwise
        cursor.execute("ANALYZE tasks_mailtask")  # else what other tests have left there decides
    plan = ListedTasks(MailTask).found_by(term).explain()
    assert re.search(rf"Index Scan (using|on) {index}", plan), plan
    assert "Index Cond" in plan


def test_the_list_asks_nothing_that_needs_all_rows(staff: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(MailTaskAdmin, "list_per_page", 2)
    for number in range(3):
        MailFactory(recipient=f"anna{number}@example.org", status=Status.SUCCESS)
    now = timezone.now()
    searches = (
        {},
        {"q": "anna"},
        {"status": 2},
        {"created_at__year": now.year, "created_at__month": now.month},
    )
    for query in searches:
        with CaptureQueriesContext(connection) as asked:
            page(staff, TASKS, **query)
        of_tasks = [one["sql"] for one in asked.captured_queries if '"tasks_mailtask"' in one["sql"]]
        assert len(of_tasks) >= 3
        for sql in of_tasks:
            bounded = "LIMIT" in sql or sql.startswith('SELECT MIN("tasks_mailtask"."created_at")')
            assert bounded, sql
            assert not re.search(r"DISTINCT|UPPER\(|ILIKE|DATE_TRUNC", sql), sql
            if sql.startswith("SELECT MIN"):
                assert "WHERE" not in sql


def test_counting_stops_where_nobody_turns_pages(staff: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(BoundedPaginator, "most", 2)
    MailFactory.create_batch(2)
    assert "2 mail tasks" in " ".join(page(staff, TASKS).split())
    MailFactory.create_batch(5)
    shown = " ".join(page(staff, TASKS).split())
    assert "2+ mail tasks" in shown
    assert "7" not in re.findall(r"(\d+\+?) mail tasks", shown)


def test_the_date_hierarchy_names_the_days_that_have_mail(staff: Client) -> None:
    first = datetime(2026, 3, 1, 0, 0, tzinfo=ZoneInfo("UTC"))
    mails = {
        day: MailFactory(created_at=first + timedelta(days=day, hours=hour))
        for day, hour in ((0, 0), (1, 23), (30, 23))
    }
    MailFactory(created_at=first + timedelta(days=31))
    MailFactory(created_at=first + timedelta(days=400))

    def numbers(unit: str, **query: Any) -> list[int]:
        found = page(staff, TASKS, **query).split('class="toplinks')[1].split("</ul>")[0]
        return [int(n) for n in re.findall(rf"created_at__{unit}=(\d+)", found)]

    assert numbers("year") == [2026, 2027]
    assert numbers("month", created_at__year=2026) == [3, 4]
    assert numbers("day", created_at__year=2026, created_at__month=3) == [1, 2, 31]
    day = {"created_at__year": 2026, "created_at__month": 3, "created_at__day": 31}
    assert listed(staff, **day) == [mails[30].pk]


def test_cancel_and_retry_say_how_many_they_changed(staff: Client) -> None:
    queued, sent, cancelled = (
        MailFactory(),
        MailFactory(status=Status.SUCCESS),
        MailFactory(status=Status.CANCELLED),
    )
    told = act(staff, "cancel", [queued, sent, cancelled])
    assert "1 of 3 cancelled." in told
    assert "2 could not be" in told
    told = act(staff, "retry", [queued, sent, cancelled])
    assert "2 of 3 queued again." in told
    assert "1 could not be" in told
    states = dict(MailTask.objects.values_list("id", "status"))
    assert states == {queued.pk: Status.QUEUED, sent.pk: Status.SUCCESS, cancelled.pk: Status.QUEUED}


def test_what_is_uncertain_is_accepted_or_sent_again_and_nothing_else_is(staff: Client) -> None:
    held = [MailFactory(status=Status.UNCERTAIN) for _ in range(2)]
    failed, cancelled = MailFactory(status=Status.FAILED), MailFactory(status=Status.CANCELLED)
    accepted = act(staff, "accept", [held[0], failed, cancelled])
    assert "1 of 3 accepted as sent. 2 could not be, in the state they are in." in accepted
    assert "1 of 4 queued again." in act(staff, "send_again", [*held, failed, cancelled])
    for task in (*held, failed, cancelled):
        task.refresh_from_db()
    assert [task.status for task in held] == [Status.SUCCESS, Status.QUEUED]
    assert (failed.status, cancelled.status) == (Status.FAILED, Status.CANCELLED)


def test_actions_reach_all_that_is_filtered_for_when_all_is_chosen(staff: Client) -> None:
    MailFactory.create_batch(3)
    bulk = MailFactory(lane=Lane.BULK)
    chosen = {"action": "cancel", "_selected_action": [bulk.pk], "select_across": "1"}
    told = staff.post(f"{TASKS}?lane__exact={Lane.DEFAULT.value}", chosen, follow=True).content.decode()
    assert "3 of 3 cancelled." in told
    assert MailTask.objects.get(status=Status.QUEUED) == bulk


def test_who_may_only_look_can_do_nothing() -> None:
    task, client = MailFactory(), viewer()
    assert task.recipient in page(client, TASKS)
    act(client, "cancel", [task])
    assert MailTask.objects.get().status == Status.QUEUED


# Users and accounts -----------------------------------------------------------------------------------


def test_a_new_user_comes_with_an_account(staff: Client) -> None:
    form = {"email": "Ada@Example.com", "password1": "a long passphrase", "password2": "a long passphrase"}
    assert staff.post("/admin/accounts/user/add/", form).status_code == 302
    user = User.objects.get(email="ada@example.com")
    assert user.check_password("a long passphrase")
    assert user.smtp.from_email == "ada@example.com"
    page(staff, f"/admin/accounts/user/{user.pk}/change/")


def test_an_address_that_no_mail_could_come_from_is_refused(staff: Client) -> None:
    form = {
        "email": "\u017fam@example.com",
        "password1": "a long passphrase",
        "password2": "a long passphrase",
    }
    assert "Must be one e-mail address" in staff.post("/admin/accounts/user/add/", form).content.decode()
    user = UserFactory()
    address = f"/admin/accounts/smtpaccount/{user.pk}/change/"
    refused = staff.post(address, account_form(from_email="\u017fam@example.com"))
    assert "Must be one e-mail address" in refused.content.decode()


def test_a_taken_address_is_named(staff: Client) -> None:
    UserFactory(email="ada@example.com")
    form = {"email": "ADA@example.com", "password1": "a long passphrase", "password2": "a long passphrase"}
    answer = staff.post("/admin/accounts/user/add/", form)
    assert answer.status_code == 200
    assert "already exists" in answer.content.decode()


def test_a_deactivated_users_waiting_mail_is_cancelled(staff: Client) -> None:
    task = MailFactory()
    form = {"email": task.owner.email, "is_active": ""}
    assert staff.post(f"/admin/accounts/user/{task.owner_id}/change/", form).status_code == 302
    task.refresh_from_db()
    assert not User.objects.get(pk=task.owner_id).is_active
    assert (task.status, task.cancel_reason) == (Status.CANCELLED, CancelReason.ACCOUNT_CLOSED)


def test_closing_many_leaves_oneself_in() -> None:
    client, me, task = Client(), UserFactory(is_staff=True, is_superuser=True), MailFactory()
    client.force_login(me)
    chosen = {"action": "close", "_selected_action": [me.pk, task.owner_id]}
    assert "1 closed." in client.post("/admin/accounts/user/", chosen, follow=True).content.decode()
    assert list(User.objects.filter(is_active=True)) == [me]
    assert MailTask.objects.get().status == Status.CANCELLED


def account_form(**changed: Any) -> dict[str, Any]:
    form = {
        "host": "smtp.example.com",
        "port": 587,
        "username": "ada",
        "new_password": "",
        "security": "auto",
    }
    return form | {"from_email": "ada@example.com", "max_connections": 10} | changed


def test_an_accounts_password_is_written_but_never_shown(staff: Client) -> None:
    user = UserFactory()
    address = f"/admin/accounts/smtpaccount/{user.pk}/change/"
    assert staff.post(address, account_form(new_password="canary-secret")).status_code == 302
    user.smtp.refresh_from_db()
    assert user.smtp.password == "canary-secret"
    assert staff.post(address, account_form(username="someone else")).status_code == 302
    user.smtp.refresh_from_db()
    assert user.smtp.password == "canary-secret"
    of_users = ["/admin/accounts/user/", f"/admin/accounts/user/{user.pk}/change/"]
    of_accounts = ["/admin/accounts/smtpaccount/", address, f"/admin/accounts/smtpaccount/{user.pk}/history/"]
    for one in of_users + of_accounts:
        shown = page(staff, one)
        assert "canary-secret" not in shown
        assert user.smtp.sealed_password not in shown


def test_new_relay_settings_reopen_the_account_and_others_do_not(staff: Client) -> None:
    user = UserFactory()
    address = f"/admin/accounts/smtpaccount/{user.pk}/change/"
    staff.post(address, account_form())
    user.smtp.refresh_from_db()
    user.smtp.state, user.smtp.reason, user.smtp.faults = AccountState.PAUSED, "535 no", 3
    user.smtp.save()
    staff.post(address, account_form(max_connections=20))
    user.smtp.refresh_from_db()
    assert (user.smtp.max_connections, user.smtp.state) == (20, AccountState.PAUSED)
    staff.post(address, account_form(max_connections=20, new_password="another"))
    user.smtp.refresh_from_db()
    assert (user.smtp.state, user.smtp.reason, user.smtp.faults) == (AccountState.UNVERIFIED, "", 0)


@pytest.mark.parametrize("port", ["0", "65536", "x", ""])
def test_a_port_that_is_none_is_refused(staff: Client, port: str) -> None:
    user = UserFactory()
    answer = staff.post(f"/admin/accounts/smtpaccount/{user.pk}/change/", account_form(port=port))
    assert answer.status_code == 200
    user.smtp.refresh_from_db()
    assert user.smtp.host == ""


def test_reopen_lets_a_paused_account_try_again(staff: Client) -> None:
    paused = UserFactory()
    paused.smtp.state, paused.smtp.paused_until = AccountState.PAUSED, timezone.now() + timedelta(hours=1)
    paused.smtp.save()
    chosen = {"action": "reopen", "_selected_action": [paused.pk]}
    assert "1 reopened." in staff.post("/admin/accounts/smtpaccount/", chosen, follow=True).content.decode()
    paused.smtp.refresh_from_db()
    assert (paused.smtp.state, paused.smtp.paused_until) == (AccountState.UNVERIFIED, None)


def test_an_accounts_history_is_shown_newest_first(staff: Client) -> None:
    paused = UserFactory()
    SmtpAccount.objects.filter(owner=paused).update(paused_until=timezone.now())
    paused.smtp.note(AccountChange.PAUSED, "535 5.7.8 <no>", timezone.now())
    chosen = {"action": "reopen", "_selected_action": [paused.pk]}
    staff.post("/admin/accounts/smtpaccount/", chosen)
    shown = page(staff, f"/admin/accounts/smtpaccount/{paused.pk}/change/")
    assert shown.index("Staff reopened it.") < shown.index("535 5.7.8 &lt;no&gt;")


@pytest.mark.parametrize("model", ["outstandingtoken", "blacklistedtoken"])
def test_tokens_have_no_page(staff: Client, model: str) -> None:
    assert staff.get(f"/admin/token_blacklist/{model}/").status_code == 404


@pytest.mark.parametrize("address", ["/admin/accounts/user/", "/admin/accounts/smtpaccount/"])
def test_neither_users_nor_accounts_can_be_deleted(staff: Client, address: str) -> None:
    user = UserFactory()
    assert staff.post(f"{address}{user.pk}/delete/", {"post": "yes"}).status_code == 403
    assert User.objects.filter(pk=user.pk).exists()
