"""The messages of Chat Completions: what is taken, and in which words the rest is refused."""

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from turnkeeper_ops.simulator.chat_messages import check_messages
from turnkeeper_ops.simulator.chat_parameters import decode
from turnkeeper_ops.simulator.chat_wire import read_prompt
from turnkeeper_ops.simulator.openai_errors import ApiError

Message = dict[str, Any]

USER: Message = {"role": "user", "content": "Hello"}
ASSISTANT: Message = {"role": "assistant", "content": "Hi"}
TOOL: Message = {"type": "function", "function": {"name": "f", "parameters": {}}}


def calls(*ids: str, content: str | None = None) -> Message:
    asked = [{"id": each, "type": "function", "function": {"name": "f", "arguments": "{}"}} for each in ids]
    return {"role": "assistant", "content": content, "tool_calls": asked}


def answer(call_id: str) -> Message:
    return {"role": "tool", "tool_call_id": call_id, "content": "sunny"}


def decoded(**parameters: Any) -> dict[str, Any]:
    return decode(json.dumps({"model": "m", "messages": [USER], **parameters}).encode())


def refused(*messages: Message) -> ApiError:
    with pytest.raises(ApiError) as caught:
        check_messages(messages)
    return caught.value


@pytest.mark.parametrize(
    "messages",
    [
        pytest.param([USER], id="a message"),
        pytest.param([{"role": "system", "content": "Be kind"}, USER, ASSISTANT, USER], id="a conversation"),
        pytest.param([{"role": "user", "content": ""}], id="no text"),
        pytest.param([USER, calls("call_1"), answer("call_1")], id="a call and its answer"),
        pytest.param([USER, calls("a", "b"), answer("b"), answer("a"), USER], id="two calls in another order"),
        pytest.param([{**ASSISTANT, "reasoning_content": "Hm"}, USER], id="reasoning, as other vendors want it"),
        pytest.param(
            [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}], id="an image"
        ),
        pytest.param([{"role": "assistant", "content": None, "refusal": "No"}, USER], id="a refusal"),
    ],
)
def test_proper_messages_are_taken(messages: list[Message]) -> None:
    check_messages(messages)


@pytest.mark.parametrize(
    ("messages", "words", "param"),
    [
        pytest.param(
            [USER, answer("call_1")], "must be a response to a preceeding", "messages.[1].role", id="no call"
        ),
        pytest.param(
            [USER, calls("a"), answer("b")],
            "'tool_call_id' of 'b' not found",
            "messages.[2].tool_call_id",
            id="another call",
        ),
        pytest.param(
            [USER, calls("a", "b"), answer("a"), USER],
            "did not have response messages: b",
            "messages.[3].role",
            id="an open call",
        ),
        pytest.param(
            [USER, calls("a")], "did not have response messages: a", "messages.[2].role", id="open at the end"
        ),
        pytest.param(
            [USER, calls("a"), answer("a"), ASSISTANT, answer("a")],
            "must be a response to a preceeding",
            "messages.[4].role",
            id="an answer that comes too late",
        ),
        pytest.param([{"role": "user"}], "expected a string, got null", "messages.[0].content", id="no content"),
        pytest.param(
            [{"role": "assistant", "content": None}], "got null", "messages.[0].content", id="nothing at all"
        ),
        pytest.param([{"role": "user", "content": []}], "empty array", "messages[0].content", id="no parts"),
        pytest.param([{"role": "user", "content": 1}], "but got an integer", "messages[0].content", id="a number"),
        pytest.param(
            [{"role": "assistant", "content": "x", "tool_calls": []}],
            "empty array",
            "messages[0].tool_calls",
            id="no calls",
        ),
        pytest.param([{"content": "x"}], "Missing", "messages[0].role", id="no role"),
        pytest.param([{"role": "bot"}], "'tool', and 'developer'", "messages[0].role", id="another role"),
        pytest.param(
            [{"role": "tool", "content": "x"}], "Missing", "messages[0].tool_call_id", id="an answer to nobody"
        ),
        pytest.param(
            [{"role": "user", "content": [{"type": "refusal", "refusal": "x"}]}],
            "Supported values are: 'text', 'image_url', 'input_audio', and 'file'",
            "messages[0].content[0].type",
            id="a part of the other side",
        ),
        pytest.param(
            [{"role": "user", "content": [{"type": "image_url", "image_url": "x"}]}],
            "expected an object, but got a string",
            "messages[0].content[0].image_url",
            id="an address for an object",
        ),
    ],
)
def test_the_rest_is_refused_in_the_words_of_the_api(messages: list[Message], words: str, param: str) -> None:
    error = refused(*messages)

    assert words in str(error)
    assert (error.param, error.status, error.kind) == (param, 400, "invalid_request_error")


