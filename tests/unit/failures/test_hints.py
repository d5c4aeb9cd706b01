"""The wait that a failure asks for."""

# ruff: noqa: E501 - a row of a table is a line, whatever a provider had to say

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from turnkeeper_worker.failures import Classified, hints

Ask = Callable[..., Classified]

NOW = datetime(2026, 3, 1, 12, 0, tzinfo=UTC)  # as in conftest.py
DATE = "Fri, 21 Nov 2025 18:00:00 GMT"


def asked(classified: Classified) -> tuple[float, str] | None:
    return (classified.hint.wait.total_seconds(), classified.hint.source) if classified.hint else None


@pytest.mark.parametrize(
    ("headers", "hint"),
    [
        pytest.param({"retry-after": "30"}, (30, "retry-after"), id="seconds"),
        pytest.param({"Retry-After": "1.5"}, (1.5, "retry-after"), id="any case, fractions"),
        pytest.param({"retry-after": " 7 "}, (7, "retry-after"), id="space around"),
        pytest.param({"retry-after": "30s"}, (30, "retry-after"), id="a unit that should not be there"),
        pytest.param({"retry-after-ms": "1874", "retry-after": "9"}, (1.874, "retry-after-ms"), id="milliseconds first"),
        pytest.param({"x-ms-retry-after-ms": "250"}, (0.25, "x-ms-retry-after-ms"), id="Azure's milliseconds"),
        pytest.param({"retry-after-ms": "soon", "retry-after": "7"}, (7, "retry-after"), id="garbage falls through"),
        pytest.param({"retry-after-ms": "0", "retry-after": "7"}, (7, "retry-after"), id="zero falls through"),
        pytest.param({"date": DATE, "retry-after": "Fri, 21 Nov 2025 18:00:30 GMT"}, (30, "retry-after"), id="a date from the response's Date"),
        pytest.param({"retry-after": "Sun, 01 Mar 2026 12:01:00 GMT"}, (60, "retry-after"), id="a date from our clock"),
        pytest.param({"retry-after": "Sunday, 01-Mar-26 12:01:00 GMT"}, (60, "retry-after"), id="RFC 850's form"),
        pytest.param({"retry-after": "Sun Mar  1 12:01:00 2026"}, (60, "retry-after"), id="asctime's form"),
        pytest.param({"retry-after": "Sun, 01 Mar 2026 12:01:00 -0000"}, (60, "retry-after"), id="a zone that nobody knows"),
        pytest.param({"date": "nonsense", "retry-after": "Sun, 01 Mar 2026 12:01:00 GMT"}, (60, "retry-after"), id="a Date that is none"),
        pytest.param({"date": "Sun, 01 Mar 2026 13:00:00 +0100", "retry-after": "Sun, 01 Mar 2026 12:01:00 GMT"}, (60, "retry-after"), id="a Date of another zone"),
        pytest.param({"retry-after": "31622400"}, (31622400, "retry-after"), id="a year"),
        pytest.param({"retry-after": "31622401"}, None, id="more than a year"),
        pytest.param({"date": DATE, "retry-after": "Fri, 21 Nov 2025 17:59:00 GMT"}, None, id="a date that has passed"),
        pytest.param({"date": DATE, "retry-after": DATE}, None, id="this very moment"),
        *(
            pytest.param({"retry-after": garbage}, None, id=f"garbage: {garbage[:20]!r} of {len(garbage)}")
            for garbage in (
                "0", "-5", "0.0", "nan", "inf", "-inf", "1e3", "1_000", "0x10", "٣", "", " ", "soon", "9" * 20, "9" * 400,
                "Fri, 21 Nov 99999999999999999999 18:00:00 GMT", "Fri, 99 Nov 2025 18:00:00 GMT", "Nov", "s", "5 s later",
                "Fri, 21 Nov 2025 18:00:00 +9999", "true", "None", "[30]",
            )
        ),
    ],
)  # fmt: skip
def test_headers_that_ask(ask: Ask, headers: dict[str, str], hint: tuple[float, str] | None) -> None:
    assert asked(ask(429, headers=headers)) == hint


