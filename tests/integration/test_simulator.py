"""The simulator in a process of its own, driven by the official `openai` package, which finds nothing odd."""

import asyncio
import json
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Any, TypeVar

import httpx
import openai
import pytest
from openai.types.responses import Response, ResponseStreamEvent

KEY = "sk-simulator"
DEADLINE_SECONDS = 10.0

T = TypeVar("T")
Steps = list[dict[str, Any]]


@contextmanager
def process(*arguments: str) -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, "-m", "turnkeeper_ops.simulator", *arguments]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as child:
        try:
            yield child
        finally:
            child.kill()


def address(child: subprocess.Popen[str]) -> str:
    assert child.stdout is not None
    announced = re.fullmatch(r"listening on (http://127\.0\.0\.1:\d+)\n", child.stdout.readline())
    assert announced is not None
    return announced[1]


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with process("--chunk-delay-ms", "1") as child:
        yield address(child)


@pytest.fixture
def client(url: str) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(api_key=KEY, base_url=f"{url}/v1", max_retries=0, timeout=DEADLINE_SECONDS) as client:
        yield client


@pytest.fixture
def control(url: str) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=f"{url}/simulator") as control:
        yield control


@pytest.fixture
def script(control: httpx.Client) -> Callable[..., str]:
    """Return a function that registers steps and returns a message that asks for them."""

    def register(*steps: dict[str, Any], **rest: Any) -> str:
        control.put("/scripts/mine", json={"steps": steps, **rest}).raise_for_status()
        return "Tell me of rivers sim:mine"

    return register


def until(look: Callable[[], T | None]) -> T:
    """Look until there is something to see."""
    deadline = time.monotonic() + DEADLINE_SECONDS
    while time.monotonic() < deadline:
        if seen := look():
            return seen
    raise AssertionError(f"nothing seen within {DEADLINE_SECONDS} s")


def requests(control: httpx.Client, **query: Any) -> list[dict[str, Any]]:
    logged: list[dict[str, Any]] = control.get("/requests", params=query).json()["requests"]
    return logged


def last_request(control: httpx.Client) -> dict[str, Any]:
    return requests(control)[-1]


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


class TestAnswers:
    def test_a_stream_adds_up_to_its_final_response(self, client: openai.OpenAI) -> None:
        with client.responses.stream(model="m", input="Tell me of rivers") as events:
            seen = list(events)
            final = events.get_final_response()

        text = "".join(event.delta for event in seen if event.type == "response.output_text.delta")
        assert text == final.output_text == "I have read 1 user message. It says: “Tell me of rivers”."
        assert [event.sequence_number for event in seen] == list(range(len(seen)))
        assert final.usage is not None
        assert final.usage.total_tokens == final.usage.input_tokens + final.usage.output_tokens

    async def test_the_async_client_sees_the_same(self, url: str) -> None:
        async with (
            openai.AsyncOpenAI(api_key=KEY, base_url=f"{url}/v1", max_retries=0) as client,
            client.responses.stream(model="m", input="Hello") as events,
        ):
            final = await events.get_final_response()

        assert final.output_text == "I have read 1 user message. It says: “Hello”."

    def test_without_a_stream_the_response_comes_whole(self, client: openai.OpenAI) -> None:
        response = client.responses.create(model="m", input="Hello", metadata={"a": "b"}, temperature=0.5)

        assert response.output_text == "I have read 1 user message. It says: “Hello”."
        assert (response.status, response.metadata, response.temperature) == ("completed", {"a": "b"}, 0.5)

    def test_every_event_is_one_that_the_package_knows(
        self, client: openai.OpenAI, script: Callable[..., str]
    ) -> None:
        said = script(
            {
                "type": "answer",
                "text": "Hi",
                "reasoning": "Hm",
                "search": "rivers",
                "calls": [{"name": "get_weather", "arguments": {"city": "Oslo"}}],
            }
        )

        events = stream(client, said)

        assert {type(event).__name__ for event in events} > {
            "ResponseCreatedEvent",
            "ResponseFunctionCallArgumentsDeltaEvent",
            "ResponseReasoningSummaryTextDeltaEvent",
            "ResponseWebSearchCallSearchingEvent",
            "ResponseCompletedEvent",
        }
        # The package constructs without checking; strict validation is what a newer version would notice.
        for event in events:
            type(event).model_validate(event.to_dict())

    def test_models_are_listed(self, client: openai.OpenAI) -> None:
        assert [model.id for model in client.models.list()] == ["simulated-large", "simulated-small"]


