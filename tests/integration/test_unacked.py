"""What a worker enters in Redis of the messages that it takes, and what becomes of them when it ends."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from datetime import timedelta
from uuid import UUID, uuid4

import pytest
from celery import Celery
from kombu import Connection, Consumer, Queue
from kombu.message import Message
from redis import Redis as RedisClient

from turnkeeper.doorbell import SUBMIT_TURN, TRANSPORT_OPTIONS, producer_app, ring
from turnkeeper_ops.services.redis import Redis
from turnkeeper_worker.unacked import spare

QUEUE = "turnkeeper"
PREFIX = TRANSPORT_OPTIONS["global_keyprefix"]
HOUR = timedelta(hours=1)


@pytest.fixture
def url(redis_server: Redis) -> str:
    return redis_server.url(0)


@pytest.fixture
def client(url: str) -> Iterator[RedisClient]:
    with RedisClient.from_url(url) as client:
        client.flushdb()
        yield client


@pytest.fixture
def app(url: str, client: RedisClient) -> Iterator[Celery]:
    with producer_app(url, QUEUE) as app:
        yield app


@contextmanager
def taken(url: str) -> Iterator[Message]:
    """Take the next message, as a worker does; the connection is closed in order when the block ends."""
    with ExitStack() as parts:
        connection = parts.enter_context(Connection(url, transport_options=TRANSPORT_OPTIONS))
        spare(connection)
        came: list[Message] = []
        consumer = Consumer(connection, [Queue(QUEUE)], on_message=came.append, accept=["json"])
        parts.enter_context(consumer)
        connection.drain_events(timeout=10)
        yield came[0]


def entered(client: RedisClient) -> int:
    """Count the messages that Redis knows to be taken."""
    count: int = client.hlen(f"{PREFIX}unacked")  # type: ignore[assignment]  # redis-py types async and sync as one
    return count


def waiting(client: RedisClient) -> int:
    count: int = client.llen(f"{PREFIX}{QUEUE}")  # type: ignore[assignment]
    return count


def submit(app: Celery, _turn_id: UUID) -> None:
    app.send_task(SUBMIT_TURN, args=[{"text": "Hello"}])


def test_a_ring_is_not_entered_and_is_gone_when_it_is_acked(app: Celery, url: str, client: RedisClient) -> None:
    ring(app, uuid4())

    with taken(url) as message:
        assert (entered(client), waiting(client)) == (0, 0)
        message.ack()

    assert (entered(client), waiting(client)) == (0, 0)


def test_a_ring_that_was_not_acked_is_given_back_by_a_worker_that_ends(
    app: Celery, url: str, client: RedisClient
) -> None:
    turn_id = uuid4()
    ring(app, turn_id)
    with taken(url):
        pass

    with taken(url) as again:
        assert again.properties["correlation_id"] == str(turn_id)
        again.ack()


def test_a_ring_that_is_not_wanted_goes_to_others(app: Celery, url: str, client: RedisClient) -> None:
    ring(app, uuid4())

    with taken(url) as message:
        message.requeue()
        assert waiting(client) == 1

    assert (entered(client), waiting(client)) == (0, 1)


def test_a_ring_that_is_rejected_is_gone(app: Celery, url: str, client: RedisClient) -> None:
    ring(app, uuid4())

    with taken(url) as message:
        message.reject()

    assert (entered(client), waiting(client)) == (0, 0)


@pytest.mark.parametrize(
    "send",
    [
        pytest.param(lambda app, turn_id: ring(app, turn_id, countdown=HOUR), id="a countdown"),
        pytest.param(submit, id="a submitted turn"),
    ],
)
def test_what_nobody_else_would_bring_back_is_entered(
    app: Celery, url: str, client: RedisClient, send: Callable[[Celery, UUID], object]
) -> None:
    send(app, uuid4())

    with taken(url) as message:
        assert entered(client) == 1
        message.ack()
        assert entered(client) == 0
