"""Chat Completions: the official `openai` package drives it and finds nothing odd."""

import json
from collections.abc import Callable
from typing import Any

import httpx
import openai
import pytest
from openai.types.chat import ChatCompletionChunk, ChatCompletionMessageParam

Script = Callable[..., str]

TOOL: Any = {"type": "function", "function": {"name": "get_weather", "parameters": {"type": "object"}}}
CALLS: dict[str, Any] = {
    "type": "answer",
    "text": "Let me look. ",
    "reasoning": "Hm",
    "calls": [
        {"name": "get_weather", "arguments": {"city": "Oslo"}, "call_id": "call_1"},
        {"name": "get_weather", "arguments": {"city": "Bergen"}},
    ],
}


def said(text: str) -> list[ChatCompletionMessageParam]:
    return [{"role": "user", "content": text}]


def stream(client: openai.OpenAI, text: str, **parameters: Any) -> list[ChatCompletionChunk]:
    with client.chat.completions.create(model="m", messages=said(text), stream=True, **parameters) as chunks:
        return list(chunks)


def text_of(chunks: list[ChatCompletionChunk]) -> str:
    return "".join(choice.delta.content or "" for chunk in chunks for choice in chunk.choices)


def reasons(chunks: list[ChatCompletionChunk]) -> list[str]:
    return [choice.finish_reason for chunk in chunks for choice in chunk.choices if choice.finish_reason]


class TestAnswers:
    def test_a_stream_adds_up_to_its_final_completion(self, client: openai.OpenAI) -> None:
        with client.chat.completions.stream(
            model="m", messages=said("Tell me of rivers"), stream_options={"include_usage": True}
        ) as events:
            text = "".join(event.delta for event in events if event.type == "content.delta")
            final = events.get_final_completion()

        assert text == final.choices[0].message.content
        assert text == "I have read 1 user message. It says: “Tell me of rivers”."
        assert final.choices[0].finish_reason == "stop"
        assert final.usage is not None
        assert final.usage.total_tokens == final.usage.prompt_tokens + final.usage.completion_tokens

    async def test_the_async_client_sees_the_same(self, async_client: openai.AsyncOpenAI) -> None:
        async with async_client.chat.completions.stream(model="m", messages=said("Hello")) as events:
            final = await events.get_final_completion()

        assert final.choices[0].message.content == "I have read 1 user message. It says: “Hello”."

    @pytest.mark.parametrize(
        "step", [{"type": "answer"}, CALLS, {"type": "empty"}], ids=["text", "calls", "empty"]
    )
    def test_the_stream_adds_up_to_what_comes_whole(
        self, client: openai.OpenAI, script: Script, step: dict[str, Any]
    ) -> None:
        text = script(step, step)
        with client.chat.completions.stream(
            model="m", messages=said(text), tools=[TOOL], stream_options={"include_usage": True}
        ) as events:
            streamed = events.get_final_completion().to_dict()

        whole = client.chat.completions.create(model="m", messages=said(text), tools=[TOOL]).to_dict()

        assert comparable(streamed) == comparable(whole)

    def test_every_chunk_is_one_that_the_package_knows(self, client: openai.OpenAI, script: Script) -> None:
        chunks = stream(client, script(CALLS), tools=[TOOL], stream_options={"include_usage": True})

        # The package constructs without checking; strict validation is what a newer version would notice.
        for chunk in chunks:
            ChatCompletionChunk.model_validate(chunk.to_dict())
        assert (chunks[0].choices[0].delta.role, chunks[-1].choices) == ("assistant", [])
        assert reasons(chunks) == ["tool_calls"]
        assert all(chunk.usage is None for chunk in chunks[:-1])

    def test_reasoning_comes_in_deltas_of_its_own(self, client: openai.OpenAI, script: Script) -> None:
        chunks = stream(client, script({"type": "answer", "reasoning": "Hm", "text": "Hi"}))

        deltas = [chunk.choices[0].delta.to_dict() for chunk in chunks]
        assert deltas[1:3] == [{"reasoning_content": "Hm"}, {"content": "Hi"}]

    def test_usage_comes_to_those_who_ask(self, client: openai.OpenAI) -> None:
        assert all(chunk.usage is None for chunk in stream(client, "Hello"))

    def test_a_conversation_with_a_tool_is_read_to_its_end(
        self, client: openai.OpenAI, script: Script, last_request: Callable[[], dict[str, Any]]
    ) -> None:
        messages: list[Any] = said(script(CALLS))
        first = client.chat.completions.create(model="m", messages=messages, tools=[TOOL]).choices[0].message
        messages.append(first.to_dict())
        messages += [
            {"role": "tool", "tool_call_id": call.id, "content": "sunny"} for call in first.tool_calls or ()
        ]

        second = client.chat.completions.create(model="m", messages=messages, tools=[TOOL])

        answer = second.choices[0].message.content or ""
        assert answer.count("A tool returned: “sunny”.") == 2
        logged = last_request()
        assert (logged["api"], logged["outcome"], logged["response_id"]) == ("openai-chat", "completed", second.id)
        assert [item["role"] for item in logged["history"]] == ["user", "assistant", "tool", "tool"]


