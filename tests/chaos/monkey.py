"""Plays pranks on a fleet and on its servers, and writes down from when to when each lasted."""

import asyncio
import os
import shutil
import signal
from collections.abc import Iterator
from contextlib import AsyncExitStack, contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime

from turnkeeper_ops.services.server import Server

from .fleet import Fleet, Worker
from .mischief import ON_WORKERS, Incident, Mischief, Prank
from .proxy import Proxy

FEWEST_WELL = 2
"""So many workers a monkey leaves alone; it waits until there are more. That nobody is there is nobody's fault."""
_LOOK_SECONDS = 0.1


@dataclass(slots=True)
class Monkey:
    """One source of trouble.  Belongs to one event loop."""

    fleet: Fleet
    incidents: list[Incident] = field(default_factory=list)

    async def rage(self, plan: Iterator[Mischief]) -> None:
        """Play one prank after the other, until cancelled; what was begun is put right first."""
        for mischief in plan:
            await asyncio.sleep(mischief.pause_seconds)
            victim = await self._choose(mischief)
            prank = asyncio.create_task(self._play(mischief, victim))
            try:
                await asyncio.shield(prank)
            except asyncio.CancelledError:
                await prank
                raise

    async def _choose(self, mischief: Mischief) -> Worker | None:
        """Choose a worker for a prank that needs one, as soon as there are enough of them."""
        if mischief.prank not in ON_WORKERS:
            return None
        while len(well := self.fleet.well()) <= FEWEST_WELL:  # noqa: ASYNC110 - processes, which tell nobody
            await asyncio.sleep(_LOOK_SECONDS)
        return well[int(mischief.choice * len(well)) % len(well)]

    async def _play(self, mischief: Mischief, victim: Worker | None) -> None:
        fleet = self.fleet
        with self._noting(mischief.prank, None if victim is None else victim.pid):
            match mischief.prank:
                case Prank.REDIS_RESTART:
                    await self._restart(mischief, fleet.running.redis)
                case Prank.REDIS_WIPE:
                    await self._restart(mischief, fleet.running.redis, wipe=True)
                case Prank.POSTGRES_RESTART:
                    await self._restart(mischief, fleet.running.postgres)
                case Prank.CUT_POSTGRES:
                    await self._cut(mischief, [one.postgres for one in fleet.wires()])
                case Prank.CUT_REDIS:
                    await self._cut(mischief, [one.redis for one in fleet.wires()])
                case Prank.CUT_PROVIDER:
                    await self._cut(mischief, [fleet.provider])
                case _ if victim is not None:
                    victim.is_well = False
                    await self._torment(victim, mischief)
                    victim.is_well = True

    async def _torment(self, worker: Worker, mischief: Mischief) -> None:
        match mischief.prank:
            case Prank.KILL:
                worker.is_killed = True
                os.kill(worker.pid, signal.SIGKILL)
            case Prank.TERM:
                worker.asked_to_leave_at = datetime.now(UTC)
                os.kill(worker.pid, signal.SIGTERM)
            case Prank.STOP:
                os.kill(worker.pid, signal.SIGSTOP)
                await asyncio.sleep(mischief.lasts_seconds)
                os.kill(worker.pid, signal.SIGCONT)
            case Prank.PART_POSTGRES:
                async with worker.postgres.under(mischief.weather):
                    await asyncio.sleep(mischief.lasts_seconds)
            case _:
                async with worker.redis.under(mischief.weather):
                    await asyncio.sleep(mischief.lasts_seconds)

    async def _restart(self, mischief: Mischief, server: Server, *, wipe: bool = False) -> None:
        await asyncio.to_thread(server.kill)
        if wipe:
            shutil.rmtree(server._data)
        await asyncio.sleep(mischief.lasts_seconds)
        await asyncio.to_thread(server.start)

    async def _cut(self, mischief: Mischief, wires: list[Proxy]) -> None:
        async with AsyncExitStack() as weather:
            for wire in wires:
                await weather.enter_async_context(wire.under(mischief.weather))
            await asyncio.sleep(mischief.lasts_seconds)

    @contextmanager
    def _noting(self, prank: Prank, pid: int | None) -> Iterator[None]:
        began = datetime.now(UTC)
        try:
            yield
        finally:
            self.incidents.append(Incident(prank=prank, began=began, ended=datetime.now(UTC), pid=pid))
