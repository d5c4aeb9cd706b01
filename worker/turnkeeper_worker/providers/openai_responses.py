"""The OpenAI Responses API: streaming, stored, chained by `previous_response_id`.

https://platform.openai.com/docs/api-reference/responses-streaming. Only a terminal event whose response says
`completed` or `incomplete` makes an answer. The status inside the response counts, not the event's name:
compatible servers get the name wrong.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

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
from turnkeeper_worker.failures import Signal
from turnkeeper_worker.providers.fields import (
    Path,
    counts,
    mapping,
    objects,
    storable,
    storable_object,
    text_or_none,
    url_citations,
)
from turnkeeper_worker.providers.history import tool_name
from turnkeeper_worker.providers.interface import Call, Result, ToolSpec
from turnkeeper_worker.providers.stream import EventStream

PATH = "/responses"

#: Fields that are ours to set; an option of the same name would break chains or the stream.
RESERVED_OPTIONS = frozenset(
    {"input", "model", "previous_response_id", "conversation", "store", "stream", "background"}
)

_PIECES: Mapping[str, PartKind] = {
    "response.output_text.delta": "text",
    "response.refusal.delta": "refusal",
    "response.reasoning_summary_text.delta": "reasoning",
    "response.reasoning_text.delta": "reasoning",
    "response.function_call_arguments.delta": "tool_call",
}
_TERMINAL = frozenset({"response.completed", "response.incomplete", "response.failed"})
_ANSWERS = frozenset({"completed", "incomplete"})
_OVER = _ANSWERS | {"failed", "cancelled"}
STATUSES = _OVER | {"queued", "in_progress"}
"""How a response may be."""
_USAGE: Mapping[str, Path] = {
    "input_tokens": ("input_tokens",),
    "cached_tokens": ("input_tokens_details", "cached_tokens"),
    "cache_write_tokens": ("input_tokens_details", "cache_write_tokens"),
    "output_tokens": ("output_tokens",),
    "reasoning_tokens": ("output_tokens_details", "reasoning_tokens"),
    "total_tokens": ("total_tokens",),
}


def request_body(call: Call, *, store: bool) -> dict[str, Any]:
    """Return the JSON of the request."""
    options = {name: value for name, value in call.options.items() if name not in RESERVED_OPTIONS}
    body: dict[str, Any] = options | {
        "model": call.model,
        "input": list(_items(call.history)),
        "stream": True,
        "store": store,
    }
    if call.background:
        # What is not kept cannot go on without us.
        body |= {"background": True, "store": True}
    if call.tools:
        body["tools"] = _tools(call.tools, options.get("tools"))
    if call.instructions is not None:
        # Not inherited along a chain, so sent each time.
        body["instructions"] = call.instructions
    if call.previous_response_id is not None:
        body["previous_response_id"] = call.previous_response_id
    if not body["store"]:
        body["include"] = sorted({*included(call), "reasoning.encrypted_content"})
    return body


def included(call: Call) -> list[str]:
    """Return what the options want to see beside the usual output."""
    asked = call.options.get("include")
    return [one for one in asked if isinstance(one, str)] if isinstance(asked, list) else []


def _tools(ours: Iterable[ToolSpec], asked: object) -> list[Any]:
    """Offer the worker's tools beside those of the options, and instead of one of the same name."""
    described = [
        {
            "type": "function",
            "name": tool.name,
            "description": tool.description,
            "parameters": dict(tool.parameters),
            # The strict mode refuses a schema that leaves anything open, which most do.
            "strict": False,
        }
        for tool in ours
    ]
    names = {tool["name"] for tool in described}
    others = asked if isinstance(asked, list) else []
    return [*(other for other in others if mapping(other).get("name") not in names), *described]


def _items(history: Iterable[Message]) -> Iterator[dict[str, Any]]:
    for message in history:
        yield from _user_items(message) if message.role == "user" else _assistant_items(message)


def _user_items(message: Message) -> Iterator[dict[str, Any]]:
    content: list[dict[str, Any]] = []
    for part in message.parts:
        match part:
            case ToolResult(call_id=call_id, output=output):
                yield {"type": "function_call_output", "call_id": call_id, "output": output}
            case Text(text=text):
                content.append({"type": "input_text", "text": text})
            case Image(url=url):
                content.append({"type": "input_image", "image_url": url})
            case _:
                continue
    if content:
        yield {"type": "message", "role": "user", "content": content}


