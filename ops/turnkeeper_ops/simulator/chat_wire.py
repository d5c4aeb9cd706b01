"""One request in the wire format of OpenAI Chat Completions, as OpenAI and those who copied it speak it.

The terminal frame is the whole end: `finish_reason`, the usage where it was asked for, `[DONE]`.
Where a step says what this API cannot: a `search` is left out; `pause_turn` and `context_window` stop
as `length`, `refusal` as `content_filter`; a failed response is a last chunk with `finish_reason: "error"`
and the error beside it (OpenRouter), and a flat error is a frame whose `error` is the bare sentence
(Ollama).  Nothing is stored, so an anchor is lost only to those who ask for it (`even_unchained`).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, assert_never

from turnkeeper_ops.simulator.answers import count_tokens
from turnkeeper_ops.simulator.chat_chunks import (
    DONE,
    ChunkSeries,
    finish_reason,
    message_of,
    opening_content,
    whole_call,
)
from turnkeeper_ops.simulator.chat_messages import Message, chars_of, text_of
from turnkeeper_ops.simulator.encoding import EVENT_STREAM, JSON, body_frames, encode_data, encode_json
from turnkeeper_ops.simulator.novelties import NOVEL_USAGE, NOVELTY, NovelChunkSeries, with_novelties
from turnkeeper_ops.simulator.openai_errors import error_body, lost_anchor, plain_status
from turnkeeper_ops.simulator.responses_events import MakeId, output_usage
from turnkeeper_ops.simulator.scripts import ErrorEventStep, ErrorShape, LostAnchorStep, Missing, StatusStep
from turnkeeper_ops.simulator.wire import Frame, FrameKind, PlainResponse, Prompt, Reply


def read_prompt(messages: Sequence[Message]) -> Prompt:
    """Return what the model reads."""
    users = [index for index, message in enumerate(messages) if message["role"] == "user"]
    since = messages[users[-1] + 1 :] if users else messages
    return Prompt(
        user_texts=tuple(text_of(messages[index]) for index in users),
        tool_outputs=tuple(text_of(message) for message in since if message["role"] == "tool"),
        input_tokens=count_tokens(chars_of(messages)),
        cached_tokens=0,
        chained=False,
    )


@dataclass(slots=True, kw_only=True)
class ChatWire:
    """The answering side of one request."""

    parameters: Mapping[str, Any]
    prompt: Prompt
    completion_id: str
    make_id: MakeId
    now: float
    """Seconds since the epoch."""
    _reply: Reply = field(default_factory=Reply)
    """What `frames` encoded."""

    @property
    def content_type(self) -> str:
        """The content type of an answer."""
        return EVENT_STREAM if self.streams else JSON

    @property
    def streams(self) -> bool:
        """Whether the client asked for an event stream."""
        return bool(self.parameters.get("stream"))

    def frames(self, reply: Reply) -> list[Frame]:
        """Encode the whole answer; the last frame is the terminal one."""
        self._reply = reply
        call_ids = [call.call_id or self.make_id("call") for call in reply.calls]
        if not self.streams:
            return body_frames(self._completion(reply, call_ids), len(reply.chunks))
        series = self._series(NovelChunkSeries if reply.novel else ChunkSeries)
        series.say(reply, call_ids)
        end = series.end(finish_reason(reply), self._usage(reply))
        return [*series.frames, Frame(end, FrameKind.TERMINAL)]

    def loose_end(self, missing: Missing) -> bytes:
        """Return what is left of the end; without a stream nothing is."""
        if not self.streams:
            return b""
        usage = self._usage(self._reply)
        match missing:
            case Missing.EVERYTHING:
                return b""
            case Missing.DONE:
                return self._series().end(finish_reason(self._reply), usage, done=False)
            case Missing.REASON:
                return self._series().end(None, usage)
            case other:
                assert_never(other)

    def torn_frame(self) -> bytes:
        """Return a piece of text that cannot be decoded."""
        return b'data: {"object":"chat.completion.chunk","choices":[{"delta":{"content":"\n\n'

    def error_frames(self, step: ErrorEventStep, sent: int) -> list[Frame]:  # noqa: ARG002  # chunks have no numbers
        """Encode an error that strikes a stream."""
        return [Frame(data, FrameKind.TERMINAL) for data in self._error_events(step)]

    def plain_error(self, step: ErrorEventStep) -> PlainResponse:
        """Say the error of *step* without a stream: with status 500, or inside a completion."""
        if step.shape in {ErrorShape.NESTED, ErrorShape.FLAT}:
            return PlainResponse(status=500, body=_nested(step), headers={})
        message = {"role": "assistant", "content": opening_content(Reply())}
        choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": "error"}
        body = {**self._head("chat.completion"), "choices": [choice], "error": _routed(step)}
        return PlainResponse(status=200, body=body, headers={})

    def plain(self, step: StatusStep) -> PlainResponse:
        """Fill in what the provider would say with this status."""
        return plain_status(step, "messages")

    def lost_anchor(self, step: LostAnchorStep) -> PlainResponse:
        """Say that the anchor is gone, in the spelling of *step*."""
        status, body = lost_anchor(step.spelling, self.completion_id)
        return PlainResponse(status=step.status or status, body=body, headers={})

    def _series(self, kind: type[ChunkSeries] = ChunkSeries) -> ChunkSeries:
        options = self.parameters.get("stream_options") or {}
        return kind(self._head("chat.completion.chunk"), usage_follows=bool(options.get("include_usage")))

    def _error_events(self, step: ErrorEventStep) -> list[bytes]:
        last = self._series().chunk({"content": ""}, "error", error=_routed(step)) + DONE
        match step.shape:
            case ErrorShape.NESTED:
                return [encode_data(_nested(step))]
            case ErrorShape.FLAT:
                return [encode_data({"error": step.message})]
            case ErrorShape.RESPONSE_FAILED | ErrorShape.FINISH_REASON:
                return [last]
            case ErrorShape.ERROR_THEN_FAILED:
                return [encode_data(_nested(step)), last]
            case other:
                assert_never(other)

    def _completion(self, reply: Reply, call_ids: Sequence[str]) -> dict[str, Any]:
        calls = [whole_call(call, call_id) for call, call_id in zip(reply.calls, call_ids, strict=True)]
        message = message_of(reply, calls)
        choice = {
            "index": 0,
            "message": with_novelties(message) if reply.novel else message,
            "logprobs": None,
            "finish_reason": finish_reason(reply),
        }
        novel = {"novel": NOVELTY} if reply.novel else {}
        return {**self._head("chat.completion"), **novel, "choices": [choice], "usage": self._usage(reply)}

    def _head(self, kind: str) -> dict[str, Any]:
        return {
            "id": self.completion_id,
            "object": kind,
            "created": int(self.now),
            "model": self.parameters["model"],
            "service_tier": "default",
            "system_fingerprint": "fp_simulator",
        }

    def _usage(self, reply: Reply) -> dict[str, Any]:
        output, reasoning = output_usage(reply)
        return {
            "prompt_tokens": self.prompt.input_tokens,
            "completion_tokens": output,
            "total_tokens": self.prompt.input_tokens + output,
            "prompt_tokens_details": {"cached_tokens": self.prompt.cached_tokens, "audio_tokens": 0},
            "completion_tokens_details": {
                "reasoning_tokens": reasoning,
                "audio_tokens": 0,
                "accepted_prediction_tokens": 0,
                "rejected_prediction_tokens": 0,
            },
            **(NOVEL_USAGE if reply.novel else {}),
        }


_ROUTED_CODES: Mapping[str | None, int] = {"rate_limit_exceeded": 429, "server_is_overloaded": 503}


def _nested(step: ErrorEventStep) -> dict[str, Any]:
    return error_body(step.message, kind=step.error_type, code=step.code)


def _routed(step: ErrorEventStep) -> dict[str, Any]:
    """Return the error as a router tells it: the code is a status, the provider's own words are inside."""
    raw = encode_json(_nested(step))
    metadata = {"provider_name": "simulator", "error_type": step.code, "raw": raw}
    return {"code": _ROUTED_CODES.get(step.code, 502), "message": step.message, "metadata": metadata}
