"""What a running turn says to its followers, each time stamped with the try it speaks for."""

from collections.abc import Sequence
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
from turnkeeper_worker.live import Live
from turnkeeper_worker.providers import Answer, Call, Running
from turnkeeper_worker.store import Claimed


@dataclass(slots=True)
class Speaker:
    """Speaks for one attempt; hears its call, and remembers the words in case the turn is cancelled."""

    live: Live
    turn: Claimed
    first_event_at: datetime | None = None
    usage: dict[str, int] | None = None
    _words: list[str] = field(default_factory=list)

    def started(self, response_id: str) -> None:
        """Hear that the provider has begun the response."""
        del response_id
        self._note_first_event()

    def said(self, kind: PartKind, text: str) -> None:
        """Hear a piece of the answer, and pass it on."""
        self._note_first_event()
        if kind == "text":
            self._words.append(text)
        self.live.say(TurnPart(**self._stamp, kind=kind, text=text))

    def counted(self, usage: dict[str, int]) -> None:
        """Hear what the attempt has cost so far."""
        self.usage = usage

    async def reached(self, running: Running) -> None:
        """Hear how far a background response is."""

    def partial(self) -> tuple[Message, ...]:
        """Return what was said so far as a message, if it was anything."""
        text = "".join(self._words)
        return (Message(role="assistant", parts=(Text(text=text),)),) if text.strip() else ()

    def say_started(self, call: Call) -> None:
        """Tell that the attempt begins."""
        self.live.say(
            TurnStarted(**self._stamp, provider=self.turn.provider, model=call.model, chained=call.is_chained)
        )

    def say_completed(self, answer: Answer, position: int) -> None:
        """Tell the answer, and that it is final."""
        self.live.say(TurnCommitted(**self._stamp, position=position, messages=answer.messages))
        self.live.say(TurnCompleted(**self._stamp, usage=answer.usage, finish=answer.finish))

    def say_retry(
        self,
        reason: Literal["retry", "heal", "handed_back"],
        *,
        error: ChatError | None = None,
        retrying_at: datetime | None = None,
        delay: timedelta = timedelta(0),
    ) -> None:
        """Tell that everything said is void, and when the next attempt starts."""
        self.live.say(
            TurnRetry(
                **self._stamp,
                reason=reason,
                delay_ms=round(delay.total_seconds() * 1000),
                retrying_at=retrying_at or datetime.now(UTC),
                error=error and _in_retry_copy(error),
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

    def _note_first_event(self) -> None:
        if self.first_event_at is None:
            self.first_event_at = datetime.now(UTC)


def _in_retry_copy(error: ChatError) -> ChatError:
    """Word *error* for a countdown, where the provider's own sentence has no place."""
    return error.model_copy(update={"message": retry_copy(error), "detail": None})
