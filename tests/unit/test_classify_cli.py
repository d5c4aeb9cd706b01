"""`turnkeeper classify`: lines in, lines out."""

import io
import json
from typing import Any

import pytest

from turnkeeper_worker.cli.classify import read_failure, run
from turnkeeper_worker.failures import ExceptionFact, Failure, Http2Reset, Phase, Signal


def answers(*lines: object, explain: bool = False) -> tuple[int, list[dict[str, Any]]]:
    text = "".join((line if isinstance(line, str) else json.dumps(line)) + "\n" for line in lines)
    out = io.StringIO()
    exit_code = run(io.StringIO(text), out, explain=explain)
    return exit_code, [json.loads(line) for line in out.getvalue().splitlines()]


LIMITED = {"id": "a", "provider": "openai", "http_status": 429, "headers": {"retry-after": "7"}}


def test_an_answer_has_the_fields_that_are_promised() -> None:
    exit_code, (answer,) = answers(LIMITED)

    assert exit_code == 0
    assert answer == {
        "id": "a",
        "kind": "rate_limit",
        "retryable": True,
        "chain_broken": False,
        "retry_after_s": 7.0,
        "status_code": 429,
        "detail": None,
        "message": "OpenAI is limiting the rate of requests. Wait a minute before you send the next message.",
    }


def test_explain_names_the_rule_and_the_evidence() -> None:
    _, (answer,) = answers(LIMITED | {"body": {"error": {"code": "rate_limit_exceeded"}}}, explain=True)

    assert answer["rule"] == "rate limit code"
    assert answer["evidence"] == "rate_limit_exceeded"
    assert answer["hint_source"] == "retry-after"
    assert answer["code"] == "rate_limit_exceeded"
    assert answer["request_id"] is None


@pytest.mark.parametrize(
    ("line", "complaint"),
    [
        pytest.param("not json", "line 2 is not JSON", id="no JSON"),
        pytest.param("[1]", "line 2 is not a JSON object", id="no object"),
        pytest.param('{"id": ', "line 2 is not JSON", id="a line that was cut"),
        pytest.param("[" * 100_000, "line 2 is not JSON", id="nesting without an end"),
    ],
)
def test_a_broken_line_is_named_and_the_others_are_answered(line: str, complaint: str) -> None:
    exit_code, (first, broken, last) = answers(LIMITED, line, LIMITED | {"id": "z"})

    assert exit_code == 1
    assert (first["id"], last["id"]) == ("a", "z")
    assert broken == {"id": None, "error": complaint}


def test_empty_lines_are_skipped() -> None:
    assert len(answers("", LIMITED, "   ")[1]) == 1


def test_no_lines_no_answers() -> None:
    assert answers() == (0, [])


def test_every_field_is_read() -> None:
    failure = read_failure(
        {
            "id": "x",
            "provider": "openai",
            "phase": "mid_stream",
            "signal": "http2_stream_reset",
            "http_status": 500,
            "headers": {"A": 1},
            "body": {"b": 1},
            "exception_type": "httpx.ReadError",
            "exception_text": "gone",
            "request": {"previous_response_id": "resp_1"},
            "visible": True,
            "h2": {"code": "CANCEL", "from_peer": True, "stream_id": 5},
            "source": "ignored",
        }
    )

    assert failure == Failure(
        provider="openai",
        phase=Phase.MID_STREAM,
        signal=Signal.HTTP2_STREAM_RESET,
        status=500,
        headers={"A": "1"},
        body={"b": 1},
        exceptions=(ExceptionFact(names=("httpx.ReadError",), text="gone"),),
        chained=True,
        visible=True,
        h2=Http2Reset(code=8, from_peer=True),
    )


def test_nothing_is_needed() -> None:
    assert read_failure({}) == Failure()


@pytest.mark.parametrize(
    "field",
    [
        "provider",
        "phase",
        "signal",
        "http_status",
        "headers",
        "exception_type",
        "exception_text",
        "request",
        "visible",
        "h2",
    ],
)
@pytest.mark.parametrize("value", [None, [1], "odd", True, 1.5, {}])
def test_a_field_of_the_wrong_type_is_no_trouble(field: str, value: object) -> None:
    exit_code, (answer,) = answers({"id": 1, field: value})

    assert exit_code == 0
    assert answer["kind"]


def test_an_anthropic_thread_is_a_chain() -> None:
    assert read_failure({"request": {"previous_message_id": "msg_1"}}).chained
