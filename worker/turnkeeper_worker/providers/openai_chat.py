"""OpenAI's Chat Completions, and what many servers make of it: vLLM, Ollama, OpenRouter, Groq, LM Studio, Azure.

https://platform.openai.com/docs/api-reference/chat-streaming. An answer needs a `finish_reason`, or `[DONE]` after
something was said, because Ollama leaves the reason out. What follows the reason, its usage, is waited for.
Servers differ in what they take, so the oldest form of everything is sent: plain text where there is only text.
"""

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from turnkeeper.messages import Image, Message, Part, Reasoning, Refusal, Text, ToolCall, ToolResult
from turnkeeper_worker.failures import Signal
from turnkeeper_worker.providers.fields import (
    Path,
    counts,
    mapping,
    objects,
    storable,
    text_or_none,
    url_citations,
)
from turnkeeper_worker.providers.history import (
    Block,
    Wire,
    all_tools,
    arguments_object,
    conversation,
    result_text,
    text_block,
    tool_name,
)
from turnkeeper_worker.providers.interface import Call, Result, ToolSpec
from turnkeeper_worker.providers.stream import EventStream

PATH = "/chat/completions"

#: Fields that are ours to set; with a second choice (`n`) nobody would know which one is the answer.
RESERVED_OPTIONS = frozenset({"messages", "model", "n", "stream", "stream_options"})

_FINISHES: Mapping[str, str] = {
    "stop": "stop",
    "eos": "stop",  # Together
    "eos_token": "stop",  # Hugging Face
    "stop_sequence": "stop",  # Hugging Face
    "tool_calls": "tool_calls",
    "function_call": "tool_calls",
    "length": "max_output_tokens",
    "content_filter": "content_filter",
    "sensitive": "content_filter",  # Zhipu
}
"""What a server calls the end → what we call it; an unknown reason keeps its name, and its answer its words."""
_BROKEN_FINISHES = frozenset(
    {
        "error",  # OpenRouter, Mistral
        "network_error",  # Zhipu
        "insufficient_system_resource",  # DeepSeek
    }
)
_THOUGHTS = ("reasoning_content", "reasoning")
"""Where thoughts are told, DeepSeek's field first; servers that fill both say the same twice."""
_USAGE: Mapping[str, Path] = {
    "input_tokens": ("prompt_tokens",),
    "cached_tokens": ("prompt_tokens_details", "cached_tokens"),
    "cache_write_tokens": ("prompt_tokens_details", "cache_write_tokens"),
    "output_tokens": ("completion_tokens",),
    "reasoning_tokens": ("completion_tokens_details", "reasoning_tokens"),
    "total_tokens": ("total_tokens",),
}


def request_body(call: Call) -> dict[str, Any]:
    """Return the JSON of the request."""
    options = {name: value for name, value in call.options.items() if name not in RESERVED_OPTIONS}
    if tools := all_tools(options.get("tools"), [_tool(tool) for tool in call.tools], _name_of):
        options["tools"] = tools
    return options | {
        "model": call.model,
        "messages": list(_messages(call)),
        "stream": True,
        # Without it a stream does not say what it cost.
        "stream_options": {"include_usage": True},
    }


def _tool(tool: ToolSpec) -> Block:
    function = {"name": tool.name, "description": tool.description, "parameters": dict(tool.parameters)}
    return {"type": "function", "function": function}


def _name_of(tool: Block) -> object:
    return mapping(tool.get("function")).get("name")


def _messages(call: Call) -> Iterator[Wire]:
    if call.instructions:
        yield {"role": "system", "content": call.instructions}
    spoken = (one for message in call.history for one in _spoken(message))
    for message in conversation(spoken):
        yield {**message, "content": _content(message["content"])}


def _content(content: str | list[Block]) -> str | list[Block] | None:
    """Write blocks of nothing but text as text, which is all that some servers read."""
    if isinstance(content, str) or any(block["type"] != "text" for block in content):
        return content
    return "\n\n".join(block["text"] for block in content) or None


def _spoken(message: Message) -> Iterator[Wire]:
    yield from _from_user(message.parts) if message.role == "user" else _from_assistant(message.parts)


def _from_user(parts: Iterable[Part]) -> Iterator[Wire]:
    content: list[Block] = []
    for part in parts:
        match part:
            case ToolResult(call_id=call_id):
                yield {"role": "tool", "tool_call_id": call_id, "content": result_text(part)}
            case Text(text=text) if text:
                content.append(text_block(text))
            case Image(url=url):
                content.append({"type": "image_url", "image_url": {"url": url}})
            case _:
                continue
    if content:
        yield {"role": "user", "content": content}


def _from_assistant(parts: tuple[Part, ...]) -> Iterator[Wire]:
    # One text: a part ends where the provider ended it, which may be within a sentence.
    # A refusal is words to all servers but one.
    text = "".join(part.text for part in parts if isinstance(part, Text | Refusal))
    calls = [_tool_call(part) for part in parts if isinstance(part, ToolCall)]
    wire: Wire = {"role": "assistant", "content": [text_block(text)] if text else []}
    if calls:
        yield wire | _thoughts(parts) | {"tool_calls": calls}
    elif text:
        yield wire


