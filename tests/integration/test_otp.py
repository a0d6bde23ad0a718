"""One-time passwords: made, mailed, verified once, locked, voided, and nowhere to be seen but in the mail."""

import io
import logging
import re
import threading
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from email import message_from_bytes, policy
from typing import Any

import pytest
from django.contrib.auth import get_user_model
from django.db import connection
from django.test import Client
from django.utils import timezone
from rest_framework.test import APIClient

from accounts import sealing
from accounts.models import User
from mailqueue import upkeep
from mailqueue.otp import codes
from mailqueue.otp.models import Code
from tasks import doorbell, ledger, submission
from tasks.ledger import Claimed, Settlement
from tasks.models import Due, IdempotencyKey, MailContent, MailTask, OneTime
from tasks.states import CancelReason, Lane, OnUncertain, Outcome, Status
from tasks.templates import make
from tests.factories import UserFactory, claim_one, client_of, make_due

pytestmark = pytest.mark.django_db
TASK, VERIFY = "/api/v1/task/", "/api/v1/task/verify"
JANE = "jane@example.com"


def ask(api: APIClient, recipient: str = JANE, **payload: Any) -> Any:
    body = {"type": "generateOtp", "payload": {"userId": recipient} | payload}
    return api.post(TASK, body, format="json")


def made(api: APIClient, recipient: str = JANE, **payload: Any) -> str:
    """The code of a new mail, as its reader finds it."""
    answer = ask(api, recipient, **payload)
    assert answer.status_code == 202, answer.json()
    return code_in(MailTask.objects.get(pk=answer.json()["task_id"]))


def code_in(task: MailTask) -> str:
    text = mail_of(task).get_body(("plain",)).get_content()
    (code,) = re.findall(r"^ +(\d+)\r?$", text, re.MULTILINE)
    return str(code)


def mail_of(task: MailTask) -> Any:
    return message_from_bytes(bytes(MailContent.objects.get(task=task).raw), policy=policy.default)


def verified(api: APIClient, code: Any, recipient: str = JANE) -> bool:
    answer = api.post(VERIFY, {"userEmail": recipient, "otp": code}, format="json")
    assert answer.status_code == 200
    assert answer.json() == {"type": "otp verification", "verified": answer.json()["verified"]}
    return bool(answer.json()["verified"])


def other_than(code: str) -> str:
    return code[:-1] + str((int(code[-1]) + 1) % 10)


def pass_time(seconds: float) -> None:
    """All that is known of codes and their mails was so much earlier."""
    by = timedelta(seconds=seconds)
    for code in Code.objects.all():
        code.created_at, code.expires_at = code.created_at - by, code.expires_at - by
        code.save()
    for rows in (MailTask, Due):
        for row in rows.objects.exclude(expires_at=None):
            row.expires_at -= by
            row.save()


# The mail -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("length", [4, 5, 6, 7, 8])
def test_a_code_has_so_many_digits(api: APIClient, length: int) -> None:
    assert re.fullmatch(rf"[1-9]\d{{{length - 1}}}", made(api, length=length))


def test_codes_differ_and_use_every_digit(owner: User) -> None:
    found = [codes._new(6) for _ in range(500)]
    assert len(set(found)) > 480
    assert set("".join(found)) == set("0123456789")
    assert {len(code) for code in found} == {6}


def test_the_mail_is_urgent_and_expires_with_the_code(api: APIClient, settings: Any) -> None:
    settings.OTP_TTL_SECONDS = 120
    before = timezone.now()
    made(api)
    task, code = MailTask.objects.get(), Code.objects.get()
    assert (task.lane, task.subject) == (Lane.OTP, "Your one-time password")
    assert task.expires_at == code.expires_at == code.created_at + timedelta(seconds=120)
    assert abs(code.created_at - before) < timedelta(minutes=1)
    assert "2 minutes" in mail_of(task).get_body(("plain",)).get_content()


def test_the_built_in_mail_says_it_in_text_and_html(api: APIClient) -> None:
    code = made(api)
    mail = mail_of(MailTask.objects.get())
    assert mail.get_content_type() == "multipart/alternative"
    for form in ("plain", "html"):
        said = mail.get_body((form,)).get_content()
        assert code in said
        assert "5 minutes" in said


