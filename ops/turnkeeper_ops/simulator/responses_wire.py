"""One request in the wire format of the OpenAI Responses API: read, resolved, and answered in kind.

Where a step says what this API cannot: half an end is no end at all; an error in the last chunk is a
failed response; `pause_turn` and `context_window` stop as max_output_tokens does, `refusal` as
content_filter.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from turnkeeper_ops.simulator.answers import begun, count_tokens
from turnkeeper_ops.simulator.encoding import EVENT_STREAM, JSON, body_frames, encode_event
from turnkeeper_ops.simulator.novelties import NOVEL_USAGE, NOVELTY, NovelEventSeries
from turnkeeper_ops.simulator.openai_errors import (
    ApiError,
    error_body,
    lost_anchor,
    plain_status,
)
from turnkeeper_ops.simulator.responses_events import EventSeries, MakeId, output_usage
from turnkeeper_ops.simulator.responses_items import chars_of, check_history, resolve, text_of
from turnkeeper_ops.simulator.scripts import (
    ErrorEventStep,
    ErrorShape,
    LostAnchorStep,
    Missing,
    StatusStep,
    StopReason,
)
from turnkeeper_ops.simulator.seals import Seal
from turnkeeper_ops.simulator.vault import Item, StoredResponse, Vault, history
from turnkeeper_ops.simulator.wire import Frame, FrameKind, PlainResponse, Prompt, Reply


@dataclass(frozen=True, slots=True, kw_only=True)
class ResponsesRequest:
    """A request that the API would take."""

    parameters: Mapping[str, Any]
    input: tuple[Item, ...]
    previous: StoredResponse | None

    @property
    def stream(self) -> bool:
        """Whether the answer is an event stream."""
        return bool(self.parameters.get("stream"))

    @property
    def store(self) -> bool:
        """Whether the answer can be retrieved and continued from; on unless it is switched off."""
        return self.parameters.get("store") is not False

    @property
    def background(self) -> bool:
        """Whether the model goes on when the client is gone."""
        return bool(self.parameters.get("background"))

    @property
    def instructions(self) -> str:
        """The instructions, which are not inherited along a chain."""
        return self.parameters.get("instructions") or ""


def read_request(parameters: Mapping[str, Any], vault: Vault, seal: Seal) -> ResponsesRequest:
    """Resolve the input and check it against the whole conversation, and against the seal of the API key.

    Raises:
        ApiError: In the API's own words.
    """
    previous = _previous(parameters.get("previous_response_id"), vault)
    items = resolve(parameters["input"], vault, seal)
    check_history((*history(previous), *items), vault)
    return ResponsesRequest(parameters=parameters, input=items, previous=previous)


def read_prompt(request: ResponsesRequest) -> Prompt:
    """Return what the model reads."""
    items = (*history(request.previous), *request.input)
    cached = request.previous.chars if request.previous else 0
    users = [index for index, item in enumerate(items) if item.get("role") == "user"]
    since = items[users[-1] + 1 :] if users else items
    return Prompt(
        user_texts=tuple(text_of(items[index]) for index in users),
        tool_outputs=tuple(text_of(item) for item in since if "output" in item),
        input_tokens=count_tokens(cached + chars_of(request.input) + len(request.instructions)),
        cached_tokens=count_tokens(cached),
        chained=request.previous is not None,
    )


@dataclass(slots=True, kw_only=True)
class ResponsesWire:
    """The answering side of one request."""

    request: ResponsesRequest
    prompt: Prompt
    response_id: str
    make_id: MakeId
    seal: Seal
    """What encrypted content is closed with."""
    now: float
    """Seconds since the epoch."""
    final: dict[str, Any] = field(default_factory=dict)
    """The response at its end; filled by `frames`."""
    _told: list[Frame] = field(default_factory=list)
    """Encoded once: a background response is told to several, with the same ids."""
    _reply: Reply = field(default_factory=Reply)
    """What `frames` encoded."""

    @property
    def content_type(self) -> str:
        """The content type of an answer."""
        return EVENT_STREAM if self.request.stream else JSON

    @property
    def streams(self) -> bool:
        """Whether the client asked for an event stream."""
        return self.request.stream

    def frames(self, reply: Reply) -> list[Frame]:
        """Encode the whole answer; the last frame is the terminal one.

        A background response without a stream is only announced: nothing in that body is an answer.
        """
        if self.request.background and not self.request.stream:
            return [Frame(piece.data) for piece in body_frames(self.snapshot("queued"), 1)]
        if not self._told:
            self._reply = reply
            kind = NovelEventSeries if reply.novel else EventSeries
            series = kind(self._opening(), self.make_id, self._seal_for_client)
            series.open()
            series.say(reply)
            self.final = self._final(reply, series.output)
            series.close(self.final)
            self._told = series.frames
        return self._told if self.request.stream else body_frames(self.final, len(reply.chunks))

    def loose_end(self, missing: Missing) -> bytes:  # noqa: ARG002  # one event, one end
        """Return nothing: the terminal event is one, and it comes or does not come."""
        return b""

    def torn_frame(self) -> bytes:
        """Return a piece of text that cannot be decoded."""
        return b'data: {"type":"response.output_text.delta","delta":"\n\n'

    def error_frames(self, step: ErrorEventStep, sent: int) -> list[Frame]:
        """Encode an error that strikes a stream after *sent* frames."""
        return [
            Frame(encode_event(name, {"type": name, "sequence_number": number, **fields}), FrameKind.TERMINAL)
            for number, (name, fields) in enumerate(self._error_events(step), start=sent)
        ]

    def plain_error(self, step: ErrorEventStep) -> PlainResponse:
        """Say the error of *step* without a stream: as a failed response, or else with status 500."""
        if step.shape in {ErrorShape.RESPONSE_FAILED, ErrorShape.FINISH_REASON}:
            return PlainResponse(status=200, body=self.failed(step), headers={})
        body = error_body(step.message, kind=step.error_type, code=step.code)
        return PlainResponse(status=500, body=body, headers={})

    def plain(self, step: StatusStep) -> PlainResponse:
        """Fill in what the provider would say with this status."""
        return plain_status(step, "input")

    def lost_anchor(self, step: LostAnchorStep) -> PlainResponse:
        """Say that the anchor is gone, in the spelling of *step*."""
        anchor = self.request.parameters.get("previous_response_id") or self.response_id
        status, body = lost_anchor(step.spelling, anchor)
        return PlainResponse(status=step.status or status, body=body, headers={})

    def as_stream(self) -> "ResponsesWire":
        """Return the same answer as a stream, whether the client asked for one or not."""
        streaming = replace(self.request, parameters={**self.request.parameters, "stream": True})
        return replace(self, request=streaming)

    def snapshot(self, status: str) -> dict[str, Any]:
        """Return the response before its end."""
        return self._response(status=status)

    def cancelled(self, chunks: int) -> dict[str, Any]:
        """Return the response that was called off after so many chunks; what had been said is paid for."""
        usage = self._usage(begun(self._reply, chunks)) if chunks else None
        return self._response(status="cancelled", usage=usage)

    def failed(self, step: ErrorEventStep) -> dict[str, Any]:
        """Return the response that the error of *step* has ended."""
        return self._response(status="failed", error={"code": step.code, "message": step.message})

    def stored(self) -> StoredResponse | None:
        """Return what is to be stored, or None where the request forbids it."""
        if not self.request.store:
            return None
        previous, output = self.request.previous, tuple(self.final["output"])
        return StoredResponse(
            id=self.response_id,
            previous=previous,
            conversation=previous.conversation if previous else self.response_id,
            input=self.request.input,
            output=output,
            chars=(previous.chars if previous else 0) + chars_of(self.request.input) + chars_of(output),
            body=self.final,
        )

    @property
    def _seal_for_client(self) -> Seal | None:
        included = self.request.parameters.get("include") or []
        return self.seal if "reasoning.encrypted_content" in included else None

    def _error_events(self, step: ErrorEventStep) -> list[tuple[str, dict[str, Any]]]:
        nested = {"error": {"type": step.error_type, "code": step.code, "message": step.message, "param": None}}
        match step.shape:
            case ErrorShape.FLAT:
                return [("error", {"code": step.code, "message": step.message, "param": None})]
            case ErrorShape.NESTED:
                return [("error", nested)]
            case ErrorShape.RESPONSE_FAILED | ErrorShape.FINISH_REASON:
                return [("response.failed", {"response": self.failed(step)})]
            case ErrorShape.ERROR_THEN_FAILED:
                return [("error", nested), ("response.failed", {"response": self.failed(step)})]

    def _opening(self) -> dict[str, Any]:
        return self._response(status="queued" if self.request.background else "in_progress")

    def _final(self, reply: Reply, output: list[dict[str, Any]]) -> dict[str, Any]:
        novel = {"novel": NOVELTY} if reply.novel else {}
        return self._response(
            **novel,
            status="incomplete" if reply.stopped else "completed",
            output=output,
            incomplete_details={"reason": _REASONS[reply.stopped]} if reply.stopped else None,
            completed_at=None if reply.stopped else int(self.now),
            usage=self._usage(reply),
        )

    def _usage(self, reply: Reply) -> dict[str, Any]:
        output, reasoning = output_usage(reply)
        return {
            "input_tokens": self.prompt.input_tokens,
            "input_tokens_details": {"cached_tokens": self.prompt.cached_tokens, "cache_write_tokens": 0},
            "output_tokens": output,
            "output_tokens_details": {"reasoning_tokens": reasoning},
            "total_tokens": self.prompt.input_tokens + output,
            **(NOVEL_USAGE if reply.novel else {}),
        }

    def _response(self, *, status: str, **changed: Any) -> dict[str, Any]:
        """Return the response object; what the request set is echoed, as the API does."""
        echoed = {name: self.request.parameters.get(name) for name in _ECHOED}
        set_or_default = {name: _or(self.request.parameters.get(name), usual) for name, usual in _DEFAULTS.items()}
        return {
            "id": self.response_id,
            "object": "response",
            "created_at": int(self.now),
            "status": status,
            "background": self.request.background,
            "completed_at": None,
            "error": None,
            "incomplete_details": None,
            "output": [],
            "usage": None,
            **echoed,
            **set_or_default,
            "store": self.request.store,
            **changed,
        }


_REASONS: Mapping[StopReason, str] = {
    "max_output_tokens": "max_output_tokens",
    "content_filter": "content_filter",
    "pause_turn": "max_output_tokens",
    "refusal": "content_filter",
    "context_window": "max_output_tokens",
}
_ECHOED = (
    "instructions",
    "max_output_tokens",
    "max_tool_calls",
    "model",
    "previous_response_id",
    "prompt_cache_key",
    "safety_identifier",
    "user",
)
_DEFAULTS: Mapping[str, Any] = {
    "metadata": {},
    "parallel_tool_calls": True,
    "reasoning": {"effort": None, "summary": None},
    "service_tier": "default",
    "temperature": 1.0,
    "text": {"format": {"type": "text"}, "verbosity": "medium"},
    "tool_choice": "auto",
    "tools": [],
    "top_logprobs": 0,
    "top_p": 1.0,
    "truncation": "disabled",
}


def _or(value: Any, usual: Any) -> Any:
    return usual if value is None else value


def _previous(response_id: str | None, vault: Vault) -> StoredResponse | None:
    if response_id is None:
        return None
    if not response_id.startswith("resp"):
        raise ApiError(
            f"Invalid 'previous_response_id': '{response_id}'. Expected an ID that begins with 'resp'.",
            param="previous_response_id",
            code="invalid_value",
        )
    previous = vault.get(response_id)
    if previous is None:
        raise ApiError(
            f"Previous response with id '{response_id}' not found.",
            param="previous_response_id",
            code="previous_response_not_found",
        )
    return previous
