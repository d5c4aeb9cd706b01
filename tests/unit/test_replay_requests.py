"""Any history, whoever wrote it, becomes a request that each API takes, by the rules that the APIs document."""

import json
import re
from collections.abc import Iterator
from itertools import pairwise
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from turnkeeper.messages import (
    Image,
    Message,
    Part,
    Reasoning,
    Refusal,
    Source,
    Text,
    ToolCall,
    ToolResult,
    WebSearch,
)
from turnkeeper_worker.providers import anthropic_messages, openai_chat, openai_responses
from turnkeeper_worker.providers.interface import Call
from turnkeeper_worker.replay import Reader, Said, readable_by, repair

texts = st.sampled_from(["", " \n", "Hello", "Ünïcödé"])
names = st.sampled_from(["", "look", "mcp.weather/look", "n" * 130])
call_ids = st.sampled_from(["", "call_1", "toolu_2", "functions.look:0", "call_" + "x" * 60])
seals = st.sampled_from(["", "gAAAAA"])
urls = st.sampled_from(
    ["https://example.org/a.png", "data:image/png;base64,iVBO", "data:image/tiff;base64,SUkq", "data:,x"]
)
#: The shapes in which the three APIs tell thoughts and searches, whole and damaged.
thoughts = st.one_of(
    st.builds(Reasoning, text=texts, id=st.just("rs_1"), encrypted=seals),
    st.builds(Reasoning, text=texts, signature=seals),
    st.builds(Reasoning, redacted=seals),
    st.builds(Reasoning, text=texts, told_in=st.sampled_from([None, "reasoning", "reasoning_content"])),
)
sources = st.builds(Source, url=st.just("https://example.org/"), title=st.none() | texts, encrypted=seals)
queries = st.sampled_from([None, {"type": "search", "query": "rivers"}])
searches = st.one_of(
    st.builds(WebSearch, id=st.sampled_from([None, "", "ws_1"]), action=queries),
    st.builds(WebSearch, id=st.just("srvtoolu_1"), action=queries, sources=st.tuples(sources)),
)
user_parts = st.one_of(
    st.builds(Text, text=texts),
    st.builds(Image, url=urls),
    st.builds(ToolResult, call_id=call_ids, output=texts, is_error=st.booleans()),
)
assistant_parts = st.one_of(
    st.builds(Text, text=texts),
    st.builds(Refusal, text=texts),
    thoughts,
    st.builds(
        ToolCall,
        call_id=call_ids,
        name=names,
        arguments=st.sampled_from(["", "{}", '{"at": 1}', "{", "[1]", "null", '{"a": NaN}']),
    ),
    searches,
)


def messages(role: str, parts: st.SearchStrategy[Part]) -> st.SearchStrategy[Message]:
    said = st.lists(parts, max_size=4)
    return said.map(lambda chosen: Message.model_validate({"role": role, "parts": tuple(chosen)}))


ours, theirs = st.just("ours"), st.just("theirs")
histories = st.lists(
    st.one_of(
        st.builds(Said, messages("user", user_parts)),
        st.builds(Said, messages("assistant", assistant_parts), ours),
        st.builds(Said, messages("assistant", assistant_parts), theirs),
        # Nothing but care keeps parts that their side cannot say out of a stored message.
        st.builds(Said, messages("user", assistant_parts)),
        st.builds(Said, messages("assistant", user_parts), ours),
    ),
    max_size=8,
)
PLAIN = re.compile(r"[A-Za-z0-9_-]{1,64}")


def call(history: list[Said], **options: Any) -> Call:
    """Return the call that a turn would make."""
    repaired = repair(readable_by(history, Reader("ours", "seal")))
    return Call(request_id="r", model="m", history=repaired, options=options)


def check_pairs(asked: list[str], answered: list[str]) -> None:
    assert len(set(asked)) == len(asked)
    assert sorted(asked) == sorted(answered)


