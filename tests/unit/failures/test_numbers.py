"""Numbers and windows that decide, and who says that a quota is exceeded."""

from collections.abc import Callable

import pytest

from turnkeeper.errors import ErrorKind
from turnkeeper_worker.failures import Classified

Ask = Callable[..., Classified]

RATE, CONTEXT, USAGE = ErrorKind.RATE_LIMIT, ErrorKind.CONTEXT_OVERFLOW, ErrorKind.USAGE_LIMIT


@pytest.mark.parametrize(
    ("numbers", "kind"),
    [
        pytest.param("Limit 30000, Requested 30001", CONTEXT, id="one more than the window"),
        pytest.param("Limit 30000, Requested 30000", RATE, id="exactly the window"),
        pytest.param("Limit 30000, Used 29999, Requested 2", RATE, id="it fits once the window drains"),
        pytest.param("Limit 9000, Used 0, Requested ~16008", CONTEXT, id="a tilde"),
        pytest.param("Limit: 9,000, Requested: 16,008", CONTEXT, id="colons and commas"),
        pytest.param("limit 9000 / requested 16008", CONTEXT, id="small letters"),
        pytest.param("Limit 30000", RATE, id="nothing was requested"),
        pytest.param("Requested 30000", RATE, id="no limit is named"),
        pytest.param("Limit 0, Used 0, Requested 1", USAGE, id="a limit of zero"),
        pytest.param("limit: 0, model: x", USAGE, id="a limit of zero without a request"),
        pytest.param("Limit 0.5, Requested 1", RATE, id="a fraction is no zero"),
        pytest.param("unlimited 10, Requested 20", RATE, id="not inside a word"),
    ],
)
def test_a_request_larger_than_its_window_never_fits(ask: Ask, numbers: str, kind: ErrorKind) -> None:
    classified = ask(429, {"error": {"message": f"Rate limit reached: {numbers}.", "code": "rate_limit_exceeded"}})

    assert classified.error.kind is kind


def test_a_zero_counts_only_where_something_is_throttled(ask: Ask) -> None:
    assert ask(400, {"error": {"message": "offset 1 with limit 0 makes no page"}}).error.kind is ErrorKind.GENERIC


def test_the_numbers_are_the_evidence(ask: Ask) -> None:
    too_large = ask(413, {"error": {"message": "Limit 6000, Requested 8000"}})
    nothing = ask(429, {"error": {"message": "Quota: limit: 0."}})
    a_day = ask(429, {"error": {"message": "limit of 100 requests per day"}})
    no_quota = ask(429, {"error": {"message": "x", "metadata": {"quota_limit_value": 0}}})

    assert (too_large.rule, too_large.evidence) == ("never fits", "Limit 6000, Requested 8000")
    assert (nothing.rule, nothing.evidence) == ("limit of zero", "limit: 0")
    assert (a_day.rule, a_day.evidence) == ("quota of a day or more", "per day")
    assert (no_quota.rule, no_quota.evidence) == ("quota of a day or more", "quota_limit_value: 0")


@pytest.mark.parametrize(
    ("status", "text", "kind"),
    [
        pytest.param(429, "limit of 100 requests per day exceeded", USAGE, id="per day"),
        pytest.param(429, "Rate limit reached on tokens per day (TPD): Limit 9, Used 9", USAGE, id="TPD"),
        pytest.param(429, "1000 API calls / month limit", USAGE, id="a month"),
        pytest.param(429, "quota exceeded for UserByModelByDay", USAGE, id="by day"),
        pytest.param(None, "quota exceeded: requests per day", USAGE, id="without a status"),
        pytest.param(403, "too many requests per day", USAGE, id="under 403"),
        pytest.param(429, "limit of 100 requests per minute exceeded", RATE, id="per minute"),
        pytest.param(429, "busy day, a limit applies", RATE, id="a day that is no window"),
        pytest.param(429, "once per day we slow down", RATE, id="a window of which nothing is limited"),
        pytest.param(500, "the limit per day job failed", ErrorKind.GENERIC, id="not under a server error"),
    ],
)
def test_a_day_is_too_long_to_wait_for(ask: Ask, status: int | None, text: str, kind: ErrorKind) -> None:
    assert ask(status, {"error": {"message": text}}).error.kind is kind


def quota(**fields: object) -> dict[str, object]:
    return {
        "error": {
            "message": "Quota.",
            "status": "RESOURCE_EXHAUSTED",
            "details": [{"violations": [fields]}, fields],
        }
    }


