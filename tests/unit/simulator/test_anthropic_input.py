"""The input of Anthropic Messages: what is taken, and in which words the rest is refused."""

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from turnkeeper_ops.simulator.anthropic_errors import MessagesError, check_headers
from turnkeeper_ops.simulator.anthropic_input import Parameters, decode, read_parameters
from turnkeeper_ops.simulator.anthropic_pauses import Pauses
from turnkeeper_ops.simulator.anthropic_turns import check_turns
from turnkeeper_ops.simulator.anthropic_wire import read_prompt
from turnkeeper_ops.simulator.seals import Seal

Message = dict[str, Any]

SEAL = Seal("sk-1")
USER: Message = {"role": "user", "content": "Hello"}
ASSISTANT: Message = {"role": "assistant", "content": "Hi"}
VERSION = {"anthropic-version": "2023-06-01"}
THINKING = {"type": "thinking", "thinking": "Hm", "signature": SEAL.sign("Hm")}
TEXT = {"type": "text", "text": "Hi"}


def redacted(key: str = "sk-1") -> dict[str, Any]:
    return {"type": "redacted_thinking", "data": Seal(key).close("rt_1")}


def search(key: str = "sk-1") -> list[dict[str, Any]]:
    found = {
        "type": "web_search_result",
        "title": "Rivers",
        "url": "https://example.com/",
        "encrypted_content": Seal(key).close("srvtoolu_1"),
    }
    return [
        {"type": "server_tool_use", "id": "srvtoolu_1", "name": "web_search", "input": {"query": "rivers"}},
        {"type": "web_search_tool_result", "tool_use_id": "srvtoolu_1", "content": [found]},
    ]


def use(*ids: str) -> Message:
    blocks = [{"type": "tool_use", "id": each, "name": "f", "input": {"a": 1}} for each in ids]
    return {"role": "assistant", "content": blocks}


def results(*ids: str, before: tuple[dict[str, Any], ...] = ()) -> Message:
    blocks = [{"type": "tool_result", "tool_use_id": each, "content": "sunny"} for each in ids]
    return {"role": "user", "content": [*before, *blocks]}


def read(**parameters: Any) -> Parameters:
    read = read_parameters({"model": "m", "max_tokens": 100, "messages": [USER], **parameters})
    check_turns(read.messages, SEAL, Pauses())
    return read


def refused(**parameters: Any) -> str:
    with pytest.raises(MessagesError) as caught:
        read(**parameters)
    return str(caught.value)


@pytest.mark.parametrize(
    "messages",
    [
        pytest.param([USER], id="a message"),
        pytest.param([USER, USER, ASSISTANT, ASSISTANT, USER], id="messages in a row are merged"),
        pytest.param([USER, use("a"), results("a")], id="a call and its result"),
        pytest.param([USER, use("a", "b"), results("b"), results("a"), USER], id="results in two messages"),
        pytest.param([USER, {"role": "assistant", "content": [THINKING, TEXT]}, USER], id="thinking"),
        pytest.param([USER, {"role": "assistant", "content": [redacted(), TEXT]}, USER], id="redacted thinking"),
        pytest.param([USER, {"role": "assistant", "content": [*search(), TEXT]}, USER], id="a search"),
        pytest.param(
            [
                USER,
                {"role": "assistant", "content": search()[:1]},
                {"role": "assistant", "content": [*search()[1:], TEXT]},
                USER,
            ],
            id="a search in two messages",
        ),
        pytest.param(
            [USER, {"role": "assistant", "content": [{"type": "novel_block", "levels": [1]}]}, USER], id="novel"
        ),
        pytest.param(
            [{"role": "user", "content": [{"type": "image", "source": {"type": "url", "url": "x"}}]}], id="image"
        ),
    ],
)
def test_proper_messages_are_taken(messages: list[Message]) -> None:
    assert len(read(messages=messages).messages) == len(messages)


