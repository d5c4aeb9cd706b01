"""The Celery app of the workers.  Importing it reads nothing; the settings are read when the worker starts."""

from functools import cached_property, partial
from typing import Any
from uuid import UUID

from amqp.exceptions import ChannelError
from celery import Celery
from celery.backends.base import DisabledBackend
from celery.signals import setup_logging, task_revoked, worker_shutdown, worker_shutting_down

from turnkeeper.doorbell import PUBLISH_RETRIES, RUN_TURN, holds_countdowns, queue_at, transport_options
from turnkeeper_worker.bell import Bell
from turnkeeper_worker.config import Settings
from turnkeeper_worker.engine import Broker
from turnkeeper_worker.runtime import Runtime
from turnkeeper_worker.telemetry import configure_logging
from turnkeeper_worker.upkeep import Due

ANSWERS_WITHIN_SECONDS = 3
"""How long a broker may take to tell its queue's length."""


class WorkerApp(Celery):  # type: ignore[misc]  # Celery is untyped
    """A Celery app that has a runtime."""

    events_cls = "turnkeeper_worker.dispatcher:ThreadSafeEvents"
    is_shutting_down = False
    consumer: Any = None
    """Celery's consumer, which tells Flower of tasks."""
    exit_status = 1
    """What the worker process ends with: a failure, until somebody asks for its end."""

    @cached_property
    def backend(self) -> DisabledBackend:
        """No result backend, once; Celery would look for one among all installed packages in each new thread."""
        return DisabledBackend(self)

    @cached_property
    def settings(self) -> Settings:
        """The settings, read on first use.  Raises InvalidSettings."""
        return Settings.load()

    @cached_property
    def bell(self) -> Bell:
        """Rings for this process."""
        # When that many end at once, they are one more pool full of turns for the worker that holds them.
        limit = self.settings.concurrency if holds_countdowns(self.settings.broker) else 0
        return Bell(self, broker_countdowns=limit)

    @cached_property
    def runtime(self) -> Runtime:
        """The engine of this process; the pool starts and stops it."""
        broker = Broker(ring=partial(_ring_all, self.bell), queue_length=self._queue_length, show=self._show)
        return Runtime(self.settings, broker)

    def shut_down(self, *, at_once: bool) -> None:
        """Let running turns finish for a while, or hand them back *at once*; the first call begins."""
        if at_once:
            self.runtime.hand_back()
        elif not self.is_shutting_down:
            self.runtime.drain()
        self.is_shutting_down = True

    def _show(self, turn_id: UUID, label: str) -> None:
        if self.consumer is not None:
            self.consumer.show(turn_id, label)

    def _queue_length(self) -> int:
        with self.connection_or_acquire() as connection:
            # Unasked, kombu would try for ever, with pauses of half a minute.
            connection.ensure_connection(max_retries=0)
            try:
                return self._count_messages(connection)
            except Exception:
                # Whatever state it is in: the next one who takes it from the pool shall connect anew.
                connection.collect()
                raise

    def _count_messages(self, connection: Any) -> int:
        is_amqp = connection.transport.driver_type == "amqp"
        if is_amqp:
            # Redis has this among its options; a RabbitMQ that hangs would keep us for ever.
            connection.connection.transport.sock.settimeout(ANSWERS_WITHIN_SECONDS)
        # A channel of its own: RabbitMQ closes the one on which it is asked for a queue that is not there.
        channel = connection.channel()
        try:
            # Not passively in Redis: kombu looks for the queue without the prefix, and finds none ever.
            count: int = channel.queue_declare(self.settings.queue, passive=is_amqp).message_count
        except ChannelError:
            # No worker has declared it yet.
            count = 0
        channel.close()
        return count


def _ring_all(bell: Bell, due: list[Due]) -> None:
    for turn in due:
        bell.ring(turn.id, attempts=turn.attempts)


def celery_settings(settings: Settings) -> dict[str, Any]:
    """Return Celery's own settings.  docs/celery.md gives the reasons, with measurements."""
    return {
        "broker_url": settings.broker,
        "broker_transport_options": transport_options(settings.broker),
        "broker_connection_retry_on_startup": True,
        "broker_connection_max_retries": None,
        # Redis says "out of memory" as an error of the channel, and Celery would end the worker.
        "broker_channel_error_retry": True,
        "broker_connection_timeout": 3,
        "task_publish_retry_policy": PUBLISH_RETRIES,
        "task_queues": [queue_at(settings.broker, settings.queue)],
        "task_default_queue": settings.queue,
        "task_create_missing_queues": False,
        "task_serializer": "json",
        "accept_content": ["json"],
        # PostgreSQL keeps the results, and protects what an unacked message would only run twice.
        "task_ignore_result": True,
        "task_acks_late": False,
        "worker_disable_prefetch": True,
        "worker_prefetch_multiplier": 1,
        "worker_enable_prefetch_count_reduction": False,
        "worker_cancel_long_running_tasks_on_connection_loss": False,
        "worker_pool": "turnkeeper_worker.pool:TurnPool",
        "worker_consumer": "turnkeeper_worker.pool:TurnConsumer",
        "worker_concurrency": settings.concurrency,
        "worker_send_task_events": True,
        "worker_hijack_root_logger": False,
        "worker_redirect_stdouts": False,
        "imports": ["turnkeeper_worker.tasks"],
    }


app = WorkerApp("turnkeeper", set_as_current=False)
app.add_defaults(lambda: celery_settings(app.settings))


@setup_logging.connect  # type: ignore[untyped-decorator]  # Celery is untyped
def _set_up_logging(**_: Any) -> None:
    configure_logging(app.settings.log_level, as_json=app.settings.log_json)


@worker_shutting_down.connect  # type: ignore[untyped-decorator]  # Celery is untyped
def _shut_down(how: str, **_: Any) -> None:
    """Drain at the first SIGTERM; who sends another one, or SIGQUIT, does not want to wait."""
    # Celery calls all but the first SIGTERM a failure; for us they hand the turns back sooner.
    app.exit_status = 0
    app.shut_down(at_once=how == "Cold" or app.is_shutting_down)


@worker_shutdown.connect  # type: ignore[untyped-decorator]  # Celery is untyped
def _note_exit_status(sender: Any, **_: Any) -> None:
    """Remember why the worker ended, where no signal did it: Celery's own command line forgets it."""
    if app.exit_status and sender.exitcode is not None:
        app.exit_status = sender.exitcode


@task_revoked.connect  # type: ignore[untyped-decorator]  # Celery is untyped
def _cancel(request: Any, **_: Any) -> None:
    """Cancel a turn that somebody revoked: Celery only drops its messages, and would do so for ever."""
    if request.name == RUN_TURN:
        app.runtime.cancel(UUID(request.id))
