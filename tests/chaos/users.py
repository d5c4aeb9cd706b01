"""The people of a storm: they ask, change their minds, read along, lose their connection and come back."""

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine
from contextlib import aclosing
from dataclasses import dataclass, field
from itertools import chain, repeat
from typing import Any, TypeVar, cast
from uuid import UUID

from turnkeeper import AsyncTurnkeeper, Transcript
from turnkeeper.events import Event, FinalEvent
from turnkeeper.exceptions import DatabaseUnavailable
from turnkeeper.turns import Enqueued

from .evidence import Heard
from .plan import TOOLS, PlannedChat, PlannedFollower, PlannedTurn, Sitting

T = TypeVar("T")

AGAIN_SECONDS = 0.2
"""How soon somebody tries again whom the database did not answer."""
TO_THE_END = Sitting(events=1_000_000, away_seconds=0.0)


@dataclass(slots=True)
class Crowd:
    """Everybody who uses the chats.  Belongs to one event loop."""

    keeper: AsyncTurnkeeper
    turns: dict[str, UUID] = field(default_factory=dict)
    """The turns that were accepted, by their keys."""
    readers: list["Reader"] = field(default_factory=list)
    doings: list["asyncio.Task[None]"] = field(default_factory=list)
    """Everything that somebody does; done when all have what they wanted."""

    def begin(self, planned: PlannedChat) -> None:
        """Let one conversation begin."""
        self._do(self._chat(planned))

    def busy(self) -> int:
        """Return how many things are being done."""
        return sum(not doing.done() for doing in self.doings)

    def heard(self) -> tuple[Heard, ...]:
        """Return what each reader was left with."""
        return tuple(reader.heard() for reader in self.readers)

    def _do(self, doing: Coroutine[Any, Any, None]) -> "asyncio.Task[None]":
        task = asyncio.create_task(doing)
        self.doings.append(task)
        return task

    async def _chat(self, planned: PlannedChat) -> None:
        await asyncio.sleep(planned.starts_after)
        chat_id, last = None, None
        for turn in planned.turns:
            if turn.waits and last is not None:
                await asyncio.wait([last])
            await asyncio.sleep(turn.think_seconds)
            enqueued = await self._ask(chat_id, turn)
            chat_id = enqueued.chat_id
            last, *_ = [self._do(self._reader(enqueued.id, one).read()) for one in turn.followers]
            if turn.cancel_after is not None:
                self._do(self._cancel(enqueued.id, turn.cancel_after))

    async def _ask(self, chat_id: UUID | None, turn: PlannedTurn) -> Enqueued:
        enqueued = await _surely(
            lambda: self.keeper.enqueue(
                chat_id,
                f"Tell me of waters, sim:{turn.key}.",
                provider=turn.provider,
                model="sim-1",
                tools=list(TOOLS),
                background=turn.background,
                on_busy=turn.on_busy,
                idempotency_key=turn.key,
            )
        )
        self.turns[turn.key] = enqueued.id
        return enqueued

    async def _cancel(self, turn_id: UUID, after: float) -> None:
        await asyncio.sleep(after)
        await _surely(lambda: self.keeper.cancel(turn_id))

    def _reader(self, turn_id: UUID, planned: PlannedFollower) -> "Reader":
        reader = Reader(self.keeper, turn_id, planned)
        self.readers.append(reader)
        return reader


@dataclass(slots=True)
class Reader:
    """Somebody who reads along, comes and goes as planned, and resumes behind what was read last."""

    keeper: AsyncTurnkeeper
    turn_id: UUID
    planned: PlannedFollower
    transcript: Transcript = field(default_factory=Transcript)
    cursor: str = ""
    end: str | None = None
    visits: int = 0

    def heard(self) -> Heard:
        """Return what stands on the screen."""
        return Heard(turn_id=self.turn_id, text=self.transcript.text, end=self.end, visits=self.visits)

    async def read(self) -> None:
        """Read until the turn has ended."""
        await asyncio.sleep(self.planned.late_seconds)
        for sitting in chain(self.planned.sittings, repeat(TO_THE_END)):
            try:
                await self._sit(sitting)
            except DatabaseUnavailable:
                await asyncio.sleep(AGAIN_SECONDS)
            if self.end is not None:
                return
            await asyncio.sleep(sitting.away_seconds)

    async def _sit(self, sitting: Sitting) -> None:
        self.visits += 1
        count = 0
        events = cast("AsyncGenerator[Event]", self.keeper.follow(self.turn_id, after=self.cursor))
        async with aclosing(events):
            async for event in events:
                self.transcript.feed([event])
                self.cursor, count = event.id or self.cursor, count + 1
                if isinstance(event, FinalEvent):
                    self.end = event.type
                elif count >= sitting.events:
                    return


async def _surely(ask: Callable[[], Awaitable[T]]) -> T:
    """Try again until the database answers; whatever is asked must be safe to ask twice."""
    while True:
        try:
            return await ask()
        except DatabaseUnavailable:
            await asyncio.sleep(AGAIN_SECONDS)
