"""What the heads of responses tell about limits, in the notations of OpenAI and Anthropic."""

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from turnkeeper_worker.buckets import NOTHING, Bucket, read_limits

NOW = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
SECOND = timedelta(seconds=1)


def openai(limit: str, remaining: str, reset: str, unit: str = "requests") -> dict[str, str]:
    told = {"limit": limit, "remaining": remaining, "reset": reset}
    return {f"x-ratelimit-{name}-{unit}": value for name, value in told.items()}


def anthropic(limit: str, remaining: str, reset: str) -> dict[str, str]:
    told = {"limit": limit, "remaining": remaining, "reset": reset}
    return {f"anthropic-ratelimit-requests-{name}": value for name, value in told.items()}


def test_openai_tells_with_a_duration() -> None:
    bucket = read_limits(openai("500", "499", "120ms"), now=NOW).bucket

    assert bucket == Bucket(limit=500, remaining=499, reset=SECOND * 0.12, error=SECOND / 1000)


def test_anthropic_tells_with_a_moment_of_its_own_clock() -> None:
    headers = anthropic("50", "10", "2026-01-02T05:05:05Z") | {"date": "Fri, 02 Jan 2026 05:04:15 GMT"}

    assert read_limits(headers, now=NOW).bucket == Bucket(limit=50, remaining=10, reset=50 * SECOND, error=SECOND)


def test_a_moment_that_has_passed_is_a_full_bucket() -> None:
    bucket = read_limits(anthropic("50", "50", "2026-01-02T03:04:04Z"), now=NOW).bucket

    assert bucket is not None
    assert bucket.reset == timedelta(0)


def test_an_empty_bucket_of_tokens_keeps_everybody_until_it_has_filled() -> None:
    headers = openai("500", "499", "120ms") | openai("90000", "0", "7s", "tokens")

    limits = read_limits(headers, now=NOW)

    assert limits.empty_for == 7 * SECOND
    assert limits.bucket is not None


def test_an_empty_bucket_of_calls_is_mirrored_and_no_reason_to_rest() -> None:
    assert read_limits(openai("500", "0", "60s"), now=NOW).empty_for is None


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"content-type": "text/event-stream"},
        openai("0", "0", "1s"),
        openai("500", "-1", "1s"),
        openai("500", "many", "1s"),
        openai("500", "499", "soon"),
        openai("9" * 5000, "1", "1s"),
        {"x-ratelimit-limit-requests": "500"},
    ],
)
def test_what_makes_no_sense_is_not_told(headers: dict[str, str]) -> None:
    assert read_limits(headers, now=NOW) == NOTHING


@given(st.text(), st.text(), st.text())
def test_whatever_is_sent_nothing_raises_and_no_bucket_is_impossible(limit: str, left: str, reset: str) -> None:
    bucket = read_limits(openai(limit, left, reset), now=NOW).bucket

    assert bucket is None or (0 <= bucket.remaining <= bucket.limit and bucket.reset >= timedelta(0))
