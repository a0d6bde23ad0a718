"""The sandbox inbox: what is sent to it by SMTP can be read on its pages, and nothing in a mail can harm them."""

import os
import re
import signal
import smtplib
import socket
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from email.message import EmailMessage
from pathlib import Path
from urllib.parse import urlsplit

import psycopg
import pytest
from django.db import connection
from django.test import Client
from django.urls import include, path
from django.utils import timezone

from mailqueue.sandbox.models import SandboxMail
from mailqueue.sandbox.reading import Reading, subject_of

ROOT = Path(__file__).parents[2]
urlpatterns = [path("sandbox/", include("mailqueue.sandbox.urls"))]
with_pages = pytest.mark.urls(__name__)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def database_url(name: str) -> str:
    return urlsplit(os.environ["DATABASE_URL"])._replace(path=f"/{name}").geturl()


class Sandbox:
    """`manage.py sandbox` in a process of its own, on the test's database."""

    def __init__(self, url: str) -> None:
        self.port = free_port()
        environment = os.environ | {"DATABASE_URL": url, "SANDBOX_SMTP_PORT": str(self.port), "DEBUG": "true"}
        self.process = subprocess.Popen(
            [sys.executable, ROOT / "manage.py", "sandbox"],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        assert "taking mail" in self.process.stdout.readline()

    def client(self) -> smtplib.SMTP:
        return smtplib.SMTP("127.0.0.1", self.port, timeout=20)

    def stop(self) -> int:
        self.process.terminate()
        self.process.stdout.close()
        return self.process.wait(20)


@pytest.fixture
def sandbox(transactional_db: None) -> Iterator[Sandbox]:
    running = Sandbox(database_url(connection.settings_dict["NAME"]))
    yield running
    running.stop()


def a_mail(subject: str = "Hello", to: str = "reader@example.org", text: str = "Hello\n") -> EmailMessage:
    mail = EmailMessage()
    mail["From"], mail["To"], mail["Subject"] = "writer@example.com", to, subject
    mail.set_content(text)
    return mail


def kept(raw: bytes = b"", *, to: str = "reader@example.org", subject: str | None = None) -> SandboxMail:
    return SandboxMail.objects.create(
        received_at=timezone.now(),
        sender="writer@example.com",
        recipients=[to],
        subject=subject_of(raw) if subject is None else subject,
        size=len(raw),
        raw=raw,
    )


# By SMTP ----------------------------------------------------------------------------------------------


@with_pages
def test_an_accepted_mail_can_be_read_at_once(sandbox: Sandbox) -> None:
    with sandbox.client() as smtp:
        smtp.send_message(a_mail("Grüße, 你好 🎉", text="Schöne Grüße\n"))
        found = Client().get("/sandbox/api/messages", {"recipient": "reader@example.org"}).json()
    assert [(mail["from"], mail["to"], mail["subject"]) for mail in found] == [
        ("writer@example.com", ["reader@example.org"], "Grüße, 你好 🎉")
    ]
    message = Client().get(f"/sandbox/api/messages/{found[0]['id']}").json()
    assert message["text"] == "Schöne Grüße\n"
    assert message["headers"]["Subject"] == "Grüße, 你好 🎉"


def test_the_bytes_are_kept_as_they_came(sandbox: Sandbox) -> None:
    raw = b"Subject: dots\r\n\r\n.\r\n..a\r\n\xff\xfe " + b"x" * 5_000 + b"\r\n"
    with sandbox.client() as smtp:
        smtp.sendmail("writer@example.com", ["reader@example.org"], raw)
    assert bytes(SandboxMail.objects.get().raw) == raw


def test_any_login_will_do_and_the_null_sender_and_many_recipients_too(sandbox: Sandbox) -> None:
    with sandbox.client() as smtp:
        smtp.login("anybody", "anything")
        smtp.sendmail("", ["a@example.org", "ü@example.org"], b"\r\n", ["SMTPUTF8", "BODY=8BITMIME"])
    mail = SandboxMail.objects.get()
    assert (mail.sender, mail.recipients) == ("", ["a@example.org", "ü@example.org"])


def test_commands_sent_in_one_write_are_answered_in_order(sandbox: Sandbox) -> None:
    with (
        socket.create_connection(("127.0.0.1", sandbox.port), timeout=20) as raw,
        raw.makefile("rb") as replies,
    ):
        raw.sendall(b"EHLO me\r\nMAIL FROM:<a@example.com>\r\nRCPT TO:<b@example.org>\r\nDATA\r\n")
        head = [replies.readline() for _ in range(3)]
        while not (line := replies.readline()).startswith(b"250 "):
            head.append(line)
        assert b"250-PIPELINING\r\n" in head
        raw.sendall(b"Subject: one\r\n\r\n.\r\nMAIL FROM:<a@example.com>\r\nQUIT\r\n")
        codes = [replies.readline()[:3] for _ in range(6)]
    assert codes == [b"250", b"250", b"354", b"250", b"250", b"221"]


def test_mails_of_concurrent_sessions_share_a_commit(sandbox: Sandbox) -> None:
    def session(number: int) -> None:
        with sandbox.client() as smtp:
            for each in range(20):
                smtp.send_message(a_mail(f"{number}-{each}"))

    with ThreadPoolExecutor(10) as sessions:
        list(sessions.map(session, range(10)))
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT count(*), count(DISTINCT xmin::text), count(DISTINCT subject) FROM sandbox_sandboxmail"
        )
        mails, commits, subjects = cursor.fetchone()
    assert mails == subjects == 200
    assert commits < 150


