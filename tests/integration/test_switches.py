"""The switch of a provider: who may be switched, what is remembered, and what a worker makes of it."""

from datetime import timedelta
from typing import TYPE_CHECKING
from uuid import uuid4

import pytest
from sqlalchemy import URL

from turnkeeper import switches
from turnkeeper.exceptions import UnknownProvider
from turnkeeper.tables import provider_switches
from turnkeeper_worker import upkeep
from turnkeeper_worker.config import ProviderConfig
from turnkeeper_worker.database import Database
from turnkeeper_worker.failures import Signal
from turnkeeper_worker.planner import Obstacle, Planner
from turnkeeper_worker.switchboard import Switchboard
from turnkeeper_worker.tools import Toolbox
from turnkeeper_worker.upkeep import Identity

if TYPE_CHECKING:
    from tests.integration.conftest import OpenKeeper, Stage

CONFIGS = {"openai": ProviderConfig(base_url="https://api.openai.com/v1", model="m")}


@pytest.fixture
def keeper(open_keeper: "OpenKeeper", stage: "Stage") -> object:
    """A client, beside a worker that is configured for two providers."""
    me = Identity(id=uuid4(), host="here", pid=1, concurrency=1, providers=("openai", "anthropic"))
    stage.do(upkeep.beat, me)
    return open_keeper()


class TestClients:
    def test_a_provider_that_is_switched_off_is_off_until_it_is_switched_on(self, keeper: object) -> None:
        off = keeper.disable_provider("openai", "the invoice")

        assert keeper.disabled_providers() == {"openai": off}
        assert (off.provider, off.reason) == ("openai", "the invoice")
        assert keeper.enable_provider("openai") is True
        assert keeper.disabled_providers() == {}
        assert keeper.enable_provider("openai") is False

    def test_switching_off_again_changes_the_reason_and_not_since_when(self, keeper: object) -> None:
        first = keeper.disable_provider("openai", "the invoice")

        again = keeper.disable_provider("openai", "still the invoice")

        assert (again.reason, again.disabled_at) == ("still the invoice", first.disabled_at)

    @pytest.mark.parametrize("switch", ["disable_provider", "enable_provider"])
    def test_an_unknown_name_is_refused_with_those_that_exist(
        self, keeper: object, stage: "Stage", switch: str
    ) -> None:
        with pytest.raises(UnknownProvider, match="no provider is called 'opnai'; there are: anthropic, openai"):
            getattr(keeper, switch)("opnai")

        assert stage.count(provider_switches) == 0

    def test_what_the_caller_knows_exists_as_well(self, keeper: object) -> None:
        assert keeper.disable_provider("mine", known=["mine"]).provider == "mine"

    def test_a_provider_that_no_worker_has_any_more_can_be_switched_on(
        self, keeper: object, stage: "Stage"
    ) -> None:
        stage.do(switches.disable, "gone", known=["gone"])

        assert keeper.enable_provider("gone") is True


async def test_a_switchboard_shows_what_was_switched_when_it_looked(stage: "Stage", database_url: URL) -> None:
    board, database = Switchboard(), Database.at(database_url)
    off = stage.do(switches.disable, "openai", known=CONFIGS)
    assert board.off == {}

    await board.look(database)
    seen = dict(board.off)
    stage.do(switches.enable, "openai")
    await board.look(database)

    assert (seen, board.off) == ({"openai": off}, {})
    await database.close()


class TestAttempts:
    def planner(self, stage: "Stage") -> Planner:
        off = stage.do(switches.disable, "openai", known=CONFIGS)
        board = Switchboard({"openai": off})
        return Planner(configs=CONFIGS, keys={"openai": "abc"}, toolbox=Toolbox(), switchboard=board)

    def test_a_new_attempt_meets_the_switch(self, stage: "Stage") -> None:
        turn = stage.claim(stage.enqueue().id)

        attempt = stage.do(self.planner(stage).plan_anew, turn)

        assert isinstance(attempt.obstacle, Obstacle)
        assert attempt.obstacle.signal is Signal.PROVIDER_DISABLED

    def test_a_background_response_that_runs_is_come_back_to(self, stage: "Stage") -> None:
        turn = stage.claim(stage.enqueue(background=True).id)
        stage.keep(turn)
        stage.silence(turn.worker_id)
        stage.do(upkeep.rescue, timedelta(seconds=15))

        attempt = stage.do(self.planner(stage).plan_anew, stage.claim(turn.id))

        assert attempt.call.running is not None
        assert attempt.obstacle is None
