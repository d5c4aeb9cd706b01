"""The engine of a worker process: one event loop in a thread of its own, which does all I/O of all turns.

The pool starts it, gives it turns, and stops it.
"""

import asyncio
import gc
import threading
from collections.abc import Callable, Coroutine
from concurrent.futures import Future
from typing import Any, TypeVar
from uuid import UUID

from turnkeeper.requests import TurnRequest
from turnkeeper.turns import Cancelled, Enqueued
from turnkeeper_worker.config import Settings
from turnkeeper_worker.engine import Broker, Engine, open_engine
from turnkeeper_worker.outcomes import Outcome

T = TypeVar("T")

COLLECT_AFTER = 10_000, 20, 20
"""So many objects more than were freed, and the collector looks at the youngest; at older ones more rarely."""


class Runtime:
    """One worker process.  `start` and `stop` are called from the main thread, `run` from any."""

    def __init__(self, settings: Settings, broker: Broker) -> None:
        self._settings = settings
        self._broker = broker
        self._engine: Engine | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._closing: asyncio.Event | None = None
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Return when turns can be run.  Raises what keeps it from that."""
        opened: Future[None] = Future()
        self._thread = threading.Thread(target=self._main, args=(opened,), name="turnkeeper-loop", daemon=True)
        self._thread.start()
        opened.result()

    def stop(self) -> None:
        """Close everything; return when the loop has ended."""
        if self._closing is not None:
            self._call_soon(self._closing.set)
        if self._thread is not None:
            self._thread.join()

    def run(self, turn_id: UUID) -> "Future[Outcome]":
        """Begin one delivery of a turn."""
        return self._submit(self._opened.run(turn_id))

    def enqueue(self, request: TurnRequest, turn_id: UUID, trace_context: str | None = None) -> "Future[Enqueued]":
        """Store a turn that came by message."""
        return self._submit(self._opened.enqueue(request, turn_id, trace_context))

    def reject(self, turn_id: UUID, reason: str) -> "Future[None]":
        """Keep the reason why a message is no turn."""
        return self._submit(self._opened.reject(turn_id, reason))

    def cancel(self, turn_id: UUID) -> "Future[Cancelled]":
        """Cancel a turn, wherever it is."""
        return self._submit(self._opened.cancel(turn_id))

    def drain(self) -> None:
        """Let running turns finish for a while, then hand the rest back."""
        self._call_soon(lambda: self._opened.drain(self._settings.drain_seconds))

    def hand_back(self) -> None:
        """Hand every running turn back at once."""
        self._call_soon(lambda: self._opened.drain(0))

    @property
    def _opened(self) -> Engine:
        if self._engine is None:
            raise RuntimeError("the runtime is not started")
        return self._engine

    def _submit(self, work: Coroutine[Any, Any, T]) -> "Future[T]":
        if self._loop is None:
            raise RuntimeError("the runtime is not started")
        return asyncio.run_coroutine_threadsafe(work, self._loop)

    def _call_soon(self, callback: Callable[[], object]) -> None:
        if self._loop is not None and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(callback)

    def _main(self, opened: "Future[None]") -> None:
        with asyncio.Runner(loop_factory=_loop_factory()) as runner:
            runner.run(self._live(opened))

    async def _live(self, opened: "Future[None]") -> None:
        self._loop = asyncio.get_running_loop()
        self._closing = asyncio.Event()
        try:
            async with open_engine(self._settings, self._broker) as self._engine:
                # What is there by now stays for ever; the collector need not look through it again and again.
                gc.freeze()
                # What a stream leaves behind is freed by its count of references. At the usual threshold the
                # collector looks for rings among thousands of living turns, a tenth of what an event costs.
                gc.set_threshold(*COLLECT_AFTER)
                opened.set_result(None)
                await self._closing.wait()
        except Exception as error:
            if opened.done():
                raise
            opened.set_exception(error)


def _loop_factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    """Prefer uvloop where it can be installed: it halves the CPU time of a streamed event."""
    try:
        import uvloop  # noqa: PLC0415 - optional
    except ImportError:
        return None
    factory: Callable[[], asyncio.AbstractEventLoop] = uvloop.new_event_loop
    return factory
