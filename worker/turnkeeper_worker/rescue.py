"""The rescue loop, in every worker: no turn waits for a message that was lost or for a worker that died.

Each round begins with a look at the switches of the providers. The loop rings for turns that are due and of which
the broker does not know, frees the turns of workers whose heartbeat stopped, and calls off background responses
that nobody waits for any more. Less often it tidies up: it deletes what is old, and what erased turns have left
behind. All workers may run it at once; rows that another one is at are skipped.
"""

import asyncio
import random
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime, timedelta
from uuid import UUID

from redis.asyncio import Redis

from turnkeeper.events import TurnCancelled, TurnFailed, TurnRetry
from turnkeeper.keys import events_key
from turnkeeper.states import TurnState
from turnkeeper_worker import pruning, upkeep
from turnkeeper_worker.database import Database
from turnkeeper_worker.live import Live
from turnkeeper_worker.observer import Observer
from turnkeeper_worker.providers import Provider
from turnkeeper_worker.switchboard import Switchboard
from turnkeeper_worker.telemetry import get_logger
from turnkeeper_worker.upkeep import Abandoned, Due, Orphan, Ring

log = get_logger(__name__)

FORGOTTEN_AFTER = timedelta(seconds=3)
"""Where the broker holds nothing, a due turn that was rung for so long ago was forgotten."""
MORE_FOR_EACH_MESSAGE = timedelta(seconds=0.1)
"""A ring may stand behind each message that the broker holds."""
NEVER_FORGOTTEN_BEFORE = timedelta(seconds=60)
"""Older than this, it is rung for again, however long the queue; another ring does no harm."""
ENOUGH_MESSAGES = 500
"""With so many the workers are busy for a while; turns that have only just been enqueued go behind them."""

COUNTS_EVERY = timedelta(seconds=15)
"""How often each worker counts the turns that wait."""
ABANDONED_FOR = timedelta(hours=1)
"""A response that could not be called off for so long has ended by itself."""

