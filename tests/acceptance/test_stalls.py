"""A worker that sleeps through its lease and wakes: it changes nothing, and nobody believes a word of it."""

import os
import signal
from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import pytest

from turnkeeper import AttemptOutcome, Transcript, TurnState
from turnkeeper.events import TurnPart
from turnkeeper_ops.services.process import Child, poll

from .conftest import Site, open_site

LEASE_TTL = 3.0
SHORT_LEASES = (f"lease_ttl_seconds = {LEASE_TTL}", "beat_seconds = 0.5")
WITHIN = timedelta(seconds=20)


@pytest.fixture(scope="module")
def sleepy(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    yield from open_site(tmp_path_factory.mktemp("sleepy"), concurrency=8, lines=SHORT_LEASES)


STALLS: list[Any] = [
    pytest.param({"type": "stall", "at": 2, "seconds": 600}, id="while it waits for words"),
    pytest.param(
        {"type": "answer", "text": "old " * 200, "chunk_chars": 4, "chunk_delay_ms": 40}, id="while it streams"
    ),
]


@pytest.mark.parametrize("first", STALLS)
def test_a_worker_that_wakes_after_its_turn_was_taken_over_changes_nothing(
    sleepy: Site, first: dict[str, Any]
) -> None:
    word = sleepy.script(first, {"type": "answer", "text": "The answer."})
    turn = sleepy.enqueue(f"Go on {word}")
    next(event for event in sleepy.keeper.follow(turn.id) if isinstance(event, TurnPart))
    sleeper = sleepy.running.workers[-1]
    other = sleepy.running.start_worker()
    sleepy.running.wait_until_ready()

    os.kill(sleeper.pid, signal.SIGSTOP)
    try:
        view = sleepy.finish(turn)
    finally:
        os.kill(sleeper.pid, signal.SIGCONT)
    done = sleepy.record(turn)
    # The sleeper has beaten again, and so has learned what it lost.
    assert poll(lambda: beats_after(sleepy, sleeper, view.finished_at), within=WITHIN)

    later = sleepy.record(turn)
    assert view.state is TurnState.COMPLETED
    assert [one.outcome for one in view.attempts] == [AttemptOutcome.LOST, AttemptOutcome.COMPLETED]
    assert later.view == done.view == view
    assert [one for one in later.events if one.epoch < view.epoch and one.at > view.finished_at] == []
    transcript = Transcript()
    transcript.feed(later.events)
    assert transcript.text == view.text == "The answer."
    assert sleeper.exit_code() is None
    sleepy.running.workers.remove(other)
    other.kill()
    assert sleepy.run("And now?").state is TurnState.COMPLETED


def beats_after(site: Site, worker: Child, moment: Any) -> bool:
    """Whether the worker's heartbeat is younger than *moment*."""
    with site.keeper._engine.connect() as connection:
        query = "SELECT heartbeat_at FROM workers WHERE pid = %s"
        found = connection.exec_driver_sql(query, (worker.pid,)).scalar()
        return bool(found and found > moment)