@pytest.mark.parametrize(("seconds", "said"), [(60, "1 minute,"), (90, "90 seconds"), (1, "1 second,")])
def test_any_life_time_is_said(api: APIClient, settings: Any, seconds: int, said: str) -> None:
    settings.OTP_TTL_SECONDS = seconds
    made(api)
    assert said in mail_of(MailTask.objects.get()).get_body(("plain",)).get_content()


def test_the_owners_template_takes_its_place(api: APIClient, owner: User) -> None:
    parts = {
        "subject": "{{ code }} is your code",
        "body": "For {{ recipient }}, {{ minutes }} minutes:\n   {{ code }}\n",
        "html_body": "<p>{{ code }}, good for {{ valid_for }}</p>",
    }
    make(owner, "otp", parts).template.change(parts | {"body": "New words:\n   {{ code }}\n"})
    code = made(api)
    task = MailTask.objects.get()
    mail = mail_of(task)
    assert mail["Subject"] == f"{code} is your code"
    assert "New words" in mail.get_body(("plain",)).get_content()
    assert f"<p>{code}, good for 5 minutes</p>" in mail.get_body(("html",)).get_content()
    # What is listed shows no code.
    assert task.subject == "•••••• is your code"
    assert code not in api.get(f"/api/v1/task/{task.pk}").content.decode()
    assert verified(api, code)


def test_somebody_elses_template_does_not(api: APIClient) -> None:
    make(UserFactory(), "otp", {"subject": "Theirs", "body": "{{ code }}"})
    make(UserFactory(), "another", {"subject": "Another", "body": "{{ code }}"})
    made(api)
    assert MailTask.objects.get().subject == "Your one-time password"


@pytest.mark.parametrize(
    ("parts", "complaint"),
    [
        ({"subject": "Hello", "body": "No code at all."}, "does not say {{ code }}"),
        ({"subject": "{% if code == '' %}x{% endif %}", "body": "{{ code }}"}, "1 to 998 characters"),
    ],
)
def test_a_template_that_does_not_do_is_named(
    api: APIClient, owner: User, parts: dict[str, str], complaint: str
) -> None:
    make(owner, "otp", parts)
    answer = ask(api)
    assert answer.status_code == 400
    (error,) = answer.json()["errors"]
    assert (error["field"], error["code"]) == ("payload", "template_error")
    assert complaint in error["detail"]
    assert not MailTask.objects.exists()
    assert not Code.objects.exists()


# Verifying ----------------------------------------------------------------------------------------------


def test_the_right_code_is_right_once(api: APIClient) -> None:
    code = made(api)
    assert verified(api, code)
    assert not verified(api, code)
    assert not verified(api, code)


@pytest.mark.parametrize(
    "typed", [lambda code: f" {code[:3]} {code[3:]}\n", int, lambda code: float(int(code))]
)
def test_it_is_taken_as_people_and_programs_give_it(api: APIClient, typed: Any) -> None:
    assert verified(api, typed(made(api)))


@pytest.mark.parametrize("name", ["userId", "recipient", "recipient_email"])
def test_the_recipient_may_be_called_otherwise(api: APIClient, name: str) -> None:
    answer = api.post(VERIFY, {name: JANE, "otp": made(api)}, format="json")
    assert answer.json()["verified"] is True


def test_the_address_is_compared_without_regard_to_case(api: APIClient) -> None:
    assert verified(api, made(api, "Jane@Example.COM"), "jane@example.com")


def test_wrong_late_used_locked_voided_and_unknown_ones_are_answered_alike(api: APIClient) -> None:
    answers = set()

    def note(code: str, recipient: str) -> None:
        answer = api.post(VERIFY, {"userEmail": recipient, "otp": code}, format="json")
        answers.add((answer.status_code, answer.content, tuple(sorted(answer.headers) or ())))

    late = made(api, "late@example.com")
    pass_time(301)
    used, wrong = made(api, "used@example.com"), other_than(made(api, "wrong@example.com"))
    locked = made(api, "locked@example.com")
    assert verified(api, used, "used@example.com")
    for _ in range(codes.ATTEMPTS):
        assert not verified(api, other_than(locked), "locked@example.com")
    note(late, "late@example.com")
    note(used, "used@example.com")
    note(wrong, "wrong@example.com")
    note(locked, "locked@example.com")
    note("123456", "nobody@example.com")
    note("not a number", "wrong@example.com")
    ((status, body, _),) = answers
    assert (status, body) == (200, b'{"type":"otp verification","verified":false}')


