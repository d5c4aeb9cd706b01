"""The OpenAI Responses API: streaming, stored, chained by `previous_response_id`.

https://platform.openai.com/docs/api-reference/responses-streaming. Closed by default: only a terminal event whose
response says `completed` or `incomplete` is an answer; everything else, the end of the stream included, is a
failure. The status inside the response counts, not the event's name: compatible servers get the name wrong.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from math import isfinite
from typing import Any

from turnkeeper.events import PartKind
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
from turnkeeper_worker.failures import Failure, Phase, Signal
from turnkeeper_worker.providers.interface import Answer, Call, Failed, Listener, Result

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


def request_body(call: Call, *, store: bool) -> dict[str, Any]:
    """Return the JSON of the request."""
    options = {name: value for name, value in call.options.items() if name not in RESERVED_OPTIONS}
    body: dict[str, Any] = options | {
        "model": call.model,
        "input": list(_items(call.history)),
        "stream": True,
        "store": store,
    }
    if call.instructions is not None:
        # Not inherited along a chain, so sent each time.
        body["instructions"] = call.instructions
    if call.previous_response_id is not None:
        body["previous_response_id"] = call.previous_response_id
    if not store:
        asked = options.get("include")
        wanted = (one for one in asked if isinstance(one, str)) if isinstance(asked, list) else ()
        body["include"] = sorted({*wanted, "reasoning.encrypted_content"})
    return body


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
    if part.encrypted is None:
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
            return {"type": "function_call", "call_id": call_id, "name": name, "arguments": arguments}
        case _:
            return None
    return {"type": "message", "role": "assistant", "content": [content]}


@dataclass(slots=True)
class ResponsesStream:
    """Reads the events of one response until its end."""

    listener: Listener
    provider: str
    store: bool
    is_chained: bool
    response_id: str | None = None
    is_visible: bool = False
    has_begun: bool = False
    _items: list[dict[str, Any]] = field(default_factory=list)

    def take(self, event: object) -> Result | None:
        """Hear one event; return the result when it was the last one."""
        if not isinstance(event, dict):
            return self.broken("an event is no JSON object")
        self.has_begun = True
        name = _text_or_none(event.get("type"))
        if kind := _PIECES.get(name or ""):
            self._hear(kind, event.get("delta"))
            return None
        if name == "response.output_item.done" and isinstance(event.get("item"), dict):
            self._items.append(event["item"])
            return None
        if name in _TERMINAL:
            return self._end(event.get("response"))
        if name == "error" or event.get("error"):
            return self._failed(event, Signal.SSE_ERROR_EVENT)
        if name == "response.created":
            self._start(event.get("response"))
        return None

    def cut(self) -> Failed:
        """Judge a stream that ended without a terminal event."""
        return self._failed(None, Signal.STREAM_TRUNCATED)

    def broken(self, what: str) -> Failed:
        """Judge a stream whose bytes make no sense: it was damaged on the way, as one that was cut."""
        return self._failed({"message": f"The stream is malformed: {what}."}, Signal.STREAM_TRUNCATED)

    def failure(self, body: object, signal: Signal | None, **facts: Any) -> Failure:
        """State the facts that the stream knows."""
        phase = Phase.MID_STREAM if self.has_begun else Phase.BEFORE_FIRST_EVENT
        return Failure(
            provider=self.provider,
            **({"phase": phase} | facts),
            signal=signal,
            body=body,
            chained=self.is_chained,
            visible=self.is_visible,
        )

    def _failed(self, body: object, signal: Signal | None, usage: dict[str, int] | None = None) -> Failed:
        return Failed(failure=self.failure(body, signal), response_id=self.response_id, usage=usage)

    def _start(self, response: object) -> None:
        if isinstance(response, dict) and (response_id := _text_or_none(response.get("id"))):
            self.response_id = response_id
            self.listener.started(response_id)

    def _hear(self, kind: PartKind, delta: object) -> None:
        if isinstance(delta, str) and delta:
            self.is_visible = self.is_visible or kind in {"text", "refusal"}
            self.listener.said(kind, storable(delta))

    def _end(self, response: object) -> Result:
        if not isinstance(response, dict):
            return self.broken("the last event holds no response")
        self.response_id = _text_or_none(response.get("id")) or self.response_id
        usage = read_usage(response.get("usage"))
        match response.get("status"):
            case "completed":
                return self._answer(response, usage, "stop")
            case "incomplete":
                reason = _text_or_none(_mapping(response.get("incomplete_details")).get("reason"))
                return self._answer(response, usage, reason or "incomplete")
            case "cancelled":
                return self._failed(response.get("error"), Signal.PROVIDER_CANCELLED, usage)
            case "failed":
                return self._failed({"error": response.get("error")}, Signal.SSE_ERROR_EVENT, usage)
            case _:
                return self._failed(response.get("error"), Signal.STREAM_TRUNCATED, usage)

    def _answer(self, response: dict[str, Any], usage: dict[str, int] | None, finish: str) -> Result:
        items = response.get("output")
        parts = read_items(items if isinstance(items, list) and items else self._items)
        has_words = any(_says_something(part) for part in parts)
        if not has_words and finish == "content_filter":
            return self._failed(None, Signal.CONTENT_FILTER, usage)
        if not has_words:
            why = response.get("incomplete_details")
            # Why it stopped decides whether another attempt, which costs as much, can do better.
            return self._failed({"incomplete_details": why} if why else None, Signal.EMPTY_OUTPUT, usage)
        calls_tools = any(isinstance(part, ToolCall) for part in parts)
        return Answer(
            messages=(Message(role="assistant", parts=parts),),
            response_id=self.response_id,
            model=_text_or_none(response.get("model")),
            usage=usage,
            finish="tool_calls" if calls_tools and finish == "stop" else finish,
            # An incomplete response, or one whose tool calls are still open, leads a chain astray.
            can_anchor=self.store and finish == "stop" and not calls_tools and self.response_id is not None,
        )


def read_items(items: Iterable[object]) -> tuple[Part, ...]:
    """Bring output items into the normal form; what has no place in it is left out."""
    return tuple(part for item in items if isinstance(item, dict) for part in _read_item(item))


def _read_item(item: dict[str, Any]) -> Iterator[Part]:
    match item.get("type"):
        case "message":
            yield from _read_content(item.get("content"))
        case "reasoning":
            summary = item.get("summary")
            ones = summary if isinstance(summary, list) else ()
            texts = [one.get("text", "") for one in ones if isinstance(one, dict)]
            yield Reasoning(
                id=_text_or_none(item.get("id")),
                encrypted=_text_or_none(item.get("encrypted_content")),
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
                id=_text_or_none(item.get("id")),
                action=_storable_object(action) if isinstance(action, dict) else None,
            )
        case _:
            return


def _read_content(content: object) -> Iterator[Part]:
    for one in content if isinstance(content, list) else ():
        match one:
            case {"type": "output_text", "text": str(text)}:
                yield Text(text=storable(text))
            case {"type": "refusal", "refusal": str(text)}:
                yield Refusal(text=storable(text))
            case _:
                continue


def _says_something(part: Part) -> bool:
    match part:
        case Text(text=text) | Refusal(text=text):
            return bool(text)
        case _:
            return isinstance(part, ToolCall)


def _text_or_none(value: object) -> str | None:
    return storable(value) if isinstance(value, str) else None


def _mapping(value: object) -> Mapping[str, Any]:
    return value if isinstance(value, dict) else {}


def _storable_object(value: dict[str, Any]) -> dict[str, Any]:
    return {storable(name): _storable(item) for name, item in value.items()}


def _storable(value: object) -> object:
    match value:
        case str():
            return storable(value)
        case dict():
            return _storable_object(value)
        case list():
            return [_storable(item) for item in value]
        case float() if not isfinite(value):
            return None
        case _:
            return value


def storable(text: str) -> str:
    """Replace what PostgreSQL cannot store: NUL, and halves of surrogate pairs.

    >>> storable("a" + chr(0) + "b")
    'a\ufffdb'
    """
    if "\0" in text:
        text = text.replace("\0", "\ufffd")
    return text if text.isascii() else text.encode("utf-8", "replace").decode()


def read_usage(usage: object) -> dict[str, int] | None:
    """Flatten the tokens of a response; what is absent stays absent, because absent is not zero."""
    if not isinstance(usage, dict):
        return None
    inputs = _mapping(usage.get("input_tokens_details"))
    outputs = _mapping(usage.get("output_tokens_details"))
    found = {
        "input_tokens": usage.get("input_tokens"),
        "cached_tokens": inputs.get("cached_tokens"),
        "output_tokens": usage.get("output_tokens"),
        "reasoning_tokens": outputs.get("reasoning_tokens"),
        "total_tokens": usage.get("total_tokens"),
    }
    return {name: count for name, count in found.items() if isinstance(count, int)} or None