class TestChains:
    def test_a_chained_request_is_answered_from_the_whole_conversation(self, client: openai.OpenAI) -> None:
        first = client.responses.create(model="m", input="My name is Ada")
        second = client.responses.create(model="m", input="Hm", previous_response_id=first.id)
        third = client.responses.create(model="m", input="Who am I?", previous_response_id=second.id)

        assert third.output_text == (
            "I have read 3 user messages. The first says: “My name is Ada”. The last says: “Who am I?”."
        )
        assert third.previous_response_id == second.id
        assert third.usage is not None
        assert 0 < third.usage.input_tokens_details.cached_tokens < third.usage.input_tokens

    def test_a_replay_of_the_output_is_taken_as_input(
        self, client: openai.OpenAI, script: Callable[..., str]
    ) -> None:
        said = script({"type": "answer", "reasoning": "Hm", "search": "rivers"})
        first = client.responses.create(model="m", input=said)
        replayed: Any = [
            {"role": "user", "content": said},
            *(item.to_dict() for item in first.output),
            {"role": "user", "content": "And now?"},
        ]

        assert "2 user messages" in client.responses.create(model="m", input=replayed).output_text

    def test_a_tool_call_and_its_output_make_a_second_step(
        self, client: openai.OpenAI, script: Callable[..., str]
    ) -> None:
        said = script({"type": "answer", "calls": [{"name": "get_weather", "call_id": "call_1"}]})
        first = client.responses.create(model="m", input=said)

        second = client.responses.create(
            model="m",
            input=[{"type": "function_call_output", "call_id": "call_1", "output": "sunny"}],
            previous_response_id=first.id,
        )

        assert first.output_text == ""
        assert second.output_text.endswith("A tool returned: “sunny”.")

    def test_a_stored_response_is_retrieved_and_deleted(self, client: openai.OpenAI) -> None:
        response = client.responses.create(model="m", input="Hello")

        assert client.responses.retrieve(response.id).to_dict() == response.to_dict()
        client.responses.delete(response.id)

        with pytest.raises(openai.NotFoundError):
            client.responses.retrieve(response.id)
        with pytest.raises(openai.NotFoundError):
            client.responses.delete(response.id)

    @pytest.mark.parametrize(
        "step",
        [
            pytest.param({"type": "cut"}, id="cut"),
            pytest.param({"type": "end"}, id="unfinished"),
            pytest.param({"type": "error_event"}, id="failed"),
        ],
    )
    def test_only_a_finished_answer_can_be_continued(
        self, client: openai.OpenAI, control: httpx.Client, script: Callable[..., str], step: dict[str, Any]
    ) -> None:
        with pytest.raises((openai.APIError, StopIteration)):
            next(e for e in stream(client, script(step)) if e.type == "response.completed")

        with pytest.raises(openai.BadRequestError) as caught:
            client.responses.create(
                model="m", input="x", previous_response_id=last_request(control)["response_id"]
            )

        assert caught.value.code == "previous_response_not_found"

    def test_what_is_not_stored_cannot_be_continued(self, client: openai.OpenAI) -> None:
        response = client.responses.create(model="m", input="Hello", store=False)

        with pytest.raises(openai.BadRequestError) as caught:
            client.responses.create(model="m", input="x", previous_response_id=response.id)

        assert (caught.value.code, caught.value.param) == (
            "previous_response_not_found",
            "previous_response_id",
        )

    def test_a_lost_anchor_takes_its_conversation_along_and_a_full_replay_heals(
        self, client: openai.OpenAI
    ) -> None:
        first = client.responses.create(model="m", input="My name is Ada")
        second = client.responses.create(model="m", input="Hm", previous_response_id=first.id)

        with pytest.raises(openai.BadRequestError) as caught:
            client.responses.create(model="m", input="Who am I? sim:lost-anchor", previous_response_id=second.id)

        assert caught.value.code == "previous_response_not_found"
        with pytest.raises(openai.NotFoundError):
            client.responses.retrieve(first.id)
        healed = client.responses.create(
            model="m",
            input=[
                {"role": "user", "content": "My name is Ada"},
                {"role": "user", "content": "Who am I? sim:lost-anchor"},
            ],
        )
        assert "My name is Ada" in healed.output_text

    @pytest.mark.parametrize(
        ("spelling", "error", "text"),
        [
            pytest.param("not_found", openai.BadRequestError, "Previous response with id", id="not found"),
            pytest.param("invalid", openai.BadRequestError, "Invalid `previous_response_id`.", id="invalid"),
            pytest.param("unsupported_detail", openai.BadRequestError, "Unsupported parameter", id="detail"),
            pytest.param("zero_retention", openai.BadRequestError, "Zero Data Retention", id="ZDR"),
            pytest.param("xai_not_found", openai.NotFoundError, "not found", id="xAI"),
            pytest.param("lm_studio", openai.BadRequestError, "Prediction history node", id="LM Studio"),
            pytest.param("item_not_persisted", openai.NotFoundError, "Items are not persisted", id="item"),
        ],
    )
    def test_a_lost_anchor_is_told_in_many_spellings(
        self,
        client: openai.OpenAI,
        script: Callable[..., str],
        spelling: str,
        error: type[openai.APIStatusError],
        text: str,
    ) -> None:
        said = script({"type": "lost_anchor", "spelling": spelling})
        first = client.responses.create(model="m", input="Hello")

        with pytest.raises(error) as caught:
            client.responses.create(model="m", input=said, previous_response_id=first.id)

        assert text in caught.value.response.text

    def test_every_chain_breaks_when_the_store_is_emptied(
        self, client: openai.OpenAI, control: httpx.Client
    ) -> None:
        first = client.responses.create(model="m", input="Hello")

        assert control.delete("/responses").json()["dropped"] > 0

        with pytest.raises(openai.BadRequestError):
            client.responses.create(model="m", input="x", previous_response_id=first.id)


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

    def test_a_cut_is_a_fin_without_the_last_chunk(self, url: str, script: Callable[..., str]) -> None:
        received = raw_answer(url, script({"type": "cut", "at": 3}))

        assert received.count(b"event: response.output_text.delta") == 3
        assert not received.endswith(b"0\r\n\r\n")

    def test_a_clean_end_has_the_last_chunk(self, url: str, script: Callable[..., str]) -> None:
        received = raw_answer(url, script({"type": "end", "at": 3}))

        assert received.count(b"event: response.output_text.delta") == 3
        assert received.endswith(b"0\r\n\r\n")

    @pytest.mark.parametrize("at", ["before_headers", "before_first_event", 3])
    def test_a_reset_is_a_reset(self, url: str, script: Callable[..., str], at: str | int) -> None:
        said = script({"type": "reset", "at": at})

        with pytest.raises(ConnectionResetError):
            raw_answer(url, said)

    def test_what_was_sent_before_a_reset_arrives(self, client: openai.OpenAI, script: Callable[..., str]) -> None:
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
        self, client: openai.OpenAI, control: httpx.Client, script: Callable[..., str], at: str | int
    ) -> None:
        said = script({"type": "stall", "at": at})

        with pytest.raises(openai.APITimeoutError):
            stream(client.with_options(timeout=0.2), said)

        entry = until(lambda: last_request(control) if last_request(control)["ended_at"] else None)
        assert (entry["step"], entry["outcome"]) == ("stall", "client_disconnected")

    def test_a_short_stall_is_a_delay(self, client: openai.OpenAI, script: Callable[..., str]) -> None:
        said = script({"type": "stall", "at": 2, "seconds": 0.2})
        began = time.monotonic()

        assert stream(client, said)[-1].type == "response.completed"

        assert time.monotonic() - began >= 0.2

    def test_retry_after_comes_as_seconds_and_as_a_date(
        self, client: openai.OpenAI, script: Callable[..., str]
    ) -> None:
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


