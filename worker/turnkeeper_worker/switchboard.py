"""Which providers are switched off, as this worker knows: read now and then, so that no turn has to ask."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from turnkeeper import switches
from turnkeeper.switches import Disabled
from turnkeeper_worker.database import Database
from turnkeeper_worker.telemetry import get_logger

log = get_logger(__name__)


@dataclass(slots=True)
class Switchboard:
    """The switches of all providers.  While the database is away, they stay as they were."""

    off: Mapping[str, Disabled] = field(default_factory=dict)

    async def look(self, database: Database) -> None:
        """Read the switches."""
        before, self.off = self.off, await database.once(switches.disabled)
        for name in self.off.keys() - before.keys():
            log.warning("provider.disabled", provider=name, reason=self.off[name].reason)
        for name in before.keys() - self.off.keys():
            log.info("provider.enabled", provider=name)
