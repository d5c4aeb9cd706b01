"""What a script may say: the steps, their fields and units.  Which step applies is decided in `turns`.

A script is a list of steps; each request of a turn takes the next one, and after the last the model
answers plainly.  Nothing here knows a wire format or a socket.
"""

from enum import StrEnum
from typing import Annotated, Any, Literal, Self, TypeAlias

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    NonNegativeInt,
    PositiveInt,
    StringConstraints,
    model_validator,
)

Milliseconds = Annotated[float, Field(ge=0, le=86_400_000, allow_inf_nan=False)]
Seconds = Annotated[float, Field(ge=0, le=86_400, allow_inf_nan=False)]
ScriptName = Annotated[str, StringConstraints(pattern=r"^[a-z0-9][a-z0-9_-]{0,63}$")]

Moment: TypeAlias = NonNegativeInt | Literal["before_headers", "before_first_event", "before_terminal"]
"""When a fault strikes.  A number is a count of chunks (pieces of text, reasoning or call arguments) that
were sent before; an answer with fewer chunks is struck before its terminal event."""


class ScriptPart(BaseModel):
    """The habits of every model here: frozen, and a misspelt field is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class FunctionCall(ScriptPart):
    """A call that the model asks for."""

    name: str
    arguments: dict[str, Any] | str = Field(default_factory=dict)
    """An object is sent as JSON; a string is sent as it stands, whether it is JSON or not."""
    call_id: str | None = None
    """None: a fresh id."""


class Retrieval(StrEnum):
    """What becomes of `GET /v1/responses/{id}`, as a stream or not, for a background response."""

    OK = "ok"
    GONE = "gone"
    """404, always; a cancel finds nothing either.  The generation goes on, and a chain may continue from it."""
    GONE_ONCE = "gone_once"
    """404 the first time."""
    UNAVAILABLE = "unavailable"
    """500, always; a cancel is heard."""
    UNAVAILABLE_ONCE = "unavailable_once"
    """500 the first time."""


class Answering(ScriptPart):
    """What the model says and how fast; the steps that strike in mid-answer have these fields as well."""

    text: str | None = None
    """None: the default answer, or with `calls` no text.  "": no message."""
    chunk_chars: PositiveInt = 12
    """Characters per chunk."""
    chunk_delay_ms: Milliseconds | None = None
    """Wait before each chunk but the first; None: the server's `--chunk-delay-ms`."""
    first_delay_ms: Milliseconds = 0
    """Wait before the first chunk, after the opening events."""
    reasoning: str | None = None
    """A reasoning summary that precedes the answer; None: no reasoning item."""
    redacted: bool = False
    """The reasoning is there, and is not shown: a `redacted_thinking` block, an item without its summary."""
    search: str | None = None
    """The query of a web search that precedes the answer; it brings its reasoning item along."""
    calls: tuple[FunctionCall, ...] = ()
    queued_seconds: Seconds = 0
    """Background responses stay `queued` this long before the model begins; a day is for ever."""
    resumable: bool = True
    """False: the stream of a background response cannot be taken up again, as if it were too old."""
    retrieval: Retrieval = Retrieval.OK
    """How a background response that is asked for by its id fails; its stream, once begun, does not."""
    novel: bool = False
    """Sprinkle the answer with what no present version of the API sends: events, blocks, parts, items, deltas
    and fields of unknown types, before, between and after what is known.  The text, its pieces and what ends
    the answer stay as they are, and `at` does not count what is novel; places (`index`, `output_index`,
    `content_index`) shift.  What is novel and is sent back is taken."""


class AnswerStep(Answering):
    """The model answers."""

    type: Literal["answer"] = "answer"


class Complaint(StrEnum):
    """What a provider may complain of, each in its own words, under a status that means other things too."""

    QUOTA = "quota"
    CONTEXT_OVERFLOW = "context_overflow"


class StatusStep(ScriptPart):
    """The request is refused with an HTTP status."""

    type: Literal["status"] = "status"
    status: Annotated[int, Field(ge=300, le=599)]
    complaint: Complaint | None = None
    """What the provider complains of, where the status alone does not tell; None: what is usual."""
    headers: dict[str, str] | None = None
    """None: what the provider would send with this status (429: `Retry-After: 1`)."""
    body: Any = None
    """An object is sent as JSON, a string as it stands; None: what the provider would say."""
    retry_after_date_seconds: Seconds | None = None
    """Send `Retry-After` as an HTTP date this far ahead, rounded up: HTTP dates have whole seconds."""


