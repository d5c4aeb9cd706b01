"""Faults of the Responses API, as the official `openai` package meets them."""

import json
import socket
import time
from collections.abc import Callable
from email.utils import parsedate_to_datetime
from typing import Any, TypeVar

import openai
import pytest
from openai.types.responses import ResponseStreamEvent

KEY = "sk-simulator"
DEADLINE_SECONDS = 10.0

T = TypeVar("T")
Script = Callable[..., str]
LastRequest = Callable[[], dict[str, Any]]


def until(look: Callable[[], T | None]) -> T:
    """Look until there is something to see."""
    deadline = time.monotonic() + DEADLINE_SECONDS
    while time.monotonic() < deadline:
        if seen := look():
            return seen
    raise AssertionError(f"nothing seen within {DEADLINE_SECONDS} s")


def stream(client: openai.OpenAI, text: str, **parameters: Any) -> list[ResponseStreamEvent]:
    with client.responses.create(model="m", input=text, stream=True, **parameters) as events:
        return list(events)


def raw_answer(url: str, text: str) -> bytes:
    """Return the bytes of an answer as far as they come; a reset raises."""
    host, port = url.removeprefix("http://").split(":")
    body = json.dumps({"model": "m", "input": text, "stream": True}).encode()
    head = (
        f"POST /v1/responses HTTP/1.1\r\nHost: {host}\r\nAuthorization: Bearer {KEY}\r\n"
        f"Connection: close\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    received = bytearray()
    with socket.create_connection((host, int(port)), timeout=DEADLINE_SECONDS) as connection:
        connection.sendall(head.encode() + body)
        while piece := connection.recv(65536):
            received += piece
    return bytes(received)


class TestFaults:
    @pytest.mark.parametrize(
        ("name", "error"),
        [
            pytest.param("rate-limited", openai.RateLimitError),
            pytest.param("quota", openai.RateLimitError),
            pytest.param("overloaded", openai.InternalServerError),
            pytest.param("server-error", openai.InternalServerError),
            pytest.param("bad-gateway", openai.InternalServerError),
            pytest.param("unauthorized", openai.AuthenticationError),
            pytest.param("context-overflow", openai.BadRequestError),
            pytest.param("cut", openai.APIConnectionError),
            pytest.param("reset", openai.APIConnectionError),
            pytest.param("error-event", openai.APIError),
            pytest.param("malformed", json.JSONDecodeError),
        ],
    )
    def test_a_fault_raises_what_the_package_raises_in_production(
        self, client: openai.OpenAI, name: str, error: type[Exception]
    ) -> None:
        with pytest.raises(error):
            stream(client, f"Tell me of rivers sim:{name}")

    @pytest.mark.parametrize(
        ("name", "last"),
        [
            pytest.param("unfinished", "response.output_item.done"),
            pytest.param("failed", "response.failed"),
            pytest.param("truncated", "response.incomplete"),
            pytest.param("content-filter", "response.incomplete"),
            pytest.param("empty", "response.completed"),
        ],
    )
    def test_some_faults_the_package_leaves_to_its_caller(
        self, client: openai.OpenAI, name: str, last: str
    ) -> None:
        assert stream(client, f"Tell me of rivers sim:{name}")[-1].type == last

    def test_a_web_page_under_200_holds_no_event(self, client: openai.OpenAI) -> None:
        assert stream(client, "Tell me of rivers sim:html") == []

    @pytest.mark.parametrize("name", ["drip", "reasoning", "search", "tool"])
    def test_an_odd_answer_is_still_an_answer(self, client: openai.OpenAI, name: str) -> None:
        assert stream(client, f"Tell me of rivers sim:{name}")[-1].type == "response.completed"

    def test_a_script_is_over_after_its_last_step(self, client: openai.OpenAI) -> None:
        said = "Tell me of seas sim:flaky"
        for error in (openai.InternalServerError, openai.APIConnectionError, openai.APIConnectionError):
            with pytest.raises(error):
                stream(client, said, extra_headers={"X-Client-Request-Id": "turn-flaky/1"})

        assert stream(client, said, extra_headers={"X-Client-Request-Id": "turn-flaky/4"})[-1].type == (
            "response.completed"
        )

    def test_a_cut_is_a_fin_without_the_last_chunk(self, url: str, script: Script) -> None:
        received = raw_answer(url, script({"type": "cut", "at": 3}))

        assert received.count(b"event: response.output_text.delta") == 3
        assert not received.endswith(b"0\r\n\r\n")

    def test_a_clean_end_has_the_last_chunk(self, url: str, script: Script) -> None:
        received = raw_answer(url, script({"type": "end", "at": 3}))

        assert received.count(b"event: response.output_text.delta") == 3
        assert received.endswith(b"0\r\n\r\n")

    @pytest.mark.parametrize("at", ["before_headers", "before_first_event", 3])
    def test_a_reset_is_a_reset(self, url: str, script: Script, at: str | int) -> None:
        said = script({"type": "reset", "at": at})

        with pytest.raises(ConnectionResetError):
            raw_answer(url, said)

    def test_what_was_sent_before_a_reset_arrives(self, client: openai.OpenAI, script: Script) -> None:
        said = script({"type": "reset", "at": 3, "chunk_delay_ms": 20})
        seen: list[str] = []

        def read() -> None:
            with client.responses.create(model="m", input=said, stream=True) as events:
                seen.extend(event.type for event in events)

        with pytest.raises(openai.APIConnectionError):
            read()

        assert seen.count("response.output_text.delta") >= 2

    @pytest.mark.parametrize("at", ["before_headers", "before_first_event", 2])
    def test_a_stall_ends_in_the_clients_timeout_and_is_logged_as_a_hang_up(
        self, client: openai.OpenAI, last_request: LastRequest, script: Script, at: str | int
    ) -> None:
        said = script({"type": "stall", "at": at})

        with pytest.raises(openai.APITimeoutError):
            stream(client.with_options(timeout=0.2), said)

        entry = until(lambda: last_request() if last_request()["ended_at"] else None)
        assert (entry["step"], entry["outcome"]) == ("stall", "client_disconnected")

    def test_a_short_stall_is_a_delay(self, client: openai.OpenAI, script: Script) -> None:
        said = script({"type": "stall", "at": 2, "seconds": 0.2})
        began = time.monotonic()

        assert stream(client, said)[-1].type == "response.completed"

        assert time.monotonic() - began >= 0.2

    def test_retry_after_comes_as_seconds_and_as_a_date(self, client: openai.OpenAI, script: Script) -> None:
        said = script(
            {"type": "status", "status": 429, "headers": {"Retry-After": "2"}},
            {"type": "status", "status": 503, "retry_after_date_seconds": 5},
        )

        with pytest.raises(openai.RateLimitError) as limited:
            stream(client, said)
        with pytest.raises(openai.InternalServerError) as overloaded:
            stream(client, said)

        assert limited.value.response.headers["retry-after"] == "2"
        headers = overloaded.value.response.headers
        ahead = parsedate_to_datetime(headers["retry-after"]) - parsedate_to_datetime(headers["date"])
        assert 5 <= ahead.total_seconds() <= 6
