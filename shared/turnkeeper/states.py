"""The states of a turn and the outcomes of an attempt, as they are stored."""

from enum import StrEnum


class TurnState(StrEnum):
    """Where a turn is in its life.

    ```
    queued → running → completed
               │  ├──→ failed        (ChatError stored)
               │  ├──→ cancelled     (partial text kept)
               │  ├──→ retrying ──→ running      (countdown; slot released)
               │  └──→ queued        (parked for a cooldown, handed back, or rescued after a lost lease)
    queued, retrying → cancelled
    ```
    """

    QUEUED = "queued"
    """Stored, and not in a worker's hands; due at `available_at`, once that is set."""
    RUNNING = "running"
    """Held by one worker under a lease."""
    RETRYING = "retrying"
    """Between two attempts; due at `available_at`."""
    COMPLETED = "completed"
    FAILED = "failed"
    CANCELLED = "cancelled"

    @property
    def is_final(self) -> bool:
        """Whether no arrow leads out of this state.

        >>> TurnState.RETRYING.is_final
        False
        """
        return self in FINAL_STATES


FINAL_STATES = frozenset({TurnState.COMPLETED, TurnState.FAILED, TurnState.CANCELLED})
WAITING_STATES = frozenset({TurnState.QUEUED, TurnState.RETRYING})


class AttemptOutcome(StrEnum):
    """How one try at a step ended."""

    RUNNING = "running"
    COMPLETED = "completed"
    RETRIED = "retried"
    """Failed; another attempt follows after a countdown."""
    HEALED = "healed"
    """The chain was broken; the full history is replayed at once."""
    FELL_BACK = "fell_back"
    """Failed for good with this model; the next one of the turn's fallbacks goes on at once."""
    FAILED = "failed"
    """Failed for good; the turn ended with it."""
    CANCELLED = "cancelled"
    HANDED_BACK = "handed_back"
    """Its worker shut down; another takes the turn over, no attempt is spent."""
    LOST = "lost"
    """Its worker died or lost its lease; another takes the turn over."""


class ToolRunState(StrEnum):
    """Where one run of a tool is."""

    STARTED = "started"
    """It runs, or it did when its worker was lost."""
    FINISHED = "finished"
    """It gave a result, or the reason why there is none."""
    INTERRUPTED = "interrupted"
    """Whether it did its work is not known, and it does not run again."""


class UsagePeriod(StrEnum):
    """The stretch of the calendar, in UTC, that a limit of usage is for."""

    HOUR = "hour"
    DAY = "day"
    MONTH = "month"


class OnBusy(StrEnum):
    """What enqueue does when the chat has an unfinished turn."""

    QUEUE = "queue"
    """Wait behind it."""
    INTERRUPT = "interrupt"
    """Cancel every unfinished turn of the chat, keep its partial text, and go next."""
    REJECT = "reject"
    """Refuse with `ChatBusy`."""