class TestResponses:
    """https://platform.openai.com/docs/api-reference/responses/create and wire-formats.md, 2f."""

    @given(histories, st.booleans())
    def test_any_history_is_taken(self, history: list[Said], store: bool) -> None:
        items: list[dict[str, Any]] = openai_responses.request_body(call(history), store=store)["input"]

        for item, following in pairwise([*items, {"type": "end"}]):
            assert "id" not in item
            self.check(item, following)
        self.check_calls(items)

    def check(self, item: dict[str, Any], following: dict[str, Any]) -> None:
        match item:
            case {"type": "message", "content": content}:
                assert content
            case {"type": "reasoning", "encrypted_content": str(sealed)} if sealed:
                assert following["type"] in {"message", "function_call"}
                assert following.get("role", "assistant") == "assistant"
            case {"type": "function_call", "call_id": str(call_id), "name": str(name)}:
                assert call_id
                assert PLAIN.fullmatch(name)
            case {"type": "function_call_output", "call_id": str(), "output": str()}:
                pass
            case _:
                raise AssertionError(f"no such item: {item}")

    def check_calls(self, items: list[dict[str, Any]]) -> None:
        calls = [item["call_id"] for item in items if item["type"] == "function_call"]
        outputs = [item["call_id"] for item in items if item["type"] == "function_call_output"]
        check_pairs(calls, outputs)


class TestChatCompletions:
    """https://platform.openai.com/docs/api-reference/chat/create, and the templates of vLLM's models."""

    @given(histories)
    def test_any_history_is_taken(self, history: list[Said]) -> None:
        sent: list[dict[str, Any]] = openai_chat.request_body(call(history))["messages"]

        assert sent[0]["role"] == "user"
        assert sent[-1]["role"] in {"user", "tool"}
        for message, following in pairwise([*sent, {"role": "end"}]):
            self.check(message)
            assert message["role"] == "tool" or message["role"] != following["role"]
        self.check_calls(sent)

    def check(self, message: dict[str, Any]) -> None:
        match message:
            case {"role": "user", "content": str(text)}:
                assert text
            case {"role": "user", "content": list(blocks)}:
                assert blocks
                assert all(block.get("text") or block["image_url"]["url"] for block in blocks)
            case {"role": "assistant", "tool_calls": list(calls)}:
                assert calls
                for one in calls:
                    assert PLAIN.fullmatch(one["function"]["name"])
                    assert isinstance(json.loads(one["function"]["arguments"]), dict)
            case {"role": "assistant", "content": str(text)}:
                assert text
                assert message.keys() == {"role", "content"}
            case {"role": "tool", "tool_call_id": str(), "content": str()}:
                pass
            case _:
                raise AssertionError(f"no such message: {message}")

    def check_calls(self, sent: list[dict[str, Any]]) -> None:
        """The results follow their calls at once, in messages of their own."""
        awaited: list[str] = []
        for message in [*sent, {"role": "end"}]:
            if message["role"] == "tool":
                awaited.remove(message["tool_call_id"])
                continue
            assert not awaited
            awaited = [one["id"] for one in message.get("tool_calls", ())]

    @given(histories)
    def test_foreign_ids_are_as_short_as_openai_demands(self, history: list[Said]) -> None:
        foreign = [Said(one.message, one.provider and "theirs") for one in history]

        for message in openai_chat.request_body(call(foreign))["messages"]:
            assert all(len(one["id"]) <= 40 for one in message.get("tool_calls", ()))


