"""How a worker rings: which countdowns go to the broker, which wait here, and what a dead broker costs."""

import json
import socket
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from types import TracebackType
from typing import Any, Self
from uuid import UUID, uuid4

import pytest
import redis
from celery import Celery

from turnkeeper.doorbell import producer_app, ring
from turnkeeper.exceptions import BrokerUnavailable
from turnkeeper_ops.services.ports import LOOPBACK
from turnkeeper_ops.services.process import poll
from turnkeeper_ops.services.redis import Redis
from turnkeeper_worker.bell import Bell

LONG = timedelta(seconds=100)
SHORT = timedelta(seconds=0.3)


@pytest.fixture
def queue() -> str:
    return f"queue-{uuid4().hex}"


@pytest.fixture
def app(redis_server: Redis, queue: str) -> Iterator[Celery]:
    with producer_app(redis_server.url(), queue) as app:
        yield app


@pytest.fixture
def client(redis_server: Redis) -> Iterator[redis.Redis]:
    with redis.Redis.from_url(redis_server.url()) as client:
        yield client


def rung(client: redis.Redis, queue: str) -> dict[UUID, Any]:
    """Return the turns that the broker was told of, and when each is due, None being now."""
    found: Any = client.lrange(f"turnkeeper:celery:{queue}", 0, -1)
    headers = [json.loads(message)["headers"] for message in found]
    return {UUID(one["id"]): one["eta"] for one in headers}


def test_the_broker_gets_no_more_countdowns_than_it_may_hold(app: Celery, client: redis.Redis, queue: str) -> None:
    bell = Bell(app, broker_countdowns=2)
    turns = [uuid4() for _ in range(5)]

    for turn in turns:
        bell.ring(turn, countdown=LONG)

    assert set(rung(client, queue)) == set(turns[:2])
    assert all(rung(client, queue).values())


def test_a_countdown_of_the_broker_that_has_ended_makes_room_for_another(
    app: Celery, client: redis.Redis, queue: str
) -> None:
    bell, first, second = Bell(app, broker_countdowns=1), uuid4(), uuid4()
    bell.ring(first, countdown=SHORT)

    poll(lambda: None, within=SHORT)
    bell.ring(second, countdown=LONG)

    assert set(rung(client, queue)) == {first, second}


def test_a_countdown_that_waits_here_is_rung_when_it_ends_and_the_shortest_first(
    app: Celery, client: redis.Redis, queue: str
) -> None:
    bell, longer, shorter = Bell(app, broker_countdowns=0), uuid4(), uuid4()
    began = time.monotonic()

    bell.ring(longer, countdown=SHORT * 3)
    bell.ring(shorter, countdown=SHORT)

    assert poll(lambda: set(rung(client, queue)) == {shorter}, within=timedelta(seconds=5))
    assert time.monotonic() - began >= SHORT.total_seconds()
    assert poll(lambda: rung(client, queue) == {shorter: None, longer: None}, within=timedelta(seconds=5))


def test_a_turn_that_is_due_waits_behind_no_countdown(app: Celery, client: redis.Redis, queue: str) -> None:
    bell, waiting, due = Bell(app, broker_countdowns=0), uuid4(), uuid4()

    bell.ring(waiting, countdown=LONG)
    bell.ring(due)

    assert rung(client, queue) == {due: None}


def test_hundreds_who_ring_while_the_broker_hangs_wait_as_long_as_a_few(queue: str) -> None:
    """A port that takes connections and says nothing: each try takes seconds."""
    with Frozen() as broker, producer_app(broker.url, queue) as app:
        bell = Bell(app, broker_countdowns=0)
        began = time.monotonic()

        with ThreadPoolExecutor(100) as threads:
            answers = list(threads.map(lambda _: is_refused(bell), range(100)))

    assert all(answers)
    assert time.monotonic() - began < 20


def is_refused(bell: Bell) -> bool:
    try:
        bell.ring(uuid4())
    except BrokerUnavailable:
        return True
    return False


class Frozen:
    """A server whose process does not run, though its port is open."""

    def __enter__(self) -> Self:
        self._socket = socket.create_server((LOOPBACK, 0), backlog=1000)
        self.url = f"redis://{LOOPBACK}:{self._socket.getsockname()[1]}/0"
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._socket.close()


def test_a_trace_travels_in_the_headers_of_the_message(app: Celery, client: redis.Redis, queue: str) -> None:
    traced, untraced, trace = uuid4(), uuid4(), "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"

    ring(app, traced, trace_context=trace)
    ring(app, untraced)

    found: Any = client.lrange(f"turnkeeper:celery:{queue}", 0, -1)
    headers = [json.loads(message)["headers"] for message in found]
    assert {one["id"]: one.get("traceparent") for one in headers} == {str(traced): trace, str(untraced): None}