def test_without_the_database_senders_are_put_off_and_with_it_all_is_well_again(sandbox: Sandbox) -> None:
    name = connection.settings_dict["NAME"]
    with (
        psycopg.connect(database_url("postgres"), autocommit=True) as operator,
        sandbox.client() as smtp,
    ):
        smtp.send_message(a_mail("before"))
        connection.close()
        operator.execute(f'ALTER DATABASE "{name}" ALLOW_CONNECTIONS false')
        try:
            operator.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = %s", [name]
            )
            with pytest.raises(smtplib.SMTPDataError) as refused:
                smtp.send_message(a_mail("meanwhile"))
        finally:
            operator.execute(f'ALTER DATABASE "{name}" ALLOW_CONNECTIONS true')
        smtp.send_message(a_mail("after"))
    assert refused.value.smtp_code == 451
    assert list(SandboxMail.objects.order_by("id").values_list("subject", flat=True)) == ["before", "after"]


def test_a_connection_that_died_while_idle_costs_no_mail(sandbox: Sandbox) -> None:
    with sandbox.client() as smtp, connection.cursor() as cursor:
        smtp.send_message(a_mail("before"))
        cursor.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
            " WHERE datname = current_database() AND pid <> pg_backend_pid()"
        )
        assert cursor.rowcount == 1
        smtp.send_message(a_mail("after"))
    assert SandboxMail.objects.count() == 2


def test_a_mail_beyond_the_limit_is_refused_for_good(sandbox: Sandbox) -> None:
    with sandbox.client() as smtp, pytest.raises(smtplib.SMTPResponseException) as refused:
        smtp.send_message(a_mail(text="x" * 70 + "\n" + ("y" * 70 + "\n") * 320_000))
    assert refused.value.smtp_code == 552
    assert not SandboxMail.objects.exists()


