"""A reply as the event series of Anthropic Messages.  Pure; the ids are made by whoever calls."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from turnkeeper_ops.simulator.encoding import encode_event
from turnkeeper_ops.simulator.responses_events import MakeId
from turnkeeper_ops.simulator.scripts import StopReason
from turnkeeper_ops.simulator.seals import Seal
from turnkeeper_ops.simulator.wire import Call, Frame, FrameKind, Reply

Delta = tuple[str, str, FrameKind]
"""The type of a delta, its text, and whether it is a chunk of the answer."""

_STOP_REASONS: Mapping[StopReason, str] = {
    "max_output_tokens": "max_tokens",
    "content_filter": "refusal",
    "pause_turn": "pause_turn",
    "refusal": "refusal",
    "context_window": "model_context_window_exceeded",
}
_DELTA_FIELDS: Mapping[str, str] = {
    "text_delta": "text",
    "thinking_delta": "thinking",
    "signature_delta": "signature",
    "input_json_delta": "partial_json",
}


def stop_reason(reply: Reply) -> str:
    """Return why *reply* ends.

    >>> stop_reason(Reply(stopped="max_output_tokens"))
    'max_tokens'
    """
    if reply.stopped:
        return _STOP_REASONS[reply.stopped]
    return "tool_use" if reply.calls else "end_turn"


@dataclass(slots=True)
class MessageSeries:
    """The events of one message, and the content that they add up to."""

    message: Mapping[str, Any]
    """The message at its beginning, without content."""
    make_id: MakeId
    seal: Seal
    """What thinking and what a search found are sealed with."""
    frames: list[Frame] = field(default_factory=list)
    content: list[dict[str, Any]] = field(default_factory=list)

    def say(self, reply: Reply, pending: str | None = None) -> None:
        """Add everything but the end.

        Args:
            reply: What the model says.
            pending: The id of the search in which the model was paused; None: there is none.
        """
        self._add("message_start", message=self.message)
        if pending is not None:
            self._find(pending)
        self._say(reply)

    def _say(self, reply: Reply) -> None:
        if reply.reasoning is not None:
            self._think(reply.reasoning, redacted=reply.redacted)
        if reply.search is not None:
            self._search(reply.search, found=reply.found)
        if reply.chunks:
            opening = {"type": "text", "text": ""}
            deltas = [("text_delta", piece, FrameKind.CHUNK) for piece in reply.chunks]
            self._block(opening, deltas, {"type": "text", "text": "".join(reply.chunks)})
        for call in reply.calls:
            self._call(call)

    def _add(self, event: str, kind: FrameKind = FrameKind.EVENT, /, **fields: Any) -> None:
        self.frames.append(Frame(encode_event(event, {"type": event, **fields}), kind))

    def _block(self, opening: Mapping[str, Any], deltas: Sequence[Delta], whole: dict[str, Any]) -> None:
        """Announce a block, stream it, and close it."""
        index = len(self.content)
        self._add("content_block_start", index=index, content_block=opening)
        if not index:
            self._add("ping")
        for name, text, kind in deltas:
            self._delta(index, name, text, kind)
        self._add("content_block_stop", index=index)
        self.content.append(whole)

    def _delta(self, index: int, name: str, text: str, kind: FrameKind) -> None:
        self._add("content_block_delta", kind, index=index, delta={"type": name, _DELTA_FIELDS[name]: text})

    def _think(self, thinking: str, *, redacted: bool) -> None:
        if redacted:
            block = {"type": "redacted_thinking", "data": self.seal.close(self.make_id("rt"))}
            self._block(block, [], block)
            return
        signature = self.seal.sign(thinking)
        deltas = [
            ("thinking_delta", thinking, FrameKind.CHUNK),
            ("signature_delta", signature, FrameKind.EVENT),
        ]
        opening = {"type": "thinking", "thinking": "", "signature": ""}
        self._block(opening, deltas, {**opening, "thinking": thinking, "signature": signature})

    def _search(self, query: str, *, found: bool) -> None:
        call_id, asked = self.make_id("srvtoolu"), {"query": query}
        call = {"type": "server_tool_use", "id": call_id, "name": "web_search", "input": {}}
        self._block(call, [("input_json_delta", json.dumps(asked), FrameKind.EVENT)], {**call, "input": asked})
        if found:
            self._find(call_id)

    def _find(self, call_id: str) -> None:
        """Add what the search of this id found."""
        page = {
            "type": "web_search_result",
            "title": "Simulated result",
            "url": "https://example.com/",
            "encrypted_content": self.seal.close(call_id),
            "page_age": None,
        }
        result = {"type": "web_search_tool_result", "tool_use_id": call_id, "content": [page]}
        self._block(result, [], result)

    def _call(self, call: Call) -> None:
        opening = {"type": "tool_use", "id": call.call_id or self.make_id("toolu"), "name": call.name, "input": {}}
        deltas = [
            # The API opens with nothing at all.
            ("input_json_delta", "", FrameKind.EVENT),
            *(("input_json_delta", piece, FrameKind.CHUNK) for piece in call.pieces),
        ]
        self._block(opening, deltas, {**opening, "input": _as_object(call.arguments)})


def _as_object(arguments: str) -> dict[str, Any]:
    """Return the arguments as the object that a whole message must hold, whatever the model wrote."""
    try:
        decoded = json.loads(arguments or "{}")
    except ValueError:
        decoded = None
    return decoded if isinstance(decoded, dict) else {"INVALID_JSON": arguments}
