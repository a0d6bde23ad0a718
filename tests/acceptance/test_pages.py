"""The pages in a real browser: what only a browser can show."""

import os
import shutil
from collections.abc import Iterator
from email.message import EmailMessage

import pytest
from django.urls import include, path
from django.utils import timezone
from playwright.sync_api import Browser, Page, expect, sync_playwright
from pytest_django.live_server_helper import LiveServer

from config import urls
from mailqueue.sandbox.models import SandboxMail
from mailqueue.sandbox.reading import subject_of
from tasks.models import MailTask
from tasks.states import Status
from tests.factories import PASSWORD, MailFactory, UserFactory

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")

urlpatterns = [*urls.urlpatterns, path("sandbox/", include("mailqueue.sandbox.urls"))]
pytestmark = [
    pytest.mark.browser,
    pytest.mark.urls(__name__),
    pytest.mark.django_db(transaction=True),
    pytest.mark.skipif(
        not CHROMIUM and os.environ.get("CI") != "true",
        reason="There is no Chromium here to look at the pages with; install one (apt-get install chromium).",
    ),
]


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with pytest.MonkeyPatch.context() as patch, sync_playwright() as playwright:
        # Playwright runs an event loop in this thread, in which Django would refuse to touch the database.
        patch.setenv("DJANGO_ALLOW_ASYNC_UNSAFE", "true")
        flags = [
            "--no-sandbox",
            "--disable-background-networking",
        ]  # as root Chromium has no sandbox of its own
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=flags)
        yield browser
        browser.close()


@pytest.fixture
def page(browser: Browser, live_server: LiveServer) -> Iterator[Page]:
    context = browser.new_context(base_url=live_server.url, viewport={"width": 390, "height": 844})
    yield context.new_page()
    context.close()


def kept(mail: EmailMessage) -> SandboxMail:
    raw = mail.as_bytes()
    return SandboxMail.objects.create(
        received_at=timezone.now(),
        sender="writer@example.com",
        recipients=[mail["To"]],
        subject=subject_of(raw),
        size=len(raw),
        raw=raw,
    )


def a_mail(subject: str = "Hello", html: str = "") -> EmailMessage:
    mail = EmailMessage()
    mail["To"], mail["Subject"] = "reader@example.org", subject
    mail.set_content("Schöne Grüße\n")
    if html:
        mail.add_alternative(html, subtype="html")
    return mail


HOSTILE = """
<p id="here">Grüße</p><a href="http://elsewhere.invalid/confirm">confirm</a>
<img src="http://elsewhere.invalid/pixel.gif"><link rel="stylesheet" href="http://elsewhere.invalid/style.css">
<style>body { background: url(http://elsewhere.invalid/bg.png) }</style>
<script>document.getElementById("here").textContent = "it ran"; parent.document.title = "it reached out"</script>
<img src="x" onerror="document.getElementById('here').textContent = 'it ran'">
<iframe src="http://elsewhere.invalid/frame"></iframe>
<form action="http://elsewhere.invalid/form"><button>send</button></form>
<meta http-equiv="refresh" content="0;url=http://elsewhere.invalid/away">
"""


def test_a_hostile_mail_is_shown_and_neither_runs_nor_loads_anything(
    page: Page, live_server: LiveServer
) -> None:
    loaded: list[str] = []
    page.on("requestfinished", lambda request: loaded.append(request.url))
    page.on("requestfailed", lambda request: loaded.append(request.url) if not request.failure else None)
    page.goto(f"/sandbox/{kept(a_mail(html=HOSTILE)).pk}")
    expect(page.frame_locator("iframe").locator("#here")).to_have_text("Grüße")
    page.wait_for_load_state("networkidle")
    expect(page.frame_locator("iframe").locator("#here")).to_have_text("Grüße")
    expect(page).to_have_title("Hello · Sandbox inbox")
    assert loaded
    assert all(url.startswith(live_server.url) for url in loaded), loaded
    expect(page.get_by_role("link", name="http://elsewhere.invalid/confirm")).to_be_visible()


def test_a_first_mail_appears_by_itself_and_opens(page: Page) -> None:
    page.goto("/sandbox/")
    expect(page.get_by_role("heading", name="No mail yet")).to_be_visible()
    kept(a_mail("Your first mail"))
    page.get_by_role("link", name="Your first mail").click(timeout=20_000)
    expect(page.get_by_role("heading", name="Your first mail")).to_be_visible()
    expect(page.locator("pre")).to_have_text("Schöne Grüße\n")


def test_what_is_being_typed_survives_new_mail(page: Page) -> None:
    kept(a_mail("one"))
    page.goto("/sandbox/")
    page.get_by_role("searchbox").fill("half a wo")
    kept(a_mail("two"))
    expect(page.get_by_role("link", name="two")).to_be_visible(timeout=20_000)
    expect(page.get_by_role("searchbox")).to_have_value("half a wo")
    expect(page.get_by_role("searchbox")).to_be_focused()


@pytest.mark.parametrize("view", ["", "?view=text", "?view=source", "?view=headers"])
def test_nothing_is_wider_than_a_phone(page: Page, view: str) -> None:
    mail = kept(a_mail("A subject " + "withoutanyspace" * 20, html=f"<p>{'x' * 500}</p>"))
    for address in ("/sandbox/", f"/sandbox/{mail.pk}{view}"):
        page.goto(address)
        assert page.evaluate("document.documentElement.scrollWidth") == 390


def test_staff_log_in_and_cancel_what_waits(page: Page) -> None:
    user = UserFactory(is_staff=True, is_superuser=True)
    waiting = MailFactory(recipient="anna@example.org")
    page.set_viewport_size({"width": 1280, "height": 860})
    page.goto("/admin/tasks/mailtask/")
    page.locator("[name=username]").fill(user.email)
    page.locator("[name=password]").fill(PASSWORD)
    page.get_by_role("button", name="Log in").click()
    page.locator(f"[name=_selected_action][value='{waiting.pk}']").check()
    page.locator("[name=action]").select_option("cancel")
    page.get_by_role("button", name="Run").click()
    expect(page.get_by_text("1 of 1 cancelled.")).to_be_visible()
    assert MailTask.objects.get().status == Status.CANCELLED
