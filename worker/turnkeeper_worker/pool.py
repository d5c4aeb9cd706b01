"""A pool of slots around the process's event loop, and the consumer that feeds it.

The pool owns the runtime: the loop is there before the first message and until the last turn is done. A turn that
runs holds a slot and no thread; only what Celery does when it ends, which may wait for the broker, is done in one.
A slot can be terminated: Flower's and `revoke`'s *terminate* cancel its turn.
"""

import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import suppress
from functools import partial
from itertools import count
from typing import Any, ClassVar
from uuid import UUID

from celery.concurrency.base import BasePool, apply_target
from celery.concurrency.thread import ApplyResult
from celery.exceptions import WorkerShutdown
from celery.utils import log as celery_log
from celery.worker.consumer import Consumer
from celery.worker.state import maybe_shutdown
from kombu.connection import Connection

from turnkeeper.doorbell import RUN_TURN, holds_countdowns
from turnkeeper.exceptions import TurnkeeperError
from turnkeeper_worker.runtime import Runtime
from turnkeeper_worker.telemetry import get_logger
from turnkeeper_worker.unacked import spare

log = get_logger(__name__)

EXIT_USAGE = 2
"""What a worker ends with whose settings must be changed, as all commands do."""
FIRST_PAUSE_SECONDS = 0.5
LONGEST_PAUSE_SECONDS = 2.0
FLUSH_EVERY_SECONDS = 0.05
THREADS = 8
"""How many ends of turns are told at the same time; most take no time, those that ring wait for the broker."""
DELIVERY = "delivery"
"""Where a task finds the delivery of its turn, in its request."""


class TurnPool(BasePool):  # type: ignore[misc]  # Celery is untyped
    """A pool of slots around one runtime."""

    body_can_be_buffer = True
    signal_safe = False

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._numbers = count(1)
        self._turns: dict[int, UUID | None] = {}
        """Which slot runs which turn; None where it is another task."""
        self._open: set[Future[None]] = set()
        """What has begun and is not done."""
        self._ends = ThreadPoolExecutor(max_workers=THREADS, thread_name_prefix="turnkeeper-end")
        self._others = ThreadPoolExecutor(max_workers=self.limit, thread_name_prefix="turnkeeper-task")

    def on_start(self) -> None:
        """Start the runtime before the first message comes."""
        try:
            self.runtime.start()
        except TurnkeeperError as error:
            log.critical("worker.cannot_start", error=str(error))
            raise WorkerShutdown(EXIT_USAGE) from None

    def on_close(self) -> None:
        """Begin to drain, if no signal did: a shutdown by remote control sends none."""
        self.app.shut_down(at_once=False)

    def stop(self) -> None:
        """Stop, but not within a signal handler, as Celery's cold shutdown would have it.

        The main thread that the signal interrupted may hold the very locks; it stops the pool by itself.
        """
        if not celery_log._in_sighandler:  # noqa: SLF001 - Celery offers no other way to ask
            super().stop()

    def on_stop(self) -> None:
        """Wait for what runs, then close the runtime."""
        wait(set(self._open))
        self._ends.shutdown()
        self._others.shutdown()
        self.runtime.stop()

    def on_terminate(self) -> None:
        """End now: hand back what runs."""
        self.app.shut_down(at_once=True)
        self.on_stop()

    def on_apply(
        self,
        target: Callable[..., Any],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
        callback: Callable[..., Any] | None = None,
        accept_callback: Callable[[int, float], None] | None = None,
        **_: Any,
    ) -> ApplyResult:
        """Run a task: a turn on the event loop, anything else in a thread.

        Args:
            target: Celery's tracer, which calls the task and tells what came of it.
            args: The tracer's: the task's name, its id, the request, and the body with its type and encoding.
            kwargs: The tracer's, too.
            callback: Hears what came of it.
            accept_callback: Hears that the task has begun, in which slot, by which it can be terminated, and when.
        """
        slot, began, done = next(self._numbers), time.monotonic(), Future[None]()
        trace = partial(apply_target, target, args, kwargs, partial(_tell_runtime, callback, began))
        end = partial(self._end, slot, done, trace)
        turn_id = self._turns[slot] = _turn_id(*args[:2])
        if accept_callback is not None:
            accept_callback(slot, began)
        self._open.add(done)
        if turn_id is None:
            self._others.submit(end)
        else:
            delivery = args[2][DELIVERY] = self.runtime.run(turn_id)
            delivery.add_done_callback(lambda _: self._ends.submit(end))
        return ApplyResult(done)

    def _end(self, slot: int, done: "Future[None]", trace: Callable[[], None]) -> None:
        try:
            trace()
        finally:
            del self._turns[slot]
            self._open.discard(done)
            done.set_result(None)

    def terminate_job(self, slot: int, signal: object = None) -> None:
        """Cancel the turn that runs in *slot*."""
        del signal
        turn_id = self._turns.get(slot)
        if turn_id is not None:
            self.runtime.cancel(turn_id)

    @property
    def runtime(self) -> Runtime:
        """The runtime of the app that this pool serves."""
        runtime: Runtime = self.app.runtime
        return runtime

    def _get_info(self) -> dict[str, Any]:
        return {**super()._get_info(), "max-concurrency": self.limit, "busy": len(self._open)}