@pytest.mark.parametrize(("seconds", "is_right"), [(290, True), (301, False)])
def test_a_code_is_good_for_its_life_time(api: APIClient, seconds: int, is_right: bool) -> None:
    code = made(api)
    pass_time(seconds)
    assert verified(api, code) is is_right


def test_brute_force_is_locked_at_the_sixth(api: APIClient) -> None:
    code = made(api)
    assert [verified(api, other_than(code)) for _ in range(5)] == [False] * 5
    assert not verified(api, code)
    assert not verified(api, code)
    assert Code.objects.get().used_at is None


def test_the_fifth_attempt_is_still_heard(api: APIClient) -> None:
    code = made(api)
    assert [verified(api, other_than(code)) for _ in range(4)] == [False] * 4
    assert verified(api, code)


def test_however_often_it_is_tried_the_count_stays_small(api: APIClient) -> None:
    made(api)
    Code.objects.update(attempts=6)
    assert not verified(api, "000000")
    assert Code.objects.get().attempts == 6


def test_a_new_code_voids_the_old_one_and_begins_the_count_anew(api: APIClient) -> None:
    first = made(api)
    for _ in range(5):
        verified(api, other_than(first))
    pass_time(61)
    second = made(api)
    assert not verified(api, first)
    assert verified(api, second)
    assert Code.objects.filter(voided_at=None).count() == 1


def test_a_code_is_the_recipients_alone(api: APIClient) -> None:
    jane, joe = made(api), made(api, "joe@example.com")
    assert not verified(api, jane if jane != joe else other_than(jane), "joe@example.com")
    assert verified(api, joe, "joe@example.com")
    assert verified(api, jane)


def test_codes_of_other_owners_are_neither_verified_nor_spoilt(api: APIClient) -> None:
    other = client_of(UserFactory())
    mine = made(api)
    for _ in range(6):
        assert not verified(other, mine)
    theirs = made(other)
    assert verified(api, mine)
    assert verified(other, theirs)


@pytest.mark.parametrize(
    ("body", "field", "code"),
    [
        ({"otp": "123456"}, "userEmail", "required"),
        ({"userEmail": "jane", "otp": "123456"}, "userEmail", "invalid_address"),
        ({"userEmail": None, "otp": "123456"}, "userEmail", "null"),
        ({"userEmail": JANE}, "otp", "required"),
        ({"userEmail": JANE, "otp": ""}, "otp", "blank"),
        ({"userEmail": JANE, "otp": None}, "otp", "null"),
        ({"userEmail": JANE, "otp": True}, "otp", "invalid"),
        ({"userEmail": JANE, "otp": 1.5}, "otp", "invalid"),
        ({"userEmail": JANE, "otp": -1}, "otp", "invalid"),
        ({"userEmail": JANE, "otp": 10**8}, "otp", "invalid"),
        ({"userEmail": JANE, "otp": ["123456"]}, "otp", "invalid"),
        ({"userEmail": JANE, "otp": "1" * 101}, "otp", "max_length"),
    ],
)
def test_what_cannot_be_verified_is_named_and_costs_no_attempt(
    api: APIClient, body: Any, field: str, code: str
) -> None:
    made(api)
    answer = api.post(VERIFY, body, format="json")
    assert answer.status_code == 400
    assert [(each["field"], each["code"]) for each in answer.json()["errors"]] == [(field, code)]
    assert Code.objects.get().attempts == 0


# At the same time ---------------------------------------------------------------------------------------


def at_once(number: int, deed: Any) -> list[Any]:
    together = threading.Barrier(number)

    def act(_: int) -> Any:
        together.wait(60)
        try:
            return deed()
        finally:
            connection.close()

    with ThreadPoolExecutor(number) as pool:
        return list(pool.map(act, range(number)))


