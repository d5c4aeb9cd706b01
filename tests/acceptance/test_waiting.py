"""Ten thousand turns that wait for a retry: they cost the turns that are due now nothing, and none is lost."""

import shutil
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from uuid import UUID

import pytest
from sqlalchemy import func, select, update

from turnkeeper import TurnState
from turnkeeper.tables import turns
from turnkeeper_ops.services.process import poll

from .conftest import Site, open_site

WAITING = 10_000
COUNTDOWNS = 400
"""How many of them wait in the worker and in the broker: twice as many as the worker may give to the broker."""
COUNTDOWN_SECONDS = 30
COMING = 200
"""How many fall due while the broker has forgotten everything."""
ENDED_WITHIN = timedelta(seconds=60)


@pytest.fixture(scope="module")
def crowded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """A stack in whose database ten thousand turns wait for a time far away."""
    for site in open_site(tmp_path_factory.mktemp("crowded"), concurrency=200, durable=True):
        retrying = {"state": TurnState.RETRYING, "attempt": 1, "spent": 1, "started_at": datetime.now(UTC)}
        site.gather(WAITING, **retrying, available_at=datetime.now(UTC) + timedelta(hours=1))
        yield site


def test_a_turn_that_is_due_now_starts_at_once_and_an_empty_redis_costs_none_of_the_others(
    crowded: Site, record_testsuite_property: Callable[[str, object], None]
) -> None:
    refused = crowded.script(
        {"type": "status", "status": 429, "headers": {"Retry-After": str(COUNTDOWN_SECONDS - 1)}},
        {"type": "answer"},
    )
    short = [crowded.enqueue(f"{number} {refused}") for number in range(COUNTDOWNS)]
    assert poll(lambda: states(crowded).get(TurnState.RETRYING) == WAITING + COUNTDOWNS, within=ENDED_WITHIN)

    waits = [waited(crowded) for _ in range(5)]
    record_testsuite_property("longest wait of a turn that is due now, seconds", max(waits))
    coming = let_some_fall_due(crowded)
    crowded.running.redis.kill()
    shutil.rmtree(crowded.running.redis._data)
    crowded.running.redis.start()

    assert max(waits) < 1
    assert {crowded.finish(turn).state for turn in short} == {TurnState.COMPLETED}
    assert poll(lambda: states(crowded).get(TurnState.RETRYING) == WAITING - COMING, within=ENDED_WITHIN)
    assert poll(
        lambda: {crowded.keeper.show(one).state for one in coming} == {TurnState.COMPLETED}, within=ENDED_WITHIN
    )


def waited(site: Site) -> float:
    """Run a turn; return how long it waited for a worker, in seconds."""
    view = site.run("Now!")
    assert view.started_at is not None
    return (view.started_at - view.created_at).total_seconds()


def states(site: Site) -> dict[TurnState, int]:
    """Count the turns of each state."""
    with site.keeper._engine.connect() as connection:
        counted = connection.execute(select(turns.c.state, func.count()).group_by(turns.c.state))
        return {TurnState(state): count for state, count in counted}


def let_some_fall_due(site: Site) -> list[UUID]:
    """Let some of the turns that nobody rang for fall due now, and return them."""
    far_away = turns.c.available_at > func.now() + timedelta(minutes=30)
    some = select(turns.c.id).where(far_away).limit(COMING)
    with site.keeper._engine.begin() as connection:
        due = update(turns).where(turns.c.id.in_(some)).values(available_at=func.now()).returning(turns.c.id)
        return list(connection.scalars(due))
