"""Anthropic Messages: the official `anthropic` package drives it and finds nothing odd."""

import json
from collections.abc import Callable
from typing import Any

import anthropic
import httpx
import httpx2
import pytest
from anthropic.types import MessageParam, RawMessageStreamEvent

Script = Callable[..., str]

TOOL: Any = {"name": "get_weather", "input_schema": {"type": "object"}}
CALLS: dict[str, Any] = {
    "type": "answer",
    "text": "Let me look. ",
    "reasoning": "Hm",
    "search": "rivers",
    "calls": [
        {"name": "get_weather", "arguments": {"city": "Oslo"}, "call_id": "toolu_1"},
        {"name": "get_weather", "arguments": {"city": "Bergen"}, "call_id": "toolu_2"},
    ],
}


def said(text: str) -> list[MessageParam]:
    return [{"role": "user", "content": text}]


def stream(claude: anthropic.Anthropic, text: str) -> list[RawMessageStreamEvent]:
    with claude.messages.create(model="m", max_tokens=100, messages=said(text), stream=True) as events:
        return list(events)


def stop_reasons(events: list[RawMessageStreamEvent]) -> list[str | None]:
    return [event.delta.stop_reason for event in events if event.type == "message_delta"]


class TestAnswers:
    def test_a_stream_adds_up_to_its_final_message(self, claude: anthropic.Anthropic) -> None:
        with claude.messages.stream(model="m", max_tokens=100, messages=said("Tell me of rivers")) as events:
            text = "".join(events.text_stream)
            final = events.get_final_message()

        assert [block.to_dict() for block in final.content] == [{"type": "text", "text": text}]
        assert text == "I have read 1 user message. It says: “Tell me of rivers”."
        assert (final.stop_reason, final.usage.input_tokens > 0, final.usage.output_tokens > 1) == (
            "end_turn",
            True,
            True,
        )

    async def test_the_async_client_sees_the_same(self, async_claude: anthropic.AsyncAnthropic) -> None:
        async with async_claude.messages.stream(model="m", max_tokens=100, messages=said("Hello")) as events:
            text = await events.get_final_text()

        assert text == "I have read 1 user message. It says: “Hello”."

    @pytest.mark.parametrize(
        "step", [{"type": "answer"}, CALLS, {"type": "empty"}], ids=["text", "calls", "empty"]
    )
    def test_the_stream_adds_up_to_what_comes_whole(
        self, claude: anthropic.Anthropic, script: Script, step: dict[str, Any]
    ) -> None:
        messages = said(script(step, step))
        with claude.messages.stream(model="m", max_tokens=100, messages=messages, tools=[TOOL]) as events:
            streamed = events.get_final_message().to_dict()

        whole = claude.messages.create(model="m", max_tokens=100, messages=messages, tools=[TOOL]).to_dict()

        assert comparable(streamed) == comparable(whole)

    def test_every_event_is_one_that_the_package_knows(self, claude: anthropic.Anthropic, script: Script) -> None:
        events = stream(claude, script(CALLS))

        # The package constructs without checking; strict validation is what a newer version would notice.
        for event in events:
            type(event).model_validate(event.to_dict())
        assert (events[0].type, events[-1].type) == ("message_start", "message_stop")
        assert {event.delta.type for event in events if event.type == "content_block_delta"} == {
            "thinking_delta",
            "signature_delta",
            "input_json_delta",
            "text_delta",
        }
        assert stop_reasons(events) == ["tool_use"]

    def test_a_ping_comes_in_between(self, url: str) -> None:
        body = {"model": "m", "max_tokens": 1, "messages": said("Hello"), "stream": True}

        answer = httpx.post(f"{url}/v1/messages", headers=HEADERS, json=body)

        assert 'event: ping\ndata: {"type":"ping"}\n\n' in answer.text

    def test_a_conversation_with_a_tool_is_read_to_its_end(
        self, claude: anthropic.Anthropic, script: Script, last_request: Callable[[], dict[str, Any]]
    ) -> None:
        messages: list[Any] = said(script(CALLS))
        with claude.messages.stream(model="m", max_tokens=100, messages=messages, tools=[TOOL]) as events:
            first = events.get_final_message()
        results = [
            {"type": "tool_result", "tool_use_id": block.id, "content": "sunny"}
            for block in first.content
            if block.type == "tool_use"
        ]
        messages += [
            {"role": "assistant", "content": [block.to_dict() for block in first.content]},
            {"role": "user", "content": results},
        ]

        second = claude.messages.create(model="m", max_tokens=100, messages=messages, tools=[TOOL])

        (answer,) = second.content
        assert answer.type == "text"
        assert answer.text.count("A tool returned: “sunny”.") == 2
        logged = last_request()
        assert (logged["api"], logged["response_id"]) == ("anthropic-messages", second.id)
        assert [item["role"] for item in logged["history"]] == ["user", "assistant", "user"]

    def test_thoughts_that_are_not_shown_are_taken_back(self, claude: anthropic.Anthropic, script: Script) -> None:
        messages: list[Any] = said(script({**CALLS, "redacted": True}))
        first = claude.messages.create(model="m", max_tokens=100, messages=messages, tools=[TOOL])
        blocks = [block.to_dict() for block in first.content]

        messages += [{"role": "assistant", "content": blocks[:-2]}, {"role": "user", "content": "Hm"}]
        second = claude.messages.create(model="m", max_tokens=100, messages=messages)

        assert blocks[0]["type"] == "redacted_thinking"
        assert second.stop_reason == "end_turn"

    @pytest.mark.parametrize(
        ("reason", "expected"),
        [
            pytest.param("max_output_tokens", "max_tokens"),
            pytest.param("content_filter", "refusal"),
            pytest.param("pause_turn", "pause_turn"),
            pytest.param("refusal", "refusal"),
            pytest.param("context_window", "model_context_window_exceeded"),
        ],
    )
    def test_an_answer_stops_early_for_a_reason(
        self, claude: anthropic.Anthropic, script: Script, reason: str, expected: str
    ) -> None:
        events = stream(claude, script({"type": "incomplete", "reason": reason}))

        assert stop_reasons(events) == [expected]