class TestRefusals:
    @pytest.mark.parametrize(
        ("items", "message"),
        [
            pytest.param(
                [{"type": "function_call", "call_id": "call_1", "name": "f", "arguments": "{}"}],
                "No tool output found for function call call_1.",
                id="a call without its output",
            ),
            pytest.param(
                [{"type": "web_search_call", "id": "ws_1", "status": "completed"}],
                "'web_search_call' was provided without its required 'reasoning' item",
                id="a search without its reasoning",
            ),
        ],
    )
    def test_the_two_refusals_of_production(self, client: openai.OpenAI, items: Any, message: str) -> None:
        with pytest.raises(openai.BadRequestError, match=message) as caught:
            client.responses.create(model="m", input=[{"role": "user", "content": "Hello"}, *items])

        assert caught.value.type == "invalid_request_error"

    def test_a_refusal_has_code_and_param(self, client: openai.OpenAI) -> None:
        with pytest.raises(openai.BadRequestError) as caught:
            client.responses.create(model="m", input="x", extra_body={"temprature": 1})

        assert (caught.value.code, caught.value.param) == ("unknown_parameter", "temprature")
        assert caught.value.request_id is not None

    @pytest.mark.parametrize("path", ["/responses", "/models", "/responses/resp_1"])
    def test_a_wrong_key_is_refused_everywhere(self, url: str, path: str) -> None:
        answer = httpx.post if path == "/responses" else httpx.get

        refused = answer(f"{url}/v1{path}", headers={"Authorization": "Bearer sk-wrong-key-1234"})

        assert (refused.status_code, refused.json()["error"]["code"]) == (401, "invalid_api_key")

    def test_a_wrong_key_is_an_authentication_error_that_hides_the_key(self, client: openai.OpenAI) -> None:
        with pytest.raises(openai.AuthenticationError, match=r"sk-wrong\*+1234"):
            client.with_options(api_key="sk-wrong-key-1234").responses.create(model="m", input="x")

    def test_an_unknown_address_is_not_found(self, url: str) -> None:
        refused = httpx.post(f"{url}/responses", headers={"Authorization": f"Bearer {KEY}"})

        assert (refused.status_code, refused.json()["error"]["message"]) == (
            404,
            "Invalid URL (POST /responses)",
        )

    def test_an_unknown_script_is_refused_by_name(self, client: openai.OpenAI) -> None:
        with pytest.raises(openai.BadRequestError, match="no script 'nope'"):
            client.responses.create(model="m", input="sim:nope")

    def test_what_is_not_http_is_refused(self, url: str) -> None:
        host, port = url.removeprefix("http://").split(":")
        with socket.create_connection((host, int(port)), timeout=DEADLINE_SECONDS) as connection:
            connection.sendall(b"GARBAGE\r\n\r\n")

            assert connection.recv(100).startswith(b"HTTP/1.1 400")


