"""Whatever comes: an answer, soon, and without secrets."""

import json
import time
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from turnkeeper.errors import ErrorKind
from turnkeeper_worker.failures import (
    Classified,
    ExceptionFact,
    Failure,
    Http2Reset,
    Phase,
    Signal,
    classify,
    describe,
)

NOW = datetime(2026, 3, 1, 12, 0, tzinfo=UTC)

SENTENCES = st.sampled_from(
    [
        "Rate limit reached for gpt-5 on tokens per min (TPM): Limit 30000, Used 1, Requested 31000. Retry in 9s.",
        "Previous response with id 'resp_1' not found.",
        "prompt is too long: 2 tokens > 1 maximum",
        "You exceeded your current quota, please check your plan and billing details.",
        "stream error: stream ID 401; INTERNAL_ERROR; received from peer",
        "<StreamReset stream_id:67, error_code:2, remote_reset:True>",
        "Error code: 400 - {'error': {'message': \"It's 'x'\", 'code': None}}",
        'POST "https://u:p@h/v1?k=v": 400 Bad Request {"message": "no"}',
        "<html><head><title>502 Bad Gateway</title></head></html>",
        "error code: 522",
        "context canceled",
        "overloaded",
    ]
)
NOISE = st.text(st.characters(codec="utf-8"), max_size=40) | st.text("{}[]\"'\\:,<>=. \n0129aA_", max_size=60)
TEXTS = st.one_of(SENTENCES, NOISE, st.tuples(NOISE, SENTENCES, NOISE).map("".join))
KEYS = st.sampled_from(
    [
        "error",
        "errors",
        "message",
        "code",
        "type",
        "status",
        "detail",
        "details",
        "metadata",
        "raw",
        "reason",
        "response",
        "retryDelay",
        "retry_after",
        "resets_at",
        "headers",
        "finish_reason",
        "choices",
        "innererror",
        "loc",
        "msg",
        "retryable",
        "originalStatusCode",
        "quotaId",
        "xException",
        "incomplete_details",
        "request_id",
    ]
)
SCALARS = st.one_of(
    TEXTS,
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.sampled_from([400, 429, 503, "429", "rate_limit_error"]),
)
OBJECTS = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS | NOISE | st.integers(), inner, max_size=5),
    max_leaves=20,
)
JSON_TEXTS = OBJECTS.map(json.dumps)


def damaged(text: str, cut: int) -> str:
    return text[: len(text) - cut % (len(text) + 1)]


BODIES = st.one_of(
    OBJECTS,
    JSON_TEXTS,
    OBJECTS.map(repr),
    st.builds(damaged, JSON_TEXTS | OBJECTS.map(repr), st.integers(0, 200)),
    JSON_TEXTS.map(lambda text: f"event: error\ndata: {text}\n\ndata: [DONE]\n\n"),
    JSON_TEXTS.map(lambda text: json.dumps({"error": {"message": text}})),
    JSON_TEXTS.map(str.encode),
    st.binary(max_size=200),
    TEXTS,
)
DATES = st.from_regex(
    r"(Mon|Fri), \d{1,3} (Jan|Nov|Foo) \d{1,22} \d{1,3}:\d\d:\d\d (GMT|[+-]\d{4,6})", fullmatch=True
)
NUMBERS = (
    st.floats().map(str) | st.integers().map(str) | st.from_regex(r"[-+.\d_e]{1,25}(ms|s|m|h)?", fullmatch=True)
)
HEADERS = st.dictionaries(
    st.sampled_from(
        [
            "Retry-After",
            "retry-after-ms",
            "date",
            "x-should-retry",
            "x-ratelimit-remaining-tokens",
            "x-ratelimit-reset-tokens",
            "x-ratelimit-reset",
            "anthropic-ratelimit-unified-status",
            "anthropic-ratelimit-unified-reset",
            "x-request-id",
            "x-codex-primary-used-percent",
            "x-codex-primary-reset-after-seconds",
        ]
    ),
    DATES | NUMBERS | NOISE | st.sampled_from(["0", "true", "false", "rejected", "100"]),
    max_size=6,
)
CLASSES = (
    st.sampled_from(["httpx.ReadError", "openai.RateLimitError", "builtins.KeyError", "a.b.C", "", "."]) | NOISE
)
EXCEPTIONS = st.lists(
    st.builds(ExceptionFact, names=st.lists(CLASSES, max_size=3).map(tuple), text=TEXTS), max_size=4
).map(tuple)
FAILURES = st.builds(
    Failure,
    provider=st.none() | st.sampled_from(["openai", "gemini", "unknown"]) | NOISE,
    phase=st.none() | st.sampled_from(Phase),
    signal=st.none() | st.sampled_from(Signal),
    status=st.none() | st.sampled_from([200, 400, 404, 429, 500, 529]) | st.integers(-1, 1_000),
    headers=HEADERS,
    body=BODIES,
    exceptions=EXCEPTIONS,
    chained=st.booleans(),
    visible=st.booleans(),
    h2=st.none()
    | st.builds(Http2Reset, code=st.none() | st.integers(-1, 20), from_peer=st.none() | st.booleans()),
)
FINAL = frozenset(
    {
        ErrorKind.AUTH,
        ErrorKind.CONFIG,
        ErrorKind.CONTEXT_OVERFLOW,
        ErrorKind.USAGE_LIMIT,
        ErrorKind.MISSING_KEY,
        ErrorKind.PROVIDER_DISABLED,
        ErrorKind.CONTENT_FILTER,
    }
)
MANY = settings(
    max_examples=400, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large]
)