def comparable(message: dict[str, Any]) -> dict[str, Any]:
    """Leave out what differs from one answer to the next."""
    blocks = [
        {name: value for name, value in block.items() if name not in {"id", "tool_use_id"} or "input" not in block}
        for block in message["content"]
        if block["type"] != "web_search_tool_result"
    ]
    return {"content": blocks, "usage": message["usage"], "why": message["stop_reason"]}


class TestFaults:
    @pytest.mark.parametrize(
        ("name", "error"),
        [
            pytest.param("rate-limited", anthropic.RateLimitError),
            pytest.param("quota", anthropic.RateLimitError),
            pytest.param("overloaded", anthropic.InternalServerError),
            pytest.param("server-error", anthropic.InternalServerError),
            pytest.param("bad-gateway", anthropic.InternalServerError),
            pytest.param("unauthorized", anthropic.AuthenticationError),
            pytest.param("context-overflow", anthropic.BadRequestError),
            pytest.param("cut", (anthropic.APIConnectionError, httpx2.RemoteProtocolError)),
            pytest.param("reset", (anthropic.APIConnectionError, httpx2.ReadError)),
            pytest.param("error-event", anthropic.APIStatusError),
            pytest.param("failed", anthropic.APIStatusError),
            pytest.param("malformed", json.JSONDecodeError),
        ],
    )
    def test_a_fault_raises_what_the_package_raises_in_production(
        self, claude: anthropic.Anthropic, name: str, error: type[Exception] | tuple[type[Exception], ...]
    ) -> None:
        with pytest.raises(error):
            stream(claude, f"Tell me of rivers sim:{name}")

    @pytest.mark.parametrize(
        ("name", "expected"),
        [
            pytest.param("unfinished", []),
            pytest.param("truncated", ["max_tokens"]),
            pytest.param("content-filter", ["refusal"]),
            pytest.param("empty", ["end_turn"]),
            pytest.param("html", []),
            pytest.param("lost-anchor", ["end_turn"]),
            pytest.param("drip", ["end_turn"]),
            pytest.param("search", ["end_turn"]),
            pytest.param("tool", ["tool_use"]),
        ],
    )
    def test_everything_else_the_package_leaves_to_its_caller(
        self, claude: anthropic.Anthropic, name: str, expected: list[str]
    ) -> None:
        assert stop_reasons(stream(claude, f"Tell me of rivers sim:{name}")) == expected

    @pytest.mark.parametrize(
        ("missing", "types"),
        [
            pytest.param("everything", ["content_block_stop"], id="nothing comes"),
            pytest.param("done", ["content_block_stop", "message_delta"], id="no mark of the end"),
            pytest.param("reason", ["content_block_stop", "message_delta", "message_stop"], id="no reason"),
        ],
    )
    def test_half_an_end_can_be_missing(
        self, claude: anthropic.Anthropic, script: Script, missing: str, types: list[str]
    ) -> None:
        events = stream(claude, script({"type": "end", "missing": missing}))

        assert [event.type for event in events][-len(types) :] == types
        assert set(stop_reasons(events)) == {"everything": set(), "done": {"end_turn"}, "reason": {None}}[missing]

    @pytest.mark.parametrize(
        ("status", "kind"),
        [(402, "billing_error"), (409, "conflict_error"), (504, "timeout_error"), (529, "overloaded_error")],
    )
    def test_a_status_and_a_type_belong_together(
        self, claude: anthropic.Anthropic, script: Script, status: int, kind: str
    ) -> None:
        with pytest.raises(anthropic.APIStatusError) as caught:
            stream(claude, script({"type": "status", "status": status}))

        assert caught.value.status_code == status
        assert caught.value.response.json()["error"]["type"] == kind
        assert caught.value.response.json()["request_id"] == caught.value.request_id

    def test_a_cap_on_spending_is_told_by_its_code(self, claude: anthropic.Anthropic) -> None:
        with pytest.raises(anthropic.RateLimitError) as caught:
            stream(claude, "Tell me of money sim:quota")

        details = caught.value.response.json()["error"]["details"]
        assert details == {"error_code": "enforced_spend_limit_reached"}
        assert "retry-after" not in caught.value.response.headers

    def test_an_error_in_the_stream_comes_under_200(self, claude: anthropic.Anthropic, script: Script) -> None:
        text = script({"type": "error_event", "code": "server_is_overloaded", "message": "Overloaded"})

        with pytest.raises(anthropic.APIStatusError) as caught:
            stream(claude, text)

        assert caught.value.response.status_code == 200
        assert caught.value.body is not None
        assert "overloaded_error" in str(caught.value.body)

    def test_without_a_stream_faults_strike_the_body(self, claude: anthropic.Anthropic, script: Script) -> None:
        for step, error in (
            ({"type": "cut"}, anthropic.APIConnectionError),
            ({"type": "error_event"}, anthropic.InternalServerError),
        ):
            with pytest.raises(error):
                claude.messages.create(model="m", max_tokens=100, messages=said(script(step)))


