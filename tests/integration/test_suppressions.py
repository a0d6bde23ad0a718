"""The list of suppressions: who comes on it, what becomes of mail to them, and how they come off again."""

from collections.abc import Iterator
from datetime import timedelta
from typing import Any
from uuid import uuid4

import pytest
from django.db import transaction
from django.test import Client
from django.utils import timezone
from rest_framework.test import APIClient

from accounts.models import User
from mailqueue.delivery.courier import GROUP, Courier
from tasks import doorbell, ledger, prepared, submission
from tasks.ledger import Settlement
from tasks.models import Attempt, Claim, Due, MailTask
from tasks.states import CancelReason, Outcome, Phase, Status
from tasks.suppressions import Cause, Suppression
from tests.factories import MailFactory, UserFactory, claim_one, client_of, sending_user
from tests.relay import Relay

pytestmark = pytest.mark.django_db

LIST = "/api/v1/suppressions"
TASK = "/api/v1/task"
JANE = {"recipient_email": "jane@example.com", "subject": "hello", "body": "Hello."}
BOUNCE = {
    "status": Status.CANCELLED,
    "cancel_reason": CancelReason.REJECTED,
    "outcome": Outcome.REJECTED,
    "phase": Phase.RCPT,
    "code": 550,
    "reply": "550 5.1.1 who?",
    "suppress": True,
}


def add(api: APIClient, address: str) -> Any:
    return api.post(LIST, {"address": address}, format="json")


def enqueue(api: APIClient, address: str = "jane@example.com", **more: Any) -> Any:
    return api.post(f"{TASK}/enqueue", JANE | {"recipient_email": address} | more, format="json")


def listed(api: APIClient, query: str = "") -> list[str]:
    return [each["address"] for each in api.get(f"{LIST}{query}").json()["results"]]


# The list ---------------------------------------------------------------------------------------------


def test_an_address_is_put_on_the_list_once(api: APIClient) -> None:
    first = add(api, "Jane@Example.com")
    assert first.status_code == 201
    assert first.json().items() >= {"address": "jane@example.com", "reason": "manual", "reply": ""}.items()
    again = add(api, "jane@example.COM")
    assert (again.status_code, again.json()) == (200, first.json())
    assert listed(api) == ["jane@example.com"]


@pytest.mark.parametrize("field", ["email", "recipient_email"])
def test_the_address_has_other_names_too(api: APIClient, field: str) -> None:
    assert api.post(LIST, {field: "jane@example.com"}, format="json").json()["address"] == "jane@example.com"
    assert api.post(LIST, {field: "nobody"}, format="json").status_code == 400


@pytest.mark.parametrize("entry", ["Jane@Bücher.example", "jane@xn--bcher-kva.EXAMPLE"])
def test_an_entry_is_taken_off_by_its_address_too(api: APIClient, entry: str) -> None:
    add(api, "jane@bücher.example")
    assert client_of(UserFactory()).delete(f"{LIST}/{entry}").status_code == 404
    assert api.delete(f"{LIST}/{entry}").status_code == 204
    assert api.delete(f"{LIST}/{entry}").status_code == 404


@pytest.mark.parametrize("entry", ["0", "9" * 30, "nobody", "a@b@c", "\u0663", "%00"])
def test_what_is_no_entry_is_not_found(api: APIClient, entry: str) -> None:
    assert api.delete(f"{LIST}/{entry}").status_code == 404


def test_a_domain_beyond_ascii_is_listed_as_it_goes_over_the_wire(api: APIClient) -> None:
    assert add(api, "jane@bücher.example").json()["address"] == "jane@xn--bcher-kva.example"
    assert enqueue(api, "jane@bücher.example").json()["status"] == "cancelled"


