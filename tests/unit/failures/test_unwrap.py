"""Wrappers off: the same overflow in every wrapping, and which witness is believed."""

# ruff: noqa: E501 - a row of a table is a line, whatever a provider had to say

import json
from collections.abc import Callable

import pytest

from turnkeeper.errors import ErrorKind
from turnkeeper_worker.failures import Classified

Ask = Callable[..., Classified]

SENTENCE = "prompt is too long: 2 tokens > 1 maximum"
INNER = {"type": "invalid_request_error", "message": SENTENCE}
JSON = json.dumps({"error": INNER})


@pytest.mark.parametrize(
    "body",
    [
        pytest.param({"error": INNER}, id="an object"),
        pytest.param(JSON, id="JSON"),
        pytest.param(JSON.encode(), id="bytes"),
        pytest.param(bytearray(JSON.encode()), id="a bytearray"),
        pytest.param(json.dumps(JSON), id="JSON in a JSON string"),
        pytest.param(str({"error": INNER}), id="Python's repr"),
        pytest.param([{"error": INNER}], id="a list of one"),
        pytest.param(INNER, id="the bare error object"),
        pytest.param({"error": SENTENCE}, id="error as a string"),
        pytest.param({"detail": SENTENCE}, id="detail as a string"),
        pytest.param({"detail": INNER}, id="detail as an object"),
        pytest.param({"detail": [{"type": "value_error", "loc": ["body", "messages"], "msg": SENTENCE}]}, id="detail as a list"),
        pytest.param({"message": {"detail": [{"loc": ["body", "x"], "msg": SENTENCE}]}}, id="message as an object"),
        pytest.param({"errors": [{"message": SENTENCE}]}, id="a list of errors"),
        pytest.param({"errors": [SENTENCE]}, id="a list of texts"),
        pytest.param({"error": {"message": json.dumps({"error": INNER})}}, id="JSON in the message"),
        pytest.param({"error": {"message": f'POST "https://x/v1": 400 Bad Request {JSON}'}}, id="JSON after prose in the message"),
        pytest.param({"error": {"message": "Provider returned error", "metadata": {"raw": JSON}}}, id="OpenRouter's raw"),
        pytest.param({"error": {"message": "Provider returned error", "metadata": {"raw": SENTENCE}}}, id="OpenRouter's raw as text"),
        pytest.param({"error": {"code": "upstream_400", "message": f"上游返回错误 (status 400): {JSON}"}}, id="a gateway in another language"),
        pytest.param({"response": {"error": INNER}, "type": "response.failed"}, id="a failed response"),
        pytest.param({"validationException": INNER}, id="an exception as a member"),
        pytest.param(f"event: error\ndata: {JSON}\n\n", id="an event"),
        pytest.param(f"data: {JSON}\n\ndata: [DONE]\n\n", id="an event before the end mark"),
        pytest.param(f'data: {{"choices": []}}\n\ndata: {JSON}', id="the last of two events"),
        pytest.param(f"{{'error': b'{JSON}'}}", id="bytes as Python prints them"),
        pytest.param('{"error": {"message": "' + SENTENCE, id="JSON that was cut off"),
        pytest.param(f"{{ status: undefined, error: {{ message: '{SENTENCE}' }} }}", id="JavaScript's notation"),
        pytest.param(SENTENCE, id="plain text"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("status", [400, 500, None])
def test_the_innermost_sentence_decides_and_is_told(ask: Ask, body: object, status: int | None) -> None:
    error = ask(status, body, text="upstream failed").error

    assert error.kind is ErrorKind.CONTEXT_OVERFLOW
    assert not error.retryable
    assert error.detail is not None
    assert SENTENCE in error.detail


def test_a_field_is_named_with_what_is_wrong_with_it(ask: Ask) -> None:
    body = {
        "detail": [
            {"type": "extra_forbidden", "loc": ["body", "max_tokens"], "msg": "Extra inputs are not permitted"}
        ]
    }

    error = ask(422, body).error

    assert error.kind is ErrorKind.CONFIG
    assert error.detail == "max_tokens: Extra inputs are not permitted"


def test_a_body_of_one_word_is_believed_less_than_the_exception(ask: Ask) -> None:
    assert ask(400, "not-json", text="image is too big").error.detail == "image is too big"


def test_a_body_of_one_word_is_told_where_there_is_nothing_else(ask: Ask) -> None:
    assert ask(403, "Forbidden").error.detail == "Forbidden"


def test_a_body_that_is_too_long_is_not_read(ask: Ask) -> None:
    body = '{"error": "' + "overloaded " * 10_000 + '"}'

    assert ask(400, body, text="bad request").error.detail == "bad request"


@pytest.mark.parametrize(
    ("status", "body", "reported", "kind"),
    [
        pytest.param(500, {"error": {"message": "no", "code": 429}}, 500, ErrorKind.RATE_LIMIT, id="the inner status decides and the outer is told"),
        pytest.param(424, {"message": "failed", "originalStatusCode": 503}, 424, ErrorKind.TIMEOUT, id="the original status decides"),
        pytest.param(None, {"message": "no", "statusCode": 429}, 429, ErrorKind.RATE_LIMIT, id="a field is a status"),
        pytest.param(200, {"error": {"code": 429, "message": "no"}}, 429, ErrorKind.RATE_LIMIT, id="a field inside a stream is a status"),
        pytest.param(200, {"error": {"message": "got status 429"}}, None, ErrorKind.GENERIC, id="a number in a stream's prose is not"),
        pytest.param(None, {"error": {"message": "x", "code": "429"}}, 429, ErrorKind.RATE_LIMIT, id="a status may be a string"),
        pytest.param(None, {"error": {"message": "x", "code": 4290}}, None, ErrorKind.GENERIC, id="a longer number is none"),
        pytest.param(None, {"error": {"message": "x", "code": 200}}, None, ErrorKind.GENERIC, id="a success is no error status"),
        pytest.param(None, {"error": {"message": "x", "code": True}}, None, ErrorKind.GENERIC, id="a boolean is none"),
    ],
)  # fmt: skip
def test_statuses(ask: Ask, status: int | None, body: object, reported: int | None, kind: ErrorKind) -> None:
    error = ask(status, body).error

    assert (error.status_code, error.kind) == (reported, kind)


@pytest.mark.parametrize(
    ("headers", "body", "request_id"),
    [
        pytest.param({"X-Request-Id": "req_1"}, None, "req_1", id="OpenAI's header"),
        pytest.param({"request-id": "req_2"}, None, "req_2", id="Anthropic's header"),
        pytest.param({}, {"request_id": "req_3", "error": {"message": "x"}}, "req_3", id="a field"),
        pytest.param({}, {"request_id": 3}, None, id="a field of another type"),
        pytest.param({}, None, None, id="none"),
    ],
)
def test_the_request_id_is_kept(ask: Ask, headers: dict[str, str], body: object, request_id: str | None) -> None:
    assert ask(500, body, headers=headers).request_id == request_id


def test_the_innermost_code_is_kept(ask: Ask) -> None:
    body = {
        "error": {"type": "upstream", "message": json.dumps({"error": {"code": "server_error", "message": "x"}})}
    }

    assert ask(500, body).code == "server_error"
