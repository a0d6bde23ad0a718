"""OPTIONS and HEAD at every address of the service, the admin and the sandbox's pages included."""

from typing import Any

import pytest
from django.test import Client
from django.urls import include, path
from django.utils import timezone
from rest_framework.test import APIClient

from config import urls
from mailqueue.sandbox.models import SandboxMail
from tasks.models import MailTask
from tests.factories import MailFactory, UserFactory, client_of
from tests.integration.test_access_matrix import ADMIN, API, PAGES, patterns
from tests.integration.test_ownership import address_of, fill_lists

SANDBOX = [path("sandbox/", include("mailqueue.sandbox.urls"))]
urlpatterns = [*urls.urlpatterns, *SANDBOX]
pytestmark = [pytest.mark.django_db, pytest.mark.urls(__name__)]

ADDRESSES = sorted({address for _, address in API})
READ = {address for method, address in API if method == "GET"}
INBOX = sorted({address for address, _ in patterns(SANDBOX)})
STREAMS = ["/api/v1/task/events", "/api/v1/task/1/events"]


@pytest.fixture
def task(settings: Any) -> MailTask:
    settings.DEFAULT_SMTP_URL = "smtp://127.0.0.1:1"
    mail: MailTask = MailFactory()
    fill_lists(mail.owner)
    return mail


def in_sandbox(address: str) -> str:
    raw = (
        b"Subject: x\r\nMIME-Version: 1.0\r\nContent-Type: multipart/mixed; boundary=b\r\n\r\n"
        b"--b\r\nContent-Type: text/html\r\n\r\n<p>x</p>\r\n"
        b"--b\r\nContent-Disposition: attachment; filename=x.txt\r\n\r\nx\r\n--b--\r\n"
    )
    mail = SandboxMail.objects.create(
        received_at=timezone.now(),
        sender="",
        recipients=["x@example.org"],
        subject="x",
        size=len(raw),
        raw=raw,
    )
    return address.replace("<int:pk>", str(mail.pk)).replace("<int:number>", "0")


def test_all_addresses_are_here() -> None:
    assert len(ADDRESSES) > 40
    assert len(INBOX) > 8
    assert {*STREAMS} < READ


@pytest.mark.parametrize("address", ADDRESSES)
def test_options_of_the_api_tells_its_methods(task: MailTask, address: str) -> None:
    answer = client_of(task.owner).options(address_of(task, address))
    assert (answer.status_code, answer["Content-Type"]) == (200, "application/json")
    allowed = {*answer["Allow"].split(", ")} - {"HEAD", "OPTIONS"}
    assert allowed == {method for method, each in API if each == address}


@pytest.mark.parametrize("accepted", ["text/event-stream", "text/html", "application/json"])
@pytest.mark.parametrize("address", [*STREAMS, "/api/docs", "/api/schema"])
def test_options_is_json_whatever_else_the_view_answers(task: MailTask, address: str, accepted: str) -> None:
    answer = client_of(task.owner).options(address_of(task, address), HTTP_ACCEPT=accepted)
    assert (answer.status_code, answer.json()["parses"]) == (200, ["application/json"])


def test_options_asks_who_is_there_as_get_does() -> None:
    assert {APIClient().options(address).status_code for address in ("/api/docs", "/api/schema")} == {200}
    assert APIClient().options("/api/v1/task/events").status_code == 401


@pytest.mark.parametrize("address", ADDRESSES)
def test_head_of_the_api_is_get_without_its_body(task: MailTask, address: str) -> None:
    client, whole = client_of(task.owner), address_of(task, address)
    head = client.head(whole)
    assert head.status_code == (200 if address in READ else 405)
    assert head.status_code == client.get(whole).status_code


@pytest.mark.parametrize("address", [*PAGES, *INBOX, *ADMIN])
def test_of_a_page_too_head_is_get_and_options_breaks_nothing(address: str) -> None:
    whole, client = in_sandbox(address), Client(raise_request_exception=False)
    client.force_login(UserFactory(is_staff=True, is_superuser=True))
    head, get = client.head(whole), client.get(whole)
    if address == "/admin/login/":  # Django shows it to HEAD, and sends GET on
        assert (head.status_code, get.status_code) == (200, 302)
    else:
        assert head.status_code == get.status_code < 500
    assert head.headers["Content-Type"] == get.headers["Content-Type"]
    assert client.options(whole).status_code < 500