HEADERS = {"x-api-key": "sk-simulator", "anthropic-version": "2023-06-01"}


class TestRefusals:
    @pytest.mark.parametrize(
        ("without", "status", "kind"),
        [
            pytest.param("x-api-key", 401, "authentication_error"),
            pytest.param("anthropic-version", 400, "invalid_request_error"),
        ],
    )
    def test_both_headers_are_required(self, url: str, without: str, status: int, kind: str) -> None:
        headers = {name: value for name, value in HEADERS.items() if name != without}

        refused = httpx.post(f"{url}/v1/messages", headers=headers, json={"messages": said("Hello")})

        assert (refused.status_code, refused.json()["error"]["type"]) == (status, kind)
        assert without in refused.json()["error"]["message"]
        assert refused.json()["request_id"] == refused.headers["request-id"]

    def test_a_wrong_key_is_refused(self, claude: anthropic.Anthropic) -> None:
        with pytest.raises(anthropic.AuthenticationError, match="invalid x-api-key"):
            stream(claude.with_options(api_key="sk-wrong"), "Hello")

    def test_an_unknown_model_is_not_found(self, claude: anthropic.Anthropic) -> None:
        with pytest.raises(anthropic.NotFoundError, match="model: no-such-x"):
            claude.messages.create(model="no-such-x", max_tokens=100, messages=said("Hello"))

    def test_an_unknown_script_is_refused_by_name(self, claude: anthropic.Anthropic) -> None:
        with pytest.raises(anthropic.BadRequestError, match="no script 'nope'"):
            stream(claude, "sim:nope")
