"""A one-time password goes through real processes to a relay, and leaves no trace but the mail."""

import json
import re
from collections.abc import Iterator
from email import message_from_bytes, policy
from pathlib import Path
from typing import Any

import pytest
import redis

from tests.machine import Machine, Sender, own_database, until
from tests.relay import Relay

JANE = "jane@example.com"
TEMPLATE = {
    "name": "otp",
    "subject": "{{ code }} is your code",
    "body": "Type {{ code }}.",
    "html_body": "<b>{{ code }}</b>",
}


@pytest.fixture(scope="module")
def machine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machine]:
    with (
        own_database() as database,
        Machine(database, tmp_path_factory.mktemp("machine"), LOG_LEVEL="DEBUG") as machine,
    ):
        yield machine.start_all()


@pytest.fixture
def sender(machine: Machine, relay: Relay) -> Sender:
    return machine.user(relay.port)


def post(sender: Sender, path: str, body: Any) -> Any:
    return sender._web.post(path, json=body, headers=sender._headers).raise_for_status().json()


def ask(sender: Sender) -> int:
    asked = {"task": "login", "type": "generateOtp", "payload": {"userId": JANE, "length": 8}}
    return int(post(sender, "/task/", asked)["task_id"])


def arrived(relay: Relay) -> Any:
    until(lambda: relay.accepted, "the mail has arrived")
    (mail,) = relay.accepted
    return message_from_bytes(mail.raw, policy=policy.default)


def traces(machine: Machine, code: str) -> list[str]:
    """Where the code stands by itself: rows, files (logs, journals, what Redis wrote), values in Redis."""
    alone = re.compile(rb"(?<![0-9a-f])%s(?![0-9a-f])" % code.encode())
    found = []
    for (table,) in machine.query("SELECT tablename FROM pg_tables WHERE schemaname = 'public'"):
        rows = machine.query(f'SELECT t::text FROM "{table}" t')  # type: ignore[arg-type]
        found += [f"{table}: {row}" for (row,) in rows if alone.search(row.encode())]
        if table == "tasks_mailcontent":
            raws = machine.query("SELECT raw FROM tasks_mailcontent")
            found += [f"{table}: a mail" for (raw,) in raws if alone.search(bytes(raw))]
    with redis.Redis.from_url(machine.redis.url) as client:
        client.config_set("rdbcompression", "no")  # of what DUMP answers too
        found += [f"{key}" for key in client.scan_iter() if alone.search(client.dump(key) or b"")]
    files = [path for path in Path(machine.folder).rglob("*") if path.is_file()]
    assert len(files) >= 4
    return found + [str(path) for path in files if alone.search(path.read_bytes())]


def test_it_is_mailed_and_verified_and_the_body_is_gone_within_seconds(
    machine: Machine, relay: Relay, sender: Sender
) -> None:
    post(sender, "/templates", TEMPLATE)
    pk = ask(sender)
    mail = arrived(relay)
    code = mail["Subject"].partition(" ")[0]
    assert re.fullmatch("[0-9]{8}", code)
    assert code in mail.get_body(("plain",)).get_content()
    task = sender.until(pk, "success")
    assert (task["lane"], task["subject"]) == ("otp", "•••••••• is your code")
    assert code not in json.dumps(task)
    until(lambda: machine.stored(pk) == b"", "the body is blanked")
    wrong = {"userEmail": JANE, "otp": "11111111" if code != "11111111" else "22222222"}
    right = {"userEmail": JANE, "otp": code}
    answers = [post(sender, "/task/verify", asked) for asked in (wrong, right, right)]
    assert [each["verified"] for each in answers] == [False, True, False]
    assert traces(machine, code) == []
    assert len(relay.accepted) == 1


def test_a_relay_that_refuses_it_leaves_no_body_either(
    machine: Machine, relay: Relay, sender: Sender
) -> None:
    relay.always("rcpt", "554 5.7.1 not from you", to=JANE)
    pk = ask(sender)
    assert sender.until(pk, "cancelled")["cancel_reason"] == "rejected"
    until(lambda: machine.stored(pk) == b"", "the body is blanked")
    answer = sender._web.post(f"/task/{pk}/retry", headers=sender._headers)
    assert (answer.status_code, answer.json()["code"]) == (409, "void")


def test_the_search_finds_what_is_there(machine: Machine, sender: Sender) -> None:
    with redis.Redis.from_url(machine.redis.url) as client:
        client.set("planted", "the code 75318642 " * 5, ex=60)
    assert any("planted" in found for found in traces(machine, "75318642"))
    pk = sender.enqueue("joe@example.com", subject="86420975 is a number", body="It is 97531864.")
    assert any(found.startswith("tasks_mailtask") for found in traces(machine, "86420975"))
    assert any(found.startswith("tasks_mailcontent") for found in traces(machine, "97531864"))
    sender.until(pk, "success")
