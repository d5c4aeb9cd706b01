"""What one delivery of a turn came to, as values."""

from dataclasses import dataclass
from datetime import timedelta
from typing import TypeAlias
from uuid import UUID

from turnkeeper.errors import ChatError


@dataclass(frozen=True, slots=True)
class Completed:
    """The turn has its answer."""

    line: str
    woken: UUID | None


@dataclass(frozen=True, slots=True)
class Retrying:
    """The attempt failed; the turn is due again after the delay."""

    delay: timedelta
    attempt: int
    line: str
    """What it failed of, and when it goes on."""
    label: str
    """The same, with what was tried."""


@dataclass(frozen=True, slots=True)
class Parked:
    """The provider must rest before it is called; the turn is due again after the delay."""

    delay: timedelta
    attempt: int
    """The last that was made; 0 where none was."""
    line: str
    """What it waits for, and until when."""
    label: str
    """The same, with the chat."""


@dataclass(frozen=True, slots=True)
class GaveUp:
    """The turn failed for good."""

    error: ChatError
    woken: UUID | None


@dataclass(frozen=True, slots=True)
class Cancelled:
    """The turn was cancelled while it ran."""

    woken: UUID | None


@dataclass(frozen=True, slots=True)
class HandedBack:
    """This process shuts down; another takes the turn over."""

    attempt: int
    delay: timedelta = timedelta(0)
    """Longer than nothing where the message should not come back to a process that still listens."""


@dataclass(frozen=True, slots=True)
class Dropped:
    """Nothing was done: the turn was not ours to run, or no longer."""

    why: str
    is_cancelled: bool = False
    """It had been cancelled before we came to it."""


Outcome: TypeAlias = Completed | Retrying | Parked | GaveUp | Cancelled | HandedBack | Dropped
