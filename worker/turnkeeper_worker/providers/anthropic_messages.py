"""The Anthropic Messages API.

https://docs.anthropic.com/en/docs/build-with-claude/streaming. An answer needs a `stop_reason` and `message_stop`;
an `error` may come at any time, under status 200. Usage is cumulative, and a message that breaks off has cost its
input already.

With message threads the API keeps a conversation, for an hour at most: a message continues from the one before it,
once, and brings only what is new. What a thread was opened with, its system prompt and its tools, stays as it was.
"""

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from operator import methodcaller
from typing import Any

from turnkeeper.events import PartKind
from turnkeeper.messages import (
    Citation,
    Part,
    Reasoning,
    Source,
    Text,
    ToolCall,
    WebSearch,
)
from turnkeeper_worker.providers.anthropic_history import THOUGHTS, spoken
from turnkeeper_worker.providers.fields import (
    Path,
    citation,
    counts,
    mapping,
    objects,
    storable,
    storable_object,
    text_or_none,
)
from turnkeeper_worker.providers.history import Block, Wire, all_tools, arguments_object, conversation
from turnkeeper_worker.providers.interface import Call, Result, ToolSpec
from turnkeeper_worker.providers.stream import EventStream

PATH = "/messages"
VERSION = "2023-06-01"
THREADS_BETA = "message-threads-2026-08-12"

#: Fields that are ours to set.
RESERVED_OPTIONS = frozenset({"messages", "model", "stream", "thread"})

_OPENED_WITH = frozenset({"system", "tools"})
"""What a thread keeps from its first message, and refuses to be told again."""
_UNTHREADED = frozenset({"cache_control", "context_management", "fallbacks"})
"""What the API does not do in a thread; who asks for it goes without one."""
_FINISHES: Mapping[str, str] = {
    "end_turn": "stop",
    "stop_sequence": "stop",
    "tool_use": "tool_calls",
    "max_tokens": "max_output_tokens",
    "pause_turn": "pause_turn",
    "refusal": "refusal",
    "model_context_window_exceeded": "model_context_window_exceeded",
}
"""`stop_reason` → what we call it; an unknown reason keeps its name, and its answer its words."""
_PIECES: Mapping[str, str] = {
    "text_delta": "text",
    "thinking_delta": "thinking",
    "input_json_delta": "partial_json",
    "signature_delta": "signature",
    "citations_delta": "citation",
}
"""Type of a delta → the field that holds its piece; other types are a later version's, and passed over."""
_SAID: Mapping[object, PartKind] = {"text": "text", "thinking": "reasoning", "tool_use": "tool_call"}
"""Type of a block → what its pieces are to those who listen; of other blocks they hear nothing."""
_USAGE: Mapping[str, Path] = {
    "input_tokens": ("input_tokens",),
    "cached_tokens": ("cache_read_input_tokens",),
    "cache_write_tokens": ("cache_creation_input_tokens",),
    "output_tokens": ("output_tokens",),
    "reasoning_tokens": ("output_tokens_details", "thinking_tokens"),
}


def headers(key: str | None, *, threads: bool = False) -> dict[str, str]:
    """Return the headers by which the API knows its callers, and which of its versions they speak."""
    return (
        {"anthropic-version": VERSION}
        | ({"x-api-key": key} if key else {})
        | ({"anthropic-beta": THREADS_BETA} if threads else {})
    )


def request_body(call: Call, *, max_output_tokens: int, threads: bool = False) -> dict[str, Any]:
    """Return the JSON of the request.

    Args:
        call: What is asked.
        max_output_tokens: The limit that the API demands, where the call's options set none.
        threads: Whether the API is to keep the conversation, so that a later call can continue from it.
    """
    body = _plain_body(call, max_output_tokens)
    if _lacks_thought(body["messages"]) and mapping(body.get("thinking")).get("type") == "enabled":
        # The API wants a thought before the calls that are answered now, or no thinking at all.
        del body["thinking"]
    if call.is_chained:
        kept = {name: value for name, value in body.items() if name not in _OPENED_WITH}
        return kept | {"thread": {"type": "continue", "previous_message_id": call.previous_response_id}}
    if not body.get("tools") and (names := _called(body["messages"])):
        # The API takes no calls without tools, and these cannot be called; but a thread would go on to offer them.
        tools = [{"name": name, "input_schema": {"type": "object"}} for name in names]
        return body | {"tools": tools, "tool_choice": {"type": "none"}}
    opens_thread = threads and call.may_chain and not _UNTHREADED & body.keys()
    return body | ({"thread": {"type": "create"}} if opens_thread else {})


