"""Which turns this process holds, and for how long it may believe so.

One row per process carries the heartbeat; a turn's lease is (worker, epoch) and lives while that row is fresh by
the database's clock. The same beat asks which turns were cancelled or lost. What the answer cannot tell while
the database is away, the clock does: after half the TTL without a renewal, counted from *before* the last request
that succeeded was sent, every turn is given up, because another worker may take it over at the end of the TTL.
River argues the same in its package `leadership`.
"""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from enum import Enum, auto
from uuid import UUID

from turnkeeper_worker.telemetry import Complaint, get_logger
from turnkeeper_worker.upkeep import Held

log = get_logger(__name__)

TIMER_GRAIN_SECONDS = 0.01
"""An event loop's timer may fire this early; a beat that hung until then has hung long enough."""


class Stop(Enum):
    """Why a turn must stop."""

    CANCELLED = auto()
    """Somebody cancelled it."""
    HANDED_BACK = auto()
    """This process shuts down."""
    LOST = auto()
    """The lease is gone, or may be: write nothing, say nothing."""


@dataclass(slots=True, eq=False)
class Lease:
    """One turn in the hands of this process."""

    turn_id: UUID
    task: "asyncio.Task[object]"
    epoch: int | None = None
    """The fencing number; None until the claim is known to be committed."""
    stopped: Stop | None = None
    is_deaf: bool = True
    """While a claim or a last write is under way: a stop is remembered, and strikes when we listen again."""

    def claimed(self, epoch: int) -> None:
        """Note that the claim is committed."""
        self.epoch = epoch

    def listen(self) -> None:
        """Let a stop break the turn off at its next await, also one that came before."""
        self.is_deaf = False
        if self.stopped is not None:
            self.task.cancel()

    def settle(self) -> None:
        """Begin a write that decides the outcome; the epoch guards it, so no stop needs to."""
        self.is_deaf = True

    def stop(self, why: Stop) -> None:
        """Break the turn off.  The first reason counts, but a lost lease beats all."""
        if self.stopped in {why, Stop.LOST}:
            return
        is_first = self.stopped is None
        if is_first or why is Stop.LOST:
            self.stopped = why
        if is_first and not self.is_deaf:
            self.task.cancel()


Beat = Callable[[], Awaitable[list[Held]]]
"""Renews the heartbeat and returns what the database believes that this worker holds."""
GiveBack = Callable[[UUID, int], Awaitable[None]]
"""Hands a turn back that the database thinks is ours and that nobody here runs."""


class Leases:
    """The turns of one worker process.  Belongs to one event loop."""

    def __init__(
        self,
        *,
        ttl: timedelta,
        every: timedelta,
        beat: Beat,
        give_back: GiveBack,
        lost: Callable[[UUID], None] = lambda _turn_id: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._patience = ttl.total_seconds() / 2
        self._every = every.total_seconds()
        self._beat = beat
        self._give_back = give_back
        self._lost = lost
        self._clock = clock
        self._held: dict[UUID, Lease] = {}
        self._left: set[UUID] = set()
        """The turns that have left us since the last beat began."""
        self._ttl = ttl.total_seconds()
        self._renewed_at = clock()
        self._judges_from = self._renewed_at
        self._given_up = Complaint(log, "lease.given_up", level=logging.ERROR, clock=clock)

    def __len__(self) -> int:
        return len(self._held)

    def count_claimed(self) -> int:
        """Count the turns that are ours; safe to call from any thread."""
        return sum(lease.epoch is not None for lease in list(self._held.values()))

    def age(self) -> float:
        """Return how long ago the last renewal that succeeded was sent, in seconds."""
        return self._clock() - self._renewed_at

    def turn_ids(self) -> tuple[UUID, ...]:
        """Return the turns that are here, those included that are only being claimed."""
        return tuple(self._held)

    @contextmanager
    def hold(self, turn_id: UUID) -> Iterator[Lease | None]:
        """Register the current task as the runner of a turn; None where another task here runs it already."""
        task = asyncio.current_task()
        if task is None or turn_id in self._held:
            yield None
            return
        lease = Lease(turn_id, task)
        self._held[turn_id] = lease
        try:
            yield lease
        finally:
            del self._held[turn_id]
            self._left.add(turn_id)

    def are_sure(self) -> bool:
        """Tell whether we may still speak for our turns; not so when the last renewal is too long ago."""
        return self._clock() - self._renewed_at <= self._patience

    def may_judge(self) -> bool:
        """Tell whether another worker's stale heartbeat means that it is gone.

        After a database outage all heartbeats are stale; the others get the time of a lease to beat again.
        """
        return self.are_sure() and self._clock() >= self._judges_from

    def stop(self, turn_id: UUID, why: Stop) -> None:
        """Break one turn off, if it is here."""
        if lease := self._held.get(turn_id):
            lease.stop(why)

    def stop_all(self, why: Stop) -> None:
        """Break every turn off."""
        for lease in list(self._held.values()):
            lease.stop(why)

    async def run(self) -> None:
        """Renew, until cancelled."""
        while True:
            is_renewed = await self.renew()
            await asyncio.sleep(self._every if is_renewed else self._every / 5)

    async def renew(self) -> bool:
        """Beat once; give up every turn when the database did not answer for too long."""
        began = self._clock()
        self._left.clear()
        known = [(lease, lease.epoch) for lease in self._held.values() if lease.epoch is not None]
        remaining = self._renewed_at + self._patience - began
        try:
            async with asyncio.timeout(remaining if remaining > 0 else self._patience):
                held = await self._beat()
        except Exception as error:  # noqa: BLE001 - whatever keeps us from renewing, the clock decides
            log.warning("lease.renewal_failed", error=str(error) or type(error).__name__)
            if self._clock() - self._renewed_at > self._patience - TIMER_GRAIN_SECONDS:
                self._give_up()
            return False
        by_turn = {one.turn_id: one for one in held}
        # Before we are sure again: what a lost turn had said meanwhile is not to be heard.
        self._compare(known, by_turn)
        if not self.are_sure():
            self._judges_from = began + self._ttl
        self._renewed_at = began
        await self._give_strays_back(by_turn)
        return True

    def _give_up(self) -> None:
        if self._held:
            self._given_up.make(turns=len(self._held))
        self.stop_all(Stop.LOST)

    def _compare(self, known: list[tuple[Lease, int]], held: dict[UUID, Held]) -> None:
        # The lease that was asked about is meant, not one that the same turn may have got since.
        for lease, epoch in known:
            one = held.get(lease.turn_id)
            if one is None or one.epoch != epoch:
                lease.stop(Stop.LOST)
                self._lost(lease.turn_id)
            elif one.is_cancelled:
                lease.stop(Stop.CANCELLED)

    async def _give_strays_back(self, held: dict[UUID, Held]) -> None:
        for turn_id, one in held.items():
            # One that left us meanwhile was still ours when the database was asked; hundreds may have.
            if turn_id not in self._held and turn_id not in self._left:
                # A claim or a last write whose answer never reached us left it behind.
                await self._give_back(turn_id, one.epoch)
