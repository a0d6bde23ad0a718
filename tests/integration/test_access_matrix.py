"""The whole matrix: every call and page of the service, by nobody, another user, staff and the owner.

Each has a row here that says who gets what. A route without one fails the first test, so nobody can add a door and
forget to say for whom it is. That lists show one's own alone is in test_ownership.py.
"""

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest
from django.contrib.auth.models import Permission
from django.test import Client
from django.urls import URLPattern, URLResolver, get_resolver
from rest_framework.test import APIClient
from rest_framework.views import APIView

from accounts.keys import ApiKey
from accounts.models import SmtpAccount, User
from mailqueue.subscriptions.models import Content, Subscription
from mailqueue.webhooks.models import Delivery, Endpoint
from tasks.models import MailTask
from tasks.states import Status
from tasks.suppressions import Suppression
from tasks.templates import MailTemplate
from tests.factories import PASSWORD, MailFactory, UserFactory, client_of
from tests.integration.test_ownership import address_of, fill_lists, rows
from tests.routes import calls

pytestmark = pytest.mark.django_db

#: Stands in everything that the owner has, and in no answer to anybody else.
MARK = "zebra-crossing"
MAIL = {"recipient_email": "jane@example.com", "subject": "hello", "body": "Hello."}
TYPED = {"type": "generateOtp", "payload": {"userId": "new@example.com"}}
CONTENT = {"content_type": "new", "subject": "hello", "content": "Hello."}
TEXTS = {"subject": "hello", "body": "Hello."}


@dataclass(frozen=True)
class Everybody:
    """An open door."""

    status: int
    body: Any = None

    def for_each(self) -> dict[str, int]:
        return dict.fromkeys(WHO, self.status)


@dataclass(frozen=True)
class Ones_own:  # noqa: N801 -- it is read as a sentence
    """Everybody who has logged in gets it, each for themselves."""

    status: int
    body: Any = None

    def for_each(self) -> dict[str, int]:
        return dict.fromkeys(WHO, self.status) | {"nobody": 401}


@dataclass(frozen=True)
class Theirs:
    """The address names a row: for everybody but its owner there is none, staff included (they have the admin)."""

    status: int
    body: Any = None

    def for_each(self) -> dict[str, int]:
        return {"nobody": 401, "other": 404, "staff": 404, "owner": self.status}


