"""A whole Turnkeeper on one machine: started in order, watched, and ended together."""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from datetime import timedelta
from pathlib import Path
from typing import NoReturn

from turnkeeper import Turnkeeper
from turnkeeper.doorbell import producer_app
from turnkeeper_ops.dev.addresses import SIMULATOR_KEY, SIMULATOR_SECOND_KEY, Addresses
from turnkeeper_ops.dev.folder import StateFolder, occupy
from turnkeeper_ops.dev.readiness import a_turn_completes, flower_sees, workers_answer
from turnkeeper_ops.services.ports import LOOPBACK, free_port
from turnkeeper_ops.services.postgres import Postgres
from turnkeeper_ops.services.process import Child, Command, ServiceError, poll
from turnkeeper_ops.services.redis import Redis

_DATABASE = "turnkeeper"
_LIVE_EVENTS_DB = 0
_BROKER_DB = 1
_PYTHON = (sys.executable, "-P", "-m")
_FLOWER_CONFIGURATION = Path(__file__).parent.parent / "flowerconfig.py"
_LISTENING = "listening on "

_READY_WITHIN = timedelta(seconds=60)
# Longer than `drain_seconds`, so that a worker has the time to hand its turns back.
_WORKER_GRACE = timedelta(seconds=30)
_WATCH_SECONDS = 0.2

Announce = Callable[[str, str], None]
"""Told of each part that runs: its name, and where it is or what it does."""


class Stack:
    """The parts that run, and how to reach them."""

    def __init__(self, state: StateFolder, folder: Path, *, concurrency: int, durable: bool) -> None:
        self.folder = folder
        self.state = state
        held = (state.lock,)
        self.postgres = Postgres(state.path / "postgres", logs=state.logs, durable=durable, held=held)
        self.redis = Redis(state.path / "redis", logs=state.logs, durable=durable, held=held)
        self.workers: list[Child] = []
        self.others: list[Child] = []
        """Flower, and the simulator where there is one."""
        self._flower_port = free_port()
        self._simulator_url: str | None = None
        self._concurrency = concurrency

    @property
    def addresses(self) -> Addresses:
        """Where the parts listen."""
        return Addresses(
            database_url=self.postgres.url(_DATABASE),
            redis_url=self.redis.url(_LIVE_EVENTS_DB),
            broker_url=self.redis.url(_BROKER_DB),
            flower_url=f"http://{LOOPBACK}:{self._flower_port}",
            simulator_url=self._simulator_url,
        )

    def keeper(self) -> Turnkeeper:
        """Return a client of this stack; close it after use."""
        where = self.addresses
        return Turnkeeper(database_url=where.database_url, redis_url=where.redis_url, broker_url=where.broker_url)

    def start_simulator(self) -> None:
        """Start the provider simulator and learn its address."""
        simulator = self._start("simulator", "turnkeeper_ops.simulator", "--port", "0", *_api_keys())
        self.others.append(simulator)
        line = simulator.wait_for(lambda: _line_of(simulator, _LISTENING), within=_READY_WITHIN)
        self._simulator_url = line.removeprefix(_LISTENING)

    def migrate(self) -> None:
        """Bring the database to the newest schema."""
        self.postgres.create_database(_DATABASE)
        self._start("migrate", "turnkeeper_worker.cli", "migrate").finish(within=_READY_WITHIN)

    def start_worker(self) -> Child:
        """Start one more worker; it may not be ready yet."""
        worker = self._start(
            f"worker-{len(self.workers) + 1}",
            "turnkeeper_worker.cli",
            "worker",
            "--concurrency",
            str(self._concurrency),
            grace=_WORKER_GRACE,
        )
        self.workers.append(worker)
        return worker

    def start_flower(self) -> None:
        """Start Flower, without a password and on loopback alone; it is read-only."""
        flower = self._start(
            "flower",
            "celery",
            "--app=turnkeeper_worker.app",
            "flower",
            f"--address={LOOPBACK}",
            f"--port={self._flower_port}",
            f"--conf={_FLOWER_CONFIGURATION}",
            # Flower asks for a password or for this before it lets anybody use the API.
            environment={"FLOWER_UNAUTHENTICATED_API": "true"},
        )
        self.others.append(flower)

    def wait_until_ready(self) -> None:
        """Return when all workers, Flower and, with the simulator, a whole turn have answered."""
        count = len(self.workers)
        with producer_app(self.addresses.broker_url, "turnkeeper") as app:
            self.wait_for(lambda: workers_answer(app, count), f"answer a ping ({count} workers)")
        self.wait_for(lambda: flower_sees(LOOPBACK, self._flower_port, count), "appear in Flower")
        if self._simulator_url is not None and self.workers:
            with self.keeper() as keeper:
                a_turn_completes(keeper, self.wait_for)

    def wait_for(self, condition: Callable[[], bool], what: str) -> None:
        """Wait for a condition; raise ServiceError when a part ends, or when the stack does not do *what*."""

        def look() -> bool:
            self.check()
            return condition()

        if not poll(look, within=_READY_WITHIN):
            seconds = _READY_WITHIN.total_seconds()
            raise ServiceError(f"the stack did not {what} within {seconds:g} s; see {self.state.logs}")

    def check(self) -> None:
        """Raise ServiceError when a part has ended, with the end of its log."""
        for child in (self.postgres.child, self.redis.child, *self.others, *self.workers):
            if child.exit_code() is not None:
                raise child.unexpected_end()

    def watch(self) -> NoReturn:
        """Look after the parts until one ends; then raise ServiceError."""
        while True:
            self.check()
            time.sleep(_WATCH_SECONDS)

    def stop_processes(self) -> None:
        """End workers, Flower and simulator side by side; the servers follow when nobody needs them."""
        processes = [*self.workers, *self.others]
        for process in processes:
            process.ask_to_stop()
        with ExitStack() as all_of_them:
            for process in processes:
                all_of_them.callback(process.stop)

    def _start(
        self,
        name: str,
        module: str,
        *arguments: str,
        grace: timedelta = timedelta(seconds=10),
        environment: dict[str, str] | None = None,
    ) -> Child:
        """Run a Python module in the stack's folder and environment."""
        variables = self.addresses.environment() | {"PYTHONUNBUFFERED": "1"} | (environment or {})
        return Child.start(
            Command(
                name=name,
                argv=(*_PYTHON, module, *arguments),
                log=self.state.logs / f"{name}.log",
                cwd=self.folder,
                environment=variables,
                grace=grace,
                held=(self.state.lock,),
            )
        )


