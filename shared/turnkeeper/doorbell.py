"""The doorbell: tells the broker that a turn is due.  It carries the turn's id and nothing else.

A lost ring costs time, never a turn: PostgreSQL holds the truth, and the workers' rescue loop rings again.
"""

from datetime import timedelta
from typing import Any
from uuid import UUID

from celery import Celery
from kombu.entity import Queue
from kombu.exceptions import OperationalError

from turnkeeper.exceptions import BrokerUnavailable
from turnkeeper.settings import address_of
from turnkeeper.tracing import TRACEPARENT

RUN_TURN = "turnkeeper.run_turn"
SUBMIT_TURN = "turnkeeper.submit_turn"

#: Redis answers in milliseconds or not at all; with the defaults a producer hangs on a frozen one.
TRANSPORT_OPTIONS: dict[str, Any] = {
    "socket_timeout": 3,
    "socket_connect_timeout": 2,
    "socket_keepalive": True,
    "health_check_interval": 25,
    "retry_on_timeout": False,
    "global_keyprefix": "turnkeeper:celery:",
    "visibility_timeout": 6 * 3600,
}
#: A message counts as published when the broker has it; who cannot connect is told so, not kept waiting.
AMQP_OPTIONS: dict[str, Any] = {
    "confirm_publish": True,
    "max_retries": 1,
    "interval_start": 0,
    "interval_step": 0.2,
    "interval_max": 0.2,
}
#: How long RabbitMQ may take to say that it has a message; one that is short of memory or disk says nothing.
CONFIRM_SECONDS = 3
#: One more try, for a connection that went stale in the pool.
PUBLISH_RETRIES: dict[str, Any] = {
    "max_retries": 1,
    "interval_start": 0,
    "interval_step": 0.2,
    "interval_max": 0.2,
}


def transport_options(broker_url: str) -> dict[str, Any]:
    """Return the options that fit the broker's transport."""
    match _transport(broker_url):
        case "redis":
            return dict(TRANSPORT_OPTIONS)
        case "amqp":
            return dict(AMQP_OPTIONS)
        case _:
            return {}


def queue_at(broker_url: str, name: str) -> Queue:
    """Describe the queue that carries turns.

    In RabbitMQ it is a quorum queue: its messages survive the broker, and whoever declares it, worker or
    producer, must declare the same.
    """
    is_quorum = _transport(broker_url) == "amqp"
    return Queue(name, queue_arguments={"x-queue-type": "quorum"} if is_quorum else None)


def holds_countdowns(broker_url: str) -> bool:
    """Whether Celery's countdowns may be given to the broker.

    Not to RabbitMQ: there they count against the few messages that a worker may hold unacknowledged.
    """
    return _transport(broker_url) == "redis"


def _transport(broker_url: str) -> str:
    """Name the kind of broker.

    >>> _transport("rediss://cache:6379/1"), _transport("pyamqp://rabbit//"), _transport("sqs://")
    ('redis', 'amqp', 'sqs')
    """
    scheme = broker_url.partition("://")[0]
    return {"rediss": "redis", "valkey": "redis", "pyamqp": "amqp", "amqps": "amqp"}.get(scheme, scheme)


def producer_app(broker_url: str, queue: str) -> Celery:
    """Build a Celery app that can only publish, without making it anybody's current app."""
    app = Celery("turnkeeper-producer", broker=broker_url, set_as_current=False)
    app.conf.update(
        task_default_queue=queue,
        task_queues=[queue_at(broker_url, queue)],
        task_serializer="json",
        accept_content=["json"],
        task_ignore_result=True,
        broker_transport_options=transport_options(broker_url),
        broker_connection_timeout=3,
        task_publish_retry_policy=PUBLISH_RETRIES,
    )
    return app


def ring(
    app: Celery,
    turn_id: UUID,
    *,
    countdown: timedelta = timedelta(0),
    attempts: int = 0,
    label: str = "",
    trace_context: str | None = None,
) -> None:
    """Tell the workers that a turn is due, or is due after *countdown*.

    Args:
        app: Any Celery app on the workers' broker.
        turn_id: Also the id of the Celery task, so that Flower's page of the task is the page of the turn.
        countdown: How long Celery should hold the message.
        attempts: How many attempts the turn has behind it; Flower shows them as retries.
        label: What Flower shows instead of the arguments.
        trace_context: A `traceparent` for whoever traces the broker; workers take the one stored with the turn.

    Raises:
        BrokerUnavailable: The broker did not take the message within seconds.
    """
    try:
        app.send_task(
            RUN_TURN,
            args=[str(turn_id)],
            task_id=str(turn_id),
            countdown=countdown.total_seconds() or None,
            retries=attempts,
            argsrepr=label or f"turn {turn_id}",
            kwargsrepr="",
            ignore_result=True,
            confirm_timeout=CONFIRM_SECONDS,
            headers={TRACEPARENT: trace_context} if trace_context else None,
        )
    except (OperationalError, ConnectionError, TimeoutError) as error:
        raise BrokerUnavailable(address_of(app.conf.broker_url), _reason(error)) from error


def _reason(error: BaseException) -> str:
    return str(error.__cause__ or error).strip().rstrip(".") or type(error).__name__
