"""The log of the requests to the model: what was asked, what it resolved to, what was done about it.

Bounded by count and by bytes; the oldest entries go first.  Time is handed in.
"""

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Literal

from turnkeeper_ops.simulator.scripts import Step
from turnkeeper_ops.simulator.turns import Applied, Sender
from turnkeeper_ops.simulator.vault import Item, StoredResponse, history

MAX_ENTRIES = 20_000
MAX_BYTES = 256 * 1024 * 1024
"""Of request bodies, as they came over the wire; decoded they take a few times more."""


@dataclass(frozen=True, slots=True)
class Instant:
    """A point in time on both clocks."""

    monotonic: float
    """Seconds; comparable with `time.monotonic()` of other processes on this machine."""
    wall: datetime


@dataclass(frozen=True, slots=True)
class Fetch:
    """A later request about a background response."""

    kind: Literal["retrieve", "resume", "cancel"]
    at: Instant
    starting_after: int | None = None
    """Of a resume: the sequence number behind which it began."""
    status: int = 200
    """What was answered; 404 and 500 where the script has it fail."""

    def as_json(self) -> dict[str, Any]:
        """Return the fetch as the control API shows it."""
        return {
            "kind": self.kind,
            "starting_after": self.starting_after,
            "status": self.status,
            "at": self.at.wall.isoformat(),
            "at_monotonic": self.at.monotonic,
        }


@dataclass(slots=True, kw_only=True)
class Entry:
    """One request.  Filled in as the request proceeds, so that a look at the log shows what is in flight."""

    number: int
    """From 1; never used twice, not even after the log was cleared."""
    api: str
    sender: Sender
    arrived: Instant
    request_bytes: int
    """Of the body, as it came over the wire."""
    model: str | None = None
    stream: bool = False
    store: bool | None = None
    """Whether the answer was asked to be kept; in Messages, whether the request has a thread."""
    previous_response_id: str | None = None
    """What the request continues from; in Messages, the thread's `previous_message_id`."""
    input: tuple[Item, ...] = ()
    previous: StoredResponse | None = None
    """What `previous_response_id` was resolved to; the history is drawn from it when somebody asks."""
    applied: Applied | None = None
    """None: refused before a step was chosen."""
    response_id: str | None = None
    status: int | None = None
    """None: no status line was sent."""
    chunks: int = 0
    ended: Instant | None = None
    """None: in flight."""
    outcome: str = "in_flight"
    detail: str | None = None
    """Why the request was refused."""
    generated: bool = False
    """Whether the model began to answer; a background response is generated once, however often it is fetched."""
    fetches: list[Fetch] = field(default_factory=list)
    """Who came back for the background response that this request asked for."""

    def as_json(self, *, items: bool = True) -> dict[str, Any]:
        """Return the entry as the control API shows it, with or without the items of the conversation."""
        whole = {"input": self.input, "history": (*history(self.previous), *self.input)} if items else {}
        return {
            "number": self.number,
            "api": self.api,
            "turn": self.sender.turn,
            "attempt": self.sender.attempt,
            "arrived_monotonic": self.arrived.monotonic,
            "arrived_at": self.arrived.wall.isoformat(),
            "ended_monotonic": self.ended and self.ended.monotonic,
            "ended_at": self.ended and self.ended.wall.isoformat(),
            "request_bytes": self.request_bytes,
            "model": self.model,
            "stream": self.stream,
            "store": self.store,
            "previous_response_id": self.previous_response_id,
            **whole,
            **_applied_as_json(self.applied),
            "response_id": self.response_id,
            "status": self.status,
            "chunks": self.chunks,
            "outcome": self.outcome,
            "detail": self.detail,
            "generated": self.generated,
            "fetches": [fetch.as_json() for fetch in self.fetches],
        }


@dataclass(slots=True)
class Journal:
    """The entries, oldest first."""

    _entries: deque[Entry] = field(default_factory=deque)
    _bytes: int = 0
    _last: int = 0

    def __len__(self) -> int:
        return len(self._entries)

    @property
    def in_flight(self) -> int:
        """How many requests have not ended."""
        return sum(entry.ended is None for entry in self._entries)

    @property
    def generations(self) -> int:
        """How many times the model began to answer."""
        return sum(entry.generated for entry in self._entries)

    def open(self, *, api: str, sender: Sender, arrived: Instant, request_bytes: int) -> Entry:
        """Add an entry for a request that just arrived; the oldest make room."""
        self._last += 1
        entry = Entry(number=self._last, api=api, sender=sender, arrived=arrived, request_bytes=request_bytes)
        self._entries.append(entry)
        self._bytes += request_bytes
        while len(self._entries) > MAX_ENTRIES or (self._bytes > MAX_BYTES and len(self._entries) > 1):
            self._bytes -= self._entries.popleft().request_bytes
        return entry

    def select(self, *, turn: str | None = None, after: int = 0) -> Iterator[Entry]:
        """Return the entries of *turn* (None: of all turns) with a number above *after*."""
        return (e for e in self._entries if e.number > after and turn in {None, e.sender.turn})

    def clear(self) -> int:
        """Forget all entries; return how many there were."""
        cleared = len(self._entries)
        self._entries.clear()
        self._bytes = 0
        return cleared


def _applied_as_json(applied: Applied | None) -> dict[str, Any]:
    if applied is None:
        return {"script": None, "step_number": None, "step": None}
    step: Step = applied.step
    return {"script": applied.script, "step_number": applied.number, "step": step.type}
