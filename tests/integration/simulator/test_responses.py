"""OpenAI Responses: the official `openai` package drives it and finds nothing odd."""

import asyncio
import socket
from collections.abc import Callable
from typing import Any

import httpx
import openai
import pytest
from openai.types.responses import Response, ResponseStreamEvent

KEY = "sk-simulator"
DEADLINE_SECONDS = 10.0

Script = Callable[..., str]


def stream(client: openai.OpenAI, text: str, **parameters: Any) -> list[ResponseStreamEvent]:
    with client.responses.create(model="m", input=text, stream=True, **parameters) as events:
        return list(events)


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

    def test_every_event_is_one_that_the_package_knows(self, client: openai.OpenAI, script: Script) -> None:
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


class TestLoad:
    async def test_200_streams_at_once_complete(self, url: str, script: Script) -> None:
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
