"""The Anthropic Messages API.

https://docs.anthropic.com/en/docs/build-with-claude/streaming. An answer needs a `stop_reason` and `message_stop`;
an `error` may come at any time, under status 200. Usage is cumulative, and a message that breaks off has cost its
input already.
"""

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, assert_never

from turnkeeper.events import PartKind
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
from turnkeeper_worker.providers.fields import (
    Path,
    counts,
    mapping,
    objects,
    storable,
    storable_object,
    text_or_none,
)
from turnkeeper_worker.providers.history import Block, Wire, arguments_object, conversation, text_block, tool_name
from turnkeeper_worker.providers.interface import Call, Result
from turnkeeper_worker.providers.stream import EventStream
from turnkeeper_worker.replay import plain_name

PATH = "/messages"
VERSION = "2023-06-01"

#: Fields that are ours to set.
RESERVED_OPTIONS = frozenset({"messages", "model", "stream"})

MAX_NAME_CHARS = 128
UNSHOWN_IMAGE = "(An image that cannot be shown here.)"
FAILED_TOOL = "The tool failed and said nothing."

_MEDIA_TYPES = frozenset({"image/jpeg", "image/png", "image/gif", "image/webp"})
_THOUGHTS = frozenset({"thinking", "redacted_thinking"})
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
_PIECES: Mapping[str, tuple[str, PartKind]] = {
    "text_delta": ("text", "text"),
    "thinking_delta": ("thinking", "reasoning"),
    "input_json_delta": ("partial_json", "tool_call"),
}
"""Type of a delta → the field that holds its piece, and what the piece is."""
_USAGE: Mapping[str, Path] = {
    "input_tokens": ("input_tokens",),
    "cached_tokens": ("cache_read_input_tokens",),
    "cache_write_tokens": ("cache_creation_input_tokens",),
    "output_tokens": ("output_tokens",),
    "reasoning_tokens": ("output_tokens_details", "thinking_tokens"),
}


def headers(key: str | None) -> dict[str, str]:
    """Return the headers by which the API knows its callers, and which of its versions they speak."""
    return {"anthropic-version": VERSION} | ({"x-api-key": key} if key else {})


def request_body(call: Call, *, max_output_tokens: int) -> dict[str, Any]:
    """Return the JSON of the request.

    Args:
        call: What is asked.
        max_output_tokens: The limit that the API demands, where the call's options set none.
    """
    options = {name: value for name, value in call.options.items() if name not in RESERVED_OPTIONS}
    messages = conversation(_spoken(call.history, may_search=_may_search(options)))
    body: dict[str, Any] = options | {
        "model": call.model,
        "messages": messages,
        "max_tokens": options.get("max_tokens") or max_output_tokens,
        "stream": True,
    }
    if call.instructions:
        body["system"] = call.instructions
    return _adjusted(body)


def _adjusted(body: dict[str, Any]) -> dict[str, Any]:
    """Adjust what was asked for to a history in which another provider called tools."""
    if _lacks_thought(body["messages"]) and mapping(body.get("thinking")).get("type") == "enabled":
        # The API wants a thought before the calls that are answered now, or no thinking at all.
        body = {name: value for name, value in body.items() if name != "thinking"}
    if not body.get("tools") and (names := _called(body["messages"])):
        # The API takes no calls without tools; these cannot be called.
        tools = [{"name": name, "input_schema": {"type": "object"}} for name in names]
        body = body | {"tools": tools, "tool_choice": {"type": "none"}}
    return body


def _may_search(options: Mapping[str, Any]) -> bool:
    return any(str(tool.get("type")).startswith("web_search_") for tool in objects(options.get("tools")))


def _lacks_thought(messages: list[Wire]) -> bool:
    """Whether the tool calls that are answered now were made without a thought."""
    called = messages[-2]["content"] if len(messages) > 1 else []
    return any(block["type"] == "tool_use" for block in called) and called[0]["type"] not in _THOUGHTS


def _called(messages: Iterable[Wire]) -> list[str]:
    blocks = (block for message in messages for block in message["content"])
    return sorted({block["name"] for block in blocks if block["type"] == "tool_use"})


def _spoken(history: Iterable[Message], *, may_search: bool) -> Iterator[Wire]:
    for message in history:
        blocks = [block for part in message.parts for block in _blocks(part, may_search=may_search)]
        # A message may not end in a thought, and one that led to nothing is of no use.
        while blocks and blocks[-1]["type"] in _THOUGHTS:
            blocks.pop()
        if blocks:
            yield {"role": message.role, "content": blocks}


def _blocks(part: Part, *, may_search: bool) -> Iterator[Block]:
    match part:
        case Text(text=text) | Refusal(text=text):
            if text.strip():
                yield text_block(text)
        case Image(url=url):
            yield _image(url)
        case Reasoning():
            yield from _thought(part)
        case ToolCall():
            yield _tool_use(part)
        case ToolResult():
            yield _tool_result(part)
        case WebSearch():
            yield from _search(part) if may_search else ()
        case other:
            assert_never(other)