@pytest.mark.parametrize("status", [400, 401, 403, 500, 503, 529, None])
def test_retry_after_counts_under_any_status(ask: Ask, status: int | None) -> None:
    assert asked(ask(status, headers={"retry-after": "60"})) == (60, "retry-after")


EPOCH = int(NOW.timestamp())


@pytest.mark.parametrize(
    ("headers", "hint"),
    [
        pytest.param({"x-ratelimit-remaining-requests": "0", "x-ratelimit-reset-requests": "120ms"}, (0.12, "x-ratelimit-reset-requests"), id="a Go duration"),
        pytest.param({"x-ratelimit-remaining-tokens": "0", "x-ratelimit-reset-tokens": "7m12.5s"}, (432.5, "x-ratelimit-reset-tokens"), id="minutes and seconds"),
        pytest.param({"x-ratelimit-remaining-tokens": "5", "x-ratelimit-reset-tokens": "1s"}, None, id="a bucket that is not empty"),
        pytest.param({"x-ratelimit-reset-tokens": "1s"}, None, id="a bucket of which nothing is known"),
        pytest.param({"x-ratelimit-remaining-requests": "0", "x-ratelimit-reset-requests": "1s", "x-ratelimit-remaining-tokens": "0", "x-ratelimit-reset-tokens": "6s"}, (6, "x-ratelimit-reset-tokens"), id="of two empty buckets the slower"),
        pytest.param({"x-ratelimit-remaining-requests": "0", "x-ratelimit-reset-requests": "9s", "x-ratelimit-remaining-tokens": "0", "x-ratelimit-reset-tokens": "6s"}, (9, "x-ratelimit-reset-requests"), id="whichever that is"),
        pytest.param({"anthropic-ratelimit-input-tokens-remaining": "0", "anthropic-ratelimit-input-tokens-reset": "2026-03-01T12:00:45Z"}, (45, "anthropic-ratelimit-input-tokens-reset"), id="an RFC 3339 moment"),
        pytest.param({"anthropic-ratelimit-unified-status": "rejected", "anthropic-ratelimit-unified-reset": str(EPOCH + 90)}, (90, "anthropic-ratelimit-unified-reset"), id="a plan's reset in epoch seconds"),
        pytest.param({"anthropic-ratelimit-unified-status": "allowed", "anthropic-ratelimit-unified-reset": str(EPOCH + 90)}, None, id="a plan that still allows"),
        pytest.param({"x-ratelimit-remaining": "0", "x-ratelimit-reset": str((EPOCH + 30) * 1000)}, (30, "x-ratelimit-reset"), id="epoch milliseconds"),
        pytest.param({"x-ratelimit-reset": str(EPOCH + 30)}, (30, "x-ratelimit-reset"), id="a lone reset"),
        pytest.param({"x-ratelimit-remaining": "3", "x-ratelimit-reset": str(EPOCH + 30)}, None, id="a reset of a bucket with room"),
        pytest.param({"x-codex-primary-reset-after-seconds": "5"}, None, id="a window of which nothing is known"),
        pytest.param({"x-ratelimit-remaining-requests": "0", "x-ratelimit-reset-requests": "6s", "x-ratelimit-remaining-tokens": "0", "x-ratelimit-reset-tokens": "later"}, (6, "x-ratelimit-reset-requests"), id="of two empty buckets the one that can be read"),
        pytest.param({"ratelimit-remaining": "0", "ratelimit-reset": "12"}, (12, "ratelimit-reset"), id="the IETF's names"),
        pytest.param({"x-codex-primary-used-percent": "100", "x-codex-primary-reset-after-seconds": "471285"}, (471285, "x-codex-primary-reset-after-seconds"), id="a plan's window"),
        pytest.param({"x-codex-primary-used-percent": "80", "x-codex-primary-reset-after-seconds": "471285"}, None, id="a window that is not used up"),
        pytest.param({"x-ratelimit-remaining": "0", "x-ratelimit-reset": str(EPOCH - 5)}, None, id="a reset that has passed"),
        pytest.param({"x-ratelimit-remaining": "0", "x-ratelimit-reset": "9" * 15}, None, id="a reset in another age"),
        pytest.param({"x-ratelimit-remaining": "0", "x-ratelimit-reset": "later"}, None, id="garbage"),
        pytest.param({"x-ratelimit-remaining-tokens": "0", "x-ratelimit-reset-tokens": "9s", "retry-after": "2"}, (2, "retry-after"), id="what is asked for comes first"),
    ],
)  # fmt: skip
def test_buckets(ask: Ask, headers: dict[str, str], hint: tuple[float, str] | None) -> None:
    assert asked(ask(429, headers=headers)) == hint