@MANY
@given(FAILURES)
def test_any_failure_has_an_answer_that_keeps_the_rules(failure: Failure) -> None:
    classified = classify(failure, now=NOW)

    error = classified.error
    assert error.message
    assert classified.rule
    assert error.detail is None or 0 < len(error.detail) <= 500
    assert error.detail is None or "\n" not in error.detail
    assert error.status_code is None or 400 <= error.status_code < 600
    assert not (error.kind in FINAL and error.retryable)
    assert classified.hint is None or timedelta(0) < classified.hint.wait <= timedelta(days=366)
    assert not classified.chain_broken or (failure.chained and error.retryable)


@MANY
@given(FAILURES)
def test_the_same_facts_have_the_same_answer(failure: Failure) -> None:
    assert classify(failure, now=NOW) == classify(failure, now=NOW)


SECRETS = st.builds(
    "".join,
    st.tuples(
        st.sampled_from(
            ["sk-", "sk-ant-api03-", "AIza", "gsk_", "xai-", "Bearer ", "password=", "https://me:", "api_key: "]
        ),
        st.text("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789", min_size=20, max_size=50),
    ),
)


@MANY
@given(
    secret=SECRETS,
    sentence=TEXTS,
    place=st.sampled_from(
        ["message", "code", "type", "request_id", "detail", "raw", "quotaId", "finish_reason", "x-request-id"]
    ),
    as_text=st.booleans(),
)
def test_no_secret_comes_out(secret: str, sentence: str, place: str, as_text: bool) -> None:
    key = (
        secret.rsplit("-", maxsplit=1)[-1]
        .rsplit(" ", maxsplit=1)[-1]
        .rsplit("=", maxsplit=1)[-1]
        .rsplit(":", maxsplit=1)[-1]
        .removeprefix("AIza")
        .removeprefix("gsk_")
    )
    assume(key not in sentence)
    said = f"{sentence} {secret}@host/path " if "://" in secret else f"{sentence} {secret} "
    body: Any = {"error": {"message": sentence, place: said}}
    failure = Failure(
        status=400,
        headers={"x-request-id": said} if place.startswith("x-") else {},
        body=json.dumps(body) if as_text else body,
        exceptions=(ExceptionFact(names=("a.B",), text=said),),
    )

    assert key not in str(classify(failure, now=NOW))


@pytest.mark.parametrize("chained", [False, True])
@given(
    exc=st.recursive(
        st.builds(ValueError, TEXTS) | st.builds(OSError, st.integers(0, 200), TEXTS) | st.builds(TimeoutError),
        lambda inner: (
            st.builds(lambda a, b: _caused(RuntimeError(str(a)), b), inner, inner)
            | st.builds(lambda some: ExceptionGroup("group", some), st.lists(inner, min_size=1, max_size=3))
        ),
        max_leaves=6,
    )
)
def test_any_tree_of_exceptions_has_an_answer(exc: Exception, chained: bool) -> None:
    assert classify(Failure(exceptions=describe(exc), chained=chained), now=NOW).error.message


def _caused(outer: Exception, inner: Exception) -> Exception:
    outer.__cause__ = inner
    return outer


SIZE = 65_000
HOSTILE = [
    '{"a":',
    "{'a':",
    "[{",
    "[",
    "{",
    '"',
    '\\"',
    'data: {"error":\n',
    "event: error\n",
    "<html>",
    "<",
    'message:"',
    "https://",
    "http://a@",
    "a@",
    "Bearer ",
    "sk-",
    "eyJa.",
    "api key ",
    "password=",
    "=",
    "Limit 9 Requested 10 ",
    "try again in 1s",
    "1m",
    "eof ",
    "model ",
    "status ",
    "429 ",
    "_a",
    "a_",
    "aError",
    "per day ",
    "-----BEGIN A",
    "\x00",
    "é",
    "\\",
    "call_1",
    "x-amz-a",
    "again 2026-01-01 ",
    "stream error ",
    "' ",
    "{'x':1} ",
    '{"error": "x"} ',
    "{'error': 'x'} ",
    ".",
    "/",
    "basic:",
]


def fastest(failure: Failure) -> float:
    def once() -> float:
        # The thread's own time: a busy machine is no fault of the classifier.
        started = time.thread_time()
        classify(failure, now=NOW)
        return time.thread_time() - started

    return min(once() for _ in range(5))


@pytest.mark.parametrize("seed", HOSTILE)
def test_hostile_repetition_costs_at_most_five_milliseconds(seed: str) -> None:
    text = seed * (SIZE // len(seed))
    nested = json.dumps({"error": {"message": text}})

    costs = [
        fastest(Failure(status=429, body=text)),
        fastest(Failure(status=400, body=nested[:SIZE])),
        fastest(Failure(exceptions=(ExceptionFact(names=(), text=f"x {text}"),))),
    ]

    assert max(costs) < 0.005


def test_a_deep_object_is_no_trouble() -> None:
    body: object = "overloaded and deep"
    for _ in range(5_000):
        body = {"error": body}

    assert classify(Failure(body=body), now=NOW).error.kind is ErrorKind.GENERIC


def test_a_wide_object_is_no_trouble() -> None:
    body = {"errors": [{"message": f"no {n}"} for n in range(100_000)], "choices": [{}] * 100_000}

    assert fastest(Failure(status=500, body=body)) < 0.005


def test_the_answer_is_a_value() -> None:
    classified = classify(Failure(status=429, headers={"retry-after": "3"}), now=NOW)

    assert isinstance(classified, Classified)
    assert classified.error.kind is ErrorKind.RATE_LIMIT
