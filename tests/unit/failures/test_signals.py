"""What we know ourselves, and where it stands among the evidence."""

from collections.abc import Callable

import pytest

from turnkeeper.errors import ErrorKind, Situation, terminal_copy
from turnkeeper_worker.failures import Classified, Phase, Signal

Ask = Callable[..., Classified]


@pytest.mark.parametrize(
    ("signal", "kind", "retryable"),
    [
        (Signal.MISSING_KEY, ErrorKind.MISSING_KEY, False),
        (Signal.UNKNOWN_PROVIDER, ErrorKind.CONFIG, False),
        (Signal.PROVIDER_DISABLED, ErrorKind.PROVIDER_DISABLED, False),
        (Signal.OWN_LIMIT, ErrorKind.USAGE_LIMIT, False),
        (Signal.STARTUP_TIMEOUT, ErrorKind.STARTUP_TIMEOUT, True),
        (Signal.STREAM_SILENCE_TIMEOUT, ErrorKind.STREAM_SILENCE_TIMEOUT, True),
        (Signal.DEADLINE, ErrorKind.TIMEOUT, False),
        (Signal.CANCELLED, ErrorKind.GENERIC, False),
        (Signal.PROVIDER_CANCELLED, ErrorKind.TIMEOUT, True),
        (Signal.CONTENT_FILTER, ErrorKind.CONTENT_FILTER, False),
        (Signal.STREAM_TRUNCATED, ErrorKind.TIMEOUT, True),
        (Signal.INCOMPLETE_JSON, ErrorKind.TIMEOUT, True),
        (Signal.EMPTY_OUTPUT, ErrorKind.GENERIC, True),
        (Signal.HTTP2_STREAM_RESET, ErrorKind.TIMEOUT, True),
        (Signal.HTTP2_GOAWAY, ErrorKind.TIMEOUT, True),
        (Signal.SSE_ERROR_EVENT, ErrorKind.GENERIC, True),
        (Signal.RESPONSE_GONE, ErrorKind.TIMEOUT, True),
        (Signal.KEY_RESTS, ErrorKind.RATE_LIMIT, True),
        (Signal.MODEL_RESTS, ErrorKind.OVERLOADED, True),
    ],
)
@pytest.mark.parametrize("text", ["", "context canceled"])
def test_a_signal_without_better_evidence(
    ask: Ask, signal: Signal, kind: ErrorKind, retryable: bool, text: str
) -> None:
    error = ask(text=text, signal=signal, phase=Phase.MID_STREAM).error

    assert (error.kind, error.retryable) == (kind, retryable)
    assert error.message


def test_every_signal_is_in_the_table_above() -> None:
    (rows, *_) = test_a_signal_without_better_evidence.pytestmark[1:]  # type: ignore[attr-defined]  # a pytest mark

    assert {row[0] for row in rows.args[1]} == set(Signal)


@pytest.mark.parametrize(
    ("signal", "situation"),
    [
        (Signal.DEADLINE, Situation.DEADLINE),
        (Signal.CANCELLED, Situation.CANCELLED),
        (Signal.EMPTY_OUTPUT, Situation.EMPTY),
        (Signal.UNKNOWN_PROVIDER, Situation.UNKNOWN_PROVIDER),
        (Signal.RESPONSE_GONE, Situation.RESPONSE_GONE),
    ],
)
def test_a_signal_has_copy_of_its_own(ask: Ask, signal: Signal, situation: Situation) -> None:
    assert ask(signal=signal).error.message == terminal_copy(ErrorKind.GENERIC, None, situation)


def test_our_cancel_outranks_what_the_torn_stream_says(ask: Ask) -> None:
    error = ask(text="peer closed connection", signal=Signal.CANCELLED).error

    assert (error.kind, error.retryable, error.detail) == (ErrorKind.GENERIC, False, None)