def comparable(completion: dict[str, Any]) -> dict[str, Any]:
    """Leave out what differs from one answer to the next, and what the package adds to a stream."""
    message = completion["choices"][0]["message"]
    calls = [(call["function"]["name"], call["function"]["arguments"]) for call in message.get("tool_calls") or ()]
    said = {name: message.get(name) for name in ("role", "content", "refusal", "reasoning_content")}
    return {**said, "calls": calls, "usage": completion["usage"], "why": completion["choices"][0]["finish_reason"]}


class TestFaults:
    @pytest.mark.parametrize(
        ("name", "error"),
        [
            pytest.param("rate-limited", openai.RateLimitError),
            pytest.param("quota", openai.RateLimitError),
            pytest.param("overloaded", openai.InternalServerError),
            pytest.param("bad-gateway", openai.InternalServerError),
            pytest.param("unauthorized", openai.AuthenticationError),
            pytest.param("context-overflow", openai.BadRequestError),
            pytest.param("cut", openai.APIConnectionError),
            pytest.param("reset", openai.APIConnectionError),
            pytest.param("error-event", openai.APIError),
            pytest.param("failed", openai.APIError),
            pytest.param("malformed", json.JSONDecodeError),
        ],
    )
    def test_a_fault_raises_what_the_package_raises_in_production(
        self, client: openai.OpenAI, name: str, error: type[Exception]
    ) -> None:
        with pytest.raises(error):
            stream(client, f"Tell me of rivers sim:{name}")

    @pytest.mark.parametrize(
        ("name", "expected"),
        [
            pytest.param("unfinished", []),
            pytest.param("truncated", ["length"]),
            pytest.param("content-filter", ["content_filter"]),
            pytest.param("empty", ["stop"]),
            pytest.param("html", []),
            pytest.param("lost-anchor", ["stop"]),
            pytest.param("drip", ["stop"]),
            pytest.param("search", ["stop"]),
            pytest.param("tool", ["tool_calls"]),
        ],
    )
    def test_everything_else_the_package_leaves_to_its_caller(
        self, client: openai.OpenAI, name: str, expected: list[str]
    ) -> None:
        assert reasons(stream(client, f"Tell me of rivers sim:{name}")) == expected

    @pytest.mark.parametrize(
        ("missing", "expected", "done"),
        [
            pytest.param("everything", [], False, id="nothing comes"),
            pytest.param("done", ["stop"], False, id="no mark of the end"),
            pytest.param("reason", [], True, id="no reason, as of Ollama"),
        ],
    )
    def test_half_an_end_can_be_missing(
        self, client: openai.OpenAI, script: Script, missing: str, expected: list[str], done: bool
    ) -> None:
        text = script({"type": "end", "missing": missing, "text": "Whole"})

        chunks = stream(client, text)
        raw = client.chat.completions.with_raw_response.create(
            model="m", messages=said(script({"type": "end", "missing": missing})), stream=True
        ).http_response.read()

        assert (text_of(chunks), reasons(chunks)) == ("Whole", expected)
        assert raw.endswith(b"data: [DONE]\n\n") is done

    @pytest.mark.parametrize(
        ("shape", "message"),
        [
            pytest.param("nested", "Slow down", id="an object, as of OpenAI"),
            pytest.param("flat", "An error occurred during streaming", id="a sentence, as of Ollama"),
            pytest.param("finish_reason", "Slow down", id="in the last chunk, as of OpenRouter"),
        ],
    )
    def test_an_error_rides_in_the_stream(
        self, client: openai.OpenAI, script: Script, shape: str, message: str
    ) -> None:
        text = script(
            {"type": "error_event", "shape": shape, "code": "rate_limit_exceeded", "message": "Slow down"}
        )

        with pytest.raises(openai.APIError, match=message):
            stream(client, text)

    def test_arguments_may_stop_in_the_middle(self, client: openai.OpenAI, script: Script) -> None:
        text = script({"type": "incomplete", "at": 1, "chunk_chars": 5, "calls": CALLS["calls"]})

        choice = client.chat.completions.create(model="m", messages=said(text), tools=[TOOL]).choices[0]

        (call,) = choice.message.to_dict()["tool_calls"]  # type: ignore[misc]  # a dict of objects
        assert (choice.finish_reason, call["function"]["arguments"]) == ("length", '{"cit')

    def test_without_a_stream_faults_strike_the_body(self, client: openai.OpenAI, script: Script) -> None:
        for step, error in (
            ({"type": "cut"}, openai.APIConnectionError),
            ({"type": "end"}, json.JSONDecodeError),
            ({"type": "error_event"}, openai.InternalServerError),
        ):
            with pytest.raises(error):
                client.chat.completions.create(model="m", messages=said(script(step)))


