"""The Celery app of the workers.  Importing it reads nothing; the settings are read when the worker starts."""

import threading
from functools import cached_property
from typing import Any
from uuid import UUID

from amqp.exceptions import ChannelError
from celery import Celery
from celery.backends.base import DisabledBackend
from celery.signals import setup_logging, task_revoked, worker_shutting_down
from kombu.entity import Queue

from turnkeeper.doorbell import PUBLISH_RETRIES, RUN_TURN, ring, transport_options
from turnkeeper_worker.config import Settings
from turnkeeper_worker.engine import Broker
from turnkeeper_worker.runtime import Runtime
from turnkeeper_worker.telemetry import configure_logging
from turnkeeper_worker.upkeep import Due


class WorkerApp(Celery):  # type: ignore[misc]  # Celery is untyped
    """A Celery app that has a runtime."""

    events_cls = "turnkeeper_worker.dispatcher:ThreadSafeEvents"

    @cached_property
    def backend(self) -> DisabledBackend:
        """No result backend, once; Celery would look for one among all installed packages in each new thread."""
        return DisabledBackend(self)

    @cached_property
    def settings(self) -> Settings:
        """The settings, read on first use.  Raises InvalidSettings."""
        return Settings.load()

    @cached_property
    def runtime(self) -> Runtime:
        """The engine of this process; the pool starts and stops it."""
        return Runtime(self.settings, Broker(ring=self._ring, queue_is_empty=self._queue_is_empty))

    @cached_property
    def waiting(self) -> dict[int, UUID]:
        """Which pool thread waits for which turn."""
        return {}

    def wait_for(self, turn_id: UUID) -> Any:
        """Run a delivery from a pool thread; return its outcome."""
        thread = threading.get_ident()
        self.waiting[thread] = turn_id
        try:
            return self.runtime.run(turn_id).result()
        finally:
            del self.waiting[thread]

    def _ring(self, due: list[Due]) -> None:
        for turn in due:
            ring(self, turn.id, attempts=turn.attempts)

    def _queue_is_empty(self) -> bool:
        with self.connection_or_acquire() as connection:
            try:
                declared = connection.default_channel.queue_declare(self.settings.queue, passive=True)
            except ChannelError:
                # Redis knows no empty queues: without a message it is not found.
                return True
            return bool(declared.message_count == 0)


def celery_settings(settings: Settings) -> dict[str, Any]:
    """Return Celery's own settings.  docs/celery.md gives the reasons, with measurements."""
    return {
        "broker_url": settings.broker,
        "broker_transport_options": transport_options(settings.broker),
        "broker_connection_retry_on_startup": True,
        "broker_connection_max_retries": None,
        "broker_connection_timeout": 3,
        "task_publish_retry_policy": PUBLISH_RETRIES,
        "task_queues": [Queue(settings.queue)],
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
def _drain(**_: Any) -> None:
    app.runtime.drain()


@task_revoked.connect  # type: ignore[untyped-decorator]  # Celery is untyped
def _cancel(request: Any, **_: Any) -> None:
    """Cancel a turn that somebody revoked: Celery only drops its messages, and would do so for ever."""
    if request.name == RUN_TURN:
        app.runtime.cancel(UUID(request.id))