@pytest.mark.parametrize(("signal", "retryable"), [(Signal.PROVIDER_CANCELLED, True), (None, False)])
def test_a_cancel_that_was_not_ours_is_retried_where_we_know_it(
    ask: Ask, signal: Signal | None, retryable: bool
) -> None:
    assert ask(cls="asyncio.exceptions.CancelledError", signal=signal).error.retryable is retryable


def test_an_error_response_outranks_our_cancel(ask: Ask) -> None:
    assert ask(500, text="context canceled", signal=Signal.CANCELLED).error.retryable
    assert ask(401, text="context canceled", signal=Signal.CANCELLED).error.kind is ErrorKind.AUTH


@pytest.mark.parametrize("chained", [False, True])
def test_a_response_that_is_gone_is_no_lost_model_and_no_broken_chain(ask: Ask, chained: bool) -> None:
    body = {"error": {"message": "Response with id 'resp_1' not found.", "code": "model_not_found"}}

    classified = ask(404, body, signal=Signal.RESPONSE_GONE, chained=chained)

    assert (classified.error.kind, classified.error.retryable) == (ErrorKind.TIMEOUT, True)
    assert not classified.chain_broken


def test_our_deadline_outranks_everything(ask: Ask) -> None:
    error = ask(
        503, {"error": {"type": "overloaded_error", "message": "Overloaded"}}, signal=Signal.DEADLINE
    ).error

    assert (error.kind, error.retryable) == (ErrorKind.TIMEOUT, False)


def test_an_error_event_outranks_the_cut_that_follows_it(ask: Ask) -> None:
    body = {"type": "error", "error": {"type": "invalid_request_error", "message": "prompt is too long"}}

    assert ask(200, body, signal=Signal.STREAM_TRUNCATED).error.kind is ErrorKind.CONTEXT_OVERFLOW


def test_a_finish_reason_outranks_an_empty_answer(ask: Ask) -> None:
    body = {"type": "response.incomplete", "response": {"incomplete_details": {"reason": "max_output_tokens"}}}

    error = ask(200, body, signal=Signal.EMPTY_OUTPUT).error

    assert not error.retryable
    assert error.detail == "finish reason: max_output_tokens"


@pytest.mark.parametrize(
    ("status", "body", "header", "retryable"),
    [
        pytest.param(409, None, "false", False, id="no to a status that retries"),
        pytest.param(400, None, "true", True, id="yes to a status that does not"),
        pytest.param(429, None, " FALSE ", False, id="no to a limit, however it is written"),
        pytest.param(400, None, "maybe", False, id="nothing else is a word"),
        pytest.param(401, None, "true", False, id="yes does not mend a key"),
        pytest.param(
            429, {"error": {"code": "insufficient_quota"}}, "true", False, id="yes does not fill an account"
        ),
        pytest.param(500, {"retryable": False, "message": "x"}, "", False, id="no in a field"),
        pytest.param(400, {"retryable": True, "message": "x"}, "", True, id="yes in a field"),
        pytest.param(500, {"retryable": False, "message": "x"}, "true", True, id="the header outranks the field"),
        pytest.param(500, {"retryable": "no", "message": "x"}, "", True, id="only a boolean is a word"),
    ],
)
def test_the_provider_has_the_last_word_where_a_retry_is_open(
    ask: Ask, status: int, body: object, header: str, retryable: bool
) -> None:
    assert ask(status, body, headers={"X-Should-Retry": header}).error.retryable is retryable


def test_no_word_of_the_provider_revives_a_turn_that_we_ended(ask: Ask) -> None:
    assert not ask(signal=Signal.CANCELLED, headers={"x-should-retry": "true"}).error.retryable


