"""Producers that only speak Celery: one message, `turnkeeper.submit_turn`."""

from collections.abc import Iterator
from datetime import timedelta
from typing import Any
from uuid import UUID, uuid4

import pytest
from celery import Celery

from turnkeeper import TurnState
from turnkeeper.doorbell import SUBMIT_TURN, producer_app
from turnkeeper.events import TurnPart
from turnkeeper.exceptions import TurnRejected, UnknownTurn
from turnkeeper.views import TurnView
from turnkeeper_ops.services.process import poll

from .conftest import Site

WITHIN = timedelta(seconds=15)


@pytest.fixture
def producer(site: Site) -> Iterator[Celery]:
    """A Celery app that knows the broker and nothing of Turnkeeper."""
    with producer_app(site.running.addresses.broker_url, "turnkeeper") as app:
        yield app


def submit(producer: Celery, request: Any, *, task_id: str | None = None) -> UUID:
    return UUID(producer.send_task(SUBMIT_TURN, args=[request], task_id=task_id or str(uuid4())).id)


def finished(site: Site, turn_id: UUID) -> TurnView:
    """Wait until a turn that came by message has ended."""

    def look() -> TurnView | None:
        try:
            view = site.keeper.show(turn_id)
        except UnknownTurn:
            return None
        return view if view.state.is_final else None

    view = poll(look, within=WITHIN)
    assert view is not None
    return view


def test_a_message_becomes_a_turn_under_the_id_of_its_task(site: Site, producer: Celery) -> None:
    turn_id = submit(producer, {"text": "By message", "provider": "simulator", "model": "sim-1"})

    view = finished(site, turn_id)

    assert view.state is TurnState.COMPLETED
    assert "By message" in view.text


def test_a_message_that_is_delivered_twice_is_one_turn(site: Site, producer: Celery) -> None:
    request = {"text": "By message", "provider": "simulator", "model": "sim-1"}
    turn_id = submit(producer, request)
    finished(site, turn_id)

    submit(producer, request, task_id=str(turn_id))
    after = finished(site, submit(producer, {**request, "text": "The next one"}))

    assert after.state is TurnState.COMPLETED
    assert len(site.calls(turn_id)) == 1


def test_a_message_without_a_provider_takes_the_workers_default(site: Site, producer: Celery) -> None:
    view = finished(site, submit(producer, {"text": "By message"}))

    assert view.provider == "simulator"


@pytest.mark.parametrize(
    ("request_", "reason"),
    [
        pytest.param({"provider": "simulator"}, "give either text or parts", id="no text"),
        pytest.param({"text": "Hi", "colour": "red"}, "colour", id="an unknown field"),
        pytest.param("Hi", "TurnRequest", id="not an object"),
        pytest.param({"text": "Hi", "chat_id": str(UUID(int=13))}, "no chat has the id", id="an unknown chat"),
    ],
)
def test_a_message_that_cannot_be_a_turn_is_stored_with_the_reason(
    site: Site, producer: Celery, request_: Any, reason: str
) -> None:
    turn_id = submit(producer, request_)

    def look() -> str | None:
        try:
            site.keeper.show(turn_id)
        except TurnRejected as rejected:
            return rejected.reason
        except UnknownTurn:
            return None
        return None

    assert reason in (poll(look, within=WITHIN) or "")


@pytest.mark.parametrize(
    ("provider", "state"),
    [pytest.param("simulator", "SUCCESS", id="accepted"), pytest.param(7, "FAILURE", id="rejected")],
)
def test_flower_never_shows_what_a_message_says(
    site: Site, producer: Celery, provider: object, state: str
) -> None:
    secret = f"secret-{uuid4().hex}"
    turn_id = submit(producer, {"text": secret, "provider": provider, "model": "sim-1"})

    def known() -> dict[str, Any] | None:
        tasks: dict[str, Any] = site.flower("/api/tasks?limit=10000")
        return tasks if tasks.get(str(turn_id), {}).get("state") == state else None

    tasks = poll(known, within=WITHIN)
    assert tasks is not None
    assert secret not in str(tasks)


def test_a_turn_that_is_revoked_in_celery_is_cancelled(site: Site, producer: Celery) -> None:
    word = site.script({"type": "stall", "at": 2, "seconds": 600})
    turn = site.enqueue(f"Go on {word}")
    events = site.keeper.follow(turn.id)
    next(event for event in events if isinstance(event, TurnPart))

    producer.control.revoke(str(turn.id), terminate=True)

    assert list(events)[-1].type == "turn.cancelled"
    assert poll(lambda: site.flower(f"/api/task/info/{turn.id}")["state"] == "REVOKED", within=WITHIN)
