"""The body of a request for Chat Completions: a history in the oldest form, which every server takes."""

from typing import Any

import pytest

from turnkeeper.messages import (
    Image,
    Message,
    Part,
    Reasoning,
    Refusal,
    Text,
    ToolCall,
    ToolResult,
    WebSearch,
)
from turnkeeper_worker.providers.history import FAILED_TOOL, SILENCE
from turnkeeper_worker.providers.interface import Call, ToolSpec
from turnkeeper_worker.providers.openai_chat import RESERVED_OPTIONS, request_body

HELLO = Text(text="Hello")
SILENT = {"role": "user", "content": SILENCE}
CALL = ToolCall(call_id="call_1", name="look", arguments='{"at": 1}')
CALL_ITEM = {"id": "call_1", "type": "function", "function": {"name": "look", "arguments": '{"at":1}'}}
LOOK = ToolSpec(name="look", description="Look there.", parameters={"type": "object", "properties": {"at": {}}})
LOOK_TOOL = {
    "type": "function",
    "function": {
        "name": "look",
        "description": "Look there.",
        "parameters": {"type": "object", "properties": {"at": {}}},
    },
}
GO_TOOL = {"type": "function", "function": {"name": "go"}}
PNG = "data:image/png;base64,iVBORw0KGgo="


def user(*parts: Part) -> Message:
    return Message(role="user", parts=parts)


def assistant(*parts: Part) -> Message:
    return Message(role="assistant", parts=parts)


def body(*history: Message, **call: Any) -> dict[str, Any]:
    return request_body(Call(request_id="r", model="m", history=history, **call))


def messages(*history: Message, **call: Any) -> list[dict[str, Any]]:
    sent: list[dict[str, Any]] = body(*history, **call)["messages"]
    return sent


def answered(*parts: Part) -> dict[str, Any]:
    """Return the message that stands for *parts* of an assistant's."""
    _, message, *_ = messages(user(HELLO), assistant(*parts), user(HELLO))
    return message


class TestFields:
    def test_a_plain_request_says_no_more_than_it_must(self) -> None:
        assert body(user(HELLO)) == {
            "model": "m",
            "messages": [{"role": "user", "content": "Hello"}],
            "stream": True,
            "stream_options": {"include_usage": True},
        }

    def test_instructions_are_the_systems_words(self) -> None:
        assert messages(user(HELLO), instructions="Be kind.")[0] == {"role": "system", "content": "Be kind."}

    def test_options_are_passed_on(self) -> None:
        assert body(options={"temperature": 0})["temperature"] == 0

    def test_the_workers_tools_stand_behind_those_of_the_options(self) -> None:
        sent = body(user(HELLO), tools=(LOOK,), options={"tools": [GO_TOOL]})

        assert sent["tools"] == [GO_TOOL, LOOK_TOOL]

    @pytest.mark.parametrize(
        "asked",
        [
            pytest.param([{"type": "function", "function": {"name": "look"}}], id="a tool of the same name"),
            pytest.param([7], id="no tool"),
            pytest.param("look", id="no list"),
        ],
    )
    def test_the_workers_tools_win(self, asked: object) -> None:
        assert body(user(HELLO), tools=(LOOK,), options={"tools": asked})["tools"] == [LOOK_TOOL]

    def test_without_tools_of_the_workers_the_options_are_as_they_were(self) -> None:
        assert body(options={"tools": [7]})["tools"] == [7]
        assert "tools" not in body()

    @pytest.mark.parametrize("name", sorted(RESERVED_OPTIONS))
    def test_an_option_cannot_replace_what_is_ours_to_set(self, name: str) -> None:
        assert body(options={name: "mine"}) == body()


class TestConversation:
    @pytest.mark.parametrize(
        ("history", "roles"),
        [
            pytest.param([], ["user"], id="nobody said anything"),
            pytest.param(
                [user(HELLO), assistant(HELLO), user(HELLO)], ["user", "assistant", "user"], id="as it is"
            ),
            pytest.param([user(HELLO), user(HELLO)], ["user"], id="a turn that failed, and the next"),
            pytest.param([assistant(HELLO), user(HELLO)], ["user", "assistant", "user"], id="the model began"),
            pytest.param(
                [user(HELLO), assistant(HELLO)], ["user", "assistant", "user"], id="the model spoke last"
            ),
            pytest.param(
                [user(HELLO), assistant(Reasoning(encrypted="gAAAAA")), user(HELLO)],
                ["user"],
                id="an answer of which nothing can be sent",
            ),
            pytest.param(
                [user(HELLO), assistant(CALL), user(ToolResult(call_id="call_1", output="sunny"))],
                ["user", "assistant", "tool"],
                id="a result is answered as well",
            ),
            pytest.param(
                [user(HELLO), assistant(CALL), user(ToolResult(call_id="call_1", output="sunny"), HELLO)],
                ["user", "assistant", "tool", "user"],
                id="a result, then words",
            ),
        ],
    )
    def test_users_and_models_take_turns(self, history: list[Message], roles: list[str]) -> None:
        assert [message["role"] for message in messages(*history)] == roles

    def test_what_is_said_twice_in_a_row_is_said_in_one_message(self) -> None:
        assert messages(user(HELLO), user(Text(text="Are you there?"))) == [
            {"role": "user", "content": "Hello\n\nAre you there?"}
        ]

    def test_silence_is_put_into_words(self) -> None:
        assert messages() == [SILENT]

    def test_a_pause_is_nothing_that_the_api_knows_of(self) -> None:
        history = (user(HELLO), assistant(HELLO))

        assert body(*history, continues=True) == body(*history)