def _turn_id(task: str, task_id: str) -> UUID | None:
    """Return the turn that a message rings for; None where it is about something else."""
    if task != RUN_TURN:
        return None
    with suppress(ValueError):
        return UUID(task_id)
    return None


def _tell_runtime(callback: Callable[..., Any] | None, began: float, ended: Any) -> None:
    """Tell Celery what came of a task, and how long it took: the tracer saw its end alone."""
    if callback is None:
        return
    match ended:
        case (failed, value, _):
            callback((failed, value, time.monotonic() - began))
        case _:
            callback(ended)


class TurnConsumer(Consumer):  # type: ignore[misc]  # Celery is untyped
    """Celery's consumer, patient with the broker, and for which the end of a process ends nobody's turn."""

    class Blueprint(Consumer.Blueprint):  # type: ignore[misc]  # Celery is untyped
        """The parts of a consumer, without the exchanges for countdowns that we never give to RabbitMQ."""

        default_steps: ClassVar[list[str]] = [
            step for step in Consumer.Blueprint.default_steps if not step.endswith(":DelayedDelivery")
        ]

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.app.consumer = self
        if not holds_countdowns(self.app.settings.broker):
            # Only for Redis can Celery fetch no more than it has slots for. Elsewhere a worker asks for the next
            # message when it has begun with the last one, and holds one at most that idle workers could do.
            self.initial_prefetch_count = 1

        self._flushes_at = 0.0

    def show(self, turn_id: UUID, label: str) -> None:
        """Let Flower show *label* in place of a turn's arguments; returns at once, from any thread."""
        if self.hub is not None:
            self.hub.call_soon(self._send_label, str(turn_id), label)

    def _send_label(self, turn_id: str, label: str) -> None:
        if self.event_dispatcher is not None and self.event_dispatcher.enabled:
            # To Flower it is still the same start, now with more to say.
            self.event_dispatcher.send("task-started", uuid=turn_id, args=label)

    def _flush_events(self) -> None:
        """Collect events for Flower for a moment; to publish each by itself costs a tenth of a turn."""
        now = time.monotonic()
        # By the clock: a timer that a lost connection took along must not be waited for.
        if now >= self._flushes_at:
            self._flushes_at = now + FLUSH_EVERY_SECONDS
            self.hub.call_later(FLUSH_EVERY_SECONDS, super()._flush_events)

    def ensure_connected(self, conn: Connection) -> Connection:
        """Connect, and soon when the broker is back: Celery's own pauses grow to half a minute."""
        spare(conn)
        connected: Connection = conn.ensure_connection(
            self._complain,
            interval_start=FIRST_PAUSE_SECONDS,
            interval_step=FIRST_PAUSE_SECONDS,
            interval_max=LONGEST_PAUSE_SECONDS,
            callback=maybe_shutdown,
        )
        return connected

    def _complain(self, error: Exception, pause: float) -> None:
        log.warning("broker.away", error=str(error), pause_s=pause)

    def on_connection_error_after_connected(self, error: Exception) -> None:
        """Let the connection go; nothing that runs depends on it."""
        log.warning("broker.lost", error=str(error))
        with suppress(Exception):
            self.connection.collect()
        # A Redis without memory lets us connect, and fails at the first message.
        time.sleep(FIRST_PAUSE_SECONDS)

    def cancel_active_requests(self) -> None:
        """Hand back what runs.  Celery would terminate each task, which is how users cancel a turn."""
        self.app.shut_down(at_once=True)
