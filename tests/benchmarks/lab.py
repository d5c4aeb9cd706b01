"""What the benchmarks stand on: servers, workers and helpers of their own, and what these have spent.

A lab has PostgreSQL, Redis and the lean provider, no Flower and no simulator: nothing competes for the cores
that is not measured. CPU is what the kernel charged to a process and its children, never a clock on the wall.
"""

import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import timedelta
from itertools import cycle
from pathlib import Path
from typing import Any
from uuid import UUID

import psutil
import redis
from sqlalchemy import Engine, create_engine, text
from tests.benchmarks import provider

from turnkeeper import turns
from turnkeeper.doorbell import TRANSPORT_OPTIONS, producer_app, ring
from turnkeeper.requests import TurnRequest
from turnkeeper.turns import Enqueued
from turnkeeper_ops.dev.folder import occupy
from turnkeeper_ops.dev.readiness import workers_answer
from turnkeeper_ops.dev.stack import Stack
from turnkeeper_ops.services.process import Child, Command, poll

ROOT = Path(__file__).resolve().parents[2]
PROVIDER = "bench"
REPLAYING = "bench_replay"
"""The same provider, which keeps nothing: each turn sends its whole history."""
QUEUE = "turnkeeper"
PER_SECOND = 20.0
"""Events of each stream in a second: what a fast model says."""
WITHIN = timedelta(seconds=120)
ENQUEUED_AT_ONCE = 100
SLICE_SECONDS = 0.01
"""Three of these, which a process sleeps, are less than the 50 ms that a worker gives Redis for its cooldowns."""
_CONFIGURATION = """\
log_level = "warning"
events_ttl_seconds = 60
{more}
[providers.bench]
base_url = "{url}/v1"

[providers.bench_replay]
base_url = "{url}/v1"
store = false
"""


class Unfinished(Exception):
    """Something did not come about in time; the figures would mean nothing."""


@dataclass(frozen=True, slots=True)
class Helper:
    """A process of ours that does something on its own, and tells how far it is when it is asked."""

    process: "subprocess.Popen[str]"

    @property
    def pid(self) -> int:
        """The process id."""
        return self.process.pid

    def told(self) -> dict[str, Any]:
        """Return the next thing that it says by itself."""
        assert self.process.stdout is not None
        if not (line := self.process.stdout.readline()):
            raise Unfinished(f"{self.process.args!r} ended early, with exit code {self.process.wait()}")
        told: dict[str, Any] = json.loads(line)
        return told

    def ask(self) -> dict[str, Any]:
        """Ask it how far it is."""
        assert self.process.stdin is not None
        self.process.stdin.write("\n")
        self.process.stdin.flush()
        return self.told()


