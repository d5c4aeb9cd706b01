"""What happens to turns when something is away: Redis, PostgreSQL, a worker, or the worker's patience.

`CHAOS_OUTAGE_SECONDS` makes the outages longer; an operator should see 60 once.
"""

import os
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import timedelta

import pytest
import redis

from turnkeeper import AttemptOutcome, Transcript, TurnState
from turnkeeper.events import TurnPart, TurnRetry
from turnkeeper.exceptions import DatabaseUnavailable
from turnkeeper.turns import Enqueued
from turnkeeper_ops.dev import Stack
from turnkeeper_ops.services.process import poll

from .conftest import Site, open_site

LEASE_TTL = 3.0
SHORT_LEASES = (f"lease_ttl_seconds = {LEASE_TTL}", "beat_seconds = 0.5", "drain_seconds = 1")

OUTAGE = timedelta(seconds=float(os.environ.get("CHAOS_OUTAGE_SECONDS", "5")))
RECOVERED_WITHIN_SECONDS = 20
"""Everything that was held up has ended so long after an outage; an idle machine needs three seconds."""
LINES_A_SECOND = 25
"""What one worker may log on average while something is away, lines of stack traces included."""


@pytest.fixture(scope="module")
def fragile(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """A stack whose leases are short, so that the tests are too, and whose servers survive being killed."""
    yield from open_site(tmp_path_factory.mktemp("fragile"), concurrency=50, lines=SHORT_LEASES, durable=True)


DRAIN_SECONDS = 20


@pytest.fixture(scope="module")
def hasty(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """A stack whose workers would wait long for their turns."""
    lines = (f"drain_seconds = {DRAIN_SECONDS}",)
    yield from open_site(tmp_path_factory.mktemp("hasty"), concurrency=8, lines=lines)


@dataclass(frozen=True, slots=True)
class Outage:
    """Something that goes away and comes back."""

    begin: Callable[[Stack], None]
    end: Callable[[Stack], None]
    takes_turns: bool = True
    """Whether turns can be enqueued meanwhile."""


def lose_redis_and_its_data(stack: Stack) -> None:
    stack.redis.kill()
    shutil.rmtree(stack.redis._data)


def lose_both(stack: Stack) -> None:
    stack.redis.kill()
    stack.postgres.kill()


def bring_both_back(stack: Stack) -> None:
    stack.postgres.start()
    stack.redis.start()


def limit_redis(stack: Stack, memory: str) -> None:
    with redis.Redis.from_url(stack.redis.url()) as client:
        client.config_set("maxmemory", memory)


OUTAGES = {
    "Redis is away": Outage(lambda stack: stack.redis.kill(), lambda stack: stack.redis.start()),
    "Redis comes back empty": Outage(lose_redis_and_its_data, lambda stack: stack.redis.start()),
    "Redis is full": Outage(lambda stack: limit_redis(stack, "1"), lambda stack: limit_redis(stack, "0")),
    "Redis hangs": Outage(
        lambda stack: os.kill(stack.redis.pid, signal.SIGSTOP),
        lambda stack: os.kill(stack.redis.pid, signal.SIGCONT),
    ),
    "PostgreSQL is away": Outage(
        lambda stack: stack.postgres.kill(), lambda stack: stack.postgres.start(), takes_turns=False
    ),
    "both are away": Outage(lose_both, bring_both_back, takes_turns=False),
}


@pytest.mark.parametrize("outage", [pytest.param(outage, id=what) for what, outage in OUTAGES.items()])
def test_a_worker_waits_an_outage_out_and_loses_nothing(fragile: Site, outage: Outage) -> None:
    """Turns that run, that wait for a retry, and that come meanwhile; nobody restarts anything."""
    worker = fragile.running.workers[0]
    pid, lines = worker.pid, len(worker.output().splitlines())
    answer = {"type": "answer", "text": "word " * 40, "chunk_chars": 5, "chunk_delay_ms": 100}
    speaking = fragile.script(*[answer] * 5)
    refused = fragile.script(
        {"type": "status", "status": 429, "headers": {"Retry-After": "2"}}, {"type": "answer"}
    )
    running = enqueue_all(fragile, 10, speaking, TurnState.RUNNING)
    retrying = enqueue_all(fragile, 10, refused, TurnState.RETRYING)

    with ThreadPoolExecutor(len(running)) as readers:
        transcripts = [readers.submit(read_patiently, fragile, turn) for turn in running]
        outage.begin(fragile.running)
        began = time.monotonic()
        late = [fragile.enqueue("Anybody there?") for _ in range(3)] if outage.takes_turns else []
        poll(lambda: None, within=OUTAGE - timedelta(seconds=time.monotonic() - began))
        outage.end(fragile.running)
        mended = time.monotonic()
        views = [fragile.finish(turn) for turn in (*running, *retrying, *late)]
        recovered = time.monotonic()
        read = [transcript.result() for transcript in transcripts]

    assert {view.state for view in views} == {TurnState.COMPLETED}
    assert {view.text for view in views[: len(running)]} == {"word " * 40}
    assert set(read) == {"word " * 40}
    assert recovered - mended < RECOVERED_WITHIN_SECONDS
    assert (worker.pid, worker.exit_code()) == (pid, None)
    assert len(worker.output().splitlines()) - lines < LINES_A_SECOND * (recovered - began)


def enqueue_all(site: Site, count: int, text: str, state: TurnState) -> list[Enqueued]:
    """Enqueue turns and wait until each has reached a state."""
    turns = [site.enqueue(text) for _ in range(count)]
    assert poll(
        lambda: all(site.keeper.show(turn.id).state is state for turn in turns), within=timedelta(seconds=20)
    )
    return turns


def read_patiently(site: Site, turn: Enqueued) -> str:
    """Read a turn to its end, and come back behind what was seen when the database is away."""
    transcript, cursor = Transcript(), ""
    while True:
        try:
            for event in site.keeper.follow(turn.id, after=cursor):
                transcript.feed([event])
                cursor = event.id or cursor
        except DatabaseUnavailable:
            poll(lambda: None, within=timedelta(seconds=0.2))
        else:
            return transcript.text


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
    answer = {"type": "answer", "text": "word " * 40, "chunk_chars": 5, "chunk_delay_ms": 50}
    # Again, should the database take so long to come back that the worker gives its lease up.
    word = fragile.script(*[answer] * 3)
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
    assert fragile.spent(turn.id) == 0
    assert poll(lambda: leaving.exit_code() is not None, within=timedelta(seconds=20))
    assert leaving.exit_code() == 0
    leaving.stop()


@pytest.mark.parametrize(
    "signals",
    [
        pytest.param((signal.SIGTERM, signal.SIGTERM), id="SIGTERM twice"),
        pytest.param((signal.SIGQUIT,), id="SIGQUIT"),
        pytest.param((signal.SIGTERM, signal.SIGQUIT), id="SIGTERM and SIGQUIT"),
        pytest.param((signal.SIGINT, signal.SIGINT), id="Ctrl-C twice"),
    ],
)
def test_who_insists_on_the_end_of_a_worker_need_not_wait_and_ends_no_turn(
    hasty: Site, signals: tuple[signal.Signals, ...]
) -> None:
    word = hasty.script({"type": "stall", "at": 2, "seconds": 600}, {"type": "answer"})
    turn = hasty.enqueue(f"Go on {word}")
    events = hasty.keeper.follow(turn.id)
    next(event for event in events if isinstance(event, TurnPart))
    leaving = hasty.running.workers.pop(0)

    first, *more = signals
    os.kill(leaving.pid, first)
    assert poll(lambda: " shutdown (MainProcess)" in leaving.output(), within=timedelta(seconds=5))
    for another in more:
        os.kill(leaving.pid, another)
    insisted = time.monotonic()
    ended = poll(lambda: leaving.exit_code() is not None, within=timedelta(seconds=10))
    hasty.running.start_worker()

    assert ended
    assert time.monotonic() - insisted < DRAIN_SECONDS / 2
    list(events)
    view = hasty.keeper.show(turn.id)
    assert view.state is TurnState.COMPLETED
    assert [one.outcome for one in view.attempts] == [AttemptOutcome.HANDED_BACK, AttemptOutcome.COMPLETED]
    assert hasty.spent(turn.id) == 0
    leaving.stop()
