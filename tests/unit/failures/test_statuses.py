"""Which numbers in a text are a status, and what a status alone says."""

from collections.abc import Callable

import pytest

from turnkeeper_worker.failures import Classified
from turnkeeper_worker.failures.statuses import anchored_status

Ask = Callable[..., Classified]


@pytest.mark.parametrize(
    ("text", "status"),
    [
        ("status 401 from upstream", 401),
        ("status code: 429", 429),
        ("status_code=503", 503),
        ("statusCode: 500", 500),
        ("Status: 401 (PermissionDenied)", 401),
        ("API error occurred: Status 429 Content-Type application/json", 429),
        ("HTTP 504: upstream", 504),
        ("HTTP code 522 from API", 522),
        ("HTTP/1.1 502 Bad Gateway", 502),
        ("HTTP/2 429", 429),
        ("http2: 401 unauthorized", 401),
        ("HTTP status client error (429 Too Many Requests) for url", 429),
        ("Error code: 400 - {'error': 1}", 400),
        ("error code: 522", 522),
        ("API Error: 529 {}", 529),
        ("[openai/gpt] [400]: no", None),
        ("(429) Too many", 429),
        ("402 Insufficient Balance", 402),
        ("404: nothing here", 404),
        ("503 UNAVAILABLE. {}", 503),
        ("Client error '404 Not Found' for url", 404),
        ('POST "https://x/y": 500 Internal Server Error', 500),
        ("429, message='Too Many Requests', url='x'", 429),
    ],
)
def test_a_status_has_an_anchor(text: str, status: int | None) -> None:
    assert anchored_status(text) == status


@pytest.mark.parametrize(
    "text",
    [
        "stream ID 401",
        "stream error: stream ID 503; INTERNAL_ERROR",
        "<StreamReset stream_id:429, error_code:2, remote_reset:True>",
        "<ConnectionTerminated error_code:0, last_stream_id:503>",
        "connect to 10.0.0.1:503 failed",
        "request id: 203ef408-4290-500",
        "(request id: 2025041723294785795971684173029)",
        "requested 503 tokens but only 10 remain",
        "503 tokens were asked for",
        "Limit 500, Used 429, Requested 401",
        "exit status 501",
        "error: 500ms passed",
        "<TransferEncodingError: 400, message='Not enough data'>",
        "400, message:\n  Not enough data for satisfy transfer length header.",
        "image of 400 x 500 pixels",
        "version 4.0.3, build 502",
        "code: 1011",
        "status 200",
        "status 600",
        "",
    ],
)
def test_a_number_without_an_anchor_is_no_status(text: str) -> None:
    assert anchored_status(text) is None


def test_a_status_far_into_a_text_is_not_looked_for() -> None:
    assert anchored_status("x" * 1_000 + " status 429") is None


@pytest.mark.parametrize(
    ("status", "kind", "retryable"),
    [
        pytest.param(401, "auth", False, id="401 is about the key"),
        pytest.param(402, "usage_limit", False, id="402 is about money"),
        pytest.param(403, "auth", False, id="403 is about the key"),
        pytest.param(405, "config", False, id="405 means a wrong address"),
        pytest.param(407, "config", False, id="407 means a proxy of ours"),
        pytest.param(408, "timeout", True, id="408 may pass"),
        pytest.param(409, "generic", True, id="409 may pass"),
        pytest.param(410, "config", False, id="410 means a model that is gone"),
        pytest.param(413, "context_overflow", False, id="413 means too much"),
        pytest.param(415, "config", False, id="415 means a wrong address"),
        pytest.param(418, "generic", False, id="an unknown 4xx stays"),
        pytest.param(424, "generic", True, id="424 is somebody else's failure"),
        pytest.param(425, "timeout", True, id="425 may pass"),
        pytest.param(429, "rate_limit", True, id="429 passes"),
        pytest.param(451, "content_filter", False, id="451 is about the law"),
        pytest.param(498, "overloaded", True, id="498 is Groq's lack of capacity"),
        pytest.param(499, "timeout", True, id="499 was not our doing"),
        pytest.param(500, "generic", True, id="500 may pass"),
        pytest.param(501, "generic", False, id="501 stays"),
        pytest.param(502, "timeout", True, id="502 may pass"),
        pytest.param(503, "timeout", True, id="503 may pass"),
        pytest.param(504, "timeout", True, id="504 may pass"),
        pytest.param(505, "generic", False, id="505 stays"),
        pytest.param(507, "generic", True, id="an unknown 5xx may pass"),
        pytest.param(520, "timeout", True, id="520 is the first of Cloudflare's edge"),
        pytest.param(530, "timeout", True, id="530 is the last"),
        pytest.param(529, "overloaded", True, id="529 is Anthropic's lack of capacity"),
    ],
)
def test_a_status_alone_decides(ask: Ask, status: int, kind: str, retryable: bool) -> None:
    error = ask(status).error

    assert (error.kind, error.retryable, error.status_code) == (kind, retryable, status)


EMPTY_BUCKET = {"x-ratelimit-remaining-requests": "0", "x-ratelimit-reset-requests": "7s"}


@pytest.mark.parametrize("status", [413, 429, 498, 503, 529])
def test_an_empty_bucket_explains_a_throttled_answer(ask: Ask, status: int) -> None:
    hint = ask(status, headers=EMPTY_BUCKET).hint

    assert hint is not None
    assert hint.wait.total_seconds() == 7


@pytest.mark.parametrize("status", [400, 408, 414, 500, 502, 504])
def test_an_empty_bucket_explains_nothing_else(ask: Ask, status: int) -> None:
    assert ask(status, headers=EMPTY_BUCKET).hint is None
