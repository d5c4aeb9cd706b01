"""RabbitMQ as the broker: the same turns, through a quorum queue.  Skipped where no RabbitMQ is installed."""

import json
import os
import signal
import sys
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from kombu import Connection

from turnkeeper import AttemptOutcome, Turnkeeper, TurnState
from turnkeeper.events import TurnPart
from turnkeeper_ops import flowerconfig
from turnkeeper_ops.dev import stack
from turnkeeper_ops.services import rabbitmq
from turnkeeper_ops.services.ports import LOOPBACK, free_port
from turnkeeper_ops.services.process import Child, Command, ServiceError, poll
from turnkeeper_ops.services.rabbitmq import RabbitMQ

from .conftest import Site

LEASE_TTL = 3.0
SETTINGS = (f"lease_ttl_seconds = {LEASE_TTL}", "beat_seconds = 0.5", "drain_seconds = 1")
QUEUE = "turnkeeper"
SOON = timedelta(seconds=20)


def is_installed() -> bool:
    try:
        rabbitmq.find_server()
    except ServiceError:
        return False
    return True


pytestmark = pytest.mark.skipif(not is_installed(), reason="no rabbitmq-server is installed")


@dataclass(slots=True)
class RabbitSite(Site):
    """A stack whose workers hear of turns through RabbitMQ."""

    rabbit: RabbitMQ
    workers: list[Child] = field(default_factory=list)

    def start_worker(self) -> Child:
        """Start one more worker, and wait until it consumes."""
        worker = self.start(f"rabbit-worker-{len(self.workers) + 1}", "turnkeeper_worker.cli", "worker")
        worker.wait_for(lambda: " ready." in worker.output(), within=SOON)
        self.workers.append(worker)
        return worker

    def start(self, name: str, module: str, *arguments: str, **more: str) -> Child:
        """Run a Python module in the environment of this site."""
        return Child.start(
            Command(
                name=name,
                argv=(sys.executable, "-P", "-m", module, *arguments),
                log=self.folder / f"{name}.log",
                cwd=self.folder,
                environment=self.environment() | more,
                grace=timedelta(seconds=30),
            )
        )

    def environment(self) -> dict[str, str]:
        """Return the variables that lead to this site."""
        return self.running.addresses.environment() | {"TURNKEEPER_BROKER_URL": self.rabbit.url()}

    def messages(self) -> int:
        """Count the messages that nobody has fetched yet."""
        with Connection(self.rabbit.url()) as connection:
            count: int = connection.default_channel.queue_declare(QUEUE, passive=True).message_count
            return count


@pytest.fixture(scope="module")
def rabbit_site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RabbitSite]:
    folder = tmp_path_factory.mktemp("rabbit")
    (folder / "turnkeeper.toml").write_text("\n".join(SETTINGS), encoding="utf-8")
    with (
        RabbitMQ(folder / "rabbitmq") as rabbit,
        stack(folder, workers=0, durable=False) as running,
        Turnkeeper(
            database_url=running.addresses.database_url,
            redis_url=running.addresses.redis_url,
            broker_url=rabbit.url(),
        ) as keeper,
    ):
        site = RabbitSite(folder, running, keeper, rabbit)
        try:
            site.start_worker()
            yield site
        finally:
            for worker in site.workers:
                worker.stop()


def test_a_turn_is_answered(rabbit_site: RabbitSite) -> None:
    turn = rabbit_site.enqueue("Hello?")

    view = rabbit_site.finish(turn)

    assert turn.is_rung
    assert view.state is TurnState.COMPLETED
    assert (view.started_at - view.created_at).total_seconds() < 1


def test_a_retry_starts_when_its_countdown_ends_and_holds_nothing_up_before(rabbit_site: RabbitSite) -> None:
    refused = rabbit_site.script(
        {"type": "status", "status": 429, "headers": {"Retry-After": "3"}}, {"type": "answer"}
    )
    waiting = [rabbit_site.enqueue(f"Now {refused}") for _ in range(20)]
    assert poll(
        lambda: all(rabbit_site.keeper.show(turn.id).state is TurnState.RETRYING for turn in waiting), within=SOON
    )

    urgent = rabbit_site.run("And I?")
    views = [rabbit_site.finish(turn) for turn in waiting]

    assert (urgent.started_at - urgent.created_at).total_seconds() < 1
    for view in views:
        first, second = view.attempts
        waited = (second.started_at - first.finished_at).total_seconds()
        assert first.delay_ms / 1000 <= waited < first.delay_ms / 1000 + 1