def _assistant_items(message: Message) -> Iterator[dict[str, Any]]:
    """Give each part back inline, and reasoning only together with the item it led to.

    Nothing is sent by id: a reference can be gone when the anchor is, and a reasoning item without its
    follower, or a web search without its reasoning, is refused. The answers that they led to are words, and stay.
    """
    thought: dict[str, Any] | None = None
    for part in message.parts:
        if isinstance(part, Reasoning):
            thought = _reasoning_item(part)
        elif (item := _plain_item(part)) is None:
            thought = None
        else:
            if thought is not None:
                yield thought
            thought = None
            yield item


def _reasoning_item(part: Reasoning) -> dict[str, Any] | None:
    if not part.encrypted:
        return None
    summary = [{"type": "summary_text", "text": part.text}] if part.text else []
    return {"type": "reasoning", "encrypted_content": part.encrypted, "summary": summary}


def _plain_item(part: Part) -> dict[str, Any] | None:
    match part:
        case Text(text=text):
            content = {"type": "output_text", "text": text, "annotations": []}
        case Refusal(text=text):
            content = {"type": "refusal", "refusal": text}
        case ToolCall(call_id=call_id, name=name, arguments=arguments):
            return {
                "type": "function_call",
                "call_id": call_id,
                "name": tool_name(name),
                "arguments": arguments,
            }
        case _:
            return None
    return {"type": "message", "role": "assistant", "content": [content]}


@dataclass(slots=True, kw_only=True)
class ResponsesStream(EventStream):
    """Reads the events of one response until its end."""

    _items: list[dict[str, Any]] = field(default_factory=list)
    _response: Mapping[str, Any] = field(default_factory=dict)

    def _take(self, event: dict[str, Any]) -> Result | None:
        name = event.get("type")
        if not isinstance(name, str):
            return None
        if kind := _PIECES.get(name):
            delta = event.get("delta")
            self._said(kind, delta if isinstance(delta, str) else "")
        elif name == "response.output_item.done" and isinstance(event.get("item"), dict):
            self._items.append(event["item"])
        elif name in _TERMINAL:
            return self._end(event.get("response"))
        elif name == "response.created":
            self._started(mapping(event.get("response")).get("id"))
        return None

    def judge(self, response: Mapping[str, Any]) -> Result:
        """Judge the response at its end, whether the last event brought it or a retrieval."""
        self._response = response
        self.response_id = text_or_none(response.get("id")) or self.response_id
        self.model = text_or_none(response.get("model"))
        self._counted(read_usage(response.get("usage")))
        match response.get("status"):
            case "completed" | "incomplete":
                return self._conclude()
            case "cancelled":
                return self.failed(response.get("error"), Signal.PROVIDER_CANCELLED)
            case "failed":
                return self.failed({"error": response.get("error")}, Signal.SSE_ERROR_EVENT)
            case _:
                return self.failed(response.get("error"), Signal.STREAM_TRUNCATED)

    def _end(self, response: object) -> Result:
        if not isinstance(response, dict):
            return self.broken("the last event holds no response")
        return self.judge(response)

    def _conclude(self) -> Result:
        why = self._response.get("incomplete_details")
        return self._answer(
            read_items(self._output()),
            self._finish(why),
            why={"incomplete_details": why} if why else None,
        )

    def _output(self) -> list[dict[str, Any]]:
        """Return the items of the response; some servers leave them out of the last event."""
        return objects(self._response.get("output")) or self._items

    def _finish(self, why: object) -> str:
        if self._response.get("status") == "completed":
            return "stop"
        return text_or_none(mapping(why).get("reason")) or "incomplete"


