"""The rate limit: how many requests a key may make of a model, and how each API tells of it."""

from collections.abc import Callable, Iterator
from datetime import datetime
from typing import Any

import anthropic
import httpx
import openai
import pytest

Requests = Callable[..., list[dict[str, Any]]]
BURST = 3
SLOW = {"requests_per_second": 0.1, "burst": BURST}


@pytest.fixture(autouse=True)
def _unlimited_afterwards(control: httpx.Client) -> Iterator[None]:
    yield
    control.delete("/limit").raise_for_status()


def limit(control: httpx.Client, **settings: Any) -> None:
    control.put("/limit", json=SLOW | settings).raise_for_status()


def ask(client: openai.OpenAI, model: str = "m") -> httpx.Headers:
    return client.responses.with_raw_response.create(model=model, input="Hello").headers


def test_a_burst_is_let_through_and_the_next_request_is_refused_and_countable(
    control: httpx.Client, client: openai.OpenAI, requests: Requests
) -> None:
    limit(control)
    before = requests()[-1]["number"] if requests() else 0

    for _ in range(BURST):
        ask(client)
    with pytest.raises(openai.RateLimitError) as refused:
        ask(client)

    assert refused.value.code == "rate_limit_exceeded"
    assert [entry["status"] for entry in requests(after=before)] == [*[200] * BURST, 429]
    assert requests(after=before)[-1]["outcome"] == "rate_limited"


def test_openai_tells_what_is_left_with_successes_and_refusals_alike(
    control: httpx.Client, client: openai.OpenAI
) -> None:
    limit(control)

    told = [ask(client) for _ in range(BURST)]
    with pytest.raises(openai.RateLimitError) as refused:
        ask(client)

    assert [headers["x-ratelimit-remaining-requests"] for headers in told] == ["2", "1", "0"]
    assert {headers["x-ratelimit-limit-requests"] for headers in told} == {"3"}
    assert told[0]["x-ratelimit-reset-requests"] == "10s"
    assert "retry-after" not in told[0]
    headers = refused.value.response.headers
    assert headers["x-ratelimit-remaining-requests"] == "0"
    assert 8 <= int(headers["retry-after"]) <= 10
    assert 8000 <= int(headers["retry-after-ms"]) <= 10_000


def test_anthropic_tells_it_in_its_own_words(control: httpx.Client, claude: anthropic.Anthropic) -> None:
    limit(control, burst=1)

    def ask_claude() -> httpx.Headers:
        return claude.messages.with_raw_response.create(
            model="m", max_tokens=10, messages=[{"role": "user", "content": "Hello"}]
        ).headers

    headers = ask_claude()
    with pytest.raises(anthropic.RateLimitError) as refused:
        ask_claude()

    name = "anthropic-ratelimit-requests"
    assert (headers[f"{name}-limit"], headers[f"{name}-remaining"]) == ("1", "0")
    reset = datetime.fromisoformat(headers[f"{name}-reset"])
    assert 8 <= (reset - datetime.now().astimezone()).total_seconds() <= 11
    assert 8 <= int(refused.value.response.headers["retry-after"]) <= 10


def test_each_key_and_each_model_has_a_bucket_of_its_own(
    control: httpx.Client, client: openai.OpenAI, second_client: openai.OpenAI
) -> None:
    limit(control, burst=1)

    ask(client)
    ask(client, model="another")
    ask(second_client)

    with pytest.raises(openai.RateLimitError):
        ask(client)


def test_without_headers_nothing_is_told(control: httpx.Client, client: openai.OpenAI) -> None:
    limit(control, burst=1, headers=False)

    headers = ask(client)
    with pytest.raises(openai.RateLimitError) as refused:
        ask(client)

    told = {*headers, *refused.value.response.headers}
    assert not {name for name in told if "ratelimit" in name or "retry" in name}


@pytest.mark.parametrize("wrong", [{}, {"requests_per_second": 0}, {"requests_per_second": 1, "burst": "x"}])
def test_a_limit_that_is_none_is_refused_in_one_sentence(control: httpx.Client, wrong: dict[str, Any]) -> None:
    refused = control.put("/limit", json=wrong)

    assert refused.status_code == 422
    assert refused.json()["error"].startswith("the limit is not valid: ")
