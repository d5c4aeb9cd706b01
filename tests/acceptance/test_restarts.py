"""Workers that come and go while turns are under way: killed with many in flight, or restarted one by one."""

import os
import signal
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime, timedelta

import pytest
from sqlalchemy import func, select

from turnkeeper import AttemptOutcome, TurnState, tables
from turnkeeper.turns import Enqueued
from turnkeeper.views import TurnView
from turnkeeper_ops.services.process import poll

from .conftest import Site, open_site, outcomes

LEASE_TTL = 15.0
DRAIN_SECONDS = 2.0
SETTINGS = (f"lease_ttl_seconds = {LEASE_TTL}", f"drain_seconds = {DRAIN_SECONDS}")
IN_FLIGHT = 200
STARTS_WITHIN = timedelta(seconds=30)
RESTARTS = 3
A_FEW_SECONDS = 5.0


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """A stack with one worker, to which the tests add others."""
    yield from open_site(tmp_path_factory.mktemp("fleet"), concurrency=IN_FLIGHT, lines=SETTINGS)


def test_two_hundred_turns_of_a_killed_worker_complete_within_the_lease_time_and_five_seconds(
    fleet: Site, record_testsuite_property: Callable[[str, object], None]
) -> None:
    answer = {"type": "answer", "text": "Here.", "chunk_chars": 3, "chunk_delay_ms": 3000}
    word = fleet.script({"type": "stall", "at": 2, "seconds": 600}, answer)
    turns = [fleet.enqueue(f"Go on {word}") for _ in range(IN_FLIGHT)]
    assert poll(lambda: count(fleet, TurnState.RUNNING) == IN_FLIGHT, within=STARTS_WITHIN)
    start_worker(fleet)

    killed_at = datetime.now().astimezone()
    fleet.running.workers.pop(0).kill()
    assert poll(lambda: count(fleet, TurnState.COMPLETED) >= IN_FLIGHT, within=timedelta(seconds=60))

    views = [fleet.keeper.show(turn.id) for turn in turns]
    waits = [(view.attempts[1].started_at - killed_at).total_seconds() for view in views]
    record_testsuite_property("longest extra wait, seconds", max(waits))
    assert Counter(view.state for view in views) == {TurnState.COMPLETED: IN_FLIGHT}
    assert {tuple(outcomes(view)) for view in views} == {(AttemptOutcome.LOST, AttemptOutcome.COMPLETED)}
    assert max(waits) <= LEASE_TTL + 5


def test_a_rolling_restart_under_load_loses_and_doubles_and_fails_nothing(
    fleet: Site, record_testsuite_property: Callable[[str, object], None]
) -> None:
    """Short turns, ones that outlive the drain, and ones that are about to be retried."""
    while len(fleet.running.workers) < RESTARTS:
        start_worker(fleet)
    long = {"type": "answer", "text": "word " * 40, "chunk_chars": 5, "chunk_delay_ms": 100}
    outlives = fleet.script(*[long] * (RESTARTS + 1))
    # Four, for the broker deals turns to the three workers in order: each shall get some of each kind.
    words = (
        fleet.script({"type": "answer"}),
        outlives,
        fleet.script({"type": "status", "status": 503}, {"type": "answer"}),
        outlives,
    )

    is_done = threading.Event()
    with ThreadPoolExecutor(1) as producer:
        load = producer.submit(enqueue_steadily, fleet, words, is_done)
        try:
            for _ in range(RESTARTS):
                restart_the_oldest(fleet)
        finally:
            is_done.set()
        turns = load.result()
    views = [fleet.finish(turn) for turn in turns]

    record_testsuite_property("turns", len(turns))
    record_testsuite_property("longest wait, seconds", max(longest_wait(view) for view in views))
    assert Counter(view.state for view in views) == {TurnState.COMPLETED: len(turns)}
    assert {outcome for view in views for outcome in outcomes(view)} <= {
        AttemptOutcome.COMPLETED,
        AttemptOutcome.RETRIED,
        AttemptOutcome.HANDED_BACK,
    }
    assert {outcomes(view).count(AttemptOutcome.COMPLETED) for view in views} == {1}
    assert any(AttemptOutcome.HANDED_BACK in outcomes(view) for view in views)
    assert all(fleet.spent(view.id) == outcomes(view).count(AttemptOutcome.RETRIED) for view in views)
    assert max(longest_wait(view) for view in views) < DRAIN_SECONDS + A_FEW_SECONDS


def start_worker(site: Site) -> None:
    """Start one more worker, and wait until it takes turns."""
    worker = site.running.start_worker()
    worker.wait_for(lambda: " ready." in worker.output(), within=STARTS_WITHIN)


def restart_the_oldest(site: Site) -> None:
    """End a worker as a deployment does, with its successor in place when it is gone."""
    leaving = site.running.workers.pop(0)
    os.kill(leaving.pid, signal.SIGTERM)
    start_worker(site)
    assert poll(lambda: leaving.exit_code() is not None, within=STARTS_WITHIN)
    assert leaving.exit_code() == 0
    leaving.stop()


def enqueue_steadily(site: Site, words: Sequence[str], is_done: threading.Event) -> list[Enqueued]:
    """Enqueue turns, a dozen a second, until it is done."""
    turns: list[Enqueued] = []
    while not is_done.wait(1 / 12):
        turns.append(site.enqueue(f"{len(turns)} {words[len(turns) % len(words)]}"))
    return turns


def count(site: Site, state: TurnState) -> int:
    """Count turns, which costs the workers less than showing each."""
    with site.keeper._engine.connect() as connection:
        return connection.scalar(select(func.count()).where(tables.turns.c.state == state)) or 0


def longest_wait(view: TurnView) -> float:
    """Return for how long nobody worked on a turn that was due, in seconds."""
    due = [view.created_at] + [
        attempt.finished_at + timedelta(milliseconds=attempt.delay_ms or 0)
        for attempt in view.attempts
        if attempt.finished_at is not None
    ]
    started = [attempt.started_at for attempt in view.attempts]
    return max((start - when).total_seconds() for start, when in zip(started, due, strict=False))