class TestControl:
    def test_the_log_shows_what_was_sent_and_what_became_of_it(
        self, client: openai.OpenAI, control: httpx.Client
    ) -> None:
        first = client.responses.create(model="m", input="My name is Ada")
        before = last_request(control)["number"]

        stream(
            client,
            "Who am I? sim:reasoning",
            previous_response_id=first.id,
            store=True,
            extra_headers={"X-Client-Request-Id": "turn-log/3"},
        )

        (entry,) = requests(control, turn="turn-log", after=before)
        assert {name: entry[name] for name in ("turn", "attempt", "script", "step_number", "step")} == {
            "turn": "turn-log",
            "attempt": "3",
            "script": "reasoning",
            "step_number": 1,
            "step": "answer",
        }
        assert (entry["model"], entry["stream"], entry["store"], entry["status"]) == ("m", True, True, 200)
        assert entry["previous_response_id"] == first.id
        assert [item["content"] for item in entry["input"]] == ["Who am I? sim:reasoning"]
        assert [item["role"] for item in entry["history"]] == ["user", "assistant", "user"]
        assert (entry["outcome"], entry["chunks"] > 3) == ("completed", True)
        assert 0 < entry["ended_monotonic"] - entry["arrived_monotonic"] < DEADLINE_SECONDS
        assert entry["arrived_monotonic"] < time.monotonic()

    def test_a_refused_request_is_logged_with_its_reason(
        self, client: openai.OpenAI, control: httpx.Client
    ) -> None:
        with pytest.raises(openai.BadRequestError):
            client.responses.create(model="m", input="Hello", previous_response_id="resp_gone")

        entry = last_request(control)
        assert (entry["status"], entry["outcome"], entry["step"]) == (400, "refused", None)
        assert entry["previous_response_id"] == "resp_gone"
        assert "resp_gone" in entry["detail"]

    def test_scripts_are_listed_added_and_removed(self, control: httpx.Client) -> None:
        added = control.put("/scripts/added", json={"steps": [{"type": "cut"}]})

        assert (added.status_code, added.json()) == (200, {"name": "added", "steps": 1})
        listed = control.get("/scripts").json()["scripts"]
        assert (listed["added"]["ready_made"], listed["rate-limited"]["ready_made"]) == (False, True)
        assert listed["added"]["steps"] == [{"type": "cut"}]
        assert [control.delete("/scripts/added").status_code for _ in range(2)] == [200, 404]

    @pytest.mark.parametrize(
        ("name", "content"),
        [
            pytest.param("mine", b'{"steps": []}', id="no steps"),
            pytest.param("mine", b'{"steps": [{"type": "cutt"}]}', id="unknown step"),
            pytest.param("mine", b"{", id="no JSON"),
            pytest.param("Mine", b'{"steps": [{"type": "cut"}]}', id="a name in capitals"),
        ],
    )
    def test_an_invalid_script_is_refused_in_one_sentence(
        self, control: httpx.Client, name: str, content: bytes
    ) -> None:
        refused = control.put(f"/scripts/{name}", content=content)

        assert refused.status_code == 422
        assert refused.json()["error"].startswith(f"script '{name}' is not valid: ")

    def test_the_log_can_be_cleared(self, client: openai.OpenAI, control: httpx.Client) -> None:
        client.responses.create(model="m", input="Hello")

        assert control.delete("/requests").json()["cleared"] > 0

        assert requests(control) == []

    def test_the_log_can_be_read_without_the_items(self, client: openai.OpenAI, control: httpx.Client) -> None:
        client.responses.create(model="m", input="Hello")

        entry = requests(control, items=0)[-1]

        assert "input" not in entry
        assert "history" not in entry
        assert entry["body_bytes"] > 0

    def test_bad_queries_and_addresses_are_told_apart(self, control: httpx.Client) -> None:
        assert control.get("/requests", params={"after": "x"}).status_code == 422
        assert control.get("/nothing").status_code == 404

    def test_health_counts(self, control: httpx.Client) -> None:
        health = control.get("/health").json()

        assert (health["status"], health["scripts"] > 20) == ("ok", True)