def test_a_bucket_is_information_where_nobody_is_throttled(ask: Ask) -> None:
    headers = {"x-ratelimit-remaining-tokens": "0", "x-ratelimit-reset-tokens": "9s"}

    assert asked(ask(500, headers=headers)) is None
    assert asked(ask(503, headers=headers)) == (9, "x-ratelimit-reset-tokens")


@pytest.mark.parametrize(
    ("fields", "hint"),
    [
        pytest.param({"retry_after": 30}, (30, "retry_after"), id="seconds"),
        pytest.param({"retry_after": "30"}, (30, "retry_after"), id="seconds as text"),
        pytest.param({"retryAfter": 1.5}, (1.5, "retryAfter"), id="a fraction"),
        pytest.param({"retry_after_ms": 250}, (0.25, "retry_after_ms"), id="milliseconds"),
        pytest.param({"resets_in_seconds": 13872}, (13872, "resets_in_seconds"), id="a plan's window"),
        pytest.param({"resets_at": EPOCH + 60}, (60, "resets_at"), id="an epoch"),
        pytest.param({"resets_at": "2026-03-01T12:00:10+00:00"}, (10, "resets_at"), id="a moment"),
        pytest.param({"estimated_time": 20.0}, (20, "estimated_time"), id="the time that loading takes"),
        pytest.param({"details": [{"retryDelay": "26s"}]}, (26, "RetryInfo"), id="RetryInfo"),
        pytest.param({"details": [{"retryDelay": "26.123456789s"}]}, (26.123457, "RetryInfo"), id="RetryInfo with nanoseconds"),
        pytest.param({"details": [{"retryDelay": {"seconds": "26", "nanos": 5}}]}, (26, "RetryInfo"), id="RetryInfo as an object"),
        pytest.param({"details": [{"retryDelay": "0s"}]}, None, id="RetryInfo of nothing"),
        pytest.param({"metadata": {"headers": {"X-RateLimit-Remaining": "0", "X-RateLimit-Reset": str((EPOCH + 5) * 1000)}}}, (5, "x-ratelimit-reset"), id="headers inside the body"),
        pytest.param({"headers": {"Retry-After": "4"}}, (4, "retry-after"), id="an event's headers"),
        pytest.param({"retry_after": True}, None, id="a boolean"),
        pytest.param({"retry_after": None}, None, id="null"),
        pytest.param({"retry_after": [30]}, None, id="a list"),
        pytest.param({"retry_after": -1}, None, id="a negative"),
        pytest.param({"retry_after": float("nan")}, None, id="NaN"),
        pytest.param({"retry_after": float("inf")}, None, id="infinity"),
        pytest.param({"retry_after": 10**30}, None, id="an age"),
        pytest.param({"resets_at": 10**30}, None, id="a moment in another age"),
        pytest.param({"retry_after": 10**5_000}, None, id="more digits than can be printed"),
        pytest.param({"resets_at": (EPOCH + 60) * 1000}, (60, "resets_at"), id="an epoch in milliseconds"),
        pytest.param({"headers": {"Retry-After": "Sun, 01 Mar 2026 12:00:05 GMT"}}, (5, "retry-after"), id="a date in an event's headers"),
    ],
)  # fmt: skip
def test_fields(ask: Ask, fields: dict[str, object], hint: tuple[float, str] | None) -> None:
    assert asked(ask(429, {"error": {"message": "slow", **fields}})) == hint


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("Please try again in 9.816s.", 9.816),
        ("Please try again in 120ms. Visit https://x", 0.12),
        ("Please try again in 7m12s.", 432),
        ("Please try again in 1h2m3.5s", 3723.5),
        ("or try again in 5 days 22 hours 11 minutes.", 511_860),
        ("Please retry after 20 seconds.", 20),
        ("retry after 86400 seconds", 86_400),
        ("Please retry in 38.9s.", 38.9),
        ("Try again in 60 seconds.", 60),
        ("Please wait 41938 seconds before retrying.", 41_938),
        ("wait for 1 minute", 60),
        ("please try again after 1 seconds", 1),
        ("Your quota will reset after 3h21m5s.", 12_065),
        ("resets in 2 hours, 5 minutes", 7_500),
        ("retry_after: 12s", 12),
        ("'Retry-After': '12 s'", 12),
        ("You will regain access on 2026-03-01 at 13:00 UTC.", 3_600),
        ("limit resets at 2026-03-01T12:00:30Z", 30),
        ("Retrying in 5 s", None),
        ("Please try again later.", None),
        ("Please retry in a few seconds", None),
        ("try again in 2 buckets", None),
        ("try again with 20s of audio", None),
        ("You will regain access on 2020-01-01 at 00:00 UTC.", None),
        ("You will regain access on 2026-99-99.", None),
    ],
)
def test_sentences(ask: Ask, text: str, seconds: float | None) -> None:
    classified = ask(429, {"error": {"message": f"Rate limit reached. {text}"}})

    assert asked(classified) == (None if seconds is None else (seconds, "text"))