WHO = ("nobody", "other", "staff", "owner")
Row = Everybody | Ones_own | Theirs
API: dict[tuple[str, str], Row] = {
    ("GET", "/api/schema"): Everybody(200),
    ("GET", "/api/docs"): Everybody(200),
    # Asked from the machine itself, as here; tests/integration/test_metrics.py asks from elsewhere.
    ("GET", "/stats"): Everybody(200),
    ("GET", "/api/v1/workers"): Ones_own(200),
    ("POST", "/api/v1/register"): Everybody(201, {"email": "new@example.com", "password": PASSWORD}),
    ("POST", "/api/v1/login"): Everybody(401, {"email": "new@example.com", "password": PASSWORD}),
    ("POST", "/api/v1/token/refresh"): Everybody(401, {"refresh": "x"}),
    ("POST", "/api/v1/auth/signup"): Everybody(201, {"id": "new@example.com", "password": PASSWORD}),
    ("POST", "/api/v1/auth/deregister"): Ones_own(200),
    ("GET", "/api/v1/user/1"): Theirs(200),
    ("PATCH", "/api/v1/user/1"): Theirs(200, {"max_connections": 3}),
    ("DELETE", "/api/v1/user/1"): Theirs(204),
    ("POST", "/api/v1/user/1/smtp/test"): Theirs(200),
    ("GET", "/api/v1/keys"): Ones_own(200),
    ("POST", "/api/v1/keys"): Ones_own(201, {"name": "x", "scopes": ["read"]}),
    ("DELETE", "/api/v1/keys/1"): Theirs(204),
    ("GET", "/api/v1/suppressions"): Ones_own(200),
    ("POST", "/api/v1/suppressions"): Ones_own(201, {"address": "new@example.com"}),
    ("DELETE", "/api/v1/suppressions/1"): Theirs(204),
    ("GET", "/api/v1/task/queue"): Ones_own(200),
    ("GET", "/api/v1/task/queue/fail"): Ones_own(200),
    ("POST", "/api/v1/task/enqueue"): Ones_own(202, MAIL),
    ("POST", "/api/v1/task/enqueue/batch"): Ones_own(207, {"messages": [MAIL]}),
    ("POST", "/api/v1/task/bulk"): Ones_own(200, {"action": "cancel", "filter": {"all": True}}),
    ("GET", "/api/v1/task/1"): Theirs(200),
    ("PATCH", "/api/v1/task/1"): Theirs(409, {"scheduled_at": "2030-01-31T09:30:00Z"}),
    ("POST", "/api/v1/task/1/cancel"): Theirs(200),
    ("POST", "/api/v1/task/1/retry"): Theirs(200),
    ("POST", "/api/v1/task/1/resolve"): Theirs(409, {"action": "accept"}),
    ("GET", "/api/v1/templates"): Ones_own(200),
    ("POST", "/api/v1/templates"): Ones_own(201, {"name": "new"} | TEXTS),
    ("GET", "/api/v1/templates/1"): Theirs(200),
    ("PUT", "/api/v1/templates/1"): Theirs(200, TEXTS),
    ("DELETE", "/api/v1/templates/1"): Theirs(204),
    ("POST", "/api/v1/templates/1/preview"): Theirs(200, {}),
    ("GET", "/api/v1/templates/1/versions"): Theirs(200),
    ("POST", "/api/v1/templates/1/rollback"): Theirs(200, {"version": 1}),
    ("POST", "/api/v1/task/"): Ones_own(202, TYPED),
    ("POST", "/api/v1/task"): Ones_own(202, TYPED),
    ("POST", "/api/v1/task/verify"): Ones_own(200, {"userEmail": "jane@example.com", "otp": "123456"}),
    ("GET", "/api/v1/task/subscriptionContent"): Ones_own(200),
    ("POST", "/api/v1/task/subscriptionContent"): Ones_own(201, CONTENT),
    ("PUT", "/api/v1/task/subscriptionContent"): Ones_own(404, CONTENT),
    ("GET", "/api/v1/subscriptions"): Ones_own(200),
    ("GET", "/api/v1/subscriptions/1"): Theirs(200),
    ("PATCH", "/api/v1/subscriptions/1"): Theirs(200, {"policy": "skip"}),
    ("DELETE", "/api/v1/subscriptions/1"): Theirs(204),
    ("POST", "/api/v1/subscriptions/1/pause"): Theirs(200),
    ("POST", "/api/v1/subscriptions/1/resume"): Theirs(200),
    ("GET", "/api/v1/task/events"): Ones_own(200),
    ("GET", "/api/v1/task/1/events"): Theirs(200),
    ("GET", "/api/v1/webhooks"): Ones_own(200),
    ("POST", "/api/v1/webhooks"): Ones_own(201, {"url": "https://127.0.0.1/hook"}),
    ("GET", "/api/v1/webhooks/1"): Theirs(200),
    ("PATCH", "/api/v1/webhooks/1"): Theirs(200, {"description": "new"}),
    ("DELETE", "/api/v1/webhooks/1"): Theirs(204),
    ("POST", "/api/v1/webhooks/1/rotate"): Theirs(200, {}),
    ("POST", "/api/v1/webhooks/1/test"): Theirs(202),
    ("GET", "/api/v1/webhooks/1/deliveries"): Theirs(200),
    ("POST", "/api/v1/webhooks/1/deliveries/1/replay"): Theirs(202),
    ("POST", "/api/v1/webhooks/1/replay"): Theirs(202, {"since": "2020-01-31T09:30:00Z"}),
}
#: Beside the API; whoever asks gets the same.
PAGES = {
    "/": 302,
    "/healthz/live": 200,
    "/healthz/ready": 200,
    "/healthz/ping": 200,
    "/health/ping": 200,
    "/health/metrics": 200,
    "/metrics": 200,
    "/dashboard.json": 401,
    # Without a token that we have made; with one see test_subscriptions_api.py.
    "/unsubscribe/<str:token>": 404,
}


def patterns(below: list[Any] | None = None, prefix: str = "/") -> Iterator[tuple[str, URLPattern]]:
    """Every address of the service with what answers there, API, pages and admin alike; 1 for what it takes."""
    for each in below if below is not None else get_resolver().url_patterns:
        address = prefix + str(each.pattern)
        if isinstance(each, URLResolver):
            yield from patterns(each.url_patterns, address)
        else:
            yield address, each


def is_api(pattern: URLPattern) -> bool:
    view = getattr(pattern.callback, "view_class", None)
    return view is not None and issubclass(view, APIView)


def test_every_call_and_page_has_a_row() -> None:
    assert {(method, address) for method, address, _ in calls()} == API.keys(), "say who may, in API above"
    pages = {
        address
        for address, pattern in patterns()
        if not is_api(pattern) and not address.startswith(("/admin/", "/^"))  # /^: whatever is unknown
    }
    assert pages == PAGES.keys(), "say who may, in PAGES above"


def test_the_matrix_has_so_many_cells() -> None:
    assert len(API) * len(WHO) + len(PAGES) + len(ADMIN) * 3 > 300


