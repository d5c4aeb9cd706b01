"""One request in the wire format of Anthropic Messages.

The terminal frame is the whole end: `message_delta` and `message_stop`.
Where a step says what this API cannot: an error event has one shape, whatever is asked for, and
OpenAI's codes become Anthropic's types; `content_filter` stops as `refusal`.  Stored is what belongs to a
message thread, and that is the anchor that can be lost; a spelling of OpenAI's says that it is not found.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, assert_never

from turnkeeper_ops.simulator.answers import count_tokens
from turnkeeper_ops.simulator.anthropic_errors import (
    API_ERROR,
    TYPES,
    MessagesError,
    error_body,
    event_type,
    plain_status,
)
from turnkeeper_ops.simulator.anthropic_events import MessageSeries, stop_reason
from turnkeeper_ops.simulator.anthropic_input import Parameters, Text, ToolResult
from turnkeeper_ops.simulator.anthropic_threads import is_thread_code, thread_error
from turnkeeper_ops.simulator.anthropic_turns import INVALID_SIGNATURE, pending_search
from turnkeeper_ops.simulator.encoding import EVENT_STREAM, JSON, body_frames, encode_event, encode_json
from turnkeeper_ops.simulator.novelties import NOVEL_USAGE, NOVELTY, NovelMessageSeries
from turnkeeper_ops.simulator.responses_events import MakeId, output_usage
from turnkeeper_ops.simulator.scripts import ErrorEventStep, LostAnchorStep, Missing, Spelling, StatusStep
from turnkeeper_ops.simulator.seals import Seal
from turnkeeper_ops.simulator.wire import Frame, FrameKind, PlainResponse, Prompt, Reply


def read_prompt(parameters: Parameters, *, chained: bool = False) -> Prompt:
    """Return what the model reads; a message that only holds results of tools is no message of the user's.

    Args:
        parameters: The request, with the whole conversation.
        chained: Whether a part of the conversation comes from a thread; it is read, and paid for, all the same.
    """
    texts: list[str] = []
    outputs: list[str] = []
    for message in parameters.messages:
        if message.role != "user":
            continue
        said = [block.text for block in message.content if isinstance(block, Text)]
        if said:
            texts.append("".join(said))
            outputs.clear()
        outputs += [_output_of(block) for block in message.content if isinstance(block, ToolResult)]
    return Prompt(
        user_texts=tuple(texts),
        tool_outputs=tuple(outputs),
        input_tokens=count_tokens(_chars_of(parameters)),
        cached_tokens=0,
        chained=chained,
    )


@dataclass(slots=True, kw_only=True)
class MessagesWire:
    """The answering side of one request."""

    parameters: Parameters
    prompt: Prompt
    message_id: str
    request_id: str
    make_id: MakeId
    seal: Seal
    """What thinking and what a search found are sealed with."""
    content: list[dict[str, Any]] = field(default_factory=list)
    """What the whole message holds; filled by `frames`."""
    _reply: Reply = field(default_factory=Reply)
    """What `frames` encoded."""

    @property
    def content_type(self) -> str:
        """The content type of an answer."""
        return EVENT_STREAM if self.streams else JSON

    @property
    def streams(self) -> bool:
        """Whether the client asked for an event stream."""
        return bool(self.parameters.stream)

    def frames(self, reply: Reply) -> list[Frame]:
        """Encode the whole answer; the last frame is the terminal one."""
        self._reply = reply
        kind = NovelMessageSeries if reply.novel else MessageSeries
        opening = self._message([], {**self._input_usage(), "output_tokens": 1})
        series = kind(opening, self.make_id, self.seal)
        series.say(reply, pending_search(self.parameters.messages))
        self.content = series.content
        if self.streams:
            return [*series.frames, Frame(self._end(stop_reason(reply)) + _STOP, FrameKind.TERMINAL)]
        whole = self._message(series.content, self._usage(reply)) | self._ending(stop_reason(reply))
        return body_frames(whole | ({"novel": NOVELTY} if reply.novel else {}), len(reply.chunks))

    @property
    def paused(self) -> bool:
        """Whether what `frames` encoded is to be continued."""
        return self._reply.stopped == "pause_turn"

    def loose_end(self, missing: Missing) -> bytes:
        """Return what is left of the end; without a stream nothing is."""
        if not self.streams:
            return b""
        match missing:
            case Missing.EVERYTHING:
                return b""
            case Missing.DONE:
                return self._end(stop_reason(self._reply))
            case Missing.REASON:
                return self._end(None) + _STOP
            case other:
                assert_never(other)

    def torn_frame(self) -> bytes:
        """Return a piece of text that cannot be decoded."""
        return b'event: content_block_delta\ndata: {"type":"content_block_delta","index":0,"delta":{"te\n\n'

    def error_frames(self, step: ErrorEventStep, sent: int) -> list[Frame]:  # noqa: ARG002  # events have no numbers
        """Encode an error that strikes a stream."""
        details = {"details": {"error_code": step.code}} if is_thread_code(step.code) else {}
        body = error_body(step.message, event_type(step), self.request_id, **details)
        return [Frame(encode_event("error", body), FrameKind.TERMINAL)]

    def plain_error(self, step: ErrorEventStep) -> PlainResponse:
        """Say the error of *step* with the status that belongs to its type."""
        kind = event_type(step)
        status = next((status for status in _USUAL_STATUSES if TYPES[status] == kind), 500)
        return PlainResponse(status=status, body=error_body(step.message, kind, self.request_id), headers={})

    def plain(self, step: StatusStep) -> PlainResponse:
        """Fill in what the provider would say with this status."""
        return plain_status(step, self.request_id)

    def lost_anchor(self, step: LostAnchorStep) -> PlainResponse:
        """Say that the thread is gone, or the seal of its thoughts, in the spelling of *step*."""
        if step.spelling is Spelling.INVALID_ENCRYPTED_CONTENT:
            error = MessagesError(f"messages.1.content.0: {INVALID_SIGNATURE}")
        else:
            error = thread_error(step.spelling)
        status = step.status or error.status
        details = {} if error.details is None else {"details": error.details}
        body = error_body(str(error), TYPES.get(status, API_ERROR), self.request_id, **details)
        return PlainResponse(status=status, body=body, headers={})

    def _message(self, content: list[dict[str, Any]], usage: Mapping[str, Any]) -> dict[str, Any]:
        return {
            "id": self.message_id,
            "type": "message",
            "role": "assistant",
            "model": self.parameters.model,
            "content": content,
            "stop_reason": None,
            "stop_sequence": None,
            "usage": usage,
        }

    def _end(self, reason: str | None) -> bytes:
        novel = {"novel": NOVELTY} if self._reply.novel else {}
        delta, usage = {**self._ending(reason), **novel}, self._usage(self._reply)
        return encode_event("message_delta", {"type": "message_delta", "delta": delta, "usage": usage, **novel})

    def _ending(self, reason: str | None) -> dict[str, Any]:
        refused = {"type": "refusal", "category": None, "explanation": None}
        details = {"stop_details": refused} if reason == "refusal" else {}
        return {"stop_reason": reason, "stop_sequence": None, **details}

    def _usage(self, reply: Reply) -> dict[str, Any]:
        """Return the usage of the whole message: what `message_delta` says is no difference but the sum."""
        searches = (
            {}
            if reply.search is None
            else {"server_tool_use": {"web_search_requests": 1, "web_fetch_requests": 0}}
        )
        novel = NOVEL_USAGE if reply.novel else {}
        return {**self._input_usage(), "output_tokens": output_usage(reply)[0], **searches, **novel}

    def _input_usage(self) -> dict[str, Any]:
        return {
            "input_tokens": self.prompt.input_tokens,
            "cache_creation_input_tokens": 0,
            "cache_read_input_tokens": self.prompt.cached_tokens,
        }


_STOP = encode_event("message_stop", {"type": "message_stop"})
_USUAL_STATUSES = (*(status for status in TYPES if status != 503), 503)  # noqa: PLR2004  # 529 is Anthropic's own


def _output_of(result: ToolResult) -> str:
    return "".join(block.text for block in result.content or () if isinstance(block, Text))


def _chars_of(parameters: Parameters) -> int:
    """Return how many characters there are, markup left out: those of every text, input and result."""
    blocks = [block for message in parameters.messages for block in message.content]
    texts = sum(len(block.text) for block in (*(parameters.system or ()), *blocks) if isinstance(block, Text))
    results = sum(len(_output_of(block)) for block in blocks if isinstance(block, ToolResult))
    return texts + results + sum(len(encode_json(block.input)) for block in blocks if block.type == "tool_use")