@dataclass(slots=True, kw_only=True)
class BackgroundStream(ResponsesStream):
    """Reads the events of one background response, over as many connections as it takes to hear its end."""

    is_kept: bool = True
    cursor: int = -1
    """The sequence number of the last event that was heard; -1 where none had one."""
    is_queued: bool = False
    """Whether the model has yet to begin."""
    is_told: bool = False
    """Whether the stream has come to its last event, which may leave out what only the response itself holds."""
    is_over: bool = False
    """Whether the response has ended, and not merely a connection."""
    _heard_before: int = -1

    def resume(self) -> int:
        """Prepare for another connection; return the cursor behind which it is to begin."""
        self._heard_before = self.cursor
        return self.cursor

    def take(self, event: object) -> Result | None:
        """Hear one event, unless it is one that was heard before."""
        told = mapping(event)
        number = told.get("sequence_number")
        if isinstance(number, int):
            if number <= self._heard_before:
                # Some servers begin again at the start.
                return None
            self.cursor = max(self.cursor, number)
        self._note(str(told.get("type")), mapping(told.get("response")))
        return ResponsesStream.take(self, event)

    def find(self, response: Mapping[str, Any]) -> Result | None:
        """Take in the response as it was retrieved; return the result where it is over."""
        if self.response_id and not self.has_begun:
            self.listener.started(self.response_id)
        self.has_begun = True
        status = status_of(response)
        self.is_queued = status == "queued"
        return self.judge(response) if status in _OVER else None

    def judge(self, response: Mapping[str, Any]) -> Result:
        """Judge the response at its end; see `ResponsesStream.judge`."""
        self.is_over = True
        return ResponsesStream.judge(self, response)

    def _note(self, name: str, response: Mapping[str, Any]) -> None:
        # A ping says nothing about the response.
        if name.startswith("response."):
            self.is_queued = name == "response.queued" or status_of(response) == "queued"
            self._started(response.get("id"))

    def _end(self, response: object) -> Result:
        self.is_told = True
        told = mapping(response)
        status = status_of(told)
        if status in _OVER - _ANSWERS or (status in _ANSWERS and told.get("output")):
            return self.judge(told)
        # As if the connection had been lost just before: the response itself will tell.
        return self.cut()

    def _output(self) -> list[dict[str, Any]]:
        """Return the items of the response alone: those that were heard may be a part of them."""
        return objects(self._response.get("output"))


def read_items(items: Iterable[object]) -> tuple[Part, ...]:
    """Bring output items into the normal form; what has no place in it is left out."""
    return tuple(part for item in items if isinstance(item, dict) for part in _read_item(item))


def _read_item(item: dict[str, Any]) -> Iterator[Part]:
    match item.get("type"):
        case "message":
            yield from _read_content(item.get("content"))
        case "reasoning":
            texts = [one.get("text", "") for one in objects(item.get("summary"))]
            yield Reasoning(
                id=text_or_none(item.get("id")),
                encrypted=text_or_none(item.get("encrypted_content")),
                text=storable("\n\n".join(map(str, texts))),
            )
        case "function_call":
            yield ToolCall(
                call_id=storable(str(item.get("call_id") or item.get("id") or "")),
                name=storable(str(item.get("name") or "")),
                arguments=storable(str(item.get("arguments") or "")),
            )
        case "web_search_call":
            action = item.get("action")
            yield WebSearch(
                id=text_or_none(item.get("id")),
                action=storable_object(action) if isinstance(action, dict) else None,
                sources=_read_sources(mapping(action).get("sources")),
            )
        case _:
            return


def _read_sources(sources: object) -> tuple[Source, ...] | None:
    """Read what `include: ["web_search_call.action.sources"]` brings."""
    if not isinstance(sources, list):
        return None
    return tuple(Source(url=storable(one["url"])) for one in objects(sources) if isinstance(one.get("url"), str))


def _read_content(content: object) -> Iterator[Part]:
    for one in content if isinstance(content, list) else ():
        match one:
            case {"type": "output_text", "text": str(text)}:
                yield Text(text=storable(text), citations=url_citations(one.get("annotations"), text))
            case {"type": "refusal", "refusal": str(text)}:
                yield Refusal(text=storable(text))
            case _:
                continue


def status_of(response: Mapping[str, Any]) -> str:
    """Return how a response is, in the API's word; empty where it does not say."""
    return text_or_none(response.get("status")) or ""


def read_usage(usage: object) -> dict[str, int] | None:
    """Bring the tokens of a response into our words."""
    return counts(usage, _USAGE)