class TestLoad:
    async def test_200_streams_at_once_complete(self, url: str, script: Callable[..., str]) -> None:
        said = script({"type": "answer", "chunk_delay_ms": 20})
        async with openai.AsyncOpenAI(
            api_key=KEY,
            base_url=f"{url}/v1",
            max_retries=0,
            timeout=60,
        ) as client:

            async def ask(number: int) -> Response:
                async with client.responses.stream(model="m", input=f"{number}: {said}") as events:
                    return await events.get_final_response()

            answers = await asyncio.gather(*(ask(number) for number in range(200)))

        assert all(f"“{number}: Tell me" in answer.output_text for number, answer in enumerate(answers))

    def test_a_connection_is_used_again(self, url: str) -> None:
        with httpx.Client(base_url=url) as client:
            first, second = (client.get("/simulator/health") for _ in range(2))

        assert first.extensions["network_stream"] is second.extensions["network_stream"]


class TestProcess:
    @pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
    def test_it_ends_cleanly_even_in_mid_answer(self, number: signal.Signals) -> None:
        with process() as child:
            url = address(child)
            with (
                httpx.Client(base_url=url, headers={"Authorization": f"Bearer {KEY}"}) as client,
                client.stream(
                    "POST", "/v1/responses", json={"model": "m", "input": "sim:silence", "stream": True}
                ) as answer,
            ):
                next(answer.iter_raw())
                child.send_signal(number)
                _, errors = child.communicate(timeout=DEADLINE_SECONDS)

        assert (child.returncode, errors) == (0, "")

    def test_a_port_in_use_is_one_line_and_exit_code_2(self, url: str) -> None:
        port = url.rpartition(":")[2]
        with process("--port", port) as child:
            _, errors = child.communicate(timeout=DEADLINE_SECONDS)

        assert (child.returncode, errors.count("\n")) == (2, 1)
        assert f"cannot listen on 127.0.0.1:{port}: Address already in use" in errors

    @pytest.mark.parametrize(
        ("arguments", "complaint"),
        [
            pytest.param(["--port", "many"], "invalid int value: 'many'", id="port is no number"),
            pytest.param(["--port", "70000"], "cannot listen on 127.0.0.1:70000", id="port is too high"),
            pytest.param(["--chunk-delay-ms", "-1"], "must be zero or more", id="negative delay"),
            pytest.param(["--host", "256.0.0.1"], "cannot listen on 256.0.0.1:0", id="no such host"),
            pytest.param(["--script-file", "missing.json"], "missing.json: No such file", id="missing file"),
        ],
    )
    def test_bad_arguments_are_one_line_and_exit_code_2(self, arguments: list[str], complaint: str) -> None:
        with process(*arguments) as child:
            _, errors = child.communicate(timeout=DEADLINE_SECONDS)

        assert (child.returncode, errors.count("\n")) == (2, 1)
        assert complaint in errors

    def test_a_prompt_beyond_the_context_window_is_refused(self) -> None:
        with process("--context-tokens", "10") as child:
            url = address(child)
            with (
                openai.OpenAI(api_key=KEY, base_url=f"{url}/v1", max_retries=0) as client,
                pytest.raises(openai.BadRequestError) as caught,
            ):
                client.responses.create(model="m", input="x" * 41)

        assert caught.value.code == "context_length_exceeded"

    def test_scripts_come_from_a_file_and_the_key_from_an_argument(self, tmp_path: Path) -> None:
        path = tmp_path / "scripts.toml"
        path.write_text('[[story.steps]]\ntype = "answer"\ntext = "Once upon a time"\n')

        with process("--script-file", str(path), "--api-key", "sk-another") as child:
            url = address(child)
            with openai.OpenAI(api_key="sk-another", base_url=f"{url}/v1", max_retries=0) as client:
                answer = client.responses.create(model="m", input="sim:story")

        assert answer.output_text == "Once upon a time"