# Magic addresses --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("local", "code", "enhanced"),
    [
        ("tempfail", 451, b"4.3.0"),
        ("reject", 550, b"5.1.1"),
        ("block", 554, b"5.7.1"),
        ("full", 452, b"4.2.2"),
    ],
)
def test_by_smtp_too_a_magic_address_is_refused_as_it_says(
    sandbox: Sandbox, local: str, code: int, enhanced: bytes
) -> None:
    for _ in range(2):
        with sandbox.client() as smtp, pytest.raises(smtplib.SMTPRecipientsRefused) as refused:
            smtp.send_message(a_mail(to=f"{local}@sandbox.invalid"))
        (reply,) = refused.value.recipients.values()
        assert (reply[0], reply[1].split()[0]) == (code, enhanced)
    with sandbox.client() as smtp:
        assert list(smtp.sendmail("a@example.com", ["b@example.org", f"{local}@sandbox.invalid"], b"\r\n"))
    assert SandboxMail.objects.get().recipients == ["b@example.org"]


def test_by_smtp_too_greylisting_refuses_once(sandbox: Sandbox) -> None:
    with sandbox.client() as smtp, pytest.raises(smtplib.SMTPRecipientsRefused):
        smtp.send_message(a_mail(to="greylist@sandbox.invalid"))
    with sandbox.client() as smtp:
        smtp.send_message(a_mail(to="greylist@sandbox.invalid"))
        with pytest.raises(smtplib.SMTPRecipientsRefused):
            smtp.send_message(a_mail(to="greylist@sandbox.invalid"))
    assert SandboxMail.objects.count() == 1


def test_by_smtp_too_a_dropped_mail_gets_no_reply(sandbox: Sandbox) -> None:
    with sandbox.client() as smtp, pytest.raises(smtplib.SMTPServerDisconnected):
        smtp.send_message(a_mail(to="drop@sandbox.invalid"))
    with sandbox.client() as smtp:
        smtp.send_message(a_mail(to="ok@sandbox.invalid"))
    assert [mail.recipients for mail in SandboxMail.objects.all()] == [["ok@sandbox.invalid"]]


def test_by_smtp_too_slow_is_slow(sandbox: Sandbox) -> None:
    with sandbox.client() as smtp:
        smtp.sock.settimeout(2)
        with pytest.raises(smtplib.SMTPServerDisconnected):
            smtp.send_message(a_mail(to="slow@sandbox.invalid"))


def test_sigterm_ends_it_with_zero_though_sessions_are_open(sandbox: Sandbox) -> None:
    with socket.create_connection(("127.0.0.1", sandbox.port), timeout=20) as session:
        assert session.recv(4) == b"220 "
        sandbox.process.send_signal(signal.SIGTERM)
        assert sandbox.process.wait(20) == 0


