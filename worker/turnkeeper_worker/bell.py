"""How a worker tells the broker of due turns: at once, or when a countdown ends.

Celery's countdown is a message that some worker takes in at once and keeps until it is due. Ten thousand of them
held a turn that was due up for eleven seconds, and fell on one worker together when they ended. So the broker gets
only as many countdowns of this process as it may hold; the others wait here, for a few bytes each, and are
published when they end. PostgreSQL stands behind both: what is lost here, the rescue loop rings for.
"""

import heapq
import threading
import time
from dataclasses import dataclass, field
from datetime import timedelta
from uuid import UUID

from celery import Celery

from turnkeeper.doorbell import ring
from turnkeeper.exceptions import BrokerUnavailable
from turnkeeper.settings import address_of
from turnkeeper_worker.telemetry import get_logger

log = get_logger(__name__)

AT_ONCE = timedelta(0)
PUBLISHERS = 8
"""How many threads publish at the same time; hundreds would queue for Celery's ten connections."""
REST_SECONDS = 2.0
"""How long a broker that did not answer is left alone: each try may take seconds, and a shutdown has hundreds."""


@dataclass(order=True, frozen=True, slots=True)
class Countdown:
    """A turn that will be due."""

    ends_at: float
    """By the monotonic clock."""
    turn_id: UUID = field(compare=False)
    attempts: int = field(compare=False)
    label: str = field(compare=False)


class Bell:
    """Rings for one worker process.  Safe to share between threads.

    Args:
        app: Publishes.
        broker_countdowns: How many countdowns of ours the broker may hold at the same time.
    """

    def __init__(self, app: Celery, *, broker_countdowns: int) -> None:
        self._app = app
        self._broker_countdowns = broker_countdowns
        self._given: list[float] = []
        self._kept: list[Countdown] = []
        self._changed = threading.Condition()
        self._thread: threading.Thread | None = None
        self._publishing = threading.BoundedSemaphore(PUBLISHERS)
        self._resting_until = time.monotonic()

    def ring(self, turn_id: UUID, *, countdown: timedelta = AT_ONCE, attempts: int = 0, label: str = "") -> None:
        """Tell the workers that a turn is due, or see to it that they are told when *countdown* ends.

        Raises BrokerUnavailable.
        """
        if countdown <= AT_ONCE or self._may_give(countdown):
            self._publish(turn_id, countdown, attempts, label)
        else:
            self._keep(Countdown(time.monotonic() + countdown.total_seconds(), turn_id, attempts, label))

    def _may_give(self, countdown: timedelta) -> bool:
        """Count a countdown as the broker's, if it may hold one more."""
        now = time.monotonic()
        with self._changed:
            while self._given and self._given[0] <= now:
                heapq.heappop(self._given)
            if len(self._given) >= self._broker_countdowns:
                return False
            heapq.heappush(self._given, now + countdown.total_seconds())
            return True

    def _keep(self, countdown: Countdown) -> None:
        with self._changed:
            heapq.heappush(self._kept, countdown)
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="turnkeeper-bell", daemon=True)
                self._thread.start()
            self._changed.notify()

    def _run(self) -> None:
        while True:
            ended = self._next()
            try:
                self._publish(ended.turn_id, AT_ONCE, ended.attempts, ended.label)
            except BrokerUnavailable:
                # It was logged, and the rescue loop rings again.
                continue

    def _next(self) -> Countdown:
        """Wait for the next countdown to end."""
        with self._changed:
            while True:
                remaining = self._kept[0].ends_at - time.monotonic() if self._kept else None
                if remaining is not None and remaining <= 0:
                    return heapq.heappop(self._kept)
                self._changed.wait(remaining)

    def _publish(self, turn_id: UUID, countdown: timedelta, attempts: int, label: str) -> None:
        with self._publishing:
            if time.monotonic() < self._resting_until:
                raise BrokerUnavailable(address_of(self._app.conf.broker_url), "it did not answer a moment ago")
            try:
                ring(self._app, turn_id, countdown=countdown, attempts=attempts, label=label)
            except BrokerUnavailable as error:
                self._resting_until = time.monotonic() + REST_SECONDS
                log.warning("ring.failed", turn_id=str(turn_id), error=str(error), rest_s=REST_SECONDS)
                raise
