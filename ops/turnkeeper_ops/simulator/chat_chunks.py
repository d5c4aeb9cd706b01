"""A reply as the chunks of Chat Completions, or as one completion.  Pure; the ids are made by whoever calls."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from turnkeeper_ops.simulator.encoding import encode_data
from turnkeeper_ops.simulator.scripts import StopReason
from turnkeeper_ops.simulator.wire import Call, Frame, FrameKind, Reply

DONE = b"data: [DONE]\n\n"

_FINISH_REASONS: Mapping[StopReason, str] = {
    "max_output_tokens": "length",
    "content_filter": "content_filter",
    "pause_turn": "length",
    "refusal": "content_filter",
    "context_window": "length",
}


def finish_reason(reply: Reply) -> str:
    """Return why *reply* ends.

    >>> finish_reason(Reply(stopped="max_output_tokens"))
    'length'
    """
    if reply.stopped:
        return _FINISH_REASONS[reply.stopped]
    return "tool_calls" if reply.calls else "stop"


def opening_content(reply: Reply) -> str | None:
    """Return the content that the role comes with: null where there are calls and no text."""
    return None if reply.calls and not reply.chunks else ""


def message_of(reply: Reply, calls: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return the whole message; *calls* are those of *reply*, with their ids."""
    message: dict[str, Any] = {
        "role": "assistant",
        "content": "".join(reply.chunks) or opening_content(reply),
        "refusal": None,
        "annotations": [],
    }
    if reply.reasoning is not None and not reply.redacted:
        message["reasoning_content"] = reply.reasoning
    if calls:
        message["tool_calls"] = list(calls)
    return message


def whole_call(call: Call, call_id: str) -> dict[str, Any]:
    """Return a call as a message holds it."""
    return {"id": call_id, "type": "function", "function": {"name": call.name, "arguments": call.arguments}}


@dataclass(slots=True)
class ChunkSeries:
    """The chunks of one completion."""

    head: Mapping[str, Any]
    """What every chunk repeats: id, model, time."""
    usage_follows: bool
    """Whether the client asked for usage; then every chunk but the last of all says `"usage": null`."""
    frames: list[Frame] = field(default_factory=list)

    def say(self, reply: Reply, call_ids: Sequence[str]) -> None:
        """Add everything but the end."""
        self._add({"role": "assistant", "content": opening_content(reply), "refusal": None}, FrameKind.EVENT)
        if reply.reasoning and not reply.redacted:
            self._add({"reasoning_content": reply.reasoning})
        for piece in reply.chunks:
            self._add({"content": piece})
        for index, (call, call_id) in enumerate(zip(reply.calls, call_ids, strict=True)):
            self._call(index, call, call_id)

    def end(self, reason: str | None, usage: Mapping[str, Any], *, done: bool = True) -> bytes:
        """Encode the end: the reason, the usage where it was asked for, and the mark."""
        counted = encode_data({**self.head, "choices": [], "usage": usage}) if self.usage_follows else b""
        return self.chunk({}, reason) + counted + (DONE if done else b"")

    def chunk(self, delta: Mapping[str, Any], reason: str | None = None, **rest: Any) -> bytes:
        """Encode one chunk."""
        usage = {"usage": None} if self.usage_follows else {}
        choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": reason}
        return encode_data({**self.head, "choices": [choice], **usage, **rest})

    def _add(self, delta: Mapping[str, Any], kind: FrameKind = FrameKind.CHUNK) -> None:
        self.frames.append(Frame(self.chunk(delta), kind))

    def _call(self, index: int, call: Call, call_id: str) -> None:
        named = {"name": call.name, "arguments": ""}
        opening = {"index": index, "id": call_id, "type": "function", "function": named}
        self._add({"tool_calls": [opening]}, FrameKind.EVENT)
        for piece in call.pieces:
            self._add({"tool_calls": [{"index": index, "function": {"arguments": piece}}]})