class TestParts:
    def test_a_users_pictures_make_a_list_of_the_message(self) -> None:
        (sent,) = messages(user(Text(text="Look"), Image(url=PNG)))

        assert sent["content"] == [
            {"type": "text", "text": "Look"},
            {"type": "image_url", "image_url": {"url": PNG}},
        ]

    def test_results_are_messages_of_their_own_before_the_words(self) -> None:
        two = assistant(CALL, CALL.model_copy(update={"call_id": "call_2"}))
        results = (ToolResult(call_id="call_1", output="sunny"), ToolResult(call_id="call_2", output=""))

        sent = messages(user(HELLO), two, user(*results, Text(text="And?")))

        assert sent[2:] == [
            {"role": "tool", "tool_call_id": "call_1", "content": "sunny"},
            {"role": "tool", "tool_call_id": "call_2", "content": ""},
            {"role": "user", "content": "And?"},
        ]

    @pytest.mark.parametrize(
        ("result", "sent"),
        [
            pytest.param(
                {"output": "no such city", "is_error": True}, "The tool failed: no such city", id="an error"
            ),
            pytest.param({"output": " ", "is_error": True}, FAILED_TOOL, id="an error without a word"),
            pytest.param({"output": "☀\n" * 100_000}, "☀\n" * 100_000, id="a long one"),
        ],
    )
    def test_a_result_says_in_words_that_it_is_an_error(self, result: dict[str, Any], sent: str) -> None:
        (*_, told) = messages(user(HELLO), assistant(CALL), user(ToolResult(call_id="call_1", **result)))

        assert told == {"role": "tool", "tool_call_id": "call_1", "content": sent}

    @pytest.mark.parametrize(
        ("parts", "sent"),
        [
            pytest.param([Text(text="Hel"), Text(text="lo")], {"content": "Hello"}, id="words in pieces"),
            pytest.param([Refusal(text="No.")], {"content": "No."}, id="a refusal is words"),
            pytest.param([CALL], {"content": None, "tool_calls": [CALL_ITEM]}, id="a call"),
            pytest.param([HELLO, CALL], {"content": "Hello", "tool_calls": [CALL_ITEM]}, id="words and a call"),
            pytest.param(
                [Reasoning(text="Hm", signature="c2Vh"), WebSearch(id="ws_1"), HELLO],
                {"content": "Hello"},
                id="another's thoughts and searches",
            ),
            pytest.param(
                [Reasoning(text="Hm", told_in="reasoning_content"), CALL],
                {"content": None, "reasoning_content": "Hm", "tool_calls": [CALL_ITEM]},
                id="a thought that led to a call goes back into its field",
            ),
            pytest.param(
                [Reasoning(text="Hm", told_in="reasoning"), HELLO],
                {"content": "Hello"},
                id="a thought that led to words alone",
            ),
        ],
    )
    def test_an_answer_is_one_message(self, parts: list[Part], sent: dict[str, Any]) -> None:
        assert answered(*parts) == {"role": "assistant"} | sent

    @pytest.mark.parametrize(
        ("arguments", "sent"),
        [
            pytest.param("", "{}", id="nothing"),
            pytest.param("{", '{"arguments":"{"}', id="half an object"),
            pytest.param("[1]", '{"arguments":[1]}', id="a list"),
            pytest.param('{"at": "Köln"}', '{"at":"Köln"}', id="an object"),
        ],
    )
    def test_arguments_are_an_object_whatever_the_model_wrote(self, arguments: str, sent: str) -> None:
        (call,) = answered(CALL.model_copy(update={"arguments": arguments}))["tool_calls"]

        assert call["function"]["arguments"] == sent

    @pytest.mark.parametrize(
        ("name", "sent"),
        [("look", "look"), ("", "unknown"), ("mcp.weather/look", "mcp_weather_look_e46be4bb")],
    )
    def test_names_are_plain(self, name: str, sent: str) -> None:
        (call,) = answered(CALL.model_copy(update={"name": name}))["tool_calls"]

        assert call["function"]["name"] == sent