@pytest.mark.parametrize("status", [*range(400, 600)])
def test_every_error_status_has_an_answer(ask: Ask, status: int) -> None:
    error = ask(status, text="upstream failed").error

    assert error.status_code == status
    assert error.retryable is (
        status in {408, 409, 424, 425, 429, 498, 499} or (status >= 500 and status not in {501, 505})
    )


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (400, ErrorKind.GENERIC),
        (401, ErrorKind.AUTH),
        (402, ErrorKind.USAGE_LIMIT),
        (403, ErrorKind.AUTH),
        (404, ErrorKind.GENERIC),
        (408, ErrorKind.TIMEOUT),
        (413, ErrorKind.CONTEXT_OVERFLOW),
        (429, ErrorKind.RATE_LIMIT),
        (500, ErrorKind.GENERIC),
        (502, ErrorKind.TIMEOUT),
        (520, ErrorKind.TIMEOUT),
        (524, ErrorKind.TIMEOUT),
        (529, ErrorKind.OVERLOADED),
        (530, ErrorKind.TIMEOUT),
        (531, ErrorKind.GENERIC),
    ],
)
def test_the_kind_of_a_bare_status(ask: Ask, status: int, kind: ErrorKind) -> None:
    assert ask(status).error.kind is kind


def test_nothing_at_all_is_generic_and_final(ask: Ask) -> None:
    classified = ask()

    assert (classified.error.kind, classified.error.retryable) == (ErrorKind.GENERIC, False)
    assert classified.error.detail is None
    assert classified.hint is None
    assert classified.rule == "unknown"


def test_the_rule_and_what_it_saw_are_named(ask: Ask) -> None:
    classified = ask(429, {"error": {"code": "insufficient_quota", "message": "x"}})

    assert (classified.rule, classified.evidence) == ("spend, credit or plan", "insufficient_quota")


@pytest.mark.parametrize(
    ("status", "text", "kind"),
    [
        pytest.param(500, "upstream connection reset", ErrorKind.TIMEOUT, id="a network word explains a 500"),
        pytest.param(409, "conflict: lock timeout", ErrorKind.TIMEOUT, id="and a 409"),
        pytest.param(503, "idle timeout waiting for data", ErrorKind.TIMEOUT, id="a 503 is what it says"),
        pytest.param(501, "connection reset", ErrorKind.GENERIC, id="a 501 too"),
        pytest.param(410, "timeout", ErrorKind.CONFIG, id="and a 410"),
        pytest.param(400, "invalid value for timeout", ErrorKind.CONFIG, id="in a 400 it is a parameter"),
    ],
)
def test_network_words_under_a_status(ask: Ask, status: int, text: str, kind: ErrorKind) -> None:
    assert ask(status, {"error": {"message": text}}).error.kind is kind


def test_a_status_is_its_own_evidence(ask: Ask) -> None:
    classified = ask(503)

    assert (classified.rule, classified.evidence) == ("status 503", "503")


def test_a_signal_is_its_own_evidence(ask: Ask) -> None:
    classified = ask(signal=Signal.STREAM_TRUNCATED)

    assert (classified.rule, classified.evidence) == ("signal stream_truncated", "stream_truncated")


def test_of_two_codes_the_higher_row_decides(ask: Ask) -> None:
    body = {"error": {"code": "insufficient_quota", "type": "provider_disabled", "message": "x"}}

    assert ask(400, body).error.kind is ErrorKind.PROVIDER_DISABLED


@pytest.mark.parametrize(
    ("code", "kind"),
    [
        ("upstream_rate_limited_by_x", ErrorKind.RATE_LIMIT),
        ("provider_overloaded", ErrorKind.OVERLOADED),
        ("daily_cost_limit_exceeded", ErrorKind.USAGE_LIMIT),
        ("terminal_quota_exhausted", ErrorKind.USAGE_LIMIT),
        ("gateway.invalid-api-key", ErrorKind.AUTH),
        ("MaxContextLengthReached", ErrorKind.CONTEXT_OVERFLOW),
        ("x_content_policy_y", ErrorKind.CONTENT_FILTER),
        ("upstream_model_not_found", ErrorKind.CONFIG),
        ("sanitizer_server_error", ErrorKind.GENERIC),
        ("billing_address", ErrorKind.GENERIC),
    ],
)
def test_a_code_that_nobody_listed_is_known_by_its_stem(ask: Ask, code: str, kind: ErrorKind) -> None:
    assert ask(400, {"error": {"code": code, "message": "x"}}).error.kind is kind