@pytest.mark.parametrize(
    ("messages", "words"),
    [
        pytest.param([ASSISTANT], 'first message must use the "user" role', id="the model speaks first"),
        pytest.param([], "messages: at least one message is required", id="no message"),
        pytest.param([{"role": "system", "content": "x"}], "messages.0.role: Input should be", id="system"),
        pytest.param([{"role": "user", "content": ""}], "text content blocks must be non-empty", id="no text"),
        pytest.param([{"role": "user", "content": " \n"}], "must contain non-whitespace text", id="blank text"),
        pytest.param([{"role": "user", "content": []}], "must have non-empty content", id="no blocks"),
        pytest.param([{"role": "user", "content": [{}]}], "messages.0.content.0: Unable to", id="no type"),
        pytest.param(
            [{"role": "user", "content": [{"type": "text"}]}],
            "messages.0.content.0.text.text: Field required",
            id="a block without its text",
        ),
        pytest.param(
            [USER, use("a"), USER],
            "messages.1: `tool_use` ids were found without `tool_result` blocks immediately after: a.",
            id="a call without its result",
        ),
        pytest.param(
            [USER, use("a", "b"), results("a")], "immediately after: b.", id="one of two results is missing"
        ),
        pytest.param([USER, use("a")], "immediately after: a.", id="a call at the end"),
        pytest.param([USER, use("a"), USER, results("a")], "immediately after: a.", id="a result after text"),
        pytest.param(
            [USER, use("a"), results("a", before=(TEXT,))], "immediately after: a.", id="text before the result"
        ),
        pytest.param(
            [USER, use("a"), results("a"), ASSISTANT, results("a")],
            "messages.4.content.0: unexpected `tool_use_id` found in `tool_result` blocks: a.",
            id="a result that comes too late",
        ),
        pytest.param([USER, use("a"), results("a", "a")], "must have a single result", id="two results"),
        pytest.param([USER, use("a", "a"), results("a")], "`tool_use` ids must be unique", id="two calls"),
        pytest.param(
            [USER, {"role": "assistant", "content": [{**THINKING, "thinking": "Hm!"}, TEXT]}, USER],
            "messages.1.content.0: Invalid `signature` in `thinking` block",
            id="thinking that was changed",
        ),
        pytest.param(
            [USER, {"role": "assistant", "content": [{"type": "thinking", "thinking": "Hm"}, TEXT]}, USER],
            "messages.1.content.0.thinking.signature: Field required",
            id="thinking without its signature",
        ),
        pytest.param(
            [
                USER,
                {"role": "assistant", "content": [{**THINKING, "signature": Seal("sk-2").sign("Hm")}, TEXT]},
                USER,
            ],
            "messages.1.content.0: Invalid `signature` in `thinking` block",
            id="thinking of another account",
        ),
        pytest.param(
            [USER, {"role": "assistant", "content": [redacted("sk-2"), TEXT]}, USER],
            "messages.1.content.0: Invalid `data` in `redacted_thinking` block",
            id="redacted thinking of another account",
        ),
        pytest.param(
            [USER, {"role": "assistant", "content": [*search("sk-2"), TEXT]}, USER],
            "messages.1.content.1.content.0: Invalid `encrypted_content` in `web_search_result` block",
            id="what another account found",
        ),
        pytest.param(
            [USER, {"role": "assistant", "content": [search()[0], TEXT]}, USER],
            "messages.1: `web_search` tool use with id `srvtoolu_1` was found without a corresponding",
            id="a search that found nothing",
        ),
        pytest.param(
            [USER, ASSISTANT], "does not support assistant message prefill", id="an answer begun by the client"
        ),
        pytest.param(
            [USER, {"role": "assistant", "content": []}],
            "does not support assistant message prefill",
            id="an empty answer at the end",
        ),
        pytest.param(
            [USER, {"role": "assistant", "content": [THINKING]}, USER],
            "messages.1: The final block in an assistant message cannot be `thinking`.",
            id="thinking that led nowhere",
        ),
        pytest.param(
            [{"role": "user", "content": [THINKING]}],
            "`thinking` blocks can only be in `assistant` messages",
            id="a user who thinks",
        ),
    ],
)
def test_the_rest_is_refused_in_the_words_of_the_api(messages: list[Message], words: str) -> None:
    assert words in refused(messages=messages)