@pytest.mark.parametrize("status", [400, 401, 403, 404, 422])
def test_a_sentence_of_a_refusal_is_advice_and_no_hint(ask: Ask, status: int) -> None:
    assert asked(ask(status, {"error": {"message": "Bad request (reset after 27s); retry in 15 minutes"}})) is None


@given(epoch=st.integers(0, 2**33), wait=st.integers(1, 86_400))
def test_a_date_is_measured_from_the_response_whatever_our_clock_says(epoch: int, wait: int) -> None:
    served = datetime.fromtimestamp(epoch, UTC)

    hint = hints.reset_after(format_datetime(served + timedelta(seconds=wait), usegmt=True), served)

    assert hint == timedelta(seconds=wait)


NUMBERS = st.one_of(
    st.integers().map(str), st.floats().map(str), st.from_regex(r"[+-]?[\d_.e]{1,30}", fullmatch=True)
)
DATES = st.from_regex(
    r"(Mon|Fri), ?\d{1,3} (Jan|Nov|Foo) \d{1,22} \d{1,3}:\d{1,3}(:\d{1,3})? ?(GMT|[+-]\d{4,5})?", fullmatch=True
)
DURATIONS = st.from_regex(r"(\d{1,12}(\.\d{1,12})? ?(ms|s|m|h|d|days?|years) ?,?){1,6}", fullmatch=True)


@given(NUMBERS | DATES | DURATIONS | st.text(max_size=30))
def test_no_wait_is_ever_made_of_garbage(text: str) -> None:
    for read in (hints.duration, hints.seconds):
        wait = read(text)
        assert wait is None or wait >= timedelta(0)
    hints.reset_after(text, NOW)


@pytest.mark.parametrize("unit", hints.UNITS)
def test_every_unit_counts_alone_and_in_the_plural(unit: str) -> None:
    expected = timedelta(seconds=2 * hints.UNITS[unit])

    assert hints.duration(f"2{unit}") == expected
    if f"{unit}s" not in hints.UNITS:  # more than one m is no ms
        assert hints.duration(f"2 {unit}s") == expected