class ErrorShape(StrEnum):
    """How an error rides inside a stream; all of them have been seen.

    The names are those of the Responses API; the other wire formats take the nearest they have.
    """

    NESTED = "nested"
    FLAT = "flat"
    RESPONSE_FAILED = "response_failed"
    ERROR_THEN_FAILED = "error_then_failed"
    """A nested error and the failed response after it: one failure, told twice."""
    FINISH_REASON = "finish_reason"
    """The last chunk says `finish_reason: "error"` and carries the error, as OpenRouter does it."""


class ErrorEventStep(Answering):
    """The stream reports an error and ends."""

    type: Literal["error_event"] = "error_event"
    at: Moment = 2
    shape: ErrorShape = ErrorShape.NESTED
    code: str | None = "server_error"
    message: str = "The server had an error while processing your request. Sorry about that!"
    error_type: str = "server_error"


class CutStep(Answering):
    """The connection is closed (FIN) in the middle of the body, without the last chunk that HTTP requires."""

    type: Literal["cut"] = "cut"
    at: Moment = 2


class ResetStep(Answering):
    """The connection is reset (RST)."""

    type: Literal["reset"] = "reset"
    at: Moment = 2


class Missing(StrEnum):
    """What a stream's end lacks.  Where a wire format has one terminal event alone, that is all of it."""

    EVERYTHING = "everything"
    """Nothing that ends an answer comes."""
    DONE = "done"
    """The reason comes (`finish_reason`, `stop_reason`); the mark (`[DONE]`, `message_stop`) does not."""
    REASON = "reason"
    """The mark comes, and the reason is null: so does Ollama."""


Http2Code = Annotated[int, Field(ge=0, le=0xFFFF_FFFF)]


class ResetStreamStep(Answering):
    """HTTP/2: the answer ends with RST_STREAM, the connection lives on.  HTTP/1.1: the connection is reset."""

    type: Literal["reset_stream"] = "reset_stream"
    at: Moment = 2
    code: Http2Code = 2
    """2 is INTERNAL_ERROR, 7 REFUSED_STREAM, 8 CANCEL, 11 ENHANCE_YOUR_CALM."""


class GoAwayStep(Answering):
    """HTTP/2: the server says GOAWAY and closes the connection.  HTTP/1.1: the connection is closed."""

    type: Literal["go_away"] = "go_away"
    at: Moment = 2
    code: Http2Code = 0
    """0 is NO_ERROR, as of a server that is being replaced; 11 ENHANCE_YOUR_CALM."""


class EndStep(Answering):
    """The body ends as HTTP requires, but the answer's terminal event never comes, or not all of it."""

    type: Literal["end"] = "end"
    at: Moment = "before_terminal"
    missing: Missing = Missing.EVERYTHING
    """Anything but everything asks for `at` before_terminal."""

    @model_validator(mode="after")
    def _half_an_end_is_at_the_end(self) -> Self:
        if self.missing is not Missing.EVERYTHING and self.at != "before_terminal":
            raise ValueError("half an end can only be missing at before_terminal")
        return self


class StallStep(Answering):
    """Nothing is sent for a while; then the answer goes on as if nothing had been."""

    type: Literal["stall"] = "stall"
    at: Moment = "before_headers"
    seconds: Seconds = 3600.0


class DripStep(Answering):
    """The answer comes a few bytes at a time, so that frames and characters are torn apart."""

    type: Literal["drip"] = "drip"
    bytes_per_write: PositiveInt = 16
    write_delay_ms: Milliseconds = 1.0
    """Wait before each write; the chunk delays do not apply."""


class HtmlStep(ScriptPart):
    """A web page under status 200, as a wrong base URL or a captive proxy sends it."""

    type: Literal["html"] = "html"
    title: str = "Welcome to nginx!"


class MalformedStep(Answering):
    """A frame that cannot be decoded stands between the others."""

    type: Literal["malformed"] = "malformed"
    at: Moment = 2
    frame: str | None = None
    """Sent as it stands; None: a piece of text of this wire format, torn in the middle."""