@pytest.mark.parametrize(
    "address", ["", "jane", "jane@", "a@b@c", "jane@example.com\nBcc: x@example.com", 5, None]
)
def test_what_is_no_address_is_refused(api: APIClient, address: Any) -> None:
    response = add(api, address)
    assert response.status_code == 400
    assert [each["field"] for each in response.json()["errors"]] == ["address"]
    assert not Suppression.objects.exists()


def test_the_list_is_newest_first_with_pages_and_filters(api: APIClient, owner: User) -> None:
    for name in "abc":
        add(api, f"{name}@example.com")
    Suppression.objects.create(owner=owner, address="d@example.com", reason=Cause.HARD_BOUNCE, task_id=7)
    assert listed(api) == [f"{name}@example.com" for name in "dcba"]
    first = api.get(f"{LIST}?limit=3").json()
    assert [each["address"] for each in api.get(first["next"]).json()["results"]] == ["a@example.com"]
    assert listed(api, "?reason=hard_bounce") == ["d@example.com"]
    assert listed(api, "?address=B@example.com") == ["b@example.com"]
    assert listed(api, "?address=B@example.com&reason=hard_bounce") == []
    assert api.get(f"{LIST}?reason=whatever").status_code == 400
    assert api.get(f"{LIST}?address=whatever").status_code == 400


# Accepted and cancelled -------------------------------------------------------------------------------


@pytest.mark.parametrize("address", ["jane@example.com", "JANE@Example.Com"])
@pytest.mark.parametrize("more", [{}, {"tags": ["a"]}, {"scheduled_at": "2099-01-01T00:00:00Z"}])
def test_mail_to_somebody_on_the_list_is_accepted_and_cancelled_at_once(
    api: APIClient, address: str, more: dict[str, Any], django_capture_on_commit_callbacks: Any
) -> None:
    add(api, "Jane@example.com")
    with django_capture_on_commit_callbacks() as bells:
        answer = enqueue(api, address, **more)
    assert (answer.status_code, answer.json()["status"]) == (202, "cancelled")
    assert bells == []
    task = api.get(answer["Location"]).json()
    assert (task["status"], task["cancel_reason"], task["attempts"]) == ("cancelled", "suppressed", [])
    assert task["finished_at"] == task["created_at"]
    assert task["waiting"] is None
    assert task["tags"] == more.get("tags", [])
    assert not Due.objects.exists()


def test_mail_to_others_and_of_others_is_sent(api: APIClient) -> None:
    add(api, "jane@example.com")
    assert enqueue(api, "joe@example.com").json()["status"] == "queued"
    assert enqueue(api, "jane@other.example").json()["status"] == "queued"
    assert enqueue(client_of(UserFactory())).json()["status"] == "queued"
    assert Due.objects.count() == 3


@pytest.mark.parametrize("tags", [[], ["a"]])
def test_of_a_batch_only_mail_to_somebody_on_the_list_is_cancelled(
    api: APIClient, tags: list[str], django_capture_on_commit_callbacks: Any
) -> None:
    add(api, "b@example.com")
    mails = [JANE | {"recipient_email": f"{name}@example.com", "tags": tags} for name in "abBc"]
    mails[3]["scheduled_at"] = "2099-01-01T00:00:00Z"
    with django_capture_on_commit_callbacks() as bells:
        answer = api.post(f"{TASK}/enqueue/batch", {"messages": mails}, format="json")
    assert bells == [doorbell.ring]
    results = answer.json()["results"]
    assert [each["status"] for each in results] == ["queued", "cancelled", "cancelled", "scheduled"]
    rows = {task.pk: task for task in MailTask.objects.all()}
    reasons = [rows[each["task_id"]].cancel_reason for each in results]
    assert reasons == [None, CancelReason.SUPPRESSED, CancelReason.SUPPRESSED, None]
    assert set(Due.objects.values_list("task_id", flat=True)) == {
        results[0]["task_id"],
        results[3]["task_id"],
    }


