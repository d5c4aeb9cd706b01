"""The live events of all turns of this process, collected for a moment and written together.

Live events make an answer visible sooner; they decide nothing. When Redis is away they are dropped, and
followers fall back to the stored result. A process that woke from a long sleep says nothing until it knows which
turns are still its own.
"""

import asyncio
import math
import time
from collections.abc import Callable, Iterable
from datetime import timedelta
from uuid import UUID

from redis.asyncio import Redis
from redis.exceptions import RedisError

from turnkeeper.events import Event, TurnPart, TurnStarted
from turnkeeper.follow import FIELD
from turnkeeper.keys import events_key
from turnkeeper_worker.telemetry import Complaint, get_logger

log = get_logger(__name__)

_UNSTORED = (TurnStarted, TurnPart)
"""Events that no transaction stands behind."""
# A pipeline of the same commands costs a worker six times the CPU: redis-py packs each one and reads each answer.
_APPEND = """
for i, key in ipairs(KEYS) do
  redis.call('XADD', key, 'MAXLEN', '~', ARGV[2], '*', ARGV[1], ARGV[i + 3])
  redis.call('EXPIRE', key, ARGV[3])
end
"""
WRITTEN_AT_ONCE = 500
"""Redis does nothing else meanwhile, for two milliseconds or so."""
DOUBT_SECONDS = 0.05
"""How often a process that is in doubt looks whether it is sure again."""
MAX_BACKLOG = 50_000
"""More events than this are not kept for a Redis that does not take them."""


class Live:
    """Publishes events.  Belongs to one event loop."""

    def __init__(
        self,
        redis: Redis,
        *,
        coalesce: timedelta,
        ttl: timedelta,
        max_events: int,
        may_speak: Callable[[], bool] = lambda: True,
        dropped: Callable[[int], None] = lambda _count: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._append = redis.register_script(_APPEND)
        self._coalesce = coalesce
        self._limits = (FIELD, max_events, math.ceil(ttl.total_seconds()))
        self._may_speak = may_speak
        self._backlog: list[Event] = []
        self._has_news = asyncio.Event()
        self._dropped = dropped
        self._complaint = Complaint(log, "live.dropped", counted="events", clock=clock)

    def say(self, event: Event) -> None:
        """Publish *event* within the coalescing time; returns at once."""
        if len(self._backlog) < MAX_BACKLOG:
            self._backlog.append(event)
        else:
            self._dropped(1)
        self._has_news.set()

    def unsay(self, turn_id: UUID) -> None:
        """Drop what was said of a turn that is not ours any more, and not yet written; what is stored stands."""
        self._backlog = [one for one in self._backlog if one.turn_id != turn_id or not isinstance(one, _UNSTORED)]

    async def run(self) -> None:
        """Write what is said, until cancelled."""
        while True:
            await self._has_news.wait()
            await self.flush()
            # Behind the writing: what comes after a silence, as the first word does, is written at once.
            await asyncio.sleep(self._coalesce.total_seconds() if self._may_speak() else DOUBT_SECONDS)

    async def flush(self) -> None:
        """Write everything that was said so far, unless our leases are in doubt."""
        if not self._may_speak():
            return
        self._has_news.clear()
        events, self._backlog = self._backlog, []
        try:
            if events:
                await self._write(merged(events))
        except (RedisError, OSError, RuntimeError) as error:
            # uvloop says RuntimeError of a connection that was closed under it.
            self._dropped(len(events))
            self._complaint.make(count=len(events), error=str(error))

    async def _write(self, events: list[Event]) -> None:
        for begin in range(0, len(events), WRITTEN_AT_ONCE):
            some = events[begin : begin + WRITTEN_AT_ONCE]
            told = (event.model_dump_json(exclude={"id"}) for event in some)
            await self._append([events_key(event.turn_id) for event in some], [*self._limits, *told])


def merged(events: Iterable[Event]) -> list[Event]:
    """Join neighbouring pieces of the same kind of the same try; the order of a turn's events stays."""
    kept: list[Event] = []
    last_of: dict[UUID, int] = {}
    for event in events:
        index = last_of.get(event.turn_id)
        if index is not None and (joined := _joined(kept[index], event)) is not None:
            kept[index] = joined
            continue
        last_of[event.turn_id] = len(kept)
        kept.append(event)
    return kept


def _joined(first: Event, second: Event) -> TurnPart | None:
    if not (isinstance(first, TurnPart) and isinstance(second, TurnPart)):
        return None
    if first.kind != second.kind or first.place != second.place:
        return None
    return first.model_copy(update={"text": first.text + second.text})