def _plain_body(call: Call, max_output_tokens: int) -> dict[str, Any]:
    """Return what is asked, as yet without regard to what the API would refuse beside it."""
    options = {name: value for name, value in call.options.items() if name not in RESERVED_OPTIONS}
    tools = all_tools(options.get("tools"), [_tool(tool) for tool in call.tools], methodcaller("get", "name"))
    said = spoken(call.history, may_search=_may_search(tools), is_paused=call.continues)
    body: dict[str, Any] = options | {
        "model": call.model,
        "messages": conversation(said, begins=not call.is_chained, ends=not call.continues),
        "max_tokens": options.get("max_tokens") or max_output_tokens,
        "stream": True,
    }
    if call.instructions:
        body["system"] = call.instructions
    if tools:
        body["tools"] = tools
    return body


def _tool(tool: ToolSpec) -> Block:
    return {"name": tool.name, "description": tool.description, "input_schema": dict(tool.parameters)}


def _may_search(tools: object) -> bool:
    return any(str(tool.get("type")).startswith("web_search_") for tool in objects(tools))


def _lacks_thought(messages: list[Wire]) -> bool:
    """Whether the tool calls that are answered now were made without a thought."""
    called = messages[-2]["content"] if len(messages) > 1 else []
    return any(block["type"] == "tool_use" for block in called) and called[0]["type"] not in THOUGHTS


def _called(messages: Iterable[Wire]) -> list[str]:
    blocks = (block for message in messages for block in message["content"])
    return sorted({block["name"] for block in blocks if block["type"] == "tool_use"})


@dataclass(slots=True)
class _Block:
    """A content block that is still being written."""

    start: Mapping[str, Any]
    pieces: list[str] = field(default_factory=list)
    signature: list[str] = field(default_factory=list)
    citations: list[object] = field(default_factory=list)
    is_open: bool = True

    @property
    def type(self) -> object:
        return self.start.get("type")

    def text(self, name: str) -> str:
        """Return the text that began in the field *name* of the start and went on in the pieces."""
        began = self.start.get(name)
        return (began if isinstance(began, str) else "") + "".join(self.pieces)

    @property
    def arguments(self) -> str:
        """The JSON of a tool's input: in pieces as a rule, whole in the start where servers do not stream it."""
        return "".join(self.pieces) or json.dumps(mapping(self.start.get("input")))


@dataclass(slots=True, kw_only=True)
class MessagesStream(EventStream):
    """Reads the events of one message until its end."""

    _blocks: dict[int | None, _Block] = field(default_factory=dict)
    _tokens: dict[str, Any] = field(default_factory=dict)
    _stopped: Mapping[str, Any] = field(default_factory=dict)

    def _take(self, event: dict[str, Any]) -> Result | None:
        match event.get("type"):
            case "content_block_delta":
                return self._hear(event)
            case "content_block_start":
                self._blocks[_index(event)] = _Block(mapping(event.get("content_block")))
            case "content_block_stop":
                self._close(event)
            case "message_start":
                self._begin(mapping(event.get("message")))
            case "message_delta":
                self._stop(event)
            case "message_stop":
                return self._end()
            case _:
                # Pings, and what a later version may say.
                pass
        return None

    def _begin(self, message: Mapping[str, Any]) -> None:
        self._started(message.get("id"))
        self.model = text_or_none(message.get("model"))
        self._tally(message.get("usage"))

    def _tally(self, usage: object) -> None:
        self._tokens |= {name: count for name, count in mapping(usage).items() if count is not None}
        self._counted(read_usage(self._tokens))

    def _hear(self, event: Mapping[str, Any]) -> Result | None:
        delta = mapping(event.get("delta"))
        kind = delta.get("type")
        if not isinstance(kind, str) or kind not in _PIECES:
            return None
        block = self._blocks.get(_index(event))
        if block is None:
            return self.broken("a delta belongs to no block")
        self._add(block, kind, delta.get(_PIECES[kind]))
        return None

    def _add(self, block: _Block, kind: str, piece: object) -> None:
        match kind, piece:
            case "citations_delta", _:
                block.citations.append(piece)
            case "signature_delta", str():
                block.signature.append(piece)
            case _, str():
                block.pieces.append(piece)
                if said := _SAID.get(block.type):
                    self._said(said, piece)
            case _:
                pass

    def _close(self, event: Mapping[str, Any]) -> None:
        if block := self._blocks.get(_index(event)):
            block.is_open = False

    def _stop(self, event: Mapping[str, Any]) -> None:
        self._tally(event.get("usage"))
        delta = mapping(event.get("delta"))
        if delta.get("stop_reason"):
            self._stopped = delta

    def _end(self) -> Result:
        if not isinstance(self._stopped.get("stop_reason"), str):
            return self.broken("the message ended without a stop_reason")
        if any(block.is_open and block.type == "tool_use" for block in self._blocks.values()):
            return self.broken("a tool call was not ended")
        return self._conclude()

    def _conclude(self) -> Result:
        reason = storable(str(self._stopped.get("stop_reason")))
        why = {name: self._stopped[name] for name in ("stop_reason", "stop_details") if self._stopped.get(name)}
        # What another model wrote in place of the one that was asked is in no thread.
        iterations = objects(self._tokens.get("iterations"))
        self.is_kept = self.is_kept and all(one.get("type") != "fallback_message" for one in iterations)
        return self._answer(_read_blocks(self._blocks.values()), _FINISHES.get(reason, reason), why=why)


