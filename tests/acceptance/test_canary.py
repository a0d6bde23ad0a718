"""Canaries: secrets that are used all over a running stack, and then looked for wherever it writes. None is found.

Looked through are the log of every part, each key of Redis and the file it appends to, the journals, Flower, every
table byte by byte (Celery's results among them), the admin's pages and all answers of the API. A secret may be
written in other ways: in JSON, in an address, in hexadecimal, in base64, or as a hash that is as good as it.
"""

import base64
import hashlib
import json
import re
import secrets
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import quote

import httpx
import psycopg
import pytest
import redis
from psycopg import sql

from tests.acceptance.conftest import Stack
from tests.machine import until
from tests.relay import Relay

#: Secrets of the service itself, in DATA_DIR/secrets.
OWN = ("SECRET_KEY", "JWT_SIGNING_KEY", "CREDENTIAL_KEYS", "REDIS_PASSWORD")
#: Where mail is kept, so its text may stand there, and how staff read it.
OF_MAIL = {"table tasks_mailcontent", "table sandbox_mail", "admin /admin/tasks/mailtask/"}


def forms(secret: str) -> set[bytes]:
    """Every way to write it that gives it away."""
    assert len(secret) >= 8, "so short that it may be anywhere"
    raw = secret.encode()
    found = {raw, json.dumps(secret)[1:-1].encode(), quote(secret, safe="").encode()}
    found |= {raw.hex().encode(), raw.hex().upper().encode()}
    found |= {hashlib.new(name, raw).hexdigest().encode() for name in ("md5", "sha1", "sha256")}
    for before in range(3):  # where it begins among the groups of three
        encoded = base64.b64encode(b"\0" * before + raw)
        encoded = encoded[-(-before * 8 // 6) : (before + len(raw)) * 8 // 6]
        found |= {encoded, encoded.replace(b"+", b"-").replace(b"/", b"_")}
    return found


def hits(canaries: dict[str, str], places: dict[str, bytes]) -> set[tuple[str, str]]:
    """Which was found where."""
    return {
        (name, place)
        for name, secret in canaries.items()
        for place, content in places.items()
        if any(form in content for form in forms(secret))
    }


@dataclass
class Answers:
    """Calls the API, and keeps all that it said, but for what an answer is for."""

    home: str
    said: list[bytes] = field(default_factory=list)

    def __call__(self, method: str, path: str, gives: Iterable[str] = (), **more: Any) -> Any:
        answer = httpx.request(method, f"{self.home}/api/v1/{path}", timeout=60, **more)
        text = f"{answer.status_code} {answer.headers} {answer.text}"
        document = answer.json() if answer.content else {}
        for name in gives:
            assert document[name] in text
            text = text.replace(document[name], "")
        self.said.append(text.encode())
        return document

    def statuses(self) -> set[int]:
        return {int(text[:3]) for text in self.said}


@dataclass
class Played:
    """What was done: the secrets, a word that is none, and what the API said."""

    canaries: dict[str, str]
    marker: str
    answers: Answers


@pytest.fixture(scope="module")
def played(stack: Stack) -> Played:
    marker = f"marker-{secrets.token_hex(6)}"
    kinds = ("password", "second password", "wrong password", "SMTP password", "wrong SMTP password", "text")
    canaries = {kind: f"ca/na+ry {secrets.token_urlsafe(12)}~" for kind in kinds}
    call = Answers(stack.home)
    with Relay(users={"ada": canaries["SMTP password"]}) as relay:
        own = {
            "smtp_host": "127.0.0.1",
            "smtp_port": relay.port,
            "smtp_security": "none",
            "smtp-username": "ada",
        }
        own["smtp-password"] = canaries["SMTP password"]
        email = f"{marker}@example.com"
        who = {"email": email, "password": canaries["password"]}
        registered = call("POST", "register", json=who | own)
        clumsy(call, who, own, canaries)

        tokens = call("POST", "login", ["token", "refresh"], json=who)
        canaries |= {"first token": tokens["token"], "first refresh": tokens["refresh"]}
        for gives in (["token", "refresh"], []):  # once used, it is of no use
            said = call("POST", "token/refresh", gives, json={"refresh": canaries["first refresh"]})
            tokens = said if gives else tokens
        canaries |= {"token": tokens["token"], "refresh": tokens["refresh"]}
        bearer = {"Authorization": f"Bearer {tokens['token']}", "X-Request-ID": marker}
        new_key = {"name": "x", "scopes": ["send", "read", "manage"]}
        key = call("POST", "keys", ["key"], json=new_key, headers=bearer)["key"]
        canaries["key"] = key
        program = {"Authorization": f"Bearer {key}", "Idempotency-Key": marker}
        deeds(call, registered["id"], canaries, bearer, program)
        assert [mail.recipient for mail in relay.accepted] == [f"{marker}@example.org"]
        assert {password for log in relay.sessions for _, password in log.logins} == {
            canaries["SMTP password"],
            canaries["wrong SMTP password"],
        }
    # What was used up is only told apart from what is not by its signature.
    canaries |= {f"{name}'s signature": canaries[name].rpartition(".")[2] for name in ("token", "refresh")}
    folder = Path(stack.env["DATA_DIR"]) / "secrets"
    canaries |= {name: (folder / name).read_text().strip() for name in OWN}
    assert all(canaries.values())
    return Played(canaries, marker, call)


def clumsy(call: Answers, who: dict[str, str], own: dict[str, Any], canaries: dict[str, str]) -> None:
    """Calls that are refused, each with a secret in it."""
    call("POST", "register", json=who | own)
    call("POST", "register", json=who | own | {"smtp_port": own["smtp-password"], "email": who["password"]})
    call("POST", "register", content=json.dumps(who)[:-1])
    call("POST", "register", content=json.dumps(who), headers={"Content-Type": "text/plain"})
    call("POST", "login", json={"email": who["password"], "password": [who["password"]]})
    call("POST", "login", json=who | {"password": canaries["wrong password"]})
    call("POST", "token/refresh", json={"refresh": canaries["password"]})
    call("GET", "task/queue", headers={"Authorization": f"Bearer {canaries['password']}"})


def deeds(
    call: Answers, pk: int, canaries: dict[str, str], bearer: dict[str, str], program: dict[str, str]
) -> None:
    """A mail is sent; a relay refuses the password; both passwords change; a mail waits for that."""
    marker = bearer["X-Request-ID"]
    mail = {"recipient_email": f"{marker}@example.org", "subject": marker, "body": canaries["text"]}
    task = call("POST", "task/enqueue", json=mail, headers=program)["task_id"]
    until(lambda: call("GET", f"task/{task}", headers=bearer)["status"] == "success", "the mail is sent")
    call("POST", "task/enqueue", json=mail | {"subject": [canaries["text"]]}, headers=bearer)
    call("GET", f"task/queue?q={quote(canaries['key'])}", headers=bearer)
    call("GET", f"user/{pk}", headers=program)
    call("POST", f"user/{pk}/smtp/test", headers=bearer)
    call("PATCH", f"user/{pk}", json={"smtp-password": canaries["wrong SMTP password"]}, headers=bearer)
    assert call("POST", f"user/{pk}/smtp/test", headers=bearer)["code"] == 535
    call("POST", "task/enqueue", json=mail, headers=bearer)
    until(lambda: call("GET", f"user/{pk}", headers=bearer)["account"]["state"] == "paused", "it is paused")
    call("PATCH", f"user/{pk}", json={"password": canaries["second password"]}, headers=bearer)
    call("GET", f"user/{pk}", headers=bearer)


# Where it is looked for -------------------------------------------------------------------------------


def tables(url: str) -> Iterator[tuple[str, bytes]]:
    """Each as COPY writes it for machines: texts and bytes as they are."""
    with psycopg.connect(url) as database:
        found = database.execute(
            "SELECT tablename FROM pg_tables WHERE schemaname NOT IN ('pg_catalog', 'information_schema')"
        ).fetchall()
        for (name,) in found:
            copy = sql.SQL("COPY {} TO STDOUT (FORMAT binary)").format(sql.Identifier(name))
            with database.cursor().copy(copy) as rows:
                yield f"table {name}", b"".join(bytes(row) for row in rows)


def keys(url: str) -> Iterator[tuple[str, bytes]]:
    readers = {
        b"string": lambda client, key: [client.get(key)],
        b"list": lambda client, key: client.lrange(key, 0, -1),
        b"set": lambda client, key: client.smembers(key),
        b"zset": lambda client, key: client.zrange(key, 0, -1),
        b"hash": lambda client, key: [part for pair in client.hgetall(key).items() for part in pair],
    }
    with redis.Redis.from_url(url) as client:
        for key in client.scan_iter():
            kind = client.type(key)
            if kind != b"none":  # gone by now
                yield f"key {key!r}", b"\n".join([key, *(each or b"" for each in readers[kind](client, key))])


def files(folder: Path) -> Iterator[tuple[str, bytes]]:
    """What the stack wrote, but for PostgreSQL's own files, and those that are there for secrets."""
    for file in folder.rglob("*"):
        inside = file.relative_to(folder).as_posix()
        if file.is_file() and not re.match(r"postgres/|secrets/|services\.json$|redis/redis\.conf$", inside):
            yield f"file {inside}", file.read_bytes()


def flower(stack: Stack) -> Iterator[tuple[str, bytes]]:
    home = f"http://127.0.0.1:{stack.env['FLOWER_PORT']}"
    with httpx.Client(
        base_url=home, auth=("admin@example.com", stack.env["ADMIN_PASSWORD"]), timeout=60
    ) as page:
        # Its first look at the workers takes a while.
        workers = until(lambda: page.get("/api/workers?refresh=1").json(), "Flower sees the workers")
        tasks = until(lambda: page.get("/api/tasks").json(), "Flower has seen tasks")
        paths = [
            "/",
            "/tasks",
            "/broker",
            "/workers?json=1",
            "/metrics",
            "/api/tasks",
            "/api/workers",
            "/api/queues/length",
        ]
        paths += [f"/worker/{name}" for name in workers] + [f"/api/task/info/{uuid}" for uuid in tasks]
        paths += [f"/task/{uuid}" for uuid in list(tasks)[:20]]
        for path in paths:
            yield f"Flower {path}", page.get(path).raise_for_status().content


def admin(stack: Stack, marker: str) -> Iterator[tuple[str, bytes]]:
    """The pages about the user, from the lists to each row's own page and history."""
    lists = [f"/admin/accounts/{model}/" for model in ("user", "smtpaccount", "apikey")]
    lists += ["/admin/tasks/mailtask/", "/admin/django_celery_results/taskresult/"]
    with httpx.Client(base_url=stack.home, follow_redirects=True, timeout=60) as page:
        page.get("/admin/login/")
        form = {"username": "admin@example.com", "password": stack.env["ADMIN_PASSWORD"], "next": "/admin/"}
        form["csrfmiddlewaretoken"] = page.cookies["csrftoken"]
        assert page.post("/admin/login/", data=form).url.path == "/admin/"
        for address in lists:
            of_user = address if "celery" in address else f"{address}?q={marker}"
            listed = page.get(of_user).raise_for_status().text
            rows = sorted(set(re.findall(rf'href="({address}[^"/?]+/change/)', listed)))
            assert rows, address
            pages = [listed]
            for row in rows[:10]:
                pages.append(page.get(row).raise_for_status().text)
                pages.append(page.get(row.replace("/change/", "/history/")).raise_for_status().text)
            yield f"admin {address}", "".join(pages).encode()


@pytest.fixture(scope="module")
def places(stack: Stack, played: Played) -> dict[str, bytes]:
    data = Path(stack.env["DATA_DIR"])
    services = json.loads((data / "services.json").read_text())
    found = dict(flower(stack)) | dict(admin(stack, played.marker)) | dict(tables(services["DATABASE_URL"]))
    found |= dict(keys(services["REDIS_URL"])) | dict(files(data))
    return found | {"log": stack.log.read_bytes(), "answers": b"\n".join(played.answers.said)}


# What is found ----------------------------------------------------------------------------------------


def test_no_secret_is_found_anywhere(played: Played, places: dict[str, bytes]) -> None:
    assert played.answers.statuses() >= {200, 201, 202, 400, 401, 409, 415}
    assert len(played.canaries) >= 17
    # A key is stored as its hash, which is why it has 32 random bytes; and the text of a mail where mail is.
    expected = {("text", place) for place in OF_MAIL} | {("key", "table accounts_apikey")}
    found = hits(played.canaries, places) - expected
    assert found == set(), "\n".join(map(str, sorted(found)))


def test_the_search_finds_what_is_there(stack: Stack, played: Played, places: dict[str, bytes]) -> None:
    """Things that are no secrets, by the same search, in the same places."""
    assert ("text", "table tasks_mailcontent") in hits(played.canaries, places)
    assert ("key", "table accounts_apikey") in hits(played.canaries, places)
    found = {place for _, place in hits({"marker": played.marker}, places)}
    assert {"log", "answers", "table tasks_mailtask", "table accounts_user"} <= found
    assert {
        "admin /admin/accounts/user/",
        "admin /admin/accounts/smtpaccount/",
        "admin /admin/tasks/mailtask/",
    } <= found
    kinds = {place.split()[0] for place in places}
    assert kinds == {"Flower", "admin", "table", "key", "file", "log", "answers"}
    assert any(place.startswith("file redis/append") for place in places)
    assert any(place.startswith("file journal/") for place in places)
    assert b"mailqueue.drain" in places["Flower /api/tasks"]
    assert b"mailqueue.drain" in places["table django_celery_results_taskresult"]


def test_a_planted_secret_is_found_in_redis_and_in_its_file(stack: Stack, played: Played) -> None:
    data = Path(stack.env["DATA_DIR"])
    url = json.loads((data / "services.json").read_text())["REDIS_URL"]
    planted = {"planted": f"planted {secrets.token_hex(8)}"}
    body = base64.b64encode(json.dumps([["x", planted["planted"]], {}]).encode())
    with redis.Redis.from_url(url) as client:
        client.rpush("planted", body)
        try:
            found = {place.split()[0] for _, place in hits(planted, dict(keys(url)) | dict(files(data)))}
        finally:
            client.delete("planted")
    assert found == {"key", "file"}


@pytest.mark.parametrize("secret", ["it's 5 o'clock / ü", "canary-12345", "x" * 40])
def test_every_way_to_write_it_is_known(secret: str) -> None:
    raw = secret.encode()
    for before in (b"", b"{", b"ab", b"abc"):
        written = [before + raw + b"}", base64.b64encode(before + raw + b"}"), (before + raw).hex().encode()]
        written += [
            base64.urlsafe_b64encode(before + raw),
            json.dumps(secret).encode(),
            quote(secret, "").encode(),
        ]
        for text in written:
            assert hits({"x": secret}, {"there": text}) == {("x", "there")}, text
    assert not hits({"x": "another secret"}, {"there": raw})