@pytest.fixture
def task(settings: Any) -> MailTask:
    """A mail that can be cancelled and retried, and its owner's other things."""
    settings.DEFAULT_SMTP_URL = "smtp://127.0.0.1:1"
    owner = UserFactory(email=f"{MARK}@example.com")
    SmtpAccount.objects.filter(owner=owner).update(from_email=f"{MARK}@example.com")
    mail: MailTask = MailFactory(
        owner=owner, recipient=f"{MARK}@example.org", subject=MARK, status=Status.FAILED
    )
    fill_lists(owner)
    return mail


def caller(who: str, owner: User) -> APIClient:
    if who == "nobody":
        return APIClient(raise_request_exception=False)
    user = {
        "other": UserFactory,
        "staff": lambda: UserFactory(is_staff=True, is_superuser=True),
        "owner": lambda: owner,
    }[who]()
    return client_of(user)


@pytest.mark.parametrize("who", WHO)
@pytest.mark.parametrize(("method", "address"), API)
def test_each_gets_what_its_row_says(task: MailTask, method: str, address: str, who: str) -> None:
    row, before = API[method, address], rows(task.owner)
    client = caller(who, task.owner)
    answer = client.generic(method, address_of(task, address), json.dumps(row.body), "application/json")
    assert answer.status_code == row.for_each()[who], answer.content
    if who != "owner":
        assert MARK not in answer.content.decode()
        assert rows(task.owner) == before


@pytest.mark.parametrize("address", PAGES)
def test_a_page_is_the_same_for_all(address: str) -> None:
    assert Client().get(address).status_code == PAGES[address]


# The admin --------------------------------------------------------------------------------------------

#: One row for each page; what is unknown there is asked for as well.
ADMIN = sorted(
    {
        re.sub(r"\^\(\?P<app_label>.*?\)/\$", "tasks/", address)
        .replace("<path:content_type_id>/<path:object_id>", "1/1")
        .replace("<path:object_id>", "1")
        .replace("<id>", "1")
        .replace("(?P<url>.*)$", "nothing")
        for address, _ in patterns()
        if address.startswith("/admin/")
    }
)
#: A way in, for those who may; and a way out, which a GET is not.
DOOR = {"/admin/login/", "/admin/logout/"}
#: What any member of staff sees, whatever their rights: nobody's data.
FOR_STAFF = {
    "/admin/", "/admin/search/", "/admin/password_change/", "/admin/password_change/done/", "/admin/jsi18n/",
}  # fmt: skip


def test_the_admin_is_there() -> None:
    assert len(ADMIN) > 80
    assert not [address for address in ADMIN if set(address) & set("<>()^$")], "fill it in, in ADMIN above"


@pytest.mark.parametrize("who", ["nobody", "user"])
@pytest.mark.parametrize("address", sorted({*ADMIN} - DOOR))
def test_the_admin_sends_whoever_is_not_staff_to_the_door(address: str, who: str) -> None:
    page = Client()
    if who == "user":
        page.force_login(UserFactory())
    for method in ("get", "post"):
        answer = getattr(page, method)(address)
        assert answer.status_code in (302, 403), (method, answer.status_code)
        if answer.status_code == 302:
            assert answer["Location"].startswith("/admin/login/")


@pytest.mark.parametrize("address", sorted({*ADMIN} - DOOR - FOR_STAFF))
def test_staff_without_rights_see_nothing_of_anybody(task: MailTask, address: str) -> None:
    of_model = {
        "user": task.owner.pk,
        "smtpaccount": task.owner.pk,
        "apikey": ApiKey.objects.get().pk,
        "mailtask": task.pk,
        "suppression": Suppression.objects.get().pk,
        "mailtemplate": MailTemplate.objects.get().pk,
        "endpoint": Endpoint.objects.get().pk,
        "delivery": Delivery.objects.get().pk,
        "subscription": Subscription.objects.get().pk,
        "content": Content.objects.get().pk,
    }
    model = address.split("/")[3] if address.count("/") > 3 else ""
    page = Client(raise_request_exception=False)
    page.force_login(UserFactory(is_staff=True))
    answer = page.get(address.replace("/1/", f"/{of_model.get(model, 1)}/"), follow=True)
    is_missing = answer.request["PATH_INFO"] == "/admin/" and model not in of_model
    assert answer.status_code in (403, 404) or is_missing
    assert MARK not in answer.content.decode()


def test_staff_with_the_right_see_it(task: MailTask) -> None:
    """The control of the one above."""
    staff, page = UserFactory(is_staff=True), Client()
    staff.user_permissions.add(Permission.objects.get(codename="view_mailtask"))
    page.force_login(staff)
    assert MARK in page.get("/admin/tasks/mailtask/").content.decode()


def test_a_session_of_the_admin_opens_no_call_of_the_api(task: MailTask) -> None:
    """So no other site can have a browser call it."""
    page = Client()
    page.force_login(task.owner)
    answers = [
        page.generic(method, address_of(task, address)).status_code
        for (method, address), row in API.items()
        if not isinstance(row, Everybody)
    ]
    assert set(answers) == {401}