def test_a_batch_to_nobody_else_rings_no_bell(
    api: APIClient, django_capture_on_commit_callbacks: Any
) -> None:
    add(api, "jane@example.com")
    with django_capture_on_commit_callbacks() as bells:
        answer = api.post(f"{TASK}/enqueue/batch", {"messages": [JANE, JANE]}, format="json")
    assert [each["status"] for each in answer.json()["results"]] == ["cancelled", "cancelled"]
    assert bells == []


def test_it_is_no_dead_letter(api: APIClient) -> None:
    add(api, "jane@example.com")
    enqueue(api)
    assert api.get(f"{TASK}/queue/fail").json()["results"] == []
    assert len(api.get(f"{TASK}/queue?status=cancelled").json()["results"]) == 1


def test_a_dry_run_says_that_it_would_be_cancelled(api: APIClient) -> None:
    add(api, "jane@example.com")
    plan = api.post(f"{TASK}/enqueue?dry_run=true", JANE, format="json").json()["plan"]
    assert (plan["status"], plan["cancel_reason"], plan["waiting"]) == ("cancelled", "suppressed", None)
    assert not MailTask.objects.exists()


def test_an_enqueue_costs_as_many_statements_as_ever(
    api: APIClient, owner: User, monkeypatch: pytest.MonkeyPatch
) -> None:
    mail, run = submission.NewMail("jane@example.com", "hello", "Hello."), prepared.rows
    statements: list[str] = []
    monkeypatch.setattr(prepared, "rows", lambda *given: statements.append(given[0]) or run(*given))
    submission.submit(owner, mail)
    add(api, "jane@example.com")
    submission.submit(owner, mail)
    submission.submit_many(owner, [mail])
    assert len(statements) == 3


# By a relay's answer ----------------------------------------------------------------------------------


def test_a_recipient_that_a_relay_does_not_know_is_listed_with_what_it_said(
    api: APIClient, owner: User
) -> None:
    mail = MailFactory(owner=owner, recipient="Gone@example.com")
    claimed = claim_one()
    assert ledger.settle([Settlement(mail.pk, claimed.token, **BOUNCE)], "worker:1") == {mail.pk}
    (found,) = api.get(LIST).json()["results"]
    assert (
        found.items()
        >= {
            "address": "gone@example.com",
            "reason": "hard_bounce",
            "reply": "550 5.1.1 who?",
            "task_id": mail.pk,
        }.items()
    )
    assert Attempt.objects.count() == 1
    assert enqueue(api, "gone@example.com").json()["status"] == "cancelled"


def test_a_result_that_comes_too_late_lists_nobody(owner: User) -> None:
    mail = MailFactory(owner=owner)
    claim_one()
    assert ledger.settle([Settlement(mail.pk, uuid4(), **BOUNCE)], "worker:1") == set()
    assert not Suppression.objects.exists()


def test_among_many_results_only_the_right_ones_list_and_what_is_listed_stays_as_it_is(owner: User) -> None:
    other = UserFactory()
    Suppression.objects.add(owner, "known@example.com")
    names = ["known", "gone", "gone", "fine", "blocked"]
    mails = [MailFactory(owner=owner, recipient=f"{name}@example.com") for name in names]
    mails.append(MailFactory(owner=other, recipient="gone@example.com"))
    token = uuid4()
    ledger.claim(10, 60, token=token, room=50)
    results = [BOUNCE, BOUNCE, BOUNCE, {"status": Status.SUCCESS}, BOUNCE | {"suppress": False}, BOUNCE]
    settlements = [Settlement(mail.pk, token, **it) for mail, it in zip(mails, results, strict=True)]
    assert len(ledger.settle(settlements, "worker:1")) == 6
    found = Suppression.objects.order_by("owner_id", "address")
    assert list(found.values_list("owner_id", "address", "reason", "task_id")) == [
        (owner.pk, "gone@example.com", Cause.HARD_BOUNCE, mails[1].pk),
        (owner.pk, "known@example.com", Cause.MANUAL, None),
        (other.pk, "gone@example.com", Cause.HARD_BOUNCE, mails[5].pk),
    ]