@pytest.mark.django_db(transaction=True)
def test_of_twenty_right_answers_at_once_one_wins() -> None:
    owner = UserFactory()
    code = made(client_of(owner))
    assert sorted(at_once(20, lambda: codes.verify(owner, JANE, code))) == [False] * 19 + [True]


@pytest.mark.django_db(transaction=True)
def test_wrong_answers_at_once_are_all_counted() -> None:
    owner = UserFactory()
    code = made(client_of(owner))
    assert at_once(20, lambda: codes.verify(owner, JANE, other_than(code))) == [False] * 20
    assert Code.objects.get().attempts == 6
    assert not codes.verify(owner, JANE, code)


@pytest.mark.django_db(transaction=True)
def test_of_ten_asked_for_at_once_one_is_sent() -> None:
    owner = UserFactory()
    clients = [client_of(owner) for _ in range(10)]
    answers = at_once(10, lambda: ask(clients.pop()).status_code)
    assert sorted(answers) == [202] + [429] * 9
    assert MailTask.objects.count() == Code.objects.count() == 1


# Limits -------------------------------------------------------------------------------------------------


def test_one_a_minute(api: APIClient) -> None:
    first = ask(api)
    assert '"otp-minute";r=0;t=60' in first["RateLimit"]
    assert '"otp-hour";q=5;w=3600' in first["RateLimit-Policy"]
    pass_time(20)
    answer = ask(api)
    assert (answer.status_code, answer.json()["code"]) == (429, "too_many_requests")
    assert 30 < int(answer["Retry-After"]) <= 40
    assert '"otp-minute";r=0' in answer["RateLimit"]
    assert MailTask.objects.count() == 1
    pass_time(41)
    assert ask(api).status_code == 202


def test_five_an_hour(api: APIClient) -> None:
    for _ in range(5):
        assert ask(api).status_code == 202
        pass_time(61)
    answer = ask(api)
    assert answer.status_code == 429
    assert 3200 < int(answer["Retry-After"]) <= 3600 - 5 * 61
    pass_time(int(answer["Retry-After"]) - 5)
    assert ask(api).status_code == 429
    pass_time(6)
    assert ask(api).status_code == 202


def test_the_old_code_stays_good_where_no_new_one_is_sent(api: APIClient) -> None:
    code = made(api)
    assert ask(api).status_code == 429
    assert verified(api, code)


def test_other_recipients_and_other_owners_have_limits_of_their_own(api: APIClient) -> None:
    assert ask(api).status_code == 202
    assert ask(api, "JANE@example.com").status_code == 429
    assert ask(api, "joe@example.com").status_code == 202
    assert ask(client_of(UserFactory())).status_code == 202


def test_the_limits_hold_without_redis(api: APIClient, settings: Any) -> None:
    settings.REDIS_URL = "redis://127.0.0.1:1/0"
    doorbell.client.cache_clear()
    assert ask(api).status_code == 202
    assert ask(api).status_code == 429


def test_what_failed_does_not_count(api: APIClient, owner: User) -> None:
    version = make(owner, "otp", {"subject": "Hello", "body": "No code."})
    assert ask(api).status_code == 400
    version.template.delete()
    assert ask(api).status_code == 202


# What stays behind --------------------------------------------------------------------------------------


def claimed() -> Claimed:
    make_due()
    return claim_one()


def settle(status: Status, outcome: Outcome, **more: Any) -> None:
    mail = claimed()
    ledger.settle([Settlement(mail.id, mail.token, status, outcome=outcome, **more)], "worker")


def end_as_sent(_task: MailTask) -> None:
    settle(Status.SUCCESS, Outcome.ACCEPTED)


def end_as_rejected(_task: MailTask) -> None:
    settle(Status.CANCELLED, Outcome.REJECTED, cancel_reason=CancelReason.REJECTED)


def end_as_expired(_task: MailTask) -> None:
    pass_time(301)


def end_by_hand(task: MailTask) -> None:
    submission.cancel(MailTask.objects.filter(pk=task.pk))


def end_with_the_account(task: MailTask) -> None:
    ledger.cancel(MailTask.objects.filter(pk=task.pk), CancelReason.ACCOUNT_CLOSED)


