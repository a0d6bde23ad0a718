"""The ownership matrix: every call of the API by nobody, by another user, by staff, and by the owner."""

import json
from datetime import timedelta

import pytest
from django.core import serializers as dumps
from django.utils import timezone
from rest_framework.permissions import AllowAny
from rest_framework.test import APIClient

from accounts.keys import ApiKey, Scope
from accounts.models import SmtpAccount, User
from mailqueue.api import StatsView, WorkersView
from mailqueue.otp.models import Code
from mailqueue.subscriptions import contents, deeds
from mailqueue.subscriptions.models import Content, Subscription
from mailqueue.webhooks import endpoints, fanout
from mailqueue.webhooks.models import Delivery, Endpoint
from tasks.models import MailTask
from tasks.states import Status
from tasks.suppressions import Suppression
from tasks.templates import MailTemplate, make
from tests.factories import MailFactory, UserFactory, client_of
from tests.routes import calls

pytestmark = pytest.mark.django_db

#: It asks for staff, unless it is asked from the machine itself, as here: tests/integration/test_metrics.py.
OF_THE_SYSTEM = StatsView
CALLS = sorted(
    (method, address)
    for method, address, view in calls()
    if AllowAny not in view.permission_classes and view is not OF_THE_SYSTEM
)
#: They have no owner, and show everybody the same.
NOBODYS = {address for _, address, view in calls() if view is WorkersView}
OF_ONE = [(method, address) for method, address in CALLS if "/1" in address]
#: Good enough for all of them, so that none is refused for its body.
BODY = {"action": "accept", "scheduled_at": "2030-01-31T09:30:00Z", "since": "2030-01-31T09:30:00Z"}
BODY |= {"type": "generateOtp", "payload": {"userId": "joe@example.com"}}
BODY |= {"content_type": "new", "subject": "x", "content": "x"}
BODY |= {"userEmail": "jane@example.com", "otp": "123456"}
CLIENTS = {
    "other": lambda: client_of(UserFactory()),
    "other's key": lambda: with_key(UserFactory()),
    "staff": lambda: client_of(UserFactory(is_staff=True, is_superuser=True)),
}


def with_key(user: User) -> APIClient:
    client = APIClient(raise_request_exception=False)
    client.credentials(HTTP_AUTHORIZATION=f"Bearer {ApiKey.mint(user, 'x', Scope.values)[1]}")
    return client


@pytest.fixture
def task() -> MailTask:
    """Somebody's mail; they have a row in each other list too."""
    mail = MailFactory()
    fill_lists(mail.owner)
    return mail


def fill_lists(owner: User) -> None:
    ApiKey.mint(owner, "mine", ["read"])
    Suppression.objects.add(owner, "gone@example.com")
    make(owner, "mine", {"subject": "x", "body": "x"})
    fanout.test_delivery(endpoints.make(owner, "https://example.com/hook", [], "")[0])
    contents.make(owner, "news", "x", "x")
    deeds.subscribe(owner, "jane@example.com", "news", line="@daily")
    now = timezone.now()
    later = now + timedelta(minutes=5)
    Code.objects.create(
        owner=owner, recipient="jane@example.com", mark=b"x", created_at=now, expires_at=later, task_id=0
    )


def address_of(task: MailTask, address: str) -> str:
    if "/1" not in address:
        return address
    pk = {
        "user": task.owner.pk,
        "task": task.pk,
        "keys": ApiKey.objects.get(owner=task.owner).pk,
        "templates": "mine",
        "suppressions": Suppression.objects.get(owner=task.owner).pk,
        "webhooks": Endpoint.objects.get(owner=task.owner).pk,
        "subscriptions": Subscription.objects.get(owner=task.owner).pk,
    }
    delivery = Delivery.objects.get(endpoint__owner=task.owner).pk
    address = address.replace("/deliveries/1", f"/deliveries/{delivery}")
    return address.replace("/1", f"/{pk[address.split('/')[3]]}", 1)


def call(client: APIClient, method: str, address: str):
    return client.generic(method, address, json.dumps(BODY), "application/json")


def rows(owner: User) -> str:
    of = [User.objects.filter(pk=owner.pk), SmtpAccount.objects.filter(owner=owner)]
    of += [MailTask.objects.filter(owner=owner), ApiKey.objects.filter(owner=owner)]
    of += [Endpoint.objects.filter(owner=owner), Delivery.objects.filter(endpoint__owner=owner)]
    of += [Suppression.objects.filter(owner=owner), MailTemplate.objects.filter(owner=owner)]
    of += [Subscription.objects.filter(owner=owner), Content.objects.filter(owner=owner)]
    of += [Code.objects.filter(owner=owner)]
    return "".join(dumps.serialize("json", each) for each in of)


def test_the_matrix_has_every_call_that_asks_who_is_there():
    assert len(CALLS) >= 15
    assert len(OF_ONE) >= 9


@pytest.mark.parametrize(("method", "address"), CALLS)
def test_nobody_gets_in(task, method, address):
    before = rows(task.owner)
    response = call(APIClient(raise_request_exception=False), method, address_of(task, address))
    assert (response.status_code, response.json()["code"]) == (401, "not_authenticated")
    assert response["WWW-Authenticate"].startswith("Bearer")
    assert rows(task.owner) == before


@pytest.mark.parametrize("who", CLIENTS)
@pytest.mark.parametrize(("method", "address"), OF_ONE)
def test_what_is_somebody_elses_does_not_exist(task, method, address, who):
    before, client = rows(task.owner), CLIENTS[who]()
    response = call(client, method, address_of(task, address))
    missing = call(client, method, address.replace("/1", "/4242424242"))
    assert (response.status_code, response.json()["code"]) == (404, "not_found")
    assert response.json() == missing.json()
    assert rows(task.owner) == before


@pytest.mark.parametrize(("method", "address"), OF_ONE)
def test_the_owner_gets_in(task, method, address):
    response = call(client_of(task.owner), method, address_of(task, address))
    assert response.status_code not in (401, 403, 404, 500)


@pytest.mark.parametrize("who", CLIENTS)
@pytest.mark.parametrize(
    "address",
    # What a stream tells whom is seen where it goes on: tests/acceptance/test_live_streams.py.
    sorted(
        each
        for method, each in CALLS
        if method == "GET" and "/1" not in each and "/events" not in each and each not in NOBODYS
    ),
)
def test_lists_show_ones_own(address, who):
    mail = MailFactory(status=Status.FAILED)  # which is in every list
    fill_lists(mail.owner)
    other = CLIENTS[who]()
    own = len(ApiKey.objects.exclude(owner=mail.owner)) if "keys" in address else 0
    assert len(other.get(address).json()["results"]) == own
    assert len(client_of(mail.owner).get(address).json()["results"]) == 1
