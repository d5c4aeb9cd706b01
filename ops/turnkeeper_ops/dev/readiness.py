"""Whether a stack works: each question goes all the way through and back."""

import http.client
import json
from collections.abc import Callable
from uuid import UUID

from celery import Celery
from kombu.exceptions import OperationalError

from turnkeeper import Turnkeeper
from turnkeeper_ops.dev.addresses import SIMULATOR, SIMULATOR_MODEL
from turnkeeper_ops.services.process import ServiceError

_PING_SECONDS = 1.0
_HTTP_SECONDS = 2.0

Wait = Callable[[Callable[[], bool], str], None]
"""Waits for a condition, named for the message that it was not met."""


def workers_answer(app: Celery, count: int) -> bool:
    """Whether *count* workers answer a ping through the broker."""
    try:
        return len(app.control.ping(timeout=_PING_SECONDS, limit=count)) >= count
    except OperationalError:
        return False


def flower_sees(host: str, port: int, count: int) -> bool:
    """Whether Flower answers and has heard from *count* workers: from then on it misses nothing they do."""
    connection = http.client.HTTPConnection(host, port, timeout=_HTTP_SECONDS)
    try:
        connection.request("GET", "/api/workers?status=1")
        response = connection.getresponse()
        return response.status == http.HTTPStatus.OK and sum(json.load(response).values()) >= count
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()


def a_turn_completes(keeper: Turnkeeper, wait: Wait) -> None:
    """Run one turn through every part, and leave no trace of it; raise ServiceError when it goes wrong."""
    turn = keeper.enqueue(None, "ready?", provider=SIMULATOR, model=SIMULATOR_MODEL)
    # Not by following alone: that would wait for ever for a worker that has died.
    wait(lambda: keeper.show(turn.id).state.is_final, "answer a first turn")
    _expect_completed(keeper, turn.id)
    keeper.erase(turn.chat_id)


def _expect_completed(keeper: Turnkeeper, turn_id: UUID) -> None:
    *_, last = keeper.follow(turn_id)
    if last.type != "turn.completed":
        raise ServiceError(f"the first turn ended with {last.type}: {keeper.show(turn_id).error}")
