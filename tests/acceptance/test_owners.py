"""One owner has ten thousand turns to run, and another one: it starts after a few of them, not after all."""

from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from uuid import UUID

import pytest
from sqlalchemy import func, select

from turnkeeper import TurnState
from turnkeeper.tables import turns
from turnkeeper.turns import AT_BROKER, Enqueued
from turnkeeper_ops.services.process import poll

from .conftest import Site, open_site

CROWD = 10_000
CONCURRENCY = 4
A_FEW = AT_BROKER + CONCURRENCY
"""What stands at the broker already, and what was called up in the moment of the enqueue."""
SAMPLES = 10
SOON = timedelta(seconds=30)


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """A small worker, before which one owner has put ten thousand turns that nobody rang for."""
    for site in open_site(tmp_path_factory.mktemp("shared"), concurrency=CONCURRENCY):
        site.gather(CROWD, owner="many", provider="simulator_chat", available_at=datetime.now(UTC))
        yield site


def started(site: Site) -> int:
    with site.keeper._engine.connect() as connection:
        return connection.execute(select(func.count()).where(turns.c.started_at.is_not(None))).scalar_one()


def begins(site: Site, turn: Enqueued) -> bool:
    return site.keeper.show(turn.id).started_at is not None


def overtaken_by(site: Site, turn_id: UUID) -> int:
    """Count the turns of the crowd that started while this one waited."""
    this = select(turns.c.created_at, turns.c.started_at).where(turns.c.id == turn_id).subquery()
    waited = turns.c.started_at.between(this.c.created_at, this.c.started_at)
    with site.keeper._engine.connect() as connection:
        return connection.execute(select(func.count()).where(turns.c.owner == "many", waited)).scalar_one()


def enqueue(site: Site, words: str, **options: object) -> Enqueued:
    return site.keeper.enqueue(None, words, provider="simulator_chat", **options)


def test_a_turn_of_another_owner_waits_for_a_few_of_them(
    shared: Site, record_testsuite_property: Callable[[str, object], None]
) -> None:
    assert poll(lambda: started(shared) >= 2 * A_FEW, within=SOON)
    waited = []
    for number in range(SAMPLES):
        turn = enqueue(shared, "Just one", owner=f"one {number}")
        assert poll(lambda turn=turn: begins(shared, turn), within=SOON)
        waited.append(overtaken_by(shared, turn.id))

    record_testsuite_property("turns of a crowd before another owner's, at most", max(waited))
    assert max(waited) <= A_FEW
    assert started(shared) < CROWD


def test_a_turn_of_high_priority_comes_before_all_that_stand_back(shared: Site) -> None:
    urgent = enqueue(shared, "Me first", owner="many", priority=10)
    assert urgent.is_held

    assert poll(lambda: begins(shared, urgent), within=SOON)

    assert overtaken_by(shared, urgent.id) <= 2 * A_FEW
    assert started(shared) < CROWD


def test_no_turn_of_the_crowd_fails_for_it(shared: Site) -> None:
    with shared.keeper._engine.connect() as connection:
        states = set(connection.scalars(select(turns.c.state).distinct()))

    assert states <= {TurnState.QUEUED, TurnState.RUNNING, TurnState.COMPLETED}
    assert TurnState.COMPLETED in states