def test_a_taken_port_is_named(sandbox: Sandbox) -> None:
    second = subprocess.run(
        [sys.executable, ROOT / "manage.py", "sandbox"],
        env=os.environ | {"SANDBOX_SMTP_PORT": str(sandbox.port), "DEBUG": "true"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert second.returncode == 1
    assert f"Cannot listen on 127.0.0.1:{sandbox.port} (SANDBOX_SMTP_PORT)" in second.stderr
    assert "Traceback" not in second.stderr


@pytest.mark.django_db
def test_only_the_newest_are_kept() -> None:
    ids = [kept().pk for _ in range(5)]
    assert SandboxMail.objects.prune(keep=3) == 2
    assert list(SandboxMail.objects.order_by("id").values_list("id", flat=True)) == ids[2:]
    assert SandboxMail.objects.prune(keep=3) == 0


# On the pages -----------------------------------------------------------------------------------------

GARBAGE = {
    "nothing": b"",
    "no header": b"\r\n\r\njust text",
    "zeros": b"\x00\x01\x02\r\n\x00\r\n",
    "unknown charset": b'Content-Type: text/plain; charset="martian"\r\n\r\n\xff\xfe',
    "charset that is no text": b"Content-Type: text/html; charset=rot13\r\n\r\n<p>",
    "charset with a zero": b'Content-Type: text/plain; charset="a\x00b"\r\n\r\nx',
    "unclosed boundary": b'Content-Type: multipart/mixed; boundary="\r\n\r\n--\r\n',
    "broken encoded word": b"Subject: =?utf-8?b?////?= =?x?y?z?=\r\nTo: =?=?=\r\n\r\n",
    "broken base64": b"Content-Transfer-Encoding: base64\r\nContent-Type: text/plain\r\n\r\n!!!!=",
    "broken filename": b"Content-Type: image/png; name*0*=martian''%ff%00; name*1=\r\n\r\nx",
    "header without name": b": nameless\r\nSubject\r\n  folded\r\n\r\n",
    "raw eight bit": b"Subject: \xff\xfe\xc3\xbc\r\nX-\xe9: \x80\r\n\r\n\x80",
    "deep": b"".join(
        b"Content-Type: multipart/mixed; boundary=%d\r\n\r\n--%d\r\n" % (n, n) for n in range(1, 900)
    ),
    "mail in a mail": b"Content-Type: message/rfc822\r\n\r\nContent-Type: message/rfc822\r\n\r\nSubject: in\r\n\r\nx",
    "lone surrogates": b"Content-Type: text/plain; charset=utf-7\r\n\r\n+2AA-",
}


@pytest.mark.django_db
@with_pages
@pytest.mark.parametrize("raw", GARBAGE.values(), ids=GARBAGE)
def test_no_mail_is_too_broken_to_be_shown(raw: bytes) -> None:
    mail, client = kept(raw), Client()
    pages = ["/sandbox/", f"/sandbox/api/messages/{mail.pk}", f"/sandbox/{mail.pk}/source"]
    pages += [f"/sandbox/{mail.pk}?view={view}" for view in ("html", "text", "source", "headers")]
    pages += [f"/sandbox/{mail.pk}/attachment/{number}" for number, _ in enumerate(Reading(raw).attachments)]
    assert {client.get(page).status_code for page in pages} == {200}
    assert client.get(f"/sandbox/{mail.pk}/html").status_code in (200, 404)
    assert client.get(f"/sandbox/{mail.pk}/source").content == raw


@pytest.mark.django_db
@with_pages
def test_html_comes_with_a_policy_under_which_nothing_runs_or_loads() -> None:
    mail = kept(b"Content-Type: text/html; charset=latin-1\r\n\r\n<script>alert(1)</script><p>\xfc</p>")
    answer = Client().get(f"/sandbox/{mail.pk}/html")
    policy = dict(part.strip().partition(" ")[::2] for part in answer["Content-Security-Policy"].split(";"))
    assert policy["default-src"] == "'none'"
    assert policy["sandbox"] == ""
    assert "script-src" not in policy
    assert policy["img-src"] == "data:"
    assert answer["X-Frame-Options"] == "SAMEORIGIN"
    assert "<p>ü</p>" in answer.content.decode()
    page = Client().get(f"/sandbox/{mail.pk}").content.decode()
    assert 'sandbox=""' in page
    assert "alert(1)" not in page


@pytest.mark.django_db
@with_pages
def test_what_a_mail_says_is_escaped_everywhere() -> None:
    evil = '"><script>x()</script>'
    mail = kept(
        f"Subject: {evil}\r\nX-Evil: {evil}\r\n\r\nhttp://a.example/{evil}".encode(),
        to=f"a{evil}@example.org",
    )
    client = Client()
    for page in (
        "",
        f"?q={evil}",
        f"{mail.pk}?view=text",
        f"{mail.pk}?view=source",
        f"{mail.pk}?view=headers",
    ):
        shown = client.get(f"/sandbox/{page}").content.decode()
        assert "<script>x()" not in shown
        assert "x()" in shown


@pytest.mark.django_db
@with_pages
def test_an_attachment_can_only_be_downloaded() -> None:
    mail = a_mail()
    mail.add_attachment("<script>x()</script>", subtype="html", filename='../a "quoted"\x00 ü.html')
    answer = Client().get(f"/sandbox/{kept(mail.as_bytes()).pk}/attachment/0")
    assert answer.content == b"<script>x()</script>\n"
    assert answer["Content-Type"] == "application/octet-stream"
    assert answer["X-Content-Type-Options"] == "nosniff"
    assert answer["Content-Disposition"].startswith("attachment; filename")
    assert "/" not in answer["Content-Disposition"].replace("utf-8''", "")
    assert "sandbox" in answer["Content-Security-Policy"]


@pytest.mark.django_db
@with_pages
def test_pictures_inside_a_mail_are_shown_without_loading_anything() -> None:
    mail = a_mail()
    mail.add_alternative('<img src="cid:logo@x"><img src="cid:absent">', subtype="html")
    mail.get_payload()[1].add_related(b"PNG", "image", "png", cid="<logo@x>")
    html = Reading(mail.as_bytes()).html
    assert html is not None
    assert '<img src="data:image/png;base64,UE5H"><img src="cid:absent">' in html


@pytest.mark.django_db
@with_pages
def test_pages_follow_one_another_without_gap_or_repetition() -> None:
    ids = [kept(subject=f"mail {number}").pk for number in range(120)]
    seen: list[int] = []
    address: str | None = "/sandbox/"
    while address:
        page = Client().get(address).content.decode()
        seen += [int(pk) for pk in re.findall(r'data-id="(\d+)"', page)]
        older = re.search(r'href="(\?before=\d+)"', page)
        address = f"/sandbox/{older[1]}" if older else None
        kept(subject="one that comes while they are read")
    assert seen == ids[::-1]


@pytest.mark.django_db
@with_pages
def test_search_looks_in_recipients_and_subjects() -> None:
    kept(to="anna@example.org", subject="one")
    kept(to="bob@example.org", subject="Two")
    kept(to="carl@example.org", subject="three 100%")

    def found(words: str) -> set[str]:
        return {mail["subject"] for mail in Client().get("/sandbox/api/messages", {"q": words}).json()}

    assert found("ANNA@") == {"one"}
    assert found("two") == {"Two"}
    assert found("0%") == {"three 100%"}
    assert found("o%e") == set()
    assert found("o\0ne") == {"one"}


@pytest.mark.django_db
@with_pages
def test_a_recipient_is_asked_for_exactly() -> None:
    kept(to="anna@example.org", subject="hers")
    kept(to="joanna@example.org", subject="not hers")
    found = Client().get("/sandbox/api/messages", {"recipient": "anna@example.org"}).json()
    assert [mail["subject"] for mail in found] == ["hers"]


@pytest.mark.django_db
@with_pages
def test_deleting_all_takes_a_post_with_its_token() -> None:
    kept()
    client = Client(enforce_csrf_checks=True)
    page = client.get("/sandbox/").content.decode()
    assert client.get("/sandbox/delete").status_code == 405
    assert client.post("/sandbox/delete").status_code == 403
    assert SandboxMail.objects.count() == 1
    token = re.search(r'name="csrfmiddlewaretoken" value="(\w+)"', page)
    assert token
    assert client.post("/sandbox/delete", {"csrfmiddlewaretoken": token[1]}).status_code == 302
    assert SandboxMail.objects.count() == 0


@pytest.mark.django_db
@with_pages
@pytest.mark.parametrize(
    "query", ["before=x", "before=-1", "before=99999999999999999999", "limit=x", "limit=-5"]
)
def test_nonsense_in_the_address_is_ignored(query: str) -> None:
    kept(subject="here")
    assert "here" in Client().get(f"/sandbox/?{query}").content.decode()
    assert len(Client().get(f"/sandbox/api/messages?{query}").json()) == 1


@pytest.mark.django_db
def test_outside_debug_there_is_no_sandbox() -> None:
    assert Client().get("/sandbox/").status_code == 404
