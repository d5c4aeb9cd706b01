"""The workers of a storm, each behind wires of its own, and the supervisor that replaces those that are gone."""

import asyncio
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import AsyncExitStack
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from typing import Self
from urllib.parse import urlsplit

from turnkeeper_ops.dev import Stack
from turnkeeper_ops.dev.addresses import SIMULATOR, SIMULATOR_CHAT, SIMULATOR_MESSAGES
from turnkeeper_ops.services.process import Child, Command

from .evidence import Departure
from .mischief import LEASE_TTL_SECONDS
from .proxy import Proxy

COMMAND = (sys.executable, "-P", "-m", "turnkeeper_worker.cli", "worker", "--concurrency", "60")
SETTINGS = f"""
lease_ttl_seconds = {LEASE_TTL_SECONDS}
beat_seconds = 0.5
drain_seconds = 1
checkpoint_seconds = 0.3
rescue_seconds = 0.5
[retry]
backoff_base_seconds = 0.1
backoff_cap_seconds = 1.0
"""
WATCHDOG_SECONDS = 2.0
LEAVES_WITHIN = timedelta(seconds=20)
"""How long a worker may take from SIGTERM to its end; its turns are handed back after one second."""
_READY = " ready."
_LOOK_SECONDS = 0.1


@dataclass(eq=False, slots=True)
class Worker:
    """One worker process, and the wires that lead from it to PostgreSQL and Redis."""

    child: Child
    postgres: Proxy
    redis: Proxy
    wires: AsyncExitStack
    started_at: datetime
    is_well: bool = True
    """Whether no monkey is at it."""
    asked_to_leave_at: datetime | None = None
    is_killed: bool = False
    _is_ready: bool = False

    @property
    def pid(self) -> int:
        """Its process id."""
        return self.child.pid

    @property
    def is_ready(self) -> bool:
        """Whether it has come up and takes turns."""
        if not self._is_ready:
            self._is_ready = _READY in self.child.output()
        return self._is_ready and self.is_running

    @property
    def is_running(self) -> bool:
        """Whether the process exists."""
        return self.child.exit_code() is None

    @property
    def is_leaving(self) -> bool:
        """Whether it is gone or going by somebody's wish."""
        return self.is_killed or self.asked_to_leave_at is not None


@dataclass(slots=True)
class Fleet:
    """Keeps *size* workers running.  Belongs to one event loop."""

    running: Stack
    size: int
    provider: Proxy
    """The one wire of all workers to the provider: its address is part of what anchors are bound to."""
    members: list[Worker] = field(default_factory=list)
    departures: list[Departure] = field(default_factory=list)
    is_over: bool = False
    _started: int = 0

    async def __aenter__(self) -> Self:
        (self.running.folder / "turnkeeper.toml").write_text(SETTINGS, encoding="utf-8")
        await asyncio.gather(*(self.start() for _ in range(self.size)))
        return self

    async def __aexit__(self, *_: object) -> None:
        for worker in self.members:
            if worker.is_running:
                os.kill(worker.pid, signal.SIGCONT)
                worker.child.ask_to_stop()
        for worker in list(self.members):
            await self._bury(worker)

    async def start(self) -> None:
        """Start one more worker."""
        wires = AsyncExitStack()
        postgres = await wires.enter_async_context(Proxy(self.running.postgres.port))
        redis = await wires.enter_async_context(Proxy(self.running.redis.port))
        self._started += 1
        command = self._command(f"chaos-worker-{self._started}", postgres, redis)
        child = await asyncio.to_thread(Child.start, command)
        self.members.append(Worker(child, postgres, redis, wires, datetime.now(UTC)))

    def _command(self, name: str, postgres: Proxy, redis: Proxy) -> Command:
        real = self.running.addresses
        wired = replace(
            real,
            database_url=postgres.through(real.database_url),
            redis_url=redis.through(real.redis_url),
            broker_url=redis.through(real.broker_url),
            simulator_url=self.provider.through(real.simulator_url or ""),
        )
        return Command(
            name=name,
            argv=COMMAND,
            log=self.running.state.logs / f"{name}.log",
            cwd=self.running.folder,
            environment={**wired.environment(), **_patience(), "PYTHONUNBUFFERED": "1"},
            grace=LEAVES_WITHIN,
            held=(self.running.state.lock,),
        )

    def well(self) -> list[Worker]:
        """Return the workers that take turns and that nobody torments."""
        return [one for one in self.members if one.is_well and not one.is_leaving and one.is_ready]

    def wires(self) -> Iterator[Worker]:
        """Return the workers that are there, whatever their state."""
        return (one for one in self.members if one.is_running)

    async def supervise(self) -> None:
        """Bury the dead and start new workers in their place, until it is over.

        Not until cancelled: a worker that is just being started would be nobody's.
        """
        while not self.is_over:
            await asyncio.sleep(_LOOK_SECONDS)
            for worker in [one for one in self.members if not one.is_running]:
                self._judge(worker)
                await self._bury(worker)
            for worker in [one for one in self.members if _overstays(one)]:
                self._note(worker, "did not leave when it was asked to")
                os.kill(worker.pid, signal.SIGKILL)
                worker.is_killed = True
            staying = [one for one in self.members if not one.is_leaving]
            await asyncio.gather(*(self.start() for _ in range(self.size - len(staying))))

    def _judge(self, worker: Worker) -> None:
        code = worker.child.exit_code()
        if worker.is_killed:
            return
        if worker.asked_to_leave_at is None:
            self._note(worker, f"ended by itself, with exit code {code}")
        elif code != 0:
            self._note(worker, f"left with exit code {code}")

    def _note(self, worker: Worker, how: str) -> None:
        log = worker.child.command.log
        self.departures.append(
            Departure(pid=worker.pid, started_at=worker.started_at, at=datetime.now(UTC), how=how, log=log)
        )

    async def _bury(self, worker: Worker) -> None:
        await asyncio.to_thread(worker.child.stop)
        await worker.wires.aclose()
        self.members.remove(worker)


def _overstays(worker: Worker) -> bool:
    asked = worker.asked_to_leave_at
    return asked is not None and not worker.is_killed and datetime.now(UTC) - asked > LEAVES_WITHIN


def _patience() -> dict[str, str]:
    """Return short watchdogs for the providers, which a storm has no time to wait for."""
    return {
        f"TURNKEEPER_PROVIDERS__{name.upper()}__{watchdog}": str(WATCHDOG_SECONDS)
        for name in (SIMULATOR, SIMULATOR_CHAT, SIMULATOR_MESSAGES)
        for watchdog in ("STARTUP_TIMEOUT_SECONDS", "SILENCE_TIMEOUT_SECONDS")
    }


def port_of(url: str) -> int:
    """Return the port of an address."""
    port = urlsplit(url).port
    assert port is not None
    return port