def _thought(thought: Reasoning) -> Iterator[Block]:
    """Give a thought back under its seal; without one it is not Anthropic's, or damaged, and would be refused."""
    if thought.signature:
        yield {"type": "thinking", "thinking": thought.text, "signature": thought.signature}
    elif thought.redacted:
        yield {"type": "redacted_thinking", "data": thought.redacted}


def _image(url: str) -> Block:
    head, _, data = url.partition(",")
    media_type, *parameters = head.removeprefix("data:").split(";")
    if url.startswith("https://"):
        return {"type": "image", "source": {"type": "url", "url": url}}
    if head.startswith("data:") and "base64" in parameters and media_type in _MEDIA_TYPES and data:
        return {"type": "image", "source": {"type": "base64", "media_type": media_type, "data": data}}
    return text_block(UNSHOWN_IMAGE)


def _tool_use(call: ToolCall) -> Block:
    return {
        "type": "tool_use",
        "id": plain_name(call.call_id, MAX_NAME_CHARS),
        "name": tool_name(call.name, MAX_NAME_CHARS),
        "input": arguments_object(call.arguments),
    }


def _tool_result(result: ToolResult) -> Block:
    block: Block = {"type": "tool_result", "tool_use_id": plain_name(result.call_id, MAX_NAME_CHARS)}
    if result.output.strip():
        block["content"] = result.output
    elif result.is_error:
        # Nothing is a result, but an error has to say something.
        block["content"] = FAILED_TOOL
    return block | ({"is_error": True} if result.is_error else {})


def _search(search: WebSearch) -> Iterator[Block]:
    """Give a search back together with what it found, or not at all."""
    sources = search.sources or ()
    if not (search.id and sources and all(source.encrypted for source in sources)):
        return
    asked = {name: value for name, value in (search.action or {}).items() if name != "type"}
    yield {"type": "server_tool_use", "id": search.id, "name": "web_search", "input": asked}
    found = [
        {
            "type": "web_search_result",
            "url": source.url,
            "title": source.title or source.url,
            "encrypted_content": source.encrypted,
        }
        | ({"page_age": source.age} if source.age else {})
        for source in sources
    ]
    yield {"type": "web_search_tool_result", "tool_use_id": search.id, "content": found}


@dataclass(slots=True)
class _Block:
    """A content block that is still being written."""

    start: Mapping[str, Any]
    pieces: list[str] = field(default_factory=list)
    signature: list[str] = field(default_factory=list)
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
        self._count(message.get("usage"))

    def _count(self, usage: object) -> None:
        self._tokens |= {name: count for name, count in mapping(usage).items() if count is not None}
        self.usage = read_usage(self._tokens)

    def _hear(self, event: Mapping[str, Any]) -> Result | None:
        block = self._blocks.get(_index(event))
        if block is None:
            return self.broken("a delta belongs to no block")
        delta = mapping(event.get("delta"))
        if known := _PIECES.get(str(delta.get("type"))):
            name, kind = known
            if isinstance(piece := delta.get(name), str):
                block.pieces.append(piece)
                if block.type != "server_tool_use":
                    self._said(kind, piece)
        elif isinstance(seal := delta.get("signature"), str):
            block.signature.append(seal)
        return None

    def _close(self, event: Mapping[str, Any]) -> None:
        if block := self._blocks.get(_index(event)):
            block.is_open = False

    def _stop(self, event: Mapping[str, Any]) -> None:
        self._count(event.get("usage"))
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
        return self._answer(_read_blocks(self._blocks.values()), _FINISHES.get(reason, reason), why=why)


def _index(event: Mapping[str, Any]) -> int | None:
    index = event.get("index")
    return index if isinstance(index, int) else None


def _read_blocks(blocks: Iterable[_Block]) -> Iterator[Part]:
    """Bring the blocks of a message into the normal form; what has no place in it is left out."""
    every = list(blocks)
    found = {
        str(block.start.get("tool_use_id")): _read_sources(block.start.get("content"))
        for block in every
        if block.type == "web_search_tool_result"
    }
    for block in every:
        match block.type:
            case "text" if text := block.text("text"):
                yield Text(text=storable(text))
            case "thinking":
                yield _read_thought(block)
            case "redacted_thinking":
                yield Reasoning(redacted=text_or_none(block.start.get("data")))
            case "tool_use":
                yield _read_call(block)
            case "server_tool_use" if block.start.get("name") == "web_search":
                yield _read_search(block, found)
            case _:
                continue


def _read_thought(block: _Block) -> Reasoning:
    written = block.text("thinking")
    kept = storable(written)
    seal = str(block.start.get("signature") or "") + "".join(block.signature)
    # A text that had to be changed to be stored no longer fits its seal.
    is_intact = seal and (kept, storable(seal)) == (written, seal)
    return Reasoning(text=kept, signature=seal if is_intact else None)


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