@pytest.mark.parametrize(
    ("parameters", "words"),
    [
        pytest.param({"max_tokens": None}, "max_tokens: Input should be a valid integer", id="no limit"),
        pytest.param({"max_tokens": 0}, "max_tokens: Input should be greater than 0", id="nothing may be said"),
        pytest.param({"temprature": 1}, "temprature: Extra inputs are not permitted", id="misspelt"),
        pytest.param({"temperature": 2}, "less than or equal to 1", id="too hot"),
        pytest.param({"model": "no-such-x"}, "model: no-such-x", id="unknown model"),
        pytest.param({"tools": [{}]}, "tools.0.name: Field required", id="a tool without a name"),
        pytest.param({"tools": [{"name": "f"}]}, "tools.0.custom.input_schema", id="a tool without a schema"),
        pytest.param(
            {"tools": [{"name": "f", "input_schema": {}}] * 2}, "Tool names must be unique", id="the same tool"
        ),
    ],
)
def test_parameters_are_checked(parameters: dict[str, Any], words: str) -> None:
    assert words in refused(**parameters)


def test_max_tokens_is_required() -> None:
    with pytest.raises(MessagesError, match="max_tokens: Field required"):
        read_parameters({"model": "m", "messages": [USER]})


def test_a_body_must_be_an_object() -> None:
    with pytest.raises(MessagesError, match="not valid JSON"):
        decode(b"[]")


@pytest.mark.parametrize(
    ("headers", "words"),
    [
        pytest.param({**VERSION}, "x-api-key header is required", id="no key"),
        pytest.param({**VERSION, "x-api-key": "sk-2"}, "invalid x-api-key", id="another key"),
        pytest.param({**VERSION, "authorization": "Bearer sk-2"}, "invalid x-api-key", id="another token"),
        pytest.param({**VERSION, "authorization": "Basic sk-1"}, "header is required", id="another scheme"),
        pytest.param({"x-api-key": "sk-1"}, "anthropic-version: header is required", id="no version"),
    ],
)
def test_headers_are_checked(headers: dict[str, str], words: str) -> None:
    with pytest.raises(MessagesError, match=words):
        check_headers(headers, ["sk-1"])


@pytest.mark.parametrize(
    "headers", [{"x-api-key": "sk-1"}, {"authorization": "Bearer sk-1"}], ids=["key", "token"]
)
def test_a_key_comes_in_either_header(headers: dict[str, str]) -> None:
    check_headers({**VERSION, **headers}, ["sk-1"])


def test_the_model_reads_the_users_texts_and_the_results_since() -> None:
    prompt = read_prompt(read(system="Be kind", messages=[USER, use("a"), results("a"), ASSISTANT, USER]))
    later = read_prompt(read(messages=[USER, use("a"), results("a")]))

    assert (prompt.user_texts, prompt.tool_outputs) == (("Hello", "Hello"), ())
    assert (later.user_texts, later.tool_outputs) == (("Hello",), ("sunny",))
    assert prompt.input_tokens == 8


SCALARS = st.none() | st.booleans() | st.integers(-5, 5) | st.text("ab1_", max_size=4)
JSON = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner)
)
KINDS = st.sampled_from(
    ["text", "tool_use", "tool_result", "thinking", "server_tool_use", "web_search_tool_result"]
)
BLOCK = st.fixed_dictionaries(
    {"type": KINDS | JSON},
    optional=dict.fromkeys(
        ("text", "id", "name", "input", "tool_use_id", "content", "thinking", "signature"), JSON
    ),
)
MESSAGE = st.fixed_dictionaries(
    {"role": st.sampled_from(["user", "assistant"]) | JSON, "content": st.lists(BLOCK, max_size=3) | JSON}
)


@settings(max_examples=100, deadline=None)
@given(st.lists(MESSAGE, max_size=4))
def test_any_messages_are_read_or_refused_but_never_crash(messages: list[Message]) -> None:
    try:
        read_prompt(read(messages=messages))
    except MessagesError as error:
        # Whatever is refused can be sent.
        json.dumps(error.plain().body)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.fixed_dictionaries({}, optional={"name": JSON, "type": JSON}), max_size=2), JSON)
def test_any_tools_are_taken_or_refused_but_never_crash(tools: list[Any], system: Any) -> None:
    try:
        read(tools=tools)
        read(system=system)
    except MessagesError as error:
        json.dumps(error.plain().body)