def _index(event: Mapping[str, Any]) -> int | None:
    index = event.get("index")
    return index if isinstance(index, int) else None


def _read_blocks(blocks: Iterable[_Block]) -> Iterator[Part]:
    """Bring the blocks of a message into the normal form; what has no place in it is left out."""
    every = list(blocks)
    asked = {str(block.start.get("id")) for block in every if block.type == "server_tool_use"}
    found = {
        str(block.start.get("tool_use_id")): _read_sources(block.start.get("content"))
        for block in every
        if block.type == "web_search_tool_result"
    }
    # What was looked for in another message, before a pause.
    late = {search_id: sources for search_id, sources in found.items() if sources and search_id not in asked}
    for block in every:
        match block.type:
            case "text" if text := block.text("text"):
                yield Text(text=storable(text), citations=_read_citations(block))
            case "thinking":
                yield _read_thought(block)
            case "redacted_thinking":
                yield Reasoning(redacted=text_or_none(block.start.get("data")))
            case "tool_use":
                yield _read_call(block)
            case "server_tool_use" if block.start.get("name") == "web_search":
                yield _read_search(block, found)
            case "web_search_tool_result" if (search_id := str(block.start.get("tool_use_id"))) in late:
                yield WebSearch(id=storable(search_id), sources=late[search_id])
            case _:
                continue


def _read_thought(block: _Block) -> Reasoning:
    written = block.text("thinking")
    kept = storable(written)
    seal = str(block.start.get("signature") or "") + "".join(block.signature)
    # A text that had to be changed to be stored no longer fits its seal.
    is_intact = seal and (kept, storable(seal)) == (written, seal)
    return Reasoning(text=kept, signature=seal if is_intact else None)


def _read_citations(block: _Block) -> tuple[Citation, ...]:
    told = [*objects(block.start.get("citations")), *objects(block.citations)]
    found = (citation(one) for one in told if one.get("type") == "web_search_result_location")
    return tuple(one for one in found if one is not None)


def _read_call(block: _Block) -> ToolCall:
    return ToolCall(
        call_id=storable(str(block.start.get("id") or "")),
        name=storable(str(block.start.get("name") or "")),
        arguments=storable(block.arguments),
    )


def _read_search(block: _Block, found: Mapping[str, tuple[Source, ...] | None]) -> WebSearch:
    search_id = str(block.start.get("id"))
    asked = storable_object(arguments_object(block.arguments))
    return WebSearch(id=storable(search_id), action={"type": "search"} | asked, sources=found.get(search_id))


def _read_sources(content: object) -> tuple[Source, ...] | None:
    """Read what a search found; where it failed, the content is an error and no list."""
    if not isinstance(content, list):
        return None
    return tuple(
        Source(
            url=storable(one["url"]),
            title=text_or_none(one.get("title")),
            age=text_or_none(one.get("page_age")),
            encrypted=text_or_none(one.get("encrypted_content")),
        )
        for one in objects(content)
        if isinstance(one.get("url"), str)
    )


def read_usage(usage: object) -> dict[str, int] | None:
    """Bring the tokens of a message into our words.

    >>> read_usage({"input_tokens": 3, "cache_read_input_tokens": 7})
    {'input_tokens': 10, 'cached_tokens': 7}
    """
    found = counts(usage, _USAGE)
    if found and "input_tokens" in found:
        # Anthropic counts apart what goes into its cache and what comes out of it; all of it is input.
        found["input_tokens"] += found.get("cached_tokens", 0) + found.get("cache_write_tokens", 0)
    return found
