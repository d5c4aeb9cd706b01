"""A storm from its beginning to its evidence: users, workers and monkeys at once, and then the calm."""

import asyncio
import json
import os
import time
import urllib.request
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest.mock import patch

import psycopg
from tests.acceptance.tools_package import install_tools

from turnkeeper import AsyncTurnkeeper
from turnkeeper_ops.dev import Stack, stack
from turnkeeper_ops.services.process import ServiceError

from .evidence import Evidence, read_calls, read_rows, read_tool_notes
from .fleet import Fleet, port_of
from .mischief import ON_SERVICES, ON_WORKERS, Incident, plan_mischief
from .monkey import Monkey
from .plan import PlannedChat, plan_load
from .proxy import Proxy
from .users import Crowd

CALM_SECONDS = 40.0
"""How long nothing may happen, when the monkeys are gone, before what is not done is given up."""
LOOK_SECONDS = 0.2
WORKERS = 4
CHATS_PER_SECOND = 0.6
WORKERS_REST = (1.0, 5.0)
SERVICES_REST = (2.0, 7.0)
"""The shortest and the longest pause between two pranks on workers, and on what they share; in seconds."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Forecast:
    """What kind of storm it will be."""

    seed: int
    seconds: float
    workers: int = WORKERS
    chats_per_second: float = CHATS_PER_SECOND
    workers_rest: tuple[float, float] = WORKERS_REST
    services_rest: tuple[float, float] = SERVICES_REST

    def load(self) -> tuple[PlannedChat, ...]:
        """Decide what the users do."""
        return plan_load(self.seed, seconds=self.seconds, chats_per_second=self.chats_per_second)


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """How far a storm has come."""

    seconds: float
    asked: int
    planned: int
    readers_done: int
    readers: int
    incidents: tuple[Incident, ...]
    workers: int


Watch = Callable[[Progress], None]


def run_storm(forecast: Forecast, folder: Path, watch: Watch = lambda _: None) -> Evidence:
    """Run a storm on a stack of its own in *folder*; return what it left behind."""
    tools = folder / "tools"
    log = install_tools(tools)
    with _python_path(tools), stack(folder, workers=0, durable=True) as running:
        _spare_the_disk(running)
        load = forecast.load()
        _put_scripts(running, load)
        return asyncio.run(_storm(forecast, load, running, log, watch))


def _spare_the_disk(running: Stack) -> None:
    """Let PostgreSQL write without waiting for the disk: its processes are going to be killed, not the machine."""
    with psycopg.connect(running.postgres.url("postgres"), autocommit=True) as connection:
        connection.execute("ALTER SYSTEM SET fsync = off")
        connection.execute("SELECT pg_reload_conf()")


@contextmanager
def _python_path(folder: Path) -> Iterator[None]:
    """Let the workers find what is installed in *folder*."""
    path = os.pathsep.join(filter(None, (str(folder), os.environ.get("PYTHONPATH"))))
    with patch.dict(os.environ, PYTHONPATH=path):
        yield


async def _storm(
    forecast: Forecast, load: tuple[PlannedChat, ...], running: Stack, tool_log: Path, watch: Watch
) -> Evidence:
    async with (
        Proxy(port_of(running.addresses.simulator_url or "")) as provider,
        Fleet(running, forecast.workers, provider) as fleet,
        _keeper(running) as keeper,
    ):
        crowd, monkey = Crowd(keeper), Monkey(fleet)
        async with _supervised(fleet):
            await _come_up(fleet)
            began = time.monotonic()
            for chat in load:
                crowd.begin(chat)
            count = sum(len(chat.turns) for chat in load)
            async with _watched(lambda: watch(_progress(count, began, crowd, fleet, monkey))):
                await _rage(forecast, monkey)
                left = await _calm_down(crowd)
        rows = await keeper._transact(read_rows)
    return Evidence(
        planned={turn.key: turn for chat in load for turn in chat.turns},
        **rows,
        calls=read_calls(_ask(running, "GET", "/simulator/requests?items=0")["requests"]),
        tool_notes=read_tool_notes(tool_log),
        heard=crowd.heard(),
        incidents=tuple(monkey.incidents),
        departures=tuple(fleet.departures),
        troubles=left,
    )


@asynccontextmanager
async def _keeper(running: Stack) -> AsyncIterator[AsyncTurnkeeper]:
    """Open the users' client: they are not behind the workers' wires, but suffer when a server is away."""
    where = running.addresses
    async with AsyncTurnkeeper(
        database_url=where.database_url, redis_url=where.redis_url, broker_url=where.broker_url
    ) as keeper:
        yield keeper


@asynccontextmanager
async def _supervised(fleet: Fleet) -> AsyncIterator[None]:
    supervisor = asyncio.create_task(fleet.supervise())
    try:
        yield
    finally:
        fleet.is_over = True
        await supervisor


@asynccontextmanager
async def _watched(look: Callable[[], None]) -> AsyncIterator[None]:
    async def go_on() -> None:
        while True:
            look()
            await asyncio.sleep(LOOK_SECONDS)

    watching = asyncio.create_task(go_on())
    try:
        yield
    finally:
        await _end(watching)


async def _come_up(fleet: Fleet) -> None:
    if not await _until(lambda: len(fleet.well()) >= fleet.size):
        raise ServiceError(f"the workers did not come up; see {fleet.running.state.logs}")


async def _rage(forecast: Forecast, monkey: Monkey) -> None:
    """Let two monkeys work side by side for as long as the storm lasts."""
    plans = (
        plan_mischief(forecast.seed, "workers", ON_WORKERS, rest=forecast.workers_rest),
        plan_mischief(forecast.seed, "services", ON_SERVICES, rest=forecast.services_rest),
    )
    raging = [asyncio.create_task(monkey.rage(plan)) for plan in plans]
    done, _ = await asyncio.wait(raging, timeout=forecast.seconds, return_when=asyncio.FIRST_EXCEPTION)
    await asyncio.gather(*(_end(one) for one in raging))
    for one in done:
        one.result()


async def _calm_down(crowd: Crowd) -> tuple[str, ...]:
    """Wait until everybody has what they wanted; return what went wrong for them."""
    await _until(lambda: not crowd.busy(), crowd.busy)
    for doing in crowd.doings:
        await _end(doing)
    errors = (doing.exception() for doing in crowd.doings if not doing.cancelled())
    return tuple(f"{type(error).__name__}: {error}" for error in errors if error is not None)


async def _until(condition: Callable[[], bool], moved: Callable[[], int] = lambda: 0) -> bool:
    """Wait for a condition, as long as something moves; tell whether it came true."""
    last, since = moved(), time.monotonic()
    while not condition():
        await asyncio.sleep(LOOK_SECONDS)
        if (now := moved()) != last:
            last, since = now, time.monotonic()
        elif time.monotonic() - since > CALM_SECONDS:
            return False
    return True


async def _end(task: "asyncio.Task[None]") -> None:
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


def _progress(planned: int, began: float, crowd: Crowd, fleet: Fleet, monkey: Monkey) -> Progress:
    return Progress(
        seconds=time.monotonic() - began,
        asked=len(crowd.turns),
        planned=planned,
        readers_done=sum(reader.end is not None for reader in crowd.readers),
        readers=len(crowd.readers),
        incidents=tuple(monkey.incidents),
        workers=len(fleet.well()),
    )


def _put_scripts(running: Stack, load: tuple[PlannedChat, ...]) -> None:
    for chat in load:
        for turn in chat.turns:
            _ask(running, "PUT", f"/simulator/scripts/{turn.key}", {"steps": turn.steps, "repeat_last": True})


def _ask(running: Stack, method: str, path: str, body: object = None) -> Any:
    url = f"{running.addresses.simulator_url}{path}"
    content = json.dumps(body).encode() if body is not None else None
    with urllib.request.urlopen(urllib.request.Request(url, content, method=method), timeout=30) as answer:
        return json.load(answer)