def end_as_accepted(task: MailTask) -> None:
    settle(Status.UNCERTAIN, Outcome.UNCERTAIN)
    submission.accept(MailTask.objects.filter(pk=task.pk))


def end_in_doubt(_task: MailTask) -> None:
    settle(Status.UNCERTAIN, Outcome.UNCERTAIN)
    pass_time(301)


ENDS = [
    end_as_sent,
    end_as_rejected,
    end_as_expired,
    end_by_hand,
    end_with_the_account,
    end_as_accepted,
    end_in_doubt,
]


@pytest.mark.parametrize("end", ENDS)
def test_the_body_goes_when_the_mail_has_come_to_its_end(api: APIClient, end: Any) -> None:
    made(api)
    task = MailTask.objects.get()
    upkeep.expire()
    assert bytes(MailContent.objects.get().raw)
    end(task)
    upkeep.expire()
    assert bytes(MailContent.objects.get().raw) == b""
    assert OneTime.objects.get().is_blanked


@pytest.mark.parametrize("end", ENDS)
def test_no_retry_sends_it_again_after_that(api: APIClient, owner: User, end: Any) -> None:
    made(api)
    task = MailTask.objects.get()
    end(task)
    if end is end_as_expired:
        upkeep.expire()
    for is_blanked in (False, True):
        assert submission.retry(MailTask.objects.all()) == 0
        answer = api.post(f"/api/v1/task/{task.pk}/retry")
        assert answer.status_code == 409
        task.refresh_from_db()
        assert answer.json()["code"] == ("not_retryable" if task.status == Status.SUCCESS else "void")
        if task.status == Status.UNCERTAIN:
            again = api.post(f"/api/v1/task/{task.pk}/resolve", {"action": "retry"}, format="json")
            assert (again.status_code, again.json()["code"]) == (409, "void")
        bulk = {"action": "retry", "filter": {"status": Status(task.status).label}}
        assert api.post("/api/v1/task/bulk", bulk, format="json").json()["changed"] == 0
        if not is_blanked:
            upkeep.expire()
    assert not Due.objects.exists()


def test_what_waits_for_another_try_keeps_its_body_and_can_be_hurried(api: APIClient) -> None:
    code = made(api)
    task = MailTask.objects.get()
    settle(Status.FAILED, Outcome.TEMPORARY, wait=60.0)
    upkeep.expire()
    assert code_in(task) == code
    assert api.post(f"/api/v1/task/{task.pk}/retry").status_code == 200
    task.refresh_from_db()
    assert task.expires_at == Code.objects.get().expires_at
    settle(Status.SUCCESS, Outcome.ACCEPTED)
    assert verified(api, code)


def test_one_that_is_in_doubt_can_be_sent_again_while_it_is_good(api: APIClient) -> None:
    code = made(api)
    MailTask.objects.update(on_uncertain=OnUncertain.HOLD)
    task = MailTask.objects.get()
    settle(Status.UNCERTAIN, Outcome.UNCERTAIN)
    upkeep.expire()
    answer = api.post(f"/api/v1/task/{task.pk}/resolve", {"action": "retry"}, format="json")
    assert answer.json()["status"] == "queued"
    assert code_in(task) == code


def test_what_a_worker_holds_keeps_its_body_however_late_it_is(api: APIClient) -> None:
    code = made(api)
    claimed()
    pass_time(301)
    upkeep.expire()
    assert code_in(MailTask.objects.get()) == code


def test_the_mail_of_a_voided_code_is_not_sent_any_more(api: APIClient) -> None:
    made(api)
    first = MailTask.objects.get()
    pass_time(61)
    made(api)
    first.refresh_from_db()
    assert (first.status, first.cancel_reason) == (Status.CANCELLED, CancelReason.EXPIRED)
    assert claimed().id != first.pk


def test_other_mail_is_retried_and_keeps_its_body(api: APIClient) -> None:
    plain = {"userId": JANE, "subject": "x", "content": "x"}
    api.post(TASK, {"type": "message", "payload": plain}, format="json")
    task = MailTask.objects.get()
    api.post(f"/api/v1/task/{task.pk}/cancel")
    upkeep.expire()
    assert bytes(MailContent.objects.get().raw)
    assert api.post(f"/api/v1/task/{task.pk}/retry").status_code == 200


