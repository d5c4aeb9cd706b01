"""How chains have held: three breaks in a row let them rest, and one that holds makes up for all."""

from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from typing import TYPE_CHECKING

import pytest
from sqlalchemy import Connection, func, select, update

from turnkeeper.tables import chain_health as table
from turnkeeper_worker import chain_health
from turnkeeper_worker.chain import Credential, Health

if TYPE_CHECKING:
    from tests.integration.conftest import Stage

HERE = Credential(provider="openai", base_url="https://api.openai.com/v1", key="abc", model="m")
AN_HOUR = timedelta(hours=1)


def breaks(stage: "Stage", times: int, credential: Credential = HERE, *, tolerated: int = 3) -> Health:
    for _ in range(times):
        stage.do(chain_health.broke, credential, tolerated=tolerated, rest=AN_HOUR)
    return stage.do(chain_health.health_of, credential)


def test_a_credential_that_nobody_heard_of_is_healthy(stage: "Stage") -> None:
    assert stage.do(chain_health.health_of, HERE) == Health()


@pytest.mark.parametrize(("times", "is_resting"), [(1, False), (2, False), (3, True), (4, True)])
def test_chains_rest_when_they_broke_too_often(stage: "Stage", times: int, is_resting: bool) -> None:
    assert breaks(stage, times) == Health(breaks=times, is_resting=is_resting)


def test_where_no_break_is_tolerated_the_first_one_lets_them_rest(stage: "Stage") -> None:
    assert breaks(stage, 1, tolerated=1) == Health(breaks=1, is_resting=True)


def test_a_rest_lasts_as_long_as_it_was_told_to(stage: "Stage") -> None:
    breaks(stage, 3)

    with stage.engine.connect() as connection:
        left = connection.scalar(select(table.c.rests_until - func.now()))

    assert left is not None
    assert AN_HOUR - timedelta(seconds=30) < left <= AN_HOUR


def test_behind_its_rest_a_chain_is_tried_and_the_next_break_lets_it_rest_again(stage: "Stage") -> None:
    breaks(stage, 3)
    stage.do(Connection.execute, update(table).values(rests_until=func.now() - AN_HOUR))
    assert stage.do(chain_health.health_of, HERE) == Health(breaks=3, is_resting=False)

    assert breaks(stage, 1) == Health(breaks=4, is_resting=True)


def test_a_chain_that_held_makes_up_for_all_that_broke(stage: "Stage") -> None:
    breaks(stage, 3)

    stage.do(chain_health.held, HERE)

    assert stage.do(chain_health.health_of, HERE) == Health()
    assert breaks(stage, 2) == Health(breaks=2, is_resting=False)


@pytest.mark.parametrize("field", ["provider", "base_url", "key"])
def test_one_credential_does_not_touch_another(stage: "Stage", field: str) -> None:
    other = HERE.model_copy(update={field: "other"})
    breaks(stage, 2, other)

    assert breaks(stage, 3) == Health(breaks=3, is_resting=True)
    assert stage.do(chain_health.health_of, other) == Health(breaks=2, is_resting=False)
    stage.do(chain_health.held, other)
    assert stage.do(chain_health.health_of, HERE).is_resting


def test_the_models_of_a_credential_share_their_health(stage: "Stage") -> None:
    breaks(stage, 3)

    assert stage.do(chain_health.health_of, HERE.model_copy(update={"model": "other"})).is_resting


def test_workers_that_break_at_the_same_moment_are_all_counted(
    stage: "Stage", threads: ThreadPoolExecutor
) -> None:
    list(threads.map(lambda _: breaks(stage, 1, tolerated=99), range(12)))

    assert stage.do(chain_health.health_of, HERE).breaks == 12