QueueLength = Callable[[], Awaitable[int]]
"""Tells how many messages the broker holds for us.  Raises where it cannot be asked."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Rescuer:
    """Looks after the turns that nobody looks after."""

    database: Database
    live: Live
    ring: Ring
    queue_length: QueueLength
    holds: Callable[[], Sequence[UUID]]
    """The turns that this worker was told of already, and has not got to yet."""
    may_judge: Callable[[], bool]
    """Whether a heartbeat that stopped says something about its worker, and not about the database."""
    providers: Mapping[str, Provider]
    switchboard: Switchboard
    redis: Redis
    lease_ttl: timedelta
    every: timedelta
    tidy_every: timedelta
    retention: timedelta | None
    """How old records may become; None: as old as they like."""
    rng: random.Random
    observer: Observer

    async def run(self) -> None:
        """Look after turns, round after round, until cancelled."""
        await self._repeat(self.every, self.look_at_switches, self.free_orphans, self.ring_due)

    async def run_call_offs(self) -> None:
        """Look after background responses, round after round, until cancelled.

        Apart from `run`: a provider that hangs must not keep turns waiting.
        """
        await self._repeat(self.every, self.call_off_abandoned)

    async def run_housekeeping(self) -> None:
        """Tidy up, round after round, until cancelled."""
        await self._repeat(self.tidy_every, self.wake_stuck, self.prune, self.sweep_up_erased)

    async def run_counting(self) -> None:
        """Count the turns that wait, round after round, until cancelled."""
        await self._repeat(COUNTS_EVERY, self.count_waiting)

    async def _repeat(self, every: timedelta, *duties: Callable[[], Awaitable[None]]) -> None:
        while True:
            # Staggered, so that the workers of a fleet do not all look at the same moment.
            await asyncio.sleep(every.total_seconds() * (0.75 + 0.5 * self.rng.random()))
            try:
                for duty in duties:
                    await duty()
            except Exception as error:  # noqa: BLE001 - the edge of a maintenance loop: the next round tries again
                log.warning("rescue.failed", error=str(error) or type(error).__name__)

    async def look_at_switches(self) -> None:
        """Learn which providers are switched off."""
        await self.switchboard.look(self.database)

    async def free_orphans(self) -> None:
        """Free the turns of workers that are gone, tell their followers, and ring for what became due."""
        if not self.may_judge():
            return
        orphans = await self.database.once(upkeep.rescue, self.lease_ttl)
        self.announce(orphans)
        due = [Due(one.id, one.attempt) for one in orphans if one.state is TurnState.QUEUED]
        woken = [Due(one.woken, 0) for one in orphans if one.woken is not None]
        if due or woken:
            await self.ring([*due, *woken])

    def announce(self, orphans: list[Orphan]) -> None:
        """Tell the followers of freed turns."""
        for orphan in orphans:
            log.warning("turn.rescued", turn_id=str(orphan.id), epoch=orphan.epoch, state=str(orphan.state))
            self.live.say(_event(orphan))
            self.observer.rescued(orphan)

    async def ring_due(self) -> None:
        """Ring for due turns of which the broker does not know, unless it has more than enough messages."""
        length = await self.queue_length()
        if length >= ENOUGH_MESSAGES:
            return
        age = min(FORGOTTEN_AFTER + length * MORE_FOR_EACH_MESSAGE, NEVER_FORGOTTEN_BEFORE)
        due = await self.database.once(
            upkeep.take_due, forgotten_after=age, besides=self.holds(), limit=ENOUGH_MESSAGES - length
        )
        if due:
            log.info("rescue.rings", turns=len(due))
            await self.ring(due)

    async def count_waiting(self) -> None:
        """Count the turns that wait for a worker or a countdown."""
        self.observer.waiting(await self.database.once(upkeep.count_waiting))

    async def wake_stuck(self) -> None:
        """Ring for turns that wait behind nothing."""
        if woken := await self.database.once(upkeep.wake_stuck):
            log.warning("turns.woken", turns=[str(one.id) for one in woken])
            await self.ring(woken)

    async def prune(self) -> None:
        """Delete what is old, batch after batch, each in a short transaction."""
        deleted = pruning.Pruned()
        while batch := await self.database.once(pruning.prune, self.retention):
            deleted += batch
        if deleted:
            log.info("records.pruned", **asdict(deleted))

    async def sweep_up_erased(self) -> None:
        """Delete live events of erased turns that were said while they were being erased."""
        while erased := await self.database.once(upkeep.find_erased, after=self.lease_ttl):
            await self.redis.delete(*map(events_key, erased))
            await self.database.once(upkeep.forget_erased, erased)

    async def call_off_abandoned(self) -> None:
        """Cancel, at their providers, background responses whose turns have ended without them."""
        await self.database.once(upkeep.forget_abandoned, after=ABANDONED_FOR)
        found = await self.database.once(upkeep.find_abandoned)
        await asyncio.gather(*(self._call_off(one) for one in found))

    async def _call_off(self, abandoned: Abandoned) -> None:
        credential = abandoned.checkpoint.credential
        provider = self.providers.get(credential.provider)
        if provider is None:
            return
        called_off = await provider.call_off(abandoned.checkpoint.response_id)
        if called_off.is_over:
            log.info("response.called_off", turn_id=str(abandoned.turn_id))
            await self.database.once(upkeep.close_abandoned, abandoned, called_off.usage)
            self.observer.called_off(credential.provider, credential.model, called_off.usage)


def _event(orphan: Orphan) -> TurnRetry | TurnCancelled | TurnFailed:
    stamp = {"turn_id": orphan.id, "epoch": orphan.epoch, "step": orphan.step, "attempt": orphan.attempt}
    if orphan.error is not None:
        return TurnFailed(**stamp, error=orphan.error)
    if orphan.state is TurnState.CANCELLED:
        return TurnCancelled(**stamp)
    return TurnRetry(**stamp, reason="rescued", retrying_at=datetime.now(UTC))
