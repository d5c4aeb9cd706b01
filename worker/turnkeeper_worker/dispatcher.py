"""Celery's event dispatcher, made safe for many threads.

The stock one appends events to a list and empties that list after it was sent; what another thread appends in
between is lost, and Flower shows a turn as running for ever. Measured with 200 turns at once: 13 of 200.
"""

import threading
from contextlib import suppress
from typing import Any

from celery.app.events import Events
from celery.events.dispatcher import EventDispatcher


class ThreadSafeDispatcher(EventDispatcher):  # type: ignore[misc]  # Celery is untyped
    """Lets one thread at a time add events or send them."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self._one_at_a_time = threading.RLock()
        super().__init__(*args, **kwargs)

    def send(self, type: str, **fields: Any) -> Any:  # noqa: A002 - Celery's name
        """Send an event, or keep it for the next flush."""
        with self._one_at_a_time:
            return super().send(type, **fields)

    def flush(self, errors: bool = True, groups: bool = True) -> None:  # noqa: FBT001, FBT002 - Celery's signature
        """Send what was kept."""
        with self._one_at_a_time:
            super().flush(errors=errors, groups=groups)

    def close(self) -> None:
        """Send what was kept, and close."""
        with suppress(Exception):
            self.flush()
        super().close()


class ThreadSafeEvents(Events):  # type: ignore[misc]  # Celery is untyped
    """Makes Celery use the safe dispatcher."""

    dispatcher_cls = ThreadSafeDispatcher
