"""A client that openapi-typescript makes of the running service's schema type-checks, and sends a mail."""

import json
import os
import shutil
import subprocess
from pathlib import Path

import httpx
import pytest

from mailqueue.embedded.process import ROOT
from tests.acceptance.conftest import Stack

HERE = ROOT / "tests" / "typescript"
FILES = ("package.json", "package-lock.json", "tsconfig.json", "client.ts")


@pytest.fixture
def npm() -> str:
    lacking = [name for name in ("node", "npm") if shutil.which(name) is None]
    if lacking:
        why = f"{' and '.join(lacking)} not found: a TypeScript client takes Node.js 18 or newer, with npm."
        # In CI a skipped test would be one that nobody runs.
        pytest.fail(why) if os.environ.get("CI") else pytest.skip(why)
    return str(shutil.which("npm"))


def run(folder: Path, *command: str) -> str:
    """What it says to its standard output."""
    ran = subprocess.run(command, cwd=folder, check=False, capture_output=True, text=True, timeout=200)
    assert ran.returncode == 0, f"{command}\n{ran.stdout}\n{ran.stderr}"
    return ran.stdout


def test_a_typescript_client_registers_logs_in_sends_a_mail_and_reads_its_task(
    stack: Stack, npm: str, tmp_path: Path
) -> None:
    for name in FILES:
        shutil.copy(HERE / name, tmp_path)
    # By the lock file, with its hashes; no package's own scripts are run.
    run(tmp_path, npm, "ci", "--ignore-scripts", "--no-audit", "--no-fund")
    document = httpx.get(f"{stack.home}/api/schema?format=json").raise_for_status().text
    (tmp_path / "openapi.json").write_text(document)
    tools = tmp_path / "node_modules" / ".bin"
    run(tmp_path, str(tools / "openapi-typescript"), "openapi.json", "--output", "schema.ts")
    run(tmp_path, str(tools / "tsc"))
    said = run(tmp_path, "node", "built/client.js", stack.home)
    assert json.loads(said) == {
        "same": True,
        "status": "success",
        "subject": "Grüße",
        "tags": ["welcome"],
        "code": 250,
        "queue": [True],
        "missing": [404, "not_found"],
        "refused": [400, ["recipient_email"]],
    }
