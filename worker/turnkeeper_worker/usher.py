"""The usher calls turns up that stand back, as soon as this worker begins with another one of their owner.

The broker's queue knows no owners: what stands in it is taken in its order. So it gets a few turns of each owner
at a time, and the next ones as those are begun. Where this goes wrong, the rescue loop does the same.
"""

import asyncio
from dataclasses import dataclass, field

from sqlalchemy.exc import DBAPIError

from turnkeeper.exceptions import BrokerUnavailable
from turnkeeper.turns import AT_BROKER
from turnkeeper_worker import upkeep
from turnkeeper_worker.database import Database
from turnkeeper_worker.telemetry import get_logger
from turnkeeper_worker.upkeep import Ring

log = get_logger(__name__)

REST_SECONDS = 0.05
ENOUGH_FOR_NOW = AT_BROKER // 2
"""Who called up fewer than so many rests before the next time: each call costs as much as a claim."""


@dataclass(frozen=True, slots=True)
class Usher:
    """Rings for turns whose turn it is.  Belongs to one event loop."""

    database: Database
    ring: Ring
    _is_asked: asyncio.Event = field(default_factory=asyncio.Event)

    def ask(self) -> None:
        """Note that there is room at the broker; returns at once."""
        self._is_asked.set()

    async def run(self) -> None:
        """Call turns up when asked, until cancelled; what is asked meanwhile is done in one go."""
        while True:
            await self._is_asked.wait()
            self._is_asked.clear()
            if await self._call_up() < ENOUGH_FOR_NOW:
                await asyncio.sleep(REST_SECONDS)

    async def _call_up(self) -> int:
        try:
            if called := await self.database.once(upkeep.call_up):
                await self.ring(called)
        except (BrokerUnavailable, DBAPIError) as error:
            log.debug("usher.failed", error=type(error).__name__)
            return 0
        return len(called)
