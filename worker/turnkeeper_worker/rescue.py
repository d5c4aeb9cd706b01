"""The rescue loop, in every worker: no turn waits for a message that was lost or for a worker that died.

It rings for turns that are due and of which the broker does not know, frees the turns of workers whose
heartbeat stopped, and calls off background responses that nobody waits for any more. All workers may run it at
once; rows that another one is at are skipped.
"""

import asyncio
import random
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from uuid import UUID

from turnkeeper.events import TurnCancelled, TurnFailed, TurnRetry
from turnkeeper.states import TurnState
from turnkeeper_worker import upkeep
from turnkeeper_worker.database import Database
from turnkeeper_worker.live import Live
from turnkeeper_worker.providers import Provider
from turnkeeper_worker.telemetry import get_logger
from turnkeeper_worker.upkeep import Abandoned, Due, Orphan

log = get_logger(__name__)

FORGOTTEN_AFTER = timedelta(seconds=60)
"""A ring that old has either been answered or was lost, or every worker is busy; another one does no harm."""
FORGOTTEN_AFTER_WITH_EMPTY_QUEUE = timedelta(seconds=3)
"""Where the broker holds nothing, a due turn of that age was forgotten."""

ABANDONED_FOR = timedelta(hours=1)
"""A response that could not be called off for so long has ended by itself."""

Ring = Callable[[list[Due]], Awaitable[None]]
"""Tells the broker about due turns.  Raises BrokerUnavailable."""
QueueIsEmpty = Callable[[], Awaitable[bool]]
"""Tells whether the broker holds no message for us; False where it cannot be asked."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Rescuer:
    """Looks after the turns that nobody looks after."""

    database: Database
    live: Live
    ring: Ring
    queue_is_empty: QueueIsEmpty
    holds: Callable[[], Sequence[UUID]]
    """The turns that this worker was told of already, and has not got to yet."""
    providers: Mapping[str, Provider]
    lease_ttl: timedelta
    every: timedelta
    rng: random.Random

    async def run(self) -> None:
        """Look after turns, round after round, until cancelled."""
        await self._repeat(self.free_orphans, self.ring_due)

    async def run_call_offs(self) -> None:
        """Look after background responses, round after round, until cancelled.

        Apart from `run`: a provider that hangs must not keep turns waiting.
        """
        await self._repeat(self.call_off_abandoned)

    async def _repeat(self, *duties: Callable[[], Awaitable[None]]) -> None:
        while True:
            # Staggered, so that the workers of a fleet do not all look at the same moment.
            await asyncio.sleep(self.every.total_seconds() * (0.75 + 0.5 * self.rng.random()))
            try:
                for duty in duties:
                    await duty()
            except Exception as error:  # noqa: BLE001 - the edge of a maintenance loop: the next round tries again
                log.warning("rescue.failed", error=str(error) or type(error).__name__)

    async def free_orphans(self) -> None:
        """Free the turns of workers that are gone, and tell their followers."""
        await self.welcome(await self.database.once(upkeep.rescue, self.lease_ttl))

    async def welcome(self, orphans: list[Orphan]) -> None:
        """Tell the followers of freed turns, and ring for what became due."""
        for orphan in orphans:
            log.warning("turn.rescued", turn_id=str(orphan.id), epoch=orphan.epoch, state=str(orphan.state))
            self.live.say(_event(orphan))
        due = [Due(one.id, one.attempt) for one in orphans if one.state is TurnState.QUEUED]
        woken = [Due(one.woken, 0) for one in orphans if one.woken is not None]
        if due or woken:
            await self.ring([*due, *woken])

    async def ring_due(self) -> None:
        """Ring for due turns of which the broker does not know."""
        is_empty = await self.queue_is_empty()
        age = FORGOTTEN_AFTER_WITH_EMPTY_QUEUE if is_empty else FORGOTTEN_AFTER
        due = await self.database.once(upkeep.take_due, forgotten_after=age, besides=self.holds())
        if due:
            log.info("rescue.rings", turns=len(due))
            try:
                await self.ring(due)
            except Exception:
                await self.database.once(upkeep.forget_rings, [one.id for one in due])
                raise

    async def call_off_abandoned(self) -> None:
        """Cancel, at their providers, background responses whose turns have ended without them."""
        await self.database.once(upkeep.forget_abandoned, after=ABANDONED_FOR)
        found = await self.database.once(upkeep.find_abandoned)
        await asyncio.gather(*(self._call_off(one) for one in found))

    async def _call_off(self, abandoned: Abandoned) -> None:
        provider = self.providers.get(abandoned.checkpoint.credential.provider)
        if provider is None:
            return
        called_off = await provider.call_off(abandoned.checkpoint.response_id)
        if called_off.is_over:
            log.info("response.called_off", turn_id=str(abandoned.turn_id))
            await self.database.once(upkeep.close_abandoned, abandoned, called_off.usage)


def _event(orphan: Orphan) -> TurnRetry | TurnCancelled | TurnFailed:
    stamp = {"turn_id": orphan.id, "epoch": orphan.epoch, "step": orphan.step, "attempt": orphan.attempt}
    if orphan.error is not None:
        return TurnFailed(**stamp, error=orphan.error)
    if orphan.state is TurnState.CANCELLED:
        return TurnCancelled(**stamp)
    return TurnRetry(**stamp, reason="rescued", retrying_at=datetime.now(UTC))
