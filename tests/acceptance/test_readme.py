"""What README.md tells a newcomer to type works, and what it points at is there."""

import json
import os
import re
import subprocess
import time
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import pytest

from mailqueue.embedded.process import ROOT
from tests.acceptance.conftest import Stack

README = (ROOT / "README.md").read_text()
WALK_THROUGH = re.findall(r"^```bash\n(.*?)^```", README, re.DOTALL | re.MULTILINE)
END = "typed everything"


class Shell:
    """A terminal into which whole blocks are pasted."""

    def __init__(self, bash: subprocess.Popen[str]) -> None:
        self.bash = bash

    def paste(self, block: str) -> list[str]:
        """The lines that it prints."""
        assert self.bash.stdin
        self.bash.stdin.write(f"{block}echo '{END}'\n")
        self.bash.stdin.flush()
        return [*iter(self._line, END)]

    def _line(self) -> str:
        assert self.bash.stdout
        line = self.bash.stdout.readline()
        assert line, "the shell has ended"
        return line.rstrip("\n")

    def asks(self, block: str) -> Any:
        """Pasted for the JSON that it prints."""
        return json.loads("\n".join(self.paste(block)))


@pytest.fixture
def shell(stack: Stack) -> Iterator[Shell]:
    env = {"PATH": os.environ["PATH"], "LC_ALL": "C.UTF-8", "MAILQUEUE": stack.home}
    with subprocess.Popen(
        ["bash"], env=env, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as bash:
        yield Shell(bash)


def until(ask: Callable[[], Any], holds: Callable[[Any], bool]) -> Any:
    """The first answer for which it holds, as an impatient reader would find it; at last the last one."""
    deadline = time.monotonic() + 30
    while not holds(answer := ask()) and time.monotonic() < deadline:
        time.sleep(0.1)
    return answer


def test_the_walk_through_runs_as_it_stands(shell: Shell) -> None:
    log_in, enqueue, watch, look, read, later, template, suppress, one_time, *rest = WALK_THROUGH
    subscribe, bob, what_failed = rest

    registered = json.loads("\n".join(shell.paste(log_in)))
    assert registered["email"] == "ada@example.com"
    assert registered["smtp_host"] is None

    (line,) = shell.paste(enqueue)
    number = int(line.removeprefix("task "))
    assert "event: task.sent" in shell.paste(watch)
    task = until(lambda: shell.asks(look), lambda task: task["status"] == "success")
    assert (task["task_id"], task["status"], task["subject"]) == (number, "success", "Grüße")
    assert [attempt["outcome"] for attempt in task["attempts"]] == ["accepted"]
    (mail,) = shell.asks(read)
    assert (mail["from"], mail["subject"]) == ("ada@example.com", "Grüße")

    waiting, cancelled = map(json.loads, shell.paste(later))
    assert [each["waiting"]["reason"] for each in waiting["results"]] == ["scheduled"]
    assert (cancelled["status"], cancelled["cancel_reason"]) == ("cancelled", "user")

    _, filled, accepted = map(json.loads, shell.paste(template))
    assert (filled["subject"], filled["body"]) == ("Welcome, Jane", "Hello Jane,\n\nit works.\n")
    assert accepted["status"] == "queued"
    (suppressed,) = map(json.loads, shell.paste(suppress))
    assert (suppressed["address"], suppressed["reason"]) == ("joe@example.com", "manual")

    taken, first, second = map(json.loads, shell.paste(one_time))
    assert (taken["status"], first["verified"], second["verified"]) == (True, True, False)

    content, taken, listed = map(json.loads, shell.paste(subscribe))
    assert (content["version"], taken["status"]) == (1, True)
    (subscription,) = listed["results"]
    assert (subscription["id"], len(subscription["next_times"])) == (taken["subscription_id"], 5)

    registered, accepted = map(json.loads, shell.paste(bob))
    assert (registered["smtp_host"], registered["smtp_port"]) == ("127.0.0.1", 9)
    (failed,) = until(lambda: shell.asks(what_failed), lambda page: bool(page["results"]))["results"]
    assert (failed["task_id"], failed["status"]) == (accepted["task_id"], "failed")
    assert failed["waiting"]["reason"] == "retry"
    assert "cannot be reached" in failed["waiting"]["detail"]


def test_every_address_answers(stack: Stack) -> None:
    pages = set(re.findall(r"<http://127\.0\.0\.1:8000(/\S*)>", README)) | set(
        re.findall(r"`(/\w+/\w+)`", README)
    )
    assert {"/api/docs", "/api/schema", "/sandbox/", "/admin/", "/healthz/ready"} <= pages
    answers = {page: httpx.get(stack.home + page, follow_redirects=True).status_code for page in pages}
    assert answers == dict.fromkeys(pages, 200)

    assert "<http://127.0.0.1:5555>" in README
    flower = f"http://127.0.0.1:{stack.env['FLOWER_PORT']}"
    assert httpx.get(flower, auth=("admin@example.com", stack.env["ADMIN_PASSWORD"])).status_code == 200


@pytest.mark.parametrize(
    "page",
    [
        "README.md",
        "CONTRIBUTING.md",
        "docs/lifecycle.md",
        "docs/architecture.md",
        "docs/api.md",
        "docs/security.md",
        "docs/webhooks.md",
        "docs/metrics.md",
        "docs/operations.md",
        "docs/data.md",
        "docs/checks.md",
        "docs/scaling.md",
    ],
)
def test_every_link_leads_somewhere(page: str) -> None:
    file = ROOT / page
    links = re.findall(r"\]\(([^)\s]+)\)", file.read_text())
    targets = [link.partition("#")[0] for link in links if "://" not in link]
    assert targets
    assert [target for target in targets if not (file.parent / target).exists()] == []
