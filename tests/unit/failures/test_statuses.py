"""Which numbers in a text are a status."""

import pytest

from turnkeeper_worker.failures.statuses import anchored_status


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
