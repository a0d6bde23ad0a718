"""X-Request-ID, and what a log line holds and never holds."""

import json
import logging
import logging.config
import secrets

import pytest
from concurrent_log_handler import ConcurrentRotatingFileHandler
from rest_framework.test import APIClient

from config import logging as our_logging


@pytest.fixture
def lines(tmp_path, settings):
    """The JSON lines written since, read from a log file."""
    file = tmp_path / "log"
    logging.config.dictConfig(our_logging.dict_config(text=False, level="DEBUG", file=str(file)))
    yield lambda: [json.loads(line) for line in file.read_text().splitlines()]
    logging.config.dictConfig(settings.LOGGING)


@pytest.mark.parametrize("offered", ["abc-123", "a" * 128, "00-4bf92f35_7:x/y+z=@."])
def test_a_sane_request_id_is_echoed(offered):
    assert APIClient().get("/healthz/ping", HTTP_X_REQUEST_ID=offered)["X-Request-ID"] == offered


@pytest.mark.parametrize("offered", ["", "a" * 129, "a b", "a\r\nSet-Cookie: x", "<script>", "é", '"'])
def test_any_other_is_replaced(offered):
    echoed = APIClient().get("/healthz/ping", HTTP_X_REQUEST_ID=offered)["X-Request-ID"]
    assert echoed != offered
    assert len(echoed) == 32


def test_each_request_is_one_line_with_its_id_and_without_its_query(lines):
    APIClient().get("/api/nothing?recipient=ada@example.com", HTTP_X_REQUEST_ID="abc-123")
    (line,) = lines()
    assert (line["event"], line["request_id"], line["status"]) == ("request", "abc-123", 404)
    assert (line["method"], line["path"], line["level"]) == ("GET", "/api/nothing", "info")
    assert "ada" not in json.dumps(line)


def test_the_id_of_one_request_is_not_left_to_the_next(lines):
    APIClient().get("/api/nothing", HTTP_X_REQUEST_ID="abc-123")
    logging.getLogger("any").info("later")
    assert "request_id" not in lines()[-1]


def test_what_the_code_logs_keeps_its_extras(lines):
    logging.getLogger("any").warning("doorbell_failed after %d s", 3, extra={"error": "gone"})
    (line,) = lines()
    assert (line["event"], line["error"], line["level"]) == ("doorbell_failed after 3 s", "gone", "warning")


def _refused_row(password: str) -> None:
    raise ValueError(
        f"violates check constraint {len(password)}\n"
        "DETAIL:  Failing row contains (7, sealed-canary,\nmore).\n"
        "HINT: none"
    )


def test_a_traceback_shows_neither_locals_nor_row_values(lines):
    secret = secrets.token_hex()
    try:
        _refused_row(secret)
    except ValueError:
        logging.getLogger("any").exception("failed")
    (line,) = lines()
    assert "violates check constraint" in line["exception"]
    assert "HINT" in line["exception"]
    assert not [text for text in (secret, "canary", "more)") if text in line["exception"]]


def _rotating(file):
    made = ConcurrentRotatingFileHandler(str(file), maxBytes=1000, backupCount=9, encoding="utf-8")
    made.setFormatter(logging.Formatter("%(message)s"))
    return made


def _say(handler, text):
    handler.handle(logging.LogRecord("any", logging.INFO, "", 0, text, None, None))


def test_two_processes_may_write_one_rotating_file(tmp_path):
    handlers = [_rotating(tmp_path / "log") for _ in range(2)]
    for number in range(100):
        for handler in handlers:
            _say(handler, f"{number:03} " + "x" * 30)
    for handler in handlers:
        handler.close()
    kept = [path for path in tmp_path.iterdir() if "lock" not in path.name]
    written = [line[:3] for path in kept for line in path.read_text().splitlines()]
    assert sorted(written) == sorted(f"{number:03}" for number in range(100) for _ in range(2))
    assert len(kept) > 1


def test_the_file_gets_json_when_people_get_text(tmp_path, capsys):
    file = tmp_path / "log"
    logging.config.dictConfig(our_logging.dict_config(text=True, level="INFO", file=str(file)))
    logging.getLogger("any").info("hello", extra={"task_id": 7})
    assert json.loads(file.read_text())["task_id"] == 7
    assert "hello" in capsys.readouterr().out


def test_a_refused_token_is_not_logged(lines):
    APIClient().get("/api/v1/user/1", HTTP_AUTHORIZATION="Bearer canary.canary.canary")
    assert "canary" not in json.dumps(lines())
