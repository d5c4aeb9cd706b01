"""The facts of a failure, as the caller saw them.  No judgement is made here."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum


class Phase(StrEnum):
    """How far the call had come."""

    CONNECT = "connect"
    BEFORE_RESPONSE = "before_response"
    RESPONSE = "response"
    STREAM_START = "stream_start"
    BEFORE_FIRST_EVENT = "before_first_event"
    MID_STREAM = "mid_stream"
    STREAM_END = "stream_end"
    RESUME = "resume"


class Signal(StrEnum):
    """What the caller itself knows, whatever the exception says."""

    STREAM_TRUNCATED = "stream_truncated"
    SSE_ERROR_EVENT = "sse_error_event"
    HTTP2_STREAM_RESET = "http2_stream_reset"
    HTTP2_GOAWAY = "http2_goaway"
    STARTUP_TIMEOUT = "startup_timeout"
    STREAM_SILENCE_TIMEOUT = "stream_silence_timeout"
    CANCELLED = "cancelled"
    """We cancelled the call ourselves."""
    PROVIDER_CANCELLED = "provider_cancelled"
    """It looks like a cancel, but it was not ours."""
    DEADLINE = "deadline"
    """Our own deadline ran out."""
    CONTENT_FILTER = "content_filter"
    INCOMPLETE_JSON = "incomplete_json"
    EMPTY_OUTPUT = "empty_output"
    """The stream ended properly and held nothing."""
    RESPONSE_GONE = "response_gone"
    """The provider does not give back the background response that it was working on."""
    MISSING_KEY = "missing_key"
    UNKNOWN_PROVIDER = "unknown_provider"
    PROVIDER_DISABLED = "provider_disabled"
    OWN_LIMIT = "own_limit"
    """Our own limit of usage is reached; no provider has to do with it."""
    KEY_RESTS = "key_rests"
    """We did not call: the key must rest, and longer than the turn can wait."""
    MODEL_RESTS = "model_rests"
    """We did not call: the model must rest, whoever calls it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Http2Reset:
    """An HTTP/2 RST_STREAM or GOAWAY."""

    code: int | None
    """The error code of RFC 9113, section 7."""
    from_peer: bool | None
    """Whether the provider sent it; None where that is not known."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ExceptionFact:
    """One exception of a cause chain, reduced to what rules may look at."""

    names: tuple[str, ...]
    """Dotted class names over the MRO, the exception's own first."""
    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Failure:
    """Everything known about one failed call."""

    provider: str | None = None
    """The provider's configured name."""
    phase: Phase | None = None
    signal: Signal | None = None
    status: int | None = None
    headers: Mapping[str, str] = field(default_factory=dict)
    body: object = None
    """The response body or in-stream error: bytes, text, or decoded JSON."""
    exceptions: tuple[ExceptionFact, ...] = ()
    """The cause chain, outermost first."""
    chained: bool = False
    """Whether the request continued from an anchor (`previous_response_id`)."""
    visible: bool = False
    """Whether any output had been shown before the failure."""
    h2: Http2Reset | None = None
