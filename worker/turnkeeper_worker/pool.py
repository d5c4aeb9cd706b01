"""Celery's `threads` pool, whose threads wait on the process's event loop.

The pool owns the runtime: the loop is there before the first message and until the last thread is done. A thread
that runs a turn can be terminated, which the stock pool cannot do: Flower's and `revoke`'s *terminate* cancel it.
"""

import threading
from collections.abc import Callable
from typing import Any
from uuid import UUID

from celery.concurrency.thread import ApplyResult
from celery.concurrency.thread import TaskPool as ThreadPool

from turnkeeper_worker.runtime import Runtime


class TurnPool(ThreadPool):  # type: ignore[misc]  # Celery is untyped
    """A pool of waiting threads around one runtime."""

    def on_start(self) -> None:
        """Start the runtime before the first message comes."""
        self.runtime.start()

    def on_stop(self) -> None:
        """Wait for the threads, then close the runtime that they wait for."""
        super().on_stop()
        self.runtime.stop()

    def on_terminate(self) -> None:
        """End now: hand back what runs."""
        self.runtime.hand_back()
        self.on_stop()

    def on_apply(
        self,
        target: Callable[..., Any],
        args: tuple[Any, ...] | None = None,
        kwargs: dict[str, Any] | None = None,
        callback: Callable[..., Any] | None = None,
        accept_callback: Callable[[int, float], None] | None = None,
        **options: Any,
    ) -> ApplyResult:
        """Give each task the id of its thread as its process id, by which it can be terminated."""

        def accept(_process: int, started: float) -> None:
            if accept_callback is not None:
                accept_callback(threading.get_ident(), started)

        return super().on_apply(target, args, kwargs, callback, accept, **options)

    def terminate_job(self, thread: int, signal: object = None) -> None:
        """Cancel the turn that *thread* waits for."""
        del signal
        if (turn_id := self.turns.get(thread)) is not None:
            self.runtime.cancel(turn_id)

    @property
    def runtime(self) -> Runtime:
        """The runtime of the app that this pool serves."""
        runtime: Runtime = self.app.runtime
        return runtime

    @property
    def turns(self) -> dict[int, UUID]:
        """Which thread waits for which turn."""
        waiting: dict[int, UUID] = self.app.waiting
        return waiting
