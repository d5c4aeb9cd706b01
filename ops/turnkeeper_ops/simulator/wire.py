"""What the core and a provider's wire format say to each other.

The core knows scripts, faults, stored responses and the log.  A wire format knows JSON: it reads a
request into a `Prompt`, and turns a `Reply` into frames.  Neither knows the other's business, so the
same faults strike every API.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from typing import NamedTuple, Protocol

from turnkeeper_ops.simulator.scripts import ErrorEventStep, LostAnchorStep, Missing, StatusStep, StopReason

Headers = Mapping[str, str]


class FrameKind(Enum):
    """What a frame means to the core."""

    START = "start"
    """The model begins; what waits in a queue, waits before it."""
    EVENT = "event"
    """Scaffolding; it follows the frame before it without a wait."""
    CHUNK = "chunk"
    """A piece of the answer; paced, and counted by `at`."""
    TERMINAL = "terminal"
    """The event without which the answer does not count."""


class Frame(NamedTuple):
    """One event, encoded.  A named tuple, because they are made by the hundred thousand."""

    data: bytes
    kind: FrameKind = FrameKind.EVENT


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """A function call of the model."""

    name: str
    pieces: tuple[str, ...]
    """The arguments in the pieces in which they are streamed; they need not be JSON."""
    call_id: str | None
    """None: the wire format makes one."""
    whole: bool = True
    """False: the answer stopped in the middle of the arguments."""

    @property
    def arguments(self) -> str:
        """The arguments in one piece."""
        return "".join(self.pieces)


@dataclass(frozen=True, slots=True, kw_only=True)
class Prompt:
    """What the model has read, in no provider's words."""

    user_texts: tuple[str, ...]
    """The texts of the user's messages, oldest first; one string per message."""
    tool_outputs: tuple[str, ...]
    """What tools returned since the last user message."""
    input_tokens: int
    cached_tokens: int
    """How many of the input tokens came from a stored response."""
    chained: bool
    """Whether the request continues from a stored response."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Reply:
    """What the model says, before any wire format."""

    chunks: tuple[str, ...] = ()
    """The text in the pieces in which it is streamed; empty: no message."""
    reasoning: str | None = None
    redacted: bool = False
    """Whether the reasoning is not shown."""
    search: str | None = None
    found: bool = True
    """Whether the search came to its end."""
    calls: tuple[Call, ...] = ()
    stopped: StopReason | None = None
    """Why the answer stopped early; None: it completed."""
    novel: bool = False
    """Whether it is sprinkled with what no present version of the API sends."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PlainResponse:
    """A response that is not an answer."""

    status: int
    body: object
    """An object is sent as JSON, a string as HTML."""
    headers: Headers


class Refused(Exception):
    """A request that is refused, in the words of the API that it came through."""

    def plain(self) -> PlainResponse:
        """Return the response that says so."""
        raise NotImplementedError


class Wire(Protocol):
    """One request in one provider's wire format."""

    @property
    def content_type(self) -> str:
        """The content type of an answer: an event stream, or JSON."""
        ...

    @property
    def streams(self) -> bool:
        """Whether the client asked for an event stream; else the frames are pieces of one JSON body."""
        ...

    def frames(self, reply: Reply) -> list[Frame]:
        """Encode the whole answer; the last frame is the terminal one."""
        ...

    def loose_end(self, missing: Missing) -> bytes:
        """Return what is left of the terminal frame without what is *missing*; it was encoded by `frames`."""
        ...

    def torn_frame(self) -> bytes:
        """Return a piece of text that cannot be decoded."""
        ...

    def error_frames(self, step: ErrorEventStep, sent: int) -> list[Frame]:
        """Encode an error that strikes a stream after *sent* frames."""
        ...

    def plain_error(self, step: ErrorEventStep) -> PlainResponse:
        """Say the error of *step* with a status, where no stream was asked for."""
        ...

    def plain(self, step: StatusStep) -> PlainResponse:
        """Fill in what the provider would say with this status."""
        ...

    def lost_anchor(self, step: LostAnchorStep) -> PlainResponse:
        """Say that the anchor is gone, in the spelling of *step*."""
        ...
