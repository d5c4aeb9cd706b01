"""What a running turn says to its followers, each time stamped with the try it speaks for."""

import time
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any, Literal

from turnkeeper.errors import ChatError, retry_copy
from turnkeeper.events import (
    PartKind,
    TurnCancelled,
    TurnCommitted,
    TurnCompleted,
    TurnFailed,
    TurnPart,
    TurnRetry,
    TurnStarted,
)
from turnkeeper.messages import Message, Text
from turnkeeper_worker.checkpoint import Piece, joined
from turnkeeper_worker.cooldown import Permit
from turnkeeper_worker.live import Live
from turnkeeper_worker.observer import Watch
from turnkeeper_worker.providers import Call, Running
from turnkeeper_worker.store import Claimed

Keep = Callable[[Running, tuple[Piece, ...]], Awaitable[None]]
"""Writes down how far a background response has come, and what was said up to there."""


@dataclass(slots=True)
class Speaker:
    """Speaks for one attempt; hears its call, and remembers the words in case the turn breaks off."""

    live: Live
    turn: Claimed
    keep: Keep | None = None
    """Writes down how far a background response has come."""
    keep_every: timedelta = timedelta(0)
    watch: Watch = field(default_factory=Watch)
    """Times the stream."""
    first_event_at: datetime | None = None
    usage: dict[str, int] | None = None
    permit: Permit = field(default_factory=Permit)
    """Keeps count of the call for its key."""
    _pieces: list[Piece] = field(default_factory=list)
    _kept_at: float | None = None

    def answered(self, status: int, headers: Mapping[str, str]) -> None:
        """Hear that the head of the response has come."""
        self.permit.answered(status, headers)

    def started(self, response_id: str) -> None:
        """Hear that the provider has begun the response."""
        del response_id
        self._note_event()

    def said(self, kind: PartKind, text: str) -> None:
        """Hear a piece of the answer, and pass it on."""
        self._note_event()
        self._pieces.append((kind, text))
        self.live.say(TurnPart(**self._stamp, kind=kind, text=text))

    def counted(self, usage: dict[str, int]) -> None:
        """Hear what the attempt has cost so far."""
        self.usage = usage

    async def reached(self, running: Running) -> None:
        """Hear how far a background response is, and write it down: at once where it began, then now and then."""
        now = time.monotonic()
        is_due = self._kept_at is None or now - self._kept_at >= self.keep_every.total_seconds()
        if self.keep is not None and is_due:
            self._kept_at = now
            self._pieces = list(joined(self._pieces))
            await self.keep(running, tuple(self._pieces))

    def partial(self) -> tuple[Message, ...]:
        """Return what was said so far as a message, if it was anything."""
        text = "".join(text for kind, text in self._pieces if kind == "text")
        return (Message(role="assistant", parts=(Text(text=text),)),) if text.strip() else ()

    def say_started(self, call: Call) -> None:
        """Tell that the attempt begins."""
        self.live.say(
            TurnStarted(
                **self._stamp,
                provider=self.turn.provider,
                model=call.model,
                chained=call.is_chained,
                resumed=call.is_resumed,
            )
        )

    def say_again(self, pieces: Iterable[Piece]) -> None:
        """Repeat what an attempt before this one had heard of the same response."""
        for kind, text in pieces:
            self.said(kind, text)

    def say_committed(self, said: Sequence[Message], position: int) -> None:
        """Tell what is stored of the step."""
        if said:
            self.live.say(TurnCommitted(**self._stamp, position=position, messages=tuple(said)))

    def say_completed(self, usage: dict[str, int] | None, finish: str) -> None:
        """Tell that the answer is final."""
        self.live.say(TurnCompleted(**self._stamp, usage=usage, finish=finish))

    def say_retry(
        self,
        reason: Literal["retry", "heal", "fall_back", "handed_back", "cooldown"],
        *,
        error: ChatError | None = None,
        retrying_at: datetime | None = None,
        delay: timedelta = timedelta(0),
        provider: str | None = None,
        model: str | None = None,
    ) -> None:
        """Tell that everything said is void, when the next attempt starts, and who answers instead, if anybody."""
        self.live.say(
            TurnRetry(
                **self._stamp,
                reason=reason,
                delay_ms=round(delay.total_seconds() * 1000),
                retrying_at=retrying_at or datetime.now(UTC),
                error=error and _in_retry_copy(error),
                provider=provider,
                model=model,
            )
        )

    def say_failed(self, error: ChatError) -> None:
        """Tell that there will be no answer."""
        self.live.say(TurnFailed(**self._stamp, error=error))

    def say_cancelled(self, said: Sequence[Message], position: int) -> None:
        """Tell that the turn was cancelled, and what is kept of it."""
        self.live.say(TurnCancelled(**self._stamp, position=position, messages=tuple(said)))

    @property
    def _stamp(self) -> dict[str, Any]:
        turn = self.turn
        return {"turn_id": turn.id, "epoch": turn.epoch, "step": turn.step, "attempt": turn.attempt}

    def _note_event(self) -> None:
        self.watch.heard()
        if self.first_event_at is None:
            self.first_event_at = datetime.now(UTC)


def _in_retry_copy(error: ChatError) -> ChatError:
    """Word *error* for a countdown, where the provider's own sentence has no place."""
    return error.model_copy(update={"message": retry_copy(error), "detail": None})