StopReason: TypeAlias = Literal["max_output_tokens", "content_filter", "pause_turn", "refusal", "context_window"]
"""Why an answer stops early; a wire format that lacks one of them says the nearest."""


class IncompleteStep(Answering):
    """The answer stops early and says why; that is a proper end.

    In Messages, `pause_turn` is continued by a request whose last message is the paused answer, unchanged; the
    next step of the script says the rest.  No other request may end with a message of the model's.
    """

    type: Literal["incomplete"] = "incomplete"
    at: NonNegativeInt = 2
    """Chunks of text and call arguments that are kept; 0: none, and no message either."""
    reason: StopReason = "max_output_tokens"
    in_search: bool = False
    """Stop before the `search` has found anything: in Messages the answer ends with the search that was begun,
    and the answer to the request that continues it begins with what it found.  Elsewhere the search is whole,
    and nothing follows it.  `at` then counts nothing."""

    @model_validator(mode="after")
    def _there_is_a_search_to_stop_in(self) -> Self:
        if self.in_search and self.search is None:
            raise ValueError("in_search asks for a search")
        return self


class EmptyStep(ScriptPart):
    """The answer completes and holds nothing."""

    type: Literal["empty"] = "empty"


class Spelling(StrEnum):
    """The ways in which providers say that an anchor, or an item it stands for, is gone."""

    NOT_FOUND = "not_found"
    INVALID = "invalid"
    INVALID_WITH_ID = "invalid_with_id"
    UNSUPPORTED_DETAIL = "unsupported_detail"
    ZERO_RETENTION = "zero_retention"
    XAI_NOT_FOUND = "xai_not_found"
    LM_STUDIO = "lm_studio"
    NO_TOOL_CALL = "no_tool_call"
    NO_TOOL_OUTPUT = "no_tool_output"
    ITEM_NOT_PERSISTED = "item_not_persisted"
    INVALID_ENCRYPTED_CONTENT = "invalid_encrypted_content"
    """Not the anchor is refused, but the seal of what comes back with the request; nothing is dropped."""
    THREAD_NOT_FOUND = "thread_not_found"
    """This one and the next four are Messages' own; elsewhere they say `not_found`, and the others say this
    one in Messages.  A thread that has expired says it too."""
    THREAD_FINGERPRINT_MISMATCH = "thread_fingerprint_mismatch"
    THREAD_ALREADY_CONTINUED = "thread_already_continued"
    """The thread is kept, but its message counts as continued from then on."""
    THREAD_CONTINUE_IN_FLIGHT = "thread_continue_in_flight"
    """Nothing is dropped: the message can be continued later."""
    THREAD_UNSUPPORTED_REQUEST = "thread_unsupported_request"


class LostAnchorStep(ScriptPart):
    """The stored response that the request continues from is dropped, with all others of its conversation.

    In Messages that is the message that a thread continues from.  A request that is not chained has nothing
    to lose: it passes over this step and takes the next one.
    """

    type: Literal["lost_anchor"] = "lost_anchor"
    spelling: Spelling = Spelling.NOT_FOUND
    status: Annotated[int, Field(ge=400, le=599)] | None = None
    """None: the status that belongs to the spelling."""
    in_stream: bool = False
    """Say it with an error event inside a 200 stream, where the spelling has an error object and the client
    asked for a stream."""
    even_unchained: bool = False
    """Say it to requests that are not chained as well, as a confused provider would; with the spelling
    `invalid_encrypted_content` that is a provider that cannot read any seal."""


AnsweringStep: TypeAlias = (
    AnswerStep
    | ErrorEventStep
    | CutStep
    | ResetStep
    | ResetStreamStep
    | GoAwayStep
    | EndStep
    | StallStep
    | DripStep
    | MalformedStep
    | IncompleteStep
)
"""The steps that begin to answer, whatever becomes of it."""

Step: TypeAlias = Annotated[
    AnsweringStep | StatusStep | HtmlStep | EmptyStep | LostAnchorStep, Field(discriminator="type")
]


class Script(ScriptPart):
    """What happens to the requests of one turn, in order."""

    about: str = ""
    """One sentence for people."""
    steps: Annotated[tuple[Step, ...], Field(min_length=1, max_length=1000)]
    repeat_last: bool = False
    """The last step applies to every later request of the turn too, instead of a plain answer."""