@contextmanager
def stack(
    folder: Path,
    *,
    workers: int = 1,
    concurrency: int = 200,
    simulator: bool = True,
    durable: bool = True,
    announce: Announce = lambda _name, _where: None,
) -> Iterator[Stack]:
    """Run a stack in *folder*, ready when the block begins, gone when it ends.

    Raises AlreadyRunning when one runs there, and ServiceError when a part does not start.
    """
    with occupy(folder) as state, ExitStack() as parts:
        running = Stack(state, folder.absolute(), concurrency=concurrency, durable=durable)
        parts.enter_context(running.postgres)
        announce("PostgreSQL", f"{LOOPBACK}:{running.postgres.port}")
        parts.enter_context(running.redis)
        announce("Redis", f"{LOOPBACK}:{running.redis.port}")
        parts.callback(running.stop_processes)
        _start_processes(running, workers=workers, simulator=simulator, announce=announce)
        running.wait_until_ready()
        state.publish(running.addresses.environment())
        yield running


def _start_processes(running: Stack, *, workers: int, simulator: bool, announce: Announce) -> None:
    if simulator:
        running.start_simulator()
        announce("simulator", running.addresses.simulator_url or "")
    running.migrate()
    announce("schema", "up to date")
    running.start_flower()
    announce("Flower", running.addresses.flower_url)
    for _ in range(workers):
        worker = running.start_worker()
        announce(worker.command.name, f"pid {worker.pid}")


def _api_keys() -> Iterator[str]:
    for key in (SIMULATOR_KEY, SIMULATOR_SECOND_KEY):
        yield from ("--api-key", key)


def _line_of(child: Child, start: str) -> str | None:
    """Return the first whole line of a child's output that begins so."""
    lines = child.output().splitlines(keepends=True)
    return next((line.strip() for line in lines if line.startswith(start) and line.endswith("\n")), None)