@pytest.mark.parametrize(
    ("fields", "kind"),
    [
        pytest.param({"quotaId": "GenerateRequestsPerDayPerProjectPerModel-FreeTier"}, USAGE, id="a day's quota"),
        pytest.param({"quota_id": "requests_per_day"}, USAGE, id="with underscores"),
        pytest.param({"quotaLimit": "TokensPerMonth"}, USAGE, id="a month's quota"),
        pytest.param({"metadata": {"quota_limit": "DailyRequests"}}, USAGE, id="in the metadata"),
        pytest.param(
            {"metadata": {"quota_limit": "PerMinute", "quota_limit_value": "0"}}, USAGE, id="a value of zero"
        ),
        pytest.param(
            {"metadata": {"quota_limit": "PerMinute", "quota_limit_value": 0}}, USAGE, id="a zero that is a number"
        ),
        pytest.param(
            {"metadata": {"quota_limit": "PerMinute", "quota_limit_value": "10"}}, RATE, id="a value above zero"
        ),
        pytest.param({"quotaId": "GenerateRequestsPerMinutePerProject"}, RATE, id="a minute's quota"),
        pytest.param({"quotaId": 7}, RATE, id="a name that is no text"),
        pytest.param({"metadata": "PerDay"}, RATE, id="metadata that is no object"),
    ],
)
def test_google_names_its_quotas(ask: Ask, fields: dict[str, object], kind: ErrorKind) -> None:
    assert ask(429, quota(**fields)).error.kind is kind


def test_of_two_quotas_the_longer_counts(ask: Ask) -> None:
    body = {
        "error": {
            "message": "Quota.",
            "details": [{"violations": [{"quotaId": "XPerMinute"}, {"quotaId": "XPerDay"}]}],
        }
    }

    classified = ask(429, body)

    assert classified.error.kind is USAGE
    assert (classified.rule, classified.evidence) == ("quota of a day or more", "XPerDay")


@pytest.mark.parametrize(
    ("status", "headers", "kind"),
    [
        pytest.param(
            429, {"anthropic-ratelimit-unified-status": "rejected"}, USAGE, id="Anthropic: a plan that rejects"
        ),
        pytest.param(
            429, {"anthropic-ratelimit-unified-status": "allowed"}, RATE, id="Anthropic: a plan that allows"
        ),
        pytest.param(429, {"x-codex-primary-used-percent": "100"}, USAGE, id="Codex: the first window"),
        pytest.param(429, {"x-codex-secondary-used-percent": "100.0"}, USAGE, id="Codex: the second window"),
        pytest.param(429, {"x-codex-primary-used-percent": "99"}, RATE, id="Codex: room in the window"),
        pytest.param(
            503,
            {"x-codex-primary-used-percent": "100"},
            ErrorKind.TIMEOUT,
            id="Codex: information under another status",
        ),
        pytest.param(
            500,
            {"anthropic-ratelimit-unified-status": "rejected"},
            ErrorKind.GENERIC,
            id="Anthropic: information under another status",
        ),
    ],
)
def test_plans_report_in_headers(ask: Ask, status: int, headers: dict[str, str], kind: ErrorKind) -> None:
    classified = ask(status, headers=headers)

    assert classified.error.kind is kind
    if kind is USAGE:
        assert classified.rule == "plan window"
        assert next(iter(headers)) in classified.evidence


SENTENCE = "You exceeded your current quota, please check your plan and billing details."


@pytest.mark.parametrize(
    ("provider", "said", "kind"),
    [
        pytest.param("openai", SENTENCE, USAGE, id="OpenAI means credit"),
        pytest.param("my-gateway", SENTENCE, USAGE, id="a gateway quotes OpenAI"),
        pytest.param("gemini", SENTENCE, RATE, id="Google means a minute"),
        pytest.param("Vertex", SENTENCE, RATE, id="Vertex too, in any case"),
        pytest.param("my-gateway", f"{SENTENCE} Quota metric x", RATE, id="Google's words through a gateway"),
        pytest.param("my-gateway", f"{SENTENCE} gemini-3-pro", RATE, id="Google's model through a gateway"),
        pytest.param("my-gateway", f"RESOURCE_EXHAUSTED: {SENTENCE}", RATE, id="Google's code through a gateway"),
        pytest.param("unknown", SENTENCE, RATE, id="nobody knows who speaks"),
        pytest.param(None, SENTENCE, RATE, id="no provider"),
    ],
)
def test_who_speaks_decides_what_an_exceeded_quota_is(
    ask: Ask, provider: str | None, said: str, kind: ErrorKind
) -> None:
    classified = ask(429, {"error": {"message": said}}, provider=provider)

    assert (classified.error.kind, classified.error.retryable) == (kind, kind is RATE)
    assert classified.evidence == "exceeded your current quota"
    assert classified.rule == ("quota of a minute" if kind is RATE else "spent credit")


@pytest.mark.parametrize("status", [None, 400, 403, 500])
def test_under_other_statuses_an_exceeded_quota_is_used_up(ask: Ask, status: int | None) -> None:
    assert ask(status, {"error": {"message": SENTENCE}}, provider="gemini").error.kind is USAGE