def test_the_turns_of_a_killed_worker_are_taken_over(rabbit_site: RabbitSite) -> None:
    word = rabbit_site.script({"type": "stall", "at": 2, "seconds": 600}, {"type": "answer"})
    turn = rabbit_site.enqueue(f"Go on {word}")
    events = rabbit_site.keeper.follow(turn.id)
    next(event for event in events if isinstance(event, TurnPart))
    rabbit_site.start_worker()

    rabbit_site.workers.pop(0).kill()

    list(events)
    view = rabbit_site.keeper.show(turn.id)
    assert view.state is TurnState.COMPLETED
    assert [one.outcome for one in view.attempts] == [AttemptOutcome.LOST, AttemptOutcome.COMPLETED]


def test_a_worker_that_shuts_down_hands_its_turns_back(rabbit_site: RabbitSite) -> None:
    word = rabbit_site.script({"type": "stall", "at": 2, "seconds": 600}, {"type": "answer"})
    turn = rabbit_site.enqueue(f"Go on {word}")
    events = rabbit_site.keeper.follow(turn.id)
    next(event for event in events if isinstance(event, TurnPart))
    leaving = rabbit_site.workers.pop(0)
    rabbit_site.start_worker()

    os.kill(leaving.pid, signal.SIGTERM)

    list(events)
    view = rabbit_site.keeper.show(turn.id)
    assert [one.outcome for one in view.attempts] == [AttemptOutcome.HANDED_BACK, AttemptOutcome.COMPLETED]
    assert poll(lambda: leaving.exit_code() is not None, within=SOON)
    leaving.stop()


@pytest.mark.parametrize("crashes", [pytest.param(False, id="in order"), pytest.param(True, id="by a crash")])
def test_a_worker_outlives_a_broker_that_restarts(rabbit_site: RabbitSite, *, crashes: bool) -> None:
    worker = rabbit_site.workers[0]
    word = rabbit_site.script({"type": "answer", "text": "word " * 40, "chunk_chars": 5, "chunk_delay_ms": 50})
    turn = rabbit_site.enqueue(f"Go on {word}")
    next(event for event in rabbit_site.keeper.follow(turn.id) if isinstance(event, TurnPart))

    (rabbit_site.rabbit.kill if crashes else rabbit_site.rabbit.stop)()
    meanwhile = rabbit_site.enqueue("Anybody there?")
    rabbit_site.rabbit.start()

    assert not meanwhile.is_rung
    assert rabbit_site.finish(turn).text == "word " * 40
    assert rabbit_site.finish(meanwhile).state is TurnState.COMPLETED
    assert rabbit_site.run("And now?").state is TurnState.COMPLETED
    assert worker.exit_code() is None


def test_a_queue_that_is_gone_is_made_again_and_its_turns_are_rung_for(rabbit_site: RabbitSite) -> None:
    with Connection(rabbit_site.rabbit.url()) as connection:
        connection.default_channel.queue_delete(QUEUE)

    turn = rabbit_site.enqueue("Anybody there?")

    assert rabbit_site.finish(turn).state is TurnState.COMPLETED
    assert rabbit_site.messages() == 0


def test_check_finds_the_broker(rabbit_site: RabbitSite) -> None:
    checked = rabbit_site.cli("check", "--json", **rabbit_site.environment())

    broker = next(one for one in json.loads(checked.out) if one["what"] == "broker")
    assert broker["ok"], broker["says"]


def test_flower_lists_the_turns(rabbit_site: RabbitSite) -> None:
    port = free_port()
    flower = rabbit_site.start(
        "rabbit-flower",
        "celery",
        "--app=turnkeeper_worker.app",
        "flower",
        f"--address={LOOPBACK}",
        f"--port={port}",
        f"--conf={Path(flowerconfig.__file__)}",
        FLOWER_UNAUTHENTICATED_API="true",
    )

    def ask(path: str) -> Any:
        try:
            with urllib.request.urlopen(f"http://{LOOPBACK}:{port}{path}", timeout=5) as response:
                return json.load(response)
        except OSError:
            return {}

    try:
        assert poll(lambda: any(ask("/api/workers?status=1").values()), within=timedelta(seconds=40))
        turn = rabbit_site.enqueue("Hello?")
        rabbit_site.finish(turn)
        assert poll(
            lambda: ask("/api/tasks?limit=100").get(str(turn.id), {}).get("state") == "SUCCESS", within=SOON
        )
    finally:
        flower.stop()
