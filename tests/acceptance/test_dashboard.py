"""The live page in a real browser: its numbers move, and it says so when nobody answers it."""

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from django.test import Client
from django.utils import timezone
from playwright.sync_api import Browser, Page, expect, sync_playwright
from pytest_django.live_server_helper import LiveServer

from mailqueue.embedded.process import ROOT
from mailqueue.workers import Ticks, Worker, beat
from tasks import counters
from tests.factories import PASSWORD, UserFactory, client_of
from tests.machine import Machine, own_database, until
from tests.relay import Relay

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
#: Longer than a slow machine takes for what the page shows every two seconds (milliseconds).
SOON = 60_000
ADMIN = {"ADMIN_EMAIL": "admin@example.com", "ADMIN_PASSWORD": PASSWORD}

pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(
        not CHROMIUM and os.environ.get("CI") != "true",
        reason="There is no Chromium here to look at the page with; install one (apt-get install chromium).",
    ),
]


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with pytest.MonkeyPatch.context() as patch, sync_playwright() as playwright:
        # Playwright runs an event loop in this thread, in which Django would refuse to touch the database.
        patch.setenv("DJANGO_ALLOW_ASYNC_UNSAFE", "true")
        flags = ["--no-sandbox", "--disable-background-networking"]
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=flags)
        yield browser
        browser.close()


@pytest.fixture
def page(browser: Browser, request: pytest.FixtureRequest) -> Iterator[Page]:
    server: LiveServer = request.getfixturevalue("live_server")
    context = browser.new_context(base_url=server.url, viewport={"width": 390, "height": 844})
    yield context.new_page()
    context.close()


def log_in(page: Page, email: str) -> None:
    """At `/`, which leads to the login and back."""
    page.goto("/")
    page.locator("[name=username]").fill(email)
    page.locator("[name=password]").fill(PASSWORD)
    page.get_by_role("button", name="Log in").click()
    expect(page.get_by_text("live ·")).to_be_visible(timeout=SOON)


def number(page: Page, name: str) -> Any:
    return page.locator(f"[data-number={name}]").first


def worker(page: Page, name: str) -> Any:
    return page.locator("#workers tbody tr", has_text=name)


# Who may see it ---------------------------------------------------------------------------------------


@pytest.mark.django_db
@pytest.mark.parametrize("is_staff", [None, False])
def test_the_page_is_for_staff(is_staff: bool | None) -> None:
    client = Client()
    if is_staff is not None:
        client.force_login(UserFactory(is_staff=is_staff))
    answer = client.get("/")
    assert (answer.status_code, answer["Location"]) == (302, "/admin/login/?next=/")
    answer = client.get("/dashboard.json")
    assert (answer.status_code, answer.json()["code"]) == (401, "not_authenticated")


# The page ---------------------------------------------------------------------------------------------


@pytest.mark.django_db(transaction=True)
def test_it_shows_what_is_there_and_what_comes(page: Page, live_server: LiveServer) -> None:
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    said: list[str] = []
    page.on("console", lambda message: said.append(message.text))
    Worker.objects.all().delete()  # whom another test has killed
    log_in(page, UserFactory(is_staff=True, is_superuser=True).email)
    expect(number(page, "pending")).to_have_text("0")
    expect(page.get_by_text("No worker is alive")).to_be_visible()
    mail = {"recipient_email": "jane@example.com", "subject": "Hello", "body": "Hello Jane."}
    client = client_of(UserFactory())
    for more in ({}, {}, {"scheduled_at": "2090-01-31T09:30:00Z"}):
        assert client.post("/api/v1/task/enqueue", mail | more, format="json").status_code == 202
    beat("mail-1:41", "sending", 7, 1234, timezone.now())
    expect(number(page, "pending")).to_have_text("3", timeout=SOON)
    expect(number(page, "scheduled")).to_have_text("1")
    expect(worker(page, "mail-1:41")).to_contain_text("1,234", timeout=SOON)
    expect(page.get_by_text("No worker is alive")).to_be_hidden()
    expect(page.get_by_text("Beat or the upkeep worker is not running")).to_be_visible()
    Ticks("mail-1:42").heard()
    expect(page.get_by_text("Beat or the upkeep worker is not running")).to_be_hidden(timeout=SOON)
    expect(worker(page, "mail-1:42")).to_have_count(0)  # it delivers nothing
    assert page.evaluate("document.documentElement.scrollWidth") == 390
    assert [url for url in asked if not url.startswith(live_server.url)] == []
    assert said == []  # nor has the policy anything to complain of


@pytest.mark.django_db(transaction=True)
def test_it_says_when_nobody_answers_and_goes_on_when_somebody_does(
    page: Page,
) -> None:
    log_in(page, UserFactory(is_staff=True, is_superuser=True).email)
    page.route("**/dashboard.json", lambda route: route.abort())
    expect(page.get_by_text("No answer; these are the figures of")).to_be_visible(timeout=SOON)
    page.unroute("**/dashboard.json")
    counters.add("task.6", 5)
    expect(page.get_by_text("live ·")).to_be_visible(timeout=SOON)
    expect(number(page, "uncertain")).to_have_text("5", timeout=SOON)
    page.context.clear_cookies()
    expect(page.get_by_text("Logged out")).to_be_visible(timeout=SOON)


# All of it --------------------------------------------------------------------------------------------


@pytest.fixture
def machine(tmp_path: Path) -> Iterator[Machine]:
    with own_database() as database, Machine(database, tmp_path, DEBUG="true") as machine:
        prepare = [sys.executable, "manage.py", "prepare"]
        subprocess.run(prepare, cwd=ROOT, env=machine.env | ADMIN, check=True)
        yield machine


def test_numbers_move_while_mail_is_sent_and_a_killed_worker_is_shown_as_gone(
    machine: Machine, browser: Browser
) -> None:
    machine.start_all()
    context = browser.new_context(base_url=f"http://127.0.0.1:{machine.port}")
    try:
        with Relay(delay=0.05) as relay:
            page = context.new_page()
            log_in(page, ADMIN["ADMIN_EMAIL"])
            sender = machine.user(relay.port)
            alive = page.locator("#workers tbody tr.alive")
            expect(alive).to_have_count(1, timeout=SOON)
            name = alive.locator("td").first.inner_text()
            for count in (20, 40):
                for _ in range(20):
                    sender.enqueue()
                expect(number(page, "success")).to_have_text(str(count), timeout=SOON)
            expect(page.locator("[data-said=rate]")).not_to_have_text("0")
            expect(page.locator("[data-said=p95]")).to_have_text(re.compile("[0-9] m?s"))
            machine.kill("worker")
            expect(worker(page, name).get_by_text("gone")).to_be_visible(timeout=2 * SOON)
            # Its successor is at home in the same list, and the totals are as they were.
            machine.start_worker()
            expect(alive).to_have_count(1, timeout=SOON)
            sender.enqueue()
            expect(number(page, "success")).to_have_text("41", timeout=SOON)
            expect(worker(page, name).get_by_text("gone")).to_be_visible()
            until(lambda: machine.query("SELECT count(*) FROM tasks_counter_line") == [(0,)], "all is folded")
    finally:
        context.close()
