"""Logs: secrets are masked, whoever wrote the record."""

import json
import logging
from collections.abc import Iterator

import pytest
import structlog

from turnkeeper_worker.telemetry import COMPLAINS_EVERY_SECONDS, Complaint, configure_logging, get_logger

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


def test_what_happens_a_hundred_times_a_second_is_said_once_per_some_seconds_with_how_often(
    capsys: pytest.CaptureFixture[str],
) -> None:
    configure_logging("info", as_json=True)
    now = 100.0
    complaint = Complaint(get_logger("test"), "database.away", clock=lambda: now)

    for step in range(201):
        now = 100 + step * COMPLAINS_EVERY_SECONDS / 100
        complaint.make(error="refused")

    lines = _log_lines(capsys)
    assert [line["times"] for line in lines] == [1, 100, 100]
    assert {(line["event"], line["level"], line["error"]) for line in lines} == {
        ("database.away", "warning", "refused")
    }


def test_a_complaint_may_count_something_else_and_be_louder(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logging("info", as_json=True)

    Complaint(get_logger("test"), "live.dropped", level=logging.ERROR, counted="events").make(count=7)

    (line,) = _log_lines(capsys)
    assert (line["events"], line["level"]) == (7, "error")
