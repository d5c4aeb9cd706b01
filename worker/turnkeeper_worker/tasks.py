"""The two messages that Celery carries: run a turn, and submit one.

The tasks do no work themselves. They put the outcome of the runtime into Celery's words, so that Flower tells the
truth: retry, failure with its kind, revoked, or one line of result.
"""

from concurrent.futures import Future
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from typing import Any, assert_never
from uuid import NAMESPACE_URL, UUID, uuid5

from celery import Task
from celery.exceptions import Ignore
from celery.exceptions import Retry as CeleryRetry
from celery.worker.request import Request

from turnkeeper.doorbell import RUN_TURN, SUBMIT_TURN
from turnkeeper.errors import ChatError
from turnkeeper.exceptions import BrokerUnavailable, TurnkeeperError
from turnkeeper.requests import TurnRequest
from turnkeeper.tracing import TRACEPARENT, read_traceparent
from turnkeeper_worker.app import app
from turnkeeper_worker.outcomes import Cancelled, Completed, Dropped, GaveUp, HandedBack, Outcome, Parked, Retrying
from turnkeeper_worker.pool import DELIVERY
from turnkeeper_worker.telemetry import get_logger

log = get_logger(__name__)

HIDDEN = "(hidden)"


class TurnFailed(Exception):
    """A turn ended as failed; Celery and Flower show it as a failure of the task."""

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(kind, message)
        self.kind = kind
        self.message = message

    def __str__(self) -> str:
        return f"{self.kind}: {self.message}"

    # What Flower shows.
    __repr__ = __str__


class TurnWaits(CeleryRetry):  # type: ignore[misc]  # Celery is untyped
    """Another attempt of a turn follows; Celery and Flower show a retry of the task."""

    # What Flower shows.
    __repr__ = CeleryRetry.__str__


@app.task(name=RUN_TURN, bind=True, throws=(TurnFailed,))  # type: ignore[untyped-decorator]  # Celery is untyped
def run_turn(self: Task, turn_id: str) -> str:
    """Tell what came of one delivery of a turn; the pool has begun it."""
    delivery: Future[Outcome] = self.request.get(DELIVERY) or app.runtime.run(UUID(turn_id))
    outcome = delivery.result()
    match outcome:
        case Completed(line=line, woken=woken):
            _ring_woken(woken)
            return line
        case Retrying() | Parked() | HandedBack():
            raise _ring_again(UUID(turn_id), outcome)
        case GaveUp(error=error, woken=woken):
            _ring_woken(woken)
            raise _failed(error)
        case Cancelled(woken=woken):
            _ring_woken(woken)
            raise _revoked(self)
        case Dropped(is_cancelled=True):
            raise _revoked(self)
        case Dropped():
            raise Ignore
        case other:
            assert_never(other)


def _revoked(task: Task) -> Ignore:
    # Flower learns of a revocation by this event alone.
    task.send_event("task-revoked", terminated=True, signum=None, expired=False)
    return Ignore()


class PrivateRequest(Request):  # type: ignore[misc]  # Celery is untyped
    """A message whose arguments are nobody's business: not the logs', not the events', not Flower's."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._argsrepr = self._kwargsrepr = HIDDEN
        self._request_dict |= {"argsrepr": HIDDEN, "kwargsrepr": HIDDEN}


@app.task(name=SUBMIT_TURN, bind=True, throws=(TurnkeeperError,), Request=PrivateRequest)  # type: ignore[untyped-decorator]  # Celery is untyped
def submit_turn(self: Task, request: Any) -> str:
    """Store the turn that a producer describes in JSON; the message's task id becomes the turn's id.

    A delivery that comes twice is one turn. A request that cannot be a turn is stored as rejected.
    """
    turn_id = _turn_id(str(self.request.id))
    try:
        parsed = TurnRequest.parse(request).or_default_provider(app.settings.default_provider)
        trace_context = read_traceparent(self.request.get(TRACEPARENT))
        enqueued = app.runtime.enqueue(parsed, turn_id, trace_context).result()
    except TurnkeeperError as error:
        app.runtime.reject(turn_id, str(error)).result()
        log.warning("turn.rejected", turn_id=str(turn_id), reason=str(error))
        raise
    if enqueued.is_rung:
        _ring(enqueued.id)
    return f"turn {enqueued.id}"


def _turn_id(task_id: str) -> UUID:
    """Take the task's id; a producer whose ids are no UUIDs gets one that is always the same."""
    try:
        return UUID(task_id)
    except ValueError:
        return uuid5(NAMESPACE_URL, f"turnkeeper:{task_id}")


def _ring(turn_id: UUID, delay: timedelta = timedelta(0), *, attempts: int = 0, label: str = "") -> None:
    # It was logged, and the rescue loop rings again.
    with suppress(BrokerUnavailable):
        app.bell.ring(turn_id, countdown=delay, attempts=attempts, label=label)


def _ring_woken(turn_id: UUID | None) -> None:
    if turn_id is not None:
        _ring(turn_id)


def _ring_again(turn_id: UUID, outcome: Retrying | Parked | HandedBack) -> TurnWaits:
    """Give the broker the countdown, where it is short enough; return what makes Flower show a retry."""
    match outcome:
        case HandedBack(attempt=attempt, delay=delay):
            why, label = "handed back at shutdown", ""
        case Retrying(delay=delay, attempt=attempt, line=why, label=label):
            pass
        case Parked(delay=delay, attempt=attempt, line=why, label=label):
            pass
        case other:
            assert_never(other)
    if delay <= timedelta(seconds=app.settings.broker_horizon_seconds):
        _ring(turn_id, delay, attempts=attempt, label=label)
    return TurnWaits(message=why, when=datetime.now(UTC) + delay)


def _failed(error: ChatError) -> TurnFailed:
    return TurnFailed(error.kind, error.message)