def _thoughts(parts: Iterable[Part]) -> dict[str, str]:
    """Give thoughts back beside the calls that they led to: DeepSeek and Moonshot refuse those calls without them.

    They go into the field that they came in, because other servers refuse one that they do not know; and nowhere
    else, because nobody reads them there.
    """
    return {
        part.told_in: part.text for part in parts if isinstance(part, Reasoning) and part.told_in and part.text
    }


def _tool_call(call: ToolCall) -> dict[str, Any]:
    # vLLM and Ollama decode the arguments to fill their templates, and refuse what is no object.
    arguments = json.dumps(arguments_object(call.arguments), ensure_ascii=False, separators=(",", ":"))
    function = {"name": tool_name(call.name), "arguments": arguments}
    return {"id": call.call_id, "type": "function", "function": function}


@dataclass(slots=True)
class _HalfCall:
    """A tool call that is still being written."""

    call_id: str = ""
    name: str = ""
    arguments: list[str] = field(default_factory=list)


@dataclass(slots=True, kw_only=True)
class ChatStream(EventStream):
    """Reads the chunks of one completion until its end."""

    _text: list[str] = field(default_factory=list)
    _refusal: list[str] = field(default_factory=list)
    _thought: list[str] = field(default_factory=list)
    _told_in: str | None = None
    _annotations: list[object] = field(default_factory=list)
    _calls: list[_HalfCall] = field(default_factory=list)
    _calls_at: dict[object, _HalfCall] = field(default_factory=dict)
    _finish: str | None = None

    def done(self) -> Result:
        """Judge a stream that was ended by `[DONE]`: words without a reason to stop are whole, calls are not."""
        self.is_complete = self.is_complete or not self._calls
        return self.cut()

    def _take(self, event: dict[str, Any]) -> Result | None:
        if self.response_id is None:
            self._started(event.get("id"))
        if self.model is None:
            # Azure leaves it empty in a first chunk about its filters.
            self.model = text_or_none(event.get("model")) or None
        if usage := event.get("usage"):
            self._counted(counts(usage, _USAGE))
        for choice in objects(event.get("choices"))[:1]:
            self._hear(mapping(choice.get("delta")))
            self._note(choice)
            if finish := text_or_none(choice.get("finish_reason")):
                return self._end(finish, choice)
        return None

    def _hear(self, delta: Mapping[str, Any]) -> None:
        if isinstance(piece := delta.get("content"), str):
            self._text.append(piece)
            self._said("text", piece)
        if isinstance(piece := delta.get("refusal"), str):
            self._refusal.append(piece)
            self._said("refusal", piece)
        for name in _THOUGHTS:
            if isinstance(piece := delta.get(name), str) and piece:
                self._told_in = name
                self._thought.append(piece)
                self._said("reasoning", piece)
                break
        for piece in objects(delta.get("tool_calls")):
            self._hear_call(piece)

    def _note(self, choice: Mapping[str, Any]) -> None:
        # Some servers end with the whole message, and note only there what it rests on.
        for place in ("delta", "message"):
            self._annotations += objects(mapping(choice.get(place)).get("annotations"))

    def _hear_call(self, delta: Mapping[str, Any]) -> None:
        half = self._call_of(delta)
        function = mapping(delta.get("function"))
        half.call_id = half.call_id or text_or_none(delta.get("id")) or ""
        half.name = half.name or text_or_none(function.get("name")) or ""
        if isinstance(piece := function.get("arguments"), str):
            half.arguments.append(piece)
            self._said("tool_call", piece)

    def _call_of(self, delta: Mapping[str, Any]) -> _HalfCall:
        """Find the call that *delta* goes on with: by its index, unless it brings an id of its own."""
        index = delta.get("index")
        place = index if isinstance(index, int) else None
        half = self._calls_at.get(place)
        call_id = delta.get("id")
        # Gemini's imitation gives every call the same index.
        if half is None or (call_id and half.call_id and call_id != half.call_id):
            half = self._calls_at[place] = _HalfCall()
            self._calls.append(half)
        return half

    def _end(self, finish: str, choice: Mapping[str, Any]) -> Result | None:
        if finish in _BROKEN_FINISHES:
            told = ("finish_reason", "native_finish_reason", "error")
            return self.failed({name: choice[name] for name in told if name in choice}, Signal.SSE_ERROR_EVENT)
        self._finish = finish
        self.is_complete = True
        return None

    def _conclude(self) -> Result:
        finish = self._finish or "stop"
        why = {"finish_reason": finish} if self._finish else None
        return self._answer(self._parts(), _FINISHES.get(finish, finish), why=why)

    def _parts(self) -> Iterator[Part]:
        if thought := "".join(self._thought):
            told_in = "reasoning_content" if self._told_in == "reasoning_content" else "reasoning"
            yield Reasoning(text=storable(thought), told_in=told_in)
        if text := "".join(self._text):
            yield Text(text=storable(text), citations=url_citations(self._annotations, text))
        if refusal := "".join(self._refusal):
            yield Refusal(text=storable(refusal))
        for number, half in enumerate(self._calls, start=1):
            yield ToolCall(
                # Some servers leave the id out; a call without one could not be answered.
                call_id=half.call_id or f"call_{self.response_id}_{number}",
                name=half.name,
                arguments=storable("".join(half.arguments)),
            )