def test_old_codes_leave(api: APIClient, owner: User) -> None:
    made(api, "old@example.com")
    Code.objects.update(created_at=timezone.now() - codes.KEPT - timedelta(minutes=1))
    made(api)
    assert codes.prune() == 1
    assert Code.objects.get().recipient == JANE


def test_pruned_mail_takes_its_mark_along(api: APIClient) -> None:
    made(api)
    end_by_hand(MailTask.objects.get())
    long_ago = timezone.now() - timedelta(days=1000)
    MailTask.objects.update(created_at=long_ago, finished_at=long_ago)
    upkeep.prune()
    assert not MailTask.objects.exists()
    assert not OneTime.objects.exists()


# Secrecy ------------------------------------------------------------------------------------------------


def dump() -> str:
    """Every row of every table, the mails' own bytes apart."""
    said = io.StringIO()
    with connection.cursor() as cursor:
        cursor.execute("SELECT tablename FROM pg_tables WHERE schemaname = 'public'")
        for (table,) in cursor.fetchall():
            if table == "tasks_mailcontent":
                cursor.execute("SELECT details FROM tasks_mailcontent")
            else:
                cursor.execute(f'SELECT t::text FROM "{table}" t')
            said.writelines(f"{table} {row}\n" for row in cursor.fetchall())
    return said.getvalue()


def has(code: str, text: str) -> bool:
    """Not as a part of a longer number, which by chance it may well be."""
    return re.search(rf"(?<![0-9a-f]){code}(?![0-9a-f])", text) is not None


def test_the_code_is_nowhere_but_in_the_mail(
    api: APIClient, owner: User, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    parts = {
        "subject": "{{ code }} is your code",
        "body": "   {{ code }}\n",
        "html_body": "<b>{{ code }}</b>",
    }
    make(owner, "otp", parts)
    asked = {"type": "generateOtp", "payload": {"userId": JANE, "length": 8}}
    first = api.post(TASK, asked, format="json", headers={"Idempotency-Key": "a-key"})
    task = MailTask.objects.get()
    code = code_in(task)
    assert has(code, mail_of(task)["Subject"])
    said = [first.content.decode()]
    said += [api.get(path).content.decode() for path in ("/api/v1/task/queue", f"/api/v1/task/{task.pk}")]
    staff = Client()
    staff.force_login(get_user_model().objects.create_superuser("staff@example.com", "correct horse battery"))
    for page in (f"{task.pk}/change/", "", "?q=jane"):
        answer = staff.get(f"/admin/tasks/mailtask/{page}", follow=True)
        assert answer.status_code == 200
        said.append(answer.content.decode())
    verified(api, other_than(code))
    assert verified(api, code)
    said += [dump(), *(str(record.__dict__) for record in caplog.records)]
    assert IdempotencyKey.objects.exists()
    assert not has(code, "\n".join(said))
    # And then not even there.
    settle(Status.SUCCESS, Outcome.ACCEPTED)
    upkeep.expire()
    assert bytes(MailContent.objects.get().raw) == b""


def test_it_is_kept_under_a_key_that_is_nowhere_in_the_database(api: APIClient, owner: User) -> None:
    code = made(api)
    kept = bytes(Code.objects.get().mark)
    assert kept == sealing.mark("one-time password", str(owner.pk), JANE, code)
    assert len(kept) == 32
    assert kept != sealing.mark("another purpose", str(owner.pk), JANE, code)


def test_a_new_key_in_front_keeps_old_codes_good(api: APIClient, settings: Any) -> None:
    code = made(api)
    older = settings.CREDENTIAL_KEYS
    settings.CREDENTIAL_KEYS = ["bmV3IGtleSBvZiAzMiBieXRlcywgZm9yIHRlc3RzISE=", *older]
    assert not verified(api, other_than(code))
    assert verified(api, code)


def test_the_keys_make_the_difference(api: APIClient, settings: Any) -> None:
    code = made(api)
    settings.CREDENTIAL_KEYS = ["bmV3IGtleSBvZiAzMiBieXRlcywgZm9yIHRlc3RzISE="]
    assert not verified(api, code)