def test_there_is_no_result_without_its_entry_in_the_list(owner: User) -> None:
    mail = MailFactory(owner=owner)
    claimed = claim_one()
    with transaction.atomic():
        ledger.settle([Settlement(mail.pk, claimed.token, **BOUNCE)], "worker:1")
        transaction.set_rollback(True)
    mail.refresh_from_db()
    assert mail.status == Status.PROCESSING
    assert not Suppression.objects.exists()


# After it was accepted --------------------------------------------------------------------------------


@pytest.mark.parametrize("status", [Status.QUEUED, Status.SCHEDULED, Status.FAILED])
def test_mail_that_waits_is_cancelled_when_its_recipient_is_suppressed(
    api: APIClient, owner: User, status: Status
) -> None:
    mail = MailFactory(owner=owner, recipient="Jane@example.com", status=status)
    others = [
        MailFactory(owner=owner, recipient="joe@example.com"),
        MailFactory(recipient="Jane@example.com"),
    ]
    add(api, "Jane@example.com")
    shown = api.get(f"{TASK}/{mail.pk}").json()
    assert (shown["status"], shown["cancel_reason"]) == ("cancelled", "suppressed")
    assert shown["finished_at"]
    assert set(Due.objects.values_list("task_id", flat=True)) == {each.pk for each in others}


@pytest.mark.parametrize("status", [Status.SUCCESS, Status.CANCELLED, Status.UNCERTAIN])
def test_mail_that_does_not_wait_stays_as_it_is(api: APIClient, owner: User, status: Status) -> None:
    mail = MailFactory(owner=owner, recipient="jane@example.com", status=status)
    reason = mail.cancel_reason
    add(api, "jane@example.com")
    mail.refresh_from_db()
    assert (mail.status, mail.cancel_reason) == (status, reason)


def test_a_claim_tells_whose_recipient_was_suppressed_meanwhile(owner: User) -> None:
    """Also by a relay's answer, in other letters, and in the moment between acceptance and claim."""
    names = ["Jane@Example.com", "jane@example.com", "joe@example.com"]
    mails = [MailFactory(owner=owner, recipient=name) for name in names]
    mails.append(MailFactory(recipient="jane@example.com"))
    Suppression.objects.add(owner, "JANE@example.com")
    claimed = ledger.claim(10, 60, token=uuid4(), room=50)
    assert {mail.id for mail in claimed if mail.is_suppressed} == {mails[0].pk, mails[1].pk}
    assert len(claimed) == 4


def test_a_suppressed_mail_uses_up_no_try(owner: User) -> None:
    mail = MailFactory(owner=owner, recipient="jane@example.com")
    Suppression.objects.add(owner, "jane@example.com")
    assert ledger.settle([ledger.suppressed(claim_one())], "worker:1") == {mail.pk}
    mail.refresh_from_db()
    assert (mail.status, mail.cancel_reason) == (Status.CANCELLED, CancelReason.SUPPRESSED)
    assert (mail.try_count, mail.started_at) == (0, None)
    assert not Attempt.objects.exists()


# Retried ----------------------------------------------------------------------------------------------


def test_a_suppressed_mail_is_retried_once_its_recipient_is_off_the_list(api: APIClient) -> None:
    entry = add(api, "jane@example.com").json()["id"]
    pk = enqueue(api, "Jane@example.com").json()["task_id"]
    refused = api.post(f"{TASK}/{pk}/retry")
    assert (refused.status_code, refused.json()["code"]) == (409, "suppressed")
    assert f"/api/v1/suppressions/{entry}" in refused.json()["detail"]
    assert api.delete(f"{LIST}/{entry}").status_code == 204
    assert api.delete(f"{LIST}/{entry}").status_code == 404
    retried = api.post(f"{TASK}/{pk}/retry").json()
    assert (retried["status"], retried["cancel_reason"], retried["finished_at"]) == ("queued", None, None)
    assert claim_one().id == pk