@contextmanager
def helper(module: str, *arguments: str, python: str = sys.executable) -> Iterator[Helper]:
    """Run a module of this package, until the block ends."""
    process = subprocess.Popen(
        [python, "-m", f"tests.benchmarks.{module}", *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=ROOT,
    )
    try:
        yield Helper(process)
    finally:
        process.kill()
        process.communicate()


@dataclass(slots=True)
class Lab:
    """The servers, and what can be done with them."""

    stack: Stack
    engine: Engine
    broker: "redis.Redis"
    provider_url: str
    provider_pid: int

    @property
    def environment(self) -> dict[str, str]:
        """The variables that lead to the servers."""
        return self.stack.addresses.environment()

    def control(self, path: str) -> dict[str, Any]:
        """Ask the provider; see `provider.control`."""
        return provider.control(self.provider_url, path)

    def enqueue(self, count: int, model: str, *, name: str = PROVIDER, chats: Sequence[UUID] = ()) -> list[UUID]:
        """Store turns, a chat for each or one of *chats*, and ring for them; return their ids."""
        stored: list[Enqueued] = []
        with producer_app(self.stack.addresses.broker_url, QUEUE) as app:
            for begin in range(0, count, ENQUEUED_AT_ONCE):
                some = range(begin, min(count, begin + ENQUEUED_AT_ONCE))
                with self.engine.begin() as connection:
                    for number in some:
                        # Owners enough, for the broker holds only a few turns of each at a time.
                        asked = {"text": "Why do people keep bees?", "owner": f"owner-{number}", "provider": name}
                        asked |= {"model": model, "chat_id": chats[number % len(chats)] if chats else None}
                        stored.append(turns.enqueue(connection, TurnRequest.parse(asked)))
                for turn in stored[begin:]:
                    if turn.is_rung:
                        ring(app, turn.id)
        return [turn.id for turn in stored]

    def unfinished(self) -> int:
        """Return how many turns have not ended."""
        with self.engine.connect() as connection:
            query = "SELECT count(*) FROM turns WHERE finished_at IS NULL"
            return int(connection.execute(text(query)).scalar_one())

    def check_all_completed(self) -> None:
        """Raise Unfinished where a turn ended otherwise: a failed turn is cheap, and no figure."""
        with self.engine.connect() as connection:
            query = "SELECT state, count(*) FROM turns GROUP BY state"
            states = {row.state: row.count for row in connection.execute(text(query))}
        if set(states) - {"completed"}:
            raise Unfinished(f"not all turns were completed: {states}{self.last_words()}")

    def waiting(self, queue: str = QUEUE) -> int:
        """Return how many messages no worker has taken yet."""
        length: int = self.broker.llen(TRANSPORT_OPTIONS["global_keyprefix"] + queue)  # type: ignore[assignment]
        return length

    @contextmanager
    def workers(self, count: int = 1, *, concurrency: int = 200) -> Iterator[list[int]]:
        """Run worker processes; yield their process ids."""
        self.stack._concurrency = concurrency
        started = [self.stack.start_worker() for _ in range(count)]
        try:
            yield [worker.pid for worker in started]
        finally:
            _end(started)
            self.stack.workers.clear()

    def wait_for_workers(self, count: int = 1) -> None:
        """Return when so many workers answer a ping."""
        with producer_app(self.stack.addresses.broker_url, QUEUE) as app:
            self.wait(lambda: workers_answer(app, count), "the workers answer")

    @contextmanager
    def paused(self, pid: int) -> Iterator[None]:
        """Let a worker take nothing meanwhile; its lease must outlive that."""
        worker = psutil.Process(pid)
        worker.suspend()
        try:
            yield
        finally:
            worker.resume()

    @contextmanager
    def in_turn(self, pids: Sequence[int], places: int) -> Iterator[None]:
        """Let each process run in one of so many slices of time, one after the other, and sleep in all others."""
        workers, stopped = [psutil.Process(pid) for pid in pids], threading.Event()

        def alternate() -> None:
            for place in cycle(range(places)):
                if place < len(workers):
                    workers[place].resume()
                if stopped.wait(SLICE_SECONDS):
                    return
                if place < len(workers):
                    workers[place].suspend()

        for worker in workers:
            worker.suspend()
        conductor = threading.Thread(target=alternate, daemon=True)
        conductor.start()
        try:
            yield
        finally:
            stopped.set()
            conductor.join()
            for worker in workers:
                worker.resume()

    @contextmanager
    def program(self, name: str, *argv: str, environment: dict[str, str] | None = None) -> Iterator[Child]:
        """Run another program beside the servers, led to them by its environment."""
        child = Child.start(
            Command(
                name=name,
                argv=argv,
                log=self.stack.state.logs / f"{name}.log",
                cwd=ROOT,
                environment=self.environment | {"PYTHONPATH": str(ROOT)} | (environment or {}),
            )
        )
        try:
            yield child
        finally:
            _end([child])

    def wait(self, condition: Callable[[], bool], what: str, *, within: timedelta = WITHIN) -> None:
        """Wait for a condition.  Raises Unfinished."""
        if not poll(condition, within=within):
            raise Unfinished(f"not within {within.total_seconds():.0f} s: {what}{self.last_words()}")

    def last_words(self) -> str:
        """Return the ends of the logs, whose folder goes with us."""
        logs = sorted(self.stack.state.logs.glob("*.log"))
        return "".join(
            f"\n{log.name}: {line}" for log in logs for line in log.read_text("utf-8").splitlines()[-5:]
        )


def _end(children: Iterable[Child]) -> None:
    """End processes side by side."""
    children = tuple(children)
    for child in children:
        child.ask_to_stop()
    for child in children:
        child.stop()


@contextmanager
def lab(*, per_second: float = PER_SECOND, settings: str = "") -> Iterator[Lab]:
    """Start the servers in a folder of their own, and leave nothing behind."""
    with tempfile.TemporaryDirectory(prefix="turnkeeper-bench-") as place, ExitStack() as parts:
        folder = Path(place)
        # PostgreSQL is no root, and has to get to its own folder.
        folder.chmod(0o755)
        # The settings of whoever runs us are not measured; the workers read the folder's.
        for name in [name for name in os.environ if name.startswith("TURNKEEPER_")]:
            del os.environ[name]
        state = parts.enter_context(occupy(folder))
        # Without fsync: what is compared is CPU, and how fast a shared disk is today would drown it.
        stack = Stack(state, folder, concurrency=200, durable=False)
        parts.enter_context(stack.postgres)
        parts.enter_context(stack.redis)
        parts.callback(stack.stop_processes)
        stack.migrate()
        source = parts.enter_context(helper("provider", "--per-second", str(per_second)))
        url = source.told()["url"]
        (folder / "turnkeeper.toml").write_text(_CONFIGURATION.format(url=url, more=settings), encoding="utf-8")
        engine = create_engine(stack.addresses.database_url.replace("postgresql:", "postgresql+psycopg:", 1))
        parts.callback(engine.dispose)
        broker = parts.enter_context(redis.Redis.from_url(stack.addresses.broker_url))
        yield Lab(stack, engine, broker, url, source.pid)


def cpu_seconds(pids: Iterable[int]) -> float:
    """Return the CPU time that processes and their children, those that ended included, have used."""
    return sum(sum(process.cpu_times()[:4]) for pid in pids for process in _family(pid))


def resident_bytes(pids: Iterable[int]) -> int:
    """Return the memory that processes and their children hold."""
    return sum(process.memory_info().rss for pid in pids for process in _family(pid))


def _family(pid: int) -> list[psutil.Process]:
    parent = psutil.Process(pid)
    return [parent, *parent.children(recursive=True)]


@dataclass(frozen=True, slots=True)
class Spent:
    """What a stretch of time cost."""

    seconds: float
    cpu: dict[str, float]
    """In seconds, by the name of who spent it."""


class Meter:
    """Reads the CPU time of groups of processes, from its making on."""

    def __init__(self, **groups: Iterable[int]) -> None:
        self._groups = {name: tuple(pids) for name, pids in groups.items()}
        self._before = self._read()
        self._began = time.monotonic()

    def _read(self) -> dict[str, float]:
        return {name: cpu_seconds(pids) for name, pids in self._groups.items()}

    def read(self) -> Spent:
        """Return what has been spent so far."""
        seconds, after = time.monotonic() - self._began, self._read()
        return Spent(seconds, {name: after[name] - self._before[name] for name in after})
