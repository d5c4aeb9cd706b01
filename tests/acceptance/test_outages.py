"""What happens to turns when something is away: Redis, a worker, or the worker's patience."""

import os
import signal
from collections.abc import Iterator
from datetime import timedelta
from uuid import UUID

import pytest

from turnkeeper import AttemptOutcome, TurnState
from turnkeeper.events import TurnPart, TurnRetry
from turnkeeper_ops.services.process import poll

from .conftest import Site, open_site

LEASE_TTL = 3.0
SHORT_LEASES = (f"lease_ttl_seconds = {LEASE_TTL}", "beat_seconds = 0.5", "drain_seconds = 1")


@pytest.fixture(scope="module")
def fragile(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """A stack whose leases are short, so that the tests are too, and whose servers survive being killed."""
    yield from open_site(tmp_path_factory.mktemp("fragile"), concurrency=8, lines=SHORT_LEASES, durable=True)


def test_a_turn_enqueued_without_redis_is_stored_and_runs_when_redis_is_back(fragile: Site) -> None:
    fragile.running.redis.kill()
    try:
        enqueued = fragile.cli("enqueue", "Anybody there?")
    finally:
        fragile.running.redis.start()

    turn_id = enqueued.out.strip()
    assert enqueued.code == 2
    assert len(enqueued.err.splitlines()) == 1
    assert f"turn {turn_id} is stored" in enqueued.err
    assert fragile.cli("follow", turn_id).code == 0
    assert fragile.keeper.show(turn_id).state is TurnState.COMPLETED


def test_a_worker_outlives_a_redis_that_is_away_while_it_streams(fragile: Site) -> None:
    """Celery 5.7.0 ends the worker here; this test keeps the pin."""
    word = fragile.script({"type": "answer", "text": "word " * 40, "chunk_chars": 5, "chunk_delay_ms": 50})
    turn = fragile.enqueue(f"Go on {word}")
    next(event for event in fragile.keeper.follow(turn.id) if isinstance(event, TurnPart))
    pid = fragile.running.workers[0].pid

    fragile.running.redis.kill()
    ended = poll(lambda: fragile.keeper.show(turn.id).state.is_final, within=timedelta(seconds=10))
    fragile.running.redis.start()

    assert ended
    view = fragile.keeper.show(turn.id)
    assert (view.state, view.text) == (TurnState.COMPLETED, "word " * 40)
    assert fragile.run("And now?").state is TurnState.COMPLETED
    assert fragile.running.workers[0].pid == pid
    assert fragile.running.workers[0].exit_code() is None


def test_a_worker_outlives_a_database_that_is_away_while_it_streams(fragile: Site) -> None:
    word = fragile.script({"type": "answer", "text": "word " * 40, "chunk_chars": 5, "chunk_delay_ms": 50})
    turn = fragile.enqueue(f"Go on {word}")
    next(event for event in fragile.keeper.follow(turn.id) if isinstance(event, TurnPart))

    fragile.running.postgres.kill()
    fragile.running.postgres.start()

    view = fragile.finish(turn)
    assert view.state is TurnState.COMPLETED
    assert view.text == "word " * 40


def test_the_turns_of_a_killed_worker_are_taken_over_within_the_lease_time(fragile: Site) -> None:
    word = fragile.script({"type": "stall", "at": 2, "seconds": 600}, {"type": "answer"})
    turn = fragile.enqueue(f"Go on {word}")
    events = fragile.keeper.follow(turn.id)
    next(event for event in events if isinstance(event, TurnPart))
    fragile.running.start_worker()

    fragile.running.workers.pop(0).kill()

    rest = list(events)
    rescued = next(event for event in rest if isinstance(event, TurnRetry))
    view = fragile.keeper.show(turn.id)
    assert rescued.reason == "rescued"
    assert view.state is TurnState.COMPLETED
    assert [attempt.outcome for attempt in view.attempts] == [AttemptOutcome.LOST, AttemptOutcome.COMPLETED]
    lost, taken = view.attempts
    assert lost.finished_at is not None
    assert (taken.started_at - lost.finished_at).total_seconds() < LEASE_TTL


def test_a_worker_that_shuts_down_hands_its_turns_back_without_spending_an_attempt(fragile: Site) -> None:
    word = fragile.script({"type": "stall", "at": 2, "seconds": 600}, {"type": "answer"})
    turn = fragile.enqueue(f"Go on {word}")
    events = fragile.keeper.follow(turn.id)
    next(event for event in events if isinstance(event, TurnPart))
    leaving = fragile.running.workers.pop(0)
    fragile.running.start_worker()

    os.kill(leaving.pid, signal.SIGTERM)

    rest = list(events)
    view = fragile.keeper.show(turn.id)
    assert next(event for event in rest if isinstance(event, TurnRetry)).reason == "handed_back"
    assert view.state is TurnState.COMPLETED
    assert [one.outcome for one in view.attempts] == [AttemptOutcome.HANDED_BACK, AttemptOutcome.COMPLETED]
    assert spent(fragile, turn.id) == 0
    assert poll(lambda: leaving.exit_code() is not None, within=timedelta(seconds=20))
    assert leaving.exit_code() == 0
    leaving.stop()


def spent(site: Site, turn_id: UUID) -> int:
    with site.keeper._engine.connect() as connection:
        found: int = connection.exec_driver_sql("SELECT spent FROM turns WHERE id = %s", (turn_id,)).scalar_one()
        return found