class TestAnthropicMessages:
    """https://docs.anthropic.com/en/api/messages, and the pages on tool use, thinking and web search."""

    TOOLS = st.sampled_from([None, [{"type": "web_search_20250305", "name": "web_search"}]])

    @given(histories, TOOLS, st.booleans())
    def test_any_history_is_taken(self, history: list[Said], tools: object, thinks: bool) -> None:
        options = {"tools": tools} | ({"thinking": {"type": "enabled"}} if thinks else {})

        sent = anthropic_messages.request_body(call(history, **options), max_output_tokens=8192)

        assert sent["max_tokens"] > 0
        roles = [message["role"] for message in sent["messages"]]
        assert roles == [("user", "assistant")[place % 2] for place in range(len(roles))]
        assert roles[-1] == "user"
        for message, following in pairwise([*sent["messages"], {"content": []}]):
            self.check_message(message, following)
        self.check_tools(sent)
        self.check_thinking(sent)

    def check_message(self, message: dict[str, Any], following: dict[str, Any]) -> None:
        assert message["content"]
        assert message["content"][-1]["type"] not in {"thinking", "redacted_thinking"}
        for block in message["content"]:
            assert block["type"] in self.ALLOWED[message["role"]]
            self.check_block(block)
        calls = [block["id"] for block in message["content"] if block["type"] == "tool_use"]
        results = [block["tool_use_id"] for block in following["content"] if block["type"] == "tool_result"]
        check_pairs(calls, results)
        # Results come before anything else that the user says.
        kinds = [block["type"] == "tool_result" for block in message["content"]]
        assert kinds == sorted(kinds, reverse=True)

    ALLOWED: dict[str, set[str]] = {  # noqa: RUF012 - a table
        "user": {"text", "image", "tool_result"},
        "assistant": {
            *("text", "thinking", "redacted_thinking", "tool_use"),
            *("server_tool_use", "web_search_tool_result"),
        },
    }

    def check_block(self, block: dict[str, Any]) -> None:
        match block:
            case {"type": "text", "text": str(text)}:
                assert text.strip()
            case {"type": "tool_use", "id": str(call_id), "name": str(name), "input": dict()}:
                assert re.fullmatch(r"[A-Za-z0-9_-]+", call_id)
                assert re.fullmatch(r"[A-Za-z0-9_-]{1,128}", name)
            case {"type": "tool_result", "is_error": True, "content": str(content)}:
                assert content.strip()
            case {"type": "tool_result"}:
                assert not block.get("is_error")
                assert block.get("content", "sunny").strip()
            case {"type": "image", "source": source}:
                self.check_image(source)
            case {"type": "thinking", "thinking": str(), "signature": str(seal)} if seal:
                pass
            case {"type": "redacted_thinking", "data": str(data)}:
                assert data
            case {"type": "server_tool_use", "id": str(), "name": "web_search", "input": dict()}:
                pass
            case {"type": "web_search_tool_result", "tool_use_id": str(), "content": list(found)}:
                assert all(one["encrypted_content"] and one["title"] for one in found)
            case _:
                raise AssertionError(f"no such block: {block}")

    def check_image(self, source: dict[str, Any]) -> None:
        match source:
            case {"type": "base64", "media_type": media_type, "data": data}:
                assert media_type in {"image/jpeg", "image/png", "image/gif", "image/webp"}
                assert data
            case {"type": "url", "url": str(url)}:
                assert url.startswith("https://")
            case _:
                raise AssertionError(f"no such image: {source}")

    def check_tools(self, sent: dict[str, Any]) -> None:
        kinds = {block["type"] for block in self.blocks(sent)}
        tools = sent.get("tools") or []
        assert tools or not kinds & {"tool_use", "tool_result"}
        assert "server_tool_use" not in kinds or tools[0]["name"] == "web_search"

    def check_thinking(self, sent: dict[str, Any]) -> None:
        if "thinking" in sent and len(sent["messages"]) > 1:
            last = [block["type"] for block in sent["messages"][-2]["content"]]
            assert "tool_use" not in last or last[0] in {"thinking", "redacted_thinking"}

    def blocks(self, sent: dict[str, Any]) -> Iterator[dict[str, Any]]:
        for message in sent["messages"]:
            yield from message["content"]
