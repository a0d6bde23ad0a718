"""The OpenAPI document is true: schemathesis tries out every operation, and a generated client sends a mail."""

import importlib
import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import httpx
import pytest

from mailqueue.embedded.process import ROOT
from tests.acceptance.conftest import Stack
from tests.machine import Machine, own_database, until

#: With a seed the requests are always the same, apart from what the service itself has made.
SEED = os.environ.get("FUZZ_SEED", "1")
#: Examples for each operation. FUZZ_EXAMPLES=200 is for an evening: some 20,000 requests.
EXAMPLES = os.environ.get("FUZZ_EXAMPLES", "4")
LIMITS = ("THROTTLE_LOGIN", "THROTTLE_LOGIN_ADDRESS", "THROTTLE_REGISTER", "THROTTLE_SMTP_TEST")
#: Left out by tests/schemathesis.toml: they answer for as long as somebody listens.
STREAMS = ("follow_task", "follow_tasks")
#: The phase of the same few hundred cases that cover each rule of the schema is run once.
PHASES = {
    "token": "examples,coverage,fuzzing,stateful",
    "key": "examples,fuzzing,stateful",
    "nobody": "examples,fuzzing,stateful",
}


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A web that limits nobody, and has a default relay."""
    settings = dict.fromkeys(LIMITS, "off") | {"DEFAULT_SMTP_URL": "smtp://127.0.0.1:1"}
    with own_database() as database, Machine(database, tmp_path_factory.mktemp("web"), **settings) as machine:
        machine.start_web()
        yield f"http://127.0.0.1:{machine.port}"


def needed(module: str, why: str) -> None:
    if importlib.util.find_spec(module) is None:
        (pytest.fail if os.environ.get("CI") == "true" else pytest.skip)(
            f"{module} is not installed here, which {why}; `make test` installs it."
        )


@pytest.mark.parametrize("who", PHASES)
def test_schemathesis_finds_nothing(home: str, who: str, tmp_path: Path) -> None:
    needed("schemathesis", "tries out the API")
    report = tmp_path / "report.json"
    command = [
        sys.executable,
        "-m",
        "schemathesis.cli",
        "--config-file",
        str(ROOT / "tests/schemathesis.toml"),
    ]
    command += ["run", f"{home}/api/schema", "--checks", "all", "--phases", PHASES[who], "--seed", SEED]
    command += ["--max-examples", EXAMPLES, "--continue-on-failure", "--no-color"]
    command += ["--report", "json", "--report-json-path", str(report)]
    env = os.environ | {
        "SCHEMATHESIS_HOOKS": "tests.schemathesis_hooks",
        "PYTHONPATH": str(ROOT),
        "CALL_AT": home,
        "CALL_AS": who,
    }
    ran = subprocess.run(command, cwd=tmp_path, env=env, check=False, capture_output=True, text=True)
    assert ran.returncode == 0, f"{ran.stdout}\n{ran.stderr}"
    found: dict[str, Any] = json.loads(report.read_text())
    cases, operations = found["test_cases"], found["operations"]
    assert operations["tested"] + len(STREAMS) == operations["total"] > 20
    assert cases["generated"] > 100
    assert (cases["with_failures"], cases["errored"], found["failures"], found["errors"]) == (0, 0, [], [])
    accepted = {
        operation
        for operation, phases in found["valid_rates"].items()
        if any(phase["accepted"] for phase in phases.values())
    }
    # Else it would have talked to a closed door.
    assert ("POST /api/v1/task/enqueue" in accepted) == (who != "nobody")


@pytest.fixture(scope="module")
def client(stack: Stack, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ModuleType]:
    """The package that openapi-python-client makes of the running service's schema."""
    needed("openapi_python_client", "makes a client of the schema")
    folder = tmp_path_factory.mktemp("client")
    document = folder / "openapi.json"
    document.write_text(httpx.get(f"{stack.home}/api/schema?format=json").raise_for_status().text)
    command = [
        sys.executable,
        "-m",
        "openapi_python_client",
        "generate",
        "--meta",
        "none",
        "--fail-on-warning",
    ]
    command += ["--path", str(document), "--output-path", str(folder / "generated_mailqueue")]
    env = os.environ | {
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    }  # it calls ruff
    made = subprocess.run(command, cwd=folder, env=env, check=False, capture_output=True, text=True)
    assert made.returncode == 0, made.stdout + made.stderr
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(folder))
        yield importlib.import_module("generated_mailqueue")


def test_a_generated_client_registers_logs_in_sends_a_mail_and_reads_its_task(
    stack: Stack, client: ModuleType
) -> None:
    def call(module: str, **given: Any) -> Any:
        return importlib.import_module(f"generated_mailqueue.api.{module}").sync(**given)

    models = importlib.import_module("generated_mailqueue.models")
    service = {"base_url": stack.home, "raise_on_unexpected_status": True}
    who = {"email": "generated@example.com", "password": "correct horse battery"}
    with client.Client(**service) as anyone:
        registered = call("users.register", client=anyone, body=models.RegisterRequest(**who))
        assert registered.email == who["email"]
        tokens = call("users.login", client=anyone, body=models.LoginRequest(**who))
        assert tokens.id == registered.id

    mail = models.EnqueueRequest(
        recipient_email="generated-jane@example.com",
        subject="Grüße",
        body="Hello Jane,\nit works.",
        tags=["welcome"],
    )
    with client.AuthenticatedClient(**service, token=tokens.token) as mine:
        accepted = call("tasks.enqueue", client=mine, body=mail, idempotency_key="generated-1")
        again = call("tasks.enqueue", client=mine, body=mail, idempotency_key="generated-1")
        assert again.task_id == accepted.task_id

        def sent() -> Any:
            task = call("tasks.get_task", client=mine, id=accepted.task_id)
            return task if task.status == "success" else None

        task = until(sent, "the mail is sent")
        assert (task.subject, task.tags, task.attempts[0].code) == ("Grüße", ["welcome"], 250)
        listed = call("tasks.list_queue", client=mine)
        assert [each.task_id for each in listed.results] == [accepted.task_id]

        refused = call("tasks.get_task", client=mine, id=2**40)
        assert (type(refused).__name__, refused.code) == ("Problem", "not_found")