@pytest.mark.parametrize(
    ("parameters", "code", "param"),
    [
        pytest.param({"tools": []}, "empty_array", "tools", id="no tools"),
        pytest.param({"tools": [{}]}, "missing_required_parameter", "tools[0].type", id="no type"),
        pytest.param(
            {"tools": [{"type": "function", "name": "f"}]},
            "missing_required_parameter",
            "tools[0].function",
            id="the shape of another API",
        ),
        pytest.param({"tool_choice": {"type": "function"}}, None, "tool_choice", id="a choice of nothing"),
        pytest.param({"temperature": 3}, "decimal_above_max_value", "temperature", id="too hot"),
        pytest.param({"stream": "yes"}, "invalid_type", "stream", id="a string for a boolean"),
        pytest.param({"functions": [{}]}, "unsupported_parameter", "functions", id="not simulated"),
    ],
)
def test_parameters_are_checked(parameters: dict[str, Any], code: str | None, param: str) -> None:
    with pytest.raises(ApiError) as caught:
        decoded(**parameters)

    assert (caught.value.code, caught.value.param) == (code, param)


def test_known_parameters_are_taken() -> None:
    given = {"tools": [TOOL], "tool_choice": "auto", "stream": True, "stream_options": {"include_usage": True}}

    assert decoded(**given)["tools"] == [TOOL]


def test_the_model_reads_the_users_texts_and_the_outputs_since() -> None:
    prompt = read_prompt([USER, calls("a"), answer("a"), ASSISTANT, USER, calls("b"), answer("b")])

    assert prompt.user_texts == ("Hello", "Hello")
    assert prompt.tool_outputs == ("sunny",)
    assert (prompt.chained, prompt.input_tokens) == (False, 7)


SCALARS = st.none() | st.booleans() | st.integers(-5, 5) | st.text("ab1_", max_size=4)
JSON = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner)
)
CALL = st.fixed_dictionaries({}, optional={"id": JSON, "type": JSON, "function": JSON})
PART = st.fixed_dictionaries(
    {}, optional={"type": st.sampled_from(["text", "image_url", "refusal", 1]), "text": JSON, "image_url": JSON}
)
FIELDS = {
    "role": st.sampled_from(["user", "assistant", "tool", "system"]) | JSON,
    "content": st.text(max_size=4) | st.lists(PART, max_size=2) | JSON,
    "tool_calls": st.lists(CALL, max_size=2) | JSON,
    "tool_call_id": JSON,
    "refusal": JSON,
}


@settings(max_examples=100, deadline=None)
@given(st.lists(st.fixed_dictionaries({}, optional=FIELDS), max_size=4))
def test_any_messages_are_read_or_refused_but_never_crash(found: list[Message]) -> None:
    try:
        messages = decoded(messages=found)["messages"]
        check_messages(messages)
        read_prompt(messages)
    except ApiError as error:
        # Whatever is refused can be sent.
        json.dumps(error.plain().body)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.fixed_dictionaries({}, optional={"type": JSON, "function": JSON}), max_size=2), JSON)
def test_any_tools_are_taken_or_refused_but_never_crash(tools: list[Any], choice: Any) -> None:
    try:
        decoded(tools=tools or None, tool_choice=choice)
    except ApiError as error:
        json.dumps(error.plain().body)