@pytest.mark.parametrize("status", [Status.CANCELLED, Status.FAILED, Status.UNCERTAIN])
def test_no_retry_writes_to_somebody_on_the_list(api: APIClient, owner: User, status: Status) -> None:
    mail = MailFactory(owner=owner, recipient="jane@example.com", status=status)
    Suppression.objects.add(owner, "jane@example.com")
    assert api.post(f"{TASK}/{mail.pk}/retry").json()["code"] == "suppressed"
    mail.refresh_from_db()
    assert mail.status == status


def test_an_uncertain_mail_to_somebody_on_the_list_can_only_be_accepted(api: APIClient, owner: User) -> None:
    mail = MailFactory(owner=owner, recipient="jane@example.com", status=Status.UNCERTAIN)
    add(api, "jane@example.com")
    resolve = f"{TASK}/{mail.pk}/resolve"
    assert api.post(resolve, {"action": "retry"}, format="json").json()["code"] == "suppressed"
    assert api.post(resolve, {"action": "accept"}, format="json").json()["status"] == "success"
    assert api.post(resolve, {"action": "retry"}, format="json").json()["code"] == "not_uncertain"


def test_a_sent_mail_is_refused_for_being_sent(api: APIClient, owner: User) -> None:
    mail = MailFactory(owner=owner, recipient="jane@example.com", status=Status.SUCCESS)
    add(api, "jane@example.com")
    assert api.post(f"{TASK}/{mail.pk}/retry").json()["code"] == "not_retryable"


def test_a_retry_in_bulk_leaves_out_who_is_on_the_list(api: APIClient, owner: User) -> None:
    add(api, "jane@example.com")
    for name in ("jane", "joe"):
        MailFactory(owner=owner, recipient=f"{name}@example.com", status=Status.CANCELLED)
    asked = {"action": "retry", "filter": {"status": "cancelled"}}
    done = api.post(f"{TASK}/bulk", asked, format="json").json()
    assert (done["matched"], done["changed"]) == (2, 1)
    assert claim_one().recipient == "joe@example.com"


# Staff ------------------------------------------------------------------------------------------------


def test_staff_see_the_lists_and_take_somebody_off(owner: User) -> None:
    mail = MailFactory(owner=owner, recipient="gone@example.com")
    ledger.settle([Settlement(mail.pk, claim_one().token, **BOUNCE)], "worker:1")
    entry, _ = Suppression.objects.add(owner, "jane@example.com")
    staff = Client()
    staff.force_login(UserFactory(is_staff=True, is_superuser=True))
    page = staff.get("/admin/tasks/suppression/").content.decode()
    assert all(shown in page for shown in ("gone@example.com", "jane@example.com", "550 5.1.1 who?"))
    assert f"/admin/tasks/mailtask/{mail.pk}/change/" in page
    assert "jane@" not in staff.get("/admin/tasks/suppression/?q=gone@example.com").content.decode()
    assert "jane@" not in staff.get("/admin/tasks/suppression/?reason__exact=0").content.decode()
    assert staff.get(f"/admin/tasks/suppression/{entry.pk}/change/").status_code == 200
    staff.post(f"/admin/tasks/suppression/{entry.pk}/delete/", {"post": "yes"})
    assert list(Suppression.objects.values_list("address", flat=True)) == ["gone@example.com"]


def test_staff_are_told_that_the_list_may_be_what_stops_a_retry(owner: User) -> None:
    mail = MailFactory(owner=owner, recipient="jane@example.com", status=Status.CANCELLED)
    Suppression.objects.add(owner, "jane@example.com")
    staff = Client()
    staff.force_login(UserFactory(is_staff=True, is_superuser=True))
    chosen = {"action": "retry", "_selected_action": [mail.pk]}
    told = staff.post("/admin/tasks/mailtask/", chosen, follow=True).content.decode()
    assert "1 could not be, in the state they are in, or for the list of suppressions." in told


