"""Logs: secrets are masked, whoever wrote the record."""

import json
import logging
from collections.abc import Iterator

import pytest
import structlog

from turnkeeper_worker.telemetry import configure_logging, get_logger

KEY = "sk-proj-abcdefghijklmnop1234567890"


@pytest.fixture(autouse=True)
def _restore_logging() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level = root.handlers, root.level
    yield
    root.handlers, root.level = handlers, level
    structlog.reset_defaults()


def _log_lines(capsys: pytest.CaptureFixture[str]) -> list[dict[str, object]]:
    return [json.loads(line) for line in capsys.readouterr().err.splitlines()]


def test_a_key_in_a_field_is_masked(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logging("info", as_json=True)

    get_logger("test").warning("attempt.failed", turn_id="t-1", error=f"Incorrect API key provided: {KEY}")

    (line,) = _log_lines(capsys)
    assert line["event"] == "attempt.failed"
    assert line["turn_id"] == "t-1"
    assert KEY not in str(line)


def test_a_key_in_a_librarys_record_or_traceback_is_masked(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logging("info", as_json=True)

    try:
        raise ValueError(f"cannot reach http://user:{KEY}@host/")
    except ValueError:
        logging.getLogger("some.library").exception("failed with %s", KEY)

    (line,) = _log_lines(capsys)
    assert "ValueError" in str(line["exception"])
    assert KEY not in str(line)