class TestRefusals:
    @pytest.mark.parametrize(
        ("body", "status", "code", "param"),
        [
            pytest.param({"model": "no-such-x"}, 404, "model_not_found", None, id="unknown model"),
            pytest.param({"model": None}, 400, "missing_required_parameter", "model", id="no model"),
            pytest.param({"messages": None}, 400, "missing_required_parameter", "messages", id="no messages"),
            pytest.param({"messages": []}, 400, "empty_array", "messages", id="no message"),
            pytest.param({"temprature": 1}, 400, "unknown_parameter", "temprature", id="misspelt"),
            pytest.param({"messages": [{"role": "bot"}]}, 400, "invalid_value", "messages[0].role", id="role"),
            pytest.param({"stream_options": {}}, 400, None, "stream_options", id="options without a stream"),
            pytest.param({"n": 2}, 400, "unsupported_parameter", "n", id="two answers"),
        ],
    )
    def test_a_refusal_has_status_code_and_param(
        self, url: str, body: dict[str, Any], status: int, code: str | None, param: str | None
    ) -> None:
        refused = httpx.post(
            f"{url}/v1/chat/completions",
            headers={"Authorization": "Bearer sk-simulator"},
            json={"model": "m", "messages": said("Hello"), **body},
        )

        error = refused.json()["error"]
        assert (refused.status_code, error["code"], error["param"]) == (status, code, param)
        assert error["type"] == "invalid_request_error"

    def test_a_wrong_key_is_refused(self, client: openai.OpenAI) -> None:
        with pytest.raises(openai.AuthenticationError):
            client.with_options(api_key="sk-wrong-key-1234").chat.completions.create(
                model="m", messages=said("Hello")
            )

    def test_an_unknown_script_is_refused_by_name(self, client: openai.OpenAI) -> None:
        with pytest.raises(openai.BadRequestError, match="no script 'nope'"):
            stream(client, "sim:nope")