# Through a courier ------------------------------------------------------------------------------------


class TestCourier:
    pytestmark = pytest.mark.django_db(
        transaction=True, available_apps=["accounts", "tasks", "mailqueue", "mailqueue.sandbox"]
    )

    @pytest.fixture
    def courier(self) -> Iterator[Courier]:
        courier = Courier("worker:1").start()
        yield courier
        courier.stop(5)

    @pytest.mark.parametrize(
        ("phase", "reply", "is_listed"),
        [
            ("rcpt", "550 5.1.1 no such user", True),
            ("rcpt", "550 5.7.1 not from you", False),
            ("rcpt", "450 4.2.1 come again", False),
            ("reply", "550 5.1.1 no such user", False),
        ],
    )
    def test_only_who_a_relay_does_not_know_is_listed(
        self, courier: Courier, relay: Relay, phase: str, reply: str, is_listed: bool
    ) -> None:
        relay.always(phase, reply)
        mail = MailFactory(owner=sending_user(relay.port), recipient="gone@example.com")
        courier.drain(30.0)
        found = list(Suppression.objects.values_list("owner_id", "address", "reply", "task_id"))
        assert found == [(mail.owner_id, "gone@example.com", reply, mail.pk)] * is_listed

    def test_what_waits_for_somebody_who_bounced_is_not_sent(self, courier: Courier, relay: Relay) -> None:
        owner = sending_user(relay.port)
        first = MailFactory(owner=owner, recipient="gone@example.com")
        in_an_hour = timezone.now() + timedelta(hours=1)
        later = [
            MailFactory(owner=owner, recipient="Gone@example.com", due_at=in_an_hour),
            MailFactory(owner=owner, recipient="gone@EXAMPLE.com", due_at=in_an_hour),
        ]
        other = MailFactory(owner=owner, recipient="joe@example.com", due_at=in_an_hour)
        relay.always("rcpt", "550 5.1.1 no such user", to="gone@example.com")
        courier.drain(30.0)
        Due.objects.update(due_at=timezone.now())
        courier.drain(30.0)
        seen = {task.pk: (task.status, task.cancel_reason) for task in MailTask.objects.all()}
        assert seen == {
            first.pk: (Status.CANCELLED, CancelReason.REJECTED),
            **dict.fromkeys([each.pk for each in later], (Status.CANCELLED, CancelReason.SUPPRESSED)),
            other.pk: (Status.SUCCESS, None),
        }
        assert [mail.recipient for mail in relay.accepted] == ["joe@example.com"]

    def test_a_group_of_nothing_but_suppressed_mail_does_not_end_the_drain(
        self, courier: Courier, relay: Relay
    ) -> None:
        owner = sending_user(relay.port)
        Suppression.objects.add(owner, "gone@example.com")
        for _ in range(GROUP + 1):
            MailFactory(owner=owner, recipient="gone@example.com")
        wanted = MailFactory(owner=owner, recipient="joe@example.com")
        courier.drain(30.0)
        wanted.refresh_from_db()
        assert wanted.status == Status.SUCCESS
        assert MailTask.objects.filter(cancel_reason=CancelReason.SUPPRESSED).count() == GROUP + 1
        assert not Claim.objects.exists()

    def test_a_magic_address_may_be_rejected_again_and_again(self, courier: Courier, relay: Relay) -> None:
        owner = sending_user(relay.port)
        for _ in range(2):
            task = submission.submit(owner, submission.NewMail("reject@sandbox.invalid", "hello", "Hello."))
            courier.drain(30.0)
            task.refresh_from_db()
            assert task.cancel_reason == CancelReason.REJECTED
        assert not Suppression.objects.exists()
