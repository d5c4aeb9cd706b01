"""One owner has ten thousand turns to run, and another one: it starts after a few of them, not after all."""

from collections.abc import Callable, Iterator
from datetime import timedelta
from uuid import UUID

import pytest
from sqlalchemy import Connection, func, insert, select, text

from turnkeeper import TurnState
from turnkeeper.tables import chats, messages, turns
from turnkeeper.turns import AT_BROKER, Enqueued
from turnkeeper_ops.services.process import poll

from .conftest import Site, open_site

CROWD = 10_000
CONCURRENCY = 4
A_FEW = AT_BROKER + CONCURRENCY
"""What stands at the broker already, and what was called up in the moment of the enqueue."""
SAMPLES = 10
SOON = timedelta(seconds=30)

_TURN = {
    "id": func.gen_random_uuid(),
    "chat_id": chats.c.id,
    "seq": text("1"),
    "owner": text("'many'"),
    "provider": text("'simulator_chat'"),
    "request_digest": text("''"),
    "available_at": func.now(),
}
_MESSAGE = {
    "turn_id": turns.c.id,
    "position": text("0"),
    "chat_id": turns.c.chat_id,
    "turn_seq": turns.c.seq,
    "role": text("'user'"),
    "parts": text("""'[{"type": "text", "text": "One of many"}]'::jsonb"""),
}


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """A small worker, before which one owner has put ten thousand turns that nobody rang for."""
    for site in open_site(tmp_path_factory.mktemp("shared"), concurrency=CONCURRENCY):
        with site.keeper._engine.begin() as connection:
            gather(connection)
        yield site


def gather(connection: Connection) -> None:
    each = func.generate_series(1, CROWD)
    new = select(func.gen_random_uuid(), text("'many'"), text("'simulator_chat'"), each * 0 + 1)
    connection.execute(insert(chats).from_select(["id", "owner", "provider", "turn_count"], new))
    connection.execute(insert(turns).from_select(list(_TURN), select(*_TURN.values())))
    connection.execute(insert(messages).from_select(list(_MESSAGE), select(*_MESSAGE.values())))


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
